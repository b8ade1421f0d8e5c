"""What is a data set, how is its validation split taken, and how are images normalized?"""

import dataclasses
import math
import zlib

import numpy as np

from support.file_reading import DataError

MOST_MEASURED = 60000  # maximum number of training images, evenly spaced, for computing mean and deviation
CHUNK_PIXELS = 2 ** 22  # of the images that are read at once


@dataclasses.dataclass
class Split:
    """images: uint8 [N, H, W, C]; labels: int64 [N], from 0 to the number of classes - 1."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)


@dataclasses.dataclass
class DataSet:
    """A data set that is ready for training.

    Attributes:
        name: as in the setting `dataset`.
        train, validation, test: the splits.
        class_names: a name for each label.
        mean, deviation: mean and standard deviation of the training pixels in each channel, float32 [C].
        border: the normalized pixel with which images are padded, float32 [C].
        checksum: CRC-32 of all images. None: `fingerprint` computes it from the images.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple
    mean: np.ndarray
    deviation: np.ndarray
    border: np.ndarray
    checksum: int = None

    @property
    def image_shape(self):
        """(H, W, C)"""
        return self.train.images.shape[1:]

    def fingerprint(self):
        """Returns a dictionary of plain values that identifies the data and its splits."""
        crc = self.checksum or 0
        for split in (self.train, self.validation, self.test):
            if self.checksum is None:
                crc = zlib.crc32(np.ascontiguousarray(split.images), crc)
            crc = zlib.crc32(split.labels.astype("<i8").tobytes(), crc)
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test), "crc32": crc,
                "image_shape": list(self.image_shape), "class_names": list(self.class_names)}


def data_set(name, train, test, class_names, validation_size, black_border, checksum=None):
    """Returns a DataSet whose validation split is taken from the training split.

    The choice of validation images is random but fixed. It does not depend on the run's seed.

    Args:
        name: as in the setting `dataset`.
        train, test: Splits. Their images may also be an object that reads images when it is indexed, with a method
            `subset`, like `support.image_folder.Images`.
        validation_size: number of images, or a share of the training split (below 1).
        class_names: a name for each label.
        black_border: True: images are padded with black, as around a digit; False: with the mean pixel.
        checksum: CRC-32 of all images. None: `DataSet.fingerprint` computes it from the images.
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
    # Mean and deviation come from the counts of the 256 byte values: exact, without a float copy of all images.
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
    """Normalizes each channel: subtracts the mean and divides by the standard deviation.

    Args:
        images: uint8 [N, H, W, C].
        mean, deviation: those of the training split, float32 [C], for the images of every split.
    Returns:
        float32 [N, H, W, C].
    """
    count, height, width, channels = images.shape
    rows = images.reshape(count, height, width * channels)  # NumPy is slow along an axis as short as the channels'
    return ((rows - np.tile(mean, width)) / np.tile(deviation, width)).reshape(images.shape)
