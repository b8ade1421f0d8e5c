"""The layer helpers, compared with TensorFlow 1.15's batch normalization, with NumPy and with each other."""

import os

import numpy as np
import pytest
import record
import tensorflow.compat.v1 as tf

import ops

RECORDED = os.path.join(record.HERE, "batch_norm.npz")


def ours(x, training):
    return ops.Batch_Normalization(x, training, scope="norm")


def ours_by_tensor(x, training):
    return ops.Batch_Normalization(x, tf.constant(training), scope="norm")


@pytest.fixture(autouse=True)
def graph():
    with tf.Graph().as_default() as graph:
        yield graph


def run(tensors, feed=None):
    with tf.Session() as sess:
        sess.run(tf.global_variables_initializer())
        return sess.run(tensors, feed)


@pytest.mark.parametrize("function", [ours, ours_by_tensor])
@pytest.mark.parametrize("shape", sorted(record.SHAPES))
def test_batch_normalization_matches_recorded_contrib_results(shape, function):
    recorded = np.load(RECORDED)
    found = record.run_batch_norm(record.SHAPES[shape], function)
    assert len(found) == 9
    for name, value in found.items():
        expected = recorded["%s/%s" % (shape, name)]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(), err_msg=name)


@pytest.mark.skipif(record.MAJOR != "1", reason="tf.contrib is part of TensorFlow 1 alone")
@pytest.mark.parametrize("shape", [(4, 3, 9, 2), (7, 1, 1, 3), (1, 1, 1, 2)])
def test_batch_normalization_matches_contrib(shape):
    expected = record.run_batch_norm(shape, record.contrib_batch_norm)
    for name, value in record.run_batch_norm(shape, ours).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5 * np.abs(expected[name]).max())


def test_batch_normalization_matches_the_float64_formula():
    inputs, gamma, beta, _ = record.batch_norm_inputs((3, 5, 7, 13))
    found = record.run_batch_norm((3, 5, 7, 13), ours)
    biased, variance = np.zeros(13), np.ones(13)
    for step, x in enumerate(inputs.astype(np.float64)):
        mean, batch_variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        y = gamma * (x - mean) / np.sqrt(batch_variance + 0.001) + beta
        biased -= 0.1 * (biased - mean)
        variance -= 0.1 * (variance - batch_variance * 105 / 104)
        np.testing.assert_allclose(found["y"][step], y, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["moving_mean"][step], biased / (1 - 0.9 ** (step + 1)), rtol=1e-4)
        np.testing.assert_allclose(found["moving_variance"][step], variance, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5, 7, 13), (4, 8, 8, 13)], ids=str)  # pixels cannot, can be divided by 16
def test_batch_normalization_of_bfloat16(shape):
    inputs, gamma, beta, _ = record.batch_norm_inputs(shape)
    x = tf.constant(inputs[0])
    with tf.variable_scope("net"):
        rounded = ours(tf.cast(x, tf.bfloat16), True)
    with tf.variable_scope("exact"):
        exact = ours(tf.cast(tf.cast(x, tf.bfloat16), tf.float32), True)
    assert rounded.dtype == tf.bfloat16
    found, expected = run([tf.cast(rounded, tf.float32), exact])
    np.testing.assert_allclose(found, expected, rtol=2 ** -8)
    assert {variable.dtype.base_dtype for variable in tf.global_variables()} == {tf.float32}


def test_statistics_advance_once_for_any_fetches():
    x = tf.constant(record.batch_norm_inputs((3, 5, 7, 13))[0][0])
    y = ours(x, True)
    (local_step,) = [variable for variable in tf.global_variables() if variable.op.name.endswith("local_step")]
    with tf.Session() as sess:
        sess.run(tf.global_variables_initializer())
        for _ in range(3):
            sess.run([y, tf.reduce_sum(y), tf.gradients(y, x)])
        assert sess.run(local_step) == 3


@pytest.mark.parametrize("epsilon", [0.1, 0.00002])
@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_with_another_epsilon(training, epsilon):
    x = np.random.RandomState(0).randn(4, 3, 5, 2) * [1.0, 0.01]  # the second channel's variance is about 0.0001
    mean, variance = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if training else (0.0, 1.0)
    y = run(ops.Batch_Normalization(tf.constant(x, tf.float32), training, "norm", epsilon=epsilon))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + epsilon), rtol=1e-3, atol=1e-4)


def numpy_conv(x, weights, stride, padding=None):
    """Computes a convolution by definition, in float64: with SAME padding, or with `padding` zeros on every side."""
    side = weights.shape[0]
    size = [-(-length // stride) for length in x.shape[1:3]]
    before = [max((n - 1) * stride + side - length, 0) // 2 for n, length in zip(size, x.shape[1:3])]
    if padding is not None:
        size, before = [(length + 2 * padding - side) // stride + 1 for length in x.shape[1:3]], [padding] * 2
    padded = np.pad(x, [(0, 0)] + [(b, side) for b in before] + [(0, 0)], "constant")
    y = np.zeros((len(x), size[0], size[1], weights.shape[3]))
    for row in range(size[0]):
        for column in range(size[1]):
            window = padded[:, row * stride:row * stride + side, column * stride:column * stride + side]
            y[:, row, column] = np.tensordot(window, weights, 3)
    return y


@pytest.mark.parametrize("kernel,stride,padding", [
    (1, 1, None), (3, 1, None), (3, 2, None), (7, 2, None), (7, 2, 3), (3, 1, 0)])
def test_conv_layer(kernel, stride, padding):
    x = np.random.RandomState(0).randn(2, 13, 7, 3).astype(np.float32)
    y = ops.conv_layer(tf.constant(x), 5, kernel, stride, "conv", padding="SAME" if padding is None else padding)
    assert [variable.op.name for variable in tf.global_variables()] == ["conv/kernel"]
    found, weights = run([y, tf.global_variables()[0]])
    expected = numpy_conv(x.astype(np.float64), weights.astype(np.float64), stride, padding)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("padding", ["VALID", 0])
def test_a_map_that_is_smaller_than_the_kernel_is_an_error_without_padding(padding):
    with pytest.raises(ValueError):
        ops.conv_layer(tf.zeros([2, 1, 1, 4]), 5, 3, layer_name="conv", padding=padding)


def test_initial_weights_depend_only_on_seed_and_name():
    def weights(seed, names):
        with tf.Graph().as_default():
            tf.set_random_seed(seed)
            for name in names:
                ops.conv_layer(tf.zeros([1, 5, 5, 24]), 32, 3, layer_name=name)
            return dict(zip(names, run(tf.global_variables())))

    first = weights(1, ["a", "b"])
    np.testing.assert_array_equal(first["b"], weights(1, ["x", "b", "y"])["b"])
    assert (first["a"] != first["b"]).any() and (first["b"] != weights(2, ["b"])["b"]).any()
    deviation = np.sqrt(2 / (9 * 24))  # He et al. 2015, equation 10
    assert abs(first["a"].mean()) < deviation / 20 and abs(first["a"].std() / deviation - 1) < 0.05


def dropped(seed=1, step=7, replica_index=0, scope="drop1", training=True, as_tensor=False):
    with tf.Graph().as_default():
        tf.set_random_seed(seed)
        global_step = tf.train.get_or_create_global_step()
        with tf.variable_scope("layer"):
            y = ops.Drop_out(tf.ones([40, 50]), 0.3, tf.constant(training) if as_tensor else training, scope=scope,
                             replica_index=replica_index)
        with tf.Session() as sess:
            sess.run(tf.global_variables_initializer())
            sess.run(global_step.assign(step))
            return sess.run(y)


def test_dropout():
    mask = dropped()
    assert set(np.unique(mask).tolist()) == {0.0, np.float32(1) / np.float32(0.7)}
    assert abs((mask == 0).mean() - 0.3) < 0.04
    np.testing.assert_array_equal(mask, dropped())
    np.testing.assert_array_equal(mask, dropped(as_tensor=True))
    for other in (dropped(seed=2), dropped(step=8), dropped(replica_index=1), dropped(scope="drop2")):
        assert 0.3 < (mask != other).mean() < 0.55  # independent masks differ in 2 · 0.3 · 0.7 = 42%


def test_dropout_does_not_change_inference():
    assert (dropped(training=False) == 1).all()
    assert (dropped(training=False, as_tensor=True) == 1).all()
    x = tf.ones([3])
    assert ops.Drop_out(x, 0.0, True) is x


def test_pooling():
    x = np.random.RandomState(0).randn(2, 7, 6, 3).astype(np.float32)
    average, largest = run([ops.Average_pooling(tf.constant(x)), ops.Max_Pooling(tf.constant(x))])
    expected = x[:, :6].reshape(2, 3, 2, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(average, expected, atol=1e-6)
    assert largest.shape == (2, 3, 2, 3)
    for row in range(3):
        for column in range(2):
            window = x[:, 2 * row:2 * row + 3, 2 * column:2 * column + 3]
            np.testing.assert_array_equal(largest[:, row, column], window.max((1, 2)))


def test_concatenation_linear_and_relu():
    random = np.random.RandomState(0)
    parts = [random.randn(2, 3, 5, channels).astype(np.float32) for channels in (1, 4)]
    features = random.randn(6, 9).astype(np.float32)
    joined, rectified = ops.Concatenation([tf.constant(part) for part in parts]), ops.Relu(tf.constant(features))
    logits = ops.Linear(tf.constant(features), class_num=7)
    joined, rectified, logits, weights = run([joined, rectified, logits, tf.trainable_variables()[0]])
    np.testing.assert_array_equal(joined, np.concatenate(parts, 3))
    np.testing.assert_array_equal(rectified, np.maximum(features, 0))
    np.testing.assert_allclose(logits, features.astype(np.float64) @ weights, atol=1e-5)


def test_max_pooling_with_zeros_on_every_side():
    x = np.random.RandomState(0).rand(2, 7, 6, 3).astype(np.float32)
    found = run(ops.Max_Pooling(tf.constant(x), padding=1))
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], "constant")
    assert found.shape == (2, 4, 3, 3)
    for row in range(4):
        for column in range(3):
            window = padded[:, 2 * row:2 * row + 3, 2 * column:2 * column + 3]
            np.testing.assert_array_equal(found[:, row, column], window.max((1, 2)))
