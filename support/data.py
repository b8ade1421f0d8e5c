"""What is a data set here, how is a validation split taken, and how are images normalized?"""

import dataclasses
import math
import zlib

import numpy as np

from support.file_reading import DataError

MOST_MEASURED = 60000  # training images from which mean and deviation are computed, evenly spread
CHUNK_PIXELS = 2 ** 22  # of images that are read at a time


@dataclasses.dataclass
class Split:
    """images: uint8 [N, H, W, C]; labels: int64 [N], from 0 to the number of classes - 1."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)


@dataclasses.dataclass
class DataSet:
    """A data set that is ready to be trained on.

    `mean` and `deviation`: float32 [C], of the training pixels. `border`: float32 [C], the normalized pixel that lies
    beyond an image's edge.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple
    mean: np.ndarray
    deviation: np.ndarray
    border: np.ndarray
    checksum: int = None  # of all images, where these are not to be read for it

    @property
    def image_shape(self):
        """(H, W, C)"""
        return self.train.images.shape[1:]

    def fingerprint(self):
        """What identifies the data and how it was split, as a dictionary of plain values."""
        crc = self.checksum or 0
        for split in (self.train, self.validation, self.test):
            if self.checksum is None:
                crc = zlib.crc32(np.ascontiguousarray(split.images), crc)
            crc = zlib.crc32(split.labels.astype("<i8").tobytes(), crc)
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test), "crc32": crc,
                "image_shape": list(self.image_shape), "class_names": list(self.class_names)}


def data_set(name, train, test, class_names, validation_size, black_border, checksum=None):
    """A DataSet whose validation split is a fixed random choice, whatever the run's seed, from the training split.

    Args:
        train, test: Splits; their images may be an object that reads images when it is indexed, with a method `subset`.
        validation_size: number of images, or a share of the training split (below 1).
        black_border: whether black lies beyond an image's edge, as around a digit, or the mean pixel.
        checksum: of all images, where these are not to be read for it.
    Raises:
        DataError: the validation split would leave no training images.
    """
    if 0 < validation_size < 1:
        validation_size = int(validation_size * len(train))
    if validation_size >= len(train):
        raise DataError("validation_size=%d leaves nothing of the %d training images of %s: make it smaller"
                        % (validation_size, len(train), name))
    order = np.random.RandomState(0).permutation(len(train))
    kept, held_out = np.sort(order[validation_size:]), np.sort(order[:validation_size])
    subset = getattr(train.images, "subset", train.images.__getitem__)
    kept_images = subset(kept)
    # From the counts of the 256 byte values: exact, and no float copy of all images.
    counts = np.zeros([kept_images.shape[-1], 256], np.int64)
    step = math.ceil(len(kept) / MOST_MEASURED)
    measured = kept_images if step == 1 else subset(kept[::step])
    some = max(1, CHUNK_PIXELS // (measured.shape[1] * measured.shape[2]))
    for start in range(0, len(measured), some):
        chunk = measured[start:start + some]
        counts += [np.bincount(chunk[..., channel].ravel(), minlength=256) for channel in range(chunk.shape[-1])]
    values = np.arange(256.0)
    mean = counts @ values / counts.sum(1)
    deviation = np.sqrt(np.maximum(counts @ values ** 2 / counts.sum(1) - mean ** 2, 1.0))
    mean, deviation = mean.astype(np.float32), deviation.astype(np.float32)
    border = -mean / deviation if black_border else np.zeros_like(mean)
    return DataSet(name, Split(kept_images, train.labels[kept]),
                   Split(subset(held_out), train.labels[held_out]), test, tuple(class_names),
                   mean, deviation, border, checksum)


def color_preprocessing(images, mean, deviation):
    """uint8 [N, H, W, C] to float32: minus the mean, over the standard deviation, of each channel.

    Both are the training set's, for every later image, too.
    """
    count, height, width, channels = images.shape
    rows = images.reshape(count, height, width * channels)  # NumPy is slow along an axis as short as the channels'
    return ((rows - np.tile(mean, width)) / np.tile(deviation, width)).reshape(images.shape)
