"""Credit assignment of SCoRe (arXiv:2409.12917 v2): rewards and KL -> one weight per sampled token.

For sample g of a group of G answers to one problem, attempts k = 1..K:

    kl_k    = sum_t (lp_k,t - ref_k,t)                                   k1 estimate of KL(pi || ref), a constant
    R_k     = sum_{j>=k} gamma^(j-k) (w_j r_j + bonus_j) - beta_k kl_k   Eq. 3 and 4; gamma = 0 in the paper
    bonus_k = alpha (r_k - r_{k-1}) for k >= 2                           the progress bonus; Stage II only
    A_k,g   = R_k,g - mean over g' != g of R_k,g'                        leave-one-out (Ahmadian et al. 2024)
    weight of every token of attempt k = A_k

Variants, for the ablations only (the paper has neither):

    given_first   the mean in A_k, k >= 2, is over g' != g with r_1,g' = r_1,g; over all g' != g where there is none
    standardise   reward part of A_k divided by its standard deviation over the group: (R - mean R) / std R

The KL term reaches the gradient through the score function (a constant times grad log pi), so the strict beta of
Stage I moves attempt 1's own tokens and nothing else. Arrays are float64: weights are few and exact tests are worth it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from selfcorrect.types import BoolArray, FloatArray

Scalar = TypeVar("Scalar", bound=np.generic)
KlCredit = Literal["sequence", "to_go", "token"]
Baseline = Literal["leave_one_out", "given_first"]

NO_SPREAD = 1e-8
"""Advantages of a group that differ by no more than this are equal but for rounding, and are not blown up to 1."""


@dataclass(frozen=True, slots=True)
class Credit:
    """How one stage turns verdicts into weights. The methods differ in these numbers and in nothing else."""

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

    def __post_init__(self) -> None:
        assert len(self.reward_weights_K) == len(self.kl_weights_K) >= 1, "one reward and one KL weight per attempt"


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


def attempt_returns(rewards_GK: FloatArray, reward_weights_K: FloatArray, alpha: float, gamma: float) -> FloatArray:
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
    """Which samples count at which attempt, given where the verifier itself failed.

    A failed verdict at attempt k makes every return that contains r_k unknown: attempt k's own, attempt k+1's while
    shaping is on (the bonus subtracts r_k), and with gamma > 0 those of all earlier attempts. With a baseline given r_1
    a failed verdict at attempt 1 leaves the mates of all later attempts unknown.

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
    """A_g = R_g - mean of the other counted samples' returns.

    Args:
        returns_G: one return per sample of the group; shape [G, ...] (trailing axes are independent).
        counted_G: samples that take part; shape [G].

    Returns:
        Advantages, same shape; 0 for samples that do not count, and everywhere when fewer than two do.

    Source: RLOO, Ahmadian et al. 2024 (arXiv:2402.14740); v2 Eq. 2.
    """
    n = int(counted_G.sum())
    advantages_G = np.zeros(returns_G.shape, dtype=np.float64)
    if n >= 2:
        kept = returns_G[counted_G]
        advantages_G[counted_G] = kept - (kept.sum(axis=0) - kept) / (n - 1)
    return advantages_G


def given_first_advantages(returns_G: FloatArray, counted_G: BoolArray, first_rewards_G: FloatArray) -> FloatArray:
    """A_g = R_g - mean over the other counted samples with the same r_1; plain leave-one-out where there is none.

    r_1 is known before the later attempts are sampled and mates are independent, so the expected gradient stays the
    same; the part of the return's variance that r_1 explains is gone.

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
    cancels too, so of the progress bonus the scale 1 + alpha is lost and the r_1 term is left.

    Args:
        advantages_G: one per sample; shape [G].
        counted_G: samples that take part; shape [G].

    Source: not in the paper, which does not standardise; for showing why.
    """
    spread = float(np.std(advantages_G[counted_G])) if counted_G.any() else 0.0
    return advantages_G / spread if spread > NO_SPREAD else np.zeros_like(advantages_G)


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
    """True when all counted samples have the same verdict reward, so that reward teaches nothing here.

    Counted on verdicts: with a KL term the returns are never exactly equal.
    """
    kept = rewards_G[counted_G]
    return len(kept) < 2 or bool(np.all(kept == kept[0]))


def group_token_weights(
    rewards_GK: FloatArray,
    valid_GK: BoolArray,
    logratios_GK: Sequence[Sequence[FloatArray]],
    credit: Credit,
) -> list[list[FloatArray]]:
    """Weights of every sampled token of one group (not yet divided by the number of episodes).

    Args:
        rewards_GK: verifier rewards in {0, 1}; shape [G, K].
        valid_GK: False where the verifier itself failed; shape [G, K].
        logratios_GK: ``logratios_GK[g][k]`` = lp - ref of the sampled tokens of attempt k; shape [T_gk]. Empty for a
            given (not sampled) attempt, which then gets no weight.
        credit: the stage's numbers.

    Returns:
        ``weights[g][k]``, each of shape [T_gk]: the number that multiplies grad log pi of that token, to be maximised.

    Raises:
        ValueError: the group has fewer than two samples, so there is no leave-one-out baseline.
    """
    n_samples, n_attempts = rewards_GK.shape
    if n_samples < 2:
        raise ValueError("a group of one sample has no leave-one-out baseline: use samples_per_problem >= 2")
    returns_GK = attempt_returns(rewards_GK, np.array(credit.reward_weights_K), credit.alpha, credit.gamma)
    counted_GK = counted_mask(valid_GK, credit.alpha, credit.gamma, credit.baseline)
    weights: list[list[FloatArray]] = [[] for _ in range(n_samples)]
    for k in range(n_attempts):
        counted_G = counted_GK[:, k]
        # attempt 1's own verdict may not choose its baseline: that would cancel what it is to be paid for
        given = rewards_GK[:, 0] if k and credit.baseline == "given_first" else None
        advantages_G = _advantages(returns_GK[:, k], counted_G, given)
        if credit.standardise:
            advantages_G = standardised(advantages_G, counted_G)
        charges_G = [kl_per_token_credit(logratios_GK[g][k], credit.kl_credit) for g in range(n_samples)]
        penalties_G = _kl_advantages(charges_G, counted_G, credit.kl_credit, given)
        for g in range(n_samples):
            weights[g].append(advantages_G[g] - credit.kl_weights_K[k] * penalties_G[g])
    return weights


def tree_token_weights(
    rewards_GM: FloatArray, valid_GM: BoolArray, logratios_GM: Sequence[Sequence[FloatArray]], credit: Credit
) -> list[list[FloatArray]]:
    """Weights of one problem's trees: G first attempts with M second attempts each.

    Attempt 1 is weighted once, with the other first attempts as mates. The M second attempts of one first attempt are
    each other's mates: they share r_1, so the baseline takes all that x2 explains, and the bonus's - alpha r_1 cancels.
    Each is divided by M, so that a tree weighs as much as a linear episode and the expected gradient is the same.

    Args:
        rewards_GM: column 0 is attempt 1, the others its second attempts; shape [G, 1 + M].
        valid_GM: False where the verifier itself failed; same shape.
        logratios_GM: as in ``group_token_weights``, in the same columns.
        credit: of two attempts, gamma 0.

    Returns:
        ``weights[g][m]`` in the same columns.
    """
    assert len(credit.reward_weights_K) == 2 and credit.gamma == 0, "a tree has two attempts' depth and no discount"
    branches = rewards_GM.shape[1] - 1
    alone = replace(
        credit, reward_weights_K=credit.reward_weights_K[:1], kl_weights_K=credit.kl_weights_K[:1], alpha=0.0
    )
    firsts = group_token_weights(rewards_GM[:, :1], valid_GM[:, :1], [row[:1] for row in logratios_GM], alone)
    weights = []
    for g, first in enumerate(firsts):
        seconds = [[np.zeros(0), logratio_T] for logratio_T in logratios_GM[g][1:]]
        mates = group_token_weights(branch_pairs(rewards_GM[g]), branch_pairs(valid_GM[g]), seconds, credit)
        weights.append([*first, *(second / branches for _, second in mates)])
    return weights


def branch_pairs(values_M: NDArray[Scalar]) -> NDArray[Scalar]:
    """One tree's values (attempt 1, then its M second attempts) as rows of two attempts; shape [M, 2]."""
    return np.stack([np.repeat(values_M[:1], len(values_M) - 1), values_M[1:]], axis=1)


def adapted_scale(scale: float, kl: float, target: float) -> float:
    """Factor of beta2 for the next step: a tenth stronger where the first attempt strays, a tenth weaker where it does not.

        scale * 1.1  if kl > 1.5 target;  scale / 1.1  if kl < target / 1.5;  kept within 1/32 and 32

    Args:
        scale: factor of this step.
        kl: this step's mean KL estimate of the attempts that are held, in nats.
        target: ``method.beta2_target``, in nats.

    Departs from the paper: it names an adaptive beta2 without a formula. The thresholds are those of the adaptive KL
    penalty of PPO (Schulman et al. 2017); its factor of 2 is for whole rounds of updates, this one is applied every step.
    """
    if kl > 1.5 * target:
        scale *= 1.1
    elif kl < target / 1.5:
        scale /= 1.1
    return min(max(scale, 1 / 32), 32.0)


def _advantages(returns_G: FloatArray, counted_G: BoolArray, given_G: FloatArray | None) -> FloatArray:
    if given_G is None:
        return leave_one_out_advantages(returns_G, counted_G)
    return given_first_advantages(returns_G, counted_G, given_G)


def _kl_advantages(
    charges_G: Sequence[FloatArray], counted_G: BoolArray, kl_credit: KlCredit, given_G: FloatArray | None
) -> list[FloatArray]:
    """KL charges minus their baseline, whose mates are those of the reward's.

    ``sequence`` takes the baseline of the whole attempt (one number per sample, so mates of any length count);
    ``to_go`` and ``token`` take that of the same token index, where a mate that has already ended counts as 0.
    """
    lengths_G = [len(c) for c in charges_G]
    width = max(lengths_G)
    padded_GT = np.zeros((len(charges_G), width))
    for g, charge_T in enumerate(charges_G):
        if kl_credit == "sequence" and len(charge_T):
            padded_GT[g] = charge_T[0]
        else:
            padded_GT[g, : len(charge_T)] = charge_T
    advantages_GT = _advantages(padded_GT, counted_G, given_G)
    return [advantages_GT[g, :n] for g, n in enumerate(lengths_G)]
