"""Folding of batch normalization into the preceding convolution, compared with the original graph."""

import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from ops import Batch_Normalization, Concatenation, conv_layer
from support import UserError
from support.export import export_graph, folded


def built(sess, height=5, width=7):
    """Builds a graph with four batch normalizations: two can be folded, and two follow a concatenation."""
    images = tf.placeholder(tf.float32, [None, height, width, 3], "images")
    x = conv_layer(images, 6, 3, layer_name="conv0")
    x = Batch_Normalization(x, False, "batch0", relu=True)
    y = conv_layer(x, 4, 1, layer_name="conv1")
    y = Batch_Normalization(y, False, "batch1", relu=True)
    both = Concatenation([x, y])
    z = Batch_Normalization(both, False, "batch2", relu=True) + Batch_Normalization(both, False, "batch3")
    output = tf.reduce_sum(conv_layer(z, 2, 3, layer_name="conv2"), [1, 2], name="output")
    sess.run(tf.global_variables_initializer())
    random = np.random.RandomState(0)
    for variable in tf.global_variables():
        if "kernel" not in variable.name and "step" not in variable.name:
            variable.load(random.uniform(0.5, 1.5, variable.shape.as_list()), sess)
    return images, output


@pytest.mark.parametrize("height, width", [(5, 7), (1, 1)])
def test_folding_does_not_change_the_output(height, width):
    pixels = np.random.RandomState(1).normal(size=[3, height, width, 3]).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as sess:
        images, output = built(sess, height, width)
        expected = sess.run(output, {images: pixels})
        graph_def = tf.graph_util.convert_variables_to_constants(sess, sess.graph.as_graph_def(), ["output"])
    norms = sum(node.op.startswith("FusedBatchNorm") for node in graph_def.node)
    graph_def = folded(graph_def, ["output"])
    left = [node.name for node in graph_def.node if node.op.startswith("FusedBatchNorm")]
    assert norms == 4 and sorted(name.split("/")[0] for name in left) == ["batch2", "batch3"]
    with tf.Graph().as_default(), tf.Session() as sess:
        tf.import_graph_def(graph_def, name="")
        np.testing.assert_allclose(sess.run("output:0", {"images:0": pixels}), expected, rtol=1e-5)


def test_an_export_that_cannot_be_written_is_refused(folder):
    with tf.Graph().as_default(), tf.Session() as sess:
        images, output = built(sess)
        with open("file", "w"):
            pass
        with pytest.raises(UserError, match="cannot write .*make room there"):
            export_graph(sess, {"images": images}, {"output": output}, os.path.join("file", "export"), {})
        os.makedirs("there.new")  # left by a killed process
        assert export_graph(sess, {"images": images}, {"output": output}, "there", {"size": 5}) == ("there", "there.pb")
        assert sorted(os.listdir(".")) == ["file", "there", "there.pb"]
