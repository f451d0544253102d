"""One optimiser step with its record: reinforcement on fresh episodes, or cross-entropy on given sequences."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from selfcorrect.algorithm.ratios import bound_ratios
from selfcorrect.algorithm.sequences import BatchReport, last_attempt_from, lay_out, policy_gradient_data
from selfcorrect.algorithm.stage import Stage
from selfcorrect.algorithm.variants import credit_of
from selfcorrect.config import TrainConfig
from selfcorrect.engines.base import CURRENT, AdamParams, OptimResult
from selfcorrect.episodes.play import Play, play
from selfcorrect.episodes.table import drafted_share_K
from selfcorrect.episodes.verdict import balanced_accuracy, judged, tokens_saved, verdict_turn
from selfcorrect.records.lines import StepRecord, VerdictNumbers
from selfcorrect.records.run_directory import Progress
from selfcorrect.training.context import Context, offline_of_step
from selfcorrect.types import BASE, Attempt, Datum, Episode, FloatArray, Problem, Verdict

Groups = Sequence[Sequence[Episode]]


def reinforce(
    context: Context, stage: Stage, progress: Progress, batch: Sequence[Problem] | None = None
) -> tuple[StepRecord, Groups]:
    """One RL step: play episodes, weight their tokens, update, publish.

    Args:
        context: of the run.
        stage: one with a credit.
        progress: before this step; names the problems and the random streams.
        batch: the problems; None takes those of the step.
    """
    config, engine = context.config, context.engine
    seconds: dict[str, float] = {}
    batch = context.batch(progress.step) if batch is None else batch
    started = offline_of_step(batch, config.seed, progress.step, stage.offline_share) if stage.offline_share else []
    how = Play(
        stage.attempts,
        stage.samples_per_problem,
        config.play.max_new_tokens,
        1.0,
        (config.seed, "train", progress.step),
        stage.branches,
        **verdict_turn(config),
    )
    with _timed(seconds, "sample"):
        given = {p.id: context.firsts[p.id] for p in started}
        groups = context.runner.run(play(engine, context.task, batch, how, given))
    with _timed(seconds, "reference"):
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
    with _timed(seconds, "update"):
        credit = credit_of(stage, progress.beta2_scale)
        data, report = policy_gradient_data(layout, reference, credit, current)
        ratios = None
        if bounded:
            data, ratios = bound_ratios(data, own, cap, band)
        trained = engine.forward_backward(data, stage.loss)
        result = engine.optim_step(adam_of(config.train, progress.stage_step))
        engine.publish()
    record = _record(stage, progress, groups, report, data, trained, result, seconds)
    if ratios is not None:
        found = {"ratio_capped": ratios.capped, "ratio_masked": ratios.masked}
        worst = max(record.sampler_mismatch, ratios.largest_gap)  # also in sequences that were left out
        record = record.model_copy(update={**found, "sampler_mismatch": worst})
    return record, groups


def imitate(
    context: Context, stage: Stage, progress: Progress, data: Sequence[Datum], adam: AdamParams
) -> tuple[StepRecord, Groups]:
    """One step of cross-entropy on sequences with given weights; no episodes are played.

    Args:
        context: of the run.
        stage: one that imitates.
        progress: before this step.
        data: the step's sequences.
        adam: of this step.
    """
    engine = context.engine
    seconds: dict[str, float] = {}
    with _timed(seconds, "update"):
        trained = engine.forward_backward(data, stage.loss)
        result = engine.optim_step(adam)
        engine.publish()
    targets = np.concatenate([t[~np.isnan(t)] for t in trained])
    record = StepRecord(
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
        seconds=seconds,
        sampled_responses=0,
        loss=-float(targets.mean()),
    )
    return record, []


def adam_of(t: TrainConfig, stage_step: int) -> AdamParams:
    """Adam at a 0-based step of a stage: a linear warm-up, then constant."""
    ramp = min(1.0, (stage_step + 1) / t.warmup_steps) if t.warmup_steps else 1.0
    return AdamParams(t.learning_rate * ramp, t.adam_beta1, t.adam_beta2, t.adam_eps, t.weight_decay, t.grad_clip)


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Record the wall seconds of one phase of a step."""
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start


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
    columns_K = list(zip(*(e.answers for e in episodes), strict=True))
    sampled_K = [[a for a in column if a.source == "sampled"] for column in columns_K]
    several = len(columns_K) > 1
    turns = [k for k, a in enumerate(episodes[0].attempts) if a.turn == "answer"]
    answers = [[a.grade.extracted if a.grade else None for a in e.answers[-2:]] for e in episodes]
    changed = [before != after for before, after in answers] if several else []
    gaps = [np.abs(t - d.logprobs_T)[~np.isnan(t)] for t, d in zip(trained, data, strict=True)]
    return StepRecord(
        step=progress.step + 1,
        stage=stage.name,
        stage_step=progress.stage_step + 1,
        episodes=len(episodes),
        reward=[_accuracy([a for a in column if a.source != "given"]) for column in columns_K],
        kl=[report.kl_K[k] for k in turns],
        truncated=[_mean([_verdict(a) is Verdict.TRUNCATED for a in column]) for column in sampled_K],
        no_answer=[_mean([_verdict(a) is Verdict.NO_ANSWER for a in column]) for column in sampled_K],
        errors=sum(_verdict(a) is Verdict.ERROR for column in sampled_K for a in column),
        answer_tokens=[_mean([len(a.token_ids or ()) for a in column]) for column in sampled_K],
        thinking_tokens=[_mean([a.thinking_tokens or 0 for a in column]) for column in sampled_K]
        if any(a.thinking_tokens for a in attempts)
        else None,
        zero_variance=[report.zero_variance_share_K[k] for k in turns],
        skipped_groups=[report.skipped_groups_K[k] for k in turns],
        answer_change=float(np.mean(changed)) if several else None,
        fixed=_mean(((rewards_NK[:, 0] == 0) & (rewards_NK[:, -1] == 1))[judged_N].tolist()) if several else None,
        broken=_mean(((rewards_NK[:, 0] == 1) & (rewards_NK[:, -1] == 0))[judged_N].tolist()) if several else None,
        grad_norm=result.grad_norm,
        clipped=result.clipped,
        learning_rate=result.learning_rate,
        sampler_mismatch=float(max((g.max() for g in gaps if len(g)), default=0.0)),
        sampled_tokens=sum(len(a.token_ids or ()) for a in attempts),
        seconds=seconds,
        sampled_responses=len(attempts),
        beta2_scale=progress.beta2_scale if stage.kl_target is not None else None,
        drafted=drafted_share_K(episodes),
        verdicts=_verdicts(episodes, report),
    )


def _verdicts(episodes: Sequence[Episode], report: BatchReport) -> VerdictNumbers | None:
    """Of the verdict turns between attempts 1 and 2; None where there are none."""
    column = next((k for k, a in enumerate(episodes[0].attempts) if a.turn == "verdict"), None)
    if column is None:
        return None
    turns = [e.attempts[column] for e in episodes]
    says = [a.grade.extracted if a.grade else None for a in turns]
    return VerdictNumbers(
        accuracy=_accuracy(turns),
        balanced=balanced_accuracy([pair for e in episodes for pair in judged(e)]),
        says_correct=says.count("correct") / len(says),
        says_wrong=says.count("wrong") / len(says),
        kl=report.kl_K[column],
        tokens=float(np.mean([len(a.token_ids or ()) for a in turns])),
        tokens_saved=float(np.mean([tokens_saved(e) for e in episodes])),
        zero_variance=report.zero_variance_share_K[column],
        skipped_groups=report.skipped_groups_K[column],
    )


def _mean(values: Sequence[float]) -> float | None:
    """The mean; None without values, because nothing was measured."""
    return float(np.mean(values)) if values else None


def _accuracy(column: Sequence[Attempt]) -> float | None:
    """Accuracy over the attempts that the verifier judged; None where it judged none, which must not pass for wrong."""
    return _mean([float(a.correct) for a in column if _verdict(a) is not Verdict.ERROR])


def _verdict(attempt: Attempt) -> Verdict | None:
    return attempt.grade.verdict if attempt.grade else None
