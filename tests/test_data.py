"""Data sets: statistics and the validation split."""

import numpy as np
import pytest

from support.data import Split, color_preprocessing, data_set
from support.file_reading import DataError


def test_statistics_are_computed_from_the_remaining_training_images():
    random = np.random.RandomState(0)
    train = Split(random.randint(0, 200, (40, 5, 7, 3)).astype(np.uint8), np.zeros(40, np.int64))
    test = Split(np.full((4, 5, 7, 3), 255, np.uint8), np.zeros(4, np.int64))
    data = data_set("any", train, test, ["a"], 10, black_border=True)
    pixels = data.train.images.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(data.mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(data.deviation, pixels.std(0), rtol=1e-6)
    normalized = color_preprocessing(data.train.images, data.mean, data.deviation)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(data.border, (0 - pixels.mean(0)) / pixels.std(0), rtol=1e-5)
    assert not data_set("any", train, test, ["a"], 10, black_border=False).border.any()


@pytest.mark.parametrize("size, count", [(0, 0), (7, 7), (0.1, 4), (0.99, 39)])
def test_a_validation_split_is_a_count_or_a_fraction(size, count):
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    data = data_set("tiny", Split(images, np.zeros(40, np.int64)), Split(images[:1], np.zeros(1, np.int64)), ("a",),
                    size, black_border=True)
    assert (len(data.validation), len(data.train)) == (count, 40 - count)
    assert sorted(np.concatenate([data.train.images, data.validation.images]).ravel().tolist()) == list(range(40))


def test_a_validation_split_of_all_images_is_refused():
    images = np.zeros([4, 1, 1, 1], np.uint8)
    split = Split(images, np.zeros(4, np.int64))
    with pytest.raises(DataError, match="validation_size=4 leaves nothing of the 4 training images of tiny"):
        data_set("tiny", split, split, ("a",), 4, black_border=True)
