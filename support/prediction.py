"""How are image files classified by a trained run, and how is shown what in each image the answer is due to?"""

import collections
import contextlib
import itertools
import json
import math
import os

import numpy as np
import tensorflow.compat.v1 as tf

from support import UserError, say
from support.appearance import as_handwriting, differences, is_handwritten
from support.file_reading import printable
from support.folder_layout import files_under, heat_map_name
from support.image_reading import opened, range_of, read_image, upright
from support.modes import preparation_of, serving_graph, trained_network
from support.networks import extent_of_maps
from support.pictures import CARD, heat_map, is_heat_map
from support.prefetch import mapped_by_threads
from support.run_directory import check_writable, replace_file, write_json
from support.settings import expanded
from support.workers import Cluster

PICTURE_SIDE = CARD  # pixels, at least, of the image in a heat map
LARGEST_BATCH = 16  # images; more are hardly faster
AHEAD = 2 * LARGEST_BATCH  # files that are read in advance


def predict(choose, inference, arguments=(), **overrides):
    """Classifies image files with a run's network; prints each answer.

    Args:
        choose, inference: the functions of Densenet.py.
        arguments, overrides: settings, as for training.
    Returns:
        [{"image": path, "classes": [names, the most probable first], "probabilities": [of these]}]; an answer for an
        image unlike the training images also has "unlike": [what makes it so], one with a heat map "heatmap": its path.
    Raises:
        UserError: bad settings, no such run, no intact checkpoint; a heat map would replace another file; after all
            answers, if files were skipped.
    """
    trained = trained_network(choose, arguments, **overrides)
    config, directory, facts = trained.config, trained.directory, trained.facts
    if config.handwriting and not is_handwritten(config.dataset):
        raise UserError("handwriting=True is for networks trained on handwritten characters, such as MNIST's, not on "
                        "%s: leave it out" % config.dataset)
    files = _files(config)
    extent = extent_of_maps(config, facts["image_shape"][0])
    heat_maps = _HeatMaps(config.heatmaps, files, extent) if config.heatmaps else None
    if config.json:
        _check_json(config.json)  # now: an error after the work would lose it
    answers, complete = [], False
    reading = _Reading(config, facts, directory.read_json("appearance.json") or {}, files)
    with tf.Graph().as_default(), tf.Session(config=Cluster().session_config()) as sess:
        images, probabilities, *maps = serving_graph(inference, config, facts)
        say("network: %s" % trained.restore(sess))
        try:
            fetched = [probabilities] + (maps if heat_maps else [])
            for answer in _answers(files, reading, lambda pixels: sess.run(fetched, {images: pixels}),
                                   facts["class_names"], heat_maps):
                answers.append(answer)
            complete = True
        finally:
            if not complete and os.path.exists(config.json):
                say("%s keeps the answers that it had before" % config.json)
            elif config.json and answers:  # else an earlier file's are kept
                write_json(config.json, answers, "json")
                if not complete:
                    say("%s has the answers so far: %d" % (config.json, len(answers)))
    reading.advise()
    if heat_maps:
        heat_maps.conclude()
    if len(answers) < len(files):
        raise UserError("%d of %d files were skipped, as said above" % (len(files) - len(answers), len(files)))
    return answers


def _answers(files, reading, run, class_names, heat_maps):
    """Yields the answer for each file that can be read; `run`: pixels [N, …] to [probabilities, class activation maps].

    The files are read by all cores and classified together: one, two, four, … so that the first answer comes at once.
    """
    side = PICTURE_SIDE if heat_maps else None
    with contextlib.closing(mapped_by_threads(lambda file: reading.read(file, side), files, AHEAD)) as found:
        for read, result in _classified(found, run):
            reading.report(read)
            if result is not None:
                probabilities, *maps = result
                answer = _answer(read.file, probabilities, class_names)
                answer.update(reading.warning(read.file, read.pixels))
                if heat_maps:
                    answer["heatmap"] = heat_maps.write(answer, read.picture, maps[0])
                yield answer


def _classified(found, run):
    """Yields each _Read with what `run` returns for its image, None where there is no image."""
    size = 1
    batch = list(itertools.islice(found, size))
    while batch:
        readable = [read.pixels for read in batch if read.pixels is not None]
        results = zip(*run(np.stack(readable))) if readable else iter(())
        for read in batch:
            yield read, None if read.pixels is None else next(results)
        size = min(2 * size, LARGEST_BATCH)
        batch = list(itertools.islice(found, size))


def _files(config):
    """The files that `images` names: files, folders, patterns. Raises UserError if there are none."""
    if not config.images:
        raise UserError("mode=predict classifies images: name files or folders, images=a.png,folder/")
    written = (config.model_dir, config.log_dir, config.cache_dir, config.export_dir)
    found = [(path, file) for path in expanded(config.images) for file in files_under(path, written)]
    # The answers may lie in a folder of images.
    own = os.path.realpath(config.json) if config.json else None
    files = [file for path, file in found if file == path or os.path.realpath(file) != own]
    if not files:
        raise UserError("there are no files in %s" % ", ".join(config.images))
    for file in files:
        if os.path.exists(file) and not os.path.isfile(file):  # it is read more than once
            raise UserError("%s is a pipe or a device: images= takes names of files" % file)
    return files


def _check_json(path):
    """Raises UserError if a file for the answers cannot be written, or if that would destroy anything but answers."""
    check_writable(path, "json")
    if os.path.isfile(path) and os.path.getsize(path):
        try:
            with open(path, encoding="utf-8") as file:
                answers = json.load(file)
        except (OSError, ValueError):
            answers = None
        if not (isinstance(answers, list) and all(
                isinstance(answer, dict) and {"image", "classes", "probabilities"} <= set(answer)
                for answer in answers)):
            raise UserError("json=%s is there and is no file of answers: give the name of a new file" % path)


# What was read of a file: see `_Reading.read`; `notes` are lines for the user.
_Read = collections.namedtuple("_Read", "file pixels picture notes")


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
        self.pixel_range = self.preparation["pixel_range"]
        if self.pixel_range is None and appearance and not config.handwriting:  # not for runs of earlier versions
            self.pixel_range, notes = range_of(files, config.truncated_images)
            if self.pixel_range and config.pixel_range == "auto":
                say("images with more than 8 bits: their values %g to %g, as found in these files, become black to "
                    "white; pixel_range=%g,%g keeps this scale for others" % (self.pixel_range * 2))
            for note in notes:
                say(note)

    def read(self, file, picture_side=None):
        """Reads an image file; may be called by several threads.

        Returns:
            a _Read: `pixels` are uint8 [size, size, channels], as the network gets them; `picture` is the same for
            people to look at, with at least `picture_side` pixels a side, None where that is; both are None if the
            file cannot be read.
        """
        notes = []
        try:
            pixels = self._pixels_of(file, 1, notes)
            zoom = math.ceil(picture_side / len(pixels)) if picture_side else 0
            return _Read(file, pixels, self._pixels_of(file, zoom, []) if zoom else None, notes)
        except Exception as error:  # of any kind: see read_image
            problem = getattr(error, "strerror", None) or "no image: %s" % " ".join(str(error).split())
            return _Read(file, None, None, ["skipped (%s)" % problem])

    def report(self, read):
        """Prints what is to be said of how a file was read, a _Read."""
        for note in read.notes:
            say("%s  %s" % (printable(read.file), note))

    def _pixels_of(self, file, zoom, notes):
        """The pixels of a file, `zoom` times as many along each side as the network gets."""
        rule = self.preparation
        if self.config.handwriting:
            with opened(file, None, self.config.truncated_images, notes) as image:
                pixels = as_handwriting(upright(image, notes), rule["size"], self.appearance)
            return pixels.repeat(zoom, 0).repeat(zoom, 1)
        left, top, right, bottom = (edge * zoom for edge in rule["crop"])
        pixels = read_image(file, rule["resize"] * zoom, rule["channels"], self.pixel_range,
                            self.config.truncated_images, notes)
        return pixels[top:bottom, left:right]

    def warning(self, file, pixels):
        """Says what makes the pixels unlike the training images; returns that as a part of the answer."""
        found = differences(pixels, self.appearance, self.handwritten)
        if not found:
            return {}
        self.unlike += 1
        say("%s  unlike the training images: %s" % (printable(file), "; ".join(found)))
        return {"unlike": found}

    def advise(self):
        """Says what would help, if any image was unlike the training images."""
        if self.unlike and self.handwritten and not self.config.handwriting:
            say("handwriting=True makes each image as MNIST's were made: white on black, cropped, centred")


def _answer(file, probabilities, class_names):
    """Prints the three most probable classes of a file; returns its part of the answers."""
    order = np.argsort(-probabilities, kind="stable")  # of equal ones the first, as the map's class
    best = ["%s %.2f%%" % (class_names[index], 100 * probabilities[index]) for index in order[:3]]
    say("%s  %s" % (printable(file), "  ".join(best)))
    return {"image": file, "classes": [class_names[index] for index in order],
            "probabilities": probabilities[order].tolist()}


class _HeatMaps:
    """Writes a heat map for each image, to `folder`, with the path of the image below the folder that all are in.

    No two images get the same file, and only heat maps of an earlier call are replaced.

    Args:
        folder: the setting `heatmaps`.
        files: all image files.
        extent: of the maps, see `support.networks.extent_of_maps`.
    Raises:
        UserError: the folder cannot be written, or has another file under the name of a heat map.
    """

    def __init__(self, folder, files, extent):
        self.folder, self.written, self.places, self._extent = folder, set(), 0, extent
        paths = {file: os.path.abspath(file) for file in files}
        common = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
        self._paths = {file: os.path.join(folder, heat_map_name(os.path.relpath(path, common)))
                       for file, path in paths.items()}
        for file, path in self._paths.items():
            if os.path.lexists(path) and not is_heat_map(path):
                raise UserError("%s is there and is no heat map, but the one of %s would get its name: set heatmaps to "
                                "another folder" % (path, file))
        self._try(lambda: [os.makedirs(os.path.dirname(path), exist_ok=True) for path in self._paths.values()])

    def write(self, answer, picture, class_map):
        """Writes the heat map of an answer's first class over the picture; returns its path."""
        path = self._paths[answer["image"]]
        png = heat_map(picture, class_map, answer["classes"][0], answer["probabilities"][0], self._extent)
        self._try(lambda: replace_file(path, lambda file: file.write(png)))
        self.written.add(path)
        self.places = class_map.size
        return path

    def conclude(self):
        """Says where the heat maps are, and if they cannot show places."""
        if self.written:
            say("heat maps of %d image%s: %s" % (len(self.written), "s"[:len(self.written) > 1], self.folder))
        if self.places == 1:
            say("the last block's feature maps have one pixel, so that heat maps cannot show where in an image the "
                "evidence is: for that, use a network or stem that shrinks images less")

    def _try(self, write):
        try:
            write()
        except OSError as error:
            raise UserError("cannot write the heat maps in %s (%s): set heatmaps to a folder that can be written"
                            % (self.folder, error.strerror)) from None
