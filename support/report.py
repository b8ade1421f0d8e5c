"""What a run shows and records: terminal lines, the progress bar, TensorBoard's curves, the clock, result.json."""

import math
import os
import socket
import sys
import time

import tensorflow.compat.v1 as tf
from tensorboard.plugins.hparams import summary as hparams_summary
from tensorflow.python.client.timeline import Timeline
from tqdm import tqdm

from support import UserError, say
from support.evaluation import confusion_picture, mistakes_picture
from support.machine import cores
from support.run_directory import locked, step_of
from support.settings import shown

HISTOGRAMS = 20  # times in a run
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


def pictures_of(evaluation, images, class_names):
    """What TensorBoard shows of an evaluation beside the curves, a tf.Summary; `images`: those its mistakes name."""
    summary = tf.Summary()
    pictures = {"confusion_matrix": confusion_picture(evaluation.confusion, class_names)}
    if evaluation.mistakes:
        pictures["most_confident_mistakes"] = mistakes_picture(images, evaluation.mistakes, class_names)
    for tag, (png, width, height) in pictures.items():
        summary.value.add(tag=tag, image=tf.Summary.Image(
            encoded_image_string=png, width=width, height=height, colorspace=3))
    return summary


def report_evaluation(config, directory, checkpoint, evaluation, data):
    """Prints an evaluation of the test images, writes it to evaluation.json and for TensorBoard.

    Args:
        checkpoint: the path of the one that was evaluated.
    Returns:
        the content of evaluation.json. One with other content gets another name first.
    Raises:
        UserError: something cannot be written.
    """
    for line in evaluation.table(data.class_names):
        say(line)
    content = dict(evaluation.as_json(data.class_names), dataset=config.dataset, tensorflow=tf.VERSION,
                   checkpoint=os.path.relpath(checkpoint, directory.path))
    if directory.read_json("evaluation.json") not in (None, content):
        directory.keep_json("evaluation.json")
    directory.write_json("evaluation.json", content)
    folder = os.path.join(config.log_dir, config.run_name, "test")
    try:
        os.makedirs(folder, exist_ok=True)
        file = EventFile(folder)
        file.add(step_of(checkpoint), summary=pictures_of(evaluation, data.test.images, data.class_names))
        file.close()
    except (OSError, tf.errors.OpError) as error:
        raise UserError("cannot write the logs in %s (%s): set log_dir to a folder that can be written"
                        % (config.log_dir, getattr(error, "strerror", error))) from None
    say("test accuracy %.2f%%, loss %.4f, of %s (%s)" % (
        100 * evaluation.accuracy, evaluation.loss, checkpoint, os.path.join(directory.path, "evaluation.json")))
    return content


class Report:
    """Follows one run; a context manager. The clock counts training steps alone, the process's first one excluded."""

    def __init__(self, config, directory, cluster):
        self.config = config
        self.directory = directory
        self.cluster = cluster
        self.data = None
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

    def start(self, sess, data, parameters, step):
        """Prints the header and opens TensorBoard's files, for a run that is at `step`."""
        config = self.config
        self.data = data
        self.steps_per_epoch = len(data.train) // config.batch_size
        devices = [device.name for device in sess.list_devices() if device.device_type == "GPU"]
        say("DenseNet on %s: %d training, %d validation, %d test images of %s"
            % (data.name, len(data.train), len(data.validation), len(data.test), "x".join(map(str, data.image_shape))))
        say("network  %s: blocks %s, growth rate %d, %s parameters"
            % (config.network, ",".join(map(str, config.blocks)), config.growth_k, format(parameters, ",")))
        say("device   %s%s; TensorFlow %s" % (", ".join(devices) or "CPU, %d cores" % cores(),
                                              self.cluster.description(), tf.VERSION))
        count, left_over = divmod(len(data.train), config.batch_size)
        say("steps    %d an epoch, of %d images%s" % (count, config.batch_size, left_over and (
            "; the %d left over are others each time" % left_over) or ""))
        say("logs     %s (see them: tensorboard --logdir %s)" % (self._log_path(""), config.log_dir))
        say("model    %s" % self.directory.path)
        progress = self.directory.read_json("progress.json") or {}
        if step:
            self._train_seconds = progress.get("train_seconds", 0.0)
            self._timed_steps = progress.get("timed_steps", 0)
            say("resuming after step %d, epoch %.1f of %d"
                % (step, step / self.steps_per_epoch, config.total_epochs))
            before = progress.get("total_epochs", config.total_epochs)
            if before != config.total_epochs:
                say("total_epochs was %d and is now %d: the learning-rate schedule now ends there"
                    % (before, config.total_epochs))
            before = progress.get("replicas", 1)
            if before != self.cluster.count:
                say("%d device%s shared each batch until then, %d from now on: rounding, dropout masks and batch "
                    "normalization differ" % (before, "s" if before > 1 else "", self.cluster.count))
        try:
            for split in ("train", "validation", "test", ""):
                os.makedirs(self._log_path(split), exist_ok=True)
            self._lock = locked(self._log_path(""))  # a run in another model_dir may have the same name
            for split in ("train", "validation", "test"):
                self._files[split] = EventFile(self._log_path(split))
                # Tells TensorBoard to forget what a killed process wrote after the checkpoint that is resumed.
                self._files[split].add(step + 1, session_log=tf.SessionLog(status=tf.SessionLog.START))
            if step == 0:
                self._files["train"].add(graph_def=sess.graph.as_graph_def(add_shapes=True).SerializeToString())
            self._files[""] = EventFile(self._log_path(""))
            for summary in self._hyperparameters():
                self._files[""].add(step, summary=summary)
        except (OSError, tf.errors.OpError) as error:
            raise UserError("cannot write the logs in %s (%s): set log_dir to a folder that can be written"
                            % (self.config.log_dir, getattr(error, "strerror", error))) from None
        self.directory.keep_json("result.json")  # of fewer epochs, where the run goes on
        self._epoch_started = self._last_line = self._last_save = time.monotonic()
        self._clock = None  # the first step chooses kernels
        self._point = [0.0, 0.0, 0]  # sums of loss, accuracy and steps, over a point of the curves
        self._begin_epoch()

    def finished(self, result):
        """Says that there is nothing left to train."""
        say("%s is finished: %d epochs, test accuracy %.2f%% (%s); raise total_epochs to go on"
            % (self.directory.path, result["epochs"], 100 * result["test_accuracy"],
               os.path.join(self.directory.path, "result.json")))

    def _hyperparameters(self):
        """Summaries for TensorBoard's text and HParams tabs."""
        values = dict(self.config.shaping, total_epochs=self.config.total_epochs)
        lines = ["| hyperparameter | value |", "| --- | --- |"]
        lines += ["| %s | %s |" % (name, shown(value)) for name, value in values.items()]
        text = tf.Summary()
        metadata = tf.SummaryMetadata(plugin_data=tf.SummaryMetadata.PluginData(plugin_name="text"))
        text.value.add(tag="hyperparameters", metadata=metadata, tensor=tf.make_tensor_proto("\n".join(lines)))
        yield text
        yield hparams_summary.session_start_pb({
            name: value if isinstance(value, (bool, int, float, str)) else shown(value)
            for name, value in values.items()})

    def result(self, step, evaluation, parameters, hyperparameters):
        """Writes result.json, prints the last line; returns the content of result.json."""
        result = {
            "dataset": self.config.dataset,
            "parameters": parameters,
            "epochs": step // self.steps_per_epoch,
            "steps": step,
            "test_accuracy": evaluation.accuracy,
            "test_loss": evaluation.loss,
            "checkpoint": "dense.ckpt-%d" % step,
            "train_seconds": round(self._train_seconds, 3),
            "images_per_second": round(self._images_per_second(), 1),
            "tensorflow": tf.VERSION,
            "hyperparameters": dict(hyperparameters, total_epochs=self.config.total_epochs),
        }
        self.directory.write_json("result.json", result)
        best = self.directory.checkpoints("best")
        if best and best[0][0] != step:
            say("the best on validation is %s: evaluate, predict and export use it" % best[0][1])
        say("test accuracy %.2f%%, loss %.4f, of the weights after epoch %d (%s)"
            % (100 * evaluation.accuracy, evaluation.loss, result["epochs"],
               os.path.join(self.directory.path, "result.json")))
        ended = hparams_summary.session_end_pb("STATUS_SUCCESS")
        self._log(lambda: self._files[""].add(step, summary=ended))
        self._stop_if_it_cannot_log()
        return result

    # While it trains

    def wants_histograms(self, step):
        """Whether step number `step` (from 1) is to give histograms: the last one of some epochs."""
        epoch, steps = divmod(step, self.steps_per_epoch)
        return steps == 0 and epoch % math.ceil(self.config.total_epochs / HISTOGRAMS) == 0

    def tracing(self, step):
        """(tf.RunOptions, tf.RunMetadata) for a step whose operations are to be timed, else None."""
        if step == self.config.trace_step:
            return tf.RunOptions(trace_level=tf.RunOptions.FULL_TRACE), tf.RunMetadata()
        return None

    def step(self, step, loss, accuracy, rate, histograms=b"", traced=None):
        """Takes in what training step number `step` (from 1) gave.

        Args:
            histograms: a serialized tf.Summary, or nothing.
            traced: the tf.RunMetadata of a step whose operations were timed.
        Raises:
            UserError: the loss is no number.
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
        self._point = [total + value for total, value in zip(self._point, (loss, accuracy, 1))]
        self._sums = [total + value for total, value in zip(self._sums, (loss, accuracy, 1))]
        if step % POINT_STEPS == 0:
            self._write("train", step, loss=self._point[0] / self._point[2], accuracy=self._point[1] / self._point[2],
                        learning_rate=rate, images_per_second=self._images_per_second())
            self._point = [0.0, 0.0, 0]
        if histograms:
            self._log(lambda: self._files["train"].add(step, summary=tf.Summary.FromString(histograms)))
        if traced is not None:
            self._log(lambda: self._write_trace(step, traced))
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

    def evaluated(self, split, step, evaluation):
        """Takes in an Evaluation of a split."""
        loss, accuracy = evaluation.loss, evaluation.accuracy
        if not math.isfinite(loss):
            raise UserError("the %s loss is %s after step %d: lower init_learning_rate or raise epsilon; the "
                            "checkpoints before it are kept" % (split, loss, step))
        self._evaluated[split] = (loss, accuracy)
        self._write(split, step, loss=loss, accuracy=accuracy)
        images = getattr(self.data, split).images
        self._log(lambda: self._files[split].add(
            step, summary=pictures_of(evaluation, images, self.data.class_names)))

    def epoch(self, epoch):
        """Prints the line of the epoch (from 1) that has ended."""
        self._close_bar()
        now = time.monotonic()
        count = max(1, self._sums[2])
        parts = ["train loss %.4f accuracy %.2f%%" % (self._sums[0] / count, 100 * self._sums[1] / count)]
        for split, (loss, accuracy) in self._evaluated.items():
            parts.append("%s loss %.4f accuracy %.2f%%" % (split, loss, 100 * accuracy))
        rate = self._images_per_second(self._before_epoch)
        say("epoch %d/%d  %s  %.1f s%s" % (epoch, self.config.total_epochs, "  ".join(parts),
                                           now - self._epoch_started, ", %.0f images/s" % rate if rate else ""))
        self._epoch_started = self._last_line = now
        self._begin_epoch()

    # Inside

    def _log_path(self, split):
        return os.path.join(self.config.log_dir, self.config.run_name, split)

    def _images_per_second(self, since=(0.0, 0)):
        """From a pair of the seconds and the steps that were timed before, or 0 where none were since then."""
        seconds, steps = self._train_seconds - since[0], self._timed_steps - since[1]
        return steps * self.config.batch_size / seconds if steps else 0.0

    def _write(self, split, step, **values):
        summary = tf.Summary(value=[tf.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._log(lambda: self._files[split].add(step, summary=summary))

    def _write_trace(self, step, traced):
        tag = "step %d" % step
        self._files["train"].add(step, tagged_run_metadata=tf.summary.TaggedRunMetadata(
            tag=tag, run_metadata=traced.SerializeToString()))
        path = os.path.join(self._log_path(""), "trace-step-%d.json" % step)
        with open(path + ".new", "w") as file:
            file.write(Timeline(traced.step_stats).generate_chrome_trace_format())
        os.replace(path + ".new", path)
        say("traced step %d: %s (chrome://tracing opens it)" % (step, path))

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
        self._before_epoch = self._train_seconds, self._timed_steps
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
