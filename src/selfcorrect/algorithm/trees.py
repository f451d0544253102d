"""Token weights of trees: several second attempts after each first one. Not in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.weights import GroupWeights, group_token_weights
from selfcorrect.types import BoolArray, FloatArray

Scalar = TypeVar("Scalar", bound=np.generic)


def tree_token_weights(
    rewards_GM: FloatArray, valid_GM: BoolArray, logratios_GM: Sequence[Sequence[FloatArray]], credit: Credit
) -> GroupWeights:
    """Weights of one problem's trees: G first attempts with M second attempts each.

    Attempt 1 is weighted once, with the other first attempts as its baseline. A single first attempt has none and gets no
    weight, so the credit must ask for none. The M second attempts of one first attempt are compared with each other.
    They share r_1 and x2, so their baseline removes all variance that x2 explains, and the bonus's - alpha r_1 cancels.
    Each weight is divided by M, so that a tree weighs as much as a linear episode and the expected gradient is the same.

    Args:
        rewards_GM: column 0 is attempt 1, the others its second attempts; shape [G, 1 + M].
        valid_GM: False where the verifier itself failed; same shape.
        logratios_GM: as in ``group_token_weights``, in the same columns.
        credit: of two attempts, gamma 0.

    Returns:
        Weights in the same columns. The other numbers are for attempts 1 and 2.
    """
    assert len(credit.reward_weights_K) == 2 and credit.gamma == 0, "a tree has two attempts' depth and no discount"
    branches = rewards_GM.shape[1] - 1
    alone = replace(
        credit, reward_weights_K=credit.reward_weights_K[:1], kl_weights_K=credit.kl_weights_K[:1], alpha=0.0
    )
    first = (
        group_token_weights(rewards_GM[:, :1], valid_GM[:, :1], [row[:1] for row in logratios_GM], alone)
        if len(rewards_GM) > 1
        else _unweighted(logratios_GM[0][0], alone)
    )
    seconds = [
        group_token_weights(
            branch_pairs(rewards_M),
            branch_pairs(valid_M),
            [[np.zeros(0), second_T] for second_T in logratios_M[1:]],
            credit,
        )
        for rewards_M, valid_M, logratios_M in zip(rewards_GM, valid_GM, logratios_GM, strict=True)
    ]
    return GroupWeights(
        [[*one, *(w / branches for _, w in two.weights)] for one, two in zip(first.weights, seconds, strict=True)],
        [first.zero_variance_K[0], sum(s.zero_variance_K[1] for s in seconds) / len(seconds)],
        [first.skipped_K[0], sum(s.skipped_K[1] for s in seconds)],
        [first.kl_K[0], sum(s.kl_K[1] for s in seconds) / branches],
    )


def _unweighted(logratio_T: FloatArray, credit: Credit) -> GroupWeights:
    """A first attempt that only its second attempts are trained on."""
    if any(credit.reward_weights_K) or any(credit.kl_weights_K):
        raise ValueError("a single first attempt has no baseline: use samples_per_problem >= 2, or give it no weight")
    return GroupWeights([[np.zeros(len(logratio_T))]], [1.0], [0], [float(logratio_T.sum())])


def branch_pairs(values_M: NDArray[Scalar]) -> NDArray[Scalar]:
    """One tree's values (attempt 1, then its M second attempts) as rows of two attempts; shape [M, 2]."""
    return np.stack([np.repeat(values_M[:1], len(values_M) - 1), values_M[1:]], axis=1)
