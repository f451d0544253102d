"""Token weights where the model judges its own answer between two attempts. Not in SCoRe's paper.

The objective of two attempts y1, y2 with a verdict v between them, r_v = 1 where v agrees with the verifier on y1:

    E[w_1 r_1] + E[w_v r_v] + E[played (w_2 r_2 + alpha (r_2 - r_1))]  - the KL terms

each term for the tokens of its own turn only: nothing is paid across turns (gamma = 0). With the stop rule ``played`` is 1
where v says "wrong"; else y2 has no tokens, hence no weight. The mates of a turn are the same problem's other samples that
played it (``baselines.played_advantages``).

Source: PAG (Jiang et al. 2025, arXiv:2506.10406): w = (1, 1, 1), alpha = 1, no KL. Departs from it: REINFORCE with a
leave-one-out baseline per turn, where PAG has PPO with a critic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from selfcorrect.algorithm.baselines import NO_SPREAD
from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.weights import GroupWeights, group_token_weights
from selfcorrect.types import BoolArray, FloatArray


def roles(credit: Credit) -> tuple[list[int], list[int]]:
    """Indices of the attempts, and of the verdict turns."""
    turns = range(len(credit.reward_weights_K))
    return [k for k in turns if k not in credit.verdicts], list(credit.verdicts)


def verdict_token_weights(
    rewards_GK: FloatArray,
    valid_GK: BoolArray,
    played_GK: BoolArray,
    logratios_GK: Sequence[Sequence[FloatArray]],
    credit: Credit,
) -> GroupWeights:
    """Weights of one problem's episodes: the attempts as without verdict turns, and the verdict turns by themselves.

    Args:
        rewards_GK: of attempts and verdict turns, in the order of play; shape [G, K]. An attempt that was not played has
            the reward of the attempt before.
        valid_GK: False where the verifier failed, on the answer itself or on the one that is judged; shape [G, K].
        played_GK: False for an attempt that was not played; shape [G, K].
        logratios_GK: as in ``group_token_weights``; empty where there was no turn.
        credit: with verdict turns.

    Raises:
        ValueError: as ``group_token_weights``.
    """
    made: dict[int, tuple[GroupWeights, int]] = {}
    for columns in roles(credit):
        part = group_token_weights(
            rewards_GK[:, columns],
            valid_GK[:, columns],
            [[sample[k] for k in columns] for sample in logratios_GK],
            _part(credit, columns),
            played_GK[:, columns],
        )
        made |= {k: (part, i) for i, k in enumerate(columns)}
    turns = [made[k] for k in range(len(made))]
    return GroupWeights(
        weights=[[part.weights[g][i] for part, i in turns] for g in range(len(rewards_GK))],
        zero_variance_K=[part.zero_variance_K[i] for part, i in turns],
        skipped_K=[part.skipped_K[i] for part, i in turns],
        kl_K=[part.kl_K[i] for part, i in turns],
        advantages_GK=np.stack([_advantages(part)[:, i] for part, i in turns], axis=1),
    )


def per_role(groups: Sequence[GroupWeights], credit: Credit) -> list[GroupWeights]:
    """Divide the reward part of all weights of a step by its spread, apart for attempts and for verdict turns.

    The spread is the root of the mean square over the step's turns of that role: a leave-one-out advantage has mean 0
    already. Where it is 0 the weights stay as they are.

    Source: PAG normalises the advantages of its two roles apart; it subtracts their mean too.
    """
    out = [replace(group, weights=[list(sample) for sample in group.weights]) for group in groups]
    for columns in roles(credit):
        flat = np.concatenate([_advantages(group)[:, columns].ravel() for group in groups])
        known = flat[~np.isnan(flat)]
        spread = float(np.sqrt(np.mean(known**2))) if len(known) else 0.0
        if spread <= NO_SPREAD:
            continue
        for group, made in zip(groups, out, strict=True):
            change_GK = np.nan_to_num(_advantages(group)) * (1 / spread - 1)
            for g, sample in enumerate(made.weights):
                for k in columns:
                    sample[k] = sample[k] + change_GK[g, k]
    return out


def _part(credit: Credit, columns: Sequence[int]) -> Credit:
    """The numbers of one role. Verdict turns have no bonus: they are not compared with each other."""
    return replace(
        credit,
        reward_weights_K=tuple(credit.reward_weights_K[k] for k in columns),
        kl_weights_K=tuple(credit.kl_weights_K[k] for k in columns),
        alpha=0.0 if columns == list(credit.verdicts) else credit.alpha,
        verdicts=(),
        per_role=False,
        stop=False,
    )


def _advantages(group: GroupWeights) -> FloatArray:
    assert group.advantages_GK is not None, "trees have no verdict turns"
    return group.advantages_GK
