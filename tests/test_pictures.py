"""Pixels of the pictures of an evaluation."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_evaluation import FOUND, NAMES, from_matrix

from support.pictures import GREY, confusion_picture, mistakes_picture, pictures_of

CARD = 300  # pixels that a card of TensorBoard shows, about


def opened(picture):
    png, width, height = picture
    image = Image.open(io.BytesIO(png))
    assert image.size == (width, height)
    return np.asarray(image.convert("RGB")).astype(int)


def grid_of(pixels):
    """The places of a confusion picture's grid lines: the grey pixels of its last row but one."""
    return np.flatnonzero((pixels[-5] == GREY).all(1)).tolist()


def test_confusion_picture():
    pixels = opened(confusion_picture(FOUND.confusion, FOUND.class_counts(), NAMES))
    side = 3 * 36 + 1
    cells = pixels[-side:, -side:]
    corner = [[cells[36 * row + 3, 36 * column + 3].tolist() for column in range(3)] for row in range(3)]
    right, wrong, empty = corner[0][0], corner[0][1], corner[0][2]
    assert right[1] > right[0] and wrong[0] > wrong[1] and empty == [255, 255, 255]
    large = opened(confusion_picture(np.eye(150, dtype=int), np.ones(150), ["name"] * 150))
    assert large.shape == (300, 300, 3) and large[7, 8].tolist() == [255, 255, 255]


@pytest.mark.parametrize("names", [list("0123456789"), "airplane automobile bird cat deer dog frog horse ship truck"
                                   .split(), ["a long name, that is cut: %d" % index for index in range(10)]])
def test_ten_classes_fit_on_a_card_with_legible_numbers(names):
    confusion = np.full((10, 10), 12) + np.diag(np.full(10, 980))
    pixels = opened(confusion_picture(confusion, confusion.sum(1), names))
    lines = grid_of(pixels)
    assert max(pixels.shape[:2]) <= 1.1 * CARD and len(lines) == 11
    left, _, right, _ = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), "992")
    assert set(np.diff(lines)) == {lines[1] - lines[0]} and lines[1] - lines[0] > right


def test_many_classes_are_shown_by_those_that_are_confused_most():
    matrix = np.diag(np.full(30, 5))
    matrix[3, 17], matrix[17, 3], matrix[20, 8] = 4, 3, 2
    for class_num, expected in ((30, {"confusion_matrix", "most_confused_classes", "most_confident_mistakes"}),
                                (300, {"most_confused_classes", "most_confident_mistakes"})):
        evaluation = from_matrix(matrix, [(0, 3, 17, 0.9)])
        evaluation.class_num = class_num
        pictures = pictures_of(evaluation, np.zeros((200, 4, 4, 1), np.uint8), ["c%d" % i for i in range(class_num)])
        assert set(pictures) == expected
        pixels = opened(pictures["most_confused_classes"])
        lines = grid_of(pixels)
        assert len(lines) == 5 and max(pixels.shape[:2]) <= 1.1 * CARD  # classes 3, 8, 17 and 20
        inside = [[pixels[lines[row] + 3, lines[column] + 3].tolist() for column in range(4)] for row in range(4)]
        coloured = {(row, column) for row in range(4) for column in range(4) if inside[row][column] != [255] * 3}
        assert coloured == {(0, 0), (1, 1), (2, 2), (3, 3), (0, 2), (2, 0), (3, 1)}
    assert set(pictures_of(from_matrix(matrix[:3, :3], []), None, NAMES)) == {"confusion_matrix"}


def test_a_share_is_that_of_all_images_of_the_class():
    """Half of the images of the first class have a predicted class that is left out."""
    alone = opened(confusion_picture(np.array([[5, 0], [0, 5]]), [5, 5], ["a", "b"]))
    of_more = opened(confusion_picture(np.array([[5, 0], [0, 5]]), [10, 5], ["a", "b"]))
    lines = grid_of(alone)
    first, second = ((lines[place] + 3,) * 2 for place in (0, 1))
    assert of_more[first][0] > alone[first][0] == alone[second][0] == of_more[second][0]

    matrix = np.diag(np.full(30, 5))
    matrix[range(0, 8, 2), range(1, 8, 2)] = 9  # 8 classes fill the picture
    few = opened(pictures_of(from_matrix(matrix, [(0, 0, 1, 0.9)]), np.zeros((999, 4, 4, 1), np.uint8),
                             ["c"] * 30)["most_confused_classes"])
    matrix[0, 20:30] = 8
    more = opened(pictures_of(from_matrix(matrix, [(0, 0, 1, 0.9)]), np.zeros((999, 4, 4, 1), np.uint8),
                              ["c"] * 30)["most_confused_classes"])
    lines = grid_of(few)
    first, third = ((lines[place] + 3,) * 2 for place in (0, 2))
    assert more[first][0] > few[first][0] and more[third][0] == few[third][0]


def test_mistakes_picture():
    for channels in (1, 3):
        images = np.arange(5, dtype=np.uint8).repeat(16 * channels).reshape(5, 4, 4, channels) * 40
        pixels = opened(mistakes_picture(images, FOUND.mistakes, NAMES))
        assert pixels[20, 20].tolist() == [160] * 3 and pixels[20, 100 + 20].tolist() == [80] * 3
        pixels = opened(mistakes_picture(images, FOUND.mistakes * 6, NAMES))
        assert pixels.shape[1] == CARD
