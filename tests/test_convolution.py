"""Gradients of convolutions, compared with NumPy in float64."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from support.convolution import LARGEST_SIDE, conv2d


@pytest.fixture(params=[False, True], ids=["with AVX-512", "without AVX-512"])
def products(request, monkeypatch):
    """Whether float32 uses matrix products: chosen by the test, not by this machine."""
    monkeypatch.setattr("support.convolution.only_avx2", lambda: request.param)
    return request.param


def rounded(sess, values, dtype):
    """The values as a type has them, in float64."""
    return sess.run(tf.cast(tf.cast(tf.constant(values, tf.float32), dtype), tf.float32)).astype(np.float64)


def formulas(x, weights, dy):
    """The convolution with SAME padding, and the gradients of x and weights, one place of the kernel at a time."""
    height, width, _, _ = weights.shape
    down, right = height // 2, width // 2
    padded = np.pad(x, [(0, 0), (down, down), (right, right), (0, 0)], "constant")
    y, dpadded, dweights = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(weights.shape)
    for i in range(height):
        for j in range(width):
            place = np.s_[:, i:i + x.shape[1], j:j + x.shape[2]]
            y += padded[place] @ weights[i, j]
            dpadded[place] += dy @ weights[i, j].T
            dweights[i, j] = np.tensordot(padded[place], dy, [[0, 1, 2], [0, 1, 2]])
    return y, dpadded[:, down:down + x.shape[1], right:right + x.shape[2]], dweights


def kinds_of_operations():
    return {operation.type for operation in tf.get_default_graph().get_operations()}


@pytest.mark.parametrize("side,kernel,dtype", [
    ([3, 3], [3, 3], "bfloat16"), ([LARGEST_SIDE, 5], [3, 3], "bfloat16"), ([2, 7], [5, 3], "bfloat16"),
    ([LARGEST_SIDE + 4, 5], [3, 5], "float32")], ids=str)
def test_a_convolution_and_its_gradients_match_float64_formulas(side, kernel, dtype, products):
    random = np.random.RandomState(0)
    with tf.Graph().as_default(), tf.Session() as sess:
        x, weights, dy = (rounded(sess, random.standard_normal(shape), dtype) for shape in (
            [6] + side + [16], kernel + [16, 4], [6] + side + [4]))
        inputs = [tf.constant(values, dtype) for values in (x, weights)]
        y = conv2d(*inputs, 1, "SAME")
        gradients = tf.gradients(y, inputs, tf.constant(dy, dtype))
        assert ("Conv2DBackpropFilter" in kinds_of_operations()) == (dtype == "float32" and not products)
        found = sess.run([tf.cast(each, tf.float32) for each in [y] + gradients])
    for values, expected in zip(found, formulas(x, weights, dy)):
        rounding = 2 ** -7 if dtype == "bfloat16" else 1e-5
        np.testing.assert_allclose(values, expected, rtol=rounding, atol=rounding * np.abs(expected).max())


@pytest.mark.parametrize("shape,dtype,stride,padding", [
    ([2, LARGEST_SIDE + 1, 3, 4], "bfloat16", 1, "SAME"), ([2, 3, 3, 4], "float32", 1, "SAME"),
    ([2, 3, 3, 4], "bfloat16", 2, "SAME"), ([2, 3, 3, 4], "bfloat16", 1, "VALID"),
    ([2, 3, 3, 5], "float32", 2, "SAME"), ([2, 3, 3, 5], "float32", 1, "VALID"),
    ([None, 3, 3, 5], "float32", 1, "SAME"), ([2, 3, 3, 5], "float16", 1, "SAME"),
    ([None, 3, 3, 4], "bfloat16", 1, "SAME")], ids=str)
def test_other_convolutions_are_tensorflows(shape, dtype, stride, padding, products):
    with tf.Graph().as_default():
        x, weights = tf.placeholder(dtype, shape), tf.ones([3, 3, shape[3], 5], dtype)
        tf.gradients(conv2d(x, weights, stride, padding), weights)
        assert "Conv2DBackpropFilter" in kinds_of_operations()
