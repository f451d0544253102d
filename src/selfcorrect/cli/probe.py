"""``selfcorrect probe``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfcorrect.cli.settings import read_settings
from selfcorrect.config import override
from selfcorrect.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from selfcorrect.measuring.phase import Recommendation, Revising
    from selfcorrect.measuring.probe import Probe


def probe(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG.toml] [key=value ...]", help="A config file, then settings.")
    ] = None,
    problems: Annotated[int, typer.Option(min=2, help="Training problems to play.")] = 64,
    largest_cap: Annotated[
        int | None,
        typer.Option(
            min=1, help="Token cap to sample under.", show_default="twice play.max_new_tokens, or what fits the model"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write every episode at T = 1 to this JSONL file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Before a run: measure a model on training problems, and say whether it can learn and what to change.

    Plays a sample of training problems with the run's attempts and group size, once greedily and at temperature 1.

    Example: `selfcorrect probe model=tiny task=arithmetic`
    """
    from selfcorrect.algorithm.stages import plan as stages
    from selfcorrect.episodes.verdict import verdict_turn
    from selfcorrect.experiment import make_engine, prepare
    from selfcorrect.measuring.advice import advise, gate
    from selfcorrect.measuring.probe import UPDATE_PASSES, Plan, numbers, recommendation, training_sample
    from selfcorrect.measuring.probe import probe as measure
    from selfcorrect.records.files import claim, write_jsonl
    from selfcorrect.records.lines import episode_row

    config = read_settings(settings or [])
    cap = config.play.max_new_tokens
    if largest_cap is not None and largest_cap < cap:
        raise ConfigError(
            f"--largest-cap {largest_cap} is below play.max_new_tokens={cap}, the cap to be judged; give a larger one"
        )
    if out is not None:
        claim(out)
    first = stages(config)[0]
    job = prepare(config)
    if largest_cap is not None:
        prepare(override(config, [f"play.max_new_tokens={largest_cap}"]))  # does it fit the model?
    engine = make_engine(job)
    between = verdict_turn(config)
    turns = 2 * first.attempts - 1 if between else first.attempts
    fits = cap + (engine.info.max_length - job.longest) // turns
    sampled_cap = largest_cap or max(cap, min(2 * cap, fits))
    sample = training_sample(job.task, problems, config.seed)
    per_tree = first.attempts if first.branches == 1 else 1 + first.branches
    samples = first.samples_per_problem * per_tree // first.attempts  # linear episodes of as many responses
    found = measure(engine, job.task, sample, Plan(first.attempts, samples, cap, sampled_cap, config.seed, between))
    measured = numbers(found, job.task)
    advice, conditions = advise(measured), gate(measured)
    if out is not None:
        write_jsonl(out, map(episode_row, found.episodes), "name another place with --out")
    episodes = config.train.problems_per_step * samples
    second_attempts = config.train.problems_per_step * first.samples_per_problem * first.branches
    recommended = recommendation(found, second_attempts) if all(c.passed for c in conditions) else None
    if as_json:
        estimate = {
            "step_episodes": episodes,
            "step_sampling_seconds": found.sampling_seconds(episodes),
            "step_seconds": found.step_seconds(episodes),
        }
        result = {"estimate": estimate, **asdict(advice), "gate": [asdict(c) for c in conditions]}
        result["recommended"] = None if recommended is None else asdict(recommended)
        print(json.dumps({"problems": len(sample), **found.to_json(), **result}))
        return
    _show(found, f"{config.model.name} on {len(sample)} training problems of {job.task.name}")
    print(
        f"estimate: a training step samples {episodes * first.attempts} responses and takes about {found.step_seconds(episodes):.1f} s, "
        f"{found.sampling_seconds(episodes):.1f} s of them for sampling and grading at the {found.tokens_per_s:.0f} tokens/s "
        f"measured here with {len(found.episodes)} episodes at once on {engine.info.device}. The pass over them was measured "
        f"too; an update counts as {UPDATE_PASSES} such passes"
    )
    print("\ngate before a long run:", *map(str, conditions), sep="\n- ")
    print(_recommended(recommended))
    print(f"\n{config.model.name}, {job.task.name}, {cap} tokens: {advice.outlook}")
    for finding in advice.findings or ("nothing that was measured stands against it",):
        print(f"- {finding}")


def _show(found: Probe, title: str) -> None:
    from selfcorrect.cli.tables import show, show_summaries

    plan = found.plan
    show_summaries({f"T = 1, cap {plan.largest_cap}": found.sampled, f"greedy, cap {plan.cap}": found.greedy}, title)
    show(_lengths(found))
    show(_groups(found))
    if found.revising is not None:
        show(_revising(found.revising))


def _recommended(r: Recommendation | None) -> str:
    from selfcorrect.measuring.labels import METHODS

    if r is None:
        return "no method is recommended: the gate is not passed, or there is one attempt only"
    return f"to try first: {METHODS[r.method] if r.method else 'no method'}: {r.reason}"


def _lengths(found: Probe) -> Table:
    from rich.table import Table

    from selfcorrect.measuring.probe import QUANTILES

    table = Table(title="answers at T = 1", title_justify="left", caption_justify="left")
    table.add_column("")
    for k in range(found.plan.attempts):
        table.add_column(f"attempt {k + 1}", justify="right")
    for i, q in enumerate(QUANTILES):
        name = "longest" if q == 1 else "median" if q == 0.5 else f"{q:.0%} quantile"
        table.add_row(f"tokens, {name}", *(str(tokens[i]) for tokens in found.tokens_K))
    for cap, shares in found.cap_hits.items():
        mark = " (the run's)" if cap == found.plan.cap else ""
        table.add_row(f"cut by a cap of {cap}{mark}", *(f"{s:.1%}" for s in shares))
    form = [a.verdict_shares["no_answer"] for a in found.sampled.attempts]
    table.add_row("no answer in the asked-for form", *(f"{s:.1%}" for s in form))
    table.caption = "caps below the one sampled under: from the lengths; exact for attempt 1"
    return table


def _groups(found: Probe) -> Table:
    from rich.table import Table

    table = Table(title="groups whose samples all get one verdict", title_justify="left", caption_justify="left")
    table.add_column("")
    for k in range(found.plan.attempts):
        table.add_column(f"attempt {k + 1}", justify="right")
    for size, shares in found.one_verdict.items():
        mark = " (the run's)" if size == found.plan.samples else ""
        table.add_row(f"{size} samples{mark}", *("n/a" if s is None else f"{s:.0%}" for s in shares))
    table.caption = "expected share of problems; such a group teaches nothing"
    return table


def _revising(r: Revising) -> Table:
    from rich.table import Table

    table = Table(title="from attempt 1 to attempt 2 at T = 1", title_justify="left", caption_justify="left")
    table.add_column("")
    table.add_column("share", justify="right")
    for label, share in (
        ("p: attempt 1 is right", r.right_first),
        (f"one of {r.samples} first attempts is right", r.pass_at_k),
        ("d: a wrong answer is changed", r.departs),
        ("q: a changed wrong answer becomes right", r.lands),
        ("another first attempt is right, after a wrong one", r.fresh),
        ("f: a right answer becomes wrong", r.breaks),
        ("wrong -> right, of all", r.fixed),
        ("right -> wrong, of all", r.broken),
        ("delta = (1 - p) d q - p f", r.delta),
        ("delta if d were 1 and f were 0", r.delta_bound),
        ("the answer's own check is sound", r.sound),
        ("the same, of wrong answers", r.sound_if_wrong),
    ):
        table.add_row(label, "n/a" if share is None else f"{share:.1%}")
    table.caption = f"{r.episodes} episodes"
    return table
