"""How is the directory of a run locked, checked and written, so that nothing in it is lost?"""

import contextlib
import glob
import json
import os
import re
import tempfile
import zipfile

import numpy as np

from support import UserError, say
from support.data import FACTS, same_data
from support.settings import shown

try:
    import fcntl
except ImportError:  # Windows: no lock between processes
    fcntl = None

CHECKPOINT = "dense.ckpt"
SAVED = ("progress.json", "result.json")  # written after a checkpoint, so that one was there
AS_PATHS = {"encoding": "utf-8", "errors": "surrogateescape"}  # of text files that hold paths, which may be any bytes
FOLDER_ONLY = ("image_size", "crop_area")  # settings without effect on data sets whose images have their own size
WEIGHTS_OF = "weights_of"  # recorded beside the settings: which run `weights` names, by a digest of its settings
SEEN_IMAGES = "seen_images.npy"  # digests of the training and validation images, uint64


def replace_file(path, write):
    """Writes a file atomically; `write` gets it, open for bytes. Raises OSError if it cannot be written."""
    try:
        with open(path + ".new", "wb") as file:
            write(file)
        os.replace(path + ".new", path)
    except OSError:
        with contextlib.suppress(OSError):
            os.remove(path + ".new")
        raise


def locked(folder, name="lock", lines=(), check=None):
    """Locks a folder for this process; returns the lock file, `name` in the folder.

    The lock ends when the returned file is closed or when the process ends, even if the process is killed.

    Args:
        folder: its path.
        name: that of the lock file.
        lines: what the file tells beside the number of the process.
        check: a function of the `lines` of the process that had the lock before, which raises UserError to leave the
            file as it is; None: any process may have the lock.
    Raises:
        UserError: another process has locked the folder.
        OSError: the file cannot be written.
    """
    lock = open(os.path.join(folder, name), "a+", **AS_PATHS)
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.readline().strip() or "(unknown)"
        lock.close()
        raise UserError("the run in %s is being trained by process %s: wait for it, or set run_name to another name"
                        % (folder, holder)) from None
    except OSError as error:  # some network file systems do not support locks
        say("%s cannot be locked (%s): do not train this run in two processes at once" % (folder, error.strerror))
    lock.seek(0)
    try:
        if check is not None:
            check(lock.read().splitlines()[1:])
    except UserError:
        lock.close()
        raise
    lock.truncate(0)
    lock.write("\n".join([str(os.getpid()), *lines, ""]))
    lock.flush()
    return lock


@contextlib.contextmanager
def alone_in(folder):
    """Keeps other exports from a folder, which gets no lock file, where the system can lock it.

    Raises:
        UserError: another process exports to it.
    """
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError("another process exports to %s: wait for it, then try again" % folder) from None
            except OSError:  # some network file systems do not support locks
                pass
        yield


class RunDirectory:
    """The directory `model_dir/run_name` of a run. As a context manager, locks it for one process at a time.

    Args:
        path: the directory.
        settings: {name: value} that identifies the run; see `support.configuration.identity`.
    Raises:
        UserError: on entering, the directory cannot be created or written, is locked by another process, or contains a
            run with other settings.
    """

    def __init__(self, path, settings):
        self.path = path
        self.settings = json.loads(json.dumps(settings))  # as read back from JSON: lists instead of tuples
        self._lock = None

    def __enter__(self):
        try:
            os.makedirs(self.path, exist_ok=True)
            self._lock = locked(self.path)
            self._remove_leftovers()
            self._check_settings()
        except OSError as error:
            self.__exit__()
            raise self._cannot_write(error) from None
        except UserError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self._lock is not None:
            self._lock.close()  # closing the file releases the lock
            self._lock = None

    def _remove_leftovers(self):
        """Removes the temporary files of interrupted saves."""
        for pattern in (CHECKPOINT + "-*.tempstate*", "checkpoint.tmp*"):
            for folder in ("", "best"):
                for leftover in glob.glob(os.path.join(glob.escape(self.path), folder, pattern)):
                    os.remove(leftover)

    def _check_settings(self):
        before = self.read_json("settings.json")
        if not (self.checkpoints() or self.checkpoints("best") or any(map(self.read_json, SAVED))):
            self.write_json("settings.json", self.settings)  # an earlier run here saved nothing
            return
        if before is None:
            raise UserError("%s has checkpoints but no readable settings.json, so they cannot be told to fit: "
                            "put it back, or set run_name to another name" % self.path)
        if "class_names" in self.settings.get("data", {}) and "class_names" not in (before.get("data") or {}):
            raise UserError("%s was trained by an earlier version, which did not save what this needs: train it again, "
                            "under another run_name" % self.path)
        settings, data = _differences(before, self.settings)
        if settings:
            raise UserError("%s holds a run with other settings (%s): give those and run_name=%s to go on with it, or "
                            "set run_name to another name"
                            % (self.path, "; ".join(settings + data), os.path.basename(self.path)))
        if data:
            raise UserError("%s holds a run on other data (%s): set run_name to another name to train on these, or "
                            "mode=evaluate to test it on them" % (self.path, "; ".join(data)))
        if before.get("data_dir") != self.settings.get("data_dir"):  # the same images at another place
            self.write_json("settings.json", dict(before, data_dir=self.settings["data_dir"]))

    def create(self):
        """Creates the directory where it is not there. Raises UserError if it cannot be created."""
        try:
            os.makedirs(self.path, exist_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error):
        return UserError("cannot write the run directory %s (%s): set model_dir to a folder that can be written"
                         % (error.filename or self.path, error.strerror))

    def read_json(self, name):
        """Returns the object in a JSON file of the directory, or None if the file is missing or damaged."""
        try:
            with open(os.path.join(self.path, name)) as file:
                content = json.load(file)
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def write_json(self, name, content):
        """Writes a JSON file of the directory atomically. Raises UserError if the file cannot be written."""
        write_json(os.path.join(self.path, name), content, "model_dir")

    def write_array(self, name, array):
        """Writes a .npy file of the directory atomically. Raises UserError if the file cannot be written."""
        path = os.path.join(self.path, name)
        try:
            replace_file(path, lambda file: np.save(file, array))
        except OSError as error:
            raise UserError("cannot write %s (%s): make room there"
                            % (path, error.strerror or error)) from None  # NumPy's errors have no strerror

    def seen_images(self):
        """Returns the digests of the images that the run was trained on or chosen by, uint64 [N]; None: unknown."""
        try:
            return np.load(os.path.join(self.path, SEEN_IMAGES))
        except (OSError, EOFError, ValueError, zipfile.BadZipFile):
            return None

    def has_seen(self, data):
        """Whether a DataSet's training and validation images are the run's; True where the run did not record them."""
        seen = self.seen_images()
        return seen is None or all(np.isin(data.digests[split], seen).all() for split in ("train", "validation"))

    def keep(self, name):
        """Renames a file before it is replaced: result.json to result-1.json, the next one to result-2.json, …"""
        path = os.path.join(self.path, name)
        base, extension = os.path.splitext(path)
        number = 1
        while os.path.exists("%s-%d%s" % (base, number, extension)):
            number += 1
        if os.path.exists(path):
            os.replace(path, "%s-%d%s" % (base, number, extension))

    def checkpoints(self, folder=""):
        """Returns [(global step, path prefix)] of the checkpoints, newest first.

        The checkpoints are found by their file names, because TensorFlow's state file may be lost or damaged.
        """
        found = set()
        for path in glob.glob(os.path.join(glob.escape(self.path), folder, CHECKPOINT + "-*")):
            match = re.match(r"^(%s-(\d+))\.(index|data-\d+-of-\d+)$" % re.escape(CHECKPOINT), os.path.basename(path))
            if match:
                found.add((int(match.group(2)), os.path.join(os.path.dirname(path), match.group(1))))
        return sorted(found, reverse=True)


def write_json(path, content, setting):
    """Writes a JSON file atomically. Symbolic links and devices (/dev/stdout) are written in place.

    Args:
        path: the file.
        content: the value to write.
        setting: name of the setting that determines the path, for the error message.
    Raises:
        UserError: the file cannot be written.
    """
    text = (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
    try:
        if _is_written_in_place(path):
            with open(path, "wb") as file:
                file.write(text)
        else:
            replace_file(path, lambda file: file.write(text))
    except OSError as error:
        raise _cannot_write_file(path, error, setting) from None


def is_file_of_answers(path):
    """Whether a file begins as those do that mode=predict writes its answers to (json=)."""
    try:
        with open(path, "rb") as file:
            return re.match(rb'\[\s*\{\s*"classes": \[', file.read(100)) is not None
    except OSError:
        return False


def check_writable(path, setting):
    """Raises UserError, as `write_json` does, if a file cannot be written. Changes nothing, and leaves no new file."""
    try:
        if os.path.isdir(path) or (os.path.isfile(path) and os.path.islink(path)):
            open(path, "ab").close()
        elif os.path.isfile(path) or not os.path.exists(path):  # no pipe, which a reader would see closed
            tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))).close()
    except OSError as error:
        raise _cannot_write_file(path, error, setting) from None


def _is_written_in_place(path):
    return os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path))


def _cannot_write_file(path, error, setting):
    return UserError("cannot write %s (%s): make room there, or set %s to a place that can be written"
                     % (path, error.strerror, setting))


# What versions did that saved all that evaluating needs, but did not have these settings yet.
UNRECORDED = {"cutout": 0, "shift_average": 0, "transition_pooling": "average", "norm_epsilon": 1e-3, "weights": "",
              "train_only": "all", "head_rate": 1.0, "class_weights": "none", "best_by": "accuracy",
              "ema_decay": 0.0, "alternate_flip": False, "scaling": 0.0, "shear": 0.0, "elastic": 0.0}


def of_earlier_versions(recorded):
    """The identifying settings of a run as this version compares them, from settings.json of any version.

    Earlier versions wrote null for what was derived or did not apply, and nothing of settings that they did not have.
    The network's name is left out: its parts count. Also left out is which run `weights` named.
    """
    instead = {"validation_size": 0.1, "transition_channels": 0, "stem_channels": 0}
    found = dict(UNRECORDED, **{name: instead.get(name) if value is None else value
                                for name, value in recorded.items()})
    if "norm_epsilon" not in recorded and found.get("stem") == "imagenet":
        found["stem"] = "imagenet_same"  # which was the only one then
    left_out = ("network", WEIGHTS_OF) + (() if found.get("dataset") == "folder" else FOLDER_ONLY)
    return {name: value for name, value in found.items() if name not in left_out}


def _differences(before, now):
    """What differs between the settings.json of two runs, as parts of a sentence: (in settings, in the data)."""
    starts = [found.get(WEIGHTS_OF) for found in (before, now)]
    before, now = of_earlier_versions(before), of_earlier_versions(now)
    data, data_dir = ([found.pop(name, None) for found in (before, now)] for name in ("data", "data_dir"))
    differing = ["%s was %s, now %s" % (name, _shown(before.get(name)), _shown(now.get(name)))
                 for name in sorted(set(before) | set(now)) if before.get(name) != now.get(name)]
    if None not in starts and starts[0] != starts[1]:
        differing.append("weights=%s is another run of that name now, and the earlier one is needed" % now["weights"])
    of_data = []
    if data[0] == data[1] or None not in data and same_data(*data):
        return differing, of_data
    left_out = {"crc32", "white_is_zero"}  # which tell nobody anything
    if None not in data and all("skipped" in facts for facts in data):
        left_out.add("skipped")  # see same_data
    for name in sorted(set().union(*filter(None, data)) - left_out):
        values = [_shown((facts or {}).get(name, "not recorded")) for facts in data]
        if values[0] != values[1]:
            of_data.append("%s: %s, now %s" % (FACTS.get(name, name), *values))
    if not differing and not of_data:
        of_data.append("the same number of images, but other images%s" % (
            ", or another version of Pillow decodes them" if before.get("dataset") == "folder" else ""))
    if None not in data_dir and data_dir[0] != data_dir[1]:
        of_data.append("data_dir was %s, now %s" % tuple(data_dir))
    return differing, of_data


def _shown(value):
    """Returns a value as text for a message, cut to 200 characters: there may be a thousand class names."""
    text = shown(value)
    return text if len(text) <= 200 else text[:197] + "..."


def run_of(checkpoint):
    """The directory of the run that a checkpoint's path belongs to, whether or not it is one of the best."""
    folder = os.path.dirname(os.path.abspath(checkpoint))
    is_best = os.path.basename(folder) == "best" and not os.path.exists(os.path.join(folder, "settings.json"))
    return os.path.dirname(folder) if is_best else folder  # a run may be called best, too


def runs_in(model_dir):
    """Returns the sorted names of the runs in a folder."""
    return sorted(os.path.basename(os.path.dirname(path))
                  for path in glob.glob(os.path.join(glob.escape(model_dir), "*", "settings.json")))
