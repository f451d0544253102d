"""The one training loop. Every stage consists of steps (data -> forward_backward, optim_step, publish), and provides
its own kind of step.

``kinds.begin`` gives a stage's step. The loop advances, records, checks alarms, and writes checkpoints.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.stage import Stage
from selfcorrect.algorithm.stages import plan
from selfcorrect.algorithm.variants import scale_after
from selfcorrect.engines.base import Engine
from selfcorrect.errors import Interrupted
from selfcorrect.records.lines import AlarmRecord, CheckpointRecord, CollectRecord, EvalRecord, StepRecord, episode_row
from selfcorrect.records.run_directory import Progress, RunDirectory
from selfcorrect.tasks.base import Task
from selfcorrect.training import alarms
from selfcorrect.training.context import Context
from selfcorrect.training.kinds import begin, prepare
from selfcorrect.training.step import Groups

Watched = StepRecord | CollectRecord | AlarmRecord | CheckpointRecord | EvalRecord
"""The records that observers receive."""


class Observer(Protocol):
    """Receives the progress of a run, such as the terminal or a tracker. Training never waits for a reply."""

    def on_stage(self, stage: Stage, first_step: int, total_steps: int) -> None:
        """A stage begins, or a resumed run continues it."""

    def on_record(self, record: Watched) -> None:
        """Something was recorded. Collected parts are reported as they are sampled."""

    def on_measure(self, name: str, answers: int, most: int) -> None:
        """Progress of an evaluation and its controls: answers received, and the maximum expected."""


class Observers:
    """Several observers as one."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def on_stage(self, stage: Stage, first_step: int, total_steps: int) -> None:
        for o in self._observers:
            o.on_stage(stage, first_step, total_steps)

    def on_record(self, record: Watched) -> None:
        for o in self._observers:
            o.on_record(record)

    def on_measure(self, name: str, answers: int, most: int) -> None:
        for o in self._observers:
            o.on_measure(name, answers, most)


def train(
    run: RunDirectory,
    engine: Engine,
    task: Task,
    observer: Observer,
    stop_requested: Callable[[], bool] = lambda: False,
    stages: Sequence[Stage] | None = None,
) -> Progress:
    """Run all stages from the run's latest checkpoint, or from the start.

    Args:
        run: an open run directory.
        engine: a fresh engine on the run's model.
        task: the run's task.
        observer: receives every step.
        stop_requested: asked after every step; True writes a checkpoint and stops.
        stages: None takes those of the run's method.

    Returns:
        The final progress; ``best_step`` names the checkpoint to keep.

    Raises:
        Interrupted: a stop was requested; a checkpoint has been written.
        DataError: a stage that imitates found nothing to imitate.
    """
    config = run.config.train
    stages = plan(run.config) if stages is None else stages
    total = sum(stage.steps for stage in stages)
    checkpoint = run.latest_checkpoint()
    if checkpoint is None:
        _freeze(engine, stages[0])
        engine.publish()
        progress = _checkpoint(run, engine, Progress(), [], observer)
    else:
        progress = run.read_progress(checkpoint)
        engine.load(checkpoint)
    history = [r for r in run.records() if isinstance(r, StepRecord)]
    with asyncio.Runner() as runner:
        context = Context(run, engine, task, task.problems("train"), runner, observer.on_record, stop_requested)
        context, progress = prepare(context, stages, progress)
        for index in range(progress.stage, len(stages)):
            stage = stages[index]
            if index > progress.stage:
                progress = progress.model_copy(update={"stage": index, "stage_step": 0})
                engine.reset_optimiser()
                _freeze(engine, stage)
            elif progress.stage_step == stage.steps:
                continue
            observer.on_stage(stage, progress.step, total)
            take_step, progress = begin(context, stage, progress)
            while progress.stage_step < stage.steps:
                record, groups = take_step(progress)
                history.append(record)
                progress = _advanced(progress, record, stage)
                _write_step(run, record, groups, observer)
                _check_alarms(run, history, stages, observer)
                stop = stop_requested()
                due = progress.stage_step == stage.steps or progress.step % config.checkpoint_every == 0
                if stop or due:
                    # only checkpoints that are due compete for the best: a stop must not change what is kept
                    window = min(config.best_window, stage.steps)
                    full = index == len(stages) - 1 and due and record.reward and progress.stage_step >= window
                    rewards = _last_rewards(history[-window:], stage) if full else []
                    progress = _checkpoint(run, engine, progress, rewards, observer)
                if stop:
                    raise Interrupted(f"stopped after step {progress.step} as asked; continue with `{run.resume}`")
    return progress


def _freeze(engine: Engine, stage: Stage) -> None:
    if stage.freeze is not None:
        engine.snapshot(stage.freeze)


def _advanced(progress: Progress, record: StepRecord, stage: Stage) -> Progress:
    return progress.model_copy(
        update={
            "step": progress.step + 1,
            "stage_step": progress.stage_step + 1,
            "train_seconds": progress.train_seconds + sum(record.seconds.values()),
            "sampled_tokens": progress.sampled_tokens + record.sampled_tokens,
            "sampled_responses": progress.sampled_responses + (record.sampled_responses or 0),
            "beta2_scale": scale_after(stage, progress.beta2_scale, record.kl),
        }
    )


def _write_step(run: RunDirectory, record: StepRecord, groups: Groups, observer: Observer) -> None:
    run.append(record)
    for group in groups[: run.config.train.log_problems_per_step]:
        for episode in group:
            for path in episode.paths:
                run.append_episode(episode_row(path, step=record.step, stage=record.stage))
    observer.on_record(record)


def _check_alarms(
    run: RunDirectory, history: Sequence[StepRecord], stages: Sequence[Stage], observer: Observer
) -> None:
    """Report alarms once per window, not at every step. Alarms are about episodes, so a step without episodes raises
    none."""
    if history[-1].step % alarms.WINDOW or not history[-1].reward:
        return
    strict = stages[0].name if len(stages) > 1 else None
    objective = next(s.objective for s in stages if s.name == history[-1].stage)
    rewarded_K = [w != 0 for w in objective.reward_weights_K] if isinstance(objective, Credit) else []
    for alarm in alarms.check(history, strict, rewarded_K):
        run.append(alarm)
        observer.on_record(alarm)


def _last_rewards(window: Sequence[StepRecord], stage: Stage) -> list[float]:
    """Rewards of the last attempt, from the steps that played it: of two kinds of steps in turn, one may play first
    attempts only. Steps in which the verifier judged no last attempt are left out."""
    lasts = [r.reward[-1] for r in window if len(r.reward) == stage.attempts]
    return [x for x in lasts if x is not None]


def _checkpoint(
    run: RunDirectory,
    engine: Engine,
    progress: Progress,
    rewards: Sequence[float],
    observer: Observer,
) -> Progress:
    """Write a checkpoint. ``rewards``, those of the last attempt in a full window of the final stage's steps, decide
    whether it is the best so far; without any it does not compete.

    The criterion is the mean of the unshaped training reward of the last attempt over that window. Shorter windows do
    not compete, because a mean over fewer steps depends more on luck.
    """
    window = float(np.mean(rewards)) if rewards else None
    best = window is not None and (progress.best_reward is None or window > progress.best_reward)
    if best:
        progress = progress.model_copy(update={"best_step": progress.step, "best_reward": window})
    record = CheckpointRecord(step=progress.step, window_reward=window, best=best)
    run.append(record)
    progress = progress.model_copy(update=run.sizes())
    with run.writing_checkpoint(progress) as directory:
        engine.save(directory)
    run.prune(run.config.train.keep_checkpoints, progress.best_step)
    observer.on_record(record)
    return progress


@contextmanager
def stop_on_signal(heard: Callable[[], object] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop after the current step; a second one stops at once.

    Args:
        heard: called at the first one, inside a signal handler.

    Yields:
        Whether a stop was asked for.
    """
    asked = False

    def ask(signum: int, _frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        heard()

    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
