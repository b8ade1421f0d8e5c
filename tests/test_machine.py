"""Settings that depend on the processor."""

import io
import os
import subprocess
import sys

import pytest
import tensorflow.compat.v1 as tf

from support import machine

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(machine.__file__)))


def with_flags(monkeypatch, flags):
    """Linux reports these instruction sets of the processor; None: it is another operating system."""
    def cpuinfo(path):
        assert path == "/proc/cpuinfo"
        if flags is None:
            raise FileNotFoundError(path)
        return io.StringIO("processor : 0\nflags\t\t: %s\n" % flags)

    monkeypatch.setattr(machine, "open", cpuinfo, raising=False)


@pytest.mark.parametrize("flags, version, expected", [
    ("fpu avx512f avx512_bf16", "2.21.0", "bfloat16"), ("fpu amx_bf16", "2.21.0", "bfloat16"),
    ("fpu avx512f", "2.21.0", "float32"), (None, "2.21.0", "float32"), ("fpu avx512_bf16", "1.15.5", "float32")])
def test_the_faster_precision_depends_on_cpu_flags_and_version(monkeypatch, flags, version, expected):
    with_flags(monkeypatch, flags)
    monkeypatch.setattr(machine.tf, "VERSION", version)
    assert machine.fast_precision() == expected


def test_a_program_that_imports_tensorflow_first_lacks_onednn_where_that_is_no_default():
    """In a process of its own, as TensorFlow decides once; by what TensorFlow says itself of its kernels."""
    if tf.VERSION.startswith("1."):
        pytest.skip("TensorFlow 1.15 from PyPI has no oneDNN")
    code = ("import tensorflow; from tensorflow.python.util import _pywrap_util_port as build; import Densenet; "
            "from support import machine; print(machine.lacks_onednn(), not build.IsMklEnabled())")
    unset = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    lacks, expected = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=unset).split()
    assert lacks == expected
    assert not machine.lacks_onednn()  # here it is asked for before TensorFlow is imported


@pytest.mark.parametrize("flags, gpus, expected", [
    ("fpu avx avx2", [], True), ("fpu avx avx2 avx512f", [], False), ("fpu avx", [], False), (None, [], False),
    ("fpu avx avx2", ["gpu"], False)])
def test_avx2_alone_is_without_avx512_and_gpus(monkeypatch, flags, gpus, expected):
    with_flags(monkeypatch, flags)
    monkeypatch.setattr(tf.config.experimental, "list_physical_devices", lambda kind: gpus)
    assert machine.only_avx2.__wrapped__() == expected  # without the cache


def test_only_cores_available_to_the_process_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5}, raising=False)
    assert machine.cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert machine.cores() == 7


@pytest.mark.skipif(tf.VERSION.startswith("1."), reason="TensorFlow 1.15 has no such kernel")
@pytest.mark.parametrize("onednn, gpus, expected", [(True, [], True), (False, [], False), (True, ["gpu"], False)])
def test_fused_operations_are_onednns_on_cpus_alone(monkeypatch, onednn, gpus, expected):
    from tensorflow.python.util import _pywrap_util_port
    monkeypatch.setattr(_pywrap_util_port, "IsMklEnabled", lambda: onednn)
    monkeypatch.setattr(_pywrap_util_port, "IsX86Available", lambda: True)
    monkeypatch.setattr(tf.config.experimental, "list_physical_devices", lambda kind: gpus)
    assert machine.has_fused_operations.__wrapped__() == expected  # without the cache
    for flags in ("fpu avx2", "fpu avx2 avx512f"):
        with_flags(monkeypatch, flags)
        found = machine.has_fused_operations.__wrapped__(tf.bfloat16)
        assert found == (expected and "avx512f" in flags)
