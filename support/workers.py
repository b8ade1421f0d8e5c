"""Which processes and devices train one model, how do they agree, and what happens when one is lost?"""

import contextlib
import json
import os
import zlib

import numpy as np
import tensorflow.compat.v1 as tf

from support import UserError, say
from support.heartbeat import Heartbeat
from support.machine import cores
from support.replicas import Replica, all_sum

_GROUP = 1  # of collective operations, see support/replicas.py
# How a session says that another process has failed.
OF_OTHERS = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.InternalError,
             tf.errors.DeadlineExceededError, tf.errors.UnknownError, tf.errors.FailedPreconditionError)


class Cluster:
    """The processes (workers) that train one model, and this one's devices.

    Args:
        batch_size: images in a step, of all processes together.
        devices: the number of replicas in this process; 0: all GPUs that divide the batch evenly; without a GPU, two
            CPU replicas where this is the only process, which keeps two cores busy.
        sync_batch_norm: see Replica.
        timeout: seconds without a heartbeat after which a worker is lost.
        tf_config: the environment variable TF_CONFIG, as TensorFlow's distribution strategies read it: {"cluster":
            {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}. Empty: there is one process.
    Attributes:
        replicas: this process's Replicas.
        share: the slice of a batch that this worker takes.
    Raises:
        UserError: `tf_config` is not understood, or the batch cannot be divided evenly.
    """

    def __init__(self, batch_size=1, devices=0, sync_batch_norm=False, timeout=60.0, tf_config=""):
        self.timeout = timeout
        self.workers, self.task = _workers(tf_config)
        # A session has its own number of threads, not that of the process's first one: the same bits wherever it runs.
        # A server's would go before what still runs in them at its end.
        os.environ.pop("TF_OVERRIDE_GLOBAL_THREADPOOL", None)
        if self.alone:
            os.environ["TF_OVERRIDE_GLOBAL_THREADPOOL"] = "1"
        size = batch_size // len(self.workers)
        gpus = len(tf.config.experimental.list_physical_devices("GPU"))
        # Two on any CPU, whatever its cores: the results should not depend on them.
        at_most = devices or gpus or (2 if self.alone else 1)
        self.devices = devices or next(count for count in range(at_most, 0, -1) if size % count == 0)
        self.count = len(self.workers) * self.devices
        if batch_size % self.count:
            raise UserError("batch_size=%d cannot be divided among %d devices: make it a multiple"
                            % (batch_size, self.count))
        self.share = slice(self.task * size, (self.task + 1) * size)
        self._kind = "gpu" if gpus else "cpu"
        self.place = "/job:worker/replica:0/task:%d" % self.task if len(self.workers) > 1 else ""
        shared = self.count > 1
        self.replicas = [
            Replica(self.task * self.devices + index, self.count,
                    "%s/%s:%d" % (self.place, self._kind, index) if shared else "",
                    index == 0, sync_batch_norm and shared) for index in range(self.devices)]
        self.target = ""
        self._number = 0
        self._server = self._heartbeat = None

    @property
    def alone(self):
        """Whether there is no other process."""
        return len(self.workers) == 1

    @property
    def is_chief(self):
        """Whether this is the process that writes checkpoints and logs."""
        return self.task == 0

    def description(self):
        """How many replicas share each batch, as text to follow the devices' names; empty for one replica."""
        if self.count == 1:
            return ""
        if self.alone and self._kind == "cpu":
            return "; %d parts of each batch at a time" % self.devices
        return "; %d worker%s of %d device%s share each batch" % (
            len(self.workers), "s" if len(self.workers) > 1 else "", self.devices, "s" if self.devices > 1 else "")

    def session_config(self, precision="float32"):
        """A tf.ConfigProto: soft placement, GPU memory as it is needed, and what the replicas and workers need."""
        config = tf.ConfigProto(allow_soft_placement=True)
        config.gpu_options.allow_growth = True
        # Leaves out TensorFlow's graph optimizer, which takes most of the first step's time and makes later steps
        # hardly faster. With bfloat16 it must stay: without it, compiled passes span devices and fail.
        config.graph_options.place_pruned_graph = precision != "bfloat16"
        if self._kind == "cpu":
            config.device_count["CPU"] = self.devices
            if self.devices >= cores():  # each replica keeps one core busy: no operation needs two
                config.intra_op_parallelism_threads = 1
                config.inter_op_parallelism_threads = cores()
        if not self.alone:
            config.isolate_session_state = True
            config.inter_op_parallelism_threads = cores() + 4  # heartbeats need a thread while others wait
            config.experimental.collective_group_leader = "/job:worker/replica:0/task:0"
            config.device_filters.append("/job:worker/task:%d" % self.task)
        return config

    # In the graph

    def split(self, x):
        """The parts of a tensor [N, ...] that this process's replicas take."""
        return tf.split(x, self.devices) if self.devices > 1 else [x]

    def mean(self, values):
        """The means over all replicas of float32 tensors.

        Args:
            values: for each replica of this process, a list of tensors.
        """
        count = tf.constant(float(len(values)))  # one operation, not one for each of hundreds of means
        means = [tf.add_n(each) / count if len(each) > 1 else each[0] for each in zip(*values)]
        if self.alone:
            return means
        # All in one: many small collective operations take longer.
        flat = self._sum(tf.concat([tf.reshape(mean, [-1]) for mean in means], 0)) / len(self.workers)
        parts = tf.split(flat, [mean.shape.num_elements() for mean in means])
        return [tf.reshape(part, mean.shape) for part, mean in zip(parts, means)]

    def build_agreement(self):
        """Builds what `copy_from_chief` and `total` run; call it when the graph has all its variables."""
        if self.alone:
            return
        self._value = tf.placeholder(tf.float64, [None], "of_this_worker")
        self._total = self._sum(self._value)
        by_type = {}
        for variable in tf.global_variables():
            by_type.setdefault(variable.dtype.base_dtype, []).append(variable)
        assignments = []
        for dtype in sorted(by_type, key=lambda dtype: dtype.name):
            flat = tf.concat([tf.reshape(variable.read_value(), [-1]) for variable in by_type[dtype]], 0)
            flat = self._sum(flat if self.is_chief else tf.zeros_like(flat))
            parts = tf.split(flat, [variable.shape.num_elements() for variable in by_type[dtype]])
            assignments += [variable.assign(tf.reshape(part, variable.shape), read_value=False)
                            for variable, part in zip(by_type[dtype], parts)]
        self._copy = tf.group(*assignments)

    def _sum(self, x):
        self._number += 1
        with tf.device(self.replicas[0].device):
            return all_sum(x, len(self.workers), _GROUP, self._number)

    # In the session

    def start(self, config):
        """Starts TensorFlow's server, and waits for the other workers.

        Args:
            config: the session's tf.ConfigProto.
        Raises:
            UserError: the server cannot be started.
        """
        if self.alone:
            return
        try:
            self._server = tf.train.Server({"worker": self.workers}, "worker", self.task, config=config)
        except tf.errors.OpError as error:
            raise UserError("cannot listen at %s, worker %d of TF_CONFIG (%s): set it to a free port of this machine"
                            % (self.workers[self.task], self.task, error.message.splitlines()[0])) from None
        self.target = self._server.target
        others = range(1, len(self.workers)) if self.is_chief else [0]
        self._heartbeat = Heartbeat(self.target, self.workers, self.task, others, self.timeout)
        self._heartbeat.wait()
        if not self.is_chief:
            say("worker %d of %d: worker 0 (%s) shows and writes what comes of it"
                % (self.task, len(self.workers), self.workers[0]))

    def leave(self, sess):
        """Waits until all workers have come here, after which each may end."""
        if not self.alone:
            self._heartbeat.leaving = True
            try:
                sess.run(self._total, {self._value: [0.0]},
                         options=tf.RunOptions(timeout_in_ms=int(1000 * self.timeout)))
            except tf.errors.OpError:
                pass  # all that was to be done is done

    def number_from_chief(self, number, config):
        """The chief's value of a number, in every worker; before the graph is built.

        Args:
            number: an integer; used in the chief alone.
            config: the session's tf.ConfigProto.
        """
        if self.alone:
            return number
        with tf.Graph().as_default() as graph, tf.device(self.place):
            total = self._sum(tf.constant(float(number if self.is_chief else 0)))
            with tf.Session(self.target, config=config, graph=graph) as sess:
                return int(sess.run(total))

    def copy_from_chief(self, sess):
        """Sets all variables to the chief's values."""
        if not self.alone:
            sess.run(self._copy)

    def total(self, sess, values):
        """The sums of numbers over all workers, float64 [number of them]."""
        values = np.asarray(values, np.float64)
        return values if self.alone else sess.run(self._total, {self._value: values})

    def compare(self, sess, settings):
        """Raises UserError if not all workers have equal settings, a dictionary of plain values."""
        own = zlib.crc32(json.dumps(settings, sort_keys=True).encode())
        if self.total(sess, [own])[0] != len(self.workers) * own:
            raise UserError("the workers have different hyperparameters or data: start all with the same command, and "
                            "with the same files")

    @contextlib.contextmanager
    def watched(self):
        """A context in which a session error that a lost worker causes ends this process as its heartbeat would."""
        try:
            yield
        except OF_OTHERS:
            if self._heartbeat is not None:
                self._heartbeat.hurry()
            raise


def _workers(tf_config):
    """(addresses of the workers, this one's index). Raises UserError."""
    if not tf_config.strip():
        return [""], 0
    try:
        content = json.loads(tf_config)
        workers = content["cluster"]["worker"]
        task = content["task"]["index"]
        understood = (set(content["cluster"]) == {"worker"} and content["task"]["type"] == "worker" and workers
                      and all(isinstance(worker, str) and ":" in worker for worker in workers)
                      and len(set(workers)) == len(workers)
                      and isinstance(task, int) and 0 <= task < len(workers))
    except (ValueError, KeyError, TypeError):
        understood = False
    if not understood:
        raise UserError('TF_CONFIG is not understood: set it to {"cluster": {"worker": ["host:port", ...]}, "task": '
                        '{"type": "worker", "index": 0}}, with distinct addresses and this one\'s index among them')
    return workers, task
