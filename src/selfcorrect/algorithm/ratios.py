"""Bounds on the importance ratio between trainer and sampler, for when the two differ by more than rounding.

The gradient of ``importance_sampling_loss`` is that of - sum of ratio * weight * lp. Where the sampler computes in
another precision or with other kernels, some ratios are far from 1. Truncated importance sampling (Yao et al., "Your
efficient RL framework secretly brings you off-policy RL training", 2025; in TRL since pull request 3867 and in verl
since 2953) replaces the ratio by min(ratio, cap). The caller scales the weights accordingly, so every engine trains
with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from selfcorrect.types import Datum, FloatArray


@dataclass(frozen=True, slots=True)
class RatioReport:
    """What bounding did to a step."""

    capped: float
    """Share of the weighted tokens whose ratio is above the cap."""
    masked: float
    """Share of the weighted tokens whose sequence was left out."""
    largest_gap: float
    """Largest |lp - lp_sampled| over the weighted tokens in nats, before anything is left out."""


def bound_ratios(
    data: Sequence[Datum], policy: Sequence[FloatArray], cap: float | None, band: float | None
) -> tuple[list[Datum], RatioReport]:
    """Scale weights so that no token's ratio counts as more than the cap, and leave out sequences that are far off.

    ratio = exp(lp - lp_sampled). A weight is multiplied by min(1, cap / ratio), so that its gradient is that of
    min(ratio, cap) * weight * lp. A sequence is left out if the geometric mean of its ratios, over all its sampled tokens,
    is outside [1 / band, band]. The denominator of the weights stays.

    Args:
        data: of a step; weights are 0 where nothing was sampled.
        policy: the trainer's log-probs of the sampled tokens in nats, one array of shape [T] per datum.
        cap: at least 1, or None.
        band: above 1, or None.
    """
    bounded = []
    weighted = capped = masked = 0
    largest = 0.0
    for datum, lp_T in zip(data, policy, strict=True):
        gap_T = np.where(datum.sampled_T, lp_T - datum.logprobs_T, 0.0)
        on_T = datum.weights_T != 0
        weighted += int(on_T.sum())
        largest = max(largest, float(np.abs(gap_T[on_T]).max(initial=0.0)))
        weights_T = datum.weights_T
        if band is not None and datum.sampled_T.any() and abs(gap_T[datum.sampled_T].mean()) > np.log(band):
            masked += int(on_T.sum())
            weights_T = np.zeros_like(weights_T)
        elif cap is not None:
            over_T = on_T & (gap_T > np.log(cap))
            capped += int(over_T.sum())
            weights_T = np.where(over_T, weights_T * np.exp(np.log(cap) - gap_T.clip(min=0)), weights_T)
        bounded.append(replace(datum, weights_T=weights_T))
    total = max(1, weighted)
    return bounded, RatioReport(capped / total, masked / total, largest)
