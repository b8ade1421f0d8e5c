"""Training runs on tiny data, from the first step to the files that they write."""

import glob
import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import test_cifar10
from helpers import TINY, arguments_for, assert_equal_weights, curves, program, read, wait_for, weights_of

import cifar10
import Densenet
from support import UserError
from support.training_run import TrainingRun


def test_a_run_writes_all_documented_files(tiny_mnist, folder, capsys, monkeypatch):
    losses = []
    take_in = TrainingRun.step_done

    def spied(self, step, loss, accuracy, rate, *others):
        losses.append(loss)
        take_in(self, step, loss, accuracy, rate, *others)

    monkeypatch.setattr(TrainingRun, "step_done", spied)
    result = Densenet.train(data_dir=tiny_mnist, run_name="tiny", **dict(TINY, total_epochs=10))
    with open("model/tiny/result.json") as file:
        assert json.load(file) == json.loads(json.dumps(result))
    assert {"dataset", "parameters", "epochs", "steps", "test_accuracy", "test_loss", "train_seconds",
            "images_per_second", "tensorflow", "hyperparameters", "checkpoint"} == set(result)
    assert (result["dataset"], result["epochs"], result["steps"]) == ("mnist", 10, 60)
    assert result["checkpoint"] == "dense.ckpt-60" and result["hyperparameters"]["growth_k"] == 4
    assert result["test_accuracy"] > 0.5  # chance level is 0.1

    weights = weights_of("model/tiny", 60)
    assert {"dense_0/bottleN_0/conv1/kernel", "dense_0/bottleN_0/conv1/kernel/Adam", "global_step"} < set(weights)
    assert not [name for name in weights if "is_training" in name]
    steps = [value for name, value in weights.items() if name.endswith("local_step")]
    assert set(np.float32(steps).tolist()) == {60.0}  # the moving statistics advanced once per step

    validation, train, test = (curves("logs/tiny/%s/*" % split) for split in ("validation", "train", "test"))
    assert sorted(validation["accuracy"]) == list(range(6, 61, 6))
    assert sorted(train["accuracy"]) == [50] and {"loss", "learning_rate", "images_per_second"} < set(train)
    assert train["loss"] == {50: pytest.approx(np.mean(losses[:50]))}  # the mean over steps 1 to 50, across epochs
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


def test_runs_can_be_repeated_finished_and_extended_in_one_process(tiny_mnist, folder, capsys):
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
    with pytest.raises(UserError, match="other settings .*data was"):
        Densenet.train(**dict(options, data_dir=other, validation_size=5, batch_size=5))
    assert_equal_weights(before, weights_of("model/mine", 6))


def test_a_nan_loss_stops_the_run(tiny_mnist, folder, monkeypatch):
    monkeypatch.setattr(Densenet, "learning_rate", lambda step, *_: 1e-3 if step < 8 else math.inf)
    with pytest.raises(UserError, match=r"the loss is nan at step 10, epoch 2, learning rate inf"):
        Densenet.train(data_dir=tiny_mnist, run_name="mine", **TINY)
    assert [os.path.basename(path) for path in glob.glob("model/mine/*.index")] == ["dense.ckpt-6.index"]
    assert all(np.isfinite(value).all() for value in weights_of("model/mine", 6).values())


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


def test_a_run_finishes_if_nobody_reads_its_output(tiny_mnist, folder):
    process = program(arguments_for(tiny_mnist, "unread"))
    assert process.stdout.readline().startswith("DenseNet on mnist")
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 0 and "Error" not in error, error
    assert read("model/unread/result.json")["steps"] == 12


@pytest.mark.campaign
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


def test_the_header_shows_values_that_are_not_those_of_the_constants(tiny_mnist, folder, capsys):
    Densenet.train(arguments_for(tiny_mnist, "mine", optimizer="momentum", total_epochs=1))
    given, brought = [line for line in capsys.readouterr().out.splitlines() if line.startswith("settings ")]
    assert "growth_k=4," in given and given.endswith(" (given)") and "schedule" not in given
    assert "schedule=steps," in brought and brought.endswith(" (optimizer=momentum)")
    assert "growth_k" not in brought and "compression" not in given + brought
