"""What a run samples before the first step of a stage: data to imitate, or first attempts of the base.

It is stored in the run directory part by part, so that a resumed run samples nothing twice. Random streams and problems
are functions of the seed, the stage and the part, and the weights are those of the stage's start. So a part sampled
again after a crash equals the lost one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfcorrect.algorithm.imitation import Example, Imitation, examples, paired_episodes, star_episodes
from selfcorrect.algorithm.stage import Stage
from selfcorrect.engines.chat import Prompt
from selfcorrect.episodes.play import GivenFirst, Play, play
from selfcorrect.episodes.table import judged_means
from selfcorrect.errors import DataError, Interrupted, RunError
from selfcorrect.records.lines import CollectRecord
from selfcorrect.records.run_directory import Progress, RunDirectory
from selfcorrect.training.context import Context, offline_of_step
from selfcorrect.types import Attempt, Episode, Problem

OFFLINE = "offline"
"""Name of the stored first attempts of the base."""

Groups = Sequence[Sequence[Episode]]
Rows = list[dict[str, Any]]


def examples_of(
    context: Context, stage: Stage, how: Imitation, progress: Progress
) -> tuple[list[Example], list[CollectRecord]]:
    """All examples that a stage imitates, sampled from the published weights or read from the run directory.

    A stage has as many parts as steps, each with the problems of one step of reinforcement learning. So every method
    samples the same number of responses.

    Raises:
        DataError: nothing was kept.
        Interrupted: a stop was requested.
        RunError: a stored part is missing, and the weights that sampled it have changed.
    """
    first = progress.step - progress.stage_step
    batches = [context.batch(first + i) for i in range(stage.steps)]

    def keep(part: int, groups: Groups) -> Rows:
        rng = np.random.default_rng([context.config.seed, first, part, 2])
        kept = [e for group in groups for e in _kept(context, how, group, rng)]
        return [x.to_json() for e in kept for x in examples(e, how.train_attempt1)]

    job = _Job(stage.name, stage.attempts, stage.samples_per_problem, batches, keep)
    rows, records = _collected(context, job, progress, may_sample=progress.stage_step == 0)
    if not rows:
        raise _nothing(context.run, stage, how, sum(r.episodes for r in records))
    return [Example.from_json(row) for row in rows], records


def offline_firsts(
    context: Context, stages: Sequence[Stage], progress: Progress
) -> tuple[GivenFirst, list[CollectRecord]]:
    """First attempts of the base for every problem that some step of the run will start from a stored one.

    Sampled before the first step, while the published weights are the base's. A problem that is drawn again gets the
    same first attempts, so this costs at most as much as sampling them in every step.

    Raises:
        Interrupted, RunError: as ``examples_of``.
    """
    needed: dict[str, Problem] = {}
    step = 0
    for stage in stages:
        for s in range(step, step + stage.steps) if stage.offline_share else ():
            batch = offline_of_step(context.batch(s), context.config.seed, s, stage.offline_share)
            needed |= {p.id: p for p in batch}
        step += stage.steps
    if not needed:
        return {}, []

    def keep(_part: int, groups: Groups) -> Rows:
        return [{"problem": g[0].problem.id, "answers": [list(_ids(e.attempts[0])) for e in g]} for g in groups]

    wanted, size = list(needed.values()), context.config.train.problems_per_step
    batches = [wanted[i : i + size] for i in range(0, len(wanted), size)]
    samples = max(stage.samples_per_problem for stage in stages if stage.offline_share)
    job = _Job(OFFLINE, 1, samples, batches, keep)
    rows, records = _collected(context, job, progress, may_sample=progress.step == 0)
    return {row["problem"]: [tuple(ids) for ids in row["answers"]] for row in rows}, records


def account(run: RunDirectory, progress: Progress, records: Sequence[CollectRecord]) -> Progress:
    """Record what was collected, and count it. This happens once per stage; a resumed run repeats it only if the
    records were cut back."""
    for record in records:
        run.append(record)
    return progress.model_copy(
        update={
            "train_seconds": progress.train_seconds + sum(r.seconds for r in records),
            "sampled_tokens": progress.sampled_tokens + sum(r.sampled_tokens for r in records),
            "sampled_responses": progress.sampled_responses + sum(r.sampled_responses for r in records),
        }
    )


@dataclass(frozen=True)
class _Job:
    name: str
    """Name of the file and of its random streams."""
    attempts: int
    samples: int
    batches: Sequence[Sequence[Problem]]
    """The problems of each part."""
    keep: Callable[[int, Groups], Rows]
    """Selects what is stored of a part's episodes."""


def _collected(
    context: Context, job: _Job, progress: Progress, *, may_sample: bool
) -> tuple[Rows, list[CollectRecord]]:
    """All parts: the stored ones, then the missing ones. ``may_sample`` is False once the weights have changed."""
    run, config, parts = context.run, context.config, len(job.batches)
    stored = run.collected(job.name)
    if len(stored) < parts and not may_sample:
        raise RunError(
            f"{run.path} holds {len(stored)} of {parts} parts of collected/{job.name}.jsonl, and the weights that sampled "
            "them have changed since; put the file back, or start a new run"
        )
    for part in range(len(stored), parts):
        if context.stop_requested():
            raise Interrupted(
                f"stopped after step {progress.step} as asked, with {part} of {parts} parts of {job.name} sampled; continue "
                f"with `{run.resume}`"
            )
        start = time.perf_counter()
        stream = (config.seed, "collect", job.name, part)
        how = Play(job.attempts, job.samples, config.play.max_new_tokens, 1.0, stream)
        groups = context.runner.run(play(context.engine, context.task, job.batches[part], how))
        rows = job.keep(part, groups)
        episodes = [e for group in groups for e in group]
        attempts = [a for e in episodes for a in e.attempts]
        record = CollectRecord(
            step=progress.step,
            stage=job.name,
            part=part + 1,
            parts=parts,
            episodes=len(episodes),
            reward=judged_means(episodes),
            kept=len(rows),
            sampled_responses=len(attempts),
            sampled_tokens=sum(len(_ids(a)) for a in attempts),
            seconds=time.perf_counter() - start,
        )
        stored.append({"record": record.model_dump(mode="json"), "rows": rows})
        run.append_collected(job.name, stored[-1])
        context.tell(record)
    return [row for s in stored for row in s["rows"]], [CollectRecord.model_validate(s["record"]) for s in stored]


def _kept(context: Context, how: Imitation, group: Sequence[Episode], rng: np.random.Generator) -> list[Episode]:
    if how.source == "star":
        return star_episodes(group, how.keep_right)

    def prompt_after(first: Attempt) -> tuple[int, ...]:
        asked = Prompt(first.prompt_ids or (), context.task.first_messages(group[0].problem))
        return context.engine.chat.extend(asked, _ids(first), context.task.instruction).ids

    return paired_episodes(group, how.keep_right, rng, prompt_after)


def _nothing(run: RunDirectory, stage: Stage, how: Imitation, episodes: int) -> DataError:
    wanted = {
        "star": "no second attempt that turns a wrong first one into a right one",
        "pair_sft": "no problem with both a wrong and a right response",
    }[how.source]
    more = "" if how.keep_right else "method.dataset=D+ (keeps right answers too), "
    return DataError(
        f"{stage.title} has nothing to train on: {episodes} sampled episodes hold {wanted}"
        f"{', nor a right one kept' if how.keep_right else ''}. Start a new run with {more}a larger "
        f"train.samples_per_problem or easier problems; this one is kept as it is in {run.path}"
    )


def _ids(attempt: Attempt) -> tuple[int, ...]:
    assert attempt.token_ids is not None, "an engine's answers have token ids"
    return attempt.token_ids
