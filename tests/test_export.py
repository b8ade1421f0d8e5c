"""Exported files: each computes what the network computes, gets its name only then, and never replaces another."""

import dataclasses
import io
import json
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from PIL import Image
from test_graph_rewriting import SMALL, frozen_network, run

from support import UserError, export
from support.data import Split
from support.export import PROBABILITIES, Network, check_formats, write_network
from support.graph_rewriting import rewritten
from support.run_directory import alone_in

TENSORFLOW_2 = pytest.mark.skipif(tf.VERSION.startswith("1."), reason="TensorFlow 1.15 cannot write all of them")
NAMES = ["cat", "grün", "two\nlines"]


def network_on(labels=True, train=True, **settings):
    """A Network of three classes on 60 random images; those of the training are the same, or None."""
    graph_def, pixels, expected = frozen_network(count=60, **dict(dict(SMALL, stem="3x3"), **settings))
    side, _, channels = pixels.shape[1:]
    about = {"resize": side + 4, "crop": [2, 2, side + 2, side + 2], "size": side, "channels": channels,
             "pixel_range": None, "class_names": NAMES}
    images = Split(pixels, expected.argmax(1) if labels else None)
    return Network(rewritten(graph_def, [PROBABILITIES]), lambda given: run(graph_def, given), about, images,
                   images if train else None)


def interpreted(path, pixels):
    """The answer of a TFLite file, by TensorFlow's interpreter."""
    interpreter = tf.lite.Interpreter(path)
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert given["dtype"] == np.uint8 and answer["dtype"] == np.float32
    interpreter.resize_tensor_input(given["index"], pixels.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], pixels)
    interpreter.invoke()
    return interpreter.get_tensor(answer["index"])


def test_a_saved_model_has_three_signatures_and_a_description(folder, capsys):
    network = network_on()
    assert write_network(network, "export/a/7", ("saved_model", "frozen")) == ("export/a/7", "export/a/7.pb")
    assert sorted(os.listdir("export/a")) == ["7", "7.pb"]
    with open("export/a/7/model.json") as file:
        assert json.load(file) == network.about
    with open("export/a/7/assets.extra/class_names.txt", encoding="utf-8") as file:
        assert file.read() == "cat\ngrün\ntwo lines\n"
    pixels = network.test.images[:5]
    expected = network.run(pixels)
    files = []
    for image in np.pad(pixels, [(0, 0), (2, 2), (2, 2), (0, 0)], "constant"):
        files.append(io.BytesIO())
        Image.fromarray(image).save(files[-1], "PNG")
    with tf.Graph().as_default(), tf.Session() as sess:
        signatures = tf.saved_model.loader.load(sess, ["serve"], "export/a/7").signature_def
        assert {name: (sorted(its.inputs), sorted(its.outputs)) for name, its in signatures.items()} == {
            "serving_default": (["images"], ["class_index", "probabilities"]),
            "predict_with_names": (["images"], ["class_index", "class_name", "class_names", "probabilities"]),
            "predict_image_bytes": (["image_bytes"], ["class_index", "class_name", "probabilities"])}
        for name, its in signatures.items():
            values = pixels if "images" in its.inputs else np.array([file.getvalue() for file in files], object)
            (given,) = its.inputs.values()
            answer = sess.run({key: tensor.name for key, tensor in its.outputs.items()}, {given.name: values})
            np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
            np.testing.assert_array_equal(answer["class_index"], expected.argmax(1))
            if name != "serving_default":
                assert [found.decode() for found in answer["class_name"]] == [NAMES[i] for i in expected.argmax(1)]
        assert [name.decode() for name in sess.run(signatures["predict_with_names"].outputs["class_names"].name)] \
            == NAMES
    with open("export/a/7.pb", "rb") as file:
        graph_def = tf.GraphDef.FromString(file.read())
    # Attributes with their default values, some of which TensorFlow 1.15 does not know
    assert not {name for node in graph_def.node for name in node.attr} & {"explicit_paddings", "dilations", "Truncate"}
    np.testing.assert_allclose(run(graph_def, pixels), expected, atol=1e-5)
    output = capsys.readouterr().out
    assert output.count("100.00%") == 2 and "accuracy: on 60 of the 60 test images" in output


@TENSORFLOW_2
@pytest.mark.parametrize("settings", [
    dict(stem="3x3+pool", flip_average=True, shift_average=1)] + [
    pytest.param(settings, marks=pytest.mark.once) for settings in (
        dict(stem="imagenet"), dict(stem="7x7s2+pool", transition_pooling="max"), dict(channels=1),
        dict(memory_efficient=True), dict(bottleneck=False, dropout_rate=0.2), dict(network="densenet_bc_40_12"),
        dict(network="densenet_121"))], ids=str)
def test_tflite_computes_the_same_for_any_number_of_images(folder, capsys, settings):
    network = network_on(**settings)
    paths = write_network(network, "7", ("tflite",))
    assert paths == ("7.tflite", "7-dynamic.tflite", "7-int8.tflite") and sorted(os.listdir(".")) == sorted(paths)
    for count in (1, 3):
        pixels = network.test.images[-count:]
        expected = network.run(pixels)
        for path, tolerance in zip(paths, (1e-5, 0.1, 0.2)):
            np.testing.assert_allclose(interpreted(path, pixels), expected, atol=tolerance)
    assert np.abs(interpreted(paths[2], network.test.images) - network.run(network.test.images)).mean() < 0.03
    kinds = {detail["dtype"] for detail in tf.lite.Interpreter(paths[2]).get_tensor_details()}
    floats = [detail["name"] for detail in tf.lite.Interpreter(paths[2]).get_tensor_details()
              if detail["dtype"] == np.float32]
    assert np.int8 in kinds and len(floats) == 1, floats  # the answer alone
    output = capsys.readouterr().out
    assert all(name in output for name in ("TFLite float32", "TFLite dynamic", "TFLite int8", "1 image", "32 images"))


@TENSORFLOW_2
def test_int8_takes_the_bytes_as_they_are_where_the_training_images_are_dark(folder):
    network = network_on()
    network.train.images //= 2
    (path,) = [path for path in write_network(network, "7", ("tflite",)) if "int8" in path]
    (given,) = tf.lite.Interpreter(path).get_input_details()
    assert given["quantization"] == (1.0, 0)


def test_onnx_computes_the_same(folder):
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    network = network_on(flip_average=True, shift_average=1)
    (path,) = write_network(network, "7", ("onnx",))
    session = onnxruntime.InferenceSession(path)
    for count in (1, 3):
        pixels = network.test.images[:count]
        np.testing.assert_allclose(session.run(["probabilities"], {"images": pixels})[0], network.run(pixels),
                                   atol=1e-5)


def test_formats_that_cannot_be_written_are_refused(monkeypatch):
    monkeypatch.setattr(export, "_importable", lambda name: name != "tf2onnx")
    check_formats(("saved_model", "frozen"))
    with pytest.raises(UserError, match="^formats=onnx needs tf2onnx: pip install tf2onnx onnxruntime, or leave onnx"):
        check_formats(("frozen", "onnx"))
    monkeypatch.setattr(tf, "VERSION", "1.15.5")
    with pytest.raises(UserError, match="formats=tflite needs TensorFlow 2, and this is 1.15.5"):
        check_formats(("tflite",))


def test_nothing_is_replaced_and_nothing_half_written_stays(folder):
    network = network_on()
    os.makedirs("7.new")  # left by a killed process
    assert write_network(network, "7", ("saved_model",)) == ("7",)
    with pytest.raises(UserError, match="^7 is there already.*move it away"):
        write_network(network, "7", ("saved_model", "frozen"))
    assert os.listdir(".") == ["7"]
    assert write_network(network, "7", ("frozen",)) == ("7.pb",)  # another format
    with pytest.raises(UserError, match="cannot write .*make room there, or set export_dir"):
        write_network(network, os.path.join("7.pb", "7"), ("frozen",))


def test_an_export_waits_for_no_other_and_mixes_no_networks(folder):
    network = network_on()
    network.about["checkpoint"] = "dense.ckpt-7"
    with alone_in("."), pytest.raises(UserError, match="another process exports to .: wait for it"):
        write_network(network, "7", ("saved_model",))
    assert os.listdir(".") == []
    write_network(network, "7", ("saved_model",))
    other = dataclasses.replace(network, about=dict(network.about, class_names=["x", "y", "z"]))
    with pytest.raises(UserError, match="^7 is an export of another network, by class_names in model.json: move it"):
        write_network(other, "7", ("frozen",))
    assert os.listdir(".") == ["7"]
    same = dict(network.about, tensorflow="0", versions={}, checkpoint="best/dense.ckpt-7")
    assert write_network(dataclasses.replace(network, about=same), "7", ("frozen",)) == ("7.pb",)


@pytest.mark.parametrize("spoilt", ["graph", "reading"])
def test_what_computes_something_else_gets_no_name(folder, monkeypatch, spoilt):
    network = network_on()
    if spoilt == "graph":
        network.run = lambda pixels: np.full([len(pixels), 3], 1 / 3)
    else:
        read = export.pixels_of_files
        monkeypatch.setattr(export, "pixels_of_files", lambda files, rule: read(files, dict(rule, crop=[0, 0, 8, 8])))
    with pytest.raises(UserError, match="SavedModel gives other probabilities than the network, by up to 0.*report"):
        write_network(network, "7", ("saved_model",))
    assert os.listdir(".") == []


def test_a_converter_that_fails_is_said_in_one_sentence(folder, monkeypatch):
    def convert(network, ending):
        raise RuntimeError("no such\n operation")

    monkeypatch.setattr(export, "_as_onnx", convert)
    with pytest.raises(UserError, match=r"cannot be converted to a file .onnx \(no such operation\): leave"):
        write_network(network_on(), "7", ("onnx",))
    assert os.listdir(".") == []


@TENSORFLOW_2
def test_without_the_data_there_is_no_int8_and_no_accuracy(folder, capsys):
    assert write_network(network_on(labels=False, train=False), "7", ("tflite",)) == ("7.tflite", "7-dynamic.tflite")
    output = capsys.readouterr().out
    assert "no int8: it chooses its scales by the images" in output and "%" not in output


def test_the_table_says_where_accuracy_is_lost(monkeypatch):
    network = network_on()
    right, wrong = np.eye(3)[network.test.labels], np.eye(3)[(network.test.labels + 1) % 3]
    place = {image.tobytes(): index for index, image in enumerate(network.test.images)}

    def answers(values):
        return lambda pixels: values[[place[image.tobytes()] for image in pixels]]

    runs = {"": answers(right), "-int8.tflite": answers(np.where(np.arange(60)[:, None] < 6, wrong, right))}
    monkeypatch.setattr(export, "_size_of", lambda path: 1500000)
    lines = list(export._table(network, "nothing", {"": "SavedModel", "-int8.tflite": "TFLite int8"}, runs,
                               {"": 2e-7, "-int8.tflite": 0.25}))
    assert "100.00%" in lines[1] and "2e-07" in lines[1] and "90.00%" in lines[2] and "0.25" in lines[2]
    assert lines[-1] == "TFLite int8 classifies 10.0% fewer images correctly than the network"
