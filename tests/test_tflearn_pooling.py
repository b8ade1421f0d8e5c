"""Global average pooling with and without tflearn."""

import sys

import numpy as np
import tensorflow.compat.v1 as tf

import ops
from support import tflearn_pooling


def test_global_average_pooling_with_tflearn_matches_tf_and_adds_no_variables():
    with tf.Graph().as_default() as graph, tf.Session() as sess:
        x = tf.constant(np.random.RandomState(0).randn(3, 5, 7, 11).astype(np.float32))
        by_tflearn, by_tf = ops.Global_Average_Pooling(x), tf.reduce_mean(x, [1, 2])
        assert "tflearn" in sys.modules
        assert graph.get_all_collection_keys() == [] and tf.global_variables() == []
        assert all("is_training" not in operation.name for operation in graph.get_operations())
        first, second = sess.run([by_tflearn, by_tf])
    np.testing.assert_array_equal(first, second)


def test_global_average_pooling_without_tflearn(monkeypatch):
    lines = []
    monkeypatch.setattr(tf.logging, "error", lambda line, *values: lines.append(line % values))
    monkeypatch.setitem(sys.modules, "tflearn", None)
    tflearn_pooling._import_tflearn.cache_clear()
    x = np.random.RandomState(0).randn(3, 5, 7, 11).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as sess:
        for stride in (1, 2):
            pooled = sess.run(ops.Global_Average_Pooling(tf.constant(x), stride))
            np.testing.assert_allclose(pooled, x.mean((1, 2)), atol=1e-6)
    assert len(lines) == 1 and "tflearn cannot be imported" in lines[0]
    tflearn_pooling._import_tflearn.cache_clear()
