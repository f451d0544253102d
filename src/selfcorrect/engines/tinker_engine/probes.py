"""What is asked of a server before a run, because it would otherwise go wrong in silence.

The API does not say how a loss is reduced, whether the importance ratio is clipped, or what the sampler's log-probs are,
and servers differ. Each question is put to scratch adapters with made-up sequences; the answer is a factor to correct by,
or a refusal with the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from selfcorrect.engines.base import AdamParams
from selfcorrect.engines.tinker_engine.remote import RawSample, Sampler, Server, Trainer, WireDatum
from selfcorrect.errors import EngineError
from selfcorrect.types import FloatArray, LossName

PROMPT_TOKENS, ANSWER_TOKENS = 6, 10
TOLERANCE = 0.1
"""Relative. The answers that are told apart differ by a factor of 2 or more; bfloat16 gradients differ by about 0.01."""
RATIO = 4.0
"""Importance ratio tried, and its inverse: outside every clipping range in use (PPO 0.8 to 1.2, truncation at 2)."""
SAMPLES = 8
EXACT_GAP = 1e-4
"""Largest difference in nats of sampler and trainer that float32 rounding explains."""
LARGEST_MEAN_GAP = 0.5
"""Nats per token. Beyond it the two do not describe the same law."""
STEP, HUGE_EPS = AdamParams(learning_rate=0.01), 1e12
SMALLEST_MOVE = 1e-4
"""Nats. ``STEP`` moves log-probs by far more, and with an epsilon that dwarfs any gradient by nothing at all."""
SAME_LAW = "so the weights that training applies would not belong to what was sampled"


@dataclass(frozen=True, slots=True)
class Reduction:
    """How a server turns losses of tokens into one, and what its cross-entropy is."""

    mean_over_data: bool = False
    mean_over_tokens: bool = False
    """Each sequence's loss is divided by the number of its targets."""
    plain_cross_entropy: bool = True
    """False: it is normalised by the weights. Importance sampling at ratio 1, whose gradient is the same, replaces it."""

    def corrected(self, data: Sequence[WireDatum]) -> list[WireDatum]:
        """The same data with weights that make the server's reduction a sum over everything."""
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
    """False: Adam's betas, epsilon and weight decay were set when the server started, and those of a step are ignored."""

    @property
    def notes(self) -> tuple[str, ...]:
        """For the run's records."""
        r = self.reduction
        said = {
            "the server averages over data: weights are multiplied by their number": r.mean_over_data,
            "the server averages over a sequence's tokens: weights are multiplied by their number": r.mean_over_tokens,
            "the server normalises cross-entropy: sent as importance sampling at ratio 1": not r.plain_cross_entropy,
            "the server does not repeat tokens for a repeated seed": not self.same_seed_same_tokens,
            "Adam's betas, epsilon and weight decay are those that the server was started with": not self.takes_adam,
        }
        return (
            *(text for text, holds in said.items() if holds),
            f"sampler and trainer differ by {self.sampler_gap:.2g}",
        )


def probe(server: Server, policy: Trainer, scratch: Trainer, sampler: Sampler, vocabulary: int) -> Findings:
    """Ask everything.

    Args:
        server: to load a saved state from.
        policy: an adapter in the state that ``sampler`` was published from; nothing of it is changed.
        scratch: a fresh adapter, which is spoiled.
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
    _frozen(server, scratch, sequence)
    return Findings(reduction, gap, repeats, takes_adam)


def _sequence(trainer: Trainer, tokens: Sequence[int]) -> WireDatum:
    """Weight 1 on the answer's tokens, which follow the first ``PROMPT_TOKENS``; on policy."""
    targets = tuple(tokens[1:])
    position = np.arange(1, len(tokens))
    on = (position >= PROMPT_TOKENS) & (position < PROMPT_TOKENS + ANSWER_TOKENS)
    bare = WireDatum(tuple(tokens[:-1]), targets, on.astype(float), np.zeros(len(targets)))
    (logprobs,) = trainer.forward([bare])
    return replace(bare, logprobs=np.where(on, logprobs, 0.0))


class _Gradients:
    """Norms of the gradients of made-up batches. A learning rate of 0 leaves the adapter where it is."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def norm(self, data: Sequence[WireDatum], loss: LossName = "importance_sampling") -> float:
        self._trainer.forward_backward(data, loss)
        norm = self._trainer.optim_step(AdamParams(learning_rate=0.0))
        if norm is None:
            raise _refusal("reports no gradient norm, so whether it sums or averages losses cannot be known")
        return norm


def _reduction(scratch: Trainer, tokens: Sequence[int]) -> Reduction:
    gradients = _Gradients(scratch)
    long = _sequence(scratch, tokens)
    short = _cut(long, PROMPT_TOKENS + ANSWER_TOKENS)
    one = gradients.norm([short])
    if not np.isfinite(one) or one <= 0:
        raise _refusal(f"gives a gradient of norm {one} for a weighted answer")
    over_data = _either(gradients.norm([short, short]) / one, {2.0: False, 1.0: True}, "two equal sequences, and one")
    share = len(short.target_ids) / len(long.target_ids)
    over_tokens = _either(
        gradients.norm([long]) / one,
        {1.0: False, share: True},
        "a sequence with unweighted tokens at its end, and without",
    )
    _unclipped(gradients, short, one)
    cross = [gradients.norm([replace(short, weights=short.weights * w)], "cross_entropy") / one for w in (1.0, 3.0)]
    reduction = Reduction(over_data, over_tokens, _close(cross[0], 1.0) and _close(cross[1], 3.0))
    opposite = reduction.corrected([short, replace(long, weights=-long.weights)])
    left = gradients.norm(opposite) / gradients.norm(reduction.corrected([short]))
    if not left <= TOLERANCE:
        raise _refusal(
            "reduces a batch of unequal sequences in a way that no factor per sequence corrects (opposite weights on equal "
            f"tokens leave {left:.3g} of the gradient)"
        )
    return reduction


def _cut(d: WireDatum, tokens: int) -> WireDatum:
    n = tokens - 1
    return WireDatum(d.input_ids[:n], d.target_ids[:n], d.weights[:n], d.logprobs[:n])


def _either(ratio: float, meanings: dict[float, bool], what: str) -> bool:
    for expected, meaning in meanings.items():
        if _close(ratio, expected):
            return meaning
    raise _refusal(f"reduces losses in an unknown way: gradients of {what}, have the ratio {ratio:.3g}")


def _close(value: float, expected: float) -> bool:
    return abs(value - expected) <= TOLERANCE * abs(expected)


def _unclipped(gradients: _Gradients, on_policy: WireDatum, norm: float) -> None:
    """Where an advantage is positive, clipping acts on large ratios; where it is negative, on small ones."""
    on = on_policy.weights != 0
    for ratio, sign in ((RATIO, 1.0), (1 / RATIO, -1.0), (RATIO, -1.0), (1 / RATIO, 1.0)):
        off = replace(
            on_policy,
            weights=sign * on_policy.weights,
            logprobs=np.where(on, on_policy.logprobs - np.log(ratio), 0.0),
        )
        found = gradients.norm([off]) / norm
        if not _close(found, ratio):
            raise _refusal(
                f"clips or drops the importance ratio (a ratio of {ratio:g} scaled the gradient by {found:.3g}), and the "
                "method has no clipping"
            )


def _frozen(server: Server, scratch: Trainer, sequence: WireDatum) -> None:
    """A saved state must load as it was saved, and must not move when the adapter that it was saved from does."""
    start = scratch.forward([sequence])[0]
    frozen = server.trainer_from(scratch.save("probe"), optimiser=False)
    try:
        before = frozen.forward([sequence])[0]
        moved = _moved(scratch, sequence, STEP)
        after = frozen.forward([sequence])[0]
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
    before = trainer.forward([sequence])[0]
    trainer.forward_backward([sequence], "importance_sampling")
    trainer.optim_step(adam)
    return _gap(trainer.forward([sequence])[0], before)


def _sampler_law(policy: Trainer, sampler: Sampler, prompt: Sequence[int]) -> tuple[float, bool]:
    """Largest gap between sampler and trainer at temperature 1, and whether a seed repeats its tokens."""
    answers = asyncio.run(_answers(sampler, prompt, ANSWER_TOKENS, ()))
    if any(a.logprobs is None or len(a.logprobs) != len(a.token_ids) for a in answers):
        raise _refusal("does not return the log-probs of sampled tokens, without which nothing can be weighted")
    data, ours = [], []
    for a in answers:
        tokens = [*prompt, *a.token_ids]
        zeros = np.zeros(len(tokens) - 1)
        data.append(WireDatum(tuple(tokens[:-1]), tuple(tokens[1:]), zeros, zeros))
        ours.append(np.array(a.logprobs))
    gaps = [np.abs(lp[len(prompt) - 1 :] - own) for lp, own in zip(policy.forward(data), ours, strict=True)]
    mean, worst = float(np.mean(np.concatenate(gaps))), float(np.max(np.concatenate(gaps)))
    if not mean <= LARGEST_MEAN_GAP:
        raise _refusal(
            f"returns log-probs with its samples that differ from the trainer's by {mean:.3g} nats per token (another "
            f"temperature, a filtered law, or other weights), {SAME_LAW}"
        )
    firsts = sorted({a.token_ids[0] for a in answers})
    again = asyncio.run(_answers(sampler, prompt, ANSWER_TOKENS, firsts))
    if any(a.stop == "stop" and (not a.token_ids or a.token_ids[-1] not in firsts) for a in again):
        raise _refusal("leaves the end token out of an answer, so that ending could not be trained")
    return worst, [a.token_ids[:1] for a in again] == [a.token_ids[:1] for a in answers]


async def _answers(sampler: Sampler, prompt: Sequence[int], tokens: int, stop: Sequence[int]) -> list[RawSample]:
    return list(await asyncio.gather(*(sampler.sample(prompt, tokens, 1.0, stop, seed) for seed in range(SAMPLES))))


def _gap(a: FloatArray, b: FloatArray) -> float:
    return float(np.abs(a - b).max())


def _refusal(what: str) -> EngineError:
    return EngineError(
        f"this Tinker server cannot be used: it {what}; use another backend or version of the server, or engine=torch "
        "(docs/engines.md says what is known of each)",
        usable=False,
    )
