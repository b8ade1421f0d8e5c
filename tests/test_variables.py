"""Variables that accompany others and updates of many, compared with those that TensorFlow makes one by one."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from support.optimizers import AdamW, MomentumL2
from support.variables import companions, get_variables, move, saver_of


def _two_variables():
    with tf.device("/cpu:0"), tf.variable_scope("layer"):
        kernel = tf.get_variable("kernel", initializer=np.float32([[3, -1], [2, 5]]), use_resource=True)
        count = tf.get_variable("count", initializer=np.int64(7), use_resource=True, trainable=False)
    return [kernel, count]


DESCRIBED = [("gamma", [3], 1, True), ("mean", [3], 0.5, False), ("mean/step", [], 7, False)]


def _one_by_one():
    return [tf.get_variable(name, shape, tf.float32, tf.constant_initializer(value), trainable=trained,
                            use_resource=True) for name, shape, value, trained in DESCRIBED]


def test_variables_made_together_are_those_of_tensorflow():
    found = []
    for make in (_one_by_one, lambda: get_variables(DESCRIBED)):
        with tf.Graph().as_default() as graph, tf.Session() as sess:
            with tf.device("/cpu:0"), tf.variable_scope("layer") as scope, tf.name_scope("other"):
                made = make()
                with tf.variable_scope(scope, reuse=True):
                    assert [variable.handle.name for variable in make()] == [each.handle.name for each in made]
            assert tf.global_variables() == made and tf.trainable_variables() == made[:1]
            sess.run(tf.global_variables_initializer())
            sess.run([graph.get_operation_by_name(variable.op.name + "/Read/ReadVariableOp") for variable in made])
            found.append([(each.op.name, each.device, each.dtype, each.shape.as_list(), sess.run(each).tolist(),
                           sess.run(each.initial_value).tolist()) for each in made])
    assert found[0] == found[1] and [each[0] for each in found[0]] == ["layer/gamma", "layer/mean", "layer/mean/step"]


@pytest.mark.parametrize("reuse", [False, True])
def test_variables_made_together_keep_to_the_rules_of_their_scope(reuse):
    """Twice without reuse, or reused before they are there: an error, as from `tf.get_variable`."""
    with tf.Graph().as_default(), tf.variable_scope("layer", reuse=reuse):
        with pytest.raises(ValueError, match="layer/gamma (already exists|does not exist)"):
            get_variables(DESCRIBED)
            get_variables(DESCRIBED)


def test_variables_made_together_in_a_branch_can_be_used_outside():
    with tf.Graph().as_default(), tf.Session() as sess:
        with tf.variable_scope("layer", reuse=tf.AUTO_REUSE):
            branch = tf.cond(tf.placeholder_with_default(True, []), lambda: get_variables(DESCRIBED)[0] * 2,
                             lambda: tf.zeros([3]))
            gamma = get_variables(DESCRIBED)[0]
        sess.run(tf.global_variables_initializer())
        assert sess.run(branch).tolist() == [2, 2, 2] and sess.run(gamma + 1).tolist() == [2, 2, 2]


def test_companions_are_zeros_of_the_same_type_shape_and_device_and_are_saved(tmp_path):
    with tf.Graph().as_default(), tf.Session() as sess:
        variables = _two_variables()
        with tf.name_scope("training"):
            made = companions(variables, "/Slot")
        assert [each.op.name for each in made] == ["layer/kernel/Slot", "layer/count/Slot"]
        for each, variable in zip(made, variables):
            assert (each.dtype, each.shape.as_list(), each.device) == (
                variable.dtype, variable.shape.as_list(), variable.device)
        assert tf.global_variables() == [*variables, *made] and tf.trainable_variables() == variables[:1]
        sess.run(tf.global_variables_initializer())
        np.testing.assert_array_equal(sess.run(made[0]), np.zeros([2, 2], np.float32))
        assert sess.run(made[1]) == 0
        sess.run([made[0].assign_add([[1, 2], [3, 4]]), made[1].assign(5)])
        path = tf.train.Saver().save(sess, str(tmp_path / "saved"))
        np.testing.assert_array_equal(tf.train.load_variable(path, "layer/kernel/Slot"), [[1, 2], [3, 4]])
        assert tf.train.load_variable(path, "layer/count/Slot") == 5


def test_companions_that_share_an_initial_value_do_not_share_their_memory():
    with tf.Graph().as_default(), tf.Session() as sess:
        first, second = (tf.get_variable(name, [3], use_resource=True) for name in ("first", "second"))
        made = companions([first, second], "/Slot")
        sess.run(tf.global_variables_initializer())
        sess.run(made[0].assign_add([1, 2, 3]))
        np.testing.assert_array_equal(sess.run(made[1]), [0, 0, 0])


def test_companions_begin_with_the_given_tensors():
    with tf.Graph().as_default(), tf.Session() as sess:
        variables = _two_variables()
        made = companions(variables, "/Average", [variable.initial_value for variable in variables])
        sess.run([each.initializer for each in made])  # those of the variables are not needed
        np.testing.assert_array_equal(sess.run(made[0]), [[3, -1], [2, 5]])
        assert sess.run(made[1]) == 7


@pytest.mark.parametrize("theirs,ours,slots", [
    (lambda: tf.train.AdamOptimizer(0.1), lambda: AdamW(0.1, 1e-8, 0.0), ["Adam", "Adam_1"]),
    (lambda: tf.train.MomentumOptimizer(0.1, 0.9), lambda: MomentumL2(0.1, 0.0, False), ["Momentum"]),
    (lambda: tf.train.MomentumOptimizer(0.1, 0.9, use_nesterov=True), lambda: MomentumL2(0.1, 0.0, True),
     ["Momentum"])])
def test_optimizers_have_the_variables_and_steps_of_tensorflows(theirs, ours, slots):
    """So that checkpoints of versions that let TensorFlow make them are still read."""
    found = []
    for optimizer_of in (theirs, ours):
        with tf.Graph().as_default() as graph, tf.Session() as sess:
            kernel, _ = _two_variables()
            bias = tf.get_variable("bias", initializer=np.float32([4, 7]), use_resource=True)
            loss = tf.reduce_sum(kernel ** 2) + tf.reduce_sum(bias ** 3)
            step = optimizer_of().minimize(loss, var_list=[kernel, bias])
            sess.run(tf.global_variables_initializer())
            for _ in range(3):
                sess.run(step)
            found.append({variable.op.name: sess.run(variable).tolist() for variable in tf.global_variables()})
            updates = [each for each in graph.get_operations() if each.type.startswith("ResourceApply")]
            assert [each.device for each in updates] == [kernel.device, bias.device]
    assert found[0] == found[1] and {"layer/kernel/" + slot for slot in slots} < set(found[0])


@pytest.mark.parametrize("saved_by,restored_by", [("Saver", "saver_of"), ("saver_of", "Saver")])
def test_a_saver_reads_and_writes_the_files_of_tensorflows(saved_by, restored_by, tmp_path):
    """Also for variables as TensorFlow 1 makes them, and for names in the file that are not the variables'."""
    make, files = {"Saver": tf.train.Saver, "saver_of": saver_of}, {}
    with tf.Graph().as_default(), tf.Session() as sess:
        variables = _two_variables() + [tf.get_variable("usual", initializer=np.float64([[0.1, 0.2]]))]
        names = dict(zip(["z", "a/b", "a/c"], variables))
        savers = {name: make[name](names, save_relative_paths=True) for name in (saved_by, restored_by)}
        sess.run(tf.global_variables_initializer())
        before = sess.run(variables)
        for name, saver in savers.items():
            (tmp_path / name).mkdir()
            path = saver.save(sess, str(tmp_path / name / "saved"), global_step=5, write_meta_graph=False)
            files[name] = {each.name: each.read_bytes() for each in (tmp_path / name).iterdir()}
            assert set(files[name]) == {"checkpoint", "saved-5.index", "saved-5.data-00000-of-00001"}
        assert files[saved_by] == files[restored_by]
        sess.run([each.assign(tf.zeros_like(each)) for each in variables])
        savers[restored_by].restore(sess, str(tmp_path / saved_by / "saved-5"))
        for old, new in zip(before, sess.run(variables)):
            np.testing.assert_array_equal(new, old)
        with pytest.raises(tf.errors.NotFoundError):
            make[restored_by]({"other": variables[0]}).restore(sess, path)


@pytest.mark.parametrize("in_branch", [False, True])
def test_moves_follow_the_formula_after_what_their_shares_depend_on(in_branch):
    """The second variable is changed first, as its share depends on that. In a branch of tf.cond as outside."""
    with tf.Graph().as_default(), tf.Session() as sess:
        first, second, target = (
            tf.get_variable(name, initializer=np.float32(value), use_resource=True)
            for name, value in (("layer/first", [[3, -1, 8]]), ("layer/second", [4, 16]), ("target", [2, 4])))
        with tf.control_dependencies([second.assign_add([4, 8]), target.assign_add([2, 2])]):
            half = tf.constant(1.0) * 0.5

        def moved():
            toward_zero = move([first], [tf.constant(0.25) * 1])
            with tf.control_dependencies(toward_zero + move([second], [half], [target])):
                return tf.constant(1)

        result = tf.cond(tf.placeholder_with_default(True, []), moved, lambda: tf.constant(0)) if in_branch else moved()
        sess.run(tf.global_variables_initializer())
        assert sess.run(result) == 1
        np.testing.assert_array_equal(sess.run(first), [[2.25, -0.75, 6]])
        np.testing.assert_array_equal(sess.run(second), [6, 15])  # halfway from [8, 24] to [4, 6]
