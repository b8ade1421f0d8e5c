"""How many cores may this process use, and what do its processor and its TensorFlow compute fast?"""

import functools
import os

import tensorflow.compat.v1 as tf

from support import TENSORFLOW_WAS_FIRST

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
    native = {"avx512_bf16", "amx_bf16"} & _instruction_sets()
    return "bfloat16" if native and not tf.VERSION.startswith("1.") else "float32"


def _instruction_sets():
    """The words of /proc/cpuinfo, which include the processor's instruction sets; not on Linux: an empty set."""
    try:
        with open("/proc/cpuinfo") as file:
            return set(file.read().split())
    except OSError:
        return set()


@functools.lru_cache(maxsize=None)
def only_avx2():
    """Returns whether the processor has AVX2 and not AVX-512, and there is no GPU.

    oneDNN's gradient of a convolution's kernel is slow there in float32 (docs/performance.md).
    """
    found = _instruction_sets()
    return "avx2" in found and "avx512f" not in found and not gpus()


def gpus():
    """Returns the list of GPUs that TensorFlow can use."""
    return tf.config.experimental.list_physical_devices("GPU")


def lacks_onednn():
    """Returns whether oneDNN's kernels are off because a program imported TensorFlow before Densenet.

    They are on where TensorFlow itself chooses them: on processors with AVX-512 VNNI or the like.
    """
    if not TENSORFLOW_WAS_FIRST or tf.VERSION.startswith("1.") or gpus():
        return False
    from tensorflow.python.util import _pywrap_util_port as build
    return build.IsX86Available() and not build.IsMklEnabled()


@functools.lru_cache(maxsize=None)
def has_fused_operations(dtype=tf.float32):
    """Returns whether `_FusedBatchNormEx` and `_FusedDepthwiseConv2dNative` can be used on a type.

    TensorFlow has them where it uses oneDNN's kernels: on CPUs in float32, and in bfloat16 with AVX-512. On a GPU, they
    would be placed there and do not run.
    """
    if dtype not in (tf.float32, tf.bfloat16) or tf.VERSION.startswith("1.") or gpus():
        return False
    if dtype == tf.bfloat16 and "avx512f" not in _instruction_sets():
        return False
    from tensorflow.python.util import _pywrap_util_port as build  # TensorFlow 1.15 has no such module
    return build.IsMklEnabled() and build.IsX86Available()
