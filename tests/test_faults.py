"""Fault injection into the whole program: kills, damaged files, full disks and bad input.

    python -m pytest -q tests/test_faults.py             the short form, as in the test suite
    python -m pytest -q tests/test_faults.py --long -s   the full form, which prints its counts
"""

import dataclasses
import glob
import gzip
import io
import math
import os
import random as random_module
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import test_cifar10
from helpers import TINY, arguments_for, assert_equal_weights, main, program, read, wait_for, weights_of

import cifar10
import Densenet
import mnist_loader
from support import UserError
from support.checkpoints import Checkpoints
from support.file_reading import DataError
from support.run_directory import CHECKPOINT, RunDirectory
from support.settings import declared
from support.tensorboard import EventFile

# Epochs of 150 steps at full resolution take seconds, so that several checkpoints are saved in each of them.
SLOW = dict(batch_size=2, stem="3x3", growth_k=12)


@pytest.fixture
def long(request):
    return request.config.getoption("--long")


# ---- Kills ----

@pytest.mark.campaign
def test_a_killed_run_resumes_exactly(tiny_mnist, folder, long):
    """After kills at random moments, some during a save, the run ends with the weights of an uninterrupted run."""
    kills, inside_saves = (100, 30) if long else (2, 1)
    epochs = 2 * kills + 3
    whole = Densenet.train(arguments_for(tiny_mnist, "whole", total_epochs=epochs, **SLOW))
    command = arguments_for(tiny_mnist, "killed", total_epochs=epochs, checkpoint_minutes=0.002, **SLOW)
    random = random_module.Random(0)
    epoch_seconds, epoch_steps = whole["train_seconds"] / epochs, whole["steps"] // epochs
    inside = in_epochs = 0
    expected_step = 0
    for kill in range(kills):
        before = saved_steps("model/killed")
        process = program(command)
        if kill % 2:
            wait_for(lambda: saved_steps("model/killed") - before, process)  # noqa: B023
            time.sleep(random.uniform(0, epoch_seconds))
        else:
            wait_for(lambda: any(step % epoch_steps for step in saved_steps("model/killed") - before)  # noqa: B023
                     and glob.glob("model/killed/*.tempstate*"), process)
        process.kill()
        output, error = process.communicate()
        assert process.returncode == -signal.SIGKILL, (output, error)
        resumed = re.search(r"resuming after step (\d+)", output)
        assert (int(resumed.group(1)) if resumed else 0) >= expected_step and "Traceback" not in error
        expected_step = newest_step("model/killed")
        assert expected_step > 0
        in_epochs += expected_step % epoch_steps > 0
        inside += bool(glob.glob("model/killed/*.tempstate*") + glob.glob("model/killed/best/*.tempstate*"))
    output, error = program(command).communicate()
    assert "resuming after step" in output, error
    print("%d kills, %d of them inside a save, %d with a newest checkpoint from the middle of an epoch, %d steps"
          % (kills, inside, in_epochs, whole["steps"]))
    assert inside >= inside_saves and in_epochs
    assert read("model/killed/result.json")["test_accuracy"] == whole["test_accuracy"]
    assert_equal_weights(weights_of("model/whole", whole["steps"]), weights_of("model/killed", whole["steps"]))
    assert len(glob.glob("model/killed/dense.ckpt-*.index")) == 3  # old ones are deleted across restarts
    assert len(glob.glob("model/killed/best/*.index")) == 1 and not glob.glob("model/killed/*.tempstate*")


def saved_steps(run):
    return {int(path[:-len(".index")].rpartition("-")[2]) for path in glob.glob(run + "/dense.ckpt-*.index")}


def newest_step(run):
    """Returns the step of the newest intact checkpoint."""
    for step in sorted(saved_steps(run), reverse=True):
        try:
            return int(weights_of(run, step)["global_step"])
        except (tf.errors.OpError, IndexError):
            pass
    return 0


# ---- Damage ----

@pytest.fixture(scope="module")
def finished(tiny_mnist, tmp_path_factory):
    """The folder of a finished run with checkpoints at steps 6, 12 and 18; the one at step 12 is the best."""
    folder = str(tmp_path_factory.mktemp("finished"))
    Densenet.train(data_dir=tiny_mnist, run_name="mine", model_dir=folder, log_dir=os.path.join(folder, "logs"),
                   **dict(TINY, total_epochs=3))
    for path in glob.glob(folder + "/mine/best/dense.ckpt-*"):
        os.remove(path)
    for path in glob.glob(folder + "/mine/dense.ckpt-12.*"):  # replaces the actual best checkpoint
        shutil.copy(path, folder + "/mine/best")
    return folder


def path_of(step, ending):
    return "model/mine/dense.ckpt-%d.%s" % (step, ending)


DATA, INDEX = "data-00000-of-00001", "index"


def truncate(path, size):
    with open(path, "r+b") as file:
        file.truncate(size)


def flip_bit(path, position):
    with open(path, "r+b") as file:
        file.seek(position % os.path.getsize(path))
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1 << position % 8]))


def overwrite(path, content):
    with open(path, "wb") as file:
        file.write(content)


# {name: (function that does the damage, step that the run resumes from, number of checkpoints skipped)}
DAMAGES = {
    "data truncated": (lambda: truncate(path_of(18, DATA), os.path.getsize(path_of(18, DATA)) // 2), 12, 1),
    "data empty": (lambda: truncate(path_of(18, DATA), 0), 12, 1),
    "data gone": (lambda: os.remove(path_of(18, DATA)), 12, 1),
    "data with one bit flipped": (lambda: flip_bit(path_of(18, DATA), 4321), 12, 1),
    "index truncated": (lambda: truncate(path_of(18, INDEX), 100), 12, 1),
    "index empty": (lambda: truncate(path_of(18, INDEX), 0), 12, 1),
    "index gone": (lambda: os.remove(path_of(18, INDEX)), 12, 1),
    "index with one bit flipped": (lambda: flip_bit(path_of(18, INDEX), 321), 12, 1),
    "index garbage": (lambda: overwrite(path_of(18, INDEX), bytes(range(256)) * 9), 12, 1),
    "two of three": (lambda: (truncate(path_of(18, DATA), 9), os.remove(path_of(12, DATA))), 6, 2),
    "state file gone": (lambda: os.remove("model/mine/checkpoint"), 18, 0),
    "state file empty": (lambda: overwrite("model/mine/checkpoint", b""), 18, 0),
    "state file garbage": (lambda: overwrite("model/mine/checkpoint", b"\0\xff{"), 18, 0),
    "progress gone": (lambda: os.remove("model/mine/progress.json"), 18, 0),
}


def long_but(names, short):
    """Returns the names as test parameters; without --long, only those in `short` run."""
    return [pytest.param(name, marks=[] if name in short else pytest.mark.long) for name in sorted(names)]


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_damaged_checkpoints_are_skipped(folder, capsys, damage):
    """The newest intact checkpoint is restored, and a message names each skipped one."""
    with tf.Graph().as_default(), tf.Session() as sess, RunDirectory("model/mine", {}) as directory:
        step = tf.train.get_or_create_global_step()
        tf.get_variable("weights", initializer=np.ones((20, 50), np.float32))
        sess.run(tf.global_variables_initializer())
        for number in (6, 12, 18):
            step.load(number, sess)
            Checkpoints(directory).save(sess, number)
        directory.write_json("progress.json", {})
        harm, expected, skipped = DAMAGES[damage]
        harm()
        assert Checkpoints(directory).restore_newest(sess)
        assert sess.run(step) == expected
    assert capsys.readouterr().out.count("skipped model/mine/dense.ckpt-") == skipped


@pytest.mark.parametrize("damage", long_but(DAMAGES, ["data truncated"]))
def test_a_run_with_a_damaged_checkpoint_resumes_exactly(tiny_mnist, folder, finished, capsys, damage):
    """The run resumes from the newest intact checkpoint and ends with the same weights."""
    shutil.copytree(finished, "model")
    shutil.rmtree("model/mine/best")  # covered by another test
    expected = weights_of("model/mine", 18)
    os.remove("model/mine/result.json")
    harm, step, _ = DAMAGES[damage]
    harm()
    Densenet.train(data_dir=tiny_mnist, run_name="mine", **dict(TINY, total_epochs=3))
    assert "resuming after step %d," % step in capsys.readouterr().out
    assert_equal_weights(expected, weights_of("model/mine", 18))


def test_a_moved_and_renamed_run_resumes_exactly(tiny_mnist, folder, finished, capsys):
    shutil.copytree(os.path.join(finished, "mine"), "another place/another name")
    expected = weights_of("another place/another name", 18)
    os.remove("another place/another name/result.json")
    os.rename("another place/another name", "another place/other")
    assert tf.train.latest_checkpoint("another place/other") == "another place/other/dense.ckpt-18"
    Densenet.train(data_dir=tiny_mnist, model_dir="another place", run_name="other", **dict(TINY, total_epochs=3))
    assert "resuming after step 18," in capsys.readouterr().out
    assert_equal_weights(expected, weights_of("another place/other", 18))


def test_a_run_resumes_from_the_best_checkpoint_if_no_other_is_intact(
        tiny_mnist, folder, finished, capsys):
    shutil.copytree(finished, "model")
    expected = weights_of("model/mine", 18)
    for path in glob.glob("model/mine/dense.ckpt-*.data-*"):
        truncate(path, 0)
    (best,) = glob.glob("model/mine/best/*.index")
    step = int(re.search(r"-(\d+)\.index", best).group(1))
    os.remove("model/mine/result.json")
    Densenet.train(data_dir=tiny_mnist, run_name="mine", **dict(TINY, total_epochs=3))
    assert "resuming after step %d," % step in capsys.readouterr().out
    assert_equal_weights(expected, weights_of("model/mine", 18))


@pytest.mark.parametrize("deleted", [False, True])
def test_a_run_without_an_intact_checkpoint_does_not_start_over(deleted, tiny_mnist, folder, finished):
    shutil.copytree(finished, "model")
    for path in glob.glob("model/mine/dense.ckpt-*") + glob.glob("model/mine/best/*"):
        if deleted:
            os.remove(path)
        elif ".data-" in path:
            truncate(path, os.path.getsize(path) - 1)
    before = {path: os.path.getmtime(path) for path in glob.glob("model/mine/**/*", recursive=True)}
    with pytest.raises(UserError, match="no intact checkpoint is left in model/mine"):
        Densenet.train(data_dir=tiny_mnist, run_name="mine", **dict(TINY, total_epochs=4))
    after = {path: os.path.getmtime(path) for path in glob.glob("model/mine/**/*", recursive=True)}
    del before["model/mine/lock"], after["model/mine/lock"]
    assert before == after


def test_settings_of_a_run_whose_checkpoints_are_gone_are_kept(tiny_mnist, folder, finished):
    shutil.copytree(finished, "model")
    for path in glob.glob("model/mine/dense.ckpt-*") + glob.glob("model/mine/best/*") + ["model/mine/result.json"]:
        os.remove(path)
    before = read("model/mine/settings.json")
    with pytest.raises(UserError, match="other settings .growth_k .*: give those and run_name=mine to go on with it"):
        Densenet.train(data_dir=tiny_mnist, run_name="mine", **dict(TINY, growth_k=5))
    assert read("model/mine/settings.json") == before


def test_a_run_killed_during_its_first_save_starts_over(tiny_mnist, folder, finished, capsys):
    """The checkpoint is incomplete, and progress.json, which is written after a save, is missing."""
    shutil.copytree(finished, "model")
    expected = weights_of("model/mine", 18)
    for path in set(glob.glob("model/mine/*")) - {"model/mine/settings.json", path_of(6, DATA), path_of(6, INDEX)}:
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    truncate(path_of(6, INDEX), 0)
    Densenet.train(data_dir=tiny_mnist, run_name="mine", **dict(TINY, total_epochs=3))
    assert "skipped model/mine/dense.ckpt-6" in capsys.readouterr().out
    assert_equal_weights(expected, weights_of("model/mine", 18))


def test_a_flipped_bit_never_changes_restored_values(tmp_path, long):
    """For any flipped bit, the checkpoint is restored unchanged, or the previous checkpoint is restored."""
    with tf.Graph().as_default(), tf.Session() as sess, RunDirectory(str(tmp_path), {}) as directory:
        values = [np.arange(12.0), np.float32([[1.5, 2.5]]), np.int64(7)]
        variables = [tf.get_variable("v%d" % i, initializer=value) for i, value in enumerate(values)]
        sess.run(tf.global_variables_initializer())
        checkpoints = Checkpoints(directory)
        checkpoints.save(sess, 1)
        sess.run([variable.assign(variable + 1) for variable in variables])
        checkpoints.save(sess, 2)
        flips = skipped = 0
        for ending in (DATA, INDEX):
            path = str(tmp_path / ("%s-2.%s" % (CHECKPOINT, ending)))
            with open(path, "rb") as file:
                content = file.read()
            positions = range(8 * len(content)) if long else range(0, 8 * len(content), 41)
            for position in positions:
                damaged = bytearray(content)
                damaged[position // 8] ^= 1 << position % 8
                overwrite(path, damaged)
                assert checkpoints.restore_newest(sess)
                offsets = {int(np.ravel(found - value)[0]) for found, value in zip(sess.run(variables), values)}
                assert offsets in ({0}, {1}), position
                flips += 1
                skipped += offsets == {0}
            overwrite(path, content)
        print("%d of %d flipped bits made the checkpoint be skipped" % (skipped, flips))


# ---- Full disks ----

def limited(arguments, size):
    """Starts the program with files limited to `size` bytes, as on a full disk."""
    return program(arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))


@pytest.mark.parametrize("size", [  # 4: less than the lock file
    pytest.param(4, marks=pytest.mark.long), 2000, pytest.param(20000, marks=pytest.mark.long)])
@pytest.mark.once
def test_a_run_resumes_exactly_after_a_full_disk(tiny_mnist, folder, finished, size):
    """The run ends with one sentence and status 1, and earlier checkpoints stay intact."""
    shutil.copytree(finished, "model")
    expected = weights_of("model/mine", 18)
    for path in glob.glob("model/mine/dense.ckpt-18.*") + ["model/mine/result.json"]:
        os.remove(path)
    before = weights_of("model/mine", 12)
    command = [argument for argument in arguments_for(tiny_mnist, "mine", total_epochs=3)
               if not argument.startswith("dropout_rate")]
    process = limited(command, size)
    output, error = process.communicate()
    lines = [line for line in error.splitlines() if line.startswith("Densenet.py: ")]
    assert process.returncode == 1 and len(lines) == 1 and "Traceback" not in error, error
    assert "cannot" in lines[0]
    assert_equal_weights(before, weights_of("model/mine", 12))
    output, error = program(command).communicate()
    assert "resuming after step 12," in output, error
    assert_equal_weights(expected, weights_of("model/mine", 18))


@pytest.fixture
def small_disk(folder):
    """The path of a file system of 2 MiB."""
    os.mkdir("disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", "disk"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no file system can be mounted here")
    yield "disk"
    subprocess.run(["umount", "disk"], check=True)


@pytest.mark.once
@pytest.mark.parametrize("written", ["model_dir", "log_dir"])
def test_a_run_resumes_after_a_full_file_system(tiny_mnist, small_disk, written):
    """The file system of the checkpoints or of the logs becomes full during the run."""
    options = dict(total_epochs=2000, checkpoint_minutes=0.01)
    command = arguments_for(tiny_mnist, "mine", **dict(options, **{written: small_disk}))
    process = program(command)
    wait_for(lambda: glob.glob("*/mine/dense.ckpt-*.index"), process)
    with pytest.raises(OSError, match="No space left"), open(small_disk + "/filler", "wb", buffering=0) as filler:
        while filler.write(bytes(4096)) == 4096:
            pass
        filler.write(bytes(4096))
    output, error = process.communicate()
    lines = [line for line in error.splitlines() if line.startswith("Densenet.py: ")]
    assert process.returncode == 1 and len(lines) == 1 and "Traceback" not in error, error
    assert re.search("cannot (write|save)", lines[0])
    (run,) = glob.glob("disk/mine") if written == "model_dir" else glob.glob("model/mine")
    step = newest_step(run)
    assert step > 0
    os.remove(small_disk + "/filler")
    process = program(command)
    assert "resuming after step %d," % step in next(line for line in process.stdout if line.startswith("resuming"))
    process.kill()
    process.communicate()


@pytest.mark.once
def test_a_run_is_saved_if_the_disk_of_the_logs_is_full(tiny_mnist, folder, monkeypatch):
    """The run reports the error, saves a checkpoint, and resumes exactly once the disk has space."""
    options = dict(TINY, data_dir=tiny_mnist, checkpoint_minutes=100)
    expected = Densenet.train(run_name="whole", **options)
    add = EventFile.add
    calls = []

    def full(self, step=0, **content):
        calls.append(step)
        if len(calls) > 10:  # later than the events that open the files
            raise OSError(28, "No space left on device")
        add(self, step, **content)

    with monkeypatch.context() as patched:
        patched.setattr(EventFile, "add", full)
        with pytest.raises(UserError, match="cannot write the logs in logs .No space left on device.*the run is saved"):
            Densenet.train(run_name="mine", **options)
    assert newest_step("model/mine") == 6
    assert Densenet.train(run_name="mine", **options)["test_accuracy"] == expected["test_accuracy"]
    assert_equal_weights(weights_of("model/whole", 12), weights_of("model/mine", 12))


def test_a_failed_write_to_an_event_file_raises(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    events = EventFile(str(tmp_path))
    events.add(session_log=tf.SessionLog(status=tf.SessionLog.START))
    (path,) = glob.glob(str(tmp_path / "events*"))
    assert len(list(tf.io.tf_record_iterator(path))) == 2  # written immediately, for TensorBoard
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises((OSError, tf.errors.OpError)):
            for step in range(100):
                events.add(step, summary=tf.Summary(value=[tf.Summary.Value(tag="loss", simple_value=1.0)]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---- Signals, numbers, neighbours ----

@pytest.mark.once
@pytest.mark.parametrize("gap", [0.0, pytest.param(0.02, marks=pytest.mark.long),
                                 pytest.param(0.1, marks=pytest.mark.long)])
def test_a_second_ctrl_c_stops_at_once(tiny_mnist, folder, gap):
    """The program exits with status 130 and one sentence; checkpoints are intact, and the same command resumes."""
    command = arguments_for(tiny_mnist, "mine", total_epochs=20, **SLOW)
    process = program(command)
    wait_for(lambda: glob.glob("model/mine/dense.ckpt-*.index"), process)
    process.send_signal(signal.SIGINT)
    time.sleep(gap)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    lines = [line for line in error.splitlines() if line.startswith("Densenet.py: ")]
    assert process.returncode == 130 and len(lines) == 1 and "Traceback" not in error, error
    step = newest_step("model/mine")
    assert step > 0
    process = program(command)
    assert "resuming after step %d," % step in next(line for line in process.stdout if line.startswith("resuming"))
    process.kill()
    process.communicate()


def test_infinite_weights_are_not_saved(tiny_mnist, folder, monkeypatch):
    """The last step of an epoch computes a finite loss and then makes the weights infinite."""
    monkeypatch.setattr(Densenet, "learning_rate", lambda step, *_: 1e-3 if step != 11 else math.inf)
    options = dict(TINY, validation_size=0, batch_size=55, total_epochs=3)
    with pytest.raises(UserError, match="step 12 made weights infinite.*lower init_learning_rate"):
        Densenet.train(data_dir=tiny_mnist, run_name="mine", **options)
    assert newest_step("model/mine") == 6
    assert all(np.isfinite(value).all() for value in weights_of("model/mine", 6).values())


@pytest.mark.once
def test_two_runs_cannot_write_the_same_logs(tiny_mnist, folder):
    """Two runs have the same name but different model folders."""
    command = arguments_for(tiny_mnist, "mine", total_epochs=1000)
    process = program(command)
    wait_for(lambda: glob.glob("logs/mine/train/events*"), process)
    try:
        with pytest.raises(UserError, match="logs/mine/* is being trained by process %d" % process.pid):
            Densenet.train(command, model_dir="another")
    finally:
        process.kill()
        process.communicate()
    with pytest.raises(UserError, match="logs/mine/* holds the logs of the run .*model/mine: set log_dir or run_name"):
        Densenet.train(command, model_dir="another", total_epochs=1)  # the lock ends with its process
    shutil.rmtree("model")
    assert Densenet.train(command, model_dir="another", total_epochs=1)["epochs"] == 1


# ---- Parsers ----

TINY_CIFAR10 = dataclasses.replace(cifar10.CIFAR10, train={"data_batch_1.bin": 2}, test={"test_batch.bin": 1})


def mutated(content, random):
    """Returns the bytes with 1 to 4 random changes: bits, bytes, extreme numbers, cuts, insertions, repetitions."""
    content = bytearray(content)
    for _ in range(random.randint(1, 4)):
        # Half of the changes hit the first bytes, where the headers are.
        at = random.randrange(random.choice([min(32, len(content)), len(content)]) + 1) if content else 0
        kind = random.randrange(7)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << random.randrange(8)
        elif kind == 1 and at < len(content):
            content[at] = random.choice([0, 1, 10, 127, 128, 255])
        elif kind == 2:
            content[at:at + 4] = random.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\xea\x60"])
        elif kind == 3:
            del content[at:]
        elif kind == 4:
            del content[at:at + random.randrange(1, 600)]
        elif kind == 5:
            content[at:at] = bytes(random.getrandbits(8) for _ in range(random.randrange(1, 20)))
        else:
            content += content[at:at + random.randrange(1, 600)]
    return bytes(content)


def idx(content, magic, shape):
    """Returns the content of an IDX file of unsigned bytes, or None; a second parser, from LeCun's description."""
    header = 4 * (2 + len(shape))
    numbers = [int.from_bytes(content[i:i + 4], "big") for i in range(0, header, 4)]
    if len(content) < header or numbers[0] != magic or tuple(numbers[2:]) != shape:
        return None
    values = np.array(list(content[header:]), np.uint8)
    return values.reshape((-1,) + shape) if values.size == numbers[1] * int(np.prod(shape)) else None


def tar(members):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def inputs(folder):
    """Returns {name: (intact bytes, path, encoder, parser, reference parser, or None to check shapes only)}."""
    random = np.random.RandomState(0)
    images = b"\0\0\x08\x03" + b"\0\0\0\2" + b"\0\0\0\x1c" * 2 + bytes(random.randint(0, 256, 2 * 784).tolist())
    labels = b"\0\0\x08\x01" + b"\0\0\0\x09" + bytes(range(9))
    small = cifar10.CIFAR10
    records = {name: test_cifar10.records(count, 1, 0)[0] for name, count in dict(small.train, **small.test).items()}
    members = {"%s/%s" % (small.folder, name): content for name, content in records.items()}
    test_cifar10.write_folder(folder / "unpacked", small)
    (folder / "packed").mkdir()

    def images_right(content):
        values = idx(content, 0x803, (28, 28))
        return None if values is None or not len(values) else values[..., None]

    def labels_right(content):
        values = idx(content, 0x801, ())
        return values

    def record_right(content):
        return np.array(list(content[:1])) if len(content) == 3073 and content[0] < 10 else None

    def of_form(data):
        assert data.train.images.shape == (2, 32, 32, 3) and data.test.images.shape == (1, 32, 32, 3)
        assert max(data.train.labels.max(), data.test.labels.max()) < 10
        return data.test.labels

    return {
        "images": (images, "images", lambda content: content, mnist_loader.read_images, images_right),
        "labels": (labels, "labels", lambda content: content, mnist_loader.read_labels, labels_right),
        "packed images": (images, "images.gz", gzip.compress, mnist_loader.read_images, images_right),
        "packed labels": (labels, "labels.gz", gzip.compress, mnist_loader.read_labels, labels_right),
        "gzip": (gzip.compress(images), "damaged.gz", lambda content: content, mnist_loader.read_images, None),
        "records": (records["test_batch.bin"], "unpacked/%s/test_batch.bin" % small.folder, lambda content: content,
                    lambda _: of_form(cifar10.prepare_data(str(folder / "unpacked"), 0, ())), record_right),
        "tar": (tar(members), "packed/" + small.archive, lambda content: gzip.compress(content, 1),
                lambda _: of_form(cifar10.prepare_data(str(folder / "packed"), 0, ())), None),
        "tar.gz": (gzip.compress(tar(members)), "packed/" + small.archive, lambda content: content,
                   lambda _: of_form(cifar10.prepare_data(str(folder / "packed"), 0, ())), None),
    }


def test_mutated_files_are_read_correctly_or_refused(tmp_path, monkeypatch, long):
    """Parsing gives the correct arrays or DataError, does not hang, and needs memory in proportion to the file size."""
    monkeypatch.setattr(cifar10, "CIFAR10", TINY_CIFAR10)
    counts = {}
    random = random_module.Random(1)
    tracemalloc.start()
    try:
        for name, (intact, path, packed, parse, right) in inputs(tmp_path).items():
            path = str(tmp_path / path)
            read_right = refused = 0
            for number in range(6500 if long else 250):
                content = mutated(intact, random) if number else intact
                overwrite(path, packed(content))
                tracemalloc.reset_peak() if hasattr(tracemalloc, "reset_peak") else tracemalloc.clear_traces()
                before, _ = tracemalloc.get_traced_memory()
                signal.alarm(20)
                try:
                    found = parse(path)
                    assert right is None or np.array_equal(found, right(content)), content
                    read_right += 1
                except DataError as error:
                    assert right is None or right(content) is None, content
                    assert "\n" not in str(error)
                    refused += 1
                signal.alarm(0)
                _, peak = tracemalloc.get_traced_memory()
                assert peak - before < 1100 * os.path.getsize(path) + 2 ** 22
            counts[name] = (read_right, refused)
            assert read_right and refused
            overwrite(path, packed(intact))
    finally:
        signal.alarm(0)
        tracemalloc.stop()
    print("mutated files read right and refused: %s" % counts)


# ---- Hyperparameters ----

VALUES = ["0", "-1", "1e30", "9" * 30, "nan", "inf", "", "None", "text", "1,2", "True", "0.5", "\0", "../..", "*"]


@pytest.mark.parametrize("name", sorted(declared(Densenet)))
def test_odd_hyperparameter_values_are_in_range_or_refused(name, capsys):
    """Each value is in the hyperparameter's range or gets one sentence that names the hyperparameter."""
    for value in VALUES:
        try:
            config = Densenet.choose(["%s=%s" % (name, value)])
        except UserError as error:
            assert name in str(error) and "\n" not in str(error) and len(str(error)) < 1000
        else:
            kind = declared(Densenet)[name]
            chosen = getattr(config, name)
            assert chosen is None or kind.parse(chosen) == chosen, (name, value)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(declared(Densenet)))
def test_a_run_with_odd_hyperparameter_values_finishes_or_fails_cleanly(tiny_mnist, folder, name, capsys):
    """With each accepted value, the run finishes or prints one sentence and ends with status 1."""
    for value in VALUES:
        try:
            Densenet.choose(["%s=%s" % (name, value)])
        except UserError:
            continue
        capsys.readouterr()
        arguments = [argument for argument in arguments_for(tiny_mnist, "mine", total_epochs=1)
                     if not argument.startswith(name + "=")]
        status = main(arguments + ["%s=%s" % (name, value)])
        error = capsys.readouterr().err
        assert (status, error.count("Densenet.py: ")) in ((0, 0), (1, 1)), (value, error)
        shutil.rmtree("model", ignore_errors=True)


# ---- Unusual environments ----

@pytest.mark.once
def test_the_program_runs_with_unusual_paths_and_environments(tiny_mnist, tmp_path):
    """Non-ASCII paths with spaces, read-only data, another working directory, locale C, no home, closed outputs."""
    folder = tmp_path / "Straße mit 空白"
    folder.mkdir()
    data = folder / "die Daten"
    shutil.copytree(tiny_mnist, str(data))
    for path, _, names in os.walk(str(data)):
        os.chmod(path, 0o555)
        for name in names:
            os.chmod(os.path.join(path, name), 0o444)
    environment = dict(os.environ, LC_ALL="C", HOME="/nonexistent")
    command = [argument for argument in arguments_for(tiny_mnist, "run", model_dir="das Modell", log_dir="die Läufe")
               if not argument.startswith("data_dir")] + ["data_dir=die Daten"]
    program = subprocess.run([sys.executable, "-W", "ignore", Densenet.__file__] + command, cwd=str(folder),
                             env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.returncode == 0, program.stderr.decode(errors="replace")
    assert read(str(folder / "das Modell" / "run" / "result.json"))["steps"] == 12
    closed = subprocess.run("exec %s -W ignore %s %s >&- 2>&-" % (
        sys.executable, Densenet.__file__, " ".join("'%s'" % argument for argument in command + ["run_name=closed"])),
        shell=True, cwd=str(folder), env=environment)
    assert closed.returncode == 0
    assert read(str(folder / "das Modell" / "closed" / "result.json"))["steps"] == 12
