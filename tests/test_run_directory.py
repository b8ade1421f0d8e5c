"""The run directory: lock, settings and files."""

import errno
import os

import pytest

import Densenet
from support import UserError
from support.run_directory import (
    RunDirectory,
    check_writable,
    is_file_of_answers,
    of_earlier_versions,
    replace_file,
    run_of,
    write_json,
)


def test_settings_are_kept_and_compared(tmp_path):
    path = str(tmp_path / "a run with spaces")
    for _ in range(2):
        with RunDirectory(path, {"blocks": (4, 4), "seed": 1}) as directory:
            assert directory.read_json("settings.json") == {"blocks": [4, 4], "seed": 1}
            open(os.path.join(path, "dense.ckpt-7.index"), "w").close()
    with pytest.raises(UserError, match=r"\(blocks was 4,4, now 4,5; seed was 1, now 2\)"):
        with RunDirectory(path, {"blocks": (4, 5), "seed": 2}):
            pass
    with RunDirectory(path, {"blocks": (4, 4), "seed": 1}):  # the refused run released the lock
        pass


def test_a_run_may_be_called_best(tmp_path):
    for run in ("mine", "best"):
        (tmp_path / run / "best").mkdir(parents=True)
        (tmp_path / run / "settings.json").write_text("{}")
        for place in (run, run + "/best"):
            assert run_of(str(tmp_path / place / "dense.ckpt-12")) == str(tmp_path / run)


def test_a_run_without_checkpoints_does_not_reserve_its_name(tmp_path):
    with RunDirectory(str(tmp_path), {"seed": 1}):
        pass
    with RunDirectory(str(tmp_path), {"seed": 2}) as directory:
        assert directory.read_json("settings.json") == {"seed": 2}


def test_the_error_names_a_file_that_cannot_be_written(tmp_path):
    with RunDirectory(str(tmp_path), {}) as directory:
        with pytest.raises(UserError, match="cannot write .*gone"):
            directory.write_json("gone/result.json", {})


def test_a_file_that_was_written_in_part_is_removed(tmp_path):
    path = str(tmp_path / "answers.json")
    replace_file(path, lambda file: file.write(b"[1]"))

    def write(file):
        file.write(b"[")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError):
        replace_file(path, write)
    assert os.listdir(str(tmp_path)) == ["answers.json"] and (tmp_path / "answers.json").read_bytes() == b"[1]"


def test_whether_a_file_can_be_written_is_found_out_without_changing_it(tmp_path):
    path = tmp_path / "answers.json"
    check_writable(str(path), "json")
    assert os.listdir(str(tmp_path)) == []
    path.write_bytes(b"[1]")
    check_writable(str(path), "json")
    os.symlink(str(path), str(tmp_path / "link"))
    check_writable(str(tmp_path / "link"), "json")
    assert sorted(os.listdir(str(tmp_path))) == ["answers.json", "link"] and path.read_bytes() == b"[1]"
    os.symlink(str(tmp_path / "nowhere" / "a.json"), str(tmp_path / "dangling"))
    for place in (tmp_path, tmp_path / "dangling"):
        with pytest.raises(UserError, match="cannot write .*: make room there, or set json"):
            check_writable(str(place), "json")
    with pytest.raises(UserError, match="cannot write .*nowhere/a.json .No such file or directory.: .*set json"):
        check_writable(str(tmp_path / "nowhere" / "a.json"), "json")


def test_invalid_json_files_are_ignored(tmp_path):
    with RunDirectory(str(tmp_path), {}) as directory:
        for content in ("[]", "{", ""):
            (tmp_path / "result.json").write_text(content)
            assert directory.read_json("result.json") is None


def test_a_damaged_list_of_images_is_as_none(tmp_path):
    for content in (b"", b"\x93NUMPY", b"PK\x03\x04"):
        (tmp_path / "seen_images.npy").write_bytes(content)
        assert RunDirectory(str(tmp_path), {}).seen_images() is None


def test_a_run_that_recorded_no_classes_cannot_be_resumed(tmp_path):
    (tmp_path / "settings.json").write_text('{"seed": 1, "data": {"train": 9}}')
    (tmp_path / "dense.ckpt-7.index").write_text("")
    with pytest.raises(UserError, match="was trained by an earlier version, which did not save what this needs: train"):
        with RunDirectory(str(tmp_path), {"seed": 1, "flip": False, "data": {"train": 9, "class_names": ["a", "b"]}}):
            pass


def test_files_that_cannot_be_read_are_no_difference_where_both_recorded_them(tmp_path):
    (tmp_path / "settings.json").write_text('{"data": {"class_names": ["a"], "train": 9, "skipped": 0}}')
    (tmp_path / "dense.ckpt-7.index").write_text("")
    with pytest.raises(UserError, match=r"other data \(number of training images: 9, now 8\): set run_name"):
        with RunDirectory(str(tmp_path), {"data": {"class_names": ["a"], "train": 8, "skipped": 1}}):
            pass


def test_files_of_answers_are_known_by_how_they_begin(tmp_path):
    path = str(tmp_path / "a.json")
    write_json(path, [{"image": "a.png", "classes": ["a"], "probabilities": [1.0], "unlike": ["it is dark"]}], "json")
    assert is_file_of_answers(path)
    for other in ({"classes": []}, [{"image": "a.png"}], []):
        write_json(path, other, "json")
        assert not is_file_of_answers(path)


def test_only_one_process_holds_the_lock(tmp_path):
    with RunDirectory(str(tmp_path), {}):
        with pytest.raises(UserError, match="process %d" % os.getpid()):
            with RunDirectory(str(tmp_path), {}):
                pass
    with RunDirectory(str(tmp_path), {}):
        pass


def test_checkpoints_without_settings_are_refused(tmp_path):
    (tmp_path / "dense.ckpt-7.index").write_text("")
    with pytest.raises(UserError, match="no readable settings.json"):
        with RunDirectory(str(tmp_path), {}):
            pass
    assert not (tmp_path / "settings.json").exists()


def test_checkpoints_are_found_by_file_name_newest_first(tmp_path):
    with RunDirectory(str(tmp_path / "[run]"), {}) as directory:
        for name in ("dense.ckpt-900.index", "dense.ckpt-1000.index", "dense.ckpt-x.index", "other-3.index"):
            open(os.path.join(directory.path, name), "w").close()
        assert [(step, os.path.basename(prefix)) for step, prefix in directory.checkpoints()] == [
            (1000, "dense.ckpt-1000"), (900, "dense.ckpt-900")]


def test_results_are_kept(tmp_path):
    with RunDirectory(str(tmp_path), {}) as directory:
        directory.keep("result.json")
        for number in range(3):
            directory.write_json("result.json", {"number": number})
            directory.keep("result.json")
        assert [directory.read_json("result-%d.json" % i)["number"] for i in (1, 2, 3)] == [0, 1, 2]
        assert directory.read_json("result.json") is None


def test_json_is_written_through_links_and_pipes(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(file)
    for number in (1, 2):
        write_json(str(link), number, "json")
        assert link.is_symlink() and file.read_text() == "%d\n" % number
    os.mkfifo(str(tmp_path / "pipe"))
    reader = os.open(str(tmp_path / "pipe"), os.O_RDONLY | os.O_NONBLOCK)
    write_json(str(tmp_path / "pipe"), 3, "json")
    assert os.read(reader, 9) == b"3\n"
    os.close(reader)
    assert sorted(os.listdir(str(tmp_path))) == ["file", "link", "pipe"]


def test_settings_of_earlier_versions_are_converted():
    """Uses settings.json of an image folder and of MNIST as written by the previous version."""
    found = of_earlier_versions({
        "dataset": "folder", "validation_size": None, "image_size": 64, "crop_area": 1.0, "network": "densenet_folder",
        "transition_channels": None, "stem_channels": None, "growth_k": 32})
    unrecorded = {"cutout": 0, "shift_average": 0, "transition_pooling": "average", "norm_epsilon": 0.001,
                  "weights": "", "train_only": "all", "head_rate": 1.0, "class_weights": "none", "best_by": "accuracy",
                  "ema_decay": 0.0, "alternate_flip": False, "scaling": 0.0, "shear": 0.0, "elastic": 0.0}
    assert found == dict(unrecorded, dataset="folder", validation_size=0.1, image_size=64, crop_area=1.0,
                         transition_channels=0, stem_channels=0, growth_k=32)
    assert of_earlier_versions({"dataset": "mnist", "image_size": None, "crop_area": 1.0,
                                              "network": "densenet_mnist"}) == dict(unrecorded, dataset="mnist")


def test_a_run_keeps_the_padding_of_the_version_that_began_it():
    before = {"dataset": "folder", "stem": "imagenet"}
    assert of_earlier_versions(before)["stem"] == "imagenet_same"
    assert of_earlier_versions(dict(before, norm_epsilon=0.001))["stem"] == "imagenet"


def test_a_run_from_before_max_pooling_keeps_its_average_pooling():
    """Later versions record how they pool. Pooling has no weights, so that a checkpoint does not tell the two apart."""
    recorded = {"dataset": "cifar10", "growth_k": 24, "cutout": 3}
    config = Densenet.choose(**of_earlier_versions(recorded))
    assert (config.transition_pooling, config.shift_average, config.cutout) == ("average", 0, 3)
