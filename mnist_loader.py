"""MNIST (LeCun et al. 1998) and data sets in its format, read from IDX files; scikit-learn's digits as a stand-in.

The files are searched on disk. Missing files are downloaded and verified. This module uses NumPy, not TensorFlow.
"""

import contextlib
import dataclasses
import functools
import os
import re
import string
import struct
import zlib

import numpy as np

from support import say
from support.data import Split, data_set
from support.download import Unavailable, fetch_all
from support.file_reading import MOVE_AWAY, DataError, find, key, listing, read_bytes, shortened, similar, subfolders

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
CRC32 = (0xf3639b56, 0xba07e8ef, 0xe4ca5f57, 0xee8604d9)  # of the pixels or labels in each file, without its header
SIDE = 28  # pixels
CLASS_NAMES = tuple("0123456789")
IMAGES_MAGIC = 0x00000803  # unsigned bytes, three dimensions
LABELS_MAGIC = 0x00000801  # unsigned bytes, one dimension
INSIDE = ("raw", "processed", "gzip", "archive")  # folders of torchvision, of EMNIST's archive and of Kaggle's
# Other forms of these data sets, as Keras, scikit-learn, Hugging Face, Kaggle and NIST name them: a pattern of keys.
SIMILAR = ("mnist|fashion|kuzushiji|idx[13]|t10k|^(test|train)(ing)?(images|labels|pt$|csv$)|digitrecognizer|parquet$|"
           "^(archive.*|gzip|matlab)zip$")


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set in MNIST's format: where its files come from and what they hold."""

    name: str  # as in the setting `dataset`
    title: str
    class_names: tuple = CLASS_NAMES
    first_label: int = 0  # the label of the first class
    files: tuple = tuple(FILES)  # training images and labels, test images and labels
    downloads: dict = None  # {name: (size in bytes, hash)}; None: the files are not downloaded
    mirrors: tuple = ()
    homepage: str = ""
    own_folders: tuple = ()  # further names of a folder that holds this data set alone
    shared_folders: tuple = ()  # names of folders that may hold the data set besides others
    transposed: bool = False  # the files have rows and columns of each image exchanged


def _emnist(split, class_names, first_label=0):
    files = ("emnist-%s-%s-%s-ubyte.gz" % (split, role, kind) for role in ("train", "test")
             for kind in ("images-idx3", "labels-idx1"))
    return Source("emnist_" + split, "EMNIST " + split, tuple(class_names), first_label, tuple(files),
                  homepage="https://www.nist.gov/itl/products-and-services/emnist-dataset",
                  shared_folders=("emnist", "emnist_source_files"), transposed=True)  # Kaggle's is the second


MNIST = Source("mnist", "MNIST", downloads=FILES, mirrors=MIRRORS)
OTHERS = (
    Source("fashion_mnist", "Fashion-MNIST",
           ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
           downloads={"train-images-idx3-ubyte.gz": (26421880, "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
                      "train-labels-idx1-ubyte.gz": (29515, "md5:25c81989df183df01b3e8a0aad5dffbe"),
                      "t10k-images-idx3-ubyte.gz": (4422102, "md5:bef4ecab320f06d8554ea6380940ec79"),
                      "t10k-labels-idx1-ubyte.gz": (5148, "md5:bb300cfdad3c16e7a12a480ee83cd310")},
           mirrors=("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
                    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"),
           own_folders=("fashion",), shared_folders=("data",)),  # of its repository
    Source("kmnist", "KMNIST", ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
           homepage="https://github.com/rois-codh/kmnist"),
    # The published mapping files: "balanced" and "bymerge" merge 15 small letters with the capitals that look alike.
    _emnist("balanced", string.digits + string.ascii_uppercase + "abdefghnqrt"),
    _emnist("byclass", string.digits + string.ascii_uppercase + string.ascii_lowercase),
    _emnist("bymerge", string.digits + string.ascii_uppercase + "abdefghnqrt"),
    _emnist("digits", string.digits),
    _emnist("letters", string.ascii_uppercase, first_label=1),  # capital and small letters in one class
    _emnist("mnist", string.digits),
)


def prepare_data(data_dir, validation_size, mirrors=MIRRORS):
    """Returns MNIST as a DataSet with uint8 images [N, 28, 28, 1].

    The validation split is taken from the 60,000 training images. Files of another data set under MNIST's names are
    used, too, and a line says so.

    Args:
        data_dir: searched for the files: data_dir/mnist, then data_dir, then torchvision's folders in it. Missing files
            are downloaded into data_dir/mnist.
        validation_size: see `support.data.data_set`.
        mirrors: see `support.download.fetch_all`.
    Raises:
        DataError: a file on disk is damaged, or its content does not match its name.
        Unavailable: a file is not on disk and cannot be downloaded.
    """
    return _prepare(MNIST, data_dir, validation_size, mirrors)


def _prepare(source, data_dir, validation_size, mirrors=None):
    """Like `prepare_data`, for any Source; `mirrors`: None stands for those of the source."""
    paths = _locate(source, data_dir)
    if None in paths:
        _download(source, data_dir, paths, source.mirrors if mirrors is None else mirrors)
        paths = _locate(source, data_dir)
    train, test = read_split(*paths[:2]), read_split(*paths[2:])
    contents = (train.images, train.labels.astype(np.uint8), test.images, test.labels.astype(np.uint8))
    _say_hidden(paths, contents)
    foreign = []
    for path, content, own in zip(paths, contents, CRC32):
        crc = zlib.crc32(content)
        if source is not MNIST and crc in CRC32:
            raise DataError("%s is MNIST's: put the file of %s in its place, or set dataset=mnist"
                            % (path, source.title))
        if crc != own and crc in CRC32:
            raise DataError("%s has the content of MNIST's %s: give the files the names that belong to them"
                            % (path, list(FILES)[CRC32.index(crc)]))
        foreign += [path] if crc != own else []
    if len(test.labels) > len(train.labels):
        say("%s has fewer images (%d) than %s (%d): if the files are exchanged, the test is of training images"
            % (paths[0], len(train.labels), paths[2], len(test.labels)))
    train, test, class_names = _with_classes(source, train, test, paths)
    if source is MNIST and foreign:
        say("%s %s: trained on as they are, %d classes (dataset=fashion_mnist, kmnist, emnist_letters, ... for those)"
            % (shortened(foreign, most=1), "are not MNIST's files" if foreign[1:] else "is not MNIST's file",
               len(class_names)))
    data = data_set(source.name, train, test, class_names, validation_size)
    lost = np.setdiff1d(train.labels, data.train.labels)
    if len(lost):
        say("validation_size=%g leaves no training image of %s: make it smaller"
            % (validation_size, shortened([class_names[label] for label in lost])))
    return data


def _say_hidden(paths, contents):
    """Says which plain files are not read because a compressed one with other content is beside them."""
    for path, content in zip(paths, contents):
        plain = path[:-len(".gz")]
        if path.endswith(".gz") and os.path.isfile(plain):
            with contextlib.suppress(OSError), open(plain, "rb") as file:
                if not file.read().endswith(content.tobytes()):
                    say("%s is read, not %s, which differs: take one of the two away" % (path, plain))


RELATED = {source.name: functools.partial(_prepare, source) for source in OTHERS}  # {name: like `prepare_data`}


def _places(source, data_dir):
    """Yields the folders to search. Folders' names are accepted in any form, see `support.file_reading.key`."""
    yield os.path.join(data_dir, source.name)
    yield data_dir
    names, folders = [source.name, *source.own_folders, *source.shared_folders, *INSIDE], [data_dir]
    for _ in range(3):  # data_dir/EMNIST/raw/gzip is the deepest
        folders = subfolders(names, folders)
        yield from folders


def _locate(source, data_dir):
    """Returns the paths of the four files, None for a missing one. A folder that holds all four is preferred.

    Another data set's files may have MNIST's names only in a folder with the data set's name. Elsewhere, such as in
    data_dir itself, they would be MNIST's.
    """
    found = []
    for folder in _places(source, data_dir):
        owner = next(part for part in reversed(os.path.abspath(folder).split(os.sep)) if part not in INSIDE)
        own = source is MNIST or key(owner) in map(key, (source.name, *source.own_folders))
        paths = []
        for name, mnist_name in zip(source.files, FILES):
            names = [name] * (name != mnist_name) + [mnist_name] * own
            paths.append(find([form for name in names for form in (name, name[:-len(".gz")])], [folder]))
        if None not in paths:
            return paths
        found.append(paths)
    return [next((path for path in candidates if path), None) for candidates in zip(*found)]


def _download(source, data_dir, paths, mirrors):
    """Downloads the files whose path is None. Raises Unavailable, which also names similar files that are not used."""
    home = os.path.join(data_dir, source.name)
    reason = "downloaded, because its checksums could not be verified"
    if source.downloads:
        try:
            return fetch_all({name: source.downloads[name] for name, path in zip(source.files, paths) if path is None},
                             mirrors, home)
        except Unavailable as error:
            reason = "to be downloaded: %s" % error
    paths = _locate(source, data_dir)
    used = subfolders(["mnist", "emnist"] + list(RELATED), [data_dir])  # of other data sets
    used += [part for path in paths if path for part in (path, os.path.dirname(path))]
    others = [os.path.join(data_dir, name) for name in listing(data_dir) if not re.search(SIMILAR, key(name))]
    others = [path for path in others if os.path.isdir(path) and path not in used]
    unused = similar(SIMILAR, [*_places(source, data_dir), *others], used)
    raise Unavailable("%s is neither in %s nor %s; put %s there by hand%s%s" % (
        source.title, home, reason, ", ".join(name for name, path in zip(source.files, paths) if path is None),
        " (from %s)" % source.homepage if source.homepage else "",
        "; not used: %s (%s is read from its four IDX files, in %s)" % (shortened(unused), source.title, home)
        if unused else ""))


def _with_classes(source, train, test, paths):
    """Returns the splits with classes in place of label values, and the names of the classes.

    The classes of MNIST's files are the label values that occur, but 0 to 9 if none is greater.
    """
    if (train.labels == train.labels[0]).all():
        raise DataError("%s has no label but %d: there is nothing to tell apart" % (paths[1], train.labels[0]))
    values, names = np.arange(len(source.class_names)) + source.first_label, source.class_names
    fault = "but the labels of %s are %d to %d" % (source.title, values[0], values[-1])
    if source is MNIST and max(train.labels.max(), test.labels.max()) > values[-1]:
        values, fault = np.unique(train.labels), "which no image of the training split has"
        names = tuple(str(value) for value in values)
    for split, path in ((train, paths[1]), (test, paths[3])):
        unknown = np.setdiff1d(split.labels, values)
        if len(unknown):
            raise DataError("%s has the label %d, %s: the files are of different data sets, or damaged"
                            % (path, unknown[0], fault))
    untrained = np.setdiff1d(test.labels, train.labels)
    if len(untrained):
        say("%s: no training image has the label%s %s, but test images do: those will be misclassified" % (
            paths[1], "s" * (len(untrained) > 1), shortened([str(label) for label in untrained])))
    train, test = (Split(split.images, np.searchsorted(values, split.labels)) for split in (train, test))
    if source.transposed:
        train, test = (Split(np.ascontiguousarray(split.images.transpose(0, 2, 1, 3)), split.labels)
                       for split in (train, test))
    return train, test, names


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
                    CLASS_NAMES, validation_size)


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

    return np.frombuffer(read_bytes(path, 8, size), np.uint8, offset=8).astype(np.int64)


def _check_magic(path, magic, expected, content):
    if magic == expected:
        return
    others = {IMAGES_MAGIC: "images", LABELS_MAGIC: "labels"}
    found = "holds %s" % others[magic] if magic in others else "is not an IDX file of unsigned bytes"
    raise DataError("%s %s, where %s belong: %s" % (path, found, content, MOVE_AWAY))


DATASETS = dict({"mnist": prepare_data, "digits": prepare_digits}, **RELATED)  # {name: function that returns a DataSet}
