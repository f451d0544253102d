"""One optimiser step of exactly known size, shaped like SCoRe's, for ``growth.py`` and ``cost_model.py``.

Prompts are random token ids and nothing stops an answer early, so every sequence has the length that the work says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from selfcorrect.algorithm.sequences import TokenSequence, sequences
from selfcorrect.engines.base import CURRENT, AdamParams, Sampled, SampleRequest, SamplingParams
from selfcorrect.types import BASE, Attempt, Datum, Episode, Problem

if TYPE_CHECKING:
    from selfcorrect.engines.torch_engine import TorchEngine

SPECIAL = 100
"""Ids below this are left out of prompts: special tokens are among the first."""


@dataclass(frozen=True, slots=True)
class Work:
    """The size of one step."""

    problems: int
    samples: int
    """Episodes per problem."""
    attempts: int
    prompt_tokens: int
    """Of the first attempt's prompt; at least 2."""
    answer_tokens: int
    """Of every attempt, exactly."""
    bridge_tokens: int
    """Between two attempts: end of turn, instruction, start of turn."""
    reference: bool = True
    """Also compute the frozen base's log-probs, and where the sampler's are not exact the policy's own."""

    @property
    def episodes(self) -> int:
        return self.problems * self.samples

    def prompt_of(self, attempt: int) -> int:
        """Tokens before the answer of this attempt, counted from 0."""
        return self.prompt_tokens + attempt * (self.answer_tokens + self.bridge_tokens)

    @property
    def sequence_tokens(self) -> int:
        """Of one whole episode."""
        return self.prompt_of(self.attempts - 1) + self.answer_tokens

    @property
    def sampled_tokens(self) -> int:
        """In the whole step."""
        return self.episodes * self.attempts * self.answer_tokens


@dataclass(frozen=True, slots=True)
class Seconds:
    """Wall time of one step by phase."""

    sample: tuple[float, ...]
    """One number per attempt."""
    reference: float
    """The frozen base's log-probs; 0 if they are not computed."""
    policy: float
    """The policy's own log-probs by the trainer's pass; 0 where the sampler's are exact."""
    update: float
    """forward_backward, optim_step and publish."""

    @property
    def total(self) -> float:
        return sum(self.sample) + self.reference + self.policy + self.update


def play_step(engine: TorchEngine, work: Work, step: int = 0, learning_rate: float = 1e-6) -> Seconds:
    """Sample, score and train on exactly this work.

    Args:
        engine: changed in place and published; with ``work.reference`` it must hold the snapshot ``base``.
        work: the size.
        step: names prompts and random streams; the same step plays the same tokens.
        learning_rate: small, so that several steps do not ruin the model.

    Raises:
        ValueError: an answer has the wrong length.
    """
    groups, sample_s = _play(engine, work, step)
    start = time.perf_counter()
    laid_out = [seq for episode in groups for seq in sequences(episode)]
    if work.reference:
        engine.logprobs(laid_out, BASE)
    scored = time.perf_counter()
    own = work.reference and not engine.info.exact_sampler
    if own:
        engine.logprobs(laid_out, CURRENT)
    begun = time.perf_counter()
    engine.forward_backward([_datum(seq, i, work.episodes) for i, seq in enumerate(laid_out)], "importance_sampling")
    engine.optim_step(AdamParams(learning_rate))
    engine.publish()
    done = time.perf_counter()
    reference_s, policy_s = scored - start if work.reference else 0.0, begun - scored if own else 0.0
    return Seconds(tuple(sample_s), reference_s, policy_s, done - begun)


def _play(engine: TorchEngine, work: Work, step: int) -> tuple[list[Episode], list[float]]:
    """All episodes, a problem's samples together, and the seconds of each attempt."""
    rng = np.random.default_rng((step, 0))
    vocabulary = len(engine.chat.tokenizer)
    first_ids = rng.permutation(np.arange(SPECIAL, vocabulary))[: work.problems]  # no two prompts share a beginning
    prompts: list[tuple[int, ...]] = []
    for first in first_ids:
        rest = rng.integers(SPECIAL, vocabulary, work.prompt_tokens - 1)
        prompts += [(int(first), *rest.tolist())] * work.samples
    bridge = tuple(rng.integers(SPECIAL, vocabulary, work.bridge_tokens).tolist())
    played: list[list[Attempt]] = [[] for _ in prompts]
    seconds = []
    for k in range(work.attempts):
        requests = [SampleRequest(p, (step, n, k)) for n, p in enumerate(prompts)]
        start = time.perf_counter()
        params = SamplingParams(work.answer_tokens, continued=k + 1 < work.attempts)
        answers = asyncio.run(engine.sample(requests, params))
        seconds.append(time.perf_counter() - start)
        for n, answer in enumerate(answers):
            played[n].append(_attempt(prompts[n], answer, work.answer_tokens, k))
            prompts[n] = (*prompts[n], *answer.token_ids, *bridge)
    nothing = Problem("", "", "")
    return [Episode(nothing, n, tuple(attempts)) for n, attempts in enumerate(played)], seconds


def _attempt(prompt: tuple[int, ...], answer: Sampled, wanted: int, k: int) -> Attempt:
    if len(answer.token_ids) != wanted:
        raise ValueError(f"an answer has {len(answer.token_ids)} tokens, not {wanted}")
    return Attempt("", prompt, answer.token_ids, answer.logprobs, answer.stop, parent=k - 1 if k else None)


def _datum(seq: TokenSequence, n: int, episodes: int) -> Datum:
    """Half of the episodes are pushed up and half down; no sampled token has weight 0, which would spare its work."""
    weights_T = seq.sampled_T * (1.0 if n % 2 else -1.0) / episodes
    return Datum(seq.tokens_T, weights_T, seq.logprobs_T, seq.sampled_T)


def mean_seconds(steps: Sequence[Seconds]) -> Seconds:
    """Phase by phase."""
    n = len(steps)
    return Seconds(
        tuple(sum(column) / n for column in zip(*(s.sample for s in steps), strict=True)),
        sum(s.reference for s in steps) / n,
        sum(s.policy for s in steps) / n,
        sum(s.update for s in steps) / n,
    )
