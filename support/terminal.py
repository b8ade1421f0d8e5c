"""What does the terminal show while a run trains?"""

import contextlib
import shlex
import sys
import time

import tensorflow.compat.v1 as tf
from tqdm import tqdm

from support import data as data_sets
from support import say
from support.checkpoints import LEAST_VALIDATION
from support.machine import cores, lacks_onednn
from support.settings import shown

LINE_SECONDS = 30.0  # between the progress lines where there is no terminal
# Settings that the header does not repeat where it says which values were given: other lines end with them.
ELSEWHERE = ("log_dir", "model_dir", "run_name")
# How the header shows the settings that identify a run: setting, text, {value: another text, or none}. Those that the
# first line has the result of are left out.
SHAPING = {
    "network": (
        ("network", "%s", {"custom": ""}),
        ("blocks", "blocks %s", {}),
        ("growth_k", "growth rate %s", {}),
        ("bottleneck", "", {"True": "bottleneck layers", "False": "plain layers"}),
        ("compression", "compression %s", {}),
        ("transition_channels", "transitions to %s channels", {"0": ""}),
        ("transition_pooling", "%s pooling", {}),
        ("stem", "stem %s", {}),
        ("stem_channels", "%s stem channels", {"0": "2k stem channels"}),
        ("dropout_rate", "dropout %s", {}),
        ("norm_epsilon", "epsilon of batch normalization %s", {"0.001": ""}),
    ),
    "training": (
        ("weights", "from weights %s", {"": ""}),
        ("train_only", "%s", {"all": "", "last_block": "only the last block and the classifier are trained",
                             "head": "only the classifier is trained"}),
        ("optimizer", "%s", {}),
        ("init_learning_rate", "learning rate %s", {}),
        ("head_rate", "%s times that for the classifier", {"1": ""}),
        ("schedule", "%s schedule", {}),
        ("warmup", "warm-up %s", {}),
        ("weight_decay", "weight decay %s", {}),
        ("label_smoothing", "label smoothing %s", {}),
        ("epsilon", "epsilon %s", {}),
        ("ema_decay", "weights averaged with decay %s", {"0": ""}),
        ("class_weights", "%s class weights", {"none": ""}),
        ("best_by", "best by %s", {"accuracy": ""}),
        ("batch_size", "batch size %s", {}),
        ("total_epochs", "epochs %s", {}),
        ("precision", "%s", {}),
        ("seed", "seed %s", {}),
        ("sync_batch_norm", "", {"True": "synchronized batch statistics"}),
    ),
    "images": (
        ("augmentation", "", {"True": "augmented", "False": "not augmented"}),
        ("crop_area", "crop area %s", {"1": ""}),
        ("shift", "shift %s", {"0": ""}),
        ("rotation", "rotation %s degrees", {"0": ""}),
        ("scaling", "scaling %s", {"0": ""}),
        ("shear", "shear %s degrees", {"0": ""}),
        ("elastic", "elastic %s", {"0": ""}),
        ("flip", "", {"True": "flip"}),
        ("alternate_flip", "", {"True": "in every second epoch"}),
        ("cutout", "cutout %s", {"0": ""}),
        ("flip_average", "", {"True": "test averages mirror images"}),
        ("shift_average", "test averages shifts by %s", {"0": ""}),
    ),
}
BALANCING = {"class_weights": "balanced", "best_by": "balanced_accuracy"}  # for classes of unequal size
AUGMENTATIONS = ("shift", "rotation", "scaling", "shear", "elastic", "flip", "alternate_flip",
                 "cutout")  # without effect if `augmentation` is off
IN_FIRST_LINE = ("dataset", "validation_size", "image_size")


def show_header(config, data, parameters, cluster, devices, model_folder, log_folder):
    """Prints what is trained, where it runs, and where the results go.

    Args:
        config: the run's settings, of `support.configuration.choose`.
        parameters: number of trainable parameters.
        cluster: the `support.workers.Cluster`.
        devices: names of the GPUs.
    """
    say("DenseNet on %s: %d training, %d validation, %d test images of %s"
        % (data.name, len(data.train), len(data.validation), len(data.test), "x".join(map(str, data.image_shape))))
    if data.name == "folder":
        useful = [name for name in BALANCING if name not in config.edited
                  and (name != "best_by" or len(data.validation) >= LEAST_VALIDATION)]
        remedies = ["%s=%s" % (name, BALANCING[name]) for name in useful]
        for line in data_sets.class_summary(data, remedies=remedies):
            say(line)
    for line in _shaping_lines(config, parameters):
        say(line)
    for source in sorted(set(config.origins.values()), key=lambda source: (source != "given", source)):
        values = ", ".join("%s=%s" % (name, shown(getattr(config, name))) for name, origin in config.origins.items()
                           if origin == source and name not in ELSEWHERE)
        if values:
            say("settings %s (%s)" % (values, source))
    unused = ["%s=%s" % (name, shown(getattr(config, name))) for name in _without_effect(config)
              if name in config.edited and getattr(config, name)]
    if unused:
        say("unused   %s: other settings turn that off" % ", ".join(unused))
    say("device   %s%s; TensorFlow %s" % (", ".join(devices) or "CPU, %d cores" % cores(), cluster.description(),
                                          tf.VERSION))
    if lacks_onednn():
        say("slower   oneDNN's kernels are off, as TensorFlow was imported before Densenet: import Densenet first, or "
            "set TF_ENABLE_ONEDNN_OPTS=1 before both")
    count, left_over = divmod(len(data.train), config.batch_size)
    say("steps    %d per epoch, of %d images%s" % (count, config.batch_size, left_over and (
        "; each epoch leaves out %d other images" % left_over) or ""))
    say("logs     %s (to see them: tensorboard --logdir %s)" % (log_folder, shlex.quote(config.log_dir)))
    say("model    %s" % model_folder)


def _without_effect(config):
    """The names of the settings that others turn off."""
    found = list(() if config.augmentation else AUGMENTATIONS)
    if config.optimizer != "adam":
        found.append("epsilon")
    if config.augmentation and not config.flip:
        found.append("alternate_flip")
    if len(config.blocks) == 1:  # there is no transition
        found += ["compression", "transition_channels", "transition_pooling"]
    elif config.transition_channels:
        found.append("compression")
    return found


def _shaping_lines(config, parameters):
    """Yields the lines with the values of the settings that identify the run."""
    without_effect = _without_effect(config)
    lines = {}
    for title, settings in SHAPING.items():
        lines[title] = [instead.get(shown(getattr(config, name)), text and text % shown(getattr(config, name)))
                        for name, text, instead in settings if name not in without_effect]
    lines["network"].append("%s parameters" % format(parameters, ","))
    known = [name for settings in SHAPING.values() for name, _, _ in settings]
    lines["images"] += ["%s=%s" % (name, shown(getattr(config, name))) for name in config.identifying
                        if name not in known and name not in IN_FIRST_LINE]
    for title, texts in lines.items():
        yield "%-8s %s" % (title, ", ".join(filter(None, texts)))


class Progress:
    """A progress bar for each epoch, or where there is no terminal, a line every LINE_SECONDS.

    Args:
        steps_per_epoch, total_epochs: of the run.
    """

    def __init__(self, steps_per_epoch, total_epochs):
        self.steps_per_epoch = steps_per_epoch
        self.total_epochs = total_epochs
        self._bar = None
        self._last_line = time.monotonic()

    def step(self, step, loss):
        """Shows that training step number `step` (from 1) is done."""
        epoch, done = divmod(step - 1, self.steps_per_epoch)
        if self._bar is None and _is_terminal(sys.stderr):
            self._bar = tqdm(total=self.steps_per_epoch, initial=done, unit="step", leave=False,
                             desc="epoch %d/%d" % (epoch + 1, self.total_epochs), file=_Lossy(sys.stderr),
                             dynamic_ncols=True)
        if self._bar is not None:
            self._bar.update(1)
            if done % 10 == 0:
                self._bar.set_postfix(loss="%.4f" % loss, refresh=False)
        elif time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            say("epoch %d/%d  step %d/%d  loss %.4f" % (epoch + 1, self.total_epochs, done + 1, self.steps_per_epoch,
                                                       loss))

    def epoch(self, epoch, loss, accuracy, evaluations, seconds, images_per_second, with_balanced=False):
        """Prints the line of an epoch (from 1) that has ended.

        Args:
            epoch, loss, accuracy: its number, and the means over its steps.
            evaluations: {split: Evaluation} of after it.
            seconds, images_per_second: how long it took, and the speed of its steps.
            with_balanced: as in `Evaluation.accuracies`.
        """
        self.close()
        parts = ["train loss %.4f accuracy %.2f%%" % (loss, 100 * accuracy)]
        parts += ["%s loss %.4f %s" % (split, evaluation.loss, evaluation.accuracies(with_balanced))
                  for split, evaluation in evaluations.items()]
        say("epoch %d/%d  %s  %.1f s%s" % (epoch, self.total_epochs, "  ".join(parts), seconds,
                                           ", %.0f images/s" % images_per_second if images_per_second else ""))
        self._last_line = time.monotonic()

    def close(self):
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Lossy:
    """A terminal as a file. What cannot be written is lost: a terminal that hangs up must not end the training."""

    def __init__(self, terminal):
        self._terminal = terminal

    def write(self, text):
        """Writes the text if that is possible."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            self._terminal.write(text)

    def flush(self):
        """Passes on what is held back if that is possible."""
        with contextlib.suppress(OSError, ValueError):
            self._terminal.flush()

    def __getattr__(self, name):
        return getattr(self._terminal, name)


def _is_terminal(file):
    """Whether a file, or None, is a terminal."""
    try:
        return file is not None and file.isatty()
    except (OSError, ValueError):  # ValueError: it is closed
        return False
