"""Image folders: decoding, caching, cropping and training."""

import errno
import fcntl
import glob
import hashlib
import os
import shutil
import signal
import sys
import zlib

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import program, read
from PIL import Image, ImageDraw

import Densenet
from support import UserError, image_folder
from support.augmentation import training_batches
from support.data import color_preprocessing, say_repeated
from support.file_reading import DataError
from support.interruption import Stopped

CLASSES = ("circle", "cross", "ring", "square", "stripes", "triangle")
FORMATS = ("png", "jpg", "gif", "bmp", "webp", "tif")


def drawn(kind, random):
    """Draws an RGB image of a class with random size, position, colours and noise."""
    width, height = random.randint(60, 200, 2).tolist()
    background = random.randint(0, 256, 3)
    image = Image.fromarray((background + random.randint(-30, 30, (height, width, 3))).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    colour = tuple(((background + random.randint(90, 166, 3)) % 256).tolist())
    side = min(width, height)
    radius = int(side * random.uniform(0.2, 0.3))
    x, y = (length // 2 + random.randint(-side // 8, side // 8 + 1) for length in (width, height))
    box = [x - radius, y - radius, x + radius, y + radius]
    line = max(3, radius // 4)
    if kind == "circle":
        draw.ellipse(box, fill=colour)
    elif kind == "cross":
        draw.line([x - radius, y, x + radius, y], fill=colour, width=line)
        draw.line([x, y - radius, x, y + radius], fill=colour, width=line)
    elif kind == "ring":
        draw.ellipse(box, fill=colour)
        draw.ellipse([x - radius + line, y - radius + line, x + radius - line, y + radius - line],
                     fill=tuple(background.tolist()))
    elif kind == "square":
        draw.rectangle(box, fill=colour)
    elif kind == "stripes":
        for left in range(x - radius, x + radius, 2 * line):
            draw.rectangle([left, y - radius, left + line, y + radius], fill=colour)
    else:
        draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)
    return image


def write_image(image, path, number, random):
    """Saves the image in one of several formats and modes, some rotated with an EXIF tag; returns the path."""
    path = "%s.%s" % (path, FORMATS[number % len(FORMATS)])
    options = {}
    if path.endswith(("png", "tif")):
        mode = ("RGB", "L", "RGBA", "P", "I;16")[random.randint(5)]
        if mode == "RGBA":
            image = image.convert("RGBA")
            image.putalpha(230)
        elif mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256)
        else:
            image = image.convert(mode)
    elif path.endswith("jpg") and random.randint(3) == 0:
        image = image.transpose(Image.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # rotate clockwise by 90 degrees to display
        options["exif"] = exif.tobytes()
    image.save(path, **options)
    return path


def generate(folder, images, seed=0):
    """Writes images to one sub-folder per class and damages every 97th; returns the names of the damaged ones."""
    random = np.random.RandomState(seed)
    damaged = []
    for kind in CLASSES:
        os.makedirs(os.path.join(folder, kind))
    for number in range(images):
        kind = CLASSES[number % len(CLASSES)]
        path = write_image(drawn(kind, random), os.path.join(folder, kind, "%05d" % number), number // 6, random)
        if number % 97 == 96:
            with open(path, "rb") as file:
                content = file.read()
            with open(path, "wb") as file:
                file.write(content[:len(content) // 3] if number % 2 else b"no image")
            damaged.append(os.path.relpath(path, folder))
    return sorted(damaged)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A folder of 200 images of six classes; two images are damaged."""
    folder = str(tmp_path_factory.mktemp("images") / "shapes")
    generate(folder, 200)
    return folder


def pixels_of(image, tmp_path, name, channels=3, side=4, **options):
    path = str(tmp_path / name)
    image.save(path, **options)
    return image_folder.read_image(path, side, channels)


def test_images_of_all_modes_are_read(tmp_path):
    red = np.zeros([4, 4, 3], np.uint8)
    red[..., 0] = 204
    np.testing.assert_array_equal(pixels_of(Image.fromarray(red), tmp_path, "rgb.png"), red)
    np.testing.assert_array_equal(pixels_of(Image.fromarray(red).convert("P"), tmp_path, "palette.gif"), red)
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    np.testing.assert_array_equal(pixels_of(Image.fromarray(grey), tmp_path, "grey.png"), np.stack([grey] * 3, 2))
    np.testing.assert_array_equal(pixels_of(Image.fromarray(grey), tmp_path, "grey.bmp", channels=1)[..., 0], grey)
    deep = Image.fromarray(grey.astype(np.uint16) * 256 + 255)
    np.testing.assert_array_equal(pixels_of(deep, tmp_path, "deep.png", channels=1)[..., 0], grey)
    clear = Image.fromarray(np.dstack([red, np.uint8([[0, 255, 0, 255]] * 4)]))
    found = pixels_of(clear, tmp_path, "clear.png")
    assert (found[:, ::2] == 255).all() and (found[:, 1::2] == red[:, 1::2]).all()
    marked = Image.fromarray(np.uint8([[0, 1, 0, 1]] * 4), "P")
    marked.putpalette([9, 9, 9, 204, 0, 0])
    found = pixels_of(marked, tmp_path, "marked.png", transparency=0)
    assert (found[:, ::2] == 255).all() and (found[:, 1::2] == red[:, 1::2]).all()


def test_images_are_rotated_upright_and_cropped_at_the_centre(tmp_path):
    column = np.arange(8, dtype=np.uint8)[:, None, None] * np.full([8, 4, 3], 30, np.uint8)  # [8 rows, 4 columns]
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(column)))  # upright after clockwise rotation by 90 degrees
    assert (turned.width, turned.height) == (8, 4)
    np.testing.assert_array_equal(pixels_of(turned, tmp_path, "turned.png", exif=exif.tobytes()), column[2:6])
    large = pixels_of(Image.fromarray(column.repeat(50, 0).repeat(50, 1)), tmp_path, "large.jpg", quality=100)
    assert np.abs(large.astype(int) - column[2:6]).max() <= 8  # decoded at a reduced size, averaged


def test_a_folder_is_decoded_once_and_damaged_files_are_named(shapes, folder, capsys, monkeypatch):
    data = image_folder.prepare_data(shapes, 20, 32)
    output = capsys.readouterr().out
    assert output.count("skipped ") == 2 and "skipped circle" in output and "decoding 200 files" in output
    assert data.class_names == CLASSES and data.image_shape == (32, 32, 3)
    assert (len(data.train), len(data.validation), len(data.test)) == (142, 20, 36)
    assert np.bincount(data.test.labels).min() >= 5
    images = data.train.images[:]
    assert images.shape == (142, 32, 32, 3) and images.dtype == np.uint8
    np.testing.assert_allclose(data.mean, images.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(data.deviation, images.std((0, 1, 2)), rtol=1e-4)

    with monkeypatch.context() as patched:
        patched.setattr(image_folder, "read_image", None)  # the cache replaces decoding
        again = image_folder.prepare_data(shapes, 20, 32)
    assert again.fingerprint() == data.fingerprint() and capsys.readouterr().out.count("skipped ") == 2
    np.testing.assert_array_equal(again.train.images[5], images[5])
    assert image_folder.prepare_data(shapes, 20, 16).image_shape == (16, 16, 3)  # a second cache, for another size
    assert len(glob.glob("cache/shapes-32px-*/pixels")) == 1 and not glob.glob("cache/*.new")


def write_grey(place, count, kind="png"):
    """Writes images of different grey levels into a folder."""
    os.makedirs(place)
    for number in range(count):
        Image.new("L", (8, 8), 10 * number).save("%s/%d.%s" % (place, number, kind))


def test_what_is_skipped_is_said_on_one_line_each(folder, capsys):
    for name in "ab":
        write_grey("data/" + name, 8)
    with open("data/b/red\n\x1b[31m.png", "w"):
        pass
    image_folder.prepare_data("data", 2, 8)
    output = capsys.readouterr().out
    assert '\nskipped "b/red\\n\\x1b[31m.png: ' in output
    with open(glob.glob("cache/*/skipped.txt")[0]) as file:
        assert len(file.readlines()) == 1


def test_another_version_of_pillow_may_read_what_one_has_skipped(folder, capsys, monkeypatch):
    for name in "ab":
        write_grey("data/" + name, 8)
    with open("data/a/new.png", "w"):
        pass
    image_folder.prepare_data("data", 2, 8)
    assert "to try again" not in capsys.readouterr().out
    before, = glob.glob("cache/*px-????????????")
    with monkeypatch.context() as patched:
        patched.setattr(image_folder.PIL, "__version__", "99.0")
        image_folder.prepare_data("data", 2, 8)
    assert "this is 99.0: to try again, delete the folder %s\n" % before in capsys.readouterr().out
    with np.load(before + "/index.npz") as index:
        np.savez(before + "/index.npz", **{name: index[name] for name in index if name != "pillow"})
    image_folder.prepare_data("data", 2, 8)  # of an earlier version
    assert "to try again" not in capsys.readouterr().out


def test_tiff_images_that_earlier_versions_may_have_turned_wrongly_are_decoded_again(folder):
    names = {}
    for kind in ("png", "tif"):
        for name in "ab":
            write_grey("%s/%s" % (kind, name), 8, kind)
        image_folder.prepare_data(kind, 2, 8)
        names[kind], = (os.path.basename(path) for path in glob.glob("cache/%s-*" % kind) if "lock" not in path)
    # What version 4 of the cache was called: a digest of these values.
    files = [("%s/%d.%s" % (name, number, "%s"), "ab".index(name), "train") for name in "ab" for number in range(8)]
    for kind in names:
        digest = hashlib.sha256(repr((4, None, False)).encode())
        facts = image_folder._facts([os.path.join(kind, path % kind) for path, _, _ in files])
        for (path, label, split), its_facts in zip(files, facts):
            digest.update(repr((path % kind, label, split, its_facts)).encode())
        assert (names[kind] == "%s-8px-%s" % (kind, digest.hexdigest()[:12])) == (kind == "png")


def test_folders_of_images_that_another_data_set_does_not_read_are_said(folder, capsys):
    for name in "ab":
        write_grey("data/" + name, 2)
    sentence = "data has folders of images (a, b), which dataset=mnist does not read: to train on these, give dataset="
    for given, said in (({"data_dir": "data"}, True), ({"data_dir": "data", "dataset": "mnist"}, False), ({}, False),
                        ({"data_dir": "data/a"}, False), ({"data_dir": "absent"}, False)):
        assert image_folder.options(Densenet.choose(**given)) == {}
        assert (sentence in capsys.readouterr().out) == said


def test_each_class_keeps_a_training_image(folder):
    for name in "abcdefgh":
        write_grey("data/" + name, 4)
    data = image_folder.prepare_data("data", 20, 8)
    assert sorted(set(data.train.labels)) == list(range(8)) and len(data.train) + len(data.validation) == 24
    assert len(data.validation) == 16  # of the 20 that were asked for
    for name in "ab":
        write_grey("few/" + name, 2)
    with pytest.raises(DataError, match="too few images to test with"):
        image_folder.prepare_data("few", 2, 8)


def test_a_fractional_validation_size_holds_out_that_share(shapes, folder):
    data = image_folder.prepare_data(shapes, 0.1, 8)
    assert (len(data.train), len(data.validation)) == (146, 16)


def test_a_changed_folder_is_decoded_again(tmp_path, folder):
    for name in ("a", "b"):
        os.makedirs(str(tmp_path / "in" / name))
        for number in range(6):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(str(tmp_path / "in" / name / ("%d.png" % number)))
    before = image_folder.prepare_data(str(tmp_path / "in"), 2, 8)
    Image.new("RGB", (8, 8)).save(str(tmp_path / "in" / "a" / "more.png"))
    after = image_folder.prepare_data(str(tmp_path / "in"), 2, 8)
    assert len(after.train) == len(before.train) + 1 and after.fingerprint() != before.fingerprint()
    assert len(glob.glob("cache/in-8px-*/pixels")) == 2


def test_an_incomplete_cache_of_a_killed_process_is_replaced(shapes, folder, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process removes nothing
        with pytest.raises(KeyboardInterrupt):
            image_folder.prepare_data(shapes, 20, 8)
    (left,) = glob.glob("cache/*.new")
    with open(os.path.join(left, "pixels"), "wb"):
        pass
    assert len(image_folder.prepare_data(shapes, 20, 8).train) == 142 and not glob.glob("cache/*.new")


@pytest.mark.skipif(image_folder.fcntl is None, reason="this system has no such locks")
def test_only_a_complete_cache_is_used_where_nothing_can_be_locked(shapes, folder, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patched:
        patched.setattr(image_folder.fcntl, "flock", flock)
        with pytest.raises(UserError, match="cache/shapes-8px-.* cannot be locked .No locks available.: set cache_dir"):
            image_folder.prepare_data(shapes, 20, 8)
    image_folder.prepare_data(shapes, 20, 8)
    monkeypatch.setattr(image_folder.fcntl, "flock", flock)
    assert len(image_folder.prepare_data(shapes, 20, 8).train) == 142


def test_files_of_equal_size_and_modification_time_are_told_apart(tmp_path, folder):
    """Files from archives often have the modification time in common."""
    for name, grey in (("a", 10), ("b", 200)):
        for path in plain_images(tmp_path / "in" / name, 6, grey):
            Image.open(path).save(path.replace(".png", ".bmp"))
            os.remove(path)
    for path in glob.glob(str(tmp_path / "in" / "*" / "*")):
        os.utime(path, (1, 1))
    before = image_folder.prepare_data(str(tmp_path / "in"), 0, 8)
    for source, target in (("a", "c"), ("b", "a"), ("c", "b")):
        os.rename(str(tmp_path / "in" / source), str(tmp_path / "in" / target))
    after = image_folder.prepare_data(str(tmp_path / "in"), 0, 8)
    assert max(greys(before.test)[:1]) < 100 < min(greys(after.test)[:1])


def test_the_drawn_test_images_do_not_depend_on_files_that_are_no_images(tmp_path, folder):
    """They are those of earlier versions, which drew among all files."""
    for label, name in enumerate("ab"):
        plain_images(tmp_path / "in" / name, 14, 100 * label)
    expected = sorted(100 * label + number for label in (0, 1)
                      for number in np.random.RandomState(label).permutation(14)[:2])
    assert greys(image_folder.prepare_data(str(tmp_path / "in"), 0, 8).test) == expected
    spoil(str(tmp_path / "in" / "a" / "03b.png"), str(tmp_path / "in" / "b" / "00.xml"))
    assert greys(image_folder.prepare_data(str(tmp_path / "in"), 0, 8).test) == expected


def test_the_error_names_a_damaged_cache(shapes, folder):
    image_folder.prepare_data(shapes, 20, 8)
    for name in ("index.npz", "pixels"):
        path = glob.glob("cache/*/" + name)[0]
        with open(path, "rb") as file:
            content = file.read()
        for damaged in (content[:len(content) // 2], b""):
            with open(path, "wb") as file:
                file.write(damaged)
            with pytest.raises(UserError, match="cannot be read .*delete that folder, and they are decoded anew"):
                image_folder.prepare_data(shapes, 20, 8)
        with open(path, "wb") as file:
            file.write(content)
    image_folder.prepare_data(shapes, 20, 8)


def test_unreadable_files_are_not_skipped_as_damaged(tmp_path, folder, monkeypatch):
    for name in ("a", "b"):
        os.makedirs(str(tmp_path / "in" / name))
        for number in range(6):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(str(tmp_path / "in" / name / ("%d.png" % number)))
    os.symlink(str(tmp_path / "in" / "a"), str(tmp_path / "in" / "a" / "above"))  # a cycle must not recurse forever
    assert len(image_folder.prepare_data(str(tmp_path / "in"), 2, 8).train) == 8
    for name in ("gone.png", "lost.png"):
        os.symlink("nowhere", str(tmp_path / "in" / "b" / name))
    with pytest.raises(UserError, match="2 of the files in .* are links that lead nowhere .b/gone.png, b/lost.png.: "):
        image_folder.prepare_data(str(tmp_path / "in"), 2, 8)


def plain_images(folder, count, first=0, size=(8, 8)):
    """Writes `count` plain PNG images; image number n has the grey value first + n. Returns their paths."""
    os.makedirs(str(folder), exist_ok=True)
    paths = [os.path.join(str(folder), "%02d.png" % number) for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("L", size, first + number).save(path)
    return paths


def greys(split):
    """The grey value of each image of a split."""
    return split.images[:][:, 0, 0, 0].tolist()


def test_train_and_val_folders_are_used_as_splits(tmp_path, folder):
    for split, counts in (("train", (5, 4)), ("val", (2, 3))):
        for name, count in zip("ab", counts):
            plain_images(tmp_path / split / name / "deeper", count)
    (tmp_path / "train" / "a" / ".DS_Store").write_text("hidden")
    data = image_folder.prepare_data(str(tmp_path), 0, 8)
    assert np.bincount(data.train.labels).tolist() == [5, 4] and np.bincount(data.test.labels).tolist() == [2, 3]
    plain_images(tmp_path / "val" / "c", 1)
    with pytest.raises(DataError, match="has the class c, which .*train has not"):
        image_folder.prepare_data(str(tmp_path), 0, 8)


def three_splits(place):
    for number, (split, count) in enumerate((("train", 6), ("validation", 3), ("test", 2))):
        for label, name in enumerate("ab"):
            plain_images(place / split / name, count, 100 * label + 10 * number)
    return str(place)


def test_a_given_validation_folder_is_the_validation_split(tmp_path, folder, capsys):
    for _ in range(2):  # decoded, then from the cache
        data = image_folder.prepare_data(three_splits(tmp_path / "in"), 5, 8)
        assert greys(data.train) == [0, 1, 2, 3, 4, 5, 100, 101, 102, 103, 104, 105]
        assert greys(data.validation) == [10, 11, 12, 110, 111, 112] and greys(data.test) == [20, 21, 120, 121]
        assert data.validation.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert "validation: the 6 images that %s has for it; validation_size is not used" % (tmp_path / "in") in \
            capsys.readouterr().out
    together = image_folder.joined([data.test, data.validation])
    assert greys(together) == [20, 21, 120, 121, 10, 11, 12, 110, 111, 112]
    assert together.labels.tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 1, 1] and greys(data.test) == [20, 21, 120, 121]


def test_the_same_images_keep_their_checksum(tmp_path, folder):
    """The checksum of earlier versions: the classes in order; of each, the training and then the test images."""
    for label, name in enumerate("ab"):
        plain_images(tmp_path / "in" / "train" / name, 3, 100 * label)
        plain_images(tmp_path / "in" / "test" / name, 2, 100 * label + 50)
    crc = zlib.crc32(np.repeat(np.uint8([0, 1, 2, 50, 51, 100, 101, 102, 150, 151]), 8 * 8 * 3).tobytes())
    for labels in ([0, 0, 0, 1, 1, 1], [], [0, 0, 1, 1]):
        crc = zlib.crc32(np.array(labels, "<i8").tobytes(), crc)
    assert image_folder.prepare_data(str(tmp_path / "in"), 0, 8).fingerprint() == {
        "train": 6, "validation": 0, "test": 4, "crc32": crc, "image_shape": [8, 8, 3], "class_names": ["a", "b"]}


def test_test_images_by_which_weights_are_chosen_are_counted(tmp_path, folder, capsys):
    place = three_splits(tmp_path / "in")
    names = sorted(os.listdir(place + "/validation/a"))
    shutil.copy(place + "/validation/a/" + names[0], place + "/test/a/copy.png")
    shutil.copy(place + "/train/a/03.png", place + "/test/a/another.png")  # counted as a training image alone
    shutil.copy(place + "/train/a/03.png", place + "/validation/a/another.png")
    say_repeated(image_folder.prepare_data(place, 0, 8))
    output = capsys.readouterr().out
    assert "1 of the 6 test images are also training images: the accuracy is too high by them" in output
    assert "1 of the 6 test images are also validation images: the accuracy is too high" in output


def test_a_process_that_waits_for_the_cache_says_so(shapes, folder, monkeypatch):
    image_folder.prepare_data(shapes, 20, 8)
    (lock,) = glob.glob("cache/*.lock")
    shutil.rmtree(lock[:-len(".lock")])
    said = []
    with open(lock) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        monkeypatch.setattr(image_folder, "say", lambda line: (said.append(line), fcntl.flock(held, fcntl.LOCK_UN)))
        image_folder.prepare_data(shapes, 20, 8)
    assert said[0] == "waiting for another process, which decodes these images and has locked " + lock


def test_incomplete_caches_are_removed(shapes, folder, monkeypatch):
    """At once after an error, and by the next process after a kill, unless another process still decodes them."""
    def failing(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="No space left on device"):
        patched.setattr(image_folder, "_decode_into", failing)
        image_folder.prepare_data(shapes, 20, 8)
    assert glob.glob("cache/*.new") == []
    base = glob.glob("cache/*.lock")[0].rpartition("-")[0]
    for name in ("killed", "busy"):
        os.makedirs("%s-%s.new" % (base, name))
    with open(base + "-busy.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        image_folder.prepare_data(shapes, 20, 8)
    assert glob.glob("cache/*.new") == [base + "-busy.new"]
    os.makedirs(base + "-anothers.new")
    with monkeypatch.context() as patched:
        shutil.rmtree("cache/" + os.path.basename(glob.glob("cache/*.lock")[0])[:-len(".lock")], ignore_errors=True)
        patched.setattr(shutil, "rmtree", failing)
        image_folder._remove_halves(base)


def test_test_images_that_are_training_images_are_counted(tmp_path, folder, capsys):
    place = three_splits(tmp_path / "in")
    data = image_folder.prepare_data(place, 0, 8)
    say_repeated(data)
    assert "also training images" not in capsys.readouterr().out
    expected = [hashlib.blake2b(bytes([grey] * (8 * 8 * 3)), digest_size=8).digest() for grey in greys(data.test)]
    assert data.digests["test"].tobytes() == b"".join(expected) and len(data.digests["train"]) == 12
    shutil.copy(place + "/train/a/03.png", place + "/test/a/copy.png")
    shutil.copy(place + "/train/b/00.png", place + "/test/a/wrong.png")
    shutil.copy(place + "/train/b/05.png", place + "/validation/b/copy.png")
    say_repeated(image_folder.prepare_data(place, 0, 8))
    output = capsys.readouterr().out
    assert "2 images are copies of an image of another class, such as one in a and b: nothing" in output
    assert "2 of the 6 test images are also training images: the accuracy is too high by them" in output
    assert "1 of the 7 validation images are also training images" in output


def test_all_images_are_evaluated_whatever_split_they_are_in(tmp_path, folder):
    for place, count in (("test/a", 2), ("test/b", 1), ("validation/a", 1)):
        plain_images(tmp_path / "in" / place, count)
    for name in "ab":
        os.makedirs(str(tmp_path / "in" / "train" / name))
        (tmp_path / "in" / "train" / name / "1.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match="no training images"):
        image_folder.prepare_data(str(tmp_path / "in"), 0.1, 8)
    data = image_folder.prepare_data(str(tmp_path / "in"), 0.1, 8, evaluated=True)
    assert sum(len(split) for split in (data.train, data.validation, data.test)) == 4


def test_deep_images_have_one_scale_that_is_kept(tmp_path, folder, capsys):
    place = str(tmp_path / "in")
    for name in "ab":
        os.makedirs(os.path.join(place, name))
        for number in range(6):
            values = np.full((8, 8), 512 * number + 511 * (name == "b"), "<u2")
            Image.frombytes("I;16", (8, 8), values.tobytes()).save(os.path.join(place, name, "%d.png" % number))
    for _ in range(2):
        data = image_folder.prepare_data(place, 0, 8)
        assert data.pixel_range == (0, 4096) and data.fingerprint()["pixel_range"] == [0, 4096]
        found = sorted(greys(data.train) + greys(data.test))
        assert found == sorted([32 * number for number in range(6)] + [32 * number + 31 for number in range(6)])
        assert "the pixel values 0 to 4096 become black to white" in capsys.readouterr().out
    assert len(glob.glob("cache/in-8px-*/pixels")) == 1
    assert image_folder.prepare_data(place, 0, 8, pixel_range=(0, 4096)).pixel_range == (0, 4096)
    assert len(glob.glob("cache/in-8px-*/pixels")) == 1  # decoded with this scale already
    data = image_folder.prepare_data(place, 0, 8, pixel_range=(0, 1024))
    assert data.pixel_range == (0, 1024) and max(greys(data.train) + greys(data.test)) == 255
    assert len(glob.glob("cache/in-8px-*/pixels")) == 2


def test_notes_about_the_files_are_printed_each_time(tmp_path, folder, capsys):
    place = three_splits(tmp_path / "in")
    for name in ("one", "two"):
        Image.new("RGB", (8, 8), (9, 9, 9)).save(place + "/train/a/%s.jpg" % name, exif=b"Exif\0\0" + bytes(range(90)))
    noisy = Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64)).astype(np.uint8))
    noisy.save(place + "/train/b/cut.png")
    with open(place + "/train/b/cut.png", "r+b") as file:
        file.truncate(2500)
    for _ in range(2):
        assert len(image_folder.prepare_data(place, 0, 8).train) == 14
        output = capsys.readouterr().out
        assert "files with unreadable EXIF data, whose orientation is unknown: 2" in output
        assert "skipped train/b/cut.png" in output
    for _ in range(2):
        assert len(image_folder.prepare_data(place, 0, 8, truncated=True).train) == 15
        output = capsys.readouterr().out
        assert "truncated files, of which the readable part is used: 1" in output and "skipped" not in output


def test_folders_that_the_program_writes_are_no_classes(tmp_path, folder, capsys):
    for name in ("a", "b", "logs", "cache", "model"):
        plain_images(tmp_path / name, 6)
    data = image_folder.prepare_data(".", 0, 8, cache_dir="cache", excluded=("model", str(tmp_path / "logs")))
    assert data.class_names == ("a", "b")
    assert "images are there, too: cache, model, %s; if it is a class" % (tmp_path / "logs") in capsys.readouterr().out


@pytest.mark.parametrize("folders,sentence", [
    ((), "has 0 sub-folders"), (("a",), "has 1 sub-folders? with images, not one for each"),
    (None, "cannot be read as a folder"), (("empty", "void"), "has 0 sub-folders with images")])
def test_folders_without_classes_or_images_are_refused(tmp_path, folder, folders, sentence):
    place = tmp_path / "in"
    for name in folders or ():
        os.makedirs(str(place / name))
    if folders is not None:
        place.mkdir(exist_ok=True)
    if folders and "a" in folders:
        plain_images(place / "a", 9)
    with pytest.raises(DataError, match=sentence):
        image_folder.prepare_data(str(place), 0, 8)


def spoil(*paths):
    for path in paths:
        with open(path, "wb") as file:
            file.write(b"no image")


def test_classes_and_splits_without_readable_images_are_refused(tmp_path, folder):
    place = three_splits(tmp_path / "in")
    spoil(*glob.glob(place + "/test/*/*"))
    with pytest.raises(DataError, match="none of the test images of .* can be read"):
        image_folder.prepare_data(place, 0, 8)
    spoil(*glob.glob(place + "/train/b/*"))
    with pytest.raises(DataError, match="no training image of the class b that can be read: .*take the folder away$"):
        image_folder.prepare_data(place, 0, 8)
    spoil(*glob.glob(place + "/*/*/*"))
    with pytest.raises(DataError, match="no image that can be read .train/a/00.png: "):
        image_folder.prepare_data(place, 0, 8)
    for name in "cd":
        plain_images(tmp_path / "few" / name, 2)
    with pytest.raises(DataError, match="too few images to test with: put at least four"):
        image_folder.prepare_data(str(tmp_path / "few"), 0, 8)


def test_a_cache_that_cannot_be_written_is_refused(shapes, folder):
    with open("file", "w"):
        pass
    with pytest.raises(UserError, match="set cache_dir to another folder"):
        image_folder.prepare_data(shapes, 20, 32, cache_dir="file")


@pytest.mark.parametrize("crop_area", [0.08, 0.5, 0.9, 0.99])
def test_random_boxes_cover_at_least_the_share_that_is_asked_for(crop_area):
    boxes = image_folder.random_boxes(5000, crop_area, np.random.RandomState(0)).astype(np.float64)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert boxes.min() >= 0 and boxes.max() <= 1 + 1e-6
    assert crop_area - 1e-5 < area.min() < crop_area + 0.01 and abs(np.mean(area) - (1 + crop_area) / 2) < 0.01


def test_random_boxes_match_the_standard_random_crop():
    boxes = image_folder.random_boxes(5000, 0.08, np.random.RandomState(0)).astype(np.float64)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes.max() <= 1 + 1e-6
    area, ratio = width * height, width / height
    assert 0.07 < area.min() < 0.1 and area.max() > 0.9 and np.abs(np.median(area) - 0.53) < 0.03
    assert ratio.min() > 0.749 and ratio.max() < 1.334 and np.abs(np.median(np.log(ratio))) < 0.02


def test_crops_show_the_requested_boxes(shapes, folder):
    data = image_folder.prepare_data(shapes, 20, 56, crop_area=0.5)  # stored at 64×64 pixels
    whole = data.train.images
    (centre,) = whole.crops(np.array([[3, 1]]))
    np.testing.assert_array_equal(centre, whole[[3, 1]])
    (corner,) = whole.crops(np.array([[3]]), np.float32([[[0, 0.5, 0.5, 1]]]))
    stored = whole._pixels[whole.rows[3]]
    expected = tf.Session(graph=tf.Graph())
    with expected.graph.as_default():  # TensorFlow's bilinear interpolation with Pillow's pixel centres
        image = tf.image.resize_bilinear(tf.constant(stored[None, 32:, :32], tf.float32), [56, 56],
                                         half_pixel_centers=True)
    assert np.abs(expected.run(image)[0] - corner[0]).mean() < 1


def batches(config, data, *place):
    return [(images.copy(), labels) for images, labels in training_batches(data, config, *place)]


@pytest.mark.parametrize("crop_area", [1.0, 0.2])
def test_batches_are_reproducible_and_can_resume_and_be_shared(shapes, folder, crop_area):
    config = Densenet.choose(dataset="folder", data_dir=shapes, image_size=24, crop_area=crop_area, batch_size=16,
                             validation_size=20)
    data, _ = Densenet.prepare_data(config)
    first = batches(config, data, 1, 0)
    assert len(first) == 142 // 16 and first[0][0].shape == (16, 24, 24, 3) and first[0][0].dtype == np.float32
    for found, expected in ((batches(config, data, 1, 0), first), (batches(config, data, 1, 6), first[6:]),
                            (batches(config, data, 1, 0, slice(4, 12)),
                             [(images[4:12], labels[4:12]) for images, labels in first])):
        assert len(found) == len(expected)
        for (images, labels), (expected_images, expected_labels) in zip(found, expected):
            np.testing.assert_array_equal(images, expected_images)
            np.testing.assert_array_equal(labels, expected_labels)
    assert (batches(config, data, 2, 0)[0][0] != first[0][0]).any()


def test_imagenet_networks_use_the_standard_crop():
    config = Densenet.choose(dataset="folder", network="densenet_121")
    assert (config.image_size, config.crop_area, config.run_name) == (224, 0.08, "data-network=densenet_121")
    assert image_folder.stored_side(config.image_size, config.crop_area) == 256
    with pytest.raises(UserError, match="belong to dataset=folder"):
        Densenet.choose(dataset="cifar10", image_size=32)


TINY_FOLDER = dict(dataset="folder", image_size=32, blocks=(1, 1), growth_k=4, batch_size=16, validation_size=20,
                   total_epochs=2)


@pytest.mark.campaign
def test_training_on_a_folder_resumes_exactly(shapes, folder):
    options = dict(TINY_FOLDER, data_dir=shapes, schedule="constant", warmup=0.0)
    once = Densenet.train(run_name="once", **options)
    assert once["steps"] == 16 and once["dataset"] == "folder"
    Densenet.train(run_name="parts", **dict(options, total_epochs=1))
    assert Densenet.train(run_name="parts", **options)["test_loss"] == once["test_loss"]


def test_without_augmentation_training_uses_the_evaluation_crop(shapes, folder):
    config = Densenet.choose(dataset="folder", data_dir=shapes, image_size=24, crop_area=0.2, batch_size=16,
                             validation_size=20, augmentation=False)
    data, _ = Densenet.prepare_data(config)
    images, _ = next(training_batches(data, config, 0, 0))
    order = np.random.RandomState([0, 0]).permutation(len(data.train))
    np.testing.assert_array_equal(images, color_preprocessing(data.train.images[order[:16]], data.mean, data.deviation))


def test_a_signal_within_an_epoch_stops_training(shapes, folder, monkeypatch):
    """Training discards prefetched images, saves, and raises Stopped."""
    monkeypatch.setattr(Densenet, "learning_rate", lambda step, *_: os.kill(os.getpid(), signal.SIGTERM) or 0.01)
    with pytest.raises(Stopped, match="stopped and saved at step 1 of 16"):
        Densenet.train(data_dir=shapes, run_name="mine", **TINY_FOLDER)
    monkeypatch.undo()


@pytest.mark.once
def test_an_imagenet_network_trains_at_224(shapes, folder):
    result = Densenet.train(dataset="folder", network="densenet_121", blocks=(1, 1, 1, 1), growth_k=4, batch_size=8,
                            data_dir=shapes, validation_size=130, total_epochs=1)
    assert result["steps"] == 4 and read("model/%s/settings.json" % os.listdir("model")[0])["crop_area"] == 0.08


@pytest.mark.long
def test_a_large_folder_is_learned(folder):
    """Trains on 3,000 images with default settings; takes about 4 minutes on two cores."""
    damaged = generate("shapes", 3000, seed=1)
    process = program(["dataset=folder", "data_dir=shapes"])
    output, error = process.communicate()
    assert process.returncode == 0, error
    with open(glob.glob("cache/shapes-*/skipped.txt")[0]) as file:
        assert sorted(line.split(": ")[0] for line in file) == damaged
    accuracy = read("model/folder/result.json")["test_accuracy"]
    print("3,000 generated images: test accuracy %.2f%%" % (100 * accuracy))
    assert accuracy > 0.95


if __name__ == "__main__":
    print("\n".join(generate(sys.argv[1], int(sys.argv[2]))))
