"""How are an evaluation's confusion matrix and mistakes, class activation maps and feature reuse drawn as pictures?

A card of TensorBoard is about 300 pixels wide and scales pictures to its width: wider ones become illegible.
"""

import functools
import io
import math
import os
import unicodedata

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from support import UserError
from support.evaluation import SHOWN_CLASSES
from support.run_directory import replace_file

CARD = 300  # width in pixels of a card
CONFUSED_CLASSES = 8  # in the picture of the most confused classes: with names and numbers as many as fit on a card
LONGEST_NAME = 10  # letters of a class name in a picture
LINE = 13  # height in pixels of a line of text
WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (120, 120, 120)
RIGHT, WRONG = np.array([40, 140, 70.0]), np.array([200, 50, 40.0])  # colours of cells with a share of 1
# Colours of shares of a maximum, from 0 to 1: distinguishable by their lightness alone, too
SCALE = np.array([[255, 250, 215], [255, 205, 90], [245, 120, 30], [205, 15, 45]], np.float64)
OUTLINE = np.array([255, 225, 0])
NO_CELL = np.array([228, 228, 232])  # colour of a layer that cannot be read
REUSE_FILE = "feature_reuse.png"
HEAT_MAP = "class activation map"  # title of the file, by which it is known again
WHOLE = ((0.0, 1.0), (0.0, 1.0))  # the part of an image that a map shows: all of it
OPACITY = 0.75  # of a class activation map's maximum over a picture


def pictures_of(evaluation, images, class_names, extent=WHOLE):
    """The pictures of an evaluation.

    Args:
        evaluation: a `support.evaluation.Evaluation`.
        images: those of the evaluated split, uint8 [N, H, W, C].
        class_names: names of the classes.
        extent: that of its maps, see `support.networks.extent_of_maps`.
    Returns:
        {name: (PNG as bytes, width, height)}: `confusion_matrix`, where there is one; `most_confused_classes`, where
        the matrix is too large for names and numbers; `most_confident_mistakes`, where there are mistakes.
    """
    pictures = {}
    class_names = _drawable(class_names)  # of all classes, for names that are distinct
    totals = evaluation.class_counts()
    if evaluation.confusion is not None:
        pictures["confusion_matrix"] = confusion_picture(evaluation.confusion, totals, class_names)
    if evaluation.mistakes:
        if len(class_names) > SHOWN_CLASSES:
            classes = evaluation.most_confused(CONFUSED_CLASSES)
            pictures["most_confused_classes"] = confusion_picture(
                evaluation.confusion_of(classes), totals[classes], [class_names[one] for one in classes])
        pictures["most_confident_mistakes"] = mistakes_picture(
            images, evaluation.mistakes, class_names, evaluation.maps, extent)
    return pictures


def confusion_picture(confusion, totals, class_names):
    """Draws a confusion matrix. Rows are true classes, and columns are predicted classes.

    The colour of a cell shows its share of the images of the true class. More than SHOWN_CLASSES classes are drawn
    without names and numbers.

    Args:
        confusion: int64 [true class, predicted class], in numbers of images.
        totals: the number of images of each true class; more than the sum of the row if classes are left out.
        class_names: names of the classes.
    Returns:
        (PNG as bytes, width, height).
    """
    count = len(class_names)
    shares = confusion / np.maximum(np.asarray(totals)[:, None], 1)
    strength = np.sqrt(shares)[:, :, None]  # the square root makes rare mistakes visible
    full = np.where(np.eye(count, dtype=bool)[:, :, None], RIGHT, WRONG)
    colours = (255 + (full - 255) * strength).astype(np.uint8)
    if count > SHOWN_CLASSES:
        cell = max(1, CARD // count)
        return _png(Image.fromarray(colours.repeat(cell, 0).repeat(cell, 1)))
    class_names = _drawable(class_names)
    margin = 8 + max(_text_size(name)[0] for name in class_names)
    widest = max(_text_size(str(images))[0] for images in confusion.ravel())
    cell = max(widest + 3, 16, min(36, (CARD - margin) // count))
    picture = Image.new("RGB", (margin + count * cell + 1, margin + count * cell + 1), WHITE)
    picture.paste(Image.fromarray(colours.repeat(cell, 0).repeat(cell, 1)), (margin, margin))
    _draw_names(picture, class_names, margin, cell)
    draw = ImageDraw.Draw(picture)
    for (true, predicted), images in np.ndenumerate(confusion):
        if images:
            width, height = _text_size(str(images))
            left, top = margin + predicted * cell, margin + true * cell
            draw.text((left + (cell - width + 1) // 2, top + (cell - height) // 2), str(images),
                      fill=WHITE if shares[true, predicted] > 0.3 else BLACK)
    for line in range(count + 1):
        place = margin + line * cell
        draw.line([(margin, place), (margin + count * cell, place)], fill=GREY)
        draw.line([(place, margin), (place, margin + count * cell)], fill=GREY)
    return _png(picture)


def _draw_names(picture, class_names, margin, cell):
    """Writes the names of the classes before the rows, and upright above the columns, of a confusion matrix."""
    draw = ImageDraw.Draw(picture)
    for index, name in enumerate(class_names):
        width, height = _text_size(name)
        place = margin + index * cell + (cell - height) // 2
        draw.text((margin - 4 - width, place), name, fill=BLACK)
        _draw_upright(picture, name, place - 2, margin - 4)


def _draw_upright(picture, text, left, bottom):
    """Writes a text that is read from bottom to top."""
    width, height = _text_size(text)
    upright = Image.new("RGB", (width + 2, height + 4), WHITE)
    ImageDraw.Draw(upright).text((0, 0), text, fill=BLACK)
    picture.paste(upright.rotate(90, expand=True), (left, bottom - width))


def mistakes_picture(images, mistakes, class_names, maps=None, extent=WHOLE):
    """Draws misclassified images, each with its true class, its predicted class and the probability of the latter.

    Args:
        images: uint8 [N, H, W, C]; C is 1 or 3.
        mistakes: as in `support.evaluation.Evaluation`, with indices into `images`.
        class_names: names of the classes.
        maps: the class activation map of each mistake's predicted class, float32 [mistakes, h, w]: a line is drawn
            around where the map is above half its maximum. None: no lines.
        extent: that of the maps, see `support.networks.extent_of_maps`.
    Returns:
        (PNG as bytes, width, height).
    """
    class_names = _drawable(class_names)
    columns = min(len(mistakes), 3)
    rows = math.ceil(len(mistakes) / columns)
    gap = 8
    side = CARD // 3 - gap
    picture = Image.new("RGB", (columns * (side + gap), rows * (side + 3 * LINE + gap)), WHITE)
    draw = ImageDraw.Draw(picture)
    for place, (index, true, predicted, probability) in enumerate(mistakes):
        left, top = place % columns * (side + gap) + gap // 2, place // columns * (side + 3 * LINE + gap)
        tile = _colour_image(images[index]).resize((side, side), Image.NEAREST)
        picture.paste(tile if maps is None else _outlined(tile, maps[place], extent), (left, top))
        draw.text((left, top + side + 1), class_names[true], fill=BLACK)
        for row, text in enumerate(("not " + class_names[predicted], "by %.1f%%" % (100 * probability))):
            draw.text((left, top + side + 1 + (row + 1) * LINE), text, fill=tuple(WRONG.astype(int).tolist()))
    return _png(picture)


def _outlined(tile, class_map, extent):
    """An RGB image with a line around the places where a class activation map is above half its maximum."""
    inside = np.pad(_shares(class_map, tile.size, extent) > 0.5, 1, "edge")
    whole = inside[1:-1, 1:-1]
    edge = whole & ~(inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:])
    around = np.pad(edge, 1, "constant")
    around = ~whole & (around[:-2, 1:-1] | around[2:, 1:-1] | around[1:-1, :-2] | around[1:-1, 2:])
    pixels = np.array(tile)
    pixels[around] = BLACK  # the line is seen on light and on dark images
    pixels[edge] = OUTLINE
    return Image.fromarray(pixels)


def heat_map(pixels, class_map, class_name, probability, extent=WHOLE):
    """Draws an image with the class activation map of a class over it; beneath, the class and the scale.

    The colours are those of the map's positive values, as shares of its maximum; where it is 0 or less, which speaks
    against the class, the image is unchanged.

    Args:
        pixels: uint8 [H, W, C]; C is 1 or 3.
        class_map: float32 [h, w], of any size, see `support.explanations.class_maps`.
        class_name, probability: of the class.
        extent: of the map, see `support.networks.extent_of_maps`.
    Returns:
        PNG as bytes, for which `is_heat_map` holds.
    """
    image = _colour_image(pixels)
    shares = _shares(class_map, image.size, extent)
    opacity = OPACITY * shares[..., None]
    mixed = np.asarray(image) * (1 - opacity) + _colours(shares) * opacity
    picture = Image.new("RGB", (max(CARD, image.width), image.height + 2 * LINE + 10), WHITE)
    picture.paste(Image.fromarray(mixed.round().astype(np.uint8)), ((picture.width - image.width) // 2, 0))
    answers = ("%s  %.1f%%" % (_drawable([class_name], letters)[0], 100 * probability) for letters in range(60, 3, -1))
    ImageDraw.Draw(picture).text((4, image.height + 2), next(
        answer for answer in answers if _text_size(answer)[0] < picture.width - 8), fill=BLACK)
    if shares.any():
        _draw_scale(picture, 4, image.height + LINE + 6, "0", "%.3g, evidence for the class" % class_map.max())
    else:
        ImageDraw.Draw(picture).text((4, image.height + LINE + 4), "its map is nowhere above 0", fill=BLACK)
    return _png(picture, HEAT_MAP)[0]


def is_heat_map(path):
    """Whether a file, whose name then ends in .png, is a picture that `heat_map` made."""
    if not path.endswith(".png"):
        return False
    try:
        with Image.open(path) as image:
            return image.info.get("Title") == HEAT_MAP
    except Exception:  # of any kind: it is no image
        return False


def reuse_pictures(reuse):
    """Draws what `support.explanations.feature_reuse` found, a picture for each dense block.

    Returns:
        {scope of a dense block: (PNG as bytes, width, height)}.
    """
    return {scope: _png(_reuse_image(scope, means)) for scope, means in reuse.items()}


def write_reuse_picture(directory, reuse):
    """Writes the pictures of what `support.explanations.feature_reuse` found as one file, the blocks side by side.

    The file is feature_reuse.png. An earlier one that differs, as of another checkpoint, gets another name first.

    Args:
        directory: the `support.run_directory.RunDirectory`.
        reuse: what was found.
    Raises:
        UserError: the file cannot be written.
    """
    path = os.path.join(directory.path, REUSE_FILE)
    png = _side_by_side(reuse)
    try:
        if os.path.exists(path):
            with open(path, "rb") as file:
                if file.read() == png:
                    return
            directory.keep(REUSE_FILE)
        replace_file(path, lambda file: file.write(png))
    except OSError as error:
        raise UserError("cannot write %s (%s): make room there" % (path, error.strerror)) from None


def _side_by_side(reuse):
    """The pictures of all blocks as one PNG, as bytes."""
    images = [_reuse_image(scope, means) for scope, means in reuse.items()]
    picture = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)), WHITE)
    left = 0
    for image in images:
        picture.paste(image, (left, 0))
        left += image.width
    return _png(picture)[0]


def _reuse_image(scope, means):
    """The picture of a block: rows are what is read, columns what reads, the last one framed as in the paper."""
    count = len(means)
    rows = ["input"] + ["layer %d" % layer for layer in range(count - 1)]
    columns = rows[1:] + ["classifier" if scope == "dense_final" else "transition"]
    left, top = 8 + max(_text_size(name)[0] for name in rows), 2 * LINE + 8 + _text_size(columns[-1])[0]
    cell = max(1, min(36, (CARD - left - 4) // count))
    strongest = np.nanmax(means)
    shares = np.nan_to_num(means / strongest) if strongest > 0 else np.zeros_like(means)
    colours = np.where(np.isnan(means)[..., None], NO_CELL, _colours(shares)).round().astype(np.uint8)
    end = left + count * cell, top + count * cell
    picture = Image.new("RGB", (max(CARD, end[0] + 4), end[1] + LINE + 12), WHITE)
    picture.paste(Image.fromarray(colours.repeat(cell, 0).repeat(cell, 1)), (left, top))
    draw = ImageDraw.Draw(picture)
    draw.text((4, 0), scope, fill=BLACK)
    draw.text((4, LINE), "row: what is read; column: what reads it", fill=GREY)
    step = math.ceil(LINE / cell)  # so many cells are as high as a line of text
    for index in sorted(set(range(0, count - step, step)) | {count - 1}):
        _draw_upright(picture, columns[index], left + index * cell + (cell - LINE) // 2, top - 6)
    for index in range(0, count, step):
        width, height = _text_size(rows[index])
        draw.text((left - 4 - width, top + index * cell + (cell - height) // 2), rows[index], fill=BLACK)
    draw.rectangle([end[0] - cell - 1, top - 1, end[0], end[1]], outline=BLACK)
    _draw_scale(picture, left, end[1] + 6, "0", "%.3g, mean |weight|" % strongest)
    return picture


def _draw_scale(picture, left, top, low, high):
    """Draws the colours of SCALE from left to right, between the values that they stand for."""
    draw = ImageDraw.Draw(picture)
    draw.text((left, top), low, fill=BLACK)
    left += _text_size(low)[0] + 5
    colours = _colours(np.linspace(0, 1, 80))[None].repeat(10, 0).round().astype(np.uint8)
    picture.paste(Image.fromarray(colours), (left, top + 1))
    draw.text((left + 85, top), high, fill=BLACK)


def _colours(shares):
    """The colour of each share from 0 to 1, float64 [..., 3]."""
    places = np.linspace(0, 1, len(SCALE))
    return np.stack([np.interp(shares, places, channel) for channel in SCALE.T], -1)


def _shares(class_map, size, extent):
    """A map's positive part as shares of its maximum, enlarged to an image of a size (width, height): [height, width].

    All zero, where nothing in the map is positive. Between the middles of the map's places it is linear. Beyond those
    at the edges it stays as it is there.
    """
    highest = float(class_map.max())
    if not 0 < highest < math.inf:
        return np.zeros(size[::-1])

    def weights(length, places, part):
        """The share of each place of the map in each pixel, [length, places]."""
        start, end = part
        where = ((np.arange(length) + 0.5) / length - start) / (end - start) * places - 0.5
        return np.maximum(0, 1 - np.abs(where.clip(0, places - 1)[:, None] - np.arange(places)))

    rows, columns = (weights(*one) for one in zip(size[::-1], class_map.shape, extent))
    return (rows @ (np.asarray(class_map, np.float64) / highest) @ columns.T).clip(0, 1)


def _colour_image(pixels):
    pixels = np.asarray(pixels)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")


def _drawable(names, longest=LONGEST_NAME):
    """Returns the names, cut to `longest` letters, without accents and with "?" for other non-ASCII ones, which
    Pillow's font may lack.

    A longer name keeps its end, too, by which names like `species 0017` differ. Names that would be equal get their
    places in the list, such as #12.
    """
    plain = ["".join(letter for letter in unicodedata.normalize("NFD", name) if not unicodedata.combining(letter))
             .encode("ascii", "replace").decode() for name in names]
    begin = longest // 2
    cut = [name if len(name) <= longest else name[:begin] + "~" + name[begin + 1 - longest:] for name in plain]
    numbers = ["#%d" % place if cut.count(name) > 1 else "" for place, name in enumerate(cut)]
    return [name[:longest - len(number)] + number for name, number in zip(cut, numbers)]


@functools.lru_cache(maxsize=10000)  # mostly numbers, drawn after every epoch; to measure one takes 0.5 ms
def _text_size(text):
    left, top, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), text)
    return math.ceil(right), math.ceil(bottom)


def _png(picture, title=None):
    info = PngInfo()
    if title:
        info.add_text("Title", title)
    stream = io.BytesIO()
    picture.save(stream, "PNG", pnginfo=info)
    return stream.getvalue(), picture.width, picture.height
