"""How a stage of each kind begins. It gives the loop its step; the loop never asks what kind a stage is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.imitation import Demonstrations, Imitation, batch_of_step, imitation_data
from selfcorrect.algorithm.stage import Alternating, Stage
from selfcorrect.engines.base import AdamParams
from selfcorrect.records.lines import StepRecord
from selfcorrect.records.run_directory import Progress
from selfcorrect.training.collect import account, examples_of, offline_firsts
from selfcorrect.training.context import Context
from selfcorrect.training.step import Groups, adam_of, imitate, reinforce
from selfcorrect.training.warmup import demonstration_data, require_demonstrations

TakeStep = Callable[[Progress], tuple[StepRecord, Groups]]
"""Takes the next optimiser step. Returns its record and the episodes that it played. Called in order."""


def prepare(context: Context, stages: Sequence[Stage], progress: Progress) -> tuple[Context, Progress]:
    """Before the run's first step, sample the base's answers that later stages need. A resumed run reads them from
    disk."""
    firsts, records = offline_firsts(context, stages, progress)
    if progress.step == 0:
        progress = account(context.run, progress, records)
    return replace(context, firsts=firsts), progress


def begin(context: Context, stage: Stage, progress: Progress) -> tuple[TakeStep, Progress]:
    """Begin a stage, or continue it, and give its step.

    Returns:
        The stage's step, and the progress, which counts what the stage collected.
    """
    match stage.objective:
        case Credit():
            return partial(reinforce, context, stage), progress
        case Alternating(rows):
            return _alternating(context, rows, progress.step - progress.stage_step), progress
        case Imitation() as how:
            return _imitating(context, stage, how, progress)
        case Demonstrations() as how:
            return _demonstrating(context, stage, how, progress), progress


def _alternating(context: Context, rows: Sequence[Stage], first: int) -> TakeStep:
    """Reinforce by the rows in turn. ``first``: the run's step at which the stage began."""

    def take_step(at: Progress) -> tuple[StepRecord, Groups]:
        a_round, turn = divmod(at.stage_step, len(rows))
        return reinforce(context, rows[turn], at, context.batch(first + a_round))

    return take_step


def _imitating(context: Context, stage: Stage, how: Imitation, progress: Progress) -> tuple[TakeStep, Progress]:
    """Collect episodes with the current policy, then train from the stage's start: one epoch over all of its steps."""
    examples, records = examples_of(context, stage, how, progress)
    if progress.stage_step == 0:
        progress = account(context.run, progress, records)
        context.engine.restore(how.start)
        context.engine.publish()
    config, key = context.config, (context.config.seed, progress.step - progress.stage_step)

    def take_step(at: Progress) -> tuple[StepRecord, Groups]:
        chosen = batch_of_step(len(examples), stage.steps, key, at.stage_step)
        data = imitation_data([examples[i] for i in chosen], how.train_attempt1)
        return imitate(context, stage, at, data, adam_of(config.train, at.stage_step))

    return take_step, progress


def _demonstrating(context: Context, stage: Stage, how: Demonstrations, progress: Progress) -> TakeStep:
    """Imitate the task's own answers, from the position in their stream that training has reached."""
    task = require_demonstrations(context.task)
    stream = itertools.islice(task.demonstrations(context.config.seed), progress.stage_step * how.per_step, None)

    def take_step(at: Progress) -> tuple[StepRecord, Groups]:
        data = demonstration_data(context.engine.chat, context.task, itertools.islice(stream, how.per_step))
        # linear decay to a tenth: the last steps should settle the format, not shake it
        rate = how.learning_rate * (1 - 0.9 * at.stage_step / stage.steps)
        return imitate(context, stage, at, data, AdamParams(rate, grad_clip=1.0))

    return take_step
