"""The network compared with NumPy, TensorFlow 1.15 and a plain implementation; the training graph; learning rates."""

import math
import os
import re
import types

import numpy as np
import pytest
import record
import tensorflow.compat.v1 as tf
from helpers import before_the_first_step, logits_in, tiny_config
from test_ops import numpy_conv

import Densenet
from ops import (
    Average_pooling,
    Batch_Normalization,
    Concatenation,
    Drop_out,
    Global_Average_Pooling,
    Linear,
    Max_Pooling,
    Relu,
    conv_layer,
)
from support import UserError
from support.workers import Cluster


def numpy_logits(images, weights, blocks, bottleneck, pooling):
    """Computes the network's inference in float64, as described in section 3 of the paper."""
    def norm_relu(x, scope):
        gamma, beta, mean, variance = (weights["%s/%s" % (scope, name)].astype(np.float64) for name in (
            "gamma", "beta", "moving_mean", "moving_variance"))
        return np.maximum(gamma * (x - mean) / np.sqrt(variance + 0.001) + beta, 0)

    def conv(x, scope):
        return numpy_conv(x, weights[scope + "/kernel"].astype(np.float64), 1)

    def block(x, layers, name):
        for i in range(layers):
            scope = "%s/bottleN_%d" % (name, i)
            y = conv(norm_relu(x, scope + "/batch1"), scope + "/conv1") if bottleneck else x
            x = np.concatenate([x, conv(norm_relu(y, scope + "/batch2"), scope + "/conv2")], 3)
        return x

    x = conv(images.astype(np.float64), "conv0")
    for i, layers in enumerate(blocks[:-1]):
        x = block(x, layers, "dense_%d" % i)
        x = conv(norm_relu(x, "trans_%d/batch1" % i), "trans_%d/conv1" % i)
        x = x[:, :x.shape[1] // 2 * 2, :x.shape[2] // 2 * 2]
        x = pooling([x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]], 0)
    x = norm_relu(block(x, blocks[-1], "dense_final"), "linear_batch").mean((1, 2))
    return x @ weights["linear/kernel"] + weights["linear/bias"]


@pytest.mark.parametrize("bottleneck,pooling", [(True, "average"), (False, "average"), (False, "max")])
def test_the_network_matches_numpy(bottleneck, pooling):
    images, _ = record.network_inputs()
    random = np.random.RandomState(3)
    with tf.Graph().as_default(), tf.Session() as sess:
        net = record.small_network(tf.constant(images), False, bottleneck=bottleneck, transition_pooling=pooling)
        sess.run(tf.global_variables_initializer())
        for variable in tf.global_variables():  # statistics, scales and shifts other than 0 and 1
            if variable.op.name.split("/")[-1] not in ("kernel", "local_step"):
                variable.load(random.uniform(0.5, 1.5, variable.shape.as_list()).astype(np.float32), sess)
        weights = {variable.op.name: sess.run(variable) for variable in tf.global_variables()}
        expected = numpy_logits(images, weights, (2, 3), bottleneck, {"average": np.mean, "max": np.max}[pooling])
        np.testing.assert_allclose(sess.run(net.model), expected, rtol=1e-4)


@pytest.mark.campaign
def test_the_network_matches_tensorflow_1():
    recorded = np.load(os.path.join(record.HERE, "network.npz"))
    found = record.run_network()
    assert set(found) == set(recorded.files)
    for name in ("training_logits_before", "training_logits_with_dropout"):
        np.testing.assert_allclose(found[name], recorded[name], atol=1e-5, rtol=1e-5)
    for name in recorded.files:
        np.testing.assert_allclose(found[name], recorded[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("version", ["1", "2"])
def test_checkpoints_of_both_versions_are_restored(version):
    """The logits match before and after another step, so weights, statistics and Adam's state are restored."""
    folder = os.path.join(record.HERE, "checkpoint_" + version)
    with tf.Graph().as_default(), tf.Session() as sess:
        _, logits, train = record.build_network()
        tf.train.Saver().restore(sess, os.path.join(folder, "dense.ckpt-3"))
        np.testing.assert_allclose(sess.run(logits), np.load(os.path.join(folder, "logits.npy")), atol=1e-5, rtol=1e-5)
        sess.run(train)
        np.testing.assert_allclose(sess.run(logits), np.load(os.path.join(folder, "logits_of_next_step.npy")),
                                   atol=1e-4, rtol=1e-4)
        assert sess.run(tf.train.get_global_step()) == 4


class DescribedDenseNet:
    """A plain implementation of the network as originally described, with only the first arguments of the helpers."""

    def __init__(self, x, blocks, filters, training, dropout_rate):
        self.blocks, self.filters, self.training, self.dropout_rate = blocks, filters, training, dropout_rate
        self.model = self.Dense_net(x)

    def bottleneck_layer(self, x, scope):
        with tf.variable_scope(scope):
            x = Batch_Normalization(x, self.training, "batch1")
            x = Relu(x)
            x = conv_layer(x, 4 * self.filters, [1, 1], layer_name="conv1")
            x = Drop_out(x, self.dropout_rate, self.training)
            x = Batch_Normalization(x, self.training, "batch2")
            x = Relu(x)
            x = conv_layer(x, self.filters, kernel=[3, 3], layer_name="conv2")
            return Drop_out(x, rate=self.dropout_rate, training=self.training)

    def transition_layer(self, x, scope):
        with tf.variable_scope(scope):
            x = Batch_Normalization(x, self.training, scope="batch1")
            x = Relu(x)
            x = conv_layer(x, filter=int(x.shape[-1]) // 2, kernel=[1, 1], layer_name="conv1")
            x = Drop_out(x, self.dropout_rate, self.training)
            return Average_pooling(x, pool_size=[2, 2], stride=2)

    def dense_block(self, input_x, nb_layers, layer_name):
        with tf.variable_scope(layer_name):
            layers = [input_x, self.bottleneck_layer(input_x, "bottleN_0")]
            for i in range(1, nb_layers):
                x = Concatenation(layers)
                layers.append(self.bottleneck_layer(x, "bottleN_%d" % i))
            return Concatenation(layers)

    def Dense_net(self, input_x):
        x = conv_layer(input_x, 2 * self.filters, kernel=[7, 7], stride=2, layer_name="conv0")
        x = Max_Pooling(x, pool_size=[3, 3], stride=2)
        for i, nb_layers in enumerate(self.blocks[:-1]):
            x = self.dense_block(x, nb_layers, "dense_%d" % i)
            x = self.transition_layer(x, "trans_%d" % i)
        x = self.dense_block(x, self.blocks[-1], "dense_final")
        x = Batch_Normalization(x, self.training, "linear_batch")
        x = Relu(x)
        x = Global_Average_Pooling(x)
        return Linear(x)


def trained_twice(build, side):
    """Logits and variables of a network after two training steps; `build`: from images and a bool tensor to logits."""
    batches = np.random.RandomState(0).randn(2, 4, side, side, 1).astype(np.float32)
    # The session of a run: TensorFlow's graph optimizer, which it leaves out, takes longer than the steps.
    with tf.Graph().as_default(), tf.Session(config=Cluster(4, 1).session_config()) as sess:
        tf.set_random_seed(1)
        images, training = tf.placeholder(tf.float32, [4, side, side, 1]), tf.placeholder(tf.bool, [])
        logits, *others = build(images, training)
        sess.run(tf.global_variables_initializer())
        for batch in batches:
            sess.run(logits, {images: batch, training: True})
        return sess.run([logits] + others + tf.global_variables(), {images: batches[0], training: False})


@pytest.mark.campaign
def test_the_plain_implementation_matches_the_network():
    """The four-layer form, with `training` as a bool tensor, in both implementations."""
    plain = trained_twice(lambda images, training: [DescribedDenseNet(images, (4, 4, 4), 4, training, 0.0).model], 28)
    ours = trained_twice(lambda images, training: [Densenet.DenseNet(images, (4, 4, 4), 4, training,
                                                                     stem="7x7s2+pool").model], 28)
    assert len(plain) == len(ours)
    for first, second in zip(plain, ours):
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-4 * np.abs(second).max())


@pytest.mark.once
def test_the_plain_implementation_matches_the_full_network():
    """Blocks of 6, 12, 48 and 32 layers: our inference, on the variables that the plain implementation trained."""
    def both(images, training):
        plain = DescribedDenseNet(images, (6, 12, 48, 32), 4, training, 0.0).model
        with tf.variable_scope(tf.get_variable_scope(), reuse=True):
            return plain, Densenet.DenseNet(images, (6, 12, 48, 32), 4, False, stem="7x7s2+pool").model

    plain, ours, *_ = trained_twice(both, 64)
    np.testing.assert_allclose(plain, ours, rtol=1e-3, atol=1e-4 * np.abs(ours).max())


def test_dropout_masks_without_names_are_independent():
    """Two dropout layers share a scope, and `training` is a bool tensor."""
    with tf.Graph().as_default(), tf.Session() as sess:
        training = tf.placeholder(tf.bool, [])
        with tf.variable_scope("layer"):
            masks = [Drop_out(tf.ones([40, 50]), 0.5, training) for _ in range(2)]
        sess.run(tf.global_variables_initializer())
        first, second = sess.run(masks, {training: True})
        assert 0.4 < (first == second).mean() < 0.6
        assert all((mask == 1).all() for mask in sess.run(masks, {training: False}))


def variable_names(**changes):
    with tf.Graph().as_default():
        record.small_network(tf.zeros([2, 64, 64, 3]), True, **changes)
        return {variable.op.name for variable in tf.global_variables()}


def test_scopes_follow_the_architecture():
    names = variable_names(blocks=(6, 12, 2, 2), stem="7x7s2+pool")
    assert "dense_0/bottleN_0/conv1/kernel" in names and "dense_1/bottleN_11/batch2/gamma" in names
    assert {name.split("/")[0] for name in names} == {
        "conv0", "dense_0", "trans_0", "dense_1", "trans_1", "dense_2", "trans_2", "dense_final", "linear_batch",
        "linear"}


@pytest.mark.parametrize("changes,channels", [
    (dict(compression=0.5), 10), (dict(compression=1.0), 20), (dict(compression=0.33), 6),
    (dict(transition_channels=5), 5)])
def test_transition_width(changes, channels):
    with tf.Graph().as_default():  # the block before the transition has 2 · 5 + 2 · 5 channels
        record.small_network(tf.zeros([2, 13, 11, 3]), True, **changes)
        (kernel,) = [variable for variable in tf.global_variables() if variable.op.name == "trans_0/conv1/kernel"]
        assert kernel.shape.as_list() == [1, 1, 20, channels]


@pytest.mark.parametrize("side,stem,blocks,layer", [
    (28, "7x7s2+pool", (1,) * 5, "trans_2"), (28, "3x3", (1,) * 6, "trans_4"), (4, "7x7s2+pool", (1, 1), "conv0"),
    (32, "7x7s2+pool", (1,) * 5, "trans_2")])
def test_images_that_are_too_small(side, stem, blocks, layer):
    with tf.Graph().as_default(), pytest.raises(UserError, match="the %dx%d images shrink to 0 at .*%s" % (
            side, side, layer)):
        record.small_network(tf.zeros([2, side, side, 1]), False, blocks=blocks, stem=stem)


def rates(steps, **settings):
    settings = types.SimpleNamespace(**dict(dict(init_learning_rate=0.1, warmup=0.0, schedule="steps"), **settings))
    return {step: Densenet.learning_rate(step, 1000, settings) for step in steps}


def test_learning_rate():
    assert rates([0, 499, 500, 749, 750, 999]) == pytest.approx(
        {0: 0.1, 499: 0.1, 500: 0.01, 749: 0.01, 750: 0.001, 999: 0.001})
    config = Densenet.choose(dataset="cifar10", optimizer="momentum")
    paper = {epoch: [Densenet.learning_rate(step, 300 * 703, config) for step in (epoch * 703, epoch * 703 + 702)]
             for epoch in (0, 149, 150, 224, 225, 299)}  # 45,000 images in batches of 64: 703 steps an epoch
    assert paper == {epoch: [pytest.approx(rate)] * 2 for epoch, rate in (
        (0, 0.1), (149, 0.1), (150, 0.01), (224, 0.01), (225, 0.001), (299, 0.001))}
    assert rates([0, 250, 500, 1000], schedule="cosine") == pytest.approx(
        {0: 0.1, 250: 0.05 * (1 + math.sqrt(0.5)), 500: 0.05, 1000: 0.0})
    assert rates([0, 500, 1000], schedule="exponential") == pytest.approx({0: 0.1, 500: 0.01, 1000: 0.001})
    assert rates([0, 999], schedule="constant") == {0: 0.1, 999: 0.1}
    warm = rates([0, 99, 100, 550], schedule="cosine", warmup=0.1)
    assert warm[0] == pytest.approx(0.1 / 101) and warm[99] == pytest.approx(0.1 * 100 / 101)
    assert warm[100] == pytest.approx(0.1) and warm[550] == pytest.approx(0.05)


def test_a_step_computes_no_gradient_for_the_images(tiny_mnist):
    with before_the_first_step(tiny_mnist) as (sess, net, images, labels):
        run = tf.RunMetadata()
        sess.run(net.train, {net.images: images, net.labels: labels, net.rate: 1e-3},
                 tf.RunOptions(trace_level=tf.RunOptions.FULL_TRACE), run)
        names = [node.node_name for device in run.step_stats.dev_stats for node in device.node_stats]
    of_the_stem = {name.rpartition("/")[2] for name in names if "gradients" in name and "/conv0/" in name}
    assert "Conv2DBackpropFilter" in of_the_stem and "Conv2DBackpropInput" not in of_the_stem


def test_label_smoothing_matches_numpy(tiny_mnist):
    """The target distribution is 1 - s + s / 10 for the label and s / 10 for every other class."""
    with before_the_first_step(tiny_mnist, label_smoothing=0.25) as (sess, net, images, labels):
        all_logits = logits_in(sess.graph)
        (training, evaluation), cost, losses = sess.run([all_logits, net.cost, net.test.losses],
                                                        {net.images: images, net.labels: labels})

    def cross_entropy(logits, smoothing):
        logits = logits.astype(np.float64)
        log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        targets = np.full([len(labels), 10], smoothing / 10)
        targets[np.arange(len(labels)), labels] += 1 - smoothing
        return -(targets * log_probabilities).sum(1)

    np.testing.assert_allclose(cost, cross_entropy(training, 0.25).mean(), rtol=1e-5)
    np.testing.assert_allclose(losses, cross_entropy(evaluation, 0.0), rtol=1e-5)


def moved(images, down, right, border):
    """Returns the images [N, H, W, C] shifted by (down, right) pixels and padded with `border`."""
    images = np.roll(images, (down, right), (1, 2))
    images[:, :down if down > 0 else 0] = images[:, down if down < 0 else images.shape[1]:] = border
    images[:, :, :right if right > 0 else 0] = images[:, :, right if right < 0 else images.shape[2]:] = border
    return images


@pytest.mark.parametrize("flip_average,shift_average", [(True, 0), (False, 1), (True, 2)])
def test_averages_over_image_variants_match_numpy(flip_average, shift_average, tiny_mnist):
    """The test uses the mean logits of an image's variants; training and validation use only the image itself."""
    with before_the_first_step(tiny_mnist) as (sess, net, images, labels):
        training = sess.run(net.cost, {net.images: images, net.labels: labels})
    with before_the_first_step(tiny_mnist, flip_average=flip_average, shift_average=shift_average) as (
            sess, net, images, labels):
        assert sess.run(net.cost, {net.images: images, net.labels: labels}) == training
        _, plain, averaged = logits_in(sess.graph)
        if shift_average:
            black = images.min()  # as in training
            variants = [moved(images, down, right, black)[:, :, ::-1 if flip_average and right < 0 else 1]
                        for down in (-shift_average, shift_average) for right in (-shift_average, shift_average)]
        else:
            variants = [images, images[:, :, ::-1]]
        of_variants = [sess.run(plain, {net.images: variant}).astype(np.float64) for variant in variants]
        assert np.ptp(of_variants, 0).max() > 1e-3
        np.testing.assert_allclose(sess.run(averaged, {net.images: images}), np.mean(of_variants, 0), atol=1e-6)
        logits, probabilities = sess.run([[plain, averaged], [net.validation.probabilities, net.test.probabilities]],
                                         {net.images: images})
        powers = np.exp(np.array(logits, np.float64))
        np.testing.assert_allclose(probabilities, powers.max(2) / powers.sum(2), rtol=1e-5)


@pytest.mark.parametrize("options", [
    dict(devices=2, weight_decay=0.1, dropout_rate=0.2)] + [pytest.param(one, marks=pytest.mark.once) for one in (
        dict(devices=2, sync_batch_norm=True, memory_efficient=True), dict(precision="bfloat16", optimizer="sgd"),
        dict(precision="float16", optimizer="momentum"))], ids=str)
@pytest.mark.parametrize("train_only, trained", [
    ("head", ("linear/",)), ("last_block", ("dense_final/", "linear_batch/", "linear/"))])
def test_frozen_layers_have_no_slots_and_stand_still(train_only, trained, options, tiny_mnist):
    if "precision" in options and tf.VERSION.startswith("1."):
        pytest.skip("TensorFlow 1.15 lacks kernels for it on the CPU")
    with before_the_first_step(tiny_mnist, train_only=train_only, **options) as (sess, net, images, labels):
        variables = {variable.op.name: variable for variable in tf.global_variables()}
        before = sess.run(variables)
        for _ in range(3):
            sess.run(net.train, {net.images: images, net.labels: labels, net.rate: 0.1})
        after = sess.run(variables)
    of_network = re.compile("conv|batch|linear|dense_|trans_")
    changed = {name for name in before if np.any(before[name] != after[name]) and of_network.match(name)}
    assert changed == {name for name in before if name.startswith(trained)}
    assert "linear/kernel" in changed and not any(
        name.endswith(("/Adam", "/Momentum")) and not name.startswith(trained) for name in before)


def test_frozen_layers_are_computed_as_in_inference(tiny_mnist):
    with before_the_first_step(tiny_mnist, train_only="head") as (sess, net, images, labels):
        for variable in tf.global_variables():
            if variable.op.name.endswith(("moving_mean", "moving_variance")):
                variable.load(np.random.RandomState(0).uniform(0.5, 2.0, variable.shape), sess)
        trained, *inferred = (sess.run(logits, {net.images: images, net.labels: labels})
                              for logits in logits_in(tf.get_default_graph()))
    np.testing.assert_allclose(trained, inferred[0], atol=1e-5)


def test_balanced_class_weights_count_each_class_alike_in_the_loss(tiny_mnist):
    config = tiny_config(tiny_mnist)
    data, _ = Densenet.prepare_data(config)
    counts = np.bincount(data.train.labels, minlength=10)
    assert len(set(counts.tolist())) > 3
    with before_the_first_step(tiny_mnist, class_weights="balanced") as (sess, net, images, labels):
        logits = logits_in(tf.get_default_graph())[0]
        cost, logits = sess.run([net.cost, logits], {net.images: images, net.labels: labels})
    logits = logits.astype(np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    assert cost == pytest.approx(np.mean(losses * 300 / (10 * counts[labels])), rel=1e-5)
    assert cost != pytest.approx(losses.mean(), rel=1e-3)
