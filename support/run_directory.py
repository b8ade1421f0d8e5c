"""The directory of one run: its lock, settings, checkpoints and results. Whatever is there is never lost."""

import glob
import json
import os
import re

import tensorflow.compat.v1 as tf

from support import UserError, say

try:
    import fcntl
except ImportError:  # Windows: no lock between processes
    fcntl = None

CHECKPOINT = "dense.ckpt"
# How restoring says that a file is damaged or missing; ValueError: the index is missing.
DAMAGED = (tf.errors.OutOfRangeError, tf.errors.DataLossError, tf.errors.NotFoundError, ValueError)


def locked(folder):
    """Takes the folder for this process, until the returned file is closed or the process ends, however it ends.

    Raises:
        UserError: another process has it.
        OSError: its file `lock` cannot be written.
    """
    lock = open(os.path.join(folder, "lock"), "a+")
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "(unknown)"
        lock.close()
        raise UserError("the run in %s is being trained by process %s: wait for it, or set run_name to another name"
                        % (folder, holder)) from None
    except OSError as error:  # some network file systems have no locks
        say("%s cannot be locked (%s): do not train this run in two processes at once" % (folder, error.strerror))
    lock.truncate(0)
    lock.write("%d\n" % os.getpid())
    lock.flush()
    return lock


class RunDirectory:
    """`model_dir/run_name`, held by one process at a time; a context manager.

    Raises:
        UserError: it cannot be made or written, another process holds it, or it holds a run with other settings.
    """

    def __init__(self, path, settings):
        self.path = path
        self.settings = json.loads(json.dumps(settings))  # as it comes back from the file: lists for tuples
        self._lock = None

    def __enter__(self):
        try:
            os.makedirs(self.path, exist_ok=True)
            self._lock = locked(self.path)
            self._remove_leftovers()
            self._check_settings()
        except OSError as error:
            self.__exit__()
            raise UserError("cannot write the run directory %s (%s): set model_dir to a folder that can be written"
                            % (self.path, error.strerror)) from None
        except UserError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self._lock is not None:
            self._lock.close()  # the lock goes with the file, also when the process is killed
            self._lock = None

    def _remove_leftovers(self):
        """Removes the temporary files of saves that were broken off."""
        for pattern in (CHECKPOINT + "-*.tempstate*", "checkpoint.tmp*"):
            for folder in ("", "best"):
                for leftover in glob.glob(os.path.join(glob.escape(self.path), folder, pattern)):
                    os.remove(leftover)

    def _check_settings(self):
        before = self.read_json("settings.json")
        if not (self.checkpoints() or self.checkpoints("best") or self.read_json("result.json")):
            self.write_json("settings.json", self.settings)  # what was there before came to nothing
            return
        if before is None:
            raise UserError("%s has checkpoints but no readable settings.json, so they cannot be told to fit: "
                            "put it back, or set run_name to another name" % self.path)
        differing = sorted(name for name in set(before) | set(self.settings)
                           if before.get(name) != self.settings.get(name))
        if differing:
            raise UserError("%s holds a run with other settings (%s): set them back, or set run_name to another name"
                            % (self.path, "; ".join("%s was %s, now %s" % (name, _shown(before.get(name)),
                                                                           _shown(self.settings.get(name)))
                                                    for name in differing)))

    def read_json(self, name):
        """The object in a JSON file of the directory, or None where it is missing or damaged."""
        try:
            with open(os.path.join(self.path, name)) as file:
                content = json.load(file)
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def write_json(self, name, content):
        """Writes a JSON file: complete under its name, or not at all. Raises UserError if it cannot."""
        write_json(os.path.join(self.path, name), content, "model_dir")

    def keep_json(self, name):
        """Gives a JSON file that is about to be written anew another name: result.json, then result-1.json, …"""
        path = os.path.join(self.path, name)
        base, extension = os.path.splitext(path)
        number = 1
        while os.path.exists("%s-%d%s" % (base, number, extension)):
            number += 1
        if os.path.exists(path):
            os.replace(path, "%s-%d%s" % (base, number, extension))

    def checkpoints(self, folder=""):
        """[(global step, prefix)], newest first, found by their files: the state file may be lost or damaged."""
        found = set()
        for path in glob.glob(os.path.join(glob.escape(self.path), folder, CHECKPOINT + "-*")):
            match = re.match(r"^(%s-(\d+))\.(index|data-\d+-of-\d+)$" % re.escape(CHECKPOINT), os.path.basename(path))
            if match:
                found.add((int(match.group(2)), os.path.join(os.path.dirname(path), match.group(1))))
        return sorted(found, reverse=True)


def write_json(path, content, setting):
    """Writes a JSON file: complete under its name, or not at all. Links and devices (/dev/stdout) are written into.

    Args:
        setting: the name of the setting that says where it goes.
    Raises:
        UserError: it cannot be written.
    """
    try:
        in_place = os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path))
        with open(path if in_place else path + ".new", "w") as file:
            json.dump(content, file, indent=2, sort_keys=True)
            file.write("\n")
        if not in_place:
            os.replace(path + ".new", path)
    except OSError as error:
        raise UserError("cannot write %s (%s): make room there, or set %s to a place that can be written"
                        % (path, error.strerror, setting)) from None


def _shown(value):
    """A value in a sentence: not a thousand class names."""
    text = str(value)
    return text if len(text) <= 200 else text[:197] + "..."


def step_of(checkpoint):
    """The global step at which a checkpoint, given by its path, was saved."""
    return int(tf.train.load_checkpoint(checkpoint).get_tensor("global_step"))


def runs_in(model_dir):
    """The names of the runs in a folder."""
    return sorted(os.path.basename(os.path.dirname(path))
                  for path in glob.glob(os.path.join(glob.escape(model_dir), "*", "settings.json")))


class Checkpoints:
    """Numbered checkpoints of a session: the newest few, and the best on validation in the folder `best`."""

    def __init__(self, directory, keep=3):
        """To be made once the graph is complete: its variables are what is saved."""
        self.directory = directory
        self.keep = keep
        # It keeps them all: what it would remove it remembers in the process alone, which may be killed.
        self.saver = tf.train.Saver(max_to_keep=None, save_relative_paths=True)
        with tf.name_scope("finite"):
            self._finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(variable)) for variable
                                          in tf.global_variables() if variable.dtype.base_dtype.is_floating])

    def save(self, session, step):
        """Saves the newest checkpoint, `dense.ckpt-<step>`."""
        self._save(session, "", step, self.keep)

    def save_best(self, session, step):
        """Saves the best checkpoint so far, `best/dense.ckpt-<step>`."""
        self._save(session, "best", step, 1)

    def _save(self, session, folder, step, keep):
        if not session.run(self._finite):  # a finite loss may still have had an infinite gradient
            raise UserError("step %d made weights infinite: lower init_learning_rate or raise epsilon; this is not "
                            "saved, the checkpoints before it are kept" % step)
        path = os.path.join(self.directory.path, folder)
        try:
            os.makedirs(path, exist_ok=True)
            self.saver.save(session, os.path.join(path, CHECKPOINT), global_step=step, write_meta_graph=False)
            # Those of later steps are damaged ones, which were skipped: they do not count.
            past = [prefix for saved, prefix in self.directory.checkpoints(folder) if saved <= step]
            for prefix in past[keep:]:
                tf.train.remove_checkpoint(prefix)
        except (OSError, ValueError, tf.errors.OpError) as error:
            problem = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
            raise UserError("cannot save a checkpoint in %s (%s): make room there; the same command then goes on from "
                            "the newest one" % (path, problem.splitlines()[0])) from None

    def restore_newest(self, session):
        """Restores the newest intact checkpoint, the best on validation among them, saying which ones were skipped.

        Returns:
            whether there was one.
        Raises:
            UserError: there are checkpoints, but none is intact, or they cannot be read.
        """
        found = sorted(self.directory.checkpoints() + self.directory.checkpoints("best"),
                       key=lambda entry: entry[0], reverse=True)
        if self._restore_first(session, found):
            return True
        # progress.json is written after each save: without it, what was found is a first save that was broken off.
        if found and os.path.exists(os.path.join(self.directory.path, "progress.json")):
            raise UserError("no checkpoint in %s is intact, and nothing is started afresh over them: "
                            "move the folder away, or set run_name to another name" % self.directory.path)
        return False

    def restore_for_use(self, session, chosen=None):
        """Restores the best checkpoint on validation, or the newest one where there is none that is intact.

        Args:
            chosen: the one to restore instead: a path, or a name in the run's directory, `dense.ckpt-<step>`.
        Returns:
            the path of the one that was restored.
        Raises:
            UserError: there is none that is intact.
        """
        found = self.directory.checkpoints("best") + self.directory.checkpoints()
        if not found:
            raise UserError("%s has no checkpoint yet: leave mode out to go on with its training" % self.directory.path)
        if chosen:
            name = re.sub(r"\.(index|data-\d+-of-\d+)$", "", chosen)
            paths = [os.path.join(folder, name) for folder in ("", self.directory.path,
                                                               os.path.join(self.directory.path, "best"))]
            known = ", ".join(path for _, path in found)
            found = [(0, path) for path in paths if glob.glob(glob.escape(path) + ".*")][:1]
            if not found:
                raise UserError("there is no checkpoint %s: those of this run are %s" % (chosen, known))
        restored = self._restore_first(session, found)
        if not restored:
            raise UserError("%s is damaged or of another network: leave checkpoint out for the best intact one" % chosen
                            if chosen else "no checkpoint of %s is intact: train the run again, under another run_name"
                            % self.directory.path)
        return restored

    def _restore_first(self, session, found):
        """Restores the first intact one of [(step, path)]; returns its path, or None."""
        for _, prefix in found:
            try:
                self.saver.restore(session, prefix)
            except DAMAGED as error:
                say("skipped %s: it is damaged or incomplete (%s)" % (prefix, type(error).__name__))
                continue
            except tf.errors.OpError as error:
                raise UserError("cannot restore %s (%s): if it was saved by another version of the network, set "
                                "run_name to another name" % (prefix, error.message.splitlines()[0])) from None
            return prefix
        return None
