"""What the script leans on: settings, downloads, the run directory. Nothing here knows the network."""

import os
import sys


class UserError(Exception):
    """Something its user can put right. The message is one sentence: what is wrong, where, what to do."""


def say(line):
    """Prints a line at once. Where nobody reads on (`| head`), it is lost: the training is worth more than a line."""
    try:
        try:
            print(line, flush=True)
        except UnicodeEncodeError:  # a file's name, in letters that the terminal does not have
            print(line.encode("ascii", "backslashreplace").decode(), flush=True)
    except OSError:
        # Not sys.stdout = …: the interpreter's own flush at its end would still fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
