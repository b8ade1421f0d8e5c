"""The operations that DenseNet is composed from: each takes a tensor first and returns a tensor.

Tensors are NHWC: N images, H rows, W columns, C channels. A helper that has weights opens its own variable scope.
Initial weights depend only on the graph's seed (`tf.set_random_seed`) and the variable's name, dropout masks only on
that seed, the layer's name, the replica and the step, so that a resumed run repeats exactly.
"""

import math
import zlib

import support.environment  # noqa: F401  sets what TensorFlow reads when it is imported

import tensorflow.compat.v1 as tf

from support.batch_statistics import (
    EPSILON,
    Form,
    MovingStatistics,
    advance_moving_statistics,
    mapped,
    normalized,
    normalized_by_batch,
    product_of,
)
from support.convolution import conv2d
from support.tflearn_pooling import global_average_pooling
from support.variables import get_variables

tf.logging.set_verbosity(tf.logging.ERROR)  # TensorFlow warns of deprecated names


def conv_layer(x, filter, kernel, stride=1, layer_name="conv", *, padding="SAME"):
    """Convolution without bias (batch normalization follows).

    Args:
        x: [N, H, W, C], floating point, or a `support.batch_statistics.Recomputed`. The weights are float32.
        filter: number of output channels.
        kernel: side of the kernel, or [height, width].
        padding: TensorFlow's rule, or the number of zeros to add on every side.
    Returns:
        [N, ceil(H / stride), ceil(W / stride), filter] with SAME padding, of x's type.
    """
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    with tf.variable_scope(layer_name):
        shape = [height, width, int(x.shape[-1]), filter]
        weights = _variable("kernel", shape, _he_normal("kernel", fan_in=height * width * shape[2]))
        return product_of(x, tf.cast(weights, x.dtype),
                          lambda x, weights: _convolution(*_padded(x, padding), weights, stride))


def _padded(x, padding):
    """(x with that number of zeros on every side, VALID); for one of TensorFlow's rules (x, the rule)."""
    if isinstance(padding, str):
        return x, padding
    return tf.pad(x, [[0, 0], [padding, padding], [padding, padding], [0, 0]]), "VALID"


def _convolution(x, padding, weights, stride):
    height, width, channels, filters = weights.shape.as_list()
    rows, columns = (int(side) for side in x.shape[1:3])
    # Where only the centre of the kernel meets the image, a matrix product computes the same, faster on a CPU.
    if height % 2 and width % 2 and (rows == columns == 1 and padding == "SAME" or height == width == stride == 1):
        centre = tf.reshape(weights, [channels, filters]) if height == width == 1 else weights[height // 2, width // 2]
        product = tf.matmul(tf.reshape(x, [-1, channels]), centre)
        return tf.reshape(product, [-1, rows, columns, filters])
    return conv2d(x, weights, stride, padding)


def Batch_Normalization(x, training, scope, *, relu=False, epsilon=EPSILON, shared=None, memory_efficient=False):
    """Batch normalization (Ioffe & Szegedy 2015, arXiv 1502.03167) with a zero-debiased moving mean.

    Computes what TensorFlow 1.15's `tf.contrib.layers.batch_norm` computes with decay=0.9, center=True, scale=True,
    zero_debias_moving_mean=True and updates_collections=None. With the batch's mean μ, its variance σ² (biased) and
    s² (unbiased), and ε:

        training:   y = gamma · (x - μ) / √(σ² + ε) + beta
                    local_step += 1; biased += 0.1 · (μ - biased); moving_mean = biased / (1 - 0.9 ^ local_step)
                    moving_variance += 0.1 · (s² - moving_variance)
        inference:  y = gamma · (x - moving_mean) / √(moving_variance + ε) + beta

    Without `shared`, the moving averages advance whenever the training output is computed: run it once per step. With
    `shared`, as in `Densenet.build_training`, the training step advances those of all layers together.

    Args:
        x: [N, H, W, C], floating point; statistics are float32.
        training: a Python bool or a bool tensor.
        relu: whether the output is rectified, in the same pass over memory.
        epsilon: ε. TensorFlow's kernel takes at least 1.001e-5 and computes with that for less.
        shared: the `support.batch_statistics.SharedStatistics` of the network; used only where `training` is True.
        memory_efficient: whether the output is recomputed in the backward pass; used only with `shared`.
    Returns:
        [N, H, W, C], of x's type; recomputed, a `Recomputed`, which `conv_layer` and `Average_pooling` take.
    """
    with tf.variable_scope(scope):
        shape = [int(x.shape[-1])]
        gamma, beta, *moving = get_variables([  # name, shape, initial value, whether it is trained
            ("gamma", shape, 1, True), ("beta", shape, 0, True),
            ("moving_mean", shape, 0, False), ("moving_variance", shape, 1, False),
            ("moving_mean/biased", shape, 0, False), ("moving_mean/local_step", [], 0, False)])
        moving, form = MovingStatistics(*moving), Form(relu, epsilon)

        def by_batch():
            y, mean, variance = normalized_by_batch(x, gamma, beta, form)
            with tf.control_dependencies(advance_moving_statistics([moving], mean, variance)):
                return tf.identity(y)

        def by_moving_averages():
            return normalized(x, moving.mean, moving.variance, gamma, beta, form, training=False)

        if training is True and shared is not None:
            return shared.normalize(x, gamma, beta, moving, form, memory_efficient)
        if isinstance(training, bool):
            return by_batch() if training else by_moving_averages()
        return tf.cond(training, by_batch, by_moving_averages)


def Drop_out(x, rate, training, *, scope=None, replica_index=0):
    """Dropout (Srivastava et al. 2014): zeroes a share `rate` of x, scales the rest by 1 / (1 - rate).

    The mask is a pure function of (the graph's seed, the scope, `replica_index`, the global step): a step that is run
    again, after a restart for instance, draws the same mask.

    Args:
        x: a tensor of any shape, floating point.
        rate: 0 <= rate < 1, a Python float.
        training: a Python bool or a bool tensor; where it is false, x is returned unchanged.
        scope: name of the layer; None: a name that no other dropout of the graph has.
        replica_index: number of the replica that computes its part of the batch.
    """
    if rate == 0 or training is False:
        return x
    step = tf.cast(tf.train.get_or_create_global_step(), tf.int64)
    scope = scope or tf.get_default_graph().unique_name("dropout", mark_as_used=True).replace("/", "_")

    def masked():
        with tf.variable_scope(scope):
            seed = tf.stack([tf.constant(_name_seed("mask%d" % replica_index), tf.int64), step])
            keep = tf.random.stateless_uniform(tf.shape(x), seed) >= rate
            return x * tf.cast(keep, x.dtype) / (1 - rate)

    return masked() if training is True else tf.cond(training, masked, lambda: x)


def Relu(x):
    """max(x, 0)."""
    return tf.nn.relu(x)


def Average_pooling(x, pool_size=(2, 2), stride=2, padding="VALID"):
    """The mean of each window: by default [N, H, W, C] to [N, H // 2, W // 2, C]; x may be a `Recomputed`."""
    return mapped(x, lambda x: tf.nn.avg_pool2d(x, pool_size, stride, padding))


def Max_Pooling(x, pool_size=(3, 3), stride=2, padding="VALID"):
    """The maximum of each window: by default [N, H, W, C] to [N, (H - 1) // 2, (W - 1) // 2, C].

    `padding`: TensorFlow's rule, or the number of zeros to add on every side of an x without negative values.
    """
    x, padding = _padded(x, padding)
    return tf.nn.max_pool2d(x, pool_size, stride, padding)


def Global_Average_Pooling(x, stride=1):
    """The mean over height and width, [N, H, W, C] to [N, C], by tflearn where it can be imported, else by `tf`.

    `stride`: as in the first description; one window covers the whole map, so that no stride changes the result.
    """
    pooled = global_average_pooling(x)
    return tf.reduce_mean(x, [1, 2], name="global_average_pooling") if pooled is None else pooled


def Concatenation(layers, *, shared=None):
    """Concatenates the channels of [N, H, W, C1], [N, H, W, C2], … into [N, H, W, C1 + C2 + …].

    `shared`: the network's `support.batch_statistics.SharedStatistics`, for which the parts are remembered, or None.
    """
    return tf.concat(layers, axis=3) if shared is None else shared.concatenate(layers)


def Linear(x, *, class_num=10, layer_name="linear"):
    """Fully connected layer with bias: [N, C] to logits [N, class_num], float32."""
    with tf.variable_scope(layer_name):
        shape = [int(x.shape[-1]), class_num]
        weights = _variable("kernel", shape, _he_normal("kernel", fan_in=shape[0]))
        bias = _variable("bias", [class_num], tf.zeros_initializer())
        return tf.matmul(tf.cast(x, tf.float32), weights) + bias


def _variable(name, shape, initializer):
    # Resource variables: a read never sees half of an update.
    return tf.get_variable(name, shape, tf.float32, initializer, use_resource=True)


def _name_seed(name):
    """A seed from the graph's seed and the name in its scope, equal on every machine, Python and TensorFlow."""
    full_name = "%s/%s" % (tf.get_variable_scope().name, name)
    return zlib.crc32(("%s/%s" % (tf.get_default_graph().seed, full_name)).encode())


def _he_normal(name, fan_in):
    """Normal with variance 2 / fan_in (He et al. 2015, arXiv 1502.01852, as in the paper's section 4.2)."""
    seed = _name_seed(name)

    def initializer(shape, dtype=tf.float32, partition_info=None):
        return tf.random.stateless_normal(shape, [seed, 0], stddev=math.sqrt(2.0 / fan_in), dtype=dtype)

    return initializer
