"""Classification of image files by a trained run: mode=predict."""

import json
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import main, read
from PIL import Image
from test_image_folder import shapes  # noqa: F401
from test_modes import ALL, MNIST, image_files, run, runs  # noqa: F401

import Densenet
from support import UserError, modes
from support.data import color_preprocessing
from support.image_reading import read_image
from support.modes import preparation_of


@ALL
def test_predict(run, capsys):  # noqa: F811
    pixels = image_files(run["run_name"])
    with open("images/no.png", "w") as file:
        file.write("no image")
    arguments = ["run_name=" + run["run_name"], "mode=predict", "json=answers.json"]
    assert main(arguments + ["images=images,images/1.png,absent.png"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("skipped") == 2 and "images/no.png  skipped (no image" in captured.out and (
        "absent.png  skipped (No such file" in captured.out)
    assert captured.err == "Densenet.py: 2 of 7 files were skipped, as said above\n"
    with open("answers.json") as file:
        answers = json.load(file)
    assert [answer["image"] for answer in answers] == ["images/%d.png" % index for index in (0, 1, 2, 3, 1)]
    assert answers[1] == answers[4]
    settings = read("model/%s/settings.json" % run["run_name"])
    for answer in answers:
        assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert answer["probabilities"] == sorted(answer["probabilities"], reverse=True)
        assert sorted(answer["classes"]) == sorted(settings["data"]["class_names"])

    if settings.get("crop_area", 1.0) == 1.0:  # the network sees the unchanged pixels of the files
        for answer, expected in zip(answers, by_the_training_network(run, pixels)):
            names = settings["data"]["class_names"]
            found = dict(zip(answer["classes"], answer["probabilities"]))
            np.testing.assert_allclose([found[name] for name in names], expected, atol=0.02)


def by_the_training_network(run, pixels):  # noqa: F811
    """Returns the probabilities of uint8 images from the graph that training evaluates, in the run's precision."""
    config, directory, facts = modes.trained_run(Densenet.choose, **run)
    with tf.Graph().as_default(), tf.Session() as sess:
        images = tf.placeholder(tf.float32, [None] + facts["image_shape"])
        probabilities = tf.nn.softmax(Densenet.inference(images, config, len(facts["class_names"])))
        best = tf.train.latest_checkpoint(os.path.join(directory.path, "best"))
        tf.train.Saver().restore(sess, best)
        reader = tf.train.load_checkpoint(best)
        mean, deviation = (reader.get_tensor("normalization/" + name) for name in ("mean", "deviation"))
        return sess.run(probabilities, {images: color_preprocessing(pixels, mean, deviation)})


@MNIST
def test_paths_with_commas_and_patterns(run):  # noqa: F811
    image_files(run["run_name"])
    os.rename("images/0.png", "images/Smith, John.png")
    found = Densenet.predict(["images=images/[1-3].png,images/Smith, John.png"], **run)
    assert [answer["image"] for answer in found] == ["images/%s.png" % name for name in (1, 2, 3, "Smith, John")]
    with pytest.raises(UserError, match=r"images/\*.jpg"):
        Densenet.predict(images="images/*.jpg", **run)


@MNIST
def test_what_the_program_writes_is_not_classified(run):  # noqa: F811
    """The whole working directory is given: models and logs are passed over, other files are classified."""
    image_files(run["run_name"])
    os.rename("images/0.png", "0.png")
    os.makedirs("only")
    for name in ("model", "logs", "images", "0.png"):
        os.rename(name, os.path.join("only", name))
    os.chdir("only")
    assert [answer["image"] for answer in Densenet.predict(images=".", **run)] == [
        "./0.png", "./images/1.png", "./images/2.png", "./images/3.png"]


@MNIST
def test_an_image_unlike_the_training_images_is_pointed_out(run, capsys):  # noqa: F811
    """The training images have stripes as bright as 250 on dark noise; these pictures are unlike them."""
    page = np.full([200, 300], 255, np.uint8)
    page[30:90, 100:120] = 0
    Image.fromarray(page).save("page.png")
    Image.fromarray(np.zeros([28, 28], np.uint8)).save("black.png")
    answers = Densenet.predict(images=["page.png", "black.png"], **run)
    assert answers[0]["unlike"] == ["its background is lighter than that of all training images"]
    assert answers[1]["unlike"] == ["it is almost blank"]
    output = capsys.readouterr().out
    assert "page.png  unlike the training images: its background is lighter" in output
    assert output.count("handwriting=True makes each image as MNIST's were made") == 1

    with_it = Densenet.predict(images="page.png", handwriting=True, **run)
    assert with_it[0].get("unlike") != answers[0]["unlike"]
    assert "handwriting=True" not in capsys.readouterr().out
    with pytest.raises(UserError, match="handwriting belongs to mode=predict"):
        Densenet.evaluate(handwriting=True, **run)


@pytest.mark.parametrize("run", ["folder"], indirect=True)
def test_photographs_have_no_handwriting(run):  # noqa: F811
    image_files(run["run_name"])
    with pytest.raises(UserError, match="handwriting=True is for networks trained on handwritten characters"):
        Densenet.predict(images="images", handwriting=True, **run)


@MNIST
def test_deep_images_share_one_scale(run, capsys):  # noqa: F811
    """12-bit values in 16-bit files, one of them dark: all are divided by 16, none by its own maximum."""
    values = np.random.RandomState(0).randint(0, 4096, [2, 28, 28]).astype(np.uint16)
    values[1] //= 16
    values[0, 0, 0] = 4095
    for name, image in zip("ab", values):
        Image.fromarray(image).save(name + ".png")
        Image.fromarray((image // 16).astype(np.uint8)).save(name + "8.png")
    answers = {answer["image"]: answer for answer in Densenet.predict(images=["a.png", "b.png"], **run)}
    for name in "ab":
        (shallow,) = Densenet.predict(images=name + "8.png", **run)
        assert answers[name + ".png"]["probabilities"] == shallow["probabilities"]
    (given,) = Densenet.predict(images="b.png", pixel_range=(0, 4096), **run)
    assert given["probabilities"] == answers["b.png"]["probabilities"]


def test_the_preparation_of_an_export_is_that_of_predict(tmp_path):
    """For random crops, stored images are larger by 8/7 and the network gets their centre."""
    config = Densenet.choose(dataset="folder", image_size=64, crop_area=0.5)
    rule = preparation_of(config, {"image_shape": [64, 64, 3], "class_names": ["a", "b"]})
    assert (rule["resize"], rule["crop"], rule["size"], rule["mode"]) == (73, [4, 4, 68, 68], 64, "RGB")
    Image.fromarray(np.random.RandomState(0).randint(0, 256, [90, 120, 3]).astype(np.uint8)).save(
        str(tmp_path / "a.png"))
    pixels = read_image(str(tmp_path / "a.png"), rule["resize"], 3)
    cropped = Image.fromarray(pixels).crop(rule["crop"])
    np.testing.assert_array_equal(np.asarray(cropped), pixels[4:68, 4:68])
