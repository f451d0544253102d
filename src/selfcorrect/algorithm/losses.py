"""The two losses an engine applies to per-token weights. Sums, never means: the caller divides."""

from __future__ import annotations

from torch import Tensor


def importance_sampling_loss(logprobs_N: Tensor, sampled_logprobs_N: Tensor, weights_N: Tensor) -> Tensor:
    """- sum of exp(lp - lp_sampled) * weight: REINFORCE, corrected for a sampler that differs from the trainer.

    On policy the ratio is 1 and the gradient is - sum of weight * grad log pi. No clipping: the paper has none, and
    one update per batch leaves the ratio at 1 up to rounding.

    Args:
        logprobs_N: trainer's log-probs of the sampled tokens, in nats, with gradient; shape [N].
        sampled_logprobs_N: the sampler's, constants; shape [N].
        weights_N: weight per token, already divided by the number of episodes played; shape [N].

    Returns:
        Scalar.
    """
    return -((logprobs_N - sampled_logprobs_N.detach()).exp() * weights_N.detach()).sum()


def cross_entropy_loss(logprobs_N: Tensor, weights_N: Tensor) -> Tensor:
    """- sum of weight * lp, for the supervised methods (STaR, Pair-SFT).

    Args:
        logprobs_N: trainer's log-probs of the target tokens, in nats, with gradient; shape [N].
        weights_N: weight per token; shape [N].

    Returns:
        Scalar.
    """
    return -(logprobs_N * weights_N.detach()).sum()
