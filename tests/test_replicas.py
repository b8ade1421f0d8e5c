"""Copies of a part of the graph, compared with the same part as Python builds it for each replica."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import before_the_first_step

from support.replicas import Replica, on_each, shared_constants


def on_three_replicas(build, alike):
    """(The values that `on_each` gives for three replicas, each with a row; the graph's operations by name)."""
    with tf.Graph().as_default() as graph, tf.Session() as sess:
        rows = tf.unstack(tf.constant([[1.0, 2.0], [3.0, 5.0], [8.0, 13.0]]))
        replicas = [Replica(index, 3, "/cpu:0", index == 0, False) for index in range(3)]
        results = on_each(replicas, build, [[row] for row in rows], alike)
        sess.run(tf.global_variables_initializer())
        return sess.run(results), {operation.name: operation for operation in graph.get_operations()}


def test_copies_compute_what_python_would_have_built():
    calls = []

    def build(replica, row):
        calls.append(replica.index)
        weights = tf.get_variable("weights", [2], initializer=tf.constant_initializer([2.0, -1.0]), use_resource=True)
        doubled = tf.identity(2 * row, "unstack")  # the name that the rows have outside
        with tf.control_dependencies([tf.group(doubled)]):
            loss = tf.reduce_sum(tf.square(weights * row) + tf.split(doubled, 2)[1])
        return [loss, *tf.gradients(loss, [weights, row])]

    built, _ = on_three_replicas(build, alike=False)
    assert calls == [0, 1, 2]
    copied, operations = on_three_replicas(build, alike=True)
    assert calls == [0, 1, 2, 0]
    for first, second, row in zip(built, copied, np.array([[1.0, 2.0], [3.0, 5.0], [8.0, 13.0]])):
        loss = np.sum(np.square([2, -1] * row)) + 4 * row[1]
        for values in (first, second):
            np.testing.assert_allclose(values[0], loss, rtol=1e-6)
            np.testing.assert_allclose(values[1], 2 * np.array([2, -1]) * row ** 2, rtol=1e-6)
            np.testing.assert_allclose(values[2], 2 * np.array([4, 1]) * row + [0, 4], rtol=1e-6)
    read = {x.op.name for name, operation in operations.items() if name.startswith("replica_2/")
            for x in operation.inputs if not x.name.startswith("replica_2/")}
    assert read == {"weights", "unstack"}


def test_what_belongs_to_all_replicas_is_not_copied():
    shared = []

    def build(_, row):
        if not shared:
            with tf.name_scope(None), tf.name_scope("outside"):
                shared.append(tf.constant(7.0))
        return [shared[0], row + shared[0], row]

    results, operations = on_three_replicas(build, alike=True)
    assert [result[0] for result in results] == [7.0] * 3
    np.testing.assert_array_equal([result[1] for result in results], [[8, 9], [10, 12], [15, 20]])
    np.testing.assert_array_equal([result[2] for result in results], [[1, 2], [3, 5], [8, 13]])
    assert [name for name in operations if name.endswith("outside/Const")] == ["outside/Const"]


@pytest.mark.parametrize("changes", [
    dict(sync_batch_norm=True, memory_efficient=True), dict(precision="float16", train_only="last_block"),
    pytest.param(dict(precision="bfloat16", flip_average=True, ema_decay=0.9), marks=pytest.mark.once)], ids=str)
def test_a_step_on_copies_is_that_of_networks_built_by_python(tiny_mnist, monkeypatch, changes):
    values, devices, versions = [], [], []
    for alike in (True, False):
        if not alike:
            monkeypatch.setattr("support.workers.on_each", lambda replicas, build, inputs, _: on_each(
                replicas, build, inputs, alike=False))
        with before_the_first_step(tiny_mnist, devices=2, **changes) as (sess, net, images, labels):
            feed = {net.images: images, net.labels: labels, net.rate: 0.01}
            for _ in range(2):
                step = sess.run([net.train, net.cost, net.accuracy], feed)
            values.append([*step[1:], *sess.run([net.test.losses, net.test.embedding, net.test.maps], feed),
                           *sess.run(tf.global_variables())])
            devices.append({operation.name: operation.device for operation in sess.graph.get_operations()
                            if operation.type == "Conv2D" and "gradients" not in operation.name})
            versions.append(sess.graph.graph_def_versions.producer)
    for copied, built in zip(*values):
        np.testing.assert_array_equal(copied, built)
    assert devices[0] == devices[1] and len(set(devices[0].values())) == 2
    assert versions[0] == versions[1] > 0


def test_equal_numbers_are_one_constant_where_nothing_else_belongs_to_it():
    with tf.Graph().as_default() as graph, tf.Session() as sess:
        x = tf.placeholder(tf.float32, [2, 3])
        with shared_constants("all/"), tf.name_scope("all"):
            first, second = tf.reshape(x, [3, 2]), tf.reshape(x, [3, 2])
            others = [tf.constant(value) for value in (1, 1.0, True, [1], np.float32(1), 0.0, -0.0)]
            assert tf.constant(1, tf.int64).dtype == tf.int64 and tf.constant(1, shape=[2]).shape == [2]
            assert tf.constant(np.float64(1)).dtype == tf.float64  # which is a float, too, and looks like 1.0
            with tf.control_dependencies([x.op]):
                dependent = tf.constant(1)
            with tf.device("/cpu:0"):
                elsewhere = tf.constant(1)
            with tf.Graph().as_default() as another:
                assert tf.constant(1).graph is another
            with tf.name_scope(None):
                outside = tf.constant(1)
        later = tf.constant(1)
        assert first.op.inputs[1] is second.op.inputs[1] and first.op.inputs[1].name == "all/constants/shape:0"
        assert len({constant.name for constant in (*others, dependent, elsewhere, outside, later)}) == 11
        assert dependent.op.control_inputs == [x.op] and elsewhere.device and not others[0].device
        assert [np.signbit(value) for value in sess.run(others[-2:])] == [False, True]
        assert graph.get_operation_by_name("all/constants/Const").outputs[0] is others[0]
