"""What is a data set, how is its validation split taken, and how are images normalized?"""

import dataclasses
import hashlib
import math
import zlib

import numpy as np

from support import say
from support.file_reading import DataError, shortened
from support.prefetch import mapped_by_threads

MOST_MEASURED = 60000  # maximum number of training images, evenly spaced, for computing mean and deviation
NEAR_EMPTY = 5  # training images of a class
UNEQUAL = 3  # times as many training images in the largest class as in the smallest
SPLITS = ("train", "validation", "test")
# How messages call the parts of a data set's fingerprint
FACTS = {"train": "number of training images", "validation": "number of validation images",
         "test": "number of test images", "crc32": "contents of the images", "image_shape": "size of the images",
         "class_names": "names of the classes",
         "skipped": "files that cannot be read, among which earlier versions drew test images, too"}
CHUNK_PIXELS = 2 ** 22  # of the images that a thread reads at once


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
        pixel_range: the scale (low, high) of the images with more than 8 bits; see `support.image_reading.to_bytes`.
            None: there are no such images.
        truncated_images: whether the readable part of truncated files was used.
        skipped: where the test images were drawn among readable files, the number of the others; None elsewhere.
        digests: {"train", "validation", "test": a 64-bit digest of each image, uint64 [N]}, by which equal images are
            found.
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
    pixel_range: tuple = None
    truncated_images: bool = False
    skipped: int = None
    digests: dict = None

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
        found = {"train": len(self.train), "validation": len(self.validation), "test": len(self.test), "crc32": crc,
                 "image_shape": list(self.image_shape), "class_names": list(self.class_names)}
        if self.truncated_images:
            found["truncated_images"] = True
        if self.skipped is not None:
            found["skipped"] = self.skipped
        if self.pixel_range is not None:
            # Deep TIFF images with WhiteIsZero are read as they are shown; earlier versions did not.
            found.update(pixel_range=list(self.pixel_range), white_is_zero=True)
        return found


def repeated(data, digests):
    """{split: how many of its images are among those with these digests} of a DataSet's validation and test splits."""
    return {split: int(np.isin(data.digests[split], digests).sum()) for split in ("validation", "test")}


def say_repeated(data):
    """Says how many images are in several splits, and how many are in more than one class."""
    figures = {"validation": "loss and accuracy there are better than they would be without them",
               "test": "the accuracy is too high by them"}
    for split, count in repeated(data, data.digests["train"]).items():
        if count:
            say("%d of the %d %s images are also training images: %s"
                % (count, len(data.digests[split]), split, figures[split]))
    count = repeated(data, np.setdiff1d(data.digests["validation"], data.digests["train"]))["test"]
    if count:
        say("%d of the %d test images are also validation images: %s"
            % (count, len(data.digests["test"]), figures["test"]))
    digests = np.concatenate([data.digests[split] for split in SPLITS])
    labels = np.concatenate([getattr(data, split).labels for split in SPLITS])
    different, image = np.unique(digests, return_inverse=True)
    least, most = (np.full(len(different), start) for start in (len(data.class_names), -1))
    np.minimum.at(least, image, labels)
    np.maximum.at(most, image, labels)
    several = np.flatnonzero((least < most)[image])
    if len(several):
        names = sorted({data.class_names[label] for label in labels[image == image[several[0]]]})
        say("%d images are copies of an image of another class, such as one in %s: nothing can tell these apart%s"
            % (len(several), " and ".join(names), ", keep each in one class" if data.name == "folder" else ""))


def same_data(first, second):
    """Whether two fingerprints are of the same images in the same splits.

    A pixel range that only one of them has does not count: earlier versions did not record it, and the checksum is that
    of the scaled pixels, as of those of truncated files and of negatives. Files that cannot be read count only for
    earlier versions, which did not record their number, because they chose the test images among all files.
    """
    skipped = [found.get("skipped") for found in (first, second)]
    if None in skipped and any(skipped):
        return False
    names = (set(first) | set(second)) - {"truncated_images", "skipped", "white_is_zero"}
    if "pixel_range" not in set(first) & set(second):
        names.discard("pixel_range")
    return all(first.get(name) == second.get(name) for name in names)


def has_black_border(dataset):
    """Whether a data set's images are padded with black, as around a digit; those of the others with the mean pixel."""
    return not dataset.startswith(("cifar", "folder"))


def data_set(name, train, test, class_names, validation_size, checksum=None, validation=None, keep_classes=False):
    """Returns a DataSet whose validation split is taken from the training split, unless it is given.

    The choice of validation images is random but fixed. It does not depend on the run's seed.

    Args:
        name: as in the setting `dataset`.
        train, test: Splits. Their images may also be an object that reads images when it is indexed, with a method
            `subset`, like `support.image_folder.Images`.
        validation_size: number of images, or a share of the training split (below 1).
        class_names: a name for each label.
        checksum: CRC-32 of all images. None: `DataSet.fingerprint` computes it from the images. Where it is given, the
            caller sets `digests`.
        validation: the validation split. None: it is taken from `train`, by validation_size, which is else not used.
        keep_classes: where all images of a class would be taken for validation, one of them is kept for training.
    Raises:
        DataError: there are no training images, or the validation split would leave none.
    """
    if validation is not None:
        if not len(train):
            raise DataError("%s has no training images" % name)
        kept = np.arange(len(train))
    else:
        kept, held_out = _drawn(len(train), validation_size, name)
        if keep_classes:
            labels, places = np.unique(train.labels[held_out], return_index=True)
            needed = held_out[places[~np.isin(labels, train.labels[kept])]]
            kept, held_out = np.sort(np.append(kept, needed)), np.setdiff1d(held_out, needed)
        validation = Split(subset_of(train.images, held_out), train.labels[held_out])
    kept_images = subset_of(train.images, kept)
    mean, deviation = _statistics(kept_images)
    border = -mean / deviation if has_black_border(name) else np.zeros_like(mean)
    data = DataSet(name, Split(kept_images, train.labels[kept]), validation, test, tuple(class_names),
                   mean, deviation, border, checksum)
    if checksum is None:
        data.digests = {split: _digests(getattr(data, split).images) for split in SPLITS}
    return data


def _digests(images):
    chunks = (np.ascontiguousarray(images[start:start + 1024]) for start in range(0, len(images), 1024))
    return np.frombuffer(b"".join(digest_of(image) for chunk in chunks for image in chunk), "<u8")


def digest_of(image):
    """A 64-bit digest of an image, as bytes: of its array, uint8 [H, W, C], or of the bytes of that."""
    return hashlib.blake2b(image, digest_size=8).digest()


def subset_of(images, chosen):
    """The images with these indices: an array, or an object of the same kind, without reading them."""
    return getattr(images, "subset", images.__getitem__)(chosen)


def _drawn(count, validation_size, name):
    """Returns the sorted indices (of the images kept for training, of those held out for validation)."""
    if 0 < validation_size < 1:
        validation_size = int(validation_size * count)
    if validation_size >= count:
        raise DataError("validation_size=%d leaves nothing of the %d training images of %s: make it smaller"
                        % (validation_size, count, name))
    order = np.random.RandomState(0).permutation(count)
    return np.sort(order[validation_size:]), np.sort(order[:validation_size])


def _statistics(images):
    """Returns mean and standard deviation of the pixels in each channel, float32 [C]."""
    step = math.ceil(len(images) / MOST_MEASURED)
    if step > 1:
        images = subset_of(images, np.arange(0, len(images), step))
    count, height, width, channels = images.shape
    some = max(1, CHUNK_PIXELS // (height * width))

    def sums(start):
        # Of whole numbers: exact. Of columns: NumPy is slow along an axis as short as the channels'.
        rows = images[start:start + some].reshape(-1, width * channels)
        return rows.sum(0, dtype=np.int64), np.square(rows, dtype=np.uint16).sum(0, dtype=np.int64)

    found = np.sum(list(mapped_by_threads(sums, range(0, count, some), ahead=8)), 0)  # [2, W · C]
    mean, mean_square = found.reshape(2, width, channels).sum(1) / (count * height * width)
    deviation = np.sqrt(np.maximum(mean_square - mean ** 2, 1.0))
    return mean.astype(np.float32), deviation.astype(np.float32)


def normalize_by(data, mean, deviation):
    """Normalizes a DataSet's images by these mean and deviation, float32 [C], instead of its own."""
    if has_black_border(data.name):
        data.border = -mean / deviation
    data.mean, data.deviation = mean, deviation


def class_summary(data, most=20, remedies=()):
    """Yields lines about the classes, and sentences about classes with few images.

    Args:
        data: a DataSet.
        most: maximum number of classes that a line names. Of more classes, those with the fewest training images are
            named.
        remedies: settings to give, as on the command line, where the classes are of unequal size.
    """
    counts = {split: np.bincount(getattr(data, split).labels, minlength=len(data.class_names)) for split in SPLITS}
    order = np.arange(len(data.class_names))
    too_many = len(order) > most
    if too_many:
        order = np.argsort(counts["train"], kind="stable")
    shown = ", ".join("%s %s" % (data.class_names[label], " + ".join(str(counts[split][label]) for split in SPLITS))
                      for label in order[:most])
    yield "%d classes (training + validation + test images)%s: %s" % (
        len(order), ", the %d smallest of which are" % most if too_many else "", shown)

    def named(chosen):
        return shortened([data.class_names[label] for label in order if chosen[label]], most)

    near_empty = counts["train"] < NEAR_EMPTY
    if near_empty.any():
        yield "fewer than %d training images, too few to learn from: %s" % (NEAR_EMPTY, named(near_empty))
    by_size = np.argsort(counts["train"], kind="stable")
    smallest, largest = by_size[np.count_nonzero(counts["train"] == 0)], by_size[-1]
    if remedies and counts["train"][largest] > UNEQUAL * counts["train"][smallest]:
        yield "%s has %d training images, and %s %d: to count each class alike, give %s" % (
            data.class_names[largest], counts["train"][largest], data.class_names[smallest],
            counts["train"][smallest], " and ".join(remedies))
    for split in SPLITS[1:]:
        if counts[split].any() and not counts[split].all():
            yield "no %s images, so that nothing is known of the accuracy: %s" % (split, named(counts[split] == 0))


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


def balanced_class_weights(labels, class_num):
    """Weights by which each class that has images counts alike in a mean over images, float32 [class_num].

    n / (classes with images · images of the class), King & Zeng 2001; 0 for a class without images. Their mean over
    the n images is 1.

    Args:
        labels: those of the training images, int64 [n].
        class_num: number of classes.
    """
    counts = np.bincount(labels, minlength=class_num)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1.0))
    return np.where(counts > 0, weights, 0.0).astype(np.float32)


def class_weights_of(data, kind):
    """The weight of each class in the training loss, float32 [classes]; None: all classes have the weight 1.

    `kind`: as the setting `class_weights`; balanced: see `balanced_class_weights`.
    """
    return balanced_class_weights(data.train.labels, len(data.class_names)) if kind == "balanced" else None
