"""How fast do the networks train and infer, and how much memory do they take? Measured on synthetic images.

    python benchmark.py                                    a table of eight networks
    python benchmark.py network=densenet_121 batch_size=8  one network, by its name in support/networks.py
    python benchmark.py steps=50 json=speed.json           also as JSON
    python benchmark.py network=bc40 against=peer.py       in turns with another program
    python benchmark.py --help                             all settings

The short names are mnist (densenet_mnist_first), bc40 (densenet_bc_40_12), bc100 (densenet_bc_100_12), cifar
(densenet_full_cifar), 121 (densenet_121), and default_mnist, default_cifar and default_folder, the networks that
Densenet.py trains by default. Each row is measured in a process of its own: untimed steps first, then the median of
timed ones.

`against` is a file or a command line, to which the network's name is added: `peer.py bc40`. The program measures that
network and prints one line or two: "images/s 123.4" with anything before and behind, for training, or for inference if
the line contains "inference".
"""

import multiprocessing
import os
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import Densenet  # first: it sets what TensorFlow reads when it is imported

import numpy as np
import tensorflow.compat.v1 as tf

from support import UserError, say, settings
from support.data import DataSet, Split
from support.machine import PRECISIONS
from support.networks import BENCHMARKED, NETWORKS, multiply_adds, synthetic_task
from support.run_directory import check_writable, write_json
from support.settings import boolean, integer, integers, one_of, path
from support.workers import Cluster

NAMES = tuple(BENCHMARKED) + tuple(NETWORKS)

# ---- Settings, here or on the command line ----
network: one_of(("all",) + NAMES) = "all"  # all: a row for each of the short names
blocks: integers(0, 256, most=8) = (0,)  # layers in each dense block; 0: the network's own
growth_k: integer(0, 512) = 0  # growth rate; 0: the network's own
image_size: integer(0, 1024) = 0  # side of the images in pixels; 0: as is usual for the network
precision: one_of(PRECISIONS) = "float32"  # of activations and products
memory_efficient: boolean() = False  # recompute activations in the backward pass to save memory
train_only: settings.declared(Densenet)["train_only"] = "all"  # as in Densenet.py; but for all, GFLOP/s are of one pass
devices: settings.declared(Densenet)["devices"] = 0  # replicas that share each batch; 0: as in Densenet.py
batch_size: integer(0, 65536) = 0  # images in a step; 0: as many as are usual for the network
steps: integer(1, 100000) = 10  # timed steps of training, and of inference
json: path(optional=True) = ""  # a file for the rows as JSON
against: path(optional=True, tensorflow=False) = ""  # a program to compare with: see above
rounds: integer(1, 1000) = 3  # with `against`: how often each of the two programs runs, in turns

WARM_UP_STEPS = 3  # the first one chooses kernels
PEAK_SIDE = 2048  # of the square matrices whose product shows what the machine can do


def measure(network, blocks, growth_k, image_size, precision, memory_efficient, train_only, devices, batch_size, steps):
    """The row of one network, measured in this process: {key: value}, as in the JSON file."""
    network_name = BENCHMARKED.get(network, network)
    if any(blocks) and not all(blocks):
        raise UserError("blocks=%s has a block without layers: leave it out, or give 0 alone for the network's own"
                        % settings.shown(blocks))
    (side, _, channels), class_num, usual_batch_size = synthetic_task(network_name)
    image_shape = (image_size or side, image_size or side, channels)
    config = Densenet.choose(dataset="mnist" if channels == 1 else "cifar10", network=network_name,
                             blocks=blocks if all(blocks) else NETWORKS[network_name]["blocks"],
                             growth_k=growth_k or NETWORKS[network_name]["growth_k"], precision=precision,
                             memory_efficient=memory_efficient, train_only=train_only, devices=devices,
                             batch_size=batch_size or usual_batch_size, flip_average=False, shift_average=0,  # one view
                             weight_decay=0.0, label_smoothing=0.0, ema_decay=0.0)  # plain Adam, as other programs do
    random = np.random.RandomState(0)
    labels = random.randint(0, class_num, config.batch_size)
    split = Split(np.zeros((1,) + image_shape, np.uint8), labels[:1])
    zeros = np.zeros(channels, np.float32)
    data = DataSet(network, split, split, split, tuple(map(str, range(class_num))), zeros, zeros + 1, zeros)

    cluster = Cluster(config.batch_size, config.devices, config.sync_batch_norm)
    session_config = cluster.session_config()
    with tf.Graph().as_default(), tf.Session(config=session_config) as sess:
        sess.run(tf.constant(0))
    bare = peak_megabytes()
    with tf.Graph().as_default(), tf.Session(config=session_config) as sess:
        start = time.perf_counter()
        net = Densenet.build_graph(data, config, cluster)
        sess.run(net.initialize)
        build = time.perf_counter() - start
        images = random.standard_normal((config.batch_size,) + image_shape).astype(np.float32)
        feed = {net.images: images, net.labels: labels, net.rate: config.init_learning_rate}
        first_step, training = seconds(lambda: sess.run([net.train, net.cost, net.accuracy], feed), steps)
        used = peak_megabytes() - bare
        _, inference = seconds(lambda: sess.run([net.test.losses, net.test.predicted], feed), steps)
        parameters = net.parameters
    forward = multiply_adds(config, image_shape, class_num)
    run = multiply_adds(config, image_shape, class_num, run=True)
    passes = 3 if train_only == "all" else 1  # the gradients of all layers cost two passes
    gflops = 2 * passes * run * config.batch_size / training / 1e9
    return {
        "network": network,
        "blocks": config.blocks,
        "growth_k": config.growth_k,
        "image_size": image_shape[0],
        "precision": precision,
        "memory_efficient": memory_efficient,
        "train_only": train_only,
        "devices": cluster.devices,
        "batch_size": config.batch_size,
        "parameters": parameters,
        "multiply_adds": forward,
        "images_per_second": config.batch_size / training,
        "step_ms": 1e3 * training,
        "gflops": gflops,
        "peak_fraction": gflops / peak_gflops(precision),
        "peak_mb": used,
        "build_s": build,
        "first_step_s": first_step,
        "inference_images_per_second": config.batch_size / inference,
        "tensorflow": tf.VERSION,
    }


def seconds(step, steps):
    """(seconds of the first call of `step`, median seconds of `steps` later ones)."""
    durations = []
    for _ in range(WARM_UP_STEPS + steps):
        start = time.perf_counter()
        step()
        durations.append(time.perf_counter() - start)
    return durations[0], statistics.median(durations[WARM_UP_STEPS:])


def peak_gflops(precision):
    """The speed of this machine's matrix product, in GFLOP/s: the fastest of ten products of square matrices."""
    with tf.Graph().as_default(), tf.Session() as sess:
        left, right = (tf.Variable(tf.ones([PEAK_SIDE, PEAK_SIDE], precision)) for _ in range(2))
        product = tf.reduce_max(tf.matmul(left, right))
        sess.run(tf.global_variables_initializer())
        durations = []
        for _ in range(10):
            start = time.perf_counter()
            sess.run(product)
            durations.append(time.perf_counter() - start)
    return 2 * PEAK_SIDE ** 3 / min(durations) / 1e9


def peak_megabytes():
    """The largest memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == "darwin" else 2 ** 10)


def table(rows):
    """The rows as lines of text."""
    columns = (
        ("network", "%-20s", lambda row: row["network"]),
        ("precision", "%-9s", lambda row: row["precision"]),
        ("batch", "%5s", lambda row: row["batch_size"]),
        ("parameters", "%11s", lambda row: format(row["parameters"], ",")),
        ("M mult-adds", "%11s", lambda row: "%.1f" % (row["multiply_adds"] / 1e6)),
        ("images/s", "%8s", lambda row: "%.1f" % row["images_per_second"]),
        ("step ms", "%8s", lambda row: "%.1f" % row["step_ms"]),
        ("GFLOP/s", "%7s", lambda row: "%.0f" % row["gflops"]),
        ("of peak", "%7s", lambda row: "%.0f%%" % (100 * row["peak_fraction"])),
        ("MB", "%6s", lambda row: "%.0f" % row["peak_mb"]),
        ("build s", "%7s", lambda row: "%.1f" % row["build_s"]),
        ("first step s", "%12s", lambda row: "%.1f" % row["first_step_s"]),
        ("inference images/s", "%18s", lambda row: "%.1f" % row["inference_images_per_second"]),
    )
    yield "  ".join(form % head for head, form, _ in columns)
    for row in rows:
        yield "  ".join(form % value(row) for _, form, value in columns)


def measured(values):
    """The row of a network, measured in a process of its own; `values`: the arguments of `measure`."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, **values).result()


def compared(values, against, rounds):
    """Measures a network and another program in turns.

    Args:
        values: the arguments of `measure`.
        against, rounds: the settings of these names.
    Returns:
        (rows of all rounds, each with what the program printed as `peer_images_per_second` and
        `peer_inference_images_per_second`; lines of text with the medians and the ratio of each round).
    """
    rows = []
    for _ in range(rounds):
        row = measured(values)
        row.update(speed_of(against, values["network"]))
        rows.append(row)
    lines = []
    for key, title in (("images_per_second", "training"), ("inference_images_per_second", "inference")):
        if "peer_" + key in rows[0]:
            ours, theirs = ([row[prefix + key] for row in rows] for prefix in ("", "peer_"))
            ratios = [our / their for our, their in zip(ours, theirs)]
            lines.append("%s %s %s: %.1f images/s, %s %.1f (medians); ratios %s, median %.2f" % (
                values["network"], values["precision"], title, statistics.median(ours), against,
                statistics.median(theirs), ", ".join("%.2f" % ratio for ratio in ratios), statistics.median(ratios)))
    return rows, lines


def speed_of(against, network):
    """What another program measures: {"peer_images_per_second": …, "peer_inference_images_per_second": …}, or one.

    Raises:
        UserError: the program cannot be run, fails, or prints no line of the form that this file's docstring has.
    """
    command = ([against] if os.path.exists(against) else shlex.split(against)) + [network]
    if command[0].endswith(".py") and not os.access(command[0], os.X_OK):
        command.insert(0, sys.executable)
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    except OSError as error:
        raise UserError("cannot run %s (%s): set against to a program" % (command[0], error.strerror)) from None
    if run.returncode:
        raise UserError("%s ended with status %d (%s): mend it, or leave against out" % (
            " ".join(command), run.returncode, (run.stderr.strip().splitlines() or ["without a message"])[-1]))
    found = {}
    for line in run.stdout.splitlines():
        for before, number in re.findall(r"(.*?)images/s[ :=]*([0-9][0-9.,]*(?:[eE][+-]?[0-9]+)?)", line):
            try:
                speed = float(number.rstrip(".,").replace(",", ""))
            except ValueError:
                raise UserError("%s printed images/s %s, which is no number" % (" ".join(command), number)) from None
            found["peer_inference_images_per_second" if "inference" in before else "peer_images_per_second"] = speed
    if not found or 0 in found.values():
        raise UserError('%s printed no line with "images/s" and a number above 0, as described in --help'
                        % " ".join(command))
    return found


def main(arguments):
    """Runs the program; returns its exit status."""
    module = sys.modules[__name__]
    try:
        if {"--help", "-h"} & set(arguments):
            say(__doc__)
            say(settings.help_text(module, vars(module)))
            return 0
        values = dict(settings.constants_of(module), **settings.given_in(arguments, {}, settings.declared(module)))
        rows = []
        file_name, against, rounds = (values.pop(name) for name in ("json", "against", "rounds"))
        if file_name:
            check_writable(file_name, "json")  # now, before the time it takes
        for name in BENCHMARKED if values["network"] == "all" else (values["network"],):
            if against:
                its_rows, lines = compared(dict(values, network=name), against, rounds)
                rows += its_rows
                for line in lines:
                    say(line)
            else:
                rows.append(measured(dict(values, network=name)))
        for line in table(rows):
            say(line)
        if file_name:
            write_json(file_name, rows, "json")
    except UserError as error:
        print("benchmark.py: %s" % error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
