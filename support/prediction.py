"""How are image files classified by a trained run?"""

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image

from support import UserError, say
from support.appearance import as_handwriting, differences, is_handwritten
from support.checkpoints import Checkpoints
from support.folder_layout import files_under
from support.image_reading import range_of, read_image
from support.modes import preparation_of, serving_graph, trained_run
from support.run_directory import write_json
from support.settings import expanded
from support.workers import Cluster


def predict(choose, inference, arguments=(), **overrides):
    """Classifies image files with a run's network; prints each answer.

    Args:
        choose, inference: the functions of Densenet.py.
        arguments, overrides: settings, as for training.
    Returns:
        [{"image": path, "classes": [names, the most probable first], "probabilities": [of these]}]; an answer for an
        image unlike the training images also has "unlike": [what makes it so].
    Raises:
        UserError: bad settings, no such run, no intact checkpoint; after all answers, if files were skipped.
    """
    config, directory, facts = trained_run(choose, arguments, **overrides)
    if config.handwriting and not is_handwritten(config.dataset):
        raise UserError("handwriting=True is for networks trained on handwritten characters, such as MNIST's, not on "
                        "%s: leave it out" % config.dataset)
    files = _files(config)
    if config.json:
        write_json(config.json, [], "json")  # now: an error after the work would lose it
    answers = []
    reading = _Reading(config, facts, directory.read_json("appearance.json") or {}, files)
    with tf.Graph().as_default(), tf.Session(config=Cluster().session_config()) as sess:
        images, probabilities, _ = serving_graph(inference, config, facts)
        say("network: %s" % Checkpoints(directory).restore_for_use(sess, config.checkpoint, facts["validation"]))
        try:
            for file in files:
                pixels = reading.pixels_of(file)
                if pixels is not None:
                    answer = _answer(file, sess.run(probabilities, {images: pixels[None]})[0], facts["class_names"])
                    answers.append(dict(answer, **reading.warning(file, pixels)))
        finally:
            if config.json:
                write_json(config.json, answers, "json")
    reading.advise()
    if len(answers) < len(files):
        raise UserError("%d of %d files were skipped, as said above" % (len(files) - len(answers), len(files)))
    return answers


def _files(config):
    """The files that `images` names: files, folders, patterns. Raises UserError if there are none."""
    if not config.images:
        raise UserError("mode=predict classifies images: name files or folders, images=a.png,folder/")
    written = (config.model_dir, config.log_dir, config.cache_dir)
    files = [file for path in expanded(config.images) for file in files_under(path, written)]
    if not files:
        raise UserError("there are no files in %s" % ", ".join(config.images))
    return files


class _Reading:
    """Reads image files as the network gets them, and notices those that do not look like the training images.

    Args:
        config: the settings of the run and of this command.
        facts: what the run recorded of its data.
        appearance: see `support.appearance.appearance_of`; empty for runs that did not record it.
        files: all files that will be read; where the run has no scale for deep images, theirs is found.
    """

    def __init__(self, config, facts, appearance, files):
        self.config, self.appearance = config, appearance
        self.preparation = preparation_of(config, facts)
        self.handwritten = is_handwritten(config.dataset)
        self.unlike = 0
        self.pixel_range = config.pixel_range if config.pixel_range != "auto" else facts.get("pixel_range")
        if self.pixel_range is None and appearance and not config.handwriting:  # not for runs of earlier versions
            self.pixel_range, notes = range_of(files, config.truncated_images)
            for note in notes:
                say(note)

    def pixels_of(self, file):
        """uint8 [size, size, channels] of an image file; None, and a line, if it cannot be read."""
        rule = self.preparation
        try:
            if self.config.handwriting:
                with Image.open(file) as image:
                    return as_handwriting(image, rule["size"], self.appearance)
            left, top, right, bottom = rule["crop"]
            notes = []
            pixels = read_image(file, rule["resize"], rule["channels"], self.pixel_range, self.config.truncated_images,
                                notes)
            for note in notes:
                say("%s  %s" % (file, note))
            return pixels[top:bottom, left:right]
        except Exception as error:  # of any kind: see read_image
            problem = getattr(error, "strerror", None) or "no image: %s" % " ".join(str(error).split())
            say("%s  skipped (%s)" % (file, problem))
            return None

    def warning(self, file, pixels):
        """Says what makes the pixels unlike the training images; returns that as a part of the answer."""
        found = differences(pixels, self.appearance, self.handwritten)
        if not found:
            return {}
        self.unlike += 1
        say("%s  unlike the training images: %s" % (file, "; ".join(found)))
        return {"unlike": found}

    def advise(self):
        """Says what would help, if any image was unlike the training images."""
        if self.unlike and self.handwritten and not self.config.handwriting:
            say("handwriting=True makes each image as MNIST's were made: white on black, cropped, centred")


def _answer(file, probabilities, class_names):
    """Prints the three most probable classes of a file; returns its part of the answers."""
    order = np.argsort(-probabilities)
    say("%s  %s" % (file, "  ".join("%s %.2f%%" % (class_names[index], 100 * probabilities[index])
                                    for index in order[:3])))
    return {"image": file, "classes": [class_names[index] for index in order],
            "probabilities": probabilities[order].tolist()}
