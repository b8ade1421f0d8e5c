"""Which trained weights can training and prediction start from?

`weights=` is one of: `imagenet`, the files that Keras publishes; a file that Keras saved (.h5, .keras), or one in the
format safetensors with the names of torchvision's and timm's networks; another run, by its name or a checkpoint's path.
Files are read by support/weight_files.py.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import json
import os
import re
import typing

import numpy as np
import tensorflow.compat.v1 as tf

from support import UserError, download, say
from support.checkpoints import LEAST_VALIDATION
from support.file_reading import composed, shortened
from support.run_directory import RunDirectory, of_earlier_versions, run_of, runs_in
from support.weight_average import SUFFIX, averages_first
from support.weight_files import (
    KERAS_EPSILON,
    VARIABLE,
    Tensor,
    described,
    difference_of,
    in_one_sentence,
    opened,
    parts_of,
    values_of,
)

# What Keras publishes, converted from the authors' weights; at the second address until 2019
KERAS_URLS = ("https://storage.googleapis.com/tensorflow/keras-applications/densenet/",
              "https://github.com/keras-team/keras-applications/releases/download/densenet/")
KERAS_FILES = {  # network: (file, md5)
    "densenet_121": ("densenet121_weights_tf_dim_ordering_tf_kernels.h5", "9d60b8095a5708f2dcce2bca79d332c7"),
    "densenet_169": ("densenet169_weights_tf_dim_ordering_tf_kernels.h5", "d699b8f76981ab1b30698df4c175e90b"),
    "densenet_201": ("densenet201_weights_tf_dim_ordering_tf_kernels.h5", "1ceb130c1ea1b78c3bf6114dbdfd8807"),
}
INDEX_URLS = ("https://storage.googleapis.com/download.tensorflow.org/data/",
              "https://s3.amazonaws.com/deep-learning-models/image-models/")
INDEX_FILE = ("imagenet_class_index.json", "c2c37ea517e94d9795004a39431a14cb")  # {"0": [id, name of the class], …}
LARGEST = 2 ** 28  # bytes of a download; densenet_201 has 80 million
# Of the images that published weights were trained with, on the scale of bytes
IMAGENET_MEAN = np.float32([0.485, 0.456, 0.406]) * 255
IMAGENET_DEVIATION = np.float32([0.229, 0.224, 0.225]) * 255
MANY_STEPS = 1000.0  # of batch normalization: 0.9 ^ 1000 is 0 in float32, so that the loaded averages go on as they are
# The settings in a run's settings.json that describe its network, and what it sees of an image
DESCRIBING = ("blocks", "growth_k", "bottleneck", "compression", "transition_channels", "transition_pooling", "stem",
              "stem_channels", "norm_epsilon", "crop_area")


@dataclasses.dataclass
class StartingPoint:
    """What is known of some weights before they are read.

    Attributes:
        identity: what tells these weights from others, usable in a file name.
        settings: {name: value} of the settings that describe their network. Of a checkpoint without the settings.json
            of its run, those that follow from its variables.
        mean, deviation: those of the images that they were trained with, float32 [C].
        read: a function of cache_dir that returns the Weights.
        run: the name of the run of this program that they are of; empty for others.
        run_digest: a digest of what that run's settings.json records, which tells it from others of its name; empty
            where there is none.
        pixel_range: the scale of deep images that they were trained with; None: there were none, or it is not known.
        seen: digests of the images that they were trained on or chosen by, uint64 [N]; None: not known.
    """

    identity: str
    settings: dict
    mean: np.ndarray
    deviation: np.ndarray
    read: typing.Callable
    run: str = ""
    run_digest: str = ""
    pixel_range: typing.Optional[list] = None
    seen: typing.Optional[np.ndarray] = None


@dataclasses.dataclass
class Weights:
    """Trained weights by the names of our variables.

    Attributes:
        source: where they come from, for messages.
        values: {variable: float32 array}; of a batch normalization gamma, beta, moving_mean and moving_variance.
        names: {variable: its name in the source}.
        class_names: names of the classes that `linear` tells apart, or None.
        class_ids: further names of the classes, such as ImageNet's n01440764, or None.
        exclusive: whether an image is of one class: whether the probabilities are a softmax.
    """

    source: str
    values: dict
    names: dict
    class_names: typing.Optional[list] = None
    class_ids: typing.Optional[list] = None
    exclusive: bool = True


def look_up(weights, model_dir, network="custom"):
    """The StartingPoint that the setting `weights` names. Reads names and shapes alone.

    Args:
        weights: the setting; not empty.
        model_dir: where runs are.
        network: the setting; it chooses among the networks of `imagenet`.
    Raises:
        UserError: there is no such file or run, or it has no weights of a known network.
    """
    in_model_dir = os.path.join(model_dir, weights)
    run = next((folder for folder in (in_model_dir, weights) if _is_run(folder)), None)
    checkpoint = re.sub(r"\.(index|data-\d+-of-\d+)$", "", weights)
    if weights == "imagenet" or weights.lower() == "imagenet" and not run and not os.path.exists(weights):
        _say_if_ambiguous("the weights that Keras publishes", in_model_dir, run)
        return _imagenet("densenet_121" if network == "custom" else network)
    if os.path.exists(checkpoint + ".index"):
        return _of_checkpoint(checkpoint)
    if os.path.isfile(weights):
        _say_if_ambiguous("the file", in_model_dir, run)
        return _of_file(weights, os.path.getsize(weights), os.path.getmtime(weights))
    if run:
        return _of_run(run)
    runs = runs_in(model_dir)
    near = difflib.get_close_matches(weights, ["imagenet"] + runs, 1)
    raise UserError("weights=%s is not there%s: give imagenet, a .h5, .keras or .safetensors file, a checkpoint's path "
                    "or a run in %s (%s)" % (weights, "; the nearest is " + near[0] if near else "", model_dir,
                                             shortened(runs) or "none yet"))


@functools.lru_cache(256)
def _say_once(line):
    """Prints a line once in a process. It is due whenever the settings are read, which a command does several times."""
    say(line)


def _say_if_ambiguous(taken, in_model_dir, run):
    if run == in_model_dir:
        _say_once("weights=%s: %s of this name, not the run; for the run set weights=%s"
                  % (os.path.basename(run), taken, run))


def fit(weights, shapes, class_names):
    """Fits weights to a network.

    Args:
        weights: the Weights.
        shapes: {variable: shape}, in the network's order; other variables than those of VARIABLE are ignored.
        class_names: names of the classes that the network is to tell apart.
    Returns:
        ({variable: array}, a sentence that accounts for all tensors). The arrays have the further variables of a batch
        normalization, too, by which its moving averages go on from the values that are taken.
    Raises:
        UserError: a layer differs; the first one is named.
    """
    fresh = _fresh_classifier(weights, class_names)
    taken = {name: value for name, value in weights.values.items() if not (fresh and name.startswith("linear/"))}
    wanted = {name: tuple(shape) for name, shape in shapes.items()
              if VARIABLE.fullmatch(name) and not (fresh and name.startswith("linear/"))}
    difference = difference_of(wanted, {name: value.shape for name, value in taken.items()}, weights.names)
    if difference:
        raise UserError("%s does not fit the network: %s; leave out network=, blocks= and the like: the weights bring "
                        "theirs" % (weights.source, difference))
    line = "weights of %s: all %d tensors taken" % (weights.source, len(taken))
    if fresh:
        line = "weights of %s: %d tensors taken; the classifier starts afresh, as %s" % (
            weights.source, len(taken), fresh)
    elif weights.class_names is None:
        line += "; they name no classes: those of their classifier are taken to be %s, in this order" % (
            shortened(list(class_names)))
    for name in [name for name in taken if name.endswith("/moving_mean")]:
        taken[name + "/biased"], taken[name + "/local_step"] = taken[name], np.float32(MANY_STEPS)
    return taken, line


def start_from(sess, weights, class_names):
    """Puts weights into the network of the default graph; returns a sentence that accounts for all tensors.

    Args:
        sess: its session.
        weights: the Weights.
        class_names: names of the classes that the network is to tell apart.
    Raises:
        UserError: a layer differs; the first one is named.
    """
    variables = {variable.op.name: variable for variable in tf.global_variables()}
    values, line = fit(weights, {name: variable.shape.as_list() for name, variable in variables.items()}, class_names)
    values.update({name + SUFFIX: value for name, value in values.items() if name + SUFFIX in variables})
    feed = {variables[name].initializer.inputs[1]: value for name, value in values.items()}
    sess.run([variables[name].initializer for name in values], feed)
    return line


def _fresh_classifier(weights, class_names):
    """Why the classifier starts afresh; None: it is taken from the weights."""
    if "linear/bias" not in weights.values:
        return "there is none in them"
    count = len(weights.values["linear/bias"])
    if count != len(class_names):
        told = "they tell %d classes apart" % count if count > 1 else "they have a single output"
        return "%s, and here are %d classes" % (told, len(class_names))
    ours = list(map(composed, class_names))
    known = [list(map(composed, names)) for names in (weights.class_names, weights.class_ids) if names]
    if weights.class_names and ours not in known:
        theirs, ours = next(pair for pair in zip(known[0], ours) if pair[0] != pair[1])
        return "their classes are others (%s where there is %s here)" % (theirs, ours)
    return None


# ImageNet's weights, as Keras publishes them


def _imagenet(network):
    if network not in KERAS_FILES:
        raise UserError("weights=imagenet are those of %s, not of %s: give one of these as network, or weights=FILE"
                        % (", ".join(KERAS_FILES), network))

    def read(cache_dir):
        path = _downloaded(KERAS_URLS, KERAS_FILES[network], cache_dir, "or give another file as weights=FILE")
        weights = _file_weights(path, "imagenet for %s" % network)
        try:
            weights.class_ids, weights.class_names = imagenet_classes(cache_dir)
        except download.Unavailable as error:  # who trains on other classes does not need them
            say("the names of ImageNet's classes are not known: %s" % error)
        return weights

    return StartingPoint("imagenet", dict(network=network, norm_epsilon=KERAS_EPSILON), IMAGENET_MEAN,
                         IMAGENET_DEVIATION, read)


def imagenet_classes(cache_dir):
    """(ImageNet's class ids, such as n01440764; the names of the classes), 1000 each, in the order of the classifier.

    Raises:
        Unavailable: the list is not in cache_dir and cannot be downloaded.
    """
    path = _downloaded(INDEX_URLS, INDEX_FILE, cache_dir, "the names of ImageNet's classes")
    with open(path, encoding="utf-8") as file:
        index = json.load(file)
    ids, names = zip(*(index[str(label)] for label in range(len(index))))
    repeated = {name for name in names if names.count(name) > 1}  # two classes are called crane, and two maillot
    return list(ids), ["%s (%s)" % (name, one) if name in repeated else name for one, name in zip(ids, names)]


def with_class_names(weights, cache_dir):
    """Names the classes of weights that have no names for them: 1000 classes are ImageNet's, others get numbers."""
    count = len(weights.values["linear/bias"])
    if weights.class_names is None and count == 1000:
        try:
            weights.class_ids, weights.class_names = imagenet_classes(cache_dir)
            say("%s tells 1000 classes apart: they are named as ImageNet's" % weights.source)
        except download.Unavailable as error:
            say("classes are shown as numbers: %s" % error)
    if weights.class_names is None:
        weights.class_names = ["class %d" % label for label in range(count)]
    return weights


def _downloaded(urls, file, cache_dir, instead):
    """The path of a published file in cache_dir, downloaded if it is not there."""
    name, md5 = file
    folder = os.path.join(cache_dir, "weights")
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        try:
            download.fetch_all({name: (LARGEST, "md5:" + md5)}, urls, folder, exact=False)
        except download.Unavailable as error:
            raise download.Unavailable("%s; download %s%s on another machine and save it as %s, %s"
                                       % (error, urls[0], name, path, instead)) from None
    found = _digest(path, hashlib.md5())
    if found != md5:
        raise UserError("%s is not the file of that name in %s (md5 %s, not %s): delete it, and it is downloaded anew"
                        % (path, urls[0], found, md5))
    return path


def _digest(path, algorithm):
    with in_one_sentence(path), open(path, "rb") as file:
        for chunk in iter(functools.partial(file.read, 1 << 20), b""):
            algorithm.update(chunk)
    return algorithm.hexdigest()


# Files


@functools.lru_cache(8)
def _of_file(path, size, changed):
    """The StartingPoint of a file; size and time of its change are those by which it is known to be the same."""
    with opened(path) as (tensors, facts):
        settings = described({variable: tensor.shape for variable, tensor in tensors.items()}, path)
    mean, deviation = facts.scale or (IMAGENET_MEAN, IMAGENET_DEVIATION)
    identity = "%s-%s" % (re.sub(r"[^\w.+-]", "_", os.path.basename(path)), _digest(path, hashlib.sha256())[:12])
    return StartingPoint(identity, dict(settings, norm_epsilon=facts.epsilon), mean, deviation,
                         lambda _: _file_weights(path, path))


def _file_weights(path, source):
    """The Weights in a file, without names of classes."""
    with opened(path) as (tensors, facts):
        names = {variable: tensor.name for variable, tensor in tensors.items()}
        return Weights(source, values_of(tensors, path), names, exclusive=facts.exclusive)


# Runs


def _is_run(folder):
    directory = RunDirectory(folder, {})
    return bool(directory.read_json("settings.json") or directory.checkpoints() or directory.checkpoints("best"))


def _of_run(folder):
    """The StartingPoint of a run's best checkpoint on validation, else of its newest intact one."""
    directory = RunDirectory(folder, {})
    best, newest = directory.checkpoints("best"), directory.checkpoints()  # each from the newest on
    images = _facts(_recorded(folder)).get("validation")
    few = isinstance(images, int) and images < LEAST_VALIDATION
    for _, checkpoint in newest + best if few else best + newest:
        with contextlib.suppress(_Skipped):
            return _of_checkpoint(checkpoint, name=os.path.basename(run_of(checkpoint)))  # model/<run>/best, too
    raise UserError("%s has no intact checkpoint%s" % (folder, "" if best + newest else " yet: train it first"))


class _Skipped(Exception):
    """A damaged checkpoint of a run that may have others."""


def _of_checkpoint(path, name=None):
    """The StartingPoint of a checkpoint. `name`: of the run that it was chosen from; None: it was asked for itself."""
    folder = run_of(path)
    try:
        with in_one_sentence(path, tf.errors.OpError):
            weights, mean, deviation = _checkpoint_weights(path)
    except UserError as error:
        if name is None or isinstance(error, _Foreign):
            raise
        _say_once("skipped %s: it is damaged or incomplete" % path)
        raise _Skipped from None
    recorded = _recorded(folder)
    names = _facts(recorded).get("class_names")
    if isinstance(names, list) and len(names) == len(weights.values.get("linear/bias", ())):
        weights.class_names = names
    if recorded:
        known = of_earlier_versions(recorded)
        settings = {setting: known[setting] for setting in DESCRIBING if known.get(setting) is not None}
        shape = _facts(recorded).get("image_shape")
        settings.update({"image_size": shape[0]} if isinstance(shape, list) and shape else {})
    else:
        settings = parts_of({variable: value.shape for variable, value in weights.values.items()}, path)
        _say_once("%s is without the settings.json of its run: stem, transition_pooling and norm_epsilon have to be "
                  "given where they are not the usual ones" % path)
    # Of a run the name alone: what starts from it is resumed by the same command, also when the run has gone on.
    identity = re.sub(r"[^\w=,.+-]", "_", name or "%s-%s" % (os.path.basename(folder), os.path.basename(path)))
    return StartingPoint(identity, settings, mean, deviation, lambda _: weights, os.path.basename(folder),
                         _digest_of_run(recorded), _facts(recorded).get("pixel_range"),
                         RunDirectory(folder, {}).seen_images())


class _Foreign(UserError):
    """A checkpoint of another program."""


def _checkpoint_weights(path):
    """(the Weights in a checkpoint, without class names; mean and deviation of its images)."""
    reader = tf.train.load_checkpoint(path)
    names = reader.get_variable_to_shape_map()
    # Earlier versions numbered the blocks of some networks from 1, not 0.
    first = 0 if any(name.startswith("dense_0/") for name in names) else min(
        [int(number) for number in re.findall(r"^dense_(\d+)/", "\n".join(names), re.MULTILINE)] or [0])

    def ours(name):
        return re.sub(r"^(dense|trans)_(\d+)/", lambda found: "%s_%d/" % (
            found.group(1), int(found.group(2)) - first), name)

    tensors = {ours(name): Tensor(name, None, functools.partial(reader.get_tensor, read))
               for name, read in sorted(averages_first(names).items()) if VARIABLE.fullmatch(name)}
    for needed in ("linear/kernel", "normalization/mean", "normalization/deviation"):
        if needed not in list(tensors) + list(names):
            raise _Foreign("%s has no %s: it is a checkpoint of another program or of an early version"
                           % (path, needed))
    values = values_of(tensors, path)
    mean, deviation = (reader.get_tensor(name) for name in ("normalization/mean", "normalization/deviation"))
    return Weights(path, values, {variable: tensor.name for variable, tensor in tensors.items()}), mean, deviation


def _digest_of_run(recorded):
    """A digest of a run's settings.json, without the place of the data, which may change; empty for an empty one."""
    lasting = {name: value for name, value in recorded.items() if name != "data_dir"}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:12] if lasting else ""


def _recorded(folder):
    return RunDirectory(folder, {}).read_json("settings.json") or {}


def _facts(recorded):
    facts = recorded.get("data")
    return facts if isinstance(facts, dict) else {}
