"""How does a convolution get its gradient fast?

The gradient of the kernel is a sum over images and pixels. oneDNN's kernel for it adds up one row of pixels at a time.
In bfloat16, this fills the matrix unit badly where a row has few pixels: with AMX, maps of 3x3 pixels run at a tenth of
the speed of the convolution itself. In float32, that kernel is slow on processors without AVX-512. One matrix product
over all images and pixels is faster (docs/performance.md).
"""

import tensorflow.compat.v1 as tf

from support.machine import only_avx2

LARGEST_SIDE = 8  # of the maps, in pixels, for which the matrix product is faster in bfloat16


def conv2d(x, weights, stride, padding):
    """`tf.nn.conv2d` with a stride along both axes, and the same gradients.

    Args:
        x: [N, H, W, C].
        weights: [height, width, C, filters], of x's type.
        stride: a number.
        padding: SAME or VALID.
    """
    height, width, _, _ = weights.shape.as_list()
    if not (stride == 1 and padding == "SAME" and height % 2 and width % 2 and _product_is_faster(x, weights)):
        return tf.nn.conv2d(x, weights, strides=[1, stride, stride, 1], padding=padding)

    @tf.custom_gradient
    def function(x, weights):
        def gradient(dy):
            return (tf.nn.conv2d_backprop_input(x.shape.as_list(), weights, dy, [1, 1, 1, 1], "SAME"),
                    _kernel_gradient(x, dy, height, width))

        return tf.nn.conv2d(x, weights, strides=[1, 1, 1, 1], padding="SAME"), gradient

    return function(x, weights)


def _product_is_faster(x, weights):
    """Whether the kernel's gradient is to be a matrix product."""
    count, rows, columns, channels = x.shape.as_list()
    if count is None:  # in prediction and export
        return False
    if x.dtype == tf.float32:  # with more filters than channels, the copies of dy cost more than the product gains
        return int(weights.shape[3]) <= channels and only_avx2()
    return x.dtype == tf.bfloat16 and max(rows, columns) <= LARGEST_SIDE


def _kernel_gradient(x, dy, height, width):
    """The gradient [height, width, C, filters] of the kernel, from that of the result, dy [N, H, W, filters].

    The kernel's value at (i, j) multiplies x at a pixel's place + (i, j) - the kernel's centre. So its gradient is
    xᵀ · dy, where dy is shifted by as much in the opposite direction. dy usually has fewer channels than x in a
    DenseNet: it is the one that is shifted.
    """
    _, rows, columns, filters = dy.shape.as_list()
    down, right = height // 2, width // 2
    padded = tf.pad(dy, [[0, 0], [down, down], [right, right], [0, 0]])
    size = tf.constant([-1, rows, columns, -1])  # once for all: padded[…] would make three constants for each
    shifted = [tf.slice(padded, [0, 2 * down - i, 2 * right - j, 0], size)
               for i in range(height) for j in range(width)]
    channels = int(x.shape[3])
    product = tf.matmul(tf.reshape(x, [-1, channels]),
                        tf.reshape(tf.concat(shifted, 3), [-1, height * width * filters]), transpose_a=True)
    return tf.transpose(tf.reshape(product, [channels, height, width, filters]), [1, 2, 0, 3])
