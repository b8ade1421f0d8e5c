"""Settings: types, ranges, overrides and error messages."""

import importlib.util
import os

import numpy as np
import pytest

from support import UserError, settings

SOURCE = '''
from support.settings import *
rate: number(0.0, 0.95) = 0.5  # share that is dropped
count: integer(1, 10) = by_dataset(3, cifar=4, cifar100=5)  # how many
layers: integers(1, 99, most=3) = (4, 4)  # of each block
loud: boolean() = False  # says more
kind: one_of(("adam", "momentum")) = "adam"  # which
folder: path() = "data"  # where
name: file_name(optional=True) = ""  # of the run
share: count_or_share(0, 9) = 0.5  # held out
not_a_setting = 3
'''


@pytest.fixture
def module(tmp_path):
    (tmp_path / "program.py").write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("program", str(tmp_path / "program.py"))
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


def test_defaults(module):
    values = settings.constants_of(module)
    assert values == {"rate": 0.5, "count": 3, "layers": (4, 4), "loud": False, "kind": "adam", "folder": "data",
                      "name": "", "share": 0.5}


@pytest.mark.parametrize("dataset, count", [("mnist", 3), ("cifar10", 4), ("cifar100", 5), ("cifar100_coarse", 5)])
def test_a_value_can_depend_on_the_data_set(module, dataset, count):
    assert settings.constants_of(module, dataset)["count"] == count


def given(module, arguments=(), **overrides):
    return settings.given_in(arguments, overrides, settings.declared(module))


def test_overrides(module):
    values = given(
        module, ["--rate=0.1", "count=7", "layers=4,4,32", "loud=True", "kind=momentum", "name=a-b=1,2"], folder="x")
    assert values == {"rate": 0.1, "count": 7, "layers": (4, 4, 32), "loud": True, "kind": "momentum", "folder": "x",
                      "name": "a-b=1,2"}


@pytest.mark.parametrize("argument", [
    "rate=1.5", "rate=-0.1", "rate=nan", "rate=inf", "rate=", "rate=abc", "rate=None", "count=0", "count=11",
    "count=2.5", "count=abc", "count=1e1", "count=" + "9" * 5000, "layers=", "layers=1,,2", "layers=0",
    "layers=1,2,3,4", "loud=1", "loud=", "kind=sgd", "kind=", "folder=", "folder=a\0b", "name=a/b", "name=..",
    "name=.x", "share=1.0", "share=1.5", "share=0.0", "share=10", "share=-1", "count=None",
    "name=a\n", "name=" + "a" * 201, "folder=a[b"])
def test_bad_values_name_the_setting_and_its_range(module, argument):
    with pytest.raises(UserError) as caught:
        given(module, [argument])
    name = argument.partition("=")[0]
    message = str(caught.value)
    assert name in message and str(settings.declared(module)[name]) in message
    assert "\n" not in message and len(message) < 250


@pytest.mark.parametrize("value", ["abc", 0, 11, True, 2.5, [], object(), float("nan")])
def test_an_edited_constant_is_checked_too(module, value):
    module.count = value
    with pytest.raises(UserError, match="count must be an integer from 1 to 10"):
        settings.constants_of(module)


def test_home_folders_and_numpy_integers_are_accepted(module):
    values = given(module, ["folder=~/data"], count=np.int64(7))
    assert values["folder"] == os.path.join(os.path.expanduser("~"), "data") and values["count"] == 7


def test_unknown_names(module):
    with pytest.raises(UserError, match="no setting 'layer': the nearest are layers"):
        given(module, ["layer=3"])
    with pytest.raises(UserError, match="count, folder, kind"):
        given(module, ["zzzz=3"])
    with pytest.raises(UserError, match="write name=value"):
        given(module, ["rate"])


def test_help_has_names_values_meanings_and_ranges(module):
    text = settings.help_text(module, settings.constants_of(module))
    assert "layers=4,4\n        of each block; 1 to 3 integers from 1 to 99, separated by commas" in text
    assert "not_a_setting" not in text


def test_values_are_shown_as_written_on_the_command_line(module):
    for argument in ("rate=0.1", "layers=4,4,32", "count=3", "kind=momentum", "rate=1e-08", "share=0.25", "share=7"):
        name, _, text = argument.partition("=")
        assert settings.shown(given(module, [argument])[name]) == text
