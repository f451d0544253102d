"""One optimiser step of either kind, with its record: reinforcement on fresh episodes, or imitation of stored ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from selfcorrect.algorithm.imitation import Example, batch_of_step, imitation_data
from selfcorrect.algorithm.ratios import bound_ratios
from selfcorrect.algorithm.sequences import BatchReport, last_attempt_from, lay_out, policy_gradient_data
from selfcorrect.algorithm.stages import Stage
from selfcorrect.config import Config, TrainConfig
from selfcorrect.engines.base import CURRENT, AdamParams, Engine, OptimResult
from selfcorrect.episodes.play import GivenFirst, Play, play
from selfcorrect.episodes.table import drafted_share_K, judged_mean
from selfcorrect.records.lines import StepRecord
from selfcorrect.records.run_directory import Progress
from selfcorrect.tasks.base import Task
from selfcorrect.types import BASE, Attempt, Datum, Episode, FloatArray, Problem, Verdict


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


def reinforce(
    config: Config,
    engine: Engine,
    task: Task,
    stage: Stage,
    progress: Progress,
    batch: Sequence[Problem],
    runner: asyncio.Runner,
    given_first: GivenFirst | None = None,
) -> tuple[StepRecord, list[list[Episode]]]:
    """Play, weight, update, publish.

    Args:
        config: of the run.
        engine: trained in place and published.
        task: prompts and verdicts.
        stage: one with a credit.
        progress: before this step; names the random streams.
        batch: the step's problems.
        runner: of the event loop.
        given_first: stored first attempts of some of the problems.
    """
    clock = _Clock({})
    how = Play(
        stage.attempts,
        stage.samples_per_problem,
        config.play.max_new_tokens,
        1.0,
        (config.seed, "train", progress.step),
        stage.branches,
    )
    with clock.phase("sample"):
        groups = runner.run(play(engine, task, batch, how, given_first))
    with clock.phase("reference"):
        layout = lay_out(groups)
        reference = layout.by_attempt(engine.logprobs(layout.sequences, BASE))
        if stage.earlier_reference != BASE:
            held = layout.by_attempt(engine.logprobs(layout.sequences, stage.earlier_reference))
            reference = last_attempt_from(held, reference)
        # like is compared with like: both sides of the KL come from the trainer's pass where the sampler's differs
        exact = engine.info.exact_sampler
        cap, band = config.train.ratio_bounds(exact)
        bounded = cap is not None or band is not None
        own = engine.logprobs(layout.sequences, CURRENT) if bounded or not exact else []
        current = None if exact else layout.by_attempt(own)
    with clock.phase("update"):
        data, report = policy_gradient_data(layout, reference, stage.credit_at(progress.beta2_scale), current)
        ratios = None
        if bounded:
            data, ratios = bound_ratios(data, own, cap, band)
        trained = engine.forward_backward(data, stage.loss)
        result = engine.optim_step(_adam(config.train, progress.stage_step))
        engine.publish()
    record = _record(stage, progress, groups, report, data, trained, result, clock.seconds)
    if ratios is not None:
        found = {"ratio_capped": ratios.capped, "ratio_masked": ratios.masked}
        worst = max(record.sampler_mismatch, ratios.largest_gap)  # also in sequences that were left out
        record = record.model_copy(update={**found, "sampler_mismatch": worst})
    return record, groups


def imitate(
    config: Config, engine: Engine, stage: Stage, progress: Progress, examples: Sequence[Example]
) -> StepRecord:
    """Cross-entropy on the step's share of the stage's examples; one epoch over all of its steps."""
    assert stage.imitate is not None
    clock = _Clock({})
    with clock.phase("update"):
        key = (config.seed, progress.step - progress.stage_step)
        chosen = batch_of_step(len(examples), stage.steps, key, progress.stage_step)
        data = imitation_data([examples[i] for i in chosen], stage.imitate.train_attempt1)
        trained = engine.forward_backward(data, stage.loss)
        result = engine.optim_step(_adam(config.train, progress.stage_step))
        engine.publish()
    targets = np.concatenate([t[~np.isnan(t)] for t in trained])
    return StepRecord(
        step=progress.step + 1,
        stage=stage.name,
        stage_step=progress.stage_step + 1,
        episodes=len(data),
        reward=[],
        kl=[],
        truncated=[],
        no_answer=[],
        errors=0,
        answer_tokens=[],
        zero_variance=[],
        skipped_groups=[],
        answer_change=None,
        fixed=None,
        broken=None,
        grad_norm=result.grad_norm,
        clipped=result.clipped,
        learning_rate=result.learning_rate,
        sampler_mismatch=0.0,
        sampled_tokens=0,
        seconds=clock.seconds,
        sampled_responses=0,
        loss=-float(targets.mean()),
    )


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
    attempts = [a for group in groups for e in group for a in e.attempts if a.source == "sampled"]
    episodes = [path for group in groups for e in group for path in e.paths]
    rewards_NK = np.stack([e.rewards_K for e in episodes])
    valid_NK = np.stack([e.valid_K for e in episodes])
    judged_N = valid_NK[:, 0] & valid_NK[:, -1]
    sampled_K = [
        [a for a in column if a.source == "sampled"] for column in zip(*(e.attempts for e in episodes), strict=True)
    ]
    several = rewards_NK.shape[1] > 1
    gaps = [np.abs(t - d.logprobs_T)[~np.isnan(t)] for t, d in zip(trained, data, strict=True)]
    return StepRecord(
        step=progress.step + 1,
        stage=stage.name,
        stage_step=progress.stage_step + 1,
        episodes=len(episodes),
        reward=[_accuracy(column) for column in sampled_K],
        kl=list(report.kl_K),
        truncated=[_mean([_verdict(a) is Verdict.TRUNCATED for a in column]) for column in sampled_K],
        no_answer=[_mean([_verdict(a) is Verdict.NO_ANSWER for a in column]) for column in sampled_K],
        errors=sum(_verdict(a) is Verdict.ERROR for a in attempts),
        answer_tokens=[_mean([len(a.token_ids or ()) for a in column]) for column in sampled_K],
        zero_variance=list(report.zero_variance_share_K),
        skipped_groups=list(report.skipped_groups_K),
        answer_change=float(np.mean([_changed(e) for e in episodes])) if several else None,
        fixed=judged_mean((rewards_NK[:, 0] == 0) & (rewards_NK[:, -1] == 1), judged_N) if several else None,
        broken=judged_mean((rewards_NK[:, 0] == 1) & (rewards_NK[:, -1] == 0), judged_N) if several else None,
        grad_norm=result.grad_norm,
        clipped=result.clipped,
        learning_rate=result.learning_rate,
        sampler_mismatch=float(max((g.max() for g in gaps if len(g)), default=0.0)),
        sampled_tokens=sum(len(a.token_ids or ()) for a in attempts),
        seconds=seconds,
        sampled_responses=len(attempts),
        beta2_scale=progress.beta2_scale if stage.kl_target is not None else None,
        drafted=drafted_share_K(episodes),
    )


def _mean(values: Sequence[float]) -> float | None:
    """None where there is nothing: no number was measured."""
    return float(np.mean(values)) if values else None


def _accuracy(column: Sequence[Attempt]) -> float | None:
    """Of the attempts that the verifier judged."""
    judged_N = np.array([_verdict(a) is not Verdict.ERROR for a in column], dtype=bool)
    return judged_mean(np.array([float(a.correct) for a in column]), judged_N) if column else None


def _verdict(attempt: Attempt) -> Verdict | None:
    return attempt.grade.verdict if attempt.grade else None


def _changed(episode: Episode) -> bool:
    before, after = (a.grade.extracted if a.grade else None for a in episode.attempts[-2:])
    return before != after
