"""Settings: types, ranges, overrides and error messages."""

import importlib.util
import os
import pathlib

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
files: paths() = ()  # to look at
answers: path(optional=True, tensorflow=False) = ""  # to write
range: pair_or_auto() = "auto"  # of values
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
                      "name": "", "share": 0.5, "files": (), "answers": "", "range": "auto"}


@pytest.mark.parametrize("dataset, count", [("mnist", 3), ("cifar10", 4), ("cifar100", 5), ("cifar100_coarse", 5)])
def test_a_value_can_depend_on_the_data_set(module, dataset, count):
    assert settings.constants_of(module, dataset)["count"] == count


def test_the_value_for_a_whole_name_is_not_for_longer_numbers():
    value = settings.by_dataset(1, cifar10=2)
    assert [value.value_for(name) for name in ("cifar10", "cifar100", "cifar100_coarse", "mnist")] == [2, 1, 1, 1]


def test_two_spellings_of_a_number_are_one_value(module):
    for one in (np.float32(0.1), np.float64(0.1), np.array(0.1, np.float32), "0.1", "1e-1", 0.1):
        assert given(module, rate=one) == {"rate": 0.1}
    assert settings.shown(given(module, ["rate=-0.0"])["rate"]) == "0"


def given(module, arguments=(), **overrides):
    return settings.given_in(arguments, overrides, settings.declared(module))


def test_overrides(module):
    values = given(
        module, ["--rate=0.1", "count=7", "layers=4,4,32", "loud=True", "kind=momentum", "name=a-b=1,2"], folder="x")
    assert values == {"rate": 0.1, "count": 7, "layers": (4, 4, 32), "loud": True, "kind": "momentum", "folder": "x",
                      "name": "a-b=1,2"}


@pytest.mark.parametrize("name,value,expected", [
    ("share", "0.0", 0), ("share", 0.0, 0), ("share", "1e-1", 0.1), ("share", 0.2, 0.2), ("share", np.int64(3), 3),
    ("share", "7", 7), ("loud", np.True_, True), ("loud", 1, True), ("loud", "no", False), ("loud", np.False_, False)])
def test_values_may_be_written_in_every_usual_way(module, name, value, expected):
    found = given(module, **{name: value})[name]
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize("argument", [
    "rate=1.5", "rate=-0.1", "rate=nan", "rate=inf", "rate=", "rate=abc", "rate=None", "count=0", "count=11",
    "count=2.5", "count=abc", "count=1e1", "count=" + "9" * 5000, "layers=", "layers=1,,2", "layers=0",
    "layers=1,2,3,4", "loud=2", "loud=", "kind=sgd", "kind=", "folder=", "folder=a\0b", "name=a/b", "name=..",
    "name=.x", "share=1.0", "share=1.5", "share=True", "share=10", "share=-1", "count=None",
    "name=a\n", "name=" + "a" * 201, "name=" + "空" * 100, "folder=a[b", "folder=*", "folder=a?", "answers=a\0",
    "files=a,\0", "files=,", "range=", "range=1", "range=1,2,3", "range=2,1", "range=1,1", "range=nan,1", "range=0,inf",
    "range=a,b", "range=Auto,1"])
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
    with pytest.raises(UserError, match="^there is no setting 'zzzz': --help lists all$"):
        given(module, ["zzzz=3"])
    with pytest.raises(UserError, match="^'noise' is not a setting: write name=value"):
        given(module, ["noise"])


@pytest.mark.parametrize("arguments,sentence", [
    (["count:7"], "^'count:7' is not a setting: write count=7$"),
    (["layers=4", "5", "6"], "^'5' is not a setting: write the parts of a value with commas between them, without"),
])
def test_other_ways_to_write_values_are_understood(module, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        given(module, arguments)


@pytest.mark.parametrize("text,value", [("yes", True), ("ON", True), ("1", True), ("No", False), ("off", False),
                                        ("0", False)])
def test_usual_words_for_true_and_false_are_understood(module, text, value):
    assert given(module, ["loud=" + text]) == {"loud": value}


def test_help_has_names_values_meanings_and_ranges(module):
    text = settings.help_text(module, settings.constants_of(module))
    assert "layers=4,4\n        of each block; 1 to 3 integers from 1 to 99, separated by commas" in text
    assert "not_a_setting" not in text


def test_values_are_shown_as_written_on_the_command_line(module):
    for argument in ("rate=0.1", "layers=4,4,32", "count=3", "kind=momentum", "rate=1e-08", "share=0.25", "share=7",
                     "range=0,4095", "range=-0.5,1.25", "range=auto", "files=a.png,b c"):
        name, _, text = argument.partition("=")
        assert settings.shown(given(module, [argument])[name]) == text


@pytest.mark.parametrize("text, value", [
    ("auto", "auto"), ("AUTO", "auto"), ("0,4095", (0.0, 4095.0)), ("-1, 1", (-1.0, 1.0)), ("(0,1)", (0.0, 1.0)),
    ([0, 255], (0.0, 255.0)), ((0.0, 0.5), (0.0, 0.5))])
def test_a_range_is_automatic_or_two_numbers(module, text, value):
    found = given(module, range=text)["range"]
    assert found == value and settings.check("range", settings.shown(found), settings.declared(module)) == value


@pytest.mark.parametrize("arguments", [
    "count = 7", "count= 7", "count =7", "--count = 7", "name=x count = 7 rate=0.5", ["count = 7"], ["count =7"]])
def test_spaces_around_the_equals_sign_do_not_matter(module, arguments):
    for form in (arguments, arguments.split() if isinstance(arguments, str) else arguments):
        assert given(module, form)["count"] == 7


@pytest.mark.parametrize("arguments, expected", [
    (["answers=", "count=3"], {"answers": "", "count": 3}), (["answers", "=", "count=3"], {"answers": "", "count": 3}),
    (["answers=", "--count=3"], {"answers": "", "count": 3}), (["answers="], {"answers": ""}),
    (["layers=4,", "5", "count=3"], {"layers": (4, 5), "count": 3}), (["layers=4", ",5"], {"layers": (4, 5)}),
    (["name=a,", "count=3"], {"name": "a,", "count": 3}), (["files=a, b"], {"files": ("a", " b")}),
    (["files=a b=c.png"], {"files": ("a b=c.png",)}), (["layers=[4,4]"], {"layers": (4, 4)})])
def test_arguments_are_joined_only_where_a_value_was_taken_apart(module, arguments, expected):
    assert given(module, arguments) == expected


def test_a_name_in_another_spelling_and_a_usual_name_get_the_setting_to_write(module):
    hints = {"p": "rate", "resume": "the same command again resumes"}
    for arguments, sentence in (
            (["p=0.25"], "there is no setting 'p': p is rate here, write rate=0.25 "),
            (["-P", "0.25"], "'-P 0.25' is not a setting: P is rate here, write rate=0.25 "),
            (["--count", "3"], "'--count 3' is not a setting: write count=3 "),
            (["--Count=3"], "there is no setting 'Count': write count=3 "),
            (["--loud"], "'--loud' is not a setting: write loud=True "),
            (["--count", "--loud"], "'--count' is not a setting: write count=value "),
            (["--count", "loud=True"], "'--count' is not a setting: write count=value "),
            (["rate"], "'rate' is not a setting: write rate=value "),
            (["re-sume=1"], "there is no setting 're-sume': the same command again resumes "),
            (["--resume"], "'--resume' is not a setting: the same command again resumes "),
            (["momentum"], "'momentum' is not a setting: write kind=momentum "),
            (["--nesterov"], "'--nesterov' is not a setting: write kind=momentum ")):
        with pytest.raises(UserError) as caught:
            settings.given_in(arguments, {}, settings.declared(module), hints)
        assert str(caught.value).startswith(sentence)
    with pytest.raises(UserError, match=r"write layers=4,4,32 \("):
        given(module, Layers=(4, 4, 32))


def test_names_of_values_forgive_case_and_hyphens_and_near_ones_are_named():
    kinds = {"network": settings.one_of(("densenet_121", "densenet_169")), "optimizer": settings.one_of(("adam", "sgd",
                                                                                                        "momentum"))}
    for text in ("densenet_121", "DenseNet-121", "densenet121", "Densenet_121"):
        assert settings.check("network", text, kinds) == "densenet_121"
    for name, text, near in (("optimizer", "nesterov", "momentum"), ("optimizer", "AdamW", "adam"),
                             ("optimizer", "momentun", "momentum"), ("network", "densenet_120", "densenet_121 or ")):
        with pytest.raises(UserError, match="%s=%s: .*; the nearest is %s" % (name, text, near)):
            settings.check(name, text, kinds)
    with pytest.raises(UserError, match="must be one of adam, sgd, momentum$"):
        settings.check("optimizer", "zzz", kinds)


@pytest.mark.parametrize("text", ["s3://bucket/run", "gs://b", "hdfs://h/p", "file:///tmp", "http://h/a.png", "S3://b",
                                  "abfss://c@a/p", "s3:/bucket", pathlib.Path("gs://bucket/run")])
@pytest.mark.parametrize("name", ["folder", "answers", "files"])
def test_paths_of_other_machines_are_refused(module, name, text):
    with pytest.raises(UserError, match="%s must be .* on this machine" % name):
        given(module, **{name: text})


def test_paths_may_look_unusual(module):
    """A colon, a Windows drive; a pattern's characters where TensorFlow does not read the path; pathlib's objects."""
    for text in ("a:b/c", "C:/data", "c://data", "./s3://x", "12:30", "run:/x"):
        assert given(module, folder=text)["folder"] == text
    assert given(module, answers="photos [2019]/*?.json")["answers"] == "photos [2019]/*?.json"
    found = given(module, folder=pathlib.Path("a/b"), files=pathlib.Path("a,b"), answers=pathlib.Path("c"))
    assert found == {"folder": os.path.join("a", "b"), "files": ("a", "b"), "answers": "c"}
    assert given(module, files=[pathlib.Path("a"), "b,c"])["files"] == ("a", "b,c")


def expanded(text):
    return settings.expanded(settings.paths().parse(text), "files")


@pytest.fixture
def files(folder):
    for name in ("Smith, John.png", "a.png", "b.png", "a[1].png", "a1.png", ".hidden.png", "x,y,z", "x,y",
                 "a, b/c,.png", "scans/2.png", "scans/10.png", "scans/deep/3.png", "scans/note.txt", "9*.png",
                 "91.png"):
        pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(name).write_text("")


@pytest.mark.parametrize("text, expected", [
    ("Smith, John.png", ["Smith, John.png"]), ("a.png,Smith, John.png,b.png", ["a.png", "Smith, John.png", "b.png"]),
    ("a.png,b.png", ["a.png", "b.png"]), ("a.png, b.png,", ["a.png", "b.png"]), ("absent.png", ["absent.png"]),
    ("x,y,z", ["x,y,z"]), ("x,y,a.png", ["x,y", "a.png"]), ("x,y,x,y,z", ["x,y", "x,y,z"]),
    ("a, b/c,.png", ["a, b/c,.png"]), ("a, b/*", ["a, b/c,.png"]), ("x,q", ["x", "q"]), (",x", ["x"]),
    ("a[1].png", ["a[1].png"]), ("a[1-9].png", ["a1.png"]), ("9*.png", ["9*.png"]), ("9?.png", ["9*.png", "91.png"]),
    ("scans/*.png", ["scans/10.png", "scans/2.png"]), ("b.png, scans/?.png", ["b.png", "scans/2.png"]),
    ("scans/**/*.png", ["scans/10.png", "scans/2.png", "scans/deep/3.png"]), ("sc*/**", ["scans/"]),
    ("scans/*", ["scans/10.png", "scans/2.png", "scans/deep", "scans/note.txt"]), ("scans", ["scans"]),
    (["a.png", "Smith, John.png"], ["a.png", "Smith, John.png"]), ("", []), ((), []),
    ("b.png,a.png,b.png", ["b.png", "a.png", "b.png"])])
def test_a_path_that_exists_wins_over_its_comma_and_over_its_pattern(files, text, expected):
    assert expanded(text) == expected


@pytest.mark.parametrize("text", ["*.tif", "a.png,nowhere/*.png", "b[2].png", "scans/**/*.jpg"])
def test_a_pattern_without_a_match_is_an_error(files, text):
    with pytest.raises(UserError, match="^files=.*: there is no file of this name, and none that the pattern fits"):
        expanded(text)


def test_files_are_looked_up_anew_and_a_long_list_is_read_once(files, monkeypatch):
    assert expanded("new,file") == ["new", "file"]
    pathlib.Path("new,file").write_text("")
    assert expanded("new,file") == ["new,file"]
    looked_up = []
    for place, name, real in ((os, "listdir", os.listdir), (os.path, "lexists", os.path.lexists)):
        monkeypatch.setattr(place, name, lambda path, real=real: looked_up.append(path) or real(path))
    assert len(expanded(["scans/2.png"] * 1000)) == 1000
    assert len(looked_up) < 5000
