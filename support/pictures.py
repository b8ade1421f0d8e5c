"""How are the confusion matrix and the mistakes of an evaluation drawn as pictures?

A card of TensorBoard is about 300 pixels wide and scales pictures to its width: wider ones become illegible.
"""

import io
import math

import numpy as np
from PIL import Image, ImageDraw

from support.evaluation import SHOWN_CLASSES

CARD = 300  # width in pixels of a card
CONFUSED_CLASSES = 8  # in the picture of the most confused classes: with names and numbers as many as fit on a card
LONGEST_NAME = 10  # letters of a class name in a picture
WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (120, 120, 120)
RIGHT, WRONG = np.array([40, 140, 70.0]), np.array([200, 50, 40.0])  # colours of cells with a share of 1


def pictures_of(evaluation, images, class_names):
    """The pictures of an evaluation.

    Args:
        evaluation: a `support.evaluation.Evaluation`.
        images: those of the evaluated split, uint8 [N, H, W, C].
        class_names: names of the classes.
    Returns:
        {name: (PNG as bytes, width, height)}: `confusion_matrix`, where there is one; `most_confused_classes`, where
        the matrix is too large for names and numbers; `most_confident_mistakes`, where there are mistakes.
    """
    pictures = {}
    totals = evaluation.class_counts()
    if evaluation.confusion is not None:
        pictures["confusion_matrix"] = confusion_picture(evaluation.confusion, totals, class_names)
    if evaluation.mistakes:
        if len(class_names) > SHOWN_CLASSES:
            classes = evaluation.most_confused(CONFUSED_CLASSES)
            pictures["most_confused_classes"] = confusion_picture(
                evaluation.confusion_of(classes), totals[classes], [class_names[one] for one in classes])
        pictures["most_confident_mistakes"] = mistakes_picture(images, evaluation.mistakes, class_names)
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
        upright = Image.new("RGB", (width + 2, height + 4), WHITE)
        ImageDraw.Draw(upright).text((0, 0), name, fill=BLACK)
        picture.paste(upright.rotate(90, expand=True), (place - 2, margin - 4 - width))


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
    columns = min(len(mistakes), 3)
    rows = math.ceil(len(mistakes) / columns)
    gap, line = 8, 13
    side = CARD // 3 - gap
    picture = Image.new("RGB", (columns * (side + gap), rows * (side + 3 * line + gap)), WHITE)
    draw = ImageDraw.Draw(picture)
    for place, (index, true, predicted, probability) in enumerate(mistakes):
        left, top = place % columns * (side + gap) + gap // 2, place // columns * (side + 3 * line + gap)
        pixels = np.asarray(images[index])
        tile = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
        picture.paste(tile.resize((side, side), Image.NEAREST), (left, top))
        draw.text((left, top + side + 1), class_names[true], fill=BLACK)
        for row, text in enumerate(("not " + class_names[predicted], "by %.1f%%" % (100 * probability))):
            draw.text((left, top + side + 1 + (row + 1) * line), text, fill=tuple(WRONG.astype(int).tolist()))
    return _png(picture)


def _drawable(names):
    """Returns the names, cut to LONGEST_NAME, with "?" for non-ASCII characters, which Pillow's font may lack.

    A longer name keeps its end, too, by which names like `species 0017` differ.
    """
    names = [name.encode("ascii", "replace").decode() for name in names]
    begin = LONGEST_NAME // 2
    return [name if len(name) <= LONGEST_NAME else name[:begin] + "~" + name[begin + 1 - LONGEST_NAME:]
            for name in names]


def _text_size(text):
    left, top, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), text)
    return math.ceil(right), math.ceil(bottom)


def _png(picture):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue(), picture.width, picture.height
