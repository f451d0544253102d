"""``selfcorrect scale``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from selfcorrect.cli.options import AsJson, takes
from selfcorrect.cli.settings import from_elsewhere, long_form, model_and_settings
from selfcorrect.config import Config, override
from selfcorrect.errors import ConfigError, RunError
from selfcorrect.measuring.test_time import ATTEMPTS, BUDGETS, TEMPERATURE, check_votes

if TYPE_CHECKING:
    from rich.table import Table

    from selfcorrect.measuring.test_time import AttemptCurve, OnProgress, ScalingCurves, TokenCurve, VoteCurve
    from selfcorrect.records.run_directory import RunDirectory

LINE_EVERY_S = 5.0
READ = ("model", "task", "engine", "seed", "eval.problems", "play.max_new_tokens")
"""Settings and whole sections that this command reads."""
OPTIONS = {"eval.attempts": "--attempts", "eval.temperature": "--temperature", "eval.samples": "--budget"}
"""Settings of `selfcorrect eval` that are options here."""
VERDICT = ("method", "method.name", "method.verdict_instruction")
"""Settings that --equal-tokens reads too."""


class Only(StrEnum):
    """One of the two measurements."""

    VOTES = "votes"
    ATTEMPTS = "attempts"


@dataclass(frozen=True)
class ScaleOptions:
    """The command line of ``selfcorrect scale``."""

    model: Annotated[
        str,
        Argument(help="Model (tiny, smollm2, a directory, a hub id) or a run directory.", metavar="MODEL_OR_RUN"),
    ]
    settings: Annotated[
        list[str] | None, Argument(metavar="[key=value ...]", help="Settings, e.g. task=gsm8k limit=200.")
    ] = None
    budget: Annotated[str, Option(help="Numbers of sampled responses per problem, rising: 1 or even.")] = ",".join(
        map(str, BUDGETS)
    )
    attempts: Annotated[int, Option(min=2, max=10, help="Attempts in a row, greedy.")] = ATTEMPTS
    temperature: Annotated[float, Option(min=0.0, help="Of the samples that vote.")] = TEMPERATURE
    only: Annotated[Only | None, Option(help="Measure one of the two alone.")] = None
    equal_tokens: Annotated[
        bool, Option("--equal-tokens", help="Also compare at equal tokens, with the model's verdicts on its answers.")
    ] = False
    out: Annotated[Path | None, Option(help="Also write every episode to this JSONL file.")] = None
    as_json: AsJson = False


@takes(ScaleOptions)
def scale(options: ScaleOptions) -> None:
    """Measure what more responses buy: majority votes with and without correction, and many attempts in a row.

    For a run, the result is also written to scaling.json in its directory, and `selfcorrect report` draws it.

    Example: `selfcorrect scale tiny task=arithmetic limit=200 --budget 1,2,4,8`

    By tokens too, and with corrections that the model's own verdict asks for: `selfcorrect scale tiny limit=200 --equal-tokens`
    """
    from selfcorrect.cli.tables import show
    from selfcorrect.experiment import command_line, load_kept, make_engine, prepare
    from selfcorrect.measuring.equal_tokens import measure_tokens
    from selfcorrect.measuring.evaluate import held_out
    from selfcorrect.measuring.test_time import ScalingCurves, measure_attempts, measure_votes
    from selfcorrect.records.files import claim, write_jsonl
    from selfcorrect.records.lines import episode_row

    o = options
    run, config, budgets, verdict = _checked(o)
    if run is not None and run.scaling_file.exists():
        raise RunError(
            f"{run.scaling_file} holds an earlier measurement and is not overwritten; move or remove it first"
        )
    if o.out is not None:
        claim(o.out)
    with from_elsewhere(run, config, "the same command for {run}"):
        job = prepare(config, training=False)
    _check_verdict_fits(config, verdict)
    if job.note:
        typer.echo(job.note, err=True)
    engine = make_engine(job, frozen=run is None)
    step = None if run is None else load_kept(run, engine)
    engine.publish()
    played = (engine, job.task, held_out(job.task, config.eval.problems), config.play.max_new_tokens)
    shared: dict[str, Any] = {"seed": config.seed, "on_progress": _progress_lines()}
    votes = row = tokens = None
    if o.only is not Only.ATTEMPTS:
        votes = measure_votes(*played, budgets=budgets, temperature=o.temperature, **shared)
    if o.only is not Only.VOTES:
        row = measure_attempts(*played, attempts=o.attempts, **shared)
    if votes is not None and verdict is not None:
        tokens = measure_tokens(*played[:3], votes, verdict=verdict, on_progress=shared["on_progress"])
    curves = ScalingCurves(o.model, step, command_line(), votes, row, tokens)
    if run is not None:
        run.write_scaling(curves.to_json())
    if o.out is not None:
        measured = {"votes": votes, "attempts": row, "verdicts": tokens}
        played_by = {name: curve.episodes for name, curve in measured.items() if curve is not None}
        rows = ({"measurement": name, **episode_row(e)} for name, episodes in played_by.items() for e in episodes)
        write_jsonl(o.out, rows, "name another place with --out")
    if o.as_json:
        print(json.dumps(curves.to_json()))
        return
    title = f"{o.model} on {job.task.name}"
    for table in _tables(curves, title):
        show(table)
    if run is not None:
        print(f"{run.scaling_file} holds the numbers; `selfcorrect report {run.path}` draws them")


def _check_verdict_fits(config: Config, verdict: str | None) -> None:
    """Refuse a chain with a verdict turn that the model has no room for.

    Raises:
        ConfigError: as ``prepare``.
    """
    from selfcorrect.experiment import prepare

    if verdict is not None:
        turn = f"method.verdict_instruction={json.dumps(verdict)}"
        prepare(override(config, ["method=pag", turn, "eval.attempts=2"]), training=False)


def _tables(curves: ScalingCurves, title: str) -> Iterator[Table]:
    if curves.votes is not None:
        yield _vote_table(curves.votes, title)
    if curves.tokens is not None:
        yield _token_table(curves.tokens, title)
    if curves.attempts is not None:
        yield _attempt_table(curves.attempts, title)


def _checked(o: ScaleOptions) -> tuple[RunDirectory | None, Config, tuple[int, ...], str | None]:
    """The run, the settings (the longest conversation included), the budgets, and the request for a verdict, if any, after
    all checks that need no data.

    Raises:
        ConfigError: a setting would be ignored, or the options or the task do not fit.
    """
    from selfcorrect.episodes.verdict import REQUEST, verdict_turn
    from selfcorrect.tasks import make_task

    read = (*READ, *VERDICT) if o.equal_tokens else READ
    given = [long_form(s) for s in o.settings or []]
    for setting in given:
        key = setting.partition("=")[0].strip()
        if "=" in setting and key not in read and key.partition(".")[0] not in READ:
            way_out = f"give {OPTIONS[key]}" if key in OPTIONS else "drop it"
            way_out += ", or add --equal-tokens" if key in VERDICT else ""
            raise ConfigError(f"setting {key!r} would be ignored by `selfcorrect scale`; {way_out}")
    run, config = model_and_settings(o.model, given)
    try:
        budgets = tuple(int(part) for part in o.budget.split(","))
    except ValueError:
        raise ConfigError(
            f"--budget {o.budget!r} is not a list of whole numbers; write for example --budget 1,2,4,8"
        ) from None
    if config.method.name == "self_refine":
        raise ConfigError(
            "method=self_refine asks for feedback between attempts, which `selfcorrect scale` does not play; measure it with "
            "`selfcorrect eval MODEL method=self_refine`"
        )
    if o.equal_tokens and o.only is Only.ATTEMPTS:
        raise ConfigError(
            "--equal-tokens compares votes with what the model's verdicts make of as many tokens, and --only attempts leaves the "
            "votes out; drop one of them"
        )
    verdict = verdict_turn(config).get("verdict", REQUEST) if o.equal_tokens else None
    longest = 1 if o.only is Only.VOTES else o.attempts
    if o.only is not Only.ATTEMPTS:
        check_votes(make_task(config.task), budgets, o.temperature)
        longest = max(longest, 2 if budgets[-1] > 1 else 1)
    plain = ["method=multi_turn"] if config.method.name == "pag" else []  # what follows has no verdict turn
    return run, override(config, [*plain, f"eval.attempts={longest}", "eval.samples=1"]), budgets, verdict


def _progress_lines() -> OnProgress:
    """Progress on standard error, a line every few seconds."""
    last = start = time.monotonic()
    current = ""

    def on_progress(what: str, done: int, total: int) -> None:
        nonlocal last, start, current
        now = time.monotonic()
        if what != current:
            current, start = what, last
        if now - last > LINE_EVERY_S or done == total:
            last = now
            left = (now - start) / done * (total - done)
            typer.echo(f"{what}: {done} of {total} problems, left {left:.0f} s", err=True)

    return on_progress


def _vote_table(curve: VoteCurve, title: str) -> Table:
    heads = ("K parallel", "K/2, each corrected once", "difference", "gain of K parallel", "of K/2 corrected")
    table = _table(f"{title}: majority votes at T = {curve.settings['temperature']:g}", "responses", *heads)
    for row in curve.rows:
        gains = (e.text(sign=True) for e in (row.difference, row.parallel_gain, row.corrected_gain))
        table.add_row(str(row.responses), row.parallel.text(), row.corrected.text(), *gains)
    table.caption = (
        f"percent, {_problems(curve)}; 95 % interval by bootstrap over problems; difference and gains (over one response) "
        "paired by problem.\n"
        "A budget counts responses, not tokens: K first attempts vote, or the second attempts of K/2 samples, which read "
        "the first.\nEvery row is the mean over all choices of its responses among those sampled."
    )
    return table


def _token_table(curve: TokenCurve, title: str) -> Table:
    ways = ("corrected", "gated", "best")
    heads = ("votes", *ways, *(f"{way} - votes" for way in ways))
    table = _table(f"{title}: equal tokens at T = {curve.settings['temperature']:g}", "tokens", *heads)
    for row in curve.rows:
        gains = (e.text(sign=True) for e in (row.corrected_gain, row.gated_gain, row.best_gain))
        shown = (row.parallel, row.corrected, row.gated, row.best)
        table.add_row(f"{row.tokens:.0f}", *(e.text() for e in shown), *gains)
    costs = ", ".join(f"{way} {'n/a' if math.isnan(n) else f'{n:.1f}'}" for way, n in curve.tokens_per_sample.items())
    table.caption = (
        f"percent, {_problems(curve)}; 95 % interval by bootstrap over problems; differences paired by problem.\n"
        "Majority votes of first attempts, of second ones, and of answers that were revised where the model's verdict asks for it; "
        f"best: one of those that it calls correct.\nMean sampled tokens of one sample: {costs}. Prompts are not counted. Between two numbers of samples a "
        "lot decides, so that every way has the row's tokens in expectation.\nn/a: the way cannot spend as little, or has no "
        "samples left."
    )
    return table


def _attempt_table(curve: AttemptCurve, title: str) -> Table:
    table = _table(f"{title}: attempts in a row", "attempt", "accuracy", "gain over attempt 1")
    for k, (accuracy, gain) in enumerate(zip(curve.accuracy_K, curve.gain_K, strict=True), 1):
        table.add_row(str(k), accuracy.text(), gain.text(sign=True))
    table.caption = (
        f"percent, greedy, {_problems(curve)}; 95 % interval by bootstrap over problems; gain paired by problem"
    )
    return table


def _table(title: str, *heads: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption_justify="left")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _problems(curve: VoteCurve | AttemptCurve | TokenCurve) -> str:
    left_out = f", {curve.n_left_out} left out (verifier errors)" if curve.n_left_out else ""
    return f"n = {curve.n_problems} problems{left_out}"
