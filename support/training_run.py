"""What happens around the training steps of a run: it is resumed, timed, reported, saved, stopped and finished."""

import contextlib
import json
import math
import os
import signal
import time
import types

import numpy as np
import tensorflow.compat.v1 as tf

from support import UserError, pretrained, say
from support.appearance import appearance_of
from support.checkpoints import AFTER_DIVERGING, LEAST_VALIDATION, Checkpoints
from support.configuration import identity
from support.curves import Curves
from support.data import FACTS, normalize_by, repeated, same_data, say_repeated
from support.evaluation import accuracies_as_text, balanced_is_asked_for
from support.explanations import feature_reuse, kernels_of
from support.interruption import Interruption, Stopped
from support.machine import PRECISIONS, fast_precision
from support.networks import extent_of_maps, final_side
from support.run_directory import SEEN_IMAGES, WEIGHTS_OF, RunDirectory
from support.tensorboard import RunLogs
from support.terminal import Progress, show_header
from support.workers import Cluster

HISTOGRAMS = 20  # times in a run, at most
WAITING = 0.02  # share of the training time: if steps wait for their images for longer, the run says so
POINT_STEPS = 50  # a point of the training curves is the mean of so many steps, or of those of a shorter epoch


def histograms_are_due(epoch, total_epochs):
    """Whether TensorBoard gets histograms after an epoch (from 1): at most HISTOGRAMS times, evenly spread."""
    return epoch % math.ceil(total_epochs / HISTOGRAMS) == 0


def build_recorded(mean, deviation):
    """Builds what is saved with the weights: the best score so far on validation, and the normalization of images.

    Args:
        mean, deviation: those of the images, float32 [C].
    Returns:
        a namespace: the variable `best_score`; the placeholder `new_best`, and the operation `set_best` that takes it.
    """
    # The name in checkpoints is that of earlier versions.
    best_score = tf.get_variable("best_accuracy", [], tf.float64, tf.zeros_initializer(), trainable=False)
    new_best = tf.placeholder(tf.float64, [], "new_best")
    with tf.variable_scope("normalization"):
        tf.get_variable("mean", initializer=mean, trainable=False)
        tf.get_variable("deviation", initializer=deviation, trainable=False)
    return types.SimpleNamespace(best_score=best_score, new_best=new_best, set_best=best_score.assign(new_best))


class TrainingRun:
    """One run of the program's training, in this process; a context manager that holds the run's directory.

    The process that is the chief writes checkpoints and logs and reports. Every worker calls the same methods.

    Args:
        config: the settings, of `support.configuration.choose`. An automatic precision is resolved in it, and a
            `batch_size` that is more than the training images is made smaller.
        data: the `support.data.DataSet`.
    Attributes:
        cluster: the `support.workers.Cluster`.
        steps_per_epoch, total_steps: as derived from the data and the settings.
        finished: whether the run had been trained to its end before.
        result: the content of the run's result.json, once it is finished; None in workers that are not the chief.
    Raises:
        UserError: a batch cannot be divided, or is too small for the network; the workers differ; the directory cannot
            be written, is in use, or holds a run with other settings.
    """

    def __init__(self, config, data):
        self.config, self.data = config, data
        self._check_start()
        # Maps of one pixel: a single image would be normalized to zero, whatever it shows.
        least = 2 if final_side(config, data.image_shape) == 1 else 1
        self.cluster = Cluster(config.batch_size, config.devices, config.sync_batch_norm, config.worker_timeout,
                               os.environ.get("TF_CONFIG", ""), least, len(data.train))
        self.steps_per_epoch = len(data.train) // self.cluster.batch_size
        self.total_steps = self.steps_per_epoch * config.total_epochs
        self.result, self.finished = None, False
        if self.cluster.is_chief:
            say_repeated(data)
        fingerprint = data.fingerprint()
        self._go_on_with_earlier_name(fingerprint)
        self._folder = os.path.join(config.model_dir, config.run_name)
        self._start_workers(fingerprint)
        self._settings = identity(config)
        self._identity = dict(self._settings, data=fingerprint)  # what settings.json records
        if config.dataset != "digits":  # which come with a package
            self._identity["data_dir"] = os.path.abspath(config.data_dir)
        if config.starting_point is not None and config.starting_point.run_digest:
            self._identity[WEIGHTS_OF] = config.starting_point.run_digest
        self._fit_batch()
        self._directory = RunDirectory(self._folder, self._identity) if self.cluster.is_chief else None
        self._logs = self._curves = self._checkpoints = self._net = None
        self._is_best = False  # whether the session's weights are the best so far on validation, and not yet saved so
        self._with_balanced = balanced_is_asked_for(config)
        self._interruption = Interruption()
        self._context = contextlib.ExitStack()
        self._train_seconds, self._timed_steps, self._waited_seconds = 0.0, 0, 0.0
        self._point = [0.0, 0.0, 0]  # sums of loss and accuracy, and their number, since the last point of the curves

    def _check_start(self):
        """Normalizes the images as the run's `weights` need them. Raises UserError for what cannot begin."""
        start, config = self.config.starting_point, self.config
        for name in ("model_dir", "log_dir"):
            folder = os.path.join(getattr(config, name), config.run_name)
            if config.dataset == "folder" and os.path.realpath(folder) == os.path.realpath(config.data_dir):
                raise UserError("the run would be written among the images, into %s: set %s to another folder"
                                % (folder, name))
        if start is None and config.train_only != "all":
            raise UserError("train_only=%s freezes layers that have learned nothing: give weights= to start from, or "
                            "leave it out" % config.train_only)
        if start is not None:
            channels = self.data.image_shape[2]
            if len(start.mean) != channels:
                raise UserError("weights=%s take images with %d channel%s, those of %s have %d: give other weights" % (
                    config.weights, len(start.mean), "s" if len(start.mean) > 1 else "",
                    config.data_dir if config.dataset == "folder" else config.dataset, channels))
            normalize_by(self.data, start.mean, start.deviation)
            scales = start.pixel_range, self.data.pixel_range
            if None not in scales and list(scales[0]) != list(scales[1]):
                say("the weights were trained on values %g to %g as black to white, here it is %g to %g: "
                    "pixel_range=%g,%g has them see the same" % (*scales[0], *scales[1], *scales[0]))

    def _go_on_with_earlier_name(self, fingerprint):
        """Keeps the name of a run on these data that an earlier version made; it named all folders' runs alike."""
        config = self.config
        earlier = config.earlier_run_name
        if earlier and not os.path.exists(os.path.join(config.model_dir, config.run_name, "settings.json")):
            recorded = RunDirectory(os.path.join(config.model_dir, earlier), {}).read_json("settings.json") or {}
            if same_data(recorded.get("data", {}), fingerprint):
                config.run_name = earlier

    def _start_workers(self, fingerprint):
        """Connects the workers, checks that they fit together, and resolves an automatic precision alike in all.

        A run keeps the precision that it began with, wherever it is resumed.
        """
        cluster, config = self.cluster, self.config
        cluster.start(cluster.session_config())
        facts = dict(identity(config), total_epochs=config.total_epochs, test_every_epoch=config.test_every_epoch)
        facts.update({FACTS.get(name, name): value for name, value in fingerprint.items()})
        facts["images in a step"] = cluster.batch_size
        # Later patch releases work together. The workers' addresses may differ: a machine has several names.
        facts["TensorFlow"] = ".".join(tf.VERSION.split(".")[:2])
        if config.sync_batch_norm:  # then the replicas sum values within the network, in the order of its operations
            facts.update(devices=cluster.devices, memory_efficient=config.memory_efficient)
        cluster.compare(facts)
        if config.precision == "auto":
            recorded = (RunDirectory(self._folder, {}).read_json("settings.json") or {}).get("precision")
            config.precision = cluster.from_chief(recorded if recorded in PRECISIONS else fast_precision())
            config.origins["precision"] = "auto"

    def _fit_batch(self):
        """Makes a batch that is more than the training images smaller. The run's identity keeps the given size."""
        config = self.config
        if self.cluster.batch_size != config.batch_size:
            if self.cluster.is_chief:
                say("batch_size=%d is more than the %d training images: each step takes %d"
                    % (config.batch_size, len(self.data.train), self.cluster.batch_size))
            config.batch_size = self.cluster.batch_size
            config.origins["batch_size"] = "as many as there are"

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            if self._directory is not None:
                stack.enter_context(self._directory)
            stack.enter_context(self._interruption)
            self._context = stack.pop_all()
        return self

    def __exit__(self, *_):
        if self._logs is not None:
            self._progress.close()
            self._logs.close()
        self._context.close()

    @contextlib.contextmanager
    def session(self, net):
        """A context: a session of the default graph, with the variables of the newest checkpoint or initial ones.

        Args:
            net: what `Densenet.build_graph` built.
        """
        self._net = net
        cluster, config = self.cluster, self.config
        if cluster.is_chief:
            self._checkpoints = Checkpoints(self._directory)
        with cluster.watched(), tf.Session(cluster.target, config=cluster.session_config()) as sess:
            sess.run(net.initialize)
            if cluster.is_chief and not self._checkpoints.restore_newest(sess) and config.starting_point:
                say(pretrained.start_from(sess, config.starting_point.read(config.cache_dir), self.data.class_names))
                self._say_seen()
            cluster.copy_from_chief(sess)
            normalize_by(self.data, *sess.run(tf.global_variables("normalization/")))  # as the run began
            yield sess

    def _say_seen(self):
        """Says how many images of other splits the weights that the run starts from were trained on or chosen by."""
        digests, seen = self.data.digests, self.config.starting_point.seen
        if seen is None:
            return
        counts = repeated(self.data, seen)
        if counts == {"validation": len(digests["validation"]), "test": 0}:
            return  # the splits are those of the weights
        for split in [split for split in counts if counts[split]]:
            say("%d of the %d %s images are among those that weights=%s was trained on or chosen by: the accuracy is "
                "too high by them; keep these images in a folder of their own"
                % (counts[split], len(digests[split]), split, self.config.weights))

    def begin(self, sess):
        """The step to go on from. Starts the reports, or where the run is finished, says so and sets `finished`.

        Raises:
            UserError: `total_epochs` are too few, as in `_is_finished`; the run's splits were others; the logs cannot
                be written or are of another run.
        """
        step = int(sess.run(self._net.global_step))
        if self._is_finished(sess, step):
            return self.total_steps
        other = bool(step) and self.cluster.is_chief and not self._directory.has_seen(self.data)
        if self.cluster.total(sess, [other])[0]:  # in every worker
            raise UserError("%s holds a run on other data (as many images, but other ones for training, validation and "
                            "testing): set run_name to another name to train on these" % self._folder)
        if self.cluster.is_chief:
            self._begin_reports(sess, step)
        self._last_save = self._epoch_started = time.monotonic()
        self._clock = None  # the first step is not timed: it chooses kernels
        self._begin_epoch()
        return step

    def _is_finished(self, sess, step):
        """Whether a run at `step` is finished. Only a `total_epochs` that was given or edited extends a finished run.

        Raises:
            UserError: in every worker, the given `total_epochs` are fewer than were trained; or none are given, and a
                run that was to be trained for more has been trained for the usual ones.
        """
        config = self.config
        result, progress = (self._directory.read_json(name) if self._directory else None
                            for name in ("result.json", "progress.json"))
        meant = (progress or {}).get("total_epochs", config.total_epochs)
        finished = bool(result) and step >= result.get("steps", step)
        asked = "total_epochs" in config.edited
        too_few = step > self.total_steps if asked else (
            not finished and step >= self.total_steps and meant > config.total_epochs)
        stop = finished and not (asked and step < self.total_steps)
        finished, too_few, stop = (count > 0 for count in self.cluster.total(  # the chief decides
            sess, [self.cluster.is_chief and flag for flag in (finished, too_few, stop)]))
        if too_few:
            if not asked:
                raise UserError(
                    "%s was stopped on its way to more than %d epochs: give total_epochs%s to go on with it, or set "
                    "run_name to another name for a new run" % (
                        self._folder, config.total_epochs, "=%d" % meant if self._directory else " as then"))
            advice = "leave total_epochs out"
            if not finished or "total_epochs" not in config.given:
                advice = "give total_epochs=%d" % math.ceil(step / self.steps_per_epoch)
            advice += " to see its result" if finished else " or more to go on with it"
            raise UserError("total_epochs=%d is less than what %s was trained for (%s epochs): %s, or set run_name to "
                            "another name for a new run" % (
                                config.total_epochs, self._folder, "%g" % round(step / self.steps_per_epoch, 1),
                                advice))
        if stop:
            self.result, self.finished = result, True
            if result:
                accuracies = (result.get("test_" + name) for name in ("accuracy", "balanced_accuracy",
                                                                      "top_5_accuracy"))
                say("%s is finished: %d epochs, test %s (%s); to train it further, give total_epochs above %d" % (
                    self._folder, result["epochs"],
                    accuracies_as_text(self.data.test.labels, self._with_balanced, *accuracies),
                    os.path.join(self._folder, "result.json"), result["epochs"]))
        return stop

    def _begin_reports(self, sess, step):
        config = self.config
        self._progress = Progress(self.steps_per_epoch, config.total_epochs)
        self._logs = RunLogs(config.log_dir, config.run_name, self._folder,
                             extent_of_maps(config, self.data.image_shape[0]))
        gpus = [device.name for device in sess.list_devices() if device.device_type == "GPU"]
        show_header(config, self.data, self._net.parameters, self.cluster, gpus, self._folder, self._logs.folder)
        self._record_images(step)
        before = self._directory.read_json("progress.json") or dict(replicas=self.cluster.count)
        if step:
            self._train_seconds, self._timed_steps = before.get("train_seconds", 0.0), before.get("timed_steps", 0)
            self._waited_seconds = before.get("waited_seconds", 0.0)
            say("resuming after step %d, epoch %.1f of %d"
                % (step, step / self.steps_per_epoch, config.total_epochs))
            epochs, replicas = before.get("total_epochs", config.total_epochs), before.get("replicas", 1)
            if epochs != config.total_epochs:
                say("total_epochs was %d and is now %d: the learning-rate schedule now ends there"
                    % (epochs, config.total_epochs))
            if replicas != self.cluster.count:
                say("%d device%s shared each batch until then, %d from now on: rounding, dropout masks and batch "
                    "normalization differ" % (replicas, "s" if replicas > 1 else "", self.cluster.count))
        if "best_by" in config.edited and len(self.data.validation) < LEAST_VALIDATION:
            say("best_by=%s has no effect: %d validation images are too few to choose weights by, which needs %d"
                % (config.best_by, len(self.data.validation), LEAST_VALIDATION))
        if config.trace_step and not step < config.trace_step <= self.total_steps:
            say("trace_step=%d has no effect: steps %d to %d are trained" % (
                config.trace_step, step + 1, self.total_steps))
        self._curves = Curves(os.path.join(self._folder, "curves.csv"), step)
        self._logs.open(step, sess.graph, dict(self._settings, total_epochs=config.total_epochs),
                        tested=step == self.total_steps and self._directory.read_json("result.json") is None)
        self._directory.keep("result.json")  # of fewer epochs, where the run goes on

    def _record_images(self, step):
        """Writes what the other modes compare images with: what the training images look like, and which they were.

        Those that the weights at the start were trained on or chosen by belong to the latter.
        """
        if not step or self._directory.read_json("appearance.json") is None:
            self._directory.write_json("appearance.json", appearance_of(self.data.train.images))
        start = self.config.starting_point
        seen = [self.data.digests[split] for split in ("train", "validation")]
        seen += [start.seen] if start and start.seen is not None else []
        self._directory.write_array(SEEN_IMAGES, np.concatenate(seen))

    # During an epoch

    def trace_options(self, step):
        """Keyword arguments of `sess.run` by which step number `step` (from 1) is traced, if it is to be."""
        if step != self.config.trace_step or not self.cluster.is_chief:
            return {}
        self._trace = tf.RunMetadata()
        return {"options": tf.RunOptions(trace_level=tf.RunOptions.FULL_TRACE), "run_metadata": self._trace}

    def waited(self, seconds):
        """Counts the seconds for which a step has waited for its images."""
        if self._clock is not None:
            self._waited_seconds += seconds

    def step_done(self, step, loss, accuracy, rate):
        """Reports training step number `step` (from 1).

        Raises:
            UserError: the loss is not finite.
        """
        now = time.monotonic()
        if not math.isfinite(loss):
            raise UserError("the loss is %s at step %d, epoch %d, learning rate %g: %s; earlier checkpoints are kept"
                            % (loss, step, (step - 1) // self.steps_per_epoch + 1, rate, AFTER_DIVERGING))
        if self._clock is not None:
            self._train_seconds += now - self._clock
            self._timed_steps += 1
        self._clock = now
        self._epoch = [total + value for total, value in zip(self._epoch, (loss, accuracy, 1))]
        self._rate = rate
        if not self.cluster.is_chief:
            return
        self._point = [total + value for total, value in zip(self._point, (loss, accuracy, 1))]
        if step % min(POINT_STEPS, self.steps_per_epoch) == 0:
            self._logs.scalars("train", step, loss=self._point[0] / self._point[2],
                               accuracy=self._point[1] / self._point[2], learning_rate=rate,
                               images_per_second=self._images_per_second())
            self._point = [0.0, 0.0, 0]
        if step == self.config.trace_step:
            self._logs.trace(step, self._trace)
        self._progress.step(step, loss)

    def stop_request(self):
        """What a training step is fed with: the number of the signal that asks this process to stop, or 0."""
        return self._interruption.signal_number or 0

    def must_save(self, stop):
        """Whether to save in the middle of an epoch: for a signal, after `checkpoint_minutes`, or if logs are full.

        `stop`: see `_stop_signal`.
        """
        if self._stop_signal(stop) or not self.cluster.is_chief:
            return bool(self._stop_signal(stop))
        return bool(self._logs.problem) or time.monotonic() - self._last_save > 60 * self.config.checkpoint_minutes

    def save(self, sess, step):
        """Saves the newest checkpoint. Raises UserError if it or the logs cannot be written."""
        if self.cluster.is_chief:
            # After the reports, which a run that resumes from it would skip, and before the newest, which records it
            if self._is_best:
                self._checkpoints.save_best(sess, step)
                self._is_best = False
            self._checkpoints.save(sess, step)
            self._directory.write_json("progress.json", {  # not in the checkpoint, which has no wall-clock values
                "step": step, "total_epochs": self.config.total_epochs, "replicas": self.cluster.count,
                "train_seconds": self._train_seconds, "timed_steps": self._timed_steps,
                "waited_seconds": self._waited_seconds})
            self._logs.stop_if_it_cannot_write()
            self._curves.stop_if_it_cannot_write()
        self._last_save = self._clock = time.monotonic()

    def end_if_asked(self, sess, step, stop):
        """Raises Stopped if a signal asked this process or, by `stop`, another worker to stop: see `_stop_signal`."""
        number = self._stop_signal(stop)
        if number:
            self.cluster.leave(sess)
            raise Stopped(number, "stopped after the run was finished" if self.result else
                          "stopped and saved at step %d of %d: the same command goes on from there"
                          % (step, self.total_steps))

    def _stop_signal(self, stop):
        """The signal by which this process is to stop, or None.

        `stop`: whether the last step's result says that any worker was asked to stop. With several workers only this
        counts, so that all stop after the same step.
        """
        number = self._interruption.signal_number
        if self.cluster.alone:
            return number
        return (number or signal.SIGTERM) if stop else None

    # After an epoch

    def evaluated(self, sess, split, step, evaluation, weights_of=None):
        """Reports an Evaluation of a split after step `step`. The best one on validation so far is saved by `save`.

        Args:
            weights_of: the step of the evaluated weights; None: `step`.
        Raises:
            UserError: the loss is not finite.
        """
        if not math.isfinite(evaluation.loss):
            raise UserError("the %s loss is %s after step %d: %s; earlier checkpoints are kept"
                            % (split, evaluation.loss, step, AFTER_DIVERGING))
        self._evaluations[split] = evaluation
        if self.cluster.is_chief:
            self._logs.evaluation(split, step, evaluation, getattr(self.data, split).images, self.data.class_names,
                                  weights_of)
        score, recorded = evaluation.score(self.config.best_by), self._net.recorded
        if split == "validation" and score >= sess.run(recorded.best_score):  # ties: the later one
            sess.run(recorded.set_best, {recorded.new_best: score})
            self._is_best = True

    def epoch_done(self, sess, step):
        """Reports the epoch that ended with step `step`."""
        epoch = step // self.steps_per_epoch
        if self.cluster.is_chief:
            if histograms_are_due(epoch, self.config.total_epochs):
                self._logs.histograms(step, sess.run(self._net.histograms))
            loss, accuracy, count = self._epoch
            loss, accuracy = loss / max(1, count), accuracy / max(1, count)
            now = time.monotonic()
            seconds, speed = now - self._epoch_started, self._images_per_second(self._before_epoch)
            self._progress.epoch(epoch, loss, accuracy, self._evaluations, seconds, speed, self._with_balanced)
            row = {"%s_%s" % (split, name): getattr(evaluation, name)
                   for split, evaluation in self._evaluations.items()
                   for name in ("loss", "accuracy", "balanced_accuracy")}
            self._curves.add(epoch=epoch, step=step, learning_rate=self._rate, train_loss=loss,
                             train_accuracy=accuracy, seconds=seconds, images_per_second=speed, **row)
            self._epoch_started = now
        self._begin_epoch()

    def restore_best(self, sess):
        """Puts the weights by which the run is judged into the session, see `Checkpoints.restore_best`."""
        self._judged = None
        if self.cluster.is_chief:
            self._judged = self._checkpoints.restore_best(sess, len(self.data.validation))
        self.cluster.copy_from_chief(sess)

    def finish(self, sess, step, evaluation):
        """Writes and prints the result of the test after the last step, and sets `result`.

        Raises:
            Stopped: a signal came during the test.
        """
        if self.cluster.is_chief:
            best, count = self._judged, len(self.data.validation)
            weights_of = step if best is None else best
            self.evaluated(sess, "test", step, evaluation, weights_of)
            self._logs.reuse(weights_of, feature_reuse(kernels_of(sess), self.config.blocks, self.config.growth_k,
                                                       self.config.bottleneck))
            if 0 < count < LEAST_VALIDATION:
                say("%d validation images are too few to choose weights by: the last ones are tested" % count)
            result = {
                "dataset": self.config.dataset,
                "parameters": self._net.parameters,
                "epochs": step // self.steps_per_epoch,
                "steps": step,
                "test_accuracy": float(evaluation.accuracy),
                "test_loss": float(evaluation.loss),
                "test_balanced_accuracy": evaluation.balanced_accuracy,
                "test_class_recall": dict(zip(self.data.class_names, evaluation.class_recall())),
                "checkpoint": "dense.ckpt-%d" % step if best is None else "best/dense.ckpt-%d" % best,
                "train_seconds": round(self._train_seconds, 3),
                "images_per_second": round(self._images_per_second(), 1),
                "tensorflow": tf.VERSION,
                "hyperparameters": dict(self._settings, total_epochs=self.config.total_epochs),
            }
            if evaluation.top_5_accuracy is not None:
                result["test_top_5_accuracy"] = evaluation.top_5_accuracy
            self.result = json.loads(json.dumps(result))  # of plain types, as when it is read again
            self._directory.write_json("result.json", self.result)
            say("test %s, loss %.4f, of the %s weights, after epoch %d (%s)" % (
                evaluation.accuracies(self._with_balanced), evaluation.loss, "last" if best is None else "best",
                (best or step) // self.steps_per_epoch, os.path.join(self._folder, "result.json")))
            if self._waited_seconds > WAITING * self._train_seconds:
                say("for %.0f%% of the training time, steps waited for their images: %s cannot keep up" % (
                    100 * self._waited_seconds / self._train_seconds,
                    "augmentation, or the disk of cache_dir," if self.config.dataset == "folder" else "augmentation"))
            self._logs.end(step)
            self._logs.stop_if_it_cannot_write()
            if self.cluster.alone:  # else a script that trains several runs would go on
                self.end_if_asked(sess, step, stop=0)

    def _begin_epoch(self):
        self._epoch = [0.0, 0.0, 0]  # as _point, of the epoch
        self._before_epoch = self._train_seconds, self._timed_steps
        self._evaluations = {}

    def _images_per_second(self, since=(0.0, 0)):
        """Of the timed steps since (seconds, steps); 0 where there were none."""
        seconds, steps = self._train_seconds - since[0], self._timed_steps - since[1]
        return steps * self.config.batch_size / seconds if steps else 0.0
