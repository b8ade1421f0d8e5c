"""How are checkpoints saved, pruned and restored, and damaged checkpoints skipped?"""

import glob
import os
import re

import numpy as np
import tensorflow.compat.v1 as tf

from support import UserError, cause_of, say
from support.file_reading import shortened
from support.run_directory import CHECKPOINT, RunDirectory, of_earlier_versions, run_of
from support.variables import saver_of
from support.weight_average import averages_first

ADAMS_POWERS = ("beta1_power", "beta2_power")  # how the names of two variables end
LEAST_VALIDATION = 30  # images; fewer say nothing about which weights are better
# What checkpoints of two runs can differ in besides the shapes of their weights, {name in settings.json: as a message
# calls it}
OF_A_NETWORK = dict(class_names="classes are", image_shape="images have the shape", pixel_range="pixel_range is",
                    crop_area="crop_area is", stem="stem is", transition_pooling="transition_pooling is",
                    norm_epsilon="norm_epsilon is")
# The errors that restoring raises for a damaged or missing file; ValueError: the index file is missing.
DAMAGED = (tf.errors.OutOfRangeError, tf.errors.DataLossError, tf.errors.NotFoundError, ValueError)
AFTER_DIVERGING = "lower init_learning_rate, or with optimizer=adam raise epsilon"  # what the user can do


def step_of(checkpoint):
    """Returns the global step at which a checkpoint was saved. `checkpoint` is its path."""
    return int(tf.train.load_checkpoint(checkpoint).get_tensor("global_step"))


class Checkpoints:
    """Numbered checkpoints of a session: the newest ones, and in the folder `best` the best one on validation.

    Create the object after all variables of the graph.

    Args:
        directory: the `support.run_directory.RunDirectory`.
        keep: number of newest checkpoints to keep.
    """

    def __init__(self, directory, keep=3):
        self.directory = directory
        self.keep = keep
        # The Saver deletes nothing: it would lose its list of old checkpoints when the process ends. `_save` does it.
        self._variables = {variable.op.name: variable for variable in tf.global_variables()}
        self.saver = saver_of(self._variables, save_relative_paths=True)
        self._savers = {}  # for checkpoints with other names, by these names
        self._floating = [variable for variable in self._variables.values() if variable.dtype.base_dtype.is_floating]

    def save(self, session, step):
        """Saves the newest checkpoint, `dense.ckpt-<step>`."""
        self._save(session, "", step, self.keep)

    def save_best(self, session, step):
        """Saves the best checkpoint so far, `best/dense.ckpt-<step>`."""
        self._save(session, "best", step, 1)

    def _save(self, session, folder, step, keep):
        # A finite loss can have an infinite gradient. Operations for this take seconds to build in a deep network.
        if not all(np.isfinite(value).all() for value in session.run(self._floating)):
            raise UserError("step %d made weights infinite: %s; this is not saved, earlier checkpoints are kept"
                            % (step, AFTER_DIVERGING))
        path = os.path.join(self.directory.path, folder)
        try:
            os.makedirs(path, exist_ok=True)
            self.saver.save(session, os.path.join(path, CHECKPOINT), global_step=step, write_meta_graph=False)
            # Checkpoints of later steps are damaged, and restoring skipped them. They are not counted.
            past = [prefix for saved, prefix in self.directory.checkpoints(folder) if saved <= step]
            for prefix in past[keep:]:
                tf.train.remove_checkpoint(prefix)
        except (OSError, ValueError, tf.errors.OpError) as error:
            problem = cause_of(error) if isinstance(error, tf.errors.OpError) else error
            raise UserError("cannot save a checkpoint in %s (%s): free disk space, or make the folder writable; the "
                            "same command then resumes from the newest one"
                            % (path, getattr(error, "strerror", None) or problem)) from None

    def restore_newest(self, session):
        """Restores the newest intact checkpoint, including those in `best`, and prints which ones are skipped.

        Returns:
            whether a checkpoint was restored.
        Raises:
            UserError: there are checkpoints, but none is intact, or they cannot be read.
        """
        found = sorted(self.directory.checkpoints() + self.directory.checkpoints("best"),
                       key=lambda entry: entry[0], reverse=True)
        if self._restore_first(session, found):
            return True
        # progress.json is written after each save. Without it, there was none, or files of an interrupted first one.
        if os.path.exists(os.path.join(self.directory.path, "progress.json")):
            raise UserError("no intact checkpoint is left in %s, and nothing is started afresh over the run's "
                            "other files: move the folder away, or set run_name to another name" % self.directory.path)
        return False

    def restore_best(self, session, validation_images):
        """Restores the best checkpoint on validation, by which a run is judged; returns its step.

        None, and nothing is restored, if there is no intact one or with fewer than LEAST_VALIDATION images.
        """
        found = self.directory.checkpoints("best") if validation_images >= LEAST_VALIDATION else []
        return int(session.run(tf.train.get_global_step())) if self._restore_first(session, found) else None

    def restore_for_use(self, session, chosen="best", validation_images=LEAST_VALIDATION):
        """Restores the weights by which the run is judged: the best on validation, else the newest intact ones.

        Args:
            session: the session.
            chosen: "best", or the checkpoint to restore instead: a path, or a name in the run's directory,
                `dense.ckpt-<step>`.
            validation_images: number of the run's validation images. With fewer than LEAST_VALIDATION the newest
                checkpoint is used, and a line says so.
        Returns:
            the path of the restored checkpoint.
        Raises:
            UserError: there is no intact checkpoint, or the chosen checkpoint is not found or not intact.
        """
        best, newest = self.directory.checkpoints("best"), self.directory.checkpoints()
        if not best and not newest:
            raise UserError("%s has no checkpoint yet: run without mode= to continue its training"
                            % self.directory.path)
        found = best + newest
        if validation_images < LEAST_VALIDATION:
            found = newest + best
            if best and chosen == "best":
                say("%d validation images are too few to choose weights by: the newest are used" % validation_images)
        if chosen != "best":
            name = re.sub(r"\.(index|data-\d+-of-\d+)$", "", chosen)
            paths = [os.path.join(folder, name) for folder in ("", self.directory.path,
                                                               os.path.join(self.directory.path, "best"))]
            known = ", ".join(path for _, path in found)
            found = [(0, path) for path in paths if glob.glob(glob.escape(path) + ".*")][:1]
            if not found:
                raise UserError("there is no checkpoint %s: this run has %s" % (chosen, known))
            self._check_run(found[0][1], chosen)
        restored = self._restore_first(session, found)
        if not restored:
            if chosen == "best":
                raise UserError("no checkpoint of %s is intact: train the run again, under another run_name"
                                % self.directory.path)
            raise UserError("%s is damaged or of another network: leave checkpoint out for the best intact one"
                            % chosen)
        return restored

    def _check_run(self, prefix, chosen):
        """Raises UserError if a checkpoint is of another run, of other classes, another network or other images."""
        folder = run_of(prefix)
        theirs, own = (directory.read_json("settings.json") or {} for directory in (
            RunDirectory(folder, {}), self.directory))
        if not (theirs and own):
            return
        theirs, own = (dict(of_earlier_versions(recorded), **recorded.get("data", {})) for recorded in (theirs, own))
        for name, called in OF_A_NETWORK.items():
            values = theirs.get(name), own.get(name)
            if None not in values and values[0] != values[1]:
                values = [shortened(value) if isinstance(value, list) else value for value in values]
                raise UserError("checkpoint=%s is of the run in %s, whose %s %s, not %s: set run_name to that run"
                                % (chosen, folder, called, *values))

    def _restore_first(self, session, found):
        """Restores the first intact checkpoint in [(step, path)]; returns its path, or None."""
        for _, prefix in found:
            try:
                self._saver_for(prefix).restore(session, prefix)
            except DAMAGED as error:
                say("skipped %s: it is damaged or incomplete (%s)" % (prefix, type(error).__name__))
                continue
            except tf.errors.OpError as error:
                advice = {tf.errors.PermissionDeniedError: ": make it readable",
                          tf.errors.InvalidArgumentError: ": if it was saved by another version of the network, set "
                          "run_name to another name"}.get(type(error), "")
                raise UserError("cannot restore %s (%s)%s" % (prefix, cause_of(error), advice)) from None
            return prefix
        return None

    def _saver_for(self, prefix):
        """Returns the Saver for a checkpoint, which may have other names than the variables of the graph.

        A graph without averages of the weights reads the averages as its weights. Earlier versions numbered the blocks
        of some networks from 1, not 0. Two of Adam's variables are called otherwise by TensorFlow 1 in float16.
        """
        try:
            saved = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
        except (tf.errors.OpError, ValueError, IndexError, RuntimeError):
            return self.saver  # damaged: restoring will report it
        variables = self._variables
        from_1 = not any(name.startswith("dense_0/") for name in saved) and any(
            name.startswith("dense_1/") for name in saved)
        names = {name: re.sub(r"^(dense|trans)_(\d+)/", lambda found: "%s_%d/" % (
            found.group(1), int(found.group(2)) + from_1), name) for name in variables}
        if len(averages_first(variables)) == len(variables):
            read = averages_first(saved)
            names = {name: read.get(other, other) for name, other in names.items()}
        for name, other in names.items():
            theirs, shape = saved.get(other), variables[name].shape
            if theirs is not None and not shape.is_compatible_with(theirs):  # TensorFlow would restore it
                raise UserError("cannot restore %s: its %s has the shape %s, not %s: set run_name to its run, or to "
                                "a new name" % (prefix, other, theirs, shape.as_list()))
        powers = {name.rpartition("/")[2]: name for name in saved if name.endswith(ADAMS_POWERS)}
        names = {name: powers.get(other.rpartition("/")[2], other) for name, other in names.items()}
        if all(name == other for name, other in names.items()):
            return self.saver
        key = tuple(names.values())
        if key not in self._savers:
            self._savers[key] = saver_of({other: variables[name] for name, other in names.items()})
        return self._savers[key]
