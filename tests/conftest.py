"""Shared fixtures: tiny data sets in the official formats, and the real data sets where available."""

import gzip
import os
import struct
import sys

# Before anything imports TensorFlow
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # as in Densenet.py, which some tests import after TensorFlow
# As `support.workers.Cluster` sets it. TensorFlow reads it once in a process, when the first session is made.
os.environ["TF_OVERRIDE_GLOBAL_THREADPOOL"] = "1"

import numpy as np
import pytest

import mnist_loader

REAL_DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "shared", "data")


def pytest_addoption(parser):
    parser.addoption("--campaigns", action="store_true", help="also the slower tests, which CI runs")
    parser.addoption("--long", action="store_true", help="also the whole campaigns of test_faults.py, test_workers.py")


def pytest_cmdline_main(config):
    if getattr(config.option, "dist", "no") == "load":  # with -n: tests that share a fixture are to share a process
        config.option.dist = "worksteal"


def pytest_configure(config):
    config.addinivalue_line("markers", "campaign: a slower test, which runs with --campaigns or --long alone")
    config.addinivalue_line("markers", "once: a campaign that does not depend on TensorFlow's version, so that "
                            "--campaigns runs it with the newest alone")
    config.addinivalue_line("markers", "long: a test that runs with --long alone")


def pytest_collection_modifyitems(config, items):
    left_out = set() if config.getoption("--long") else {"long"}
    if left_out and not config.getoption("--campaigns"):
        left_out.update(("campaign", "once"))
    elif left_out and sys.version_info < (3, 10):  # then TensorFlow is 1.15, see requirements.txt
        left_out.add("once")
    dropped = [item for item in items if left_out & {mark.name for mark in item.iter_markers()}]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


def write_images(path, images):
    """Writes uint8 [N, 28, 28] as an IDX file, compressed if the name ends in .gz."""
    write(path, struct.pack(">4I", 2051, *images.shape) + images.tobytes())


def write_labels(path, labels):
    write(path, struct.pack(">2I", 2049, len(labels)) + np.asarray(labels, np.uint8).tobytes())


def write(path, content):
    with (gzip.open if path.endswith(".gz") else open)(path, "wb") as file:
        file.write(content)


def digits_like(count, random):
    """Returns learnable images and their labels: the direction and width of the stripes encode the class."""
    labels = random.randint(0, 10, count)
    images = random.randint(0, 60, (count, 28, 28)).astype(np.uint8)
    for image, label in zip(images, labels):
        stripes = image if label < 5 else image.T
        stripes[np.arange(28) // (label % 5 + 1) % 2 == 1] += 190
    return images, labels


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(str(tmp_path))
    return str(tmp_path)


@pytest.fixture(scope="session")
def tiny_mnist(tmp_path_factory):
    """A data_dir with four small files in MNIST's format: 330 training images, 45 test images."""
    folder = tmp_path_factory.mktemp("data") / "mnist"
    folder.mkdir()
    random = np.random.RandomState(1)
    train_images, train_labels, test_images, test_labels = (str(folder / name) for name in mnist_loader.FILES)
    for images_path, labels_path, count in ((train_images, train_labels, 330), (test_images, test_labels, 45)):
        images, labels = digits_like(count, random)
        write_images(images_path, images)
        write_labels(labels_path, labels)
    return str(folder.parent)


@pytest.fixture(scope="session")
def real_data():
    if not os.path.isdir(REAL_DATA):
        pytest.skip("the real data sets are not at hand (%s)" % os.path.normpath(REAL_DATA))
    return REAL_DATA
