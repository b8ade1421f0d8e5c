"""Helpers for several test modules: a tiny configuration, reading a run's files, starting the program."""

import contextlib
import glob
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import tensorflow.compat.v1 as tf

import Densenet
from support import command_line, download, modes
from support.augmentation import training_batches
from support.interruption import URGENT, WARNINGS
from support.settings import shown
from support.workers import Cluster

PROGRAM = os.path.abspath(Densenet.__file__)


TINY = dict(blocks=(1, 2), growth_k=4, bottleneck=True, stem="3x3s2", stem_channels=0, init_learning_rate=0.02,
            rotation=0.0, batch_size=50, validation_size=30, total_epochs=2, ema_decay=0.0)


def tiny_config(tiny_mnist, **changes):
    return Densenet.choose(data_dir=tiny_mnist, **dict(TINY, **changes))


def weights_of(run, step):
    reader = tf.train.load_checkpoint(os.path.join(run, "dense.ckpt-%d" % step))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def assert_equal_weights(first, second):
    assert set(first) == set(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def curves(pattern):
    """Returns the scalars in TensorBoard files, {tag: {step: value}}."""
    found = {}
    for path in sorted(glob.glob(pattern)):
        for event in tf.train.summary_iterator(path):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


@contextlib.contextmanager
def before_the_first_step(tiny_mnist, **changes):
    """Yields the session and tensors of a new run, by default on one device, and the images and labels of a batch."""
    config = tiny_config(tiny_mnist, **dict(dict(devices=1), **changes))
    data, _ = Densenet.prepare_data(config)
    cluster = Cluster(config.batch_size, config.devices, config.sync_batch_norm)
    with tf.Graph().as_default(), tf.Session(config=cluster.session_config()) as sess:
        net = Densenet.build_graph(data, config, cluster)
        sess.run(net.initialize)
        images, labels = next(training_batches(data, config, 0, 0))
        yield sess, net, images, labels


def logits_in(graph):
    """Returns the logits of each cross entropy: training, validation, and the test if it averages image variants."""
    return [operation.inputs[0] for operation in graph.get_operations()
            if operation.type == "SparseSoftmaxCrossEntropyWithLogits"]


def offline(*_):
    raise download.Unavailable("no network")


@contextlib.contextmanager
def default_signals():
    """A program that is started here begins with the default handlers, also where the tests were started without.

    A background job of a script ignores SIGINT, nohup ignores SIGHUP, and programs inherit what is ignored.
    """
    before = {number: signal.signal(number, signal.SIG_DFL) for number in URGENT + WARNINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def program(arguments, **options):
    with default_signals():
        return subprocess.Popen([sys.executable, "-W", "ignore", PROGRAM] + arguments, **dict(
            dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True), **options))


def arguments_for(tiny_mnist, name, **changes):
    options = dict(TINY, data_dir=tiny_mnist, run_name=name, dropout_rate=0.2, **changes)
    return ["%s=%s" % (key, shown(value)) for key, value in options.items()]


def wait_for(condition, process):
    """Waits until the condition holds; fails if the process ends first or 300 seconds pass."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.001)


def read(path):
    with open(path) as file:
        return json.load(file)


def main(arguments):
    """Runs the program in this process; returns its exit status."""
    return command_line.main(Densenet, arguments)


def trained_parts(**run):
    """Returns (config, directory, facts) of a trained run."""
    found = modes.trained_network(Densenet.choose, **run)
    return found.config, found.directory, found.facts
