"""What an evaluation found: its figures, and the tables and pictures that show them."""

import dataclasses
import io
import math

import numpy as np
from PIL import Image, ImageDraw

SHOWN_MISTAKES = 25
SHOWN_CLASSES = 20  # of more, a matrix is too wide to be read
WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (120, 120, 120)
RIGHT, WRONG = np.array([40, 140, 70.0]), np.array([200, 50, 40.0])  # colours of a full cell of the confusion matrix


@dataclasses.dataclass
class Evaluation:
    """Mean loss, and what each image was taken for.

    `confusion`: int64 [true class, predicted class], numbers of images. `mistakes`: [(index of the image in its split,
    true class, predicted class, its probability)], the most confident first, at most SHOWN_MISTAKES.
    """

    loss: float
    confusion: np.ndarray
    mistakes: list

    @property
    def accuracy(self):
        """The share of images that were classified correctly."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    def class_accuracies(self):
        """For each class the share of its images that were classified correctly; None where it has no images."""
        return [int(right) / int(count) if count else None
                for right, count in zip(np.diagonal(self.confusion), self.confusion.sum(1))]

    def confusions(self):
        """[(number of images, true class, predicted class)] of the pairs that were confused, the most frequent first"""
        pairs = [(int(count), true, predicted) for (true, predicted), count in np.ndenumerate(self.confusion)
                 if count and true != predicted]
        return sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))

    def as_json(self, class_names):
        """All of it as plain values."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "images": int(self.confusion.sum()),
            "class_names": list(class_names),
            "class_accuracies": self.class_accuracies(),
            "confusion_matrix": self.confusion.tolist(),
        }

    def table(self, class_names):
        """Lines of text: each class's accuracy, and which classes were taken for which."""
        width = max(map(len, class_names))
        if len(class_names) > SHOWN_CLASSES:
            for name, accuracy in zip(class_names, self.class_accuracies()):
                yield "%-*s  %s" % (width, name, _percent(accuracy))
            yield "most often taken for another class:"
            for count, true, predicted in self.confusions()[:SHOWN_CLASSES]:
                yield "%5d times  %s for %s" % (count, class_names[true], class_names[predicted])
            return
        cell = max(5, len(str(self.confusion.max())))
        yield "%-*s  accuracy  taken for" % (width, "class")
        yield "%-*s            %s" % (width, "", "  ".join("%*s" % (cell, name[:cell]) for name in class_names))
        for name, accuracy, row in zip(class_names, self.class_accuracies(), self.confusion):
            yield "%-*s   %7s  %s" % (width, name, _percent(accuracy), "  ".join(
                "%*s" % (cell, count or ".") for count in row.tolist()))


def confusion_picture(confusion, class_names):
    """A picture of the confusion matrix: rows are true classes, columns predicted ones, each cell a share of its row.

    Returns:
        (a PNG, its width, its height).
    """
    count = len(class_names)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    strength = np.sqrt(shares)[:, :, None]  # a few mistakes are seen, too
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
    """A picture of the images that were classified wrongly, each with what it was taken for, and for how certain.

    Args:
        images: uint8 [N, H, W, C], of which the mistakes name some; C is 1 or 3.
    Returns:
        (a PNG, its width, its height).
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
    """The names without the letters that Pillow's own font may not have."""
    return [name.encode("ascii", "replace").decode() for name in names]


def _percent(share):
    return "none" if share is None else "%.2f%%" % (100 * share)


def _text_size(text):
    left, top, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), text)
    return math.ceil(right), math.ceil(bottom)


def _png(picture):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue(), picture.width, picture.height
