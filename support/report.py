"""What a run shows and records: terminal lines, the progress bar, TensorBoard's curves, the clock, result.json."""

import math
import os
import socket
import sys
import time

import tensorflow.compat.v1 as tf
from tqdm import tqdm

from support import UserError, say
from support.run_directory import locked

POINT_STEPS = 50  # a point of the training curves is the mean of so many steps
LINE_SECONDS = 30.0  # between the progress lines where there is no terminal


class EventFile:
    """A file of TensorBoard's. Unlike `tf.summary.FileWriter` it raises errors where they happen, in this thread."""

    def __init__(self, folder):
        name = "events.out.tfevents.%.6f.%s.%d" % (time.time(), socket.gethostname(), os.getpid())
        self._file = tf.io.TFRecordWriter(os.path.join(folder, name))
        self.add(file_version="brain.Event:2")

    def add(self, step=0, **content):
        """Writes an event; `content` is a field of the protocol buffer `tf.Event`."""
        self._file.write(tf.Event(wall_time=time.time(), step=step, **content).SerializeToString())
        self._file.flush()

    def close(self):
        self._file.close()


class Report:
    """Follows one run; a context manager. The clock counts training steps alone, the process's first one excluded."""

    def __init__(self, config, directory, cluster):
        self.config = config
        self.directory = directory
        self.cluster = cluster
        self.steps_per_epoch = None
        self._files = {}
        self._log_problem = None
        self._lock = None
        self._bar = None
        self._evaluated = {}
        self._train_seconds = 0.0
        self._timed_steps = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._close_bar()
        self._log(lambda: [file.close() for file in self._files.values()])
        if self._lock is not None:
            self._lock.close()

    # Start and end

    def start(self, sess, data, parameters, step, steps_per_epoch):
        """Prints the header and opens TensorBoard's files, for a run that is at `step`."""
        config = self.config
        self.steps_per_epoch = steps_per_epoch
        devices = [device.name for device in sess.list_devices() if device.device_type == "GPU"]
        say("DenseNet on %s: %d training, %d validation, %d test images of %s"
            % (data.name, len(data.train), len(data.validation), len(data.test), "x".join(map(str, data.image_shape))))
        say("network  %s: blocks %s, growth rate %d, %s parameters"
            % (config.network, ",".join(map(str, config.blocks)), config.growth_k, format(parameters, ",")))
        say("device   %s%s; TensorFlow %s" % (", ".join(devices) or "CPU, %d cores" % os.cpu_count(),
                                              self.cluster.description(), tf.VERSION))
        say("logs     %s (see them: tensorboard --logdir %s)" % (self._log_path(""), config.log_dir))
        say("model    %s" % self.directory.path)
        progress = self.directory.read_json("progress.json") or {}
        if step:
            self._train_seconds = progress.get("train_seconds", 0.0)
            self._timed_steps = progress.get("timed_steps", 0)
            say("resuming after step %d, epoch %.1f of %d"
                % (step, step / steps_per_epoch, config.total_epochs))
            before = progress.get("total_epochs", config.total_epochs)
            if before != config.total_epochs:
                say("total_epochs was %d and is now %d: the learning-rate schedule now ends there"
                    % (before, config.total_epochs))
            before = progress.get("replicas", 1)
            if before != self.cluster.count:
                say("%d device%s shared each batch until then, %d from now on: rounding, dropout masks and batch "
                    "normalization differ" % (before, "s" if before > 1 else "", self.cluster.count))
        try:
            for split in ("train", "validation", "test"):
                os.makedirs(self._log_path(split), exist_ok=True)
            self._lock = locked(self._log_path(""))  # a run in another model_dir may have the same name
            for split in ("train", "validation", "test"):
                self._files[split] = EventFile(self._log_path(split))
                # Tells TensorBoard to forget what a killed process wrote after the checkpoint that is resumed.
                self._files[split].add(step + 1, session_log=tf.SessionLog(status=tf.SessionLog.START))
            if step == 0:
                self._files["train"].add(graph_def=sess.graph.as_graph_def(add_shapes=True).SerializeToString())
        except (OSError, tf.errors.OpError) as error:
            raise UserError("cannot write the logs in %s (%s): set log_dir to a folder that can be written"
                            % (self.config.log_dir, getattr(error, "strerror", error))) from None
        self.directory.keep_json("result.json")  # of fewer epochs, where the run goes on
        self._epoch_started = self._last_line = self._last_save = time.monotonic()
        self._clock = None  # the first step compiles
        self._point = [0.0, 0.0, 0]  # sums of loss, accuracy and steps, over a point of the curves
        self._begin_epoch()

    def finished(self, result):
        """Says that there is nothing left to train."""
        say("%s is finished: %d epochs, test accuracy %.2f%% (%s); raise total_epochs to go on"
            % (self.directory.path, result["epochs"], 100 * result["test_accuracy"],
               os.path.join(self.directory.path, "result.json")))

    def result(self, step, loss, accuracy, parameters, hyperparameters):
        """Writes result.json, prints the last line; returns the content of result.json."""
        result = {
            "dataset": self.config.dataset,
            "parameters": parameters,
            "epochs": step // self.steps_per_epoch,
            "steps": step,
            "test_accuracy": accuracy,
            "test_loss": loss,
            "checkpoint": "dense.ckpt-%d" % step,
            "train_seconds": round(self._train_seconds, 3),
            "images_per_second": round(self._images_per_second(), 1),
            "tensorflow": tf.VERSION,
            "hyperparameters": dict(hyperparameters, total_epochs=self.config.total_epochs),
        }
        self.directory.write_json("result.json", result)
        say("test accuracy %.2f%%, loss %.4f, of the weights after epoch %d (%s)"
            % (100 * accuracy, loss, result["epochs"], os.path.join(self.directory.path, "result.json")))
        self._stop_if_it_cannot_log()
        return result

    # While it trains

    def step(self, step, loss, accuracy, rate):
        """Takes in what training step number `step` (from 1) gave. Raises UserError if the loss is no number."""
        now = time.monotonic()
        if not math.isfinite(loss):
            raise UserError("the loss is %s at step %d, epoch %d, learning rate %g: lower init_learning_rate or raise "
                            "epsilon; the checkpoints before it are kept"
                            % (loss, step, (step - 1) // self.steps_per_epoch + 1, rate))
        if self._clock is not None:
            self._train_seconds += now - self._clock
            self._timed_steps += 1
        self._clock = now
        self._point = [total + value for total, value in zip(self._point, (loss, accuracy, 1))]
        self._sums = [total + value for total, value in zip(self._sums, (loss, accuracy, 1))]
        if step % POINT_STEPS == 0:
            self._write("train", step, loss=self._point[0] / self._point[2], accuracy=self._point[1] / self._point[2],
                        learning_rate=rate, images_per_second=self._images_per_second())
            self._point = [0.0, 0.0, 0]
        self._show_progress(step, loss, now)

    def checkpoint_is_due(self):
        """Whether the last one is older than checkpoint_minutes, or the run is about to stop as it cannot log."""
        return bool(self._log_problem) or time.monotonic() - self._last_save > 60 * self.config.checkpoint_minutes

    def saved(self, step):
        """Notes how long training took up to a checkpoint: beside it, for a checkpoint has no wall-clock values.

        Raises:
            UserError: TensorBoard's files cannot be written any more.
        """
        self.directory.write_json("progress.json", {
            "step": step, "total_epochs": self.config.total_epochs, "replicas": self.cluster.count,
            "train_seconds": self._train_seconds, "timed_steps": self._timed_steps})
        self._stop_if_it_cannot_log()
        self._last_save = self._clock = time.monotonic()

    def evaluated(self, split, step, loss, accuracy):
        """Takes in an evaluation of a split."""
        if not math.isfinite(loss):
            raise UserError("the %s loss is %s after step %d: lower init_learning_rate or raise epsilon; the "
                            "checkpoints before it are kept" % (split, loss, step))
        self._evaluated[split] = (loss, accuracy)
        self._write(split, step, loss=loss, accuracy=accuracy)

    def epoch(self, epoch):
        """Prints the line of the epoch (from 1) that has ended."""
        self._close_bar()
        now = time.monotonic()
        count = max(1, self._sums[2])
        parts = ["train loss %.4f accuracy %.2f%%" % (self._sums[0] / count, 100 * self._sums[1] / count)]
        for split, (loss, accuracy) in self._evaluated.items():
            parts.append("%s loss %.4f accuracy %.2f%%" % (split, loss, 100 * accuracy))
        say("epoch %d/%d  %s  %.1f s, %.0f images/s" % (epoch, self.config.total_epochs, "  ".join(parts),
                                                       now - self._epoch_started, self._images_per_second()))
        self._epoch_started = self._last_line = now
        self._begin_epoch()

    # Inside

    def _log_path(self, split):
        return os.path.join(self.config.log_dir, self.config.run_name, split)

    def _images_per_second(self):
        return self._timed_steps * self.config.batch_size / self._train_seconds if self._train_seconds else 0.0

    def _write(self, split, step, **values):
        summary = tf.Summary(value=[tf.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._log(lambda: self._files[split].add(step, summary=summary))

    def _log(self, write):
        """Writes to TensorBoard's files; where that fails, the run stops once it is saved."""
        if self._log_problem is None:
            try:
                write()
            except (OSError, tf.errors.OpError) as error:
                self._log_problem = getattr(error, "strerror", None) or error.message.splitlines()[0]

    def _stop_if_it_cannot_log(self):
        if self._log_problem:
            raise UserError("cannot write the logs in %s (%s): make room there; the run is saved, and the same command "
                            "goes on from there" % (self.config.log_dir, self._log_problem))

    def _begin_epoch(self):
        self._sums = [0.0, 0.0, 0]  # as _point, over the epoch
        self._evaluated = {}

    def _show_progress(self, step, loss, now):
        epoch, done = divmod(step - 1, self.steps_per_epoch)
        if self._bar is None and sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm(total=self.steps_per_epoch, initial=done, unit="step", leave=False,
                             desc="epoch %d/%d" % (epoch + 1, self.config.total_epochs))
        if self._bar is not None:
            self._bar.update(1)
            if done % 10 == 0:
                self._bar.set_postfix(loss="%.4f" % loss, refresh=False)
        elif now - self._last_line > LINE_SECONDS:
            self._last_line = now
            say("epoch %d/%d  step %d/%d  loss %.4f" % (epoch + 1, self.config.total_epochs, done + 1,
                                                       self.steps_per_epoch, loss))

    def _close_bar(self):
        if self._bar is not None:
            self._bar.close()
            self._bar = None
