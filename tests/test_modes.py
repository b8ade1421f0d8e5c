"""Modes that use a trained run: mode=evaluate, predict and export."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import test_cifar10
import test_pretrained
from conftest import write_images, write_labels
from helpers import TINY, curves, main, read, trained_parts
from PIL import Image
from test_image_folder import TINY_FOLDER, shapes  # noqa: F401

import cifar10
import Densenet
import mnist_loader
from support import UserError, image_folder, modes, pretrained
from support.file_reading import find

SERVE = """
import sys
import numpy as np
import tensorflow.compat.v1 as tf
images = np.load("images.npy")
files = np.load("files.npy", allow_pickle=True)
def values_of(signature, given):
    (name,) = [tensor.name for tensor in signature.inputs.values()]
    return sess.run([signature.outputs[key].name for key in ("probabilities", "class_name")], {name: given})
with tf.Session(graph=tf.Graph()) as sess:
    signatures = tf.saved_model.loader.load(sess, ["serve"], sys.argv[1]).signature_def
    found = values_of(signatures["predict_with_names"], images) + values_of(signatures["predict_image_bytes"], files)
with tf.Session(graph=tf.Graph()) as sess:
    with open(sys.argv[1] + ".pb", "rb") as file:
        tf.import_graph_def(tf.GraphDef.FromString(file.read()), name="")
    second = sess.run("probabilities:0", {"images:0": images})
if tf.VERSION.startswith("2."):
    import tensorflow
    serve = tensorflow.saved_model.load(sys.argv[1]).signatures["serving_default"]
    second = np.stack([second, serve(images=tensorflow.constant(images))["probabilities"].numpy()])
np.savez("served.npz", *(value if value.dtype == np.float32 else value.astype("S") for value in found + [second]))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_mnist, shapes):  # noqa: F811
    """A folder with a trained run for each kind of data set, and the arguments of each run."""
    place = tmp_path_factory.mktemp("runs")
    before = os.getcwd()
    os.chdir(str(place))
    layout = cifar10.CIFAR10
    cifar10.CIFAR10 = test_cifar10.SMALL["CIFAR10"]
    try:
        test_cifar10.write_folder(place, cifar10.CIFAR10)
        common = dict(blocks=(1, 1), growth_k=4, total_epochs=2)
        found = {
            "mnist": dict(TINY, data_dir=tiny_mnist, run_name="mnist-mine"),
            "cifar10": dict(common, dataset="cifar10", data_dir=str(place), validation_size=5, batch_size=7,
                            bottleneck=True, precision="bfloat16", run_name="cifar10-mine"),
            "folder": dict(TINY_FOLDER, data_dir=shapes, crop_area=0.5, run_name="folder-mine"),
        }
        for arguments in found.values():
            Densenet.train(**arguments)
        yield str(place), found
    finally:
        cifar10.CIFAR10 = layout
        os.chdir(before)


@pytest.fixture
def run(request, runs, monkeypatch, tmp_path):
    """The arguments that select the run of a data set, in a copy of the folder."""
    place, found = runs
    shutil.copytree(place, str(tmp_path / "copy"))
    monkeypatch.chdir(str(tmp_path / "copy"))
    return {name: found[request.param][name] for name in ("data_dir", "run_name")}


ALL = pytest.mark.parametrize("run", ["mnist", "cifar10", "folder"], indirect=True)
MNIST = pytest.mark.parametrize("run", ["mnist"], indirect=True)


def image_files(name):
    """Writes four random images with the run's image shape to images/; returns their pixels."""
    shape = read("model/%s/settings.json" % name)["data"]["image_shape"]
    os.makedirs("images")
    random = np.random.RandomState(5)
    images = random.randint(0, 256, [4] + shape).astype(np.uint8)
    for index, image in enumerate(images):
        Image.fromarray(image[..., 0] if shape[2] == 1 else image).save("images/%d.png" % index)
    return images


@ALL
def test_evaluate(run, capsys):
    """Training tests the weights that evaluate uses."""
    result = read("model/%s/result.json" % run["run_name"])
    settings = read("model/%s/settings.json" % run["run_name"])
    names = settings["data"]["class_names"]
    content = Densenet.evaluate(**run)
    assert content["checkpoint"] == result["checkpoint"]
    assert content == read("model/%s/evaluation.json" % run["run_name"])
    assert content["accuracy"] == result["test_accuracy"] and content["loss"] == result["test_loss"]
    confusion = np.array(content["confusion_matrix"])
    assert confusion.sum() == content["images"] == settings["data"]["test"] and confusion.shape == (len(names),) * 2
    assert np.trace(confusion) == round(content["accuracy"] * content["images"])
    output = capsys.readouterr().out
    assert all(name in output for name in names) and "test accuracy %.2f%%" % (100 * content["accuracy"]) in output
    assert "confusion_matrix" in curves("logs/%s/events*" % run["run_name"])
    newest = Densenet.evaluate(checkpoint="dense.ckpt-%d" % result["steps"], **run)
    if newest != content:
        assert read("model/%s/evaluation-1.json" % run["run_name"]) == content  # kept under another name
    Densenet.evaluate(checkpoint="dense.ckpt-%d" % result["steps"], **run)
    assert not os.path.exists("model/%s/evaluation-2.json" % run["run_name"])  # an equal result is not kept twice


@MNIST
def test_the_result_is_written_where_the_logs_cannot_be(run):
    newest = "dense.ckpt-%d" % read("model/mnist-mine/result.json")["steps"]
    Densenet.evaluate(**run)
    with pytest.raises(UserError, match="cannot write the logs in /proc/none"):
        Densenet.evaluate(checkpoint=newest, log_dir="/proc/none", **run)
    assert read("model/mnist-mine/evaluation.json")["checkpoint"] == newest


@MNIST
def test_a_run_without_readable_settings_is_not_denied(run):
    with open("model/mnist-mine/settings.json", "w"):
        pass
    with pytest.raises(UserError, match="^model/mnist-mine has checkpoints but no readable settings.json, which tells"):
        Densenet.evaluate(**run)


@MNIST
def test_other_data_are_evaluated_and_marked(run, capsys):
    """The test images of the other data are the run's training images, and images that it has not seen."""
    other = os.path.join("other", "mnist")
    shutil.copytree(os.path.join(run["data_dir"], "mnist"), other)
    for name in os.listdir(other):
        if name.startswith("t10k"):
            shutil.copy(os.path.join(other, name.replace("t10k", "train")), os.path.join(other, name))
    path = find(["t10k-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte"], [other])
    opened = gzip.open if path.endswith(".gz") else open
    with opened(path, "rb") as file:
        content = bytearray(file.read())
    for image in range(20):
        content[16 + 28 * 28 * image] ^= 255
    with opened(path, "wb") as file:
        file.write(bytes(content))
    before = Densenet.evaluate(**run)
    content = Densenet.evaluate(**dict(run, data_dir="other"))
    output = capsys.readouterr().out
    assert content["images"] == 20 and content["data_dir"] == os.path.abspath("other")
    assert ("other holds other data than model/mnist-mine was trained on: 20 images are evaluated, 310 that it was "
            "trained on or chosen by are left out") in output
    assert "on other data than the run's: accuracy " in output
    assert read("model/mnist-mine/evaluation_of_other.json") == content
    assert read("model/mnist-mine/evaluation.json") == before
    with pytest.raises(UserError, match="holds a run on other data .*test images: 45, now 330"):
        Densenet.train(**dict(TINY, total_epochs=3, run_name=run["run_name"], data_dir="other"))


@pytest.fixture
def pets(folder, shapes):  # noqa: F811
    """The arguments of a run on a copy of half of the shapes, in the folder pets."""
    for name in os.listdir(shapes):
        os.makedirs("pets/" + name)
        for image in sorted(os.listdir(os.path.join(shapes, name)))[::2]:
            shutil.copy2(os.path.join(shapes, name, image), "pets/" + name)
    Densenet.train(**dict(TINY_FOLDER, data_dir="pets", total_epochs=1))
    (name,) = [name for name in os.listdir("model") if name.startswith("pets")]
    return {"run_name": name}


def test_a_run_on_a_folder_remembers_it_and_may_get_more_images(pets, shapes, capsys):  # noqa: F811
    """An added image is evaluated with the test images; those that the run was trained on stay left out."""
    tested = Densenet.evaluate(**pets)["images"]
    added = sorted(os.listdir(os.path.join(shapes, "ring")))[1]
    shutil.copy(os.path.join(shapes, "ring", added), "pets/ring")
    capsys.readouterr()
    content = Densenet.evaluate(**pets)
    assert content["images"] == tested + 1
    assert "%d images are evaluated, " % (tested + 1) in capsys.readouterr().out
    with pytest.raises(UserError, match="a run on other data .*images: .*, now .*mode=evaluate"):
        Densenet.train(**dict(TINY_FOLDER, data_dir="pets", total_epochs=1, **pets))


def test_a_new_folder_is_evaluated_with_the_classes_of_the_run(pets, shapes):  # noqa: F811
    for name in ("ring", "square"):
        shutil.copytree(os.path.join(shapes, name), "new/" + name)
    names = sorted(os.listdir("pets"))
    content = Densenet.evaluate(data_dir="new", **pets)
    confusion = np.array(content["confusion_matrix"])
    assert content["class_names"] == names and confusion.sum() == content["images"] > 20
    assert set(np.flatnonzero(confusion.sum(1))) == {names.index("ring"), names.index("square")}
    os.rename("new/ring", "new/bell")
    with pytest.raises(UserError, match="new has the class bell, which .* was not trained on: .*; take the folders"):
        Densenet.evaluate(data_dir="new", **pets)


def test_a_folder_with_a_few_images_of_a_class_is_evaluated(pets, shapes):  # noqa: F811
    """Whether they would be enough to train on or to divide into splits does not matter."""
    for number, name in enumerate(("ring", "square", "circle"), 1):
        os.makedirs("new/" + name)
        for file in sorted(os.listdir(os.path.join(shapes, name)))[1:2 * number:2]:
            shutil.copy(os.path.join(shapes, name, file), "new/" + name)
    content = Densenet.evaluate(data_dir="new", **pets)
    assert content["images"] == 6 and sorted(np.array(content["confusion_matrix"]).sum(1)) == [0, 0, 0, 1, 2, 3]


def test_a_run_whose_folder_was_moved_remembers_the_new_place(pets, capsys):
    before = Densenet.evaluate(**pets)
    os.rename("pets", "moved")
    with pytest.raises(UserError, match="pets"):
        Densenet.evaluate(**pets)
    Densenet.train(**dict(TINY_FOLDER, data_dir="moved", total_epochs=1, **pets))
    assert Densenet.evaluate(**pets) == before


def test_images_of_other_splits_that_the_weights_at_the_start_have_seen_are_said(pets, shapes, capsys):  # noqa: F811
    """More images change which of them are drawn for the test. They are also left out when the second run is evaluated
    on other data."""
    source = dict(TINY_FOLDER, data_dir="pets", total_epochs=1, weights=pets["run_name"], init_learning_rate=1e-3)
    Densenet.train(run_name="same", **source)
    assert "are among those" not in capsys.readouterr().out
    for file in sorted(os.listdir(os.path.join(shapes, "ring")))[1::2]:
        shutil.copy2(os.path.join(shapes, "ring", file), "pets/ring")
    Densenet.train(run_name="more", **source)
    output = capsys.readouterr().out
    for split in ("validation", "test"):
        found = re.search(r"(\d+) of the (\d+) %s images are among those that weights=%s was trained on or chosen by: "
                          "the accuracy is too high by them" % (split, pets["run_name"]), output)
        assert 0 < int(found.group(1)) < int(found.group(2))
    seen, images = ({tuple(digest) for digest in np.load("model/%s/seen_images.npy" % name).reshape(-1, 1)}
                    for name in (pets["run_name"], "more"))
    assert seen < images
    assert Densenet.evaluate(run_name="more", data_dir=shapes)["images"] == 198 - len(images)  # two are damaged


def test_what_weights_brought_stays_with_the_run(pets, capsys):
    """Earlier versions brought no crop_area and recorded no `weights_of`. The images of the second have another scale.
    """
    source = "model/%s/settings.json" % pets["run_name"]
    given = dict(TINY_FOLDER, data_dir="pets", total_epochs=1, weights=pets["run_name"])
    del given["image_size"]
    Densenet.train(**given)
    (run,) = set(os.listdir("model")) - {pets["run_name"]}
    recorded = read("model/%s/settings.json" % run)
    assert recorded["crop_area"] == 1.0 and recorded.pop("weights_of")
    with open("model/%s/settings.json" % run, "w") as file:
        json.dump(recorded, file)
    settings = dict(read(source), crop_area=0.5)
    settings["data"]["pixel_range"] = [0.0, 1000.0]
    with open(source, "w") as file:
        json.dump(settings, file)
    capsys.readouterr()
    assert Densenet.train(**given)["epochs"] == 1 and len(os.listdir("model")) == 2
    output = capsys.readouterr().out
    assert "is finished" in output and re.search(
        "trained on values 0 to 1000 as black to white, here it is 0 to 65536: pixel_range=0,1000 has them see", output)
    assert Densenet.choose(run_name="new", **given).crop_area == 0.5


@pytest.mark.once
def test_the_run_of_an_earlier_version_keeps_its_name(folder, shapes, capsys):  # noqa: F811
    """Earlier versions named every run on a folder `folder`, and recorded neither data_dir nor the images."""
    options = dict(TINY_FOLDER, data_dir=shapes, total_epochs=1)
    Densenet.train(**options)
    (name,) = os.listdir("model")
    earlier = name.replace("shapes", "folder")
    os.rename("model/" + name, "model/" + earlier)
    os.remove("model/%s/seen_images.npy" % earlier)
    settings = read("model/%s/settings.json" % earlier)
    del settings["data_dir"]
    with open("model/%s/settings.json" % earlier, "w") as file:
        json.dump(settings, file)
    capsys.readouterr()
    assert Densenet.train(**options)["epochs"] == 1
    assert "model/%s is finished" % earlier in capsys.readouterr().out and os.listdir("model") == [earlier]
    assert Densenet.evaluate(**options)["images"] == settings["data"]["test"]


@pytest.mark.once
def test_few_validation_images_choose_nothing(run_with_few, capsys):
    result = read("model/few/result.json")
    assert result["checkpoint"] == "dense.ckpt-%d" % result["steps"]
    content = Densenet.evaluate(**run_with_few)
    assert content["checkpoint"] == result["checkpoint"] and content["accuracy"] == result["test_accuracy"]
    assert "9 validation images are too few to choose weights by" in capsys.readouterr().out


@pytest.fixture
def run_with_few(tiny_mnist, folder):
    Densenet.train(**dict(TINY, data_dir=tiny_mnist, run_name="few", validation_size=9))
    return {"data_dir": tiny_mnist, "run_name": "few"}


def served(path, images, files):
    """Runs images and files through an export in a process with TensorFlow only.

    Args:
        path: the SavedModel.
        images: uint8 [N, H, W, C].
        files: the paths of N image files.
    Returns:
        probabilities and class names by images, then by files; the probabilities by the frozen graph, in TensorFlow 2
        also by the SavedModel's signature.
    """
    np.save("images.npy", images)
    np.save("files.npy", np.array([open(file, "rb").read() for file in files], object))
    environment = dict(os.environ, PYTHONPATH="", TF_CPP_MIN_LOG_LEVEL="2")
    subprocess.run([sys.executable, "-W", "ignore", "-c", SERVE, path], check=True, env=environment,
                   stderr=subprocess.DEVNULL)
    found = np.load("served.npz")
    return [found["arr_%d" % index] for index in range(5)]


@pytest.mark.parametrize("run", ["mnist", pytest.param("cifar10", marks=pytest.mark.campaign),
                                 pytest.param("folder", marks=pytest.mark.once)], indirect=True)
def test_export_matches_predict(run, capsys):
    pixels = image_files(run["run_name"])
    saved_model, frozen = Densenet.export(**run)
    output = capsys.readouterr().out
    assert os.path.dirname(saved_model) == "export/" + run["run_name"] and frozen == saved_model + ".pb"
    about = read(saved_model + "/model.json")
    assert os.path.basename(saved_model) == str(about["step"]) and about["norm_epsilon"] == 1e-3
    assert about["checkpoint"].endswith("dense.ckpt-%d" % about["step"])
    settings = read("model/%s/settings.json" % run["run_name"])
    names, tested = settings["data"]["class_names"], settings["data"]["test"]
    accuracy = "%.2f%%" % (100 * read("model/%s/result.json" % run["run_name"])["test_accuracy"])
    assert output.count(accuracy) == 2 and "on %d of the %d test images" % (tested, tested) in output
    answers = Densenet.predict(images="images", **run)
    shape = settings["data"]["image_shape"]
    side = image_folder.stored_side(shape[0], settings.get("crop_area", 1.0))
    seen = np.stack([image_folder.read_image(answer["image"], side, shape[2]) for answer in answers])
    margin = (side - shape[0]) // 2
    if margin == 0:
        np.testing.assert_array_equal(seen, pixels)
    seen = seen[:, margin:margin + shape[0], margin:margin + shape[0]]
    expected = [[dict(zip(answer["classes"], answer["probabilities"]))[name] for name in names] for answer in answers]
    probabilities, class_names, of_files, names_of_files, others = served(
        saved_model, seen, [answer["image"] for answer in answers])
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    for other in others.reshape(-1, *probabilities.shape):
        np.testing.assert_allclose(other, expected, atol=1e-5)
    np.testing.assert_allclose(of_files, expected, atol=1e-5 if margin == 0 else 0.02)  # resized: to one level
    best = [answer["classes"][0] for answer in answers]
    assert [name.decode() for name in class_names] == [name.decode() for name in names_of_files] == best
    with pytest.raises(UserError, match="is there already"):
        Densenet.export(**run)

    graph_def = tf.GraphDef.FromString(open(frozen, "rb").read())
    kinds = {node.op for node in graph_def.node}
    assert not kinds & {"Switch", "Merge", "If", "StatelessRandomUniform", "VarHandleOp", "RandomUniform"}
    norms = [node.name for node in graph_def.node if node.op.startswith("FusedBatchNorm")]
    assert norms and not [name for name in norms if "batch2" in name and settings["bottleneck"]]


def test_all_modes_shift_digits_as_training_does(folder, tiny_mnist):
    """The border is black: one network gives the same answers in training's test, evaluation and prediction."""
    run = dict(TINY, data_dir=tiny_mnist, shift_average=2, run_name="shifted")
    tested = Densenet.train(**run)
    evaluated = Densenet.evaluate(**run)
    assert evaluated["loss"] == pytest.approx(tested["test_loss"], abs=1e-6)
    files = [os.path.join(tiny_mnist, "mnist", name) for name in list(mnist_loader.FILES)[2:]]
    test = mnist_loader.read_split(*files)
    os.mkdir("images")
    for index, image in enumerate(test.images):
        Image.fromarray(image[:, :, 0]).save("images/%02d.png" % index)
    answers = Densenet.predict(images="images", **run)
    losses = [-np.log(dict(zip(answer["classes"], answer["probabilities"]))[str(label)])
              for answer, label in zip(answers, test.labels)]
    assert len(losses) == 45 and np.mean(losses) == pytest.approx(tested["test_loss"], abs=1e-5)


@MNIST
def test_an_export_without_the_data_of_the_run_is_compared_on_random_images(run, tiny_mnist, capsys):
    shutil.copytree(os.path.join(tiny_mnist, "mnist"), os.path.join("other", "mnist"))
    images, labels = (sorted(name for name in os.listdir("other/mnist") if "t10k" in name and kind in name)[0]
                      for kind in ("images", "labels"))
    for name in (images, labels):
        shutil.copy(os.path.join("other/mnist", name.replace("t10k", "train")), os.path.join("other/mnist", name))
    saved_model, frozen = Densenet.export(**dict(run, data_dir="other", export_dir="elsewhere"))
    assert saved_model.startswith("elsewhere/mnist-mine/") and os.path.isfile(frozen)
    output = capsys.readouterr().out
    assert "no accuracy, and the comparison is on random images: other holds other data than" in output
    assert "%" not in output


@MNIST
def test_impossible_requests_get_one_sentence(run, capsys):
    os.makedirs("nothing")
    for arguments, sentence in (
            (["mode=predict"], "name files or folders"),
            (["mode=predict", "images=nothing"], "there are no files in nothing"),
            (["mode=predict", "images=a.png", "growth_k=7"], "was trained with growth_k=4, not 7"),
            (["mode=predict", "images=a.png", "network=densenet_121"], "was trained with "),
            (["mode=evaluate", "network=densenet_40_12"], "was trained with "),
            (["mode=export", "checkpoint=dense.ckpt-99"], "there is no checkpoint dense.ckpt-99: this run has"),
            (["mode=export", "run_name=none"],
             "there is no trained run model/none: set run_name to one of those in model (cifar10-mine, folder-mine, "
             "mnist-mine)"),
            (["mode=test"], "mode must be one of train, evaluate, predict, export")):
        assert main(["run_name=" + run["run_name"]] + arguments) == 1
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1, error


@pytest.mark.parametrize("run", ["cifar10"], indirect=True)
def test_a_trained_network_may_average_over_other_views(run, capsys):
    """The mean of the logits for an image and its mirror image, each alone, is that of the average over both."""
    images = image_files(run["run_name"])
    os.makedirs("mirrored")
    for index, image in enumerate(images):
        Image.fromarray(image[:, ::-1]).save("mirrored/%d.png" % index)

    def log_probabilities(**given):
        answers = Densenet.predict(**dict(dict(run, images="images", shift_average=0), **given))
        order = [np.argsort(answer["classes"]) for answer in answers]
        return np.log([np.take(answer["probabilities"], places) for answer, places in zip(answers, order)])

    alone = log_probabilities(flip_average=False)
    mean = (alone + log_probabilities(flip_average=False, images="mirrored")) / 2
    mean -= np.log(np.exp(mean).sum(1, keepdims=True))
    assert np.abs(mean - alone).max() > 1e-3
    np.testing.assert_allclose(log_probabilities(), mean, atol=1e-4)
    assert Densenet.evaluate(flip_average=False, **run)["loss"] != Densenet.evaluate(**run)["loss"]


@pytest.mark.parametrize("run", ["folder"], indirect=True)
def test_views_that_a_run_was_not_trained_on_are_said(run, capsys):
    settings = read("model/folder-mine/settings.json")
    assert settings["flip_average"]
    Densenet.evaluate(**run)
    assert "was not trained on" not in capsys.readouterr().out
    with open("model/folder-mine/settings.json", "w") as file:  # as earlier versions trained with flip=False
        json.dump(dict(settings, flip=False), file)
    Densenet.evaluate(**run)
    assert "averages over views that it was not trained on (flip_average=True): flip_average=False leaves them out" in (
        capsys.readouterr().out)
    Densenet.evaluate(flip_average=False, **run)
    assert "was not trained on (" not in capsys.readouterr().out


@MNIST
def test_a_damaged_checkpoint_is_skipped_or_refused(run, capsys):
    best = tf.train.latest_checkpoint("model/%s/best" % run["run_name"])
    for suffix in (".index", ".data-00000-of-00001"):
        with open(best + suffix, "w"):
            pass
    assert Densenet.evaluate(**run)["checkpoint"] == "dense.ckpt-12"
    assert "skipped %s" % best in capsys.readouterr().out
    with pytest.raises(UserError, match="is damaged or of another network"):
        Densenet.evaluate(checkpoint=best, **run)


@MNIST
def test_a_checkpoint_with_another_name_can_be_used(run):
    os.makedirs("backup")
    for suffix in (".index", ".data-00000-of-00001"):
        shutil.copy("model/%s/dense.ckpt-12%s" % (run["run_name"], suffix), "backup/final" + suffix)
    assert Densenet.evaluate(checkpoint="backup/final", **run)["accuracy"] == read(
        "model/%s/result.json" % run["run_name"])["test_accuracy"]
    assert Densenet.export(checkpoint="backup/final", **run)[1] == "export/%s/12.pb" % run["run_name"]


@MNIST
def test_a_checkpoint_of_a_run_with_other_classes_is_refused(run):
    other = shutil.copytree("model/" + run["run_name"], "model/other")
    settings = read(other + "/settings.json")
    settings["data"]["class_names"] = settings["data"]["class_names"][::-1]
    with open(other + "/settings.json", "w") as file:
        json.dump(settings, file)
    image_files(run["run_name"])
    for checkpoint in ("model/other/dense.ckpt-12", tf.train.latest_checkpoint("model/other/best")):
        with pytest.raises(UserError, match="is of the run in .*other, whose classes are 9, 8, .* set run_name to"):
            Densenet.predict(images="images", checkpoint=checkpoint, **run)
    assert Densenet.predict(images="images", run_name="other")[0]["classes"][0] in "0123456789"


@MNIST
def test_a_checkpoint_of_a_run_whose_network_differs_is_refused(run):
    """Also where the shapes of its weights do not differ."""
    other = shutil.copytree("model/" + run["run_name"], "model/other")
    settings = read(other + "/settings.json")
    for name, value, difference in (("stem", "3x3", "stem is 3x3, not 3x3s2"),
                                    ("norm_epsilon", 0.01, "norm_epsilon is 0.01, not 0.001"),
                                    ("transition_pooling", "max", "transition_pooling is max, not average")):
        with open(other + "/settings.json", "w") as file:
            json.dump(dict(settings, **{name: value}), file)
        for mode in (Densenet.evaluate, Densenet.export):
            with pytest.raises(UserError, match="is of the run in .*other, whose %s.*: set run_name to" % difference):
                mode(checkpoint="model/other/dense.ckpt-12", **run)


@MNIST
def test_other_data_with_some_of_the_classes_are_evaluated(run):
    """IDX files with labels up to 9 stand for ten classes, of which only those that occur must be known."""
    settings = read("model/%s/settings.json" % run["run_name"])
    settings["data"]["class_names"] = ["A", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
    with open("model/%s/settings.json" % run["run_name"], "w") as file:
        json.dump(settings, file)
    random = np.random.RandomState(0)
    os.makedirs("other")
    for name, count in zip(list(mnist_loader.FILES)[::2], (60, 12)):
        write_images(os.path.join("other", name), random.randint(0, 256, (count, 28, 28)).astype(np.uint8))
    for name, count in zip(list(mnist_loader.FILES)[1::2], (60, 12)):
        write_labels(os.path.join("other", name), np.resize([1, 2, 9], count))
    content = Densenet.evaluate(**dict(run, data_dir="other"))
    assert content["images"] == 12 and np.sum(content["confusion_matrix"], 1).tolist() == [0, 4, 4, 0, 0, 0, 0, 0, 0, 4]


def test_names_of_classes_may_have_another_encoding(pets):
    """As in an archive that was made on macOS: a letter and an accent for what is one letter elsewhere."""
    path = "model/%s/settings.json" % pets["run_name"]
    settings = read(path)
    name, settings["data"]["class_names"][0] = settings["data"]["class_names"][0], "caf\xe9"
    with open(path, "w") as file:
        json.dump(settings, file)
    os.remove("model/%s/seen_images.npy" % pets["run_name"])
    shutil.copytree("pets", "mac")
    os.rename("mac/" + name, "mac/cafe\u0301")
    assert np.sum(Densenet.evaluate(**dict(pets, data_dir="mac"))["confusion_matrix"], 1).min() > 0


def test_a_network_may_be_named_as_in_training(pets):
    """Its parts may have been changed: the command of the training, with another mode, selects the run."""
    options = dict(dataset="folder", data_dir="pets", image_size=32, network="densenet_folder", run_name="named")
    Densenet.train(blocks=(1, 1), growth_k=4, total_epochs=1, validation_size=20, batch_size=16, **options)
    assert Densenet.evaluate(**options)["images"]
    with pytest.raises(UserError, match="was trained with network=densenet_folder, not densenet_40_12: leave that out"):
        Densenet.evaluate(**dict(options, network="densenet_40_12"))


@MNIST
def test_predict_says_that_it_does_not_read_other_data(run, capsys):
    image_files(run["run_name"])
    Densenet.predict(images="images", **run)
    assert "was trained on the images in" not in capsys.readouterr().out
    Densenet.predict(images="images", data_dir="images", run_name=run["run_name"])
    assert "was trained on the images in %s: mode=predict does not read data_dir=images" % os.path.abspath(
        run["data_dir"]) in capsys.readouterr().out


def test_other_data_than_the_digits_are_refused(folder):
    options = dict(dataset="digits", blocks=(1,), growth_k=2, batch_size=200, total_epochs=1, run_name="d")
    Densenet.train(**options)
    for use in (Densenet.evaluate, Densenet.export):
        with pytest.raises(UserError, match="model/d was trained on the digits .* leave data_dir out"):
            use(run_name="d", data_dir="elsewhere")
    assert Densenet.evaluate(run_name="d")["images"] == 359


@MNIST
def test_a_result_is_said_before_anything_is_written(run, capsys, monkeypatch):
    """A run on a disk that cannot be written is evaluated."""
    def full(*_):
        raise UserError("no room")

    monkeypatch.setattr(modes, "log_evaluation", full)
    with pytest.raises(UserError, match="no room"):
        Densenet.evaluate(**run)
    assert re.search(r"\ntest accuracy \d+\.\d\d%, .*loss \d", capsys.readouterr().out)


def test_test_images_that_an_earlier_version_drew_among_all_files_are_not_the_runs(pets, capsys):
    """It recorded neither how many files cannot be read nor, earlier still, the images that it was trained on."""
    with open("pets/ring/notes.txt", "w"):
        pass
    assert "data_dir" not in Densenet.evaluate(**pets)  # the draw does not depend on it
    path = "model/%s/settings.json" % pets["run_name"]
    settings = read(path)
    assert settings["data"].pop("skipped") is not None
    with open(path, "w") as file:
        json.dump(settings, file)
    os.remove("model/%s/seen_images.npy" % pets["run_name"])
    capsys.readouterr()
    assert "data_dir" in Densenet.evaluate(**pets)
    output = capsys.readouterr().out
    assert "did not record its training images" in output and "on other data than the run's" in output
    with pytest.raises(UserError, match="among which earlier versions drew test images, too: not recorded, now "):
        Densenet.train(**dict(TINY_FOLDER, data_dir="pets", total_epochs=2))


def test_images_of_the_run_with_other_pixels_are_pointed_out(pets, capsys):
    """As another version of Pillow may make them. Images of another folder need not be the run's."""
    path = "model/%s/seen_images.npy" % pets["run_name"]
    seen = np.load(path)
    np.save(path, np.concatenate([seen[3:], seen[:3] + 1]))
    Densenet.evaluate(**pets)
    assert "3 of the %d images that it was trained on or chosen by are not found again in this folder" % len(
        seen) in capsys.readouterr().out
    shutil.copytree("pets", "elsewhere")
    Densenet.evaluate(**dict(pets, data_dir="elsewhere"))
    assert "not found again" not in capsys.readouterr().out


def test_other_splits_of_the_same_images_are_other_data(pets, capsys):
    """As where an earlier version drew the test images among other files. The fingerprint does not show it."""
    path = "model/%s/seen_images.npy" % pets["run_name"]
    seen = np.load(path)
    np.save(path, seen[1:])
    content = Densenet.evaluate(**pets)
    assert "on other data than the run's" in capsys.readouterr().out and "data_dir" in content
    with pytest.raises(UserError, match="a run on other data .as many images, but other ones for"):
        Densenet.train(**dict(TINY_FOLDER, data_dir="pets", total_epochs=2))
    assert np.load(path).tolist() == seen[1:].tolist()


DEEP = dict(dataset="folder", image_size=16, blocks=(1,), growth_k=4, stem="3x3", batch_size=8, validation_size=4,
            total_epochs=3)


def write_greys(place, classes, span, dtype, count=12, factor=1, seed=0):
    """Writes images of random values from `low` to `low + span`, times `factor`; `classes`: [(name, low)]."""
    random = np.random.RandomState(seed)
    for name, low in classes:
        os.makedirs("%s/%s" % (place, name))
        for number in range(count):
            values = random.randint(low, low + span, (16, 16)).astype(dtype) * factor
            Image.fromarray(values).save("%s/%s/%d.png" % (place, name, number))


def test_other_deep_images_are_evaluated_with_a_scale_of_their_own(folder, capsys):
    """Of values that are 16 times as large, with a range 16 times as large, the result is the same."""
    for place, count, factor, seed in (("run", 12, 1, 0), ("same", 8, 1, 1), ("large", 8, 16, 1)):
        write_greys(place, (("dark", 0), ("light", 2000)), 2096, np.uint16, count, factor, seed)
    shutil.copy("run/dark/0.png", "large/dark/seen.png")
    Densenet.train(data_dir="run", run_name="deep", **DEEP)
    assert read("model/deep/settings.json")["data"]["pixel_range"] == [0, 4096]
    same = Densenet.evaluate(run_name="deep", data_dir="same")
    capsys.readouterr()
    large = Densenet.evaluate(run_name="deep", data_dir="large", pixel_range=(0, 65536))
    assert (large["accuracy"], large["loss"]) == (same["accuracy"], pytest.approx(same["loss"], rel=1e-5))
    assert "16 images are evaluated, 1 that it was trained on or chosen by are left out" in capsys.readouterr().out
    assert Densenet.evaluate(run_name="deep", data_dir="large")["loss"] != large["loss"]
    with pytest.raises(UserError, match="run are those of the run, which read them with pixel_range=0.*,4096.*: leave"):
        Densenet.evaluate(run_name="deep", pixel_range=(0, 65536))


def test_the_scale_of_a_run_is_kept_where_another_is_edited(folder, capsys, monkeypatch):
    write_greys("deep", (("dark", 0), ("light", 2000)), 2096, np.uint16)
    Densenet.train(data_dir="deep", run_name="deep", **DEEP)
    before = Densenet.predict(run_name="deep", images="deep/dark")
    monkeypatch.setattr(Densenet, "pixel_range", (0, 600))
    assert Densenet.predict(run_name="deep", images="deep/dark") == before
    Densenet.evaluate(run_name="deep")
    saved_model, _ = Densenet.export(run_name="deep")
    assert read(saved_model + "/model.json")["pixel_range"] == [0, 4096]
    with pytest.raises(UserError, match="deep was trained with pixel_range=0,4096, not 0,600: leave that out"):
        Densenet.export(run_name="deep", pixel_range=(0, 600))
    capsys.readouterr()
    assert Densenet.predict(run_name="deep", images="deep/dark", pixel_range=(0, 600)) != before
    assert ("model/deep was trained with pixel_range=0,4096: these images are read with pixel_range=0,600"
            in capsys.readouterr().out)
    recorded = read("model/deep/settings.json")
    del recorded["data"]["white_is_zero"]  # as earlier versions, which read such images otherwise
    with open("model/deep/settings.json", "w") as file:
        json.dump(recorded, file)
    Densenet.evaluate(run_name="deep")
    assert "read TIFF images of more than 8 bits with WhiteIsZero as negatives" in capsys.readouterr().out


def test_a_scale_that_concerns_no_image_does_not_matter(folder):
    write_greys("grey", (("dark", 0), ("light", 128)), 128, np.uint8)
    Densenet.train(data_dir="grey", run_name="grey", pixel_range=(0, 4095), **DEEP)
    before = Densenet.evaluate(run_name="grey")
    assert Densenet.evaluate(run_name="grey", pixel_range=(0, 4095)) == before


def test_a_run_remembers_that_it_used_truncated_images(folder):
    random = np.random.RandomState(0)
    for name in "ab":
        os.makedirs("pets/" + name)
        for number in range(18):
            path = "pets/%s/%d.png" % (name, number)
            Image.fromarray(random.randint(0, 256, (32, 32, 3)).astype(np.uint8)).save(path)
            if number % 3 == 0:
                os.truncate(path, os.path.getsize(path) * 3 // 4)
    Densenet.train(**dict(TINY_FOLDER, data_dir="pets", total_epochs=1, validation_size=4, truncated_images=True,
                          run_name="cut"))
    content = Densenet.evaluate(run_name="cut")
    assert content["images"] == read("model/cut/settings.json")["data"]["test"] and "data_dir" not in content
    with pytest.raises(UserError, match="truncated_images: True, now not recorded"):
        Densenet.train(**dict(TINY_FOLDER, data_dir="pets", total_epochs=1, validation_size=4, run_name="cut"))


@MNIST
def test_incomplete_runs_are_refused(run):
    settings = read("model/%s/settings.json" % run["run_name"])
    del settings["data"]["class_names"]
    os.makedirs("model/older")
    with open("model/older/settings.json", "w") as file:
        json.dump(settings, file)
    with pytest.raises(UserError, match="was trained by an earlier version"):
        Densenet.predict(run_name="older", images="a.png")
    os.makedirs("model/begun")
    shutil.copy("model/%s/settings.json" % run["run_name"], "model/begun")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        Densenet.evaluate(run_name="begun", data_dir=run["data_dir"])


def test_the_plain_command_finds_the_run_on_digits(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    Densenet.train(dataset="digits", blocks=(1, 1), growth_k=4, total_epochs=1, run_name="digits")
    assert trained_parts(run_name="digits")[0].dataset == "digits"
    os.rename("model/digits", "model/kept")
    with pytest.raises(UserError, match=r"of those in model \(kept\)"):
        trained_parts()
    os.rename("model/kept", "model/digits")
    assert trained_parts()[0].blocks == (1, 1)  # the plain command
    os.rename("model/digits", "model/source")
    Densenet.train(dataset="digits", weights="source", total_epochs=1)
    assert trained_parts(weights="source")[0].run_name == "digits-weights=source"


@pytest.fixture
def weights_alone(folder):
    """The arguments for weights of three classes from a file, and 30 images of noise for them, by class and number."""
    path = test_pretrained.write_safetensors("a.safetensors", test_pretrained.tiny_weights())
    random = np.random.RandomState(5)
    images = random.randint(0, 256, (3, 10, 32, 32, 3)).astype(np.uint8)
    for label, number in np.ndindex(3, 10):
        os.makedirs("noise/class %d" % label, exist_ok=True)
        Image.fromarray(images[label, number]).save("noise/class %d/%d.png" % (label, number))
    return dict(weights=path, image_size=32, crop_area=1.0), images


def test_weights_classify_without_a_run(weights_alone, capsys):
    given, images = weights_alone
    answers = Densenet.predict(images="noise", **given)
    assert "network: a.safetensors" in capsys.readouterr().out
    normalized = (images.reshape(30, 32, 32, 3) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    logits = test_pretrained.logits_with(given["weights"], normalized.astype(np.float32), 3).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = [[answer["probabilities"][answer["classes"].index("class %d" % label)] for label in range(3)]
             for answer in answers]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.once
def test_weights_are_evaluated_and_exported_without_a_run(weights_alone, capsys):
    given, images = weights_alone
    answers = Densenet.predict(images="noise", **given)
    right = [answer["classes"][0] == os.path.basename(os.path.dirname(answer["image"])) for answer in answers]
    own = dict(dataset="folder", data_dir="noise", pixel_range=(0, 4095), **given)
    begun = "model/%s" % Densenet.choose(**own).run_name  # a training that was stopped before it saved anything
    os.makedirs(begun)
    with open(begun + "/settings.json", "w") as file:
        json.dump({}, file)
    found = Densenet.evaluate(**own)
    assert found["images"] == 30 and found["accuracy"] == np.mean(right)
    assert "trained on" not in capsys.readouterr().out
    saved_model, _ = Densenet.export(**given)
    assert "random images: these weights come without a data set" in capsys.readouterr().out
    probabilities, class_names, *_ = served(saved_model, images.reshape(30, 32, 32, 3),
                                            [answer["image"] for answer in answers])
    assert [name.decode() for name in class_names] == [answer["classes"][0] for answer in answers]
    os.rename("noise/class 0", "noise/cat")
    sentence = ("noise has the class cat, and a.safetensors tells apart class 0, class 1, class 2, as nothing names "
                "its classes: name the folders of images after these")
    with pytest.raises(UserError, match=sentence):
        Densenet.evaluate(dataset="folder", data_dir="noise", **given)
    np.testing.assert_allclose(probabilities.max(1), [answer["probabilities"][0] for answer in answers], atol=1e-5)


def test_classes_are_found_by_imagenets_ids(weights_alone, monkeypatch):
    given, _ = weights_alone
    for label in range(3):
        os.rename("noise/class %d" % label, "noise/n0000000%d" % (2 - label))
    named = pretrained.with_class_names

    def with_ids(weights, cache_dir):
        named(weights, cache_dir).class_ids = ["n00000002", "n00000001", "n00000000"]
        return weights

    monkeypatch.setattr(pretrained, "with_class_names", with_ids)
    found = Densenet.evaluate(dataset="folder", data_dir="noise", **given)
    answers = Densenet.predict(images="noise", **given)
    right = ["n0000000%d" % (2 - int(answer["classes"][0][-1])) in answer["image"] for answer in answers]
    assert found["accuracy"] == np.mean(right)


def test_what_weights_cannot_do_without_a_run_is_refused(weights_alone, tiny_mnist):
    given, _ = weights_alone
    Densenet.train(**dict(TINY, data_dir=tiny_mnist, run_name="source", total_epochs=1))
    headless = test_pretrained.write_safetensors("b.safetensors", test_pretrained.tiny_weights(classes=0))
    one_output = test_pretrained.write_safetensors("c.safetensors", test_pretrained.tiny_weights(classes=1))
    several = test_pretrained.write_archive(  # an image can have several labels
        "d.keras", test_pretrained.keras_layers(test_pretrained.tiny_weights()),
        {"config": {"layers": test_pretrained.STEM + [
            test_pretrained.layer_of("BatchNormalization", epsilon=1e-3), test_pretrained.layer_of("ReLU"),
            test_pretrained.layer_of("GlobalAveragePooling2D"),
            test_pretrained.layer_of("Dense", activation="sigmoid")]}})
    for mode, changes, sentence in (
            ("predict", dict(run_name="none"), "no trained run model/none: .* leave run_name out to use the weights"),
            ("export", dict(dataset="folder"), "leave dataset out"),
            ("predict", dict(weights="source", image_size=None), "no trained run model/.*weights=source.*: leave mode "
             "out to train it from the weights of run source, or give run_name=source, and no weights"),
            ("predict", dict(weights=headless), "b.safetensors has no classifier: leave mode= out to train one"),
            ("predict", dict(weights=one_output), "outputs of c.safetensors .1. are not the probabilities of classes"),
            ("export", dict(weights=one_output), "outputs of c.safetensors .1. are not the probabilities of classes"),
            ("evaluate", dict(weights=several), "outputs of d.keras .3. are not .*: leave mode= out to train a class"),
            ("predict", dict(growth_k=5), "does not fit the network")):
        with pytest.raises(UserError, match=sentence):
            arguments = dict(given, **dict({"images": "noise"} if mode == "predict" else {}, **changes))
            getattr(Densenet, mode)(**{name: value for name, value in arguments.items() if value is not None})
