"""Records reference results of TensorFlow 1.15, for tests on TensorFlow 2, and a checkpoint of each version.

    PYTHONPATH=. python tests/record.py             with the Python that has the TensorFlow version to record
    PYTHONPATH=. python tests/record.py defaults    after changing a default in Densenet.py

On TensorFlow 1.15.5 the first command writes recorded/batch_norm.npz (from `tf.contrib.layers.batch_norm`) and
recorded/network.npz; on both versions recorded/checkpoint_<major version>/. The second command writes
support/shipped_defaults.json, which shows the program which constants a user has edited.
"""

import json
import os
import sys

import numpy as np
import tensorflow.compat.v1 as tf

import Densenet
from support.settings import constants_of

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "recorded")
MAJOR = tf.VERSION.split(".")[0]
# Odd sizes; two values per channel; and one value per channel, where the variance cannot divide by n - 1.
SHAPES = {"odd": (3, 5, 7, 13), "two": (2, 1, 1, 5), "one": (1, 1, 1, 5)}
STEPS = 6


def batch_norm_inputs(shape):
    """Returns the inputs of all steps, gamma, beta, and the gradient of the output: float32."""
    random = np.random.RandomState(sum(shape))
    inputs = (random.randn(STEPS, *shape) * 3 + 2).astype(np.float32)
    gamma, beta = random.randn(2, shape[-1]).astype(np.float32)
    return inputs, gamma, beta, random.randn(*shape).astype(np.float32)


def run_batch_norm(shape, normalize):
    """Runs `normalize(x, training)` for STEPS training steps and one inference step.

    Returns:
        {name: array}: y, gradients (for x, gamma, beta) and statistics, stacked over the steps; the inference output.
    """
    inputs, gamma_value, beta_value, above = batch_norm_inputs(shape)
    found = {}
    with tf.Graph().as_default(), tf.Session() as sess:
        x = tf.placeholder(tf.float32, shape)
        with tf.variable_scope("net"):
            y = normalize(x, True)
        with tf.variable_scope("net", reuse=True):
            inference = normalize(x, False)
        variables = {variable.op.name: variable for variable in tf.global_variables()}

        def one(ending):
            (name,) = [name for name in variables if name.endswith(ending)]
            return variables[name]

        gamma, beta = one("/gamma"), one("/beta")
        statistics = [one("/moving_mean"), one("/moving_variance"), one("/biased"), one("/local_step")]
        gradients = tf.gradients(y, [x, gamma, beta], above)
        sess.run(tf.global_variables_initializer())
        gamma.load(gamma_value, sess)
        beta.load(beta_value, sess)
        for value in inputs:
            results = sess.run([y] + gradients, {x: value})
            names = ["y", "to_x", "to_gamma", "to_beta", "moving_mean", "moving_variance", "biased", "local_step"]
            for name, result in zip(names, results + sess.run(statistics)):
                found.setdefault(name, []).append(result)
        found = {name: np.stack(values) for name, values in found.items()}
        found["inference"] = sess.run(inference, {x: inputs[0]})
    return found


def network_inputs():
    random = np.random.RandomState(5)
    return random.randn(6, 13, 11, 3).astype(np.float32), random.randint(0, 7, 6)


def small_network(images, training, **changes):
    options = dict(blocks=(2, 3), growth_k=5, training=training, class_num=7, dropout_rate=0.0)
    return Densenet.DenseNet(images, **dict(options, **changes))


def build_network(dropout_rate=0.0):
    """Builds a small DenseNet on `network_inputs`; returns (training logits, inference logits, an Adam step)."""
    images_value, labels_value = network_inputs()
    tf.set_random_seed(11)
    images, labels = tf.constant(images_value), tf.constant(labels_value)
    step = tf.train.get_or_create_global_step()
    training = small_network(images, True, dropout_rate=dropout_rate).model
    with tf.variable_scope(tf.get_variable_scope(), reuse=True):
        logits = small_network(images, False).model
    cost = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=training))
    return training, logits, tf.train.AdamOptimizer(1e-2, epsilon=1e-3).minimize(cost, step)


def run_network():
    """Returns logits before training, logits and variables after 3 steps, and training logits with dropout."""
    found = {}
    with tf.Graph().as_default(), tf.Session() as sess:
        training, logits, train = build_network()
        sess.run(tf.global_variables_initializer())
        found["training_logits_before"] = sess.run(training)
        sess.run(tf.global_variables_initializer())  # the line above updated the moving averages
        for _ in range(3):
            sess.run(train)
        found["logits_after"] = sess.run(logits)
        for variable in tf.global_variables():
            found[variable.op.name] = sess.run(variable)
    with tf.Graph().as_default(), tf.Session() as sess:
        training, _, _ = build_network(dropout_rate=0.3)
        sess.run(tf.global_variables_initializer())
        found["training_logits_with_dropout"] = sess.run(training)
    return found


def save_checkpoint(folder):
    """Saves a checkpoint of the small network after 3 steps, its logits, and the logits after another step."""
    with tf.Graph().as_default(), tf.Session() as sess:
        _, logits, train = build_network()
        sess.run(tf.global_variables_initializer())
        for _ in range(3):
            sess.run(train)
        os.makedirs(folder, exist_ok=True)
        tf.train.Saver().save(sess, os.path.join(folder, "dense.ckpt-3"), write_meta_graph=False, write_state=False)
        np.save(os.path.join(folder, "logits.npy"), sess.run(logits))
        sess.run(train)
        np.save(os.path.join(folder, "logits_of_next_step.npy"), sess.run(logits))


def contrib_batch_norm(x, training):
    """The reference for `ops.Batch_Normalization`."""
    import tensorflow  # compat.v1 has no contrib

    return tensorflow.contrib.layers.batch_norm(
        x, decay=0.9, center=True, scale=True, zero_debias_moving_mean=True, updates_collections=None,
        is_training=training, reuse=tf.get_variable_scope().reuse, scope="norm")


def write_defaults():
    """Writes the default values, for each data set, of total_epochs and of the settings that identify a run."""
    names = Densenet.IDENTIFYING + ("total_epochs",)
    found = {dataset: {name: constants_of(Densenet, dataset)[name] for name in names} for dataset in Densenet.DATASETS}
    with open(os.path.join(HERE, "..", "..", "support", "shipped_defaults.json"), "w") as file:
        json.dump(found, file, indent=1, sort_keys=True)
        file.write("\n")


def main():
    if sys.argv[1:] == ["defaults"]:
        return write_defaults()
    if MAJOR == "1":
        np.savez_compressed(os.path.join(HERE, "batch_norm.npz"), **{
            "%s/%s" % (shape, name): value for shape in SHAPES
            for name, value in run_batch_norm(SHAPES[shape], contrib_batch_norm).items()})
        np.savez_compressed(os.path.join(HERE, "network.npz"), **run_network())
    save_checkpoint(os.path.join(HERE, "checkpoint_" + MAJOR))


if __name__ == "__main__":
    main()
