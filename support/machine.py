"""What can the processor do?"""

import os

import tensorflow.compat.v1 as tf


def cores():
    """How many of the processor's cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def fast_precision():
    """The faster type for wide convolutions: bfloat16 where the processor multiplies it itself, else float32.

    Only Linux reports it. TensorFlow 1.15 converts bfloat16 to float32 for each product, which is slower.
    """
    try:
        with open("/proc/cpuinfo") as file:
            native = {"avx512_bf16", "amx_bf16"} & set(file.read().split())
    except OSError:
        native = ()
    return "bfloat16" if native and not tf.VERSION.startswith("1.") else "float32"
