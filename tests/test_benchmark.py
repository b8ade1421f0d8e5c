"""benchmark.py: its rows of results and its errors."""

import json
import os
import subprocess
import sys

import pytest

import benchmark

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.mark.campaign
def test_a_row_has_all_measurements(tmp_path):
    command = [sys.executable, os.path.join(REPOSITORY, "benchmark.py"), "network=mnist", "blocks=2,1", "batch_size=3",
               "steps=1", "json=rows.json"]
    run = subprocess.run(command, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         universal_newlines=True)
    assert run.returncode == 0, run.stderr
    row, = json.loads((tmp_path / "rows.json").read_text())
    assert row["network"] == "mnist" and row["batch_size"] == 3 and row["parameters"] == 22906
    for key in ("images_per_second", "step_ms", "gflops", "peak_fraction", "peak_mb", "first_step_s",
                "inference_images_per_second"):
        assert row[key] > 0, key
    assert row["images_per_second"] == pytest.approx(3e3 / row["step_ms"])
    assert "22,906" in run.stdout


@pytest.mark.parametrize("arguments, sentence", [
    (["network=bc41"], "network=bc41: network must be one of all, mnist, bc40"),
    (["steps=0"], "steps=0: steps must be an integer from 1"),
    (["json=nowhere/rows.json"], "cannot write nowhere/rows.json (No such file or directory): make room there, or set "
                                 "json to"),
    (["netwrk=bc40"], "there is no setting 'netwrk': the nearest are network"),
])
def test_bad_input_gets_one_sentence(capsys, arguments, sentence):
    assert benchmark.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("benchmark.py: " + sentence) and error.count("\n") == 1
