"""Does a sampler with weights of its own sample from the trainer's law? Asked once, at the start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from selfcorrect.engines.base import Sampled, SampleRequest, SamplingParams
from selfcorrect.errors import EngineError
from selfcorrect.types import BoolArray, FloatArray, IntArray

EXACT_GAP = 1e-4
"""Nats: below it a sampler's log-probs count as the trainer's, as in the conformance suite."""
LARGEST_MEAN_GAP = 0.5
"""Nats per token: above it the sampler has another model or another law. Rounding in bfloat16 gives about 0.01."""
PROMPTS, ANSWER_TOKENS = 8, 8


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer of the sampler as a sequence to score."""

    tokens_T: IntArray
    sampled_T: BoolArray


def largest_gap(
    sample: Callable[[Sequence[SampleRequest], SamplingParams], Sequence[Sampled]],
    score: Callable[[Sequence[Asked]], Sequence[FloatArray]],
    vocabulary: int,
) -> float:
    """Largest difference in nats between the log-probs of the sampler and those of the trainer.

    Temperatures 1 and 0, whose log-probs are both those of the model at temperature 1.

    Args:
        sample: of the sampler.
        score: the trainer's log-probs of whole sequences, one array of shape [T] each.
        vocabulary: prompts are drawn from it.

    Raises:
        EngineError: the two differ by more than any rounding does.
    """
    rng = np.random.default_rng(0)
    prompts = [tuple(int(t) for t in rng.integers(vocabulary, size=4 + i)) for i in range(PROMPTS)]
    requests = [SampleRequest(prompt, ("agreement", i)) for i, prompt in enumerate(prompts)]
    sequences: list[Asked] = []
    theirs: list[float] = []
    for temperature in (1.0, 0.0):
        for request, answer in zip(requests, sample(requests, SamplingParams(ANSWER_TOKENS, temperature)), strict=True):
            tokens = np.array([*request.prompt_ids, *answer.token_ids])
            sequences.append(Asked(tokens, np.arange(len(tokens)) >= len(request.prompt_ids)))
            theirs += answer.logprobs
    ours = np.concatenate([lp[s.sampled_T] for lp, s in zip(score(sequences), sequences, strict=True)])
    gaps = np.abs(ours - np.array(theirs))
    if not gaps.mean() <= LARGEST_MEAN_GAP:
        raise EngineError(
            f"the sampler's log-probs differ from the trainer's by {gaps.mean():.3g} nats per token, so it computes another "
            "model or another law, and no importance ratio could be trusted; use engine.sampler=native",
            usable=False,
        )
    return float(gaps.max())
