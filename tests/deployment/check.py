"""Do the deployment tools give a SavedModel's probabilities for our exports, and how fast? Prints Markdown tables.

    python tests/deployment/check.py FOLDER                   all tools; FOLDER receives environments and networks
    python tests/deployment/check.py FOLDER openvino opencv   these tools alone
    python tests/deployment/check.py FOLDER --seconds 0       without latency
    python tests/deployment/check.py FOLDER --networks digits,densenet_121    two of the four networks

Small networks are trained and exported by this checkout, in the environment of the Python that runs the script.
Each tool is installed into FOLDER/environments/<name>, by requirements/<name>.txt, and runs there as a process of its
own (runners.py, tensorflowjs.js). A tool that cannot be installed is reported; the others go on. The code blocks of
docs/deployment.md are run, too. The exit status is 1 if a tool that was installed has other probabilities, takes images
of another shape, or fails on a code block.
"""

import argparse
import collections
import datetime
import glob
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TOLERANCE = 1e-5  # of probabilities
ROUNDS = 7  # of latency, all tools in each
BATCHES = (1, 32)
WRONG = ("half the side", "one channel more")  # four images of half the side have the pixels of one
NODE_PACKAGES = ["@tensorflow/tfjs", "@tensorflow/tfjs-backend-wasm"]

NETWORKS = {  # {name of the run: its settings}; the networks on digits get images of 28x28, the others of 64x64
    "digits": ["dataset=digits", "total_epochs=10"],
    "pictures": ["dataset=folder", "data_dir=pictures", "total_epochs=2"],  # with flip_average, as all folders
    "densenet_bc_40_12": ["dataset=digits", "network=densenet_bc_40_12", "total_epochs=1"],
    "densenet_121": ["dataset=folder", "data_dir=pictures", "network=densenet_121", "image_size=64", "total_epochs=1"],
}

# A way to run a network. runner: function in runners.py, or the JavaScript file. environment: of requirements/; None:
# that of the Python that runs this. suffix: of the file beside the SavedModel's folder; "" for this folder.
Tool = collections.namedtuple("Tool", "name runner environment suffix")
BASELINE = Tool("TensorFlow, SavedModel", "saved_model", None, "")
TOOLS = [
    Tool("TensorFlow, frozen graph", "frozen", None, ".pb"),
    Tool("TensorFlow 1.15.5, SavedModel", "saved_model_1", "tensorflow_1", ""),
    Tool("TensorFlow 1.15.5, frozen graph", "frozen", "tensorflow_1", ".pb"),
    Tool("Keras, TFSMLayer", "keras", None, ""),
    Tool("saved_model_cli run", "saved_model_cli", None, ""),
    Tool("LiteRT, .tflite", "litert", "litert", ".tflite"),
    Tool("ONNX Runtime, .onnx", "onnxruntime", "onnxruntime", ".onnx"),
    Tool("OpenVINO, SavedModel", "openvino", "openvino", ""),
    Tool("OpenVINO, .onnx", "openvino", "openvino", ".onnx"),
    Tool("TensorFlow.js, WebAssembly", "tensorflowjs.js", "tensorflowjs", "-tensorflowjs"),
    Tool("OpenCV, .onnx", "opencv", "opencv", ".onnx"),  # its reader of frozen graphs has no Cast from uint8
]


class Missing(Exception):
    """A tool that cannot be installed here; the message says why."""


def output_of(arguments, folder, **environment):
    """Runs a program to its end.

    Args:
        arguments: the program and its arguments.
        folder: where it runs.
        environment: variables that are set for it.
    Returns:
        its output.
    Raises:
        RuntimeError: it fails; the message is the last line of its output.
    """
    try:
        done = subprocess.run(arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              universal_newlines=True, env=dict(os.environ, **environment))
    except OSError as error:
        raise RuntimeError("%s: %s" % (arguments[0], error.strerror)) from None
    if done.returncode:
        raise RuntimeError("%s: %s" % (os.path.basename(arguments[0]),
                                       (done.stdout.strip().splitlines() or ["no output"])[-1]))
    return done.stdout


# ---- Environments ----

def python_of(environment, folder):
    """Returns the path of the Python of an environment, which is made where it is not there.

    Raises:
        Missing: its Python or its packages cannot be had.
    """
    if environment is None:
        return sys.executable
    path = os.path.join(folder, "environments", environment)
    done = os.path.join(path, "installed.txt")
    with open(os.path.join(HERE, "requirements", environment + ".txt")) as file:
        wanted = file.read()
    if not os.path.exists(done) or open(done).read() != wanted:
        print("installing %s" % environment, file=sys.stderr)
        try:
            install(environment, path)
        except RuntimeError as error:
            raise Missing(str(error)) from None
        with open(done, "w") as file:
            file.write(wanted)
    return os.path.join(path, "bin", "python")


def install(environment, path):
    """Makes an environment in a folder.

    Raises:
        RuntimeError: it cannot be made.
    """
    python = old_python() if environment == "tensorflow_1" else sys.executable
    output_of([python, "-m", "venv", "--clear", path], HERE)
    output_of([os.path.join(path, "bin", "python"), "-m", "pip", "install", "-q", "-r",
               os.path.join(HERE, "requirements", environment + ".txt")], HERE)
    if environment == "tensorflowjs":  # npm would put its folder where it finds another package.json above
        output_of(["npm", "install", "--silent", "--prefix", path] + NODE_PACKAGES, path)


def old_python():
    """Returns the path of Python 3.7.

    Raises:
        RuntimeError: there is none.
    """
    found = sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/3.7.*/bin/python"))) + [shutil.which("python3.7")]
    if found[0] is None:
        raise RuntimeError("there is no Python 3.7")
    return found[0]


# ---- Networks ----

def images_for(size, channels, count=None):
    """Returns (images, labels) made of the digits in scikit-learn: as `dataset=digits` has them for 28x28x1, else RGB.

    Args:
        size: side in pixels, 28 or a multiple of 8.
        channels: 1 or 3.
        count: of the images; None: all 1,797.
    """
    digits = load_digits()
    images, labels = digits.images[:count], digits.target[:count]
    if size == 28:
        images = np.pad(np.kron(images * 255 // 16, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))[..., np.newaxis]
    else:
        random = np.random.RandomState(0)
        shares = np.kron(images / 16, np.ones((size // 8, size // 8)))[..., np.newaxis]
        ink, paper = random.uniform(0, 255, (2, len(images), 1, 1, channels))
        images = ink * shares + paper * (1 - shares) + random.normal(0, 10, (len(images), size, size, channels))
    return np.clip(images, 0, 255).astype(np.uint8), labels


def make_networks(folder, runs, train):
    """Exports the networks of these names in a folder, as a user does; first trains them if `train` is true."""
    for name in ("model", "logs", "cache", "pictures", "export") if train else ("export",):
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    for number, (image, label) in enumerate(zip(*images_for(64, 3, 200))):
        os.makedirs(os.path.join(folder, "pictures", str(label)), exist_ok=True)
        Image.fromarray(image).save(os.path.join(folder, "pictures", str(label), "%d.png" % number))
    for run in runs:
        print("making %s" % run, file=sys.stderr)
        program = [sys.executable, os.path.join(ROOT, "Densenet.py"), "run_name=" + run]
        if train:
            output_of(program + NETWORKS[run], folder)
        print(output_of(program + ["mode=export", "formats=saved_model,frozen,tflite"], folder), file=sys.stderr)


def exported(folder, run):
    """The path of a run's SavedModel."""
    (step,) = [name for name in os.listdir(os.path.join(folder, "export", run)) if name.isdigit()]
    return os.path.join(folder, "export", run, step)


def file_for(tool, path, python, folder):
    """Returns the path of the file that a tool runs; makes it where the project's environment cannot.

    Args:
        tool: a Tool.
        path: of the SavedModel.
        python: the Python of the tool's environment.
        folder: has the runs.
    Raises:
        Missing: the environment that makes it cannot be had.
        RuntimeError: it cannot be made.
    """
    wanted = path + tool.suffix
    if tool.suffix == ".onnx" and not os.path.exists(wanted):
        run = os.path.basename(os.path.dirname(path))
        output_of([python_of("onnxruntime", folder), os.path.join(ROOT, "Densenet.py"), "mode=export",
                   "run_name=" + run, "formats=onnx"], folder)
    if tool.suffix == "-tensorflowjs" and not os.path.exists(wanted):
        output_of([os.path.join(os.path.dirname(python), "tensorflowjs_converter"), "--input_format=tf_saved_model",
                   "--output_format=tfjs_graph_model", "--signature_name=serving_default", path, wanted], folder,
                  TF_ENABLE_ONEDNN_OPTS="0")  # else it fails: "Unsupported Ops in the model: _FusedBatchNormEx"
    return wanted


# ---- Comparing ----

class Worker:
    """A tool that has loaded a network, in a process and an environment of its own.

    Raises:
        Missing: the tool cannot be installed.
        RuntimeError: it cannot load the network.
    """

    def __init__(self, tool, path, folder):
        self.tool = tool
        python = python_of(tool.environment, folder)
        file = file_for(tool, path, python, folder)
        program = [python, os.path.join(HERE, "runners.py"), tool.runner]
        if tool.runner.endswith(".js"):
            if shutil.which("node") is None:
                raise Missing("there is no node")
            program = ["node", os.path.join(HERE, tool.runner)]
        modules = os.path.join(folder, "environments", str(tool.environment), "node_modules")
        with open(os.path.join(folder, "tools.log"), "a") as log:  # what the tools print
            self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                                             cwd=folder, universal_newlines=True,
                                             env=dict(os.environ, NODE_PATH=modules))
        try:
            self.ask(do="load", path=file)
        except RuntimeError:
            self.close()
            raise

    def ask(self, **request):
        """Sends a request, as described in runners.py; returns the answer.

        Raises:
            RuntimeError: the tool answers with an error, or its process ends.
        """
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            found = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            raise RuntimeError("the process ended with status %s" % self._process.wait()) from None
        if "error" in found:
            raise RuntimeError(found["error"])
        return found

    def close(self):
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def compare(worker, expected, files):
    """Returns what a tool answers: {"difference": …} or {"fault": …}.

    Args:
        worker: the Worker of the tool.
        expected: probabilities [N, classes] by the baseline.
        files: {name: file of images}, as by `write_images`.
    """
    found = np.array(worker.ask(do="predict", images=files["all"])["probabilities"])
    if found.shape != expected.shape:
        return {"fault": "answers of the shape %s, not %s" % (found.shape, expected.shape)}
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:
        return {"fault": "differs by %.2g" % difference}
    for name in WRONG if worker.tool.runner != "opencv" else ():  # which checks no shapes
        rows = rows_of(worker, files[name])
        if rows:
            return {"fault": "%d answers for four images of %s" % (rows, name)}
    return {"difference": difference, "floats": bool(rows_of(worker, files["floats"]))}


def rows_of(worker, file):
    """The number of answers for a file of images; 0: they are refused."""
    try:
        return len(worker.ask(do="predict", images=file)["probabilities"])
    except RuntimeError:
        return 0


def write_images(images, folder):
    """Writes files for the workers.

    Args:
        images: uint8 [N, H, W, C].
        folder: where to write.
    Returns:
        {name: path}: all images, a batch of each size in BATCHES, four images of each shape in WRONG, and four with
        floating-point values from 0 to 1.
    """
    size = images.shape[1] // 2
    content = {"all": images, "floats": (images[:4] / 255).astype(np.float32),
               "half the side": images[:4, :size, :size],
               "one channel more": np.concatenate([images[:4], images[:4, ..., :1]], 3)}
    content.update((batch, images[:batch]) for batch in BATCHES)
    files = {name: os.path.join(folder, "%s.npy" % name) for name in content}
    for name, values in content.items():
        np.save(files[name], np.ascontiguousarray(values))
    return files


def check_network(run, tools, seconds, folder):
    """Compares the tools on one network, then measures their latency in turns.

    Args:
        run: its name in NETWORKS.
        tools: Tools; the first is the baseline.
        seconds: how long each measurement takes; 0: there is none.
        folder: has the export.
    Returns:
        {Tool: {"difference": …} or {"fault": …} or {"missing": …}, with {images in a batch: [milliseconds]} as "ms"}.
    """
    path = exported(folder, run)
    with open(os.path.join(path, "model.json")) as file:
        rule = json.load(file)
    images, _ = images_for(rule["size"], rule["channels"], 50)
    files = write_images(images, folder)
    found, workers = {}, {tools[0]: Worker(tools[0], path, folder)}
    expected = np.array(workers[tools[0]].ask(do="predict", images=files["all"])["probabilities"])
    if np.ptp(expected, 0).max() < 0.1:
        raise RuntimeError("%s answers alike for all images: nothing can be compared" % run)
    for tool in tools:
        try:
            if tool not in workers:
                workers[tool] = Worker(tool, path, folder)
            found[tool] = compare(workers[tool], expected, files)
        except Missing as error:
            found[tool] = {"missing": str(error)}
        except RuntimeError as error:
            found[tool] = {"fault": str(error)}
        found[tool]["ms"] = {batch: [] for batch in BATCHES}
        print("%s: %s: %s" % (run, tool.name, found[tool]), file=sys.stderr)
    timed = [tool for tool in tools if "difference" in found[tool] and tool.runner != "saved_model_cli"]
    for _ in range(ROUNDS if seconds else 0):
        for batch in BATCHES:
            for tool in timed:
                found[tool]["ms"][batch].append(
                    workers[tool].ask(do="time", images=files[batch], seconds=seconds)["ms"])
    for worker in workers.values():
        worker.close()
    return found


# ---- The code blocks of docs/deployment.md ----

def blocks_of(page):
    """Returns [(language, name, text)] of the page's code blocks whose first line is ```language name."""
    return re.findall(r"^```(\w+) (\S+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def run_blocks(folder, environments):
    """Runs the page's code blocks, as they are, in a folder with the export and the image that they name.

    A block whose name is a file is written to it. Another is run in the environment of its name.

    Args:
        folder: has the networks.
        environments: names of those that are wanted; the project's own is "project".
    Returns:
        [(language, name, what is wrong or None)].
    """
    scratch = os.path.join(folder, "page")
    shutil.rmtree(scratch, ignore_errors=True)
    path = exported(folder, "digits")
    shutil.copytree(os.path.dirname(path), os.path.join(scratch, "export", "digits"))
    for name in os.listdir(os.path.join(scratch, "export", "digits")):  # the page's step stands for any
        os.rename(os.path.join(scratch, "export", "digits", name), os.path.join(
            scratch, "export", "digits", name.replace(os.path.basename(path), "780", 1)))
    images, labels = images_for(28, 1)
    Image.fromarray(images[list(labels).index(7), ..., 0]).save(os.path.join(scratch, "seven.png"))
    with open(os.path.join(ROOT, "docs", "deployment.md"), encoding="utf-8") as file:
        blocks = blocks_of(file.read())
    found = []
    for language, name, text in blocks:
        if "." in name:
            with open(os.path.join(scratch, name), "w") as file:
                file.write(text)
        elif name in environments:
            found.append((language, name, fault_of_block(language, name, text, scratch, folder)))
            print("docs/deployment.md: %s" % (found[-1],), file=sys.stderr)
    return found


def fault_of_block(language, environment, text, scratch, folder):
    """Runs a code block; returns what is wrong or None. One that prints must print the class of the image, 7."""
    try:
        python = python_of(None if environment == "project" else environment, folder)
        bin_folder = os.path.dirname(python)
        done = subprocess.run(
            [python, "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text], cwd=scratch,
            env=dict(os.environ, PATH=bin_folder + ":" + os.environ["PATH"]), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, universal_newlines=True)
    except Missing as error:
        return "missing: %s" % error
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no output"])[-1]
    if "print(" in text and "7" not in done.stdout.split():
        return "prints %r, not 7" % done.stdout
    return None


# ---- Tables ----

def table(header, rows):
    """A Markdown table of texts."""
    return "\n".join("| %s |" % " | ".join(row) for row in [header, ["---"] * len(header)] + rows)


def cell(found):
    """What a table says of a comparison."""
    if "missing" in found:
        return "not installed"
    return found.get("fault") or "%.0e" % found["difference"]


def speed(found, baseline, batch):
    """Median latency, and in brackets the median over the rounds of its ratio to the baseline's."""
    ours, theirs = found["ms"][batch], baseline["ms"][batch]
    if not ours:
        return ""
    return "%.3g (%.2f)" % (np.median(ours), np.median(np.divide(ours, theirs)))


def versions(tools, folder):
    """The versions of the packages in the tools' environments, in words."""
    shown = {"tensorflow", "keras", "ai-edge-litert", "onnxruntime", "tf2onnx", "openvino", "tensorflowjs",
             "opencv-python-headless"}
    found = set()
    for environment in sorted({tool.environment for tool in tools} - {None}) + [None]:
        try:
            lines = output_of([python_of(environment, folder), "-m", "pip", "list", "--format=freeze"], folder).split()
        except Missing as error:
            print("%s: not installed: %s" % (environment, error))
            continue
        found |= {line.replace("==", " ") for line in lines if line.split("==")[0] in shown}
    return ", ".join(sorted(found))


def main():
    """Runs the checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="for environments and networks")
    parser.add_argument("environments", nargs="*", help="project, or a name in requirements/; all, if none is given")
    parser.add_argument("--seconds", type=float, default=0.3, help="time for each of the latencies; 0: none")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="of %(default)s")
    parser.add_argument("--trained", action="store_true", help="export the networks that an earlier call trained")
    options = parser.parse_args()
    folder = os.path.abspath(options.folder)
    wanted = set(options.environments or ["project"] + [name[:-4] for name in os.listdir(HERE + "/requirements")])
    tools = [BASELINE] + [tool for tool in TOOLS if (tool.environment or "project") in wanted]
    os.makedirs(folder, exist_ok=True)
    runs = options.networks.split(",")
    if not set(runs) <= set(NETWORKS):
        parser.error("--networks: some of %s, with commas between" % ", ".join(NETWORKS))
    make_networks(folder, runs, not options.trained)

    found = {run: check_network(run, tools, options.seconds, folder) for run in runs}
    blocks = run_blocks(folder, wanted) if "digits" in runs else []
    print("\nLargest difference of a probability from the SavedModel's in TensorFlow, 50 images:\n")
    print(table(["tool"] + runs + ["floats from 0 to 1"],
                [[tool.name] + [cell(found[run][tool]) for run in runs] + [
                    "taken" if any(found[run][tool].get("floats") for run in runs) else "refused"]
                 for tool in tools]))
    if options.seconds:
        print("\nMilliseconds for 1 and 32 images, in brackets as a multiple of the SavedModel's in TensorFlow:\n")
        print(table(["tool"] + ["%s, %d" % (run, batch) for run in runs for batch in BATCHES],
                    [[tool.name] + [speed(found[run][tool], found[run][BASELINE], batch)
                                    for run in runs for batch in BATCHES] for tool in tools]))
    print("\n%s, %d cores; %s. %s" % (processor(), os.cpu_count(), versions(tools, folder), datetime.date.today()))
    faults = ["%s, %s: %s" % (run, tool.name, found[run][tool]["fault"])
              for run in runs for tool in tools if "fault" in found[run][tool]]
    faults += ["docs/deployment.md, %s in %s: %s" % block for block in blocks
               if block[2] and not block[2].startswith("missing: ")]
    print("\n".join(["", "%d faults" % len(faults)] + faults))
    return 1 if faults else 0


def processor():
    """The name of the processor."""
    with open("/proc/cpuinfo") as file:
        return re.search(r"model name\s*: (.*)", file.read()).group(1)


if __name__ == "__main__":
    sys.exit(main())
