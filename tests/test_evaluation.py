"""Metrics of an evaluation with known values, and the evaluation of a network on a split."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import tiny_config

import Densenet
from support.evaluation import Evaluation, evaluate_split

NAMES = ("cat", "dog", "émeu")
FOUND = Evaluation(0.5, np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]]), [(4, 0, 1, 0.75), (2, 1, 0, 0.5)])


def test_metrics_have_known_values():
    assert FOUND.accuracy == 0.75
    assert FOUND.class_accuracies() == [0.75, 0.75, None]
    assert FOUND.confusions() == [(2, 0, 1), (1, 1, 0)]
    content = FOUND.as_json(NAMES)
    assert content["images"] == 12 and content["confusion_matrix"] == [[6, 2, 0], [1, 3, 0], [0, 0, 0]]


def test_table():
    lines = [line.split() for line in FOUND.table(NAMES)]
    assert lines[2:] == [["cat", "75.00%", "6", "2", "."], ["dog", "75.00%", "1", "3", "."],
                         ["émeu", "none", ".", ".", "."]]
    many = Evaluation(0.5, np.diag(np.full(30, 7)) + np.eye(30, k=3, dtype=int), [])
    lines = list(many.table(["class %d" % index for index in range(30)]))
    assert lines[5].split() == ["class", "5", "87.50%"] and lines[31].split() == [
        "1", "times", "class", "0", "for", "class", "3"]


def test_evaluation_counts_every_image(tiny_mnist):
    results = []
    for batch_size in (45, 7, 44):  # of 45 test images; the last batch has 0, 4 and 43 padding images
        config = tiny_config(tiny_mnist, batch_size=batch_size)
        data, _ = Densenet.prepare_data(config)
        with tf.Graph().as_default(), tf.Session() as sess:
            net = Densenet.build_graph(data, config)
            sess.run(net.initialize)
            evaluation = evaluate_split(sess, net.test, data.test, data)
            results.append((evaluation.loss, evaluation.accuracy))
    assert results[1] == pytest.approx(results[0], rel=1e-5) and results[2] == pytest.approx(results[0], rel=1e-5)
