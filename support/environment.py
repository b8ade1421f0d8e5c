"""What is set before TensorFlow is imported and while a graph is built, and which lines of its log does the user see?

TensorFlow logs several harmless lines before the program's first one. They go to file descriptor 2 directly, so it is
redirected while they are written. TF_CPP_MIN_LOG_LEVEL=0 in the environment shows everything.
"""

import contextlib
import gc
import os
import re
import sys
import tempfile
import threading
import warnings

_SHOW_ALL = "TF_CPP_MIN_LOG_LEVEL" in os.environ  # the user has chosen what to see
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only

# What TensorFlow says on each machine, or on each without a GPU. Anything else is shown.
HARMLESS = re.compile("|".join((
    r"All log messages before absl::InitializeLog\(\) is called",
    r"oneDNN custom operations are on",
    r"Could not find cuda drivers on your machine",
    r"Cannot dlopen some GPU libraries|Skipping registering GPU devices",
    r"failed call to cuInit: .*(UNKNOWN ERROR|no CUDA-capable device)",
    r"Unable to register cu\w+ (factory|plugin)",
    r"computation placer already registered",
    r"This TensorFlow binary is optimized|Your CPU supports instructions that this TensorFlow binary",
    r"^To enable the following instructions: ",
    r"Created TensorFlow Lite XNNPACK delegate|^fully_quantize: ",
)))
_lock = threading.RLock()  # file descriptor 2 belongs to all threads


@contextlib.contextmanager
def quiet():
    """A context manager for what makes TensorFlow log: its import and the first listing of its devices.

    Leaves out the HARMLESS lines of what is written to file descriptor 2 within it. The rest is shown when it ends, and
    everything is if an exception leaves it, or if the user has set TF_CPP_MIN_LOG_LEVEL. If the process crashes within
    it, its log is lost. Where file descriptor 2 is closed or cannot be redirected, it changes nothing.
    """
    with _lock:
        log, before = (None, None) if _SHOW_ALL else _opened()
        if log is None:
            yield
            return
        harmless = HARMLESS
        try:
            _flush()
            os.dup2(log.fileno(), 2)
            yield
        except BaseException:
            harmless = None
            raise
        finally:
            _flush()
            os.dup2(before, 2)
            os.close(before)
            _show(log, harmless)
            log.close()


def _opened():
    """A temporary file and a copy of file descriptor 2; None and None if there cannot be both."""
    try:
        before = os.dup(2)  # first: if 2 is closed, the next file that is opened gets this number
    except OSError:
        return None, None
    try:
        return tempfile.TemporaryFile(), before
    except OSError:
        os.close(before)
        return None, None


def _flush():
    """Passes on what Python holds back for file descriptor 2."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none; nobody reads it; it is closed
        sys.stderr.flush()


def _show(log, harmless):
    """Writes the lines of a file to file descriptor 2, but those that a pattern matches (None: all)."""
    log.seek(0)
    for line in log:
        if harmless is None or not harmless.search(line.decode("utf-8", "replace")):
            with contextlib.suppress(OSError):
                os.write(2, line)


@contextlib.contextmanager
def no_garbage_collection():
    """A context, or a decorator of a function, in which Python does not search for unreachable cycles of objects.

    Building a graph makes many objects, which all stay. Python would look through them again and again, for an eighth
    of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def absent(name):
    """A context in which a package seems not to be installed, unless it is imported already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None
    try:
        yield
    finally:
        del sys.modules[name]


# Keras, which TensorFlow imports, imports scikit-learn where it finds it. That is a fifth of the time of TensorFlow's
# import, and nothing here needs it. In this process, Keras' wrappers for scikit-learn say that it is not installed.
with quiet(), absent("sklearn"), warnings.catch_warnings():
    if not _SHOW_ALL:  # NumPy's, about TensorFlow 1.15's own files
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(tensorflow|tensorboard)\b")
    import tensorflow  # noqa: F401
