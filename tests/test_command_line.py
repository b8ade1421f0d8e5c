"""The exit status and the messages on the terminal."""

import glob
import os
import subprocess
import sys

import pytest
from helpers import main, offline

import Densenet
import mnist_loader
from support.settings import declared


def test_ctrl_c_before_the_first_step(folder, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(mnist_loader, "fetch_all", interrupted)
    assert main([]) == 130
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments,sentence", [
    (["growthk=24"], "there is no setting 'growthk': the nearest are growth_k"),
    (["batch_size=0"], "batch_size must be an integer from 1"),
    (["growth_k=abc"], "growth_k=abc: growth_k must be an integer"),
    (["growth_k=1000000"], "growth_k must be"),
    (["dropout_rate=1.5"], "dropout_rate must be a number from 0 to 0.95"),
    (["network=densenet"], "network must be one of custom, densenet_40_12"),
    (["batch_size=301"], "batch_size=301 is more than the 300 training images"),
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


def test_the_environment_is_set_before_tensorflow_is_imported():
    """oneDNN's kernels are on by default only on some processors."""
    names = ("TF_ENABLE_ONEDNN_OPTS", "TF_CPP_MIN_LOG_LEVEL")
    script = ("import os, sys; import support.environment; assert 'tensorflow' not in sys.modules; "
              "import Densenet; print([os.environ[name] for name in %r])" % (names,))
    environment = {name: value for name, value in os.environ.items() if name not in names}
    with open(Densenet.__file__, encoding="utf-8") as file:
        source = file.read()
    assert source.index("import support.environment") < source.index("import tensorflow")
    output = subprocess.check_output([sys.executable, "-W", "ignore", "-c", script], stderr=subprocess.DEVNULL,
                                     env=dict(environment, PYTHONPATH=os.path.dirname(Densenet.__file__)))
    assert output.decode().split() == ["['1',", "'2']"]
