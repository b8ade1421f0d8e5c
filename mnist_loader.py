"""MNIST (LeCun et al. 1998), read from its IDX files, and the small digits of scikit-learn as a stand-in.

The files are searched on disk. Missing files are downloaded and verified. This module uses NumPy, not TensorFlow.
"""

import os
import struct

import numpy as np

from support.data import Split, data_set
from support.download import Unavailable, fetch_all
from support.file_reading import DataError, find, read_bytes

MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
# {name: (size in bytes, sha256)}
FILES = {
    "train-images-idx3-ubyte.gz": (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    "train-labels-idx1-ubyte.gz": (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    "t10k-images-idx3-ubyte.gz": (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    "t10k-labels-idx1-ubyte.gz": (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
}
SIDE = 28  # pixels
CLASS_NAMES = tuple("0123456789")
IMAGES_MAGIC = 0x00000803  # unsigned bytes, three dimensions
LABELS_MAGIC = 0x00000801  # unsigned bytes, one dimension


def prepare_data(data_dir, validation_size, mirrors=MIRRORS):
    """Returns MNIST as a DataSet with uint8 images [N, 28, 28, 1].

    The validation split is taken from the 60,000 training images.

    Args:
        data_dir: searched for the files: data_dir/mnist, then data_dir. Missing files are downloaded into
            data_dir/mnist.
        validation_size: see `support.data.data_set`.
        mirrors: see `support.download.fetch_all`.
    Raises:
        DataError: a file on disk is damaged, or its content does not match its name.
        Unavailable: a file is not on disk and cannot be downloaded.
    """
    home = os.path.join(data_dir, "mnist")

    def locate():
        return {name: find([name, name[:-len(".gz")]], [home, data_dir]) for name in FILES}

    missing = [name for name, path in locate().items() if path is None]
    if missing:
        try:
            fetch_all({name: FILES[name] for name in missing}, mirrors, home)
        except Unavailable as error:
            raise Unavailable("MNIST is neither in %s nor to be downloaded: %s; put %s there by hand"
                              % (home, error, ", ".join(name for name, path in locate().items() if path is None))
                              ) from None
    train_images, train_labels, test_images, test_labels = locate().values()
    return data_set("mnist", read_split(train_images, train_labels), read_split(test_images, test_labels),
                    CLASS_NAMES, validation_size, black_border=True)


def prepare_digits(data_dir, validation_size):
    """Returns the 1,797 handwritten 8×8 digits that ship with scikit-learn, in MNIST's format.

    Pixel values from 0 to 16 are scaled to 0 to 255. Each pixel is repeated 3×3, and a border of 2 zero pixels is
    added. Every fifth image belongs to the test split.

    Args:
        data_dir: not used.
        validation_size: see `support.data.data_set`.
    """
    from sklearn.datasets import load_digits  # slow to import (one second)

    digits = load_digits()
    pixels = np.floor(digits.images * 255 / 16).astype(np.uint8)
    images = np.pad(pixels.repeat(3, axis=1).repeat(3, axis=2), [(0, 0), (2, 2), (2, 2)], "constant")[..., None]
    labels = digits.target.astype(np.int64)
    test = np.arange(len(labels)) % 5 == 4
    return data_set("digits", Split(images[~test], labels[~test]), Split(images[test], labels[test]),
                    CLASS_NAMES, validation_size, black_border=True)


def read_split(images_path, labels_path):
    """Reads the images and labels of one split.

    Raises:
        DataError: a file is damaged, or its content does not match its name.
    """
    images, labels = read_images(images_path), read_labels(labels_path)
    if len(images) != len(labels):
        raise DataError("%s has %d images but %s has %d labels: they belong to different splits"
                        % (images_path, len(images), labels_path, len(labels)))
    return Split(images, labels)


def read_images(path):
    """Reads images, uint8 [N, 28, 28, 1], from an IDX file, plain or compressed with gzip."""
    def size(header):
        magic, count, height, width = struct.unpack(">4I", header)
        _check_magic(path, magic, IMAGES_MAGIC, "images")
        if (height, width) != (SIDE, SIDE) or count == 0:
            raise DataError("%s holds %d images of %d×%d pixels, not MNIST's 28×28" % (path, count, height, width))
        return 16 + count * SIDE * SIDE

    content = read_bytes(path, 16, size)
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, SIDE, SIDE, 1)


def read_labels(path):
    """Reads labels, int64 [N], from an IDX file, plain or compressed with gzip."""
    def size(header):
        magic, count = struct.unpack(">2I", header)
        _check_magic(path, magic, LABELS_MAGIC, "labels")
        return 8 + count

    labels = np.frombuffer(read_bytes(path, 8, size), np.uint8, offset=8)
    if len(labels) and labels.max() >= len(CLASS_NAMES):
        raise DataError("%s has the label %d, but MNIST labels are 0 to 9: the file is damaged" % (path, labels.max()))
    return labels.astype(np.int64)


def _check_magic(path, magic, expected, content):
    if magic == expected:
        return
    others = {IMAGES_MAGIC: "images", LABELS_MAGIC: "labels"}
    found = "holds %s" % others[magic] if magic in others else "is not an IDX file of unsigned bytes"
    raise DataError("%s %s, where %s belong: delete it, and it is downloaded" % (path, found, content))
