"""How are the confusion matrix and the mistakes of an evaluation drawn as pictures?"""

import io
import math

import numpy as np
from PIL import Image, ImageDraw

from support.evaluation import SHOWN_CLASSES

WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (120, 120, 120)
RIGHT, WRONG = np.array([40, 140, 70.0]), np.array([200, 50, 40.0])  # colours of cells with a share of 1


def confusion_picture(confusion, class_names):
    """Draws the confusion matrix. Rows are true classes, and columns are predicted classes.

    The colour of a cell shows its share of the row.

    Args:
        confusion: int64 [true class, predicted class], in numbers of images.
        class_names: names of the classes.
    Returns:
        (PNG as bytes, width, height).
    """
    count = len(class_names)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    strength = np.sqrt(shares)[:, :, None]  # the square root makes rare mistakes visible
    full = np.where(np.eye(count, dtype=bool)[:, :, None], RIGHT, WRONG)
    cell = 36 if count <= SHOWN_CLASSES else max(1, 800 // count)
    colours = (255 + (full - 255) * strength).astype(np.uint8).repeat(cell, 0).repeat(cell, 1)
    if count > SHOWN_CLASSES:
        return _png(Image.fromarray(colours))
    class_names = _drawable(class_names)
    margin = 12 + max(_text_size(name)[0] for name in class_names)
    picture = Image.new("RGB", (margin + count * cell + 1, margin + count * cell + 1), WHITE)
    picture.paste(Image.fromarray(colours), (margin, margin))
    draw = ImageDraw.Draw(picture)
    for index, name in enumerate(class_names):
        width, height = _text_size(name)
        place = margin + index * cell + (cell - height) // 2
        draw.text((margin - 6 - width, place), name, fill=BLACK)
        upright = Image.new("RGB", (width + 2, height + 4), WHITE)
        ImageDraw.Draw(upright).text((0, 0), name, fill=BLACK)
        picture.paste(upright.rotate(90, expand=True), (place - 2, margin - 6 - width))
    for (true, predicted), images in np.ndenumerate(confusion):
        if images:
            width, height = _text_size(str(images))
            colour = WHITE if shares[true, predicted] > 0.3 else BLACK
            draw.text((margin + predicted * cell + (cell - width) // 2, margin + true * cell + (cell - height) // 2),
                      str(images), fill=colour)
    for line in range(count + 1):
        place = margin + line * cell
        draw.line([(margin, place), (margin + count * cell, place)], fill=GREY)
        draw.line([(place, margin), (place, margin + count * cell)], fill=GREY)
    return _png(picture)


def mistakes_picture(images, mistakes, class_names):
    """Draws misclassified images, each with its true class, its predicted class and the probability of the latter.

    Args:
        images: uint8 [N, H, W, C]; C is 1 or 3.
        mistakes: as in `support.evaluation.Evaluation`, with indices into `images`.
        class_names: names of the classes.
    Returns:
        (PNG as bytes, width, height).
    """
    class_names = _drawable(class_names)
    columns = min(len(mistakes), 5)
    rows = math.ceil(len(mistakes) / columns)
    side, line = 128, 14
    picture = Image.new("RGB", (columns * (side + 8), rows * (side + 2 * line + 8)), WHITE)
    draw = ImageDraw.Draw(picture)
    for place, (index, true, predicted, probability) in enumerate(mistakes):
        left, top = place % columns * (side + 8) + 4, place // columns * (side + 2 * line + 8)
        pixels = np.asarray(images[index])
        tile = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
        picture.paste(tile.resize((side, side), Image.NEAREST), (left, top))
        draw.text((left, top + side + 1), class_names[true][:20], fill=BLACK)
        draw.text((left, top + side + line), "not %s, %.1f%%" % (class_names[predicted][:14], 100 * probability),
                  fill=tuple(WRONG.astype(int).tolist()))
    return _png(picture)


def _drawable(names):
    """Returns the names with "?" for non-ASCII characters, which Pillow's default font may lack."""
    return [name.encode("ascii", "replace").decode() for name in names]


def _text_size(text):
    left, top, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), text)
    return math.ceil(right), math.ceil(bottom)


def _png(picture):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue(), picture.width, picture.height
