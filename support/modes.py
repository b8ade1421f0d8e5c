"""What can be done with a trained run: evaluate, predict, export.

The network comes from Densenet.py, as functions: `choose`, `prepare_data`, `build_evaluation`, `inference`.
"""

import os
import types

import numpy as np
import tensorflow.compat.v1 as tf

from support import UserError, image_folder, say, settings
from support.checkpoints import Checkpoints, step_of
from support.configuration import of_earlier_versions
from support.evaluation import evaluate_split
from support.export import export_graph
from support.run_directory import RunDirectory, runs_in, write_json
from support.tensorboard import log_evaluation
from support.workers import Cluster


def trained_run(choose, arguments=(), **overrides):
    """Finds a run that was trained.

    Args:
        choose: `Densenet.choose`.
        arguments, overrides: settings, as for training.
    Returns:
        (the settings it was trained with, its RunDirectory, what it recorded of its data).
    Raises:
        UserError: bad settings; there is no such run, or it was trained with other settings than are given.
    """
    config = choose(arguments, **overrides)
    directory = RunDirectory(os.path.join(config.model_dir, config.run_name), {})
    recorded = directory.read_json("settings.json")
    if recorded is None:
        if config.dataset == "mnist" and config.digits_stand_in and "dataset" not in config.given:
            digits = choose(**dict(config.given, dataset="digits"))  # as training does without MNIST
            if os.path.isdir(os.path.join(digits.model_dir, digits.run_name)):
                return trained_run(choose, **dict(config.given, dataset="digits"))
        raise UserError("there is no trained run %s: set run_name to one of those in %s (%s), or leave mode out to "
                        "train it" % (directory.path, config.model_dir,
                                      ", ".join(runs_in(config.model_dir)) or "none"))
    facts = recorded.pop("data", {})
    if "class_names" not in facts:
        raise UserError("%s was trained by an earlier version, which did not save what this needs: train it again, "
                        "under another run_name" % directory.path)
    trained_with = of_earlier_versions(recorded)
    trained = choose(**dict(config.given, **dict(trained_with, run_name=config.run_name)))
    for name in set(config.given) & set(trained_with):
        given = getattr(config, name)
        if given != getattr(trained, name) and given != "auto":
            raise UserError("%s was trained with %s=%s, not %s: leave that out, or set run_name to the run you mean"
                            % (directory.path, name, settings.shown(getattr(trained, name)), settings.shown(given)))
    return trained, directory, facts


def evaluate(choose, prepare_data, build_evaluation, arguments=(), **overrides):
    """Evaluates a run's checkpoint on the test images, as training does; prints, logs and writes the result.

    Args:
        choose, prepare_data, build_evaluation: the functions of Densenet.py.
        arguments, overrides: settings, as for training.
    Returns:
        the content of the run's evaluation.json. An earlier file with other content gets another name first.
    Raises:
        UserError: bad settings, no such run, no intact checkpoint, or other data than it was trained on.
    """
    config, directory, facts = trained_run(choose, arguments, **overrides)
    data, config = prepare_data(config)
    if data.fingerprint() != facts:
        raise UserError("the images of %s are not those that %s was trained on: put these back, or look at others with "
                        "mode=predict" % (data.name, directory.path))
    cluster = Cluster(config.batch_size, config.devices)
    with tf.Graph().as_default(), tf.Session(config=cluster.session_config(config.precision)) as sess:
        images = tf.placeholder(tf.float32, (config.batch_size,) + data.image_shape, "images")
        labels = tf.placeholder(tf.int64, [config.batch_size], "labels")
        net = build_evaluation(images, labels, config, len(data.class_names), cluster)
        used = Checkpoints(directory).restore_for_use(sess, config.checkpoint)
        evaluation = evaluate_split(sess, net, data.test, data)
    for line in evaluation.table(data.class_names):
        say(line)
    content = dict(evaluation.as_json(data.class_names), dataset=config.dataset, tensorflow=tf.VERSION,
                   checkpoint=os.path.relpath(used, directory.path))
    if directory.read_json("evaluation.json") not in (None, content):
        directory.keep_json("evaluation.json")
    directory.write_json("evaluation.json", content)
    log_evaluation(os.path.join(config.log_dir, config.run_name, "test"), step_of(used), evaluation, data.test.images,
                   data.class_names)
    say("test accuracy %.2f%%, loss %.4f, of %s (%s)" % (
        100 * evaluation.accuracy, evaluation.loss, used, os.path.join(directory.path, "evaluation.json")))
    return content


def serving_graph(inference, config, facts):
    """Builds, in the default graph, a trained network from pixels to probabilities, in float32.

    Args:
        inference: the function of Densenet.py.
        config: the settings of the run.
        facts: what the run recorded of its data.
    Returns:
        placeholder uint8 [N, H, W, C]; class probabilities float32 [N, classes]; class names, string [classes].
    """
    images = tf.placeholder(tf.uint8, [None] + facts["image_shape"], "images")
    with tf.variable_scope("normalization"):  # the training set's statistics, from the checkpoint
        mean, deviation = (tf.get_variable(name, [facts["image_shape"][2]]) for name in ("mean", "deviation"))
    config = types.SimpleNamespace(**dict(vars(config), precision="float32"))
    logits = inference((tf.cast(images, tf.float32) - mean) / deviation, config, len(facts["class_names"]))
    return images, tf.nn.softmax(logits, name="probabilities"), tf.constant(facts["class_names"], name="class_names")


def predict(choose, inference, arguments=(), **overrides):
    """Classifies image files with a run's network; prints each answer.

    Args:
        choose, inference: the functions of Densenet.py.
        arguments, overrides: settings, as for training.
    Returns:
        [{"image": path, "classes": [names, the most probable first], "probabilities": [of these]}].
    Raises:
        UserError: bad settings, no such run, no intact checkpoint; after all answers, if files were skipped.
    """
    config, directory, facts = trained_run(choose, arguments, **overrides)
    if not config.images:
        raise UserError("mode=predict classifies images: name files or folders, images=a.png,folder/")
    height, _, channels = facts["image_shape"]
    side = image_folder.stored_side(height, config.crop_area if config.dataset == "folder" else 1.0)
    files = [file for path in config.images for file in image_folder.files_under(path)]
    if not files:
        raise UserError("there are no files in %s" % ", ".join(config.images))
    if config.json:
        write_json(config.json, [], "json")  # now: an error after the work would lose it
    answers = []
    with tf.Graph().as_default(), tf.Session(config=Cluster().session_config()) as sess:
        images, probabilities, _ = serving_graph(inference, config, facts)
        say("network: %s" % Checkpoints(directory).restore_for_use(sess, config.checkpoint))
        try:
            for file in files:
                pixels = _pixels_of(file, side, height, channels)
                if pixels is not None:
                    found = sess.run(probabilities, {images: pixels[None]})[0]
                    answers.append(_answer(file, found, facts["class_names"]))
        finally:
            if config.json:
                write_json(config.json, answers, "json")
    if len(answers) < len(files):
        raise UserError("%d of %d files were skipped, as said above" % (len(files) - len(answers), len(files)))
    return answers


def _pixels_of(file, side, size, channels):
    """uint8 [size, size, channels] of an image file; None, and a line, if it cannot be read."""
    try:
        return image_folder.centre_of(image_folder.read_image(file, side, channels), size)
    except Exception as error:  # of any kind: see read_image
        problem = getattr(error, "strerror", None) or "no image: %s" % " ".join(str(error).split())
        say("%s  skipped (%s)" % (file, problem))
        return None


def _answer(file, probabilities, class_names):
    """Prints the three most probable classes of a file; returns its part of the answers."""
    order = np.argsort(-probabilities)
    say("%s  %s" % (file, "  ".join("%s %.2f%%" % (class_names[index], 100 * probabilities[index])
                                    for index in order[:3])))
    return {"image": file, "classes": [class_names[index] for index in order],
            "probabilities": probabilities[order].tolist()}


def export(choose, inference, arguments=(), **overrides):
    """Writes a run's network, from pixels to probabilities, as a SavedModel and as a frozen graph.

    Args:
        choose, inference: the functions of Densenet.py.
        arguments, overrides: settings, as for training.
    Returns:
        (the path of the SavedModel, that of the frozen graph).
    Raises:
        UserError: bad settings, no such run, no intact checkpoint; the files exist already or cannot be written.
    """
    config, directory, facts = trained_run(choose, arguments, **overrides)
    with tf.Graph().as_default(), tf.Session(config=Cluster().session_config()) as sess:
        images, probabilities, class_names = serving_graph(inference, config, facts)
        used = Checkpoints(directory).restore_for_use(sess, config.checkpoint)
        written = export_graph(sess, {"images": images}, {"probabilities": probabilities, "class_names": class_names},
                               os.path.join(directory.path, "export-%d" % step_of(used)))
    say("exported %s as %s (SavedModel) and %s (frozen graph)" % ((used,) + written))
    return written
