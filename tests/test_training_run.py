"""Training runs on tiny data, from the first step to the files that they write."""

import csv
import dataclasses
import fcntl
import glob
import json
import math
import os
import re
import select
import shutil
import signal
import termios
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import test_cifar10
from helpers import (
    TINY,
    arguments_for,
    assert_equal_weights,
    curves,
    default_signals,
    program,
    read,
    wait_for,
    weights_of,
)
from test_evaluation import from_matrix
from test_image_folder import plain_images

import cifar10
import Densenet
from support import UserError, configuration, data, training_run
from support.interruption import Stopped
from support.settings import by_dataset
from support.training_run import TrainingRun


def values_of_other_types(content):
    """What is in nested dictionaries and lists that JSON does not have, NumPy's subclasses of float among it."""
    if isinstance(content, (dict, list)):
        parts = content.values() if isinstance(content, dict) else content
        return [value for part in parts for value in values_of_other_types(part)]
    return [] if type(content) in (str, bool, int, float, type(None)) else [content]


def csv_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def lines_of(output):
    """The lines that a run prints, without the one that depends on the machine's speed."""
    return [line for line in output.splitlines() if "steps waited for their images" not in line]


def test_a_run_writes_all_documented_files(tiny_mnist, folder, capsys, monkeypatch):
    losses = []
    take_in = TrainingRun.step_done

    def spied(self, step, loss, accuracy, rate, *others):
        losses.append(loss)
        take_in(self, step, loss, accuracy, rate, *others)

    monkeypatch.setattr(TrainingRun, "step_done", spied)
    monkeypatch.setattr(training_run, "POINT_STEPS", 4)
    result = Densenet.train(data_dir=tiny_mnist, run_name="tiny", **dict(TINY, total_epochs=10))
    with open("model/tiny/result.json") as file:
        assert json.load(file) == result  # the same types, too: lists, not tuples
    assert not values_of_other_types(result)
    assert {"dataset", "parameters", "epochs", "steps", "test_accuracy", "test_loss", "train_seconds",
            "images_per_second", "tensorflow", "hyperparameters", "checkpoint", "test_balanced_accuracy",
            "test_class_recall"} == set(result)
    assert (result["dataset"], result["epochs"], result["steps"]) == ("mnist", 10, 60)
    assert result["hyperparameters"]["growth_k"] == 4
    assert result["test_accuracy"] > 0.5  # chance level is 0.1

    weights = weights_of("model/tiny", 60)
    assert {"dense_0/bottleN_0/conv1/kernel", "dense_0/bottleN_0/conv1/kernel/Adam", "global_step"} < set(weights)
    assert not [name for name in weights if "is_training" in name]
    steps = [value for name, value in weights.items() if name.endswith("local_step")]
    assert set(np.float32(steps).tolist()) == {60.0}  # the moving statistics advanced once per step

    validation, train, test = (curves("logs/tiny/%s*" % split) for split in ("validation/", "train/", "events"))
    assert sorted(validation["accuracy"]) == list(range(6, 61, 6))
    assert sorted(train["accuracy"]) == list(range(4, 61, 4))
    assert {"loss", "learning_rate", "images_per_second"} < set(train)
    rows = csv_rows("model/tiny/curves.csv")
    assert [int(row["step"]) for row in rows] == list(range(6, 61, 6)) and "test_loss" not in rows[0]
    assert float(rows[3]["train_loss"]) == pytest.approx(np.mean(losses[18:24]), rel=1e-6)
    for row in rows:
        assert float(row["validation_accuracy"]) == pytest.approx(validation["accuracy"][int(row["step"])])
        assert float(row["seconds"]) > 0 and int(row["epoch"]) * 6 == int(row["step"])
    for step, loss in train["loss"].items():
        assert loss == pytest.approx(np.mean(losses[step - 4:step]), rel=1e-6)  # of each point's steps, across epochs
    assert test["accuracy"] == {60: pytest.approx(result["test_accuracy"])}
    best = max(validation["accuracy"], key=lambda step: (validation["accuracy"][step], step))
    assert result["checkpoint"] == "best/dense.ckpt-%d" % best
    assert sorted(os.listdir("model/tiny/best")) == [
        "checkpoint", "dense.ckpt-%d.data-00000-of-00001" % best, "dense.ckpt-%d.index" % best]
    with open("model/tiny/checkpoint") as file:
        assert 'model_checkpoint_path: "dense.ckpt-60"' in file.read()
    assert len(glob.glob("model/tiny/dense.ckpt-*.index")) == 3

    lines = lines_of(capsys.readouterr().out)
    assert lines[1].startswith("DenseNet on mnist: 300 training, 30 validation, 45 test images of 28x28x1")
    assert sum(line.startswith("epoch ") for line in lines) == 10 and lines[-1].startswith("test accuracy ")


@pytest.mark.once
def test_runs_can_be_repeated_finished_and_extended_in_one_process(tiny_mnist, folder, capsys):
    options = dict(TINY, data_dir=tiny_mnist)
    first = Densenet.train(**options)
    again = Densenet.train(run_name="other", **options)
    assert again["test_accuracy"] == first["test_accuracy"]
    (run,) = glob.glob("model/mnist-*")
    assert_equal_weights(weights_of(run, 12), weights_of("model/other", 12))

    capsys.readouterr()
    assert Densenet.train(**options) == first  # read again
    assert "is finished: 2 epochs" in capsys.readouterr().out

    longer = Densenet.train(**dict(options, total_epochs=3))
    output = capsys.readouterr().out
    assert "resuming after step 12, epoch 2.0 of 3" in output and "total_epochs was 2 and is now 3" in output
    assert (longer["epochs"], longer["steps"]) == (3, 18)
    with open(os.path.join(run, "result-1.json")) as file:
        assert json.load(file)["epochs"] == 2
    assert [row["step"] for row in csv_rows(os.path.join(run, "curves.csv"))] == ["6", "12", "18"]


@pytest.mark.once
def test_only_a_given_or_edited_total_epochs_extends_a_finished_run(tiny_mnist, folder, capsys, monkeypatch):
    """The constant says 13."""
    options = dict(TINY, data_dir=tiny_mnist, run_name="mine")
    del options["total_epochs"]
    Densenet.train(total_epochs=1, **options)
    capsys.readouterr()
    assert Densenet.train(**options)["epochs"] == 1
    output = capsys.readouterr().out
    assert "model/mine is finished: 1 epochs" in output and "to train it further, give total_epochs above 1" in output
    choose = Densenet.choose

    def edited(*arguments, **overrides):
        config = choose(*arguments, **overrides)
        config.total_epochs, config.edited = 2, {"total_epochs"}
        return config

    monkeypatch.setattr(Densenet, "choose", edited)
    assert Densenet.train(**options)["epochs"] == 2


@pytest.mark.parametrize("killed_in", [pytest.param("epoch_done", marks=pytest.mark.once), "the test of the epoch"])
def test_an_epoch_that_is_killed_before_it_is_reported_is_repeated(killed_in, tiny_mnist, folder, monkeypatch):
    """Its weights are the best so far, and are not resumed from: curves.csv would lack its line for good."""
    command = arguments_for(tiny_mnist, "mine", total_epochs=3, test_every_epoch=True)
    calls = []

    def killed(*arguments, **named):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return usual(*arguments, **named)

    with monkeypatch.context() as patched:
        if killed_in == "epoch_done":
            usual = TrainingRun.epoch_done
            patched.setattr(TrainingRun, "epoch_done", killed)
        else:
            usual = Densenet.evaluate_split
            patched.setattr(Densenet, "evaluate_split", lambda sess, net, split, *others, **named: (
                killed if len(split) == 45 else usual)(sess, net, split, *others, **named))
        with pytest.raises(KeyboardInterrupt):
            Densenet.train(command)
    Densenet.train(command)
    rows = csv_rows("model/mine/curves.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    Densenet.train(arguments_for(tiny_mnist, "other", total_epochs=3, test_every_epoch=True))
    for row, other in zip(rows, csv_rows("model/other/curves.csv")):
        assert (row["train_loss"], row["test_loss"]) == (other["train_loss"], other["test_loss"])
    assert_equal_weights(weights_of("model/mine", 18), weights_of("model/other", 18))


def test_a_resumed_run_normalizes_images_as_it_began(tiny_mnist, folder, monkeypatch, capsys):
    """Also where this version would compute, or take from weights, another mean and deviation; without progress.json,
    too, which a process that is killed during its first save leaves unwritten."""
    for name, others in (("one", False), ("two", True)):
        options = dict(TINY, data_dir=tiny_mnist, run_name=name)
        Densenet.train(**dict(options, total_epochs=1))
        with monkeypatch.context() as patched:
            if others:
                patched.setattr(data, "_statistics", lambda images: (np.float32([9]), np.float32([5])))
                os.remove("model/two/progress.json")
            Densenet.train(**dict(options, total_epochs=2))
    assert_equal_weights(weights_of("model/one", 12), weights_of("model/two", 12))
    assert "shared each batch until then" not in capsys.readouterr().out


@pytest.mark.once
def test_fewer_epochs_than_were_trained_are_refused(tiny_mnist, folder, monkeypatch):
    options = dict(TINY, data_dir=tiny_mnist, run_name="mine")
    Densenet.train(**dict(options, total_epochs=3))
    before = read("model/mine/result.json")
    with pytest.raises(UserError, match=r"total_epochs=2 is less than what model/mine was trained for \(3 epochs\): "
                                        "leave total_epochs out to see its result, or set run_name"):
        Densenet.train(**dict(options, total_epochs=2))
    assert read("model/mine/result.json") == before and not os.path.exists("model/mine/result-1.json")
    monkeypatch.setattr(Densenet, "total_epochs", 2)  # an edited line cannot be left out
    with pytest.raises(UserError, match=r"\(3 epochs\): give total_epochs=3 to see its result, or set run_name"):
        Densenet.train(**dict({name: value for name, value in options.items() if name != "total_epochs"}))
    os.remove("model/mine/result.json")  # as if it had been stopped before the test
    with pytest.raises(UserError, match=r"\(3 epochs\): give total_epochs=3 or more to go on with it, or set run_name"):
        Densenet.train(**dict(options, total_epochs=2))
    assert Densenet.train(**dict(options, total_epochs=3))["test_accuracy"] == before["test_accuracy"]


@pytest.mark.once
@pytest.mark.parametrize("usual", [1, 2, 3])
def test_a_stopped_run_does_not_end_at_the_usual_epochs(tiny_mnist, folder, monkeypatch, usual):
    """It was to be trained for three epochs, and was stopped after two, or before its test."""
    options = dict(TINY, data_dir=tiny_mnist, run_name="mine")
    del options["total_epochs"]
    save = TrainingRun.save

    def save_and_stop(run, sess, step):
        save(run, sess, step)
        if step == 12 + 6 * (usual == 3):
            raise Stopped(signal.SIGTERM, "stopped")

    with monkeypatch.context() as patched:
        patched.setattr(TrainingRun, "save", save_and_stop)
        with pytest.raises(Stopped):
            Densenet.train(total_epochs=3, **options)
    with monkeypatch.context() as patched:
        patched.setattr(Densenet, "total_epochs", by_dataset(usual, digits=30))
        patched.setitem(configuration.SHIPPED["mnist"], "total_epochs", usual)  # shipped, not edited
        if usual < 3:
            with pytest.raises(UserError, match="model/mine was stopped on its way to more than %d epochs: give "
                                                "total_epochs=3 to go on with it" % usual):
                Densenet.train(**options)
        else:
            assert Densenet.train(**options)["epochs"] == 3
    assert Densenet.train(total_epochs=3, **options)["epochs"] == 3


@pytest.mark.once
def test_a_run_that_starts_afresh_describes_its_own_images(tiny_mnist, folder):
    """An earlier run here ended before it saved anything but what its images look like."""
    options = dict(TINY, data_dir=tiny_mnist, total_epochs=1)
    Densenet.train(run_name="other", **options)
    os.makedirs("model/mine")
    with open("model/mine/appearance.json", "w") as file:
        json.dump({"of": "others"}, file)
    Densenet.train(run_name="mine", **options)
    assert read("model/mine/appearance.json") == read("model/other/appearance.json")


@pytest.mark.once
def test_a_finished_run_whose_newest_checkpoint_is_lost_is_trained_to_its_end_again(tiny_mnist, folder, capsys):
    options = dict(TINY, data_dir=tiny_mnist, run_name="mine", validation_size=0, batch_size=55)
    first = Densenet.train(**options)
    assert "best_by" not in capsys.readouterr().out
    for path in glob.glob("model/mine/dense.ckpt-12.*"):
        os.remove(path)
    assert Densenet.train(**options)["test_loss"] == first["test_loss"]
    assert [row["step"] for row in csv_rows("model/mine/curves.csv")] == ["6", "12"]


@pytest.mark.once
def test_a_batch_of_more_than_the_training_images_is_made_smaller_and_said(tiny_mnist, folder, capsys):
    """On one device 300 of 300, on seven 294. The run keeps the size that was given: the same command resumes."""
    options = dict(TINY, data_dir=tiny_mnist, run_name="mine", batch_size=301)
    first = Densenet.train(devices=1, **dict(options, total_epochs=1))
    assert "batch_size=301 is more than the 300 training images: each step takes 300\n" in capsys.readouterr().out
    assert first["steps"] == 1 and first["hyperparameters"]["batch_size"] == 301
    assert read("model/mine/settings.json")["batch_size"] == 301
    assert Densenet.train(devices=7, **options)["steps"] == 2
    output = capsys.readouterr().out
    assert "each step takes 294\n" in output and "resuming after step 1" in output
    assert Densenet.evaluate(**options)["images"] == 45


def test_a_batch_of_one_image_on_maps_of_one_pixel_is_refused_before_the_graph_is_built(tiny_mnist, folder):
    config = Densenet.choose(arguments_for(tiny_mnist, "mine", batch_size=1, stem="7x7s2+pool", blocks=(1, 1, 1)))
    data, config = Densenet.prepare_data(config)
    with pytest.raises(UserError, match="the batch has 1 image, and batch normalization cannot"):
        TrainingRun(config, data)
    config.batch_size = 2
    assert TrainingRun(config, data).cluster.devices == 1
    config.stem = "3x3"  # maps of 7x7 pixels
    assert TrainingRun(config, data).cluster.devices == 2


def test_without_a_validation_split(tiny_mnist, folder):
    result = Densenet.train(data_dir=tiny_mnist, run_name="all", **dict(TINY, validation_size=0))
    assert result["steps"] == 12 and not os.path.exists("model/all/best")


def test_cifar10_end_to_end(tmp_path, folder, monkeypatch):
    """The checkpoint also contains the mean and deviation of the training set."""
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
    with pytest.raises(UserError, match="other settings .*validation_size was 30.*training images: 300, now 40"):
        Densenet.train(**dict(options, data_dir=other, validation_size=5, batch_size=5))
    assert_equal_weights(before, weights_of("model/mine", 6))


@pytest.mark.parametrize("name", ["log_dir", "model_dir"])
def test_nothing_is_written_among_the_images(folder, name):
    for label in "ab":
        plain_images(os.path.join("pets", label), 9)
    with pytest.raises(UserError, match="among the images, into ./pets: set %s to another folder" % name):
        Densenet.train(dataset="folder", data_dir="pets", run_name="pets", image_size=16, blocks=(1, 1), **{name: "."})
    assert sorted(os.listdir("pets")) == ["a", "b"]


@pytest.mark.once
@pytest.mark.parametrize("checkpoint", ["", "dense.ckpt-6"])
def test_weights_of_another_run_of_that_name_are_refused(tiny_mnist, folder, checkpoint):
    for seed, place in enumerate(("first", "second")):
        Densenet.train(model_dir=place, log_dir="logs_of_" + place, run_name="run", seed=seed, data_dir=tiny_mnist,
                       **dict(TINY, total_epochs=1))
    given = dict(data_dir=tiny_mnist, validation_size=30, batch_size=50, total_epochs=1, run_name="tuned")
    Densenet.train(weights=os.path.join("first", "run", checkpoint), **given)
    with pytest.raises(UserError, match="weights=.* is another run of that name now"):
        Densenet.train(weights=os.path.join("second", "run", checkpoint), **given)
    shutil.rmtree("second")
    shutil.move("first", "second")
    assert Densenet.train(weights=os.path.join("second", "run", checkpoint), **given)["epochs"] == 1


def test_a_nan_loss_stops_the_run(tiny_mnist, folder, monkeypatch):
    monkeypatch.setattr(Densenet, "learning_rate", lambda step, *_: 1e-3 if step < 8 else math.inf)
    with pytest.raises(UserError, match=r"the loss is nan at step 10, epoch 2, learning rate inf"):
        Densenet.train(data_dir=tiny_mnist, run_name="mine", **TINY)
    assert [os.path.basename(path) for path in glob.glob("model/mine/*.index")] == ["dense.ckpt-6.index"]
    assert all(np.isfinite(value).all() for value in weights_of("model/mine", 6).values())


@pytest.mark.parametrize("seconds, said", [(1e6, True), (0.0, False)])
def test_steps_that_wait_for_their_images_are_reported(tiny_mnist, folder, capsys, monkeypatch, seconds, said):
    monkeypatch.setattr(TrainingRun, "waited", lambda self, _: setattr(self, "_waited_seconds", seconds))
    Densenet.train(data_dir=tiny_mnist, **TINY)
    assert ("steps waited for their images: augmentation cannot keep up" in capsys.readouterr().out) == said


@pytest.mark.once
def test_a_checkpoint_that_cannot_be_saved_is_reported(tiny_mnist, folder, monkeypatch):
    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    options = dict(TINY, data_dir=tiny_mnist, run_name="mine")
    Densenet.train(**dict(options, total_epochs=1))
    with monkeypatch.context() as patched:
        patched.setattr(tf.train.Saver, "save", full)
        with pytest.raises(UserError, match="cannot save a checkpoint in .*No space left on device"):
            Densenet.train(**options)
    assert Densenet.train(**options)["steps"] == 12


@pytest.mark.parametrize("number", [
    signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.once),
    pytest.param(signal.SIGHUP, marks=pytest.mark.long), pytest.param(signal.SIGUSR1, marks=pytest.mark.once)])
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


def test_a_signal_during_the_last_test_counts_once_the_run_is_finished(tiny_mnist, folder, monkeypatch):
    finish = TrainingRun.finish

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        finish(self, *arguments)

    monkeypatch.setattr(TrainingRun, "finish", interrupted)
    with default_signals(), pytest.raises(Stopped, match="^stopped after the run was finished$") as caught:
        Densenet.train(data_dir=tiny_mnist, run_name="mine", **dict(TINY, total_epochs=1))
    assert caught.value.signal_number == signal.SIGTERM and read("model/mine/result.json")["steps"] == 6


@pytest.mark.once
def test_a_run_is_saved_when_its_terminal_is_closed(tiny_mnist, folder):
    """The kernel sends SIGHUP, and writing to the terminal fails from then on."""
    master, terminal = os.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, b"\x18\0\x50\0\0\0\0\0")

    def own_session():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = program(arguments_for(tiny_mnist, "mine", total_epochs=1000), stdin=terminal, stdout=terminal,
                      stderr=terminal, preexec_fn=own_session)
    os.close(terminal)
    deadline = time.monotonic() + 300
    while not glob.glob("model/mine/dense.ckpt-*.index"):  # reads what is shown: a full terminal would block
        assert process.poll() is None and time.monotonic() < deadline
        if select.select([master], [], [], 0.01)[0]:
            os.read(master, 65536)
    os.close(master)
    assert process.wait(300) == 128 + signal.SIGHUP
    steps = [int(path.rpartition("-")[2].partition(".")[0]) for path in glob.glob("model/mine/dense.ckpt-*.index")]
    assert read("model/mine/progress.json")["step"] == max(steps)
    assert weights_of("model/mine", max(steps))["global_step"] == max(steps)


@pytest.mark.once
def test_a_run_finishes_if_nobody_reads_its_output(tiny_mnist, folder):
    process = program(arguments_for(tiny_mnist, "unread"))
    assert any(line.startswith("DenseNet on mnist") for line in process.stdout)
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 0 and "Error" not in error, error
    assert read("model/unread/result.json")["steps"] == 12


@pytest.mark.once
def test_an_automatic_precision_is_resolved_once_and_kept(tiny_mnist, folder, monkeypatch):
    """A run that began where bfloat16 is fast goes on in bfloat16 where it is not."""
    options = dict(TINY, data_dir=tiny_mnist, run_name="mine", precision="auto")
    monkeypatch.setattr("support.training_run.fast_precision", lambda: "bfloat16")
    Densenet.train(**dict(options, total_epochs=1))
    monkeypatch.setattr("support.training_run.fast_precision", lambda: "float32")
    result = Densenet.train(**options)
    assert result["steps"] == 12 and result["hyperparameters"]["precision"] == "bfloat16"
    assert read("model/mine/settings.json")["precision"] == "bfloat16"
    assert Densenet.evaluate(**options)["images"] == 45
    with pytest.raises(UserError, match="precision was bfloat16, now float32"):
        Densenet.train(**dict(options, precision="float32"))


def test_a_step_to_trace_that_is_not_trained_is_said(tiny_mnist, folder, capsys):
    Densenet.train(arguments_for(tiny_mnist, "mine", trace_step=13))  # 2 epochs of 6 steps
    assert "trace_step=13 has no effect: steps 1 to 12 are trained\n" in capsys.readouterr().out
    Densenet.train(arguments_for(tiny_mnist, "mine", trace_step=13, total_epochs=3))
    assert "trace_step=13 has no effect" not in capsys.readouterr().out
    Densenet.train(arguments_for(tiny_mnist, "mine", trace_step=13, total_epochs=4))
    assert "trace_step=13 has no effect: steps 19 to 24 are trained\n" in capsys.readouterr().out


def test_the_header_shows_values_that_are_not_those_of_the_constants(tiny_mnist, folder, capsys):
    Densenet.train(arguments_for(tiny_mnist, "mine", optimizer="momentum", total_epochs=1))
    given, brought = [line for line in capsys.readouterr().out.splitlines() if line.startswith("settings ")]
    assert "growth_k=4," in given and given.endswith(" (given)") and "schedule" not in given
    assert "schedule=steps," in brought and brought.endswith(" (optimizer=momentum)")
    assert "growth_k" not in brought and "compression" not in given + brought


@pytest.fixture
def source(tiny_mnist, folder):
    """The name of a trained run, to start from."""
    Densenet.train(data_dir=tiny_mnist, run_name="source", **dict(TINY, total_epochs=1))
    return "source"


FROM_WEIGHTS = dict(TINY, schedule="constant", warmup=0.0, dropout_rate=0.2)  # a rate that more epochs do not change


@pytest.mark.parametrize("options", [
    dict(train_only="head", devices=2)] + [pytest.param(one, marks=pytest.mark.once) for one in (
        dict(train_only="last_block", memory_efficient=True), dict(train_only="all", class_weights="balanced"),
        dict(train_only="last_block", precision="bfloat16", best_by="loss"))], ids=str)
def test_a_run_that_starts_from_weights_resumes_exactly(tiny_mnist, source, options):
    if options.get("precision") and tf.VERSION.startswith("1."):
        pytest.skip("TensorFlow 1.15 lacks kernels for it on the CPU")
    given = dict(FROM_WEIGHTS, data_dir=tiny_mnist, weights=source, **options)
    Densenet.train(**dict(given, total_epochs=2, run_name="whole"))
    for epochs in (1, 2):
        Densenet.train(**dict(given, total_epochs=epochs, run_name="parts"))
    found = weights_of("model/parts", 12)
    assert_equal_weights(found, weights_of("model/whole", 12))
    before = weights_of("model/source/best", 6)
    kept = {name for name in before if np.array_equal(found.get(name), before[name]) and "moving" not in name}
    assert ("conv0/kernel" in kept) == (options["train_only"] != "all") and "linear/kernel" not in kept


def test_what_is_taken_from_weights_is_said(tiny_mnist, source, capsys):
    Densenet.train(data_dir=tiny_mnist, weights=source, run_name="second", total_epochs=1, batch_size=50,
                   validation_size=30)
    output = capsys.readouterr().out
    assert re.search(r"weights of model.source.best.dense.ckpt-6: all \d+ tensors taken", output)
    assert "from weights source" in output
    settings = read("model/second/settings.json")
    assert settings["weights"] == "source" and settings["blocks"] == [1, 2]  # the network comes along
    Densenet.train(data_dir=tiny_mnist, weights=source, run_name="second", total_epochs=2, batch_size=50,
                   validation_size=30)
    assert "tensors taken" not in capsys.readouterr().out  # it is resumed


def test_training_refuses_what_does_not_fit_weights(tiny_mnist, source):
    for given, sentence in (
            (dict(train_only="head"), "train_only=head freezes layers that have learned nothing"),
            (dict(weights=source, growth_k=5), "first layer that differs is conv0, .*3x3x1x8 there .*3x3x1x10 in the"),
            (dict(weights="nowhere"), "weights=nowhere .*source")):
        with pytest.raises(UserError, match=sentence):
            Densenet.train(data_dir=tiny_mnist, run_name="other", batch_size=50, validation_size=30, **given)


# What validation finds after three epochs, [true class, predicted class], and its loss: each is best by another metric.
VALIDATIONS = (([[6, 0], [3, 1]], 2.0), ([[2, 4], [0, 4]], 3.0), ([[5, 1], [3, 1]], 1.0))


@pytest.mark.parametrize("best_by, epoch", [
    ("balanced_accuracy", 2), pytest.param("loss", 3, marks=pytest.mark.once),
    pytest.param("accuracy", 1, marks=pytest.mark.once)])
def test_the_best_weights_are_those_of_the_chosen_metric(tiny_mnist, folder, capsys, monkeypatch, best_by, epoch):
    evaluate, results = Densenet.evaluate_split, iter(VALIDATIONS)

    def crafted(sess, net, split, data, *others, **options):
        if split is not data.validation:
            return evaluate(sess, net, split, data, *others, **options)
        matrix, loss = next(results)
        return dataclasses.replace(from_matrix(matrix, []), loss=loss, class_num=10)

    monkeypatch.setattr(Densenet, "evaluate_split", crafted)
    options = dict(TINY, data_dir=tiny_mnist, run_name="tiny", batch_size=150, best_by=best_by)
    result = Densenet.train(**dict(options, total_epochs=3))
    assert result["checkpoint"] == "best/dense.ckpt-%d" % (2 * epoch)
    with open("model/tiny/curves.csv") as file:
        found = [float(row["validation_balanced_accuracy"]) for row in csv.DictReader(file)]
    assert found == pytest.approx([5 / 8, 2 / 3, 13 / 24], rel=1e-7)
    *_, line, last = lines_of(capsys.readouterr().out)
    assert ("accuracy 60.00%, balanced accuracy 54.17%" in line) == (best_by == "balanced_accuracy")
    accuracies = re.match("test (accuracy .*), loss", last).group(1)
    assert "balanced accuracy %.2f%%" % (100 * result["test_balanced_accuracy"]) in accuracies
    del options["total_epochs"]
    assert Densenet.train(**options) == result
    assert "is finished: 3 epochs, test %s (" % accuracies in capsys.readouterr().out


def test_a_finished_run_of_an_earlier_version_says_its_accuracy(tiny_mnist, folder, capsys):
    """Its result.json has no balanced accuracy."""
    options = dict(TINY, data_dir=tiny_mnist, run_name="mine", batch_size=150, validation_size=0, best_by="loss")
    result = Densenet.train(**dict(options, total_epochs=1))
    assert "best_by=loss has no effect: 0 validation images are too few" in capsys.readouterr().out
    kept = {name: value for name, value in result.items() if name not in ("test_balanced_accuracy",
                                                                          "test_class_recall")}
    with open("model/mine/result.json", "w") as file:
        json.dump(kept, file)
    del options["total_epochs"]
    assert Densenet.train(**options) == kept
    assert "1 epochs, test accuracy %.2f%% (" % (100 * result["test_accuracy"]) in capsys.readouterr().out
