"""curves.csv: a row for each epoch, also over a stop, and never half a file."""

import os

import pytest

from support import UserError
from support.curves import Curves

FIRST = ("epoch,step,learning_rate,train_loss,train_accuracy,validation_loss,validation_accuracy,seconds,"
         "images_per_second,validation_balanced_accuracy\n")
EPOCH = dict(learning_rate=0.01, train_loss=0.5, train_accuracy=0.25, seconds=1.5, images_per_second=200.0)


def read(path):
    with open(str(path)) as file:
        return file.read()


def test_the_file_has_a_header_and_a_row_for_each_epoch(tmp_path):
    path = tmp_path / "curves.csv"
    curves = Curves(str(path), 0)
    assert read(path) == FIRST
    curves.add(epoch=1, step=123456789, validation_loss=0.125, validation_accuracy=1.0,
               validation_balanced_accuracy=0.5, **EPOCH)
    curves.add(epoch=2, step=246913578, **EPOCH)
    assert read(path) == FIRST + ("1,123456789,0.01,0.5,0.25,0.125,1,1.5,200,0.5\n"
                                  "2,246913578,0.01,0.5,0.25,,,1.5,200,\n")
    assert os.listdir(str(tmp_path)) == ["curves.csv"]


def test_a_resumed_run_drops_the_rows_of_later_steps(tmp_path):
    path = tmp_path / "curves.csv"
    curves = Curves(str(path), 0)
    for epoch in (1, 2, 3):
        curves.add(epoch=epoch, step=6 * epoch, **EPOCH)
    resumed = Curves(str(path), 13)
    assert [line.split(",")[:2] for line in read(path).splitlines()[1:]] == [["1", "6"], ["2", "12"]]
    resumed.add(epoch=3, step=18, **dict(EPOCH, train_loss=0.75))
    assert read(path).splitlines()[3] == "3,18,0.01,0.75,0.25,,,1.5,200,"
    Curves(str(path), 0)
    assert read(path) == FIRST


def test_the_columns_of_the_test_are_there_once_there_is_one(tmp_path):
    path = tmp_path / "curves.csv"
    curves = Curves(str(path), 0)
    curves.add(epoch=1, step=6, **EPOCH)
    curves.add(epoch=2, step=12, test_loss=0.25, test_accuracy=0.5, **EPOCH)
    lines = read(path).splitlines()
    assert lines[0].split(",")[7:9] == ["test_loss", "test_accuracy"]
    assert lines[1] == "1,6,0.01,0.5,0.25,,,,,1.5,200,," and lines[2] == "2,12,0.01,0.5,0.25,,,0.25,0.5,1.5,200,,"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a,b\n1,2\n", FIRST.encode() + b"2,x,1\n1,\n", b"\0\n"])
def test_a_damaged_file_is_begun_again(tmp_path, content):
    path = tmp_path / "curves.csv"
    path.write_bytes(content)
    Curves(str(path), 6)
    assert read(path) == FIRST


def test_a_file_that_cannot_be_written_is_refused_at_the_start_and_kept_for_the_next_save(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot write .*folder"):
        Curves(str(tmp_path / "folder"), 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    curves = Curves(str(tmp_path / "curves.csv"), 0)
    monkeypatch.setattr(os, "replace", full)
    curves.add(epoch=1, step=6, **EPOCH)  # no error before the checkpoint is saved
    with pytest.raises(UserError, match="curves.csv .No space left on device"):
        curves.stop_if_it_cannot_write()


def test_a_file_of_an_earlier_version_goes_on_with_its_columns_and_the_new_ones(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text(FIRST.replace(",validation_balanced_accuracy", "") + "1,6,0.01,0.5,0.25,0.125,1,1.5,200\n")
    Curves(str(path), 6).add(epoch=2, step=12, validation_balanced_accuracy=0.75, **EPOCH)
    assert read(path) == FIRST + ("1,6,0.01,0.5,0.25,0.125,1,1.5,200,\n"
                                  "2,12,0.01,0.5,0.25,,,1.5,200,0.75\n")
