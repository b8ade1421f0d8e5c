"""What can be done with a trained network: it is found, evaluated, exported. Prediction has a module of its own.

The network comes from Densenet.py, as functions: `choose`, `prepare_data`, `build_evaluation`, `inference`.
"""

import dataclasses
import os
import re
import types

import numpy as np
import PIL
import tensorflow.compat.v1 as tf

from support import UserError, image_folder, pretrained, say, settings
from support.checkpoints import Checkpoints, step_of
from support.configuration import VIEWS
from support.data import SPLITS, Split, has_black_border, same_data, say_repeated, subset_of
from support.evaluation import balanced_is_asked_for, evaluate_split
from support.explanations import class_maps, classifier_kernel, feature_reuse, kernels_of
from support.export import COMPARED, IMAGES, PROBABILITIES, check_absent, check_formats, frozen_network, write_network
from support.file_reading import composed, shortened
from support.networks import NETWORKS, extent_of_maps
from support.pictures import write_reuse_picture
from support.run_directory import RunDirectory, of_earlier_versions, runs_in
from support.tensorboard import log_evaluation
from support.workers import Cluster


@dataclasses.dataclass
class TrainedNetwork:
    """A trained network: that of a run, or of the setting `weights` as they are.

    Attributes:
        config: its settings.
        directory: the RunDirectory of the run; for weights, where results are written.
        facts: what is recorded of the data that it was trained on: `class_names`, `image_shape` and more.
        weights: the `support.pretrained.Weights`; None: the run has checkpoints.
        used: what was restored, for messages; None before.
        step: at which training step it was saved; 0 for weights.
    """

    config: types.SimpleNamespace
    directory: RunDirectory
    facts: dict
    weights: pretrained.Weights = None
    used: str = None
    step: int = 0

    def restore(self, sess):
        """Puts the weights into the session of an inference graph; returns what was restored, for messages.

        Raises:
            UserError: no checkpoint is intact, or the chosen one is not there; the weights do not fit the network.
        """
        if self.weights is None:
            self.used = Checkpoints(self.directory).restore_for_use(sess, self.config.checkpoint,
                                                                    self.facts["validation"])
            self.step = step_of(self.used)
        else:
            pretrained.start_from(sess, self.weights, self.facts["class_names"])
            self.used = self.weights.source
            for variable in tf.global_variables("normalization/"):
                variable.load(getattr(self.config.starting_point, variable.op.name.rpartition("/")[2]), sess)
        return self.used

    def name(self):
        """What was restored, as files have it: a checkpoint's path in the run's directory, or what the weights are."""
        return os.path.relpath(self.used, self.directory.path) if self.weights is None else self.used

    def data(self, prepare_data):
        """(the DataSet in `data_dir`, read as the run's were; the settings; whether it is the run's own).

        To evaluate other images of more than 8 bits, another `pixel_range` may be given.

        Raises:
            UserError: the data cannot be read; another `pixel_range` is given for the run's own.
        """
        asked, recorded = self.config.pixel_range, tuple(self.facts.get("pixel_range") or ()) or "auto"
        if self.weights is not None:
            recorded = asked  # there is no run that has seen any of the images
        differs = self.config.dataset == "folder" and asked not in ("auto", recorded)
        if differs:
            say("to tell which images in %s the run was trained on, they are first read with its pixel_range=%s"
                % (self.config.data_dir, settings.shown(recorded)))
        self.config.pixel_range = recorded
        self.config.truncated_images |= self.facts.get("truncated_images", False)
        data, config = prepare_data(self.config)
        is_own = same_data(data.fingerprint(), self.facts) and self.directory.has_seen(data)
        if is_own and differs and recorded != "auto":  # else it has no image that this concerns
            raise UserError("the images in %s are those of the run, which read them with pixel_range=%s: leave "
                            "pixel_range out" % (config.data_dir, settings.shown(recorded)))
        if differs and not is_own:
            digests = data.digests  # as the run's, so that those of its images are known again
            self.config.pixel_range = asked
            data, config = prepare_data(self.config)
            data.digests = digests
        if is_own:
            say_repeated(data)
        return data, config, is_own

    def normalized(self, data):
        """The DataSet with the mean and deviation of the images that the restored network was trained on."""
        found = self.config.starting_point
        if self.weights is None:
            saved = tf.train.load_checkpoint(self.used)
            found = types.SimpleNamespace(**{name: saved.get_tensor("normalization/" + name)
                                             for name in ("mean", "deviation")})
        return dataclasses.replace(data, mean=found.mean, deviation=found.deviation)


def trained_network(choose, arguments=(), **overrides):
    """Finds a run that was trained; where there is none, and `weights` are given, the network of these.

    Args:
        choose: `Densenet.choose`.
        arguments, overrides: settings, as for training.
    Returns:
        a TrainedNetwork.
    Raises:
        UserError: bad settings; there is no such run, or it was trained with other settings than are given.
    """
    config = choose(arguments, **overrides)
    directory, recorded = _recorded(config)
    if recorded is None or config.weights and not directory.checkpoints() + directory.checkpoints("best"):
        return _network_without_run(choose, config, directory)
    facts = recorded.pop("data", {})
    if "class_names" not in facts:
        raise UserError("%s was trained by an earlier version, which did not save what this needs: train it again, "
                        "under another run_name" % directory.path)
    data_dir = recorded.pop("data_dir", None)
    trained_with = of_earlier_versions(recorded)
    weights = trained_with.pop("weights")
    views = {view for view, _, _ in VIEWS} & set(config.given)  # how a network is used, not how it was trained
    trained_with = {name: value for name, value in trained_with.items() if name not in views}
    if facts.get("pixel_range") and (config.mode == "export" or "pixel_range" not in config.given):
        trained_with["pixel_range"] = tuple(facts["pixel_range"])  # other images may be given with another scale
    # Standard data sets are sought where they usually are, if the recorded folder is not here or cannot be a setting.
    kept = data_dir and (recorded.get("dataset") == "folder" or os.path.isdir(data_dir) and data_dir.isprintable())
    where = {"data_dir": data_dir} if kept and "data_dir" not in config.given else {}
    trained = choose(**dict(config.given, **dict(trained_with, run_name=os.path.basename(directory.path), weights="",
                                                 **where)))
    if "network" in config.given and config.network != recorded.get("network"):
        parts = (set(NETWORKS.get(config.network, ())) & set(trained_with)) - set(config.given)
        if any(getattr(config, name) != getattr(trained, name) for name in parts):
            _refuse(directory, "network", recorded.get("network"), config.network)
    for name in set(config.given) & set(trained_with):
        given = getattr(config, name)
        if given != getattr(trained, name) and given != "auto":
            _refuse(directory, name, getattr(trained, name), given)
    if trained.dataset == "digits" and config.mode != "predict" and "data_dir" in config.given:
        raise UserError("%s was trained on the digits in scikit-learn, and no other data are read for it: leave "
                        "data_dir out, or set run_name to the run you mean" % directory.path)
    if config.weights and config.identities["weights"] != weights:
        _refuse(directory, "weights", weights, config.identities["weights"])
    _say_what_surprises(config, trained, directory.path, facts, data_dir)
    return TrainedNetwork(trained, directory, facts)


def _say_what_surprises(config, trained, run, facts, data_dir):
    """Prints a line where a run's network does not work as the settings may be understood.

    Args:
        config: the settings.
        trained: those of the run, with what is given for its use.
        run: its directory.
        facts: what is recorded of its data.
        data_dir: where they were; None: not recorded.
    """
    own_range = tuple(facts.get("pixel_range") or ())
    if own_range and not facts.get("white_is_zero"):
        say("%s was trained by an earlier version, which read TIFF images of more than 8 bits with WhiteIsZero as "
            "negatives: if it was trained on such images, its answers for them are wrong now; train it again" % run)
    if config.mode == "predict" and own_range and trained.pixel_range not in ("auto", own_range):
        say("%s was trained with pixel_range=%s: these images are read with pixel_range=%s"
            % (run, settings.shown(own_range), settings.shown(trained.pixel_range)))
    for view, change, off in VIEWS:
        if getattr(trained, view) and not (trained.augmentation and getattr(trained, change)):
            say("%s averages over views that it was not trained on (%s=%s): %s=%s leaves them out"
                % (run, view, getattr(trained, view), view, off))
    if config.mode == "predict" and data_dir and "data_dir" in config.given and (
            os.path.realpath(data_dir) != os.path.realpath(config.data_dir)):
        say("%s was trained on the images in %s: mode=predict does not read data_dir=%s"
            % (run, data_dir, config.data_dir))


def _network_without_run(choose, config, directory):
    """The TrainedNetwork where a RunDirectory has no run of the settings `config`: the run on digits, or the weights.

    Raises:
        UserError: there is neither, or the weights cannot be used as they are; the run's settings cannot be read.
    """
    run = directory.path
    if directory.checkpoints() or directory.checkpoints("best"):
        raise UserError("%s has checkpoints but no readable settings.json, which tells what was trained: put it back, "
                        "or set run_name to another run" % run)
    of_file = config.weights and not config.starting_point.run  # then the images are photos
    if config.dataset == "mnist" and config.digits_stand_in and "dataset" not in config.given and not of_file:
        digits = choose(**dict(config.given, dataset="digits"))  # as training does without MNIST
        if os.path.isdir(os.path.join(digits.model_dir, digits.run_name)):
            return trained_network(choose, **dict(config.given, dataset="digits"))
    if config.weights:
        return _network_of_weights(choose, config, run)
    raise UserError("there is no trained run %s: set run_name to one of those in %s (%s), or leave mode out to train it"
                    % (run, config.model_dir, ", ".join(runs_in(config.model_dir)) or "none"))


def _refuse(directory, name, recorded, given):
    raise UserError("%s was trained with %s=%s, not %s: leave that out, or set run_name to the run you mean"
                    % (directory.path, name, settings.shown(recorded), settings.shown(given)))


def _network_of_weights(choose, config, run):
    """The TrainedNetwork of the setting `weights`, where the settings `config` have no run at the path `run`.

    Raises:
        UserError: a run is meant; the weights have no classifier, cannot be read or do not fit.
    """
    meant = {"run_name"} if config.mode == "evaluate" else {"run_name", "dataset", "data_dir"}
    named = sorted(meant & set(config.given))
    if named:
        raise UserError("there is no trained run %s: leave mode out to train it, or leave %s out to use the weights as "
                        "they are" % (run, ", ".join(named)))
    start = config.starting_point
    if start.run:
        raise UserError("there is no trained run %s: leave mode out to train it from the weights of run %s, or give "
                        "run_name=%s, and no weights, to use that run itself" % (run, start.run, start.run))
    weights = start.read(config.cache_dir)
    if "linear/bias" not in weights.values:
        raise UserError("%s has no classifier: leave mode= out to train one, or give run_name= of a run that started "
                        "from it" % weights.source)
    outputs = len(weights.values["linear/bias"])
    if outputs == 1 or not weights.exclusive:
        raise UserError("the outputs of %s (%d) are not the probabilities of classes that exclude each other: leave "
                        "mode= out to train a classifier" % (weights.source, outputs))
    pretrained.with_class_names(weights, config.cache_dir)
    # One view of each image, as in published results.
    own = dict(dict(flip_average=False, precision="float32"), **dict(config.given, dataset="folder"))
    own["run_name"] = start.identity if start.identity != "imagenet" else "imagenet-" + config.network
    config = choose(**own)
    facts = {"class_names": list(weights.class_names), "class_ids": weights.class_ids,
             "image_shape": [config.image_size, config.image_size, len(start.mean)]}
    return TrainedNetwork(config, RunDirectory(os.path.join(config.model_dir, config.run_name), {}), facts, weights)


def _recorded(config):
    """(the run's RunDirectory, its settings.json or None). Earlier versions named runs on image folders otherwise."""
    directory = RunDirectory(os.path.join(config.model_dir, config.run_name), {})
    recorded = directory.read_json("settings.json")
    if recorded is None and config.earlier_run_name:
        earlier = RunDirectory(os.path.join(config.model_dir, config.earlier_run_name), {})
        if earlier.read_json("settings.json") is not None:
            return earlier, earlier.read_json("settings.json")
    return directory, recorded


def evaluate(choose, prepare_data, build_evaluation, arguments=(), **overrides):
    """Evaluates a run's checkpoint, as training does; prints and writes the result.

    It is evaluated on the run's test images, or where `data_dir` holds other data than the run's, on the images there
    that it was not trained on.

    Args:
        choose, prepare_data, build_evaluation: the functions of Densenet.py.
        arguments, overrides: settings, as for training.
    Returns:
        the content of the run's evaluation.json, for other data of evaluation_of_<name>.json. An earlier file with
        other content gets another name first.
    Raises:
        UserError: bad settings, no such run, no intact checkpoint; other data with other classes.
    """
    trained = trained_network(choose, arguments, **overrides)
    config, directory, facts = trained.config, trained.directory, trained.facts
    data, config, is_own = trained.data(prepare_data)
    if not is_own:
        data = _as_other_data(data, trained)
    cluster = Cluster(config.batch_size, config.devices, images=facts.get("train"))  # as in training
    with tf.Graph().as_default(), tf.Session(config=cluster.session_config()) as sess:
        images = tf.placeholder(tf.float32, (cluster.batch_size,) + data.image_shape, "images")
        labels = tf.placeholder(tf.int64, [cluster.batch_size], "labels")
        border = _border(config, *_normalization(facts))
        net = build_evaluation(images, labels, config, len(data.class_names), border, cluster)
        used = trained.restore(sess)
        evaluation = evaluate_split(sess, net, data.test, trained.normalized(data), embed=True)
        reuse = feature_reuse(kernels_of(sess), config.blocks, config.growth_k, config.bottleneck)
    for line in evaluation.table(data.class_names):
        say(line)
    content = dict(evaluation.as_json(data.class_names), dataset=config.dataset, tensorflow=tf.VERSION,
                   checkpoint=trained.name(), **{view: getattr(config, view) for view, _, _ in VIEWS})
    file = "evaluation.json"
    if not is_own:
        content["data_dir"] = os.path.abspath(config.data_dir)
        file = "evaluation_of_%s.json" % re.sub(r"[^\w+-]", "_", os.path.basename(content["data_dir"]))
    # Before anything is written: a run may lie where nothing can be.
    which = "test" if is_own else "all images:" if trained.weights else "on other data than the run's:"
    say("%s %s, loss %.4f, of %s (%s)" % (which, evaluation.accuracies(balanced_is_asked_for(config)), evaluation.loss,
                                          used, os.path.join(directory.path, file)))
    directory.create()
    if directory.read_json(file) not in (None, content):
        directory.keep(file)
    directory.write_json(file, content)
    write_reuse_picture(directory, reuse)
    if is_own:
        log_evaluation(config.log_dir, config.run_name, directory.path, trained.step, evaluation, data.test.images,
                       data.class_names, reuse, extent_of_maps(config, data.image_shape[0]))
    return content


def _as_other_data(data, trained):
    """A DataSet whose test split holds the images that a network was not trained on, labelled as in the training.

    Args:
        data: the DataSet found in `data_dir`, another than the run's, or the run's with some images changed.
        trained: the TrainedNetwork.
    Raises:
        UserError: it has another class, or images of another shape, than the run; there is no image to evaluate.
    """
    facts, directory, data_dir = trained.facts, trained.directory, trained.config.data_dir
    known = facts["class_names"]
    if facts.get("class_ids") and set(data.class_names) <= set(facts["class_ids"]):
        known = facts["class_ids"]  # a folder that is arranged by ImageNet's ids
    test, digests = data.test, data.digests["test"]
    if data.name == "folder":  # all its images
        test = image_folder.joined([getattr(data, split) for split in SPLITS])
        digests = np.concatenate([data.digests[split] for split in SPLITS])
    known, names = (list(map(composed, each)) for each in (known, data.class_names))
    unknown = sorted({names[label] for label in np.unique(test.labels)} - set(known))
    if unknown and trained.weights is not None:
        raise UserError("%s has the class %s, and %s tells apart %s%s: name the folders of images after these" % (
            data_dir, unknown[0], trained.weights.source, shortened(known),
            "" if facts.get("class_ids") else ", as nothing names its classes"))
    if unknown:
        raise UserError("%s has the class %s, which %s was not trained on: its classes are %s; %s" % (
            data_dir, unknown[0], directory.path, shortened(facts["class_names"]),
            "take the folders of other classes away" if data.name == "folder" else "set data_dir to data of these"))
    if list(data.image_shape) != facts["image_shape"]:
        raise UserError("the images in %s have the shape %s, those of %s %s: set data_dir to images of that shape" % (
            data_dir, "x".join(map(str, data.image_shape)), directory.path, "x".join(map(str, facts["image_shape"]))))
    seen = directory.seen_images()
    if seen is None and trained.weights is None:
        say("%s did not record its training images: those in %s cannot be left out, and with any of them the accuracy "
            "is too high" % (directory.path, data_dir))
    unseen = np.flatnonzero(~np.isin(digests, [] if seen is None else seen))
    left_out = len(digests) - len(unseen)
    test = Split(subset_of(test.images, unseen), test.labels[unseen])
    if not len(test):
        raise UserError("%s has no image that %s was not trained on: set data_dir to other images"
                        % (data_dir, directory.path))
    if trained.weights is None:
        say("%s holds other data than %s was trained on: %d images are evaluated%s" % (
            data_dir, directory.path, len(test), left_out and (
                ", %d that it was trained on or chosen by are left out" % left_out) or ""))
        _say_lost_images(trained, seen, digests)
    labels = np.array([known.index(name) if name in known else -1 for name in names])[test.labels]
    return dataclasses.replace(data, test=Split(test.images, labels), class_names=tuple(facts["class_names"]))


def _say_lost_images(trained, seen, digests):
    """Says how many of the images that a run has seen are not found again where they were.

    Args:
        trained: the TrainedNetwork.
        seen: the digests of the images that it was trained on or chosen by; None: unknown.
        digests: those of the images that are there.
    """
    recorded = trained.directory.read_json("settings.json").get("data_dir")
    own = trained.config.dataset == "folder" and recorded and (
        os.path.realpath(recorded) == os.path.realpath(trained.config.data_dir))
    lost = np.count_nonzero(~np.isin(seen, digests)) if own and seen is not None else 0
    if lost:
        say("%d of the %d images that it was trained on or chosen by are not found again in this folder, where they "
            "were: if only their pixels are others, by a change or by another version of Pillow, the accuracy is too "
            "high" % (lost, len(seen)))


def serving_graph(inference, config, facts):
    """Builds, in the default graph, a trained network from pixels to probabilities, in float32.

    Args:
        inference: the function of Densenet.py.
        config: the settings of the run.
        facts: what the run recorded of its data.
    Returns:
        placeholder uint8 [N, H, W, C]; class probabilities float32 [N, classes]; the class activation map of each
        image's most probable class, float32 [N, h, w].
    """
    images = tf.placeholder(tf.uint8, [None] + facts["image_shape"], IMAGES)
    mean, deviation = _normalization(facts)
    config = types.SimpleNamespace(**dict(vars(config), precision="float32"))
    net = inference((tf.cast(images, tf.float32) - mean) / deviation, config, len(facts["class_names"]),
                    _border(config, mean, deviation))
    maps = class_maps(net.features, classifier_kernel(), tf.argmax(net.logits, 1))
    return images, tf.nn.softmax(net.logits, name=PROBABILITIES), maps


def _normalization(facts):
    """Mean and deviation of the training images, float32 [C]: variables that come with the weights."""
    with tf.variable_scope("normalization"):
        return [tf.get_variable(name, [facts["image_shape"][2]]) for name in ("mean", "deviation")]


def _border(config, mean, deviation):
    """The normalized pixel that training pads images with; None: the mean colour."""
    return -mean / deviation if config.shift_average and has_black_border(config.dataset) else None


def preparation_of(config, facts):
    """How an image file becomes the pixels that a run's network gets, {name: value}: an export's model.json.

    mode: Pillow's, L for grey or RGB. resize: side in pixels to which the square at an image's centre is resized. crop:
    the part of that, as (left, top, right, bottom). size: side of the result. pixel_range: the values that are black
    and white in images of more than 8 bits; null: there were none. class_names: of the probabilities, in their order.
    """
    size, _, channels = facts["image_shape"]
    pixel_range = config.pixel_range if config.pixel_range != "auto" else facts.get("pixel_range")
    side = image_folder.stored_side(size, config.crop_area if config.dataset == "folder" else 1.0)
    start = (side - size) // 2
    return {"mode": "L" if channels == 1 else "RGB", "resize": side, "resampling": "bilinear",
            "crop": [start, start, start + size, start + size], "size": size, "channels": channels,
            "pixel_range": pixel_range and list(pixel_range), "class_names": facts["class_names"]}


def export(choose, prepare_data, inference, arguments=(), **overrides):
    """Writes a run's network, from pixels to probabilities, in the formats of the setting `formats`.

    Args:
        choose, prepare_data, inference: the functions of Densenet.py.
        arguments, overrides: settings, as for training.
    Returns:
        the paths that were written, in the order of `support.export.FORMATS`: by default that of the SavedModel, and
        that of the frozen graph.
    Raises:
        UserError: bad settings, no such run, no intact checkpoint; a format needs a package that is not installed; the
            files exist already, cannot be written or differ from the network.
    """
    trained = trained_network(choose, arguments, **overrides)
    config, facts = trained.config, trained.facts
    check_formats(config.formats)
    session_config = Cluster().session_config()
    session_config.device_count["GPU"] = 0  # whose products have fewer bits than the exported graph's on a CPU
    with tf.Graph().as_default(), tf.Session(config=session_config) as sess:
        images, probabilities, _ = serving_graph(inference, config, facts)
        used = trained.restore(sess)
        about = dict(preparation_of(config, facts), dataset=config.dataset, run=config.run_name, step=trained.step,
                     checkpoint=trained.name(), norm_epsilon=config.norm_epsilon, tensorflow=tf.VERSION,
                     versions={"tensorflow": tf.VERSION, "numpy": np.__version__, "pillow": PIL.__version__})
        path = os.path.join(config.export_dir, config.run_name, str(trained.step))
        check_absent(path, config.formats, about)  # now: the data may take long to prepare
        say("exporting %s to %s" % (used, os.path.dirname(path)))
        train, test = _splits_of(trained, prepare_data)
        written = write_network(frozen_network(sess, images, probabilities, about, test, train), path, config.formats)
    return written


def _splits_of(trained, prepare_data):
    """(training Split, test Split) of a network's data; (None, random images without labels) where they are not there.

    In the second case a line says why.
    """
    facts, config, why = trained.facts, trained.config, "these weights come without a data set"
    if trained.weights is None:
        try:
            data, _, is_own = trained.data(prepare_data)
            if is_own:
                return data.train, data.test
            why = "%s holds other data than the run was trained on" % config.data_dir
        except UserError as error:
            why = "the data of the run cannot be read: %s" % error
    say("no accuracy, and the comparison is on random images: %s" % why)
    random = np.random.RandomState(0).randint(0, 256, [COMPARED] + facts["image_shape"])
    return None, Split(random.astype(np.uint8), None)
