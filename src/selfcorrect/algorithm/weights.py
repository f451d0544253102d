"""The equations of ``credit.py`` put together: one problem's verdicts and log-ratios -> one weight per sampled token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfcorrect.algorithm.baselines import given_first_advantages, played_advantages, standardised
from selfcorrect.algorithm.credit import (
    Credit,
    counted_mask,
    kl_per_token_credit,
    reward_returns,
    zero_variance,
)
from selfcorrect.types import BoolArray, FloatArray


@dataclass(frozen=True, slots=True)
class GroupWeights:
    """The weights of one problem's episodes, and the numbers behind them."""

    weights: list[list[FloatArray]]
    """``weights[g][k]``, of shape [T_gk]: what multiplies grad log pi of each token, to be maximised. Not yet divided by
    the number of episodes."""
    zero_variance_K: list[float]
    """1 where all counted verdicts at this attempt are equal; for trees the share of baseline groups."""
    skipped_K: list[int]
    """Baseline groups with fewer than two known returns."""
    kl_K: list[float]
    """KL estimate of this attempt, summed over the episodes, in nats."""
    advantages_GK: FloatArray | None = None
    """The reward part of the weights; nan where an attempt was not played or its return is not known. None for trees."""


def group_token_weights(
    rewards_GK: FloatArray,
    valid_GK: BoolArray,
    logratios_GK: Sequence[Sequence[FloatArray]],
    credit: Credit,
    played_GK: BoolArray | None = None,
) -> GroupWeights:
    """Weight of every sampled token of one problem's episodes.

    Args:
        rewards_GK: verifier rewards in {0, 1}; shape [G, K].
        valid_GK: False where the verifier itself failed; shape [G, K].
        logratios_GK: ``logratios_GK[g][k]`` = lp - ref of the sampled tokens of attempt k; shape [T_gk]. Empty for a
            given (not sampled) attempt, which then gets no weight.
        credit: the stage's numbers.
        played_GK: False for an attempt that was not played, whose reward is that of the attempt before; shape [G, K].
            None: all were.

    Raises:
        ValueError: the group has fewer than two samples, so there is no leave-one-out baseline.
    """
    n_samples, n_attempts = rewards_GK.shape
    if n_samples < 2:
        raise ValueError("a group of one sample has no leave-one-out baseline: use samples_per_problem >= 2")
    returns_GK = reward_returns(rewards_GK, np.array(credit.reward_weights_K), credit.alpha, credit.gamma)
    counted_GK = counted_mask(valid_GK, credit.alpha, credit.gamma, credit.baseline)
    played_GK = np.ones_like(valid_GK) if played_GK is None else played_GK
    players_GK = counted_GK & played_GK
    advantages_GK = np.full(rewards_GK.shape, np.nan)
    weights: list[list[FloatArray]] = [[] for _ in range(n_samples)]
    for k in range(n_attempts):
        # attempt 1's own verdict may not choose its baseline: that would cancel what it is to be paid for
        r1_G = rewards_GK[:, 0] if k and credit.baseline == "given_first" else None
        reward_part_G = _less_baseline(returns_GK[:, k], counted_GK[:, k], played_GK[:, k], r1_G)
        if credit.standardise:
            reward_part_G = standardised(reward_part_G, players_GK[:, k])
        advantages_GK[players_GK[:, k], k] = reward_part_G[players_GK[:, k]]
        charges_GT = _padded([sample[k] for sample in logratios_GK], credit)
        kl_part_GT = _less_baseline(charges_GT, counted_GK[:, k], played_GK[:, k], r1_G)
        for g in range(n_samples):
            length = len(logratios_GK[g][k])
            weights[g].append(reward_part_G[g] - credit.kl_weights_K[k] * kl_part_GT[g, :length])
    columns = range(n_attempts)
    return GroupWeights(
        weights,
        zero_variance_K=[float(zero_variance(rewards_GK[:, k], players_GK[:, k])) for k in columns],
        skipped_K=[int(counted_GK[:, k].sum() < 2) for k in columns],
        kl_K=[sum(float(sample[k].sum()) for sample in logratios_GK) for k in columns],
        advantages_GK=advantages_GK,
    )


def _less_baseline(
    values_G: FloatArray, counted_G: BoolArray, played_G: BoolArray, r1_G: FloatArray | None
) -> FloatArray:
    """Values minus their baseline: ``leave_one_out_advantages`` if all samples played the attempt. If ``r1_G`` (verdicts
    of attempt 1) is given, only samples with the same verdict are compared."""
    if r1_G is None:
        return played_advantages(values_G, counted_G, played_G)
    return given_first_advantages(values_G, counted_G, r1_G)


def _padded(logratios_G: Sequence[FloatArray], credit: Credit) -> FloatArray:
    """KL charges of one attempt, padded to the longest answer; shape [G, T].

    ``sequence`` has one number per sample, so samples of any length count at every token. ``to_go`` and ``token`` have
    one number per token; a sample that has already ended counts as 0.
    """
    padded_GT = np.zeros((len(logratios_G), max(map(len, logratios_G))))
    for g, logratio_T in enumerate(logratios_G):
        charge_T = kl_per_token_credit(logratio_T, credit.kl_credit)
        if credit.kl_credit == "sequence" and len(charge_T):
            padded_GT[g] = charge_T[0]
        else:
            padded_GT[g, : len(charge_T)] = charge_T
    return padded_GT
