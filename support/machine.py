"""How many cores may this process use, and what do its processor and its TensorFlow compute fast?"""

import functools
import os

import tensorflow.compat.v1 as tf

PRECISIONS = ("float32", "bfloat16", "float16")  # of activations and products; variables are float32


def cores():
    """Returns the number of processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def fast_precision():
    """Returns the faster type for wide convolutions: "bfloat16" with native bfloat16 instructions, else "float32".

    Only Linux reports these instructions. With TensorFlow 1.x the result is "float32": TensorFlow 1.15 converts
    bfloat16 to float32 for each product, which is slower.
    """
    try:
        with open("/proc/cpuinfo") as file:
            native = {"avx512_bf16", "amx_bf16"} & set(file.read().split())
    except OSError:
        native = ()
    return "bfloat16" if native and not tf.VERSION.startswith("1.") else "float32"


@functools.lru_cache(maxsize=None)
def rectifies_in_normalization():
    """Returns whether `_FusedBatchNormEx` can be used: the operation that normalizes and rectifies float32 in one pass.

    TensorFlow has it for CPUs where it uses oneDNN's kernels. On a GPU, it would be placed there and does not run.
    """
    if tf.VERSION.startswith("1.") or tf.config.experimental.list_physical_devices("GPU"):
        return False
    from tensorflow.python.util import _pywrap_util_port as build  # TensorFlow 1.15 has no such module
    return build.IsMklEnabled() and build.IsX86Available()
