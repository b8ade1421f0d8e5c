"""Which trained weights can training and prediction start from, and how are they read?

`weights=` is one of: `imagenet`, the files that Keras publishes; a file that Keras saved (.h5, .keras), or one in the
format safetensors with the names of torchvision's and timm's networks; another run, by its name or a checkpoint's path.
Files are read without trusting them: nothing is unpickled, and sizes are checked before anything is allocated.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import zipfile

import numpy as np
import tensorflow.compat.v1 as tf

from support import UserError, download, say
from support.checkpoints import LEAST_VALIDATION
from support.networks import NETWORKS
from support.run_directory import RunDirectory, of_earlier_versions, runs_in

KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/densenet/"
KERAS_FILES = {  # network: (file, md5)
    "densenet_121": ("densenet121_weights_tf_dim_ordering_tf_kernels.h5", "9d60b8095a5708f2dcce2bca79d332c7"),
    "densenet_169": ("densenet169_weights_tf_dim_ordering_tf_kernels.h5", "d699b8f76981ab1b30698df4c175e90b"),
    "densenet_201": ("densenet201_weights_tf_dim_ordering_tf_kernels.h5", "1ceb130c1ea1b78c3bf6114dbdfd8807"),
}
INDEX_URL = "https://storage.googleapis.com/download.tensorflow.org/data/"
INDEX_FILE = ("imagenet_class_index.json", "c2c37ea517e94d9795004a39431a14cb")
LARGEST = 2 ** 28  # bytes of a download, and values of a tensor
# Of the images that published weights were trained with, on the scale of bytes
IMAGENET_MEAN = np.float32([0.485, 0.456, 0.406]) * 255
IMAGENET_DEVIATION = np.float32([0.229, 0.224, 0.225]) * 255
KERAS_EPSILON, TORCH_EPSILON = 1.001e-5, 1e-5
PUBLISHED = ("densenet_121", "densenet_161", "densenet_169", "densenet_201")
NORM = ("gamma", "beta", "moving_mean", "moving_variance")  # the variables of a batch normalization, in Keras' order
OF_NETWORK = re.compile(r"/(%s|kernel|bias)$" % "|".join(NORM))  # not an optimizer's variables
LONG_SINCE = 1000.0  # batches that moving averages count: 0.9 ^ 1000 is 0, so that nothing is debiased
TORCH_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}
CONVERT = ("%s is a pickle, and unpickling runs the code that is in it. In PyTorch, this line converts it: "
           "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in "
           "torch.load('%s', map_location='cpu', weights_only=True).items()}, 'model.safetensors')")


@dataclasses.dataclass
class StartingPoint:
    """What is known of some weights before they are read.

    Attributes:
        identity: what tells these weights from others, usable in a file name.
        settings: {name: value} of the settings that describe their network.
        mean, deviation: those of the images that they were trained with, float32 [C].
        read: a function of cache_dir that returns the Weights.
    """

    identity: str
    settings: dict
    mean: np.ndarray
    deviation: np.ndarray
    read: object


@dataclasses.dataclass
class Weights:
    """Trained weights by the names of our variables.

    Attributes:
        source: where they come from, for messages.
        values: {variable: float32 array}; of a batch normalization gamma, beta, moving_mean and moving_variance.
        names: {variable: its name in the source}.
        class_names: names of the classes that `linear` tells apart, or None.
        class_ids: further names of the classes, such as ImageNet's n01440764, or None.
    """

    source: str
    values: dict
    names: dict
    class_names: list = None
    class_ids: list = None


def look_up(weights, model_dir, network="custom"):
    """The StartingPoint that the setting `weights` names. Reads names and shapes alone.

    Args:
        weights: the setting; not empty.
        model_dir: where runs are.
        network: the setting; it chooses among the networks of `imagenet`.
    Raises:
        UserError: there is no such file or run, or it has no weights of a known network.
    """
    if weights == "imagenet":
        return _imagenet("densenet_121" if network == "custom" else network)
    run = os.path.join(model_dir, weights)
    if os.path.isfile(weights):
        return _of_file(weights, os.path.getsize(weights), os.path.getmtime(weights))
    if os.path.isdir(run) and RunDirectory(run, {}).read_json("settings.json") is not None:
        return _of_run(run)
    if os.path.isfile(weights + ".index"):
        folder = os.path.dirname(os.path.abspath(weights))
        return _of_run(os.path.dirname(folder) if os.path.basename(folder) == "best" else folder, weights)
    raise UserError("weights=%s is not there: give imagenet, a .h5 or .safetensors file, a checkpoint's path, or a run "
                    "in %s (%s)" % (weights, model_dir, ", ".join(runs_in(model_dir)) or "none yet"))


def layers_of(blocks):
    """The layers of a network with bottleneck layers and the ImageNet stem, in order: [(scope, kind)].

    kind: "conv", "norm" or "linear".
    """
    layers = [("conv0", "conv"), ("batch0", "norm")]
    for place, count in enumerate(blocks):
        block = "dense_%d" % place if place < len(blocks) - 1 else "dense_final"
        for layer in range(count):
            for name in ("batch1", "conv1", "batch2", "conv2"):
                layers.append(("%s/bottleN_%d/%s" % (block, layer, name), "norm" if "batch" in name else "conv"))
        if place < len(blocks) - 1:
            layers += [("trans_%d/batch1" % place, "norm"), ("trans_%d/conv1" % place, "conv")]
    return layers + [("linear_batch", "norm"), ("linear", "linear")]


def variables_of(scope, kind):
    """The names of a layer's variables."""
    names = {"conv": ("kernel",), "norm": NORM, "linear": ("kernel", "bias")}[kind]
    return ["%s/%s" % (scope, name) for name in names]


def fit(weights, shapes, class_names):
    """Fits weights to a network.

    Args:
        weights: the Weights.
        shapes: {variable: shape}, in the network's order: trained variables and moving statistics.
        class_names: names of the classes that the network is to tell apart.
    Returns:
        ({variable: array}, a sentence that accounts for all tensors). The arrays have the further variables of a batch
        normalization, too, by which its moving averages go on from the values that are taken.
    Raises:
        UserError: a layer differs; the first one is named.
    """
    fresh = _fresh_classifier(weights, class_names)
    for name, shape in shapes.items():
        layer = name.rpartition("/")[0]
        if layer == "linear" and fresh:
            continue
        value = weights.values.get(name)
        if value is None:
            raise UserError("%s does not fit the network: it has nothing for %s, which the network has"
                            % (weights.source, name))
        if value.shape != tuple(shape):
            raise UserError("%s does not fit the network: %s has the shape %s there (%s), and %s here"
                            % (weights.source, name, _shown(value.shape), weights.names[name], _shown(shape)))
    for name in weights.values:
        if name not in shapes:
            raise UserError("%s does not fit the network: it has %s (%s), which the network has not"
                            % (weights.source, name, weights.names[name]))
    taken = {name: value for name, value in weights.values.items() if not (name.startswith("linear/") and fresh)}
    line = "weights of %s: all %d tensors taken" % (weights.source, len(taken))
    if fresh:
        line = "weights of %s: %d tensors taken; the classifier starts afresh, as %s" % (
            weights.source, len(taken), fresh)
    found = dict(taken)
    for name, value in taken.items():
        if name.endswith("/moving_mean"):
            found[name + "/biased"], found[name + "/local_step"] = value, np.float32(LONG_SINCE)
    return found, line


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
    shapes = {name: variable.shape.as_list() for name, variable in variables.items() if OF_NETWORK.search(name)}
    values, line = fit(weights, shapes, class_names)
    feed = {variables[name].initializer.inputs[1]: value for name, value in values.items()}
    sess.run([variables[name].initializer for name in values], feed)
    return line


def _fresh_classifier(weights, class_names):
    """Why the classifier starts afresh; None: it is taken from the weights."""
    if "linear/bias" not in weights.values:
        return "there is none in them"
    count = len(weights.values["linear/bias"])
    if count != len(class_names):
        return "they tell %d classes apart, and here are %d" % (count, len(class_names))
    if weights.class_names is not None and list(class_names) not in (weights.class_names, weights.class_ids):
        return "their classes have other names"
    return None


def _shown(shape):
    return "x".join(map(str, shape)) or "1"


# ImageNet's weights, as Keras publishes them


def _imagenet(network):
    if network not in KERAS_FILES:
        raise UserError("weights=imagenet are those of %s, not of %s: give one of these as network, or weights=FILE"
                        % (", ".join(KERAS_FILES), network))

    def read(cache_dir):
        path = _downloaded(KERAS_URL, KERAS_FILES[network], cache_dir, "or give another file as weights=FILE")
        weights = _file_weights(path, "imagenet for %s" % network)
        weights.class_ids, weights.class_names = imagenet_classes(cache_dir)
        return weights

    return StartingPoint("imagenet", dict(network=network, norm_epsilon=KERAS_EPSILON), IMAGENET_MEAN,
                         IMAGENET_DEVIATION, read)


def imagenet_classes(cache_dir):
    """(ImageNet's class ids, such as n01440764; the names of the classes), 1000 each, in the order of the classifier.

    Raises:
        Unavailable: the list is not in cache_dir and cannot be downloaded.
    """
    path = _downloaded(INDEX_URL, INDEX_FILE, cache_dir, "the names of ImageNet's classes")
    with open(path) as file:
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


def _downloaded(url, file, cache_dir, instead):
    """The path of a published file in cache_dir, downloaded if it is not there."""
    name, md5 = file
    folder = os.path.join(cache_dir, "weights")
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        try:
            download.fetch_all({name: (LARGEST, "md5:" + md5)}, [url], folder, exact=False)
        except download.Unavailable as error:
            raise download.Unavailable("%s; put %s%s there by hand as %s, %s"
                                       % (error, url, name, path, instead)) from None
    with open(path, "rb") as content:
        found = hashlib.md5(content.read()).hexdigest()
    if found != md5:
        raise UserError("%s is not the file of that name in %s (md5 %s, not %s): delete it, and it is downloaded anew"
                        % (path, url, found, md5))
    return path


# Files


@functools.lru_cache(8)
def _of_file(path, size, changed):
    """The StartingPoint of a file; size and time of its change are those by which it is known to be the same."""
    with open(path, "rb") as content:
        digest = hashlib.sha256(content.read()).hexdigest()
    is_torch, layers = _contents(path)
    network = _network_of(path, layers, is_torch)

    name = re.sub(r"[^\w.+-]", "_", os.path.basename(path))
    return StartingPoint("%s-%s" % (name, digest[:12]), dict(
        network=network, norm_epsilon=TORCH_EPSILON if is_torch else KERAS_EPSILON), IMAGENET_MEAN, IMAGENET_DEVIATION,
        lambda _: _file_weights(path, path))


def _file_weights(path, source):
    """The Weights in a file, without names of classes."""
    is_torch, tensors = _contents(path)
    network = _network_of(path, tensors, is_torch)
    scopes = layers_of(NETWORKS[network]["blocks"])
    named = _by_torch_names(path, tensors, scopes) if is_torch else _by_order(path, tensors, scopes)
    values, names = {}, {}
    for variable, (name, load, transpose) in named.items():
        value = _loaded(path, name, load)
        values[variable], names[variable] = (value.transpose(transpose) if transpose else value), name
        if not np.isfinite(value).all():
            raise UserError("%s is damaged: %s has values that are not finite" % (path, name))
    return Weights(source, values, names)


def _loaded(path, name, load):
    try:
        return np.asarray(load(), np.float32)
    except Exception as error:  # of any kind: h5py raises what its C library finds
        raise _damaged(path, "%s: %s" % (name, error)) from None


def _damaged(path, reason):
    return UserError("%s cannot be read as weights (%s): is it complete, and a .h5 file of Keras or a .safetensors "
                     "file?" % (path, " ".join(str(reason).split())[:200] or type(reason).__name__))


def _contents(path):
    """(whether the names are PyTorch's, the content: see `_safetensors` and `_keras_layers`) of a file."""
    with open(path, "rb") as file:
        start = file.read(16)
    extension = os.path.splitext(path)[1].lower()
    archived = []
    if start[:2] == b"PK":
        try:
            with zipfile.ZipFile(path) as archive:
                archived = archive.namelist()
        except zipfile.BadZipFile as error:
            raise _damaged(path, error) from None
    if extension in (".pth", ".pt", ".bin", ".pkl", ".ckpt", ".tar") or start[:1] == b"\x80" or any(
            name.endswith(".pkl") for name in archived):
        raise UserError(CONVERT % (path, path))
    try:
        if start[:8] == b"\x89HDF\r\n\x1a\n":
            return False, _keras_layers(path)
        if "model.weights.h5" in archived:
            with zipfile.ZipFile(path) as archive:
                if archive.getinfo("model.weights.h5").file_size > LARGEST * 4:
                    raise ValueError("too large")
                return False, _keras_layers(io.BytesIO(archive.read("model.weights.h5")))
        return True, _safetensors(path)
    except UserError:
        raise
    except Exception as error:  # of any kind, see _loaded
        raise _damaged(path, error) from None


def _safetensors(path):
    """{name: (shape, a function that loads the tensor)} of a file in the format safetensors.

    The format: the length of the header in 8 bytes, the header in JSON, then the tensors' values.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST):
            raise ValueError("the header does not fit into the file")
        header = json.loads(file.read(length).decode())
    if not isinstance(header, dict):
        raise ValueError("the header is not a table")
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        kind, shape = TORCH_TYPES[entry["dtype"]], [int(side) for side in entry["shape"]]
        begin, end = entry["data_offsets"]
        count = int(np.prod([float(side) for side in shape]))
        if min(shape + [begin]) < 0 or count > LARGEST or end - begin != count * np.dtype(kind).itemsize or (
                8 + length + end > size):
            raise ValueError("%s does not fit into the file" % name)
        found[name] = tuple(shape), functools.partial(_safetensor, path, 8 + length + begin, kind, shape, count)
    return found


def _safetensor(path, offset, kind, shape, count):
    with open(path, "rb") as file:
        file.seek(offset)
        values = np.fromfile(file, kind, count)
    if kind == "<u2":  # bfloat16: the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(shape)


def _keras_layers(file):
    """[(name of a layer, [(name of a tensor, shape, a function that loads it)])] of an HDF5 file, in the file's order.

    Layers without weights are left out. Keras 2 and `model.save("x.h5")` list the names of layers, in the network's
    order; `save_weights("x.weights.h5")` stores each layer's name with its variables.
    """
    import h5py

    def tensor(name, place):
        with h5py.File(file, "r") as content:
            shape = tuple(content[place].shape)
        if np.prod([float(side) for side in shape]) > LARGEST:
            raise ValueError("%s is too large" % name)
        return name, shape, functools.partial(_h5_tensor, file, place)

    with h5py.File(file, "r") as content:
        place = "model_weights/" if "model_weights" in content else ""
        group = content[place] if place else content
        if "layer_names" in group.attrs:
            names = [_text(name) for name in group.attrs["layer_names"]]
            listed = [(name, [(_text(one), place + name + "/" + _text(one))
                              for one in group[name].attrs["weight_names"]]) for name in names]
        else:
            listed = []
            for key in content["layers"]:
                stored = content["layers"][key].get("vars", {})
                name = _text(stored.attrs.get("name", key)) if len(stored) else key
                listed.append((name, [("%s/%s" % (name, one), "layers/%s/vars/%s" % (key, one))
                                      for one in sorted(stored, key=int)]))
            listed.sort(key=lambda layer: _keras_place(layer[0]))
    return [(name, [tensor(*one) for one in tensors]) for name, tensors in listed if tensors]


def _h5_tensor(file, place):
    import h5py

    with h5py.File(file, "r") as content:
        return content[place][()]


def _text(name):
    return name.decode() if isinstance(name, bytes) else str(name)


def _keras_place(name):
    """A key by which Keras' names of layers sort in the network's order; others come last."""
    found = re.match(r"(?:conv(\d+)_(?:block(\d+)_)?(?:(\d)_)?|pool(\d+)_)(bn|conv)$", name)
    if not found:
        return ({"bn": 1, "predictions": 2}.get(name, 3), 0, 0, 0, name)
    stage, block, place, pool, kind = found.groups()
    if pool:
        return (0, int(pool), 10 ** 6, 0, kind)  # after the blocks of its stage: bn, conv
    return (0, int(stage), int(block or 0), int(place or 0), {"conv": "a", "bn": "b"}[kind])


# From the names in a file to ours


def _network_of(path, content, is_torch):
    """The name of the network that a file's weights belong to, by the number of layers in its dense blocks."""
    if is_torch:
        found = {tuple(map(int, match)) for match in (
            re.search(r"denseblock(\d+)\.denselayer(\d+)\.", name) for name in content) if match}
        blocks = tuple(max(layer for block, layer in found if block == each) for each in sorted({b for b, _ in found}))
    else:
        blocks = len(content)
    for name in PUBLISHED:
        its = NETWORKS[name]["blocks"]
        if blocks == its or not is_torch and blocks in (len(layers_of(its)), len(layers_of(its)) - 1):
            return name
    raise UserError("%s has %s, as none of %s has: weights of other networks cannot be read" % (
        path, "dense blocks of %s layers" % (",".join(map(str, blocks)) or "no") if is_torch
        else "%d layers with weights" % blocks, ", ".join(PUBLISHED)))


def _by_order(path, layers, scopes):
    """{our variable: (name in the file, a function that loads it, None)} of the layers of a Keras file, by order."""
    kinds = {"conv": [4], "norm": [1] * 4, "linear": [2, 1]}
    found = {}
    for (name, tensors), (scope, kind) in zip(layers, scopes):
        if [len(shape) for _, shape, _ in tensors] != kinds[kind]:
            raise UserError("%s does not fit: where the network has %s, the file has the layer %s with the tensors %s"
                            % (path, scope, name, ", ".join(_shown(shape) for _, shape, _ in tensors)))
        for variable, (tensor, _, load) in zip(variables_of(scope, kind), tensors):
            found[variable] = tensor, load, None
    return found


def _by_torch_names(path, tensors, scopes):
    """{our variable: (name in the file, a function that loads it, how its axes are exchanged)} of PyTorch's tensors."""
    names = list(tensors)
    prefix = names[0][:len(names[0]) - len(names[0].split("features.")[-1].split("classifier.")[-1])]
    prefix = re.sub(r"(features|classifier)\.$", "", prefix)
    if not all(name.startswith(prefix) for name in names):
        prefix = ""
    # Files of before 2017 write norm.1 for norm1.
    theirs = {re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", name[len(prefix):]): name for name in names}
    found = {}
    for scope, kind in scopes:
        for variable in variables_of(scope, kind):
            name = theirs.pop(_torch_name(variable), None)
            if name is not None:
                transpose = {4: (2, 3, 1, 0), 2: (1, 0)}.get(len(tensors[name][0]))
                found[variable] = name, tensors[name][1], transpose
    unknown = [name for short, name in theirs.items() if not short.endswith("num_batches_tracked")]
    if unknown:
        raise UserError("%s has the tensor %s, which is not part of the network that its other tensors belong to"
                        % (path, unknown[0]))
    return found


def _torch_name(variable):
    """The name of one of our variables in torchvision's networks, such as features.denseblock1.denselayer1.norm1.bias.

    Block 1 there is dense_0 here, and layer 1 is bottleN_0.
    """
    scope, _, name = variable.rpartition("/")
    last = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
            "moving_variance": "running_var"}[name]
    if scope == "linear":
        return "classifier." + last
    scope = {"batch0": "norm0", "linear_batch": "norm5"}.get(scope, scope)
    scope = scope.replace("dense_final", "dense_3")  # all published networks have four blocks
    scope = re.sub(r"dense_(\d)", lambda found: "denseblock%d" % (int(found.group(1)) + 1), scope)
    scope = re.sub(r"bottleN_(\d+)", lambda found: "denselayer%d" % (int(found.group(1)) + 1), scope)
    scope = re.sub(r"trans_(\d)/(batch|conv)1", lambda found: "transition%d/%s" % (
        int(found.group(1)) + 1, found.group(2)), scope)
    return "features.%s.%s" % (scope.replace("batch", "norm").replace("/", "."), last)


# Runs


def _of_run(folder, checkpoint=None):
    """The StartingPoint of a run, or of a checkpoint that is named."""
    directory = RunDirectory(folder, {})
    recorded = directory.read_json("settings.json") or {}
    facts = recorded.get("data", {})
    if "class_names" not in facts:
        raise UserError("%s has no settings.json with the classes of its data: weights= needs a run of this program"
                        % folder)
    path = checkpoint or _checkpoint_of(directory, facts)
    try:
        reader = tf.train.load_checkpoint(path)
        mean, deviation = (reader.get_tensor("normalization/" + name) for name in ("mean", "deviation"))
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        raise UserError("%s cannot be read (%s): give another checkpoint" % (path, type(error).__name__)) from None
    settings = of_earlier_versions(recorded)
    kept = ("blocks", "growth_k", "bottleneck", "compression", "transition_channels", "transition_pooling", "stem",
            "stem_channels", "norm_epsilon")
    brought = {name: settings[name] for name in kept}
    brought["image_size"] = facts["image_shape"][0]

    def read(_):
        shapes = reader.get_variable_to_shape_map()
        later = any(name.startswith("dense_0/") for name in shapes)  # earlier versions numbered blocks from 1
        values = {}
        for name in shapes:
            if OF_NETWORK.search(name):
                ours = name if later else re.sub(r"^(dense|trans)_(\d+)/", lambda found: "%s_%d/" % (
                    found.group(1), int(found.group(2)) - 1), name)
                values[ours] = reader.get_tensor(name)
        return Weights(path, values, {name: name for name in values}, facts["class_names"])

    name = os.path.basename(os.path.abspath(folder))
    if checkpoint:
        name += "-" + os.path.basename(path)
    return StartingPoint(re.sub(r"[^\w=,.+-]", "_", name), brought, mean, deviation, read)


def _checkpoint_of(directory, facts):
    """The path of the checkpoint by which a run is judged: the best on validation, else the newest."""
    best, newest = directory.checkpoints("best"), directory.checkpoints()
    found = best + newest[::-1] if facts.get("validation", 0) >= LEAST_VALIDATION else newest[::-1] + best
    if not found:
        raise UserError("%s has no checkpoint yet: train it first" % directory.path)
    return found[0][1]
