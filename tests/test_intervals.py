"""Intervals: hand-computed values, and simulations that count how often they hold the truth."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcorrect.errors import DataError
from selfcorrect.measuring import intervals as stats
from selfcorrect.measuring.intervals import (
    Estimate,
    across_seeds,
    bootstrap_mean,
    not_measured,
    paired_across_seeds,
    paired_difference,
    seeds_needed,
    welch_across_seeds,
)

values = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=40)


# ---------------------------------------------------------------- Estimate


def test_estimate_prints_percent_points() -> None:
    e = Estimate(0.6, 0.557, 0.643, 500)
    assert e.text() == "60.0 [55.7, 64.3]"
    assert str(e) == "60.0 [55.7, 64.3] (95 % bootstrap over problems, n = 500)"
    assert e.text(sign=True, digits=0) == "+60 [+56, +64]"
    assert Estimate(31.25, 30.0, 32.5, 9).text(scale=1, digits=2) == "31.25 [30.00, 32.50]"
    assert Estimate(-0.0001, -0.01, 0.01, 9).text() == "0.0 [-1.0, 1.0]", "no minus zero"


def test_nothing_measured_prints_na_and_never_zero() -> None:
    over_problems = bootstrap_mean([]), paired_difference([], [])
    for e in (
        *over_problems,
        across_seeds([]),
        paired_across_seeds([], []),
        welch_across_seeds([], [0.5]),
        not_measured(),
    ):
        assert (e.n, str(e), e.text(), e.has_interval) == (0, "n/a", "n/a", False)
        assert math.isnan(e.value) and math.isnan(e.low) and math.isnan(e.high)


def test_estimate_survives_strict_json() -> None:
    for e in (Estimate(0.5, 0.25, 0.75, 4), not_measured(0.9), across_seeds([0.5])):
        text = json.dumps(e.to_json(), allow_nan=False)
        back = Estimate.from_json(json.loads(text))
        assert back.to_json() == e.to_json() and str(back) == str(e)


@pytest.mark.parametrize("broken", [{}, {"value": 1.0}, {**Estimate(0.5, 0.2, 0.7, 4).to_json(), "mean": 1}])
def test_foreign_json_is_named(broken: dict[str, object]) -> None:
    with pytest.raises(DataError, match="not a stored estimate"):
        Estimate.from_json(broken)


# ---------------------------------------------------------------- bootstrap


def test_bootstrap_of_two_problems_is_the_law_of_two_coins() -> None:
    # Rows 0 and 1: a resample's mean is 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4.
    # A 40 % interval runs from the 30th to the 70th percentile, both inside the half: [1/2, 1/2].
    # A 60 % interval runs from the 20th to the 80th: [0, 1].
    assert bootstrap_mean([0, 1], level=0.4) == Estimate(0.5, 0.5, 0.5, 2, 0.4)
    assert bootstrap_mean([1, 0], level=0.6) == Estimate(0.5, 0.0, 1.0, 2, 0.6)


def test_bootstrap_percentiles_equal_those_of_the_exact_law() -> None:
    # 4 rows: all 4^4 = 256 resamples listed. Levels are chosen away from the jumps of the law, where draws decide.
    x_N = [0.0, 0.1, 0.5, 1.0]
    exact = np.sort([np.mean(rows) for rows in product(x_N, repeat=4)])
    e = bootstrap_mean(x_N, level=0.9, resamples=200_000)
    assert e.value == pytest.approx(0.4)  # 1.6 / 4
    assert e.low == pytest.approx(np.quantile(exact, 0.05), abs=0.011)
    assert e.high == pytest.approx(np.quantile(exact, 0.95), abs=0.011)


def test_counting_distinct_values_is_the_same_law_as_drawing_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x_N = np.repeat([0.0, 0.5, 1.0], [50, 30, 70])
    by_counts = stats._resampled_means(x_N, np.random.default_rng(0), 40_000)
    monkeypatch.setattr(stats, "_MULTINOMIAL_COST", 1e9)
    by_rows = stats._resampled_means(x_N, np.random.default_rng(0), 40_000)
    assert not np.array_equal(by_counts, by_rows), "two different paths were meant to run"
    # mean 85/150; variance (0 + 30/4 + 70)/150 - mean^2 = 0.19556; standard error sqrt(0.19556/150) = 0.03611.
    for means in (by_counts, by_rows):
        assert means.mean() == pytest.approx(85 / 150, abs=5 * 0.03611 / 200)  # 200 = sqrt(40,000)
        assert means.std() == pytest.approx(0.03611, rel=0.02)
    q = np.linspace(0.01, 0.99, 50)
    apart = np.abs(np.quantile(by_counts, q) - np.quantile(by_rows, q)).max()
    assert apart < 0.0034, "more than one step of the lattice, 0.5/150"


def test_chunks_fill_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    x_N = np.random.default_rng(1).random(50)
    monkeypatch.setattr(stats, "_CELLS_PER_CHUNK", 350)  # 7 resamples at a time; 7 does not divide 1,000
    means = stats._resampled_means(np.sort(x_N), np.random.default_rng(0), 1_000)
    assert x_N.min() < means.min() and means.max() < x_N.max()
    assert means.std() == pytest.approx(x_N.std() / math.sqrt(50), rel=0.1)


@given(values, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_bootstrap_is_deterministic_and_blind_to_row_order(rows: list[float], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, two = (bootstrap_mean(x, resamples=200, support=(-1, 1)) for x in (rows, shuffled))
    assert one == two


def test_the_seed_moves_the_interval_only() -> None:
    x_N = np.random.default_rng(0).random(100)
    one, two = bootstrap_mean(x_N, seed=1), bootstrap_mean(x_N, seed=2)
    assert one.value == two.value and (one.low, one.high) != (two.low, two.high)
    assert one.low == pytest.approx(two.low, abs=0.005)


def test_equal_rows_get_the_rule_of_three_and_never_a_width_of_zero() -> None:
    # 300 wrong of 300: 1 - 0.05^(1/300) = 0.009936; the rule of three says 3/300 = 0.01.
    e = bootstrap_mean(np.zeros(300), support=(0, 1))
    assert (e.value, e.low) == (0.0, 0.0) and e.high == pytest.approx(0.009936, abs=1e-6)
    e = bootstrap_mean(np.ones(300), support=(0, 1))
    assert (e.value, e.high) == (1.0, 1.0) and e.low == pytest.approx(1 - 0.009936, abs=1e-6)
    # no difference in 300 pairs: an unseen share q could all have gone either way
    e = paired_difference(np.ones(300), np.ones(300), support=(-1, 1))
    assert (e.value, e.low, e.high) == (0.0, pytest.approx(-0.009936, abs=1e-6), pytest.approx(0.009936, abs=1e-6))
    unknown = bootstrap_mean(np.full(5, 7.0))
    assert unknown.value == 7.0 and not unknown.has_interval
    assert str(unknown) == "700.0 [n/a] (no interval: every problem has the same value, n = 5)"
    with pytest.raises(ValueError, match="outside"):
        bootstrap_mean([2.0, 2.0], support=(0, 1))


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_mean([0.0, math.nan]),
        lambda: bootstrap_mean([[0.0, 1.0]]),
        lambda: bootstrap_mean([0.0, 1.0], level=95),
        lambda: bootstrap_mean([0.0, 1.0], resamples=0),
        lambda: paired_difference([0.0, 1.0], [0.0]),
        lambda: across_seeds([0.0, math.inf]),
        lambda: paired_across_seeds([0.0, 1.0], [0.0]),
        lambda: across_seeds([0.0, 1.0], level=1.0),
        lambda: across_seeds([0.0, 1.0], level=0.0),
    ],
)
def test_misuse_is_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError):
        call()


def test_paired_difference_is_b_minus_a_and_keeps_pairs() -> None:
    # 200 problems; b is right where a is, and on 10 more: every difference is 0 or 1, mean 10/200 = 5 points.
    a_N = np.repeat([1.0, 0.0], [100, 100])
    b_N = np.repeat([1.0, 0.0], [110, 90])
    e = paired_difference(a_N, b_N)
    assert e.value == pytest.approx(0.05) and e.kind == "paired bootstrap over problems" and e.n == 200
    # Binomial(200, 0.05)/200: standard deviation sqrt(0.05 * 0.95 / 200) = 0.0154; 2.5 % and 97.5 % at 4 and 16 of 200.
    assert (e.low, e.high) == (pytest.approx(0.02), pytest.approx(0.08))
    # Pairs broken up, the width would be that of sqrt(0.25/200 + 0.2475/200) = 0.0499: three times as wide.
    broken = paired_difference(np.random.default_rng(0).permutation(a_N), b_N)
    assert broken.value == pytest.approx(0.05) and broken.high - broken.low > 2.5 * (e.high - e.low)


# ---------------------------------------------------------------- t over seeds


def test_across_seeds_by_hand() -> None:
    # 0.50, 0.52, 0.54, 0.56, 0.58: mean 0.54; deviations -.04 -.02 0 .02 .04, squares sum 0.004, / 4 = 0.001;
    # standard error sqrt(0.001 / 5) = 0.0141421; t(0.975, 4) = 2.776445; half width 0.0392649.
    e = across_seeds([0.50, 0.52, 0.54, 0.56, 0.58])
    assert (e.value, e.n, e.kind) == (pytest.approx(0.54), 5, "t over seeds")
    assert e.low == pytest.approx(0.54 - 0.0392649, abs=1e-7) and e.high == pytest.approx(0.54 + 0.0392649, abs=1e-7)


def test_paired_across_seeds_by_hand() -> None:
    # b - a: 0.10, 0.12, 0.14: mean 0.12, variance 0.0008 / 2 = 0.0004, standard error sqrt(0.0004/3) = 0.0115470;
    # t(0.975, 2) = 4.302653; half width 0.0496827. The spread of a itself, 0.4, has no part in it.
    e = paired_across_seeds([0.1, 0.5, 0.3], [0.2, 0.62, 0.44])
    assert e.value == pytest.approx(0.12) and e.kind == "paired t over seeds"
    assert e.high - e.value == pytest.approx(0.0496827, abs=1e-7)


def test_welch_across_seeds_is_scipys_and_takes_unequal_numbers() -> None:
    a, b = [0.70, 0.71, 0.73], [0.80, 0.97, 0.95, 0.88]
    e, reference = welch_across_seeds(a, b), scipy.stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert (e.low, e.high) == pytest.approx((reference.low, reference.high)) and e.n == 3
    assert e.value == pytest.approx(np.mean(b) - np.mean(a)) and e.kind == "Welch's t over seeds"
    assert not welch_across_seeds([0.7], b).has_interval
    equal = welch_across_seeds([0.5, 0.5], [0.75, 0.75, 0.75])
    assert (equal.low, equal.high) == (0.25, 0.25) and equal.kind.endswith("all of them equal")
    some_equal = welch_across_seeds([0.5, 0.5, 0.5], b)
    assert some_equal.high - some_equal.value == pytest.approx(across_seeds(b).high - across_seeds(b).value)


def test_welch_covers_nearly_and_is_narrower_than_pairs_where_nothing_is_shared() -> None:
    rng = np.random.default_rng(3)
    a, b = 0.7 + 0.01 * rng.standard_normal((2_000, 3)), 0.8 + 0.05 * rng.standard_normal((2_000, 3))
    welch = [welch_across_seeds(x, y) for x, y in zip(a, b, strict=True)]
    assert 0.92 <= np.mean([_covers(e, 0.1) for e in welch]) <= 0.96  # three seeds of unequal spread: a little short
    pairs = [paired_across_seeds(x, y) for x, y in zip(a, b, strict=True)]
    assert np.mean([e.high - e.low for e in welch]) < np.mean([e.high - e.low for e in pairs])


def test_one_seed_has_no_interval_and_says_so() -> None:
    e = across_seeds([0.5])
    assert e.value == 0.5 and e.n == 1 and math.isnan(e.low) and math.isnan(e.high)
    assert str(e) == "50.0 [n/a] (no interval: one seed, n = 1)"


def test_equal_seeds_are_pointed_out() -> None:
    e = across_seeds([0.1, 0.1, 0.1])
    assert (e.value, e.low, e.high) == (pytest.approx(0.1),) * 3 and e.kind == "t over seeds, all of them equal"


def t_of(df: int, level: float) -> float:
    """The quantile behind an interval over df + 1 seeds: its half width, in standard errors."""
    x_S = np.arange(df + 1.0)
    return (across_seeds(x_S, level).high - x_S.mean()) / (x_S.std(ddof=1) / math.sqrt(df + 1))


def test_the_half_width_is_the_printed_quantile_of_t() -> None:
    # Abramowitz & Stegun table 26.10, two-sided 95 %.
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042, 120: 1.980}
    assert {df: round(t_of(df, 0.95), 3) for df in table} == table


def test_the_half_width_is_the_quantile_of_scipys_t() -> None:
    for df in (1, 2, 3, 4, 5, 8, 15, 30, 101, 1000):
        for level in (0.2, 0.8, 0.95, 0.998):
            assert t_of(df, level) == pytest.approx(scipy.stats.t.ppf((1 + level) / 2, df), rel=1e-9)


# ---------------------------------------------------------------- coverage, by simulation
# Each trial has its own bootstrap seed: one for all would be one error for all, which more trials do not average out.

SEEDS, PROBLEMS, TRUTH, BETWEEN_SEEDS = 5, 300, 0.5, 0.05


def _covers(e: Estimate, truth: float) -> bool:
    return e.low <= truth <= e.high


def _runs(rng: np.random.Generator) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Training seed s reaches accuracy TRUTH + noise of standard deviation BETWEEN_SEEDS; rows [seeds, problems]."""
    skill_S = TRUTH + BETWEEN_SEEDS * rng.standard_normal(SEEDS)
    return (rng.random((SEEDS, PROBLEMS)) < skill_S[:, None]).astype(np.float64)


def test_t_over_seeds_covers_and_pooled_rows_do_not() -> None:
    rng = np.random.default_rng(0)
    trials = [_runs(rng) for _ in range(4_000)]
    over_seeds = np.mean([_covers(across_seeds(x.mean(axis=1)), TRUTH) for x in trials])
    assert 0.93 <= over_seeds <= 0.97
    # Pooled: variance claimed 0.25/1500 = 0.000167; true 0.0025/5 + 0.2475/1500 = 0.000665. The claimed +-1.96 sd is
    # +-0.98 true sd, which holds 67 % of a normal law. One seed's bootstrap, read as a claim about the method, is off
    # by the same ratio: both its variances are 5 times larger.
    pooled = [bootstrap_mean(x.ravel(), seed=i, resamples=1_000) for i, x in enumerate(trials)]
    assert 0.64 <= np.mean([_covers(e, TRUTH) for e in pooled]) <= 0.71
    single = [bootstrap_mean(x[0], seed=i, resamples=1_000) for i, x in enumerate(trials)]
    assert 0.64 <= np.mean([_covers(e, TRUTH) for e in single]) <= 0.71


def test_paired_t_over_seeds_covers_and_is_narrower_where_seeds_are_shared() -> None:
    rng = np.random.default_rng(1)
    covered, paired_width, unpaired_width = [], [], []
    for _ in range(2_000):
        shared_S = 0.1 * rng.standard_normal(SEEDS)  # luck of the seed that both methods share
        a_S = 0.4 + shared_S + 0.02 * rng.standard_normal(SEEDS)
        b_S = 0.5 + shared_S + 0.02 * rng.standard_normal(SEEDS)
        e = paired_across_seeds(a_S, b_S)
        covered.append(_covers(e, 0.1))
        paired_width.append(e.high - e.low)
        unpaired_width.append(across_seeds(b_S).high - across_seeds(b_S).low)
    assert 0.93 <= np.mean(covered) <= 0.97
    assert np.mean(paired_width) < 0.5 * np.mean(unpaired_width)


def test_seeds_on_one_set_of_problems_say_nothing_of_other_problems() -> None:
    """The limit in the module's docstring: the interval covers the truth on these problems, not on their population."""
    rng = np.random.default_rng(2)
    here, elsewhere = [], []
    for _ in range(2_000):
        chance_N = rng.beta(0.5, 0.5, 200)  # problems are mostly easy or mostly hard, drawn once for all seeds
        e = across_seeds((rng.random((SEEDS, 200)) < chance_N).mean(axis=1))
        here.append(_covers(e, float(chance_N.mean())))
        elsewhere.append(_covers(e, 0.5))
    assert 0.93 <= np.mean(here) <= 0.97
    assert np.mean(elsewhere) < 0.85


@pytest.mark.parametrize("truth", [0.3, 0.6])
def test_bootstrap_covers_a_share(truth: float) -> None:
    rng = np.random.default_rng(3)
    trials = [bootstrap_mean((rng.random(300) < truth).astype(float), seed=i, resamples=1_000) for i in range(4_000)]
    assert 0.93 <= np.mean([_covers(e, truth) for e in trials]) <= 0.97


def test_bootstrap_covers_the_mean_of_many_valued_rows() -> None:
    rng = np.random.default_rng(4)
    trials = [bootstrap_mean(rng.random(200), seed=i, resamples=500) for i in range(1_500)]
    assert 0.93 <= np.mean([_covers(e, 0.5) for e in trials]) <= 0.97


def test_paired_bootstrap_covers_a_difference() -> None:
    # b - a is +1, 0, -1 with probabilities 0.15, 0.77, 0.08: the truth is 0.07.
    rng = np.random.default_rng(5)
    covered = []
    for i in range(3_000):
        d_N = rng.choice([1.0, 0.0, -1.0], p=[0.15, 0.77, 0.08], size=400)
        a_N = np.where(d_N == 1, 0.0, np.where(d_N == -1, 1.0, rng.random(400) < 0.5))
        covered.append(_covers(paired_difference(a_N, a_N + d_N, seed=i, resamples=1_000), 0.07))
    assert 0.93 <= np.mean(covered) <= 0.97


def test_samples_of_a_problem_are_averaged_first_or_the_interval_is_too_narrow() -> None:
    rng = np.random.default_rng(6)
    averaged, pooled = [], []
    for i in range(1_500):
        chance_N = rng.beta(0.5, 0.5, 150)
        x_NG = (rng.random((150, 8)) < chance_N[:, None]).astype(float)
        averaged.append(_covers(bootstrap_mean(x_NG.mean(axis=1), seed=i, resamples=500), 0.5))
        pooled.append(_covers(bootstrap_mean(x_NG.ravel(), seed=i, resamples=500), 0.5))
    assert 0.93 <= np.mean(averaged) <= 0.97
    assert np.mean(pooled) < 0.75


def test_the_bound_for_equal_rows_covers() -> None:
    # 30 problems, each right with 0.98: all 30 right in 0.98^30 = 55 % of the trials, where a width of 0 would miss.
    rng = np.random.default_rng(7)
    trials = [(rng.random(30) < 0.98).astype(float) for _ in range(2_000)]
    equal = [bootstrap_mean(x, support=(0, 1)) for x in trials if x.min() == x.max()]
    assert len(equal) > 1_000 and all(_covers(e, 0.98) for e in equal)


@pytest.mark.parametrize(("spread", "difference"), [(0.1, 0.1), (0.05, 0.1), (0.1, -0.05)])
def test_the_seeds_needed_show_the_difference_four_times_in_five(spread, difference):
    n, rng = seeds_needed(spread, difference), np.random.default_rng(1)
    shown = {}
    for seeds in (n, n - 2):
        found = [across_seeds(rng.normal(difference, spread, seeds)) for _ in range(2_000)]
        shown[seeds] = np.mean([e.low > 0 or e.high < 0 for e in found])
    assert 0.77 < shown[n] < 0.95 and shown[n - 2] < 0.82


def test_no_spread_needs_two_seeds_and_no_difference_is_refused():
    assert seeds_needed(0.0, 0.01) == 2
    for spread, difference in ((0.1, 0.0), (-0.1, 0.1)):
        with pytest.raises(ValueError, match="no answer"):
            seeds_needed(spread, difference)
