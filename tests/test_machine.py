"""Settings that depend on the processor."""

import io
import os

import pytest

from support import machine


@pytest.mark.parametrize("flags, version, expected", [
    ("fpu avx512f avx512_bf16", "2.21.0", "bfloat16"), ("fpu amx_bf16", "2.21.0", "bfloat16"),
    ("fpu avx512f", "2.21.0", "float32"), (None, "2.21.0", "float32"), ("fpu avx512_bf16", "1.15.5", "float32")])
def test_the_faster_precision_depends_on_cpu_flags_and_version(monkeypatch, flags, version, expected):
    def cpuinfo(path):
        assert path == "/proc/cpuinfo"
        if flags is None:
            raise FileNotFoundError(path)
        return io.StringIO("processor : 0\nflags\t\t: %s\n" % flags)

    monkeypatch.setattr(machine, "open", cpuinfo, raising=False)
    monkeypatch.setattr(machine.tf, "VERSION", version)
    assert machine.fast_precision() == expected


def test_only_cores_available_to_the_process_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5}, raising=False)
    assert machine.cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert machine.cores() == 7
