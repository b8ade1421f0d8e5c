"""What does TensorBoard get from a run: curves, pictures, histograms, hyperparameters, the graph, traces, embeddings?

TensorBoard lists a run under three names: `<run>` has the test, the hyperparameters and their metrics, `<run>/train`
and `<run>/validation` have the rest. With `test_every_epoch`, `<run>/test` has the curves of these tests.
"""

import os
import re
import socket
import time

import numpy as np
import tensorflow.compat.v1 as tf
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import summary as hparams_summary
from tensorflow.python.client.timeline import Timeline

from support import UserError, cause_of, pictures, say
from support.projector import write_projector
from support.replicas import CONSTANTS
from support.run_directory import AS_PATHS, locked
from support.settings import shown

BUCKETS = 30  # of a histogram, as many as TensorBoard draws
LOCK = "lock_of_logs"  # in the folder of the run. Not `lock`: log_dir may be the model_dir
# The folder of each split in that of the run. "each test": the tests after every epoch, "test": that at the end
FOLDERS = {"train": "train", "validation": "validation", "test": "", "each test": "test"}
# The HParams tab shows the metrics after the hyperparameters, of which it shows the first five until asked for more,
# or those five that are declared as differing.
FIRST_HYPERPARAMETERS = ("blocks", "growth_k", "init_learning_rate", "batch_size", "total_epochs")
METRICS = (("", "accuracy", "test accuracy"), ("", "loss", "test loss"),
           ("validation", "accuracy", "validation accuracy"),
           ("", "balanced_accuracy", "balanced test accuracy"))  # folder, tag, title


_EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d+(?:\.\d+)?)\.")


class EventFile:
    """A file of TensorBoard's. Unlike `tf.summary.FileWriter` it raises errors where they happen, in this thread."""

    def __init__(self, folder):
        # TensorBoard reads the files in the order of their names, and the clock may have been put back.
        before = [float(found.group(1)) for found in map(_EVENT_FILE.match, os.listdir(folder)) if found]
        name = "events.out.tfevents.%.6f.%s.%d" % (
            max([time.time()] + [begun + 1 for begun in before]), socket.gethostname(), os.getpid())
        self._file = tf.io.TFRecordWriter(os.path.join(folder, name))
        self.add(file_version="brain.Event:2")

    def add(self, step=0, **content):
        """Writes an event; `content` is a field of the protocol buffer `tf.Event`."""
        self._file.write(tf.Event(wall_time=time.time(), step=step, **content).SerializeToString())
        self._file.flush()

    def close(self):
        """Closes the file."""
        self._file.close()


def picture_summary(drawn):
    """Pictures, {tag: (PNG as bytes, width, height)}, as a tf.Summary."""
    summary = tf.Summary()
    for tag, (png, width, height) in drawn.items():
        summary.value.add(tag=tag, image=tf.Summary.Image(
            encoded_image_string=png, width=width, height=height, colorspace=3))
    return summary


def reuse_summary(reuse):
    """A picture for each dense block of what `support.explanations.feature_reuse` found, as a tf.Summary."""
    return picture_summary({"feature_reuse/" + scope: drawn for scope, drawn in pictures.reuse_pictures(reuse).items()})


def log_evaluation(log_dir, run_name, directory, step, evaluation, images, class_names, reuse=None,
                   extent=pictures.WHOLE):
    """Writes the pictures and the embedding of an evaluation to where training writes those of its test.

    Args:
        log_dir, run_name: the settings of these names.
        directory: that of the run's checkpoints.
        step: the training step of the evaluated weights.
        evaluation, images, class_names, extent: as of `support.pictures.pictures_of`.
        reuse: what `support.explanations.feature_reuse` found in the evaluated weights; None: not computed.
    Raises:
        UserError: they cannot be written, or the folder holds the logs of another run.
    """
    folder = os.path.join(log_dir, run_name, FOLDERS["test"])
    lock = os.path.join(log_dir, run_name, LOCK)
    if os.path.exists(lock):
        with open(lock, **AS_PATHS) as file:
            _check_owner(file.read().splitlines()[1:], os.path.dirname(lock), directory)
    try:
        os.makedirs(folder, exist_ok=True)
        file = EventFile(folder)
        file.add(step, summary=picture_summary(pictures.pictures_of(evaluation, images, class_names, extent)))
        file.add(step, summary=reuse_summary(reuse or {}))
        file.close()
        _write_embedding(folder, step, evaluation, images, class_names)
    except (OSError, tf.errors.OpError) as error:
        raise _cannot_write(folder, error) from None


def _write_embedding(folder, step, evaluation, images, class_names):
    if evaluation.embedding is not None:
        write_projector(folder, step, evaluation, images, class_names)


def variables_in_histograms():
    """{tag: variable}: the weights, batch norm's scales (gamma) and gradients of the graph that histograms show.

    The gradients are the running means that the optimizer keeps (Adam's first moment, or the momentum), so that no
    further pass through the network is needed. Call it when the graph has all its variables.
    """
    variables = {variable.op.name: variable for variable in tf.global_variables()}
    found = {}
    for variable in tf.trainable_variables():
        name = variable.op.name
        kind = {"kernel": "weights", "gamma": "scales"}.get(name.rpartition("/")[2])
        if kind:
            found["%s/%s" % (kind, name)] = variable
        for slot in ("/Adam", "/Momentum"):
            if name + slot in variables:
                found["gradients/%s" % name] = variables[name + slot]
    return found


def _histogram(values):
    """The tf.HistogramProto of an array's finite values."""
    values = values[np.isfinite(values)].astype(np.float64)
    if not values.size:
        return tf.HistogramProto()
    counts, edges = np.histogram(values, BUCKETS)
    return tf.HistogramProto(min=values.min(), max=values.max(), num=values.size, sum=values.sum(),
                             sum_squares=np.square(values).sum(), bucket_limit=edges[1:], bucket=counts)


def drawn_names(graph):
    """The part of a training graph that TensorBoard draws: the network, up to the loss.

    Of the replicas, which have equal networks, it is the first one, without `replica_0/` before its operations' names:
    so the network's blocks are what is seen at first. The graph of the whole training step is too large to be read.

    Args:
        graph: a tf.Graph. One without a cross entropy is drawn as it is.
    Returns:
        {name of an operation that is drawn: its name in the drawing}.
    """
    loss = next((operation for operation in graph.get_operations()
                 if operation.type == "SparseSoftmaxCrossEntropyWithLogits"), None)
    if loss is None:
        return {operation.name: operation.name for operation in graph.get_operations()}
    found, waiting = {}, [loss]
    while waiting:
        operation = waiting.pop()
        if operation.name not in found:
            found[operation.name] = operation
            waiting += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    replica = re.match(r"(replica_\d+/)?", loss.name).group()
    names = {name: name[len(replica):] if name.startswith(replica) else name for name in found}
    if len(set(names.values())) < len(names):  # one would be taken twice
        names = {name: name for name in names}
    return names


def drawn_graph(graph, names):
    """The tf.GraphDef of the operations in `names`, {name in `graph`: name in the result}; see `drawn_names`.

    Of a constant that several operations share, each gets one of its own, so that no lines lead from layer to layer.
    """
    definition = graph.as_graph_def(add_shapes=True)
    drawn = tf.GraphDef(versions=definition.versions)  # TensorBoard would draw each function of its library beside it
    nodes = {node.name: node for node in definition.node}
    for node in definition.node:
        if node.name in names and not names[node.name].startswith(CONSTANTS):
            copy = drawn.node.add()
            copy.CopyFrom(node)
            copy.name = names[node.name]
            for place, source in enumerate(node.input):  # name, name:1, or ^name
                control, name, output = re.match(r"(\^?)([^:]+)(.*)", source).groups()
                copy.input[place] = control + names[name] + output
                if names[name].startswith(CONSTANTS):
                    constant = drawn.node.add()
                    constant.CopyFrom(nodes[name])
                    constant.name = copy.input[place] = "%s/constant_%d" % (copy.name, place)
    return drawn


class RunLogs:
    """The log files of a run under training. A failure to write is kept in `problem`; the run stops once it is saved.

    Args:
        log_dir, run_name: the files are in `log_dir/run_name`, and there in `train` and `validation`.
        directory: that of the run's checkpoints.
        extent: as of `support.pictures.pictures_of`.
    Attributes:
        problem: what went wrong, or None.
    """

    def __init__(self, log_dir, run_name, directory, extent=pictures.WHOLE):
        self.log_dir, self._directory, self._extent = log_dir, directory, extent
        self.folder = os.path.join(log_dir, run_name, "")
        self.problem = None
        self._files = {}  # of each split
        self._lock = self._begin = self._tested = None
        self._names = {}  # of the operations in the graph that is drawn

    def open(self, step, graph, hyperparameters, tested=False):
        """Opens the files for a run that is at `step`; takes the folder for this process.

        Args:
            graph: the tf.Graph of training. A new run's files get its network.
            hyperparameters: {name: value}.
            tested: whether the test at `step` follows at once, so that one that was logged there is to be forgotten.
        Raises:
            UserError: they cannot be written, another process has them, or they are another run's.
        """
        try:
            os.makedirs(self.folder, exist_ok=True)
            self._take_folder()
            self._begin, self._tested = step, tested
            for split, folder in FOLDERS.items():
                # Those without content are no entries.
                if split not in ("validation", "each test") or os.path.isdir(self.folder + folder):
                    self._file(split)
            self._names = drawn_names(graph)
            if step == 0:
                self._file("train").add(graph_def=drawn_graph(graph, self._names).SerializeToString())
            for summary in _hyperparameter_summaries(hyperparameters):
                self._file("test").add(step, summary=summary)
        except (OSError, tf.errors.OpError) as error:
            raise _cannot_write(self.log_dir, error) from None

    def _take_folder(self):
        """Locks the folder, which a run of the same name in another model_dir may have."""
        self._lock = locked(self.folder, LOCK, [os.path.realpath(path) for path in (self._directory, self.folder)],
                            lambda lines: _check_owner(lines, self.folder, self._directory))

    def close(self):
        """Closes the files and gives up the folder."""
        self._write(lambda: [file.close() for file in self._files.values()])
        if self._lock is not None:
            self._lock.close()

    def scalars(self, split, step, **values):
        """Writes a point of the curves, {tag: value}."""
        self._write(lambda: self._file(split).add(step, summary=tf.Summary(
            value=[tf.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])))

    def evaluation(self, split, step, evaluation, images, class_names, weights_of=None):
        """Writes an Evaluation of a split: its point of the curves, its pictures, and its embedding if it has one.

        Args:
            weights_of: the step of the evaluated weights, which pictures and embedding show; None: `step`, and this is
                not the test at the end of the run.
        """
        curve = "each test" if split == "test" and weights_of is None else split
        weights_of = step if weights_of is None else weights_of
        top_5 = {} if evaluation.top_5_accuracy is None else {"top_5_accuracy": evaluation.top_5_accuracy}
        self.scalars(curve, step, loss=evaluation.loss, accuracy=evaluation.accuracy,
                     balanced_accuracy=evaluation.balanced_accuracy, **top_5)
        extent = self._extent if split == "test" else (self._extent[0],) * 2  # without the view of the mirror image
        self._write(lambda: self._file(split).add(weights_of, summary=picture_summary(
            pictures.pictures_of(evaluation, images, class_names, extent))))
        self._write(lambda: _write_embedding(self.folder, weights_of, evaluation, images, class_names))

    def reuse(self, step, reuse):
        """Writes the pictures of what `support.explanations.feature_reuse` found in the weights that are tested."""
        self._write(lambda: self._file("test").add(step, summary=reuse_summary(reuse)))

    def histograms(self, step, arrays):
        """Writes a histogram of each of {tag: array}."""
        summary = tf.Summary(value=[tf.Summary.Value(tag=tag, histo=_histogram(values))
                                    for tag, values in arrays.items()])
        self._write(lambda: self._file("train").add(step, summary=summary))

    def trace(self, step, metadata):
        """Writes the tf.RunMetadata of a traced step, also as a file for chrome://tracing, and prints its path."""
        def write():
            path = "%strace-step-%d.json" % (self.folder, step)
            of_network = tf.RunMetadata.FromString(metadata.SerializeToString())
            for device in of_network.step_stats.dev_stats:
                for node in device.node_stats:
                    node.node_name = self._names.get(node.node_name, node.node_name)
            self._file("train").add(step, tagged_run_metadata=tf.summary.TaggedRunMetadata(
                tag="step %d" % step, run_metadata=of_network.SerializeToString()))
            with open(path + ".new", "w") as file:
                file.write(Timeline(metadata.step_stats).generate_chrome_trace_format())
            os.replace(path + ".new", path)
            say("traced step %d: %s (chrome://tracing opens it)" % (step, path))

        self._write(write)

    def end(self, step):
        """Marks the run as successful in the HParams tab."""
        self._write(lambda: self._file("test").add(step, summary=hparams_summary.session_end_pb("STATUS_SUCCESS")))

    def stop_if_it_cannot_write(self):
        """Raises UserError if writing has failed; to be called when the run is saved."""
        if self.problem:
            raise UserError("cannot write the logs in %s (%s): make room there; the run is saved, and the same command "
                            "goes on from there" % (self.log_dir, self.problem))

    def _file(self, split):
        """The EventFile of a split, opened when it is first needed."""
        if split not in self._files:
            folder = self.folder + FOLDERS[split]
            os.makedirs(folder, exist_ok=True)
            self._files[split] = EventFile(folder)
            # Tells TensorBoard to forget what a killed process wrote after the checkpoint that is resumed.
            forgotten = self._begin + (not (self._tested and split == "test"))
            self._files[split].add(forgotten, session_log=tf.SessionLog(status=tf.SessionLog.START))
        return self._files[split]

    def _write(self, write):
        if self.problem is None:
            try:
                write()
            except (OSError, tf.errors.OpError) as error:
                self.problem = getattr(error, "strerror", None) or cause_of(error)


def _hyperparameter_summaries(hyperparameters):
    """Summaries for TensorBoard's text and HParams tabs."""
    lines = ["| hyperparameter | value |", "| --- | --- |"]
    lines += ["| %s | %s |" % (name, shown(value)) for name, value in hyperparameters.items()]
    text = tf.Summary()
    metadata = tf.SummaryMetadata(plugin_data=tf.SummaryMetadata.PluginData(plugin_name="text"))
    text.value.add(tag="hyperparameters", metadata=metadata, tensor=tf.make_tensor_proto("\n".join(lines)))
    yield text
    values = {name: value if isinstance(value, (bool, int, float, str)) else shown(value)
              for name, value in hyperparameters.items()}
    first = [name for name in FIRST_HYPERPARAMETERS if name in values]
    yield hparams_summary.experiment_pb(
        [_declared(name, values[name]) for name in first + [name for name in values if name not in first]],
        [api_pb2.MetricInfo(name=api_pb2.MetricName(group=folder, tag=tag), display_name=title)
         for folder, tag, title in METRICS])
    yield hparams_summary.session_start_pb(values)


def _declared(name, value):
    """What the HParams tab is told of a hyperparameter, of which it only knows values without this."""
    info = api_pb2.HParamInfo(name=name)
    if isinstance(value, bool):
        info.type = api_pb2.DATA_TYPE_BOOL
        info.domain_discrete.extend([False, True])
    else:
        info.type = api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64
    if name in FIRST_HYPERPARAMETERS and hasattr(info, "differs"):  # not in TensorBoard 1.15
        info.differs = True
    return info


def _check_owner(lines, folder, directory):
    """Raises UserError if a folder of logs is of another run than that in `directory`, by the lines of its LOCK.

    What was copied or moved with its logs names another folder of logs there, or a run that is no longer there. Earlier
    versions wrote no lines.
    """
    owner, place = lines if len(lines) == 2 else (None, None)
    if place == os.path.realpath(folder) and os.path.realpath(owner) != os.path.realpath(directory) and os.path.exists(
            os.path.join(owner, "settings.json")):
        raise UserError("%s holds the logs of the run %s: set log_dir or run_name to another name" % (folder, owner))


def _cannot_write(folder, error):
    return UserError("cannot write the logs in %s (%s): set log_dir to a folder that can be written"
                     % (folder, getattr(error, "strerror", None) or getattr(error, "message", error)))
