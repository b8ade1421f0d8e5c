"""How are the weights averaged over the training steps, and who reads the averages instead of the weights?"""

import contextlib

import tensorflow.compat.v1 as tf

from support.variables import companions, move

SUFFIX = "/ExponentialMovingAverage"  # what follows the name of a variable in that of its average, as in TensorFlow


def advance_averages(train, variables, decay):
    """Adds to a training step that the averages of the variables follow it.

    average ← d · average + (1 - d) · variable (Polyak & Juditsky 1992), with d = decay, but (step - 1) / (step + 9) in
    the first steps, where that is less: so early averages are not of the initial values.
    `tf.train.ExponentialMovingAverage` does about the same, with two functions in the graph for each variable.

    Args:
        train: the operation of the step, which also counts it.
        variables: what is averaged: weights, and the moving statistics that belong to them.
        decay: 0 averages nothing.
    Returns:
        an operation, `train` itself for a decay of 0.
    """
    if not decay:
        return train
    averages = companions(variables, SUFFIX, [variable.initial_value for variable in variables])
    with tf.control_dependencies([train]):
        # Subtracted before the cast: TensorFlow 1.15's optimizer lets a cast of what is read lose the dependency above.
        before = tf.cast(tf.train.get_global_step().read_value() - 1, tf.float32)
        share = 1 - tf.minimum(decay, before / (before + 10))
    return tf.group(*move(averages, [share] * len(averages), variables))


@contextlib.contextmanager
def averages_used():
    """A context in which a network is built on the averages, where its variables have any."""
    averages = {variable.op.name: variable for variable in tf.global_variables()}

    def average_of(getter, name, *args, **options):
        variable = getter(name, *args, **options)
        return averages.get(variable.op.name + SUFFIX, variable)

    with tf.variable_scope(tf.get_variable_scope(), custom_getter=average_of):
        yield


def averages_first(names):
    """{name of a variable: name of the tensor that holds its average, or itself where there is none}.

    Args:
        names: the names of the tensors in a checkpoint, or of the variables in a graph.
    """
    return {name: name + SUFFIX if name + SUFFIX in names else name for name in names if not name.endswith(SUFFIX)}
