"""Hand-computed goldens and properties of the credit equations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from selfcorrect.algorithm.baselines import given_first_advantages, standardised
from selfcorrect.algorithm.credit import (
    Credit,
    counted_mask,
    kl_per_token_credit,
    leave_one_out_advantages,
    reward_returns,
    shaping_bonus,
    zero_variance,
)
from selfcorrect.algorithm.trees import tree_token_weights
from selfcorrect.algorithm.variants import adapted_scale
from selfcorrect.algorithm.weights import group_token_weights

ALL = np.ones((4, 2), dtype=bool)
# wrong->right, right->right, wrong->wrong, right->wrong
FOUR = np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])


def flat_logratios(rewards_GK, length=3, value=0.0):
    return [[np.full(length, value) for _ in row] for row in rewards_GK]


def test_effective_rewards_of_attempt_2_are_11_1_0_minus10():
    returns = reward_returns(FOUR, np.array([1.0, 1.0]), alpha=10.0, gamma=0.0)
    assert returns[:, 1].tolist() == [11.0, 1.0, 0.0, -10.0]
    assert returns[:, 0].tolist() == [0.0, 1.0, 0.0, 1.0]  # the bonus is on attempt 2 only


def test_gamma_1_pays_attempt_1_minus_9_for_being_right_first():
    # right->wrong: r1 + gamma * (r2 + bonus) = 1 + (0 - 10) = -9 = (1 - alpha) r1 + (1 + alpha) r2
    returns = reward_returns(FOUR, np.array([1.0, 1.0]), alpha=10.0, gamma=1.0)
    assert returns[:, 0].tolist() == [11.0, 2.0, 0.0, -9.0]


def test_bonus_is_between_consecutive_attempts():
    rewards = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert shaping_bonus(rewards, 10.0).tolist() == [[0.0, 10.0, -10.0], [0.0, 0.0, 10.0]]


def test_stage_1_ignores_the_reward_of_attempt_1():
    returns = reward_returns(FOUR, np.array([0.0, 1.0]), alpha=0.0, gamma=0.0)
    assert returns[:, 0].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert returns[:, 1].tolist() == [1.0, 1.0, 0.0, 0.0]


def test_leave_one_out_golden():
    # others' means: (2+6)/2=4, (0+6)/2=3, (0+2)/2=1
    assert leave_one_out_advantages(np.array([0.0, 2.0, 6.0]), np.ones(3, bool)).tolist() == [-4.0, -1.0, 5.0]


def test_leave_one_out_without_the_failed_sample():
    # sample 1 is out: 0 - 6 and 6 - 0
    counted = np.array([True, False, True])
    assert leave_one_out_advantages(np.array([0.0, 2.0, 6.0]), counted).tolist() == [-6.0, 0.0, 6.0]


def test_leave_one_out_with_one_left_gives_no_weight():
    counted = np.array([True, False, False])
    assert leave_one_out_advantages(np.array([5.0, 2.0, 6.0]), counted).tolist() == [0.0, 0.0, 0.0]


def test_the_baseline_given_r1_takes_mates_of_the_same_first_verdict():
    # r1 = 0: 11 and 0 are mates -> 11, -11.  r1 = 1: 1, -10 and 1 -> 1 - (-9/2), -10 - 1, 1 - (-9/2)
    returns, first = np.array([11.0, 0.0, 1.0, -10.0, 1.0]), np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    got = given_first_advantages(returns, np.ones(5, bool), first)
    assert got.tolist() == [11.0, -11.0, 5.5, -11.0, 5.5]


def test_the_baseline_given_r1_is_plain_leave_one_out_without_such_a_mate():
    # sample 0 is alone with r1 = 0: 11 - (1 - 10)/2 = 15.5; the others are mates: 1 + 10 and -10 - 1
    first = np.array([0.0, 1.0, 1.0])
    got = given_first_advantages(np.array([11.0, 1.0, -10.0]), np.ones(3, bool), first)
    assert got.tolist() == [15.5, 11.0, -11.0]
    # with sample 2 not counted, 0 and 1 are each alone: 11 - 1 and 1 - 11
    got = given_first_advantages(np.array([11.0, 1.0, -10.0]), np.array([True, True, False]), first)
    assert got.tolist() == [10.0, -10.0, 0.0]


def test_token_weights_golden_given_r1():
    # attempt 1 by plain leave-one-out: r1 = 0, 0, 1 -> -0.5, -0.5, 1. Attempt 2: R2 = 11, 0, 1; mates 0 and 1: 11, -11;
    # sample 2 has none: 1 - 11/2 = -4.5. KL of attempt 2 with the same mates: kl = 2, 4, 9, beta 0.5:
    # -0.5 * (2 - 4) = 1, -0.5 * (4 - 2) = -1, -0.5 * (9 - 3) = -3
    rewards = np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    logratios = [[np.zeros(1), np.array([kl])] for kl in (2.0, 4.0, 9.0)]
    credit = Credit((1, 1), (0.5, 0.5), alpha=10, baseline="given_first")
    weights = group_token_weights(rewards, ALL[:3], logratios, credit).weights
    assert [[float(w[0]) for w in sample] for sample in weights] == [[-0.5, 12.0], [-0.5, -12.0], [1.0, -7.5]]


def test_standardised_advantages_are_z_scores_of_the_returns():
    # returns 11, 1, 0, -10: mean 0.5, variance (10.5^2 + 0.5^2 + 0.5^2 + 10.5^2) / 4 = 55.25
    returns = np.array([11.0, 1.0, 0.0, -10.0])
    got = standardised(leave_one_out_advantages(returns, np.ones(4, bool)), np.ones(4, bool))
    np.testing.assert_allclose(got, np.array([10.5, 0.5, -0.5, -10.5]) / np.sqrt(55.25))
    assert standardised(np.zeros(3), np.ones(3, bool)).tolist() == [
        0,
        0,
        0,
    ]  # no variance: nothing, and no division by 0
    rounding = leave_one_out_advantages(np.full(3, 3.3), np.ones(3, bool))
    assert standardised(rounding + 1e-12, np.ones(3, bool)).tolist() == [0, 0, 0]
    assert standardised(np.array([2.0, -2.0, 0.0]), np.array([True, True, False])).tolist() == [1.0, -1.0, 0.0]


def test_standardising_leaves_the_kl_part_as_it_is_and_goes_by_attempt():
    # r1 = 1, 0: A1 = 1, -1 -> 1, -1.  R2 = -10, 11: A2 = -21, 21 -> -1, 1.  KL of attempt 2: -0.5 * (1 - 3) = +1, -1
    rewards = np.array([[1.0, 0.0], [0.0, 1.0]])
    logratios = [[np.zeros(1), np.array([kl])] for kl in (1.0, 3.0)]
    credit = Credit((1, 1), (0.5, 0.5), alpha=10, standardise=True)
    weights = group_token_weights(rewards, ALL[:2], logratios, credit).weights
    assert [[float(w[0]) for w in sample] for sample in weights] == [[1.0, 0.0], [-1.0, 0.0]]


def test_what_standardising_leaves_of_the_bonus_in_a_group_of_two_is_the_sign_of_r1_where_r2_is_equal():
    # A2 = sign(11 dr2 - 10 dr1): that of dr2 where the second attempts differ, else -dr1, a payment for being wrong first
    for pair, expected in (([[0, 1], [0, 0]], 1), ([[1, 1], [0, 0]], 1), ([[0, 1], [1, 1]], 1), ([[0, 1], [0, 1]], 0)):
        weights = group_token_weights(
            np.array(pair, dtype=float), ALL[:2], flat_logratios(pair), Credit((1, 1), (0, 0), 10, standardise=True)
        ).weights
        assert float(weights[0][1][0]) == expected == -float(weights[1][1][0])


def test_token_weights_golden_of_two_trees_with_three_second_attempts():
    # attempt 1: r1 = 1, 0 -> 1, -1, once each. Tree 0, R2 = 11 r2 - 10: -10, 1, -10 -> A = -5.5, 11, -5.5; tree 1,
    # R2 = 11 r2: 11, 11, 0 -> 5.5, 5.5, -11. A third of each: -11/6, 11/3, -11/6; 11/6, 11/6, -11/3
    rewards = np.array([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
    logratios = [[np.zeros(2)] + [np.zeros(1)] * 3] * 2
    weights = tree_token_weights(rewards, rewards >= 0, logratios, Credit((1, 1), (0, 0), alpha=10)).weights
    assert [tree[0].tolist() for tree in weights] == [[1.0, 1.0], [-1.0, -1.0]]
    seconds = [[float(w[0]) for w in tree[1:]] for tree in weights]
    np.testing.assert_allclose(seconds, [[-11 / 6, 11 / 3, -11 / 6], [11 / 6, 11 / 6, -11 / 3]])
    scaled = tree_token_weights(rewards, rewards >= 0, logratios, Credit((1, 11), (0, 0))).weights
    np.testing.assert_allclose(
        [[float(w[0]) for w in t[1:]] for t in scaled], seconds
    )  # - alpha r1 is gone inside a branch


def test_the_kl_of_a_trees_branches_has_its_mates_in_the_branch():
    # attempt 1: kl 1, 2, beta 0.5 -> 0.5, -0.5. Branches of tree 0: kl 3, 5, beta 0.2 -> 0.4, -0.4, halved; tree 1: equal
    rewards = np.zeros((2, 3))
    logratios = [[np.array([x]) for x in row] for row in ((1.0, 3.0, 5.0), (2.0, 9.0, 9.0))]
    weights = tree_token_weights(rewards, rewards == 0, logratios, Credit((1, 1), (0.5, 0.2))).weights
    np.testing.assert_allclose([[float(w[0]) for w in t] for t in weights], [[0.5, 0.2, -0.2], [-0.5, 0, 0]])


def test_a_failed_verdict_in_a_tree_takes_out_what_needs_it():
    rewards = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    valid = np.array([[True, True, True, False], [False, True, True, True], [True, True, True, True]])
    weights = tree_token_weights(rewards, valid, [[np.zeros(1)] * 4] * 3, Credit((1, 1), (0, 0), alpha=10)).weights
    assert [float(t[0][0]) for t in weights] == [1.0, 0.0, -1.0]
    np.testing.assert_allclose([float(w[0]) for w in weights[0][1:]], [11 / 3, -11 / 3, 0])  # 11 * 1 - 11 * 0, a third
    assert [float(w[0]) for w in weights[1][1:]] == [0, 0, 0]  # its bonus would need r1
    np.testing.assert_allclose([float(w[0]) for w in weights[2][1:]], [-11 / 6, -11 / 6, 11 / 3])


def test_adaptive_beta2_moves_a_tenth_towards_its_target_within_bounds():
    assert adapted_scale(1.0, 0.16, 0.1) == pytest.approx(1.1)
    assert adapted_scale(1.0, 0.06, 0.1) == pytest.approx(1 / 1.1)
    assert adapted_scale(2.0, 0.14, 0.1) == adapted_scale(2.0, 0.07, 0.1) == 2.0
    assert adapted_scale(31.0, 9.0, 0.1) == 32.0 and adapted_scale(1 / 31, -1.0, 0.1) == 1 / 32


def test_a_group_of_one_is_refused():
    one = FOUR[:1]
    with pytest.raises(ValueError, match="samples_per_problem >= 2"):
        group_token_weights(one, ALL[:1], flat_logratios(one), Credit((1, 1), (0, 0)))


def test_token_weights_golden_stage_2():
    # r1 = 1, 0 -> A1 = 1, -1.  R2: (1->0) -10, (0->1) 11 -> A2 = -21, 21.  beta = 0
    rewards = np.array([[1.0, 0.0], [0.0, 1.0]])
    weights = group_token_weights(
        rewards, ALL[:2], flat_logratios(rewards, 2), Credit((1, 1), (0, 0), alpha=10)
    ).weights
    assert [[w.tolist() for w in sample] for sample in weights] == [
        [[1.0, 1.0], [-21.0, -21.0]],
        [[-1.0, -1.0], [21.0, 21.0]],
    ]


def test_stage_1_strict_beta_is_on_attempt_1_and_beta1_on_attempt_2():
    # equal rewards, so only KL is left. Attempt 1: kl = 0.3 and 0.1 -> -0.11 * (0.3 - 0.1) = -0.022
    # attempt 2: kl = 1.0 and 3.0 -> -0.01 * (1 - 3) = +0.02
    rewards = np.zeros((2, 2))
    logratios = [[np.array([0.1, 0.2]), np.array([1.0])], [np.array([0.1]), np.array([1.0, 2.0])]]
    weights = group_token_weights(rewards, ALL[:2], logratios, Credit((0, 1), (0.11, 0.01))).weights
    np.testing.assert_allclose(weights[0][0], [-0.022, -0.022])
    np.testing.assert_allclose(weights[0][1], [0.02])
    np.testing.assert_allclose(weights[1][0], [0.022])
    np.testing.assert_allclose(weights[1][1], [-0.02, -0.02])


def test_kl_never_crosses_attempts():
    rewards = np.zeros((2, 2))
    quiet = [[np.zeros(2), np.array([1.0, 2.0])], [np.zeros(2), np.array([5.0, 0.0])]]
    weights = group_token_weights(rewards, ALL[:2], quiet, Credit((1, 1), (0.5, 0.5), gamma=0.0)).weights
    assert all(w == 0 for g in range(2) for w in weights[g][0])


def test_kl_credit_goldens():
    logratio = np.array([1.0, 2.0, 4.0])
    assert kl_per_token_credit(logratio, "sequence").tolist() == [7.0, 7.0, 7.0]
    assert kl_per_token_credit(logratio, "to_go").tolist() == [7.0, 6.0, 4.0]
    assert kl_per_token_credit(logratio, "token").tolist() == [1.0, 2.0, 4.0]


def test_to_go_baseline_is_that_of_the_same_index_and_0_past_the_end():
    # to-go: g0 = (3, 2), g1 = (5,). Baselines: g0 gets (5, 0), g1 gets (3,). beta = 1
    rewards = np.zeros((2, 1))
    logratios = [[np.array([1.0, 2.0])], [np.array([5.0])]]
    weights = group_token_weights(rewards, ALL[:2, :1], logratios, Credit((1,), (1.0,), kl_credit="to_go")).weights
    np.testing.assert_allclose(weights[0][0], [-(3 - 5), -(2 - 0)])
    np.testing.assert_allclose(weights[1][0], [-(5 - 3)])


def test_error_at_attempt_1_takes_the_sample_out_of_both_attempts_while_shaping():
    valid = np.array([[True, True], [False, True], [True, True]])
    assert counted_mask(valid, alpha=10, gamma=0)[1].tolist() == [False, False]
    assert counted_mask(valid, alpha=0, gamma=0)[1].tolist() == [False, True]


def test_error_at_attempt_1_leaves_the_mates_given_r1_unknown():
    valid = np.array([[True, True, True], [False, True, True], [True, True, True]])
    assert counted_mask(valid, 0, 0, "given_first")[1].tolist() == [False, False, False]
    assert counted_mask(valid, 0, 0)[1].tolist() == [False, True, True]


def test_error_at_attempt_2_reaches_attempt_1_only_through_gamma():
    valid = np.array([[True, True], [True, False], [True, True]])
    assert counted_mask(valid, alpha=10, gamma=0)[1].tolist() == [True, False]
    assert counted_mask(valid, alpha=10, gamma=1)[1].tolist() == [False, False]


def test_error_inside_a_group_weighs_nothing_and_leaves_the_others_right():
    rewards = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    valid = np.array([[True, True], [True, False], [True, True]])
    weights = group_token_weights(rewards, valid, flat_logratios(rewards, 1), Credit((1, 1), (0, 0))).weights
    assert [float(weights[g][1][0]) for g in range(3)] == [1.0, 0.0, -1.0]  # attempt 2 without sample 1
    assert [float(weights[g][0][0]) for g in range(3)] == [1.0, -0.5, -0.5]  # attempt 1 with it


def test_zero_variance_is_counted_on_verdicts():
    everyone = np.ones(3, bool)
    assert zero_variance(np.array([1.0, 1.0, 1.0]), everyone)
    assert not zero_variance(np.array([1.0, 0.0, 1.0]), everyone)
    assert zero_variance(np.array([1.0, 0.0, 1.0]), np.array([True, False, True]))


def test_a_given_attempt_gets_no_weight_but_enters_the_bonus():
    rewards = np.array([[1.0, 0.0], [0.0, 1.0]])
    logratios = [[np.zeros(0), np.zeros(1)], [np.zeros(0), np.zeros(1)]]
    weights = group_token_weights(rewards, ALL[:2], logratios, Credit((1, 1), (0, 0), alpha=10)).weights
    assert weights[0][0].size == 0
    assert [float(weights[g][1][0]) for g in range(2)] == [-21.0, 21.0]


binary = arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(1, 4)), elements=st.sampled_from([0.0, 1.0]))


@given(binary)
def test_alpha_0_is_the_identity(rewards):
    ones = np.ones(rewards.shape[1])
    np.testing.assert_array_equal(reward_returns(rewards, ones, 0.0, 0.0), rewards)


@given(binary, st.floats(0, 20))
def test_advantages_of_an_attempt_sum_to_zero(rewards, alpha):
    returns = reward_returns(rewards, np.ones(rewards.shape[1]), alpha, 0.0)
    for k in range(rewards.shape[1]):
        advantages = leave_one_out_advantages(returns[:, k], np.ones(len(rewards), bool))
        assert abs(advantages.sum()) < 1e-9


@given(binary, st.randoms(use_true_random=False))
def test_order_of_samples_does_not_matter(rewards, random):
    order = list(range(len(rewards)))
    random.shuffle(order)
    credit = Credit((1.0,) * rewards.shape[1], (0.1,) * rewards.shape[1], alpha=10)
    logratios = [[np.array([0.1 * g, 0.2 * k]) for k in range(rewards.shape[1])] for g in range(len(rewards))]
    valid = np.ones(rewards.shape, bool)
    straight = group_token_weights(rewards, valid, logratios, credit).weights
    shuffled = group_token_weights(rewards[order], valid, [logratios[i] for i in order], credit).weights
    for place, g in enumerate(order):
        for k in range(rewards.shape[1]):
            np.testing.assert_allclose(shuffled[place][k], straight[g][k], atol=1e-12)


@given(binary)
def test_bonus_sums_to_alpha_times_total_progress(rewards):
    total = shaping_bonus(rewards, 10.0).sum(axis=1)
    np.testing.assert_allclose(total, 10.0 * (rewards[:, -1] - rewards[:, 0]))
