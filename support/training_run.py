"""What happens around the training steps of a run: it is resumed, timed, reported, saved, stopped and finished."""

import contextlib
import math
import os
import signal
import time

import tensorflow.compat.v1 as tf

from support import UserError, say
from support.checkpoints import Checkpoints
from support.configuration import identity
from support.interruption import Interruption, Stopped
from support.machine import PRECISIONS, fast_precision
from support.run_directory import RunDirectory
from support.tensorboard import RunLogs
from support.terminal import Progress, show_header
from support.workers import Cluster

HISTOGRAMS = 20  # times in a run
POINT_STEPS = 50  # a point of the training curves is the mean of so many steps


def histograms_are_due(epoch, total_epochs):
    """Whether TensorBoard gets histograms after an epoch (from 1): HISTOGRAMS times in a run, evenly spread."""
    return epoch % math.ceil(total_epochs / HISTOGRAMS) == 0


class TrainingRun:
    """One run of the program's training, in this process; a context manager that holds the run's directory.

    The process that is the chief writes checkpoints and logs and reports. Every worker calls the same methods.

    Args:
        config: the settings, of `support.configuration.choose`. An automatic precision is resolved in it.
        data: the `support.data.DataSet`.
    Attributes:
        cluster: the `support.workers.Cluster`.
        steps_per_epoch, total_steps: as derived from the data and the settings.
        finished: whether the run had been trained to its end before.
        result: the content of the run's result.json, once it is finished; None in workers that are not the chief.
    Raises:
        UserError: a batch is larger than the training split or cannot be divided; the directory cannot be written, is
            in use, or holds a run with other settings.
    """

    def __init__(self, config, data):
        self.config, self.data = config, data
        self.cluster = Cluster(config.batch_size, config.devices, config.sync_batch_norm, config.worker_timeout,
                               os.environ.get("TF_CONFIG", ""))
        self.steps_per_epoch = len(data.train) // config.batch_size
        self.total_steps = self.steps_per_epoch * config.total_epochs
        if self.steps_per_epoch == 0:
            raise UserError("batch_size=%d is more than the %d training images of %s: make it smaller"
                            % (config.batch_size, len(data.train), data.name))
        self.result, self.finished = None, False
        self._folder = os.path.join(config.model_dir, config.run_name)
        self._start_workers()
        self._settings = identity(config)
        self._identity = dict(self._settings, data=data.fingerprint())  # what settings.json records
        self._directory = RunDirectory(self._folder, self._identity) if self.cluster.is_chief else None
        self._logs = self._checkpoints = self._net = None
        self._interruption = Interruption()
        self._context = contextlib.ExitStack()
        self._train_seconds, self._timed_steps = 0.0, 0
        self._point = [0.0, 0.0, 0]  # sums of loss and accuracy, and their number, since the last point of the curves

    def _start_workers(self):
        """Connects the workers, and resolves an automatic precision alike in all of them.

        A run keeps the precision that it began with, wherever it is resumed.
        """
        session_config = self.cluster.session_config()
        self.cluster.start(session_config)
        if self.config.precision == "auto":
            recorded = (RunDirectory(self._folder, {}).read_json("settings.json") or {}).get("precision")
            own = recorded if recorded in PRECISIONS else fast_precision()
            self.config.precision = PRECISIONS[self.cluster.number_from_chief(PRECISIONS.index(own), session_config)]
            self.config.origins["precision"] = "auto"

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
        with cluster.watched(), tf.Session(cluster.target, config=cluster.session_config(config.precision)) as sess:
            cluster.compare(sess, dict(self._identity, total_epochs=config.total_epochs))
            sess.run(net.initialize)
            if cluster.is_chief:
                self._checkpoints.restore_newest(sess)
            cluster.copy_from_chief(sess)
            yield sess

    def begin(self, sess):
        """The step to go on from. Starts the reports, or where the run is finished, says so and sets `finished`."""
        step = int(sess.run(self._net.global_step))
        result = self._directory.read_json("result.json") if self._directory else None
        finished = bool(result) and step >= self.total_steps
        if any(self.cluster.total(sess, [finished])):
            self.result, self.finished = result, True
            if result:
                say("%s is finished: %d epochs, test accuracy %.2f%% (%s); raise total_epochs to go on"
                    % (self._folder, result["epochs"], 100 * result["test_accuracy"],
                       os.path.join(self._folder, "result.json")))
            return self.total_steps
        if self.cluster.is_chief:
            self._begin_reports(sess, step)
        self._last_save = self._epoch_started = time.monotonic()
        self._clock = None  # the first step is not timed: it chooses kernels
        self._begin_epoch()
        return step

    def _begin_reports(self, sess, step):
        config = self.config
        self._progress = Progress(self.steps_per_epoch, config.total_epochs)
        self._logs = RunLogs(config.log_dir, config.run_name)
        gpus = [device.name for device in sess.list_devices() if device.device_type == "GPU"]
        show_header(config, self.data, self._net.parameters, self.cluster, gpus, self._folder, self._logs.folder)
        before = self._directory.read_json("progress.json") or {}
        if step:
            self._train_seconds, self._timed_steps = before.get("train_seconds", 0.0), before.get("timed_steps", 0)
            say("resuming after step %d, epoch %.1f of %d"
                % (step, step / self.steps_per_epoch, config.total_epochs))
            epochs, replicas = before.get("total_epochs", config.total_epochs), before.get("replicas", 1)
            if epochs != config.total_epochs:
                say("total_epochs was %d and is now %d: the learning-rate schedule now ends there"
                    % (epochs, config.total_epochs))
            if replicas != self.cluster.count:
                say("%d device%s shared each batch until then, %d from now on: rounding, dropout masks and batch "
                    "normalization differ" % (replicas, "s" if replicas > 1 else "", self.cluster.count))
        self._logs.open(step, sess.graph, dict(self._settings, total_epochs=config.total_epochs))
        self._directory.keep_json("result.json")  # of fewer epochs, where the run goes on

    # During an epoch

    def trace_options(self, step):
        """Keyword arguments of `sess.run` by which step number `step` (from 1) is traced, if it is to be."""
        if step != self.config.trace_step or not self.cluster.is_chief:
            return {}
        self._trace = tf.RunMetadata()
        return {"options": tf.RunOptions(trace_level=tf.RunOptions.FULL_TRACE), "run_metadata": self._trace}

    def step_done(self, step, loss, accuracy, rate):
        """Reports training step number `step` (from 1).

        Raises:
            UserError: the loss is not finite.
        """
        now = time.monotonic()
        if not math.isfinite(loss):
            raise UserError("the loss is %s at step %d, epoch %d, learning rate %g: lower init_learning_rate or raise "
                            "epsilon; the checkpoints before it are kept"
                            % (loss, step, (step - 1) // self.steps_per_epoch + 1, rate))
        if self._clock is not None:
            self._train_seconds += now - self._clock
            self._timed_steps += 1
        self._clock = now
        self._epoch = [total + value for total, value in zip(self._epoch, (loss, accuracy, 1))]
        if not self.cluster.is_chief:
            return
        self._point = [total + value for total, value in zip(self._point, (loss, accuracy, 1))]
        if step % POINT_STEPS == 0:
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
            self._checkpoints.save(sess, step)
            self._directory.write_json("progress.json", {  # not in the checkpoint, which has no wall-clock values
                "step": step, "total_epochs": self.config.total_epochs, "replicas": self.cluster.count,
                "train_seconds": self._train_seconds, "timed_steps": self._timed_steps})
            self._logs.stop_if_it_cannot_write()
        self._last_save = self._clock = time.monotonic()

    def end_if_asked(self, sess, step, stop):
        """Raises Stopped if a signal asked this process or, by `stop`, another worker to stop: see `_stop_signal`."""
        number = self._stop_signal(stop)
        if number:
            self.cluster.leave(sess)
            raise Stopped(number, "stopped and saved at step %d of %d: the same command goes on from there"
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

    def evaluated(self, sess, split, step, evaluation):
        """Reports an Evaluation of a split after step `step`; saves the best checkpoint on validation.

        Raises:
            UserError: the loss is not finite, or the checkpoint cannot be written.
        """
        if not math.isfinite(evaluation.loss):
            raise UserError("the %s loss is %s after step %d: lower init_learning_rate or raise epsilon; the "
                            "checkpoints before it are kept" % (split, evaluation.loss, step))
        self._evaluations[split] = evaluation
        if self.cluster.is_chief:
            self._logs.evaluation(split, step, evaluation, getattr(self.data, split).images, self.data.class_names)
        if split == "validation" and evaluation.accuracy >= sess.run(self._net.best_accuracy):  # ties: the later one
            sess.run(self._net.set_best, {self._net.new_best: evaluation.accuracy})
            if self.cluster.is_chief:
                self._checkpoints.save_best(sess, step)  # before the newest, which records it

    def epoch_done(self, sess, step):
        """Reports the epoch that ended with step `step`."""
        epoch = step // self.steps_per_epoch
        if self.cluster.is_chief:
            if histograms_are_due(epoch, self.config.total_epochs):
                self._logs.histograms(step, sess.run(self._net.histograms))
            loss, accuracy, count = self._epoch
            now = time.monotonic()
            self._progress.epoch(epoch, loss / max(1, count), accuracy / max(1, count), self._evaluations,
                                 now - self._epoch_started, self._images_per_second(self._before_epoch))
            self._epoch_started = now
        self._begin_epoch()

    def finish(self, sess, step, evaluation):
        """Writes and prints the result of the test after the last step, and sets `result`."""
        if self.cluster.is_chief:
            self.evaluated(sess, "test", step, evaluation)
            self.result = {
                "dataset": self.config.dataset,
                "parameters": self._net.parameters,
                "epochs": step // self.steps_per_epoch,
                "steps": step,
                "test_accuracy": evaluation.accuracy,
                "test_loss": evaluation.loss,
                "checkpoint": "dense.ckpt-%d" % step,
                "train_seconds": round(self._train_seconds, 3),
                "images_per_second": round(self._images_per_second(), 1),
                "tensorflow": tf.VERSION,
                "hyperparameters": dict(self._settings, total_epochs=self.config.total_epochs),
            }
            self._directory.write_json("result.json", self.result)
            best = self._directory.checkpoints("best")
            if best and best[0][0] != step:
                say("the best on validation is %s: evaluate, predict and export use it" % best[0][1])
            say("test accuracy %.2f%%, loss %.4f, of the weights after epoch %d (%s)" % (
                100 * evaluation.accuracy, evaluation.loss, self.result["epochs"],
                os.path.join(self._folder, "result.json")))
            self._logs.end(step)
            self._logs.stop_if_it_cannot_write()

    def _begin_epoch(self):
        self._epoch = [0.0, 0.0, 0]  # as _point, of the epoch
        self._before_epoch = self._train_seconds, self._timed_steps
        self._evaluations = {}

    def _images_per_second(self, since=(0.0, 0)):
        """Of the timed steps since (seconds, steps); 0 where there were none."""
        seconds, steps = self._train_seconds - since[0], self._timed_steps - since[1]
        return steps * self.config.batch_size / seconds if steps else 0.0
