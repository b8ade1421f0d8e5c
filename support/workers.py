"""Which processes and devices train one model, how do they agree, and what happens when a process is lost?"""

import contextlib
import json
import os
import zlib

import numpy as np
import tensorflow.compat.v1 as tf

from support import UserError, cause_of, machine, say
from support.environment import quiet
from support.heartbeat import Heartbeat
from support.machine import cores
from support.replicas import Replica, all_sum, on_each

ROLES = ("chief", "master", "worker", "evaluator")  # in TF_CONFIG's cluster; the last does not train
_GROUP = 1  # group number of collective operations, see support/replicas.py
# The errors by which a session reports that another process has failed.
OF_OTHERS = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.InternalError,
             tf.errors.DeadlineExceededError, tf.errors.UnknownError, tf.errors.FailedPreconditionError)


class Cluster:
    """The processes (workers) that train one model, and the devices of this process.

    Args:
        batch_size: number of images in a step, over all processes; at most, if `images` is given.
        devices: number of replicas in this process. 0: one replica per GPU; without a GPU, two CPU replicas if this is
            the only process, which keeps two cores busy, else one. 0 uses fewer replicas if that number does not divide
            the process's share of the batch evenly, or gives a replica fewer than `least` images.
        sync_batch_norm: see Replica.
        timeout: seconds without a heartbeat after which a worker is lost.
        tf_config: the environment variable TF_CONFIG, see `workers_of`. Empty: there is one process.
        least: least number of images over which a batch normalization takes its statistics.
        images: number of training images. A larger batch becomes the largest one that all replicas can share.
    Attributes:
        replicas: the Replicas of this process.
        batch_size: number of images in a step, over all processes.
        share: the slice of each batch that this worker trains on.
    Raises:
        UserError: `tf_config` is invalid, the batch cannot be divided evenly, or the parts are too small.
    """

    def __init__(self, batch_size=1, devices=0, sync_batch_norm=False, timeout=60.0, tf_config="", least=1,
                 images=None):
        self.timeout = timeout
        self.workers, self.task = workers_of(tf_config)
        # If this is the only process, each session gets a thread pool of its own. By default all sessions share the
        # pool of the process's first session, and the number of threads would change the last bits of the results.
        # A server's sessions keep the default: a pool of their own would be destroyed while operations still run in it.
        # `support` sets the variable, too, for what a Python program runs before.
        os.environ.pop("TF_OVERRIDE_GLOBAL_THREADPOOL", None)
        if self.alone:
            os.environ["TF_OVERRIDE_GLOBAL_THREADPOOL"] = "1"
        with quiet():  # without a GPU, CUDA says so
            gpus = len(machine.gpus())
        self.batch_size = batch_size
        if images is not None and batch_size > images:
            together = len(self.workers) * max(1, devices)
            self.batch_size = images // together * together
            if not self.batch_size:
                raise UserError("the %d training images cannot be shared by %d devices: use fewer, or more images"
                                % (images, together))
        size = self.batch_size // len(self.workers)
        # Two CPU replicas for any number of cores: the results must not depend on the number of cores.
        at_most = devices or gpus or (2 if self.alone else 1)
        parts = size // (1 if sync_batch_norm else least)  # at most so many are large enough
        self.devices = devices or next((count for count in range(min(at_most, parts), 0, -1) if size % count == 0), 1)
        self.count = len(self.workers) * self.devices
        if self.batch_size % self.count:
            raise UserError("batch_size=%d cannot be divided among %d devices%s: make it a multiple" % (
                batch_size, self.count, "" if self.alone else " (%d workers with %d each, as all must have alike)"
                % (len(self.workers), self.devices)))
        self._require(least, sync_batch_norm, self.batch_size < batch_size)
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
        self._config = self._server = self._heartbeat = None

    def _require(self, least, sync_batch_norm, all_images):
        """Raises UserError if a batch normalization gets fewer than `least` images.

        `all_images`: whether the batch holds all the training images that it can hold.
        """
        part = self.batch_size if sync_batch_norm else self.batch_size // self.count
        if part >= least:
            return
        ways = ["more training images" if all_images else "batch_size=%d or more" % (
            least * (1 if sync_batch_norm else self.count))]
        if self.devices > 1:
            ways.append("fewer devices")
        if len(self.workers) > 1:
            ways.append("fewer workers")
        if self.batch_size >= least:
            ways.append("sync_batch_norm=True")
        raise UserError(
            "%s %d image%s, and batch normalization cannot normalize so few where the network has shrunk them to one "
            "pixel: use %s, or a network or stem that shrinks images less" % (
                "the batch has" if self.count == 1 or sync_batch_norm else "each of %d devices gets" % self.count,
                part, "s" if part > 1 else "", ", ".join(ways)))

    @property
    def alone(self):
        """Whether this is the only process."""
        return len(self.workers) == 1

    @property
    def is_chief(self):
        """Whether this is the process that writes checkpoints and logs."""
        return self.task == 0

    def description(self):
        """Returns a text about the replicas that share each batch, to append to the device names. Empty for one."""
        if self.count == 1:
            return ""
        if self.alone and self._kind == "cpu":
            return "; %d parts of each batch at a time" % self.devices
        return "; %d worker%s of %d device%s share each batch" % (
            len(self.workers), "s" if len(self.workers) > 1 else "", self.devices, "s" if self.devices > 1 else "")

    def session_config(self):
        """Returns a tf.ConfigProto for the replicas and workers.

        Operations without a kernel for their device are placed on another one, and GPU memory grows on demand.
        """
        config = tf.ConfigProto(allow_soft_placement=True)
        config.gpu_options.allow_growth = True
        # Disables TensorFlow's graph optimizer, which takes most of the first step's time and makes later steps hardly
        # faster.
        config.graph_options.place_pruned_graph = True
        if self._kind == "cpu":
            config.device_count["CPU"] = self.devices
            if self.devices >= cores():  # each replica keeps one core busy: one thread per operation
                config.intra_op_parallelism_threads = 1
                config.inter_op_parallelism_threads = cores()
        if not self.alone:
            config.isolate_session_state = True
            config.inter_op_parallelism_threads = cores() + 4  # heartbeats need threads while other operations wait
            config.experimental.collective_group_leader = "/job:worker/replica:0/task:0"
            config.device_filters.append("/job:worker/task:%d" % self.task)
        return config

    # In the graph

    def on_each_replica(self, build, *inputs, alike=True):
        """Builds the same part of the graph on each replica of this process: see `support.replicas.on_each`.

        Args:
            build, alike: as there.
            inputs: tensors [N, ...], of which each replica gets an equal part.
        """
        parts = [tf.split(x, self.devices) if self.devices > 1 else [x] for x in inputs]
        return on_each(self.replicas, build, list(zip(*parts)), alike)

    def mean(self, values):
        """Averages float32 tensors over all replicas of all processes.

        Args:
            values: for each replica of this process, a list of tensors.
        Returns:
            a list of means.
        """
        count = tf.constant(float(len(values)))  # one operation for hundreds of means
        means = [tf.add_n(each) / count if len(each) > 1 else each[0] for each in zip(*values)]
        if self.alone:
            return means
        # One collective operation for all means: many small ones take longer.
        flat = self._sum(tf.concat([tf.reshape(mean, [-1]) for mean in means], 0)) / len(self.workers)
        parts = tf.split(flat, [mean.shape.num_elements() for mean in means])
        return [tf.reshape(part, mean.shape) for part, mean in zip(parts, means)]

    def build_agreement(self):
        """Builds the operations that `copy_from_chief` and `total` run. Call it after creating all variables."""
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
        """Starts TensorFlow's server and waits for the other workers.

        Args:
            config: the session's tf.ConfigProto.
        Raises:
            UserError: the server cannot be started.
        """
        if self.alone:
            return
        self._config = config
        try:
            self._server = tf.train.Server({"worker": self.workers}, "worker", self.task, config=config)
        except tf.errors.OpError as error:
            raise UserError("cannot listen at %s, worker %d of TF_CONFIG (%s): set it to a free port of this machine"
                            % (self.workers[self.task], self.task, cause_of(error))) from None
        self.target = self._server.target
        others = range(1, len(self.workers)) if self.is_chief else [0]
        self._heartbeat = Heartbeat(self.target, self.workers, self.task, others, self.timeout)
        self._heartbeat.wait()
        if not self.is_chief:
            say("worker %d of %d: worker 0 (%s) reports progress and writes all files"
                % (self.task, len(self.workers), self.workers[0]))

    def leave(self, sess):
        """Waits until all workers call this method, at most for the time-out. Then each worker may end."""
        if not self.alone:
            self._heartbeat.leaving = True
            try:
                sess.run(self._total, {self._value: [0.0]},
                         options=tf.RunOptions(timeout_in_ms=int(1000 * self.timeout)))
            except tf.errors.OpError:
                pass  # the work is done: a lost worker no longer matters

    # The next two are called by all workers, in the same order, after `start` and before the graph is built.

    def from_chief(self, value):
        """Returns the chief's plain value in every worker."""
        return self._exchanged(value)[0]

    def compare(self, facts):
        """Checks that all workers have the same facts, {name: plain value}.

        Raises:
            UserError: some differ, in every worker. It names them, with the values of two workers.
        """
        own = {}
        for name, value in facts.items():
            text = json.dumps(value, sort_keys=True)
            own[name] = [text if len(text) <= 40 else text[:37] + "...", zlib.crc32(text.encode())]
        every = self._exchanged(own)
        names = sorted(set().union(*every))
        differing = [name for name in names if any(each.get(name) != every[0].get(name) for each in every)]
        if not differing:
            return
        if self._heartbeat is not None:
            self._heartbeat.leaving = True  # all workers end now: none of them is lost
        raise UserError("the workers differ in %s: start all with the same command and the same files" % "; ".join(
            _difference(name, [each.get(name) for each in every]) for name in differing[:5]))

    def _exchanged(self, value):
        """Returns the plain values that the workers give, in the workers' order."""
        if self.alone:
            return [value]
        text = json.dumps(value).encode()
        length = int(self._gathered([len(text)]).max())
        rows = self._gathered(np.frombuffer(text.ljust(length), np.uint8))
        return [json.loads(row.astype(np.uint8).tobytes().decode()) for row in rows]

    def _gathered(self, numbers):
        """Returns the numbers of all workers, float64 [workers, n]: a sum of tables that are zero but for one row."""
        table = np.zeros([len(self.workers), len(numbers)])
        table[self.task] = numbers
        try:
            with tf.Graph().as_default() as graph, tf.device(self.place):
                total = self._sum(tf.constant(table))
                with self.watched(), tf.Session(self.target, config=self._config, graph=graph) as sess:
                    return sess.run(total)
        except tf.errors.OpError as error:
            raise UserError("the workers cannot agree (%s): give all of them the same list of workers in TF_CONFIG, "
                            "and start all again" % type(error).__name__) from None

    def copy_from_chief(self, sess):
        """Sets all variables of every worker to the chief's values."""
        if not self.alone:
            sess.run(self._copy)

    def total(self, sess, values):
        """Returns the sums over all workers of each of n numbers, float64 [n]."""
        values = np.asarray(values, np.float64)
        return values if self.alone else sess.run(self._total, {self._value: values})

    @contextlib.contextmanager
    def watched(self):
        """A context manager. If a lost worker causes a session error, ends this process as the heartbeat does."""
        try:
            yield
        except OF_OTHERS:
            if self._heartbeat is not None:
                self._heartbeat.hurry()
            raise


def _difference(name, values):
    """What the message says of a fact that differs: the values, [text, checksum] or None, of two workers."""
    other = next(task for task, value in enumerate(values) if value != values[0])
    shown = [value[0] if value else "missing" for value in (values[0], values[other])]
    if shown[0] == shown[1]:
        return name  # only the checksums differ: the end of a long text
    return "%s (%s in worker 0, %s in worker %d)" % (name, shown[0], shown[1], other)


def workers_of(tf_config):
    """Reads TF_CONFIG, in the format of TensorFlow's distribution strategies:

        {"cluster": {"chief": ["host:port"], "worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}

    The chief, if there is one, is worker 0, and the others follow. Older services call it master. Keys besides cluster
    and task are ignored. A process without others, or without a cluster, trains alone.

    Returns:
        (addresses of the workers, index of this one).
    Raises:
        UserError: the text is invalid, or names roles that this program does not have.
    """
    try:
        content = json.loads(tf_config) if tf_config.strip() else {}
        cluster = {role.lower(): addresses for role, addresses in (content.get("cluster") or {}).items()}
        task = dict(content.get("task") or {})
        if "type" in task:
            task["type"] = task["type"].lower()
        _refuse_other_roles(cluster, task)
        chiefs = [*(cluster.get("chief") or ()), *(cluster.get("master") or ())]
        workers = chiefs + [*(cluster.get("worker") or ())]
        if not workers:
            return [""], 0
        if len(workers) == 1 and not task:
            task = {"type": "chief" if chiefs else "worker", "index": 0}
        index = int(str(task["index"]))
        places = {"chief": range(len(chiefs)), "master": range(len(chiefs)),
                  "worker": range(len(chiefs), len(workers))}[task["type"]]
        understood = (len(chiefs) <= 1 and 0 <= index < len(places) and len(set(workers)) == len(workers)
                      and all(isinstance(worker, str) and ":" in worker for worker in workers))
    except (ValueError, KeyError, TypeError, AttributeError):
        understood = False
    if not understood:
        raise UserError('TF_CONFIG is not understood: set it to {"cluster": {"worker": ["host:port", ...]}, "task": '
                        '{"type": "worker", "index": 0}}, with distinct addresses and this one\'s index among them')
    return workers, places[index]


def _refuse_other_roles(cluster, task):
    """Raises UserError if TF_CONFIG has roles that do not train here, or gives this process one."""
    if task.get("type") == "evaluator":
        raise UserError("TF_CONFIG makes this process an evaluator, which is not needed: do not start it, the first "
                        "worker reports the evaluation after each epoch")
    if cluster.get("ps") or task.get("type") == "ps":
        raise UserError("TF_CONFIG has parameter servers (ps), which are not used here: start none, and list all "
                        "machines that train under chief and worker")
    unknown = sorted(role for role, addresses in cluster.items() if addresses and role not in ROLES)
    if unknown:
        raise UserError("TF_CONFIG has the role %s, which is not known here: list all machines that train under chief "
                        "and worker" % unknown[0])
