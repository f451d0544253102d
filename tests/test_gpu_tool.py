"""tools/gpu.py on a CPU at tiny sizes: the code that a machine with a GPU will run. And its page, which invents nothing."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import gpu

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("part", gpu.PARTS)
def test_every_part_runs_on_a_cpu_at_tiny_sizes(tmp_path, part):
    command = [sys.executable, "tools/gpu.py", part, "--device", "cpu", "--small", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / f"{part}.json").read_text())
    assert (record["part"], record["device"], record["small"]) == (part, "cpu", True)
    rows = record["rows"]
    if part == "conformance":
        assert rows[0]["passed"] and " passed" in rows[0]["summary"]
    if part == "parity":
        assert [r["dtype"] for r in rows] == ["float32", "bfloat16"]
        assert 0 < rows[0]["sampler_gap"]["largest"] < 1e-3 and rows[0]["cpu_gap"]["largest"] == 0
        assert rows[0]["sampler_gap"]["largest"] < rows[1]["sampler_gap"]["largest"] < 2
    if part in ("tiny", "model"):
        assert rows[0]["steps"] == 2 and len(rows[0]["accuracy"]["final"]) == 2
    if part == "steps":
        assert [r["row"] for r in rows] == ["product"] * 2 + ["step"] * 4
        assert all(r["step_s"] > 0 and r["update_tflops"] > 0 for r in rows[2:])
    if part == "memory":
        assert len(rows) == 3 and all(r["peak_gb"] > 0 for r in rows)


def test_a_part_that_fails_says_so_and_the_others_go_into_the_record(tmp_path, monkeypatch):
    asked = Namespace(device="cpu", small=True, model="tiny", trl_python=None, out=tmp_path)
    outcomes = iter([{"tflops": 1.0}, {"fault": "ran out of time"}, *[{"step_s": 1.0}] * 4])
    monkeypatch.setattr(gpu, "_row", lambda *_: next(outcomes))
    assert not gpu.run_part("steps", asked)
    rows = json.loads((tmp_path / "steps.json").read_text())["rows"]
    assert len(rows) == 6 and rows[1]["fault"] == "ran out of time"


def test_a_child_that_takes_too_long_is_ended():
    assert gpu._child([sys.executable, "-c", "import time; time.sleep(60)"], 0.5) == (124, "")


def test_the_page_shows_records_of_a_gpu_alone_and_says_what_was_not_run(tmp_path):
    assert gpu.page(tmp_path) == gpu.INTRODUCTION + gpu.NOT_RUN
    record = {
        "part": "steps",
        "small": False,
        "device": "cuda",
        "machine": "A GPU",
        "torch": "2",
        "date": "2026-01-01",
        "seconds": 12.3,
        "rows": [{"row": "step", "model": "m", "step_s": 1.23456, "sample_s": [0.5, 0.25]}],
    }
    (tmp_path / "steps.json").write_text(json.dumps(record))
    page = gpu.page(tmp_path)
    assert "A GPU, torch 2, 2026-01-01; 12 s." in page and "| m | 1.235 | 0.5, 0.25 |" in page
    assert page.count("**Not run.**") == len(gpu.PARTS) - 1
    for stand_in in ({"small": True}, {"device": "cpu"}):
        (tmp_path / "steps.json").write_text(json.dumps({**record, **stand_in}))
        assert gpu.page(tmp_path) == gpu.INTRODUCTION + gpu.NOT_RUN


def test_the_committed_page_is_that_of_the_committed_records():
    assert gpu.PAGE.read_text() == gpu.page(gpu.RECORDS)
