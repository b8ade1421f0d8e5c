"""In which formats is a trained network exported, how is each file compared with the network, and how fast is it?

saved_model and frozen need TensorFlow alone. tflite is three files: float32, weights of 8 bits (dynamic), and whole
numbers of 8 bits throughout (int8). onnx needs tf2onnx for writing and ONNX Runtime for comparing.

The SavedModel has three signatures. `serving_default` takes pixels, `predict_with_names` also gives the names of the
classes, and `predict_image_bytes` takes JPEG and PNG files.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import shutil
import statistics
import time
import warnings

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image

from support import UserError, say
from support.data import Split
from support.environment import quiet
from support.graph_reading import pixels_of_files
from support.graph_rewriting import import_copy, on_cpu, rewritten
from support.machine import cores
from support.run_directory import alone_in

IMAGES, PROBABILITIES = "images", "probabilities"  # names of the nodes in an exported graph
# What each format writes: {ending of the path: name in the table}
FORMATS = {"saved_model": {"": "SavedModel"}, "frozen": {".pb": "frozen graph"},
           "tflite": {".tflite": "TFLite float32", "-dynamic.tflite": "TFLite dynamic", "-int8.tflite": "TFLite int8"},
           "onnx": {".onnx": "ONNX"}}
QUANTIZED = ("-dynamic.tflite", "-int8.tflite")  # the rest must be equal to the network
OPSET = 13  # of ONNX; read by versions of ONNX Runtime since 2020
COMPARED = 50  # images
TOLERANCE = 1e-4  # largest difference of a probability; rounding makes less than 1e-5 in most networks
MEASURED = 1000  # images at most, for the accuracy
SECONDS = 30  # for the accuracy of the slowest format, about
REPRESENTATIVE = 300  # training images at most, by which int8 chooses its scales
BATCH = 32  # images, for the second time in the table
REPEATED = 9  # times that each is run for the median
LOSS_WORTH_SAYING = 0.005  # of accuracy


@dataclasses.dataclass
class Network:
    """A trained network that is to be exported.

    Attributes:
        graph_def: from IMAGES, uint8 [N, H, W, C], to PROBABILITIES, float32 [N, classes], without variables.
        run: computes the probabilities of such images with the network as it is.
        about: {name: value}, what a caller must know: `support.modes.preparation_of` and more.
        test: the Split to compare on; without labels where the images are random.
        train: the Split by which int8 chooses its scales; None: there is none.
    """

    graph_def: tf.GraphDef
    run: callable
    about: dict
    test: Split
    train: Split = None


def frozen_network(sess, images, probabilities, about, test, train=None):
    """The Network in a session, from a placeholder to probabilities; the other arguments are those of a Network."""
    graph_def = tf.graph_util.convert_variables_to_constants(sess, sess.graph.as_graph_def(), [probabilities.op.name])
    return Network(rewritten(graph_def, [PROBABILITIES]), lambda pixels: sess.run(probabilities, {images: pixels}),
                   about, test, train)


def check_formats(formats):
    """Raises UserError where a format needs a package that is not installed, or a newer TensorFlow."""
    if "tflite" in formats and tf.VERSION.startswith("1."):
        raise UserError("formats=tflite needs TensorFlow 2, and this is %s: export the run there, or leave tflite out"
                        % tf.VERSION)
    missing = [name for name in ("tf2onnx", "onnxruntime") if "onnx" in formats and not _importable(name)]
    if missing:
        raise UserError("formats=onnx needs %s: pip install tf2onnx onnxruntime, or leave onnx out"
                        % " and ".join(missing))


def check_absent(path, formats, about):
    """Raises UserError where a file that `write_network` would write is there, or the SavedModel of another network."""
    for ending in _endings(formats):
        if os.path.lexists(path + ending):
            raise UserError("%s is there already: move it away to export to this place again" % (path + ending))
    _check_neighbour(path, about)


def _check_neighbour(path, about):
    """Raises UserError where the SavedModel of this name, whose model.json the other formats share, is of another
    network. One checkpoint may have two places; exports of other versions may tell less."""
    try:
        with open(os.path.join(path, "model.json"), encoding="utf-8") as file:
            there = json.load(file)
    except (OSError, ValueError):
        return
    for name, value in json.loads(json.dumps(about)).items():
        if name not in ("checkpoint", "tensorflow", "versions") and name in there and there[name] != value:
            raise UserError("%s is an export of another network, by %s in model.json: move it away, or set export_dir "
                            "to another folder" % (path, name))


def _endings(formats):
    """{ending of the path: name in the table} of some formats."""
    return {ending: name for key, names in FORMATS.items() if key in formats for ending, name in names.items()}


def write_network(network, path, formats):
    """Writes a network in some formats, compares each with the network, and prints a table.

    Each file gets its name only after it was read back and compared on COMPARED images.

    Args:
        network: a Network.
        path: the SavedModel is written to the folder `<path>/`, the other files get endings, see FORMATS.
        formats: a tuple of keys of FORMATS.
    Returns:
        the paths that were written, in the order of FORMATS.
    Raises:
        UserError: as `check_absent`; a file cannot be written, or computes something else than the network.
    """
    endings = _endings(formats)
    if "-int8.tflite" in endings and network.train is None:
        say("no int8: it chooses its scales by the images that the network was trained on, which are not at hand")
        del endings["-int8.tflite"]
    pixels = _evenly(network.test.images, COMPARED)
    expected = _in_batches(network.run, pixels)
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, exist_ok=True)
        with alone_in(folder):
            check_absent(path, formats, network.about)
            runs, differences = _written_all(network, endings, path, pixels, expected)
    except (OSError, tf.errors.OpError) as error:
        raise UserError("cannot write %s (%s): make room there, or set export_dir to another folder" % (
            path, getattr(error, "strerror", None) or getattr(error, "message", str(error)))) from None
    for line in _table(network, path, endings, runs, differences):
        say(line)
    return tuple(path + ending for ending in endings)


def _written_all(network, endings, path, pixels, expected):
    """Writes each file, and gives it its name if it computes `expected` from `pixels`.

    Returns:
        ({ending: the function that runs the file}, {ending: the largest difference of its probabilities}).
    """
    runs, differences = {}, {}
    try:
        for ending, name in endings.items():
            new = path + ending + ".new"
            _remove(new)  # left over by a killed process
            runs[ending], found = _written(network, ending, new, pixels)
            differences[ending] = max(float(np.abs(values - expected).max()) for values in found)
            if not (ending in QUANTIZED or differences[ending] <= TOLERANCE):
                raise UserError("%s gives other probabilities than the network, by up to %.2g, so that it was not "
                                "written: leave this format out, and report it" % (name, differences[ending]))
            os.replace(new, path + ending)
        return runs, differences
    finally:
        for ending in endings:
            _remove(path + ending + ".new")


def _written(network, ending, path, pixels):
    """Writes one file and reads it back.

    Returns:
        (the function that runs it, from pixels to probabilities; [the probabilities of `pixels`, in each way that the
        file offers]).
    """
    if ending == "":
        write_saved_model(path, network.graph_def, network.about)
        run, run_on_files = _runs_of_saved_model(path)
        return run, [_in_batches(run, pixels), _in_batches(run_on_files, _as_files(pixels, network.about))]
    convert = {".onnx": _as_onnx, ".pb": _as_frozen}.get(ending, _as_tflite)
    try:
        content = convert(network, ending)
    except Exception as error:  # of any type: each converter has its own
        if isinstance(error, (MemoryError, OSError)):
            raise
        raise UserError("this network cannot be converted to a file %s (%s): leave this format out"
                        % (ending.lstrip("-"), " ".join(str(error).split())[:200] or type(error).__name__)) from None
    with open(path, "wb") as file:
        file.write(content)
    with open(path, "rb") as file:
        content = file.read()
    run = {".onnx": _run_of_onnx, ".pb": _run_of_frozen}.get(ending, _run_of_tflite)(content)
    return run, [_in_batches(run, pixels)]


def _in_batches(run, images):
    """The probabilities of any number of images."""
    return np.concatenate([run(images[start:start + BATCH]) for start in range(0, len(images), BATCH)])


def _as_files(pixels, rule):
    """PNG files of which the network is to get these pixels, without a change by the resizing; bytes [N]."""
    before = rule["crop"][0]
    after = rule["resize"] - rule["size"] - before
    files = []
    for image in np.pad(pixels, [(0, 0), (before, after), (before, after), (0, 0)], "edge"):
        content = io.BytesIO()
        Image.fromarray(image[..., 0] if rule["channels"] == 1 else image).save(content, "PNG")
        files.append(content.getvalue())
    return np.array(files, object)


def _remove(path):
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.remove(path)


def write_saved_model(path, graph_def, about):
    """Writes a network as a SavedModel, with a description for people and for programs without TensorFlow.

    Args:
        path: a folder, which must not be there. It gets `model.json` and `assets.extra/class_names.txt`, too.
        graph_def, about: see Network.
    """
    with tf.Graph().as_default() as graph, tf.Session(config=on_cpu()) as sess:
        import_copy(graph_def)
        images, probabilities = (graph.get_tensor_by_name(name + ":0") for name in (IMAGES, PROBABILITIES))
        names = tf.constant([encoded(name) for name in about["class_names"]], name="class_names")
        files = tf.placeholder(tf.string, [None], "image_bytes")
        of_files = _network_again(graph_def, pixels_of_files(files, about))

        def answers(probabilities):
            return {"probabilities": probabilities, "class_index": tf.argmax(probabilities, 1)}

        def named(answers):
            return dict(answers, class_name=tf.gather(names, answers["class_index"]))

        plain = answers(probabilities)
        signatures = {"serving_default": ({"images": images}, plain),
                      "predict_with_names": ({"images": images}, dict(named(plain), class_names=names)),
                      "predict_image_bytes": ({"image_bytes": files}, named(answers(of_files)))}
        builder = tf.saved_model.builder.SavedModelBuilder(path)
        builder.add_meta_graph_and_variables(
            sess, [tf.saved_model.tag_constants.SERVING],
            {name: tf.saved_model.signature_def_utils.build_signature_def(
                *({key: tf.saved_model.utils.build_tensor_info(tensor) for key, tensor in tensors.items()}
                  for tensors in both), tf.saved_model.signature_constants.PREDICT_METHOD_NAME)
             for name, both in signatures.items()},
            strip_default_attrs=True)  # attributes with default values, which older versions may not know
        builder.save()
    with open(os.path.join(path, "model.json"), "w") as file:
        json.dump(about, file, indent=2, sort_keys=True)
        file.write("\n")
    os.makedirs(os.path.join(path, "assets.extra"))  # where TensorFlow Serving ignores what it does not know
    with open(os.path.join(path, "assets.extra", "class_names.txt"), "wb") as file:
        file.writelines(b" ".join(encoded(name).splitlines()) + b"\n" for name in about["class_names"])


def encoded(name):
    """A class name as bytes: UTF-8, and what else a folder's name may hold as it is."""
    return name.encode("utf-8", "surrogateescape")


def _network_again(graph_def, pixels):
    """Adds the network to the default graph a second time, on other pixels; both share their constants."""
    shared = {node.name + ":0": tf.get_default_graph().get_tensor_by_name(node.name + ":0")
              for node in graph_def.node if node.op == "Const"}
    again = tf.GraphDef(versions=graph_def.versions)
    again.node.extend(node for node in graph_def.node if node.op not in ("Const", "Placeholder"))
    return tf.import_graph_def(again, dict(shared, **{IMAGES + ":0": pixels}), [PROBABILITIES + ":0"],
                               name="of_files")[0]


def _runs_of_saved_model(path):
    """Loads a SavedModel; returns two functions, from pixels and from the content of files to probabilities."""
    sess = tf.Session(graph=tf.Graph(), config=on_cpu())
    with sess.graph.as_default():
        signatures = tf.saved_model.loader.load(sess, [tf.saved_model.tag_constants.SERVING], path).signature_def

    def run_of(name):
        (given,), answer = signatures[name].inputs.values(), signatures[name].outputs["probabilities"]
        return lambda values: sess.run(answer.name, {given.name: values})

    return run_of("serving_default"), run_of("predict_image_bytes")


def _as_frozen(network, _):
    return network.graph_def.SerializeToString()


def _run_of_frozen(content):
    sess = tf.Session(graph=tf.Graph(), config=on_cpu())
    with sess.graph.as_default():
        tf.import_graph_def(tf.GraphDef.FromString(content), name="")
    return lambda pixels: sess.run(PROBABILITIES + ":0", {IMAGES + ":0": pixels})


def _as_tflite(network, ending):
    """The content of a TFLite file: pixels as uint8 to probabilities as float32, whatever it computes with."""
    whole = ending == "-int8.tflite"
    with tf.Graph().as_default() as graph, tf.Session(config=on_cpu()) as sess, _quiet():
        if whole:  # then the bytes are the whole numbers to compute with, by a scale of 1
            images = tf.placeholder(tf.float32, (1,) + network.test.images.shape[1:], IMAGES)
            cast = next(node.name for node in network.graph_def.node if node.op == "Cast")
            import_copy(network.graph_def, {cast + ":0": images})
        else:
            import_copy(network.graph_def)
            images = graph.get_tensor_by_name(IMAGES + ":0")
        converter = tf.lite.TFLiteConverter.from_session(
            sess, [images], [graph.get_tensor_by_name(PROBABILITIES + ":0")])
        if ending in QUANTIZED:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if whole:
            some = _evenly(network.train.images, REPRESENTATIVE)
            some[0, 0, 0], some[0, 0, 1] = 0, 255  # the scale of the input is 1 only if both occur
            converter.representative_dataset = lambda: ([image[None].astype(np.float32)] for image in some)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = tf.uint8
        return converter.convert()


def _run_of_tflite(content):
    with _quiet():
        interpreter = tf.lite.Interpreter(model_content=content, num_threads=cores())
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    prepared = []  # the number of images

    def run(pixels):
        if prepared != [len(pixels)]:
            with _quiet():
                interpreter.resize_tensor_input(given["index"], pixels.shape)
                interpreter.allocate_tensors()
            prepared[:] = [len(pixels)]
        interpreter.set_tensor(given["index"], pixels)
        interpreter.invoke()
        return interpreter.get_tensor(answer["index"])

    return run


def _as_onnx(network, _):
    import tf2onnx

    with _quiet():
        model, _ = tf2onnx.convert.from_graph_def(
            network.graph_def, input_names=[IMAGES + ":0"], output_names=[PROBABILITIES + ":0"], opset=OPSET,
            tensors_to_rename={name + ":0": name for name in (IMAGES, PROBABILITIES)})
    return model.SerializeToString()


def _run_of_onnx(content):
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda pixels: session.run(None, {given.name: pixels})[0]


@contextlib.contextmanager
def _quiet():
    """A context in which converters do not tell of their progress, and of what will replace them."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _importable(name):
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _evenly(images, most):
    """At most so many of some images, evenly spaced; uint8 [n, H, W, C]."""
    return np.ascontiguousarray(images[_even_rows(images, most)])


def _even_rows(images, most):
    return np.linspace(0, len(images) - 1, min(most, len(images))).astype(int)


def _table(network, path, endings, runs, differences):
    """Yields the lines of a table of the written files."""
    times, images, labels = _times(network, runs), network.test.images, network.test.labels
    slowest = max(of_batch for _, of_batch in times.values()) / 1000 / BATCH  # seconds for an image
    rows = _even_rows(images, int(np.clip(SECONDS / slowest, COMPARED, MEASURED)))
    accuracy = dict.fromkeys(endings, "") if labels is None else {
        ending: np.mean(_in_batches(run, images[rows]).argmax(1) == labels[rows]) for ending, run in runs.items()}
    yield "%-14s %10s %9s %10s %10s %10s" % ("format", "size", "accuracy", "difference", "1 image", "%d images" % BATCH)
    for ending, name in endings.items():
        shown = "%.2f%%" % (100 * accuracy[ending]) if labels is not None else ""
        yield "%-14s %7.2f MB %9s %10.2g %7.2f ms %7.1f ms  %s" % (
            name, _size_of(path + ending) / 1e6, shown, differences[ending], *times[ending], path + ending)
    yield "difference: the largest of a probability from the network's, on %d images" % min(COMPARED, len(images))
    yield "times: medians of %d, on %d cores" % (REPEATED, cores())
    if labels is not None:
        yield "accuracy: on %d of the %d test images" % (len(rows), len(images))
        exact = next(accuracy[ending] for ending in endings if ending not in QUANTIZED)
        for ending in endings:
            if accuracy[ending] < exact - LOSS_WORTH_SAYING:
                yield "%s classifies %.1f%% fewer images correctly than the network" % (
                    endings[ending], 100 * (exact - accuracy[ending]))


def _size_of(path):
    """The size in bytes of a file, or of the files in a folder."""
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)


def _times(network, runs):
    """{ending: (milliseconds for one image, for BATCH images)}, medians; the formats take turns."""
    found = dict.fromkeys(runs, ())
    for count in (1, BATCH):
        pixels = np.resize(_evenly(network.test.images, count), (count,) + network.test.images.shape[1:])
        taken = {ending: [] for ending in runs}
        for _ in range(REPEATED + 1):
            for ending, run in runs.items():
                start = time.perf_counter()
                run(pixels)
                taken[ending].append(time.perf_counter() - start)
        for ending, values in taken.items():
            found[ending] += (1000 * statistics.median(values[1:]),)  # the first run prepares
    return found
