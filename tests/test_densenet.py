"""The network against the paper's counts, NumPy and TensorFlow 1.15; the program end to end on tiny data."""

import contextlib
import glob
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import record
import tensorflow.compat.v1 as tf
import test_cifar10
from test_ops import numpy_conv

import cifar10
import Densenet
import mnist_loader
import ops
from support import UserError, download
from support.cluster import Cluster, Replica
from support.report import Report

PROGRAM = os.path.abspath(Densenet.__file__)
TINY = dict(blocks=(1, 2), growth_k=4, bottleneck=True, stem="3x3s2", init_learning_rate=0.02, rotation=0.0,
            batch_size=50, validation_size=30, total_epochs=2)


def parameters(network, image_shape, class_num):
    chosen = Densenet.NETWORKS[network]
    with tf.Graph().as_default():
        Densenet.DenseNet(
            tf.zeros((1,) + image_shape), chosen["blocks"], chosen["growth_k"], False, class_num,
            chosen["bottleneck"], chosen["compression"], chosen["transition_channels"],
            chosen["transition_pooling"], chosen["stem"], chosen["stem_channels"])
        return sum(int(np.prod(variable.shape.as_list())) for variable in tf.trainable_variables())


@pytest.mark.parametrize("network,image_shape,class_num,expected", [
    ("densenet_40_12", (32, 32, 3), 10, 1019722),
    ("densenet_bc_100_12", (32, 32, 3), 10, 769162),
    ("densenet_bc_250_24", (32, 32, 3), 10, 15324406),
    ("densenet_bc_190_40", (32, 32, 3), 10, 25624430),
    ("densenet_121", (224, 224, 3), 1000, 7978856),
    ("densenet_169", (224, 224, 3), 1000, 14149480),
    ("densenet_201", (224, 224, 3), 1000, 20013928),
    ("densenet_161", (224, 224, 3), 1000, 28681000),
    ("densenet_full_cifar", (32, 32, 3), 10, 10236298),
    ("densenet_mnist_first", (28, 28, 1), 10, 607930),
])
def test_parameter_counts(network, image_shape, class_num, expected):
    assert parameters(network, image_shape, class_num) == expected


def numpy_logits(images, weights, blocks, bottleneck, pooling):
    """The network's inference in float64, from the description in the paper's section 3."""
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
def test_the_network_by_numpy(bottleneck, pooling):
    images, _ = record.network_inputs()
    random = np.random.RandomState(3)
    with tf.Graph().as_default(), tf.Session() as sess:
        net = record.small_network(tf.constant(images), False, bottleneck=bottleneck, transition_pooling=pooling)
        sess.run(tf.global_variables_initializer())
        for variable in tf.global_variables():  # statistics, scales and shifts that are not 0 and 1
            if variable.op.name.split("/")[-1] not in ("kernel", "local_step"):
                variable.load(random.uniform(0.5, 1.5, variable.shape.as_list()).astype(np.float32), sess)
        weights = {variable.op.name: sess.run(variable) for variable in tf.global_variables()}
        expected = numpy_logits(images, weights, (2, 3), bottleneck, {"average": np.mean, "max": np.max}[pooling])
        np.testing.assert_allclose(sess.run(net.model), expected, rtol=1e-4)
        assert net.nb_blocks == 1


def test_the_network_is_that_of_tensorflow_1():
    recorded = np.load(os.path.join(record.HERE, "network.npz"))
    found = record.run_network()
    assert set(found) == set(recorded.files)
    for name in ("training_logits_before", "training_logits_with_dropout"):
        np.testing.assert_allclose(found[name], recorded[name], atol=1e-5, rtol=1e-5)
    for name in recorded.files:
        np.testing.assert_allclose(found[name], recorded[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("version", ["1", "2"])
def test_checkpoints_of_both_versions_are_restored(version):
    """Weights, statistics and Adam's state, by what they give and by what the next step makes of them."""
    folder = os.path.join(record.HERE, "checkpoint_" + version)
    with tf.Graph().as_default(), tf.Session() as sess:
        _, logits, train = record.build_network()
        tf.train.Saver().restore(sess, os.path.join(folder, "dense.ckpt-3"))
        np.testing.assert_allclose(sess.run(logits), np.load(os.path.join(folder, "logits.npy")), atol=1e-5, rtol=1e-5)
        sess.run(train)
        np.testing.assert_allclose(sess.run(logits), np.load(os.path.join(folder, "logits_of_next_step.npy")),
                                   atol=1e-4, rtol=1e-4)
        assert sess.run(tf.train.get_global_step()) == 4


def build_step(blocks, bottleneck, memory_efficient, dropout_rate=0.0, transition_pooling="average"):
    """Loss, which advances the moving statistics, and gradients of a batch of 8 images, in the default graph."""
    random = np.random.RandomState(0)
    images, labels = random.normal(size=[8, 12, 12, 3]).astype(np.float32), random.randint(0, 10, 8)
    tf.set_random_seed(1)
    replica = Replica(0, 1, "", True, False)
    logits = Densenet.DenseNet(tf.constant(images), blocks, 6, True, bottleneck=bottleneck, dropout_rate=dropout_rate,
                               transition_pooling=transition_pooling, stem="imagenet", replica=replica,
                               memory_efficient=memory_efficient).model
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    gradients = tf.gradients(loss, tf.trainable_variables())
    moving, means, variances = zip(*replica.statistics)
    with tf.control_dependencies(ops.advance_moving_statistics(moving, tf.concat(means, 0), tf.concat(variances, 0))):
        return [tf.identity(loss)] + gradients


@pytest.mark.parametrize("bottleneck, dropout_rate, pooling", [
    (True, 0.2, "average"), (False, 0.2, "max"), (True, 0.0, "average"), (True, 0.0, "max")])
def test_the_memory_efficient_mode_changes_nothing(bottleneck, dropout_rate, pooling):
    """Loss, gradients, with the same dropout masks, and statistics that have advanced once."""
    found = []
    for memory_efficient in (False, True):
        with tf.Graph().as_default(), tf.Session() as sess:
            step = build_step((3, 3), bottleneck, memory_efficient, dropout_rate, pooling)
            sess.run(tf.global_variables_initializer())
            found.append(sess.run(step) + sess.run(tf.global_variables()))
    for efficient, plain in zip(*found):
        np.testing.assert_allclose(efficient, plain, atol=1e-5)


def test_the_memory_efficient_mode_keeps_what_grows_linearly():
    """The values of feature maps that the gradients take from before them, by the number of layers in a block."""
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
                    while tensor.op.type in ("Identity", "IdentityN"):  # these share their input's memory
                        tensor = tensor.op.inputs[tensor.value_index]
                    if not tensor.op.name.startswith("gradients/") and tensor.shape.ndims == 4 and tensor.shape[0] == 8:
                        tensors[tensor.name] = tensor.shape.num_elements()
        return sum(tensors.values())

    plain, efficient = ([kept(layers, mode) for layers in (4, 8, 12)] for mode in (False, True))
    assert efficient[2] - efficient[1] == efficient[1] - efficient[0]
    assert plain[2] - plain[1] > plain[1] - plain[0] > 2 * (efficient[1] - efficient[0])


def variable_names(**changes):
    with tf.Graph().as_default():
        record.small_network(tf.zeros([2, 64, 64, 3]), True, **changes)
        return {variable.op.name for variable in tf.global_variables()}


def test_scopes_read_like_the_architecture():
    names = variable_names(blocks=(6, 12, 2, 2), first_block=1, stem="7x7s2+pool")
    assert "dense_1/bottleN_0/conv1/kernel" in names and "dense_2/bottleN_11/batch2/gamma" in names
    assert {name.split("/")[0] for name in names} == {
        "conv0", "dense_1", "trans_1", "dense_2", "trans_2", "dense_3", "trans_3", "dense_final", "linear_batch",
        "linear"}
    assert {"dense_0/bottleN_0/conv1/kernel", "trans_0/conv1/kernel"} < variable_names()


@pytest.mark.parametrize("changes,channels", [
    (dict(compression=0.5), 10), (dict(compression=1.0), 20), (dict(compression=0.33), 6),
    (dict(transition_channels=5), 5)])
def test_transition_width(changes, channels):
    with tf.Graph().as_default():  # the block before it has 2 · 5 + 2 · 5 channels
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


def test_choosing():
    config = Densenet.choose(["growth_k=24", "--seed=3"])
    assert (config.growth_k, config.seed, config.run_name) == (24, 3, "mnist-growth_k=24-seed=3")
    plain = Densenet.choose()
    assert plain.run_name == "mnist" and plain.overridden == {}
    assert Densenet.choose(["growth_k=%d" % plain.growth_k, "total_epochs=99", "data_dir=x"]).run_name == "mnist"
    other = Densenet.choose(["network=densenet_bc_100_12", "compression=0.7"])
    assert (other.blocks, other.compression) == ((16, 16, 16), 0.7)
    assert other.run_name == "mnist-network=densenet_bc_100_12-compression=0.7"
    paper = Densenet.choose(optimizer="momentum")
    assert (paper.init_learning_rate, paper.batch_size, paper.weight_decay, paper.schedule) == (0.1, 64, 1e-4, "steps")
    assert (paper.total_epochs, paper.warmup, paper.dropout_rate, paper.label_smoothing) == (300, 0.0, 0.0, 0.0)
    assert Densenet.choose(optimizer="momentum", augmentation=False).dropout_rate == 0.2


@pytest.mark.parametrize("name,value,sentence", [
    ("dataset", None, "dataset must be one of"), ("data_dir", None, "data_dir must be a path"),
    ("checkpoint_minutes", None, "checkpoint_minutes must be a number"), ("growth_k", 0, "growth_k must be an integer"),
    ("DEFAULTS", {"mnist": dict(Densenet.DEFAULTS["mnist"], network="typo")}, "network=typo: network must be one of"),
    ("DEFAULTS", {"mnist": dict(Densenet.DEFAULTS["mnist"], speed=3)}, "speed is set in a table but has no constant"),
    ("NETWORKS", {"densenet_mnist": dict(Densenet.NETWORKS["densenet_mnist"], growth_k=0)}, "growth_k must be"),
])
def test_a_bad_edit_is_one_sentence(monkeypatch, name, value, sentence):
    monkeypatch.setattr(Densenet, name, value)
    with pytest.raises(UserError, match=sentence):
        Densenet.choose()


def test_an_edited_constant_starts_its_own_run(monkeypatch):
    monkeypatch.setattr(Densenet, "growth_k", 24)
    assert Densenet.choose().run_name == "mnist-growth_k=24"
    monkeypatch.setattr(Densenet, "dataset", "digits")
    assert Densenet.choose().run_name == "digits-growth_k=24"


def tiny_config(tiny_mnist, **changes):
    return Densenet.choose(data_dir=tiny_mnist, **dict(TINY, **changes))


def test_batches_cover_the_training_images_once_and_repeat(tiny_mnist):
    config = tiny_config(tiny_mnist, augmentation=False)
    data, _ = Densenet.prepare_data(config)
    before = data.train.images.copy()
    batches = list(Densenet.training_batches(data, config, epoch=3, first_batch=0))
    assert len(batches) == 6 and all(images.shape == (50, 28, 28, 1) for images, _ in batches)
    seen = {image.tobytes() for images, _ in batches for image in images}
    assert len(seen) == 300
    for first, second in zip(batches[4:], Densenet.training_batches(data, config, 3, 4)):
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1], second[1])
    other = next(Densenet.training_batches(data, config, 4, 0))
    assert (other[0] != batches[0][0]).any()
    changed = {}
    for place in ((0, 3, 0), (0, 3, 1), (0, 4, 0), (1, 3, 0)):  # seed, epoch, batch
        images = [next(Densenet.training_batches(data, tiny_config(tiny_mnist, seed=place[0]), *place[1:]))[0]
                  for _ in range(2)]
        np.testing.assert_array_equal(images[0], images[1])
        changed[place] = images[0]
    assert (changed[0, 3, 0] != batches[0][0]).any()
    assert len({images.tobytes() for images in changed.values()}) == 4
    np.testing.assert_array_equal(data.train.images, before)


def test_evaluation_counts_every_image(tiny_mnist):
    results = []
    for batch_size in (45, 7, 44):  # of 45 test images: none, 4 and 43 of the last batch are padding
        config = tiny_config(tiny_mnist, batch_size=batch_size)
        data, _ = Densenet.prepare_data(config)
        with tf.Graph().as_default(), tf.Session() as sess:
            net = Densenet.build_graph(data, config)
            sess.run(net.initialize)
            evaluation = Densenet.Evaluate(sess, net.test, data.test, data)
            results.append((evaluation.loss, evaluation.accuracy))
    assert results[1] == pytest.approx(results[0], rel=1e-5) and results[2] == pytest.approx(results[0], rel=1e-5)


def weights_of(run, step):
    reader = tf.train.load_checkpoint(os.path.join(run, "dense.ckpt-%d" % step))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def assert_equal_weights(first, second):
    assert set(first) == set(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def curves(pattern):
    """{tag: {step: value}} of TensorBoard's files."""
    found = {}
    for path in sorted(glob.glob(pattern)):
        for event in tf.train.summary_iterator(path):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_a_run_writes_what_it_promises(tiny_mnist, folder, capsys, monkeypatch):
    losses = []
    take_in = Report.step

    def spied(self, step, loss, accuracy, rate, *others):
        losses.append(loss)
        take_in(self, step, loss, accuracy, rate, *others)

    monkeypatch.setattr(Report, "step", spied)
    result = Densenet.train(data_dir=tiny_mnist, run_name="tiny", **dict(TINY, total_epochs=10))
    with open("model/tiny/result.json") as file:
        assert json.load(file) == json.loads(json.dumps(result))
    assert {"dataset", "parameters", "epochs", "steps", "test_accuracy", "test_loss", "train_seconds",
            "images_per_second", "tensorflow", "hyperparameters", "checkpoint"} == set(result)
    assert (result["dataset"], result["epochs"], result["steps"]) == ("mnist", 10, 60)
    assert result["checkpoint"] == "dense.ckpt-60" and result["hyperparameters"]["growth_k"] == 4
    assert result["test_accuracy"] > 0.5  # it learns: chance is 0.1

    weights = weights_of("model/tiny", 60)
    assert {"dense_0/bottleN_0/conv1/kernel", "dense_0/bottleN_0/conv1/kernel/Adam", "global_step"} < set(weights)
    assert not [name for name in weights if "is_training" in name]
    steps = [value for name, value in weights.items() if name.endswith("local_step")]
    assert set(np.float32(steps).tolist()) == {60.0}  # batch normalization advanced once a step

    validation, train, test = (curves("logs/tiny/%s/*" % split) for split in ("validation", "train", "test"))
    assert sorted(validation["accuracy"]) == list(range(6, 61, 6))
    assert sorted(train["accuracy"]) == [50] and {"loss", "learning_rate", "images_per_second"} < set(train)
    assert train["loss"] == {50: pytest.approx(np.mean(losses[:50]))}  # the mean of all steps up to it, over epochs
    assert test["accuracy"] == {60: pytest.approx(result["test_accuracy"])}
    best = max(validation["accuracy"], key=lambda step: (validation["accuracy"][step], step))
    assert sorted(os.listdir("model/tiny/best")) == [
        "checkpoint", "dense.ckpt-%d.data-00000-of-00001" % best, "dense.ckpt-%d.index" % best]
    with open("model/tiny/checkpoint") as file:
        assert 'model_checkpoint_path: "dense.ckpt-60"' in file.read()
    assert len(glob.glob("model/tiny/dense.ckpt-*.index")) == 3

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("DenseNet on mnist: 300 training, 30 validation, 45 test images of 28x28x1")
    assert sum(line.startswith("epoch ") for line in lines) == 10 and lines[-1].startswith("test accuracy ")


def test_twice_in_one_process_a_finished_run_and_one_that_goes_on(tiny_mnist, folder, capsys):
    options = dict(TINY, data_dir=tiny_mnist)
    first = Densenet.train(**options)
    again = Densenet.train(run_name="other", **options)
    assert again["test_accuracy"] == first["test_accuracy"]
    (run,) = glob.glob("model/mnist-*")
    assert_equal_weights(weights_of(run, 12), weights_of("model/other", 12))

    capsys.readouterr()
    assert Densenet.train(**options)["test_accuracy"] == first["test_accuracy"]
    assert "is finished: 2 epochs" in capsys.readouterr().out

    longer = Densenet.train(**dict(options, total_epochs=3))
    output = capsys.readouterr().out
    assert "resuming after step 12, epoch 2.0 of 3" in output and "total_epochs was 2 and is now 3" in output
    assert (longer["epochs"], longer["steps"]) == (3, 18)
    with open(os.path.join(run, "result-1.json")) as file:
        assert json.load(file)["epochs"] == 2


def test_without_a_validation_split(tiny_mnist, folder):
    result = Densenet.train(data_dir=tiny_mnist, run_name="all", **dict(TINY, validation_size=0))
    assert result["steps"] == 12 and not os.path.exists("model/all/best")


def test_ctrl_c_before_the_first_step(folder, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(mnist_loader, "fetch_all", interrupted)
    assert Densenet.main([]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_cifar10_end_to_end(tmp_path, folder, monkeypatch):
    """Trains, resumes, and keeps the training set's statistics with the weights."""
    layout = test_cifar10.SMALL["CIFAR10"]
    monkeypatch.setattr(cifar10, "CIFAR10", layout)
    test_cifar10.write_folder(tmp_path, layout)
    options = dict(dataset="cifar10", data_dir=str(tmp_path), run_name="mine", validation_size=5, batch_size=7,
                   blocks=(1, 1), growth_k=4, stem_channels=8)
    Densenet.train(total_epochs=1, **options)
    assert Densenet.train(total_epochs=2, **options)["steps"] == 8
    weights = weights_of("model/mine", 8)
    data = cifar10.prepare_data(str(tmp_path), 5)
    np.testing.assert_array_equal(weights["normalization/mean"], data.mean)
    np.testing.assert_array_equal(weights["normalization/deviation"], data.deviation)
    assert weights["conv0/kernel"].shape == (3, 3, 3, 8)


@contextlib.contextmanager
def before_the_first_step(tiny_mnist, **changes):
    """Yields the session of a new run, by one device, its tensors, and the images and labels of its first batch."""
    config = tiny_config(tiny_mnist, **dict(dict(devices=1), **changes))
    data, _ = Densenet.prepare_data(config)
    cluster = Cluster(config.batch_size, config.devices, config.sync_batch_norm)
    with tf.Graph().as_default(), tf.Session(config=Densenet.session_config(cluster, config.precision)) as sess:
        net = Densenet.build_graph(data, config, cluster)
        sess.run(net.initialize)
        images, labels = next(Densenet.training_batches(data, config, 0, 0))
        yield sess, net, images, labels


def test_a_step_takes_no_gradient_of_the_images(tiny_mnist):
    with before_the_first_step(tiny_mnist) as (sess, net, images, labels):
        run = tf.RunMetadata()
        sess.run(net.train, {net.images: images, net.labels: labels, net.rate: 1e-3},
                 tf.RunOptions(trace_level=tf.RunOptions.FULL_TRACE), run)
        names = [node.node_name for device in run.step_stats.dev_stats for node in device.node_stats]
    of_the_stem = {name.rpartition("/")[2] for name in names if "gradients" in name and "/conv0/" in name}
    assert "Conv2DBackpropFilter" in of_the_stem and "Conv2DBackpropInput" not in of_the_stem


@pytest.mark.parametrize("precision,tolerance", [("bfloat16", 0.02), ("float16", 0.002)])
def test_half_precision_is_near_float32_and_keeps_float32_weights(precision, tolerance, tiny_mnist):
    costs = {}
    for each in ("float32", precision):
        with before_the_first_step(tiny_mnist, precision=each) as (sess, net, images, labels):
            for variable in tf.global_variables():
                assert variable.dtype.base_dtype not in (tf.bfloat16, tf.float16)
                if variable.op.name == "current_loss_scale":  # from 2 ** 15 on, some steps may be skipped first
                    sess.run(variable.assign(1024.0))
            feed = {net.images: images, net.labels: labels, net.rate: 1e-3}
            costs[each] = [sess.run([net.train, net.cost], feed)[1] for _ in range(3)]
            products = [op for op in sess.graph.get_operations() if op.type == "Conv2D"]
            assert products and {op.outputs[0].dtype.name for op in products} == {each}
    np.testing.assert_allclose(costs[precision], costs["float32"], rtol=tolerance)
    assert costs[precision] != costs["float32"]


@pytest.mark.parametrize("optimizer,weight_decay,devices", [("momentum", 0.0, 2), ("adam", 0.25, 1)])
def test_the_loss_of_float16_is_scaled(optimizer, weight_decay, devices, tiny_mnist):
    """Scaled too far, no weight changes, the scale halves, and the step counts. Else the step is that of float32.

    Adam's with an epsilon that leaves steps nearly linear in the gradients, so that small errors stay small.
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


@pytest.mark.parametrize("optimizer,factor", [("momentum", 1 + 0.9), ("adam", 1)])
def test_weight_decay_by_numpy(tiny_mnist, optimizer, factor):
    """Nesterov's first step: rate · (1 + 0.9) · (gradient + decay · weight). Adam's: rate · decay · weight more."""
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


def test_weight_decay_adds_dependencies_in_proportion_to_variables(tiny_mnist):
    """Not by their square, which took 240 MB of a memory-efficient DenseNet-BC-100."""
    waits = {}
    for decay in (0.0, 0.25):
        with before_the_first_step(tiny_mnist, weight_decay=decay) as (sess, _, _, _):
            waits[decay] = sum(len(operation.control_inputs) for operation in sess.graph.get_operations())
            variables = len(tf.trainable_variables())
    assert variables > 10
    assert waits[0.25] - waits[0.0] <= 6 * variables


def logits_in(graph):
    """The logits that losses are taken of: of training, of validation, of the test if it averages."""
    return [operation.inputs[0] for operation in graph.get_operations()
            if operation.type == "SparseSoftmaxCrossEntropyWithLogits"]


def test_label_smoothing_by_numpy(tiny_mnist):
    """The cross entropy with a distribution that has 1 - s + s / 10 for the label, s / 10 for every other class."""
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


def moved(images, down, right):
    """The images [N, H, W, C] shifted by so many pixels; zeros come in."""
    images = np.roll(images, (down, right), (1, 2))
    images[:, :down if down > 0 else 0] = images[:, down if down < 0 else images.shape[1]:] = 0
    images[:, :, :right if right > 0 else 0] = images[:, :, right if right < 0 else images.shape[2]:] = 0
    return images


@pytest.mark.parametrize("flip_average,shift_average", [(True, 0), (False, 1), (True, 2)])
def test_averages_by_numpy(flip_average, shift_average, tiny_mnist):
    """The test is of the mean logits of an image's variants; training and validation are of the image alone."""
    with before_the_first_step(tiny_mnist) as (sess, net, images, labels):
        training = sess.run(net.cost, {net.images: images, net.labels: labels})
    with before_the_first_step(tiny_mnist, flip_average=flip_average, shift_average=shift_average) as (
            sess, net, images, labels):
        assert sess.run(net.cost, {net.images: images, net.labels: labels}) == training
        _, plain, averaged = logits_in(sess.graph)
        if shift_average:
            variants = [moved(images, down, right)[:, :, ::-1 if flip_average and right < 0 else 1]
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


def test_another_run_in_the_directory_is_refused(tiny_mnist, folder):
    options = dict(TINY, data_dir=tiny_mnist, run_name="mine", total_epochs=1)
    Densenet.train(**options)
    before = weights_of("model/mine", 6)
    for change in (dict(growth_k=5), dict(seed=7), dict(validation_size=29)):
        with pytest.raises(UserError, match="other settings .*%s was" % list(change)[0]):
            Densenet.train(**dict(options, **change))
    other = os.path.join(folder, "other data")
    shutil.copytree(tiny_mnist, other)
    for train in glob.glob(os.path.join(other, "mnist", "train-*")):
        shutil.copy(train.replace(other, tiny_mnist).replace("train", "t10k"), train)
    with pytest.raises(UserError, match="other settings .*data was"):
        Densenet.train(**dict(options, data_dir=other, validation_size=5, batch_size=5))
    assert_equal_weights(before, weights_of("model/mine", 6))


def test_a_loss_that_is_no_number_stops_the_run(tiny_mnist, folder, monkeypatch):
    monkeypatch.setattr(Densenet, "learning_rate", lambda step, *_: 1e-3 if step < 8 else math.inf)
    with pytest.raises(UserError, match=r"the loss is nan at step 10, epoch 2, learning rate inf"):
        Densenet.train(data_dir=tiny_mnist, run_name="mine", **TINY)
    assert [os.path.basename(path) for path in glob.glob("model/mine/*.index")] == ["dense.ckpt-6.index"]
    assert all(np.isfinite(value).all() for value in weights_of("model/mine", 6).values())


def test_a_checkpoint_that_cannot_be_saved_is_one_sentence(tiny_mnist, folder, monkeypatch):
    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    options = dict(TINY, data_dir=tiny_mnist, run_name="mine")
    Densenet.train(**dict(options, total_epochs=1))
    with monkeypatch.context() as patched:
        patched.setattr(tf.train.Saver, "save", full)
        with pytest.raises(UserError, match="cannot save a checkpoint in .*No space left on device"):
            Densenet.train(**options)
    assert Densenet.train(**options)["steps"] == 12


@pytest.mark.parametrize("arguments,sentence", [
    (["growthk=24"], "there is no setting 'growthk': the nearest are growth_k"),
    (["batch_size=0"], "batch_size must be an integer from 1"),
    (["growth_k=abc"], "growth_k=abc: growth_k must be an integer"),
    (["growth_k=1000000"], "growth_k must be"),
    (["dropout_rate=1.5"], "dropout_rate must be a number from 0 to 0.95"),
    (["network=densenet"], "network must be one of densenet_mnist"),
    (["batch_size=301"], "batch_size=301 is more than the 300 training images"),
    (["blocks=1,1,1,1,1,1", "stem=3x3s2"], "the 28x28 images shrink to 0 at trans_3"),
    (["data_dir=nowhere"], "MNIST is neither in nowhere"),
    (["data_dir=file"], "file cannot be read as a folder"),
    (["model_dir=file"], "set model_dir to a folder that can be written"),
    (["log_dir=file"], "set log_dir to a folder that can be written"),
])
def test_bad_input_is_one_sentence(tiny_mnist, folder, capsys, monkeypatch, arguments, sentence):
    monkeypatch.setattr(mnist_loader, "fetch_all", offline)
    with open("file", "w") as file:
        file.write("no folder")
    before = sorted(os.listdir("."))
    defaults = ["data_dir=" + tiny_mnist, "validation_size=30", "blocks=1,1", "growth_k=4", "batch_size=50"]
    assert Densenet.main(defaults + arguments) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and error.startswith("Densenet.py: ")
    left = set(os.listdir(".")) - set(before)
    assert left <= {"model"} and not glob.glob("model/*/dense.ckpt*")


def offline(*_):
    raise download.Unavailable("no network")


def test_digits_stand_in_for_mnist_in_the_plain_command_alone(folder, capsys, monkeypatch):
    monkeypatch.setattr(mnist_loader, "fetch_all", offline)
    monkeypatch.setattr(Densenet, "total_epochs", 1)
    assert Densenet.main([]) == 0
    output = capsys.readouterr().out
    assert "put train-images-idx3-ubyte.gz" in output and os.path.join("data", "mnist") in output
    assert "DenseNet on digits" in output and os.listdir("model") == ["digits"]
    for arguments in (["dataset=mnist"], ["data_dir=elsewhere"], ["digits_stand_in=False"]):
        assert Densenet.main(arguments) == 1
        assert "MNIST is neither in" in capsys.readouterr().err


def program(arguments, **options):
    return subprocess.Popen([sys.executable, "-W", "ignore", PROGRAM] + arguments, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, universal_newlines=True, **options)


def arguments_for(tiny_mnist, name, **changes):
    options = dict(TINY, data_dir=tiny_mnist, run_name=name, dropout_rate=0.2, **changes)
    return ["%s=%s" % (key, Densenet.settings.shown(value)) for key, value in options.items()]


def wait_for(condition, process):
    """Waits until the condition holds; fails if the process ends before, or hangs."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.001)


def read(path):
    with open(path) as file:
        return json.load(file)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_a_second_process_is_refused(tiny_mnist, folder, number):
    command = arguments_for(tiny_mnist, "mine", total_epochs=1000)
    process = program(command)
    wait_for(lambda: glob.glob("model/mine/dense.ckpt-*.index"), process)
    try:
        with pytest.raises(UserError, match="is being trained by process %d" % process.pid):
            Densenet.train(command)
    finally:
        process.send_signal(number)
        _, error = process.communicate()
    assert process.returncode == 128 + number
    assert "stopped and saved at step" in error and "Traceback" not in error
    step = int(error.partition("stopped and saved at step ")[2].split()[0])
    assert weights_of("model/mine", step)["global_step"] == step


def test_nobody_reads_the_output(tiny_mnist, folder):
    process = program(arguments_for(tiny_mnist, "unread"))
    assert process.stdout.readline().startswith("DenseNet on mnist")
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 0 and "Error" not in error, error
    assert read("model/unread/result.json")["steps"] == 12


def test_the_help_names_every_hyperparameter(capsys):
    assert Densenet.main(["--help", "dataset=digits", "growth_k=7"]) == 0
    output = capsys.readouterr().out
    for name in Densenet.settings.declared(Densenet):
        assert "  %s=" % name in output
    assert "  batch_size=50\n" in output and "  growth_k=7\n" in output
