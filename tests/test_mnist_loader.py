"""The MNIST loader: handwritten files, damaged files, and the real MNIST where available."""

import gzip
import os
import shutil
import struct

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
        "no gzip": content,
        "header cut": gzip.compress(content[:7]),
        "one byte short": gzip.compress(content[:-1]),
        "one byte long": gzip.compress(content + b"\0"),
        "magic": gzip.compress(b"\0\0\x08\x02" + content[4:]),
        "claims four billion": gzip.compress(content[:4] + b"\xff\xff\xff\xff" + content[8:]),
        "an HTML page": b"<html>Please log in</html>",
    }[kind]


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
@pytest.mark.parametrize("kind", ["empty", "packed, truncated", "one bit flipped", "no gzip", "header cut",
                                  "one byte short", "one byte long", "magic", "claims four billion", "an HTML page"])
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


def test_label_out_of_range(tmp_path):
    write_labels(str(tmp_path / "labels"), [3, 10])
    with pytest.raises(DataError, match="label 10"):
        mnist_loader.read_labels(str(tmp_path / "labels"))


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


def test_the_real_mnist(real_data):
    data = mnist_loader.prepare_data(real_data, 5000, NO_MIRRORS)
    assert (len(data.train), len(data.validation), len(data.test)) == (55000, 5000, 10000)
    assert data.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    labels = np.concatenate([data.train.labels, data.validation.labels])
    # The published class counts.
    assert np.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    np.testing.assert_allclose([data.mean[0] / 255, data.deviation[0] / 255], [0.1307, 0.3081], atol=5e-4)
