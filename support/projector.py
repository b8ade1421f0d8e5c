"""How do the embeddings of a run's test images get into TensorBoard's projector?

The projector shows the vectors that global average pooling gives for the images as points in space, each with its
thumbnail and class. It finds `projector_config.pbtxt` in the folder of a run's event files; the file names the others,
which are in the sub-folder `projector`. A TensorBoard that runs already keeps the configuration that it read first:
start it again to see a later embedding. So the files' names have the step, and none gets another content.
"""

import math
import os
import re

import numpy as np
from PIL import Image

from support.run_directory import replace_file

MOST_POINTS = 10000  # as many as the projector arranges by t-SNE
MOST_VALUES = 2 ** 22  # of all points, about 35 MB of text
SPRITE_SIDE = 4096  # pixels at most; the projector takes 8192, not every graphics card does
CHUNK = 256  # images that are read at once

CONFIG = """embeddings {
  tensor_name: "%(title)s"
  tensor_shape: %(count)d
  tensor_shape: %(channels)d
  tensor_path: "projector/embedding-%(step)d.tsv"
  metadata_path: "projector/images-%(step)d.tsv"
  sprite {
    image_path: "projector/thumbnails-%(step)d.png"
    single_image_dim: %(width)d
    single_image_dim: %(height)d
  }
}
"""


def shown_images(count, channels):
    """Indices of the images that the projector shows, int64, evenly spaced: all, if MOST_POINTS and MOST_VALUES allow.

    Args:
        count: number of images.
        channels: length of each one's vector.
    """
    most = max(1, min(count, MOST_POINTS, MOST_VALUES // max(1, channels)))
    return np.arange(most, dtype=np.int64) * count // most


def write_projector(folder, step, evaluation, images, class_names):
    """Writes the embedding of an evaluation for TensorBoard's projector, and removes that of an earlier one.

    Args:
        folder: that of the run's event files.
        step: the training step of the evaluated weights.
        evaluation: a `support.evaluation.Evaluation` with an embedding.
        images: those of the evaluated split, uint8 [N, H, W, C].
        class_names: names of the classes.
    Raises:
        OSError: a file cannot be written.
    """
    rows, vectors = evaluation.embedding
    place = os.path.join(folder, "projector")
    os.makedirs(place, exist_ok=True)
    sprite, (width, height) = thumbnails(images, rows)
    written = [os.path.join(place, "%s-%d.%s" % (name, step, extension)) for name, extension in (
        ("embedding", "tsv"), ("images", "tsv"), ("thumbnails", "png"))]
    replace_file(written[0], lambda file: np.savetxt(file, vectors, "%.5g", "\t"))
    replace_file(written[1], lambda file: file.write("\n".join(
        _table(rows, evaluation, class_names)).encode("utf-8", "backslashreplace")))
    replace_file(written[2], lambda file: sprite.save(file, "PNG", compress_level=1))
    total = len(evaluation.labels)
    title = "%s test images, step %d" % ("%d of %d" % (len(rows), total) if len(rows) < total else total, step)
    replace_file(os.path.join(folder, "projector_config.pbtxt"), lambda file: file.write((CONFIG % dict(
        title=title, step=step, count=len(rows), channels=vectors.shape[1], width=width, height=height)).encode()))
    for path in (os.path.join(place, name) for name in os.listdir(place)):
        if re.search(r"(embedding|images|thumbnails)-\d+\.(tsv|png)$", path) and path not in written:
            os.remove(path)


def _table(rows, evaluation, class_names):
    """The lines of text that describe each point, after a line with the names of the columns."""
    yield "class\tpredicted\tresult\tindex"
    names = [re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: ascii(found.group())[1:-1], name)
             for name in class_names]  # a tab or a line break would end the entry
    for row in rows:
        true, predicted = evaluation.labels[row], evaluation.predicted[row]
        yield "%s\t%s\t%s\t%d" % (names[true], names[predicted], "right" if true == predicted else "wrong", row)


def thumbnails(images, rows):
    """Small pictures of images in rows, as many in each as there are rows, which the projector calls a sprite.

    Args:
        images: uint8 [N, H, W, C]; C is 1 or 3.
        rows: indices of the images, in the order in which they are drawn.
    Returns:
        (a PIL image, (width, height) of each picture in it).
    """
    columns = math.ceil(math.sqrt(len(rows)))
    height, width, channels = images.shape[1:]
    most = SPRITE_SIDE // columns
    scale = min(1, most / max(height, width))
    size = max(1, int(width * scale)), max(1, int(height * scale))
    sprite = Image.new("L" if channels == 1 else "RGB", (columns * size[0], math.ceil(len(rows) / columns) * size[1]))
    for start in range(0, len(rows), CHUNK):
        for place, pixels in enumerate(images[rows[start:start + CHUNK]], start):
            small = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
            if small.size != size:
                small = small.resize(size, Image.BOX)
            sprite.paste(small, (place % columns * size[0], place // columns * size[1]))
    return sprite, size
