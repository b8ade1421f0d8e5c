"""The embedding of the test images, as TensorBoard's projector serves it."""

import io
import json
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from PIL import Image
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.projector import projector_plugin
from test_evaluation import from_matrix
from werkzeug.test import Client
from werkzeug.wrappers import Response

from support import projector
from support.projector import shown_images, thumbnails, write_projector
from support.tensorboard import RunLogs

NAMES = ("cat", "a\ttab", "two\r\nlines", "émeu")


def embedded(rows, channels=3):
    """An Evaluation of 8 images of 4 classes, the second of which is misclassified, with the embedding of some."""
    evaluation = from_matrix(2 * np.eye(4, dtype=int), [])
    evaluation.predicted[1] = 2
    vectors = np.random.RandomState(0).randn(len(rows), channels).astype(np.float32)
    evaluation.embedding = np.array(rows), vectors
    return evaluation


class Served:
    """TensorBoard's projector plugin in this process, on a log_dir."""

    def __init__(self, log_dir):
        multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(log_dir)
        multiplexer.Reload()
        needed = [multiplexer] if tf.VERSION.startswith("1.") else [multiplexer, log_dir]
        provider = data_provider.MultiplexerDataProvider(*needed)
        plugin = projector_plugin.ProjectorPlugin(
            TBContext(multiplexer=multiplexer, data_provider=provider, logdir=log_dir))
        self._apps = plugin.get_plugin_apps()

    def get(self, route, **query):
        response = Client(self._apps["/" + route], Response).get("/" + route, query_string=query)
        assert response.status_code == 200, response.data
        return response.data


def logged(evaluation, images, step=6, log_dir="logs"):
    run = RunLogs(log_dir, "run", "model/run")
    run.open(step, tf.Graph(), {})
    run.evaluation("test", step, evaluation, images, NAMES)
    run.close()
    assert run.problem is None


@pytest.mark.parametrize("log_dir, name", [("logs", "run"), ("logs/run", ".")])
def test_the_projector_shows_vectors_classes_and_thumbnails(folder, log_dir, name):
    """Also where TensorBoard is started on the folder of the run."""
    evaluation = embedded([0, 1, 4, 6, 7])
    images = np.random.RandomState(1).randint(0, 256, [8, 5, 7, 3]).astype(np.uint8)
    logged(evaluation, images)
    served = Served(log_dir)
    assert json.loads(served.get("runs")) == [name]
    (found,) = json.loads(served.get("info", run=name))["embeddings"]
    assert found["tensorName"] == "5 of 8 test images, step 6" and found["tensorShape"] == [5, 3]
    query = dict(run=name, name=found["tensorName"])
    vectors = np.frombuffer(served.get("tensor", **query), np.float32).reshape(5, 3)
    np.testing.assert_allclose(vectors, evaluation.embedding[1], rtol=1e-4)
    lines = served.get("metadata", **query).decode().split("\n")
    assert [line.split("\t") for line in lines] == [
        ["class", "predicted", "result", "index"], ["cat", "cat", "right", "0"],
        ["cat", "two\\r\\nlines", "wrong", "1"], ["two\\r\\nlines", "two\\r\\nlines", "right", "4"],
        ["émeu", "émeu", "right", "6"], ["émeu", "émeu", "right", "7"]]
    sprite = np.asarray(Image.open(io.BytesIO(served.get("sprite_image", **query))))
    assert found["sprite"]["singleImageDim"] == [7, 5] and sprite.shape == (10, 21, 3)
    for place, row in enumerate([0, 1, 4, 6, 7]):
        top, left = place // 3 * 5, place % 3 * 7
        np.testing.assert_array_equal(sprite[top:top + 5, left:left + 7], images[row])


def test_a_later_embedding_replaces_the_files_of_the_earlier_one(folder):
    images = np.zeros([8, 5, 5, 1], np.uint8)
    logged(embedded([0, 1]), images, 6)
    with open("logs/run/projector/mine.tsv", "w"):
        pass
    logged(embedded([0, 1, 2]), images, 12)
    assert sorted(os.listdir("logs/run/projector")) == [
        "embedding-12.tsv", "images-12.tsv", "mine.tsv", "thumbnails-12.png"]
    served = Served("logs")
    (found,) = json.loads(served.get("info", run="run"))["embeddings"]
    assert found["tensorName"] == "3 of 8 test images, step 12"


def test_one_image_is_shown(folder):
    logged(embedded([5], 1), np.zeros([8, 5, 5, 1], np.uint8))
    served = Served("logs")
    (found,) = json.loads(served.get("info", run="run"))["embeddings"]
    assert len(served.get("tensor", run="run", name=found["tensorName"])) == 4


def test_without_an_embedding_nothing_is_written(folder):
    logged(from_matrix(np.eye(4, dtype=int), []), np.zeros([8, 5, 5, 1], np.uint8))
    assert not os.path.exists("logs/run/projector_config.pbtxt") and not os.path.exists("logs/run/projector")


@pytest.mark.parametrize("count, channels, expected", [(1, 5, 1), (10000, 100, 10000), (26032, 64, 10000),
                                                       (50000, 1024, 4096), (3, 10 ** 9, 1)])
def test_as_many_images_are_shown_as_the_projector_can_take(count, channels, expected):
    rows = shown_images(count, channels)
    assert len(rows) == expected and rows[0] == 0 and rows[-1] >= count - 1 - count // expected
    assert rows.dtype == np.int64 and set(np.diff(rows)) <= {count // expected, count // expected + 1}


@pytest.mark.parametrize("count, side, expected", [(9, 28, 28), (10000, 28, 28), (4096, 224, 64), (10000, 64, 40)])
def test_the_thumbnails_fit_into_one_picture(count, side, expected):
    sprite, size = thumbnails(np.zeros([1, side, side, 3], np.uint8), np.zeros(count, int))
    assert size == (expected, expected) and max(sprite.size) <= 4096
    assert sprite.size[0] // expected * (sprite.size[1] // expected) >= count


def test_a_failure_to_write_leaves_the_configuration_as_it_was(folder, monkeypatch):
    """It names files that are there."""
    images = np.zeros([8, 5, 5, 1], np.uint8)
    os.makedirs("run")
    write_projector("run", 6, embedded([0, 1]), images, NAMES)

    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(projector, "replace_file", full)
    with pytest.raises(OSError, match="No space"):
        write_projector("run", 12, embedded([0, 1]), images, NAMES)
    with open("run/projector_config.pbtxt") as file:
        assert "embedding-6.tsv" in file.read()
    assert os.path.exists("run/projector/embedding-6.tsv")
