"""Advantages that are not in the paper: with a baseline given r_1, and standardised."""

from __future__ import annotations

import numpy as np

from selfcorrect.algorithm.credit import leave_one_out_advantages
from selfcorrect.types import BoolArray, FloatArray

NO_SPREAD = 1e-8
"""A group whose advantages differ by no more than this is equal up to rounding, and is not scaled up to a spread of
1."""


def given_first_advantages(returns_G: FloatArray, counted_G: BoolArray, first_rewards_G: FloatArray) -> FloatArray:
    """A_g = R_g - mean over the other counted samples with the same r_1; plain leave-one-out where there is none.

    r_1 is known before the later attempts are sampled, and the samples are independent, so the expected gradient stays
    the same. The part of the return's variance that r_1 explains is removed.

    Args:
        returns_G: returns of an attempt after the first; shape [G, ...].
        counted_G: samples that take part; shape [G].
        first_rewards_G: r_1 of every sample; shape [G].

    Returns:
        Advantages, same shape as the returns; 0 for samples that do not count.
    """
    advantages_G = leave_one_out_advantages(returns_G, counted_G)
    for r1 in (0.0, 1.0):
        same_G = counted_G & (first_rewards_G == r1)
        if same_G.sum() >= 2:
            advantages_G[same_G] = leave_one_out_advantages(returns_G, same_G)[same_G]
    return advantages_G


def standardised(advantages_G: FloatArray, counted_G: BoolArray) -> FloatArray:
    """A_g / std over the group of A (population, counted samples); 0 where all are equal.

    After leave-one-out this is (R_g - mean R) / std R: the factor G / (G - 1) cancels. A common factor of the returns
    cancels too, so the progress bonus loses its scale 1 + alpha and keeps its r_1 term.

    Args:
        advantages_G: one per sample; shape [G].
        counted_G: samples that take part; shape [G].

    Source: not in the paper, which does not standardise. This ablation shows why.
    """
    spread = float(np.std(advantages_G[counted_G])) if counted_G.any() else 0.0
    return advantages_G / spread if spread > NO_SPREAD else np.zeros_like(advantages_G)
