"""Data sets: statistics, the validation split, what identifies a data set, and the summary of classes."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from support import data as data_module
from support.data import (
    Split,
    balanced_class_weights,
    class_summary,
    color_preprocessing,
    data_set,
    normalize_by,
    same_data,
)
from support.file_reading import DataError


@pytest.mark.parametrize("chunk_pixels", [1, 100, 2 ** 22])
def test_statistics_are_computed_from_the_remaining_training_images(chunk_pixels, monkeypatch):
    monkeypatch.setattr(data_module, "CHUNK_PIXELS", chunk_pixels)
    random = np.random.RandomState(0)
    train = Split(random.randint(0, 200, (40, 5, 7, 3)).astype(np.uint8), np.zeros(40, np.int64))
    test = Split(np.full((4, 5, 7, 3), 255, np.uint8), np.zeros(4, np.int64))
    data = data_set("any", train, test, ["a"], 10)
    pixels = data.train.images.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(data.mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(data.deviation, pixels.std(0), rtol=1e-6)
    normalized = color_preprocessing(data.train.images, data.mean, data.deviation)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(data.border, (0 - pixels.mean(0)) / pixels.std(0), rtol=1e-5)
    assert not data_set("cifar10", train, test, ["a"], 10).border.any()


@pytest.mark.parametrize("size, count", [(0, 0), (7, 7), (0.1, 4), (0.99, 39)])
def test_a_validation_split_is_a_count_or_a_fraction(size, count):
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    data = data_set("tiny", Split(images, np.zeros(40, np.int64)), Split(images[:1], np.zeros(1, np.int64)), ("a",),
                    size)
    assert (len(data.validation), len(data.train)) == (count, 40 - count)
    assert sorted(np.concatenate([data.train.images, data.validation.images]).ravel().tolist()) == list(range(40))


def test_a_validation_split_of_all_images_is_refused():
    images = np.zeros([4, 1, 1, 1], np.uint8)
    split = Split(images, np.zeros(4, np.int64))
    with pytest.raises(DataError, match="validation_size=4 leaves nothing of the 4 training images of tiny"):
        data_set("tiny", split, split, ("a",), 4)


def labelled(*labels):
    return Split(np.zeros([len(labels), 2, 2, 1], np.uint8), np.array(labels, np.int64))


def test_a_given_validation_split_is_used_and_all_training_images_are_trained_on():
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    train, given = Split(images, np.zeros(40, np.int64)), Split(images[:3] + 100, np.zeros(3, np.int64))
    data = data_set("tiny", train, given, ("a",), 39, validation=given)
    assert data.validation is given and data.train.images.ravel().tolist() == list(range(40))
    assert abs(data.mean[0] - 19.5) < 1e-6
    with pytest.raises(DataError, match="tiny has no training images"):
        data_set("tiny", labelled(), given, ("a",), 0, validation=given)


def test_a_class_keeps_an_image_for_training():
    train = labelled(*[0] * 30, *[1] * 3, *[2] * 2)
    without = data_set("folder", train, labelled(0), "abc", 30)
    data = data_set("folder", train, labelled(0), "abc", 30, keep_classes=True)
    lost = set(range(3)) - set(without.train.labels)
    assert lost and set(data.train.labels) == {0, 1, 2}
    assert (len(data.train), len(data.validation)) == (5 + len(lost), 30 - len(lost))
    images = np.arange(90, dtype=np.uint8).reshape(90, 1, 1, 1)
    train = Split(images, np.arange(90) % 3)  # no class is lost: the draw is that of before
    draws = [data_set("folder", train, labelled(0), "abc", 20, keep_classes=keep).validation for keep in (False, True)]
    np.testing.assert_array_equal(*(draw.images for draw in draws))


def test_a_pixel_range_belongs_to_what_identifies_a_data_set_if_there_is_one():
    data = data_set("tiny", labelled(0, 0), labelled(0), ("a",), 0)
    before = data.fingerprint()
    assert set(before) == {"train", "validation", "test", "crc32", "image_shape", "class_names"}
    data.pixel_range = (0.0, 65536.0)
    now = data.fingerprint()
    assert now == dict(before, pixel_range=[0, 65536], white_is_zero=True)
    assert same_data(before, now) and same_data(now, before) and same_data(now, dict(now))
    assert not same_data(now, dict(now, pixel_range=[0, 4096]))
    assert same_data(dict(before, pixel_range=[0, 65536]), now)  # as an earlier version recorded it
    assert not same_data(before, dict(now, crc32=1)) and not same_data(dict(before, train=3), before)


BALANCING = ("class_weights=balanced", "best_by=balanced_accuracy")


def summary(train, validation, test, names=("cat", "dog", "owl"), **options):
    data = data_set("tiny", labelled(*train), labelled(*test), names, 0,
                    validation=labelled(*validation))
    return list(class_summary(data, **options))


def test_the_summary_has_the_number_of_images_of_each_class_and_split():
    assert summary([0] * 5 + [1] * 6 + [2] * 7, [0, 1, 1, 2], [0, 1, 2, 2, 2]) == [
        "3 classes (training + validation + test images): cat 5 + 1 + 1, dog 6 + 2 + 1, owl 7 + 1 + 3"]


def test_the_summary_points_out_what_a_class_lacks():
    lines = summary([0] * 4 + [1] * 5, [0], [2, 1])
    assert lines[1:] == ["fewer than 5 training images, too few to learn from: cat, owl",
                         "no validation images, so that nothing is known of the accuracy: dog, owl",
                         "no test images, so that nothing is known of the accuracy: cat"]
    assert summary([0] * 5 + [1] * 5 + [2] * 5, [], [0, 1, 2])[1:] == []  # without a validation split


def test_the_summary_of_many_classes_shows_the_smallest():
    names = ["c%d" % label for label in range(100)]
    train = [label for label in range(100) for _ in range(3 if label in (7, 50, 98) else 9)]
    lines = summary(train, [], range(0, 100, 2), names, most=2)
    assert lines == [
        "100 classes (training + validation + test images), the 2 smallest of which are: c7 3 + 0 + 0, c50 3 + 0 + 1",
        "fewer than 5 training images, too few to learn from: c7, c50 and 1 more",
        "no test images, so that nothing is known of the accuracy: c7, c1 and 48 more"]


def test_classes_of_unequal_size_are_pointed_out():
    train = [0] * 40 + [1] * 12 + [2] * 20
    assert summary(train, [], [0, 1, 2], remedies=BALANCING)[1:] == [
        "cat has 40 training images, and dog 12: to count each class alike, give class_weights=balanced and "
        "best_by=balanced_accuracy"]
    assert summary(train, [], [0, 1, 2])[1:] == []
    assert summary(train + [1] * 2, [], [0, 1, 2], remedies=BALANCING)[1:] == []
    without_owls = summary(train[:52], [], [0, 1, 2], remedies=BALANCING[:1])
    assert without_owls[2] == "cat has 40 training images, and dog 12: to count each class alike, give " + BALANCING[0]


def test_balanced_class_weights_match_scikit_learn():
    labels = np.repeat([0, 1, 3], [50, 7, 13])  # class 2 has no image
    found = balanced_class_weights(labels, 4)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    np.testing.assert_allclose(found[[0, 1, 3]], expected, rtol=1e-6)
    assert found[2] == 0 and found[labels].mean() == pytest.approx(1.0)


def test_images_are_normalized_as_weights_need_them():
    mean, deviation = np.float32([1, 2, 4]), np.float32([2, 4, 8])
    for name, border in (("digits", [-0.5, -0.5, -0.5]), ("cifar100_coarse", [0, 0, 0]), ("folder", [0, 0, 0])):
        split = Split(np.arange(60, dtype=np.uint8).reshape(5, 2, 2, 3), np.arange(5))
        data = data_set(name, split, split, "abcde", 0)
        normalize_by(data, mean, deviation)
        assert data.mean.tolist() == [1, 2, 4] and data.deviation.tolist() == [2, 4, 8]
        assert data.border.tolist() == border
