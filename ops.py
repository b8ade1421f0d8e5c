"""The operations that DenseNet is composed from: each takes a tensor first and returns a tensor.

Tensors are NHWC: N images, H rows, W columns, C channels. A helper that has weights opens its own variable scope.
Initial weights depend only on the graph's seed (`tf.set_random_seed`) and the variable's name, dropout masks only on
that seed, the layer's name, the replica and the step, so that a resumed run repeats exactly.
"""

import collections
import contextlib
import functools
import math
import warnings
import zlib

import numpy as np
import tensorflow.compat.v1 as tf

tf.logging.set_verbosity(tf.logging.ERROR)  # TensorFlow 1.15 announces each deprecation, the next line its own
tf.disable_v2_behavior()  # tflearn's import does the same: graph mode from the start, not from the middle on

BATCH_NORM_DECAY = 0.9
BATCH_NORM_EPSILON = 0.001
WITH_FAST_KERNELS = (tf.float32, tf.float16)  # what TensorFlow's batch normalization is fast in; not so bfloat16
COMPILED_FROM = 2 ** 17  # elements of a tensor of another type from which on XLA makes one pass of what is done to it


def conv_layer(x, filters, kernel, stride=1, layer_name="conv"):
    """Convolution with SAME padding and no bias (batch normalization follows).

    Args:
        x: [N, H, W, C], floating point, or what stands for it, a `Recomputed`; the weights stay float32.
        filters: number of output channels.
        kernel: side of the square kernel.
    Returns:
        [N, ceil(H / stride), ceil(W / stride), filters], of x's dtype.
    """
    with tf.variable_scope(layer_name):
        shape = [kernel, kernel, int(x.shape[-1]), filters]
        weights = _variable("kernel", shape, _he_normal("kernel", fan_in=kernel * kernel * shape[2]))
        weights = tf.cast(weights, x.dtype)

        def convolution(x, weights):
            height, width = (int(side) for side in x.shape[1:3])
            if kernel % 2 and (height == width == 1 or kernel == stride == 1):  # only the kernel's centre meets it
                centre = tf.reshape(weights, shape[2:]) if kernel == 1 else weights[kernel // 2, kernel // 2]
                product = tf.matmul(tf.reshape(x, [-1, shape[2]]), centre)
                return tf.reshape(product, [-1, height, width, filters])
            return tf.nn.conv2d(x, weights, strides=[1, stride, stride, 1], padding="SAME")

        return x.fed_into(convolution, weights) if isinstance(x, Recomputed) else convolution(x, weights)


def Batch_Normalization(x, training, scope, activation_fn=None, replica=None, recompute=False):
    """Batch normalization (Ioffe & Szegedy 2015, arXiv 1502.03167) with a zero-debiased moving mean.

    Computes what TensorFlow 1.15's `tf.contrib.layers.batch_norm` computes with decay=0.9, center=True, scale=True,
    zero_debias_moving_mean=True and updates_collections=None. The moving statistics advance whenever the training
    output is computed: run each training graph once per step. With a replica they do not: the training step advances
    all of the network at once, by the mean over the replicas of what `replica.statistics` has.

    Args:
        x: [N, H, W, C], floating point; statistics are float32.
        training: True to normalize by the batch and advance the moving statistics, False to normalize by them;
            a Python bool or a bool tensor.
        activation_fn: None, or `Relu`, applied to the output.
        replica: which of the devices that share the batch, a `support.cluster.Replica`, or None.
        recompute: whether the output and the concatenation x are computed again for the gradients instead of kept
            (Pleiss et al. 2017, arXiv 1707.06990), where `training` is True itself; needs a replica.
    Returns:
        [N, H, W, C], of x's dtype; with `recompute` what stands for it, a `Recomputed`, for `conv_layer` and
        `Average_pooling` alone.
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
        moving = MovingStatistics(moving_mean, moving_variance, biased, local_step)

        assert activation_fn in (None, Relu), activation_fn
        relu = activation_fn is Relu

        def by_batch(recompute=False):
            assert replica is not None or not recompute, "recompute needs a replica"
            y, mean, variance = _normalized_by_batch(x, gamma, beta, relu, replica, recompute)
            if replica is not None:
                replica.statistics.append((moving, mean, variance))
                return y
            with tf.control_dependencies(advance_moving_statistics([moving], mean, variance)):
                return tf.identity(y)

        def by_moving_statistics():
            return _normalized(x, moving_mean, moving_variance, gamma, beta, relu, training=False)

        if isinstance(training, bool):
            return by_batch(recompute) if training else by_moving_statistics()
        return tf.cond(training, by_batch, by_moving_statistics)


# The variables in which a batch normalization follows the batches: averages of mean and variance, that of the mean
# before debiasing, and how many batches it has seen.
MovingStatistics = collections.namedtuple("MovingStatistics", "mean variance biased local_step")


def advance_moving_statistics(moving, mean, variance):
    """Lets the averages of batch normalizations follow a batch: all at once, as one by one takes thousands of steps.

    Args:
        moving: their MovingStatistics, a list.
        mean, variance: the batch's, in the same order, one after another: [sum of their channels].
    Returns:
        the operations that do it, a list.
    """
    channels = [int(each.mean.shape[0]) for each in moving]
    steps = tf.stack([each.local_step for each in moving]) + 1
    old_biased = tf.concat([each.biased for each in moving], 0)
    biased = old_biased - (1 - BATCH_NORM_DECAY) * (old_biased - mean)
    debiased = biased / tf.gather(1 - tf.pow(BATCH_NORM_DECAY, steps), np.repeat(np.arange(len(moving)), channels))
    old_variance = tf.concat([each.variance for each in moving], 0)
    new_variance = old_variance - (1 - BATCH_NORM_DECAY) * (old_variance - variance)
    values = zip(tf.split(debiased, channels), tf.split(new_variance, channels), tf.split(biased, channels),
                 tf.unstack(steps))
    return [variable.assign(value, read_value=False)
            for each, its_values in zip(moving, values) for variable, value in zip(each, its_values)]


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
    """Also of a `Recomputed`."""
    def pooling(x):
        return tf.nn.avg_pool2d(x, pool_size, stride, padding)

    return x.through(pooling) if isinstance(x, Recomputed) else pooling(x)


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
    if len(layers) == 1:
        return layers[0]
    known = _Known.of_this_place()
    layers = [known.newest(layer) for layer in layers]
    x = tf.concat(layers, axis=3)
    known.parts[x.name] = layers
    return x


def Linear(x, class_num=10, layer_name="linear"):
    """Fully connected layer with bias: [N, C] to logits [N, class_num], float32."""
    with tf.variable_scope(layer_name):
        shape = [int(x.shape[-1]), class_num]
        weights = _variable("kernel", shape, _he_normal("kernel", fan_in=shape[0]))
        bias = _variable("bias", [class_num], tf.zeros_initializer())
        return tf.matmul(tf.cast(x, tf.float32), weights) + bias


class _Known:
    """What has been computed of a graph's feature maps, so that each batch normalization need not do it again.

    In a dense block all layers normalize the same maps, each with its own scale and offset but by the same statistics.
    A tensor whose statistics were taken has a follower, of equal values, for its later uses: the gradients of these and
    of the statistics then come together in one pass over memory instead of several.
    """

    def __init__(self):
        self.parts = {}  # name of a concatenation: its parts
        self.statistics = {}  # name of a tensor: its mean and variance
        self.followers = {}  # name of a tensor: its follower

    @staticmethod
    def of_this_place():
        """That of the default graph, and there of the branch of `tf.cond` that is being built."""
        graph = tf.get_default_graph()
        if not hasattr(graph, "_known_feature_maps"):
            graph._known_feature_maps = {}
        return graph._known_feature_maps.setdefault(graph._get_control_flow_context(), _Known())

    def newest(self, x):
        """x's last follower, or x."""
        while x.name in self.followers:
            x = self.followers[x.name]
        return x

    def follow(self, x, follower, mean, variance):
        """Notes a follower of x's last one, and the statistics of both."""
        x = self.newest(x)
        self.followers[x.name] = follower
        self.statistics[x.name] = self.statistics[follower.name] = mean, variance
        if x.name in self.parts:
            self.parts[follower.name] = self.parts[x.name]

    def newest_parts(self, x):
        """What x is a concatenation of, or x alone: their last followers."""
        return [self.newest(part) for part in self.parts.get(x.name, [x])]

    def leaves(self, x):
        """What x is the concatenation of, down to tensors that are none themselves."""
        return [leaf for part in self.parts[x.name] for leaf in self.leaves(part)] if x.name in self.parts else [x]

    def measured(self, x, replica=None):
        """x's mean [C] and variance [C], over all replicas if they are to agree; a concatenation's from its parts."""
        x = self.newest(x)
        if x.name not in self.statistics and x.name in self.parts:
            means, variances = zip(*(self.measured(part, replica) for part in self.parts[x.name]))
            self.statistics[x.name] = tf.concat(means, 0), tf.concat(variances, 0)
        elif x.name not in self.statistics:
            follower, mean, variance = _statistics(x)
            if replica is not None and replica.sync_batch_norm:
                means, squares = tf.unstack(replica.mean_over_all(tf.stack([mean, variance + tf.square(mean)])))
                mean, variance = means, squares - tf.square(means)
            self.follow(x, follower, mean, variance)
        return self.statistics[x.name]


class Recomputed:
    """Stands for a normalized x, which is computed again for the gradients of what it goes into.

    Attributes:
        shape, dtype: x's, of the former only the channels.
        fed_into: a function of (product, weights) that returns product(normalized x, weights).
    """

    def __init__(self, x, fed_into):
        self.shape = tf.TensorShape([None, None, None, x.shape[-1]])
        self.dtype = x.dtype
        self.fed_into = fed_into

    def through(self, function):
        """What the normalized x becomes by a function that leaves the channels as they are."""
        return Recomputed(self, lambda product, weights: self.fed_into(
            lambda x, weights: product(function(x), weights), weights))


def _normalized_by_batch(x, gamma, beta, relu, replica=None, recompute=False):
    """(normalized x, rectified if `relu`; the batch's mean [C]; its variance [C] with Bessel's correction)."""
    known = _Known.of_this_place()
    synchronized = replica is not None and replica.sync_batch_norm
    if x.name not in known.parts and not synchronized:
        y, mean, variance = _normalized_at_once(x, gamma, beta, relu)
        return (_recomputed(x, y, gamma, beta, relu) if recompute else y), mean, variance
    mean, variance = known.measured(x, replica)
    if recompute:
        y = _recomputed_concatenation(x, mean, variance, gamma, beta, relu)
    else:
        y, follower = _normalized_concatenation(known.newest_parts(x), mean, variance, gamma, beta, relu)
        known.follow(x, follower, mean, variance)
    count = _count(x) * (replica.count if synchronized else 1)
    return y, mean, variance * _bessel(count)


def _normalized_at_once(x, gamma, beta, relu):
    """What `_normalized_by_batch` returns, by a kernel that does all of it, Bessel's correction included."""
    y, mean, variance = tf.nn.fused_batch_norm(x, gamma, beta, epsilon=BATCH_NORM_EPSILON)
    return tf.nn.relu(y) if relu else y, mean, variance


def _recomputed(x, y, gamma, beta, relu):
    """A Recomputed of y, which is `_normalized_at_once(x, …)`: y is not kept."""
    def fed_into(product, weights):
        @tf.custom_gradient
        def function(y, *arguments):  # y has no gradient, and is an argument lest gamma and beta are found behind it
            def gradient(dproduct):
                with tf.control_dependencies([dproduct]):  # not before it is needed, and not what there was before
                    again = [tf.identity(argument) for argument in arguments]
                normalized, _, _ = _normalized_at_once(*again[:3], relu=relu)
                return [None] + tf.gradients(product(normalized, again[3]), again, dproduct)

            return product(y, arguments[3]), gradient

        return function(y, x, gamma, beta, weights)

    return Recomputed(x, fed_into)


def _recomputed_concatenation(x, mean, variance, gamma, beta, relu):
    """A Recomputed of x, a concatenation: neither x nor its normalization is kept."""
    known = _Known.of_this_place()

    def fed_into(product, weights):
        @tf.custom_gradient
        def function(mean, variance, gamma, beta, weights, *parts):
            joined = tf.concat(parts, axis=3)

            def gradient(dproduct, dx):
                with tf.control_dependencies([dproduct]):  # as above
                    again = tf.concat(known.leaves(x), axis=3)  # of the parts, some are concatenations, and not kept
                y = _normalized(again, mean, variance, gamma, beta, relu)
                dy, dweights = tf.gradients(product(y, weights), [y, weights], dproduct)
                through, *others = _normalization_gradients(again, y, mean, variance, gamma, relu, dy)
                return others + [dweights] + _gradients_of_parts(through, dx, parts)

            return (product(_normalized(joined, mean, variance, gamma, beta, relu), weights), joined), gradient

        output, follower = function(mean, variance, gamma, beta, weights, *known.newest_parts(x))
        known.follow(x, follower, mean, variance)
        return output

    return Recomputed(x, fed_into)


@tf.custom_gradient
def _statistics(x):
    """(x, its mean [C], its biased variance [C] over all but the channels): float32 statistics."""
    count = _count(x)
    if _has_fast_kernels(x):
        ones = tf.ones([x.shape[3]])
        _, mean, variance = tf.nn.fused_batch_norm(x, ones, tf.zeros_like(ones), epsilon=BATCH_NORM_EPSILON)
        variance *= 1 / _bessel(count)  # which the kernel's has
    else:
        mean = _channel_sums(x) / count
        with _compiled(x):
            squares = tf.square(tf.cast(x, tf.float32) - mean)
        variance = _channel_sums(squares) / count

    def gradient(dx, dmean, dvariance):
        # Normalization is (x - mean) · scale + offset in one pass; the variance 1 - ε leaves the scale as it is.
        unit = tf.fill(mean.shape, 1.0 - BATCH_NORM_EPSILON)
        with _compiled(x):
            return dx + _normalized(x, mean, unit, 2 * dvariance / count, dmean / count, relu=False)

    return (tf.identity(x), mean, variance), gradient


def _normalized_concatenation(parts, mean, variance, gamma, beta, relu):
    """x, the concatenation of the parts, and its normalization, rectified if `relu`.

    Returns:
        (the second, the first). Gradients reach the parts through both at once.
    """
    @tf.custom_gradient
    def function(mean, variance, gamma, beta, *parts):
        x = tf.concat(parts, axis=3)
        y = _normalized(x, mean, variance, gamma, beta, relu)

        def gradient(dy, dx):
            through, *others = _normalization_gradients(x, y, mean, variance, gamma, relu, dy)
            return others + _gradients_of_parts(through, dx, parts)

        return (y, x), gradient

    return function(mean, variance, gamma, beta, *parts)


def _gradients_of_parts(through, dx, parts):
    """The gradients of a concatenation's parts, from its own: that through its normalization, and its follower's."""
    if dx is not None and dx.op.type != "ZerosLike":  # what TensorFlow has, 1.15 and 2, where no one uses the follower
        through += dx
    return tf.split(through, [int(part.shape[3]) for part in parts], axis=3)


def _normalized(x, mean, variance, gamma, beta, relu, training=True):
    """x normalized, rectified if `relu`: by TensorFlow's kernel, or by single operations, compiled where it pays."""
    if _has_fast_kernels(x, training):
        y, _, _ = tf.nn.fused_batch_norm(x, gamma, beta, mean, variance, epsilon=BATCH_NORM_EPSILON, is_training=False)
        return tf.nn.relu(y) if relu else y
    # Variables are read out here: where XLA reads them, one of another device breaks up what it compiles.
    mean, variance, gamma, beta = map(tf.convert_to_tensor, (mean, variance, gamma, beta))
    with _compiled(x):
        y = (tf.cast(x, tf.float32) - mean) * (gamma * tf.rsqrt(variance + BATCH_NORM_EPSILON)) + beta
        return tf.cast(tf.nn.relu(y) if relu else y, x.dtype)


def _normalization_gradients(x, y, mean, variance, gamma, relu, dy):
    """Gradients of x, mean, variance, gamma and beta, from that of y = _normalized(x, …).

    Mean and variance are taken as constants first: gamma's gradient is Σ dy (x - mean) / √(variance + ε), beta's Σ dy,
    and those of mean and variance follow from these.
    """
    inverse = tf.rsqrt(variance + BATCH_NORM_EPSILON)
    if _has_fast_kernels(x):
        if relu:
            dy = tf.raw_ops.ReluGrad(gradients=dy, features=y)
        dx, dgamma, dbeta, _, _ = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=dy, x=x, scale=gamma, reserve_space_1=mean, reserve_space_2=variance,
            reserve_space_3=tf.zeros([0]), epsilon=BATCH_NORM_EPSILON, is_training=False)
    else:
        with _compiled(x):
            if relu:
                dy = tf.where(y > 0, dy, tf.zeros_like(dy))
            wide_dy = tf.cast(dy, tf.float32)
            dx = tf.cast(wide_dy * (gamma * inverse), x.dtype)
            products = tf.cast(wide_dy * (tf.cast(x, tf.float32) - mean), x.dtype)
        dgamma, dbeta = inverse * _channel_sums(products), _channel_sums(dy)
    return [dx, -gamma * inverse * dbeta, -0.5 * gamma * tf.square(inverse) * dgamma, dgamma, dbeta]


def _has_fast_kernels(x, training=True):
    """Whether TensorFlow's kernels are to normalize x.

    In training not maps of one pixel, where calling them takes longer than single operations (benchmark.py's mnist, a
    CPU: 31 instead of 27 ms a step); in inference these, too, as the export looks for the kernels.
    """
    return x.dtype in WITH_FAST_KERNELS and not (training and x.shape[1:3].num_elements() == 1)


def _channel_sums(x):
    """[N, H, W, C] to the float32 sums [C]. Pooling is the fastest way over many pixels on a CPU."""
    _, height, width, _ = x.shape.as_list()
    if height * width == 1:
        return tf.reduce_sum(tf.cast(x, tf.float32), [0, 1, 2])
    means = tf.cast(tf.nn.avg_pool2d(x, [height, width], 1, "VALID"), tf.float32)
    return tf.reduce_sum(means, [0, 1, 2]) * (height * width)


def _compiled(x):
    """A scope that XLA compiles, if x is of a type without fast kernels and large enough for it to pay."""
    if x.dtype not in WITH_FAST_KERNELS and (x.shape.num_elements() or 0) >= COMPILED_FROM:
        return tf.xla.experimental.jit_scope()
    return contextlib.nullcontext()


def _count(x):
    """How many values of each channel there are in [N, H, W, C]: a float, or a tensor if N is unknown."""
    return float(x.shape[:3].num_elements() or 0) or tf.cast(tf.reduce_prod(tf.shape(x)[:3]), tf.float32)


def _bessel(count):
    """What makes the variance of so many values an unbiased one; 1 for a single value."""
    return count / (max(count - 1, 1) if isinstance(count, float) else tf.maximum(count - 1, 1))


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
        return tf.random.stateless_normal(shape, [seed, 0], stddev=math.sqrt(2.0 / fan_in), dtype=dtype)

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
