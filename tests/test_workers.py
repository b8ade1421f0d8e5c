"""Training with several devices in one process, and with several processes on one machine.

    python -m pytest -q tests/test_workers.py --long -s   repeats each fault ten times
"""

import glob
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from unittest import mock

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import (
    arguments_for,
    assert_equal_weights,
    before_the_first_step,
    logits_in,
    program,
    read,
    tiny_config,
    wait_for,
    weights_of,
)

import Densenet
from support import UserError, batch_statistics, convolution
from support.augmentation import training_batches
from support.training_run import TrainingRun
from support.workers import Cluster, workers_of

STEPS = 20
EPOCHS = 20  # of 6 steps each, in the runs that are interrupted
TIMEOUT = 10  # seconds without a heartbeat; a busy machine can delay a worker


@pytest.fixture
def times(request):
    """How many times each fault is injected."""
    return 10 if request.config.getoption("--long") else 1


def trained(data_dir, devices, **changes):
    """Returns all variables after STEPS training steps, {name: value}.

    Computed alike on all processors: two devices normalize with other kernels than one, and in some steps rounding
    decides whether a rectified value is 0.
    """
    config = tiny_config(data_dir, batch_size=32, epsilon=1e-3, devices=devices, **changes)
    data, _ = Densenet.prepare_data(config)
    cluster = Cluster(config.batch_size, devices, config.sync_batch_norm,
                      tf_config=os.environ.get("TF_CONFIG", ""))
    with tf.Graph().as_default() as graph, tf.device(cluster.place):
        with mock.patch.object(batch_statistics, "has_fused_operations", lambda *_: False), \
                mock.patch.object(convolution, "only_avx2", lambda: False):
            net = Densenet.build_graph(data, config, cluster)
        session_config = cluster.session_config()
        # As with several workers: this option affects rounding, and dropout amplifies the differences.
        session_config.graph_options.place_pruned_graph = False
        cluster.start(session_config)
        with tf.Session(cluster.target, config=session_config, graph=graph) as sess:
            sess.run(net.initialize)
            cluster.copy_from_chief(sess)
            epoch_steps = len(data.train) // config.batch_size
            for step in range(STEPS):
                if step % epoch_steps == 0:
                    batches = training_batches(data, config, step // epoch_steps, 0, cluster.share)
                images, labels = next(batches)
                sess.run(net.train, {net.images: images, net.labels: labels, net.rate: 1e-2})
            values = sess.run(tf.global_variables())
            cluster.leave(sess)
            return dict(zip([variable.name for variable in tf.global_variables()], values))


def assert_near(first, second):
    assert set(first) == set(second)
    differences = {name: np.abs(first[name] - second[name]).max() for name in first}
    assert max(differences.values()) <= 1e-5, differences


@pytest.fixture(scope="module")
def trained_alone(tiny_mnist):
    """All variables after training on one device, {bottleneck: {name: value}}."""
    return {bottleneck: trained(tiny_mnist, 1, bottleneck=bottleneck) for bottleneck in (False, True)}


@pytest.mark.parametrize("devices,bottleneck", [
    (2, True), (4, False), pytest.param(2, False, marks=pytest.mark.long),
    pytest.param(4, True, marks=pytest.mark.long)])
def test_synchronized_devices_match_one_device(tiny_mnist, trained_alone, bottleneck, devices):
    shared = trained(tiny_mnist, devices, bottleneck=bottleneck, sync_batch_norm=True)
    assert_near(shared, trained_alone[bottleneck])


@pytest.mark.parametrize("train_only", ["head", "last_block"])
def test_synchronized_devices_match_one_device_with_frozen_layers(tiny_mnist, train_only):
    assert_near(trained(tiny_mnist, 2, sync_batch_norm=True, train_only=train_only),
                trained(tiny_mnist, 1, train_only=train_only))


def test_without_synchronization_the_moving_statistics_are_the_mean_over_devices(tiny_mnist):
    """After one batch, the debiased moving mean is the batch mean, which equals the mean of the halves' means."""
    found = {}
    for devices in (1, 2):
        with before_the_first_step(tiny_mnist, batch_size=32, bottleneck=True, devices=devices) as (
                sess, net, images, labels):
            sess.run(net.train, {net.images: images, net.labels: labels, net.rate: 0.0})
            first = "dense_0/bottleN_0/batch1/moving_"
            named = {variable.op.name: variable for variable in tf.global_variables()}
            found[devices] = sess.run([named[first + "mean"], named[first + "variance"],
                                       named[first + "mean/local_step"]])
    np.testing.assert_allclose(found[2][0], found[1][0], rtol=1e-4, atol=1e-6)
    assert found[2][2] == found[1][2] == 1
    assert (found[2][1] < found[1][1]).all()  # excludes the variance between the halves' means


def test_dropout_masks_differ_by_device_and_repeat(tiny_mnist):
    def logits_of_halves():
        with before_the_first_step(tiny_mnist, batch_size=32, dropout_rate=0.5, devices=2) as (sess, net, images, _):
            images[16:] = images[:16]
            logits = logits_in(sess.graph)[:2]
            assert [tensor.name.split("/")[0] for tensor in logits] == ["replica_0", "replica_1"]
            return sess.run(logits, {net.images: images})

    first, second = logits_of_halves()
    assert np.abs(first - second).max() > 1e-3
    again = logits_of_halves()
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])


def test_the_shares_of_all_workers_make_up_the_batch(tiny_mnist):
    config = tiny_config(tiny_mnist, batch_size=48, rotation=10.0, shift=2, flip=True)
    data, _ = Densenet.prepare_data(config)
    whole = list(training_batches(data, config, 1, 2))
    shares = [list(training_batches(data, config, 1, 2, slice(start, start + 16))) for start in (0, 16, 32)]
    for (images, labels), *parts in zip(whole, *shares):
        np.testing.assert_array_equal(images, np.concatenate([part[0] for part in parts]))
        np.testing.assert_array_equal(labels, np.concatenate([part[1] for part in parts]))


def test_a_batch_that_cannot_be_divided_is_refused(tiny_mnist, folder):
    with pytest.raises(UserError, match="batch_size=50 cannot be divided among 4 devices"):
        Densenet.train(arguments_for(tiny_mnist, "mine", devices=4))


@pytest.mark.once
def test_the_most_gpus_that_divide_the_batch_are_used(tiny_mnist, folder, monkeypatch):
    """The GPUs are simulated; soft placement runs their part of the graph on the CPU."""
    monkeypatch.setattr(tf.config.experimental, "list_physical_devices", lambda kind: [kind] * 8)
    cluster = Cluster(100)
    assert [replica.device for replica in cluster.replicas] == ["/gpu:%d" % index for index in range(5)]
    assert Cluster(100, devices=2).count == 2 and Cluster(96).count == 8 and Cluster(97).count == 1
    assert Densenet.train(arguments_for(tiny_mnist, "mine"))["steps"] == 12


@pytest.mark.parametrize("cores, threads", [(1, 1), (2, 1), (8, 0)])
def test_a_cpu_splits_each_batch_into_two_parts(monkeypatch, cores, threads):
    """For any number of cores. With at most two cores, each op runs on one thread; 0: TensorFlow's default."""
    monkeypatch.setattr("support.workers.cores", lambda: cores)
    assert Cluster(100).devices == 2 and Cluster(97).devices == 1
    config = Cluster(100).session_config()
    assert config.device_count["CPU"] == 2 and config.intra_op_parallelism_threads == threads
    assert Cluster(100, tf_config=environments(2)[0]["TF_CONFIG"]).devices == 1


@pytest.mark.campaign
def test_a_run_resumes_with_another_number_of_devices(tiny_mnist, folder, capsys):
    Densenet.train(arguments_for(tiny_mnist, "mine", total_epochs=1, devices=1))
    Densenet.train(arguments_for(tiny_mnist, "mine", total_epochs=2, devices=2))
    output = capsys.readouterr().out
    assert "resuming after step 6" in output and "1 device shared each batch until then, 2 from now on" in output
    assert "2 parts of each batch at a time" in output
    assert read("model/mine/result.json")["steps"] == 12


# ---- Parts of a batch ----

def test_a_part_of_one_image_is_not_made_where_batch_normalization_would_get_one_value():
    assert Cluster(2).devices == 2 and Cluster(2, least=2).devices == 1
    assert Cluster(4, least=2).devices == 2  # as without `least`
    assert Cluster(2, sync_batch_norm=True, least=2).devices == 2  # then the statistics are those of both images


def test_gpus_get_parts_that_are_large_enough(monkeypatch):
    monkeypatch.setattr(tf.config.experimental, "list_physical_devices", lambda kind: [kind] * 4)
    assert [Cluster(size, least=2).devices for size in (2, 3, 4, 6, 8)] == [1, 1, 2, 3, 4]
    assert [Cluster(size).devices for size in (2, 3, 4, 6, 8)] == [2, 3, 4, 3, 4]


@pytest.mark.parametrize("options,ways", [
    (dict(batch_size=1), "the batch has 1 image, .* use batch_size=2 or more, or a network"),
    (dict(batch_size=2, devices=2), "each of 2 devices gets 1 image, .* use batch_size=4 or more, fewer devices, "
                                    "sync_batch_norm=True, or a network or stem"),
    (dict(batch_size=1, sync_batch_norm=True), "the batch has 1 image, .* use batch_size=2 or more, or a network"),
    (dict(batch_size=32, images=1), "the batch has 1 image, .* use more training images, or a network"),
    (dict(batch_size=2, tf_config='{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}'),
     "each of 2 devices gets 1 image, .* use batch_size=4 or more, fewer workers, sync_batch_norm=True, or"),
])
def test_a_part_of_one_image_that_cannot_be_avoided_is_refused(options, ways):
    with pytest.raises(UserError, match=ways):
        Cluster(least=2, **options)


@pytest.mark.parametrize("devices,workers,expected", [(0, 1, 9), (1, 1, 9), (2, 1, 8), (4, 1, 8), (0, 2, 8), (3, 2, 6)])
def test_a_batch_of_more_than_the_training_images_takes_what_all_devices_can_share(devices, workers, expected):
    tf_config = "" if workers == 1 else environments(workers)[1]["TF_CONFIG"]
    cluster = Cluster(32, devices, tf_config=tf_config, images=9)
    size = expected // workers
    assert cluster.batch_size == expected
    assert cluster.share == (slice(0, size) if workers == 1 else slice(size, 2 * size))


def test_a_batch_of_at_most_the_training_images_stays():
    assert Cluster(9, images=9).batch_size == 9 and Cluster(8, images=9).batch_size == 8
    with pytest.raises(UserError, match="batch_size=9 cannot be divided among 2 devices"):
        Cluster(9, 2, images=9)
    with pytest.raises(UserError, match="the 3 training images cannot be shared by 4 devices"):
        Cluster(32, 4, images=3)


# ---- TF_CONFIG ----

def config_of(cluster, kind="worker", index=0, **others):
    return json.dumps(dict(cluster=cluster, task={"type": kind, "index": index, "trial": "1"}, **others))


@pytest.mark.parametrize("text,workers,task", [
    (config_of({"worker": ["a:1", "b:1"]}, "worker", 1), ["a:1", "b:1"], 1),
    (config_of({"chief": ["c:1"], "worker": ["a:1", "b:1"]}, "chief"), ["c:1", "a:1", "b:1"], 0),
    (config_of({"worker": ["a:1", "b:1"], "chief": ["c:1"]}, "worker", 0), ["c:1", "a:1", "b:1"], 1),
    (config_of({"chief": ["c:1"], "worker": ["a:1", "b:1"]}, "worker", "1"), ["c:1", "a:1", "b:1"], 2),
    (config_of({"master": ["c:1"], "worker": ["a:1"]}, "master", "0"), ["c:1", "a:1"], 0),
    (config_of({"chief": ["c:1"], "worker": ["a:1"], "ps": [], "evaluator": ["e:1"]}, "worker", 0, environment="cloud",
               job={"scale_tier": "CUSTOM"}, rpc_layer="grpc"), ["c:1", "a:1"], 1),
    (config_of({"Chief": ["c:1"], "WORKER": ["a:1"]}, "Worker", 0), ["c:1", "a:1"], 1),
])
def test_chief_and_workers_are_numbered_from_the_chief(text, workers, task):
    assert workers_of(text) == (workers, task)


@pytest.mark.parametrize("text", [
    "", "  ", "{}", '{"cluster": {}}', '{"cluster": null, "task": null}', '{"environment": "cloud"}',
    config_of({}, "worker", 0), config_of({"worker": []}), config_of({"chief": ["a:1"]}, "chief"),
    config_of({"chief": ["a:1"]}, "chief", "0"), config_of({"master": ["a:1"]}, "master"),
    config_of({"worker": ["a:1"]}), config_of({"chief": ["a:1"], "worker": []}, "chief"),
    '{"cluster": {"worker": ["a:1"]}}', '{"cluster": {"chief": ["a:1"]}, "task": {}}',
])
def test_a_process_without_others_trains_alone(text):
    cluster = Cluster(tf_config=text)
    assert cluster.alone and cluster.is_chief and cluster.place == "" and cluster.devices == 1


@pytest.mark.parametrize("text", [
    "nonsense", "[]", "3", "null", '{"cluster": [1]}', '{"cluster": {"worker": ["a:1", "b:1"]}}',
    '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker"}}',
    config_of({"worker": "a:1"}), config_of({"worker": ["a", "b"]}), config_of({"worker": ["a:1", 3]}),
    config_of({"worker": ["a:1", "b:1"]}, index=2), config_of({"worker": ["a:1", "b:1"]}, index=-1),
    config_of({"worker": ["a:1", "b:1"]}, index="x"), config_of({"worker": ["a:1", "b:1"]}, index=True),
    config_of({"worker": ["a:1", "b:1"]}, "chief"), config_of({"worker": ["a:1", "a:1"]}),
    config_of({"chief": ["a:1", "b:1"]}, "chief"), config_of({"chief": ["a:1"], "worker": ["a:1"]}, "chief"),
    config_of({"chief": ["a:1"], "master": ["b:1"]}, "master"), config_of({"worker": ["a:1", "b:1"]}, ["worker"]),
])
def test_an_invalid_cluster_description_is_refused(text):
    with pytest.raises(UserError, match="TF_CONFIG is not understood: set it to"):
        workers_of(text)


@pytest.mark.parametrize("text,sentence", [
    (config_of({"chief": ["a:1"]}, "evaluator"), "an evaluator, which is not needed: do not start it"),
    (config_of({}, "evaluator"), "an evaluator, which is not needed: do not start it"),
    (config_of({"chief": ["a:1"], "ps": ["b:1"]}, "chief"), r"parameter servers \(ps\), .*: start none"),
    (config_of({"worker": ["a:1"], "ps": ["b:1"]}, "ps"), r"parameter servers \(ps\), .*: start none"),
    (config_of({"workerpool0": ["a:1"], "workerpool1": ["b:1"]}, "workerpool1"),
     "the role workerpool0, which is not known here: list all machines that train under chief and worker"),
])
def test_roles_without_work_get_one_sentence(text, sentence):
    with pytest.raises(UserError, match=sentence):
        workers_of(text)


@pytest.mark.once
def test_a_cluster_of_one_chief_trains(tiny_mnist, folder, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config_of({"chief": ["cmle-training-0:2222"]}, "chief", "0"))
    assert Densenet.train(arguments_for(tiny_mnist, "mine", total_epochs=1))["steps"] == 6


# ---- What the workers have in common ----

def in_threads(function, tf_configs):
    """Calls function(cluster) for started workers, each in a thread of this process; returns results or errors."""
    found = [None] * len(tf_configs)

    def run(task):
        cluster = Cluster(12, tf_config=tf_configs[task])
        try:
            cluster.start(cluster.session_config())
            found[task] = function(cluster)
        except UserError as error:
            found[task] = error
        cluster._heartbeat.leaving = True

    threads = [threading.Thread(target=run, args=[task], daemon=True) for task in range(len(tf_configs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found


def test_workers_exchange_plain_values_and_name_what_differs():
    """Three of them, whose differences would cancel in a sum of checksums."""
    long = "x" * 5000
    facts = [dict(devices=2, seed=1, total_epochs=5, names=[long], blocks=(1, 2)),
             dict(devices=1, seed=1, total_epochs=4, names=[long + "y"], blocks=(1, 2)),
             dict(devices=2, seed=1, total_epochs=6, names=[long], blocks=(1, 2), new=True)]

    def agree(cluster):
        assert cluster.from_chief(["bfloat16", None][bool(cluster.task)]) == "bfloat16"
        cluster.compare(facts[0])
        cluster.compare(facts[cluster.task])

    for error in in_threads(agree, [environment["TF_CONFIG"] for environment in environments(3)]):
        assert str(error) == (
            "the workers differ in devices (2 in worker 0, 1 in worker 1); names; new (missing in worker 0, true in "
            "worker 2); total_epochs (5 in worker 0, 4 in worker 1): start all with the same command and the same "
            "files")


@pytest.mark.skipif(tf.VERSION.startswith("1."), reason="tells worker 1 alone; the heartbeat ends worker 0 after it")
def test_workers_with_lists_of_unlike_lengths_get_one_sentence(monkeypatch):
    """Worker 1 waits for a third one, which worker 0 does not know. A lost worker would end this process."""
    monkeypatch.setattr("support.heartbeat.Heartbeat.hurry", lambda self: None)
    first, second, _ = (json.loads(environment["TF_CONFIG"]) for environment in environments(3))
    del first["cluster"]["worker"][2]
    found = in_threads(lambda cluster: cluster.compare({}), [json.dumps(first), json.dumps(second)])
    for error in found:
        assert "give all of them the same list of workers in TF_CONFIG" in str(error)


def test_one_process_agrees_with_itself():
    cluster = Cluster(8)
    cluster.compare(dict(devices=2))
    assert cluster.from_chief("float32") == "float32"


def compared(tiny_mnist, monkeypatch, **changes):
    """What TrainingRun compares, {name: value}."""
    found = {}
    monkeypatch.setattr(Cluster, "compare", lambda self, facts: found.update(facts))
    config = tiny_config(tiny_mnist, **changes)
    TrainingRun(config, Densenet.prepare_data(config)[0])
    return json.loads(json.dumps(found))


@pytest.mark.parametrize("change", [
    dict(seed=1), dict(batch_size=25), dict(total_epochs=3), dict(test_every_epoch=True), dict(sync_batch_norm=True),
    dict(validation_size=29), dict(rotation=1.0), dict(weight_decay=0.1), dict(precision="bfloat16"), dict(epsilon=0.1),
])
def test_what_workers_must_have_alike_is_compared(tiny_mnist, monkeypatch, change):
    before, after = compared(tiny_mnist, monkeypatch), compared(tiny_mnist, monkeypatch, **change)
    assert before["TensorFlow"] == ".".join(tf.VERSION.split(".")[:2]) and "contents of the images" in before
    assert {name for name in change if before[name] != after[name]} == set(change)


def test_the_devices_are_compared_where_they_share_the_batch_statistics(tiny_mnist, monkeypatch):
    """Without that, workers with different numbers of devices train together, as their means have equal weights."""
    apart, shared = (compared(tiny_mnist, monkeypatch, devices=2, memory_efficient=True, sync_batch_norm=sync)
                     for sync in (False, True))
    assert (shared["devices"], shared["memory_efficient"]) == (2, True)
    assert "devices" not in apart and "memory_efficient" not in apart
    # Places where files are, and how often they are written, are each worker's own.
    assert not {"model_dir", "log_dir", "data_dir", "checkpoint_minutes", "trace_step", "worker_timeout"} & set(apart)


# ---- Several processes ----

def environments(count):
    """Returns the environment variables of `count` workers on this machine."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    workers = ["127.0.0.1:%d" % each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return [dict(os.environ, TF_CONFIG=json.dumps({"cluster": {"worker": workers},
                                                   "task": {"type": "worker", "index": index}}))
            for index in range(count)]


def saved(name):
    return lambda: glob.glob("model/%s/dense.ckpt-*.index" % name)


def pair(command):
    """Starts two workers of a run."""
    return [program(command, env=environment) for environment in environments(2)]


def ended(process):
    """Waits for the process; returns its exit status, standard output and own messages on standard error."""
    output, error = process.communicate(timeout=300)
    return process.returncode, output, "\n".join(
        line for line in error.splitlines() if line.startswith(("Densenet.py", "Traceback")))


@pytest.mark.campaign
@pytest.mark.parametrize("devices,dropout_rate,train_only", [(1, 0.3, "all")] + [
    pytest.param(*options, marks=pytest.mark.long) for options in (
        (1, 0.3, "last_block"), (1, 0.0, "head"), (1, 0.0, "all"), (2, 0.0, "all"))])
def test_two_workers_match_one_process(tiny_mnist, trained_alone, folder, devices, dropout_rate, train_only):
    """With dropout, the reference is one process with two devices, because the masks differ by device."""
    settings = dict(dropout_rate=dropout_rate, bottleneck=True, sync_batch_norm=True, train_only=train_only)
    # One thread per op in every process: with dropout, rounding differences grow beyond 1e-5.
    script = "import sys, numpy, support.workers, test_workers as t; support.workers.cores = lambda: 1; " \
             "numpy.savez(sys.argv[2], **{name.replace('/', '|'): value for " \
             "name, value in t.trained(sys.argv[1], int(sys.argv[3]), **%r).items()})" % settings

    def results(environments, devices):
        processes = []
        for index, environment in enumerate(environments):
            environment["PYTHONPATH"] = os.pathsep.join(sys.path)
            processes.append(subprocess.Popen(
                [sys.executable, "-c", script, tiny_mnist, "%d.npz" % index, str(devices)], env=environment))
        assert [process.wait(300) for process in processes] == [0] * len(processes)
        return [{name.replace("|", "/"): value for name, value in np.load("%d.npz" % index).items()}
                for index in range(len(processes))]

    first, second = results(environments(2), devices)
    assert_equal_weights(first, second)
    expected = trained_alone[True]
    if dropout_rate or train_only != "all":
        expected, = results([dict(os.environ)], 2)
    assert_near(first, expected)


@pytest.mark.once
@pytest.mark.parametrize("number,lost", [
    (signal.SIGKILL, 0), (signal.SIGSTOP, 1),
    pytest.param(signal.SIGKILL, 1, marks=pytest.mark.long), pytest.param(signal.SIGSTOP, 0, marks=pytest.mark.long)])
def test_a_lost_worker_ends_the_others_and_all_resume_exactly(tiny_mnist, folder, times, number, lost):
    for time_of in range(times):
        name = "lost%d" % time_of
        processes = pair(arguments_for(tiny_mnist, name, total_epochs=EPOCHS, checkpoint_minutes=0.001,
                                       worker_timeout=TIMEOUT))
        wait_for(saved(name), processes[0])
        began = time.monotonic()
        processes[lost].send_signal(number)
        status, _, error = ended(processes[1 - lost])
        seconds = time.monotonic() - began
        processes[lost].kill()
        processes[lost].communicate()
        assert status == 1 and seconds < TIMEOUT + 10, (status, seconds, error)
        assert error.startswith("Densenet.py: worker %d (127.0.0.1:" % lost) and error.count("\n") == 0, error
        assert "was lost" in error and "start all workers again" in error, error
        print("%s of worker %d: the other one ended after %.1f s" % (number.name, lost, seconds))
    if number == signal.SIGSTOP and times == 1:
        return  # the short form resumes after SIGKILL only
    for run in (name, "unbroken"):
        statuses, outputs, errors = zip(*map(ended, pair(arguments_for(tiny_mnist, run, total_epochs=EPOCHS))))
        assert statuses == (0, 0), errors
        assert ("resuming after step" in outputs[0]) == (run == name), outputs
    assert_equal_weights(weights_of("model/" + name, 6 * EPOCHS), weights_of("model/unbroken", 6 * EPOCHS))


@pytest.mark.long
def test_a_lost_worker_of_three_ends_the_other_two(tiny_mnist, folder):
    processes = [program(arguments_for(tiny_mnist, "mine", batch_size=48, total_epochs=1000, checkpoint_minutes=0.001,
                                       worker_timeout=TIMEOUT), env=environment) for environment in environments(3)]
    wait_for(saved("mine"), processes[0])
    began = time.monotonic()
    processes[2].send_signal(signal.SIGSTOP)
    errors = []
    for process in processes[:2]:
        status, _, error = ended(process)
        assert status == 1 and "was lost" in error and error.count("\n") == 0, error
        errors.append(error)
    seconds = time.monotonic() - began
    processes[2].kill()
    processes[2].communicate()
    assert errors[0].startswith("Densenet.py: worker 2 "), errors
    assert seconds < TIMEOUT + 10, (seconds, errors)
    print("SIGSTOP of worker 2 of 3: the others ended after %.1f s" % seconds)


@pytest.mark.once
@pytest.mark.parametrize("missing", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_worker_that_never_connects_is_named(tiny_mnist, folder, times, missing):
    for _ in range(times):
        environment = environments(2)[1 - missing]
        status, output, error = ended(program(arguments_for(tiny_mnist, "mine", worker_timeout=1), env=environment))
        assert status == 1 and "waiting for worker %d (127.0.0.1:" % missing in output
        assert "worker %d (127.0.0.1:" % missing in error and "did not come within 10 seconds" in error


@pytest.mark.long
@pytest.mark.parametrize("first", [0, 1])
def test_workers_wait_for_a_late_worker(tiny_mnist, folder, times, first):
    for time_of in range(times):
        command = arguments_for(tiny_mnist, "mine%d" % time_of)
        environment = environments(2)
        processes = {first: program(command, env=environment[first])}
        assert processes[first].stdout.readline().startswith("waiting for worker %d" % (1 - first))
        processes[1 - first] = program(command, env=environment[1 - first])
        assert [ended(processes[index])[0] for index in range(2)] == [0, 0]
        assert read("model/mine%d/result.json" % time_of)["steps"] == 12


@pytest.mark.once
def test_a_signal_to_one_worker_stops_all_and_one_resumes_alone(tiny_mnist, folder, capsys):
    processes = pair(arguments_for(tiny_mnist, "mine", total_epochs=1000))
    wait_for(saved("mine"), processes[0])
    processes[1].send_signal(signal.SIGINT)
    for process, expected in zip(processes, (128 + signal.SIGTERM, 128 + signal.SIGINT)):
        status, _, error = ended(process)
        assert status == expected and "stopped and saved at step" in error and "Traceback" not in error, error
        step = int(error.partition("stopped and saved at step ")[2].split()[0])
        assert weights_of("model/mine", step)["global_step"] == step
    Densenet.train(arguments_for(tiny_mnist, "mine", total_epochs=step // 6 + 1, devices=1))  # in one process
    output = capsys.readouterr().out
    assert "resuming after step %d" % step in output
    assert "2 devices shared each batch until then, 1 from now on" in output


@pytest.mark.once
@pytest.mark.parametrize("change,sentence", [
    ("seed", "the workers differ in seed (1 in worker 0, 2 in worker 1): "),
    ("devices", "the workers differ in devices (1 in worker 0, 2 in worker 1): ")])
def test_workers_with_different_settings_fail(tiny_mnist, folder, change, sentence):
    processes = [program(arguments_for(tiny_mnist, "mine", batch_size=48, sync_batch_norm=True, **{change: value}),
                         env=environment) for value, environment in enumerate(environments(2), start=1)]
    for process in processes:
        status, _, error = ended(process)
        assert status == 1 and error.startswith("Densenet.py: " + sentence) and error.count("\n") == 0, error
    assert not os.path.exists("model")


@pytest.mark.once
def test_workers_on_unlike_processors_use_the_precision_of_the_chief(tiny_mnist, folder):
    """With precision=auto, worker 0 would choose float32 and worker 1 bfloat16."""
    script = ("import sys, Densenet, support.training_run as run; from support import command_line; "
              "run.fast_precision = lambda: sys.argv[1]; sys.exit(command_line.main(Densenet, sys.argv[2:]))")
    command = arguments_for(tiny_mnist, "mine", precision="auto", total_epochs=1)
    processes = []
    for environment, precision in zip(environments(2), ("float32", "bfloat16")):
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        processes.append(subprocess.Popen([sys.executable, "-W", "ignore", "-c", script, precision] + command,
                                          env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                          universal_newlines=True))
    statuses, _, errors = zip(*map(ended, processes))
    assert statuses == (0, 0), errors
    assert read("model/mine/settings.json")["precision"] == "float32"
