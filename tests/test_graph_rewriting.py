"""The form of an exported graph: the same probabilities, also after TensorFlow's own tool has folded what it can."""

import collections

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.python.tools import optimize_for_inference_lib

import Densenet
from ops import Batch_Normalization, Concatenation, conv_layer
from support import batch_statistics, modes
from support.export import IMAGES, PROBABILITIES
from support.graph_rewriting import rewritten
from support.machine import has_fused_operations
from support.networks import NETWORKS, STEMS, final_side
from support.workers import Cluster

QUICK = ("densenet_bc_28_12", "densenet_cifar")
DEEPEST = ("densenet_161", "densenet_169", "densenet_201", "densenet_full", "densenet_full_cifar",
           "densenet_bc_250_24", "densenet_bc_190_40")
SMALL = dict(network="custom", blocks=(2, 2), growth_k=4, bottleneck=True, flip_average=False)


def randomize(sess):
    """Random statistics and normalizations for the variables of a session, in its graph."""
    random = np.random.RandomState(0)
    ranges = {"mean": (100, 150), "deviation": (50, 70), "gamma": (0.5, 1.5), "moving_variance": (0.5, 1.5),
              "beta": (-0.5, 0.5), "moving_mean": (-0.5, 0.5)}
    values = {}
    for variable in tf.global_variables():
        name = variable.op.name.rpartition("/")[2]
        if name in ranges:
            values[variable.initializer.inputs[1]] = random.uniform(*ranges[name], size=variable.shape.as_list())
    sess.run(tf.global_variables_initializer(), values)  # at once, as each run of a large graph takes long


def frozen_network(channels=3, count=3, **settings):
    """A network with random statistics on the smallest images that it takes.

    Returns:
        its GraphDef without variables, as Densenet.py builds it; images; their probabilities by that graph.
    """
    config = Densenet.choose(**dict(dict(dataset="folder", flip_average=False), **settings))
    shape = next([side, side, channels] for side in range(8, 65) if final_side(config, (side, side)) >= 1)
    facts = {"image_shape": shape, "class_names": ["a", "b", "c"]}
    # The session of a run: TensorFlow's graph optimizer, which it leaves out, takes longer than the images.
    with tf.Graph().as_default(), tf.Session(config=Cluster(count, 1).session_config()) as sess:
        images, probabilities, *_ = modes.serving_graph(Densenet.inference, config, facts)
        randomize(sess)
        pixels = np.random.RandomState(1).randint(0, 256, [count] + shape).astype(np.uint8)
        expected = sess.run(probabilities, {images: pixels})
        graph_def = tf.graph_util.convert_variables_to_constants(sess, sess.graph.as_graph_def(), [PROBABILITIES])
    assert np.ptp(expected, 0).max() > 1e-3  # the answer depends on the image
    return graph_def, pixels, expected


def run(graph_def, pixels, output=PROBABILITIES):
    with tf.Graph().as_default(), tf.Session() as sess:
        tf.import_graph_def(graph_def, name="")
        return sess.run(output + ":0", {IMAGES + ":0": pixels})


def kinds_of(graph_def):
    return collections.Counter(node.op for node in graph_def.node)


def assert_is_safe(graph_def, pixels, expected):
    """The rewritten graph has the expected probabilities, with and without TensorFlow's folding, and no odd forms."""
    new = rewritten(graph_def, [PROBABILITIES])
    assert not [node.name for node in new.node  # TensorFlow 1.15's MaxPool does not know the second
                if {"_output_shapes", "explicit_paddings", "use_cudnn_on_gpu"} & set(node.attr)]
    np.testing.assert_allclose(run(new, pixels), expected, atol=1e-5)
    folded = optimize_for_inference_lib.optimize_for_inference(new, [IMAGES], [PROBABILITIES],
                                                               tf.uint8.as_datatype_enum)
    np.testing.assert_allclose(run(folded, pixels), expected, atol=1e-5)
    kinds = kinds_of(new)
    assert not {"Reshape", "Identity", "ReverseV2", "AddN"} & set(kinds)
    assert kinds["MatMul"] == 1  # the classifier
    nodes = {node.name: node for node in new.node}
    for node in new.node:
        constant = [nodes[name.split(":")[0]].op == "Const" for name in node.input]
        assert not constant or not all(constant), node.name
        if node.op in ("Conv2D", "BiasAdd"):
            assert constant[1], node.name
        if node.op.startswith("FusedBatchNorm"):
            assert nodes[node.input[0]].op not in ("Conv2D", "BiasAdd"), node.name
    return new


@pytest.mark.parametrize("network", [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.long if name in DEEPEST else pytest.mark.once)
    for name in NETWORKS])
def test_named_networks_are_safe_against_folding(network):
    assert_is_safe(*frozen_network(network=network))


@pytest.mark.parametrize("stem", sorted(STEMS))
def test_each_stem_is_safe_against_folding(stem):
    assert_is_safe(*frozen_network(stem=stem, **SMALL))


@pytest.mark.parametrize("changes", [
    dict(flip_average=True), dict(shift_average=1), dict(flip_average=True, shift_average=2),
    dict(memory_efficient=True), dict(transition_pooling="max"), dict(dropout_rate=0.2), dict(precision="bfloat16"),
    dict(bottleneck=False)], ids=str)
def test_each_kind_of_network_is_safe_against_folding(changes):
    new = assert_is_safe(*frozen_network(stem="3x3", **dict(SMALL, **changes)))
    views = (1 + changes.get("flip_average", False)) * (4 if "shift_average" in changes else 1)
    assert kinds_of(new)["Split"] == int(views > 1)


@pytest.mark.skipif(not has_fused_operations(), reason="this TensorFlow has no fused operations")
def test_normalization_by_convolution_and_by_a_kernel_get_the_same_form(monkeypatch):
    kinds = []
    for convolves in (False, True):
        monkeypatch.setattr(batch_statistics, "has_fused_operations", lambda *_, convolves=convolves: convolves)
        graph_def, pixels, expected = frozen_network(stem="3x3", **SMALL)
        assert bool(kinds_of(graph_def)["_FusedDepthwiseConv2dNative"]) == convolves
        kinds.append(kinds_of(assert_is_safe(graph_def, pixels, expected)))
    assert kinds[0] == kinds[1]


@pytest.mark.skipif(tf.VERSION.startswith("1."), reason="TensorFlow 1.15 folds only the oldest batch normalizations")
def test_tensorflows_folding_spoils_the_graph_as_it_is_built(monkeypatch):
    """Otherwise, the tests above would show nothing."""
    monkeypatch.setattr(batch_statistics, "has_fused_operations", lambda *_: False)
    graph_def, pixels, expected = frozen_network(stem="3x3", **SMALL)
    spoilt = optimize_for_inference_lib.optimize_for_inference(graph_def, [IMAGES], [PROBABILITIES],
                                                               tf.uint8.as_datatype_enum)
    assert np.abs(run(spoilt, pixels) - expected).max() > 1e-3


@pytest.mark.parametrize("height, width", [(5, 7), (1, 1)])
def test_a_normalization_is_folded_where_nothing_else_reads_the_convolution(height, width):
    """Of five batch normalizations two are folded, one is a product and a sum, and two of a concatenation stay."""
    pixels = np.random.RandomState(1).normal(size=[3, height, width, 3]).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as sess:
        images = tf.placeholder(tf.float32, [None, height, width, 3], IMAGES)
        x = Batch_Normalization(conv_layer(images, 6, 3, layer_name="conv0"), False, "batch0", relu=True)
        y = Batch_Normalization(conv_layer(x, 4, 1, layer_name="conv1"), False, "batch1", relu=True)
        z = conv_layer(y, 4, 1, layer_name="conv2")
        both = Concatenation([x, Batch_Normalization(z, False, "batch2"), z])
        both = Batch_Normalization(both, False, "batch3", relu=True) + Batch_Normalization(both, False, "batch4")
        tf.reduce_sum(conv_layer(both, 2, 3, layer_name="conv3"), [1, 2], name="output")
        randomize(sess)
        expected = sess.run("output:0", {images: pixels})
        graph_def = tf.graph_util.convert_variables_to_constants(sess, sess.graph.as_graph_def(), ["output"])
    before = graph_def.SerializeToString()
    new = rewritten(graph_def, ["output"])
    assert graph_def.SerializeToString() == before
    np.testing.assert_allclose(run(new, pixels, "output"), expected, rtol=1e-4, atol=1e-5)
    kinds = kinds_of(new)
    assert kinds["FusedBatchNormV3"] == 2 and kinds["BiasAdd"] == 2 and kinds["Mul"] == 1 and kinds["Conv2D"] == 4
    assert {node.name.split("/")[0] for node in new.node if node.op == "Mul"} == {"batch2"}


@pytest.mark.parametrize("shape", [(4, 14, 14, 1), (1, 28, 28, 2), (2, 27, 28, 1), (1, 28, 56, 1), (1, 56, 28, 1)])
def test_images_of_another_shape_are_refused(shape):
    with tf.Graph().as_default(), tf.Session() as sess:
        images = tf.placeholder(tf.uint8, [None, 28, 28, 1], IMAGES)
        x = conv_layer((tf.cast(images, tf.float32) - [100.0]) / [50.0], 4, 3)
        tf.reduce_mean(x, [1, 2], name="output")
        sess.run(tf.global_variables_initializer())
        graph_def = tf.graph_util.convert_variables_to_constants(sess, sess.graph.as_graph_def(), ["output"])
    new = rewritten(graph_def, ["output"])
    for node in new.node:
        if node.op == "Placeholder":
            node.attr["shape"].shape.unknown_rank = True  # as for callers that do not look at it
            del node.attr["shape"].shape.dim[:]
    assert run(new, np.zeros([5, 28, 28, 1]), "output").shape == (5, 4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="[Ss]hape|channel|[Bb]ias"):
        run(new, np.zeros(shape), "output")
