"""The steps that the loaders share, against NumPy in float64 and SciPy."""

import numpy as np
import pytest
import scipy.ndimage

from support.data import Split, data_set, normalize, random_rotation, random_shift


class Drawn:
    """In place of a RandomState: gives what the test wants drawn."""

    def __init__(self, *values):
        self.values = list(values)

    def uniform(self, low, high, size):
        return self._next(low, high, size)

    def randint(self, low, high, size):
        return self._next(low, high - 1, size)

    def _next(self, low, high, size):
        value = np.asarray(self.values.pop(0))
        assert value.shape == (tuple(size) if np.iterable(size) else (size,))
        assert (low <= value).all() and (value <= high).all()
        return value


def test_statistics_are_those_of_the_kept_training_images():
    random = np.random.RandomState(0)
    train = Split(random.randint(0, 200, (40, 5, 7, 3)).astype(np.uint8), np.zeros(40, np.int64))
    test = Split(np.full((4, 5, 7, 3), 255, np.uint8), np.zeros(4, np.int64))
    data = data_set("any", train, test, ["a"], 10, black_border=True)
    pixels = data.train.images.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(data.mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(data.deviation, pixels.std(0), rtol=1e-6)
    normalized = normalize(data.train.images, data.mean, data.deviation)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(data.border, normalize(np.zeros(3, np.uint8), data.mean, data.deviation))
    assert not data_set("any", train, test, ["a"], 10, black_border=False).border.any()


def test_random_shift():
    images = np.random.RandomState(0).rand(2, 5, 7, 3).astype(np.float32)
    border = np.float32([7, 8, 9])
    shifted = random_shift(images, 2, border, Drawn([[0, 4], [3, 2]]))  # rows from the top, columns from the left
    np.testing.assert_array_equal(shifted[0, 2:, :6], images[0, :3, 1:])
    np.testing.assert_array_equal(shifted[1, :3], images[1, 2:])
    assert (shifted[0, :2] == border).all() and (shifted[0, :, 6] == border).all() and (shifted[1, 3:] == border).all()


@pytest.mark.parametrize("degrees", [0.0, 10.0, -37.0])
def test_random_rotation(degrees):
    random = np.random.RandomState(0)
    images = np.full((2, 25, 23, 2), np.float32([3, -1]))
    images[:, 7:18, 7:16] = random.rand(2, 11, 9, 2)
    turned = random_rotation(images, 45.0, np.float32([3, -1]), Drawn([degrees, 0.0]))
    for channel, border in enumerate((3, -1)):
        expected = scipy.ndimage.rotate(images[0, ..., channel], degrees, reshape=False, order=1, cval=border)
        np.testing.assert_allclose(turned[0, 1:-1, 1:-1, channel], expected[1:-1, 1:-1], atol=1e-4)
    np.testing.assert_allclose(turned[1], images[1], atol=1e-5)


def test_rotation_brings_in_the_border():
    turned = random_rotation(np.zeros((1, 9, 9, 1), np.float32), 45.0, np.float32([5]), Drawn([45.0]))
    np.testing.assert_array_equal(turned[0, [0, 0, 8, 8], [0, 8, 0, 8], 0], 5)
    assert turned[0, 4, 4, 0] == 0
