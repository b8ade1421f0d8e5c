"""The helpers against TensorFlow 1.15's own batch normalization, NumPy, and each other."""

import os
import sys

import numpy as np
import pytest
import record
import tensorflow.compat.v1 as tf

import ops
from support.cluster import Replica

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
def test_batch_normalization_is_what_contrib_computed(shape, function):
    recorded = np.load(RECORDED)
    found = record.run_batch_norm(record.SHAPES[shape], function)
    assert len(found) == 9
    for name, value in found.items():
        expected = recorded["%s/%s" % (shape, name)]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(), err_msg=name)


@pytest.mark.skipif(record.MAJOR != "1", reason="tf.contrib is part of TensorFlow 1 alone")
@pytest.mark.parametrize("shape", [(4, 3, 9, 2), (7, 1, 1, 3), (1, 1, 1, 2)])
def test_batch_normalization_beside_contrib(shape):
    expected = record.run_batch_norm(shape, record.contrib_batch_norm)
    for name, value in record.run_batch_norm(shape, ours).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5 * np.abs(expected[name]).max())


def test_batch_normalization_by_its_formula_in_float64():
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


def test_batch_normalization_of_bfloat16():
    inputs, gamma, beta, _ = record.batch_norm_inputs((3, 5, 7, 13))
    x = tf.constant(inputs[0])
    with tf.variable_scope("net"):
        rounded = ours(tf.cast(x, tf.bfloat16), True)
    with tf.variable_scope("exact"):
        exact = ours(tf.cast(tf.cast(x, tf.bfloat16), tf.float32), True)
    assert rounded.dtype == tf.bfloat16
    found, expected = run([tf.cast(rounded, tf.float32), exact])
    np.testing.assert_allclose(found, expected, rtol=2 ** -8)
    assert {variable.dtype.base_dtype for variable in tf.global_variables()} == {tf.float32}


def dense_block(x, norm_relu, concatenate, convolution):
    """Three plain layers and what normalizes their concatenation, in the scopes layer_0, layer_1, layer_2, last."""
    for i in range(3):
        with tf.variable_scope("layer_%d" % i):
            x = concatenate([x, convolution(norm_relu(x))])
    with tf.variable_scope("last"):
        return norm_relu(x, last=True)


def norm_relu_by_formula(x, last=False):
    gamma = tf.get_variable("norm/gamma", [int(x.shape[3])], x.dtype)
    beta = tf.get_variable("norm/beta", [int(x.shape[3])], x.dtype)
    mean, variance = tf.nn.moments(x, [0, 1, 2])
    return tf.nn.relu((x - mean) * tf.rsqrt(variance + 0.001) * gamma + beta)


def convolution_by_tensorflow(x):
    return tf.nn.conv2d(x, tf.get_variable("conv/kernel", [3, 3, int(x.shape[3]), 3], x.dtype), 1, "SAME")


# In float64 it goes the way of bfloat16, without its rounding.
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype,compiled_from", [(tf.float32, 1), (tf.float64, 1), (tf.float64, 2 ** 20)])
def test_a_dense_block_and_its_gradients_by_formula_in_float64(monkeypatch, dtype, compiled_from, recompute):
    monkeypatch.setattr(ops, "COMPILED_FROM", compiled_from)
    random = np.random.RandomState(0)
    x_value, y_weights = 3 + random.randn(4, 5, 7, 6), random.randn(4, 5, 7, 15)
    values = {}

    def results(dtype, *parts):
        with tf.Graph().as_default(), tf.Session() as sess:
            x = tf.constant(x_value, dtype)
            y = dense_block(parts[1]([x[..., :2], x[..., 2:]]), *parts)
            variables = {variable.op.name: variable for variable in tf.trainable_variables()}
            gradients = dict(zip(variables, tf.gradients(y * tf.constant(y_weights, dtype), list(variables.values()))))
            gradients.update(y=y, x=tf.gradients(y * tf.constant(y_weights, dtype), x)[0])
            sess.run(tf.global_variables_initializer())
            for name, variable in sorted(variables.items()):
                shape = variable.shape.as_list()
                variable.load(values.setdefault(name, random.randn(*shape)).astype(dtype.as_numpy_dtype), sess)
            return sess.run(gradients)

    def norm_relu(x, last=False):
        return ops.Batch_Normalization(x, True, "norm", ops.Relu, Replica(0, 1, "", True, False),
                                       recompute=recompute and not last)

    expected = results(tf.float64, norm_relu_by_formula, lambda parts: tf.concat(parts, 3), convolution_by_tensorflow)
    found = results(dtype, norm_relu, ops.Concatenation, lambda x: ops.conv_layer(x, 3, 3))
    assert set(found) == set(expected) and len(found) == 13
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-5 * np.abs(value).max(), err_msg=name)


def test_what_xla_compiles_reads_no_variables(monkeypatch):
    monkeypatch.setattr(ops, "COMPILED_FROM", 1)
    x = tf.zeros([2, 5, 7, 3], tf.bfloat16)
    ops.Batch_Normalization(x, False, "by_moving_statistics", ops.Relu)
    ops.Batch_Normalization(ops.Concatenation([x, x]), True, "by_batch", ops.Relu, Replica(0, 1, "", True, False))
    compiled = {op.type for op in tf.get_default_graph().get_operations() if "_XlaCompile" in op.node_def.attr}
    assert "Relu" in compiled and "ReadVariableOp" not in compiled


def test_moving_statistics_of_a_network_advance_at_once():
    replica = Replica(0, 1, "", True, False)
    random = np.random.RandomState(0)
    batches = [3 + random.randn(4, 5, 7, channels) for channels in (2, 5)]
    outputs = [ops.Batch_Normalization(tf.constant(x, tf.float32), True, "norm%d" % i, replica=replica)
               for i, x in enumerate(batches)]
    moving, means, variances = zip(*replica.statistics)
    advance = ops.advance_moving_statistics(moving, tf.concat(means, 0), tf.concat(variances, 0))
    with tf.Session() as sess:
        sess.run(tf.global_variables_initializer())
        moving[1].local_step.load(7.0, sess)
        for _ in range(3):
            sess.run(outputs)  # which leaves them as they are
            sess.run(advance)
        found = sess.run(moving)
    for x, steps, its in zip(batches, (3, 10), found):
        biased = x.mean((0, 1, 2)) * (1 - 0.9 ** 3)
        assert its.local_step == steps
        np.testing.assert_allclose(its.biased, biased, rtol=1e-5)
        np.testing.assert_allclose(its.mean, biased / (1 - 0.9 ** steps), rtol=1e-5)
        np.testing.assert_allclose(its.variance, 0.9 ** 3 + (1 - 0.9 ** 3) * x.var((0, 1, 2)) * 140 / 139, rtol=1e-5)


def test_statistics_advance_once_whatever_is_fetched():
    x = tf.constant(record.batch_norm_inputs((3, 5, 7, 13))[0][0])
    y = ours(x, True)
    (local_step,) = [variable for variable in tf.global_variables() if variable.op.name.endswith("local_step")]
    with tf.Session() as sess:
        sess.run(tf.global_variables_initializer())
        for _ in range(3):
            sess.run([y, tf.reduce_sum(y), tf.gradients(y, x)])
        assert sess.run(local_step) == 3


def numpy_conv(x, weights, stride):
    """SAME convolution by its definition, float64."""
    side = weights.shape[0]
    size = [-(-length // stride) for length in x.shape[1:3]]
    before = [max((n - 1) * stride + side - length, 0) // 2 for n, length in zip(size, x.shape[1:3])]
    padded = np.pad(x, [(0, 0)] + [(b, side) for b in before] + [(0, 0)], "constant")
    y = np.zeros((len(x), size[0], size[1], weights.shape[3]))
    for row in range(size[0]):
        for column in range(size[1]):
            window = padded[:, row * stride:row * stride + side, column * stride:column * stride + side]
            y[:, row, column] = np.tensordot(window, weights, 3)
    return y


@pytest.mark.parametrize("kernel,stride", [(1, 1), (3, 1), (3, 2), (7, 2)])
def test_conv_layer(kernel, stride):
    x = np.random.RandomState(0).randn(2, 13, 7, 3).astype(np.float32)
    y = ops.conv_layer(tf.constant(x), 5, kernel, stride, "conv")
    assert [variable.op.name for variable in tf.global_variables()] == ["conv/kernel"]
    found, weights = run([y, tf.global_variables()[0]])
    np.testing.assert_allclose(found, numpy_conv(x.astype(np.float64), weights.astype(np.float64), stride), atol=1e-4)


def test_initial_weights_depend_on_seed_and_name_alone():
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


def dropped(seed=1, step=7, replica=0, scope="drop1", training=True, as_tensor=False):
    with tf.Graph().as_default():
        tf.set_random_seed(seed)
        global_step = tf.train.get_or_create_global_step()
        with tf.variable_scope("layer"):
            y = ops.Drop_out(tf.ones([40, 50]), 0.3, tf.constant(training) if as_tensor else training, scope, replica)
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
    for other in (dropped(seed=2), dropped(step=8), dropped(replica=1), dropped(scope="drop2")):
        assert 0.3 < (mask != other).mean() < 0.55  # independent masks differ in 2 · 0.3 · 0.7 = 0.42


def test_dropout_leaves_inference_alone():
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


def test_global_average_pooling_by_tflearn_equals_tf_and_leaves_no_trace(graph):
    x = tf.constant(np.random.RandomState(0).randn(3, 5, 7, 11).astype(np.float32))
    by_tflearn, by_tf = ops.Global_Average_Pooling(x), ops.tf_global_average_pooling(x)
    assert "tflearn" in sys.modules
    assert graph.get_all_collection_keys() == [] and tf.global_variables() == []
    assert all("is_training" not in operation.name for operation in graph.get_operations())
    first, second = run([by_tflearn, by_tf])
    np.testing.assert_array_equal(first, second)


def test_global_average_pooling_without_tflearn(monkeypatch):
    lines = []
    monkeypatch.setattr(tf.logging, "error", lambda line, *values: lines.append(line % values))
    monkeypatch.setitem(sys.modules, "tflearn", None)
    ops._import_tflearn.cache_clear()
    x = np.random.RandomState(0).randn(3, 5, 7, 11).astype(np.float32)
    for _ in range(2):
        np.testing.assert_allclose(run(ops.Global_Average_Pooling(tf.constant(x))), x.mean((1, 2)), atol=1e-6)
    assert len(lines) == 1 and "tflearn cannot be imported" in lines[0]
    ops._import_tflearn.cache_clear()


def test_concatenation_linear_and_relu():
    random = np.random.RandomState(0)
    parts = [random.randn(2, 3, 5, channels).astype(np.float32) for channels in (1, 4)]
    features = random.randn(6, 9).astype(np.float32)
    joined, rectified = ops.Concatenation([tf.constant(part) for part in parts]), ops.Relu(tf.constant(features))
    logits = ops.Linear(tf.constant(features), 7)
    joined, rectified, logits, weights = run([joined, rectified, logits, tf.trainable_variables()[0]])
    np.testing.assert_array_equal(joined, np.concatenate(parts, 3))
    np.testing.assert_array_equal(rectified, np.maximum(features, 0))
    np.testing.assert_allclose(logits, features.astype(np.float64) @ weights, atol=1e-5)
