"""benchmark.py: its rows of results and its errors."""

import json
import os
import subprocess
import sys

import pytest

import benchmark
from support import UserError

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.mark.once
@pytest.mark.parametrize("changes, side, parameters", [([], 28, 22906), (["growth_k=6", "image_size=32"], 32, 6274)],
                         ids=str)
def test_a_row_has_all_measurements(tmp_path, changes, side, parameters):
    command = [sys.executable, os.path.join(REPOSITORY, "benchmark.py"), "network=mnist", "blocks=2,1", "batch_size=3",
               "steps=1", "json=rows.json"] + changes
    run = subprocess.run(command, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         universal_newlines=True)
    assert run.returncode == 0, run.stderr
    row, = json.loads((tmp_path / "rows.json").read_text())
    assert row["network"] == "mnist" and row["batch_size"] == 3 and row["image_size"] == side
    assert row["parameters"] == parameters
    for key in ("images_per_second", "step_ms", "gflops", "peak_fraction", "peak_mb", "build_s", "first_step_s",
                "inference_images_per_second"):
        assert row[key] > 0, key
    assert row["images_per_second"] == pytest.approx(3e3 / row["step_ms"])
    assert format(parameters, ",") in run.stdout


def peer(tmp_path, text):
    (tmp_path / "peer.py").write_text(text)
    return str(tmp_path / "peer.py")


def test_a_comparison_runs_both_programs_in_turns(tmp_path, monkeypatch):
    """Medians and ratios of: ours 300, 100, 200 images/s, the other program's 100, 100, 50 and in inference 400."""
    ours = iter([300.0, 100.0, 200.0])
    order = tmp_path / "order"
    program = peer(tmp_path, "import sys\n"
                             "order = open(%r, 'a+'); order.write('peer '); order.seek(0)\n"
                             "turn = order.read().count('peer') - 1\n"
                             "print(sys.argv[1], 'compile images/s', [100, 100, 50][turn], 'peak-MB 5')\n"
                             "print('121 inference images/s 400.00')\n" % str(order))

    def measured(values):
        with open(str(order), "a") as file:
            file.write("ours ")
        return {"images_per_second": next(ours), "inference_images_per_second": 800.0}

    monkeypatch.setattr(benchmark, "measured", measured)
    rows, lines = benchmark.compared({"network": "bc40", "precision": "float32"}, program, 3)
    assert order.read_text() == "ours peer ours peer ours peer "
    assert [row["peer_images_per_second"] for row in rows] == [100, 100, 50]
    assert lines == [
        "bc40 float32 training: 200.0 images/s, %s 100.0 (medians); ratios 3.00, 1.00, 4.00, median 3.00" % program,
        "bc40 float32 inference: 800.0 images/s, %s 400.0 (medians); ratios 2.00, 2.00, 2.00, median 2.00" % program]


@pytest.mark.parametrize("line, training, inference", [
    ("training images/s 1,234.5, of 8", 1234.5, None), ("images/s: 1.2e3.", 1200, None),
    ("training images/s 100 inference images/s=300.25", 100, 300.25)])
def test_numbers_are_read_as_programs_write_them(tmp_path, line, training, inference):
    found = benchmark.speed_of(peer(tmp_path, "print(%r)" % line), "bc40")
    assert (found.get("peer_images_per_second"), found.get("peer_inference_images_per_second")) == (training, inference)


def test_a_file_of_rows_is_kept_until_there_are_others(folder, capsys):
    with open("rows.json", "w") as file:
        file.write("[1]")
    assert benchmark.main(["network=bc40", "blocks=1,0", "json=rows.json"]) == 1
    assert "blocks=1,0 has a block without layers" in capsys.readouterr().err
    with open("rows.json") as file:
        assert file.read() == "[1]"


@pytest.mark.parametrize("text, sentence", [
    ("print('images/s 1.2.3')", "printed images/s 1.2.3, which is no number"),
    ("print('fast')", 'printed no line with "images/s" and a number above 0, as described in --help'),
    ("raise ValueError('no such network')", "ended with status 1 (ValueError: no such network): mend it"),
])
def test_a_program_that_measures_nothing_is_reported(tmp_path, text, sentence):
    with pytest.raises(UserError) as error:
        benchmark.speed_of(peer(tmp_path, text), "bc40")
    assert sentence in str(error.value)
    with pytest.raises(UserError, match="cannot run .*absent"):
        benchmark.speed_of(str(tmp_path / "absent"), "bc40")


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
