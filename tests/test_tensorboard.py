"""The TensorBoard logs of a run, read from the event files."""

import io
import json

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import arguments_for, assert_equal_weights, weights_of
from PIL import Image
from tensorboard.plugins.hparams import plugin_data_pb2

import Densenet
from support import UserError
from support.training_run import HISTOGRAMS, histograms_are_due


def values(folder, tag):
    """Returns [(step, tf.Summary.Value)] of a tag."""
    found = []
    for name in sorted(tf.gfile.ListDirectory(folder)):
        if name.startswith("events"):
            for event in tf.train.summary_iterator("%s/%s" % (folder, name)):
                found += [(event.step, value) for value in event.summary.value if value.tag == tag]
    return found


@pytest.fixture(scope="module")
def logs(tiny_mnist, tmp_path_factory):
    """The log folder and the checkpoint folder of a run of two epochs of six steps; the fifth step is traced."""
    folder = tmp_path_factory.mktemp("report")
    Densenet.train(arguments_for(tiny_mnist, "mine", trace_step=5, log_dir=str(folder / "logs"),
                                 model_dir=str(folder / "model")))
    return str(folder / "logs" / "mine"), str(folder / "model" / "mine")


def test_pictures_come_with_each_evaluation(logs):
    for split, steps in (("validation", [6, 12]), ("test", [12])):
        for tag in ("confusion_matrix", "most_confident_mistakes"):
            found = values("%s/%s" % (logs[0], split), tag)
            assert [step for step, _ in found] == steps
            for _, value in found:
                image = Image.open(io.BytesIO(value.image.encoded_image_string))
                assert image.size == (value.image.width, value.image.height) and len(set(image.getdata())) > 2


def test_hyperparameters_are_logged_as_text_and_for_the_hparams_tab(logs):
    ((_, value),) = values(logs[0], "hyperparameters")
    text = tf.make_ndarray(value.tensor).item().decode()
    assert value.metadata.plugin_data.plugin_name == "text" and "| growth_k | 4 |" in text
    assert "| blocks | 1,2 |" in text and "| total_epochs | 2 |" in text
    ((_, start),) = values(logs[0], "_hparams_/session_start_info")
    content = plugin_data_pb2.HParamsPluginData.FromString(start.metadata.plugin_data.content)
    hparams = content.session_start_info.hparams
    assert hparams["growth_k"].number_value == 4 and hparams["blocks"].string_value == "1,2"
    assert hparams["dropout_rate"].number_value == 0.2
    assert hparams["bottleneck"].bool_value or hparams["bottleneck"].number_value == 1  # a number in TensorBoard 1.15
    assert len(values(logs[0], "_hparams_/session_end_info")) == 1


def test_histograms_show_weights_scales_and_gradients(logs):
    kernel = "dense_0/bottleN_0/conv2/kernel"
    found = values(logs[0] + "/train", "weights/" + kernel)
    assert [step for step, _ in found] == [6, 12]
    weights = weights_of(logs[1], 12)
    before = weights_of(logs[1], 6)
    for name, tag in ((kernel, "weights/"), ("dense_0/bottleN_0/batch1/gamma", "scales/")):
        (_, first), (_, second) = values(logs[0] + "/train", tag + name)
        assert first.histo.num == weights[name].size
        for histogram, saved in ((first.histo, before), (second.histo, weights)):  # taken while the step updated them
            assert histogram.sum_squares == pytest.approx(np.square(saved[name]).sum(dtype=np.float64), rel=0.1)
        assert first.histo.sum != second.histo.sum
    gradient = values(logs[0] + "/train", "gradients/" + kernel)[0][1].histo
    assert 0 < gradient.sum_squares < 0.1 * np.square(before[kernel]).sum()


def test_a_long_run_has_a_limited_number_of_histograms():
    wanted = [epoch for epoch in range(1, 301) if histograms_are_due(epoch, 300)]
    assert len(wanted) == HISTOGRAMS and wanted[0] == 15 and wanted[-1] == 300
    assert [histograms_are_due(epoch, 3) for epoch in (1, 2, 3)] == [True] * 3


def test_nan_gradients_get_the_error_message_of_the_loss(tiny_mnist, folder):
    """A histogram of NaN gradients must not raise its own error."""
    with pytest.raises(UserError, match="lower init_learning_rate or raise epsilon"):
        Densenet.train(arguments_for(tiny_mnist, "mine", optimizer="momentum", init_learning_rate=100.0)
                       + ["batch_size=300", "total_epochs=20"])


def test_a_traced_step_shows_its_operations(logs):
    with open(logs[0] + "/trace-step-5.json") as file:
        names = {event.get("args", {}).get("name", "") for event in json.load(file)["traceEvents"]}
    assert any(name.startswith("dense_0/bottleN_0/conv2") for name in names)
    tags = [(event.step, event.tagged_run_metadata.tag)
            for name in tf.gfile.ListDirectory(logs[0] + "/train")
            for event in tf.train.summary_iterator("%s/train/%s" % (logs[0], name))
            if event.HasField("tagged_run_metadata")]
    assert tags == [(5, "step 5")]


def test_tracing_changes_nothing(tiny_mnist, logs, folder):
    Densenet.train(arguments_for(tiny_mnist, "plain"))
    assert_equal_weights(weights_of(logs[1], 12), weights_of("model/plain", 12))
