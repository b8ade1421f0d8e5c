"""Shared statistics, recomputation and gradients, compared with formulas in float64."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import Densenet
import ops
from support import batch_statistics, convolution
from support.batch_statistics import (
    Form,
    SharedStatistics,
    advance_moving_statistics,
    normalized,
    normalized_by_batch,
)
from support.machine import has_fused_operations
from support.replicas import Replica


def shared_statistics():
    return SharedStatistics(Replica(0, 1, "", True, False))


def choose_kernels(monkeypatch, dtype, fused):
    """Lets normalization use fused operations or not, on any machine that has them for the type."""
    if fused and not has_fused_operations(dtype):
        pytest.skip("there are no fused operations for %s" % dtype.name)
    monkeypatch.setattr(batch_statistics, "has_fused_operations", lambda *_: fused)


def dense_block(x, norm_relu, concatenate, convolution):
    """Three plain layers in the scopes layer_0 to layer_2, then a batch normalization with ReLU in the scope last."""
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


# float64 has no kernel for normalization: it takes the path of maps of one pixel.
@pytest.mark.parametrize("memory_efficient", [False, True])
@pytest.mark.parametrize("dtype,fused,avx2_alone", [
    (tf.float64, False, False), (tf.float32, False, False), (tf.float32, True, False), (tf.float32, True, True),
    (tf.bfloat16, False, False), (tf.bfloat16, True, False)])
@pytest.mark.campaign
def test_a_dense_block_and_its_gradients_match_float64_formulas(monkeypatch, dtype, fused, avx2_alone,
                                                                memory_efficient):
    choose_kernels(monkeypatch, dtype, fused)
    monkeypatch.setattr(convolution, "only_avx2", lambda: avx2_alone)
    random = np.random.RandomState(0)
    x_value, y_weights = 3 + random.randn(4, 5, 7, 6), random.randn(4, 5, 7, 15)
    values = {}

    def results(dtype, make_parts):
        with tf.Graph().as_default(), tf.Session() as sess:
            parts = make_parts()
            x = tf.cast(tf.constant(x_value), dtype)
            weighted = tf.cast(tf.constant(y_weights), dtype)
            y = dense_block(parts[1]([x[..., :2], x[..., 2:]]), *parts)
            variables = {variable.op.name: variable for variable in tf.trainable_variables()}
            gradients = dict(zip(variables, tf.gradients(y * weighted, list(variables.values()))))
            gradients.update(y=y, x=tf.gradients(y * weighted, x)[0])
            sess.run(tf.global_variables_initializer())
            for name, variable in sorted(variables.items()):
                shape = variable.shape.as_list()
                variable.load(values.setdefault(name, random.randn(*shape)), sess)
            return sess.run({name: tf.cast(value, tf.float64) for name, value in gradients.items()})

    def ours():
        shared = shared_statistics()

        def norm_relu(x, last=False):
            return ops.Batch_Normalization(x, True, "norm", relu=True, shared=shared,
                                           memory_efficient=memory_efficient and not last)

        return norm_relu, lambda parts: ops.Concatenation(parts, shared=shared), lambda x: ops.conv_layer(x, 3, 3)

    expected = results(tf.float64, lambda: (norm_relu_by_formula, lambda parts: tf.concat(parts, 3),
                                            convolution_by_tensorflow))
    found = results(dtype, ours)
    assert set(found) == set(expected) and len(found) == 13
    for name, value in expected.items():
        if dtype == tf.bfloat16:
            rounding = 0.25 if name.endswith("beta") else 0.1  # large terms of the gradient of beta cancel out
            assert np.linalg.norm(found[name] - value) < rounding * np.linalg.norm(value), name
        else:
            np.testing.assert_allclose(found[name], value, atol=2e-5 * np.abs(value).max(), err_msg=name)


# Of 4 images. 35 pixels of an image cannot be divided by 2, 4 or 16, but the 140 pixels of all can by 2 and 4.
@pytest.mark.parametrize("rows, columns", [(5, 7), (4, 8)])
@pytest.mark.parametrize("channels", [5, 8, 12, 16])
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("fused", [False, True])
def test_all_kernels_match_float64_formulas(monkeypatch, fused, dtype, channels, rows, columns):
    choose_kernels(monkeypatch, dtype, fused)
    random = np.random.RandomState(0)
    x, dy = 3 + 2 * random.randn(4, rows, columns, channels), random.randn(4, rows, columns, channels)
    gamma, beta, mean, variance = (random.uniform(0.5, 1.5, channels) for _ in range(4))
    form = Form(True, 0.01)
    with tf.Graph().as_default() as graph, tf.Session() as sess:
        x, dy = tf.constant(x, dtype), tf.constant(dy, dtype)
        inputs = [x] + [tf.constant(value, tf.float32) for value in (gamma, beta)]
        y, *moments = normalized_by_batch(*inputs, form)
        given = [tf.constant(value, tf.float32) for value in (mean, variance)]
        z = normalized(x, *given, *inputs[1:], form)
        outputs = [y, z] + moments + [gradient for output in (y, z) for gradient in tf.gradients(output, inputs, dy)]
        x, dy, *found = sess.run([tf.cast(value, tf.float64) for value in [x, dy] + outputs])
        kinds = [operation.type for operation in graph.get_operations()]
        kernels = [operation for operation in graph.get_operations() if "FusedBatchNorm" in operation.type]
    assert [value.dtype for value in outputs] == [dtype, dtype] + 2 * [tf.float32] + 2 * [dtype, tf.float32, tf.float32]
    together = {5: 16, 8: 2, 12: 4, 16: 1}[channels]
    form = (dtype, channels * together) if fused and 4 * rows * columns % together == 0 else (tf.float32, channels)
    assert {(kernel.inputs[0].dtype, int(kernel.inputs[0].shape[3])) for kernel in kernels} == {form}
    assert ("_FusedDepthwiseConv2dNative" in kinds) == (fused and dtype == tf.float32)
    assert ("_FusedBatchNormEx" in kinds) == (fused and (channels == 16 or form[0] == tf.bfloat16))

    def by_formula(mean, variance):
        centred = (x - mean) / np.sqrt(variance + 0.01)
        y = np.maximum(gamma * centred + beta, 0)
        through = dy * (y > 0)
        return y, centred, through, gamma / np.sqrt(variance + 0.01), (through * centred).sum((0, 1, 2)), through.sum((
            0, 1, 2))

    y, centred, through, scale, dgamma, dbeta = by_formula(x.mean((0, 1, 2)), x.var((0, 1, 2)))
    z, _, through_z, scale_z, dgamma_z, dbeta_z = by_formula(mean, variance)
    count = 4 * rows * columns
    expected = [y, z, x.mean((0, 1, 2)), x.var((0, 1, 2)) * count / (count - 1),
                scale * (through - through.mean((0, 1, 2)) - centred * (through * centred).mean((0, 1, 2))), dgamma,
                dbeta, scale_z * through_z, dgamma_z, dbeta_z]
    for output, ours, formula in zip(outputs, found, expected):
        rounding = 2 ** -8 if output.dtype == tf.bfloat16 else 1e-5
        np.testing.assert_allclose(ours, formula, atol=rounding * np.abs(formula).max(), err_msg=output.name)


def test_moving_statistics_of_all_layers_advance_together():
    shared = shared_statistics()
    random = np.random.RandomState(0)
    batches = [3 + random.randn(4, 5, 7, channels) for channels in (2, 5)]
    with tf.Graph().as_default(), tf.Session() as sess:
        outputs = [ops.Batch_Normalization(tf.constant(x, tf.float32), True, "norm%d" % i, shared=shared)
                   for i, x in enumerate(batches)]
        moving, means, variances = shared.collected()
        advance = advance_moving_statistics(moving, tf.concat(means, 0), tf.concat(variances, 0))
        sess.run(tf.global_variables_initializer())
        moving[1].local_step.load(7.0, sess)
        for _ in range(3):
            sess.run(outputs)  # does not update the moving statistics
            sess.run(advance)
        found = sess.run(moving)
    for x, steps, its in zip(batches, (3, 10), found):
        biased = x.mean((0, 1, 2)) * (1 - 0.9 ** 3)
        assert its.local_step == steps
        np.testing.assert_allclose(its.biased, biased, rtol=1e-5)
        np.testing.assert_allclose(its.mean, biased / (1 - 0.9 ** steps), rtol=1e-5)
        np.testing.assert_allclose(its.variance, 0.9 ** 3 + (1 - 0.9 ** 3) * x.var((0, 1, 2)) * 140 / 139, rtol=1e-5)


def build_step(blocks, bottleneck, memory_efficient, dropout_rate=0.0, transition_pooling="average"):
    """Returns [loss] + gradients of a batch of 8 images; the loss also updates the moving statistics."""
    random = np.random.RandomState(0)
    images, labels = random.normal(size=[8, 12, 12, 3]).astype(np.float32), random.randint(0, 10, 8)
    tf.set_random_seed(1)
    shared = shared_statistics()
    logits = Densenet.DenseNet(tf.constant(images), blocks, 6, True, bottleneck=bottleneck, dropout_rate=dropout_rate,
                               transition_pooling=transition_pooling, stem="imagenet", shared=shared,
                               memory_efficient=memory_efficient).model
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    gradients = tf.gradients(loss, tf.trainable_variables())
    moving, means, variances = shared.collected()
    with tf.control_dependencies(advance_moving_statistics(moving, tf.concat(means, 0), tf.concat(variances, 0))):
        return [tf.identity(loss)] + gradients


@pytest.mark.parametrize("bottleneck, dropout_rate, pooling", [
    (True, 0.2, "average")] + [pytest.param(*options, marks=pytest.mark.once) for options in (
        (False, 0.2, "max"), (True, 0.0, "average"), (True, 0.0, "max"))])
def test_the_memory_efficient_mode_changes_nothing(bottleneck, dropout_rate, pooling):
    """Compares the loss, the gradients and the variables after one step, with equal dropout masks."""
    found = []
    for memory_efficient in (False, True):
        with tf.Graph().as_default(), tf.Session() as sess:
            step = build_step((3, 3), bottleneck, memory_efficient, dropout_rate, pooling)
            sess.run(tf.global_variables_initializer())
            found.append(sess.run(step) + sess.run(tf.global_variables()))
    for efficient, plain in zip(*found):
        np.testing.assert_allclose(efficient, plain, atol=1e-5)


@pytest.mark.once
def test_activations_in_the_memory_efficient_mode_grow_linearly():
    """Counts the activation values that are kept for the gradients, for different numbers of layers in a block."""
    def kept(layers, memory_efficient):
        with tf.Graph().as_default():
            run, left = set(), [tensor.op for tensor in build_step((layers,), True, memory_efficient)]
        while left:
            operation = left.pop()
            if operation not in run:
                run.add(operation)
                left += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
        tensors = {}
        for operation in run:
            if operation.name.startswith("gradients/"):
                for tensor in operation.inputs:
                    while tensor.op.type in ("Identity", "IdentityN"):  # these share the memory of their input
                        tensor = tensor.op.inputs[tensor.value_index]
                    if not tensor.op.name.startswith("gradients/") and tensor.shape.ndims == 4 and tensor.shape[0] == 8:
                        tensors[tensor.name] = tensor.shape.num_elements()
        return sum(tensors.values())

    plain, efficient = ([kept(layers, mode) for layers in (4, 8, 12)] for mode in (False, True))
    assert efficient[2] - efficient[1] == efficient[1] - efficient[0]
    assert plain[2] - plain[1] > plain[1] - plain[0] > 2 * (efficient[1] - efficient[0])
