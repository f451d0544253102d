"""The one training loop. Every method is episodes -> per-token weights -> forward_backward, optim_step, publish.

A stage that imitates collects its episodes before its first step; all other stages play fresh ones in every step.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import numpy as np

from selfcorrect.algorithm.imitation import Example
from selfcorrect.algorithm.stages import Stage, plan
from selfcorrect.algorithm.variants import adapted_scale
from selfcorrect.engines.base import Engine
from selfcorrect.episodes.play import GivenFirst
from selfcorrect.errors import Interrupted
from selfcorrect.records.lines import AlarmRecord, CheckpointRecord, CollectRecord, EvalRecord, StepRecord, episode_row
from selfcorrect.records.run_directory import Progress, RunDirectory
from selfcorrect.tasks.base import Task
from selfcorrect.training import alarms
from selfcorrect.training.collect import Collector
from selfcorrect.training.step import imitate, reinforce
from selfcorrect.types import BASE, Episode, Problem


class Observer(Protocol):
    """Whoever watches a run: the terminal, a tracker. Training never waits for an answer."""

    def on_stage(self, stage: Stage, first_step: int, total_steps: int) -> None: ...
    def on_collect(self, record: CollectRecord) -> None: ...
    def on_step(self, record: StepRecord) -> None: ...
    def on_alarm(self, record: AlarmRecord) -> None: ...
    def on_checkpoint(self, record: CheckpointRecord) -> None: ...
    def on_measure(self, name: str, answers: int, most: int) -> None:
        """An evaluation and its controls have got so many answers, of ``most`` at most."""

    def on_evaluation(self, record: EvalRecord) -> None: ...


class Observers:
    """Several observers as one."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def on_stage(self, stage: Stage, first_step: int, total_steps: int) -> None:
        for o in self._observers:
            o.on_stage(stage, first_step, total_steps)

    def on_collect(self, record: CollectRecord) -> None:
        for o in self._observers:
            o.on_collect(record)

    def on_step(self, record: StepRecord) -> None:
        for o in self._observers:
            o.on_step(record)

    def on_alarm(self, record: AlarmRecord) -> None:
        for o in self._observers:
            o.on_alarm(record)

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        for o in self._observers:
            o.on_checkpoint(record)

    def on_measure(self, name: str, answers: int, most: int) -> None:
        for o in self._observers:
            o.on_measure(name, answers, most)

    def on_evaluation(self, record: EvalRecord) -> None:
        for o in self._observers:
            o.on_evaluation(record)


def problems_of_step(problems: Sequence[Problem], seed: int, step: int, count: int) -> list[Problem]:
    """Problems of a 0-based step: consecutive slices of a fresh seeded permutation per epoch.

    A pure function of (seed, step), so that a resumed run needs no data-loader state. No problem comes twice in a step, so
    a step across the end of an epoch, or of more problems than there are, may hold fewer than ``count``.
    """
    out: list[Problem] = []
    position = step * count
    while len(out) < count:
        epoch, offset = divmod(position, len(problems))
        order = np.random.default_rng([seed, epoch]).permutation(len(problems))
        taken = order[offset : offset + count - len(out)]
        out += [problems[i] for i in taken]
        position += len(taken)
    return list({p.id: p for p in out}.values())


def offline_of_step(batch: Sequence[Problem], seed: int, step: int, share: float) -> list[Problem]:
    """The problems of a step that start from stored first attempts: a share of them, in expectation exactly.

    A pure function of (seed, step). A fractional count is rounded up as often as its fraction says.
    """
    rng = np.random.default_rng([seed, step, 1])
    count = int(share * len(batch) + rng.random())
    return [batch[i] for i in sorted(rng.permutation(len(batch))[:count])]


def train(
    run: RunDirectory,
    engine: Engine,
    task: Task,
    observer: Observer,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Progress:
    """Run all stages of the run's method from its latest checkpoint, or from the start.

    Args:
        run: an open run directory.
        engine: a fresh engine on the run's model.
        task: the run's task.
        observer: is told of every step.
        stop_requested: asked after every step; True writes a checkpoint and stops.

    Returns:
        The final progress; ``best_step`` names the checkpoint to keep.

    Raises:
        Interrupted: a stop was requested; a checkpoint has been written.
        DataError: a stage that imitates found nothing to imitate.
    """
    config = run.config
    stages = plan(config)
    problems = task.problems("train")
    progress = _restore(run, engine, observer)
    history = [r for r in run.records() if isinstance(r, StepRecord)]
    with asyncio.Runner() as runner:
        tell = observer.on_collect
        collector = Collector(run, engine, task, runner, progress.step, tell, stop_requested, progress.step == 0)
        firsts, progress = _offline_firsts(collector, stages, problems, progress)
        for index in range(progress.stage, len(stages)):
            stage, final = stages[index], index == len(stages) - 1
            if index > progress.stage:
                progress = progress.model_copy(update={"stage": index, "stage_step": 0})
                engine.reset_optimiser()
                if stage.freeze is not None:
                    engine.snapshot(stage.freeze)
            observer.on_stage(stage, progress.step, config.train.steps)
            examples, progress = _examples(collector, stage, problems, progress)
            while progress.stage_step < stage.steps:
                batch = problems_of_step(problems, config.seed, progress.step, config.train.problems_per_step)
                if stage.imitate is not None:
                    groups: list[list[Episode]] = []
                    record = imitate(config, engine, stage, progress, examples)
                else:
                    given = _given(firsts, batch, config.seed, progress.step, stage.offline_share)
                    record, groups = reinforce(config, engine, task, stage, progress, batch, runner, given)
                history.append(record)
                progress = _advance(progress, record, stage)
                _write_step(run, record, groups, observer)
                if stage.imitate is None:
                    _ring(run, history, stages, observer)
                stop = stop_requested()
                due = progress.stage_step == stage.steps or progress.step % config.train.checkpoint_every == 0
                if stop or due:
                    # only checkpoints that are due compete for the best: a stop must not change what is kept
                    window = min(config.train.best_window, stage.steps)
                    full = final and due and stage.imitate is None and progress.stage_step >= window
                    judged = history[-window:] if full else None
                    progress = _checkpoint(run, engine, progress, judged, observer)
                if stop:
                    raise Interrupted(
                        f"stopped after step {progress.step} as asked; continue with `selfcorrect train --resume {run.path}`"
                    )
    return progress


def _restore(run: RunDirectory, engine: Engine, observer: Observer) -> Progress:
    """Go on from the latest checkpoint; a new run first writes one at step 0, which also freezes the base."""
    checkpoint = run.latest_checkpoint()
    if checkpoint is not None:
        progress = run.read_progress(checkpoint)
        engine.load(checkpoint)
        return progress
    engine.snapshot(BASE)
    engine.publish()
    return _checkpoint(run, engine, Progress(), None, observer)


def _examples(
    collector: Collector, stage: Stage, problems: Sequence[Problem], progress: Progress
) -> tuple[list[Example], Progress]:
    """What an imitating stage trains on; at its start also the policy that it starts from."""
    if stage.imitate is None or progress.stage_step == stage.steps:
        return [], progress
    config, first = collector.run.config, progress.step - progress.stage_step
    batches = [
        problems_of_step(problems, config.seed, first + i, config.train.problems_per_step) for i in range(stage.steps)
    ]
    collector = replace(collector, step=progress.step, may_sample=progress.stage_step == 0)
    examples, records = collector.examples(stage, batches)
    if progress.stage_step == 0:
        progress = _account(collector.run, progress, records)
        collector.engine.restore(stage.imitate.start)
        collector.engine.publish()
    return examples, progress


def _offline_firsts(
    collector: Collector, stages: Sequence[Stage], problems: Sequence[Problem], progress: Progress
) -> tuple[GivenFirst, Progress]:
    """First attempts of the base for every problem that any step of the run will start from one.

    Sampled before the first step, while the published weights are the base's. A problem that comes again later gets the
    same ones, so this costs at most what sampling them in every step would.
    """
    config, step = collector.run.config, 0
    needed: dict[str, Problem] = {}
    for stage in stages:
        for s in range(step, step + stage.steps) if stage.offline_share else ():
            batch = problems_of_step(problems, config.seed, s, config.train.problems_per_step)
            needed |= {p.id: p for p in offline_of_step(batch, config.seed, s, stage.offline_share)}
        step += stage.steps
    if not needed:
        return {}, progress
    wanted, size = list(needed.values()), config.train.problems_per_step
    samples = max(stage.samples_per_problem for stage in stages if stage.offline_share)
    firsts, records = collector.first_attempts(samples, [wanted[i : i + size] for i in range(0, len(wanted), size)])
    return firsts, _account(collector.run, progress, records) if progress.step == 0 else progress


def _given(
    firsts: GivenFirst, batch: Sequence[Problem], seed: int, step: int, share: float
) -> dict[str, Sequence[tuple[int, ...]]]:
    return {p.id: firsts[p.id] for p in offline_of_step(batch, seed, step, share)} if share else {}


def _account(run: RunDirectory, progress: Progress, records: Sequence[CollectRecord]) -> Progress:
    """Write down what was collected and count it. Done once per stage; a resumed run repeats it only if it was cut back."""
    for record in records:
        run.append(record)
    return progress.model_copy(
        update={
            "train_seconds": progress.train_seconds + sum(r.seconds for r in records),
            "sampled_tokens": progress.sampled_tokens + sum(r.sampled_tokens for r in records),
            "sampled_responses": progress.sampled_responses + sum(r.sampled_responses for r in records),
        }
    )


def _advance(progress: Progress, record: StepRecord, stage: Stage) -> Progress:
    scale = progress.beta2_scale
    if stage.kl_target is not None:
        held = [kl for kl in record.kl[:-1] if kl is not None]
        scale = adapted_scale(scale, float(np.mean(held)), stage.kl_target)
    return progress.model_copy(
        update={
            "step": progress.step + 1,
            "stage_step": progress.stage_step + 1,
            "train_seconds": progress.train_seconds + sum(record.seconds.values()),
            "sampled_tokens": progress.sampled_tokens + record.sampled_tokens,
            "sampled_responses": progress.sampled_responses + (record.sampled_responses or 0),
            "beta2_scale": scale,
        }
    )


def _write_step(run: RunDirectory, record: StepRecord, groups: Sequence[Sequence[Episode]], observer: Observer) -> None:
    run.append(record)
    for group in groups[: run.config.train.log_problems_per_step]:
        for episode in group:
            for path in episode.paths:
                run.append_episode(episode_row(path, step=record.step, stage=record.stage))
    observer.on_step(record)


def _ring(run: RunDirectory, history: Sequence[StepRecord], stages: Sequence[Stage], observer: Observer) -> None:
    """Report alarms once per window, not at every step."""
    if history[-1].step % alarms.WINDOW:
        return
    strict = stages[0].name if len(stages) > 1 else None
    for alarm in alarms.check(history, strict):
        run.append(alarm)
        observer.on_alarm(alarm)


def _checkpoint(
    run: RunDirectory,
    engine: Engine,
    progress: Progress,
    judged: Sequence[StepRecord] | None,
    observer: Observer,
) -> Progress:
    """Write a checkpoint; ``judged`` (a full window of the final stage's steps) says whether it is the best yet.

    The yardstick is the mean of the unshaped last-attempt training reward over that window. Shorter windows do not
    compete: the fewer steps, the more a mean is luck.
    """
    window = None
    if judged is not None:
        window = float(np.mean([r.reward[-1] for r in judged]))
    best = window is not None and (progress.best_reward is None or window > progress.best_reward)
    if best:
        progress = progress.model_copy(update={"best_step": progress.step, "best_reward": window})
    record = CheckpointRecord(step=progress.step, window_reward=window, best=best)
    run.append(record)
    progress = progress.model_copy(update=run.sizes())
    with run.writing_checkpoint(progress) as directory:
        engine.save(directory)
    run.prune(run.config.train.keep_checkpoints, progress.best_step)
    observer.on_checkpoint(record)
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
