"""The MNIST loader: handwritten files, damaged files, data sets in MNIST's format, the real MNIST where available."""

import gzip
import os
import shutil
import string
import struct
import zlib

import numpy as np
import pytest
from conftest import write, write_images, write_labels

import mnist_loader
from support import download
from support.file_reading import DataError

NO_MIRRORS = ()


def test_images_keep_rows_and_columns(tmp_path):
    images = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    for name in ("images", "images.gz"):
        write_images(str(tmp_path / name), images)
        parsed = mnist_loader.read_images(str(tmp_path / name))
        assert parsed.shape == (3, 28, 28, 1) and parsed.dtype == np.uint8
        np.testing.assert_array_equal(parsed[..., 0], images)


def test_labels(tmp_path):
    write_labels(str(tmp_path / "labels"), [3, 0, 9])
    labels = mnist_loader.read_labels(str(tmp_path / "labels"))
    assert labels.tolist() == [3, 0, 9] and labels.dtype == np.int64


def test_validation_comes_from_training(tiny_mnist):
    data = mnist_loader.prepare_data(tiny_mnist, 31, NO_MIRRORS)
    assert (len(data.train), len(data.validation), len(data.test)) == (299, 31, 45)
    assert data.image_shape == (28, 28, 1)
    train_images, _, _, _ = (os.path.join(tiny_mnist, "mnist", name) for name in mnist_loader.FILES)
    everything = {image.tobytes() for image in mnist_loader.read_images(train_images)}
    kept = {image.tobytes() for image in data.train.images}
    held_out = {image.tobytes() for image in data.validation.images}
    assert kept | held_out == everything and not kept & held_out
    again = mnist_loader.prepare_data(tiny_mnist, 31, NO_MIRRORS)
    np.testing.assert_array_equal(again.validation.images, data.validation.images)


def test_a_validation_split_that_leaves_nothing_is_refused(tiny_mnist):
    with pytest.raises(DataError, match="validation_size=330 leaves nothing"):
        mnist_loader.prepare_data(tiny_mnist, 330, NO_MIRRORS)


def replaced(source, target, name, content):
    """Copies a data_dir and replaces the content of one file; returns the copy's path."""
    shutil.copytree(source, str(target))
    path = os.path.join(str(target), "mnist", name)
    with open(path, "wb") as file:
        file.write(content)
    return str(target)


def damaged(kind, packed):
    content = gzip.decompress(packed)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 64
    return {
        "empty": b"",
        "packed, truncated": packed[:len(packed) // 2],
        "one bit flipped": bytes(flipped),
        "header cut": gzip.compress(content[:7]),
        "one byte short": gzip.compress(content[:-1]),
        "one byte long": gzip.compress(content + b"\0"),
        "magic": gzip.compress(b"\0\0\x08\x02" + content[4:]),
        "claims four billion": gzip.compress(content[:4] + b"\xff\xff\xff\xff" + content[8:]),
        "an HTML page": b"<html>Please log in</html>",
    }[kind]


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
@pytest.mark.parametrize("kind", ["empty", "packed, truncated", "one bit flipped", "header cut", "one byte short",
                                  "one byte long", "magic", "claims four billion", "an HTML page"])
def test_a_damaged_file_is_named_in_one_sentence(tiny_mnist, tmp_path, name, kind):
    with open(os.path.join(tiny_mnist, "mnist", name), "rb") as file:
        content = damaged(kind, file.read())
    data_dir = replaced(tiny_mnist, tmp_path / "data", name, content)
    with pytest.raises(DataError) as caught:
        mnist_loader.prepare_data(data_dir, 10, NO_MIRRORS)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    with open(os.path.join(data_dir, "mnist", name), "rb") as file:
        assert file.read() == content  # the user's file is not overwritten


def test_swapped_files(tiny_mnist, tmp_path):
    folder = os.path.join(tiny_mnist, "mnist")
    with open(os.path.join(folder, "train-labels-idx1-ubyte.gz"), "rb") as file:
        labels = file.read()
    with pytest.raises(DataError, match="holds labels, where images belong"):
        mnist_loader.prepare_data(replaced(tiny_mnist, tmp_path / "a", "train-images-idx3-ubyte.gz", labels), 10)
    with open(os.path.join(folder, "t10k-labels-idx1-ubyte.gz"), "rb") as file:
        labels = file.read()
    with pytest.raises(DataError, match="330 images but .* 45 labels"):
        mnist_loader.prepare_data(replaced(tiny_mnist, tmp_path / "b", "train-labels-idx1-ubyte.gz", labels), 10)


def test_other_image_size(tmp_path):
    write(str(tmp_path / "images"), struct.pack(">4I", 2051, 1, 2, 392) + bytes(784))
    with pytest.raises(DataError, match="2×392"):
        mnist_loader.read_images(str(tmp_path / "images"))


def test_uncompressed_files_directly_in_data_dir_are_read(tiny_mnist, tmp_path):
    for name in mnist_loader.FILES:
        with gzip.open(os.path.join(tiny_mnist, "mnist", name)) as file:
            write(str(tmp_path / name[:-len(".gz")]), file.read())
    data = mnist_loader.prepare_data(str(tmp_path), 10, NO_MIRRORS)
    packed = mnist_loader.prepare_data(tiny_mnist, 10, NO_MIRRORS)
    assert data.fingerprint() == packed.fingerprint()


def test_data_dir_that_is_a_file(tmp_path):
    (tmp_path / "data").write_text("no folder")
    with pytest.raises(DataError, match="data"):
        mnist_loader.prepare_data(str(tmp_path / "data"), 10, NO_MIRRORS)


def test_the_error_names_missing_files(tmp_path):
    with pytest.raises(download.Unavailable) as caught:
        mnist_loader.prepare_data(str(tmp_path), 10, NO_MIRRORS)
    assert str(tmp_path / "mnist") in str(caught.value)
    assert all(name in str(caught.value) for name in mnist_loader.FILES)


def test_digits_are_laid_out_like_mnist():
    from sklearn.datasets import load_digits

    data = mnist_loader.prepare_digits("not needed", 100)
    assert (len(data.train), len(data.validation), len(data.test)) == (1338, 100, 359)
    source = load_digits()
    for position, index in enumerate(range(4, 1797, 5)):
        image = data.test.images[position, ..., 0]
        assert data.test.labels[position] == source.target[index]
        assert not image[:2].any() and not image[-2:].any() and not image[:, :2].any() and not image[:, -2:].any()
        for row in range(8):
            for column in range(8):
                square = image[2 + 3 * row:5 + 3 * row, 2 + 3 * column:5 + 3 * column]
                assert (square == int(source.images[index][row, column] * 255 // 16)).all()


def test_the_real_mnist(real_data, capsys):
    data = mnist_loader.prepare_data(real_data, 5000, NO_MIRRORS)
    assert capsys.readouterr().out == ""
    assert (len(data.train), len(data.validation), len(data.test)) == (55000, 5000, 10000)
    assert data.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    labels = np.concatenate([data.train.labels, data.validation.labels])
    # The published class counts.
    assert np.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    np.testing.assert_allclose([data.mean[0] / 255, data.deviation[0] / 255], [0.1307, 0.3081], atol=5e-4)


# ---- Where the files are found ----

DASHES = [name[:-len(".gz")] for name in mnist_loader.FILES]


def write_set(folder, names, train_labels=(3, 1, 4, 1, 5, 0, 9, 2, 6, 7, 8), test_labels=(5, 3), seed=0):
    """Writes four small files with these names; returns their training images and test images, uint8 [N, 28, 28]."""
    random = np.random.RandomState(seed)
    images = []
    for labels, images_name, labels_name in ((train_labels, *names[:2]), (test_labels, *names[2:])):
        images.append(random.randint(0, 256, (len(labels), 28, 28)).astype(np.uint8))
        for name, writer, content in ((images_name, write_images, images[-1]), (labels_name, write_labels, labels)):
            path = os.path.join(str(folder), name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            writer(path, content)
    return images


@pytest.mark.parametrize("pattern", [
    "mnist/{dots}", "mnist/{dots}.gz", "{dots}", "mnist/{upper}.GZ", "mnist/{underscores}", "{dashes}/{dashes}",
    "{dots}/{dots}", "mnist/{dots}/{dots}", "mnist/{dashes}/{dots}", "mnist/{dashes}.gz/{dashes}", "Mnist/{dashes}.gz",
    "archive/{dashes}", "MNIST/raw/{dashes}", "mnist/MNIST/raw/{dashes}.gz", "raw/{dashes}", "raw/MNIST/raw/{dashes}"])
def test_files_are_found_in_other_forms_and_places(tmp_path, pattern):
    names = [pattern.format(dashes=name, dots=name.replace("-idx", ".idx"), upper=name.upper(),
                            underscores=name.replace("-", "_")) for name in DASHES]
    train_images, test_images = write_set(tmp_path, names)
    data = mnist_loader.prepare_data(str(tmp_path), 0, NO_MIRRORS)
    np.testing.assert_array_equal(data.train.images[..., 0], train_images)
    np.testing.assert_array_equal(data.test.images[..., 0], test_images)
    assert data.train.labels.tolist() == [3, 1, 4, 1, 5, 0, 9, 2, 6, 7, 8] and data.test.labels.tolist() == [5, 3]


def test_what_a_mac_adds_to_each_file_is_not_taken_for_it(tmp_path):
    names = [name.replace("-idx", ".idx") for name in DASHES]
    train_images, _ = write_set(tmp_path, names)
    for name in names:
        (tmp_path / ("._" + name)).write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
    data = mnist_loader.prepare_data(str(tmp_path), 0, NO_MIRRORS)
    np.testing.assert_array_equal(data.train.images[..., 0], train_images)


def test_a_folder_with_all_files_is_preferred_to_a_mixture(tmp_path):
    write_set(tmp_path / "mnist", DASHES, seed=1)
    os.remove(str(tmp_path / "mnist" / DASHES[3]))
    train_images, _ = write_set(tmp_path, DASHES, seed=2)
    write_set(tmp_path / "MNIST" / "raw", DASHES, seed=3)
    data = mnist_loader.prepare_data(str(tmp_path), 0, NO_MIRRORS)
    np.testing.assert_array_equal(data.train.images[..., 0], train_images)


def test_compression_is_recognised_by_content_not_by_name(tmp_path):
    write_set(tmp_path, DASHES)
    right = mnist_loader.prepare_data(str(tmp_path), 0, NO_MIRRORS).fingerprint()
    for name in DASHES[:2]:  # a browser has unpacked them and kept the names
        os.rename(str(tmp_path / name), str(tmp_path / (name + ".gz")))
    for name in DASHES[2:]:
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert mnist_loader.prepare_data(str(tmp_path), 0, NO_MIRRORS).fingerprint() == right


@pytest.mark.parametrize("name", [
    "mnist.npz", "mnist.pkl.gz", "mnist_784.arff", "mnist_train.csv", "archive.zip", "MNIST.zip", "train.csv",
    "train-00000-of-00001.parquet", "training.pt", "digit-recognizer.zip", "train-images-idx3-ubyte.zip",
    "t10k-images-idx3-ubyte.gz.crdownload", "mnist_png/0/1.png"])
def test_what_lies_there_in_another_form_is_named(tmp_path, name):
    for folder in ("", "mnist", "MNIST/processed" if name == "training.pt" else "MNIST/raw"):
        data_dir = tmp_path / (folder.replace("/", "") or "plain")
        path = data_dir / folder / name
        path.parent.mkdir(parents=True)
        path.write_text("")
        (data_dir / "fashion_mnist").mkdir()
        (data_dir / "notes.txt").write_text("")
        with pytest.raises(download.Unavailable) as caught:
            mnist_loader.prepare_data(str(data_dir), 0, NO_MIRRORS)
        sentence = str(caught.value).split("; not used: ")[1]
        assert sentence.startswith(os.path.join(str(data_dir / folder), name.split("/")[0]) + " (")
        assert "fashion" not in sentence and "notes" not in sentence and "\n" not in sentence


def test_files_in_another_folder_are_named(tmp_path):
    write_set(tmp_path / "downloaded", DASHES)
    (tmp_path / "pets").mkdir()
    with pytest.raises(download.Unavailable) as caught:
        mnist_loader.prepare_data(str(tmp_path), 0, NO_MIRRORS)
    assert "; not used: %s" % (tmp_path / "downloaded" / DASHES[2]) in str(caught.value)


def test_the_missing_one_of_four_files_is_named_alone(tmp_path):
    write_set(tmp_path / "mnist", DASHES)
    os.remove(str(tmp_path / "mnist" / DASHES[1]))
    with pytest.raises(download.Unavailable) as caught:
        mnist_loader.prepare_data(str(tmp_path), 0, NO_MIRRORS)
    assert "put train-labels-idx1-ubyte.gz there" in str(caught.value)
    assert "not used" not in str(caught.value) and "images" not in str(caught.value)


# ---- Other data sets under MNIST's names ----

def test_labels_from_1_to_26_are_26_classes(tmp_path, capsys):
    labels = list(range(26, 0, -1)) + [7]
    train_images, _ = write_set(tmp_path, DASHES, labels, [1, 26, 10])
    data = mnist_loader.prepare_data(str(tmp_path), 0, NO_MIRRORS)
    assert data.class_names == tuple(str(value) for value in range(1, 27)) and data.name == "mnist"
    assert data.train.labels.tolist() == [label - 1 for label in labels] and data.test.labels.tolist() == [0, 25, 9]
    np.testing.assert_array_equal(data.train.images[..., 0], train_images)
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and "and 3 more are not MNIST's files: trained on as they are, 26 classes" in line


def test_label_values_with_gaps_are_classes_in_their_order(tmp_path):
    write_set(tmp_path, DASHES, [200, 4, 77, 4], [77, 200])
    data = mnist_loader.prepare_data(str(tmp_path), 0, NO_MIRRORS)
    assert data.class_names == ("4", "77", "200") and data.train.labels.dtype == np.int64
    assert data.train.labels.tolist() == [2, 0, 1, 0] and data.test.labels.tolist() == [1, 2]


def test_a_test_label_that_no_training_image_has(tmp_path, capsys):
    write_set(tmp_path / "a", DASHES, [1, 2, 26], [2, 25])
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte has the label 25, which no image of the training"):
        mnist_loader.prepare_data(str(tmp_path / "a"), 0, NO_MIRRORS)
    write_set(tmp_path / "b", DASHES, [1, 2, 0], [2, 8, 7])  # within MNIST's classes: trained on, as before
    data = mnist_loader.prepare_data(str(tmp_path / "b"), 0, NO_MIRRORS)
    assert data.class_names == tuple("0123456789") and data.test.labels.tolist() == [2, 8, 7]
    assert "no training image has the labels 7, 8, but test images do" in capsys.readouterr().out


def test_a_class_without_training_images_is_said(tmp_path, capsys):
    """Its one image is for validation."""
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (40, 28, 28)).astype(np.uint8)
    order = np.random.RandomState(0).permutation(40)
    labels = np.arange(40) % 2
    labels[order[3]] = 2
    for name, content in zip(mnist_loader.FILES, (images, labels, images[:9], labels[:9])):
        (write_labels if "labels" in name else write_images)(str(tmp_path / name), content)
    mnist_loader.prepare_data(str(tmp_path), 20)
    assert "validation_size=20 leaves no training image of 2: make it smaller" in capsys.readouterr().out
    mnist_loader.prepare_data(str(tmp_path), 3)
    assert "leaves no training image" not in capsys.readouterr().out


def test_a_plain_file_beside_another_compressed_one_is_pointed_out(tiny_mnist, tmp_path, capsys):
    for name in mnist_loader.FILES:
        shutil.copy(os.path.join(tiny_mnist, "mnist", name), str(tmp_path))
        with gzip.open(str(tmp_path / name)) as file:
            (tmp_path / name[:-len(".gz")]).write_bytes(file.read())
    mnist_loader.prepare_data(str(tmp_path), 20)
    assert "which differs" not in capsys.readouterr().out
    plain = str(tmp_path / list(mnist_loader.FILES)[1])[:-len(".gz")]
    write_labels(plain, np.zeros(330, np.uint8))
    mnist_loader.prepare_data(str(tmp_path), 20)
    assert "%s.gz is read, not %s, which differs: take one" % (plain, plain) in capsys.readouterr().out


def test_one_label_value_alone_is_refused(tmp_path):
    write_set(tmp_path, DASHES, [200, 200], [200])
    with pytest.raises(DataError, match="has no label but 200"):
        mnist_loader.prepare_data(str(tmp_path), 0, NO_MIRRORS)


def checksums(folder, names):
    """CRC-32 of the files' contents after their headers of 16 or 8 bytes."""
    return tuple(zlib.crc32((folder / name).read_bytes()[16 if "images" in name else 8:]) for name in names)


def test_files_that_are_not_mnists_are_said_to_be_so(tmp_path, capsys, monkeypatch):
    write_set(tmp_path / "data", DASHES)
    monkeypatch.setattr(mnist_loader, "CRC32", checksums(tmp_path / "data", DASHES))
    mnist_loader.prepare_data(str(tmp_path / "data"), 0, NO_MIRRORS)
    assert capsys.readouterr().out == ""
    for name in DASHES:
        path = tmp_path / "data" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        mnist_loader.prepare_data(str(tmp_path / "data"), 0, NO_MIRRORS)
        assert "%s is not MNIST's file: trained on as they are, 10 classes" % path in capsys.readouterr().out
        path.write_bytes(content)


# ---- Data sets by name ----

@pytest.mark.parametrize("place", ["fashion_mnist", "FashionMNIST/raw", "Fashion-MNIST", "fashion mnist", "fashion",
                                   "fashion-mnist/data/fashion"])
def test_fashion_mnist_is_read_from_its_own_folder(tmp_path, capsys, place):
    write_set(tmp_path, DASHES, seed=1)  # MNIST's place
    train_images, _ = write_set(tmp_path / place, DASHES, seed=2)
    for data_dir in (tmp_path, tmp_path / place):
        data = mnist_loader.RELATED["fashion_mnist"](str(data_dir), 0)
        np.testing.assert_array_equal(data.train.images[..., 0], train_images)
    assert data.name == "fashion_mnist" and capsys.readouterr().out == "" and data.border[0] < 0
    assert [data.class_names[label] for label in (0, 2, 5, 9)] == ["T-shirt/top", "Pullover", "Sandal", "Ankle boot"]


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist", "emnist_letters"])
def test_mnists_files_in_data_dir_are_not_taken_for_another_data_set(tmp_path, name, monkeypatch):
    write_set(tmp_path, DASHES)
    write_set(tmp_path / "raw", DASHES)
    write_set(tmp_path / "mnist", DASHES)
    monkeypatch.setattr(mnist_loader, "fetch_all", offline)
    with pytest.raises(download.Unavailable) as caught:
        mnist_loader.RELATED[name](str(tmp_path), 0)
    unused = str(caught.value).split("; not used: ")[1]
    assert str(tmp_path / DASHES[0]) in unused and "in %s)" % (tmp_path / name) in unused
    assert str(tmp_path / "mnist") + " " not in unused and str(tmp_path / "mnist") + "," not in unused


def offline(*_):
    raise download.Unavailable("no network")


def test_mnist_is_not_read_from_the_folder_of_fashion_mnist(tmp_path, monkeypatch):
    write_set(tmp_path / "fashion", DASHES)
    write_set(tmp_path / "fashion-mnist/data/fashion", DASHES)
    monkeypatch.setattr(mnist_loader, "fetch_all", offline)
    with pytest.raises(download.Unavailable):
        mnist_loader.prepare_data(str(tmp_path), 0)


@pytest.mark.parametrize("exchanged", [(0, 2), (1, 3), (0, 1, 2, 3)])
def test_exchanged_files_of_mnist_are_refused(tmp_path, monkeypatch, exchanged):
    write_set(tmp_path, DASHES, [3, 1, 4, 1, 5], [9, 2, 6, 5, 3])
    monkeypatch.setattr(mnist_loader, "CRC32", checksums(tmp_path, DASHES))
    contents = {place: (tmp_path / DASHES[place]).read_bytes() for place in exchanged}
    for place in exchanged:
        (tmp_path / DASHES[place]).write_bytes(contents[(place + 2) % 4])
    first, other = exchanged[0], (exchanged[0] + 2) % 4
    with pytest.raises(DataError, match="%s has the content of MNIST's %s.gz: give the files the names that" % (
            DASHES[first], DASHES[other])):
        mnist_loader.prepare_data(str(tmp_path), 0, NO_MIRRORS)


def test_more_test_than_training_images_are_said(tmp_path, capsys):
    write_set(tmp_path / "fashion_mnist", DASHES, [5, 3], [3, 1, 4])
    mnist_loader.RELATED["fashion_mnist"](str(tmp_path), 0)
    assert "train-images-idx3-ubyte has fewer images (2) than " in capsys.readouterr().out


@pytest.mark.parametrize("name, label", [("mnist", 3), ("mnist", 12), ("fashion_mnist", 0)])
def test_a_single_label_is_refused(tmp_path, name, label):
    write_set(tmp_path / name, DASHES, [label] * 5, [label] * 2)
    prepare_data = mnist_loader.DATASETS[name]
    with pytest.raises(DataError, match="train-labels-idx1-ubyte has no label but %d: there is nothing to" % label):
        prepare_data(str(tmp_path), 0)


def test_mnists_own_labels_are_refused_for_another_data_set(tmp_path, monkeypatch):
    write_set(tmp_path / "fashion_mnist", DASHES)
    _, train_labels, _, _ = checksums(tmp_path / "fashion_mnist", DASHES)
    monkeypatch.setattr(mnist_loader, "CRC32", (0, train_labels, 0, 0))
    with pytest.raises(DataError, match="train-labels-idx1-ubyte is MNIST's: .* of Fashion-MNIST .* dataset=mnist"):
        mnist_loader.RELATED["fashion_mnist"](str(tmp_path), 0)


def test_fashion_mnist_is_downloaded_and_verified(tmp_path, monkeypatch):
    asked = []

    def fetch(files, mirrors, folder):
        asked.append((files, mirrors, folder))
        write_set(folder, [name + ".gz" for name in DASHES])

    monkeypatch.setattr(mnist_loader, "fetch_all", fetch)
    assert len(mnist_loader.RELATED["fashion_mnist"](str(tmp_path), 0).train) == 11
    (files, mirrors, folder), = asked
    # Sizes and md5 that its authors publish; https://github.com/zalandoresearch/fashion-mnist.
    assert files["t10k-labels-idx1-ubyte.gz"] == (5148, "md5:bb300cfdad3c16e7a12a480ee83cd310") and len(files) == 4
    assert files["train-images-idx3-ubyte.gz"] == (26421880, "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d")
    assert mirrors and all(mirror.startswith("https://") and mirror.endswith("/") for mirror in mirrors)
    assert folder == str(tmp_path / "fashion_mnist")


@pytest.mark.parametrize("name, files, address", [
    ("kmnist", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"], "https://github.com/rois-codh/kmnist"),
    ("emnist_byclass", ["emnist-byclass-train-images-idx3-ubyte.gz", "emnist-byclass-test-labels-idx1-ubyte.gz"],
     "https://www.nist.gov/itl/products-and-services/emnist-dataset")])
def test_a_data_set_that_is_not_downloaded_says_where_it_comes_from(tmp_path, name, files, address, monkeypatch):
    monkeypatch.setattr(mnist_loader, "fetch_all", None)
    with pytest.raises(download.Unavailable) as caught:
        mnist_loader.RELATED[name](str(tmp_path), 0)
    assert all(part in str(caught.value) for part in files + [address, str(tmp_path / name), "checksums could not be"])
    assert "\n" not in str(caught.value) and not os.listdir(str(tmp_path))


def test_kmnist(tmp_path):
    write_set(tmp_path / "KMNIST" / "raw", DASHES)
    data = mnist_loader.RELATED["kmnist"](str(tmp_path), 2)
    assert data.class_names == ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo") and data.name == "kmnist"
    assert (len(data.train), len(data.validation)) == (9, 2)


def emnist_names(split):
    return [name.replace("t10k", "test").join(("emnist-%s-" % split, "")) for name in DASHES]


@pytest.mark.parametrize("split, first, names", [
    ("balanced", 0, string.digits + string.ascii_uppercase + "abdefghnqrt"),
    ("bymerge", 0, string.digits + string.ascii_uppercase + "abdefghnqrt"),
    ("byclass", 0, string.digits + string.ascii_uppercase + string.ascii_lowercase),
    ("letters", 1, string.ascii_uppercase), ("digits", 0, string.digits), ("mnist", 0, string.digits)])
def test_emnist_is_upright_and_has_its_class_names(tmp_path, split, first, names):
    labels = [first + label for label in range(len(names))]
    stored, _ = write_set(tmp_path / "gzip", emnist_names(split), labels, labels[-2:])
    write_set(tmp_path / "gzip", emnist_names("another"), [0], [0])
    data = mnist_loader.RELATED["emnist_" + split](str(tmp_path), 0)
    assert data.class_names == tuple(names) and len(data.train) == len(names) and data.name == "emnist_" + split
    assert data.train.labels.tolist() == list(range(len(names)))
    assert data.test.labels.tolist() == [len(names) - 2, len(names) - 1]
    for row, column in ((0, 5), (27, 3), (11, 12)):  # stored column by column
        np.testing.assert_array_equal(data.train.images[:, row, column, 0], stored[:, column, row])


@pytest.mark.parametrize("place", ["", "emnist", "EMNIST/raw", "EMNIST/raw/gzip", "emnist_letters", "emnist/gzip",
                                   "emnist_source_files", "archive/emnist_source_files"])
def test_emnists_own_names_are_found_everywhere(tmp_path, place):
    write_set(tmp_path / place, emnist_names("letters"), [1, 2, 3], [2])
    assert len(mnist_loader.RELATED["emnist_letters"](str(tmp_path), 0).train) == 3


def test_mnists_names_are_accepted_in_the_folder_of_an_emnist_split_alone(tmp_path):
    write_set(tmp_path / "emnist", DASHES, [1, 2, 3], [2])
    with pytest.raises(download.Unavailable, match="not used: .*train-images-idx3-ubyte"):
        mnist_loader.RELATED["emnist_letters"](str(tmp_path), 0)
    (tmp_path / "emnist").rename(tmp_path / "EMNIST-letters")
    assert len(mnist_loader.RELATED["emnist_letters"](str(tmp_path), 0).train) == 3


def test_labels_of_another_split_are_refused(tmp_path):
    for labels, wrong in (([1, 26, 27], 27), ([0, 1], 0)):
        write_set(tmp_path, emnist_names("letters"), labels, [1])
        with pytest.raises(DataError, match="has the label %d, but the labels of EMNIST letters are 1 to 26" % wrong):
            mnist_loader.RELATED["emnist_letters"](str(tmp_path), 0)
