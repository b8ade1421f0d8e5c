"""Optimizer steps in each precision, compared with NumPy and float32."""

import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import before_the_first_step

from support.optimizers import optimizer_of


@pytest.mark.parametrize("precision,tolerance", [("bfloat16", 0.02), ("float16", 0.002)])
@pytest.mark.campaign
def test_half_precision_is_near_float32_and_keeps_float32_weights(precision, tolerance, tiny_mnist):
    costs = {}
    for each in ("float32", precision):
        with before_the_first_step(tiny_mnist, precision=each) as (sess, net, images, labels):
            for variable in tf.global_variables():
                assert variable.dtype.base_dtype not in (tf.bfloat16, tf.float16)
                if variable.op.name == "current_loss_scale":  # with the initial 2 ** 15, the first steps may be skipped
                    sess.run(variable.assign(1024.0))
            feed = {net.images: images, net.labels: labels, net.rate: 1e-3}
            costs[each] = [sess.run([net.train, net.cost], feed)[1] for _ in range(3)]
            products = [op for op in sess.graph.get_operations() if op.type == "Conv2D"]
            assert products and {op.outputs[0].dtype.name for op in products} == {each}
    np.testing.assert_allclose(costs[precision], costs["float32"], rtol=tolerance)
    assert costs[precision] != costs["float32"]


@pytest.mark.parametrize("optimizer,weight_decay,devices", [
    pytest.param(*options, marks=pytest.mark.campaign)
    for options in (("momentum", 0.0, 2), ("adam", 0.25, 1), ("sgd", 0.25, 1))])
def test_the_loss_of_float16_is_scaled(optimizer, weight_decay, devices, tiny_mnist):
    """If the scale is too large, no weight changes, the scale halves, and the step counts; else steps match float32.

    A large epsilon makes Adam's steps nearly linear in the gradients, so that small errors stay small.
    """
    steps = {}
    for precision in ("float32", "float16"):
        with before_the_first_step(tiny_mnist, precision=precision, optimizer=optimizer, weight_decay=weight_decay,
                                   epsilon=1.0, devices=devices) as (sess, net, images, labels):
            variables = tf.trainable_variables()
            feed = {net.images: images, net.labels: labels, net.rate: 0.125}
            before = sess.run(variables)
            if precision == "float16":
                scale, = (variable for variable in tf.global_variables() if variable.op.name == "current_loss_scale")
                sess.run(scale.assign(2.0 ** 60))
                sess.run(net.train, feed)
                for name, was, now in zip(variables, before, sess.run(variables)):
                    np.testing.assert_array_equal(was, now, err_msg=str(name))
                assert sess.run([scale, net.global_step]) == [2.0 ** 59, 1]
                sess.run(scale.assign(1024.0))
            sess.run(net.train, feed)
            steps[precision] = [now - was for was, now in zip(before, sess.run(variables))]
    for half, single in zip(steps["float16"], steps["float32"]):
        assert np.linalg.norm(half - single) < 0.1 * np.linalg.norm(single)


@pytest.mark.parametrize("optimizer,factor", [("momentum", 1 + 0.9), ("adam", 1), ("sgd", 1)])
def test_weight_decay_matches_numpy(tiny_mnist, optimizer, factor):
    """Decay adds rate · decay · weight to the first step of Adam and SGD, and 1 + 0.9 times that to Nesterov's."""
    moved = {}
    for decay in (0.0, 0.25):
        with before_the_first_step(tiny_mnist, optimizer=optimizer, weight_decay=decay) as (sess, net, images, labels):
            before = sess.run(tf.trainable_variables())
            sess.run(net.train, {net.images: images, net.labels: labels, net.rate: 0.125})
            names = [variable.op.name for variable in tf.trainable_variables()]
            moved[decay] = dict(zip(names, zip(before, sess.run(tf.trainable_variables()))))
    for name, (before, plain) in moved[0.0].items():
        expected = plain.astype(np.float64) - 0.125 * factor * 0.25 * before
        np.testing.assert_allclose(moved[0.25][name][1], expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "momentum"])
def test_the_classifier_may_have_a_rate_of_its_own(optimizer, tiny_mnist):
    moved = {}
    for head_rate in (1.0, 4.0):
        with before_the_first_step(tiny_mnist, optimizer=optimizer, weight_decay=0.1,
                                   head_rate=head_rate) as (sess, net, images, labels):
            names = [variable.op.name for variable in tf.trainable_variables()]
            before = sess.run(tf.trainable_variables())
            sess.run(net.train, {net.images: images, net.labels: labels, net.rate: 0.125})
            after = sess.run(tf.trainable_variables())
            moved[head_rate] = {name: new - old for name, new, old in zip(names, after, before)}
    for name, usual in moved[1.0].items():
        factor = 4.0 if name.startswith("linear/") else 1.0
        np.testing.assert_allclose(moved[4.0][name], factor * usual, atol=1e-5,
                                   err_msg=name)


def test_weight_decay_adds_dependencies_in_proportion_to_variables(tiny_mnist):
    """A quadratic number of dependencies took 240 MB of memory for a memory-efficient DenseNet-BC-100."""
    waits = {}
    for decay in (0.0, 0.25):
        with before_the_first_step(tiny_mnist, weight_decay=decay) as (sess, _, _, _):
            waits[decay] = sum(len(operation.control_inputs) for operation in sess.graph.get_operations())
            variables = len(tf.trainable_variables())
    assert variables > 10
    assert waits[0.25] - waits[0.0] <= 6 * variables


def test_no_weight_is_updated_before_all_have_decayed(tiny_mnist):
    """Otherwise a decay could be of the new weights, or lost."""
    with before_the_first_step(tiny_mnist, weight_decay=0.25) as (sess, _, _, _):
        operations = sess.graph.get_operations()
        decays = {each for each in operations if each.type == "AssignSubVariableOp" and "optimizer/" in each.name}
        updates = [each for each in operations if each.type == "ResourceApplyAdam"]
        assert len(updates) == len(decays) == len(tf.trainable_variables())
        for update in updates:
            before, waiting = set(), [update]
            while waiting:
                operation = waiting.pop()
                if operation not in before:
                    before.add(operation)
                    waiting += [x.op for x in operation.inputs] + list(operation.control_inputs)
            assert decays <= before


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_steps_of_momentum_match_numpy(optimizer):
    """Minimizes (a · w²).sum() / 2 with L2 decay; the momentum is 0.9, and Nesterov's for `momentum` alone."""
    start, curvature, rate, decay = np.array([1.0, -2.0, 0.5]), np.array([1.0, 0.5, 3.0]), 0.125, 0.25
    with tf.Graph().as_default(), tf.Session() as sess:
        weights = tf.get_variable("weights", initializer=start.astype(np.float32), use_resource=True)
        config = types.SimpleNamespace(optimizer=optimizer, epsilon=1.0, weight_decay=decay, precision="float32",
                                       head_rate=1.0)
        train = optimizer_of(config, tf.constant(rate)).minimize(
            tf.reduce_sum(tf.constant(curvature, tf.float32) * weights ** 2) / 2)
        sess.run(tf.global_variables_initializer())
        expected, velocity = start.copy(), np.zeros(3)
        for _ in range(4):
            sess.run(train)
            gradient = curvature * expected + decay * expected
            velocity = 0.9 * velocity + gradient
            expected = expected - rate * (gradient + 0.9 * velocity if optimizer == "momentum" else velocity)
            np.testing.assert_allclose(sess.run(weights), expected, rtol=1e-5)
