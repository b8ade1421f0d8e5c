"""Batches and data augmentation, compared with NumPy and SciPy."""

import numpy as np
import pytest
import scipy.interpolate
import scipy.ndimage
from helpers import tiny_config

import Densenet
from support.augmentation import (
    RandomShare,
    batches_of_steps,
    data_augmentation,
    random_crop,
    random_cutout,
    random_distortion,
    training_batches,
)
from support.data import color_preprocessing


class Drawn:
    """Replaces a RandomState; returns the given values and checks their shape and range."""

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


def test_random_crop():
    images = np.random.RandomState(0).rand(2, 5, 7, 3).astype(np.float32)
    border = np.float32([7, 8, 9])
    shifted = random_crop(images, 2, False, border, Drawn([[0, 4], [3, 2]]))  # rows from the top, columns from the left
    np.testing.assert_array_equal(shifted[0, 2:, :6], images[0, :3, 1:])
    np.testing.assert_array_equal(shifted[1, :3], images[1, 2:])
    assert (shifted[0, :2] == border).all() and (shifted[0, :, 6] == border).all() and (shifted[1, 3:] == border).all()


def test_random_cutout():
    """As in the paper, the centre of the square is a pixel of the image, and the square is clipped at the edges."""
    images = np.random.RandomState(0).rand(3, 5, 7, 3).astype(np.float32)
    border = np.float32([7, 8, 9])
    hidden = random_cutout(images, 3, border, Drawn([0, 2, 4], [0, 3, 6]))  # rows, columns of the centres
    assert hidden.dtype == np.float32
    for image, before, row, column in zip(hidden, images, (0, 2, 4), (0, 3, 6)):
        for i in range(5):
            for j in range(7):
                expected = border if abs(i - row) <= 1 and abs(j - column) <= 1 else before[i, j]
                np.testing.assert_array_equal(image[i, j], expected)


@pytest.mark.parametrize("degrees", [0.0, 10.0, -37.0])
def test_random_rotation(degrees):
    random = np.random.RandomState(0)
    images = np.full((2, 25, 23, 2), np.float32([3, -1]))
    images[:, 7:18, 7:16] = random.rand(2, 11, 9, 2)
    turned = random_distortion(images, np.float32([3, -1]), Drawn([degrees, 0.0]), rotation=45.0)
    for channel, border in enumerate((3, -1)):
        expected = scipy.ndimage.rotate(images[0, ..., channel], degrees, reshape=False, order=1, cval=border)
        np.testing.assert_allclose(turned[0, 1:-1, 1:-1, channel], expected[1:-1, 1:-1], atol=1e-4)
    np.testing.assert_allclose(turned[1], images[1], atol=1e-5)


def test_rotation_fills_corners_with_the_border():
    turned = random_distortion(np.zeros((1, 9, 9, 1), np.float32), np.float32([5]), Drawn([45.0]), rotation=45.0)
    np.testing.assert_array_equal(turned[0, [0, 0, 8, 8], [0, 8, 0, 8], 0], 5)
    assert turned[0, 4, 4, 0] == 0


def test_scaling_and_shear_match_scipy():
    """An image grows by exp(-0.2) downwards and exp(0.3) to the right; rows are shifted by tan(20°) of their place."""
    image = np.zeros((1, 25, 23, 1), np.float32)
    image[0, 7:18, 7:16, 0] = np.random.RandomState(0).rand(11, 9)
    changed = random_distortion(image, np.float32([0]), Drawn([20.0], [0.2], [-0.3]), scaling=0.5, shear=30.0)
    source = np.array([[1, 0], [np.tan(np.radians(20)), 1]]) @ np.diag(np.exp([0.2, -0.3]))
    centre = np.array([12, 11])
    expected = scipy.ndimage.affine_transform(image[0, ..., 0], source, centre - source @ centre, order=1)
    np.testing.assert_allclose(changed[0, 1:-1, 1:-1, 0], expected[1:-1, 1:-1], atol=1e-5)


def test_an_elastic_distortion_moves_pixels_by_cubic_splines():
    """Of 7x7 drawn values; the coordinates of an image's own pixels show where each pixel comes from."""
    side, values = 28, np.random.RandomState(0).uniform(-1, 1, (2, 49, 1))
    image = np.stack(np.indices((side, side)), -1).astype(np.float32)[None]
    moved = random_distortion(image, np.float32([0, 0]), Drawn(*values), elastic=0.7)[0] - image[0]
    places = (np.arange(side) + 0.5) / side * 4
    basis = scipy.interpolate.BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)
    weights = np.nan_to_num(np.stack([basis(places - knot) for knot in range(-1, 6)], 1))  # [28, 7]
    usual = np.sqrt((weights ** 2).sum(1).mean() ** 2 / 3)
    inside = slice(6, -6)  # nearer to the edges a pixel can come from beyond them
    for axis in range(2):
        expected = weights @ values[axis].reshape(7, 7) @ weights.T * 0.7 / usual
        np.testing.assert_allclose(moved[inside, inside, axis], expected[inside, inside], atol=1e-4)


def test_an_elastic_distortion_has_the_given_standard_deviation():
    image = np.tile(np.arange(28, dtype=np.float32)[:, None], (2000, 1, 28, 1)).reshape(2000, 28, 28, 1)
    moved = random_distortion(image, np.float32([0]), np.random.RandomState(0), elastic=0.7) - image
    assert abs(moved[:, 5:-5, 5:-5].std() - 0.7) < 0.03


def test_alternate_flips_show_each_image_both_ways_in_two_epochs(tiny_mnist):
    config = tiny_config(tiny_mnist, augmentation=True, shift=0, flip=True, alternate_flip=True, batch_size=60)
    data, _ = Densenet.prepare_data(config)
    seen = []
    for epoch in range(4):
        order = np.random.RandomState([config.seed, epoch]).permutation(len(data.train))
        batches = np.concatenate([images for images, _ in training_batches(data, config, epoch, 0)])
        its = {}
        for place, image in zip(order, batches):
            plain = color_preprocessing(data.train.images[place][None], data.mean, data.deviation)[0]
            assert (image == plain).all() or (image == plain[:, ::-1]).all()
            its[place] = bool((image != plain).any())
        seen.append(its)
    for place in set(seen[0]) & set(seen[1]):
        assert seen[0][place] != seen[1][place]
    for place in set(seen[0]) & set(seen[2]):
        assert seen[0][place] == seen[2][place]
    assert 0.3 < np.mean(list(seen[0].values())) < 0.7


def test_augmentation_shifts_by_whole_pixels_and_flips():
    images = np.random.RandomState(0).rand(300, 9, 7, 2).astype(np.float32)
    border = np.float32([-7, 5])
    changed = data_augmentation(images, border, np.random.RandomState(1), shift=2, flip=True)
    seen = []
    for image, moved in zip(images, changed):
        padded = np.empty((13, 11, 2), np.float32)
        padded[...] = border
        padded[2:11, 2:9] = image
        found = [(top, left, flip) for top in range(5) for left in range(5) for flip in (1, -1)
                 if (padded[top:top + 9, left:left + 7][:, ::flip] == moved).all()]
        assert len(found) == 1
        seen += found
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))
    assert 110 < sum(flip == -1 for _, _, flip in seen) < 190


@pytest.mark.parametrize("options", [dict(shift=2), dict(rotation=10.0), dict(flip=True), dict(shift=1, flip=True),
                                     dict(cutout=3), dict(scaling=0.2), dict(shear=9.0), dict(elastic=1.0)])
def test_augmentation_is_reproducible_and_keeps_its_input(options):
    images = np.random.RandomState(0).rand(30, 9, 7, 2).astype(np.float32)
    before = images.copy()
    first = data_augmentation(images, np.float32([0, 1]), np.random.RandomState(1), **options)
    np.testing.assert_array_equal(images, before)
    assert (first != images).any() and first.dtype == np.float32
    np.testing.assert_array_equal(first, data_augmentation(images, np.float32([0, 1]), np.random.RandomState(1),
                                                           **options))
    assert (first != data_augmentation(images, np.float32([0, 1]), np.random.RandomState(2), **options)).any()


def test_batches_are_reproducible_and_cover_the_training_images_once(tiny_mnist):
    config = tiny_config(tiny_mnist, augmentation=False)
    data, _ = Densenet.prepare_data(config)
    before = data.train.images.copy()
    batches = list(training_batches(data, config, epoch=3, first_batch=0))
    assert len(batches) == 6 and all(images.shape == (50, 28, 28, 1) for images, _ in batches)
    seen = {image.tobytes() for images, _ in batches for image in images}
    assert len(seen) == 300
    for first, second in zip(batches[4:], training_batches(data, config, 3, 4)):
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1], second[1])
    other = next(training_batches(data, config, 4, 0))
    assert (other[0] != batches[0][0]).any()
    changed = {}
    for place in ((0, 3, 0), (0, 3, 1), (0, 4, 0), (1, 3, 0)):  # seed, epoch, batch
        images = [next(training_batches(data, tiny_config(tiny_mnist, seed=place[0]), *place[1:]))[0]
                  for _ in range(2)]
        np.testing.assert_array_equal(images[0], images[1])
        changed[place] = images[0]
    assert (changed[0, 3, 0] != batches[0][0]).any()
    assert len({images.tobytes() for images in changed.values()}) == 4
    np.testing.assert_array_equal(data.train.images, before)


def test_the_batches_of_steps_are_those_of_their_epochs(tiny_mnist):
    config = tiny_config(tiny_mnist)
    data, _ = Densenet.prepare_data(config)
    expected = [*training_batches(data, config, 1, 2), *training_batches(data, config, 2, 0)]  # 6 batches an epoch
    found = list(batches_of_steps(8, 18, data, config))
    assert len(found) == len(expected) == 10
    for (images, labels), (its_images, its_labels) in zip(found, expected):
        np.testing.assert_array_equal(images, its_images)
        np.testing.assert_array_equal(labels, its_labels)
    assert not list(batches_of_steps(18, 18, data, config))


def test_a_random_share_is_part_of_the_whole_draw():
    whole, share = np.random.RandomState(1), RandomShare(np.random.RandomState(1), slice(2, 5), 9)
    np.testing.assert_array_equal(share.randint(0, 99, (2, 3)), whole.randint(0, 99, (2, 9))[:, 2:5])
    np.testing.assert_array_equal(share.uniform(-1, 1, 3), whole.uniform(-1, 1, 9)[2:5])
