"""Pixels of the pictures of an evaluation."""

import dataclasses
import io
import os

import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_evaluation import FOUND, NAMES, from_matrix

from support.pictures import (
    GREY,
    WHOLE,
    _shares,
    confusion_picture,
    heat_map,
    is_heat_map,
    mistakes_picture,
    pictures_of,
    reuse_pictures,
    write_reuse_picture,
)
from support.run_directory import RunDirectory

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


@pytest.mark.parametrize("names,drawn", [
    (["American shorthair", "American wirehair", "cat"], ["Ameri~ha#0", "Ameri~ha#1", "cat"]),
    (["猫", "犬", "chèvre", "Müller"], ["?#0", "?#1", "chevre", "Muller"]), (["a", "a?", "aé"], ["a", "a?", "ae"])])
def test_the_names_in_a_picture_are_distinct(names, drawn, monkeypatch):
    found = []
    monkeypatch.setattr("support.pictures.confusion_picture", lambda confusion, totals, names: found.append(names))
    pictures_of(dataclasses.replace(from_matrix(np.eye(len(names), dtype=int), []), mistakes=[]), None, names)
    assert found == [drawn]


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


def test_a_map_is_drawn_where_it_belongs():
    """Four places that show 80 of 100 rows from the 10th on, and all columns."""
    values = np.float32([[1, 0], [0, 0], [0, 0], [0, 4]])
    shares = _shares(values, (100, 100), ((0.1, 0.9), (0, 1)))
    rows, columns = np.unravel_index(shares.argmax(), shares.shape)
    assert 79 <= rows and 74 <= columns and shares.max() == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(shares[:20, 0], 0.25, atol=0.01)  # beyond the middle of the first place, it stays
    np.testing.assert_allclose(shares[80:, 99], 1, atol=0.01)
    assert shares[29, 0] == pytest.approx(0.25 * (1 - 9.5 / 20), abs=0.001)
    whole = _shares(values, (100, 100), WHOLE)
    expected = np.asarray(Image.fromarray(values / 4).resize((100, 100), Image.BILINEAR))
    np.testing.assert_allclose(whole, expected, atol=1e-6)


def test_a_mistakes_map_is_outlined_and_the_picture_kept():
    """Maps of 2x2 places: one with its maximum at the upper right, one without a positive value, one of one value."""
    images = np.full([3, 8, 8, 3], 90, np.uint8)
    mistakes = [(index, 0, 1, 0.5) for index in range(3)]
    maps = np.float32([[[-3, 5], [-9, -1]], [[-1, -1], [-2, 0]], [[4, 4], [4, 4]]])
    plain, outlined = (opened(mistakes_picture(images, mistakes, NAMES, given)) for given in (None, maps))
    changed = (plain != outlined).any(2)
    rows, columns = np.nonzero(changed)
    assert 0 < changed.sum() < 300 and columns.max() < 96 and rows.max() < 46 and columns.min() > 46
    line, around = (np.argwhere(changed & (outlined == colour).all(2)) for colour in ([255, 225, 0], [0, 0, 0]))
    assert len(line) + len(around) == changed.sum()
    assert line[:, 0].mean() < around[:, 0].mean() and line[:, 1].mean() > around[:, 1].mean()  # it is inside
    evaluation = from_matrix([[6, 2, 0], [1, 3, 0], [0, 0, 0]], mistakes)
    evaluation.maps = maps
    np.testing.assert_array_equal(opened(pictures_of(evaluation, images, NAMES)["most_confident_mistakes"]), outlined)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_heat_map_colours_what_speaks_for_the_class_and_nothing_else(channels):
    picture = np.full([320, 320, channels], 100, np.uint8)
    pixels = drawn(heat_map(picture, np.float32([[-4, 0.5], [-1, 8]]), "dog", 0.9))
    assert pixels.shape[0] > 340 and pixels.shape[1] == 320
    assert (pixels[:320, :80] == 100).all() and (pixels[:80, :160] == 100).all()  # against the class
    red, green, _ = pixels[318, 318]
    assert red > 150 and green < 60  # the maximum
    slightly = pixels[2, 318]
    assert slightly[0] > 100 and abs(slightly - 100).sum() < abs(pixels[318, 318] - 100).sum()
    assert (pixels[322:] < 100).any()  # text


def drawn(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.mark.parametrize("values", [[[-2, -1], [-5, -1]], [[0, 0], [0, 0]], [[np.nan, 1], [1, 1]]])
def test_a_map_without_a_positive_maximum_leaves_the_picture_unchanged(values):
    picture = np.random.RandomState(0).randint(0, 256, [300, 300, 3]).astype(np.uint8)
    np.testing.assert_array_equal(drawn(heat_map(picture, np.float32(values), "dog", 0.9))[:300], picture)


def test_a_map_of_one_place_colours_the_whole_picture_alike():
    pixels = drawn(heat_map(np.full([300, 300, 1], 50, np.uint8), np.float32([[3]]), "dog", 0.9))[:300]
    assert (pixels == pixels[0, 0]).all() and pixels[0, 0].tolist() != [50, 50, 50]


@pytest.mark.parametrize("name", ["dog", "a name that is much longer than a picture is wide, of a species 0017",
                                  "W" * 40, "émeu"])
def test_the_text_of_a_heat_map_is_not_cut_off(name):
    """The right-most and lowest pixels stay free, whatever the name."""
    pixels = drawn(heat_map(np.full([300, 300, 1], 50, np.uint8), np.float32([[3e-05]]), name, 1.0))
    assert (pixels[300:, -2:] == 255).all() and (pixels[-2:] == 255).all() and (pixels[300:] < 100).any()


def test_a_heat_map_is_known_again(folder):
    with open("a.png", "wb") as file:
        file.write(heat_map(np.zeros([9, 9, 3], np.uint8), np.float32([[3]]), "dog", 1.0))
    Image.new("RGB", (9, 9)).save("b.png")
    assert is_heat_map("a.png") and not is_heat_map("b.png") and not is_heat_map("absent.png")


REUSE = {"dense_0": np.array([[0.1, 0.3, 0.2], [np.nan, 0.4, 0.0], [np.nan, np.nan, 0.2]]),
         "dense_final": np.array([[1.0, 0.5], [np.nan, 0.0]])}


def test_feature_reuse_is_drawn_with_what_is_read_in_rows():
    pixels = opened(reuse_pictures(REUSE)["dense_0"])
    black = (pixels == 0).all(2)  # the frame of the last column
    left, right = np.flatnonzero(black.sum(0) > 100)[[0, -1]]
    top, bottom = np.flatnonzero(black[:, left:right + 1].sum(1) > 30)[[0, -1]]
    assert (right - left, bottom - top) == (37, 3 * 36 + 1)
    cells = np.array([[pixels[top + 19 + 36 * row, left + 19 + 36 * (column - 2)] for column in range(3)]
                      for row in range(3)])
    strength = 255 * 3 - cells.sum(2)  # darker is more
    assert strength[1, 1] > strength[0, 1] > strength[0, 2] > strength[0, 0] > strength[1, 2]
    assert strength[0, 2] == strength[2, 2] and len({tuple(cells[place]) for place in ((1, 0), (2, 0), (2, 1))}) == 1
    assert tuple(cells[1, 0]) not in {tuple(cells[place]) for place in np.ndindex(3, 3) if place[1] >= place[0]}


@pytest.mark.parametrize("layers", [1, 3, 48, 256])
def test_feature_reuse_fits_on_a_card(layers):
    means = np.triu(np.ones([layers + 1] * 2))
    means[np.tril_indices(layers + 1, -1)] = np.nan
    pixels = opened(reuse_pictures({"dense_0": means})["dense_0"])
    assert CARD <= pixels.shape[1] <= 1.1 * CARD and (pixels[:, -1] == 255).all() and (pixels[-1] == 255).all()


def test_weights_of_zero_are_drawn(folder):
    assert set(reuse_pictures({"dense_final": np.array([[0.0, 0.0], [np.nan, 0.0]])})) == {"dense_final"}


def test_the_picture_of_another_checkpoint_is_kept_under_another_name(folder):
    directory = RunDirectory("run", {})
    os.makedirs("run")
    write_reuse_picture(directory, REUSE)
    write_reuse_picture(directory, REUSE)
    assert os.listdir("run") == ["feature_reuse.png"]
    with open("run/feature_reuse.png", "rb") as file:
        before = file.read()
    write_reuse_picture(directory, {"dense_final": REUSE["dense_final"]})
    assert sorted(os.listdir("run")) == ["feature_reuse-1.png", "feature_reuse.png"]
    with open("run/feature_reuse-1.png", "rb") as file:
        assert file.read() == before
    assert Image.open("run/feature_reuse-1.png").width > Image.open("run/feature_reuse.png").width
