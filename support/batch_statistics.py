"""How do the layers of a dense block share batch statistics, and what is recomputed to save memory?

Sharing. Every layer of a dense block normalizes all feature maps before it. The layers differ in scale and offset
(gamma, beta), but the batch mean and variance of a feature map are the same for all of them. `SharedStatistics`
computes these once for each map; those of a concatenation are the concatenated ones of its parts:

    x0 --> mean, variance --+--> layer 1 normalizes [x0] ---------> x1
    x1 --> mean, variance --+--> layer 2 normalizes [x0, x1] -----> x2
    x2 --> mean, variance --+--> layer 3 normalizes [x0, x1, x2] -> x3

In the backward pass, x0 would get one gradient from its statistics and one from each layer, and each would be a pass
over memory of its own. So each operation that reads x also returns a copy of x (the same buffer), and the next one
reads that copy. The gradient of the copy arrives first; the operation adds its own part to it in the same pass:

    x0 --> statistics --> copy --> layer 1 --> copy --> layer 2 --> copy ...        `latest(x0)` is the last copy

Recomputation (`memory_efficient`; Pleiss et al. 2017, arXiv 1707.06990). Concatenations and normalized activations are
cheap to compute and take most of the memory of a step. They are then not kept for the backward pass:
`SharedStatistics.normalize` returns a `Recomputed`, which stands for the normalized tensor. `conv_layer` and
`Average_pooling` read it through `product_of` and `mapped`, which compute it once forward and once more backward.

Kernels. Where the statistics are known, a depthwise convolution normalizes float32 on a CPU with oneDNN. Otherwise,
TensorFlow's kernel for batch normalization does. It is fast for numbers of channels that fill vectors; with others,
some pixels that follow each other are taken as one: the same memory, read as fewer pixels of more channels. The kernel
also rectifies, if TensorFlow has such a kernel: a pass less over memory.

Moving averages. `SharedStatistics` collects the batch statistics of the whole network, and the training step advances
all moving averages together: one operation for each layer would add thousands of operations to the graph.
"""

import collections
import math

import numpy as np
import tensorflow.compat.v1 as tf

from support.machine import gpus, has_fused_operations

DECAY = 0.9
EPSILON = 0.001  # ε, unless a network has another one
LEAST_EPSILON = 1.001e-5  # of TensorFlow's kernel, as `tf.nn.fused_batch_norm` has it
TYPES_WITH_KERNELS = (tf.float32, tf.float16, tf.bfloat16)  # the last one partly by float32
FAST_CHANNELS = 16  # oneDNN's kernels are fast for multiples of it

# The variables of one batch normalization that follow the batches: the moving averages of mean and variance, the mean
# before its bias to 0 is removed, and the number of batches seen.
MovingStatistics = collections.namedtuple("MovingStatistics", "mean variance biased local_step")
# How a batch normalization ends: whether it is rectified, and its ε.
Form = collections.namedtuple("Form", "relu epsilon")


def advance_moving_statistics(moving, mean, variance):
    """Updates the moving averages of some batch normalizations together (formulas: `ops.Batch_Normalization`).

    Args:
        moving: a list of MovingStatistics.
        mean, variance: the batch's, float32 [sum of the channels], concatenated in the order of `moving`.
    Returns:
        a list of operations.
    """
    if not moving:
        return []
    channels = [int(each.mean.shape[0]) for each in moving]
    steps = tf.stack([each.local_step for each in moving]) + 1
    old_biased = tf.concat([each.biased for each in moving], 0)
    biased = old_biased - (1 - DECAY) * (old_biased - mean)
    debiased = biased / tf.gather(1 - tf.pow(DECAY, steps), np.repeat(np.arange(len(moving)), channels))
    old_variance = tf.concat([each.variance for each in moving], 0)
    new_variance = old_variance - (1 - DECAY) * (old_variance - variance)
    values = zip(tf.split(debiased, channels), tf.split(new_variance, channels), tf.split(biased, channels),
                 tf.unstack(steps))
    return [variable.assign(value, read_value=False)
            for each, its_values in zip(moving, values) for variable, value in zip(each, its_values)]


class SharedStatistics:
    """The batch statistics of one network in training, on one replica.

    Args:
        replica: the `support.replicas.Replica` that computes the network. Where its `sync_batch_norm` is set, the
            statistics are those of the whole batch, over all replicas.
    """

    def __init__(self, replica):
        self.replica = replica
        self._collected = []  # (MovingStatistics, mean, variance) of each batch normalization
        self._parts = {}  # name of a concatenation: its parts
        self._statistics = {}  # name of a tensor: (mean, variance)
        self._copies = {}  # name of a tensor: the copy that the next operation reads

    def concatenate(self, layers):
        """Concatenates channels, and remembers of what."""
        layers = [self.latest(layer) for layer in layers]
        x = tf.concat(layers, axis=3)
        self._parts[x.name] = layers
        return x

    def normalize(self, x, gamma, beta, moving, form, memory_efficient=False):
        """Normalizes x by the batch, and collects the statistics for `moving`.

        Args:
            x: [N, H, W, C].
            gamma, beta: scale and offset, float32 [C].
            form: a Form.
            memory_efficient: whether x, if it is a concatenation, and the result are recomputed in the backward pass.
        Returns:
            [N, H, W, C]; with `memory_efficient` a `Recomputed`.
        """
        if x.name not in self._parts and not self.replica.sync_batch_norm and _kernel_form(x)[1] == 1:
            y, mean, variance = normalized_by_batch(x, gamma, beta, form)
            if memory_efficient:
                y = _recomputed(x, y, gamma, beta, form)
        else:
            mean, variance = self._measured(x)
            if memory_efficient:
                y = self._recomputed_concatenation(x, mean, variance, gamma, beta, form)
            else:
                y, copy = _normalized_concatenation(self._latest_parts(x), mean, variance, gamma, beta, form)
                self._set_copy(x, copy, mean, variance)
            count = _count(x) * (self.replica.count if self.replica.sync_batch_norm else 1)
            variance *= _bessel(count)
        self._collected.append((moving, mean, variance))
        return y

    def collected(self):
        """([MovingStatistics], means, variances) of all batch normalizations; the last two float32 [their channels]."""
        if not self._collected:  # all layers are frozen
            return [], tf.zeros([0]), tf.zeros([0])
        moving, means, variances = zip(*self._collected)
        return moving, tf.concat(means, 0), tf.concat(variances, 0)

    def latest(self, x):
        """The copy of x that the next operation is to read, or x."""
        while x.name in self._copies:
            x = self._copies[x.name]
        return x

    def _set_copy(self, x, copy, mean, variance):
        x = self.latest(x)
        self._copies[x.name] = copy
        self._statistics[x.name] = self._statistics[copy.name] = mean, variance
        if x.name in self._parts:
            self._parts[copy.name] = self._parts[x.name]

    def _latest_parts(self, x):
        return [self.latest(part) for part in self._parts.get(x.name, [x])]

    def _leaves(self, x):
        """The tensors that x concatenates, directly or through other concatenations."""
        if x.name not in self._parts:
            return [x]
        return [leaf for part in self._parts[x.name] for leaf in self._leaves(part)]

    def _measured(self, x):
        """Mean [C] and biased variance [C] of x; of a concatenation, those of its parts."""
        x = self.latest(x)
        if x.name not in self._statistics and x.name in self._parts:
            means, variances = zip(*(self._measured(part) for part in self._parts[x.name]))
            self._statistics[x.name] = tf.concat(means, 0), tf.concat(variances, 0)
        elif x.name not in self._statistics:
            copy, mean, variance = _statistics(x)
            if self.replica.sync_batch_norm:
                means, squares = tf.unstack(self.replica.mean_over_all(tf.stack([mean, variance + tf.square(mean)])))
                mean, variance = means, squares - tf.square(means)
            self._set_copy(x, copy, mean, variance)
        return self._statistics[x.name]

    def _recomputed_concatenation(self, x, mean, variance, gamma, beta, form):
        """A Recomputed of x, a concatenation: neither x nor its normalization is kept."""
        def fed_into(product, weights):
            @tf.custom_gradient
            def function(mean, variance, gamma, beta, weights, *parts):
                joined = tf.concat(parts, axis=3)

                def gradient(dproduct, dx):
                    with tf.control_dependencies([dproduct]):  # not before the backward pass needs it
                        # Some parts are concatenations themselves, which are not kept.
                        again = tf.concat(self._leaves(x), axis=3)
                    y = normalized(again, mean, variance, gamma, beta, form)
                    dy, dweights = tf.gradients(product(y, weights), [y, weights], dproduct)
                    through, *others = _normalization_gradients(again, y, mean, variance, gamma, form, dy)
                    return others + [dweights] + _gradients_of_parts(through, dx, parts)

                return (product(normalized(joined, mean, variance, gamma, beta, form), weights), joined), gradient

            output, copy = function(mean, variance, gamma, beta, weights, *self._latest_parts(x))
            self._set_copy(x, copy, mean, variance)
            return output

        return Recomputed(x, fed_into)


class Recomputed:
    """Stands for a normalized x that is recomputed in the backward pass of whatever reads it.

    Attributes:
        shape, dtype: x's; of the shape only the channels are known.
        fed_into: a function of (product, weights) that returns product(normalized x, weights).
    """

    def __init__(self, x, fed_into):
        self.shape = tf.TensorShape([None, None, None, x.shape[-1]])
        self.dtype = x.dtype
        self.fed_into = fed_into


def product_of(x, weights, product):
    """product(x, weights), where x is a tensor or a `Recomputed`."""
    return x.fed_into(product, weights) if isinstance(x, Recomputed) else product(x, weights)


def mapped(x, function):
    """function(x), of a tensor or of a `Recomputed`; the function leaves the channels as they are."""
    if not isinstance(x, Recomputed):
        return function(x)
    return Recomputed(x, lambda product, weights: x.fed_into(
        lambda y, weights: product(function(y), weights), weights))


def normalized_by_batch(x, gamma, beta, form):
    """(normalized x; the batch's mean [C]; its unbiased variance [C]). `form`: a Form."""
    if _kernel_form(x)[1] == 1:
        return _by_kernel(x, gamma, beta, None, None, form)
    copy, mean, variance = _statistics(x)
    y, _ = _normalized_concatenation([copy], mean, variance, gamma, beta, form)
    return y, mean, variance * _bessel(_count(x))


def normalized(x, mean, variance, gamma, beta, form, training=True):
    """gamma · (x - mean) / √(variance + ε) + beta, ended by a Form, in the fastest way: see `_is_fast`."""
    if _is_fast(x, training):
        if x.dtype == tf.float32 and has_fused_operations():
            return _by_convolution(x, mean, variance, gamma, beta, form)
        return _by_kernel(x, gamma, beta, mean, variance, form)[0]
    y = (tf.cast(x, tf.float32) - mean) * (gamma * tf.rsqrt(variance + form.epsilon)) + beta
    return tf.cast(tf.nn.relu(y) if form.relu else y, x.dtype)


def _recomputed(x, y, gamma, beta, form):
    """A Recomputed of y, which is the result of `normalized_by_batch`: y is not kept."""
    def fed_into(product, weights):
        @tf.custom_gradient
        def function(y, *arguments):  # y gets no gradient; as an argument, it hides gamma and beta from the search
            def gradient(dproduct):
                with tf.control_dependencies([dproduct]):  # not before the backward pass needs it
                    again = [tf.identity(argument) for argument in arguments]
                y, _, _ = normalized_by_batch(*again[:3], form)
                return [None] + tf.gradients(product(y, again[3]), again, dproduct)

            return product(y, arguments[3]), gradient

        return function(y, x, gamma, beta, weights)

    return Recomputed(x, fed_into)


@tf.custom_gradient
def _statistics(x):
    """(a copy of x, its mean [C], its biased variance [C] over N, H and W), the statistics in float32."""
    count = _count(x)
    if _is_fast(x):
        _, together = kernel_form = _kernel_form(x)
        ones = tf.ones([x.shape[3] * together])
        _, mean, variance = tf.nn.fused_batch_norm(_regrouped(x, kernel_form), ones, tf.zeros_like(ones),
                                                   epsilon=EPSILON)
        variance *= 1 / _bessel(count / together)  # the kernel's variance is unbiased
        if together > 1:  # a row of means, and of variances, for each place in a group of pixels
            means = tf.reshape(mean, [together, -1])
            mean = tf.reduce_mean(means, 0)
            variance = tf.reduce_mean(tf.reshape(variance, [together, -1]) + tf.square(means - mean), 0)
    else:
        mean = _channel_sums(x) / count
        variance = _channel_sums(tf.square(tf.cast(x, tf.float32) - mean)) / count

    def gradient(dx, dmean, dvariance):
        # dx + 2 (x - mean) dvariance / n + dmean / n. The last two terms are a normalization, by a variance of 1 - ε.
        unit = tf.fill(mean.shape, 1.0 - EPSILON)
        return dx + normalized(x, mean, unit, 2 * dvariance / count, dmean / count, Form(False, EPSILON))

    return (tf.identity(x), mean, variance), gradient


def _normalized_concatenation(parts, mean, variance, gamma, beta, form):
    """(the normalized concatenation of the parts, ended by a Form; the concatenation itself)."""
    @tf.custom_gradient
    def function(mean, variance, gamma, beta, *parts):
        x = tf.concat(parts, axis=3)
        y = normalized(x, mean, variance, gamma, beta, form)

        def gradient(dy, dx):
            through, *others = _normalization_gradients(x, y, mean, variance, gamma, form, dy)
            return others + _gradients_of_parts(through, dx, parts)

        return (y, x), gradient

    return function(mean, variance, gamma, beta, *parts)


def _gradients_of_parts(through, dx, parts):
    """Splits the gradient of a concatenation: the sum of that through its normalization and that of its copy, dx."""
    if dx is not None and dx.op.type != "ZerosLike":  # TensorFlow passes zeros where nothing reads the copy
        through += dx
    return tf.split(through, [int(part.shape[3]) for part in parts], axis=3)


def _normalization_gradients(x, y, mean, variance, gamma, form, dy):
    """The gradients of x, mean, variance, gamma and beta, from the gradient dy of y = normalized(x, …).

    With x̂ = (x - mean) / √(variance + ε): dgamma = Σ dy · x̂, dbeta = Σ dy, dmean = -gamma / √(variance + ε) · dbeta,
    dvariance = -gamma / (2 (variance + ε)) · dgamma.
    """
    inverse = tf.rsqrt(variance + form.epsilon)
    if _is_fast(x):
        dx, dgamma, dbeta = _kernel_gradients(x, y, mean, variance, gamma, form, dy, by_batch=False)
    else:
        if form.relu:
            dy = tf.where(y > 0, dy, tf.zeros_like(dy))
        wide_dy = tf.cast(dy, tf.float32)
        dx = tf.cast(wide_dy * (gamma * inverse), x.dtype)
        dgamma, dbeta = inverse * _channel_sums(wide_dy * (tf.cast(x, tf.float32) - mean)), _channel_sums(dy)
    return [dx, -gamma * inverse * dbeta, -0.5 * gamma * tf.square(inverse) * dgamma, dgamma, dbeta]


def _by_kernel(x, gamma, beta, mean, variance, form):
    """(y, mean, variance) by TensorFlow's kernel, which takes the batch's statistics where `mean` is None.

    Those are right only where the kernel takes the pixels of x one by one: see `_kernel_form`.
    """
    by_batch, original, kernel_form = mean is None, x, _kernel_form(x)
    if not by_batch:
        gamma, beta, mean, variance = _repeated(kernel_form[1], gamma, beta, mean, variance)
    x = _regrouped(x, kernel_form)
    # With other numbers of channels, the two kernels differ by rounding.
    if form.relu and int(x.shape[3]) % 8 == 0 and has_fused_operations(x.dtype):
        none = tf.zeros([0])
        inputs = [x, gamma, beta, none, none] if by_batch else [x, gamma, beta, mean, variance]
        y, mean, variance, *_ = _fused(
            "FusedBatchNormEx", inputs, U=dict(type=tf.float32.as_datatype_enum), num_side_inputs=dict(i=0),
            activation_mode=dict(s=b"Relu"), epsilon=dict(f=max(form.epsilon, LEAST_EPSILON)),
            is_training=dict(b=by_batch))
    else:
        y, mean, variance = tf.nn.fused_batch_norm(x, gamma, beta, mean, variance, form.epsilon, is_training=by_batch)
        y = tf.nn.relu(y) if form.relu else y
    return _as_before(y, original), mean, variance


def _by_convolution(x, mean, variance, gamma, beta, form):
    """As `normalized`: x · scale + offset as a convolution of each channel by a kernel of one pixel, in float32.

    oneDNN's code for it is as fast as copying x; its code for normalization takes up to 4 times as long. The mean is a
    part of the offset: where it is many deviations from 0, digits are lost to rounding.
    """
    scale = gamma * tf.rsqrt(variance + max(form.epsilon, LEAST_EPSILON))
    kernel = tf.reshape(scale, [1, 1, int(x.shape[3]), 1])
    return _fused("FusedDepthwiseConv2dNative", [x, kernel, beta - mean * scale], num_args=dict(i=1),
                  fused_ops=dict(list=dict(s=[b"BiasAdd"] + [b"Relu"] * form.relu)),
                  strides=dict(list=dict(i=[1, 1, 1, 1])), padding=dict(s=b"VALID"))[0]


def _fused(kind, inputs, **attributes):
    """The outputs of an operation of TensorFlow's graph optimizer, for which Python has no function."""
    attributes["T"] = dict(type=inputs[0].dtype.as_datatype_enum)
    return tf.get_default_graph().create_op(
        "_" + kind, list(map(tf.convert_to_tensor, inputs)), name=kind,
        attrs={name: tf.AttrValue(**value) for name, value in attributes.items()}).outputs


@tf.RegisterGradient("_FusedBatchNormEx")
def _gradient_by_kernel(norm, dy, *_):
    x, gamma, _, *given = norm.inputs
    by_batch = norm.get_attr("is_training")
    mean, variance = norm.outputs[3:5] if by_batch else given
    form = Form(True, norm.get_attr("epsilon"))
    return _kernel_gradients(x, norm.outputs[0], mean, variance, gamma, form, dy, by_batch) + [None, None]


@tf.RegisterGradient("_FusedDepthwiseConv2dNative")
def _gradient_by_convolution(convolution, dy):
    x, kernel, _ = convolution.inputs
    if b"Relu" in convolution.get_attr("fused_ops"):
        dy = tf.raw_ops.ReluGrad(gradients=dy, features=convolution.outputs[0])
    form = dict(strides=[1, 1, 1, 1], padding="VALID")
    return (tf.nn.depthwise_conv2d_backprop_input(tf.shape(x), kernel, dy, **form),
            tf.nn.depthwise_conv2d_backprop_filter(x, kernel.shape, dy, **form),
            tf.raw_ops.BiasAddGrad(out_backprop=dy))


def _kernel_gradients(x, y, mean, variance, gamma, form, dy, by_batch):
    """[the gradients of x, gamma and beta] by TensorFlow's kernel; `by_batch`: mean and variance depend on x."""
    if form.relu:
        dy = tf.raw_ops.ReluGrad(gradients=dy, features=y)
    _, together = kernel_form = _kernel_form(x)
    gamma, mean, variance = _repeated(together, gamma, mean, variance)
    dx, *sums = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=_regrouped(dy, kernel_form), x=_regrouped(x, kernel_form), scale=gamma, reserve_space_1=mean,
        reserve_space_2=variance, reserve_space_3=tf.zeros([0]), epsilon=form.epsilon, is_training=by_batch)[:3]
    if together > 1:
        sums = [tf.reduce_sum(tf.reshape(its, [together, -1]), 0) for its in sums]
    return [_as_before(dx, x), *sums]


def _kernel_form(x):
    """How TensorFlow's kernel is to take x [N, H, W, C]: (its type, how many pixels that follow each other as one).

    oneDNN takes as many together as give a multiple of FAST_CHANNELS. Where the pixels cannot be divided so, and on
    CPUs for which it has no code in bfloat16, bfloat16 is taken in float32.
    """
    if has_fused_operations(x.dtype):
        together = FAST_CHANNELS // math.gcd(FAST_CHANNELS, int(x.shape[3]))
        pixels = x.shape[:3].num_elements() or x.shape[1:3].num_elements() or 1  # of all images, or of one
        if pixels % together == 0:
            return x.dtype, together
    return tf.float32 if x.dtype == tf.bfloat16 and not gpus() else x.dtype, 1


def _regrouped(x, kernel_form):
    """x in a form of `_kernel_form`."""
    dtype, together = kernel_form
    x = tf.cast(x, dtype)
    if together == 1:
        return x
    _, rows, columns, channels = x.shape.as_list()
    if rows * columns % together:  # only the pixels of all images together can be divided
        return tf.reshape(x, [1, 1, -1, together * channels])
    return tf.reshape(x, [-1, 1, rows * columns // together, together * channels])


def _as_before(y, x):
    """y, which has the form in which the kernel takes x, in the type and shape of x."""
    y = tf.cast(y, x.dtype)
    return y if y.shape[3] == x.shape[3] else tf.reshape(y, [-1] + x.shape.as_list()[1:])


def _repeated(together, *vectors):
    """Vectors [C] for the channels of `together` pixels."""
    return [tf.tile(vector, [together]) for vector in vectors] if together > 1 else vectors


def _is_fast(x, training=True):
    """Whether x is normalized by TensorFlow's kernel or a convolution, instead of element-wise operations.

    In training, maps of one pixel are not: a kernel call takes longer than element-wise operations (network
    densenet_mnist_first on a CPU: 31 instead of 27 ms a step). In inference they are, because the export folds kernels.
    """
    return x.dtype in TYPES_WITH_KERNELS and not (training and x.shape[1:3].num_elements() == 1)


def _channel_sums(x):
    """[N, H, W, C] to the float32 sums [C]."""
    return tf.reduce_sum(tf.cast(x, tf.float32), [0, 1, 2])


def _count(x):
    """The number of values per channel in [N, H, W, C]: a float, or a tensor if N is unknown."""
    return float(x.shape[:3].num_elements() or 0) or tf.cast(tf.reduce_prod(tf.shape(x)[:3]), tf.float32)


def _bessel(count):
    """n / (n - 1), which makes a variance of n values unbiased; 1 for a single value."""
    return count / (max(count - 1, 1) if isinstance(count, float) else tf.maximum(count - 1, 1))
