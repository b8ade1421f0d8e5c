"""Classification of image files by a trained run: mode=predict."""

import json
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import main, read, trained_parts
from PIL import Image
from test_image_folder import shapes  # noqa: F401
from test_modes import ALL, MNIST, image_files, run, runs  # noqa: F401

import Densenet
from support import UserError, prediction
from support.data import color_preprocessing
from support.image_reading import read_image
from support.modes import preparation_of
from support.networks import extent_of_maps
from support.pictures import WHOLE, is_heat_map
from support.prefetch import mapped_by_threads
from support.weight_average import averages_first


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
    assert answers[1]["probabilities"] == pytest.approx(answers[4]["probabilities"], abs=1e-6)  # of other batches
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
    config, directory, facts = trained_parts(**run)
    with tf.Graph().as_default(), tf.Session() as sess:
        images = tf.placeholder(tf.float32, [None] + facts["image_shape"])
        probabilities = tf.nn.softmax(Densenet.inference(images, config, len(facts["class_names"])).logits)
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
    """The whole working directory is given: what is written is passed over, other files are classified."""
    Densenet.export(**run)
    image_files(run["run_name"])
    os.rename("images/0.png", "0.png")
    os.makedirs("only")
    for name in ("model", "logs", "export", "images", "0.png"):
        os.rename(name, os.path.join("only", name))
    os.chdir("only")
    assert [answer["image"] for answer in Densenet.predict(images=".", **run)] == [
        "./0.png", "./images/1.png", "./images/2.png", "./images/3.png"]


@MNIST
def test_the_answers_may_lie_beside_the_images(run, monkeypatch, capsys):  # noqa: F811
    """They are no image, and a command that is stopped does not replace those that are complete, and says so."""
    image_files(run["run_name"])
    for _ in range(2):
        answers = Densenet.predict(images="images", json="images/answers.json", **run)
        assert len(answers) == 4 and read("images/answers.json") == answers
    assert len(Densenet.predict(images="images", **run)) == 4

    def stopped(*arguments):
        yield answers[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "_answers", stopped)
    with pytest.raises(KeyboardInterrupt):
        Densenet.predict(images="images", json="images/answers.json", **run)
    assert read("images/answers.json") == answers
    assert "images/answers.json keeps the answers that it had before" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        Densenet.predict(images="images", json="new.json", **run)
    assert read("new.json") == answers[:1] and "new.json has the answers so far: 1" in capsys.readouterr().out


@MNIST
def test_an_image_unlike_the_training_images_is_pointed_out(run, capsys):  # noqa: F811
    """The training images have stripes as bright as 250 on dark noise; these pictures are unlike them."""
    page = np.full([200, 300], 255, np.uint8)
    page[30:90, 100:120] = 0
    Image.fromarray(page).save("page.png")
    Image.fromarray(np.zeros([28, 28], np.uint8)).save("black.png")
    answers = Densenet.predict(images=["page.png", "black.png"], **run)
    assert answers[0]["unlike"] == ["its background is lighter than that of all training images"]
    assert answers[1]["unlike"] == ["it is almost blank: what is drawn may be too small, pale or transparent"]
    output = capsys.readouterr().out
    assert "page.png  unlike the training images: its background is lighter" in output
    assert output.count("handwriting=True makes each image as MNIST's were made") == 1

    with_it = Densenet.predict(images="page.png", handwriting=True, **run)
    assert with_it[0].get("unlike") != answers[0]["unlike"]
    assert "handwriting=True" not in capsys.readouterr().out
    with pytest.raises(UserError, match="handwriting belongs to mode=predict"):
        Densenet.evaluate(handwriting=True, **run)


@MNIST
def test_handwriting_is_read_as_other_images_are(run, capsys):  # noqa: F811
    page = np.full([200, 300], 255, np.uint8)
    page[30:90, 100:120] = 0
    Image.fromarray(page).save("whole.jpg")
    with open("whole.jpg", "rb") as file:
        content = file.read()
    for name, size in (("noend.jpg", -2), ("half.jpg", -len(content) // 4)):
        with open(name, "wb") as file:
            file.write(content[:size])
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.rot90(page)).save("turned.png", exif=turned)
    answers = Densenet.predict(images=["whole.jpg", "noend.jpg", "turned.png"], handwriting=True, **run)
    for answer in answers[1:]:
        np.testing.assert_allclose(answer["probabilities"], answers[0]["probabilities"], atol=0.02)
    with pytest.raises(UserError, match="1 of 1 files were skipped"):
        Densenet.predict(images="half.jpg", handwriting=True, **run)
    Densenet.predict(images="half.jpg", handwriting=True, truncated_images=True, **run)
    assert "half.jpg  truncated" in capsys.readouterr().out


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
        assert answers[name + ".png"]["probabilities"] == pytest.approx(shallow["probabilities"], abs=1e-6)
    (given,) = Densenet.predict(images="b.png", pixel_range=(0, 4096), **run)
    assert given["probabilities"] == pytest.approx(answers["b.png"]["probabilities"], abs=1e-6)


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


@ALL
def test_heat_maps_show_the_map_of_the_first_class(run, monkeypatch):  # noqa: F811
    """Each is compared with what the features and the classifier's kernel of the checkpoint give."""
    pixels = image_files(run["run_name"])
    drawn, draw = [], prediction.heat_map

    def recorded(*arguments):
        drawn.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(prediction, "heat_map", recorded)
    answers = Densenet.predict(images="images", heatmaps="maps", **run)
    assert [answer["heatmap"] for answer in answers] == ["maps/%d.png.png" % index for index in range(4)]
    assert all(is_heat_map(answer["heatmap"]) for answer in answers) and len(os.listdir("maps")) == 4
    config, directory, facts = trained_parts(**run)
    names, size = facts["class_names"], facts["image_shape"][0]
    for answer, (picture, _, name, probability, extent) in zip(answers, drawn):
        assert extent == extent_of_maps(config, size)
        assert (name, probability) == (answer["classes"][0], answer["probabilities"][0])
        assert picture.shape[0] == picture.shape[1] >= 300 and picture.shape[0] % size == 0
        assert Image.open(answer["heatmap"]).width >= picture.shape[1]
    if config.crop_area < 1:  # then the network gets other pixels than those of the files
        return
    checkpoint = tf.train.latest_checkpoint(os.path.join(directory.path, "best"))
    reader = tf.train.load_checkpoint(checkpoint)
    with tf.Graph().as_default(), tf.Session() as sess:
        images = tf.placeholder(tf.float32, [None] + facts["image_shape"])
        features = Densenet.inference(images, config, len(names)).features
        sources = averages_first(reader.get_variable_to_shape_map())
        tf.train.Saver({sources[variable.op.name]: variable for variable in tf.global_variables()}).restore(
            sess, checkpoint)
        mean, deviation = (reader.get_tensor("normalization/" + name) for name in ("mean", "deviation"))
        features = sess.run(features, {images: color_preprocessing(pixels, mean, deviation)}).astype(np.float64)
    kernel = reader.get_tensor(sources["linear/kernel"]).astype(np.float64)
    for found, (_, class_map, name, *_) in zip(features, drawn):
        expected = found @ kernel[:, names.index(name)]
        np.testing.assert_allclose(class_map, expected, atol=0.03 * np.abs(expected).max())  # bfloat16 in one run


@MNIST
def test_heat_maps_of_images_of_one_name_have_names_of_their_own(run, capsys):  # noqa: F811
    image_files(run["run_name"])
    for folder in ("photos/a", "photos/b/c"):
        os.makedirs(folder)
        for name in ("1.png", "1.jpg"):
            Image.open("images/1.png").save(folder + "/" + name)
    files = ["photos/a/1.jpg", "photos/a/1.png", "photos/b/c/1.jpg", "photos/b/c/1.png"]
    answers = Densenet.predict(images=["photos", "photos/../photos/a/1.png"], heatmaps="maps", json="a.json", **run)
    assert [answer["image"] for answer in answers] == files + ["photos/../photos/a/1.png"]
    assert [answer["heatmap"] for answer in answers] == [
        file.replace("photos", "maps") + ".png" for file in files] + ["maps/a/1.png.png"]  # the same image as before
    assert all(is_heat_map(answer["heatmap"]) for answer in answers)
    assert read("a.json") == answers and "heat maps of 4 images: maps" in capsys.readouterr().out
    assert not [name for _, _, names in os.walk("maps") for name in names if not name.endswith(".png")]


@MNIST
@pytest.mark.parametrize("name,content", [("a.png", None), ("package.json", b'{"mine": 1}'), ("notes", b"mine"),
                                          ("labels.json", b'[{"image": "1.png", "class": "seven"}]'),
                                          ("list.json", b"[1, 2]")])
def test_answers_replace_no_other_file(run, name, content):  # noqa: F811
    Image.new("L", (28, 28)).save("a.png")
    if content:
        with open(name, "wb") as file:
            file.write(content)
    with open(name, "rb") as file:
        before = file.read()
    with pytest.raises(UserError, match="^json=%s is there and is no file of answers: give the name of a new" % name):
        Densenet.predict(images="a.png", json=name, **run)
    with open(name, "rb") as file:
        assert file.read() == before


@MNIST
def test_answers_are_kept_where_there_are_no_new_ones(run, monkeypatch):  # noqa: F811
    image_files(run["run_name"])
    answers = Densenet.predict(images="images", json="answers.json", **run)

    def interrupted(*_):
        raise KeyboardInterrupt

    for arguments, error in (({}, KeyboardInterrupt), ({"checkpoint": "dense.ckpt-99"}, UserError)):
        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(prediction, "_answers", interrupted)
            Densenet.predict(images="images", json="answers.json", **dict(run, **arguments))
        assert read("answers.json") == answers and not os.path.exists("answers.json.new")
    with pytest.raises(UserError, match="1 of 1 files were skipped"):
        Densenet.predict(images="absent.png", json="answers.json", **run)
    assert read("answers.json") == answers


@MNIST
def test_what_a_file_is_called_stays_in_its_line(run, capsys):  # noqa: F811
    image_files(run["run_name"])
    os.rename("images/0.png", "images/a\nb.png")
    os.rename("images/1.png", "images/\x1b[31m.png")
    with open("images/c\nd.png", "w"):
        pass
    with pytest.raises(UserError, match="1 of 5"):
        Densenet.predict(images="images", json="answers.json", **run)
    lines = capsys.readouterr().out.split("\n")
    for name in ("a\nb.png", "\x1b[31m.png", "c\nd.png"):
        assert [line for line in lines if line.startswith(repr("images/" + name) + "  ")], name
    assert {answer["image"] for answer in read("answers.json")} >= {"images/a\nb.png", "images/\x1b[31m.png"}


@MNIST
def test_heat_maps_replace_earlier_ones_and_nothing_else(run):  # noqa: F811
    image_files(run["run_name"])
    os.makedirs("maps")
    Image.new("L", (5, 5)).save("maps/2.png.png")
    with open("answers.json", "w") as file:
        file.write("[1]")
    with pytest.raises(UserError, match=r"maps/2\.png\.png is there and is no heat map, but the one of images/2\.png"):
        Densenet.predict(images="images", heatmaps="maps", json="answers.json", **run)
    assert os.listdir("maps") == ["2.png.png"] and Image.open("maps/2.png.png").size == (5, 5)
    assert read("answers.json") == [1]
    Densenet.predict(images="images/1.png", heatmaps="maps", **run)
    Densenet.predict(images="images/1.png", heatmaps="maps", **run)
    assert sorted(os.listdir("maps")) == ["1.png.png", "2.png.png"]
    with pytest.raises(UserError, match=r"cannot write the heat maps in images/1\.png \(.*set heatmaps to"):
        Densenet.predict(images="images/1.png", heatmaps="images/1.png", **run)


@MNIST
def test_heat_maps_are_not_classified(run):  # noqa: F811
    image_files(run["run_name"])
    for _ in range(2):
        answers = Densenet.predict(images="images", heatmaps="images/maps", **run)
        assert [answer["image"] for answer in answers] == ["images/%d.png" % index for index in range(4)]
    with open("images/no.png", "w") as file:
        file.write("no image")
    Image.new("L", (9, 9)).save("images/maps/mine.png")
    with pytest.raises(UserError, match="1 of 6 files were skipped"):
        Densenet.predict(images="images", heatmaps="others", **run)
    assert sorted(os.listdir("others")) == ["%d.png.png" % index for index in range(4)] + ["maps"]
    (answer,) = Densenet.predict(images="images/maps/0.png.png", **run)  # named by itself
    assert answer["image"] == "images/maps/0.png.png"


@MNIST
def test_the_heat_map_of_handwriting_shows_what_the_network_gets(run, monkeypatch):  # noqa: F811
    """Black on white; the network gets it white on black, cropped and centred."""
    page = np.full([200, 300], 255, np.uint8)
    page[30:90, 100:120] = 0
    Image.fromarray(page).save("page.png")
    pictures = []
    monkeypatch.setattr(prediction, "heat_map", lambda picture, *_: pictures.append(picture) or b"")
    Densenet.predict(images="page.png", handwriting=True, heatmaps="maps", **run)
    (picture,) = pictures
    assert picture.shape == (308, 308, 1) and picture[0, 0, 0] == 0 and picture[154, 154, 0] > 200
    np.testing.assert_array_equal(picture, picture[::11, ::11].repeat(11, 0).repeat(11, 1))


@pytest.mark.parametrize("run", ["folder"], indirect=True)
def test_a_heat_map_shows_the_part_of_the_file_that_the_network_gets(run, monkeypatch):  # noqa: F811
    """Finer than the network gets it: the photo is a ramp of brightness from left to right, wider than high."""
    photo = np.tile(np.linspace(0, 255, 1200), (900, 1)).astype(np.uint8)
    Image.fromarray(photo).convert("RGB").save("photo.png")
    found = []
    monkeypatch.setattr(prediction, "heat_map", lambda picture, *_: found.append(picture) or b"")
    Densenet.predict(images="photo.png", heatmaps="maps", **run)
    config, _, facts = trained_parts(**run)
    rule = preparation_of(config, facts)
    left, _, right, _ = rule["crop"]
    (picture,) = found
    shown = [150 + 900 * edge / rule["resize"] for edge in (left, right)]  # columns of the photo
    expected = np.linspace(*shown, len(picture) + 1)[:-1] + (shown[1] - shown[0]) / len(picture) / 2
    np.testing.assert_allclose(picture[5, :, 1], expected / 1199 * 255, atol=2)


def test_maps_of_one_pixel_are_said_to_show_no_places(folder, capsys):
    maps = prediction._HeatMaps("maps", ["a.png"], WHOLE)
    maps.write({"image": "a.png", "classes": ["dog"], "probabilities": [1.0]}, np.zeros([300, 300, 1], np.uint8),
               np.ones([1, 1], np.float32))
    maps.conclude()
    assert "have one pixel, so that heat maps cannot show where" in capsys.readouterr().out


def test_batches_grow_and_answers_keep_the_order_of_the_files():
    """Of 60 files, every seventh cannot be read. The first image is classified alone: its answer comes at once."""
    sizes, reads = [], []

    def read(number):
        reads.append(number)
        return prediction._Read(number, None if number % 7 == 6 else np.full([2, 2, 1], number), None, [])

    def run(pixels):  # noqa: F811
        sizes.append(len(pixels))
        return [pixels[:, 0, 0, 0] * 10]

    found = mapped_by_threads(read, range(60), prediction.AHEAD)
    answers = [next(answer) for answer in [prediction._classified(found, run)]]
    assert sizes == [1] and len(reads) <= 2 * prediction.LARGEST_BATCH + 1  # no more is kept in memory
    answers += prediction._classified(found, run)
    assert [one.file for one, _ in answers] == list(range(60))
    assert [result and result[0] for _, result in answers] == [
        None if number % 7 == 6 else number * 10 for number in range(60)]
    assert max(sizes) <= prediction.LARGEST_BATCH and sum(sizes) == 52
