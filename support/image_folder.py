"""How does a folder of your own images become a data set, decoded once into a cache that training reads?"""

import contextlib
import hashlib
import os
import shutil
import sys
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image, ImageOps
from tqdm import tqdm

from support import UserError, say
from support.data import Split, data_set
from support.file_reading import DataError
from support.machine import cores
from support.run_directory import fcntl

CHANNELS = 3
TEST_SHARE = 1 / 6  # of each class's images, if there is no test folder; a fixed random choice
LISTED = 10  # maximum number of unreadable files that the terminal lists
CROP_MARGIN = 8 / 7  # for random crops, images are stored larger than image_size by this factor, 256/224
IGNORED = ("Thumbs.db", "desktop.ini")


def prepare_data(data_dir, validation_size, image_size, crop_area=1.0, cache_dir="cache"):
    """Returns the images under a folder as a DataSet with uint8 images [N, image_size, image_size, 3].

    All images are decoded once into a cache on disk. Indexing the DataSet's images reads them from the cache.

    Args:
        data_dir: contains one sub-folder per class, or `train` and `test` (or `val`) with one sub-folder per class.
        validation_size: number of training images held out, or a share of them.
        image_size: side in pixels of the images that a network gets.
        crop_area: see `random_boxes`.
        cache_dir: the decoded images are stored in a sub-folder of this folder.
    Raises:
        DataError: there are no valid class folders, a class has no readable training image, or the test split is empty.
        UserError: the cache cannot be written or read, or the operating system cannot read an image file.
    """
    classes, files = _listed(data_dir)
    side = stored_side(image_size, crop_area)
    digest = hashlib.sha256()
    for path, label, test in files:
        digest.update(repr((os.path.relpath(path, data_dir), label, test, _facts(path))).encode("utf-8",
                                                                                                "surrogateescape"))
    name = "%s-%dpx-%s" % (os.path.basename(os.path.abspath(data_dir)), side, digest.hexdigest()[:12])
    cache = os.path.join(cache_dir, name)
    try:
        os.makedirs(cache_dir, exist_ok=True)
        with _locked(cache + ".lock"):
            if not os.path.isdir(cache):
                _decode(files, side, data_dir, cache)
    except OSError as error:
        raise UserError("cannot write the decoded images to %s (%s): make room there, or set cache_dir to another "
                        "folder" % (cache, error.strerror or error)) from None
    try:
        with np.load(os.path.join(cache, "index.npz")) as index:
            labels, test, skipped, checksum = (index[key] for key in ("labels", "test", "skipped", "checksum"))
        pixels = np.memmap(os.path.join(cache, "pixels"), np.uint8, "r", shape=(len(labels), side, side, CHANNELS))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError("the decoded images in %s cannot be read (%s): delete that folder, and they are decoded anew"
                        % (cache, error)) from None
    for line in skipped[:LISTED].tolist():
        say("skipped %s" % line)
    if len(skipped) > LISTED:
        say("skipped %d more files: %s lists all of them" % (len(skipped) - LISTED, os.path.join(cache, "skipped.txt")))

    def split(rows):
        return Split(Images(pixels, rows, image_size), labels[rows])

    data = data_set("folder", split(np.flatnonzero(~test)), split(np.flatnonzero(test)), classes, validation_size,
                    black_border=False, checksum=int(checksum))
    untaught = sorted(set(range(len(classes))) - set(data.train.labels.tolist()))
    if untaught:
        raise DataError("%s has no training image of the class %s that can be read: put some there, take the folder "
                        "away, or make validation_size smaller" % (data_dir, classes[untaught[0]]))
    if not len(data.test):
        raise DataError("%s has too few images to test with: put at least four into each folder, or make folders train "
                        "and test with the classes in them" % data_dir)
    return data


def stored_side(image_size, crop_area):
    """Returns the side in pixels of a stored image. A network gets `image_size` pixels of it."""
    return image_size if crop_area == 1.0 else int(round(image_size * CROP_MARGIN))


def centre_of(images, size):
    """Returns the centre [..., size, size, C] of images [..., S, S, C]."""
    start = (images.shape[-2] - size) // 2
    return images[..., start:start + size, start:start + size, :]


class Images:
    """The centres, uint8 [N, size, size, 3], of N of the stored images [M, S, S, 3].

    An object of this class is used like an array. Indexing it reads the images from the memory-mapped cache file. The
    operating system keeps as much of the file in memory as fits.
    """

    def __init__(self, pixels, rows, size):
        self._pixels = pixels
        self._rows = rows
        self._size = size
        self.shape = (len(rows), size, size, pixels.shape[3])

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, chosen):
        return centre_of(self._pixels[self._rows[chosen]], self._size)

    def subset(self, chosen):
        """Returns the chosen images as another `Images`, without reading them."""
        return Images(self._pixels, self._rows[chosen], self._size)

    def crops(self, batches, boxes=None):
        """Yields uint8 [n, size, size, 3] for each batch. `tf.data` reads and resizes ahead, on all cores.

        Args:
            batches: int64 [batches, n], the indices of the images in each batch.
            boxes: float32 [batches, n, 4], the part of each image to use: left, top, right and bottom as fractions of
                the image's side, see `random_boxes`. None: the centre.
        """
        size = self._size
        margin = (self._pixels.shape[1] - size) // 2
        centre = np.float32([margin, margin, margin + size, margin + size]) / self._pixels.shape[1]
        boxes = np.tile(centre, (batches.size, 1)) if boxes is None else boxes

        def crop(row, box):
            image = self._pixels[row]
            if (box == centre).all():
                return centre_of(image, size)
            return np.asarray(Image.fromarray(image).resize(
                (size, size), Image.BILINEAR, box=tuple(float(edge) * image.shape[0] for edge in box)))

        def cropped(row, box):
            image = tf.numpy_function(crop, [row, box], tf.uint8)
            image.set_shape([size, size, CHANNELS])
            return image

        with tf.Graph().as_default() as graph, tf.device("/cpu:0"):
            rows = tf.placeholder(tf.int64, [None])
            parts = tf.placeholder(tf.float32, [None, 4])
            images = tf.data.Dataset.from_tensor_slices((rows, parts)).map(cropped, cores())
            iterator = tf.data.make_initializable_iterator(images.batch(batches.shape[1]).prefetch(2))
            following = iterator.get_next()
        # No `with` statement for the session: its context belongs to one thread. A consumer that stops early closes
        # this generator in another thread.
        sess = tf.Session(graph=graph, config=tf.ConfigProto(device_count={"GPU": 0}))
        try:
            sess.run(iterator.initializer, {rows: self._rows[batches.ravel()], parts: boxes.reshape(-1, 4)})
            for _ in batches:
                yield sess.run(following)
        finally:
            sess.close()


def random_boxes(count, crop_area, random):
    """Draws random parts of images as in Szegedy et al. 2015 (arXiv 1409.4842, section 6).

    Args:
        count: number of boxes.
        crop_area: the smallest share of an image's area that a box covers. The aspect ratio is from 3/4 to 4/3.
        random: a RandomState.
    Returns:
        the boxes, float32 [count, 4]; see `Images.crops`.
    """
    area, log_ratio, left, top = random.uniform(0.0, 1.0, (4, count))
    area = crop_area + (1 - crop_area) * area
    ratio = np.exp(np.log(4 / 3) * (2 * log_ratio - 1))
    width, height = np.minimum(1, np.sqrt(area * ratio)), np.minimum(1, np.sqrt(area / ratio))
    left, top = left * (1 - width), top * (1 - height)
    return np.stack([left, top, left + width, top + height], 1).astype(np.float32)


def read_image(path, side, channels):
    """Reads an image file as uint8 [side, side, channels], in any format that Pillow reads.

    The EXIF orientation is applied. Transparent images are drawn on white. The image is cropped to a square at its
    centre and resized.

    Args:
        path: the image file.
        side: side in pixels of the result.
        channels: 1 for grey, 3 for red, green and blue.
    Raises:
        Exception: the file is not an image, or it is damaged. Pillow's decoders raise exceptions of many types.
    """
    with Image.open(path) as image:
        image.draft("RGB", (side, side))  # decodes a large JPEG at a fraction of its size
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # grey, 16 or 32 bits per pixel
            grey = np.asarray(image)
            image = Image.fromarray((grey / (256 if grey.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
        if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
        image = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (side, side), Image.BILINEAR)
        return np.asarray(image).reshape(side, side, channels)


def files_under(path):
    """Lists the files under a folder, at any depth, sorted and without hidden files. For a file, returns [path]."""
    if not os.path.isdir(path):
        return [path]
    found, visited = [], set()
    for folder, folders, names in os.walk(path, followlinks=True):
        if os.path.realpath(folder) in visited:  # a symbolic link to a folder that was visited
            folders[:] = []
            continue
        visited.add(os.path.realpath(folder))
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(folder, name) for name in names if not name.startswith(".") and name not in IGNORED]
    return sorted(found)


def _facts(path):
    """Returns (size, modification time) of a file, by which a change is detected; None if they cannot be read."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _listed(data_dir):
    """Returns (class names, [(path, label, whether it is a test image)])."""
    def folders_in(folder):
        try:
            return sorted(name for name in os.listdir(folder)
                          if not name.startswith(".") and os.path.isdir(os.path.join(folder, name)))
        except OSError as error:
            raise DataError("%s cannot be read as a folder (%s): set data_dir to the folder that holds a sub-folder of "
                            "images for each class" % (folder, error.strerror)) from None

    names = folders_in(data_dir)
    train = os.path.join(data_dir, "train") if "train" in names else data_dir
    test = next((os.path.join(data_dir, name) for name in ("test", "val") if "train" in names and name in names), None)
    classes = folders_in(train)
    if len(classes) < 2:
        raise DataError("%s has %d sub-folders, not one for each of two classes or more: set data_dir to the folder "
                        "that holds them" % (train, len(classes)))
    for name in classes:
        if not name.isprintable():  # for example, it is not UTF-8
            raise DataError("%s has a sub-folder %r: give it a name of letters that can be shown" % (train, name))
    if test and set(folders_in(test)) - set(classes):
        raise DataError("%s has the class %s, which %s has not: there is nothing to learn it from"
                        % (test, min(set(folders_in(test)) - set(classes)), train))
    files = []
    for label, name in enumerate(classes):
        paths = files_under(os.path.join(train, name))
        order = np.random.RandomState(label).permutation(len(paths))
        drawn = set() if test else set(order[:round(TEST_SHARE * len(paths))].tolist())
        files += [(path, label, number in drawn) for number, path in enumerate(paths)]
        if test and os.path.isdir(os.path.join(test, name)):
            files += [(path, label, True) for path in files_under(os.path.join(test, name))]
    return classes, files


def _decode(files, side, data_dir, cache):
    """Decodes the files into a new cache. The cache gets its name only when it is complete."""
    def decoded(entry):
        try:
            return read_image(entry[0], side, CHANNELS).tobytes(), None
        except Exception as error:  # of any type: see read_image
            if isinstance(error, MemoryError) or getattr(error, "errno", None):  # not caused by the content
                raise UserError("%s cannot be read (%s): make it readable, or take it away"
                                % (entry[0], getattr(error, "strerror", None) or "not enough memory")) from None
            return None, "%s: %s" % (os.path.relpath(entry[0], data_dir), " ".join(str(error).split()) or
                                     type(error).__name__)

    say("decoding %d images of %s into %s" % (len(files), data_dir, cache))
    new = cache + ".new"
    shutil.rmtree(new, ignore_errors=True)  # left over by a killed process
    os.makedirs(new)
    kept, skipped, checksum = [], [], 0
    shows = sys.stderr is not None and sys.stderr.isatty()
    with open(os.path.join(new, "pixels"), "wb") as output, ThreadPoolExecutor(cores()) as threads:
        for start in range(0, len(files), 1024):  # in groups, to limit the decoded images in memory
            some = files[start:start + 1024]
            for entry, (pixels, problem) in zip(some, tqdm(threads.map(decoded, some), total=len(some), leave=False,
                                                           disable=not shows)):
                if problem:
                    skipped.append(problem)
                    continue
                output.write(pixels)
                kept.append(entry[1:])
                checksum = zlib.crc32(pixels, checksum)
    if not kept:
        raise DataError("%s has no image that can be read (%s)" % (data_dir, "; ".join(skipped[:3]) or "no files"))
    with open(os.path.join(new, "skipped.txt"), "w", errors="backslashreplace") as output:
        output.writelines(line + "\n" for line in skipped)
    labels, test = zip(*kept)
    np.savez(os.path.join(new, "index.npz"), labels=np.array(labels, np.int64), test=np.array(test, bool),
             skipped=np.array(skipped, str), checksum=checksum)
    os.replace(new, cache)


@contextlib.contextmanager
def _locked(path):
    """A context that only one process at a time can enter. Other processes wait."""
    with open(path, "a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
