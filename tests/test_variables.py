"""Variables that accompany others and updates of many, compared with those that TensorFlow makes one by one."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from support.variables import companions, get_variables, move


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


@pytest.mark.parametrize("make,slots", [(tf.train.AdamOptimizer, ["Adam", "Adam_1"]),
                                        (lambda rate: tf.train.MomentumOptimizer(rate, 0.9), ["Momentum"])])
def test_optimizers_have_the_variables_of_tensorflows(make, slots):
    """So that checkpoints of versions that let TensorFlow make them are still read."""
    from support.optimizers import AdamW, MomentumL2
    ours = {"Adam": lambda: AdamW(0.1, 1e-8, 0.0), "Momentum": lambda: MomentumL2(0.1, 0.0, False)}[slots[0]]
    found = []
    for optimizer_of in (lambda: make(0.1), ours):
        with tf.Graph().as_default(), tf.Session() as sess:
            kernel, _ = _two_variables()
            step = optimizer_of().minimize(tf.reduce_sum(kernel ** 2), var_list=[kernel])
            sess.run(tf.global_variables_initializer())
            for _ in range(3):
                sess.run(step)
            found.append({variable.op.name: sess.run(variable).tolist() for variable in tf.global_variables()})
    assert found[0] == found[1] and {"layer/kernel/" + slot for slot in slots} < set(found[0])


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
