"""Advantages that are not in the paper: with a baseline given r_1, among attempts of which some were not played, and
standardised.

``weights.py`` calls ``played_advantages`` by default. Where all attempts were played, as in SCoRe, that is the paper's
``credit.leave_one_out_advantages``.
"""

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


def played_advantages(returns_G: FloatArray, counted_G: BoolArray, played_G: BoolArray) -> FloatArray:
    """A_g = R_g - mean over the other samples that played this attempt; where no other did, over those that did not.

    If all played, this is plain leave-one-out.

    The return of a sample that did not play is that of its answer so far: with r_2 = r_1 the bonus is 0. Who played was
    settled before any of these attempts was sampled, and mates are independent, so the baseline of a sample does not
    depend on what it samples here: the expected gradient stays the same. Giving a lone player no weight would not keep
    it: problems whose samples rarely play would count for less.

    Args:
        returns_G: returns of one attempt; shape [G, ...].
        counted_G: samples whose return is known; shape [G].
        played_G: samples that played the attempt; shape [G].

    Returns:
        Advantages, same shape as the returns; 0 for samples that did not play or do not count.
    """
    players_G = counted_G & played_G
    advantages_G = leave_one_out_advantages(returns_G, players_G)
    others_G = counted_G & ~played_G
    if players_G.sum() == 1 and others_G.any():
        advantages_G[players_G] = returns_G[players_G] - returns_G[others_G].mean(axis=0)
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
