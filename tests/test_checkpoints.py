"""Checkpoints: numbering, deletion of old ones, variable names of earlier versions."""

import glob
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from support import UserError, cause_of
from support.checkpoints import Checkpoints
from support.run_directory import RunDirectory


def test_the_cause_of_an_error_is_the_line_that_tells_it():
    with tf.Graph().as_default(), tf.Session() as session, pytest.raises(tf.errors.NotFoundError) as caught:
        session.run(tf.io.read_file("/nowhere/a"))
    assert cause_of(caught.value) == "/nowhere/a; No such file or directory"
    assert cause_of(tf.errors.UnknownError(None, None, "the first line\nthe second")) == "the first line"
    assert cause_of(tf.errors.UnknownError(None, None, "")) == "UnknownError"


def test_the_newest_checkpoints_are_kept_after_a_kill(tmp_path):
    """A kill between a save and the deletion of old checkpoints left extra ones; a later checkpoint is damaged."""
    with tf.Graph().as_default(), tf.Session() as sess, RunDirectory(str(tmp_path), {}) as directory:
        tf.get_variable("weights", initializer=np.float32([1, 2]))
        sess.run(tf.global_variables_initializer())
        checkpoints = Checkpoints(directory, keep=3)
        for step in (1, 2, 3):
            checkpoints.save(sess, step)
            checkpoints.save_best(sess, step)
        for path in glob.glob(str(tmp_path / "**/dense.ckpt-3.*"), recursive=True):
            shutil.copy(path, path.replace("ckpt-3", "ckpt-0"))
        (tmp_path / "dense.ckpt-9.index").write_bytes(b"")
        checkpoints = Checkpoints(directory, keep=3)
        assert [step for step, _ in directory.checkpoints("best")] == [3, 0]
        checkpoints.save(sess, 4)
        checkpoints.save_best(sess, 4)
        assert [step for step, _ in directory.checkpoints()] == [9, 4, 3, 2]
        assert [step for step, _ in directory.checkpoints("best")] == [4]


def test_checkpoints_with_blocks_numbered_from_1_are_restored(tmp_path):
    """The earlier names dense_1, trans_1, dense_2 map to dense_0, trans_0, dense_1, also for optimizer state."""
    def variables(names):
        for index, name in enumerate(names):
            tf.get_variable(name, initializer=np.float32(index + 1))

    shared = ["conv0/kernel", "dense_final/bottleN_0/conv2/kernel", "optimizer/beta1_power"]
    with tf.Graph().as_default(), tf.Session() as sess, RunDirectory(str(tmp_path), {}) as directory:
        variables(["dense_1/conv1/kernel", "dense_1/conv1/kernel/Adam", "trans_1/conv1/kernel", "dense_2/conv1/kernel"]
                  + shared)
        sess.run(tf.global_variables_initializer())
        Checkpoints(directory).save(sess, 1)
    with tf.Graph().as_default(), tf.Session() as sess, RunDirectory(str(tmp_path), {}) as directory:
        names = ["dense_0/conv1/kernel", "dense_0/conv1/kernel/Adam", "trans_0/conv1/kernel", "dense_1/conv1/kernel"]
        variables((names + shared)[::-1])
        sess.run(tf.global_variables_initializer())
        checkpoints = Checkpoints(directory)
        assert checkpoints.restore_newest(sess)
        found = {variable.op.name: sess.run(variable) for variable in tf.global_variables()}
        assert [found[name] for name in names + shared] == [1, 2, 3, 4, 5, 6, 7]
        checkpoints.save(sess, 2)  # with the current names
        assert checkpoints.restore_newest(sess)
        assert "dense_0/conv1/kernel" in tf.train.load_checkpoint(
            str(tmp_path / "dense.ckpt-2")).get_variable_to_shape_map()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    """TensorFlow restores a variable of another shape without a word."""
    with tf.Graph().as_default(), tf.Session() as sess, RunDirectory(str(tmp_path), {}) as directory:
        tf.get_variable("conv0/kernel", [3, 4])
        sess.run(tf.global_variables_initializer())
        Checkpoints(directory).save(sess, 1)
    with tf.Graph().as_default(), tf.Session() as sess, RunDirectory(str(tmp_path), {}) as directory:
        tf.get_variable("conv0/kernel", [3, 8])
        expected = r"dense.ckpt-1: its conv0/kernel has the shape \[3, 4\], not \[3, 8\]: set run_name"
        for restore in (Checkpoints(directory).restore_newest, Checkpoints(directory).restore_for_use):
            with pytest.raises(UserError, match=expected):
                restore(sess)


@pytest.mark.parametrize("saved,restored", [("", "optimizer/cond_1/"), ("optimizer/cond_1/", "")])
def test_checkpoints_of_float16_are_restored_by_the_other_tensorflow(tmp_path, saved, restored):
    """TensorFlow 1 makes two of Adam's variables within the condition of loss scaling, with other names."""
    def variables(scope):
        return [tf.get_variable(scope + name, initializer=np.float32(index + 1))
                for index, name in enumerate(("beta2_power", "beta1_power"))]

    with tf.Graph().as_default(), tf.Session() as sess, RunDirectory(str(tmp_path), {}) as directory:
        variables(saved)
        sess.run(tf.global_variables_initializer())
        Checkpoints(directory).save(sess, 1)
    with tf.Graph().as_default(), tf.Session() as sess, RunDirectory(str(tmp_path), {}) as directory:
        found = variables(restored)
        assert Checkpoints(directory).restore_newest(sess)
        assert sess.run(found) == [1, 2]
