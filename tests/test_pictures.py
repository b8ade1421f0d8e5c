"""Pixels of the pictures of an evaluation."""

import io

import numpy as np
from PIL import Image
from test_evaluation import FOUND, NAMES

from support.pictures import confusion_picture, mistakes_picture


def opened(picture):
    png, width, height = picture
    image = Image.open(io.BytesIO(png))
    assert image.size == (width, height)
    return np.asarray(image.convert("RGB")).astype(int)


def test_confusion_picture():
    pixels = opened(confusion_picture(FOUND.confusion, NAMES))
    side = 3 * 36 + 1
    cells = pixels[-side:, -side:]
    corner = [[cells[36 * row + 3, 36 * column + 3].tolist() for column in range(3)] for row in range(3)]
    right, wrong, empty = corner[0][0], corner[0][1], corner[0][2]
    assert right[1] > right[0] and wrong[0] > wrong[1] and empty == [255, 255, 255]
    large = opened(confusion_picture(np.eye(1000, dtype=int), ["name"] * 1000))
    assert large.shape == (1000, 1000, 3) and large[7, 8].tolist() == [255, 255, 255]


def test_mistakes_picture():
    for channels in (1, 3):
        images = np.arange(5, dtype=np.uint8).repeat(16 * channels).reshape(5, 4, 4, channels) * 40
        pixels = opened(mistakes_picture(images, FOUND.mistakes, NAMES))
        assert pixels[20, 20].tolist() == [160] * 3 and pixels[20, 136 + 20].tolist() == [80] * 3
