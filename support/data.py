"""The contract that the loaders share: what `prepare_data` returns, and the steps that they have in common."""

import dataclasses
import gzip
import math
import os
import tarfile
import zlib

import numpy as np

from support import UserError

MOST_MEASURED = 60000  # training images whose mean and deviation are taken; of more, as many evenly spread ones
CHUNK_PIXELS = 2 ** 22  # of images that are read at a time
MOST_DEFLATE_GAINS = 1032  # no deflate stream grows by more than this factor when it is unpacked


class DataError(UserError):
    """A file of a data set is not what its name says."""


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
        train, test: Splits; their images may be an object that reads those that are asked for, with a method `subset`.
        black_border: whether black lies beyond an image's edge, as around a digit, or the mean pixel.
        checksum: of all images, where these are not to be read for it.
    Raises:
        DataError: the validation split would leave no training images.
    """
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


def data_augmentation(images, border, random, shift=0, rotation=0.0, flip=False, cutout=0):
    """Changes each image as drawn from `random`: turned, shifted, mirrored left to right, then hidden in part.

    Args:
        images: normalized [N, H, W, C], float32; left as they are.
        border: the normalized pixel that moves in from the edge, [C].
        random: a RandomState, made from seed, epoch and batch.
        shift: up to so many pixels along each axis (padding and random crop of the paper's section 4.1).
        rotation: up to so many degrees either way.
        flip: whether every second image or so is mirrored.
        cutout: pixels along a side of the square that is hidden (DeVries & Taylor 2017, arXiv 1708.04552).
    """
    if rotation:
        images = random_rotation(images, rotation, border, random)
    if shift or flip:
        images = random_crop(images, shift, flip, border, random)
    if cutout:
        images = random_cutout(images, cutout, border, random)
    return images


class RandomShare:
    """A RandomState's numbers for some images of a batch: those that they would get in the whole batch.

    Args:
        random: the RandomState.
        share: the slice of the batch.
        total: the whole batch's number of images.
    """

    def __init__(self, random, share, total):
        self._random, self._share, self._total = random, share, total

    def randint(self, low, high, size):
        return self._random.randint(low, high, self._whole(size))[..., self._share]

    def uniform(self, low, high, size):
        return self._random.uniform(low, high, self._whole(size))[..., self._share]

    def _whole(self, size):
        """The size with the batch's number of images as its last axis."""
        return (size[:-1] if isinstance(size, tuple) else ()) + (self._total,)


def random_crop(images, padding, flip, border, random):
    """Pads [N, H, W, C] by `padding` pixels `border` on each side, crops each back at a place drawn from `random`.

    `flip`: mirrors each left to right, or not, as drawn from `random`.
    """
    count, height, width, channels = images.shape
    padded = np.empty([count, height + 2 * padding, width + 2 * padding, channels], images.dtype)
    padded[...] = border
    padded[:, padding:padding + height, padding:padding + width] = images
    top, left = random.randint(0, 2 * padding + 1, (2, count))
    rows = top[:, None] + np.arange(height)
    columns = left[:, None] + np.arange(width)
    if flip:
        mirrored = random.randint(0, 2, count).astype(bool)
        columns[mirrored] = columns[mirrored, ::-1]
    image = np.arange(count)[:, None, None] * padded.shape[1]
    places = (image + rows[:, :, None]) * padded.shape[2] + columns[:, None, :]
    # A pixel is taken as one item, which is many times faster than as a row of channels.
    return padded.view([("pixel", padded.dtype, (channels,))]).ravel().take(places)["pixel"]


def random_cutout(images, side, border, random):
    """Hides a square of `side` pixels of each of [N, H, W, C] by the pixel `border`; its middle is anywhere in it."""
    hidden = []
    for axis in (1, 2):
        start = random.randint(0, images.shape[axis], len(images))[:, None] - side // 2
        places = np.arange(images.shape[axis])
        hidden.append((start <= places) & (places < start + side))
    rows, columns = hidden
    images = images.copy()
    images[rows[:, :, None] & columns[:, None, :]] = border
    return images


def random_rotation(images, degrees, border, random):
    """Turns each of [N, H, W, C] about its centre by up to `degrees` either way, by bilinear interpolation.

    `border`: the pixel [C] beyond the edge, float32 as the images.
    """
    count, height, width, channels = images.shape
    angles = np.radians(random.uniform(-degrees, degrees, count)).astype(np.float32)[:, None]
    down, right = (index.reshape(1, -1).astype(np.float32) for index in np.indices((height, width)))
    centre_down, centre_right = np.float32((height - 1) / 2), np.float32((width - 1) / 2)
    cos, sin = np.cos(angles), np.sin(angles)
    # Where each pixel comes from, in an image with one more pixel before and two behind along each axis: [N, H·W].
    from_down = cos * (down - centre_down) + sin * (right - centre_right) + (centre_down + 1)
    from_right = cos * (right - centre_right) - sin * (down - centre_down) + (centre_right + 1)
    np.clip(from_down, 0, height + 1, out=from_down)
    np.clip(from_right, 0, width + 1, out=from_right)
    top, left = from_down.astype(np.int32), from_right.astype(np.int32)
    below, beside = from_down - top.astype(np.float32), from_right - left.astype(np.float32)
    padded = np.empty([count, height + 3, width + 3, channels], images.dtype)
    padded[...] = border
    padded[:, 1:-2, 1:-2] = images
    corner = top * (width + 3) + left + np.arange(count, dtype=np.int32)[:, None] * ((height + 3) * (width + 3))
    turned = np.empty([count, height * width, channels], images.dtype)
    for channel in range(channels):  # np.take of single values is many times faster than of rows
        pixels = padded[..., channel].ravel()
        upper, lower = pixels.take(corner), pixels.take(corner + (width + 3))
        upper += (pixels.take(corner + 1) - upper) * beside
        lower += (pixels.take(corner + (width + 4)) - lower) * beside
        turned[..., channel] = upper + (lower - upper) * below
    return turned.reshape(images.shape)


def find(names, folders):
    """The path of the first of the names that is in one of the folders, the folders in turn; or None.

    Raises:
        DataError: a folder is no folder, or cannot be read.
    """
    for folder in folders:
        try:
            present = set(os.listdir(folder)) if os.path.lexists(folder) else ()
        except OSError as error:
            raise DataError("%s cannot be read as a folder (%s): set data_dir to the folder that holds the data"
                            % (folder, error.strerror)) from None
        for name in names:
            if name in present:
                return os.path.join(folder, name)
    return None


def read_bytes(path, header_size, size_from_header):
    """The content of a file, unpacked if its name ends in .gz, once its size is seen to be what its header claims.

    Args:
        header_size: bytes at the start that say how long the file is.
        size_from_header: from those bytes to the size of the whole content; raises DataError where they are wrong.
    Raises:
        DataError: unreadable, damaged, or shorter or longer than its header claims.
    """
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            header = file.read(header_size)
            if len(header) < header_size:
                raise DataError("%s is cut short: it has no complete header" % path)
            size = size_from_header(header)
            limit = os.path.getsize(path) * (MOST_DEFLATE_GAINS if path.endswith(".gz") else 1)
            if size > limit:  # before any memory is asked for
                raise DataError("%s should hold %d bytes, more than a file of its size can" % (path, size))
            content = header + file.read(size - header_size + 1)
    except OSError as error:
        raise DataError("%s cannot be read (%s)" % (path, error.strerror or error)) from None
    except (EOFError, zlib.error) as error:
        raise DataError("%s is damaged (%s)" % (path, error)) from None
    if len(content) != size:
        raise DataError("%s is %s than the %d bytes it should hold"
                        % (path, "shorter" if len(content) < size else "longer", size))
    return content


def read_members(path, sizes):
    """The content of some members of a tar.gz, read in memory: nothing is written, wherever a member wants to go.

    Args:
        sizes: {name of the member, exactly as in the archive: bytes}.
    Returns:
        {name: content}.
    Raises:
        DataError: unreadable or damaged; a member is missing, has another size or is no plain file; the archive
            unpacks to far more than those members.
    """
    found = {}
    try:
        with gzip.open(path, "rb") as unpacked:
            limited = _Limited(unpacked, (1 << 20) + 2 * sum(sizes.values()))
            with tarfile.open(fileobj=limited, mode="r|") as archive:
                for member in archive:
                    if member.name not in sizes:
                        continue
                    if not member.isreg() or member.size != sizes[member.name]:
                        raise DataError("%s is not the archive its name says: its member %s is no file of %d bytes"
                                        % (path, member.name, sizes[member.name]))
                    found[member.name] = archive.extractfile(member).read()
            while limited.read(1 << 20):  # to the end, where gzip compares its checksum
                pass
    except _TooLong:
        raise DataError("%s unpacks to far more than it should: it is not the archive its name says" % path) from None
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, RecursionError) as error:
        raise DataError("%s cannot be read, or is damaged (%s)" % (path, error)) from None
    missing = sorted(set(sizes) - set(found))
    if missing:
        raise DataError("%s is not the archive its name says: it has no member %s" % (path, missing[0]))
    return found


class _TooLong(Exception):
    """More bytes came than there should be."""


class _Limited:
    """A file of which at most `limit` bytes can be read, so that neither a bomb nor a bad header costs more."""

    def __init__(self, file, limit):
        self._file = file
        self._left = limit

    def read(self, size):
        content = self._file.read(min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise _TooLong
        return content
