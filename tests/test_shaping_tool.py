"""tools/shaping.py: its linear algebra is the engine's gradient, and what it samples agrees with what it enumerates."""

import sys
from pathlib import Path

import numpy as np
import pytest

from test_exact_gradient import expected_gradient, make_engine

sys.path.append(str(Path(__file__).parent.parent / "tools"))
import shaping

SITUATIONS = (("the tests' rule", True), ("attempt 2 mostly as right as attempt 1", False))


@pytest.fixture(scope="module")
def toy():
    return shaping.make_toy()


@pytest.fixture(scope="module")
def rule(toy):
    return shaping.second_rewards(toy)["the tests' rule"]


def test_lengths_are_those_of_the_engines_gradients(toy, rule):
    engine, model, _ = make_engine()
    for credit in (shaping.PROGRESS, shaping.OTHERS["the paper, gamma 1"]):
        gradient = expected_gradient(engine, model, credit)
        length = np.sqrt(sum(float((g**2).sum()) for g in gradient.values()))
        assert shaping.length(toy, shaping.expected(toy, rule, credit)) == pytest.approx(length, rel=1e-3)


def test_the_four_forms_are_one_gradient_in_expectation_and_others_are_not(toy, rule):
    paper = shaping.expected(toy, rule, shaping.PROGRESS)
    gaps = {
        name: shaping.length(toy, shaping.expected(toy, rule, credit) - paper) / shaping.length(toy, paper)
        for name, credit in {**shaping.CREDITS, **shaping.OTHERS}.items()
    }
    assert all(gaps[name] < 1e-5 for name in shaping.CREDITS) and all(gaps[name] > 0.3 for name in shaping.OTHERS)


def test_sampled_noise_is_that_of_enumeration(toy, rule, monkeypatch):
    """Groups of two can be listed, so their variance is known."""
    monkeypatch.setattr(shaping, "GROUP", 2)
    p, made = shaping.enumerated(toy, rule, shaping.PROGRESS)
    exact = float(p @ shaping.squared_noise(toy, made, p @ made))
    rng = np.random.default_rng(1)
    sampled = np.array(
        [shaping.linear(toy, rule, shaping.PROGRESS, *shaping.draw(toy, rng, None)) for _ in range(3000)]
    )
    noise = shaping.squared_noise(toy, sampled, p @ made)
    assert noise.mean() == pytest.approx(exact, abs=4 * noise.std() / np.sqrt(len(noise)))


def test_trees_have_the_expectation_of_episodes(toy, rule):
    """No exact list here: 4 of 3 branches have 4^16 outcomes. The mean of many is near, in standard errors."""
    rng = np.random.default_rng(2)
    made = np.array(
        [shaping.tree(toy, rule, shaping.PROGRESS, *shaping.draw(toy, rng, shaping.BRANCHES)) for _ in range(3000)]
    )
    mean = shaping.expected(toy, rule, shaping.PROGRESS)
    gap = shaping.part(made.mean(0) - mean, 2)  # as a gradient: coefficients that differ by a baseline are one gradient
    assert gap @ toy.gram @ gap < 4 * shaping.squared_noise(toy, made, mean).mean() / len(made)
    wrong = shaping.part(made.mean(0) - shaping.expected(toy, rule, shaping.OTHERS["no shaping"]), 2)
    assert wrong @ toy.gram @ wrong > 40 * shaping.squared_noise(toy, made, mean).mean() / len(made)


def test_the_bonus_has_less_noise_where_the_best_coefficient_is_above_half_of_alpha(toy):
    for r2, helps in ((shaping.second_rewards(toy)[name], helps) for name, helps in SITUATIONS):
        assert (toy.best_coefficient(r2) > shaping.ALPHA / 2) is helps
        mean, noise = shaping.expected(toy, r2, shaping.PROGRESS), {}
        for credit in (shaping.PROGRESS, shaping.SCALED):
            rng = np.random.default_rng(3)
            made = np.array([shaping.linear(toy, r2, credit, *shaping.draw(toy, rng, None)) for _ in range(600)])
            noise[credit] = shaping.squared_noise(toy, made, mean).mean()
        ratio = noise[shaping.PROGRESS] / noise[shaping.SCALED]
        assert ratio < 0.8 if helps else ratio > 1.2
