"""How does each deployment tool run an exported network? check.py starts this file in the tool's own environment.

    python runners.py TOOL

Reads requests from standard input and answers on standard output, each a line of JSON:

    {"do": "load", "path": …}                    -> {}
    {"do": "predict", "images": "a.npy"}         -> {"probabilities": [[…]]}
    {"do": "time", "images": …, "seconds": …}    -> {"ms": median of the calls made in that time}

An error of the tool is answered by {"error": its last line}. Needs NumPy and the tool, on Python 3.7 and later.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

CORES = len(os.sched_getaffinity(0))


def saved_model(path):
    """TensorFlow 2: the SavedModel's signature."""
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    signature = loaded.signatures["serving_default"]
    # `loaded` is named in the function, which keeps it alive.
    return lambda images: (loaded, signature(images=tf.constant(images))["probabilities"].numpy())[1]


def saved_model_1(path):
    """TensorFlow 1.15, or its interface in TensorFlow 2: the SavedModel in a session."""
    import tensorflow.compat.v1 as tf

    graph = tf.Graph()
    with graph.as_default():
        sess = tf.Session()
        signature = tf.saved_model.load(sess, ["serve"], path).signature_def["serving_default"]
    images_name, output = signature.inputs["images"].name, signature.outputs["probabilities"].name
    return lambda images: sess.run(output, {images_name: images})


def frozen(path):
    """The frozen graph, in TensorFlow 1.15 or 2."""
    import tensorflow.compat.v1 as tf

    graph = tf.Graph()
    with graph.as_default(), open(path, "rb") as file:
        tf.import_graph_def(tf.GraphDef.FromString(file.read()), name="")
    sess = tf.Session(graph=graph)
    return lambda images: sess.run("probabilities:0", {"images:0": images})


def keras(path):
    """Keras 3: a model around TFSMLayer; `predict` makes batches of 32, and is slow for one."""
    import keras

    layer = keras.layers.TFSMLayer(path, call_endpoint="serving_default")
    with open(os.path.join(path, "model.json")) as file:
        rule = json.load(file)
    images = keras.Input((rule["size"], rule["size"], rule["channels"]), dtype="uint8")
    model = keras.Model(images, layer(images))
    return lambda images: (model(images) if len(images) <= 32 else model.predict(images, verbose=0))["probabilities"]


def saved_model_cli(path):
    """TensorFlow's command saved_model_cli, a process for each call."""
    command = os.path.join(os.path.dirname(sys.executable), "saved_model_cli")

    def predict(images):
        with tempfile.TemporaryDirectory() as folder:
            np.save(os.path.join(folder, "images.npy"), images)
            done = subprocess.run(
                [command, "run", "--dir", path, "--tag_set", "serve", "--signature_def", "serving_default",
                 "--inputs", "images=%s/images.npy" % folder, "--outdir", folder],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
            if done.returncode:
                raise RuntimeError(done.stdout)
            return np.load(os.path.join(folder, "probabilities.npy"))

    return predict


def litert(path):
    """LiteRT's interpreter of .tflite files."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=CORES)
    (given,) = interpreter.get_input_details()
    (output,) = [one for one in interpreter.get_output_details() if one["dtype"] == np.float32]
    shape = None

    def predict(images):
        nonlocal shape
        if images.shape != shape:
            interpreter.resize_tensor_input(given["index"], images.shape, strict=True)
            interpreter.allocate_tensors()
            shape = images.shape
        interpreter.set_tensor(given["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(output["index"])

    return predict


def onnxruntime(path):
    """ONNX Runtime on the CPU."""
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def openvino(path):
    """OpenVINO on the CPU, in float32: by default it computes in bfloat16 where the processor can."""
    import openvino as ov

    model = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: model({"images": images})["probabilities"]


def opencv(path):
    """OpenCV's dnn module."""
    import cv2

    net = cv2.dnn.readNetFromONNX(path)

    def predict(images):
        net.setInput(images, "images")
        return net.forward("probabilities")

    return predict


def milliseconds(call, seconds):
    """The median time of the calls that fit into a time, at least one."""
    times = []
    while not times or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def answer(request, state):
    """Carries out a request; `state` keeps the function that `load` made."""
    if request["do"] == "load":
        state["predict"] = state["tool"](request["path"])
        return {}
    images = np.load(request["images"])
    if request["do"] == "predict":
        return {"probabilities": np.asarray(state["predict"](images)).tolist()}
    return {"ms": milliseconds(lambda: state["predict"](images), request["seconds"])}


def main():
    """Answers requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a tool prints must not mix with the answers
    state = {"tool": globals()[sys.argv[1]]}
    for line in sys.stdin:
        try:
            found = answer(json.loads(line), state)
        except Exception as error:
            lines = [part.strip() for part in str(error).splitlines() if part.strip()]
            found = {"error": "%s: %s" % (type(error).__name__, lines[-1] if lines else "")}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
