"""What does the terminal show while a run trains?"""

import sys
import time

import tensorflow.compat.v1 as tf
from tqdm import tqdm

from support import say
from support.machine import cores
from support.settings import shown

LINE_SECONDS = 30.0  # between the progress lines where there is no terminal


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
    say("network  blocks %s, growth rate %d, %s, %s parameters" % (
        shown(config.blocks), config.growth_k, "bottleneck layers" if config.bottleneck else "plain layers",
        format(parameters, ",")))
    for source in sorted(set(config.origins.values()), key=lambda source: source != "given"):
        values = ", ".join("%s=%s" % (name, shown(getattr(config, name)))
                           for name, origin in config.origins.items() if origin == source)
        say("settings %s (%s)" % (values, source))
    say("device   %s%s; TensorFlow %s" % (", ".join(devices) or "CPU, %d cores" % cores(), cluster.description(),
                                          tf.VERSION))
    count, left_over = divmod(len(data.train), config.batch_size)
    say("steps    %d per epoch, of %d images%s" % (count, config.batch_size, left_over and (
        "; each epoch leaves out %d other images" % left_over) or ""))
    say("logs     %s (to see them: tensorboard --logdir %s)" % (log_folder, config.log_dir))
    say("model    %s" % model_folder)


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
        if self._bar is None and sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm(total=self.steps_per_epoch, initial=done, unit="step", leave=False,
                             desc="epoch %d/%d" % (epoch + 1, self.total_epochs))
        if self._bar is not None:
            self._bar.update(1)
            if done % 10 == 0:
                self._bar.set_postfix(loss="%.4f" % loss, refresh=False)
        elif time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            say("epoch %d/%d  step %d/%d  loss %.4f" % (epoch + 1, self.total_epochs, done + 1, self.steps_per_epoch,
                                                       loss))

    def epoch(self, epoch, loss, accuracy, evaluations, seconds, images_per_second):
        """Prints the line of an epoch (from 1) that has ended; `evaluations`: {split: Evaluation} of after it."""
        self.close()
        parts = ["train loss %.4f accuracy %.2f%%" % (loss, 100 * accuracy)]
        parts += ["%s loss %.4f accuracy %.2f%%" % (split, evaluation.loss, 100 * evaluation.accuracy)
                  for split, evaluation in evaluations.items()]
        say("epoch %d/%d  %s  %.1f s%s" % (epoch, self.total_epochs, "  ".join(parts), seconds,
                                           ", %.0f images/s" % images_per_second if images_per_second else ""))
        self._last_line = time.monotonic()

    def close(self):
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
