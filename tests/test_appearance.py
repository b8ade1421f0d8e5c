"""Images that look unlike the training images are noticed; handwriting is made to look like MNIST's."""

import itertools

import numpy as np
import pytest
from PIL import Image

from support.appearance import appearance_of, as_handwriting, differences, is_handwritten, measures_of


def stroke(side=28, top=4, left=9, height=20, width=10):
    """A white block on black, uint8 [side, side, 1]."""
    image = np.zeros([side, side, 1], np.uint8)
    image[top:top + height, left:left + width] = 250
    return image


# Blocks of 18 to 20 rows around the centre, as digits in MNIST.
TRAINING = appearance_of(np.stack([stroke(top=4 + move, height=20 - move) for move in (0, 1, 2)]))


def test_measures_have_known_values():
    found = measures_of(stroke())
    assert found == {"brightness": pytest.approx(200 * 250 / 784 / 255), "background": 0.0,
                     "contrast": pytest.approx(250 / 255), "extent": pytest.approx(20 / 28), "offset": 0.0}
    corner = measures_of(stroke(top=0, left=0, height=4, width=2))
    assert corner["extent"] == pytest.approx(4 / 28)
    assert corner["offset"] == pytest.approx(np.hypot(14 - 2, 14 - 1) / 28)
    assert TRAINING["extent"] == [pytest.approx(rows / 28) for rows in (18, 19, 20)]


@pytest.mark.parametrize("image, part", [
    (stroke() // 5 * 4, "its contrast is lower than that of all training images"),
    (255 - stroke(), "its background is lighter than that of all training images"),
    (stroke(top=11, left=12, height=6, width=3),
     "what is drawn is as long as 21% of the image's side, in the training images 64 to 71%"),
    (stroke(top=0, left=0, height=19, width=10), "what is drawn is not in the centre"),
    (np.full([28, 28, 1], 255, np.uint8), "it is almost blank: what is drawn may be too small, pale or transparent"),
    (np.zeros([28, 28, 1], np.uint8), "it is almost blank: what is drawn may be too small, pale or transparent"),
])
def test_handwriting_unlike_the_training_images_is_noticed(image, part):
    assert differences(image, TRAINING, handwritten=True) == [part]


def test_what_training_saw_is_not_noticed():
    assert differences(stroke(), TRAINING, handwritten=True) == []
    assert differences(stroke(top=5, height=18), TRAINING, handwritten=True) == []
    assert differences(255 - stroke(), {}, handwritten=True) == []  # a run that recorded nothing


def test_photographs_are_compared_by_brightness_and_contrast_alone():
    random = np.random.RandomState(0)
    photos = random.randint(60, 180, [9, 16, 16, 3]).astype(np.uint8)
    appearance = appearance_of(photos)
    assert differences(photos[0], appearance, handwritten=False) == []
    moved = np.roll(photos[0], 5, 0)
    assert differences(moved, appearance, handwritten=False) == []
    assert differences(np.zeros_like(photos[0]), appearance, handwritten=False) == ["it is almost blank"]
    dark = (photos[0] // 4).astype(np.uint8) * np.uint8([1, 0, 0])
    dark[0, :2] = 255
    assert differences(dark, appearance, handwritten=False) == ["it is darker than all training images"]


def digit(size=(300, 200), box=(20, 30, 60, 150), ink=0, paper=255):
    """A page with a dark bar in a corner, as a PIL image; width and height of the bar: 40 and 120 pixels."""
    page = np.full(size[::-1], paper, np.uint8)
    page[box[1]:box[3], box[0]:box[2]] = ink
    return Image.fromarray(page)


@pytest.mark.parametrize("image", [
    digit(), digit(ink=255, paper=0), digit(ink=90, paper=200), digit().convert("RGB"), digit().convert("RGBA"),
    Image.fromarray(np.asarray(digit()).astype(np.uint16) * 257), Image.fromarray(np.float32(digit()) / 255)])
def test_a_page_with_a_small_digit_becomes_white_on_black_centred_and_large(image):
    found = as_handwriting(image, 28, {})
    assert found.shape == (28, 28, 1) and found.dtype == np.uint8
    shown = found[..., 0] > 128
    assert shown[4:24].any(1).all() and shown.sum() == 20 * 7  # 120 : 40 pixels are 20 : 7
    assert shown[4:24, 10:17].all() or shown[4:24, 11:18].all()  # 28 - 7 is odd
    assert differences(found, TRAINING, handwritten=True) == []


@pytest.mark.parametrize("ink, paper", [(40, 220), (230, 130)])
@pytest.mark.parametrize("size, shadow", [("small", "side"), ("small", "corners"), ("small", "edge"),
                                          ("large", "side"), ("large", "corners")])
def test_shadows_on_paper_are_taken_away(size, shadow, ink, paper):
    page = np.full([300, 400], paper, np.float64)
    top, left, side = (100, 60, 90) if size == "small" else (40, 90, 230)
    width = side // 7
    page[top:top + width, left:left + side] = page[top:top + side, left + side - width:left + side] = ink  # a 7
    row, column = np.meshgrid(np.linspace(-1, 1, 300), np.linspace(-1, 1, 400), indexing="ij")
    depth = {"side": (column + 1) / 2, "corners": (row ** 2 + column ** 2) / 2,
             "edge": 1 / (1 + np.exp(-20 * (column - 0.3)))}[shadow]
    shaded, even = (as_handwriting(Image.fromarray(array.round().astype(np.uint8)), 28, {}).astype(int)
                    for array in (page * (1 - 0.4 * depth), page))
    moved = [np.roll(shaded, move, (0, 1)) for move in itertools.product((-1, 0, 1), repeat=2)]  # the centre of mass is
    assert max(((even > 100) == (image > 100)).mean() for image in moved) > 0.99


def test_a_thick_character_on_even_paper_stays_whole():
    rows, columns = np.ogrid[:300, :300]
    disc = np.where(np.hypot(rows - 150, columns - 150) < 82, 30, 230).astype(np.uint8)
    found = as_handwriting(Image.fromarray(disc), 28, {})
    assert (found[10:18, 10:18] > 250).all() and found.max() == 255


def test_a_character_that_reaches_the_edge_of_the_image_stays_whole():
    page = np.full([240, 200], 255, np.uint8)
    page[20:55, 20:180] = page[20:220, 145:180] = 0  # a 7
    whole, cropped = (as_handwriting(Image.fromarray(image), 28, {}) for image in (page, page[20:220, 20:195]))
    np.testing.assert_allclose(cropped.astype(int), whole, atol=2)


def test_thin_strokes_become_as_bright_as_others():
    """Resizing makes their brightest pixels darker."""
    page = np.full([600, 450], 235, np.uint8)
    page[100:500, 200:203] = page[100:103, 200:300] = 185
    found = as_handwriting(Image.fromarray(page), 28, TRAINING)
    assert measures_of(found)["contrast"] == 1


@pytest.mark.parametrize("white", [0, 255])
def test_a_transparent_page_shows_its_strokes(white):
    page = np.full([100, 100, 4], white, np.uint8)
    page[..., 3] = 0
    page[20:70, 10:20, 3] = 255
    found = as_handwriting(Image.fromarray(page), 28, {})
    assert found.max() == 255 and found[0].max() == 0 and (found[4:24, 12:16] > 128).all()


def test_the_usual_extent_of_the_training_images_is_taken():
    found = as_handwriting(digit(), 28, {"extent": [0.8, 24 / 28, 0.9]})
    assert (np.ptp(np.nonzero(found.max((1, 2)) > 128)[0]) + 1) == 24


def test_pixels_that_are_no_numbers_are_passed_over():
    page = np.float32(digit())
    page[0, 0] = np.nan
    assert np.array_equal(as_handwriting(Image.fromarray(page), 28, {}), as_handwriting(digit(), 28, {}))


def test_a_blank_page_stays_blank():
    assert as_handwriting(Image.new("L", (50, 40), 255), 28, {}).max() == 0


def test_the_names_of_handwritten_data_sets():
    assert [is_handwritten(name) for name in ("mnist", "digits", "kmnist", "emnist_letters")] == [True] * 4
    assert not any(map(is_handwritten, ("fashion_mnist", "cifar10", "folder")))


def test_at_most_2000_images_are_measured():
    class Counted:
        read = 0

        def __len__(self):
            return 50000

        def __getitem__(self, rows):
            Counted.read += 1
            return stroke()[None]

    assert appearance_of(Counted())["extent"][2] == pytest.approx(20 / 28) and Counted.read == 2000
