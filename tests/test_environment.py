"""What is set for TensorFlow, and what of its log the user sees."""

import gc
import os
import subprocess
import sys
import threading

import pytest

from support import environment

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(environment.__file__)))
HARMLESS = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1795828851.243003    4967 port.cc:153] oneDNN custom operations are on. You may see slightly "
    "different numerical results due to floating-point round-off errors from different computation orders. To turn "
    "them off, set the environment variable `TF_ENABLE_ONEDNN_OPTS=0`.",
    "I0000 00:00:1795828851.243463    4967 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will "
    "not be used.",
    "E0000 00:00:1795828879.975854    4988 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: Failed "
    "call to cuInit: UNKNOWN ERROR (303)",
    "2024-11-27 10:00:00.000000: E external/local_xla/xla/stream_executor/cuda/cuda_driver.cc:152] failed call to "
    "cuInit: INTERNAL: CUDA error: Failed call to cuInit: CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected",
    "E0000 00:00:1732700000.000000    1 cuda_dnn.cc:8310] Unable to register cuDNN factory: Attempting to register "
    "factory for plugin cuDNN when one has already been registered",
    "W0000 00:00:1732700000.000000    1 computation_placer.cc:177] computation placer already registered. Please check "
    "linkage and avoid linking the same target more than once.",
    "I0000 00:00:1795829023.171254    7134 cpu_feature_guard.cc:227] This TensorFlow binary is optimized to use "
    "available CPU instructions in performance-critical operations.",
    "To enable the following instructions: AVX2 AVX512F FMA, in other operations, rebuild TensorFlow with the "
    "appropriate compiler flags.",
]
NEEDED = [
    "E0000 00:00:1732700000.000000    1 cuda_platform.cc:52] failed call to cuInit: CUDA_ERROR_OUT_OF_MEMORY: out of "
    "memory",
    "F0000 00:00:1732700000.000000    1 memory.cc:1] out of memory",
    "a line of another library, in Umläuten",
]


IMPORTED_FIRST = """
import os, sys

class Finder:
    def find_spec(name, path, target=None):
        if name == "tensorflow":
            print(*[os.environ.get(name) for name in %s], flush=True)
            os._exit(0)

sys.meta_path.insert(0, Finder)
import %s, Densenet
"""
READ_ONCE = ("TF_ENABLE_ONEDNN_OPTS", "TF_OVERRIDE_GLOBAL_THREADPOOL")  # by TensorFlow, in a process


@pytest.mark.parametrize("module", ["Densenet", "ops", "mnist_loader", "support.variables"])
def test_kernels_and_threads_are_the_same_whichever_module_imports_tensorflow(module):
    """With others, a step takes longer and gives other bits than that of the program started by its name."""
    unset = {name: value for name, value in os.environ.items() if name not in READ_ONCE}
    code = IMPORTED_FIRST % (READ_ONCE, module)
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=unset) == b"1 1\n"


def write(*lines):
    os.write(2, "".join(line + "\n" for line in lines).encode())


@pytest.fixture
def quiet(monkeypatch):
    """The context manager, for a user who has not set TF_CPP_MIN_LOG_LEVEL."""
    monkeypatch.setattr(environment, "_SHOW_ALL", False)
    return environment.quiet


def open_files():
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def test_harmless_lines_are_left_out_and_all_others_shown(quiet, capfd):
    before = open_files()
    write("before")
    with quiet():
        write(NEEDED[0], *HARMLESS)
        write(*NEEDED[1:])
        with quiet():  # within another one
            write(*HARMLESS)
            write("inside")
        assert capfd.readouterr().err == "before\n"
    write("after")
    assert capfd.readouterr().err.splitlines() == NEEDED + ["inside", "after"]
    assert open_files() == before


def test_an_exception_shows_everything(quiet, capfd):
    for error in (ImportError, KeyboardInterrupt):
        with pytest.raises(error), quiet():
            write(*HARMLESS)
            raise error
        assert capfd.readouterr().err.splitlines() == HARMLESS


def test_who_sets_the_log_level_sees_everything_at_once(monkeypatch, capfd):
    monkeypatch.setattr(environment, "_SHOW_ALL", True)
    with environment.quiet():
        write(*HARMLESS)
        assert capfd.readouterr().err.splitlines() == HARMLESS


def test_it_does_nothing_where_nothing_can_be_redirected(quiet, capfd, monkeypatch):
    def none(*_):
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(environment.tempfile, "TemporaryFile", none)
        before = open_files()
        with quiet():
            write(*HARMLESS)
        assert open_files() == before
    assert capfd.readouterr().err.splitlines() == HARMLESS
    kept = os.dup(2)
    os.close(2)
    try:
        with quiet():
            done = True
        with pytest.raises(OSError):
            os.fstat(2)  # still closed
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert done


@pytest.mark.parametrize("stderr", [None, "closed", "hung up"])
def test_pythons_stderr_may_be_missing_closed_or_hung_up(quiet, capfd, monkeypatch, stderr):
    class HungUp:
        def flush(self):
            raise OSError(5, "Input/output error")

    file = {"hung up": HungUp(), "closed": open(os.devnull, "w"), None: None}[stderr]
    if stderr == "closed":
        file.close()
    monkeypatch.setattr(sys, "stderr", file)
    with quiet():
        write(HARMLESS[0], "needed")
    assert capfd.readouterr().err == "needed\n"


def test_two_threads_lose_no_line_and_leave_stderr_as_it_was(quiet, capfd):
    inside, go = threading.Event(), threading.Event()

    def first():
        with quiet():
            write("first")
            inside.set()
            go.wait(60)

    def second():
        with quiet():
            write("second", HARMLESS[0])

    threads = [threading.Thread(target=function) for function in (first, second)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    write("meanwhile")
    go.set()
    for thread in threads:
        thread.join(60)
    write("after")
    assert capfd.readouterr().err.splitlines() == ["first", "meanwhile", "second", "after"]


TENSORFLOW = '''
import os, warnings
print(*[os.environ.get(name) for name in ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS")])
os.write(2, b"I0000 port.cc:153] oneDNN custom operations are on.\\n")
os.write(2, b"E0000 real error\\n")
warnings.warn("Passing (type, 1) as a synonym of type is deprecated", FutureWarning)
'''
IMPORT = ("import warnings, support.environment\n"
          "warnings.warn('of the program', FutureWarning)")


@pytest.mark.parametrize("given, printed, shown, hidden", [
    ({}, "2 1\n", ["real error", "of the program"], ["oneDNN", "synonym"]),
    ({"TF_CPP_MIN_LOG_LEVEL": "0", "TF_ENABLE_ONEDNN_OPTS": "0"}, "0 0\n",
     ["oneDNN", "real error", "synonym", "of the program"], []),
    ({"CRASH": "1"}, "2 1\n", ["oneDNN", "real error", "ImportError: no such library"], ["synonym"]),
])
def test_the_environment_is_set_before_tensorflow_is_imported_and_its_log_sifted(
        tmp_path, given, printed, shown, hidden):
    """With a stand-in for TensorFlow, which prints the environment that it sees."""
    package = tmp_path / "tensorflow"
    package.mkdir()
    crash = "if 'CRASH' in os.environ:\n    raise ImportError('no such library')\n"
    (package / "__init__.py").write_text(TENSORFLOW + crash)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    process = subprocess.run([sys.executable, "-c", IMPORT], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             universal_newlines=True,
                             env=dict(inherited, PYTHONPATH=os.pathsep.join([str(tmp_path), ROOT]), **given))
    assert process.stdout == printed and process.returncode == ("CRASH" in given)
    assert all(text in process.stderr for text in shown), process.stderr
    assert not any(text in process.stderr for text in hidden), process.stderr


def test_a_package_is_absent_for_a_while(tmp_path, monkeypatch):
    (tmp_path / "only_for_this_test.py").write_text("found = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with environment.absent("only_for_this_test"), pytest.raises(ImportError):
        import only_for_this_test
    import only_for_this_test
    assert only_for_this_test.found
    with environment.absent("pytest"):
        import pytest as again
    assert again is pytest


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_again_afterwards_if_it_was_before(enabled):
    @environment.no_garbage_collection()
    def function():
        raise KeyError(gc.isenabled())

    try:
        if not enabled:
            gc.disable()
        for _ in range(2):
            with pytest.raises(KeyError, match="False"):
                function()
            assert gc.isenabled() == enabled
    finally:
        gc.enable()


@pytest.mark.campaign
def test_importing_the_program_prints_nothing_and_leaves_scikit_learn_for_later():
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    code = "import sys, Densenet; assert 'sklearn' not in sys.modules; import sklearn.datasets"
    process = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, universal_newlines=True, env=dict(inherited, PYTHONPATH=ROOT))
    assert process.returncode == 0 and process.stdout == ""
