"""Intervals for the numbers in a table: over problems within one run, over seeds across runs.

Which one is right depends on the claim:

==============================  =========================================================================
claim                           function
==============================  =========================================================================
"this checkpoint scores p"      `bootstrap_mean`: the problems are a sample, the weights are fixed
"checkpoint b beats a"          `paired_difference`: the same problems answered by both
"this method scores p"          `across_seeds`: training is repeated, one number per seed
"method b beats method a"       `paired_across_seeds`: seed s of both shares what the seed fixes
the same, seeds share nothing   `welch_across_seeds`
==============================  =========================================================================

Rows of different seeds are never pooled as independent: the answers of one checkpoint share its luck in training, so a
pooled interval is too narrow. An interval over seeds holds for the problems that were used. The uncertainty from
drawing other problems is common to all seeds; the interval over problems of each seed shows it.

Shape suffixes: ``_N`` problems, ``_S`` seeds. Values are in the unit of the input (shares in [0, 1], not per cent).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfcorrect.measuring.records import Number, Storable

RESAMPLES = 10_000
_CELLS_PER_CHUNK = 2_000_000
"""Bounds the memory of a bootstrap: at most this many draws are held at once, 16 MB of indices and 16 MB of values."""
_MULTINOMIAL_COST = 8
"""Measured: drawing one multinomial cell takes about as long as drawing and gathering 8 indices."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate(Storable):
    """A mean with its interval. ``n == 0`` is "not measured": value, low and high are nan, and it prints n/a."""

    NAME: ClassVar[str] = "estimate"
    value: Number
    low: Number
    """nan where there is no interval; ``kind`` then says why."""
    high: Number
    n: int
    """Independent units behind the value: problems for a bootstrap, seeds for a t interval."""
    level: float = 0.95
    kind: str = "bootstrap over problems"

    @property
    def has_interval(self) -> bool:
        return not (math.isnan(self.low) or math.isnan(self.high))

    def text(self, *, scale: float = 100.0, digits: int = 1, sign: bool = False) -> str:
        """The table cell, such as ``60.0 [55.7, 64.3]``.

        Args:
            scale: 100 prints shares as percent points; 1 prints the unit of the input (tokens, for instance).
            digits: decimals.
            sign: print a plus before positive numbers, for differences.
        """
        if self.n == 0:
            return "n/a"
        spec = f"{'+' if sign else ''}z.{digits}f"  # z: never "-0.0"
        value = format(self.value * scale, spec)
        if not self.has_interval:
            return f"{value} [n/a]"
        return f"{value} [{format(self.low * scale, spec)}, {format(self.high * scale, spec)}]"

    def __str__(self) -> str:
        """Percent points with the level, the kind of interval and n."""
        if self.n == 0:
            return "n/a"
        level = f"{self.level * 100:g} % " if self.has_interval else ""
        return f"{self.text()} ({level}{self.kind}, n = {self.n})"


def not_measured(level: float = 0.95, kind: str = "no data") -> Estimate:
    """The estimate from no data. It prints n/a."""
    return Estimate(math.nan, math.nan, math.nan, 0, level, kind)


def bootstrap_mean(
    x_N: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    support: tuple[float, float] | None = None,
) -> Estimate:
    """Mean with a percentile bootstrap interval over problems (Efron & Tibshirani 1993, chapter 13).

    For one checkpoint, with one value per problem: average several samples of a problem first, they are not independent.
    For "this method scores p", where the training seed varies too, use `across_seeds`. A share within a few problems of
    0 or 1 gets an interval that is too narrow, as with every percentile bootstrap. The order of the rows does not change
    the result. Few distinct values (0/1 above all) are resampled by their multinomial counts: the same distribution,
    but faster.

    Args:
        x_N: finite values, one per problem; shape [N]; N = 0 gives n/a.
        seed: of the resampling only.
        resamples: bootstrap means drawn. Memory stays below about 50 MB up to two million problems.
        level: of the interval.
        support: smallest and largest possible value of a row, (0, 1) for a share. Used only if every row has the same
            value, so that resampling shows no spread. If other values were more common than 1 - (1 - level)^(1/N), one
            would have been seen with probability ``level``. This bounds the mean ("rule of three": 3/N at 95 %).
            Without ``support`` such an interval is nan, never of width 0.

    Raises:
        ValueError: x_N is not a flat array of finite numbers, or a setting is out of range.
    """
    x_N = np.sort(_checked(x_N, level))  # sorted: the order of the rows must not matter
    n = len(x_N)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    if n == 0:
        return not_measured(level)
    if x_N[0] == x_N[-1]:
        value = float(x_N[0])
        if support is None:
            return Estimate(value, math.nan, math.nan, n, level, "no interval: every problem has the same value")
        if not support[0] <= value <= support[1]:
            raise ValueError(f"the value {value} lies outside the stated support {support}")
        unseen = 1 - (1 - level) ** (1 / n)
        low, high = value - unseen * (value - support[0]), value + unseen * (support[1] - value)
        return Estimate(value, low, high, n, level, "bound over problems, every one having the same value")
    means_R = _resampled_means(x_N, np.random.default_rng(seed), resamples)
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(x_N.mean()), float(low), float(high), n, level, "bootstrap over problems")


def paired_difference(
    a_N: ArrayLike,
    b_N: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    support: tuple[float, float] | None = None,
) -> Estimate:
    """Mean of b - a with a bootstrap that resamples problems, keeping each problem's pair together.

    For two checkpoints, or two attempts of one, on the same problems in the same order. The difficulty of a problem
    cancels, so the interval is narrower than that of two separate runs (on MATH-500 a standard error of about 1.2
    instead of 2.2 points). For another training seed, use `paired_across_seeds`.

    Args:
        a_N: values of the first, one per problem; shape [N].
        b_N: values of the second, row i being the same problem as row i of a_N; shape [N].
        seed: like resamples and level, as in `bootstrap_mean`.
        support: smallest and largest possible *difference*, (-1, 1) for shares.

    Raises:
        ValueError: as `bootstrap_mean`; also where the lengths differ.
    """
    d_N = _difference(a_N, b_N, level)
    estimate = bootstrap_mean(d_N, seed=seed, resamples=resamples, level=level, support=support)
    return replace(estimate, kind=f"paired {estimate.kind}") if estimate.has_interval else estimate


def bootstrap_balanced(
    hits_N2: ArrayLike,
    counts_N2: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Estimate:
    """Mean of two shares, each of its own kind of cases, with a percentile bootstrap over problems.

    For balanced accuracy: of the right answers those called correct, and of the wrong ones those called wrong.

    Args:
        hits_N2: hits of each kind per problem; shape [N, 2].
        counts_N2: cases of each kind per problem; shape [N, 2]. Without cases of one kind there is no estimate.
        seed, resamples, level: as in `bootstrap_mean`. Resamples without cases of one kind are left out.
    """
    hits_N2, counts_N2 = np.asarray(hits_N2, dtype=np.float64), np.asarray(counts_N2, dtype=np.float64)
    n = len(counts_N2)
    if n == 0 or not counts_N2.sum(axis=0).all():
        return not_measured(level, "no cases of one of the two kinds")
    value = float((hits_N2.sum(axis=0) / counts_N2.sum(axis=0)).mean())
    rng, found = np.random.default_rng(seed), []
    rows = max(1, _CELLS_PER_CHUNK // (2 * n))
    for start in range(0, resamples, rows):
        drawn = rng.integers(0, n, size=(min(rows, resamples - start), n))
        hits_R2, counts_R2 = hits_N2[drawn].sum(axis=1), counts_N2[drawn].sum(axis=1)
        both_R = counts_R2.all(axis=1)
        found.append((hits_R2[both_R] / counts_R2[both_R]).mean(axis=1))
    values_R = np.concatenate(found)
    if np.ptp(values_R) == 0:
        return Estimate(value, math.nan, math.nan, n, level, "no interval: every resample has the same value")
    low, high = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n, level, "bootstrap over problems")


def across_seeds(values_S: ArrayLike, level: float = 0.95) -> Estimate:
    """Mean of one number per training seed with Student's t interval, S - 1 degrees of freedom.

    For "this method scores p on these problems". Each value is one seed's mean over problems; rows of several seeds are
    never pooled. With one seed there is no interval: low and high are nan, and ``kind`` says so. Seeds that agree to the
    last bit give a width of 0, which ``kind`` points out.

    Args:
        values_S: finite, one per seed; shape [S]; S = 0 gives n/a.
        level: of the interval.

    Raises:
        ValueError: values_S is not a flat array of finite numbers, or level is out of range.
    """
    x_S = _checked(values_S, level)
    n = len(x_S)
    if n == 0:
        return not_measured(level, "t over seeds")
    mean = float(x_S.mean())
    if n == 1:
        return Estimate(mean, math.nan, math.nan, 1, level, "no interval: one seed")
    if (x_S == x_S[0]).all():
        return Estimate(mean, mean, mean, n, level, "t over seeds, all of them equal")
    from scipy.special import stdtrit  # 0.2 s to import; scipy.stats, which wraps it, takes 0.6 s

    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(x_S.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n, level, "t over seeds")


def paired_across_seeds(a_S: ArrayLike, b_S: ArrayLike, level: float = 0.95) -> Estimate:
    """Mean of b - a over seeds with Student's t interval on the S differences.

    For "method b beats method a" if seed s of both has the same base model and data order: what they share cancels. If
    they share nothing, the interval still covers, but is wider than necessary.

    Args:
        a_S: one number per seed of the first method; shape [S].
        b_S: the same of the second, in the same order of seeds; shape [S].
        level: of the interval.

    Raises:
        ValueError: as `across_seeds`; also where the lengths differ.
    """
    estimate = across_seeds(_difference(a_S, b_S, level), level)
    return replace(estimate, kind=f"paired {estimate.kind}") if estimate.has_interval else estimate


def welch_across_seeds(a_S: ArrayLike, b_T: ArrayLike, level: float = 0.95) -> Estimate:
    """Mean of b minus mean of a with Welch's t interval: two methods whose seeds share nothing that matters.

    For "method b beats method a" where pairing by seed gains nothing: runs of one seed are no more alike than others, so
    the paired interval has half the degrees of freedom for the same spread. Numbers of seeds may differ. With three seeds of
    unequal spread, 95 % intervals cover 93 % (simulated in the tests).

    Args:
        a_S: one number per seed of the first method; shape [S].
        b_T: the same of the second; shape [T].
        level: of the interval.

    Raises:
        ValueError: as `across_seeds`.
    """
    a_S, b_T = _checked(a_S, level), _checked(b_T, level)
    n = min(len(a_S), len(b_T))
    if n == 0:
        return not_measured(level, "Welch's t over seeds")
    difference = float(b_T.mean() - a_S.mean())
    if n == 1:
        return Estimate(difference, math.nan, math.nan, 1, level, "no interval: one seed")
    from scipy.special import stdtrit

    parts = np.array([x.var(ddof=1) / len(x) for x in (a_S, b_T)])  # squared standard errors
    if not parts.any():
        return Estimate(difference, difference, difference, n, level, "Welch's t over seeds, all of them equal")
    freedom = parts.sum() ** 2 / (parts**2 / (np.array([len(a_S), len(b_T)]) - 1)).sum()
    half = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(parts.sum())
    return Estimate(difference, difference - half, difference + half, n, level, "Welch's t over seeds")


def seeds_needed(spread: float, difference: float, level: float = 0.95, power: float = 0.8) -> int:
    """How many seeds per method show a difference: the interval of `paired_across_seeds` then excludes 0 with
    probability ``power``.

        S >= ((t(level) + t(power)) spread / difference)^2, with S - 1 degrees of freedom (Snedecor & Cochran 1989, 6.14)

    Args:
        spread: standard deviation, over seeds, of the difference between the two methods.
        difference: the true difference, in the same unit.
        level: of the interval.
        power: the probability of finding it.

    Raises:
        ValueError: the spread is negative, or the difference is 0.
    """
    if spread < 0 or difference == 0:
        raise ValueError(
            f"a spread of {spread} and a difference of {difference} have no answer: give >= 0 and other than 0"
        )
    from scipy.special import stdtrit

    seeds = 2
    while seeds < ((stdtrit(seeds - 1, (1 + level) / 2) + stdtrit(seeds - 1, power)) * spread / difference) ** 2:
        seeds += 1
    return seeds


def _checked(x: ArrayLike, level: float) -> Floats:
    x_N = np.asarray(x, dtype=np.float64)
    if x_N.ndim != 1 or not np.isfinite(x_N).all():
        raise ValueError(f"expected a flat array of finite numbers, got shape {x_N.shape}: drop and count nan rows")
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1 (0.95 for 95 %), not {level}")
    return x_N


def _difference(a: ArrayLike, b: ArrayLike, level: float) -> Floats:
    a_N, b_N = _checked(a, level), _checked(b, level)
    if len(a_N) != len(b_N):
        raise ValueError(f"a pair needs both sides: {len(a_N)} values against {len(b_N)}")
    return b_N - a_N


def _resampled_means(x_N: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    n = len(x_N)
    values_U, counts_U = np.unique(x_N, return_counts=True)
    by_counts = len(values_U) * _MULTINOMIAL_COST <= n
    width = len(values_U) if by_counts else n
    rows = max(1, _CELLS_PER_CHUNK // width)
    means_R = np.empty(resamples)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        if by_counts:
            means = rng.multinomial(n, counts_U / n, size=size) @ values_U / n
        else:
            means = x_N[rng.integers(0, n, size=(size, n))].mean(axis=1)
        means_R[start : start + size] = means
    return means_R
