"""Several devices, and several processes, that train one model: who they are, what they agree on, when one is lost."""

import contextlib
import json
import os
import sys
import threading
import time
import zlib

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.python.ops import collective_ops

from support import UserError, say
from support.machine import cores

START_PATIENCE = 10  # times worker_timeout for which a worker is waited for at the start
HEARTBEAT_SECONDS = 1.0
# Groups of collective operations; each of their operations has a number of its own, alike in every member.
_WORKERS, _REPLICAS = 1, 2
_FIRST_OF_REPLICAS = 1000000
# How a session says that another process has failed.
OF_OTHERS = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.InternalError,
             tf.errors.DeadlineExceededError, tf.errors.UnknownError, tf.errors.FailedPreconditionError)


def _all_sum(x, members, group, number):
    """The sum of a tensor over the members of a group, at least two, in each of them."""
    return collective_ops.all_reduce(x, members, group, number, "Add", "Id")


class Replica:
    """One of the devices that share each batch, with a copy of the network on its process's variables.

    Attributes:
        index, count: its number, and how many there are, over all processes.
        device: its name, empty for TensorFlow's own choice.
        has_variables: whether it is the first of its process, on whose device the variables are.
        sync_batch_norm: whether batch normalization takes its statistics over all replicas.
        statistics: [(ops.MovingStatistics, mean, variance)] for each batch normalization; mean and variance are those
            of the replica's part of the batch.
    """

    def __init__(self, index, count, device, has_variables, sync_batch_norm):
        self.index = index
        self.count = count
        self.device = device
        self.has_variables = has_variables
        self.sync_batch_norm = sync_batch_norm
        self.statistics = []
        self._number = _FIRST_OF_REPLICAS

    @contextlib.contextmanager
    def scope(self):
        """Where this replica's network and gradients are built: on its device, with the first one's variables."""
        with tf.device(self.device), contextlib.ExitStack() as stack:
            if self.count > 1:
                stack.enter_context(tf.name_scope("replica_%d" % self.index))
            if not self.has_variables:
                stack.enter_context(tf.variable_scope(tf.get_variable_scope(), reuse=True))
            yield

    def mean_over_all(self, x):
        """The mean of a tensor over all replicas. Its gradient, of the replicas' mean loss, is the gradients' mean."""
        @tf.custom_gradient
        def function(x):
            return self._mean(x), self._mean

        return function(x)

    def _mean(self, x):
        self._number += 1  # the replicas build the same graph, so that they count alike
        return _all_sum(x, self.count, _REPLICAS, self._number) / self.count


class Cluster:
    """The processes (workers) that train one model, and this one's devices.

    Args:
        batch_size: images in a step, of all processes together.
        devices: how many of this process share its part of a batch; 0: as many GPUs as can, else the CPU in two parts
            if it is alone, so that two cores are kept busy.
        sync_batch_norm: see Replica.
        timeout: seconds without a sign of life after which a worker is lost.
        tf_config: names the workers, as TensorFlow's own distribution strategies read it from the environment variable
            TF_CONFIG: {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}. Empty: this
            process is alone.
    Attributes:
        share: the slice of a batch that is this worker's.
    Raises:
        UserError: `tf_config` is not understood, or the batch cannot be divided.
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
        self._server = self._watch = None

    @property
    def alone(self):
        """Whether there is no other process."""
        return len(self.workers) == 1

    @property
    def is_chief(self):
        """Whether this is the process that writes checkpoints and logs."""
        return self.task == 0

    def description(self):
        """How many share each batch, to be said after the devices' names; nothing where there is one."""
        if self.count == 1:
            return ""
        if self.alone and self._kind == "cpu":
            return "; %d parts of each batch at a time" % self.devices
        return "; %d worker%s of %d device%s share each batch" % (
            len(self.workers), "s" if len(self.workers) > 1 else "", self.devices, "s" if self.devices > 1 else "")

    def configure(self, config):
        """Sets in a tf.ConfigProto what the cluster needs; returns it."""
        if self._kind == "cpu":
            config.device_count["CPU"] = self.devices
            if self.devices >= cores():  # each has its own part to work on: no operation needs two
                config.intra_op_parallelism_threads = 1
                config.inter_op_parallelism_threads = cores()
        if not self.alone:
            config.isolate_session_state = True
            config.inter_op_parallelism_threads = cores() + 4  # signs of life need one while others wait
            config.experimental.collective_group_leader = "/job:worker/replica:0/task:0"
            config.device_filters.append("/job:worker/task:%d" % self.task)
        return config

    # What stands in the graph

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
        """To be called once the graph has all its variables: builds what `copy_from_chief` and `total` run."""
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
            return _all_sum(x, len(self.workers), _WORKERS, self._number)

    # While it runs

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
        self._watch = _Watch(self.target, self.workers, self.task, others, self.timeout)
        self._watch.wait()
        if not self.is_chief:
            say("worker %d of %d: worker 0 (%s) shows and writes what comes of it"
                % (self.task, len(self.workers), self.workers[0]))

    def leave(self, sess):
        """Ends the watch over the others, once all have come here: they may end now."""
        if not self.alone:
            self._watch.leaving = True
            try:
                sess.run(self._total, {self._value: [0.0]},
                         options=tf.RunOptions(timeout_in_ms=int(1000 * self.timeout)))
            except tf.errors.OpError:
                pass  # all that was to be done is done

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
        """In it, an error of a session that comes from the loss of a worker ends this process as the watch does."""
        try:
            yield
        except OF_OTHERS:
            if self._watch is not None:
                self._watch.hurry()
            raise


class _Watch:
    """Threads that hear from other workers every second, and end this process when one has been silent for too long.

    Only so is the end certain: a session that waits for a lost worker may never return.
    """

    def __init__(self, target, workers, task, others, timeout):
        self.leaving = False
        self._workers = workers
        self._timeout = timeout
        self._heard = {}
        self._all_here = threading.Event()
        self._began = time.monotonic()
        self._others = list(others)
        for other in self._others:
            threading.Thread(target=self._listen, args=(target, task, other), daemon=True).start()
        threading.Thread(target=self._judge, daemon=True).start()

    def wait(self):
        """Returns when all have been heard of."""
        if not self._all_here.wait(5.0):
            missing = [self._name(other) for other in self._others if other not in self._heard]
            say("waiting for %s" % ", ".join(missing))
            self._all_here.wait()

    def hurry(self):
        """To be called when something went wrong: ends this process if one of the others is silent now, or returns."""
        self._timeout = min(self._timeout, 5 * HEARTBEAT_SECONDS)
        time.sleep(2 * self._timeout)

    def _listen(self, target, task, other):
        """Lets the other worker run an operation every second."""
        config = tf.ConfigProto(isolate_session_state=True, device_filters=[
            "/job:worker/task:%d" % task, "/job:worker/task:%d" % other])
        with tf.Graph().as_default():
            with tf.device("/job:worker/task:%d/cpu:0" % other):
                sign = tf.random.stateless_uniform([], [0, 0])  # not a constant, which would not leave this process
            try:
                with tf.Session(target, config=config) as sess:
                    while True:
                        sess.run(sign)
                        self._heard[other] = time.monotonic()
                        if len(self._heard) == len(self._others):
                            self._all_here.set()
                        time.sleep(HEARTBEAT_SECONDS)
            except tf.errors.OpError:
                if not self.leaving:
                    self._end("%s was lost" % self._name(other))

    def _judge(self):
        while not self.leaving:
            now = time.monotonic()
            for other in self._others:
                if other not in self._heard:
                    if now - self._began > START_PATIENCE * self._timeout:
                        self._end("%s did not come within %g seconds" % (self._name(other),
                                                                         START_PATIENCE * self._timeout))
                elif now - self._heard[other] > self._timeout:
                    self._end("%s was lost, silent for %g seconds" % (self._name(other), self._timeout))
            time.sleep(HEARTBEAT_SECONDS / 4)

    def _name(self, task):
        return "worker %d (%s)" % (task, self._workers[task])

    def _end(self, what):
        print("Densenet.py: %s: start all workers again, they go on from the newest checkpoint" % what,
              file=sys.stderr, flush=True)
        os._exit(1)


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


class Nothing:
    """In a worker that is not the chief, stands for an object of a class that only the chief has: its methods do
    nothing.
    """

    def __init__(self, kind):
        self._kind = kind

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __getattr__(self, name):
        getattr(self._kind, name)  # a method that is not there is an error here, too
        return lambda *_, **__: None
