"""How are files of weights read without trusting them, and by which names are their tensors known here?

HDF5 as Keras writes it (.h5, .weights.h5, .keras), and safetensors with the names of torchvision and timm. Nothing is
unpickled, sizes are checked before anything is allocated, and all that is wrong with a file ends in one UserError.
"""

import contextlib
import functools
import io
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import typing
import zipfile
import zlib

import numpy as np

from support import UserError
from support.networks import NETWORKS, STEMS, transition_width

LARGEST = 2 ** 28  # bytes of a tensor; ImageNet's networks have at most 40 million
KERAS_EPSILON, TORCH_EPSILON = 1.001e-5, 1e-5  # of batch normalization
NORM = ("gamma", "beta", "moving_mean", "moving_variance")  # the variables of a batch normalization, in Keras' order
_LAYER = r"(?:dense_(?:\d+|final)/bottleN_\d+|trans_\d+)"
# The variables of our network that are learned: not those of optimizers, nor those that follow from moving_mean
VARIABLE = re.compile(r"(?:conv0|%s/conv[12])/kernel|(?:batch0|linear_batch|%s/batch[12])/(?:%s)|linear/(?:kernel|bias)"
                      % (_LAYER, _LAYER, "|".join(NORM)))
HDF5, ZIP, PICKLE = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x80"  # how files of these formats start
TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # of safetensors, as NumPy reads them
BYTES = dict(F64=8, F32=4, F16=2, BF16=2, I64=8, U64=8, I32=4, U32=4, I16=2, U16=2, I8=1, U8=1, BOOL=1)
# What is raised for damaged files: much of it by the C libraries of TensorFlow and h5py
DAMAGED = (OSError, EOFError, zipfile.BadZipFile, zlib.error, LookupError, ValueError, RuntimeError, TypeError,
           AttributeError, MemoryError, SystemError)
TRIAL_SECONDS = 120.0


class Facts(typing.NamedTuple):
    """What is known of the network of a file besides its tensors.

    Attributes:
        epsilon: of batch normalization.
        scale: (mean, deviation), float32 [3], by which the network itself normalizes pixels from 0 to 255; None: it
            does not.
        exclusive: whether an image is of one class, as the classifier's activation says.
    """

    epsilon: float
    scale: typing.Optional[tuple] = None
    exclusive: bool = True


class Tensor(typing.NamedTuple):
    """A tensor of a file: its name there; its shape, and a function that loads it, both in our order of axes."""

    name: str
    shape: tuple
    load: typing.Callable


@contextlib.contextmanager
def opened(path):
    """Opens a file of weights: yields ({variable: Tensor} of a whole DenseNet, in its order; its Facts).

    Raises UserError if the file is damaged or has other tensors than one DenseNet.
    """
    kind = _format_of(path)
    if kind != "safetensors":
        _try_in_another_process(path)
    with _opened(path, kind) as found:
        yield found


@contextlib.contextmanager
def _opened(path, kind):
    opener, named = ((_safetensors, _by_torch_names) if kind == "safetensors" else
                     (functools.partial(_hdf5, archived=kind == "keras"), _by_order))
    with in_one_sentence(path), opener(path) as (content, model):
        facts = Facts(TORCH_EPSILON) if kind == "safetensors" else _facts_of(model, path)
        tensors = named(content, path)
        found = {variable: tensor.shape for variable, tensor in tensors.items()}
        classifier = found.get("linear/kernel", found.get("linear/bias"))
        wanted = _shapes(parts_of(found, path), class_num=classifier[-1] if classifier else None)
        difference = difference_of(wanted, found, {variable: tensor.name for variable, tensor in tensors.items()})
        if difference:
            raise UserError("%s does not fit any DenseNet: %s" % (path, difference.replace("network", "others")))
        yield {variable: tensors[variable]._replace(name=_line(tensors[variable].name)[:200])
               for variable in wanted}, facts


def _try_in_another_process(path):
    """Raises UserError if to read an HDF5 file crashes or does not end.

    A damaged file can crash HDF5's library, mainly version 1.10, which comes with TensorFlow 1.15. A crash of this
    program would say nothing of the file.
    """
    try:
        status = subprocess.run(
            [sys.executable, "-m", "support.weight_files", os.path.abspath(path)], timeout=TRIAL_SECONDS,
            cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    except subprocess.TimeoutExpired:
        status = None
    if status not in (0, 1):  # 1: an error of Python, which is raised here, too
        raise UserError("%s is damaged: to read it %s" % (
            path, "does not end" if status is None else "crashes the library that reads HDF5 files"))


def values_of(tensors, path):
    """{variable: float32 array}. Raises UserError for numbers that no training gives."""
    values = {}
    for variable, tensor in tensors.items():
        with np.errstate(over="ignore"):  # of float64; the result is not finite
            values[variable] = np.ascontiguousarray(tensor.load(), np.float32)
        if not np.isfinite(values[variable]).all():
            raise UserError("%s is damaged: %s has values that are not finite" % (path, tensor.name))
        if variable.endswith("/moving_variance") and (values[variable] < 0).any():
            raise UserError("%s is damaged: %s has negative variances" % (path, tensor.name))
    return values


def _line(text):
    """The text in one line that a terminal can show: a damaged or hostile file can have any characters in its names."""
    return "".join(one if one.isprintable() else "?" for one in text[:1500])


@contextlib.contextmanager
def in_one_sentence(path, *others):
    """Makes a UserError of what is raised for damaged files; `others`: further errors that are."""
    try:
        yield
    except UserError as error:
        raise type(error)(_line(str(error))) from None
    except DAMAGED + others as error:
        reason = " ".join(str(getattr(error, "message", None) or error).split())[:200] or type(error).__name__
        raise UserError(_line("%s cannot be read (%s): it is damaged or incomplete, or no file of weights"
                              % (path, reason))) from None


def difference_of(wanted, found, names):
    """The first difference between {variable: shape} of a network and of weights, as text, or None.

    `names`: {variable: its name in the source of the weights}.
    """
    for variable, shape in wanted.items():
        if variable not in found:
            return "the first layer that differs is %s, as %s is missing" % (variable.rpartition("/")[0], variable)
        if tuple(found[variable]) != shape:
            return "the first layer that differs is %s, as %s has the shape %s there (%s) and %s in the network" % (
                variable.rpartition("/")[0], variable, _shown(found[variable]), names[variable], _shown(shape))
    extra = next((variable for variable in found if variable not in wanted), None)
    return extra and "it has %s (%s), which the network has not" % (extra, names[extra])


def _shown(shape):
    return "x".join(map(str, shape)) or "of a single number"


def _format_of(path):
    """hdf5, keras or safetensors, by a file's content. Raises UserError for a pickle and for other formats."""
    with in_one_sentence(path), open(path, "rb") as file:
        start = file.read(256)
        archived = zipfile.ZipFile(path).namelist() if start.startswith(ZIP) and zipfile.is_zipfile(path) else ()
    extension = os.path.splitext(path)[1].lower()
    if start.startswith(HDF5):
        return "hdf5"
    if "model.weights.h5" in archived:
        return "keras"
    if start[8:9] == b"{" and extension not in (".pth", ".pt"):
        return "safetensors"
    if (extension in (".pth", ".pt", ".bin", ".pkl", ".pickle", ".tar") or start.startswith(PICKLE)
            or any(name.endswith(".pkl") for name in archived)):
        target = os.path.splitext(path)[0] + ".safetensors"
        line = ("import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in "
                "torch.load(%r, 'cpu', weights_only=True).items()}, %r)" % (path, target))
        quoted = shlex.quote(line) if set('"$`\\!') & set(line) else '"%s"' % line
        raise UserError("%s is a pickle, and unpickling runs the code that is in it. Where PyTorch is, this line "
                        "converts it to weights=%s: python -c %s" % (path, target, quoted))
    if start.startswith(b"version https://git-lfs"):
        raise UserError("%s is what Git LFS keeps instead of the file: get the file by git lfs pull" % path)
    raise UserError("%s is no file of weights, or a damaged one: give a .h5 file of Keras or a .safetensors file"
                    % path)


# Which network variables belong to


def parts_of(shapes, path):
    """{setting: value} of the network whose variables have these shapes, as far as they tell."""
    layers = {}
    for variable in shapes:
        match = re.match(r"dense_(\d+|final)/bottleN_(\d+)/", variable)
        if match:
            layers.setdefault(match.group(1), set()).add(match.group(2))
    blocks = sorted((block for block in layers if block != "final"), key=int) + ["final"]
    first = "dense_%s/bottleN_0/" % blocks[0]
    for needed in ("conv0/kernel", first + "conv2/kernel"):
        if len(shapes.get(needed, ())) != 4 or min(shapes[needed]) < 1:
            raise UserError("%s does not fit any DenseNet: it has no convolution %s" % (path, needed))
    growth_k, stem_channels = shapes[first + "conv2/kernel"][3], shapes["conv0/kernel"][3]
    widths = [shape[2:] for variable, shape in shapes.items()
              if re.fullmatch(r"trans_\d+/conv1/kernel", variable) and len(shape) == 4]
    halved = all(width == transition_width(channels, 0.5) for channels, width in widths)
    return {"blocks": tuple(len(layers.get(block, ())) for block in blocks), "growth_k": growth_k,
            "bottleneck": first + "conv1/kernel" in shapes,
            "compression": 0.5 if halved else min(1.0, widths[0][1] / max(widths[0][0], 1)),
            "transition_channels": widths[0][1] if not halved and len({width for _, width in widths}) == 1 else 0,
            "stem_channels": 0 if stem_channels == 2 * growth_k else stem_channels}


def described(shapes, path):
    """{setting: value} for a file's network: the name of one that has a name, or its parts and ImageNet's images."""
    parts = dict(parts_of(shapes, path), stem="imagenet", transition_pooling="average")
    for name, its in NETWORKS.items():
        if all(its[setting] == value for setting, value in parts.items()):
            return {"network": name}
    usual = NETWORKS["densenet_121"]
    return dict(parts, network="custom", **{name: usual[name] for name in ("image_size", "crop_area")})


def _shapes(parts, class_num=None):
    """{variable: shape} of a network with bottleneck layers and the ImageNet stem, in its order.

    Args:
        parts: as from `parts_of`.
        class_num: number of classes; None: without classifier.
    """
    k, channels, last = parts["growth_k"], parts["stem_channels"] or 2 * parts["growth_k"], len(parts["blocks"]) - 1
    side = STEMS["imagenet"][0]
    layers = [("conv0", (side, side, 3, channels)), ("batch0", channels)]
    for place, count in enumerate(parts["blocks"]):
        for layer in range(count):
            scope = "dense_%s/bottleN_%d/" % (place if place < last else "final", layer)
            layers += [(scope + "batch1", channels), (scope + "conv1", (1, 1, channels, 4 * k)),
                       (scope + "batch2", 4 * k), (scope + "conv2", (3, 3, 4 * k, k))]
            channels += k
        if place < last:
            width = transition_width(channels, parts["compression"], parts["transition_channels"])
            layers += [("trans_%d/batch1" % place, channels), ("trans_%d/conv1" % place, (1, 1, channels, width))]
            channels = width
    shapes = {}
    for scope, shape in layers + [("linear_batch", channels)]:
        shapes.update({scope + "/kernel": shape} if isinstance(shape, tuple) else
                      {"%s/%s" % (scope, name): (shape,) for name in NORM})
    return shapes if class_num is None else dict(
        shapes, **{"linear/kernel": (channels, class_num), "linear/bias": (class_num,)})


# safetensors: the length of the header in 8 bytes, the header in JSON, then the tensors' values


@contextlib.contextmanager
def _safetensors(path):
    """Opens a file: yields ({name: (type, shape, a function that loads the tensor)}, None). All numbers are checked."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST):
            raise ValueError("the header does not fit into the file")
        try:
            header = json.loads(file.read(length).decode(), object_pairs_hook=_without_repetition)
        except RecursionError:
            raise ValueError("the header is nested too deeply") from None
        if not isinstance(header, dict):
            raise ValueError("the header is not a table")
        header.pop("__metadata__", None)
        found, places = {}, [(0, 0), (size - 8 - length,) * 2]
        for name, entry in header.items():
            kind, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
            if not (_are_counts(shape) and _are_counts(place) and len(place) == 2 and len(shape) < 9
                    and place[1] - place[0] == BYTES[kind] * functools.reduce(int.__mul__, shape, 1)):
                raise ValueError("size and place of %s contradict each other" % name)
            found[name] = kind, tuple(shape), functools.partial(_safetensor, file, 8 + length + place[0], kind, shape)
            places.append(tuple(place))
        places.sort()
        if any(end != begin for (_, end), (begin, _) in zip(places, places[1:])):
            raise ValueError("the tensors do not fill the file, each once")
        yield found, None


def _without_repetition(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _are_counts(numbers):
    return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)


def _safetensor(file, offset, kind, shape):
    file.seek(offset)
    values = np.fromfile(file, TYPES[kind], int(np.prod(shape, dtype=np.int64)))
    if kind == "BF16":  # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(shape)


_NUMBER = r"([1-9]\d{0,3})"
_TORCH_LAYER = re.compile(r"features\.(?:(conv0|norm0|norm5)|denseblock%s\.denselayer%s\.(?:(norm|conv)\.?([12]))"
                          r"|transition%s\.(norm|conv))|classifier" % (_NUMBER, _NUMBER, _NUMBER))
_TORCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def _by_torch_names(content, path):
    """{our variable: Tensor} of the tensors in a file with torchvision's or timm's names.

    They may have a common prefix such as "module.". PyTorch's counters num_batches_tracked are left out.
    """
    stem = "features.conv0.weight"
    prefix = next((name[:-len(stem)] for name in content if name.endswith(stem)), "")
    prefix = prefix if all(name.startswith(prefix) for name in content) else ""
    last = max([int(number) for number in re.findall(r"features\.denseblock%s\." % _NUMBER, "\n".join(content))] or [0])
    found = {}
    for name, (kind, shape, load) in content.items():
        if name.endswith(".num_batches_tracked"):
            continue
        variable = _torch_variable(name[len(prefix):], last)
        if variable is None or variable in found:
            raise UserError("%s does not fit any DenseNet of PyTorch: it has the tensor %s%s" % (
                path, name[:200], " twice, also as %s" % found[variable].name if variable else ""))
        if kind not in TYPES:
            raise UserError("%s has numbers of the type %s in %s: weights are floating point"
                            % (path, kind, name[:200]))
        # [out, in, h, w] to [h, w, in, out], [out, in] to [in, out]
        axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(len(shape), tuple(range(len(shape))))
        found[variable] = Tensor(name, tuple(shape[axis] for axis in axes),
                                  lambda load=load, axes=axes: load().transpose(axes))
    return found


def _torch_variable(name, last):
    """Our name of one of torchvision's tensors, or None. `last`: the number of the last dense block there.

    Block 1 there is dense_0 here, and layer 1 is bottleN_0. Files of before 2017 write norm.1 for norm1.
    """
    layer, _, variable = name.rpartition(".")
    match = _TORCH_LAYER.fullmatch(layer)
    if not match:
        return None
    single, block, index, kind, number, transition, transition_kind = match.groups()
    if block:
        scope = "dense_%s/bottleN_%d/" % ("final" if int(block) == last else int(block) - 1, int(index) - 1)
        scope += {"norm": "batch", "conv": "conv"}[kind] + number
    elif transition:
        scope = "trans_%d/%s" % (int(transition) - 1, {"norm": "batch1", "conv": "conv1"}[transition_kind])
    else:
        scope = {"conv0": "conv0", "norm0": "batch0", "norm5": "linear_batch", None: "linear"}[single]
    if layer == "classifier":
        variable = {"weight": "kernel", "bias": "bias"}.get(variable)
    elif "conv" in scope:
        variable = {"weight": "kernel"}.get(variable)
    else:
        variable = _TORCH_NORM.get(variable)
    return variable and "%s/%s" % (scope, variable)


# HDF5, as Keras writes it


class _Layer(typing.NamedTuple):
    name: str
    variables: dict  # {name: h5py.Dataset}


@contextlib.contextmanager
def _hdf5(path, archived=False):
    """Opens a file: yields (its layers with variables, [_Layer]; the JSON that describes the model, None without it).

    `archived`: it is in a .keras file, which is a zip.
    """
    import h5py  # comes with TensorFlow

    content, model = path, None
    if archived:
        with zipfile.ZipFile(path) as archive:
            if max(archive.getinfo(name).file_size for name in ("model.weights.h5", "config.json")) > LARGEST:
                raise ValueError("it is too large")
            content = io.BytesIO(archive.read("model.weights.h5"))
            model = json.loads(archive.read("config.json").decode())
    with h5py.File(content, "r") as file:
        if "model_config" in file.attrs:
            model = json.loads(_text(file.attrs["model_config"]))
        weights = file["model_weights"] if "model_weights" in file else file
        layers = _listed_layers(weights) if _texts(weights, "layer_names") else _numbered_layers(file)
        for layer in layers:  # those of no known kind are refused by name, and not read
            for name, dataset in layer.variables.items() if _kind_of(layer)[0] else ():
                _check(dataset, "%s of %s" % (name, layer.name), file)
        yield layers, model


# The layers of which a DenseNet of Keras consists, named as by _part_of, with the settings that they have there and the
# layers that they read: {part: ({setting: its possible values}, parts)}
_PARTS = {
    "padding of 3": (dict(padding=[[[3, 3], [3, 3]]]), {"images"}),
    "7x7 convolution": (dict(strides=[[2, 2]], padding=["valid"]), {"padding of 3"}),
    "padding of 1": (dict(padding=[[[1, 1], [1, 1]]]), {"ReLU"}),
    "MaxPooling2D": (dict(pool_size=[[3, 3]], strides=[[2, 2]], padding=["valid"]), {"padding of 1"}),
    "BatchNormalization": (dict(axis=[3, -1, [3], [-1]]), {"7x7 convolution", "MaxPooling2D", "1x1 convolution",
                                                           "Concatenate", "AveragePooling2D"}),
    "ReLU": (dict(activation=["relu"], max_value=[None], negative_slope=[0, None], threshold=[0, None]),
             {"BatchNormalization"}),
    "1x1 convolution": (dict(strides=[[1, 1]]), {"ReLU"}),
    "3x3 convolution": (dict(strides=[[1, 1]], padding=["same"]), {"ReLU"}),
    "Concatenate": ({}, {"MaxPooling2D", "AveragePooling2D", "Concatenate", "3x3 convolution"}),
    "AveragePooling2D": (dict(pool_size=[[2, 2]], strides=[[2, 2]], padding=["valid"]), {"1x1 convolution"}),
    "GlobalAveragePooling2D": ({}, {"ReLU"}),
    "Dense": ({}, {"GlobalAveragePooling2D"}),
    "Softmax": (dict(activation=["softmax"], axis=[-1, 1]), {"Dense"})}
_CONVOLUTION = dict(activation=["linear"], dilation_rate=[[1, 1]], groups=[1])
_IDLE = ("InputLayer", "Dropout", "SpatialDropout2D", "GaussianDropout", "GaussianNoise")
_IMAGES = ("images", 0)  # what stands for them among the layers that a layer reads


def _facts_of(model, path):
    """The Facts in the description of a model that whole files of Keras have; `model`: its JSON, or None.

    Raises:
        UserError: a layer does something else than those of a DenseNet, and than scaling pixels before them.
    """
    factor, summand, epsilons, activation = np.ones(3), np.zeros(3), set(), "linear"
    for layer, part, sources in _layers_with_sources(model, [_IMAGES], itertools.count(1)) if model else ():
        kind, config = layer["class_name"], layer["config"]
        if part is None:
            continue
        scaled = _scaling(layer) if sources == [_IMAGES] else None
        if scaled is not None:
            factor, summand = factor * scaled[0], summand * scaled[0] + scaled[1]
        elif not _has_settings(config, part) or part == "Softmax" and activation != "linear":
            raise UserError("%s: this program cannot follow the layer %s (%s) with its settings: save the DenseNet "
                            "alone, behind a Rescaling layer if its pixels are scaled"
                            % (path, config.get("name"), kind))
        elif not _has_sources(part, sources):
            raise UserError("%s does not fit any DenseNet: the layer %s (%s) does not read what it reads there, or not "
                            "in that order" % (path, config.get("name"), kind))
        if part == "BatchNormalization":
            epsilons.add(float(config["epsilon"]))
        if part == "Dense":
            activation = config.get("activation", "linear")
    if len(epsilons) > 1:
        raise UserError("%s has batch normalizations with different ε (%s): save it with one ε"
                        % (path, ", ".join("%g" % epsilon for epsilon in sorted(epsilons))))
    scale = None
    if (factor != 1).any() or summand.any():
        scale = np.float32(-summand / factor), np.float32(1 / factor)
        if not np.isfinite(scale).all():
            raise ValueError("a factor of its pixels is 0 or not finite")
    return Facts(epsilons.pop() if epsilons else KERAS_EPSILON, scale, activation in ("softmax", "linear"))


def _layers_with_sources(layer, sources, numbers):
    """Yields (description, part, sources) of a layer, or of those of a model and of the models in it, in their order.

    Args:
        layer: its description.
        sources: the layers that it reads, [(part, number)]; those that are no _PARTS are passed over.
        numbers: an iterator, for the numbers of its layers.
    Returns:
        what stands for it among the sources of the next layer.
    """
    config = layer["config"]
    inner = config.get("layers") if isinstance(config, dict) else config
    if inner is None:
        part = _part_of(layer)
        yield layer, part, sources
        return [(part, next(numbers))] if part in _PARTS else sources
    outputs, passed_over = {}, {}  # {name: sources}, {(name, number of its use): the outputs that it reads}

    def sources_of(places):
        found, waiting, seen = [], list(places), set()
        while waiting:
            place = waiting.pop(0)
            if place not in seen:  # of a layer that is listed later, nothing is known
                found += outputs.get(place[0], [])
                waiting = passed_over.get(place, []) + waiting
            seen.add(place)
        return found

    last = sources
    for each in inner:
        uses = [list(_outputs_in(node)) for node in each.get("inbound_nodes") or []]  # none in a Sequential
        read = sources_of(itertools.chain(*uses)) if any(uses) else last
        last = yield from _layers_with_sources(each, read, numbers)
        if last is read and any(uses):
            passed_over.update(((each.get("name"), number), use) for number, use in enumerate(uses))
        else:
            outputs[each.get("name")] = last
    places = list(_outputs_in(config.get("output_layers"))) if isinstance(config, dict) else []
    return sources_of(places) if places else last


def _outputs_in(description):
    """Yields (name of a layer, number of its use) of the outputs that a part of a description has: {"keras_history":
    [name, number, …], …} in Keras 3, [name, number, 0, …] in Keras 2."""
    if isinstance(description, dict) and "keras_history" in description:
        description = description["keras_history"]
    if isinstance(description, list) and len(description) > 2 and isinstance(description[0], str):
        yield description[0], int(description[1])
    elif isinstance(description, (dict, list)):
        for each in description.values() if isinstance(description, dict) else description:
            yield from _outputs_in(each)


def _part_of(layer):
    """The name by which _PARTS may have a layer; None for a layer that does nothing, but in training."""
    kind, config = layer["class_name"], layer["config"]
    if kind in _IDLE or kind.startswith("Random"):
        return None
    if kind == "Conv2D":
        return "%sx%s convolution" % tuple(config["kernel_size"])
    if kind == "ZeroPadding2D":
        return "padding of %s" % config["padding"][0][0]
    if kind == "Activation":
        return {"linear": None, "softmax": "Softmax"}.get(str(config["activation"]), "ReLU")
    return kind


def _has_settings(config, part):
    """Whether a layer has the settings of such a part of a DenseNet."""
    if part not in _PARTS:
        return False
    wanted = dict(_PARTS[part][0], **_CONVOLUTION if "convolution" in part else {})
    return all(config.get(name, values[0]) in values for name, values in wanted.items())


def _has_sources(part, sources):
    """Whether a part of a DenseNet reads these layers there; what a layer adds comes behind what it reads."""
    parts = [source for source, _ in sources]
    if part == "Concatenate" and (parts[:1] == ["3x3 convolution"] or set(parts[1:]) != {"3x3 convolution"}
                                  or sources[1:] != sorted(sources[1:])):
        return False
    return bool(parts) and set(parts) <= _PARTS[part][1]


_OPERATIONS = {"Add": lambda constant: (1, constant), "Subtract": lambda constant: (1, -constant),
               "Multiply": lambda constant: (constant, 0), "Divide": lambda constant: (1 / constant, 0),
               "TrueDivide": lambda constant: (1 / constant, 0)}


def _scaling(layer):
    """(factor, summand) by which a layer changes pixels, float64 [3]; None: it does something else."""
    kind, config = layer["class_name"], layer["config"]
    if kind == "Rescaling":
        factor, summand = config["scale"], config["offset"]
    else:  # an operation on a tensor and a constant, as in Keras 3's preprocess_input
        node = (layer.get("inbound_nodes") or [None])[0]
        operands = node.get("args", ()) if isinstance(node, dict) else ()
        computed = [isinstance(one, dict) and one.get("class_name") == "__keras_tensor__" for one in operands]
        if kind in ("Add", "Multiply") and computed == [False, True]:
            operands, computed = operands[::-1], computed[::-1]
        if kind not in _OPERATIONS or computed != [True, False]:
            return None
        constant = operands[1]["config"]["value"] if isinstance(operands[1], dict) else operands[1]
        factor, summand = _OPERATIONS[kind](np.array(constant, np.float64))
    return [np.broadcast_to(np.array(value, np.float64).reshape(-1), [3]) for value in (factor, summand)]


def _check(dataset, name, file):
    """Raises an error unless an HDF5 object is an array of floating-point numbers that lies in the file."""
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (2, 4, 8):
        raise ValueError("%s is not floating point" % name)
    if dataset.file.filename != file.filename or getattr(dataset, "external", None) or dataset.is_virtual:
        raise ValueError("%s is in another file" % name)
    if dataset.size * dataset.dtype.itemsize > LARGEST:  # Python's integers do not overflow
        raise ValueError("%s is too large" % name)


def _listed_layers(weights):
    """Layers in the order of the attribute `layer_names`: `model.save("x.h5")`, and all files of Keras 2."""
    layers = {}
    for layer in _texts(weights, "layer_names"):
        for name in _texts(weights[layer], "weight_names"):
            scope, _, variable = name.rpartition("/")  # in a network within a network, the scope tells layers apart
            its = layers.setdefault((layer, scope), _Layer(layer if _place(layer) else scope or layer, {}))
            its.variables[variable.split(":")[0]] = weights[layer][name]
    return list(layers.values())


def _numbered_layers(file):
    """Layers of `save_weights("x.weights.h5")`: …/conv2d_1/vars/0, numbered by the order in the network."""
    places = []
    file.visit(lambda name: places.append(name) if re.search(r"/vars/\d+$", name) else None)
    layers = {}
    for place in sorted(places, key=lambda name: [int(part) if part.isdigit() else part
                                                  for part in re.split(r"(\d+)", name)]):
        group = place.rpartition("/")[0]
        if not group.startswith("optimizer"):
            its = layers.setdefault(group, _Layer(_text(file[group].attrs.get("name", group)), {}))
            its.variables[int(place.rpartition("/")[2])] = file[place]
    return list(layers.values())


def _texts(group, name):
    """The texts in an attribute. Keras splits long ones into name0, name1, …"""
    if name in group.attrs:
        return [_text(one) for one in group.attrs[name]]
    found = []
    while "%s%d" % (name, len(found)) in group.attrs:
        found.append([_text(one) for one in group.attrs["%s%d" % (name, len(found))]])
    return sum(found, [])


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


_KERAS_LAYER = re.compile(r"(?:.*?/)??(?:conv1[_/](?:conv|bn)|conv(\d)_block(\d+)_(\d)_(?:conv|bn)|pool(\d)_(?:conv|bn)"
                          r"|(bn))$")


def _place(layer):
    """A key by which convolutions, and batch normalizations, sort in the network's order; None for unknown names."""
    match = _KERAS_LAYER.match(layer)
    if not match:
        return None
    stage, block, part, pool, last = match.groups()
    return int(stage or pool or (9 if last else 1)), bool(pool), int(block or 0), int(part or 0)


def _by_order(layers, path):
    """{our variable: Tensor} of a Keras file.

    Keras finds layers by their order, as versions name them differently. So does this: convolutions and batch
    normalizations each by their own order, because what is frozen is listed after what is trained.
    """
    kinds = {"conv": [], "norm": [], "linear": []}
    for layer in layers:
        kind, layer = _kind_of(layer)
        if kind is None or kind == "linear" and kinds["linear"]:
            raise UserError("%s does not fit any DenseNet of Keras: it has the layer %s, which is one too many"
                            % (path, layer.name))
        kinds[kind].append(layer)
    for kind in ("conv", "norm"):
        if all(_place(layer.name) for layer in kinds[kind]):
            kinds[kind].sort(key=lambda layer: _place(layer.name))
    scopes = _conv_scopes(kinds["conv"], path)
    norms = ["batch0"] + [re.sub(r"conv(\d)$", r"batch\1", scope) for scope in scopes[1:]] + ["linear_batch"]
    if len(kinds["norm"]) > len(norms):
        raise UserError("%s does not fit any DenseNet of Keras: it has %d batch normalizations and %d convolutions"
                        % (path, len(kinds["norm"]), len(scopes)))
    pairs = [pair for names, kind in ((scopes, "conv"), (norms, "norm"), (["linear"], "linear"))
             for pair in zip(names, kinds[kind])]
    return {"%s/%s" % (scope, name): Tensor("%s/%s" % (layer.name, name), dataset.shape,
                                             functools.partial(dataset.__getitem__, ()))
            for scope, layer in pairs for name, dataset in layer.variables.items()}


def _kind_of(layer):
    """(conv, norm, linear or None; the layer with the names of its variables)."""
    variables = layer.variables
    names = {1: ("kernel",), 2: ("kernel", "bias"), 4: NORM}.get(len(variables), ())
    if set(variables) == set(range(len(names))):  # numbered
        variables = dict(zip(names, variables.values()))
    ranks = {name: len(dataset.shape) for name, dataset in variables.items()}
    kind = {"kernel4": "conv", "bias1kernel2": "linear", "beta1gamma1moving_mean1moving_variance1": "norm"}.get(
        "".join("%s%d" % pair for pair in sorted(ranks.items(), key=str)))
    return kind, layer._replace(variables=variables)


def _conv_scopes(convolutions, path):
    """Our names of convolutions in order: one of 7x7 pixels, layers of 1x1 and 3x3, a single 1x1 between blocks."""
    sides = "".join(str(min(layer.variables["kernel"].shape[0], 9)) for layer in convolutions)
    blocks = [len(pairs) // 2 for pairs in re.findall("(?:13)+", sides)]
    expected = "7" + "1".join("13" * count for count in blocks)
    if sides != expected:
        place = next((place for place, pair in enumerate(zip(sides, expected)) if pair[0] != pair[1]), len(expected))
        layer = convolutions[min(place, len(sides) - 1)].name if sides else "(none)"
        raise UserError("%s does not fit any DenseNet of Keras: the convolution %s is not in its place" % (path, layer))
    scopes = ["conv0"]
    for place, count in enumerate(blocks):
        last = place == len(blocks) - 1
        scopes += ["dense_%s/bottleN_%d/conv%d" % ("final" if last else place, layer, number)
                   for layer in range(count) for number in (1, 2)]
        scopes += [] if last else ["trans_%d/conv1" % place]
    return scopes


if __name__ == "__main__":  # see _try_in_another_process
    with _opened(sys.argv[1], _format_of(sys.argv[1])) as (_all, _facts):
        values_of(_all, sys.argv[1])
