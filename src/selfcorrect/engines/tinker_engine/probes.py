"""Finds out, before a run, what a server does that would otherwise corrupt the run silently.

The API does not specify how a loss is reduced, whether the importance ratio is clipped, or what the sampler's log-probs are,
and servers differ. Each question is answered with artificial sequences on temporary adapters. The result is a
correction factor, or a refusal with the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from selfcorrect.engines.base import LARGEST_MEAN_GAP, AdamParams
from selfcorrect.engines.tinker_engine.client import Sampler, Server, Trainer
from selfcorrect.engines.tinker_engine.remote import RawSample, WireDatum
from selfcorrect.errors import EngineError
from selfcorrect.types import FloatArray, LossName

PROMPT_TOKENS, ANSWER_TOKENS = 6, 10
TOLERANCE = 0.1
"""Relative tolerance. Outcomes to be distinguished differ by a factor of 2 or more; bfloat16 rounding changes gradients
by about 0.01."""
RATIO = 4.0
"""Importance ratio to test, with its inverse. Both are outside every clipping range in use (PPO 0.8 to 1.2, truncation
at 2)."""
SAMPLES = 8
STEP, HUGE_EPS = AdamParams(learning_rate=0.01), 1e12
SMALLEST_MOVE = 1e-4
"""Smallest change of a log-prob that counts, in nats. ``STEP`` causes far more, and none with an epsilon far above any
gradient."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """How a server reduces token losses, and whether its cross-entropy is the plain sum."""

    mean_over_data: bool = False
    mean_over_tokens: bool = False
    """Each sequence's loss is divided by the number of its targets."""
    plain_cross_entropy: bool = True
    """False: it is normalised by the weights. Importance sampling at ratio 1 has the same gradient and replaces it."""

    def corrected(self, data: Sequence[WireDatum]) -> list[WireDatum]:
        """The data with weights scaled so that the server's reduction gives the sum over all tokens."""
        n = len(data) if self.mean_over_data else 1
        factors = [n * (len(d.target_ids) if self.mean_over_tokens else 1) for d in data]
        return [replace(d, weights=d.weights * factor) for d, factor in zip(data, factors, strict=True)]


@dataclass(frozen=True, slots=True)
class Findings:
    reduction: Reduction
    sampler_gap: float
    """Largest |sampler log-prob - trainer log-prob| of the probe's tokens, in nats."""
    same_seed_same_tokens: bool
    takes_adam: bool
    """False: the server keeps the betas, epsilon and weight decay that it was started with, and ignores a step's."""

    @property
    def notes(self) -> tuple[str, ...]:
        """The findings in words, for the run's records."""
        r = self.reduction
        conditions = {
            "the server averages over data: weights are multiplied by their number": r.mean_over_data,
            "the server averages over a sequence's tokens: weights are multiplied by their number": r.mean_over_tokens,
            "the server normalises cross-entropy: sent as importance sampling at ratio 1": not r.plain_cross_entropy,
            "the server does not repeat tokens for a repeated seed": not self.same_seed_same_tokens,
            "Adam's betas, epsilon and weight decay are those that the server was started with": not self.takes_adam,
        }
        return (
            *(text for text, holds in conditions.items() if holds),
            f"sampler and trainer differ by {self.sampler_gap:.2g}",
        )


def probe(server: Server, policy: Trainer, scratch: Trainer, sampler: Sampler, vocabulary: int) -> Findings:
    """Run all probes.

    Args:
        server: to load a saved state from.
        policy: the adapter that ``sampler`` was published from, unchanged since; the probes do not change it.
        scratch: a new adapter, which the probes change.
        sampler: of the policy.
        vocabulary: ids below this may be used.

    Raises:
        EngineError: the server does something that cannot be corrected here.
        RemoteFailure: a request failed.
    """
    tokens = np.random.default_rng(0).integers(0, vocabulary, size=2 * (PROMPT_TOKENS + ANSWER_TOKENS)).tolist()
    gap, repeats = _sampler_law(policy, sampler, tokens[:PROMPT_TOKENS])
    reduction = _reduction(scratch, tokens)
    sequence = _sequence(scratch, tokens[: PROMPT_TOKENS + ANSWER_TOKENS])
    takes_adam = _moved(scratch, sequence, replace(STEP, eps=HUGE_EPS)) < SMALLEST_MOVE
    _require_frozen(server, scratch, sequence)
    return Findings(reduction, gap, repeats, takes_adam)


def _sampler_law(policy: Trainer, sampler: Sampler, prompt: Sequence[int]) -> tuple[float, bool]:
    """Largest gap between sampler and trainer at temperature 1, and whether a seed repeats its tokens."""

    async def sample(stop: Sequence[int]) -> list[RawSample]:
        seeds = range(SAMPLES)
        return list(await asyncio.gather(*(sampler.sample(prompt, ANSWER_TOKENS, 1.0, stop, s) for s in seeds)))

    answers = asyncio.run(sample(()))
    if any(a.logprobs is None or len(a.logprobs) != len(a.token_ids) for a in answers):
        raise _refusal("does not return the log-probs of sampled tokens, without which nothing can be weighted")
    data = []
    for a in answers:
        tokens = (*prompt, *a.token_ids)
        zeros = np.zeros(len(tokens) - 1)
        data.append(WireDatum(tokens[:-1], tokens[1:], zeros, zeros))
    scored = zip(policy.forward(data), answers, strict=True)
    gaps = np.concatenate([np.abs(lp[len(prompt) - 1 :] - np.array(a.logprobs)) for lp, a in scored])
    if not gaps.mean() <= LARGEST_MEAN_GAP:
        raise _refusal(
            f"returns log-probs with its samples that differ from the trainer's by {gaps.mean():.3g} nats per token (another "
            "temperature, a filtered distribution, or other weights), so the weights that training applies would not belong to what "
            "was sampled"
        )
    firsts = sorted({a.token_ids[0] for a in answers})
    again = asyncio.run(sample(firsts))
    if any(a.stop == "stop" and (not a.token_ids or a.token_ids[-1] not in firsts) for a in again):
        raise _refusal("leaves the end token out of an answer, so that ending could not be trained")
    return float(gaps.max()), [a.token_ids[:1] for a in again] == [a.token_ids[:1] for a in answers]


def _sequence(trainer: Trainer, tokens: Sequence[int]) -> WireDatum:
    """An on-policy sequence with weight 1 on the answer's tokens, which follow the first ``PROMPT_TOKENS``."""
    targets = tuple(tokens[1:])
    position = np.arange(1, len(tokens))
    on = (position >= PROMPT_TOKENS) & (position < PROMPT_TOKENS + ANSWER_TOKENS)
    bare = WireDatum(tuple(tokens[:-1]), targets, on.astype(float), np.zeros(len(targets)))
    (logprobs,) = trainer.forward([bare])
    return replace(bare, logprobs=np.where(on, logprobs, 0.0))


def _reduction(scratch: Trainer, tokens: Sequence[int]) -> Reduction:
    """Find the reduction from gradient norms of artificial batches. A learning rate of 0 leaves the adapter
    unchanged."""

    def norm_of(data: Sequence[WireDatum], loss: LossName = "importance_sampling") -> float:
        scratch.forward_backward(data, loss)
        norm = scratch.optim_step(AdamParams(learning_rate=0.0))
        if norm is None:
            raise _refusal("reports no gradient norm, so whether it sums or averages losses cannot be known")
        return norm

    def averages(ratio: float, if_averaged: float, if_summed: float, what: str) -> bool:
        if not (_close(ratio, if_averaged) or _close(ratio, if_summed)):
            raise _refusal(f"reduces losses in an unknown way: gradients of {what}, have the ratio {ratio:.3g}")
        return not _close(ratio, if_summed)

    long = _sequence(scratch, tokens)
    n = PROMPT_TOKENS + ANSWER_TOKENS - 1
    short = WireDatum(long.input_ids[:n], long.target_ids[:n], long.weights[:n], long.logprobs[:n])
    one = norm_of([short])
    if not np.isfinite(one) or one <= 0:
        raise _refusal(f"gives a gradient of norm {one} for a weighted answer")
    over_data = averages(norm_of([short, short]) / one, 1.0, 2.0, "two equal sequences, and one")
    share = n / len(long.target_ids)
    what = "a sequence with unweighted tokens at its end, and without"
    over_tokens = averages(norm_of([long]) / one, share, 1.0, what)
    # Where an advantage is positive, clipping acts on large ratios; where it is negative, on small ones.
    for ratio, sign in ((RATIO, 1.0), (1 / RATIO, -1.0), (RATIO, -1.0), (1 / RATIO, 1.0)):
        logprobs = np.where(short.weights != 0, short.logprobs - np.log(ratio), 0.0)
        found = norm_of([replace(short, weights=sign * short.weights, logprobs=logprobs)]) / one
        if not _close(found, ratio):
            raise _refusal(
                f"clips or drops the importance ratio (a ratio of {ratio:g} scaled the gradient by {found:.3g}), but the "
                "method has no clipping"
            )
    cross = [norm_of([replace(short, weights=short.weights * w)], "cross_entropy") / one for w in (1.0, 3.0)]
    reduction = Reduction(over_data, over_tokens, _close(cross[0], 1.0) and _close(cross[1], 3.0))
    opposite = reduction.corrected([short, replace(long, weights=-long.weights)])
    left = norm_of(opposite) / norm_of(reduction.corrected([short]))
    if not left <= TOLERANCE:
        raise _refusal(
            "reduces a batch of unequal sequences in a way that no factor per sequence corrects (opposite weights on equal "
            f"tokens leave {left:.3g} of the gradient)"
        )
    return reduction


def _close(value: float, expected: float) -> bool:
    return abs(value - expected) <= TOLERANCE * abs(expected)


def _require_frozen(server: Server, scratch: Trainer, sequence: WireDatum) -> None:
    """Check that a saved state loads as it was saved, and does not change with the adapter that it was saved from."""
    (start,) = scratch.forward([sequence])
    frozen = server.trainer_from(scratch.save("probe"), optimiser=False)
    try:
        (before,) = frozen.forward([sequence])
        moved = _moved(scratch, sequence, STEP)
        (after,) = frozen.forward([sequence])
    finally:
        server.unload(frozen)
    if moved < SMALLEST_MOVE:
        raise _refusal("does not change log-probs by an optimiser step at a learning rate of 0.01")
    if _gap(before, start) > TOLERANCE * moved or _gap(after, before) > TOLERANCE * moved:
        raise _refusal(
            f"does not keep a reference frozen: a saved state's log-probs are {_gap(before, start):.3g} nats off after loading "
            f"and move by {_gap(after, before):.3g} with a step of another adapter, which itself moves by {moved:.3g} (an "
            "adapter that is merged into the base model does this)"
        )


def _moved(trainer: Trainer, sequence: WireDatum, adam: AdamParams) -> float:
    """Largest change of a log-prob by one step on the sequence, in nats."""
    (before,) = trainer.forward([sequence])
    trainer.forward_backward([sequence], "importance_sampling")
    trainer.optim_step(adam)
    return _gap(trainer.forward([sequence])[0], before)


def _gap(a: FloatArray, b: FloatArray) -> float:
    return float(np.abs(a - b).max())


def _refusal(what: str) -> EngineError:
    return EngineError(
        f"this Tinker server cannot be used: it {what}; use another backend or version of the server, or engine=torch "
        "(docs/engines.md says what is known of each)",
        usable=False,
    )
