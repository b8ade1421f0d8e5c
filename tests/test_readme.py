"""README.md and docs/ match the program: commands, settings, links, pictures, the export example, the length."""

import glob
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import TINY
from PIL import Image
from test_image_folder import TINY_FOLDER, shapes  # noqa: F401

import benchmark
import Densenet
from support import pretrained, settings

ROOT = os.path.dirname(os.path.abspath(Densenet.__file__))
PAGES = {os.path.relpath(path, ROOT): open(path, encoding="utf-8").read()
         for path in [os.path.join(ROOT, "README.md")] + sorted(glob.glob(os.path.join(ROOT, "docs", "*.md")))}
README = PAGES["README.md"]


def commands_in(page, program):
    """Returns the arguments of each command on the page that runs the program."""
    found = re.findall(r"^    (?:\w+=\S+ )*python %s(.*?)(?:\s+#.*)?$" % re.escape(program), PAGES[page], re.MULTILINE)
    found += re.findall(r"`python %s([^`]*)`" % re.escape(program), PAGES[page])
    return [[argument for argument in command.split() if argument not in ("--help", "…")] for command in found]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_commands_in_the_docs_parse(page, monkeypatch):
    monkeypatch.setattr(pretrained, "look_up", lambda *_: pretrained.StartingPoint("x", {}, None, None, None))
    for arguments in commands_in(page, "Densenet.py"):
        Densenet.choose(arguments)
    for arguments in commands_in(page, "benchmark.py"):
        settings.given_in(arguments, {}, settings.declared(benchmark))


def test_commands_and_pages_are_found():
    assert len(commands_in("README.md", "Densenet.py")) > 12
    assert set(PAGES) >= {"README.md"} | {"docs/%s.md" % name for name in (
        "results", "performance", "distributed", "fault-tolerance", "tuning", "paper")}


def test_the_readme_is_short():
    assert README.count("\n") <= 170 and len(README.encode()) <= 9000


def test_the_usage_table_lists_all_hyperparameters():
    text = PAGES["docs/usage.md"]
    table = text[text.index("| group | hyperparameters |"):].split("\n\n")[0]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(settings.declared(Densenet))


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_and_pictures_exist(page):
    folder = os.path.dirname(os.path.join(ROOT, page))
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if not link.startswith("http"):
            assert os.path.getsize(os.path.join(folder, link)) > 500, link


def test_the_setting_line_in_the_readme_matches_the_program():
    (line,) = re.findall(r"^    (growth_k: .*)$", README, re.MULTILINE)
    with open(Densenet.__file__, encoding="utf-8") as file:
        assert line in file.read().splitlines()


def test_the_index_of_support_names_every_module():
    with open(os.path.join(ROOT, "support", "__init__.py"), encoding="utf-8") as file:
        index = re.findall(r"^    (\w+)  +\S", file.read().split('"""')[1], re.MULTILINE)
    modules = [os.path.basename(path)[:-3] for path in glob.glob(os.path.join(ROOT, "support", "*.py"))]
    assert sorted(index + ["__init__"]) == sorted(modules)


@pytest.mark.skipif(tf.VERSION.startswith("1."), reason="the example is for TensorFlow 2; its loader is not in 1.15")
@pytest.mark.once
@pytest.mark.parametrize("dataset", ["mnist", "folder"])
def test_the_export_example_in_the_readme_runs(tiny_mnist, shapes, folder, dataset):  # noqa: F811
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    given, shape = {"mnist": (dict(TINY, data_dir=tiny_mnist), [28, 28]),
                    "folder": (dict(TINY_FOLDER, data_dir=shapes, crop_area=0.5), [70, 90, 3])}[dataset]
    Densenet.train(run_name="mnist", **given)
    saved_model, _ = Densenet.export(run_name="mnist")
    (path,) = set(re.findall(r"export/mnist/\d+", example))
    os.rename(saved_model, path)
    pixels = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save("seven.png")
    (answer,) = Densenet.predict(run_name="mnist", images="seven.png")
    if dataset == "folder":
        example = example.replace("[2, 28, 28, 1]", "[2, 32, 32, 3]")
    output = subprocess.run([sys.executable, "-c", example], check=True, stdout=subprocess.PIPE,
                            env=dict(os.environ, PYTHONPATH="")).stdout.decode()
    name, *probabilities, names = output.strip().splitlines()
    assert name == answer["classes"][0]
    assert len(re.findall(r"\d\.\d+|\de-\d\d", "".join(probabilities))) == 2 * len(answer["classes"])
    assert len(re.findall(r"b'\w+'", names)) == 2
