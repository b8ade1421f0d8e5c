"""Layouts of folders: which folders are classes, and which images are for training, validation and testing.

The fuzz plants trees of which it knows what they are, because it made them: it never looks at a tree to find out.
"""

import base64
import collections
import os

import numpy as np
import pytest

from support import folder_layout
from support.file_reading import DataError
from support.folder_layout import files_under, heat_map_name, layout_of
from support.pictures import heat_map

HEAT_MAP = heat_map(np.zeros([2, 2, 3], np.uint8), np.ones([1, 1], np.float32), "cat", 0.5)
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCBd81ytgAAAABJRU5ErkJggg==")

# Spellings that people use. The fuzz takes any of one role; the module's tables are not read.
SPELLINGS = {
    "train": ("train", "Train", "TRAIN", "tRaIn", "training", "Training", "TRAINING", "seg_train", "train_set",
              "training_set", "trainset", "TrainSet", "train-images", "train images", "train_data", "Training Data",
              "traindata", "imagesTr", "imgTrain", "img_train", "train.files", "train2017"),
    "validation": ("val", "Val", "VAL", "valid", "Valid", "validation", "Validation", "VALIDATION", "dev", "Dev",
                   "seg_val", "val_set", "validation-set", "valset", "devset", "val_images", "Validation Data",
                   "val2017"),
    "test": ("test", "imagesTs", "Test", "TEST", "testing", "Testing", "seg_test", "test_set", "testset", "TestSet",
             "test-images", "test_data", "Testing Data", "image_test", "test2017")}
NO_ROLES = ("cats", "dogs", "0", "1", "10", "2", "trainers", "latest", "devices", "contest", "trained", "validated",
            "protest", "bullet_train", "crash test", "Ünï çödé", "点", "a.b", "-dash", "it's", "50%s", "n01443537",
            "testimony", "train-conductors", "Cats")


def put(path, content=PNG):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
    return path


def plant(*folders, count=6):
    """Writes 0.png, 1.png, … into each folder."""
    for folder in folders:
        for number in range(count):
            put(os.path.join(str(folder), "%d.png" % number))


def counts(layout):
    """Returns {split: {class name: number of files}} of a Layout."""
    found = {}
    for _, label, split in layout.files:
        found.setdefault(split, collections.Counter())[layout.class_names[label]] += 1
    return {split: dict(number) for split, number in found.items()}


def refusal(*arguments):
    """Returns the one sentence of a refusal."""
    with pytest.raises(DataError) as caught:
        layout_of(*map(str, arguments))
    assert is_sentence(str(caught.value))
    return str(caught.value)


def is_sentence(text):
    return isinstance(text, str) and text.isprintable() and 20 < len(text) < 900


# The listing of earlier versions, to which the checksums of earlier runs belong.


def files_before(path):
    found, visited = [], set()
    for folder, folders, names in os.walk(path, followlinks=True):
        if os.path.realpath(folder) in visited:
            folders[:] = []
            continue
        visited.add(os.path.realpath(folder))
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(folder, name) for name in names
                  if not name.startswith(".") and name not in ("Thumbs.db", "desktop.ini")]
    return sorted(found)


def listed_before(data_dir):
    def folders_in(folder):
        return sorted(name for name in os.listdir(folder)
                      if not name.startswith(".") and os.path.isdir(os.path.join(folder, name)))

    names = folders_in(data_dir)
    train = os.path.join(data_dir, "train") if "train" in names else data_dir
    test = next((os.path.join(data_dir, name) for name in ("test", "val") if "train" in names and name in names), None)
    classes, files = folders_in(train), []
    for label, name in enumerate(classes):
        files += [(path, label, "train") for path in files_before(os.path.join(train, name))]
        if test and os.path.isdir(os.path.join(test, name)):
            files += [(path, label, "test") for path in files_before(os.path.join(test, name))]
    return classes, files


# The fuzz.


class Planted:
    """A random tree and what must come of it.

    Attributes:
        expected: {(class name, split): set of paths}. With `drawn`, the split "train" names those of training and test.
        said: what the notes must mention; nothing: there must be no note.
        refused: what the error must mention, or None.
        as_before: the files and their order must be those of earlier versions.
    """

    def __init__(self, place, random):
        self.root, self.outside = os.path.join(place, "data"), os.path.join(place, "elsewhere")
        self.excluded = os.path.join(self.root, "logs")
        self.random = random
        self.expected, self.said, self.refused = {}, [], None
        self.drawn = self.as_before = False
        os.makedirs(self.root)
        self.names = list(random.permutation(NO_ROLES))
        self.data = self.root  # the folder in which the roles or the classes lie

    def chance(self, probability):
        return self.random.uniform() < probability

    def pick(self, among):
        return among[self.random.randint(len(among))]

    def new_names(self, count):
        return [str(self.names.pop()) for _ in range(count)]

    def spelled(self, role):
        return self.pick(SPELLINGS[role])

    def images(self, folder, deep=False):
        """Writes 1 to 9 images, some deeper, of several endings, some damaged; returns their paths."""
        found = set()
        for number in range(self.random.randint(1, 10)):
            below = self.pick(("front", "back", "a/b")) if deep else "more" if number and self.chance(0.2) else ""
            ending = self.pick((".png", ".PNG", ".jpg", ".bmp", ".tiff", "", ".dat"))
            damaged = ending not in ("", ".dat") and self.chance(0.1)
            found.add(put(os.path.join(folder, below, "%d%s" % (number, ending)), b"no image" if damaged else PNG))
        return found

    def class_folder(self, folder, deep=False, clutter=True):
        """Plants a class; returns the paths that belong to it."""
        real = folder
        if clutter and self.chance(0.1):  # the folder is a link to one elsewhere
            real = os.path.join(self.outside, str(self.random.randint(10**9)))
            os.makedirs(os.path.dirname(folder), exist_ok=True)
            os.makedirs(real)
            os.symlink(real, folder)
        found = self.images(folder, deep)
        if clutter and self.chance(0.3):
            for name in ("Thumbs.db", ".hidden.png", ".cache/x.png"):
                put(os.path.join(folder, name))
        if clutter and self.chance(0.2):
            found.add(put(os.path.join(folder, "about.txt"), b"text"))  # the decoder skips and names it
        if clutter and self.chance(0.1):
            os.symlink(real, os.path.join(folder, "again"))
        return found

    def split(self, folder, names, split, deep=()):
        for name in names:
            self.expected[name, split] = self.class_folder(os.path.join(folder, name), name in deep)

    def clutter(self, level, noted=True, of_classes=True):
        """Adds to a folder of classes or of roles what is no data. Earlier versions took some of it for classes."""
        before = self.as_before
        for name in (".git/x.png", "__pycache__/x.pyc", "__MACOSX/x.png", "node_modules/pic/x.png", ".DS_Store",
                     "venv/pyvenv.cfg", "notes.txt"):
            if self.chance(0.15):
                self.as_before &= "/" not in name or name.startswith(".")
                put(os.path.join(level, name), b"text" if name.endswith(("cfg", "txt")) else PNG)
                if name.startswith("venv"):
                    put(os.path.join(level, "venv/lib/site-packages/x.png"))
        if level == self.root and self.chance(0.3):
            put(os.path.join(self.excluded, "x.png"))
            self.as_before = False
        if noted:
            self.noted_clutter(level)
        if not of_classes:
            self.as_before = before

    def noted_clutter(self, level):
        if self.chance(0.15):
            put(os.path.join(level, "loose.png"))
            self.said.append("images directly in")
        if self.chance(0.15):
            (name,) = self.new_names(1)
            os.makedirs(os.path.join(level, name, "deeper"))
            if self.chance(0.5):
                put(os.path.join(level, name, "list.csv"), b"1,2")
            self.as_before = False
            self.said.append(name)
        if self.chance(0.1):
            os.symlink("nowhere", os.path.join(level, "broken"))
            self.said.append("broken")

    # Kinds of trees. Each method is one.

    def classes(self):
        self.as_before = self.drawn = True
        self.wrap()
        self.split(self.data, self.new_names(self.random.randint(2, 6)), "train")
        self.clutter(self.data)

    def classes_of_sub_folders(self):
        self.as_before = self.drawn = True
        names = self.new_names(self.random.randint(2, 6))
        deep = names[:self.random.randint(1, len(names) + 1)]
        self.split(self.data, names, "train", deep)
        self.said += [name for name in sorted(deep)[:5]] + ["set data_dir"]

    def roles(self):
        """Folders of roles: nested or not, in any spelling, with or without what is not used."""
        self.as_before = self.chance(0.3)
        plain = self.as_before
        self.wrap()
        roles = ["train"] + self.pick((["test"], ["validation"], [], ["validation", "test"]))
        self.as_before &= len(roles) < 3
        self.drawn = len(roles) == 1
        names = self.new_names(self.random.randint(2, 6))
        for role in roles:
            folder = os.path.join(self.data, {"validation": "val"}.get(role, role) if plain else self.spelled(role))
            if not plain and self.chance(0.15):
                folder = os.path.join(folder, self.pick((os.path.basename(folder), self.spelled(role))))
                self.as_before = False
            alone = role == "validation" and "test" not in roles
            had = names
            if role != "train" and self.chance(0.2):
                had = names[1:]
            self.split(folder, had, "test" if alone else role)
            if alone:
                self.said += [folder, "no test folder"]
            if role == "train":
                self.clutter(folder)
        if self.chance(0.3):
            self.not_used()
        self.clutter(self.data, of_classes=False)

    def wrap(self):
        """With some chance, puts all into one or two folders of any name."""
        if self.chance(0.2):
            self.data = os.path.join(self.root, *self.new_names(self.random.randint(1, 3)))
            self.said.append(self.data)
            self.as_before = False
            self.clutter(self.root, noted=False)

    def not_used(self):
        for name in self.pick((["seg_pred"], ["extra", "predictions"])):
            self.class_folder(os.path.join(self.data, name))
            self.said.append(os.path.join(self.data, name))

    def unlabelled_test(self):
        self.drawn = True
        self.split(os.path.join(self.data, self.spelled("train")), self.new_names(3), "train")
        name = self.spelled("test")
        self.images(os.path.join(self.data, name, name if self.chance(0.3) else ""))
        self.said += [os.path.join(self.data, name), "mode=predict"]
        self.clutter(self.data)

    def class_with_the_name_of_a_role(self):
        self.drawn = True
        role = self.pick(("train", "validation", "test"))
        name = self.spelled(role)
        self.split(self.data, self.new_names(self.random.randint(2, 4)), "train")
        folder = os.path.join(self.data, name)
        os.makedirs(folder)
        self.expected[name, "train"] = {put(os.path.join(folder, "%d.png" % number)) for number in range(5)}
        if role != "train":
            self.said.append(name)

    def classes_beside_test(self):
        names = self.new_names(self.random.randint(2, 5))
        self.split(self.data, names, "train")
        given = self.pick((["test"], ["validation"], ["validation", "test"]))
        self.said.append("no training folder")
        for role in given:
            self.split(os.path.join(self.data, self.spelled(role)), names, role if "test" in given else "test")

    def shared_words(self):
        word = self.pick(("fruits", "pets-2", "größe 10"))
        names = self.new_names(3)
        self.split(os.path.join(self.data, word + "_train"), names, "train")
        self.split(os.path.join(self.data, word + "-Testing"), names, "test")

    def many_classes(self):
        self.drawn = True
        names = ["%03d" % number for number in self.random.permutation(1000)[:40]]
        for name in names:
            self.expected[name, "train"] = {put(os.path.join(self.data, name, "1.png"))}
        empty = ["none%d" % number for number in range(20)]
        for name in empty:
            os.makedirs(os.path.join(self.data, name))
        self.said += ["none0", "and 15 more"]

    # Kinds that are refused.

    def one_class(self):
        folder = self.pick((self.data, os.path.join(self.data, self.spelled("train"))))
        (name,) = self.new_names(1)
        self.class_folder(os.path.join(folder, name), clutter=False)
        os.makedirs(os.path.join(folder, "void"))
        self.refused = [name, "void"] if folder == self.data else [folder]

    def no_class_folders(self):
        self.refused = []
        for role in self.pick((["train"], ["train", "test"], ["train", "validation"], [])):
            put(os.path.join(self.data, self.spelled(role), "cat.0.jpg"))
        if self.chance(0.5):
            put(os.path.join(self.data, "cat.1.jpg"))
        if self.chance(0.5):
            os.makedirs(os.path.join(self.data, "cats", "void"))

    def a_role_twice(self):
        role = self.pick(("train", "validation", "test"))
        spelled = list(self.random.permutation(SPELLINGS[role])[:2])
        names = self.new_names(2)
        for name in spelled:
            self.split(os.path.join(self.data, name), names, "train")
        if role != "train":
            self.split(os.path.join(self.data, self.spelled("train")), names, "train")
        self.refused = [str(name) for name in spelled]

    def an_unknown_class(self):
        names = self.new_names(3)
        self.split(os.path.join(self.data, self.spelled("train")), names[:2], "train")
        self.split(os.path.join(self.data, self.spelled(self.pick(("validation", "test")))), names, "test")
        self.refused = [names[2]]

    def unlabelled_in_a_folder(self):
        self.drawn = True
        names = self.new_names(4)
        self.split(os.path.join(self.data, self.spelled("train")), names[:3], "train")
        self.images(os.path.join(self.data, "test", names[3]))
        self.said += [os.path.join(self.data, "test"), "mode=predict"]

    def splits_in_classes(self):
        for name in self.new_names(self.random.randint(2, 5)):
            self.split(os.path.join(self.data, name), [self.spelled("train"), self.spelled("test")], "train")
        self.refused = ["inside of each class"]

    def folds(self):
        names = self.new_names(self.random.randint(2, 5))
        for number in range(1, 4):
            self.split(os.path.join(self.data, "fold_%d" % number), names, "train")
        self.refused = ["fold_1", names[0]]

    def short_or_numbered_roles(self):
        names = self.new_names(3)
        train, test = self.pick((("tr", "te"), ("TRN", "TST"), ("1_train", "2_test"), ("01.Train", "02.Test"),
                                 ("train", "te")))
        self.split(os.path.join(self.data, train), names, "train")
        self.split(os.path.join(self.data, test), names, "test")

    def languages(self):
        self.as_before = self.drawn = True
        self.split(self.data, ["de", "en", "te", "tr"], "train")

    def heat_maps_and_runs(self):
        """What the program wrote under names that it is not told of now."""
        self.drawn = True
        names = self.new_names(3)
        self.split(self.data, names, "train")
        put(os.path.join(self.data, names[0], "1.png.png"), HEAT_MAP)
        put(os.path.join(self.data, "seen", "1.png.png"), HEAT_MAP)
        self.said += ["seen", "l", "m", "c"]
        for folder, files in (("l/run", ("lock_of_logs", "x.png")), ("m/run", ("lock", "settings.json", "x.png")),
                              ("c/run", ("pixels", "index.npz", "x.png"))):
            for name in files:
                put(os.path.join(self.data, folder, name))
        put(os.path.join(self.data, "c", "run.lock"), b"")

    def a_folder_twice_by_a_link(self):
        names = self.new_names(3)
        if self.chance(0.5):
            self.split(self.data, names, "train")
            name = self.pick(names)
            os.symlink(name, os.path.join(self.data, "linked"))
            self.refused = [name, "linked"]
        else:
            folder, linked = self.spelled("train"), self.spelled(self.pick(("test", "validation")))
            self.split(os.path.join(self.data, folder), names, "train")
            os.symlink(folder, os.path.join(self.data, linked))
            self.refused = [folder, linked]

    def a_loop(self):
        names = self.new_names(2)
        self.split(self.data, names, "train")
        inside = self.chance(0.5)
        os.symlink(self.data, os.path.join(self.data, names[0] if inside else "", "all"))
        self.refused = ["link"]

    def test_without_train(self):
        name = self.spelled(self.pick(("test", "validation")))
        self.split(os.path.join(self.data, name), self.new_names(2), "test")
        if self.chance(0.5):
            self.split(self.data, self.new_names(2), "train")
        self.refused = [name, "training"]

    def an_unprintable_name(self):
        name = self.pick(("new\nline", "\udcff", "bell\a"))
        folder = self.pick((self.data, os.path.join(self.data, self.spelled("train"))))
        self.split(folder, [*self.new_names(2), name], "train")
        self.refused = [repr(name)]

    KINDS = (roles, roles, roles, roles, classes, classes, classes_of_sub_folders, unlabelled_test, classes_beside_test,
             class_with_the_name_of_a_role, shared_words, many_classes, one_class, no_class_folders, a_role_twice,
             an_unknown_class, a_folder_twice_by_a_link, a_loop, test_without_train, an_unprintable_name,
             unlabelled_in_a_folder, splits_in_classes, folds, short_or_numbered_roles, languages, heat_maps_and_runs)


def check(planted):
    try:
        layout = layout_of(planted.root, [planted.excluded])
    except DataError as error:
        assert planted.refused is not None and is_sentence(str(error)), str(error)
        assert all(word in str(error) for word in planted.refused), str(error)
        return
    assert planted.refused is None, layout
    assert layout.test_is_drawn == planted.drawn
    names = sorted({name for name, _ in planted.expected})
    assert layout.class_names == names
    found = {}
    for path, label, split in layout.files:
        found.setdefault((names[label], split), []).append(path)
    assert all(len(set(paths)) == len(paths) for paths in found.values())
    if planted.drawn:
        for name in names:
            assert set(found[name, "train"]) == planted.expected[name, "train"]
        assert {split for _, split in found} == {"train"}
    else:
        assert {key: set(paths) for key, paths in found.items()} == planted.expected
    if planted.as_before:
        assert (layout.class_names, layout.files) == listed_before(planted.root)
    assert bool(layout.notes) == bool(planted.said) and len(layout.notes) <= 7, (layout.notes, planted.said)
    assert all(map(is_sentence, layout.notes))
    assert all(any(word in note for note in layout.notes) for word in planted.said), (layout.notes, planted.said)


def fuzz(tmp_path, seeds):
    for seed in seeds:
        random = np.random.RandomState(seed)
        place = str(tmp_path / str(seed))
        planted = Planted(place, random)
        kind = Planted.KINDS[seed % len(Planted.KINDS)]
        kind(planted)
        try:
            check(planted)
        except Exception as error:
            raise AssertionError("seed %d, %s in %s" % (seed, kind.__name__, place)) from error


def test_random_trees_give_the_planted_classes_and_splits_or_one_sentence(tmp_path):
    fuzz(tmp_path, range(40))


@pytest.mark.once
def test_300_random_trees_give_the_planted_classes_and_splits_or_one_sentence(tmp_path):
    fuzz(tmp_path, range(1000, 1300))


# Roles.


@pytest.mark.parametrize("train,test", [("training", "testing"), ("Train", "Test"), ("Training", "Testing"),
                                        ("seg_train", "seg_test"), ("fruits_train", "fruits_test")])
def test_training_and_testing_are_splits_and_not_classes(tmp_path, train, test):
    plant(*(tmp_path / train / name for name in "012"), count=5)
    plant(*(tmp_path / test / name for name in "012"), count=2)
    layout = layout_of(str(tmp_path))
    assert layout.class_names == ["0", "1", "2"] and not layout.notes
    assert counts(layout) == {"train": {"0": 5, "1": 5, "2": 5}, "test": {"0": 2, "1": 2, "2": 2}}


def test_folders_that_are_evaluated_need_no_training_images(tmp_path):
    """A class of the test folder need not be in the training folder, and there need not be one."""
    plant(*(tmp_path / "test" / name for name in ("1", "10", "2")), count=2)
    assert "name the folder that holds them train" in refusal(tmp_path)
    layout = layout_of(str(tmp_path), evaluated=True)
    assert layout.class_names == ["1", "10", "2"] and len(layout.files) == 6
    plant(*(tmp_path / "train" / name for name in ("1", "3")), count=4)
    assert "there is nothing to learn the class from" in refusal(tmp_path)
    assert counts(layout_of(str(tmp_path), evaluated=True)) == {
        "train": {"1": 4, "3": 4}, "test": {"1": 2, "10": 2, "2": 2}}


def test_parts_of_unlabelled_images_are_no_classes(tmp_path):
    """As programs that translate between two kinds of images, A and B, have them."""
    plant(*(tmp_path / name for name in ("trainA", "trainB", "testA", "testB")))
    assert "trainA" in refusal(tmp_path) and "not in a folder for each class" in refusal(tmp_path)


@pytest.mark.parametrize("role", ["train", "validation", "test"])
def test_every_spelling_of_a_role_is_understood(tmp_path, role):
    for spelling in SPELLINGS[role]:
        assert folder_layout._role_names([spelling]) == {spelling: "training" if role == "train" else role}


@pytest.mark.parametrize("name", NO_ROLES)
def test_a_longer_word_is_no_role(name):
    assert folder_layout._role_names([name, "cats", "dogs"]) == {}


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "dev"])
def test_a_validation_folder_beside_a_test_folder_is_for_validation(tmp_path, validation):
    for role, count in (("train", 6), (validation, 3), ("test", 2)):
        plant(tmp_path / role / "a", tmp_path / role / "b", count=count)
    layout = layout_of(str(tmp_path))
    assert not layout.notes
    assert counts(layout) == {"train": {"a": 6, "b": 6}, "validation": {"a": 3, "b": 3}, "test": {"a": 2, "b": 2}}


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "dev"])
def test_a_validation_folder_without_a_test_folder_holds_the_test_images(tmp_path, validation):
    for role, count in (("train", 6), (validation, 3)):
        plant(tmp_path / role / "a", tmp_path / role / "b", count=count)
    layout = layout_of(str(tmp_path))
    assert counts(layout) == {"train": {"a": 6, "b": 6}, "test": {"a": 3, "b": 3}}
    (note,) = layout.notes
    assert note == ("no test folder: the images of %s are the test images, and a share of %s is for validation"
                    % (tmp_path / validation, tmp_path / "train"))


@pytest.mark.parametrize("beside,split", [((), "test"), (("val",), "test"), (("test",), "validation")])
def test_an_evaluation_folder_is_for_testing_or_beside_a_test_folder_for_validation(tmp_path, beside, split):
    plant(*(tmp_path / role / name for role in ("train",) + beside for name in "ab"))
    plant(tmp_path / "eval" / "a", tmp_path / "eval" / "b", count=3)
    layout = layout_of(str(tmp_path))
    assert counts(layout)[split] == {"a": 3, "b": 3} and not layout.notes


def test_an_evaluation_folder_beside_validation_and_test_is_said_to_be_unused(tmp_path):
    plant(*(tmp_path / role / name for role in ("train", "val", "test", "eval") for name in "ab"))
    (note,) = layout_of(str(tmp_path)).notes
    assert "not used" in note and str(tmp_path / "eval") in note


def test_roles_are_found_in_folders_of_their_own_and_in_archives(tmp_path):
    plant(*(tmp_path / "archive" / role / role / name for role in ("seg_train", "seg_test") for name in "ab"))
    plant(tmp_path / "archive" / "seg_pred" / "seg_pred")
    layout = layout_of(str(tmp_path))
    assert counts(layout) == {"train": {"a": 6, "b": 6}, "test": {"a": 6, "b": 6}}
    archive, unused = layout.notes
    assert "data set is %s" % (tmp_path / "archive") in archive and str(tmp_path / "archive" / "seg_pred") in unused


def test_a_role_within_a_role_of_the_same_name_is_found(tmp_path):
    plant(*(tmp_path / role / role / name for role in ("fruits_train", "fruits_test") for name in "ab"))
    layout = layout_of(str(tmp_path))
    assert counts(layout) == {"train": {"a": 6, "b": 6}, "test": {"a": 6, "b": 6}} and not layout.notes


def test_loose_images_decide_whether_the_only_folder_is_the_data_set(tmp_path):
    plant(*(tmp_path / "in" / "archive" / "train" / name for name in "ab"), tmp_path / "in" / "archive")
    used, loose = layout_of(str(tmp_path / "in")).notes
    assert "data set is " in used and loose.endswith("directly in %s" % (tmp_path / "in" / "archive"))
    plant(*(tmp_path / "other" / "archive" / name for name in "ab"), tmp_path / "other")
    assert "has 1 sub-folder with images" in refusal(tmp_path / "other")
    plant(*(tmp_path / "third" / "train" / "train" / name for name in "ab"), tmp_path / "third" / "train")
    assert "put those of each class into a folder" in refusal(tmp_path / "third")


def test_a_flat_test_folder_beside_training_classes_is_left_to_predict(tmp_path):
    plant(tmp_path / "train" / "a", tmp_path / "train" / "b", tmp_path / "test", tmp_path / "test" / "more")
    layout = layout_of(str(tmp_path))
    assert counts(layout) == {"train": {"a": 6, "b": 6}} and layout.test_is_drawn
    (note,) = layout.notes
    assert "mode=predict images=%s" % (tmp_path / "test") in note


def test_class_folders_beside_a_test_folder_of_the_same_classes_are_for_training(tmp_path):
    plant(tmp_path / "cats", tmp_path / "dogs", tmp_path / "owls")
    plant(tmp_path / "test" / "cats", tmp_path / "test" / "dogs", count=2)
    layout = layout_of(str(tmp_path))
    assert counts(layout) == {"train": {"cats": 6, "dogs": 6, "owls": 6}, "test": {"cats": 2, "dogs": 2}}
    assert len(layout.notes) == 1  # the class summary says which classes the test images lack


def test_a_folder_without_images_that_is_no_class_is_noted(tmp_path):
    plant(tmp_path / "train" / "a", tmp_path / "train" / "b", tmp_path / "test" / "a")
    for name in ("b/list.txt", "c/list.txt"):
        put(str(tmp_path / "test" / name), b"text")
    layout = layout_of(str(tmp_path))
    (barren,) = layout.notes
    assert barren.endswith("no image that can be read: %s (1 .txt)" % (tmp_path / "test" / "c"))
    assert layout.files[-1] == (str(tmp_path / "test" / "b" / "list.txt"), 1, "test")  # the decoder names it


def test_contradicting_roles_are_refused(tmp_path):
    plant(*(tmp_path / "twice" / role / name for role in ("Train", "training", "test") for name in "ab"))
    assert "%s, %s" % (tmp_path / "twice" / "Train", tmp_path / "twice" / "training") in refusal(tmp_path / "twice")
    plant(*(tmp_path / "extra" / role / name for role in ("train", "val") for name in "ab"),
          tmp_path / "extra" / "val" / "c")
    assert "val has the class c, which " in refusal(tmp_path / "extra")
    plant(tmp_path / "alone" / "test" / "a", tmp_path / "alone" / "test" / "b", tmp_path / "alone" / "c")
    assert "no training images of all these classes" in refusal(tmp_path / "alone")
    plant(tmp_path / "flat" / "test" / "a", tmp_path / "flat" / "test" / "b", tmp_path / "flat" / "train")
    assert str(tmp_path / "flat" / "train" / "cats") in refusal(tmp_path / "flat")


# Classes.


def test_a_class_may_be_called_train(tmp_path):
    plant(*(tmp_path / name for name in ("bus", "car", "train")))
    layout = layout_of(str(tmp_path))
    assert layout.class_names == ["bus", "car", "train"] and not layout.notes
    plant(tmp_path / "val")
    layout = layout_of(str(tmp_path))
    assert layout.class_names == ["bus", "car", "train", "val"]
    (note,) = layout.notes
    assert "counted as classes" in note and ": val;" in note
    plant(tmp_path / "train" / "more")
    assert layout_of(str(tmp_path)).class_names == ["bus", "car", "train", "val"]


@pytest.mark.parametrize("others", [("other",), ("bus", "car", "test/bus", "test/car")])
def test_a_class_called_train_is_doubted_beside_one_other_or_a_test_folder(tmp_path, others):
    plant(*(tmp_path / name for name in ("train",) + others))
    layout = layout_of(str(tmp_path))
    assert "train" in layout.class_names and any(": train;" in note for note in layout.notes)


@pytest.mark.parametrize("names", [("train",), ("train", "test"), ("Training", "Testing", "other")])
def test_folders_of_roles_are_no_classes_without_others_beside_them(tmp_path, names):
    plant(*(tmp_path / name for name in names))
    (tmp_path / "labels").mkdir()
    assert "put those of each class into a folder" in refusal(tmp_path)


@pytest.mark.parametrize("whole,beside", [
    ("data", "figures"), ("data", "figures/deep"), ("Plants(Augmented)/Plants(Augmented)", "test/test")])
def test_a_data_set_is_no_class_beside_other_folders(tmp_path, whole, beside):
    plant(*(tmp_path / whole / role / name for role in ("train", "valid") for name in "ab"), tmp_path / beside)
    assert "%s has the folders train, valid, as a data set has" % (tmp_path / whole) in refusal(tmp_path)


@pytest.mark.parametrize("names", [("train_70", "test_30"), ("train80", "test20"), ("my_train", "test_final")])
def test_splits_by_other_names_are_no_classes(tmp_path, names):
    plant(*(tmp_path / split / name for split in names for name in "ab"))
    assert "name the folders above them train, validation and test" in refusal(tmp_path)


@pytest.mark.parametrize("inner", ["images", "data", "train"])
def test_the_classes_of_a_split_may_lie_in_a_folder_that_says_nothing(tmp_path, inner):
    plant(*(tmp_path / role / (role if inner == "train" else inner) / name for role in ("train", "test")
            for name in "ab"))
    assert counts(layout_of(str(tmp_path))) == {"train": {"a": 6, "b": 6}, "test": {"a": 6, "b": 6}}


def test_a_class_of_which_alone_a_split_has_images_may_have_a_name_that_says_nothing(tmp_path):
    plant(tmp_path / "train" / "photo", tmp_path / "train" / "sketch", tmp_path / "test" / "photo")
    layout = layout_of(str(tmp_path))
    assert counts(layout) == {"train": {"photo": 6, "sketch": 6}, "test": {"photo": 6}} and not layout.notes
    assert layout_of(str(tmp_path / "test"), evaluated=True).class_names == ["photo"]


def test_a_class_may_have_its_images_in_folders_of_splits(tmp_path):
    plant(tmp_path / "cats" / "train", tmp_path / "cats" / "test", tmp_path / "dogs")
    layout = layout_of(str(tmp_path))
    assert counts(layout) == {"train": {"cats": 12, "dogs": 6}}
    assert "one class each, though all images are in sub-folders: cats (test, train)" in layout.notes[0]


def test_names_of_classes_may_have_joiners_and_other_spaces_and_new_letters(tmp_path):
    names = ["cat\u00a0food", "\u0645\u06cc\u200c\u062e", "\u732b\u3000\u767d", "\U0001fae8"]
    plant(*(tmp_path / name for name in names))
    assert layout_of(str(tmp_path)).class_names == names


def test_one_class_or_none_is_refused_with_what_was_found(tmp_path):
    assert "has 0 sub-folders with images" in refusal(tmp_path)
    (tmp_path / "void").mkdir()
    assert "(void without images)" in refusal(tmp_path)
    put(str(tmp_path / "owls" / "1.HEIC"), b"0000ftypheic")
    assert "(owls without images (1 .heic), void without images)" in refusal(tmp_path)
    os.remove(str(tmp_path / "owls" / "1.HEIC"))
    os.rmdir(str(tmp_path / "owls"))
    plant(tmp_path / "cats")
    assert "has 1 sub-folder with images" in refusal(tmp_path) and "(cats, void without images)" in refusal(tmp_path)
    assert str(tmp_path / "cats" / "cats") in refusal(tmp_path / "cats")  # images without any folder
    assert "missing cannot be read as a folder (No such file or directory)" in refusal(tmp_path / "missing")
    assert "cannot be read as a folder (Not a directory)" in refusal(tmp_path / "cats" / "0.png")


def test_sub_folders_of_classes_are_said_in_one_short_note(tmp_path):
    plant(*(tmp_path / ("year%02d" % year) / name for year in range(9) for name in ("cats", "dogs", "eels", "owls")),
          tmp_path / "year09", count=1)
    layout = layout_of(str(tmp_path))
    assert len(layout.class_names) == 10 and len(layout.files) == 37
    (note,) = layout.notes
    assert "year00 (cats, dogs, eels and 1 more), " in note and "year05" not in note and "and 4 more" in note
    assert note.endswith("such as %s" % (tmp_path / "year00"))


def test_folders_without_images_are_no_classes(tmp_path):
    plant(tmp_path / "a", tmp_path / "b")
    for name in ("labels/list.csv", "models/model.h5", "weights/raw.dat"):
        put(str(tmp_path / name), b"\x89HDF\r\n\x1a\n" + bytes(100))
    layout = layout_of(str(tmp_path))
    assert layout.class_names == ["a", "b"]
    (note,) = layout.notes
    assert all(str(tmp_path / name) in note for name in ("labels", "models", "weights"))


def test_damaged_images_and_images_without_an_ending_make_a_class(tmp_path):
    plant(tmp_path / "a")
    put(str(tmp_path / "b" / "1.JPG"), b"no image")
    put(str(tmp_path / "c" / "1"))
    put(str(tmp_path / "c" / "list.txt"), b"text")
    layout = layout_of(str(tmp_path))
    assert layout.class_names == ["a", "b", "c"] and not layout.notes
    last = ("b/1.JPG", "c/1", "c/list.txt")
    assert [path for path, _, _ in layout.files[-3:]] == [str(tmp_path / name) for name in last]


def test_loose_images_are_said_to_be_unused(tmp_path):
    plant(tmp_path, tmp_path / "train", tmp_path / "train" / "a", tmp_path / "train" / "b", count=2)
    (note,) = layout_of(str(tmp_path)).notes
    assert note.endswith("the images directly in %s, %s" % (tmp_path, tmp_path / "train"))


def test_names_that_cannot_be_printed_are_shown_escaped(tmp_path):
    plant(tmp_path / "a", tmp_path / "b", tmp_path / "train\n" / "a")
    os.makedirs(str(tmp_path / "void\n\udcff"))
    for folder in ("a", "void\n\udcff"):
        assert is_sentence(refusal(tmp_path / folder))
    assert "/train\\n' has 1 sub-folder" in refusal(tmp_path)


# What is never data.


def test_what_the_program_writes_is_no_data(tmp_path, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    plant("cats", "dogs")
    before = layout_of(".")
    plant("cache", "logs/run", "runs/model")
    layout = layout_of(".", ["cache", str(tmp_path / "logs"), "runs/model", "missing"])
    assert (layout.class_names, layout.files) == (["cats", "dogs"], before.files)
    assert files_under(".", ["cache", "logs", "runs"]) == sorted(path for path, _, _ in before.files)
    assert len(files_under("cache", ["cache"])) == 6  # asked for by name


def test_the_programs_own_folders_are_no_data(tmp_path, monkeypatch):
    plant(*(tmp_path / name for name in ("cats", "dogs", "docs", "tests")))
    monkeypatch.setattr(folder_layout, "PROGRAM_FOLDERS", (str(tmp_path / "docs"), str(tmp_path / "tests")))
    assert layout_of(str(tmp_path)).class_names == ["cats", "dogs"]
    monkeypatch.undo()
    root = os.path.dirname(os.path.dirname(os.path.abspath(folder_layout.__file__)))
    assert set(folder_layout.PROGRAM_FOLDERS) == {os.path.join(root, name) for name in ("docs", "support", "tests")}


@pytest.mark.parametrize("name", ["1.png", "2", "IMG.0003"])
def test_heat_maps_are_no_data(tmp_path, name):
    for folder in "ab":
        put(str(tmp_path / folder / name))
    before = layout_of(str(tmp_path)).files
    for folder in ("a", "maps/a"):
        put(str(tmp_path / folder / heat_map_name(name)), HEAT_MAP)
    layout = layout_of(str(tmp_path))
    assert layout.files == before and len(before) == 2 and layout.class_names == ["a", "b"]


@pytest.mark.parametrize("name", [".hidden", "__MACOSX", "__pycache__", "node_modules", "lost+found", "venv", "conda"])
def test_folders_of_tools_are_no_data(tmp_path, name):
    plant(tmp_path / "a", tmp_path / "b", tmp_path / name, tmp_path / "a" / name)
    for folder in (tmp_path / name, tmp_path / "a" / name):
        if name in ("venv", "conda"):
            put(str(folder / ("pyvenv.cfg" if name == "venv" else "conda-meta/history")), b"home = /usr")
    layout = layout_of(str(tmp_path))
    assert layout.class_names == ["a", "b"] and len(layout.files) == 12 and not layout.notes


# Files and links.


def test_files_are_listed_sorted_without_hidden_ones_and_links_are_followed_once(tmp_path):
    for name in ("b/2.png", "b/1.txt", "a/3.png", "0", ".x/1.png", "b/.y", "b/Thumbs.db", "desktop.ini"):
        put(str(tmp_path / "in" / name))
    put(str(tmp_path / "out" / "4.png"))
    os.symlink(str(tmp_path / "out"), str(tmp_path / "in" / "c"))
    os.symlink("..", str(tmp_path / "in" / "b" / "above"))
    os.symlink("itself", str(tmp_path / "in" / "itself"))
    os.symlink("nowhere", str(tmp_path / "in" / "gone.png"))
    found = files_under(str(tmp_path / "in"))
    assert [os.path.relpath(path, str(tmp_path / "in")) for path in found] == [
        "0", "a/3.png", "b/1.txt", "b/2.png", "c/4.png", "gone.png", "itself"]
    assert found == files_before(str(tmp_path / "in"))
    assert files_under("no/such.png") == ["no/such.png"]


def test_pipes_are_left_out(tmp_path):
    plant(tmp_path / "a", tmp_path / "b", count=2)
    (tmp_path / "c").mkdir()
    os.mkfifo(str(tmp_path / "c" / "pipe"))
    os.mkfifo(str(tmp_path / "a" / "pipe.png"))
    os.symlink("pipe.png", str(tmp_path / "a" / "link.png"))
    assert layout_of(str(tmp_path)).class_names == ["a", "b"] and len(files_under(str(tmp_path / "a"))) == 2


@pytest.mark.parametrize("real,link", [("dogs", "linked"), ("train", "test"), ("dogs/more", "cats/more"),
                                       ("", "cats/up"), ("dogs/more", "more")])
def test_a_folder_with_two_meanings_by_a_link_is_refused(tmp_path, real, link):
    if real == "train":
        plant(tmp_path / "train" / "cats", tmp_path / "train" / "dogs")
    else:
        plant(tmp_path / "cats", tmp_path / "dogs", tmp_path / "dogs" / "more")
    os.symlink(str(tmp_path / real), str(tmp_path / link))
    assert "are the same folder by a link" in refusal(tmp_path)


def test_links_to_folders_elsewhere_are_followed_and_broken_ones_are_said(tmp_path):
    plant(tmp_path / "in" / "a", tmp_path / "out")
    os.symlink(str(tmp_path / "out"), str(tmp_path / "in" / "b"))
    os.symlink("nowhere", str(tmp_path / "in" / "c"))
    layout = layout_of(str(tmp_path / "in"))
    assert counts(layout) == {"train": {"a": 6, "b": 6}} and layout.test_is_drawn
    (note,) = layout.notes
    assert "lead nowhere: %s" % (tmp_path / "in" / "c") in note


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    plant(tmp_path / "a" / "deep", tmp_path / "b")
    real = os.scandir

    def scandir(path):
        if os.path.basename(path) == "deep":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # the tests may run as root, who may read everything
    sentence = "deep cannot be read as a folder (Permission denied): make it readable, or take it away"
    assert sentence in refusal(tmp_path)
    with pytest.raises(DataError, match="Permission denied"):
        files_under(str(tmp_path))


def test_few_files_of_a_kind_are_opened_in_search_of_an_image(tmp_path, monkeypatch):
    plant(tmp_path / "a", tmp_path / "b")
    for number in range(folder_layout.OPENED + 9):
        put(str(tmp_path / "labels" / ("%d.txt" % number)), b"0 0.5 0.5")
    opened = []
    monkeypatch.setattr(folder_layout, "_is_identified", opened.append)
    assert layout_of(str(tmp_path)).class_names == ["a", "b"] and len(opened) == folder_layout.OPENED


@pytest.mark.parametrize("first,second", [("flowersTrain", "flowersTest"), ("FlowersTrain", "FlowersTest")])
def test_capitals_part_words(tmp_path, first, second):
    plant(*(tmp_path / split / name for split in (first, second) for name in ("rose", "tulip")))
    layout = layout_of(str(tmp_path))
    assert counts(layout) == {"train": {"rose": 6, "tulip": 6}, "test": {"rose": 6, "tulip": 6}}


def test_languages_are_classes(tmp_path):
    plant(tmp_path / "tr", tmp_path / "ts", tmp_path / "de")
    assert layout_of(str(tmp_path)).class_names == ["de", "tr", "ts"]


def test_a_class_called_train_beside_alike_folders_is_refused(tmp_path):
    vehicles = [tmp_path / name for name in ("bus", "car", "train")]
    plant(*(vehicle / when for vehicle in vehicles for when in ("day", "night")))
    assert "train has the same sub-folders as bus, car, and may be a class like these or the" in refusal(
        str(tmp_path))
    assert layout_of(str(tmp_path / "train")).class_names == ["day", "night"]
    plant(tmp_path / "test" / "day", tmp_path / "test" / "night")
    assert counts(layout_of(str(tmp_path))) == {"train": {"day": 6, "night": 6}, "test": {"day": 6, "night": 6}}


def test_a_copy_of_all_classes_within_one_is_no_class(tmp_path):
    plant(*(tmp_path / place / name for place in ("cells", "cells/cells") for name in ("Infected", "Clean")))
    layout = layout_of(str(tmp_path / "cells"))
    assert counts(layout) == {"train": {"Infected": 6, "Clean": 6}}
    assert "the folders that lie beside it, as a copy does: %s" % (tmp_path / "cells" / "cells") in layout.notes[0]
    os.rename(str(tmp_path / "cells" / "cells"), str(tmp_path / "cells" / "mixed"))
    assert layout_of(str(tmp_path / "cells")).class_names == ["Clean", "Infected", "mixed"]


NFC, NFD = "caf\xe9", "cafe\u0301"


def test_one_name_in_two_encodings_is_one_class(tmp_path):
    for train, test in ((NFC, NFD), (NFD, NFC)):
        place = tmp_path / ascii(train)
        plant(place / "train" / train, place / "train" / "bar", place / "test" / test, place / "test" / "bar")
        layout = layout_of(str(place))
        assert layout.class_names == sorted(["bar", train])
        assert counts(layout) == {"train": {"bar": 6, train: 6}, "test": {"bar": 6, train: 6}}
    plant(tmp_path / "both" / NFC, tmp_path / "both" / NFD)
    assert r"both has sub-folders whose names differ in the encoding of letters alone: 'cafe\u0301'" in refusal(
        str(tmp_path / "both"))


def test_labelled_images_are_evaluated_beside_others(tmp_path):
    plant(tmp_path / "valid" / "a", tmp_path / "valid" / "b", tmp_path / "test", tmp_path / "previews")
    layout = layout_of(str(tmp_path), evaluated=True)
    assert counts(layout) == {"train": {"a": 6, "b": 6}}
    assert len([note for note in layout.notes if "not used" in note]) == 2
    assert "no training images of all these classes" in refusal(str(tmp_path))
