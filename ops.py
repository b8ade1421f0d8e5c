"""The operations that DenseNet is composed from: each takes a tensor first and returns a tensor.

Tensors are NHWC: N images, H rows, W columns, C channels. A helper that has weights opens its own variable scope.
Initial weights depend only on the graph's seed (`tf.set_random_seed`) and the variable's name, dropout masks only on
that seed, the layer's name, the replica and the step, so that a resumed run repeats exactly.
"""

import functools
import math
import warnings
import zlib

import tensorflow.compat.v1 as tf

tf.logging.set_verbosity(tf.logging.ERROR)  # TensorFlow 1.15 announces each deprecation, the next line its own
tf.disable_v2_behavior()  # tflearn's import does the same: graph mode from the start, not from the middle on

BATCH_NORM_DECAY = 0.9
BATCH_NORM_EPSILON = 0.001


def conv_layer(x, filters, kernel, stride=1, layer_name="conv"):
    """Convolution with SAME padding and no bias (batch normalization follows).

    Args:
        x: [N, H, W, C], float32 or bfloat16; the weights stay float32.
        filters: number of output channels.
        kernel: side of the square kernel.
    Returns:
        [N, ceil(H / stride), ceil(W / stride), filters], of x's dtype.
    """
    with tf.variable_scope(layer_name):
        shape = [kernel, kernel, int(x.shape[-1]), filters]
        weights = _variable("kernel", shape, _he_normal("kernel", fan_in=kernel * kernel * shape[2]))
        return tf.nn.conv2d(x, tf.cast(weights, x.dtype), strides=[1, stride, stride, 1], padding="SAME")


def Batch_Normalization(x, training, scope):
    """Batch normalization (Ioffe & Szegedy 2015, arXiv 1502.03167) with a zero-debiased moving mean.

    Computes what TensorFlow 1.15's `tf.contrib.layers.batch_norm` computes with decay=0.9, center=True, scale=True,
    zero_debias_moving_mean=True and updates_collections=None. The moving statistics advance whenever the training
    output is computed: run each training graph once per step.

    Args:
        x: [N, H, W, C], float32 or bfloat16; statistics are float32.
        training: True to normalize by the batch and advance the moving statistics, False to normalize by them;
            a Python bool or a bool tensor.
    Returns:
        [N, H, W, C], of x's dtype.
    """
    with tf.variable_scope(scope):
        shape = [int(x.shape[-1])]
        gamma = _variable("gamma", shape, tf.ones_initializer())
        beta = _variable("beta", shape, tf.zeros_initializer())
        moving_mean = _variable("moving_mean", shape, tf.zeros_initializer(), trainable=False)
        moving_variance = _variable("moving_variance", shape, tf.ones_initializer(), trainable=False)
        with tf.variable_scope("moving_mean"):  # the mean before debiasing, and how many batches it has seen
            biased = _variable("biased", shape, tf.zeros_initializer(), trainable=False)
            local_step = _variable("local_step", [], tf.zeros_initializer(), trainable=False)

        def by_batch():
            # The kernel returns the variance with Bessel's correction, n / max(n - 1, 1), as the update needs it.
            y, mean, variance = tf.nn.fused_batch_norm(
                tf.cast(x, tf.float32), gamma, beta, epsilon=BATCH_NORM_EPSILON, is_training=True)
            new_biased = biased - (1 - BATCH_NORM_DECAY) * (biased - mean)
            new_step = local_step + 1
            new_mean = new_biased / (1 - tf.pow(BATCH_NORM_DECAY, new_step))
            new_variance = moving_variance - (1 - BATCH_NORM_DECAY) * (moving_variance - variance)
            updates = [
                biased.assign(new_biased, read_value=False),
                local_step.assign(new_step, read_value=False),
                moving_mean.assign(new_mean, read_value=False),
                moving_variance.assign(new_variance, read_value=False),
            ]
            with tf.control_dependencies(updates):
                return tf.identity(tf.cast(y, x.dtype))

        def by_moving_statistics():
            y, _, _ = tf.nn.fused_batch_norm(
                tf.cast(x, tf.float32), gamma, beta, moving_mean, moving_variance,
                epsilon=BATCH_NORM_EPSILON, is_training=False)
            return tf.cast(y, x.dtype)

        if isinstance(training, bool):
            return by_batch() if training else by_moving_statistics()
        return tf.cond(training, by_batch, by_moving_statistics)


def Drop_out(x, rate, training, scope="dropout", replica=0):
    """Dropout (Srivastava et al. 2014): zeroes a share `rate` of x, scales the rest by 1 / (1 - rate).

    The mask is a pure function of (the graph's seed, the scope, `replica`, the global step): running a step again,
    after a restart for instance, draws the same one.

    Args:
        x: a tensor of any known rank, floating point.
        rate: 0 <= rate < 1, a Python float.
        training: a Python bool or a bool tensor; False returns x as it is.
        replica: index of the device among those that share a step.
    """
    if rate == 0 or training is False:
        return x

    def masked():
        with tf.variable_scope(scope):
            step = tf.cast(tf.train.get_or_create_global_step(), tf.int64)
            seed = tf.stack([tf.constant(_name_seed("mask%d" % replica), tf.int64), step])
            keep = tf.random.stateless_uniform(tf.shape(x), seed) >= rate
            return x * tf.cast(keep, x.dtype) / (1 - rate)

    return masked() if training is True else tf.cond(training, masked, lambda: x)


def Relu(x):
    return tf.nn.relu(x)


def Average_pooling(x, pool_size=2, stride=2, padding="VALID"):
    return tf.nn.avg_pool2d(x, pool_size, stride, padding)


def Max_Pooling(x, pool_size=3, stride=2, padding="VALID"):
    return tf.nn.max_pool2d(x, pool_size, stride, padding)


def Global_Average_Pooling(x):
    """Mean over height and width, [N, H, W, C] to [N, C], by tflearn where it can be imported, else by `tf` itself."""
    tflearn = _import_tflearn()
    if tflearn is None:
        return tf_global_average_pooling(x)
    pooled = tflearn.layers.conv.global_avg_pool(x, name="global_average_pooling")
    # tflearn keeps each layer's output in a collection of the graph, which a saved graph would carry along.
    tf.get_default_graph().clear_collection(tf.GraphKeys.LAYER_TENSOR + "/global_average_pooling")
    return pooled


def tf_global_average_pooling(x):
    """What `Global_Average_Pooling` computes, without tflearn."""
    return tf.reduce_mean(x, [1, 2], name="global_average_pooling")


def Concatenation(layers):
    """Concatenates the channels of [N, H, W, C1], [N, H, W, C2], … into [N, H, W, C1 + C2 + …]."""
    return layers[0] if len(layers) == 1 else tf.concat(layers, axis=3)


def Linear(x, class_num=10, layer_name="linear"):
    """Fully connected layer with bias: [N, C] to logits [N, class_num], float32."""
    with tf.variable_scope(layer_name):
        shape = [int(x.shape[-1]), class_num]
        weights = _variable("kernel", shape, _he_normal("kernel", fan_in=shape[0]))
        bias = _variable("bias", [class_num], tf.zeros_initializer())
        return tf.matmul(tf.cast(x, tf.float32), weights) + bias


def _variable(name, shape, initializer, trainable=True):
    # Resource variables: a read never sees half of an update.
    return tf.get_variable(name, shape, tf.float32, initializer, trainable=trainable, use_resource=True)


def _name_seed(name):
    """A seed from the graph's seed and the name in its scope, equal on every machine, Python and TensorFlow."""
    full_name = "%s/%s" % (tf.get_variable_scope().name, name)
    return zlib.crc32(("%s/%s" % (tf.get_default_graph().seed, full_name)).encode())


def _he_normal(name, fan_in):
    """Normal with variance 2 / fan_in (He et al. 2015, arXiv 1502.01852, as in the paper's section 4.2)."""
    seed = _name_seed(name)

    def initializer(shape, dtype=tf.float32, partition_info=None):
        return tf.random.stateless_normal(shape, [seed, 0], dtype=dtype) * math.sqrt(2.0 / fan_in)

    return initializer


@functools.lru_cache(maxsize=None)
def _import_tflearn():
    """tflearn, or None where it cannot be imported. What its import adds to the default graph is thrown away."""
    with tf.Graph().as_default(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import PIL.Image
            from tensorflow.python.util import nest

            # Names that newer TensorFlow and Pillow have dropped, and tflearn 0.5.0 still asks for.
            if not hasattr(nest, "is_sequence"):
                nest.is_sequence = nest.is_nested
            if not hasattr(PIL.Image, "ANTIALIAS"):
                PIL.Image.ANTIALIAS = PIL.Image.LANCZOS
            import tflearn
        except (ImportError, AttributeError) as error:
            tf.logging.error("tflearn cannot be imported (%s): using tf.reduce_mean instead", error)
            return None
    return tflearn
