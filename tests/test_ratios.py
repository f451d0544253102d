"""Importance ratios are bounded where trainer and sampler differ, and nothing changes where they agree."""

import asyncio
import dataclasses

import numpy as np
import pytest
import torch

import tiny
import toy
from selfcorrect.algorithm.ratios import bound_ratios
from selfcorrect.config import load_config
from selfcorrect.engines.base import SampleRequest, SamplingParams
from selfcorrect.errors import ConfigError
from selfcorrect.types import Datum

ON = np.array([False, False, True, True, True])


def datum(gaps, weights=(1.0, -2.0, 0.5), scored=None):
    """Two prompt tokens and three sampled ones, with log-ratios ``gaps``; and the trainer's log-probs."""
    lp = np.array([0.0, 0.0, -1.0, -2.0, -3.0])
    sampled = np.where(ON, lp - np.array([0.0, 0.0, *gaps]), 0.0)
    return Datum(np.arange(5), np.array([0.0, 0.0, *weights]), sampled, ON), lp


def test_a_weight_is_scaled_so_that_its_ratio_counts_as_the_cap():
    # ratios 4, 1 and 1/4; cap 2: the first weight is halved, the others stay
    d, lp = datum(np.log([4.0, 1.0, 0.25]))
    (bounded,), report = bound_ratios([d], [lp], 2.0, None)
    np.testing.assert_allclose(bounded.weights_T, [0, 0, 0.5, -2.0, 0.5])
    assert report.capped == pytest.approx(1 / 3) and report.masked == 0
    assert report.largest_gap == pytest.approx(np.log(4))
    np.testing.assert_array_equal(bounded.logprobs_T, d.logprobs_T)


@pytest.mark.parametrize("mean", [-0.5, 0.5])
def test_a_sequence_far_off_on_either_side_is_left_out_and_its_neighbour_is_not(mean):
    # geometric means exp(+-0.5) = 1.65 and 0.61: outside [1/1.5, 1.5]; and exp(0.1) = 1.11: inside
    far, near = datum([mean - 0.3, mean, mean + 0.3]), datum([0.1, 0.1, 0.1])
    data, report = bound_ratios([far[0], near[0]], [far[1], near[1]], 10.0, 1.5)
    assert not data[0].weights_T.any()
    np.testing.assert_array_equal(data[1].weights_T, near[0].weights_T)
    assert (report.capped, report.masked) == (0, 0.5)


def test_tokens_without_weight_count_in_a_sequences_mean_and_in_no_share():
    d, lp = datum([0.0, 0.0, 3.0], (1.0, 1.0, 0.0))  # mean 1
    (bounded,), report = bound_ratios([d], [lp], 2.0, 1.5)
    assert not bounded.weights_T.any() and report.masked == 1
    (bounded,), report = bound_ratios([d], [lp], 2.0, None)
    np.testing.assert_array_equal(bounded.weights_T, d.weights_T)
    assert report.capped == 0 and report.largest_gap == 0


def test_where_no_ratio_is_out_of_bounds_every_bit_stays():
    rng = np.random.default_rng(0)
    pairs = [datum(rng.normal(0, 0.1, 3), tuple(rng.normal(size=3))) for _ in range(50)]
    data, report = bound_ratios([d for d, _ in pairs], [lp for _, lp in pairs], 2.0, 1.5)
    for before, after in zip((d for d, _ in pairs), data, strict=True):
        np.testing.assert_array_equal(before.weights_T, after.weights_T)
    assert (report.capped, report.masked) == (0, 0)


def test_an_absurd_ratio_stays_finite():
    d, lp = datum([5000.0, 0.0, 0.0])
    (bounded,), _ = bound_ratios([d], [lp], 2.0, None)
    assert np.isfinite(bounded.weights_T).all() and bounded.weights_T[2] == 0


def test_the_gradient_is_that_of_the_truncated_ratio():
    """Against cross-entropy, whose gradient is - sum of weight * grad lp, at weights min(ratio, cap) * weight."""
    engine = tiny.engine()
    requests = [SampleRequest((20 + i, 30, 40), ("ratio", i)) for i in range(4)]
    answers = asyncio.run(engine.sample(requests, SamplingParams(6)))
    data = tiny.sampled_data(requests, answers, 0.3)
    ratios = np.exp(np.linspace(-1.5, 1.5, 6))
    off = []
    for d in data:
        shifted = d.logprobs_T.copy()
        shifted[d.sampled_T] -= np.log(ratios[: d.sampled_T.sum()])
        off.append(dataclasses.replace(d, logprobs_T=shifted))
    bounded, _ = bound_ratios(off, engine.logprobs(off, "current"), 2.0, None)
    engine.forward_backward(bounded, "importance_sampling")
    got = {n: g.clone() for n, g in engine.gradients().items()}
    peer = tiny.engine()
    expected = []
    for d in data:
        weights = d.weights_T.copy()
        weights[d.sampled_T] *= np.minimum(ratios, 2.0)[: d.sampled_T.sum()]
        expected.append(dataclasses.replace(d, weights_T=weights))
    peer.forward_backward(expected, "cross_entropy")
    for name, g in peer.gradients().items():
        torch.testing.assert_close(got[name], g, rtol=1e-3, atol=1e-5)


def test_bounds_are_on_where_the_sampler_is_not_exact_and_off_where_it_is():
    train = load_config(None, []).train
    assert train.ratio_bounds(exact_sampler=True) == (None, None)
    assert train.ratio_bounds(exact_sampler=False) == (2.0, 1.5)
    own = load_config(None, ["train.ratio_cap=3", "train.ratio_mask=none"]).train
    assert own.ratio_bounds(exact_sampler=True) == own.ratio_bounds(exact_sampler=False) == (3.0, None)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("train.ratio_cap=0.9", "would shrink tokens on which trainer and sampler agree"),
        ("train.ratio_cap=-1", "would shrink"),
        ("train.ratio_mask=1", "would leave out every sequence"),
        ("train.ratio_cap=often", "ratio_cap"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(setting, reason):
    with pytest.raises(ConfigError, match=reason):
        load_config(None, [setting])


def test_a_run_records_what_was_bounded_and_an_exact_one_is_what_it_was(tmp_path):
    plain = toy.step_records(toy.run(tmp_path / "plain", "train.steps=2")[0])
    assert all(r.ratio_capped is None and r.ratio_masked is None for r in plain)
    wide = toy.step_records(toy.run(tmp_path / "wide", "train.steps=2", "train.ratio_cap=2", "train.ratio_mask=1.5")[0])
    assert all(r.ratio_capped == r.ratio_masked == 0 for r in wide)
    same = {"ratio_capped": None, "ratio_masked": None, "sampler_mismatch": 0.0}
    assert [r.model_copy(update=same) for r in wide] == [r.model_copy(update=same) for r in plain]
    inexact = toy.step_records(toy.run(tmp_path / "inexact", "train.steps=2", "model.dtype=bfloat16")[0])
    assert all(r.ratio_capped is not None and r.ratio_masked is not None for r in inexact)
    narrow = ("model.dtype=bfloat16", "train.ratio_mask=1.0000001", "train.ratio_cap=none")
    left_out = toy.step_records(toy.run(tmp_path / "narrow", "train.steps=2", *narrow)[0])
    assert left_out[0].ratio_masked > 0.5 and left_out[0].sampler_mismatch > 0
