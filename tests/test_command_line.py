"""The exit status and the messages on the terminal."""

import glob
import os
import re

import pytest
from helpers import main, offline

import Densenet
import mnist_loader
from support import UserError
from support.settings import declared


def test_ctrl_c_before_the_first_step(folder, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(mnist_loader, "fetch_all", interrupted)
    assert main([]) == 130
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments,sentence", [
    (["growthk=24"], "there is no setting 'growthk': write growth_k=24 "),
    (["--epochs", "3"], "'--epochs 3' is not a setting: epochs is total_epochs here, write total_epochs=3 "),
    (["--total_epochs", "3"], "'--total_epochs 3' is not a setting: write total_epochs=3 "),
    (["evaluate"], "'evaluate' is not a setting: write mode=evaluate "),
    (["optimizer=nesterov"], "optimizer must be one of adam, momentum, sgd; the nearest is momentum"),
    (["checkpoint=does/not/exist"], "checkpoint belongs to mode=evaluate, predict, export, not to mode=train"),
    (["model_dir=s3://bucket/run"], "model_dir must be a path on this machine"),
    (["log_dir=gs://bucket/logs"], "log_dir must be a path on this machine"),
    (["data_dir=hdfs://host/data"], "data_dir must be a path on this machine"),
    (["batch_size=0"], "batch_size must be an integer from 1"),
    (["growth_k=abc"], "growth_k=abc: growth_k must be an integer"),
    (["growth_k=1000000"], "growth_k must be"),
    (["dropout_rate=1.5"], "dropout_rate must be a number from 0 to 0.95"),
    (["network=densenet"], "network must be one of custom, densenet_40_12"),
    (["blocks=1,1,1,1,1,1", "stem=3x3s2"], "the 28x28 images shrink to 0 at trans_3"),
    (["data_dir=nowhere"], "MNIST is neither in nowhere"),
    (["data_dir=file"], "file cannot be read as a folder"),
    (["model_dir=file"], "set model_dir to a folder that can be written"),
    (["log_dir=file"], "set log_dir to a folder that can be written"),
])
def test_bad_input_gets_one_sentence(tiny_mnist, folder, capsys, monkeypatch, arguments, sentence):
    monkeypatch.setattr(mnist_loader, "fetch_all", offline)
    with open("file", "w") as file:
        file.write("no folder")
    before = sorted(os.listdir("."))
    defaults = ["data_dir=" + tiny_mnist, "validation_size=30", "blocks=1,1", "growth_k=4", "batch_size=50"]
    assert main(defaults + arguments) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and error.startswith("Densenet.py: ")
    left = set(os.listdir(".")) - set(before)
    assert left <= {"model"} and not glob.glob("model/*/dense.ckpt*")


@pytest.mark.once
def test_digits_replace_mnist_only_in_the_plain_command(folder, capsys, monkeypatch):
    monkeypatch.setattr(mnist_loader, "fetch_all", offline)
    monkeypatch.setattr(Densenet, "total_epochs", 1)
    assert main([]) == 0
    output = capsys.readouterr().out
    assert "put train-images-idx3-ubyte.gz" in output and os.path.join("data", "mnist") in output
    assert "DenseNet on digits" in output and os.listdir("model") == ["digits"]
    for arguments in (["dataset=mnist"], ["data_dir=elsewhere"], ["digits_stand_in=False"]):
        assert main(arguments) == 1
        assert "MNIST is neither in" in capsys.readouterr().err


def test_the_help_names_every_hyperparameter(capsys):
    assert main(["--help", "dataset=digits", "growth_k=7"]) == 0
    output = capsys.readouterr().out
    for name in declared(Densenet):
        assert "  %s=" % name in output
    assert "  batch_size=50\n" in output and "  growth_k=7\n" in output
    assert re.search("optimizer=momentum: .*batch_size=64 total_epochs=300", output)
    assert "  optimizer=sgd: init_learning_rate=0.1 weight_decay=0.0001\n" in output
    meaning = output.partition("  optimizer=adam\n")[2].partition("\n")[0]
    assert "300 epochs" in meaning and "64" in meaning


def test_the_help_has_what_an_optimizer_brings_to_weights(capsys):
    assert main(["--help", "weights=imagenet", "dataset=folder"]) == 0
    output = capsys.readouterr().out
    assert re.search("optimizer=adam: .*init_learning_rate=0.001\n", output)
    momentum = re.search("optimizer=momentum: (.*)\n", output).group(1).split()
    assert {"init_learning_rate=0.005", "schedule=cosine", "batch_size=16", "total_epochs=15"} <= set(momentum)


def test_spaces_around_the_equals_sign_do_not_matter(monkeypatch):
    monkeypatch.setattr(Densenet, "train", lambda arguments: found.append(Densenet.choose(arguments)))
    found = []
    for arguments in (["growth_k", "=", "24"], ["growth_k=", "24"], ["growth_k", "=24"]):
        assert main(arguments + ["seed=3"]) == 0
    assert [(config.growth_k, config.seed) for config in found] == 3 * [(24, 3)]


@pytest.mark.parametrize("mode", ["train", "evaluate", "predict", "export"])
def test_the_mode_is_that_of_the_arguments(mode, monkeypatch):
    ran = []
    for name in ("train", "evaluate", "predict", "export"):
        monkeypatch.setattr(Densenet, name, lambda arguments, name=name: ran.append(name))
    assert main(["mode", "=", mode]) == 0 and main(["mode=" + mode.upper()]) == 0
    monkeypatch.setattr(Densenet, "mode", mode)
    assert main([]) == 0
    assert ran == 3 * [mode]


def test_in_python_main_runs_any_mode_and_a_mode_runs_as_itself_alone(monkeypatch):
    for name in ("evaluate", "train"):
        with pytest.raises(UserError, match="^%s was called with mode=export: call Densenet.export, or " % name):
            getattr(Densenet, name)(mode="export", run_name="any")
    monkeypatch.setattr(Densenet, "predict", lambda arguments, **overrides: (arguments, overrides))
    assert Densenet.main(["growth_k=3"], mode="predict", images="a.png") == (
        ["growth_k=3"], {"mode": "predict", "images": "a.png"})
    assert Densenet.main("mode=predict images=a.png") == ("mode=predict images=a.png", {})
