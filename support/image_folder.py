"""How does a folder of your own images become a data set, decoded once into a cache that training reads?"""

import collections
import contextlib
import glob
import hashlib
import itertools
import os
import shutil
import sys
import zipfile
import zlib

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from support import UserError, say
from support.data import SPLITS, Split, data_set, digest_of
from support.file_reading import DataError, listing, printable, shortened
from support.folder_layout import has_images_directly, layout_of
from support.image_reading import CUT_OFF, ORIENTATION_UNKNOWN, range_of, read_image
from support.prefetch import mapped_by_threads
from support.run_directory import fcntl

CHANNELS = 3
CACHE_VERSION = 4  # of the content of the cache. A cache of another version is not used
TEST_SHARE = 1 / 6  # of each class's images, if there is no test folder
SAMPLE = 4096  # bytes of a file
LOCK, NEW = ".lock", ".new"  # how the names of a cache's lock and of an incomplete cache end
LISTED = 10  # maximum number of unreadable files that the terminal lists
CROP_MARGIN = 8 / 7  # for random crops, images are stored larger than image_size by this factor, 256/224
SUMMARIES = {ORIENTATION_UNKNOWN: "files with unreadable EXIF data, whose orientation is unknown: %d",
             CUT_OFF: "truncated files, of which the readable part is used: %d"}


def prepare_data(data_dir, validation_size, image_size, crop_area=1.0, cache_dir="cache", pixel_range=None,
                 truncated=False, excluded=(), evaluated=False):
    """Returns the images under a folder as a DataSet with uint8 images [N, image_size, image_size, 3].

    All images are decoded once into a cache on disk. Indexing the DataSet's images reads them from the cache.

    Args:
        data_dir: a folder that `support.folder_layout.layout_of` understands.
        validation_size: number of training images held out, or a share of them. Not used where data_dir has both
            validation and test images.
        image_size: side in pixels of the images that a network gets.
        crop_area: see `random_boxes`.
        cache_dir: the decoded images are stored in a sub-folder of this folder.
        pixel_range: the scale of images with more than 8 bits, (low, high); None: found by
            `support.image_reading.range_of`.
        truncated: whether the readable part of truncated files is used.
        excluded: more folders that the program writes: they are never data.
        evaluated: whether a trained network is evaluated on the images. A single class is enough then, and no split
            needs images of its own: of a folder that is not the run's, all are evaluated.
    Raises:
        DataError: there are no valid class folders, a class has no readable training image, or the test split is empty.
        UserError: the cache cannot be written or read, or the operating system cannot read an image file.
    """
    layout = layout_of(data_dir, (cache_dir,) + tuple(excluded), evaluated)
    for line in layout.notes:
        say(line)
    _say_program_folders(data_dir, (cache_dir,) + tuple(excluded))
    side = stored_side(image_size, crop_area)
    cache = _cache(layout.files, side, data_dir, cache_dir, pixel_range, truncated)
    index, pixels = _read(cache, side)
    _say_notes(index, cache)
    numbers = _with_drawn_test(index["splits"], index["labels"]) if layout.test_is_drawn else index["splits"]
    rows = {split: np.flatnonzero(numbers == number) for number, split in enumerate(SPLITS)}
    if evaluated and not len(rows["train"]):
        rows = dict.fromkeys(rows, np.arange(0))
        rows["train"] = np.arange(len(index["splits"]))
    splits = {split: Split(Images(pixels, rows[split], image_size), index["labels"][rows[split]]) for split in SPLITS}
    given = len(rows["validation"]) > 0
    if given:
        say("validation: the %d images that %s has for it; validation_size is not used"
            % (len(rows["validation"]), data_dir))
    if evaluated and validation_size >= len(rows["train"]):
        validation_size = 0
    data = data_set("folder", splits["train"], splits["test"], layout.class_names, validation_size,
                    checksum=int(index["checksum"]), validation=splits["validation"] if given else None,
                    keep_classes=True)
    data.pixel_range = tuple(index["pixel_range"].tolist()) or None
    data.truncated_images = truncated
    data.skipped = len(index["skipped"]) if layout.test_is_drawn else None
    data.digests = {split: index["digests"][getattr(data, split).images.rows] for split in SPLITS}
    if not evaluated:
        _check_splits(data, data_dir, not layout.test_is_drawn)
    return data


def _say_unread_images(data_dir, dataset):
    """Says that a data set, which is sought in data_dir, is not the folders of images that are there."""
    found = []
    with contextlib.suppress(DataError):  # it cannot be read: that data set's loader says it
        found = [name for name in listing(data_dir) if has_images_directly(os.path.join(data_dir, name))]
    if len(found) > 1:
        say("%s has folders of images (%s), which dataset=%s does not read: to train on these, give dataset=folder"
            % (printable(data_dir), shortened(list(map(printable, found))), dataset))


def _say_program_folders(data_dir, folders):
    """Says which of the folders that the program writes to, which are never data, seem to be classes."""
    home = os.path.join(os.path.realpath(data_dir), "")
    inside = [folder for folder in folders if os.path.realpath(folder).startswith(home)]
    found = [folder for folder in inside if has_images_directly(folder)]
    if found:
        say("not used, for the program writes there, though images are there, too: %s; if it is a class, set "
            "cache_dir, model_dir, log_dir and export_dir to other folders" % shortened(found))


def _with_drawn_test(splits, labels):
    """The splits [N], with TEST_SHARE of each class's images, which are all for training, made test images.

    The choice is random but fixed. It depends on the images alone, not on files that cannot be read.
    """
    splits = splits.copy()
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        drawn = np.random.RandomState(label).permutation(len(rows))[:round(TEST_SHARE * len(rows))]
        splits[rows[drawn]] = SPLITS.index("test")
    return splits


def _cache(files, side, data_dir, cache_dir, pixel_range, truncated):
    """The cache of these files, a folder in cache_dir, into which they are decoded if it is not there."""
    described = [(os.path.relpath(path, data_dir), label, split, facts)
                 for (path, label, split), facts in zip(files, _facts([path for path, _, _ in files]))]
    missing = [printable(path) for path, _, _, facts in described
               if not facts and os.path.islink(os.path.join(data_dir, path))]
    if missing:
        raise UserError("%d of the files in %s are links that lead nowhere (%s): make what they lead to available, or "
                        "take them away" % (len(missing), data_dir, shortened(missing)))
    has_tiff = any(path.lower().endswith((".tif", ".tiff")) for path, _, _ in files)
    kind = b"upright TIFF" if has_tiff else b""  # earlier versions, with Pillow before 10, turned these twice

    def named(pixel_range):
        digest = hashlib.sha256(repr((CACHE_VERSION, pixel_range, truncated)).encode() + kind)
        for each in described:
            digest.update(repr(each).encode("utf-8", "surrogateescape"))
        return os.path.join(cache_dir, "%s-%dpx-%s" % (
            os.path.basename(os.path.abspath(data_dir)), side, digest.hexdigest()[:12]))

    pixel_range = pixel_range and tuple(map(float, pixel_range))
    cache = named(pixel_range)
    if pixel_range:
        of_files = named(None)
        if os.path.isdir(of_files) and tuple(_read(of_files, side)[0]["pixel_range"]) == pixel_range:
            return of_files  # the same scale, found in the images
    try:
        os.makedirs(cache_dir, exist_ok=True)
        if not os.path.isdir(cache):
            with _locked(cache + LOCK):
                if not os.path.isdir(cache):
                    _remove_halves(cache.rpartition("-")[0])
                    _decode(files, side, data_dir, cache, pixel_range, truncated)
    except OSError as error:
        raise UserError("cannot write the decoded images to %s (%s): make room there, or set cache_dir to another "
                        "folder" % (cache, error.strerror or error)) from None
    return cache


def _read(cache, side):
    """Returns ({name: array} of the cache's index, the stored images uint8 [N, side, side, CHANNELS])."""
    try:
        with np.load(os.path.join(cache, "index.npz")) as content:
            index = {name: content[name]
                     for name in ("labels", "splits", "digests", "pixel_range", "skipped", "notes", "checksum")}
            index["pillow"] = str(content["pillow"]) if "pillow" in content else ""  # earlier versions
        return index, np.memmap(os.path.join(cache, "pixels"), np.uint8, "r",
                                shape=(len(index["labels"]), side, side, CHANNELS))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError("the decoded images in %s cannot be read (%s): delete that folder, and they are decoded anew"
                        % (cache, error)) from None


def _say_notes(index, cache):
    """Prints what was found while the images were decoded."""
    skipped = index["skipped"].tolist()
    for line in skipped[:LISTED]:
        say("skipped %s" % printable(line))
    if len(skipped) > LISTED:
        say("skipped %d more files: %s lists all of them" % (len(skipped) - LISTED, os.path.join(cache, "skipped.txt")))
    if skipped and index["pillow"] not in ("", PIL.__version__):
        say("Pillow %s skipped them, this is %s: to try again, delete the folder %s"
            % (index["pillow"], PIL.__version__, cache))
    if len(index["pixel_range"]):
        say("images with more than 8 bits: the pixel values %g to %g become black to white"
            % tuple(index["pixel_range"]))
    for line in index["notes"].tolist():
        say(line)


def _check_splits(data, data_dir, test_given):
    """Raises DataError if there is nothing to learn a class from, or nothing to test with."""
    if not len(data.test) and not test_given:
        raise DataError("%s has too few images to test with: put at least four into the folder of each class, or make "
                        "folders train and test with the folders of the classes in both" % data_dir)
    untaught = sorted(set(range(len(data.class_names))) - set(data.train.labels.tolist()))
    if untaught:
        raise DataError("%s has no training image of the class %s that can be read: put some there, or take the folder "
                        "away" % (data_dir, data.class_names[untaught[0]]))
    if not len(data.test):
        raise DataError("none of the test images of %s can be read: put others there" % data_dir)


def options(config):
    """The arguments of `prepare_data` after the first two, {name: value}, from a run's settings; {} for other data.

    Where only `data_dir` is given and has folders of images, a line says that another data set does not read these.
    """
    if config.dataset != "folder":
        if "data_dir" in config.given and "dataset" not in config.given:
            _say_unread_images(config.data_dir, config.dataset)
        return {}
    return dict(image_size=config.image_size, crop_area=config.crop_area, cache_dir=config.cache_dir,
                pixel_range=None if config.pixel_range == "auto" else config.pixel_range,
                truncated=config.truncated_images, excluded=(config.model_dir, config.log_dir, config.export_dir),
                evaluated=config.mode == "evaluate")


def joined(splits):
    """The images of several Splits of one folder, as one Split."""
    rows = np.concatenate([split.images.rows for split in splits])
    return Split(splits[0].images.with_rows(rows), np.concatenate([split.labels for split in splits]))


def stored_side(image_size, crop_area):
    """Returns the side in pixels of a stored image. A network gets `image_size` pixels of it."""
    return image_size if crop_area == 1.0 else int(round(image_size * CROP_MARGIN))


def centre_of(images, size):
    """Returns the centre [..., size, size, C] of images [..., S, S, C]."""
    start = (images.shape[-2] - size) // 2
    return images[..., start:start + size, start:start + size, :]


class Images:
    """The centres, uint8 [N, size, size, 3], of N of the stored images [M, S, S, 3]: those of the indices `rows`.

    An object of this class is used like an array. Indexing it reads the images from the memory-mapped cache file. The
    operating system keeps as much of the file in memory as fits.
    """

    def __init__(self, pixels, rows, size):
        self._pixels = pixels
        self.rows = rows
        self._size = size
        self.shape = (len(rows), size, size, pixels.shape[3])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, chosen):
        return centre_of(self._pixels[self.rows[chosen]], self._size)

    def subset(self, chosen):
        """Returns the chosen images as another `Images`, without reading them."""
        return self.with_rows(self.rows[chosen])

    def with_rows(self, rows):
        """Returns other ones of the stored images as another `Images`, without reading them."""
        return Images(self._pixels, rows, self._size)

    def crops(self, batches, boxes=None):
        """Yields uint8 [n, size, size, 3] for each batch. Threads, one for each core, resize a batch ahead.

        Args:
            batches: int64 [batches, n], the indices of the images in each batch.
            boxes: float32 [batches, n, 4], the part of each image to use: left, top, right and bottom as fractions of
                the image's side, see `random_boxes`. None: the centre.
        """
        if boxes is None:
            yield from (self[batch] for batch in batches)
            return

        def crop(place):
            chosen, box = place
            image = self._pixels[self.rows[chosen]]
            return np.asarray(Image.fromarray(image).resize(
                (self._size, self._size), Image.BILINEAR, box=tuple(float(edge) * image.shape[0] for edge in box)))

        count = batches.shape[1]
        images = mapped_by_threads(crop, zip(batches.ravel(), boxes.reshape(-1, 4)), ahead=2 * count)
        for _ in batches:
            yield np.stack(list(itertools.islice(images, count)))


def random_boxes(count, crop_area, random):
    """Draws random parts of images as in Szegedy et al. 2015 (arXiv 1409.4842, section 6).

    Args:
        count: number of boxes.
        crop_area: the smallest share of an image's area that a box covers. The aspect ratio is from 3/4 to 4/3, nearer
            to 1 where a box of the area would not fit into the image.
        random: a RandomState.
    Returns:
        the boxes, float32 [count, 4]; see `Images.crops`.
    """
    area, log_ratio, left, top = random.uniform(0.0, 1.0, (4, count))
    area = crop_area + (1 - crop_area) * area
    ratio = np.clip(np.exp(np.log(4 / 3) * (2 * log_ratio - 1)), area, 1 / area)
    width, height = np.minimum(1, np.sqrt(area * ratio)), np.minimum(1, np.sqrt(area / ratio))  # 1: by rounding
    left, top = left * (1 - width), top * (1 - height)
    return np.stack([left, top, left + width, top + height], 1).astype(np.float32)


def _facts(paths):
    """Returns for each file the tuple by which a change of it is detected; empty if it cannot be read.

    It has size and modification time. The files of an archive may have these in common: then also the time of
    unpacking, and where that is the same, too, some bytes.
    """
    def stat(path):
        try:
            found = os.stat(path)
        except OSError:
            return ()
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def sample(path):
        try:
            with open(path, "rb") as file:
                file.seek(os.path.getsize(path) // 2)
                return (file.read(SAMPLE),)
        except OSError:
            return ()

    found = [stat(path) for path in paths]
    alike, common = collections.Counter(found), collections.Counter(its[:2] for its in found)
    unclear = [path for path, its in zip(paths, found) if alike[its] > 1]
    samples = dict(zip(unclear, mapped_by_threads(sample, unclear, ahead=1024)))
    return [(its if common[its[:2]] > 1 else its[:2]) + samples.get(path, ()) for path, its in zip(paths, found)]


def _remove_halves(base):
    """Removes what killed processes have decoded into other caches, whose paths begin with `base` and a hyphen."""
    for half in glob.glob(glob.escape(base) + "-*" + NEW) if fcntl is not None else ():
        with contextlib.suppress(OSError), open(half[:-len(NEW)] + LOCK, "a") as file:  # it may be another user's
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no other process decodes it
            shutil.rmtree(half)


def _decode(files, side, data_dir, cache, pixel_range, truncated):
    """Decodes the files into a new cache. The cache gets its name only when it is complete."""
    say("decoding %d files of %s into %s" % (len(files), data_dir, cache))
    new = cache + NEW
    shutil.rmtree(new, ignore_errors=True)  # left over by a killed process
    os.makedirs(new)
    try:
        _decode_into(new, files, side, data_dir, pixel_range, truncated)
        os.replace(new, cache)
    except BaseException:  # such as a full disk, or Ctrl-C
        shutil.rmtree(new, ignore_errors=True)
        raise


def _decode_into(new, files, side, data_dir, pixel_range, truncated):
    pixel_range, notes = range_of([path for path, _, _ in files], truncated, pixel_range)
    kept, digests, skipped, uncertain, checksum = [], [], [], [], 0
    with open(os.path.join(new, "pixels"), "wb") as output:
        for (path, label, split), (pixels, result) in _decoded(files, side, pixel_range, truncated):
            if pixels is None:
                skipped.append("%s: %s" % (os.path.relpath(path, data_dir), result))
                continue
            output.write(pixels)
            kept.append((label, SPLITS.index(split)))
            digests.append(digest_of(pixels))
            uncertain += result
            checksum = zlib.crc32(pixels, checksum)
    if not kept:
        raise DataError("%s has no image that can be read (%s)" % (data_dir, "; ".join(skipped[:3]) or "no files"))
    with open(os.path.join(new, "skipped.txt"), "w", errors="backslashreplace") as output:
        output.writelines(printable(line) + "\n" for line in skipped)
    notes += [line % uncertain.count(note) for note, line in SUMMARIES.items() if note in uncertain]
    labels, splits = zip(*kept)
    np.savez(os.path.join(new, "index.npz"), labels=np.array(labels, np.int64), splits=np.array(splits, np.int8),
             digests=np.frombuffer(b"".join(digests), "<u8"), pixel_range=np.array(pixel_range or (), np.float64),
             skipped=np.array(skipped, str), notes=np.array(notes, str), checksum=checksum, pillow=PIL.__version__)


def _decoded(files, side, pixel_range, truncated):
    """Yields each of the files with (its pixels as bytes, notes), or with (None, why it cannot be used)."""
    def decoded(path):
        notes = []
        try:
            return read_image(path, side, CHANNELS, pixel_range, truncated, notes).tobytes(), notes
        except Exception as error:  # of any type: see read_image
            if isinstance(error, MemoryError) or getattr(error, "errno", None):  # not caused by the content
                raise UserError("%s cannot be read (%s): make it readable, or take it away"
                                % (path, getattr(error, "strerror", None) or "not enough memory")) from None
            return None, " ".join(str(error).split()) or type(error).__name__

    shows = sys.stderr is not None and sys.stderr.isatty()
    results = mapped_by_threads(decoded, [path for path, _, _ in files], ahead=1024)  # as many are in memory
    for result, file in zip(tqdm(results, total=len(files), leave=False, disable=not shows), files):
        yield file, result


@contextlib.contextmanager
def _locked(path):
    """A context that only one process at a time can enter. Other processes say that they wait, and wait."""
    with open(path, "a") as file:
        try:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    say("waiting for another process, which decodes these images and has locked %s" % path)
                    fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems do not support locks
            raise UserError("%s cannot be locked (%s): set cache_dir to a folder on a disk of this machine"
                            % (path, error.strerror)) from None
        yield
