"""Checks once, at the start, that a sampler with its own weights samples from the trainer's distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from selfcorrect.engines.base import LARGEST_MEAN_GAP, Sampled, SampleRequest, SamplingParams
from selfcorrect.errors import EngineError
from selfcorrect.types import Datum, FloatArray

PROMPTS, ANSWER_TOKENS = 8, 8


def largest_gap(
    sample: Callable[[Sequence[SampleRequest], SamplingParams], Sequence[Sampled]],
    score: Callable[[Sequence[Datum]], Sequence[FloatArray]],
    vocabulary: int,
) -> float:
    """Largest difference in nats between the log-probs of the sampler and those of the trainer.

    Samples at temperatures 1 and 0; at both, the log-probs are those of the model at temperature 1.

    Args:
        sample: the sampler's method.
        score: the trainer's log-probs of whole sequences, one array of shape [T] each.
        vocabulary: prompts are drawn from it.

    Raises:
        EngineError: the two differ by more than rounding explains.
    """
    rng = np.random.default_rng(0)
    prompts = [tuple(int(t) for t in rng.integers(vocabulary, size=4 + i)) for i in range(PROMPTS)]
    requests = [SampleRequest(prompt, ("agreement", i)) for i, prompt in enumerate(prompts)]
    sequences: list[Datum] = []
    for temperature in (1.0, 0.0):
        for request, answer in zip(requests, sample(requests, SamplingParams(ANSWER_TOKENS, temperature)), strict=True):
            tokens_T = np.array([*request.prompt_ids, *answer.token_ids])
            logprobs_T = np.array([*[0.0] * len(request.prompt_ids), *answer.logprobs])
            sampled_T = np.arange(len(tokens_T)) >= len(request.prompt_ids)
            sequences.append(Datum(tokens_T, np.zeros(len(tokens_T)), logprobs_T, sampled_T))
    scored = zip(score(sequences), sequences, strict=True)
    gaps = np.concatenate([np.abs(lp - s.logprobs_T)[s.sampled_T] for lp, s in scored])
    if not gaps.mean() <= LARGEST_MEAN_GAP:
        raise EngineError(
            f"the sampler's log-probs differ from the trainer's by {gaps.mean():.3g} nats per token, so it runs another "
            "model or samples from another distribution, and no importance ratio could be trusted; use engine.sampler=native",
            usable=False,
        )
    return float(gaps.max())
