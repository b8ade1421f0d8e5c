"""Which folders of a data set are classes, and which are training, validation and test images?

Folders are recognised by what they hold. A folder with the name of a role (`train`, `Testing`, `seg_train`) has that
role if its sub-folders hold images. If it holds images itself, it is a class among others, or it is not used. Notes
tell the user which folders are not used, and which could be meant otherwise.
"""

import collections
import dataclasses
import functools
import os
import re
import unicodedata
import warnings

from PIL import Image

from support.file_reading import DataError, composed, printable, shortened
from support.pictures import is_heat_map
from support.run_directory import is_file_of_answers

IGNORED = ("Thumbs.db", "desktop.ini")
NEVER_DATA = ("__MACOSX", "__pycache__", "node_modules", "lost+found", "$RECYCLE.BIN", "System Volume Information")
ENVIRONMENT_FILES = ("pyvenv.cfg", "conda-meta")  # what a folder with an installation of Python contains
# What folders that the program writes contain: of logs, of a run, and of decoded images.
WRITTEN = (("lock_of_logs",), ("settings.json", "lock"), ("pixels", "index.npz"))
PROGRAM_FOLDERS = tuple(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), name)
                        for name in ("docs", "support", "tests"))
NO_PICTURES = ("BUFR", "GRIB", "HDF5", "MPEG")  # formats that Pillow recognises but never decodes
OPENED = 100  # maximum number of files with the same ending that are opened in search of an image
HEAT_MAP = ".heatmap"  # in the name of an image's heat map, if the image's own name does not end like one
UNSHOWN = ("Cc", "Cs", "Co", "Zl", "Zp")  # categories of characters that names of classes have not
LISTED = 5  # maximum number of names in a note

TRAINING, VALIDATION, TEST, EVALUATION = "training", "validation", "test", "evaluation"
ROLE_WORDS = {"train": TRAINING, "training": TRAINING, "validation": VALIDATION, "valid": VALIDATION, "val": VALIDATION,
              "dev": VALIDATION, "test": TEST, "testing": TEST, "evaluation": EVALUATION, "eval": EVALUATION}
# Words beside a role's word that do not change what the folder is, also without a separator: `trainset`, `seg_train`.
AFFIXES = ("set", "sets", "data", "dataset", "image", "images", "img", "imgs", "picture", "pictures", "photo", "photos",
           "sample", "samples", "file", "files", "folder", "dir", "split", "seg")
# Words that stand for a role only where every folder beside them has one: they are names of languages, too.
SHORT_WORDS = {"tr": "train", "trn": "train", "te": "test", "tst": "test"}
WITH_AFFIX = dict(SHORT_WORDS, ts="test")  # beside one of AFFIXES, as in `imagesTr`, they stand for a role everywhere
ROLE_WORD = re.compile("(%s)(?:%s)?" % ("|".join(ROLE_WORDS), "|".join(AFFIXES)))


@dataclasses.dataclass
class Layout:
    """What a folder holds.

    Attributes:
        class_names: list of str, sorted.
        files: list of (path, label, split), class by class. split: "train", "validation" or "test". "validation"
            occurs only if there are a validation folder and a test folder.
        test_is_drawn: whether there is no test folder: then a share of the "train" files is to be the test split.
        notes: list of sentences for the user.
    """

    class_names: list
    files: list
    test_is_drawn: bool
    notes: list


@dataclasses.dataclass
class _Folder:
    path: str
    holding: list  # names of the sub-folders that hold images, at any depth
    barren: list  # names of the other sub-folders
    loose: bool  # whether images lie in the folder itself
    dangling: list  # names of links that lead nowhere
    stored: dict = dataclasses.field(default_factory=dict)  # {name above: name on disk}, where these differ


def layout_of(data_dir, excluded=(), evaluated=False):
    """Finds the classes and the splits of a folder of images.

    Without a test folder, the validation folder holds the test images. Without both, they are to be drawn.

    Args:
        data_dir: contains one sub-folder per class, or folders for training, validation and test images with one
            sub-folder per class.
        excluded: paths of folders that are never data, such as those that the program writes.
        evaluated: whether the images are evaluated only: then a single class is enough, and no class needs training
            images.
    Returns:
        a Layout.
    Raises:
        DataError: there are too few classes, the roles or the links of folders contradict each other, or a folder
            cannot be read.
    """
    tree, notes = _Tree(excluded), []
    root = _descended(tree, data_dir, notes)
    roles, flat, others = _roles(tree, root)
    if TRAINING in roles:
        train = roles.pop(TRAINING)
        for role, folder in list(roles.items()):
            # Unlabelled images, some or all in a sub-folder, which loaders of other programs need (`test/unknown`).
            if (folder.loose or len(folder.holding) == 1) and not set(folder.holding) & set(train.holding):
                flat[os.path.relpath(roles.pop(role).path, root.path)] = role
        _check_that_train_is_no_class(tree, root, train, others if not roles and not flat else [])
        _note_unused(root, flat, others, notes)
    elif evaluated and any(not set(folder.holding) <= {*others, *flat} for folder in roles.values()):
        train = roles.pop(sorted(roles)[-1])
        _note_unused(root, flat, others, notes)
    else:
        train = _classes_beside(root, roles, flat, others, notes)
    train = _without_copy(tree, train, notes)
    roles = {role: _with_names_of(train, folder) for role, folder in roles.items()}
    names = sorted(set(train.holding).union(*(folder.holding for folder in roles.values()))) if evaluated else (
        train.holding)
    if len(names) < (1 if evaluated else 2):
        raise DataError(_too_few(tree, train))
    for name in names:
        if any(unicodedata.category(letter) in UNSHOWN for letter in name):  # for example, it is not UTF-8
            raise DataError("%s has a sub-folder %r: give it a name of letters that can be shown"
                            % (printable(train.path), name))
    _check_classes(tree, train)
    _check_and_note_splits(roles, train, names, notes)
    _note_left_out(tree, [root, train, *roles.values()], names, notes)
    _note_sub_folders(tree, train, notes)
    return Layout(names, _files(tree, train, roles, names), TEST not in roles, notes)


def files_under(path, excluded=()):
    """Lists the files under a folder, at any depth, sorted and without hidden files. For a file, returns [path].

    Links to folders are followed, each folder is visited once. Pipes, devices and heat maps are left out. Folders that
    are never data (`excluded`, NEVER_DATA, the program's own, installations of Python) are left out unless `path` is
    one.

    Raises:
        DataError: a folder cannot be read.
    """
    return sorted(_Tree(excluded).files(path)) if os.path.isdir(path) else [path]


def has_images_directly(path):
    """Whether there is an image in the folder itself, not in its sub-folders. Raises DataError if it cannot be read."""
    return os.path.isdir(path) and _Tree(()).has_images_directly(path)


class _Tree:
    """Reads folders, without those that are never data."""

    def __init__(self, excluded):
        self._excluded = {os.path.realpath(path) for path in (*PROGRAM_FOLDERS, *excluded)}

    def entries(self, folder, remedy="make it readable, or take it away"):
        """Returns the sorted names of (sub-folders, files). A link that leads nowhere counts as a file."""
        folders, files = [], []
        try:
            with os.scandir(folder) as entries:
                found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            raise DataError("%s cannot be read as a folder (%s): %s"
                            % (printable(folder), error.strerror, remedy)) from None
        for entry in found:
            linked = entry.is_symlink()  # for what is no link, the kind is known without another access to the disk
            if os.path.isdir(entry.path) if linked else entry.is_dir():
                if not self._is_never_data(entry.name, entry.path):
                    folders.append(entry.name)
            elif os.path.isfile(entry.path) or not os.path.exists(entry.path) if linked else entry.is_file():
                if not (entry.name in IGNORED or entry.name.endswith(".lock") or _is_heat_map(entry.path)
                        or entry.name.endswith(".json") and is_file_of_answers(entry.path)):
                    files.append(entry.name)
        return folders, files

    def _is_never_data(self, name, path):
        return (name in NEVER_DATA or os.path.realpath(path) in self._excluded or
                any(os.path.exists(os.path.join(path, file)) for file in ENVIRONMENT_FILES) or
                any(all(os.path.exists(os.path.join(path, file)) for file in files) for files in WRITTEN))

    def files(self, folder):
        """Yields the paths of all files under a folder."""
        pending, visited = [folder], set()
        while pending:
            folder = pending.pop()
            real = os.path.realpath(folder)
            if real in visited:  # through a symbolic link
                continue
            visited.add(real)
            folders, names = self.entries(folder)
            pending += [os.path.join(folder, name) for name in reversed(folders)]
            for name in names:
                yield os.path.join(folder, name)

    def holds_images(self, folder):
        """Returns whether there is an image under a folder. Files are opened only if no name ends like an image's."""
        return any(map(_has_extension, self.files(folder))) or _is_any_identified(self.files(folder))

    def has_images_directly(self, folder):
        """Returns whether there is an image in the folder itself."""
        paths = [os.path.join(folder, name) for name in self.entries(folder)[1]]
        return any(map(_has_extension, paths)) or _is_any_identified(paths)

    def scan(self, path, **remedy):
        """Returns a _Folder."""
        folders, names = self.entries(path, **remedy)
        holding = [name for name in folders if self.holds_images(os.path.join(path, name))]
        return _Folder(path, holding, [name for name in folders if name not in holding], self.has_images_directly(path),
                       [name for name in names if _leads_nowhere(os.path.join(path, name))])


def _is_heat_map(path):
    """Whether a file is a picture that mode=predict made of an image, as `heat_map_name` names them."""
    image, ending = os.path.splitext(path)
    return ending == ".png" and (_has_extension(image) or image.endswith(HEAT_MAP)) and is_heat_map(path)


def heat_map_name(image):
    """The name of an image's heat map. It shows by its ending that it may be one: few files have to be opened."""
    return image + ("" if _has_extension(image) else HEAT_MAP) + ".png"


def _leads_nowhere(path):
    return os.path.islink(path) and not os.path.exists(path)


@functools.lru_cache(maxsize=None)
def _extensions():
    return frozenset(extension for extension, name in Image.registered_extensions().items()
                     if name in Image.OPEN and name not in NO_PICTURES)


def _has_extension(path):
    return os.path.splitext(path)[1].lower() in _extensions()


def _is_any_identified(paths):
    opened = collections.Counter()
    for path in paths:
        ending = os.path.splitext(path)[1]
        opened[ending] += 1
        if opened[ending] <= OPENED and _is_identified(path):
            return True
    return False


def _is_identified(path):
    if not os.path.isfile(path):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.format not in NO_PICTURES
    except Image.DecompressionBombError:  # raised for an image that was identified
        return True
    except Exception:  # of any type: so are those of Pillow's readers
        return False


def _descended(tree, data_dir, notes):
    """Scans data_dir, or the folder in it that holds everything (`archive`)."""
    folder = tree.scan(data_dir, remedy="set data_dir to the folder that holds a sub-folder of images for each class")
    while len(folder.holding) == 1 and not folder.loose and not _role_names(folder.holding):
        inner = tree.scan(os.path.join(folder.path, folder.holding[0]))
        if len(inner.holding) < (2 if inner.loose and not _role_names(inner.holding) else 1):  # it is a class itself
            break
        folder = inner
    if folder.path != data_dir:
        notes.append("the data set is %s: no other folder of %s holds images"
                     % (printable(folder.path), printable(data_dir)))
    return folder


def _role_names(names):
    """Returns {name: role} of those names of folders, in one folder, that stand for a role.

    AFFIXES, years (`train2017`) and leading numbers (`1_train`) do not count. Other words (`fruits_train`) do not count
    if there is a folder of another role with the same words (`fruits_test`). `bullet_train` alone is a class.
    """
    full = [SHORT_WORDS.get(name.casefold(), name.casefold()) for name in names]
    if all(word in ROLE_WORDS for word in full):
        return dict(zip(names, map(ROLE_WORDS.get, full)))
    parsed = {}
    for name in names:
        words, roles = _words_and_roles(name)
        if not roles:  # trainA, flowersTrain
            words, roles = _words_and_roles(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name))
        rest = tuple(word for word in words
                     if not ROLE_WORD.fullmatch(word) and word not in AFFIXES and not re.fullmatch("(19|20)..", word))
        if len(roles) == 1:
            parsed[name] = ROLE_WORDS[roles[0]], rest
    return {name: role for name, (role, rest) in parsed.items()
            if not rest or any(other != role and same == rest for other, same in parsed.values())}


def _words_and_roles(name):
    """The words of a folder's name, without a leading number, and those of ROLE_WORDS that are among them."""
    words = re.findall(r"[^\W\d_]+|\d+", name.casefold())
    words = words[1:] if len(words) > 1 and words[0].isdigit() else words
    if set(words) & set(AFFIXES) and set(words) <= {*AFFIXES, *WITH_AFFIX}:
        words = [WITH_AFFIX.get(word, word) for word in words]
    return words, [match.group(1) for match in map(ROLE_WORD.fullmatch, words) if match]


def _roles(tree, root):
    """Finds the roles of the sub-folders that hold images.

    Returns:
        {role: _Folder}, {name: role} of folders that are named after a role but hold no class folders, and the names of
        the other folders.
    """
    role_names = _role_names(root.holding)
    found, flat, others = {}, {}, []
    for name in root.holding:
        role = role_names.get(name)
        folder = role and _innermost(tree, os.path.join(root.path, name), role)
        if not folder:
            others.append(name)
        elif folder.holding and not (role == TRAINING and folder.loose and len(folder.holding) == 1):
            found.setdefault(role, []).append(folder)
        else:
            flat[name] = role
    # Beside a test folder, `eval` is usually for validation.
    if EVALUATION in found:
        evaluation = found.pop(EVALUATION)
        if TEST in found and VALIDATION in found:
            others += [os.path.relpath(folder.path, root.path) for folder in evaluation]
        else:
            found[VALIDATION if TEST in found else TEST] = evaluation
    for role, folders in found.items():
        if len(folders) > 1:
            raise DataError("more than one folder is for the %s images: %s; take all but one away, or rename them"
                            % (role, _listing(folder.path for folder in folders)))
    return {role: folders[0] for role, folders in found.items()}, flat, others


def _innermost(tree, path, role=None):
    """Scans a folder, or the one that is all it holds.

    Args:
        role: of the folder. The inner one must have the same (`seg_train/seg_train`), or a name that says nothing and
            folders of images in it (`train/images`). None: any name will do.
    """
    folder = tree.scan(path)
    while len(folder.holding) == 1 and not folder.loose:
        (name,) = folder.holding
        inner = tree.scan(os.path.join(folder.path, name))
        if role and name != os.path.basename(folder.path) and _role_names([name]).get(name) != role and not (
                name.casefold() in AFFIXES and inner.holding):
            break
        folder = inner
    return folder


def _classes_beside(root, roles, flat, others, notes):
    """Returns the root with its class folders in `holding`, where no folder is for training by its name."""
    train = dataclasses.replace(root, holding=sorted([*others, *flat]))
    uncovered = [folder for folder in roles.values() if not set(folder.holding) <= set(train.holding)]
    unlabelled = [name for name, role in flat.items() if role == TRAINING or not uncovered]
    if uncovered and not unlabelled:
        raise DataError("%s holds folders of images, but %s has no training images of all these classes: name the "
                        "folder that holds them train" % (printable(uncovered[0].path), printable(root.path)))
    if uncovered or len(flat) > len(others):
        raise DataError(_unlabelled(_paths(root, unlabelled)))
    if roles:
        notes.append("no training folder: the folders of %s beside %s are the classes and hold the training images"
                     % (printable(root.path), _listing(folder.path for folder in roles.values())))
    # `train` beside two other classes or more is a vehicle.
    doubtful = [name for name, role in flat.items() if roles or len(others) < 2 or role != TRAINING]
    if doubtful:
        notes.append("counted as classes, for their images are not in sub-folders: %s; if they are not classes, take "
                     "them out of %s" % (_listing(doubtful), printable(root.path)))
    return train


def _check_that_train_is_no_class(tree, root, train, beside):
    """Raises DataError if all folders beside the training folder, with no role, have the same sub-folders as it."""
    if beside and all(tree.scan(path).holding == train.holding for path in _paths(root, beside)):
        raise DataError("%s has the same sub-folders as %s, and may be a class like these or the training folder: "
                        "rename it in the first case, set data_dir to it in the second"
                        % (printable(train.path), _listing(beside)))


def _without_copy(tree, train, notes):
    """The training folder without a copy of it inside: of its name, with folders of all other classes."""
    name = os.path.basename(os.path.abspath(train.path))
    path, others = os.path.join(train.path, name), [other for other in train.holding if other != name]
    if name not in train.holding or len(others) < 2 or tree.scan(path).holding != others:
        return train
    notes.append("not used, for it holds the folders that lie beside it, as a copy does: %s" % printable(path))
    return dataclasses.replace(train, holding=others)


def _too_few(tree, folder):
    """Returns the sentence for a folder without two folders of images."""
    if folder.loose and not folder.holding:
        return _unlabelled([folder.path])
    found = [*folder.holding, *("%s without images%s" % (name, _files_of(tree, path))
                                for name, path in zip(folder.barren, _paths(folder, folder.barren)))]
    return ("%s has %s with images, not one for each of two classes or more%s: set data_dir to the folder that holds "
            "them, or put the images of each class into a folder of its own"
            % (printable(folder.path), "1 sub-folder" if folder.holding else "0 sub-folders",
               " (%s)" % _listing(found) if found else ""))


def _unlabelled(paths):
    return ("the images of %s are not in a folder for each class: put those of each class into a folder of its own, "
            "such as %s" % (_listing(paths), printable(os.path.join(paths[0], "cats"))))


def _note_unused(root, flat, others, notes):
    """Notes what is unused beside folders with roles."""
    if flat:
        paths = [*map(printable, _paths(root, flat))]
        notes.append("not used, for the images are not in folders of these classes: %s; mode=predict images=%s "
                     "classifies such images" % (_listing(paths), paths[0]))
    if others:
        notes.append("not used, for they are not named as folders for training, validation or test, as those beside "
                     "them are: %s" % _listing(_paths(root, others)))


def _with_names_of(train, folder):
    """A folder whose sub-folders are called as those of the training folder, where only the encoding differs."""
    known = {composed(name): name for name in train.holding}
    names = {name: known.get(composed(name), name) for name in folder.holding + folder.barren}
    return dataclasses.replace(
        folder, holding=[names[name] for name in folder.holding], barren=[names[name] for name in folder.barren],
        stored={known: name for name, known in names.items() if name != known})


def _check_classes(tree, train):
    """Raises DataError where what would be classes are parts of a data set, or each has folders of roles in it."""
    alike = set(map(composed, train.holding))
    if len(alike) < len(train.holding):
        raise DataError("%s has sub-folders whose names differ in the encoding of letters alone: %s; make one of them"
                        % (printable(train.path), _listing(map(ascii, sorted(set(train.holding) - alike)))))
    deep = [path for path in _paths(train, train.holding) if not tree.has_images_directly(path)]
    if len(train.holding) < 2 or not deep:
        return
    folders = [_innermost(tree, path) for path in deep]
    inner = [folder.holding for folder in folders]
    of_roles = [len(names) > 1 and len(_role_names(names)) == len(names) for names in inner]
    if all(of_roles) and len(deep) == len(train.holding):
        raise DataError("%s has %s inside of each class: put the classes into these folders, as in %s"
                        % (printable(train.path), _listing(inner[0]),
                           printable(os.path.join(train.path, inner[0][0], train.holding[0]))))
    # A class may have its images in train/ and test/; a data set has classes there.
    wholes = [folder for folder, has_roles in zip(folders, of_roles) if has_roles and any(
        len(_innermost(tree, path).holding) > 1 for path in _paths(folder, folder.holding))]
    if wholes:
        whole = wholes[0]
        raise DataError("%s has the folders %s, as a data set has and a class has not: set data_dir to it, or take "
                        "what lies beside it in %s away" % (printable(whole.path), _listing(whole.holding),
                                                            printable(train.path)))
    shared = sorted(set(inner[0]).intersection(*inner))
    if len(shared) < 2 or len(deep) < len(train.holding):
        return
    words = {re.sub(r"[\W\d_]+", "", name) for name in train.holding}
    of_a_role = [any(map(ROLE_WORD.fullmatch, re.findall(r"[^\W\d_]+", name.casefold()))) for name in train.holding]
    if len(words) == 1 and words != {""} or all(of_a_role):  # fold1, fold2, …; train_70, test_30
        raise DataError(
            "%s all have the sub-folders %s, which seem to be the classes: name the folders above them train, "
            "validation and test, or set data_dir to one of them" % (_listing(_paths(train, train.holding)),
                                                                     _listing(shared)))


def _check_and_note_splits(roles, train, names, notes):
    """Checks the given folders of roles against the classes. A validation folder alone becomes the test folder."""
    if VALIDATION in roles and TEST not in roles:
        roles[TEST] = roles.pop(VALIDATION)
        notes.append("no test folder: the images of %s are the test images, and a share of %s is for validation"
                     % (printable(roles[TEST].path), printable(train.path)))
    for folder in roles.values():
        unknown = sorted(set(folder.holding) - set(names))
        if unknown:
            raise DataError("%s has the class %s, which %s has not: there is nothing to learn the class from"
                            % (printable(folder.path), printable(unknown[0]), printable(train.path)))


def _note_left_out(tree, folders, classes, notes):
    """Notes loose images, folders without images and links that lead nowhere, in data_dir and in folders of roles."""
    folders = list({folder.path: folder for folder in folders}.values())
    loose = [folder.path for folder in folders if folder.loose]
    if loose:
        notes.append("not used, for they are in no class folder: the images directly in %s" % _listing(loose))
    barren = [path for number, folder in enumerate(folders)
              for path in _paths(folder, [name for name in folder.barren if not (number and name in classes)])]
    if barren:
        notes.append("not classes, for they hold no image that can be read: %s"
                     % shortened([printable(path) + _files_of(tree, path) for path in barren], LISTED))
    dangling = [path for folder in folders for path in _paths(folder, folder.dangling)]
    if dangling:
        notes.append("not used, for the links lead nowhere: %s" % _listing(dangling))


def _files_of(tree, path):
    """How many files of which kind a folder without images holds, in brackets, such as 500 .heic."""
    endings = collections.Counter(os.path.splitext(name)[1].lower() for name in tree.entries(path)[1])
    (ending, count), = endings.most_common(1) or [("", 0)]
    return ending and " (%d %s)" % (count, printable(ending))


def _note_sub_folders(tree, train, notes):
    """Notes classes whose images are in sub-folders alone: these may be the classes that the user means."""
    deep = [name for name in train.holding if not tree.has_images_directly(os.path.join(train.path, name))]
    if deep:
        found = ["%s (%s)" % (printable(name), _listing(tree.entries(os.path.join(train.path, name))[0], 3))
                 for name in deep[:LISTED]]
        notes.append("one class each, though all images are in sub-folders: %s; if the sub-folders are the classes, "
                     "set data_dir to the folder that holds them, such as %s"
                     % (_listing(found + deep[LISTED:]), printable(os.path.join(train.path, deep[0]))))


def _files(tree, train, roles, class_names):
    """Returns the list of (path, label, split)."""
    files, owners = [], {}

    def listed(path):
        paths = sorted(tree.files(path))
        for folder in sorted({os.path.dirname(found) for found in paths}):
            owner, before = owners.setdefault(os.path.realpath(folder), (path, folder))
            if owner != path:
                raise DataError("%s and %s are the same folder by a link, and its images would be in two classes or "
                                "splits: take the link away" % (printable(before), printable(folder)))
        return paths

    for label, name in enumerate(class_names):
        if name in train.holding:
            files += [(path, label, "train") for path in listed(os.path.join(train.path, name))]
        for role in (VALIDATION, TEST):
            if role in roles and name in roles[role].holding + roles[role].barren:
                files += [(path, label, role) for path in listed(*_paths(roles[role], [name]))]
    return files


def _paths(folder, names):
    return [os.path.join(folder.path, folder.stored.get(name, name)) for name in names]


def _listing(names, most=LISTED):
    return shortened([printable(name) for name in names], most)
