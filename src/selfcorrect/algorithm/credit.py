"""Credit assignment of SCoRe (arXiv:2409.12917 v2): rewards and KL -> one weight per sampled token.

For sample g of a group of G answers to one problem, attempts k = 1..K:

    kl_k    = sum_t (lp_k,t - ref_k,t)                                   k1 estimate of KL(pi || ref), a constant
    R_k     = sum_{j>=k} gamma^(j-k) (w_j r_j + bonus_j) - beta_k kl_k   Eq. 3 and 4; gamma = 0 in the paper
    bonus_k = alpha (r_k - r_{k-1}) for k >= 2                           the progress bonus; Stage II only
    A_k,g   = R_k,g - mean over g' != g of R_k,g'                        leave-one-out (Ahmadian et al. 2024)
    weight of every token of attempt k = A_k

``weights.py`` puts these together for one problem. It subtracts the baseline from the reward part of R_k and from the KL
part separately; the difference is A_k. ``variants.py`` has what is not in the paper. Suffixes: ``types.py``.

The KL term reaches the gradient through the score function (a constant times grad log pi), so the strict beta of
Stage I moves attempt 1's own tokens and nothing else. Arrays are float64: weights are few and exact tests are worth it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from selfcorrect.types import BoolArray, FloatArray

KlCredit = Literal["sequence", "to_go", "token"]
Baseline = Literal["leave_one_out", "given_first"]


@dataclass(frozen=True, slots=True)
class Credit:
    """How one stage turns verdicts into weights. The objectives differ in these numbers and in nothing else."""

    reward_weights_K: tuple[float, ...]
    """w_k: 0 for an attempt whose reward this stage ignores (attempt 1 in Stage I)."""
    kl_weights_K: tuple[float, ...]
    """beta_k: (beta1 + beta2, beta1) in Stage I, (beta1, beta1) in Stage II."""
    alpha: float = 0.0
    """Weight of the progress bonus r_k - r_{k-1}."""
    gamma: float = 0.0
    """Share of later attempts' reward paid to earlier ones. 0 in all of the paper; other values are for the ablation."""
    kl_credit: KlCredit = "sequence"
    baseline: Baseline = "leave_one_out"
    standardise: bool = False
    verdicts: tuple[int, ...] = ()
    """Indices of the turns in which the model judges its answer; see ``verdicts.py``. The other numbers per attempt have an
    entry for each of them too."""
    per_role: bool = False
    """Divide the reward part of the advantages by its spread over the whole step, apart for attempts and for verdicts."""
    stop: bool = False
    """The attempt after a verdict is played only where it says "wrong"."""

    def __post_init__(self) -> None:
        assert len(self.reward_weights_K) == len(self.kl_weights_K) >= 1, "one reward and one KL weight per attempt"
        assert not self.verdicts or (self.gamma == 0 and self.baseline == "leave_one_out"), "verdicts need gamma 0"
        assert self.verdicts or not (self.stop or self.per_role), "there are no verdicts to stop at, and one role only"


def shaping_bonus(rewards_GK: FloatArray, alpha: float) -> FloatArray:
    """Progress bonus alpha * (r_k - r_{k-1}), added to attempts k >= 2 only.

    Args:
        rewards_GK: verifier rewards in {0, 1}; shape [G, K].
        alpha: bonus weight (10 in the paper).

    Returns:
        Bonus per attempt, shape [G, K]; column 0 is 0. With alpha = 10 the reward plus bonus of a second attempt is
        11 (wrong -> right), 1 (right -> right), 0 (wrong -> wrong) or -10 (right -> wrong).

    Source: the progress bonus of v2.
    """
    bonus_GK = np.zeros_like(rewards_GK, dtype=np.float64)
    bonus_GK[:, 1:] = alpha * (rewards_GK[:, 1:] - rewards_GK[:, :-1])
    return bonus_GK


def reward_returns(rewards_GK: FloatArray, reward_weights_K: FloatArray, alpha: float, gamma: float) -> FloatArray:
    """Reward part of R_k: sum over j >= k of gamma^(j-k) * (w_j r_j + bonus_j).

    Args:
        rewards_GK: verifier rewards in {0, 1}; shape [G, K].
        reward_weights_K: w_k; shape [K].
        alpha: bonus weight; 0 switches shaping off.
        gamma: discount between attempts; 0 (the paper) keeps each attempt's reward with its own tokens.

    Returns:
        Returns without the KL term; shape [G, K].

    Source: v2 Eq. 3 and Eq. 4, with the progress bonus.
    """
    per_attempt_GK = rewards_GK * reward_weights_K + shaping_bonus(rewards_GK, alpha)
    returns_GK = per_attempt_GK.astype(np.float64)
    for k in reversed(range(returns_GK.shape[1] - 1)):
        returns_GK[:, k] += gamma * returns_GK[:, k + 1]
    return returns_GK


def counted_mask(valid_GK: BoolArray, alpha: float, gamma: float, baseline: Baseline = "leave_one_out") -> BoolArray:
    """Which samples count at each attempt, given where the verifier itself failed.

    A failed verdict at attempt k makes every return that contains r_k unknown: attempt k's own, attempt k+1's while
    shaping is on (the bonus subtracts r_k), and with gamma > 0 those of all earlier attempts. With a baseline given
    r_1, a failed verdict at attempt 1 leaves open which samples later attempts are compared with.

    Args:
        valid_GK: False where the verdict is ``error``; shape [G, K].
        alpha: bonus weight of the stage.
        gamma: discount of the stage.
        baseline: of the stage.

    Returns:
        True where the return is known; shape [G, K].
    """
    known_GK = valid_GK.copy()
    if alpha != 0:
        known_GK[:, 1:] &= valid_GK[:, :-1]
    if gamma != 0:
        known_GK = np.logical_and.accumulate(known_GK[:, ::-1], axis=1)[:, ::-1]
    if baseline == "given_first":
        known_GK = known_GK & valid_GK[:, :1]
    return known_GK


def leave_one_out_advantages(returns_G: FloatArray, counted_G: BoolArray) -> FloatArray:
    """A_g = R_g - mean return of the other counted samples.

    Args:
        returns_G: one return per sample of the group; shape [G, ...] (trailing axes are independent).
        counted_G: samples that take part; shape [G].

    Returns:
        Advantages, same shape; 0 for samples that do not count, and everywhere when fewer than two do.

    Source: RLOO, Ahmadian et al. 2024 (arXiv:2402.14740), which v2 names for its REINFORCE.
    """
    n = int(counted_G.sum())
    advantages_G = np.zeros(returns_G.shape, dtype=np.float64)
    if n >= 2:
        kept = returns_G[counted_G]
        advantages_G[counted_G] = kept - (kept.sum(axis=0) - kept) / (n - 1)
    return advantages_G


def kl_per_token_credit(logratio_T: FloatArray, kl_credit: KlCredit) -> FloatArray:
    """The KL estimate that each token of one attempt is charged with, in nats.

    Args:
        logratio_T: lp - ref of the attempt's sampled tokens; shape [T].
        kl_credit: ``sequence``: every token the attempt's sum (unbiased); ``to_go``: the sum from this token on
            (unbiased, less variance: earlier log-ratios cannot depend on this token); ``token``: its own log-ratio
            only (biased for the sequence KL: it holds the visited states fixed).

    Returns:
        Charge per token, shape [T].
    """
    if kl_credit == "sequence":
        return np.full(len(logratio_T), np.sum(logratio_T, dtype=np.float64))
    if kl_credit == "to_go":
        return np.cumsum(logratio_T[::-1], dtype=np.float64)[::-1]
    return np.asarray(logratio_T, dtype=np.float64)


def zero_variance(rewards_G: FloatArray, counted_G: BoolArray) -> bool:
    """True when all counted samples have the same reward, so that this attempt gives no reward gradient.

    Compares verdicts, because with a KL term the returns are never exactly equal.
    """
    kept = rewards_G[counted_G]
    return len(kept) < 2 or bool(np.all(kept == kept[0]))
