"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, "Learning multiple layers of features from tiny images").

This module reads the official binary version, from disk or downloaded and verified. It never reads the pickled version,
because unpickling a downloaded file can run code from that file. It uses NumPy, not TensorFlow.
"""

import dataclasses
import os

import numpy as np

from support import say
from support.data import Split, data_set
from support.download import Unavailable, fetch_all
from support.file_reading import DataError, find, read_bytes, read_members, shortened, similar, subfolders

MIRRORS = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
SIDE, CHANNELS = 32, 3
PIXEL_BYTES = CHANNELS * SIDE * SIDE  # per image: the red plane row by row, then green, then blue


@dataclasses.dataclass(frozen=True)
class Layout:
    """The file layout of CIFAR-10 or CIFAR-100.

    `size` is the archive's size in bytes. A record consists of `label_bytes` labels of one byte and the pixels.
    """

    name: str
    archive: str
    size: int
    sha256: str
    folder: str  # the folder of the files, in the archive and unpacked on disk
    train: dict  # {file name: number of records}
    test: dict  # {file name: number of records}
    label_bytes: int
    others: str  # other versions, as Keras, torchvision and the authors name them: a pattern of `file_reading.key`


CIFAR10 = Layout(
    "cifar10", "cifar-10-binary.tar.gz", 170052171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", "cifar-10-batches-bin",
    {"data_batch_%d.bin" % i: 10000 for i in range(1, 6)}, {"test_batch.bin": 10000}, label_bytes=1,
    others="cifar10(?!0)|^(data|test)batch[1-5]?(mat|bin)?$|batchesmeta")
CIFAR100 = Layout(
    "cifar100", "cifar-100-binary.tar.gz", 168513733,
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec", "cifar-100-binary",
    {"train.bin": 50000}, {"test.bin": 10000}, label_bytes=2, others="cifar100|^meta(mat)?$|^(train|test)(mat|bin)$")

CLASS_NAMES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
COARSE_CLASS_NAMES = tuple(  # CIFAR-100's 20 superclasses: the first byte of a record
    "aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices "
    "household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes "
    "large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees "
    "vehicles_1 vehicles_2".split())
FINE_CLASS_NAMES = tuple(  # CIFAR-100's 100 classes: the second byte of a record
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm".split())


def prepare_data(data_dir, validation_size, mirrors=MIRRORS):
    """Returns CIFAR-10 as a DataSet with uint8 images [N, 32, 32, 3].

    The validation split is taken from the 50,000 training images.

    Args:
        data_dir: searched for the unpacked folder, then for the archive, then for the unpacked files themselves:
            data_dir/cifar10, then data_dir. If there is none, the archive is downloaded into data_dir/cifar10.
        validation_size: see `support.data.data_set`.
        mirrors: see `support.download.fetch_all`.
    Raises:
        DataError: a file on disk is damaged, or its content does not match its name.
        Unavailable: the data set is not on disk and cannot be downloaded.
    """
    return _prepare(CIFAR10, "cifar10", CLASS_NAMES, 0, data_dir, validation_size, mirrors)


def prepare_cifar100(data_dir, validation_size, mirrors=MIRRORS):
    """Returns CIFAR-100 with its 100 fine classes. Like `prepare_data`, with the folder data_dir/cifar100."""
    return _prepare(CIFAR100, "cifar100", FINE_CLASS_NAMES, 1, data_dir, validation_size, mirrors)


def prepare_cifar100_coarse(data_dir, validation_size, mirrors=MIRRORS):
    """Returns CIFAR-100 with its 20 coarse classes, from the same files as `prepare_cifar100`."""
    return _prepare(CIFAR100, "cifar100_coarse", COARSE_CLASS_NAMES, 0, data_dir, validation_size, mirrors)


def _prepare(layout, name, class_names, label_index, data_dir, validation_size, mirrors):
    source, contents = _read(layout, data_dir, mirrors)

    def split(files):
        parts = [parse_records(contents[file], os.path.join(source, file), layout.label_bytes, label_index, class_names)
                 for file in files]
        return Split(*(np.concatenate(arrays) for arrays in zip(*parts)))

    return data_set(name, split(layout.train), split(layout.test), class_names, validation_size)


def _read(layout, data_dir, mirrors):
    """Reads all files of a data set; returns (path of their folder or archive, {file name: content}).

    The unpacked folder is preferred to the archive, and the archive to unpacked files without their folder. If there is
    none, the archive is downloaded.
    """
    record_bytes = layout.label_bytes + PIXEL_BYTES
    sizes = {file: count * record_bytes for file, count in dict(layout.train, **layout.test).items()}
    home = os.path.join(data_dir, layout.name)
    places = [home, data_dir] + subfolders([layout.name], [data_dir])
    folder = _unpacked(layout, sizes, places)
    archive = None
    if folder is None:
        archive = find([layout.archive, layout.archive[:-len(".gz")]], places)  # a browser may have removed the gzip
    if folder is None and archive is None:
        folder = next((place for place in places if not _missing(sizes, place)), None)
    if folder:
        return folder, {file: read_bytes(find([file], [folder]), 0, lambda _, size=size: size)
                        for file, size in sizes.items()}
    if archive is None:
        archive = _download(layout, home, similar(layout.others, places), mirrors)
    members = read_members(archive, {layout.folder + "/" + file: size for file, size in sizes.items()})
    return archive, {file: members[layout.folder + "/" + file] for file in sizes}


def _missing(files, folder):
    return [file for file in files if find([file], [folder]) is None]


def _unpacked(layout, files, places):
    """Returns the unpacked folder with all files, or None. Raises DataError if files are missing."""
    folders = subfolders([layout.folder], places)
    wrappers = subfolders([layout.archive[:-len(".tar.gz")]], places)  # which some programs unpack the archive into
    for folder in folders + wrappers + subfolders([layout.folder], folders + wrappers):
        if not _missing(files, folder):
            return folder
    if folders:
        raise DataError("%s has no %s: put it there, or move the folder away and the archive is sought"
                        % (folders[0], ", ".join(_missing(files, folders[0]))))
    return None


def _download(layout, home, unused, mirrors):
    """Downloads the archive; returns its path. Other versions of the data set, in `unused`, are named before."""
    reason = "unpickling the Python version would run code from the file"
    if unused:
        say("Not used: %s. %s is read from its binary version alone (%s), which is downloaded now: %d MB."
            % (shortened(unused), layout.name, reason, layout.size // 10 ** 6))
    try:
        fetch_all({layout.archive: (layout.size, layout.sha256)}, mirrors, home)
    except Unavailable as error:
        raise Unavailable("%s is neither in %s nor to be downloaded: %s; put %s or its folder %s there by hand%s" % (
            layout.name, home, error, layout.archive, layout.folder,
            "; not used: %s (%s)" % (shortened(unused), reason) if unused else "")) from None
    return os.path.join(home, layout.archive)


def parse_records(content, path, label_bytes, label_index, class_names):
    """Parses records; returns images, uint8 [N, 32, 32, 3], and labels, int64 [N].

    Args:
        content: the bytes of N whole records.
        path: the file that the records come from, for the error message.
        label_bytes: number of label bytes at the start of a record.
        label_index: index of the label byte to use.
        class_names: names of the classes.
    Raises:
        DataError: a label is greater than the largest class index.
    """
    records = np.frombuffer(content, np.uint8).reshape(-1, label_bytes + PIXEL_BYTES)
    labels = records[:, label_index].astype(np.int64)
    if labels.max() >= len(class_names):
        raise DataError("%s has the label %d, but its labels go from 0 to %d: the file is damaged"
                        % (path, labels.max(), len(class_names) - 1))
    pixels = records[:, label_bytes:].reshape(-1, CHANNELS, SIDE, SIDE)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels


DATASETS = {"cifar10": prepare_data, "cifar100": prepare_cifar100, "cifar100_coarse": prepare_cifar100_coarse}
