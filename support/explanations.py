"""What is a network's answer due to: class activation maps, and how much each layer reads of each earlier one."""

import numpy as np
import tensorflow.compat.v1 as tf

from support.weight_average import averages_first


def class_maps(features, kernel, classes):
    """Class activation maps (Zhou et al. 2016, arXiv 1512.04150): how much each place of an image speaks for a class.

    The mean of a map, plus the bias of its class, is the logit of the class. Negative values speak against it.

    Args:
        features: what global average pooling reads, [N, H, W, C], floating point.
        kernel: the classifier's, float32 [C, class_num].
        classes: for each image the class whose map is computed, int64 [N].
    Returns:
        float32 [N, H, W].
    """
    height, width, channels = features.shape.as_list()[1:]
    places = tf.reshape(tf.cast(features, tf.float32), [-1, height * width, channels])
    weights = tf.gather(tf.transpose(kernel), classes)[..., None]  # [N, C, 1]
    return tf.reshape(tf.matmul(places, weights), [-1, height, width])


def classifier_kernel():
    """The classifier's kernel in the default graph, [C, class_num], once the network has been built."""
    with tf.variable_scope("linear", reuse=True):
        return tf.get_variable("kernel")


def mean_over_views(features, views, flip):
    """The mean of the features over the views of each image, place by place of the unchanged image.

    What a test reports is the mean of the views' logits, which are linear in the features: so the maps of this mean
    are those of the mean logits. Shifts need no undoing: they are as many pixels in each direction.

    Args:
        features: those of the first view of all images, then of the second, …, [views · N, H, W, C]; see
            `support.evaluation.views_of`.
        views: the number of views.
        flip: whether every second view is mirrored.
    Returns:
        float32 [N, H, W, C].
    """
    parts = [tf.cast(part, tf.float32) for part in tf.split(features, views)]
    if flip:
        parts[1::2] = [tf.reverse(part, [2]) for part in parts[1::2]]
    return tf.add_n(parts) / len(parts)


def kernels_of(sess):
    """The kernels of the network in a session, or their averages where it has any, {variable name: array}."""
    variables = {variable.op.name: variable for variable in tf.global_variables()}
    return sess.run({name: variables[read] for name, read in averages_first(variables).items()
                     if name.endswith("/kernel")})


def feature_reuse(weights, blocks, growth_k, bottleneck):
    """How much each layer reads of each earlier one, as in the paper's figure 5 (Huang et al. 2017, section 5).

    It is the mean absolute weight of the layer's first convolution on the feature maps of the earlier one: the L1 norm
    over the number of feature maps read, and over that of the weights on each.

    Args:
        weights: {variable name: array}, at least the kernels.
        blocks, growth_k, bottleneck: the hyperparameters of these names.
    Returns:
        {scope of a dense block: float64 [layers + 1, layers + 1]}. Rows are what is read: the block's input, then each
        layer. Columns are what reads: each layer, then the transition or the classifier that follows the block. NaN
        where a layer cannot read what comes after it.
    """
    found = {}
    for index, layers in enumerate(blocks):
        scope, follower = "dense_%d" % index, "trans_%d/conv1" % index
        if index == len(blocks) - 1:
            scope, follower = "dense_final", "linear"
        readers = ["%s/bottleN_%d/%s" % (scope, layer, "conv1" if bottleneck else "conv2") for layer in range(layers)]
        found[scope] = np.full([layers + 1] * 2, np.nan)
        for column, reader in enumerate(readers + [follower]):
            kernel = np.abs(np.asarray(weights[reader + "/kernel"], np.float64))  # [..., in, out]
            of_maps = kernel.mean(tuple(axis for axis in range(kernel.ndim) if axis != kernel.ndim - 2))  # [in]
            groups = np.split(of_maps, range(len(of_maps) - column * growth_k, len(of_maps), growth_k))
            found[scope][:column + 1, column] = [group.mean() for group in groups]
    return found
