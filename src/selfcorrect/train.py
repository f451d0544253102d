"""The one training loop. Every method is episodes -> per-token weights -> forward_backward, optim_step, publish."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from selfcorrect import alarms
from selfcorrect.config import Config, TrainConfig
from selfcorrect.engines.base import CURRENT, AdamParams, Engine, OptimResult
from selfcorrect.errors import Interrupted
from selfcorrect.methods import BatchReport, Stage, plan, policy_gradient_data
from selfcorrect.methods.data import sequences
from selfcorrect.records import AlarmRecord, CheckpointRecord, StepRecord, episode_row
from selfcorrect.rollout import Play, play
from selfcorrect.run import Progress, RunDirectory
from selfcorrect.tasks.base import Task
from selfcorrect.types import BASE, Datum, Episode, FloatArray, Problem, Verdict


class Observer(Protocol):
    """Whoever watches a run: the terminal, a tracker. Training never waits for an answer."""

    def on_stage(self, stage: Stage, first_step: int, total_steps: int) -> None: ...
    def on_step(self, record: StepRecord) -> None: ...
    def on_alarm(self, record: AlarmRecord) -> None: ...
    def on_checkpoint(self, record: CheckpointRecord) -> None: ...


@dataclass
class _Clock:
    """Wall seconds by phase of one step."""

    seconds: dict[str, float]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def problems_of_step(problems: Sequence[Problem], seed: int, step: int, count: int) -> list[Problem]:
    """Problems of a 0-based step: consecutive slices of a fresh seeded permutation per epoch.

    A pure function of (seed, step), so that a resumed run needs no data-loader state. Within a step no problem comes
    twice unless the data set is smaller than the step.
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
    """
    config = run.config
    stages = plan(config)
    problems = task.problems("train")
    progress = _restore(run, engine, observer)
    history = [r for r in run.records() if isinstance(r, StepRecord)]
    with asyncio.Runner() as runner:
        for index in range(progress.stage, len(stages)):
            stage, final = stages[index], index == len(stages) - 1
            if index > progress.stage:
                progress = progress.model_copy(update={"stage": index, "stage_step": 0})
                engine.reset_optimiser()
            observer.on_stage(stage, progress.step, config.train.steps)
            while progress.stage_step < stage.steps:
                batch = problems_of_step(problems, config.seed, progress.step, config.train.problems_per_step)
                record, groups = _step(config, engine, task, stage, progress, batch, runner)
                history.append(record)
                progress = _advance(progress, record)
                _write_step(run, record, groups, observer)
                _ring(run, history, stages, observer)
                stop = stop_requested()
                due = progress.stage_step == stage.steps or progress.step % config.train.checkpoint_every == 0
                if stop or due:
                    # only checkpoints that are due compete for the best: a stop must not change what is kept
                    judged = [r for r in history if r.stage == stage.name] if final and due else None
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


def _step(
    config: Config,
    engine: Engine,
    task: Task,
    stage: Stage,
    progress: Progress,
    batch: Sequence[Problem],
    runner: asyncio.Runner,
) -> tuple[StepRecord, list[list[Episode]]]:
    """Play, weight, update, publish: one optimiser step."""
    clock = _Clock({})
    how = Play(
        stage.attempts,
        stage.samples_per_problem,
        config.train.max_new_tokens,
        1.0,
        (config.seed, "train", progress.step),
    )
    with clock.phase("sample"):
        groups = runner.run(play(engine, task, batch, how))
    with clock.phase("reference"):
        reference = _logprobs(engine, groups, stage.reference)
        # like is compared with like: both sides of the KL come from the trainer's pass where the sampler's differs
        current = None if engine.info.exact_sampler else _logprobs(engine, groups, CURRENT)
    with clock.phase("update"):
        data, report = policy_gradient_data(groups, reference, stage.credit, current)
        trained = engine.forward_backward(data, stage.loss)
        result = engine.optim_step(_adam(config.train, progress.stage_step))
        engine.publish()
    record = _record(stage, progress, groups, report, data, trained, result, clock.seconds)
    return record, groups


def _logprobs(engine: Engine, groups: Sequence[Sequence[Episode]], policy: str) -> list[list[list[FloatArray]]]:
    """A policy's log-probs of every sequence, nested as the groups are."""
    laid_out = [[sequences(episode) for episode in group] for group in groups]
    flat = iter(engine.logprobs([s for group in laid_out for seqs in group for s in seqs], policy))
    return [[[next(flat) for _ in seqs] for seqs in group] for group in laid_out]


def _adam(t: TrainConfig, stage_step: int) -> AdamParams:
    ramp = min(1.0, (stage_step + 1) / t.warmup_steps) if t.warmup_steps else 1.0
    return AdamParams(t.learning_rate * ramp, t.adam_beta1, t.adam_beta2, t.adam_eps, t.weight_decay, t.grad_clip)


def _record(
    stage: Stage,
    progress: Progress,
    groups: Sequence[Sequence[Episode]],
    report: BatchReport,
    data: Sequence[Datum],
    trained: Sequence[FloatArray],
    result: OptimResult,
    seconds: dict[str, float],
) -> StepRecord:
    episodes = [e for group in groups for e in group]
    rewards_NK = np.stack([e.rewards_K for e in episodes])
    tokens_NK = np.array([[len(a.token_ids or ()) for a in e.attempts] for e in episodes])
    several = rewards_NK.shape[1] > 1
    gaps = [np.abs(t - d.logprobs_T)[~np.isnan(t)] for t, d in zip(trained, data, strict=True)]
    return StepRecord(
        step=progress.step + 1,
        stage=stage.name,
        stage_step=progress.stage_step + 1,
        episodes=len(episodes),
        reward=rewards_NK.mean(0).tolist(),
        kl=list(report.kl_K),
        truncated=_verdict_share(episodes, Verdict.TRUNCATED),
        no_answer=_verdict_share(episodes, Verdict.NO_ANSWER),
        errors=sum(a.grade is not None and a.grade.verdict is Verdict.ERROR for e in episodes for a in e.attempts),
        answer_tokens=tokens_NK.mean(0).tolist(),
        zero_variance=list(report.zero_variance_share_K),
        skipped_groups=list(report.skipped_groups_K),
        answer_change=float(np.mean([_changed(e) for e in episodes])) if several else None,
        fixed=float(np.mean((rewards_NK[:, 0] == 0) & (rewards_NK[:, -1] == 1))) if several else None,
        broken=float(np.mean((rewards_NK[:, 0] == 1) & (rewards_NK[:, -1] == 0))) if several else None,
        grad_norm=result.grad_norm,
        clipped=result.clipped,
        learning_rate=result.learning_rate,
        sampler_mismatch=float(max((g.max() for g in gaps if len(g)), default=0.0)),
        sampled_tokens=int(tokens_NK.sum()),
        seconds=seconds,
    )


def _verdict_share(episodes: Sequence[Episode], verdict: Verdict) -> list[float]:
    hits_NK = np.array([[a.grade is not None and a.grade.verdict is verdict for a in e.attempts] for e in episodes])
    return [float(x) for x in hits_NK.mean(0)]


def _changed(episode: Episode) -> bool:
    before, after = (a.grade.extracted if a.grade else None for a in episode.attempts[-2:])
    return before != after


def _advance(progress: Progress, record: StepRecord) -> Progress:
    return progress.model_copy(
        update={
            "step": progress.step + 1,
            "stage_step": progress.stage_step + 1,
            "train_seconds": progress.train_seconds + sum(record.seconds.values()),
            "sampled_tokens": progress.sampled_tokens + record.sampled_tokens,
            "sampled_responses": progress.sampled_responses + record.episodes * len(record.reward),
        }
    )


def _write_step(run: RunDirectory, record: StepRecord, groups: Sequence[Sequence[Episode]], observer: Observer) -> None:
    run.append(record)
    for group in groups[: run.config.train.log_problems_per_step]:
        for episode in group:
            run.append_episode(episode_row(episode, step=record.step, stage=record.stage))
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
    """Write a checkpoint; ``judged`` (the final stage's steps so far) says whether it is the best yet.

    The yardstick is the windowed mean of the unshaped last-attempt training reward.
    """
    window = None
    if judged is not None:
        window = float(np.mean([r.reward[-1] for r in judged[-run.config.train.best_window :]]))
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
