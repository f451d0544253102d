"""What `train` shows while it runs, on a terminal and in a file, and the progress of a measurement."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import made_runs
import tiny
import toy
from selfcorrect.cli import progress
from selfcorrect.cli.progress import TerminalObserver, duration, measuring_seconds
from selfcorrect.experiment import run_experiment
from selfcorrect.measuring.evaluate import TRIES_FOR_A_WRONG_ANSWER
from selfcorrect.records.run_directory import RunDirectory
from test_experiment import engine, job, whole

CLI = Path(__file__).parent / "toy_cli.py"
TIME = r"\d+ s"


def shown(monkeypatch, run, measuring_s=None):
    """Output of a console that is not a terminal, with one line per event."""
    monkeypatch.setattr(progress, "PLAIN_LINE_EVERY_S", -1.0)
    text = io.StringIO()
    with TerminalObserver(Console(file=text, width=300), measuring_s) as observer:
        run_experiment(job(run.config), run, engine(run.config), observer)
    return text.getvalue()


def test_lines_without_a_terminal_say_what_happens_and_how_long_it_takes(tmp_path, monkeypatch):
    run = RunDirectory.create(toy.config(tmp_path / "run"))
    lines = shown(monkeypatch, run).splitlines()
    expected = [
        rf"measuring the base: \d+ of at most 72 answers, left {TIME} at most",
        r"base: t1 \S+ \[.*\], t2 \S+ \[.*\], 6 problems",
        r"base-swapped: t1 ",
        r"base-given-wrong: t1 ",
        r"Stage I: 2 steps from step 1",
        rf"Stage I step 1  reward .*  left {TIME}, run {TIME}",
        rf"Stage II step 5  reward .*  left 0 s, run {TIME}",
        r"measuring the kept checkpoint: \d+ of at most 72",
        r"final: t1 ",
    ]
    places = [next((i for i, line in enumerate(lines) if re.match(e, line)), None) for e in expected]
    assert None not in places, (expected[places.index(None)], lines)
    assert places == sorted(places)
    assert "\x1b" not in "".join(lines)


def test_few_lines_are_written_to_a_file(tmp_path):
    run = RunDirectory.create(toy.config(tmp_path / "run", "train.steps=12", "eval.controls=false"))
    text = io.StringIO()
    with TerminalObserver(Console(file=text, width=300)) as observer:
        run_experiment(job(run.config), run, engine(run.config), observer)
    assert sum(" step " in line and "reward" in line for line in text.getvalue().splitlines()) < 12
    assert " step 12 " in text.getvalue()  # the last one is always shown


def test_the_time_left_of_a_run_counts_its_last_measurement(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_LINE_EVERY_S", -1.0)
    text = io.StringIO()
    observer = TerminalObserver(Console(file=text, width=300), measuring_s=300.0)
    observer.on_stage(toy_stage(), 0, 10)
    record = made_runs.step(4, "stage1").model_copy(update={"seconds": {"sample": 20.0, "update": 10.0}})
    observer.on_record(record)
    assert "left 3 min, run 8 min" in text.getvalue()  # 6 steps of 30 s; and 300 s


def toy_stage():
    from selfcorrect.algorithm.stages import plan
    from selfcorrect.config import load_config

    return plan(load_config(None, []))[0]


def test_a_resumed_run_knows_what_measuring_took(tmp_path):
    run = made_runs.begin(tmp_path / "run")
    assert measuring_seconds(run) is None
    for name in ("base", "base-swapped"):
        made_runs.evaluate(run, name, made_runs.held_out(trained=False))
    assert measuring_seconds(run) == 2.0  # made_runs: a second each


def test_durations():
    assert [duration(s) for s in (0.4, 119, 121, 3600, 12_000)] == ["0 s", "119 s", "2 min", "60 min", "3 h 20 min"]


def test_a_measurement_counts_the_answers_that_the_engine_gives(tmp_path):
    watcher = toy.Watcher()
    outcome = whole(tmp_path / "run", "engine.tokens_per_sampling_batch=64", watcher=watcher)
    most = 6 * (2 + 1 + TRIES_FOR_A_WRONG_ANSWER + 1)
    for name in ("base", "final"):
        counts = [answers for n, answers, m in watcher.measured if n == name and m == most]
        wrong = len(outcome.evaluations[f"{name}-given-wrong"].episodes)
        assert counts[0] == 0 and counts == sorted(counts)
        assert counts[-1] == 6 * (2 + 1 + TRIES_FOR_A_WRONG_ANSWER) + wrong <= most
        assert len(counts) > 6  # small batches, each of which is reported
    assert {n for n, _, _ in watcher.measured} == {"base", "final"}
    assert [r.name for r in watcher.evaluations] == list(outcome.evaluations)


def on_a_terminal(*arguments, cwd):
    """Standard output as text, and standard error as a terminal of 100 columns receives it."""
    reader, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(
        [sys.executable, CLI, *map(str, arguments)], stdout=subprocess.PIPE, stderr=terminal, cwd=cwd, env=environment
    )
    os.close(terminal)
    seen = b""
    while True:
        try:
            data = os.read(reader, 65_536)
        except OSError:  # on Linux, reading from a terminal that nobody writes to any more fails
            data = b""
        if not data:
            break
        seen += data
    os.close(reader)
    out = process.stdout.read().decode()
    process.stdout.close()
    assert process.wait() == 0, seen.decode()
    return out, seen.decode()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems report the end of a pseudo-terminal differently")
def test_a_terminal_shows_bars_with_the_time_left_and_the_result_stays_apart(tmp_path):
    model = tiny.save_model(tmp_path / "m")
    settings = [*toy.SMALL, f"model={model}", f"run_dir={tmp_path / 'run'}", "eval.controls=false", "train.steps=30"]
    out, seen = on_a_terminal("train", *settings, "--json", cwd=tmp_path)
    assert json.loads(out)["run"] == str(tmp_path / "run")
    assert "\x1b[" in seen and "━" in seen  # control sequences, and a bar
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert re.search(r"measuring the base +━+.*\d+/12 .* left ", text)
    assert re.search(r"Stage II? +.*\d+/30 .* left .*run \d+ s", text)
    assert "reward (unshaped)" in text and "final: t1 " in text
