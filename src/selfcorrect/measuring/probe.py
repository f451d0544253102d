"""A measurement before a run: how this model does on this task's training problems under the run's own settings.

All numbers come from one set of samples at temperature 1, under a cap above the run's: with a smaller cap the same
random stream gives the same tokens, cut off. For first attempts this is exact. A later attempt would have read a cut
earlier one, so its figures under smaller caps are accurate only if few attempts are cut.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selfcorrect.algorithm.sequences import lay_out
from selfcorrect.engines.base import CURRENT, Engine
from selfcorrect.episodes.play import Play, play
from selfcorrect.measuring.advice import Numbers
from selfcorrect.measuring.intervals import Estimate
from selfcorrect.measuring.metrics import EvalSummary, summarise
from selfcorrect.measuring.phase import Recommendation, Revising, recommend, revising
from selfcorrect.tasks.base import Demonstrates, Task
from selfcorrect.types import Attempt, Episode, Problem, Verdict

QUANTILES = (0.5, 0.9, 0.99, 1.0)
UPDATE_PASSES = 3
"""Cost of an update, in forward passes over the same tokens: one forward pass, and a backward pass that costs two."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to play. ``cap`` is the run's cap, ``largest_cap`` the cap for sampling."""

    attempts: int
    samples: int
    """Per problem at temperature 1: the group size of the run."""
    cap: int
    largest_cap: int
    seed: int = 0
    turns: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``Play`` for a turn between attempts, see ``verdict_turn``."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Everything measured. Lists ending in ``_K`` have one entry per attempt; shares in [0, 1]."""

    plan: Plan
    sampled: EvalSummary
    """Summary at temperature 1 under the largest cap."""
    greedy: EvalSummary
    """Greedy summary under the run's cap, as in an evaluation of these problems."""
    tokens_K: tuple[tuple[int, ...], ...]
    """Quantiles (``QUANTILES``) of tokens per answer, at temperature 1."""
    cap_hits: Mapping[int, tuple[float, ...]]
    """Share of answers that each cap cuts, by cap; one value per attempt."""
    one_verdict: Mapping[int, tuple[float | None, ...]]
    """Expected share of groups whose samples all get the same verdict, by group size; one value per attempt."""
    revising: Revising | None
    """From attempt 1 to attempt 2; None with one attempt."""
    verifier_errors: float
    tokens_per_s: float
    """Speed of sampling and grading at temperature 1, all samples at once."""
    tokens_per_episode: float
    """Mean tokens of an episode under the run's cap."""
    scoring_s: float
    """Seconds for one forward pass over all episodes at temperature 1, as for the reference's log-probs."""
    episodes: list[Episode]
    """The episodes at temperature 1."""

    def sampling_seconds(self, episodes: int) -> float:
        """Estimated seconds to sample and grade a step of this many episodes, at the speed measured here."""
        return episodes * self.tokens_per_episode / self.tokens_per_s

    def step_seconds(self, episodes: int) -> float:
        """Estimated seconds of a whole step: sampling, the reference's pass, and an update of ``UPDATE_PASSES`` passes."""
        passes = self.scoring_s * episodes / len(self.episodes)
        return self.sampling_seconds(episodes) + (1 + UPDATE_PASSES) * passes

    def to_json(self) -> dict[str, Any]:
        return {
            "attempts": self.plan.attempts,
            "samples": self.plan.samples,
            "cap": self.plan.cap,
            "largest_cap": self.plan.largest_cap,
            "sampled": self.sampled.to_json(),
            "greedy": self.greedy.to_json(),
            "token_quantiles": {str(q): [t[i] for t in self.tokens_K] for i, q in enumerate(QUANTILES)},
            "cap_hits": {str(cap): list(shares) for cap, shares in self.cap_hits.items()},
            "one_verdict_groups": {str(k): list(shares) for k, shares in self.one_verdict.items()},
            "revising": self.revising.to_json() if self.revising else None,
            "verifier_errors": self.verifier_errors,
            "tokens_per_s": self.tokens_per_s,
            "scoring_s": self.scoring_s,
        }


def training_sample(task: Task, count: int, seed: int) -> list[Problem]:
    """The first ``count`` training problems of a seeded shuffle, or all if there are fewer."""
    problems = task.problems("train")
    order = np.random.default_rng(seed).permutation(len(problems))
    return [problems[i] for i in order[:count]]


def probe(engine: Engine, task: Task, problems: Sequence[Problem], plan: Plan) -> Probe:
    """Play the problems greedily and at temperature 1, and count.

    Args:
        engine: its published weights are measured.
        task: prompts and verdicts.
        problems: problems of the training split.
        plan: attempts, samples, caps.
    """
    once = Play(plan.attempts, 1, plan.cap, 0.0, (plan.seed, "probe greedy"), **plan.turns)
    greedy = asyncio.run(play(engine, task, problems, once))
    how = Play(plan.attempts, plan.samples, plan.largest_cap, 1.0, (plan.seed, "probe"), **plan.turns)
    start = time.perf_counter()  # of the second call: what a first call costs once is not in the speed
    groups = asyncio.run(play(engine, task, problems, how))
    seconds = time.perf_counter() - start
    episodes = [e for group in groups for e in group]
    start = time.perf_counter()
    engine.logprobs(lay_out(groups).sequences, CURRENT)
    scoring = time.perf_counter() - start
    columns_K = [[e.answers[k] for e in episodes] for k in range(plan.attempts)]
    columns_K = [[a for a in column if a.source != "kept"] or column for column in columns_K]
    lengths_KE = [np.array([len(a.token_ids or ()) for a in column]) for column in columns_K]
    all_lengths = [len(a.token_ids or ()) for e in episodes for a in e.attempts]
    graded = [a.grade for column in columns_K for a in column if a.grade is not None]
    return Probe(
        plan=plan,
        sampled=summarise(episodes, seed=plan.seed),
        greedy=summarise([e for group in greedy for e in group], seed=plan.seed),
        tokens_K=tuple(
            tuple(int(t) for t in np.quantile(lengths_E, QUANTILES, method="higher")) for lengths_E in lengths_KE
        ),
        cap_hits={
            cap: tuple(sum(is_cut(a, cap) for a in column) / len(column) for column in columns_K)
            for cap in caps(plan.cap, plan.largest_cap)
        },
        one_verdict={
            k: tuple(_mean_one_verdict(groups, attempt, k) for attempt in range(plan.attempts))
            for k in group_sizes(plan.samples)
        },
        revising=revising(groups, getattr(task, "check_is_sound", None)) if plan.attempts > 1 else None,
        verifier_errors=sum(g.verdict is Verdict.ERROR for g in graded) / len(graded),
        tokens_per_s=float(sum(all_lengths)) / seconds,
        tokens_per_episode=float(np.minimum(all_lengths, plan.cap).sum() / len(episodes)),
        scoring_s=scoring,
        episodes=episodes,
    )


def numbers(found: Probe, task: Task) -> Numbers:
    """The numbers that ``advise`` needs."""
    first, last = found.sampled.attempts[0], found.sampled.attempts[-1]
    revision = found.sampled.revisions[-1] if found.sampled.revisions else None
    return Numbers(
        samples=found.plan.samples,
        cap=found.plan.cap,
        attempts=found.plan.attempts,
        accuracy_first=_value(first.accuracy),
        accuracy_last=_value(last.accuracy),
        no_answer=first.verdict_shares[Verdict.NO_ANSWER.value],
        unfinished=first.verdict_shares[Verdict.TRUNCATED.value],
        verifier_errors=found.verifier_errors,
        cap_hits={cap: max(shares) for cap, shares in found.cap_hits.items()},
        one_verdict=found.one_verdict[found.plan.samples][-1],
        changed=_value(revision.answer_changed) if revision else None,
        fixed=_value(revision.i_to_c) if revision else None,
        can_warm_up=isinstance(task, Demonstrates),
        sound=found.revising.sound_if_wrong if found.revising else None,
        no_verdict=_value(found.sampled.verdicts.says_nothing) if found.sampled.verdicts else None,
    )


def recommendation(found: Probe, second_attempts: int) -> Recommendation | None:
    """The method to try first, for a step of so many second attempts; None with one attempt.

    Args:
        found: with samples at temperature 1.
        second_attempts: sampled in a step.
    """
    if found.revising is None or found.revising.fixed is None:
        return None
    return recommend(found.sampled.revisions[0].delta, found.revising.fixed, second_attempts)


def caps(cap: int, largest: int) -> list[int]:
    """The caps to report: a quarter and a half of the run's cap, the run's cap, and its doublings up to the largest."""
    doubles = [cap * 2**i for i in range(1, 12) if cap * 2**i <= largest]
    return sorted({max(1, cap // 4), max(1, cap // 2), cap, *doubles, largest})


def group_sizes(samples: int) -> list[int]:
    """2, 4, 8, ... up to the number of samples, and that number."""
    return sorted({*(2**i for i in range(1, 12) if 2**i <= samples), samples})


def is_cut(attempt: Attempt, cap: int) -> bool:
    """Whether a cap would have cut an answer that was sampled under the same or a larger cap."""
    length = len(attempt.token_ids or ())
    return length > cap or (length == cap and attempt.stop == "length")


def expected_one_verdict(right: int, samples: int, k: int) -> float | None:
    """Chance that k of the samples, drawn without replacement, are all right or all wrong; None with fewer than k.

    An unbiased estimate of the share of groups of k whose leave-one-out advantages are all 0.
    """
    if samples < k:
        return None
    return (math.comb(right, k) + math.comb(samples - right, k)) / math.comb(samples, k)


def _mean_one_verdict(groups: Sequence[Sequence[Episode]], attempt: int, k: int) -> float | None:
    """Mean over problems; a sample with a verifier error is left out, as in training."""
    chances = []
    for group in groups:
        answers = [e.answers[attempt] for e in group]
        valid = [a.correct for a in answers if a.correct or a.wrong]
        chances.append(expected_one_verdict(sum(valid), len(valid), k))
    known = [c for c in chances if c is not None]
    return sum(known) / len(known) if known else None


def _value(estimate: Estimate) -> float | None:
    return None if estimate.n == 0 else estimate.value
