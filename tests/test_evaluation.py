"""Metrics of an evaluation with known values, and the evaluation of a network on a split."""

import collections
import dataclasses
import json
import tracemalloc
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import before_the_first_step, logits_in, tiny_config
from sklearn.metrics import balanced_accuracy_score

import Densenet
from support import projector
from support.data import Split
from support.evaluation import Evaluation, balanced_is_asked_for, evaluate_split, in_top
from support.pictures import pictures_of


def from_matrix(matrix, mistakes):
    """An Evaluation with the numbers of images [true class, predicted class] in `matrix`."""
    matrix = np.array(matrix)
    labels, predicted = (index.ravel().repeat(matrix.ravel()) for index in np.indices(matrix.shape))
    return Evaluation(0.5, labels, predicted, len(matrix), mistakes)


NAMES = ("cat", "dog", "émeu")
FOUND = from_matrix([[6, 2, 0], [1, 3, 0], [0, 0, 0]], [(4, 0, 1, 0.75), (2, 1, 0, 0.5)])


def test_metrics_have_known_values():
    assert FOUND.accuracy == 0.75
    assert FOUND.class_recall() == [0.75, 0.75, None]
    assert FOUND.confusions() == [(2, 0, 1), (1, 1, 0)]
    assert FOUND.class_counts().tolist() == [8, 4, 0]
    assert FOUND.confusion_of([1, 0]).tolist() == [[3, 1], [2, 6]] and FOUND.confusion_of([2]).tolist() == [[0]]
    content = FOUND.as_json(NAMES)
    assert content["images"] == 12 and content["confusion_matrix"] == [[6, 2, 0], [1, 3, 0], [0, 0, 0]]
    assert content["accuracy"] == 0.75 and content["class_recall"] == [0.75, 0.75, None]


def test_balanced_accuracy_matches_scikit_learn():
    random = np.random.RandomState(0)
    labels = random.choice(4, 200, p=[0.7, 0.2, 0.1, 0.0])
    predicted = np.where(random.rand(200) < 0.3, random.choice(3, 200), labels)
    found = Evaluation(0.5, labels, predicted, 4, [])
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted), rel=1e-12)
    assert found.as_json("abcd")["balanced_accuracy"] == found.balanced_accuracy != found.accuracy


def test_the_score_of_the_best_weights():
    found = from_matrix([[8, 0], [1, 1]], [])
    assert (found.score("accuracy"), found.score("balanced_accuracy")) == (0.9, 0.75)
    assert found.score("loss") == pytest.approx(0.60653066, rel=1e-6)  # exp(-0.5)


def test_accuracies_as_text():
    equal = from_matrix([[6, 2], [2, 4]], [])
    assert equal.accuracies() == "accuracy 71.43%"
    assert equal.accuracies(with_balanced=True) == "accuracy 71.43%, balanced accuracy 70.83%"
    assert FOUND.accuracies() == "accuracy 75.00%, balanced accuracy 75.00%"  # twice as many of one class
    assert dataclasses.replace(equal, in_top_5=7).accuracies() == "accuracy 71.43%, top-5 accuracy 50.00%"
    edge = from_matrix([[2, 0, 1], [0, 0, 0], [0, 0, 2]], [])  # 1.5 times as many; a class without images is no class
    assert edge.accuracies() == "accuracy 80.00%"


def test_balanced_accuracy_is_asked_for_by_the_settings_for_classes_of_unequal_size():
    found = {(weights, best_by) for weights in ("none", "balanced")
             for best_by in ("accuracy", "balanced_accuracy", "loss")
             if balanced_is_asked_for(Densenet.choose(class_weights=weights, best_by=best_by))}
    assert found == {("none", "balanced_accuracy"), ("balanced", "accuracy"), ("balanced", "balanced_accuracy"),
                     ("balanced", "loss")}


def test_top_5_accuracy_is_in_the_metrics_where_it_is_counted():
    assert "top_5_accuracy" not in FOUND.as_json(NAMES)
    assert dataclasses.replace(FOUND, in_top_5=9).as_json(NAMES)["top_5_accuracy"] == 0.75


def test_an_evaluation_asks_for_the_five_most_probable_classes(tiny_mnist):
    with before_the_first_step(tiny_mnist) as (sess, net, images, labels):
        logits = logits_in(tf.get_default_graph())[-1]
        found, logits = sess.run([net.test.in_top_5, logits], {net.test.images: images, net.test.labels: labels})
    rank = [sum(row > row[label]) for row, label in zip(logits, labels)]
    assert found.tolist() == [place < 5 for place in rank] and 0 < sum(found) < len(found)


def test_the_true_class_is_among_the_most_probable_ones():
    random = np.random.RandomState(0)
    logits = random.randn(99, 13).astype(np.float32)
    labels = random.randint(0, 13, 99)
    rank = [sum(row > row[label]) for row, label in zip(logits, labels)]
    with tf.Graph().as_default(), tf.Session() as sess:
        for most in (1, 5, 20):  # more than there are classes, too
            found = sess.run(in_top(tf.constant(logits), tf.constant(labels), most))
            assert found.tolist() == [place < most for place in rank]
        # A network that gives all classes the same probability has no top-5 accuracy of 100%.
        equal = sess.run(in_top(tf.zeros([13, 13]), tf.constant(np.arange(13)), 5))
        assert equal.tolist() == [True] * 5 + [False] * 8


def test_table():
    lines = [line.split() for line in FOUND.table(NAMES)]
    assert lines[2:] == [["cat", "75.00%", "6", "2", "."], ["dog", "75.00%", "1", "3", "."],
                         ["émeu", "none", ".", ".", "."]]
    for names, heads in ((("class 0", "class 1", "class 2"), "ass 0 ass 1 ass 2"),  # columns differ where names do
                         (("12345a12345", "12345b12345", "c"), "12345a12345 12345b12345 c")):
        assert " ".join(list(FOUND.table(names))[1].split()) == heads
    many = from_matrix(np.diag(np.full(30, 7)) + np.eye(30, k=3, dtype=int), [])
    lines = list(many.table(["class %d" % index for index in range(30)]))
    assert lines[0] == "recall of each class:"
    assert lines[6].split() == ["class", "5", "87.50%"] and lines[32].split() == [
        "1", "times", "class", "0", "for", "class", "3"]


def test_many_classes_have_the_frequent_confusions_instead_of_the_matrix():
    """Each of 300 classes has 10 images, but class 299; class 7 is taken for 9 three times, 40 to 59 for 0 once."""
    labels = np.repeat(np.arange(299), 10)
    predicted = labels.copy()
    predicted[70:73] = 9
    predicted[400:600:10] = 0
    evaluation = Evaluation(0.5, labels, predicted, 300, [])
    names = ["class %d" % index for index in range(300)]
    content = json.loads(json.dumps(evaluation.as_json(names)))
    assert "confusion_matrix" not in content and evaluation.confusion is None
    assert content["frequent_confusions"][0] == {"images": 3, "true": "class 7", "predicted": "class 9"}
    assert [entry["true"] for entry in content["frequent_confusions"][1:]] == names[40:60]
    assert content["class_recall"] == [1.0] * 7 + [0.7] + [1.0] * 32 + [0.9] * 20 + [1.0] * 239 + [None]
    lines = [" ".join(line.split()) for line in evaluation.table(names)]
    assert len(lines) == 42 and lines[0] == "lowest recall, of 300 classes, 299 of them with images:"
    assert lines[1:4] == ["class 7 70.00%", "class 40 90.00%", "class 41 90.00%"]
    assert lines[21:24] == ["most frequent confusions:", "3 times class 7 for class 9", "1 times class 40 for class 0"]
    assert evaluation.most_confused(4) == [0, 7, 9, 40]


class Network:
    """A session and its tensors: an image's channels say which class (two bytes) and which loss this answers."""

    def __init__(self, batch_size):
        self.net = types.SimpleNamespace(images=Placeholder(batch_size, 1, 1, 3), labels="labels", losses=0,
                                         predicted=1, probabilities=2, maps=3, in_top_5=4,
                                         embedding=Placeholder(None, 2))
        self.seen = 0

    def run(self, fetches, feeds):
        low, high, loss = feeds[self.net.images][:, 0, 0].T.astype(np.float32)
        self.seen += len(low)
        answers = {0: loss, 1: (low + 256 * high).astype(np.int64), 2: 1 / (1 + loss), 3: loss[:, None, None],
                   4: loss < 100,
                   self.net.embedding: np.stack([low, loss], 1)}
        return [answers[fetch] for fetch in fetches]


class Placeholder:
    """A tensor of which only the shape counts."""

    def __init__(self, *shape):
        self.shape = shape


def answered(count, class_num):
    """A data set of `count` images of which the Network errs in about a fifth: (data, split, its answers, losses)."""
    random = np.random.RandomState(count)
    labels = random.randint(0, class_num, count)
    predicted = np.where(random.rand(count) < 0.2, random.randint(0, class_num, count), labels)
    losses = random.randint(0, 256, count)
    images = np.stack([predicted % 256, predicted // 256, losses], 1).astype(np.uint8).reshape(count, 1, 1, 3)
    data = types.SimpleNamespace(class_names=["class %d" % index for index in range(class_num)],
                                 mean=np.zeros(3, np.float32), deviation=np.ones(3, np.float32))
    return data, Split(images, labels), predicted, losses


def check(evaluation, split, predicted, losses):
    assert evaluation.loss == pytest.approx(losses.mean(), rel=1e-12)
    assert evaluation.accuracy == np.mean(predicted == split.labels)
    # The Network's true class is among the five most probable ones for losses below 100.
    assert evaluation.top_5_accuracy == (np.mean(losses < 100) if evaluation.class_num > 10 else None)
    pairs = collections.Counter((true, found) for true, found in zip(split.labels.tolist(), predicted.tolist())
                                if true != found)
    assert evaluation.confusions() == sorted(((count,) + pair for pair, count in pairs.items()),
                                             key=lambda entry: (-entry[0],) + entry[1:])
    wrong = [index for index in range(len(predicted)) if predicted[index] != split.labels[index]]
    surest = sorted(wrong, key=lambda index: losses[index])[:12]  # the probability is 1 / (1 + loss)
    assert [mistake[:3] for mistake in evaluation.mistakes] == [
        (index, split.labels[index], predicted[index]) for index in surest]
    assert [mistake[3] for mistake in evaluation.mistakes] == pytest.approx(1 / (1 + losses[surest]), rel=1e-6)
    assert evaluation.maps.ravel().tolist() == losses[surest].tolist()


def test_an_evaluation_has_each_images_answer():
    data, split, predicted, losses = answered(99, 7)
    session = Network(13)
    check(evaluate_split(session, session.net, split, data), split, predicted, losses)


def test_without_mistakes_there_are_no_maps():
    data, split, predicted, _ = answered(20, 7)
    session = Network(13)
    evaluation = evaluate_split(session, session.net, Split(split.images, predicted), data)
    assert evaluation.mistakes == [] and evaluation.maps is None and evaluation.embedding is None


def test_the_embedding_is_of_evenly_spaced_images_where_there_are_many(monkeypatch):
    monkeypatch.setattr(projector, "MOST_POINTS", 40)
    data, split, predicted, losses = answered(99, 7)
    session = Network(13)
    rows, vectors = evaluate_split(session, session.net, split, data, embed=True).embedding
    assert rows.tolist() == [place * 99 // 40 for place in range(40)]
    np.testing.assert_array_equal(vectors, np.stack([predicted[rows] % 256, losses[rows]], 1))


def test_all_workers_get_the_result_of_all_images():
    data, split, predicted, losses = answered(99, 7)
    sent, seen = [], []

    def evaluate_as(task, total):
        session = Network(13)
        cluster = types.SimpleNamespace(task=task, workers=["a", "b", "c"], total=total)
        evaluation = evaluate_split(session, session.net, split, data, cluster, embed=True)
        seen.append(session.seen)
        return evaluation

    for task in range(3):
        evaluate_as(task, lambda sess, values: sent.append(values) or values)
    # 8 batches, of which the last is padded, and in each worker one of mistakes
    assert seen == [52, 52, 39] and len({len(values) for values in sent}) == 1
    for task in range(3):
        evaluation = evaluate_as(task, lambda sess, values: np.sum(sent, 0))
        check(evaluation, split, predicted, losses)
        rows, vectors = evaluation.embedding
        assert rows.tolist() == list(range(99))
        np.testing.assert_array_equal(vectors, np.stack([predicted % 256, losses], 1))


def test_memory_grows_with_the_number_of_classes_and_not_with_its_square():
    peaks = {}
    for class_num in (200, 2000, 10000):
        data, split, predicted, losses = answered(3 * class_num, class_num)
        session = Network(500)
        tracemalloc.start()
        evaluation = evaluate_split(session, session.net, split, data)
        content = json.dumps(evaluation.as_json(data.class_names))
        lines = list(evaluation.table(data.class_names))
        pictures = pictures_of(evaluation, split.images, data.class_names)
        peaks[class_num] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(lines) < 250 and "most_confused_classes" in pictures
        assert len(content) < 1000000 and all(width <= 320 for _, width, _ in pictures.values())
    # Fixed parts make the growth smaller than that of the classes, by 10 and by 5; squares would grow by 100 and 25.
    assert peaks[2000] < 10 * peaks[200] and peaks[10000] < 7 * peaks[2000], peaks


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
