"""What README.md says is so: its commands, its settings, its pictures, its example."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import TINY
from PIL import Image

import Densenet

ROOT = os.path.dirname(os.path.abspath(Densenet.__file__))
with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
    README = file.read()


def test_its_commands_are_understood():
    commands = re.findall(r"^    python Densenet\.py(.*?)(?:\s+#.*)?$", README, re.MULTILINE)
    commands += re.findall(r"`python Densenet\.py([^`]*)`", README)
    assert len(commands) > 12
    for command in commands:
        arguments = [argument for argument in command.split() if argument not in ("--help", "…")]
        Densenet.choose(arguments)


def test_its_table_has_all_hyperparameters():
    table = README[README.index("| group | hyperparameters |"):].split("\n\n")[0]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(declared(Densenet))


def test_its_pictures_are_there():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert len(pictures) >= 5
    for picture in pictures:
        assert os.path.getsize(os.path.join(ROOT, picture)) > 1000, picture


@pytest.mark.skipif(tf.VERSION.startswith("1."), reason="the example is for TensorFlow 2; its loader is not in 1.15")
def test_its_example_of_an_exported_network(tiny_mnist, folder):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    Densenet.train(data_dir=tiny_mnist, run_name="mnist", **TINY)
    saved_model, _ = Densenet.export(run_name="mnist")
    os.rename(saved_model, "model/mnist/export-11000")
    pixels = np.random.RandomState(0).randint(0, 256, [28, 28]).astype(np.uint8)
    Image.fromarray(pixels).save("seven.png")
    (answer,) = Densenet.predict(run_name="mnist", images="seven.png")
    output = subprocess.run([sys.executable, "-c", example], check=True, stdout=subprocess.PIPE,
                            env=dict(os.environ, PYTHONPATH="")).stdout
    assert output.decode().strip() == answer["classes"][0]
