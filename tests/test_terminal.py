"""What the terminal shows: the header, and a progress bar that never ends the training."""

import errno
import io
import sys
import types

import numpy as np
import pytest
from test_evaluation import from_matrix

import Densenet
from support.data import DataSet, Split
from support.terminal import Progress, show_header


def header(capsys, config, name="mnist"):
    """Returns the header's lines."""
    split = Split(np.zeros((6, 9, 8, 1), np.uint8), np.array([0, 1, 1, 0, 1, 0]))
    data = DataSet(name, split, split, split, ("ant", "bee"), *[np.ones(1, np.float32)] * 3)
    cluster = types.SimpleNamespace(description=lambda: "; 2 parts of each batch at a time", batch_size=4)
    show_header(config, data, 12345, cluster, ["GPU:0"], "model/mine", "logs/mine/")
    return capsys.readouterr().out.splitlines()


def test_the_header_shows_every_shaping_value_in_three_lines(capsys):
    lines = header(capsys, Densenet.choose(
        dataset="mnist", blocks=(4, 6), growth_k=24, bottleneck=True, compression=0.7, transition_channels=0,
        transition_pooling="max", stem="3x3", stem_channels=20, dropout_rate=0.2, optimizer="adam",
        init_learning_rate=0.003, schedule="cosine", warmup=0.1, weight_decay=0.05, label_smoothing=0.15, epsilon=1e-7,
        batch_size=4, total_epochs=7, precision="bfloat16", seed=5, augmentation=True, shift=3, rotation=0.0, flip=True,
        cutout=6, flip_average=True, shift_average=0, ema_decay=0.99, scaling=0.1, shear=5.0, elastic=0.5,
        alternate_flip=True))
    assert lines[0] == "DenseNet on mnist: 6 training, 6 validation, 6 test images of 9x8x1"
    assert lines[1] == ("network  blocks 4,6, growth rate 24, bottleneck layers, compression 0.7, max pooling, stem "
                        "3x3, 20 stem channels, dropout 0.2, 12,345 parameters")
    assert lines[2] == ("training adam, learning rate 0.003, cosine schedule, warm-up 0.1, weight decay 0.05, label "
                        "smoothing 0.15, epsilon 1e-07, weights averaged with decay 0.99, batch size 4, epochs 7, "
                        "bfloat16, seed 5")
    assert lines[3] == ("images   augmented, shift 3, scaling 0.1, shear 5 degrees, elastic 0.5, flip, in every second "
                        "epoch, cutout 6, test averages mirror images")
    assert [line.split()[0] for line in lines[4:]] == ["settings", "device", "steps", "logs", "model"]


def other_than(value):
    if isinstance(value, bool):
        return not value
    return value + (1,) if isinstance(value, tuple) else value + ("x" if isinstance(value, str) else 0.25)


IN_THE_FIRST_LINE = ("dataset", "validation_size", "image_size")


@pytest.mark.parametrize("name", [name for name in Densenet.IDENTIFYING if name not in IN_THE_FIRST_LINE])
def test_each_setting_that_identifies_a_run_is_in_the_header(capsys, name):
    config = Densenet.choose(dataset="folder", data_dir="photos")
    before = header(capsys, config)
    setattr(config, name, other_than(getattr(config, name)))
    assert header(capsys, config) != before


def test_a_setting_that_the_header_has_no_words_for_is_shown_by_its_name(capsys):
    config = Densenet.choose()
    config.identifying.append("brightness")
    config.brightness = 0.5
    assert header(capsys, config)[3].endswith(", brightness=0.5")


def test_values_without_effect_are_left_out(capsys):
    config = Densenet.choose(augmentation=False, optimizer="momentum")
    lines = header(capsys, config)
    assert lines[3] == "images   not augmented" and "epsilon" not in lines[2]
    assert not [line for line in lines if line.startswith("unused")]
    lines = header(capsys, Densenet.choose(optimizer="sgd", epsilon=1e-3, flip=False, alternate_flip=True, seed=3))
    assert "every second epoch" not in lines[3]
    assert "unused   epsilon=0.001, alternate_flip=True: other settings turn that off" in lines
    lines = header(capsys, Densenet.choose(augmentation=False, rotation=20, cutout=0))
    assert "unused   rotation=20: other settings turn that off" in lines
    lines = header(capsys, Densenet.choose(blocks=(3,), compression=0.7, transition_pooling="max"))
    assert "unused   compression=0.7, transition_pooling=max: other settings turn that off" in lines
    lines = header(capsys, Densenet.choose(compression=0.7, transition_channels=8))
    assert "unused   compression=0.7: other settings turn that off" in lines
    # Of images that are stored for random crops, the centre is used without them, too.
    lines = header(capsys, Densenet.choose(dataset="folder", data_dir=".", augmentation=False, crop_area=0.5))
    assert "crop area 0.5" in lines[3] and not [line for line in lines if line.startswith("unused")]


def test_given_values_are_shown_once_and_paths_only_where_they_are_used(capsys):
    lines = header(capsys, Densenet.choose(growth_k=24, log_dir="logs", model_dir="model", run_name="mine"))
    assert [line for line in lines if line.startswith("settings ")] == ["settings growth_k=24 (given)"]
    lines = header(capsys, Densenet.choose(log_dir="logs"))
    assert not [line for line in lines if line.startswith("settings ")]


def test_the_classes_of_a_folder_are_listed(capsys, monkeypatch):
    monkeypatch.setattr("support.data.class_summary",
                        lambda data, remedies: iter(["classes  %s %s" % data.class_names]))
    lines = header(capsys, Densenet.choose(dataset="folder", data_dir="photos"), "folder")
    assert lines[1] == "classes  ant bee" and lines[2].startswith("network  ")
    assert not any(line.startswith("classes") for line in header(capsys, Densenet.choose()))


def test_what_counts_classes_alike_is_named_unless_it_is_given_or_without_effect(capsys, monkeypatch):
    def remedies(**given):
        return header(capsys, Densenet.choose(dataset="folder", data_dir="photos", **given), "folder")[1].split()

    monkeypatch.setattr("support.data.class_summary", lambda data, remedies: iter([" ".join(remedies)]))
    assert remedies() == ["class_weights=balanced"]  # 6 validation images are too few to choose weights by
    monkeypatch.setattr("support.terminal.LEAST_VALIDATION", 6)
    assert remedies() == ["class_weights=balanced", "best_by=balanced_accuracy"]
    assert remedies(best_by="loss") == ["class_weights=balanced"]
    assert remedies(class_weights="none") == ["best_by=balanced_accuracy"]


def test_the_line_of_an_epoch_has_balanced_accuracy_where_it_tells_something(capsys):
    unequal, equal = from_matrix([[8, 0], [1, 1]], []), from_matrix([[2, 1], [0, 2]], [])
    for with_balanced, shown in ((False, ""), (True, ", balanced accuracy 83.33%")):
        Progress(3, 2).epoch(1, 0.5, 0.75, {"validation": unequal, "test": equal}, 1.0, 0, with_balanced)
        assert capsys.readouterr().out == (
            "epoch 1/2  train loss 0.5000 accuracy 75.00%  validation loss 0.5000 accuracy 90.00%, balanced accuracy "
            "75.00%  test loss 0.5000 accuracy 80.00%" + shown + "  1.0 s\n")


class Terminal(io.StringIO):
    """A terminal that works until it is told to fail with an error."""

    error = None

    def isatty(self):
        if isinstance(self.error, ValueError):
            raise self.error
        return True

    def write(self, text):
        if self.error:
            raise self.error
        return super().write(text)

    def flush(self):
        if self.error:
            raise self.error


def epochs(progress, terminal, error=None):
    """Two epochs of three steps; the terminal fails in the middle of the first."""
    for epoch in (1, 2):
        for step in (1, 2, 3):
            progress.step(3 * (epoch - 1) + step, 0.5)
            if (epoch, step) == (1, 2):
                terminal.error = error
        progress.epoch(epoch, 0.5, 0.75, {}, 1.0, 0)
    progress.close()


def test_a_terminal_gets_a_bar_for_each_epoch(capsys, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    epochs(Progress(3, 2), terminal)
    assert "epoch 1/2" in terminal.getvalue() and "epoch 2/2" in terminal.getvalue()
    assert "0/3" in terminal.getvalue()
    assert capsys.readouterr().out.count("train loss 0.5000 accuracy 75.00%") == 2


@pytest.mark.parametrize("error", [OSError(errno.EIO, "hung up"), OSError(errno.ENOSPC, "full"),
                                   BrokenPipeError(errno.EPIPE, "nobody reads"), ValueError("closed file")])
def test_a_terminal_that_hangs_up_does_not_end_the_training(capsys, monkeypatch, error):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    epochs(Progress(3, 2), terminal, error)
    assert capsys.readouterr().out.count("train loss 0.5000 accuracy 75.00%") == 2
    terminal = Terminal()
    terminal.error = error  # from the beginning
    monkeypatch.setattr(sys, "stderr", terminal)
    epochs(Progress(3, 2), terminal, error)
    assert capsys.readouterr().out.count("train loss 0.5000 accuracy 75.00%") == 2


def test_without_a_terminal_there_is_no_bar(capsys, monkeypatch):
    for stderr in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stderr)
        epochs(Progress(3, 2), Terminal())
        assert stderr is None or stderr.getvalue() == ""
