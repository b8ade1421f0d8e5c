"""Weights to start from: files of Keras and PyTorch, damaged ones, runs, and the networks' answers with them."""

import ast
import glob
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from record_pretrained import CLASSES, NETWORKS, RECORDED, drawn_images, drawn_weights, torch_shapes
from test_download import answer, server

import Densenet
from ops import Batch_Normalization
from support import UserError, download, networks, pretrained, weight_files
from support.workers import Cluster

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = ((1, 2, 1, 1), 4, 8)  # layers of blocks, growth rate, channels of the stem
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
NUMPY_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8"}


def read(path, class_names=None, cache_dir="cache"):
    return pretrained.look_up(str(path), "model").read(cache_dir)


def tiny_weights(**changes):
    """{torchvision's name: array} of a small network. `changes`: further arguments of `drawn_weights`."""
    return drawn_weights(*TINY, **dict(dict(classes=3), **changes))


def write_safetensors(path, tensors, kind="F32", header_changes=None):
    """Writes {name: array} by the format's description: length of the header, header, values."""
    header, values, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, array in tensors.items():
        its = "I64" if array.dtype == np.int64 else kind
        if its == "BF16":
            content = (np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
        else:
            content = np.ascontiguousarray(array, NUMPY_TYPES[its]).tobytes()
        header[name] = {"dtype": its, "shape": list(array.shape), "data_offsets": [offset, offset + len(content)]}
        offset += len(content)
        values.append(content)
    header.update(header_changes or {})
    text = json.dumps(header).encode()
    with open(str(path), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(values))
    return str(path)


def keras_layers(tensors, earlier=False):
    """[(Keras' name of a layer, {variable: array})] in the network's order, from torchvision's tensors.

    `earlier`: the names in the files that Keras published in 2018.
    """
    layers = {}
    for name, array in tensors.items():
        layer, _, variable = name.rpartition(".")
        block = re.match(r"features\.denseblock(\d)\.denselayer(\d+)\.(norm|conv)(\d)", layer)
        transition = re.match(r"features\.transition(\d)\.(norm|conv)", layer)
        kind = {"norm": "bn", "conv": "conv"}.get(re.search("norm|conv|classifier", layer).group())
        if block:  # norm1, conv1, norm2, conv2 are 0_bn, 1_conv, 1_bn, 2_conv
            theirs = "conv%d_block%s_%d_%s" % (int(block.group(1)) + 1, block.group(2),
                                               int(block.group(4)) - (kind == "bn"), kind)
        elif transition:
            theirs = "pool%d_%s" % (int(transition.group(1)) + 1, kind)
        elif layer == "classifier":
            theirs = "fc1000" if earlier else "predictions"
        else:
            theirs = "bn" if layer.endswith("norm5") else "conv1%s%s" % ("/" if earlier else "_", kind)
        variable = {"running_mean": "moving_mean", "running_var": "moving_variance", "bias": "beta", "weight": "gamma"
                    }[variable] if kind == "bn" else {"weight": "kernel", "bias": "bias"}[variable]
        array = {4: lambda a: a.transpose(2, 3, 1, 0), 2: lambda a: a.T, 1: lambda a: a}[array.ndim](array)
        layers.setdefault(theirs, {})[variable] = array
    return list(layers.items())


def write_listed(path, layers, root=None, ending="", spread=False):
    """As Keras 2 and `model.save("x.h5")` write: layers are listed by name, and those without weights, too.

    `spread`: a list of names that is longer than an attribute can be is spread over several.
    """
    with h5py.File(str(path), "w") as file:
        group = file.create_group(root) if root else file
        names = [b"input_1"] + [name.encode() for name, _ in layers] + [b"avg_pool"]
        for number, part in enumerate([names[:5], names[5:]] if spread else []):
            group.attrs["layer_names%d" % number] = np.array(part)
        if not spread:
            group.attrs["layer_names"] = np.array(names)
        for name, variables in [("input_1", {})] + layers + [("avg_pool", {})]:
            its = group.create_group(name)
            its.attrs["weight_names"] = np.array(["%s/%s%s" % (name, one, ending) for one in variables], "S")
            for one, array in variables.items():
                its["%s/%s%s" % (name, one, ending)] = array
    return str(path)


def write_nested(path, layers, frozen=()):
    """As Keras 3 writes a model that has a DenseNet as its first layer: trained variables first, then the others."""
    with h5py.File(str(path), "w") as file:
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = ["densenet", "dropout", "dense"]
        trained = [(name, one) for name, variables in layers[:-1] if name not in frozen for one in variables
                   if not one.startswith("moving")]
        others = [(name, one) for name, variables in layers[:-1] for one in variables if (name, one) not in trained]
        arrays = dict(layers)
        for layer, names in (("densenet", trained + others), ("dropout", []), ("dense", [])):
            its = group.create_group(layer)
            its.attrs["weight_names"] = np.array(["%s/%s" % pair for pair in names], "S")
            for name, one in names:
                its["%s/%s" % (name, one)] = arrays[name][one]
        group["dense"].attrs["weight_names"] = np.array(["sequential/dense/kernel", "sequential/dense/bias"], "S")
        for one, array in layers[-1][1].items():
            group["dense"]["sequential/dense/" + one] = array
    return str(path)


def write_numbered(path, layers, with_names=True):
    """As `save_weights("x.weights.h5")` of Keras 3 writes, with an optimizer's variables."""
    counts = {}
    with h5py.File(str(path), "w") as file:
        file["optimizer/vars/0"] = np.float32(3)
        for name, variables in layers:
            kind = "dense" if "bias" in variables else "conv2d" if "kernel" in variables else "batch_normalization"
            number = counts[kind] = counts.get(kind, -1) + 1
            its = file.create_group("layers/%s%s/vars" % (kind, "_%d" % number if number else ""))
            if with_names:
                its.attrs["name"] = name
            for place, array in enumerate(variables.values()):
                its[str(place)] = array
    return str(path)


def write_archive(path, layers, model=None):
    """As `model.save("x.keras")` writes: a zip with the file of `save_weights`, and the description of the model."""
    inside = write_numbered(str(path) + ".inside", layers)
    with zipfile.ZipFile(str(path), "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(model or {}))
        archive.write(inside, "model.weights.h5")
    return str(path)


def shapes_of(weights):
    return {name: value.shape for name, value in weights.values.items()}


def assert_same(first, second):
    assert list(first) == list(second)
    for name in first:
        assert first[name].dtype == np.float32
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


# ---- Formats and names ----

def test_tensors_of_torchvision_become_our_variables(tmp_path):
    tensors = tiny_weights()
    weights = read(write_safetensors(tmp_path / "a.safetensors", tensors))
    for theirs, ours in {"features.conv0.weight": "conv0/kernel",
                         "features.norm0.running_var": "batch0/moving_variance",
                         "features.denseblock1.denselayer1.norm1.weight": "dense_0/bottleN_0/batch1/gamma",
                         "features.denseblock2.denselayer2.conv1.weight": "dense_1/bottleN_1/conv1/kernel",
                         "features.denseblock2.denselayer2.norm2.bias": "dense_1/bottleN_1/batch2/beta",
                         "features.denseblock4.denselayer1.conv2.weight": "dense_final/bottleN_0/conv2/kernel",
                         "features.transition3.norm.running_mean": "trans_2/batch1/moving_mean",
                         "features.transition1.conv.weight": "trans_0/conv1/kernel",
                         "features.norm5.running_mean": "linear_batch/moving_mean",
                         "classifier.weight": "linear/kernel", "classifier.bias": "linear/bias"}.items():
        value = tensors[theirs]
        # [out, in, h, w] to [h, w, in, out]; [out, in] to [in, out]
        value = np.einsum("oihw->hwio", value) if value.ndim == 4 else value.T
        np.testing.assert_array_equal(weights.values[ours], value, err_msg=ours)
        assert weights.names[ours] == theirs
    assert len(weights.values) == len(tensors)
    assert weights.class_names is None


def test_the_network_is_described(tmp_path):
    point = pretrained.look_up(write_safetensors(tmp_path / "a.safetensors", tiny_weights()), "model")
    assert point.settings == dict(
        network="custom", blocks=(1, 2, 1, 1), growth_k=4, bottleneck=True, compression=0.5, transition_channels=0,
        transition_pooling="average", stem="imagenet", stem_channels=0, norm_epsilon=1e-5, image_size=224,
        crop_area=0.08)
    np.testing.assert_allclose(point.mean, [123.675, 116.28, 103.53], rtol=1e-6)
    np.testing.assert_allclose(point.deviation, [58.395, 57.12, 57.375], rtol=1e-6)
    with open(str(tmp_path / "a.safetensors"), "rb") as file:
        assert point.identity == "a.safetensors-" + hashlib.sha256(file.read()).hexdigest()[:12]


@pytest.mark.parametrize("network", ["densenet_121", "densenet_161", "densenet_169", "densenet_201"])
def test_published_networks_have_their_names(tmp_path, network):
    """Names and shapes alone are read: the file's values are a hole of zeros."""
    its = networks.NETWORKS[network]
    header, offset = {}, 0
    for name, shape in torch_shapes(its["blocks"], its["growth_k"], 2 * its["growth_k"], 1000).items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + 2 * int(np.prod(shape))]}
        offset = header[name]["data_offsets"][1]
    text = json.dumps(header).encode()
    with open(str(tmp_path / "a.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    settings = pretrained.look_up(str(tmp_path / "a.safetensors"), "model").settings
    assert settings == {"network": network, "norm_epsilon": 1e-5}


VARIANTS = {
    "before 2017": lambda name: re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", name),
    "of DataParallel": lambda name: "module." + name,
    "of a wrapper": lambda name: "model.backbone." + name,
}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_other_namings_of_pytorch(tmp_path, variant):
    tensors = tiny_weights()
    expected = read(write_safetensors(tmp_path / "a.safetensors", tensors)).values
    renamed = {VARIANTS[variant](name): array for name, array in tensors.items()}
    assert set(renamed) != set(tensors)
    renamed.update({VARIANTS[variant]("features.norm%d.num_batches_tracked" % number): np.array(7, np.int64)
                    for number in (0, 5)})
    assert_same(read(write_safetensors(tmp_path / "b.safetensors", renamed)).values, expected)


@pytest.mark.parametrize("kind, accuracy", [("F64", 0), ("F16", 2 ** -10), ("BF16", 2 ** -7)])
def test_other_types_become_float32(tmp_path, kind, accuracy):
    expected = read(write_safetensors(tmp_path / "a.safetensors", tiny_weights())).values
    values = read(write_safetensors(tmp_path / "b.safetensors", tiny_weights(), kind)).values
    for name, value in values.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected[name], rtol=accuracy, atol=1e-7 if accuracy else 0)


LAYOUTS = {
    "2018": lambda path, tensors: write_listed(path, keras_layers(tensors, earlier=True), ending=":0"),
    "2018, long lists": lambda path, tensors: write_listed(path, keras_layers(tensors, earlier=True), spread=True),
    "Keras 2": lambda path, tensors: write_listed(path, keras_layers(tensors), "model_weights", ":0"),
    "Keras 3": lambda path, tensors: write_listed(path, keras_layers(tensors), "model_weights"),
    "nested": lambda path, tensors: write_nested(path, keras_layers(tensors)),
    "nested, features frozen": lambda path, tensors: write_nested(
        path, keras_layers(tensors), [name for name, _ in keras_layers(tensors)]),
    "nested, partly frozen": lambda path, tensors: write_nested(
        path, keras_layers(tensors), ["conv1_conv", "conv1_bn", "conv2_block1_1_conv", "conv3_block2_0_bn"]),
    "weights alone": lambda path, tensors: write_numbered(path, keras_layers(tensors)),
    "weights alone, without names": lambda path, tensors: write_numbered(path, keras_layers(tensors), False),
    ".keras": lambda path, tensors: write_archive(path, keras_layers(tensors)),
}


@pytest.mark.parametrize("classes", [3, 0])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_layout_of_keras_gives_the_same_weights(tmp_path, layout, classes):
    if layout.startswith("nested") and not classes:
        pytest.skip("the model around the network is its classifier")
    tensors = tiny_weights(classes=classes)
    expected = read(write_safetensors(tmp_path / "a.safetensors", tensors)).values
    path = LAYOUTS[layout](tmp_path / ("b.keras" if layout == ".keras" else "b.h5"), tensors)
    assert_same(read(path).values, expected)
    assert pretrained.look_up(path, "model").settings["norm_epsilon"] == 1.001e-5


def test_a_file_is_known_by_its_content_whatever_its_name(tmp_path):
    for name, write in (("a.h5", write_safetensors), ("b.safetensors", LAYOUTS["2018"])):
        assert len(read(write(tmp_path / name, tiny_weights())).values) == len(tiny_weights())


# ---- What is refused ----

def refused(path, match):
    """The file is refused with one sentence that has the words `match` and names the file."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert re.search(match, message), message
    assert str(path) in message and "\n" not in message
    return message


PICKLES = {  # how torch.save has written: a zip, and before 1.6 pickles one after the other
    "a.pth": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pytorch_model.bin": b"\x80\x02}q\x00.", "b.pt": b"(lp0\n.",
    "without extension": b"\x80\x04}.", "misnamed.safetensors": b"\x80\x02}q\x00."}


@pytest.mark.parametrize("name", sorted(PICKLES))
def test_a_pickle_is_refused_with_the_line_that_converts_it(tmp_path, name):
    (tmp_path / name).write_bytes(PICKLES[name] + bytes(300))
    message = refused(tmp_path / name, r"pickle.*python -c .*save_file.*weights_only=True")
    assert os.path.splitext(name)[0] + ".safetensors" in message


def test_the_zip_of_pytorch_is_refused(tmp_path):
    with zipfile.ZipFile(str(tmp_path / "model"), "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    refused(tmp_path / "model", "pickle.*python -c")


@pytest.mark.parametrize("name, content, match", [
    ("empty.h5", b"", "no file of weights"), ("empty.safetensors", b"", "no file of weights"),
    ("page.h5", b"<html>not found</html>", "no file of weights"),
    ("photo.jpg", b"\xff\xd8\xff\xe0" + bytes(99), "no file of weights"),
    ("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    ("other.zip", b"PK\x03\x04" + bytes(99), "no file of weights"),
    ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "damaged")])
def test_other_files_are_refused(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, match)


def test_no_source_file_unpickles():
    """No pickle module, no torch.load, no np.load(allow_pickle=True), no loading of whole Keras models."""
    modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch"}
    paths = glob.glob(os.path.join(ROOT, "*.py")) + glob.glob(os.path.join(ROOT, "*", "*.py"))
    assert len(paths) > 60
    for path in paths:
        with open(path, encoding="utf-8") as file:
            tree = ast.parse(file.read(), path)
        for node in ast.walk(tree):
            imported = [name.name for name in node.names] if isinstance(node, ast.Import) else (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            recording = os.path.basename(path) == "record_pretrained.py"  # builds networks with PyTorch, loads nothing
            for name in imported:
                assert name.split(".")[0] not in modules - ({"torch"} if recording else set()), path
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("read_pickle", "load_model") and not (
                    node.attr == "load" and getattr(node.value, "id", "") in ("torch", "pickle")), path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert getattr(node.value, "value", None) is False, path


def without(tensors, name):
    return {one: array for one, array in tensors.items() if one != name}


def changed(tensors, name, array):
    return dict(tensors, **{name: np.asarray(array, np.float32)})


CONV = "features.denseblock2.denselayer1.conv1.weight"
VARIANCE = "features.norm5.running_var"
BAD_TENSORS = {
    "one missing": (lambda t: without(t, CONV), "first layer that differs is dense_1/bottleN_0/conv1"),
    "first missing": (lambda t: without(t, "features.conv0.weight"), "conv0/kernel"),
    "statistics missing": (lambda t: without(t, VARIANCE), "linear_batch.*moving_variance is missing"),
    "half a classifier": (lambda t: without(t, "classifier.bias"), "linear.*linear/bias is missing"),
    "a block missing": (lambda t: {n: a for n, a in t.items() if "denseblock3" not in n}, "first layer that differs"),
    "last block missing": (lambda t: {n: a for n, a in t.items() if "denseblock4" not in n}, "trans_2|linear_batch"),
    "one too many": (lambda t: changed(t, "features.conv1.weight", np.zeros((8, 8, 3, 3))), "features.conv1.weight"),
    "a bias too many": (lambda t: changed(t, "features.conv0.bias", np.zeros(8)), "features.conv0.bias"),
    "one twice": (lambda t: changed(t, "features.denseblock1.denselayer1.norm.1.weight", np.ones(8)), "twice"),
    "another width": (lambda t: changed(t, CONV, np.zeros((16, 7, 1, 1))), "dense_1/bottleN_0/conv1.*1x1x7x16 there"),
    "another rank": (lambda t: changed(t, CONV, np.zeros((16, 10))), "dense_1/bottleN_0/conv1"),
    "grey images": (lambda t: changed(t, "features.conv0.weight", np.zeros((8, 1, 7, 7))), "conv0.*7x7x1x8 there"),
    "a NaN": (lambda t: changed(t, CONV, np.full(t[CONV].shape, np.nan)), "denseblock2.denselayer1.conv1.*not finite"),
    "infinite": (lambda t: changed(t, "classifier.bias", [0, np.inf, 0]), "classifier.bias.*not finite"),
    "a negative variance": (lambda t: changed(t, VARIANCE, -t[VARIANCE]), "norm5.running_var has negative"),
    "a name of several lines": (lambda t: changed(t, "features.\n\x1b[31m\ud800", np.zeros(8)), r"tensor features\.\?"),
    "a prefix of several lines": (lambda t: {"a\nb." + n: a * np.nan for n, a in t.items()}, r"a\?b\.features\.conv0"),
    "nothing": (lambda t: {}, "conv0"),
}


@pytest.mark.parametrize("fault", sorted(BAD_TENSORS))
def test_tensors_that_are_no_densenet_are_refused_by_name(tmp_path, fault):
    change, match = BAD_TENSORS[fault]
    refused(write_safetensors(tmp_path / "a.safetensors", change(tiny_weights())), match)


def keras_without(name):
    return [layer for layer in keras_layers(tiny_weights()) if layer[0] != name]


BAD_LAYERS = {
    "convolution missing": (lambda: keras_without("conv3_block2_2_conv"), "conv4_block1_1_conv is not in its place"),
    "normalization missing": (lambda: keras_without("conv3_block1_1_bn"), "dense_1/bottleN_0/batch2"),
    "first missing": (lambda: keras_without("conv1_conv"), "conv2_block1_1_conv is not in its place"),
    "statistics missing": (lambda: [(name, {one: array for one, array in variables.items()
                                            if (name, one) != ("bn", "moving_mean")})
                                    for name, variables in keras_layers(tiny_weights())], "layer bn"),
    "a layer too many": (lambda: keras_layers(tiny_weights()) + [("lstm", {"recurrent": np.zeros(3, "f4")})], "lstm"),
    "a second classifier": (lambda: keras_layers(tiny_weights()) + [
        ("dense_1", {"kernel": np.zeros((3, 2), "f4"), "bias": np.zeros(2, "f4")})], "dense_1"),
    "a normalization too many": (lambda: keras_layers(tiny_weights()) + [
        ("other", dict.fromkeys(NORM, np.ones(3, "f4")))], "batch normalizations"),
    "no layers": (lambda: [], "none"),
    "integers": (lambda: [(name, {one: array.astype(int) for one, array in variables.items()})
                          for name, variables in keras_layers(tiny_weights())], "not floating point"),
    "a NaN": (lambda: [(name, {one: array * (np.nan if name == "pool2_bn" else 1) for one, array in variables.items()})
                       for name, variables in keras_layers(tiny_weights())], "pool2_bn/gamma.*not finite"),
}


@pytest.mark.parametrize("fault", sorted(BAD_LAYERS))
def test_layers_that_are_no_densenet_are_refused_by_name(tmp_path, fault):
    layers, match = BAD_LAYERS[fault]
    refused(write_listed(tmp_path / "a.h5", layers(), "model_weights"), match)


def test_an_hdf5_file_cannot_bring_in_another_file(tmp_path):
    path = LAYOUTS["2018"](tmp_path / "a.h5", tiny_weights())
    LAYOUTS["2018"](tmp_path / "other.h5", tiny_weights())
    with h5py.File(path, "r+") as file:
        del file["conv1/conv/conv1/conv/kernel:0"]
        file["conv1/conv/conv1/conv/kernel:0"] = h5py.ExternalLink(str(tmp_path / "other.h5"),
                                                                   "conv1/conv/conv1/conv/kernel:0")
    refused(path, "another file")


@pytest.mark.parametrize("trial, match", [
    ("import os; os.kill(os.getpid(), 11)", "crashes"), ("import time; time.sleep(99)", "does not end")])
def test_a_file_that_crashes_the_library_is_refused(tmp_path, monkeypatch, trial, match):
    """HDF5 files are read by another process first. Here that does something else."""
    path = LAYOUTS["2018"](tmp_path / "a.h5", tiny_weights())
    run = subprocess.run
    monkeypatch.setattr(weight_files.subprocess, "run",
                        lambda command, **options: run(command[:1] + ["-c", trial], **options))
    if match != "crashes":
        monkeypatch.setattr(weight_files, "TRIAL_SECONDS", 0.1)
    refused(path, match)


def test_hdf5_files_are_read_by_another_process_first(tmp_path):
    good = LAYOUTS["2018"](tmp_path / "a.h5", tiny_weights())
    bad = write_listed(tmp_path / "b.h5", keras_without("conv1_conv"))
    for path, status in ((good, 0), (bad, 1)):
        assert subprocess.run([sys.executable, "-m", "support.weight_files", path], cwd=ROOT,
                              stderr=subprocess.DEVNULL).returncode == status


def test_a_dataset_that_claims_to_be_huge_is_refused(tmp_path):
    path = LAYOUTS["2018"](tmp_path / "a.h5", tiny_weights())
    with h5py.File(path, "r+") as file:
        del file["conv1/conv/conv1/conv/kernel:0"]
        file["conv1/conv"].create_dataset("conv1/conv/kernel:0", (7, 7, 3, 2 ** 36), "f4", chunks=(7, 7, 3, 8))
    refused(path, "too large")


def entry(**changes):
    return dict(dict(dtype="F32", shape=[8], data_offsets=[0, 32]), **changes)


@pytest.mark.parametrize("wrong", [
    entry(shape=[9]), entry(shape=[-8]), entry(shape=[2 ** 62, 2 ** 62]), entry(shape=["8"]), entry(shape=[8.0]),
    entry(shape=8), entry(data_offsets=[0]), entry(data_offsets=[32, 0]), entry(data_offsets=[4, 36]),
    entry(data_offsets=[0, 10 ** 12], shape=[250 * 10 ** 9]), entry(dtype="F31"), entry(dtype=None), {}, [], None, "x"])
def test_a_header_that_contradicts_itself_is_refused(tmp_path, wrong):
    path = write_safetensors(tmp_path / "a.safetensors", tiny_weights(), header_changes={"features.norm0.bias": wrong})
    refused(path, "cannot be read")


@pytest.mark.parametrize("header", [
    b"[]", b"{", b"7", b"{}" + b" " * 8, b'{"a": ' * 3000, b"\xff" * 20, b"[" * 10 ** 5, b'{"a": ' + b"[" * 10 ** 5])
def test_other_headers_are_refused(tmp_path, header):
    for length in (len(header), len(header) + 1, 2 ** 63):
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + header)
        refused(tmp_path / "a.safetensors", "cannot be read|no file|does not fit")


FORMATS = {"safetensors": write_safetensors, "h5": LAYOUTS["2018"], "weights.h5": LAYOUTS["weights alone"],
           "keras": LAYOUTS[".keras"]}


def damage(tmp_path, format_name, count):
    """Reads files that are cut off, or have wrong bytes: each is refused in one sentence or has the same shapes.

    Values without a checksum can be other ones, but are finite. Returns how many were refused.
    """
    good = FORMATS[format_name](tmp_path / ("a." + format_name), tiny_weights())
    expected = shapes_of(read(good))
    with open(good, "rb") as file:
        content = file.read()
    random = np.random.RandomState(len(content))
    refusals = 0
    for number in range(count):
        bad = bytearray(content)
        if number % 4 == 0:
            del bad[random.randint(len(bad)):]
        else:
            # a header is at the beginning in one format, all over the file in the others
            reach = 6000 if format_name == "safetensors" and number % 4 == 1 else len(bad)
            for place in random.randint(0, reach, random.choice([1, 1, 3, 40])):
                bad[place] = random.choice([0, 1, 127, 255, random.randint(256)])
        path = str(tmp_path / ("bad-%d." % number + format_name))
        with open(path, "wb") as file:
            file.write(bad)
        try:
            weights = read(path)
        except UserError as error:
            refusals += 1
            assert path in str(error) and "\n" not in str(error) and len(str(error)) < 1500
        else:
            assert shapes_of(weights) == expected
            assert all(np.isfinite(value).all() for value in weights.values.values())
        os.remove(path)
    return refusals


@pytest.mark.parametrize("format_name,count", [("safetensors", 80)] + [
    pytest.param(name, 8, marks=pytest.mark.once)  # HDF5 files are tried in another process first
    for name in sorted(FORMATS) if name != "safetensors"])
def test_damaged_files_are_refused_or_read(tmp_path, format_name, count):
    assert damage(tmp_path, format_name, count) >= count // 4


@pytest.mark.long
@pytest.mark.parametrize("format_name", sorted(FORMATS))
def test_many_damaged_files_are_refused_or_read(tmp_path, format_name):
    assert damage(tmp_path, format_name, 500) > 125


# ---- Fitting weights to a network ----

def tiny_net(class_num=3, images=None, training=False, blocks=TINY[0], growth_k=TINY[1], **changes):
    images = tf.placeholder(tf.float32, [None, 32, 32, 3]) if images is None else images
    options = dict(stem="imagenet", class_num=class_num, norm_epsilon=1e-5)
    return Densenet.DenseNet(images, blocks, growth_k, training, **dict(options, **changes))


def variables():
    return {variable.op.name: tuple(variable.shape.as_list()) for variable in tf.global_variables()}


@pytest.fixture
def tiny(tmp_path):
    with tf.Graph().as_default():
        yield read(write_safetensors(tmp_path / "a.safetensors", tiny_weights()))


def test_weights_fit_the_network_that_they_describe(tiny):
    tiny_net()
    values, line = pretrained.fit(tiny, variables(), ["a", "b", "c"])
    assert {name: value.shape for name, value in values.items()} == variables()
    assert "all %d tensors" % len(tiny_weights()) in line and "a.safetensors" in line and "\n" not in line
    assert line.endswith("they name no classes: those of their classifier are taken to be a, b, c, in this order")
    for name in ("batch0", "dense_1/bottleN_1/batch2"):
        np.testing.assert_array_equal(values[name + "/moving_mean/biased"], tiny.values[name + "/moving_mean"])
        assert np.float32(0.9) ** values[name + "/moving_mean/local_step"] == 0


def test_moving_averages_go_on_from_the_weights():
    """One training step moves them a tenth of the way to the batch's statistics."""
    x = np.random.RandomState(0).randn(8, 3, 3, 2).astype(np.float32)
    found = {"n/gamma": np.ones(2), "n/beta": np.zeros(2), "n/moving_mean": np.array([5.0, -3.0]),
             "n/moving_variance": np.array([2.0, 9.0])}
    named = {"linear_batch/" + name[2:]: value.astype(np.float32) for name, value in found.items()}
    with tf.Graph().as_default(), tf.Session() as sess:
        y = Batch_Normalization(tf.constant(x), True, "linear_batch")
        sess.run(tf.global_variables_initializer())
        values, _ = pretrained.fit(pretrained.Weights("a file", named, dict(zip(named, named))), variables(), [])
        for variable in tf.global_variables():
            variable.load(values[variable.op.name], sess)
        sess.run(y)
        after = {variable.op.name: sess.run(variable) for variable in tf.global_variables()}
    np.testing.assert_allclose(after["linear_batch/moving_mean"],
                               0.9 * found["n/moving_mean"] + 0.1 * x.mean((0, 1, 2), dtype=float), rtol=1e-6)
    np.testing.assert_allclose(after["linear_batch/moving_variance"], 0.9 * found["n/moving_variance"]
                               + 0.1 * x.reshape(-1, 2).var(0, dtype=float, ddof=1), rtol=1e-6)


@pytest.mark.parametrize("their_names, names, reason", [
    (None, ["a", "b"], "3 classes apart, and here are 2"), (None, ["a", "b", "c"], None),
    (["a", "b", "c"], ["a", "b", "c"], None), (["a", "b", "c"], ["a", "b", "d"], r"c where there is d here"),
    (["a", "b", "c"], ["b", "a", "c"], r"a where there is b here"), (["a", "b", "c"], ["n1", "n2", "n3"], None),
    (["a", "caf\u00e9", "c"], ["a", "cafe\u0301", "c"], None)])
def test_the_classifier_is_taken_where_the_classes_are_the_same(tiny, their_names, names, reason):
    tiny.class_names, tiny.class_ids = their_names, their_names and ["n1", "n2", "n3"]
    tiny_net(len(names))
    values, line = pretrained.fit(tiny, variables(), names)
    assert ("linear/kernel" in values) == (reason is None)
    if reason:
        assert re.search("starts afresh.*" + reason, line) and "%d tensors" % (len(tiny_weights()) - 2) in line


def test_without_a_classifier_it_starts_afresh(tmp_path):
    weights = read(write_safetensors(tmp_path / "a.safetensors", tiny_weights(classes=0)))
    with tf.Graph().as_default():
        tiny_net()
        values, line = pretrained.fit(weights, variables(), ["a", "b", "c"])
    assert "linear/kernel" not in values and "afresh, as there is none" in line


@pytest.mark.parametrize("changes, match", [
    (dict(blocks=(1, 3, 1, 1)), r"is dense_1/bottleN_2, as dense_1/bottleN_2/|is dense_1/bottleN_2/batch1"),
    (dict(blocks=(1, 2, 1, 2)), "is dense_final/bottleN_1"), (dict(growth_k=6), "is conv0, .*7x7x3x8 there.*7x7x3x12"),
    (dict(growth_k=6, stem_channels=8), "is dense_0/bottleN_0/conv1"), (dict(compression=0.7), "is trans_0/conv1"),
    (dict(blocks=(1, 1, 1, 1)), "is trans_1/batch1"), (dict(bottleneck=False), "is dense_0/bottleN_0/batch2"),
    (dict(stem="3x3", stem_channels=8), "is conv0"),
    (dict(images=(1, 32, 32, 1)), "is conv0, .*7x7x3x8 there.*7x7x1x8 in the network")])
def test_weights_of_another_network_are_refused_at_the_first_layer(tiny, changes, match):
    changes = dict(changes, images=tf.zeros(changes["images"])) if "images" in changes else changes
    tiny_net(**changes)
    with pytest.raises(UserError, match=match):
        pretrained.fit(tiny, variables(), ["a", "b", "c"])


def test_layers_that_the_network_lacks_are_refused(tiny):
    tiny_net()
    tiny.values["dense_7/bottleN_0/conv1/kernel"], tiny.names["dense_7/bottleN_0/conv1/kernel"] = np.zeros(1), "theirs"
    with pytest.raises(UserError, match=r"dense_7/bottleN_0/conv1/kernel \(theirs\), which the network has not"):
        pretrained.fit(tiny, variables(), ["a", "b", "c"])


# ---- Runs ----

def save(folder, step, value, settings=None, names=lambda name: name):
    """Saves a checkpoint of a small network whose classifier's bias is `value`, with an optimizer's slots."""
    os.makedirs(str(folder), exist_ok=True)
    with tf.Graph().as_default(), tf.Session() as sess:
        tiny_net(blocks=(1, 1), stem="3x3", images=tf.zeros([2, 8, 8, 3]))
        for name in ("mean", "deviation"):
            tf.get_variable("normalization/" + name, initializer=tf.constant([1.0, 2.0, 3.0]), trainable=False)
        tf.train.get_or_create_global_step()
        for name in ("beta1_power", "conv0/kernel/Adam", "linear/bias/Adam_1", "batch0/gamma_1"):
            tf.get_variable(name, [3])
        sess.run(tf.global_variables_initializer())
        (bias,) = [variable for variable in tf.global_variables() if variable.op.name == "linear/bias"]
        bias.load(np.full(bias.shape.as_list(), value), sess)
        path = os.path.join(str(folder), "dense.ckpt-%d" % step)
        tf.train.Saver({names(variable.op.name): variable for variable in tf.global_variables()}).save(
            sess, path, write_meta_graph=False, write_state=False)
    if settings is not None:
        with open(os.path.join(str(folder), "settings.json"), "w") as file:
            json.dump(settings, file)
    return path


def settings_json(validation=100, **changes):
    return dict(dict(dataset="folder", network="custom", blocks=[1, 1], growth_k=4, bottleneck=True, compression=0.5,
                     transition_channels=0, transition_pooling="average", stem="3x3", stem_channels=0,
                     norm_epsilon=0.002, data={"class_names": ["x", "y", "z"], "validation": validation,
                                               "image_shape": [8, 8, 3]}), **changes)


def bias_of(weights, model_dir="model"):
    return pretrained.look_up(weights, model_dir).read("cache").values["linear/bias"][0]


def test_a_run_gives_its_best_checkpoint_and_its_settings(folder):
    settings = settings_json(crop_area=0.5)
    settings["data"]["pixel_range"] = [0.0, 4096.0]
    save("model/pets", 10, 1.0, settings)
    save("model/pets", 20, 2.0)
    save("model/pets/best", 10, 3.0)
    point = pretrained.look_up("pets", "model")
    assert point.settings == dict(
        blocks=[1, 1], growth_k=4, bottleneck=True, compression=0.5, transition_channels=0,
        transition_pooling="average", stem="3x3", stem_channels=0, norm_epsilon=0.002, image_size=8, crop_area=0.5)
    assert point.pixel_range == [0, 4096]
    np.testing.assert_array_equal(point.mean, [1, 2, 3])
    weights = point.read("cache")
    assert weights.class_names == ["x", "y", "z"] and weights.values["linear/bias"][0] == 3
    assert point.identity == "pets" and "best" in weights.source
    with tf.Graph().as_default():
        tiny_net(blocks=(1, 1), stem="3x3", images=tf.zeros([1, 8, 8, 3]))
        values, line = pretrained.fit(weights, variables(), ["x", "y", "z"])
        assert set(values) == set(variables()) and "all" in line


def test_few_validation_images_and_none_choose_the_newest(folder):
    save("model/few", 10, 1.0, settings_json(validation=29))
    save("model/few", 20, 2.0)
    save("model/few/best", 10, 3.0)
    assert bias_of("few") == 2
    save("model/none", 10, 1.0, settings_json())
    save("model/none", 20, 2.0)
    assert bias_of("none") == 2


def test_a_damaged_checkpoint_is_skipped(folder, capsys):
    save("model/pets", 10, 1.0, settings_json())
    save("model/pets", 20, 2.0)
    best = save("model/pets/best", 15, 3.0)
    with open(best + ".data-00000-of-00001", "r+b") as file:
        file.seek(0)
        file.write(b"\xff" * 400)
    os.truncate("model/pets/dense.ckpt-20.index", 30)
    assert bias_of("pets") == 1
    said = capsys.readouterr().out
    assert "skipped model/pets/best/dense.ckpt-15" in said and "skipped model/pets/dense.ckpt-20" in said
    os.remove("model/pets/dense.ckpt-10.data-00000-of-00001")
    with pytest.raises(UserError, match="no intact checkpoint"):
        pretrained.look_up("pets", "model")


@pytest.mark.parametrize("ending", ["", ".index", ".data-00000-of-00001"])
def test_a_checkpoint_is_found_by_its_path(folder, ending):
    save("model/pets", 10, 1.0, settings_json())
    save("model/pets/best", 20, 2.0)
    assert bias_of("model/pets/dense.ckpt-10" + ending) == 1
    assert bias_of("model/pets/best/dense.ckpt-20" + ending) == 2
    assert pretrained.look_up("model/pets/best/dense.ckpt-20", "model").settings["norm_epsilon"] == 0.002
    assert pretrained.look_up("model/pets/best", "model").identity == "pets"


def test_a_checkpoint_without_its_run(folder, capsys):
    path = save("elsewhere", 10, 1.0)
    point = pretrained.look_up(path, "model")
    assert point.settings == dict(blocks=(1, 1), growth_k=4, bottleneck=True, compression=0.5, transition_channels=0,
                                  stem_channels=0)
    assert point.read("cache").class_names is None and "without the settings.json" in capsys.readouterr().out


def test_checkpoints_of_earlier_versions(folder):
    """They numbered the blocks of some networks from 1, and did not record ε."""
    def earlier(name):
        return re.sub(r"^(dense|trans)_(\d+)/", lambda found: "%s_%d/" % (
            found.group(1), int(found.group(2)) + 1), name)

    settings = settings_json()
    del settings["norm_epsilon"]
    save("model/new", 10, 1.0, settings)
    save("model/old", 10, 1.0, settings, earlier)
    new, old = (pretrained.look_up(name, "model") for name in ("new", "old"))
    assert old.settings == new.settings and old.settings["norm_epsilon"] == 1e-3
    assert set(old.read("cache").values) == set(new.read("cache").values)


def test_a_checkpoint_with_a_nan_is_refused(folder):
    path = save("elsewhere", 10, np.nan)
    with pytest.raises(UserError, match="linear/bias has values that are not finite"):
        pretrained.look_up(path, "model")


@pytest.mark.parametrize("left_out", ["linear/kernel", "normalization/mean"])
def test_a_checkpoint_of_another_program_is_refused(folder, left_out):
    path = save("elsewhere", 10, 1.0, names=lambda name: "other" if name == left_out else name)
    with pytest.raises(UserError, match="has no %s: it is a checkpoint of another program" % left_out):
        pretrained.look_up(path, "model")


def test_what_is_not_there_is_refused_with_what_there_is(folder):
    save("model/pets", 10, 1.0, settings_json())
    os.makedirs("photos")
    for name in ("cats", "photos", "nowhere/a.h5"):
        with pytest.raises(UserError, match=r"weights=%s is not there.*imagenet.*\.h5.*\(pets\)" % name):
            pretrained.look_up(name, "model")
    for name, nearest in (("imagnet", "imagenet"), ("pest", "pets")):
        with pytest.raises(UserError, match="weights=%s is not there; the nearest is %s: give" % (name, nearest)):
            pretrained.look_up(name, "model")
    os.makedirs("model/begun")
    with open("model/begun/settings.json", "w") as file:
        json.dump(settings_json(), file)
    with pytest.raises(UserError, match="no intact checkpoint yet"):
        pretrained.look_up("begun", "model")


def test_a_file_and_a_run_of_one_name(folder, capsys):
    save("model/pets", 10, 1.0, settings_json())
    write_safetensors("pets", tiny_weights())
    assert pretrained.look_up("pets", "model").identity.startswith("pets-")
    Densenet.choose(dataset="folder", weights="pets")
    line = "the file of this name, not the run; for the run set weights=model/pets"
    assert capsys.readouterr().out.count(line) == 1
    assert bias_of("model/pets") == 1


# ---- ImageNet's weights ----

INDEX = {str(number): ["n%08d" % number, "class_%d" % number] for number in range(3)}
INDEX["0"][1] = INDEX["2"][1] = "crane"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Publishes a small network on a local server; yields {name of a file: content}, which a test may change."""
    LAYOUTS["2018"](tmp_path / "weights.h5", tiny_weights())
    files = {"weights.h5": (tmp_path / "weights.h5").read_bytes(), "classes.json": json.dumps(INDEX).encode()}
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}

    def send(handler, _):
        content = files.get(os.path.basename(handler.path))
        answer(handler, content or b"", 200 if content else 404)

    with server(send) as url:
        monkeypatch.setattr(pretrained, "KERAS_URLS", (url + "densenet/",))
        monkeypatch.setattr(pretrained, "INDEX_URLS", (url + "data/",))
        monkeypatch.setitem(pretrained.KERAS_FILES, "densenet_121", ("weights.h5", md5["weights.h5"]))
        monkeypatch.setattr(pretrained, "INDEX_FILE", ("classes.json", md5["classes.json"]))
        monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
        yield files


@pytest.mark.parametrize("network", ["custom", "densenet_121"])
def test_imagenet_is_downloaded_once(published, folder, network):
    point = pretrained.look_up("imagenet", "model", network)
    assert point.settings == {"network": "densenet_121", "norm_epsilon": 1.001e-5}
    assert not os.path.exists("cache")  # so far
    weights = point.read("cache")
    assert len(weights.values) == len(tiny_weights())
    assert weights.class_ids == ["n00000000", "n00000001", "n00000002"]
    assert weights.class_names == ["crane (n00000000)", "class_1", "crane (n00000002)"]  # names are not repeated
    published.clear()
    assert_same(point.read("cache").values, weights.values)


def test_a_wrong_download_is_not_kept(published, folder):
    published["weights.h5"] = b"a login page"
    with pytest.raises(download.Unavailable, match=r"weights\.h5 could .*md5 differs.*download http.*weights\.h5 on "
                                                   r"another machine and save it as cache/weights/weights\.h5, "
                                                   r"or .*weights=FILE"):
        pretrained.look_up("imagenet", "model").read("cache")
    assert os.listdir("cache/weights") == []


def test_a_wrong_file_put_there_by_hand_is_refused(published, folder):
    os.makedirs("cache/weights")
    with open("cache/weights/weights.h5", "wb") as file:
        file.write(b"another file")
    with pytest.raises(UserError, match="cache/weights/weights.h5 is not the file of that name .* delete it"):
        pretrained.look_up("imagenet", "model").read("cache")


def test_without_the_names_of_classes_imagenet_can_be_trained_on(published, folder, capsys):
    del published["classes.json"]
    weights = pretrained.look_up("imagenet", "model").read("cache")
    assert weights.class_names is None and len(weights.values) == len(tiny_weights())
    assert "ImageNet's classes are not known: classes.json could not" in capsys.readouterr().out


@pytest.mark.parametrize("count, there, names", [
    (3, True, ["class 0", "class 1", "class 2"]), (1000, True, ["crane (n00000000)", "class_1", "crane (n00000002)"]),
    (1000, False, ["class %d" % number for number in range(1000)])])
def test_classes_without_names_get_imagenets_or_numbers(published, folder, count, there, names):
    if not there:
        del published["classes.json"]
    weights = pretrained.Weights("a file", {"linear/bias": np.zeros(count)}, {})
    assert pretrained.with_class_names(weights, "cache").class_names == names


def test_networks_that_keras_does_not_publish_are_refused():
    for network in ("densenet_161", "densenet_bc_100_12"):
        with pytest.raises(UserError, match="densenet_121, densenet_169, densenet_201, not of %s" % network):
            pretrained.look_up("imagenet", "model", network)


def test_a_run_named_imagenet_is_said(folder, capsys):
    save("model/imagenet", 10, 1.0, settings_json())
    assert pretrained.look_up("imagenet", "model").settings["network"] == "densenet_121"
    assert "for the run set weights=model/imagenet" in capsys.readouterr().out


# ---- Oracles: the answers of PyTorch and Keras ----

def logits_with(path, images, class_num):
    """Our logits of normalized images, with the weights and the network of a file."""
    point = pretrained.look_up(path, "model")
    weights = point.read("cache")
    config = Densenet.choose(dataset="folder", precision="float32", flip_average=False, **point.settings)
    with tf.Graph().as_default(), tf.Session(config=Cluster(1, 1).session_config()) as sess:
        x = tf.placeholder(tf.float32, (None,) + images.shape[1:])
        logits = Densenet.network_of(x, config, class_num, training=False).model
        line = pretrained.start_from(sess, weights, [str(number) for number in range(class_num)])
        assert "all %d tensors" % len(weights.values) in line
        return sess.run(logits, {x: images})  # raises an error where a variable has no value


@pytest.mark.parametrize("network", [pytest.param("densenet_121", marks=pytest.mark.once),
                                     pytest.param("densenet_161", marks=pytest.mark.long)])
def test_logits_equal_torchvisions(tmp_path, network):
    path = write_safetensors(tmp_path / "a.safetensors", drawn_weights(*NETWORKS[network]))
    assert pretrained.look_up(path, "model").settings["network"] == network
    with open(RECORDED) as file:
        expected = np.array(json.load(file)[network])
    found = logits_with(path, drawn_images(), CLASSES)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * expected.std())


def keras_model(blocks, side, classes):
    """A DenseNet of keras.applications; the test is skipped without Keras 3, which TensorFlow 2.21 has."""
    densenet = pytest.importorskip("keras.src.applications.densenet", reason="Keras 3 is not in this environment")
    return densenet.DenseNet(list(blocks), weights=None, classes=classes, classifier_activation=None,
                             input_shape=(side, side, 3))


def draw(model, random):
    """Gives a Keras model weights and statistics at random."""
    for layer in model.layers:
        shapes = [tuple(weight.shape) for weight in layer.weights]
        if len(shapes) == 4:
            gamma, beta, mean = (random.normal(centre, 0.2, shapes[0]) for centre in (1, 0, 0))
            layer.set_weights([gamma, beta, mean, random.uniform(0.5, 1.5, shapes[0])])
        elif shapes:
            layer.set_weights([random.normal(0, np.sqrt(2 / np.prod((1,) + shape[:-1])), shape) for shape in shapes])


def assert_logits_equal_keras(tmp_path, blocks, counts, classes, file_names):
    """`counts`: {side of images: how many}."""
    random = np.random.RandomState(sum(blocks))
    models = {side: keras_model(blocks, side, classes) for side in counts}
    first = models[max(counts)]
    draw(first, random)
    for name in file_names:
        (first.save_weights if ".weights." in name else first.save)(str(tmp_path / name))
    for side, count in counts.items():
        models[side].set_weights(first.get_weights())
        images = random.normal(0, 1, (count, side, side, 3)).astype(np.float32)
        expected = models[side].predict(images, verbose=0)
        for name in file_names:
            found = logits_with(str(tmp_path / name), images, classes)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * expected.std())


@pytest.mark.campaign
def test_logits_equal_keras(tmp_path):
    """A small network of the same form, in all files that Keras writes."""
    assert_logits_equal_keras(tmp_path, (1, 2, 1, 1), {64: 2}, 5, ("a.h5", "a.weights.h5", "a.keras"))


def layer_of(kind, *operands, **config):
    """A layer as Keras 3 describes it; `operands`: besides the tensor that it gets."""
    return {"class_name": kind, "config": dict(config, name="its_name"), "inbound_nodes": [{"args": [
        {"class_name": "__keras_tensor__", "config": {}}] + list(operands)}]}


def constant_first(kind, constant):
    layer = layer_of(kind, constant)
    layer["inbound_nodes"][0]["args"].reverse()
    return layer


CONSTANT = {"class_name": "__tensor__", "config": {"value": [[1.0, 2.0, 4.0]]}}
STEM = [layer_of("ZeroPadding2D", padding=[[3, 3], [3, 3]]), layer_of("Conv2D", kernel_size=[7, 7], strides=[2, 2])]
POOLING = [layer_of("ReLU"), layer_of("ZeroPadding2D", padding=[[1, 1], [1, 1]]),
           layer_of("MaxPooling2D", pool_size=[3, 3], strides=[2, 2], padding="valid")]


@pytest.mark.parametrize("layers, mean, deviation", [
    ([], None, None), ([layer_of("RandomFlip")], None, None),
    ([layer_of("Rescaling", scale=1 / 127.5, offset=-1)], [127.5] * 3, [127.5] * 3),
    ([layer_of("Rescaling", scale=[0.5, 0.25, 0.125], offset=[1, 0, 0])], [-2, 0, 0], [2, 4, 8]),
    ([layer_of("TrueDivide", 4.0), layer_of("Subtract", CONSTANT), layer_of("Multiply", 2.0)], [4, 8, 16], [2] * 3),
    ([layer_of("Divide", CONSTANT), layer_of("Add", 1)], [-1, -2, -4], [1, 2, 4]),
    ([layer_of("Multiply", dict(CONSTANT, class_name="__numpy__")), constant_first("Add", 3)], [-3, -1.5, -0.75],
     [1, 0.5, 0.25])])
def test_scaling_in_a_file_of_keras_is_followed(tmp_path, layers, mean, deviation):
    model = {"class_name": "Functional", "config": {"layers": layers + [
        {"class_name": "Sequential", "config": {"name": "inner", "layers": STEM}}]}}
    start = pretrained.look_up(write_archive(tmp_path / "a.keras", keras_layers(tiny_weights()), model), "model")
    np.testing.assert_allclose(start.mean, pretrained.IMAGENET_MEAN if mean is None else mean, rtol=1e-6)
    np.testing.assert_allclose(start.deviation, pretrained.IMAGENET_DEVIATION if mean is None else deviation, rtol=1e-6)


@pytest.mark.parametrize("layers", [
    [layer_of("Normalization")], [layer_of("Lambda")], [layer_of("GetItem", 1)], [layer_of("TrueDivide")],
    [layer_of("Add", {"class_name": "__keras_tensor__", "config": {}})], [layer_of("GlobalMaxPooling2D")],
    STEM + [layer_of("Rescaling", scale=2, offset=0)], [layer_of("Activation", activation="gelu")],
    [layer_of("Conv2D", kernel_size=[7, 7], strides=[1, 1])], [layer_of("Conv2D", kernel_size=[7, 7], padding="same")],
    [layer_of("Conv2D", kernel_size=[3, 3], dilation_rate=[2, 2])], STEM[:1] + [layer_of(
        "Conv2D", kernel_size=[7, 7], strides=[2, 2], activation="relu")],
    [layer_of("MaxPooling2D", pool_size=[2, 2])], [layer_of("ReLU", max_value=6.0)], [constant_first("Subtract", 1.0)],
    [layer_of("BatchNormalization", axis=1, epsilon=1e-3)], [layer_of("AveragePooling2D", strides=[1, 1])],
    [{"class_name": "TFOpLambda", "config": {"name": "its_name"}, "inbound_nodes": [["input_1", 0, 0, {"y": 127.5}]]}]])
def test_layers_that_cannot_be_followed_are_refused(tmp_path, layers):
    path = write_archive(tmp_path / "a.keras", keras_layers(tiny_weights()), {"config": {"layers": layers}})
    refused(path, r": this program cannot follow the layer its_name \(%s\) with its settings: save the DenseNet alone"
            % layers[-1]["class_name"])


def test_the_epsilon_of_a_file_of_keras_is_taken(tmp_path):
    def path_with(*epsilons):
        first, second = (layer_of("BatchNormalization", epsilon=epsilon) for epsilon in epsilons)
        model = {"config": {"layers": STEM + [first] + POOLING + [second]}}
        return write_archive(tmp_path / "a.keras", keras_layers(tiny_weights()), model)

    assert pretrained.look_up(path_with(1e-3, 1e-3), "model").settings["norm_epsilon"] == 1e-3
    refused(path_with(1e-3, 1.001e-5), "has batch normalizations with different ε")


def nodes_of(form, sources):
    """The inbound nodes of a layer that reads all of some layers, as Keras 2 or 3 describes them."""
    if form == 2:
        return [[[source, 0, 0, {}] for source in sources]] if sources else []
    return [{"args": [[{"class_name": "__keras_tensor__", "config": {"keras_history": [source, 0, 0]}}
                       for source in sources]], "kwargs": {}}] if sources else []


def functional(name, form, layers, output):
    """The description of a model of layers (name, description, what it reads), whose output is that of one layer."""
    return {"class_name": "Functional", "name": name, "config": {
        "name": name, "output_layers": [output, 0, 0] if form == 3 else [[output, 0, 0]],
        "layers": [dict(layer, name=name, inbound_nodes=nodes_of(form, sources)) for name, layer, sources in layers]}}


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize("order, layer", [
    (("pool", "added0", "added1"), None), (("pool", "added1", "added0"), "Concatenate"),
    (("added0", "pool", "added1"), "Concatenate"), (("pool", "pool"), "Concatenate"),
    (("pool", "mean"), "Concatenate"), (("pool", "nowhere"), "Concatenate")])
def test_the_order_of_the_layers_in_a_file_of_keras_is_checked(tmp_path, form, order, layer):
    """A model in a model, as for transfer learning, whose output is not that of the layer that is listed last."""
    norm, relu = layer_of("BatchNormalization", epsilon=1e-3), layer_of("ReLU")
    layers = [("input", layer_of("InputLayer"), [])] + [
        (name, description, [before]) for name, description, before in zip(
            ("pad", "conv", "norm", "relu", "pad1", "pool"), STEM + [norm] + POOLING,
            ("input", "pad", "conv", "norm", "relu", "pad1"))]
    for number, source in enumerate(("pool", "concat")):
        chain = [("norm_a", norm), ("relu_a", relu), ("conv1_", layer_of("Conv2D", kernel_size=[1, 1], strides=[1, 1])),
                 ("norm_b", norm), ("relu_b", relu), ("drop", layer_of("Dropout")),
                 ("added", layer_of("Conv2D", kernel_size=[3, 3], strides=[1, 1], padding="same"))]
        for name, description in chain:
            layers.append((name + str(number), description, [source]))
            source = name + str(number)
        if number == 0:
            layers.append(("concat", layer_of("Concatenate"), ["pool", "added0"]))
    layers += [("mean", layer_of("GlobalAveragePooling2D"), ["relu"]), ("last", layer_of("Concatenate"), order)]
    inner = functional("inner", form, layers + [("other", layer_of("GlobalAveragePooling2D"), ["relu"])], "last")
    outer = functional("outer", form, [
        ("image", layer_of("InputLayer"), []), ("inner", inner, ["image"]), ("norm", norm, ["inner"]),
        ("relu", relu, ["norm"]), ("mean", layer_of("GlobalAveragePooling2D"), ["relu"]),
        ("dense", layer_of("Dense", activation="linear"), ["mean"]), ("softmax", layer_of("Softmax"), ["dense"]),
        ("float", layer_of("Activation", activation="linear"), ["softmax"])], "float")
    path = write_archive(tmp_path / "a.keras", keras_layers(tiny_weights()), outer)
    if layer:
        refused(path, r"the layer its_name \(%s\) does not read what it reads there, or not in that order" % layer)
    else:
        assert pretrained.look_up(path, "model").settings["norm_epsilon"] == 1e-3


def test_layers_that_pass_on_what_they_read_take_no_time(tmp_path):
    """Each reads the one before twice."""
    layers = [("0", layer_of("InputLayer"), [])]
    layers += [(str(number), layer_of("Dropout"), [str(number - 1)] * 2) for number in range(1, 60)]
    path = write_archive(tmp_path / "a.keras", keras_layers(tiny_weights()), functional("a", 3, layers, "59"))
    assert pretrained.look_up(path, "model").settings["norm_epsilon"] == weight_files.KERAS_EPSILON


@pytest.mark.parametrize("change", [dict(kernel_size=[float("inf"), 7]), dict(padding=[[float("inf")]])])
def test_numbers_that_are_not_finite_are_refused(tmp_path, change):
    kind = "Conv2D" if "kernel_size" in change else "ZeroPadding2D"
    path = write_archive(tmp_path / "a.keras", keras_layers(tiny_weights()), {"config": {
        "layers": [layer_of(kind, **change)]}})
    refused(path, r"cannot follow the layer its_name \(%s\)" % kind)


def own_keras_model(keras, order=(0, 1), relu=True, pool=True, classifier=("softmax",), shared=False, output=None):
    """A DenseNet written with Keras' layers: two blocks of two layers, whose inputs are concatenated all at once.

    Args:
        order: the places of a block's input and of what its first layer adds, in the second concatenation.
        relu: whether the features are rectified before they are averaged.
        pool: whether the transition pools.
        classifier: the activations behind the classifier, each a layer of its own.
        output: the classifier's own activation.
        shared: whether one layer rectifies in all places, and one drops out.
    """
    layers = keras.layers
    rectifier, dropout = layers.ReLU(), layers.Dropout(0.1)

    def rectified(x):
        return (rectifier if shared else layers.ReLU())(x)

    def convolution(x, filters, side, **options):
        x = rectified(layers.BatchNormalization(epsilon=1e-3)(x))
        return layers.Conv2D(filters, side, use_bias=False, **options)(x)

    x = images = keras.Input((64, 64, 3))
    x = layers.Conv2D(8, 7, strides=2, use_bias=False)(layers.ZeroPadding2D(3)(x))
    x = rectified(layers.BatchNormalization(epsilon=1e-3)(x))
    x = layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(x))
    for block in range(2):
        found = [x]
        for place in [[0], order]:
            x = layers.Concatenate()([found[one] for one in place]) if len(found) > 1 else x
            x = (dropout if shared else layers.Dropout(0.1))(convolution(x, 16, 1))
            found.append(convolution(x, 4, 3, padding="same"))
        x = layers.Concatenate()(found)
        if block == 0:
            x = convolution(x, 8, 1)
            x = layers.AveragePooling2D(2)(x) if pool else x
    x = layers.BatchNormalization(epsilon=1e-3)(x)
    x = layers.Dense(5, activation=output)(layers.GlobalAveragePooling2D()(rectified(x) if relu else x))
    for activation in classifier:
        x = layers.Activation(activation)(x)
    return keras.Model(images, x)


@pytest.mark.campaign
@pytest.mark.parametrize("changes, layer", [
    (dict(), None), (dict(shared=True), None), (dict(order=(1, 0)), "Concatenate"),
    (dict(relu=False), "GlobalAveragePooling2D"), (dict(pool=False), "Concatenate"),
    (dict(classifier=("softmax", "softmax")), "Activation"), (dict(classifier=("relu",)), "Activation"),
    (dict(classifier=("softmax", "linear")), None), (dict(output="softmax"), "Activation")])
def test_keras_models_are_followed_or_refused(tmp_path, changes, layer):
    keras = pytest.importorskip("keras", "3", reason="Keras 3 is not in this environment")
    model = own_keras_model(keras, **changes)
    draw(model, np.random.RandomState(0))
    images = np.random.RandomState(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    for path in (str(tmp_path / "a.keras"), str(tmp_path / "a.h5")):
        model.save(path)
        if layer:
            refused(path, r"the layer \S+ \(%s\)" % layer)
        else:
            logits = logits_with(path, images, 5)
            np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
                                       model.predict(images, verbose=0), rtol=1e-4)


@pytest.mark.campaign
def test_keras_models_that_scale_their_images_give_its_logits(tmp_path):
    small = keras_model((1, 2, 1, 1), 64, 5)
    import keras
    from keras.applications.densenet import preprocess_input
    draw(small, np.random.RandomState(0))
    pixels = np.random.RandomState(1).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    for scaled in (preprocess_input, keras.layers.Rescaling(1 / 127.5, -1)):
        inputs = keras.Input((64, 64, 3))
        model = keras.Model(inputs, small(scaled(keras.layers.RandomFlip()(inputs))))
        expected = model.predict(pixels, verbose=0)
        for ending in (".keras", ".h5"):
            path = str(tmp_path / "a") + ending
            model.save(path)
            start = pretrained.look_up(path, "model")
            found = logits_with(path, (pixels - start.mean) / start.deviation, 5)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * expected.std())
            os.remove(path)


@pytest.mark.parametrize("network", [pytest.param("densenet_121", marks=pytest.mark.campaign)] + [
    pytest.param(network, marks=pytest.mark.long) for network in ("densenet_169", "densenet_201")])
def test_logits_of_published_networks_equal_keras(tmp_path, network):
    assert_logits_equal_keras(tmp_path, networks.NETWORKS[network]["blocks"], {224: 3, 160: 1}, 1000, ("a.h5",))
