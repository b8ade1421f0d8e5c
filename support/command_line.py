"""What does the program do with its command line, and with which status does it end?

0: done. 1: an error that the user can cause, as one sentence. 128 + number: stopped by a signal.
"""

import os
import signal
import sys

import tensorflow.compat.v1 as tf

from support import UserError, say, settings
from support.interruption import WARNINGS, Stopped
from support.optimizers import FINE_TUNING, RECIPES, recipe_of

HELP = {"--help", "-h", "help", "-help"}


def main(module, arguments):
    """Runs the mode that the arguments choose; returns the exit status.

    Args:
        module: Densenet.py's module: `choose` and `main`.
        arguments: those of the command line.
    """
    mode = "train"
    try:
        if HELP & set(arguments):
            _show_help(module, [argument for argument in arguments if argument not in HELP])
        else:
            mode = module.choose(arguments).mode
            module.main(arguments)
    except UserError as error:
        return _failed(error)
    except tf.errors.ResourceExhaustedError:
        return _failed("there is not enough memory: %s" % (
            "lower batch_size or growth_k, or set memory_efficient=True" if mode == "train" else
            "close other programs"))
    except Stopped as stop:
        return _failed(stop, 128 + stop.signal_number)
    except KeyboardInterrupt:  # before the first step, or the second Ctrl-C
        return _failed("stopped at once%s" % (
            "; the same command goes on from the newest checkpoint, if there is one" if mode == "train" else ""),
            128 + signal.SIGINT)
    return 0


def _show_help(module, arguments):
    config = module.choose(arguments)
    say(module.__doc__)
    say("Hyperparameters, with their values for dataset=%s:" % config.dataset)
    say(settings.help_text(module, vars(config)))
    say("What an optimizer brings, where nothing else is given or edited:")
    for optimizer in RECIPES:
        recipe = dict(recipe_of(optimizer, config.augmentation, config.dataset),
                      **FINE_TUNING[optimizer] if config.weights else {})
        if recipe:
            say("  optimizer=%s: %s" % (optimizer, " ".join("%s=%s" % (name, settings.shown(value))
                                                           for name, value in recipe.items())))


def run(module):
    """Runs the program with this process's arguments, and ends the process."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # of a background job of a script
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status = main(module, sys.argv[1:])
    for number in (signal.SIGINT,) + WARNINGS:  # another one has nothing left to stop
        signal.signal(number, signal.SIG_IGN)
    if status == 128 + signal.SIGINT:
        sys.stderr.flush()
        os._exit(status)  # the interpreter's own end can abort in the thread that prepares batches
    sys.exit(status)


def _failed(message, status=1):
    try:
        print("Densenet.py: %s" % message, file=sys.stderr, flush=True)
    except OSError:  # the terminal is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    return status
