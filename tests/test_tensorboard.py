"""The TensorBoard logs of a run, read from the event files."""

import csv
import dataclasses
import io
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import arguments_for, assert_equal_weights, curves, weights_of
from PIL import Image
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorflow.python.framework.function import Defun
from test_evaluation import FOUND, NAMES

import Densenet
from support import UserError, tensorboard
from support.tensorboard import RunLogs, drawn_graph, drawn_names, log_evaluation
from support.training_run import HISTOGRAMS, histograms_are_due


def events(folder):
    """Returns the events in TensorBoard's files in a folder, without its sub-folders."""
    return [event for name in sorted(tf.gfile.ListDirectory(folder)) if name.startswith("events")
            for event in tf.train.summary_iterator("%s/%s" % (folder, name))]


def values(folder, tag):
    """Returns [(step, tf.Summary.Value)] of a tag."""
    return [(event.step, value) for event in events(folder) for value in event.summary.value if value.tag == tag]


@pytest.fixture(scope="module")
def logs(tiny_mnist, tmp_path_factory):
    """The log folder and the checkpoint folder of a run of two epochs of six steps; the fifth step is traced."""
    folder = tmp_path_factory.mktemp("report")
    Densenet.train(arguments_for(tiny_mnist, "mine", trace_step=5, log_dir=str(folder / "logs"),
                                 model_dir=str(folder / "model")))
    return str(folder / "logs" / "mine"), str(folder / "model" / "mine")


def entries(log_dir):
    """The folders that TensorBoard lists as runs: those with event files; {path below log_dir: its events}."""
    return {os.path.relpath(folder, log_dir): events(folder) for folder, _, names in os.walk(log_dir)
            if any("tfevents" in name for name in names)}


def test_a_run_has_three_entries_and_each_has_scalars(logs):
    found = entries(os.path.dirname(logs[0]))
    assert set(found) == {"mine", "mine/train", "mine/validation"}
    scalars = {entry: {value.tag for event in its_events for value in event.summary.value
                       if value.WhichOneof("value") == "simple_value"} for entry, its_events in found.items()}
    assert scalars["mine"] == scalars["mine/validation"] == {"loss", "accuracy", "balanced_accuracy"}
    assert scalars["mine/train"] == {"loss", "accuracy", "learning_rate", "images_per_second"}
    assert any(event.graph_def for event in found["mine/train"])
    with open(os.path.join(logs[1], "curves.csv"), newline="") as file:  # an epoch is shorter than a point's 50 steps
        expected = [(int(row["step"]), float(row["train_loss"])) for row in csv.DictReader(file)]
    points = [(step, value.simple_value) for step, value in values(logs[0] + "/train", "loss")]
    assert [step for step, _ in points] == [6, 12]
    np.testing.assert_allclose(points, expected, rtol=1e-4)


@pytest.mark.once
def test_the_curve_of_tests_in_every_epoch_has_one_point_for_each(tiny_mnist, folder):
    """The test at the end, of the best weights, is another entry."""
    result = Densenet.train(arguments_for(tiny_mnist, "mine", test_every_epoch=True, init_learning_rate=0.3,
                                          schedule="constant", total_epochs=3))
    with open("model/mine/curves.csv", newline="") as file:
        expected = [(int(row["step"]), float(row["test_loss"])) for row in csv.DictReader(file)]
    np.testing.assert_allclose([(step, value.simple_value) for step, value in values("logs/mine/test", "loss")],
                               expected, rtol=1e-4)
    ((step, value),) = values("logs/mine", "loss")
    assert step == 18 and value.simple_value == pytest.approx(result["test_loss"])


def logged(log_dir, split_of_steps, graph=None, begin=0):
    """Logs an Evaluation of each (step, split), as a run of two hyperparameters does."""
    run = RunLogs(log_dir, "run", "model/run")
    run.open(begin, graph or tf.Graph(), {"growth_k": 4, "flip": True})
    for step, split in split_of_steps:
        run.evaluation(split, step, FOUND, np.zeros((5, 4, 4, 1), np.uint8), NAMES, weights_of=step)
    run.close()
    assert run.problem is None


def test_top_5_accuracy_is_a_curve_where_it_is_counted(folder):
    run = RunLogs("logs", "run", "model/run")
    run.open(0, tf.Graph(), {})
    run.evaluation("test", 6, dataclasses.replace(FOUND, in_top_5=9), np.zeros((5, 4, 4, 1), np.uint8), NAMES,
                   weights_of=6)
    run.close()
    found = curves("logs/run/ev*")
    assert found["top_5_accuracy"] == {6: 0.75} and found["balanced_accuracy"] == {6: 0.75}


def test_the_logs_of_another_run_are_not_taken_over(folder):
    """Runs in two folders of runs may have one name."""
    for name in ("first", "second"):
        os.makedirs(name + "/run")
        with open(name + "/run/settings.json", "w"):
            pass

    def opened(log_dir, directory):
        run = RunLogs(log_dir, "run", directory)
        try:
            run.open(0, tf.Graph(), {})
        finally:
            run.close()

    opened("logs", "first/run")
    for _ in range(2):
        with pytest.raises(UserError, match="^logs/run/ holds the logs of the run .*first/run: set log_dir or"):
            opened("logs", "second/run")
        with pytest.raises(UserError, match="holds the logs of the run .*first/run"):
            log_evaluation("logs", "run", "second/run", 4, FOUND, np.zeros((5, 4, 4, 1), np.uint8), NAMES)
    opened("logs", "first/run")
    shutil.copytree("logs", "copies")
    opened("copies", "second/run")
    os.rename("first", "moved")
    opened("logs", "moved/run")
    os.makedirs("disk")
    os.rename("moved/run", "disk/run")
    os.symlink("../disk/run", "moved/run")
    opened("logs", "moved/run")


def test_without_validation_there_is_no_empty_entry(folder):
    logged("logs", [(6, "test")])
    assert set(entries("logs")) == {"run", "run/train"}
    logged("logs", [(12, "validation")], begin=6)
    assert set(entries("logs")) == {"run", "run/train", "run/validation"}


def test_what_a_killed_process_logged_after_the_checkpoint_is_marked_as_void(folder):
    """TensorBoard forgets what comes at or after the step of an event START, in the same folder."""
    logged("logs", [(6, "test"), (6, "validation"), (12, "test"), (12, "validation")])
    logged("logs", [], begin=6)
    for entry in entries("logs").values():
        assert [event.step for event in entry if event.session_log.status == tf.SessionLog.START] == [1, 7]


def test_a_test_that_is_repeated_replaces_the_one_before(folder):
    logged("logs", [(6, "validation"), (6, "test")])
    run = RunLogs("logs", "run", "model/run")
    run.open(6, tf.Graph(), {}, tested=True)
    run.close()
    starts = {entry: [event.step for event in its_events if event.session_log.status == tf.SessionLog.START]
              for entry, its_events in entries("logs").items()}
    assert starts == {"run": [1, 6], "run/train": [1, 7], "run/validation": [1, 7]}


def test_files_are_read_in_the_order_in_which_they_were_written(folder, monkeypatch):
    """TensorBoard reads them by their names, and the clock may be put back."""
    for step, seconds in ((6, 7200), (12, 0), (18, 3600)):
        monkeypatch.setattr(tensorboard.time, "time", lambda seconds=seconds: 1700000000.5 + seconds)
        logged("logs", [(step, "test")], begin=step - 6)
    assert [step for step, _ in values("logs/run", "loss")] == [6, 12, 18]


def test_a_later_evaluation_is_shown_where_the_test_of_training_is(folder):
    logged("logs", [(6, "test")])
    log_evaluation("logs", "run", "model/run", 4, FOUND, np.zeros((5, 4, 4, 1), np.uint8), NAMES,
                   {"dense_final": np.eye(2)})
    assert set(entries("logs")) == {"run", "run/train"}
    assert sorted(step for step, _ in values("logs/run", "confusion_matrix")) == [4, 6]
    assert [step for step, _ in values("logs/run", "feature_reuse/dense_final")] == [4]


def test_the_test_of_an_earlier_version_stays_readable(folder):
    os.makedirs("logs/run/test")
    with tf.io.TFRecordWriter("logs/run/test/events.out.tfevents.1.host.1") as file:
        file.write(tf.Event(step=3, summary=tf.Summary(value=[
            tf.Summary.Value(tag="accuracy", simple_value=0.5)])).SerializeToString())
    logged("logs", [(6, "test")], begin=3)
    assert curves("logs/run/test/*") == {"accuracy": {3: 0.5}} and curves("logs/run/ev*")["accuracy"] == {6: 0.75}


def test_pictures_come_with_each_evaluation(logs):
    reuse = ["feature_reuse/dense_0", "feature_reuse/dense_final"]
    for folder, steps, more in (("validation", [6, 12], []), (".", [12], reuse)):
        for tag in ["confusion_matrix", "most_confident_mistakes"] + more:
            found = values("%s/%s" % (logs[0], folder), tag)
            assert [step for step, _ in found] == steps
            for _, value in found:
                image = Image.open(io.BytesIO(value.image.encoded_image_string))
                assert image.size == (value.image.width, value.image.height) and len(set(image.getdata())) > 2


def test_pictures_and_embedding_are_at_the_step_of_the_tested_weights(tiny_mnist, folder, monkeypatch):
    """The curves end with the last step."""
    scores = iter([0.9, 0.1])
    monkeypatch.setattr("support.evaluation.Evaluation.score", lambda self, best_by: next(scores, 0.0))
    result = Densenet.train(arguments_for(tiny_mnist, "mine"))
    assert result["checkpoint"] == "best/dense.ckpt-6" and result["steps"] == 12
    assert list(curves("logs/mine/ev*")["accuracy"]) == [12]
    for tag in ("confusion_matrix", "feature_reuse/dense_final"):
        assert [step for step, _ in values("logs/mine", tag)] == [6]
    with open("logs/mine/projector_config.pbtxt") as file:
        assert "45 test images, step 6" in file.read()


def test_the_embedding_of_the_test_images_is_written_for_the_projector(logs):
    with open(logs[0] + "/projector_config.pbtxt") as file:
        assert "projector/embedding-12.tsv" in file.read()
    vectors = np.loadtxt(logs[0] + "/projector/embedding-12.tsv")
    weights = weights_of(logs[1], 12)
    assert vectors.shape == (45, len(weights["linear/kernel"])) and (vectors >= 0).all()
    with open(logs[0] + "/projector/images-12.tsv") as file:
        lines = [line.split("\t") for line in file.read().split("\n")]
    predicted = [int(name) for _, name, _, _ in lines[1:]]
    with open(os.path.join(logs[1], "result.json")) as file:
        accuracy = json.load(file)["test_accuracy"]
    assert np.mean([result == "right" for _, _, result, _ in lines[1:]]) == pytest.approx(accuracy)
    assert len(predicted) == 45


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


def test_the_hparams_tab_gets_the_test_accuracy_first_and_few_hyperparameters_before_it(logs):
    """The tab shows five hyperparameters, those declared first or as differing, and then five metrics."""
    ((_, value),) = values(logs[0], "_hparams_/experiment")
    experiment = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content).experiment
    assert [info.display_name for info in experiment.metric_infos] == [
        "test accuracy", "test loss", "validation accuracy", "balanced test accuracy"]
    names = [info.name for info in experiment.hparam_infos]
    main = ["blocks", "growth_k", "init_learning_rate", "batch_size", "total_epochs"]
    assert names[:5] == main and set(names) >= {"dropout_rate", "seed"} and len(set(names)) == len(names)
    if hasattr(experiment.hparam_infos[0], "differs"):
        assert {info.name for info in experiment.hparam_infos if info.differs} == set(main)
    ((_, start),) = values(logs[0], "_hparams_/session_start_info")
    content = plugin_data_pb2.HParamsPluginData.FromString(start.metadata.plugin_data.content)
    assert set(content.session_start_info.hparams) == set(names)
    for info in experiment.metric_infos:  # a metric is a scalar in a folder below that of the hyperparameters
        assert values(os.path.join(logs[0], info.name.group), info.name.tag)


def replicas():
    """A graph of two replicas: a layer, a cross entropy and gradients in each, on shared variables."""
    def build(index):
        with tf.variable_scope("dense_0", reuse=index > 0):
            kernel = tf.get_variable("kernel", [3, 5])
            with tf.control_dependencies([tf.no_op("first")]):
                x = tf.matmul(images, kernel, name="product")
        x = tf.split(tf.nn.relu(x, "relu"), [2, 3], 1, name="parts")[1]
        with tf.name_scope("loss"):
            tf.gradients(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=x), [kernel])

    with tf.Graph().as_default() as graph:
        images, labels = tf.placeholder(tf.float32, [4, 3], "images"), tf.placeholder(tf.int64, [4], "labels")
        for index in range(2):
            with tf.name_scope("replica_%d" % index):
                build(index)
    return graph


def test_the_graph_is_one_replica_without_its_name_up_to_the_loss():
    graph = replicas()
    names = drawn_names(graph)
    drawn = drawn_graph(graph, names)
    top = {node.name.partition("/")[0] for node in drawn.node}
    assert top - {"Const"} == {"images", "labels", "dense_0", "relu", "parts", "loss"}
    assert names["replica_0/dense_0/product"] == "dense_0/product" and names["images"] == "images"
    assert {"dense_0/kernel", "dense_0/product", "dense_0/first"} <= {node.name for node in drawn.node}
    with tf.Graph().as_default() as again:  # complete, and connected as the original is
        tf.import_graph_def(drawn, name="")
    loss = next(operation for operation in again.get_operations() if operation.type.startswith("SparseSoftmax"))
    assert loss.inputs[0].name == "parts:1" and loss.inputs[0].op.inputs[0].op.name == "relu"
    followers = [operation.name for operation in again.get_operations()
                 if "dense_0/first" in [source.name for source in operation.control_inputs]]
    assert followers and all(name.startswith("dense_0/") for name in followers)  # the product, or its kernel's reading


def test_the_graph_keeps_its_names_if_one_would_be_taken_twice():
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [4, 2], "x")
        with tf.name_scope("replica_0"):
            logits = tf.identity(x, "x")
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=[0] * 4, logits=logits)
    assert {"x", "replica_0/x"} <= set(drawn_names(graph).values())


def test_a_constant_that_layers_share_is_drawn_in_each_of_them():
    with tf.Graph().as_default() as graph:
        labels = tf.placeholder(tf.int64, [4], "labels")
        with tf.name_scope("replica_0"):
            with tf.name_scope("constants"):
                shape = tf.constant([4, 2], name="shape")
            x = tf.ones([8])
            for layer in ("first", "second"):
                with tf.name_scope(layer):
                    x = tf.reshape(x, shape, "product")
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=x)
    with tf.Graph().as_default() as again:
        tf.import_graph_def(drawn_graph(graph, drawn_names(graph)), name="")
    assert not [each.name for each in again.get_operations() if each.name.startswith("constants")]
    for layer in ("first", "second"):
        drawn = again.get_operation_by_name(layer + "/product").inputs[1]
        assert drawn.name == layer + "/product/constant_1:0" and tf.get_static_value(drawn).tolist() == [4, 2]


def test_functions_are_not_drawn_beside_the_graph():
    with tf.Graph().as_default() as graph:
        Defun(tf.float32, func_name="double")(lambda x: 2 * x)(tf.constant(2.0))
    assert len(graph.as_graph_def().library.function) == 1
    assert not drawn_graph(graph, drawn_names(graph)).library.function


def test_a_graph_without_a_cross_entropy_is_drawn_as_it_is():
    with tf.Graph().as_default() as graph:
        tf.no_op("alone")
    assert [node.name for node in drawn_graph(graph, drawn_names(graph)).node] == ["alone"]


def test_the_graph_of_a_run_shows_the_network_and_a_traced_step_fits_to_it(logs):
    (graph,) = [tf.GraphDef.FromString(event.graph_def) for event in events(logs[0] + "/train") if event.graph_def]
    names = [node.name for node in graph.node]
    blocks = [name for name in dict.fromkeys(name.partition("/")[0] for name in names) if "image" not in name]
    assert [name for name in blocks if name in ("conv0", "dense_0", "trans_0", "dense_final", "linear", "loss")] == [
        "conv0", "dense_0", "trans_0", "dense_final", "linear", "loss"]
    assert not any("replica" in name or "gradients" in name or "optimizer" in name for name in names)
    (traced,) = [event.tagged_run_metadata for event in events(logs[0] + "/train")
                 if event.HasField("tagged_run_metadata")]
    steps = tf.RunMetadata.FromString(traced.run_metadata).step_stats
    timed = {node.node_name for device in steps.dev_stats for node in device.node_stats}
    assert {node.name for node in graph.node if node.op == "Conv2D"} <= timed


def test_histograms_show_weights_scales_and_gradients(logs):
    kernel = "dense_0/bottleN_0/conv2/kernel"
    found = values(logs[0] + "/train", "weights/" + kernel)
    assert [step for step, _ in found] == [6, 12]
    weights = weights_of(logs[1], 12)
    before = weights_of(logs[1], 6)
    for name, tag in ((kernel, "weights/"), ("dense_0/bottleN_0/batch1/gamma", "scales/")):
        (_, first), (_, second) = values(logs[0] + "/train", tag + name)
        assert first.histo.num == weights[name].size
        for histogram, saved in ((first.histo, before[name]), (second.histo, weights[name])):
            assert histogram.sum_squares == pytest.approx(np.square(saved).sum(dtype=np.float64))
            assert sum(histogram.bucket) == saved.size
            below = [(saved <= limit).sum() for limit in histogram.bucket_limit[:-1]]
            np.testing.assert_allclose(np.cumsum(histogram.bucket)[:-1], below, atol=1)  # a value may be on a limit
        assert first.histo.sum != second.histo.sum
    gradient = values(logs[0] + "/train", "gradients/" + kernel)[0][1].histo
    assert 0 < gradient.sum_squares < 0.1 * np.square(before[kernel]).sum()


def test_a_long_run_has_a_limited_number_of_histograms():
    wanted = [epoch for epoch in range(1, 301) if histograms_are_due(epoch, 300)]
    assert len(wanted) == HISTOGRAMS and wanted[0] == 15 and wanted[-1] == 300
    assert [histograms_are_due(epoch, 3) for epoch in (1, 2, 3)] == [True] * 3


@pytest.mark.once
def test_nan_gradients_get_the_error_message_of_the_loss(tiny_mnist, folder):
    """A histogram of NaN gradients must not raise its own error."""
    with pytest.raises(UserError, match="lower init_learning_rate, or with optimizer=adam raise epsilon"):
        Densenet.train(arguments_for(tiny_mnist, "mine", optimizer="momentum", init_learning_rate=100.0)
                       + ["batch_size=300", "total_epochs=20"])


def test_a_traced_step_shows_its_operations(logs):
    with open(logs[0] + "/trace-step-5.json") as file:
        names = {event.get("args", {}).get("name", "") for event in json.load(file)["traceEvents"]}
    assert any(name.startswith("dense_0/bottleN_0/conv2") for name in names)
    tags = [(event.step, event.tagged_run_metadata.tag) for event in events(logs[0] + "/train")
            if event.HasField("tagged_run_metadata")]
    assert tags == [(5, "step 5")]


def test_tracing_changes_nothing(tiny_mnist, logs, folder):
    Densenet.train(arguments_for(tiny_mnist, "plain"))
    assert_equal_weights(weights_of(logs[1], 12), weights_of("model/plain", 12))
