"""What does TensorBoard get from a run: curves, pictures, histograms, hyperparameters, the graph, traces?"""

import os
import socket
import time

import tensorflow.compat.v1 as tf
from tensorboard.plugins.hparams import summary as hparams_summary
from tensorflow.python.client.timeline import Timeline

from support import UserError, say
from support.pictures import confusion_picture, mistakes_picture
from support.run_directory import locked
from support.settings import shown

SPLITS = ("train", "validation", "test")


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
        """Closes the file."""
        self._file.close()


def pictures_of(evaluation, images, class_names):
    """The pictures of an evaluation, as a tf.Summary; `images`: those of the split, which its mistakes index."""
    summary = tf.Summary()
    pictures = {"confusion_matrix": confusion_picture(evaluation.confusion, class_names)}
    if evaluation.mistakes:
        pictures["most_confident_mistakes"] = mistakes_picture(images, evaluation.mistakes, class_names)
    for tag, (png, width, height) in pictures.items():
        summary.value.add(tag=tag, image=tf.Summary.Image(
            encoded_image_string=png, width=width, height=height, colorspace=3))
    return summary


def log_evaluation(folder, step, evaluation, images, class_names):
    """Writes the pictures of one evaluation to TensorBoard's folder of the test. Raises UserError if it cannot."""
    try:
        os.makedirs(folder, exist_ok=True)
        file = EventFile(folder)
        file.add(step, summary=pictures_of(evaluation, images, class_names))
        file.close()
    except (OSError, tf.errors.OpError) as error:
        raise _cannot_write(folder, error) from None


def build_histograms():
    """A tensor: a serialized tf.Summary with histograms of weights, batch norm's scales (gamma) and gradients.

    The gradients are the running means that the optimizer keeps (Adam's first moment, or the momentum), so that no
    further pass through the network is needed. Call it when the graph has all its variables.
    """
    variables = {variable.op.name: variable for variable in tf.global_variables()}
    values = {}
    for variable in tf.trainable_variables():
        name = variable.op.name
        kind = {"kernel": "weights", "gamma": "scales"}.get(name.rpartition("/")[2])
        if kind:
            values["%s/%s" % (kind, name)] = variable
        for slot in ("/Adam", "/Momentum"):
            if name + slot in variables:
                values["gradients/%s" % name] = variables[name + slot]
    # Not tf.summary.histogram, which would put the names of the scopes around it before the tag.
    return tf.raw_ops.MergeSummary(inputs=[
        tf.raw_ops.HistogramSummary(tag=tag, values=tf.where_v2(tf.math.is_finite(value), value, 0.0))
        for tag, value in values.items()])


class RunLogs:
    """The log files of a run under training. A failure to write is kept in `problem`; the run stops once it is saved.

    Args:
        log_dir, run_name: the files are in `log_dir/run_name/{train,validation,test}`.
    Attributes:
        problem: what went wrong, or None.
    """

    def __init__(self, log_dir, run_name):
        self.log_dir = log_dir
        self.folder = os.path.join(log_dir, run_name, "")
        self.problem = None
        self._files = {}
        self._lock = None

    def open(self, step, graph, hyperparameters):
        """Opens the files for a run that is at `step`; takes the folder for this process.

        Args:
            graph: the tf.Graph, which a new run's files get.
            hyperparameters: {name: value}.
        Raises:
            UserError: they cannot be written, or another process has them.
        """
        try:
            for split in SPLITS:
                os.makedirs(self.folder + split, exist_ok=True)
            self._lock = locked(self.folder)  # a run in another model_dir may have the same name
            for split in SPLITS:
                self._files[split] = EventFile(self.folder + split)
                # Tells TensorBoard to forget what a killed process wrote after the checkpoint that is resumed.
                self._files[split].add(step + 1, session_log=tf.SessionLog(status=tf.SessionLog.START))
            if step == 0:
                self._files["train"].add(graph_def=graph.as_graph_def(add_shapes=True).SerializeToString())
            self._files[""] = EventFile(self.folder)
            for summary in _hyperparameter_summaries(hyperparameters):
                self._files[""].add(step, summary=summary)
        except (OSError, tf.errors.OpError) as error:
            raise _cannot_write(self.log_dir, error) from None

    def close(self):
        """Closes the files and gives up the folder."""
        self._write(lambda: [file.close() for file in self._files.values()])
        if self._lock is not None:
            self._lock.close()

    def scalars(self, split, step, **values):
        """Writes a point of the curves, {tag: value}."""
        self._write(lambda: self._files[split].add(step, summary=tf.Summary(
            value=[tf.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])))

    def evaluation(self, split, step, evaluation, images, class_names):
        """Writes an Evaluation of a split: its point of the curves and its pictures."""
        self.scalars(split, step, loss=evaluation.loss, accuracy=evaluation.accuracy)
        self._write(lambda: self._files[split].add(step, summary=pictures_of(evaluation, images, class_names)))

    def histograms(self, step, serialized):
        """Writes a serialized tf.Summary of the training step."""
        self._write(lambda: self._files["train"].add(step, summary=tf.Summary.FromString(serialized)))

    def trace(self, step, metadata):
        """Writes the tf.RunMetadata of a traced step, also as a file for chrome://tracing, and prints its path."""
        def write():
            path = "%strace-step-%d.json" % (self.folder, step)
            self._files["train"].add(step, tagged_run_metadata=tf.summary.TaggedRunMetadata(
                tag="step %d" % step, run_metadata=metadata.SerializeToString()))
            with open(path + ".new", "w") as file:
                file.write(Timeline(metadata.step_stats).generate_chrome_trace_format())
            os.replace(path + ".new", path)
            say("traced step %d: %s (chrome://tracing opens it)" % (step, path))

        self._write(write)

    def end(self, step):
        """Marks the run as successful in the HParams tab."""
        self._write(lambda: self._files[""].add(step, summary=hparams_summary.session_end_pb("STATUS_SUCCESS")))

    def stop_if_it_cannot_write(self):
        """Raises UserError if writing has failed; to be called when the run is saved."""
        if self.problem:
            raise UserError("cannot write the logs in %s (%s): make room there; the run is saved, and the same command "
                            "goes on from there" % (self.log_dir, self.problem))

    def _write(self, write):
        if self.problem is None:
            try:
                write()
            except (OSError, tf.errors.OpError) as error:
                self.problem = getattr(error, "strerror", None) or error.message.splitlines()[0]


def _hyperparameter_summaries(hyperparameters):
    """Summaries for TensorBoard's text and HParams tabs."""
    lines = ["| hyperparameter | value |", "| --- | --- |"]
    lines += ["| %s | %s |" % (name, shown(value)) for name, value in hyperparameters.items()]
    text = tf.Summary()
    metadata = tf.SummaryMetadata(plugin_data=tf.SummaryMetadata.PluginData(plugin_name="text"))
    text.value.add(tag="hyperparameters", metadata=metadata, tensor=tf.make_tensor_proto("\n".join(lines)))
    yield text
    yield hparams_summary.session_start_pb({
        name: value if isinstance(value, (bool, int, float, str)) else shown(value)
        for name, value in hyperparameters.items()})


def _cannot_write(folder, error):
    return UserError("cannot write the logs in %s (%s): set log_dir to a folder that can be written"
                     % (folder, getattr(error, "strerror", None) or getattr(error, "message", error)))
