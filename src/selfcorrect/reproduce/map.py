"""The map: on which bases SCoRe corrects and multi-turn RL copies, from a grid of small bases with chosen habits.

Every point of the grid is a recipe (``bases.rare``) and one base made from it, on which every method trains with every
seed (``run_map``). A run leaves one line in map.jsonl and nothing else, so a call that was stopped continues from that
file alone. Afterwards there are map.md, map.csv and map.svg next to it.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfcorrect.config import PRESET_MARKER, Config, load_config
from selfcorrect.errors import RunError
from selfcorrect.measuring.phase import revising
from selfcorrect.records.files import append_line, cut_torn_line, only_writer, read_journal, write_text
from selfcorrect.report.standalone import standalone_svg
from selfcorrect.reproduce.bases import pretrain, skills_name
from selfcorrect.reproduce.jobs import Job, Runner, Watcher, claimed
from selfcorrect.reproduce.map_results import METHODS, Point, as_csv, cells_of, key_of, page, pictures
from selfcorrect.reproduce.rows import ROWS

BUDGET = ("train.problems_per_step=32", "eval.problems=600", "eval.controls=false")
"""Settings of every run besides the class defaults: 200 steps of 32 problems."""
PROBED = 200
"""Number of training problems that show how a base revises, each with 8 samples at temperature 1."""


FIX, REDO, EDGE = (0.003, 0.01, 0.03, 0.1), (0.03, 0.1, 0.3), (0.1, 0.8)
GRID = tuple(Point(*values) for values in itertools.product(FIX, REDO, EDGE))
UNSEEN = (
    Point(0.006, 0.05, 0.4),
    Point(0.02, 0.2, 0.4),
    Point(0.05, 0.05, 0.1),
    Point(0.006, 0.2, 0.8, pretraining=3),
    Point(0.02, 0.05, 0.4, pretraining=3),
    Point(0.05, 0.2, 0.1, pretraining=3),
)
"""Bases between those of the map, half of them from another pretraining. They check what ``probe`` recommends, so nothing
was chosen on them."""


def run_config(base: Path, method: str, seed: int, settings: Sequence[str], run: Path) -> Config:
    """The config of one run of the map.

    Raises:
        ConfigError: a setting is wrong.
    """
    names = [f"model.name={json.dumps(str(base))}", f"run_dir={json.dumps(str(run))}", f"seed={seed}"]
    return load_config(None, [*BUDGET, *settings, *ROWS[method].settings, *names])


def make_base(point: Point, bases: Path) -> tuple[Path, dict[str, Any]]:
    """The directory of a base, and how the base revises. The base is pretrained and probed if it does not exist yet."""
    recipe, out = point.recipe(), bases / point.name
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out, wait=True):  # of two processes one pretrains
        if not (out / "base.json").exists():
            model, tokenizer = pretrain(recipe, bases / skills_name(recipe))
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)
            (out / PRESET_MARKER).write_text("tiny\n", encoding="utf-8")
            write_text(out / "base.json", json.dumps(probe_base(out)), "free some space")
    return out, json.loads((out / "base.json").read_text(encoding="utf-8"))


def probe_base(model: Path, problems: int = PROBED) -> dict[str, Any]:
    """How a base revises at temperature 1, on training problems."""
    import asyncio

    from selfcorrect.episodes.play import Play, play
    from selfcorrect.experiment import make_engine, prepare
    from selfcorrect.measuring.probe import training_sample

    config = load_config(None, [f"model={json.dumps(str(model))}", *BUDGET])
    job = prepare(config)
    engine = make_engine(job, frozen=True)
    how = Play(2, 8, config.play.max_new_tokens, 1.0, (0, "probe"))
    return revising(asyncio.run(play(engine, job.task, training_sample(job.task, problems, 0), how))).to_json()


def run_one(point: Point, seed: int, method: str, out: Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Train one method on one base and measure it. Only the returned line of OUT/map.jsonl is kept."""
    from selfcorrect.experiment import make_engine, prepare, run_experiment
    from selfcorrect.records.lines import StepRecord
    from selfcorrect.records.run_directory import RunDirectory
    from selfcorrect.training.loop import Observers

    base, habits = make_base(point, out / "bases")
    with tempfile.TemporaryDirectory(dir=out / "bases") as scratch:
        config = run_config(base, method, seed, settings, Path(scratch) / "run")
        job = prepare(config)
        run = RunDirectory.create(config)
        start, cpu = time.monotonic(), time.process_time()
        with run.writing():
            outcome = run_experiment(job, run, make_engine(job), Observers())
        measured = {name: e.summary for name, e in outcome.evaluations.items()}
        steps = [r for r in run.records() if isinstance(r, StepRecord)]
    final = measured["final"]
    return {
        **asdict(point),
        "method": method,
        "seed": seed,
        "base": habits,
        "base_t1": measured["base"].accuracy(1).value,
        "base_t2": measured["base"].accuracy(2).value,
        "t1": final.accuracy(1).value,
        "t2": final.accuracy(2).value,
        "delta": final.revisions[0].delta.value,
        "fixed": final.revisions[0].i_to_c.value,
        "broken": final.revisions[0].c_to_i.value,
        "problems": final.n_problems,
        "changed": [r.answer_change for r in steps[::10]],
        "settings": list(settings),
        "seconds": round(time.monotonic() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def read_lines(out: Path) -> list[dict[str, Any]]:
    """The finished runs in OUT/map.jsonl."""
    return list(read_journal(out / "map.jsonl", json.loads, "move the file away and start again"))


def run_map(
    out: Path,
    seeds: Sequence[int],
    at_once: int,
    watcher: Watcher,
    stop_requested: Callable[[], bool] = lambda: False,
    *,
    grid: Sequence[Point] = GRID,
    methods: Sequence[str] = METHODS,
    settings: Sequence[str] = (),
) -> tuple[list[Path], dict[str, str]]:
    """Run what is missing from the map and write its page, table and picture.

    Args:
        out: directory of map.jsonl, of the bases, and of the outputs.
        seeds: seeds of the runs. A cell that they leave undecided gets as many more seeds of the two deciding methods,
            once.
        at_once: processes side by side, one thread each.
        watcher: shows the progress.
        stop_requested: True ends everything. Unfinished runs are lost, which costs a few minutes.
        grid: the points.
        methods: first the two that decide a cell.
        settings: ``key=value`` for all runs.

    Returns:
        The files, and the failures by job.

    Raises:
        Interrupted: asked to stop.
        RunError: OUT/map.jsonl has runs with other settings.
    """
    run_config(Path("base"), "score", seeds[0], settings, Path("run"))  # a wrong setting is found now
    deciding, others = methods[:2], methods[2:]
    more = range(max(seeds) + 1, max(seeds) + 1 + len(seeds))
    failures: dict[str, str] = {}
    with claimed(out):
        cut_torn_line(out / "map.jsonl")
        _refuse_other_settings(out, settings)
        try:
            # one run on every point first, which makes its base, so that no process waits for the base of another; then
            # cell by cell what decides it, so that a map that was stopped early has a picture
            makers = itertools.product(grid, seeds[:1], deciding[:1])
            first = [*makers, *itertools.product(grid, seeds, deciding)]
            failures |= _run_missing(first, out, at_once, watcher, stop_requested, settings)
            # by the first seeds alone: a call that continues among further seeds must not stop where they happen to decide
            asked = [line for line in read_lines(out) if line["seed"] in seeds]
            open_points = {cell.point for cell in cells_of(asked) if cell.verdict == "undecided"}
            second = itertools.product([p for p in grid if p in open_points], more, deciding)
            failures |= _run_missing(second, out, at_once, watcher, stop_requested, settings)
            third = itertools.product(grid, seeds, others)
            failures |= _run_missing(third, out, at_once, watcher, stop_requested, settings)
        finally:
            files = write_results(out)
        return files, failures


def _refuse_other_settings(out: Path, settings: Sequence[str]) -> None:
    for line in read_lines(out):
        if sorted(line["settings"]) != sorted(settings):
            made = " ".join(line["settings"]) or "no settings"
            raise RunError(
                f"{out / 'map.jsonl'} has runs that were made with {made}, and one table must not mix them; give the same settings "
                "to continue, or name another directory with --out"
            )


def _run_missing(
    runs: Iterable[tuple[Point, int, str]],
    out: Path,
    at_once: int,
    watcher: Watcher,
    stop_requested: Callable[[], bool],
    settings: Sequence[str],
) -> dict[str, str]:
    """Run those that OUT/map.jsonl does not have yet, and append their lines to it; return the failures by job."""
    done, jobs = {key_of(line) for line in read_lines(out)}, []
    for point, seed, method in runs:
        if (point, seed, method) in done:
            continue
        done.add((point, seed, method))
        target = out / "runs" / f"{method}-s{seed}-{point.name}.jsonl"
        arguments = (json.dumps(asdict(point)), str(seed), method, str(out), str(target))
        command = (sys.executable, "-m", "selfcorrect.reproduce.map", *arguments, *settings)
        jobs.append(Job(method, target, command, is_run=False))
    runner = Runner(out, at_once, watcher)
    try:
        runner.run(jobs, stop_requested)
    finally:
        for job in jobs:
            if job.finished:
                append_line(out / "map.jsonl", job.target.read_text(encoding="utf-8").strip(), "free some space")
                job.target.unlink()
    return runner.failures


def write_results(out: Path) -> list[Path]:
    """Write the page, table and picture of the runs in OUT/map.jsonl; of a part of the map too, if it was stopped."""
    lines = read_lines(out)
    files = {"map.md": page(lines), "map.csv": as_csv(lines), "map.svg": standalone_svg(pictures(cells_of(lines)))}
    for name, text in files.items():
        write_text(out / name, text, "free some space and call the same command again")
    return [out / name for name in files]


def main(point: str, seed: str, method: str, out: str, target: str, *settings: str) -> None:
    """One run, in its own process."""
    line = run_one(Point(**json.loads(point)), int(seed), method, Path(out), settings)
    write_text(Path(target), json.dumps(line) + "\n", "free some space")


if __name__ == "__main__":
    main(*sys.argv[1:])
