"""``selfcorrect reproduce``."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from typer import Argument, Option

from selfcorrect.cli.options import takes
from selfcorrect.errors import ConfigError, RunError

if TYPE_CHECKING:
    from rich.console import Console

    from selfcorrect.reproduce.jobs import Job, Status

PLAIN_LINE_EVERY_S = 60.0


@dataclass(frozen=True)
class Options:
    """Arguments and options of the command."""

    target: Annotated[
        str,
        Argument(
            help="table1, table2, table3, table4, estimators, edits, collapse, shift, scaling, attempts, levels, demo, successors, countdown, map, unseen, or all."
        ),
    ]
    settings: Annotated[list[str] | None, Argument(metavar="[key=value ...]", help="Settings of all runs.")] = None
    seeds: Annotated[int | None, Option(min=1, help="Seeds 0 to N-1; 5, or 1 with --quick; 3 for map and unseen.")] = (
        None
    )
    own_seeds: Annotated[
        int | None, Option(min=1, help="Seeds of the rows that the paper does not have; all if not given.")
    ] = None
    model: Annotated[str, Option(help="Model that every run starts from.")] = "tiny"
    task: Annotated[str | None, Option(help="Task: arithmetic; mbpp for table3, countdown for countdown.")] = None
    out: Annotated[Path, Option(help="Directory of runs and outputs.")] = Path("reproduction")
    quick: Annotated[bool, Option("--quick", help="A look, not a result: 1 seed, few steps and problems.")] = False
    budget: Annotated[int | None, Option(min=1, help="Optimiser steps of every run; the model's preset.")] = None
    jobs: Annotated[int, Option(min=1, help="Processes at once, one thread each.")] = 2
    humaneval: Annotated[str | None, Option(help="table3: HumanEval's rows; from the Hub if not given.")] = None
    as_json: Annotated[bool, Option("--json", help="Print files and verdicts as one JSON object.")] = False


@takes(Options)
def reproduce(options: Options) -> None:
    """Make the paper's tables and diagnostics: run what is missing, then write Markdown, CSV, JSON and SVG.

    Runs are kept below OUT/runs, and reused if their settings match. A stopped call continues where it stopped. `all`
    leaves out table3, which needs a code model, countdown, which needs a language model warmed up for it, successors, which
    needs a base that judges its answers, and demo, map and unseen, which have their own bases.

    Example: `selfcorrect reproduce table4 --seeds 5`

    A look at everything: `selfcorrect reproduce all --quick`
    """
    from selfcorrect.cli.terminal import plain_console
    from selfcorrect.reproduce.choice import Choice
    from selfcorrect.reproduce.make import reproduce as make
    from selfcorrect.training.loop import stop_on_signal

    o = options
    if o.target in ("map", "unseen"):
        _map(o)
        return
    if o.humaneval is not None and o.target != "table3":
        raise ConfigError("--humaneval is read by table3 only and would be ignored; drop it")
    choice = Choice(
        out=o.out,
        seeds=tuple(range(o.seeds or (1 if o.quick else 5))),
        own_seeds=o.own_seeds,
        model=o.model,
        task=o.task or {"table3": "mbpp", "countdown": "countdown"}.get(o.target, "arithmetic"),
        quick=o.quick,
        budget=o.budget,
        settings=tuple(o.settings or ()),
        humaneval=o.humaneval,
    )
    console = plain_console(stderr=True)
    with stop_on_signal(_announce_stop) as stop_requested, _Progress(console) as progress:
        made = make(o.target, choice, o.jobs, progress, stop_requested)
    lines = [(name, v) for name, verdicts in made.verdicts.items() for v in verdicts]
    if o.as_json:
        verdicts = [{"target": name, **v.to_json()} for name, v in lines]
        print(json.dumps({"files": list(map(str, made.files)), "claims": verdicts, "failures": made.failures}))
    else:
        for name, v in lines:
            print(f"{name}  {v.word}: {v.claim.text} ({v.difference.text(sign=True)})")
        for file in made.files:
            print(file)
    _refuse_failures(made.failures, o.out)


def _map(o: Options) -> None:
    """Run what is missing from the map of bases, or from the six bases that check what ``probe`` says.

    Raises:
        ConfigError: an option that is not read.
        RunError: a run failed.
    """
    from selfcorrect.cli.terminal import plain_console
    from selfcorrect.reproduce.map import GRID, UNSEEN, run_map
    from selfcorrect.reproduce.map_results import METHODS
    from selfcorrect.training.loop import stop_on_signal

    unread = ("own_seeds", "model", "task", "quick", "budget", "humaneval")
    for name in unread:
        if getattr(o, name) != getattr(Options, name):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{flag} is not read by {o.target}, which makes its own bases, and would be ignored; drop it"
            )
    console = plain_console(stderr=True)
    seeds = range(o.seeds or 3)
    with stop_on_signal(_announce_stop) as stop_requested, _Progress(console) as progress:
        grid, methods = (GRID, METHODS) if o.target == "map" else (UNSEEN, METHODS[:2])
        run = partial(run_map, grid=grid, methods=methods, settings=tuple(o.settings or ()))
        files, failures = run(o.out, seeds, o.jobs, progress, stop_requested)
    if o.as_json:
        print(json.dumps({"files": list(map(str, files)), "claims": [], "failures": failures}))
    else:
        print(*files, sep="\n")
    _refuse_failures(failures, o.out)


def _refuse_failures(failures: dict[str, str], out: Path) -> None:
    if failures:
        reasons = "; ".join(f"{name}: {why}" for name, why in failures.items())
        raise RunError(
            f"{len(failures)} outputs or runs are missing ({reasons}). The logs are in {out / 'runs'}; the same "
            "command tries them again"
        )


def _announce_stop() -> None:
    """Say that a stop is coming. Uses a plain write, because this runs in a signal handler."""
    os.write(sys.stderr.fileno(), b"\nstopping: every run writes a checkpoint first; once more stops at once\n")


class _Progress:
    """Shows what is running, how many jobs are left, and for how long: a live line on a terminal, else a line every
    minute."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
        self._live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def on_begin(self, job: Job, resumed: bool) -> None:
        self._say(f"{job.name}: {f'continued from step {job.step}' if resumed else 'begun'}")

    def on_end(self, job: Job, seconds: float, failure: str | None) -> None:
        self._say(f"{job.name}: {'done' if failure is None else f'FAILED, {failure}'}, {seconds:.0f} s")

    def on_status(self, status: Status) -> None:
        running = ", ".join(
            f"{name} {f'step {step}/{total}' if total else 'measuring'} ({seconds:.0f} s)"
            for name, step, total, seconds in status.running
        )
        left = "" if status.seconds_left is None else f"; about {_duration(status.seconds_left)} left"
        failed = f", {status.failed} failed" if status.failed else ""
        line = f"{status.done} of {status.total} done{failed}{left}; running: {running or 'nothing'}"
        if self._live is not None:
            self._live.update(line)
        elif time.monotonic() - self._last_line > PLAIN_LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._say(line)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
