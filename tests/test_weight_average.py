"""Averages of the weights, compared with NumPy, and who uses them."""

import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import TINY, assert_equal_weights, before_the_first_step, trained_parts, weights_of

import Densenet
from support.checkpoints import Checkpoints
from support.weight_average import SUFFIX, advance_averages, averages_used


def test_averages_follow_the_formula():
    with tf.Graph().as_default(), tf.Session() as sess:
        step = tf.train.get_or_create_global_step()
        weight = tf.get_variable("weight", initializer=np.float32([3, -1]), use_resource=True)
        with tf.control_dependencies([weight.assign_add([0.5, 2.0])]):
            train = step.assign_add(1)
        train = advance_averages(train.op, [weight], 0.6)
        with averages_used(), tf.variable_scope(tf.get_variable_scope(), reuse=True):
            average = tf.get_variable("weight")
        sess.run(tf.global_variables_initializer())
        value = expected = np.float64([3, -1])
        np.testing.assert_array_equal(sess.run(average), expected)
        for number in range(1, 30):
            sess.run(train)
            value = value + [0.5, 2.0]
            decay = min(0.6, (number - 1) / (number + 9))
            expected = decay * expected + (1 - decay) * value
            np.testing.assert_allclose(sess.run(average), expected, rtol=1e-5)


def test_validation_uses_the_averages_of_all_that_inference_reads(tiny_mnist):
    """The same images and averages, put into a network without averages, give the same loss."""
    with before_the_first_step(tiny_mnist, ema_decay=0.9) as (sess, net, images, labels):
        for _ in range(4):
            sess.run(net.train, {net.images: images, net.labels: labels, net.rate: 0.02})
        feed = {net.images: images, net.labels: labels}
        losses = sess.run(net.validation.losses, feed)
        values = sess.run({variable.op.name: variable for variable in tf.global_variables()})
    averages = {name[:-len(SUFFIX)]: value for name, value in values.items() if name.endswith(SUFFIX)}
    read = {name for name in values if name.split("/")[-1] in ("kernel", "bias", "gamma", "beta", "moving_mean",
                                                               "moving_variance")}
    assert set(averages) == read
    with before_the_first_step(tiny_mnist) as (sess, net, _, _):
        feed = {net.images: images, net.labels: labels}
        for variable in tf.global_variables():
            if variable.op.name in values:
                variable.load(values[variable.op.name], sess)
        assert np.abs(sess.run(net.validation.losses, feed) - losses).max() > 1e-3
        for variable in tf.global_variables():
            if variable.op.name in averages:
                variable.load(averages[variable.op.name], sess)
        np.testing.assert_allclose(sess.run(net.validation.losses, feed), losses, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def averaged(tiny_mnist, tmp_path_factory):
    """A run with averages: {setting: value} by which it is found, and its result."""
    folder = str(tmp_path_factory.mktemp("averaged"))
    run = dict(TINY, data_dir=tiny_mnist, model_dir=folder, log_dir=folder + "/logs", run_name="a", ema_decay=0.9,
               devices=1, precision="float32")
    return run, Densenet.train(**run)


def test_evaluate_and_weights_read_the_averages(averaged, tmp_path):
    run, result = averaged
    evaluation = Densenet.evaluate(**run)
    assert evaluation["loss"] == pytest.approx(result["test_loss"], rel=1e-5)
    assert evaluation["accuracy"] == result["test_accuracy"]
    start = Densenet.choose(**dict(run, run_name="b", weights="a")).starting_point.read("")
    saved = weights_of(os.path.join(run["model_dir"], "a", "best"), int(evaluation["checkpoint"].split("-")[-1]))
    np.testing.assert_array_equal(start.values["conv0/kernel"], saved["conv0/kernel" + SUFFIX])
    assert (saved["conv0/kernel"] != saved["conv0/kernel" + SUFFIX]).any()


@pytest.mark.campaign
def test_a_run_with_averages_resumes_exactly(averaged, tmp_path):
    run, result = averaged
    other = dict(run, model_dir=str(tmp_path), log_dir=str(tmp_path / "logs"))
    Densenet.train(**dict(other, total_epochs=1, schedule="constant", warmup=0))
    Densenet.train(**dict(other, total_epochs=2, schedule="constant", warmup=0))
    whole = dict(other, run_name="whole", total_epochs=2, schedule="constant", warmup=0)
    Densenet.train(**whole)
    assert_equal_weights(weights_of(os.path.join(str(tmp_path), "a"), result["steps"]),
                         weights_of(os.path.join(str(tmp_path), "whole"), result["steps"]))


def test_training_from_weights_begins_with_averages_of_these(averaged, tmp_path):
    run, _ = averaged
    config = Densenet.choose(**dict(run, model_dir=run["model_dir"], run_name="b", weights="a"))
    data, config = Densenet.prepare_data(config)
    with tf.Graph().as_default(), Densenet.TrainingRun(config, data) as training:
        with tf.device(training.cluster.place):
            net = Densenet.build_graph(data, config, training.cluster)
        with training.session(net) as sess:
            values = sess.run({variable.op.name: variable for variable in tf.global_variables()})
    for name in [name for name in values if name.endswith(SUFFIX)]:
        np.testing.assert_array_equal(values[name], values[name[:-len(SUFFIX)]], err_msg=name)


def test_a_network_without_averages_reads_those_of_a_checkpoint(averaged):
    run, result = averaged
    config, directory, facts = trained_parts(**run)
    with tf.Graph().as_default(), tf.Session() as sess:
        images = tf.placeholder(tf.float32, [None] + facts["image_shape"])
        Densenet.inference(images, config, len(facts["class_names"]))
        tf.train.get_or_create_global_step()
        path = Checkpoints(directory).restore_for_use(sess)
        found = sess.run({variable.op.name: variable for variable in tf.global_variables()})
    saved = tf.train.load_checkpoint(path)
    averages = [name for name in found if saved.has_tensor(name + SUFFIX)]
    assert len(averages) > 20
    for name in averages:
        np.testing.assert_array_equal(found[name], saved.get_tensor(name + SUFFIX), err_msg=name)
