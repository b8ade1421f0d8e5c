"""The CIFAR loader: handwritten records, damaged and malicious archives, and the real images where available.

The real CIFAR-100 is not available, so CIFAR-100 is tested with handwritten records only.
"""

import dataclasses
import gzip
import io
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest

import cifar10
from support import download
from support.file_reading import DataError

NO_MIRRORS = ()
SMALL = {
    "CIFAR10": dataclasses.replace(cifar10.CIFAR10, train={"data_batch_%d.bin" % i: 7 for i in range(1, 6)},
                                   test={"test_batch.bin": 5}),
    "CIFAR100": dataclasses.replace(cifar10.CIFAR100, train={"train.bin": 13}, test={"test.bin": 5}),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Replaces the layouts by ones with few records per file."""
    for name, layout in SMALL.items():
        monkeypatch.setattr(cifar10, name, layout)


def records(count, label_bytes, seed):
    """Returns (file content, images [N, 32, 32, 3], labels [N, label_bytes]); the content is built value by value."""
    random = np.random.RandomState(seed)
    images = random.randint(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    labels = random.randint(0, 10, (count, label_bytes))
    content = b""
    for image, image_labels in zip(images, labels):
        content += bytes(image_labels.tolist())
        for channel in range(3):
            for row in range(32):
                content += bytes(image[row, :, channel].tolist())
    return content, images, labels


def all_files(layout):
    """Returns {file: result of `records`}; the pixels differ between files."""
    counts = dict(layout.train, **layout.test)
    return {file: records(count, layout.label_bytes, seed) for seed, (file, count) in enumerate(counts.items())}


def contents(layout):
    return {"%s/%s" % (layout.folder, file): content for file, (content, _, _) in all_files(layout).items()}


def write_archive(path, members, before=()):
    """Writes a tar.gz of the members `before` (TarInfos), then of `members` ({name: content})."""
    with tarfile.open(str(path), "w:gz") as archive:
        for member in before:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_folder(path, layout):
    for name, content in contents(layout).items():
        target = os.path.join(str(path), name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(content)


def test_channels_rows_and_columns_are_in_order():
    pixels = np.zeros((3, 32, 32), np.uint8)
    pixels[0, 5, 9], pixels[1, 5, 9], pixels[2, 5, 9], pixels[0, 31, 0] = 10, 20, 30, 40
    images, labels = cifar10.parse_records(b"\7" + pixels.tobytes(), "file", 1, 0, cifar10.CLASS_NAMES)
    assert images.shape == (1, 32, 32, 3) and images.dtype == np.uint8 and labels.tolist() == [7]
    assert images[0, 5, 9].tolist() == [10, 20, 30] and images[0, 31, 0].tolist() == [40, 0, 0] and images.sum() == 100


@pytest.mark.parametrize("kind", ["archive", "folder"])
@pytest.mark.parametrize("inside", ["cifar10", ""])
def test_archives_and_folders_are_found_in_both_places(tmp_path, kind, inside):
    layout = SMALL["CIFAR10"]
    home = tmp_path / inside
    home.mkdir(exist_ok=True)
    if kind == "archive":
        write_archive(home / layout.archive, contents(layout))
    else:
        write_folder(home, layout)
    data = cifar10.prepare_data(str(tmp_path), 0, NO_MIRRORS)
    files = all_files(layout)
    np.testing.assert_array_equal(data.train.images, np.concatenate([files[name][1] for name in layout.train]))
    np.testing.assert_array_equal(data.train.labels, np.concatenate([files[name][2][:, 0] for name in layout.train]))
    np.testing.assert_array_equal(data.test.images, files["test_batch.bin"][1])
    assert data.class_names[:2] == ("airplane", "automobile") and data.image_shape == (32, 32, 3)
    assert len(cifar10.prepare_data(str(tmp_path), 6, NO_MIRRORS).train) == 29
    assert sorted(os.listdir(str(home))) == [layout.archive if kind == "archive" else layout.folder]


def test_cifar100_has_two_labels(tmp_path):
    layout = SMALL["CIFAR100"]
    (tmp_path / "cifar100").mkdir()
    write_archive(tmp_path / "cifar100" / layout.archive, contents(layout))
    _, images, labels = all_files(layout)["train.bin"]
    fine = cifar10.prepare_cifar100(str(tmp_path), 0, NO_MIRRORS)
    coarse = cifar10.prepare_cifar100_coarse(str(tmp_path), 0, NO_MIRRORS)
    np.testing.assert_array_equal(fine.train.images, images)
    np.testing.assert_array_equal(fine.train.labels, labels[:, 1])
    np.testing.assert_array_equal(coarse.train.labels, labels[:, 0])
    assert (fine.class_names[7], coarse.class_names[7]) == ("beetle", "insects")
    assert len(set(fine.class_names)) == 100 and len(set(coarse.class_names)) == 20
    assert fine.class_names == tuple(sorted(fine.class_names)) and (fine.name, coarse.name) == (
        "cifar100", "cifar100_coarse")


def test_test_images_are_normalized_with_training_statistics(tmp_path):
    """Guards against the common mistake of normalizing the test set with its own statistics."""
    write_folder(tmp_path, SMALL["CIFAR10"])
    data = cifar10.prepare_data(str(tmp_path), 6, NO_MIRRORS)
    pixels = data.train.images.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(data.mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(data.deviation, pixels.std(0), rtol=1e-6)
    assert not data.border.any()  # zero padding after normalization, as in the paper


def tampered(members, **changes):
    """Returns a copy of the members with changes; None removes a member."""
    found = dict(members)
    for name, content in changes.items():
        key = "cifar-10-batches-bin/%s.bin" % name
        found[key] = content
        if content is None:
            del found[key]
    return found


@pytest.mark.parametrize("changes,sentence", [
    (dict(data_batch_3=None), "has no member cifar-10-batches-bin/data_batch_3.bin"),
    (dict(data_batch_3=b"\0" * 100), "member cifar-10-batches-bin/data_batch_3.bin is no file of 21511 bytes"),
    (dict(test_batch=b"\12" + bytes(5 * 3073 - 1)), "label 10"),
])
def test_bad_members(tmp_path, changes, sentence):
    write_archive(tmp_path / "cifar-10-binary.tar.gz", tampered(contents(SMALL["CIFAR10"]), **changes))
    with pytest.raises(DataError, match=sentence):
        cifar10.prepare_data(str(tmp_path), 0, NO_MIRRORS)


@pytest.mark.parametrize("kind", ["truncated", "bit flipped", "checksum", "no gzip", "gzip of no tar", "empty"])
def test_a_damaged_archive_gets_one_sentence(tmp_path, kind):
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_archive(path, contents(SMALL["CIFAR10"]))
    content = bytearray(path.read_bytes())
    if kind == "bit flipped":
        content[len(content) // 2] ^= 16
    if kind == "checksum":
        content[-8] ^= 1
    path.write_bytes({"truncated": content[:len(content) // 2], "no gzip": b"<html>log in</html>" * 100, "empty": b"",
                      "gzip of no tar": gzip.compress(b"no tar" * 1000)}.get(kind, bytes(content)))
    before = path.read_bytes()
    with pytest.raises(DataError) as caught:
        cifar10.prepare_data(str(tmp_path), 0, NO_MIRRORS)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == before


def odd_member(name, kind=tarfile.REGTYPE, size=0):
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    member.linkname = "/etc/passwd"
    return member


def test_members_outside_the_folder_are_not_extracted(tmp_path):
    outside = tmp_path / "outside"
    odd = [odd_member(str(outside), size=10), odd_member("../../outside", size=10),
           odd_member("cifar-10-batches-bin/link", tarfile.SYMTYPE), odd_member("device", tarfile.CHRTYPE)]
    (tmp_path / "data").mkdir()
    write_archive(tmp_path / "data" / "cifar-10-binary.tar.gz", contents(SMALL["CIFAR10"]), odd)
    assert len(cifar10.prepare_data(str(tmp_path / "data"), 0, NO_MIRRORS).train) == 35
    assert os.listdir(str(tmp_path)) == ["data"] and os.listdir(str(tmp_path / "data")) == ["cifar-10-binary.tar.gz"]


def test_an_archive_of_a_whole_folder_is_read(tmp_path):
    """As `tar .` makes it."""
    members = {"./" + name: content for name, content in contents(SMALL["CIFAR10"]).items()}
    write_archive(tmp_path / "cifar-10-binary.tar.gz", members, [odd_member(".", tarfile.DIRTYPE)])
    assert len(cifar10.prepare_data(str(tmp_path), 0, NO_MIRRORS).train) == 35


def test_a_link_in_place_of_a_member_is_refused(tmp_path):
    members = tampered(contents(SMALL["CIFAR10"]), data_batch_1=None)
    write_archive(tmp_path / "cifar-10-binary.tar.gz", members,
                  [odd_member("cifar-10-batches-bin/data_batch_1.bin", tarfile.SYMTYPE, size=7 * 3073)])
    with pytest.raises(DataError, match="data_batch_1.bin is no file of"):
        cifar10.prepare_data(str(tmp_path), 0, NO_MIRRORS)


def test_a_tar_bomb(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_archive(path, contents(SMALL["CIFAR10"]), [odd_member("zeros", size=50000000)])
    with pytest.raises(DataError, match="unpacks to far more than it should"):
        cifar10.prepare_data(str(tmp_path), 0, NO_MIRRORS)


def test_a_folder_with_a_missing_or_wrongly_sized_file_is_refused(tmp_path):
    write_folder(tmp_path, SMALL["CIFAR10"])
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    content = path.read_bytes()
    for wrong in (content[:-1], content + b"\0"):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match="data_batch_2.bin"):
            cifar10.prepare_data(str(tmp_path), 0, NO_MIRRORS)
    path.unlink()
    with pytest.raises(DataError, match="has no data_batch_2.bin"):
        cifar10.prepare_data(str(tmp_path), 0, NO_MIRRORS)


@pytest.mark.parametrize("place", ["", "cifar10", "CIFAR-10", "cifar10/cifar-10-binary",
                                   "cifar-10-batches-bin/cifar-10-batches-bin", "cifar-10-binary/cifar-10-batches-bin"])
def test_the_unpacked_files_are_found_without_their_folder_or_inside_others(tmp_path, place):
    layout = SMALL["CIFAR10"]
    write_folder(tmp_path / "first", layout)
    (tmp_path / "data" / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "first" / layout.folder).rename(tmp_path / "data" / place)
    data = cifar10.prepare_data(str(tmp_path / "data"), 0, NO_MIRRORS)
    files = all_files(layout)
    np.testing.assert_array_equal(data.train.images, np.concatenate([files[name][1] for name in layout.train]))
    np.testing.assert_array_equal(data.test.images, files["test_batch.bin"][1])


def test_the_unpacked_folder_itself_may_be_data_dir(tmp_path):
    for layout, prepare in ((SMALL["CIFAR10"], cifar10.prepare_data), (SMALL["CIFAR100"], cifar10.prepare_cifar100)):
        write_folder(tmp_path, layout)
        assert len(prepare(str(tmp_path / layout.folder), 0, NO_MIRRORS).test) == 5


def test_an_archive_is_preferred_to_single_files_beside_it(tmp_path):
    write_archive(tmp_path / "cifar-100-binary.tar.gz", contents(SMALL["CIFAR100"]))
    for name in ("train.bin", "test.bin"):  # of another program
        (tmp_path / name).write_bytes(b"tokens")
    assert len(cifar10.prepare_cifar100(str(tmp_path), 0, NO_MIRRORS).train) == 13


@pytest.mark.parametrize("name", ["cifar-10-binary.tar", "cifar-10-binary.tar.gz"])
def test_an_archive_that_a_browser_has_unpacked(tmp_path, name):
    write_archive(tmp_path / "packed", contents(SMALL["CIFAR10"]))
    (tmp_path / name).write_bytes(gzip.decompress((tmp_path / "packed").read_bytes()))
    assert len(cifar10.prepare_data(str(tmp_path), 0, NO_MIRRORS).train) == 35


@pytest.mark.parametrize("prepare, home, names", [
    ("prepare_data", "cifar10", ["cifar-10-batches-py"]), ("prepare_data", "cifar10", ["cifar-10-python.tar.gz"]),
    ("prepare_data", "cifar10", ["data_batch_1"]), ("prepare_data", "cifar10", ["data_batch_1.mat"]),
    ("prepare_data", "cifar10", ["cifar-10-matlab.tar.gz"]), ("prepare_data", "cifar10", ["data_batch_1.bin"]),
    ("prepare_cifar100", "cifar100", ["cifar-100-python"]), ("prepare_cifar100", "cifar100", ["meta"]),
    ("prepare_cifar100_coarse", "cifar100", ["cifar-100-python.tar.gz", "train.mat"])])
def test_other_versions_are_named_before_the_download(tmp_path, capsys, monkeypatch, prepare, home, names):
    layout = SMALL[home.upper()]
    said = []

    def fetch(*_):
        said.append(capsys.readouterr().out)
        raise download.Unavailable("no network")

    monkeypatch.setattr(cifar10, "fetch_all", fetch)
    for folder in ("", home):
        data_dir = tmp_path / ("in " + folder)
        (data_dir / folder).mkdir(parents=True)
        paths = sorted(str(data_dir / folder / name) for name in names)
        for path in paths:
            with open(path, "w"):
                pass
        (data_dir / ("cifar100" if home == "cifar10" else "cifar10")).mkdir()
        (data_dir / "train").mkdir()  # somebody's images
        with pytest.raises(download.Unavailable) as caught:
            getattr(cifar10, prepare)(str(data_dir), 0)
        reason = "unpickling the Python version would run code from the file"
        assert said.pop() == ("Not used: %s. %s is read from its binary version alone (%s), which is downloaded now: "
                              "%d MB.\n" % (", ".join(paths), home, reason, round(layout.size / 1e6 - 0.5)))
        assert str(caught.value).endswith("; not used: %s (%s)" % (", ".join(paths), reason))


def test_a_download_without_other_versions_says_nothing(tmp_path, capsys):
    (tmp_path / "cifar100" / "cifar-100-python").mkdir(parents=True)
    with pytest.raises(download.Unavailable) as caught:
        cifar10.prepare_data(str(tmp_path), 0, NO_MIRRORS)
    assert "not used" not in str(caught.value) and capsys.readouterr().out == ""


def test_the_error_names_missing_files(tmp_path):
    with pytest.raises(download.Unavailable) as caught:
        cifar10.prepare_data(str(tmp_path), 0, NO_MIRRORS)
    assert str(tmp_path / "cifar10") in str(caught.value) and "cifar-10-binary.tar.gz" in str(caught.value)


@pytest.mark.once
def test_the_real_images(real_data, tmp_path, monkeypatch):
    """Checks the class counts of the training files and the pixels of official test images."""
    monkeypatch.undo()
    subprocess.run([sys.executable, os.path.join(real_data, "cifar10", "unpack.py"), str(tmp_path)], check=True)
    folder = tmp_path / "cifar-10-batches-bin"
    head = np.load(os.path.join(real_data, "cifar10", "cifar10_test_head.npz"))
    official = np.concatenate([head["labels"][:, None], head["images"]], axis=1)
    content = (folder / "test_batch.bin").read_bytes()
    (folder / "test_batch.bin").write_bytes(official.tobytes() + content[official.size:])
    data = cifar10.prepare_data(str(tmp_path), 0, NO_MIRRORS)
    assert np.bincount(data.train.labels[:10000]).tolist() == [
        1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]
    assert np.bincount(data.train.labels).tolist() == [5000] * 10 == (5 * np.bincount(data.test.labels)).tolist()
    for index in (0, 1, 1016):
        image = head["images"][index].reshape(3, 32, 32)
        for channel in range(3):
            np.testing.assert_array_equal(data.test.images[index, :, :, channel], image[channel])
    # The published statistics of the training set; JPEG compression changes them slightly.
    np.testing.assert_allclose(data.mean, [125.3, 123.0, 113.9], atol=0.5)
    np.testing.assert_allclose(data.deviation, [63.0, 62.1, 66.7], atol=1.5)
