"""Expected gradients by exact enumeration, on a policy small enough to list every pair of episodes.

Two tokens in the vocabulary, two tokens per attempt, two attempts: 16 episodes, 256 groups of two. Every group goes
through the shipped method (``plan``, ``policy_gradient_data``) and the engine's ``forward_backward``; its probability
scales its weights. The sum is the exact expected gradient, and is compared with autograd on the written-out objective.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tiny
from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.sequences import lay_out, policy_gradient_data, sequences
from selfcorrect.algorithm.stages import plan
from selfcorrect.config import load_config
from selfcorrect.engines.base import AdamParams
from selfcorrect.engines.torch_engine import TorchEngine
from selfcorrect.types import Attempt, Datum, Episode, Grade, Problem, Verdict

PROMPT, BRIDGE = (0, 1, 1), (1, 0)
ANSWERS = list(itertools.product((0, 1), repeat=2))
PAIRS = list(itertools.product(ANSWERS, ANSWERS))
R1 = {(0, 0): 0.0, (0, 1): 1.0, (1, 0): 1.0, (1, 1): 0.0}
R2 = {(y1, y2): float((sum(y1) + 2 * y2[0] + y2[1]) % 3 == 1) for y1, y2 in PAIRS}
PROBLEM = Problem("p", "q", "a")


def make_engine():
    """A policy that has moved off its base: at pi = ref every KL weight is 0 and the anchor cannot be seen."""
    model = tiny.random_model(vocab_size=2, pad_token_id=0, eos_token_id=None, initializer_range=0.2)
    chat = SimpleNamespace(pad_id=0)
    engine = TorchEngine(model, chat, tiny.TorchEngineConfig(device="cpu"))
    engine.snapshot("base")
    base = copy.deepcopy(model)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 2, size=(8, 9))
    push = [
        Datum(t, np.arange(9) / 9.0 * s, np.zeros(9), np.arange(9) > 0)
        for t, s in zip(tokens, (-1, 1) * 4, strict=True)
    ]
    for _ in range(3):
        engine.forward_backward(push, "cross_entropy")
        engine.optim_step(
            AdamParams(0.001)
        )  # every answer keeps a probability of 0.1 to 0.4: no term hides in rounding
    engine.publish()
    return engine, model, base


def answer_logprobs(model):
    """log pi of every answer token: lp1[y1] and lp2[y1, y2], each of shape [2], in float64, with gradient."""
    rows = torch.tensor([(*PROMPT, *y1, *BRIDGE, *y2) for y1, y2 in PAIRS])
    lps = model(rows).logits.double().log_softmax(-1)
    picked = lps[:, :-1].gather(2, rows[:, 1:, None])[..., 0]
    n = len(PROMPT)
    lp1 = {y1: picked[i, n - 1 : n + 1] for i, (y1, _) in enumerate(PAIRS)}
    lp2 = {pair: picked[i, n + 3 : n + 5] for i, pair in enumerate(PAIRS)}
    return lp1, lp2


def episode(sample, y1, y2, lp1, lp2):
    def graded(right):
        return Grade(Verdict.CORRECT if right else Verdict.WRONG, "x")

    first = Attempt("", PROMPT, y1, tuple(lp1[y1].tolist()), "length", graded(R1[y1]))
    second = Attempt(
        "", (*PROMPT, *y1, *BRIDGE), y2, tuple(lp2[y1, y2].tolist()), "length", graded(R2[y1, y2]), parent=0
    )
    return Episode(PROBLEM, sample, (first, second))


def all_groups(engine, model):
    """Every group of two episodes with its reference log-probs and its probability."""
    with torch.no_grad():
        lp1, lp2 = answer_logprobs(model)
    probability = {(y1, y2): float((lp1[y1].sum() + lp2[y1, y2].sum()).exp()) for y1, y2 in PAIRS}
    laid_out = [sequences(episode(0, *pair, lp1, lp2))[0] for pair in PAIRS]
    reference = dict(zip(PAIRS, engine.logprobs(laid_out, "base"), strict=True))
    for a, b in itertools.product(PAIRS, PAIRS):
        group = [episode(0, *a, lp1, lp2), episode(1, *b, lp1, lp2)]
        yield (a, b), group, [reference[a], reference[b]], probability[a] * probability[b]


def expected_gradient(engine, model, credit):
    """Sum over all groups of P(group) * the gradient the shipped code makes of it, sign flipped to an ascent direction."""
    data = []
    for _, group, references, p in all_groups(engine, model):
        layout = lay_out([group])
        made, _ = policy_gradient_data(layout, layout.by_attempt(references), credit)
        data += [Datum(d.tokens_T, d.weights_T * p, d.logprobs_T, d.sampled_T) for d in made]
    engine.forward_backward(data, "importance_sampling")
    gradient = {n: -g.double() for n, g in engine.gradients().items()}
    engine._weights.zero_gradients()
    return gradient


def exact_gradient(model, base, credit, kl_by_token=False):
    """Autograd on the objective as the paper writes it; ``detach`` marks what an attempt's tokens are not paid for."""
    lp1, lp2 = answer_logprobs(model)
    with torch.no_grad():
        ref1, ref2 = answer_logprobs(base)
    (w1, w2), (b1, b2), alpha, gamma = credit.reward_weights_K, credit.kl_weights_K, credit.alpha, credit.gamma
    total = torch.zeros((), dtype=torch.float64)
    for y1 in ANSWERS:
        p1 = lp1[y1].sum().exp()
        later = torch.zeros((), dtype=torch.float64)
        for y2 in ANSWERS:
            p2 = lp2[y1, y2].sum().exp()
            second = w2 * R2[y1, y2] + alpha * (R2[y1, y2] - R1[y1])
            kl2 = (lp2[y1, y2] - ref2[y1, y2]).sum()
            total = total + p1.detach() * p2 * second
            if not kl_by_token:
                total = total - b2 * p1.detach() * p2 * kl2
            later = later + p2.detach() * second
        total = total + p1 * (w1 * R1[y1] + gamma * later.detach())
        if not kl_by_token:
            total = total - b1 * p1 * (lp1[y1] - ref1[y1]).sum()
    if kl_by_token:
        total = (
            total
            - b1 * fixed_state_kl(lp1, ref1)
            - b2
            * sum(
                lp1[y1].sum().exp().detach()
                * fixed_state_kl({y: lp2[y1, y] for y in ANSWERS}, {y: ref2[y1, y] for y in ANSWERS})
                for y1 in ANSWERS
            )
        )
    model.zero_grad()
    total.backward()
    gradient = {n: p.grad.double().clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradient


def fixed_state_kl(lp, ref):
    """KL per token with the probability of reaching the state held fixed: what `token` credit optimises."""
    out = torch.zeros((), dtype=torch.float64)
    for y in ANSWERS:
        p_first = lp[y][0].exp()
        out = out + p_first * lp[y][1].exp().detach() * (lp[y][0] - ref[y][0])
        out = out + p_first.detach() * lp[y][1].exp() * (lp[y][1] - ref[y][1])
    return out


def relative_gap(a, b):
    top = max(float((a[n] - b[n]).abs().max()) for n in a)
    return top / max(float(b[n].abs().max()) for n in b)


def stage(name, method, **settings):
    overrides = [f"method={method}", *(f"method.{k}={v}" for k, v in settings.items())]
    return next(s.objective for s in plan(load_config(None, overrides)) if s.name == name)


LOUD = {"beta1": 0.2, "beta2": 0.7, "alpha": 10}
CASES = {
    "stage1": stage("stage1", "score", **LOUD),
    "stage2": stage("stage2", "score", **LOUD),
    "stage1 to_go": stage("stage1", "score", kl_credit="to_go", **LOUD),
    "stage2 to_go": stage("stage2", "score", kl_credit="to_go", **LOUD),
    "multi_turn": stage("multi_turn", "multi_turn", beta1=0.2),
    "stage2 gamma 1": stage("stage2", "score", gamma=1, **LOUD),
    "stage1 gamma 1": stage("stage1", "score", gamma=1, **LOUD),
    "KL alone, sequence": Credit((0, 0), (1.0, 0.3)),
    "KL alone, to_go": Credit((0, 0), (1.0, 0.3), kl_credit="to_go"),
    "stage2 given r1": stage("stage2", "score", baseline="given_first", **LOUD),
    "stage1 given r1": stage("stage1", "score", baseline="given_first", **LOUD),
    "stage2 scaled": stage("stage2", "score", shaping="scaled", **LOUD),
    "without shaping": stage("stage2", "score", **LOUD | {"alpha": 0}),
    "multi_turn gamma 0.5": stage("multi_turn", "multi_turn", gamma=0.5, beta1=0.2),
}


@pytest.fixture(scope="module")
def policy():
    return make_engine()


@pytest.mark.parametrize("name", CASES)
def test_expected_gradient_is_that_of_the_objective(policy, name):
    engine, model, base = policy
    got, want = expected_gradient(engine, model, CASES[name]), exact_gradient(model, base, CASES[name])
    assert relative_gap(got, want) < 1e-4


def test_token_kl_credit_holds_the_visited_states_fixed_and_is_biased_for_the_sequence_kl(policy):
    engine, model, base = policy
    credit = Credit((0, 0), (1.0, 0.3), kl_credit="token")
    got = expected_gradient(engine, model, credit)
    assert relative_gap(got, exact_gradient(model, base, credit, kl_by_token=True)) < 1e-4
    assert relative_gap(got, exact_gradient(model, base, credit)) > 5e-4


def test_shaping_is_1_plus_alpha_times_r2_in_expectation(policy):
    engine, model, _ = policy
    shaped = expected_gradient(engine, model, Credit((1, 1), (0.2, 0.2), alpha=10))
    weighted = expected_gradient(engine, model, Credit((1, 11), (0.2, 0.2)))
    assert relative_gap(shaped, weighted) < 1e-4
    plain = expected_gradient(engine, model, Credit((1, 1), (0.2, 0.2)))
    assert relative_gap(shaped, plain) > 0.1


def test_scaled_shaping_and_the_progress_bonus_are_one_gradient_in_expectation(policy):
    engine, model, _ = policy
    scaled, progress = (expected_gradient(engine, model, CASES[n]) for n in ("stage2 scaled", "stage2"))
    assert relative_gap(scaled, progress) < 1e-4
    assert relative_gap(scaled, expected_gradient(engine, model, CASES["without shaping"])) > 0.1


def test_standardising_removes_the_scale_of_the_shaping_but_not_its_r1_term(policy):
    engine, model, _ = policy

    def gradient(alpha, shaping="progress"):
        made = stage("stage2", "score", beta1=0, alpha=alpha, shaping=shaping, standardise="true")
        return expected_gradient(engine, model, made)

    plain, scaled, progress = gradient(0), gradient(10, "scaled"), gradient(10)
    assert relative_gap(scaled, plain) < 1e-6  # the factor 11 is gone
    left = relative_gap(progress, plain)
    assert 0.05 < left < 2  # -alpha r1 is no longer a baseline: it pays for a wrong first attempt where r2 is equal
    shaped = expected_gradient(engine, model, Credit((1, 1), (0, 0), alpha=10))
    unshaped = expected_gradient(engine, model, Credit((1, 1), (0, 0)))
    assert relative_gap(shaped, unshaped) > 2 * left


def tree_gradient(engine, model, credit):
    """The expected gradient of one problem's trees: two first attempts with two second attempts each, all 4096 groups.

    On policy the gradient is linear in the weights, so those that fall on one sequence are added up before the pass.
    """
    with torch.no_grad():
        lp1, lp2 = answer_logprobs(model)
    laid_out = {pair: sequences(episode(0, *pair, lp1, lp2))[0] for pair in PAIRS}
    p1 = {y: float(lp1[y].sum().exp()) for y in ANSWERS}
    p2 = {pair: float(lp2[pair].sum().exp()) for pair in PAIRS}
    reference = dict(zip(PAIRS, engine.logprobs(list(laid_out.values()), "base"), strict=True))
    n = len(PROMPT)
    total = {pair: np.zeros(len(laid_out[pair].tokens_T)) for pair in PAIRS}
    trees = [(y1, a, b) for y1 in ANSWERS for a in ANSWERS for b in ANSWERS]
    made = {tree: Episode(PROBLEM, 0, tree_attempts(*tree, lp1, lp2)) for tree in trees}
    # a branch's own sequence: attempt 1 is context of the second one
    ref = {
        t: [
            np.where(s.sampled_T, r, 0)
            for s, r in zip(sequences(made[t]), [reference[t[0], y] for y in t[1:]], strict=True)
        ]
        for t in trees
    }
    for one, two in itertools.product(trees, trees):
        p = np.prod([p1[t[0]] * p2[t[0], t[1]] * p2[t[0], t[2]] for t in (one, two)])
        layout = lay_out([[made[one], replace(made[two], sample=1)]])
        data, _ = policy_gradient_data(layout, layout.by_attempt([*ref[one], *ref[two]]), credit)
        leaves = [(t[0], y2) for t in (one, two) for y2 in t[1:]]
        for leaf, d in zip(leaves, data, strict=True):
            total[leaf] += p * d.weights_T
    assert all(w[:n].sum() == 0 for w in total.values())
    engine.forward_backward(
        [Datum(s.tokens_T, total[pair], s.logprobs_T, s.sampled_T) for pair, s in laid_out.items()],
        "importance_sampling",
    )
    gradient = {name: -g.double() for name, g in engine.gradients().items()}
    engine._weights.zero_gradients()
    return gradient


def tree_attempts(y1, a, b, lp1, lp2):
    first, second = episode(0, y1, a, lp1, lp2).attempts
    return first, second, episode(0, y1, b, lp1, lp2).attempts[1]


@pytest.mark.parametrize("name", ["stage1", "stage2 to_go"])
def test_a_tree_has_the_expected_gradient_of_a_linear_episode(policy, name):
    engine, model, base = policy
    assert relative_gap(tree_gradient(engine, model, CASES[name]), exact_gradient(model, base, CASES[name])) < 1e-4


def test_gamma_1_is_another_gradient_than_gamma_0(policy):
    engine, model, _ = policy
    a, b = (expected_gradient(engine, model, CASES[n]) for n in ("stage2", "stage2 gamma 1"))
    assert relative_gap(a, b) > 0.05


def attempt_weights(engine, model, credit, reward):
    """Weights on attempt 1's tokens over all groups, with rewards given by a function of the pair."""
    found = []
    for pairs, episodes, references, _ in all_groups(engine, model):
        group = [
            replace(e, attempts=(replace(e.attempts[0], grade=Grade(reward(pair), "x")), e.attempts[1]))
            for e, pair in zip(episodes, pairs, strict=True)
        ]
        layout = lay_out([group])
        made, _ = policy_gradient_data(layout, layout.by_attempt(references), credit)
        found += [d.weights_T[len(PROMPT) : len(PROMPT) + 2].copy() for d in made]
    return np.array(found)


def test_stage_1_gives_attempt_1_a_kl_gradient_and_no_reward_gradient(policy):
    engine, model, _ = policy
    credit = CASES["stage1"]
    as_is = attempt_weights(engine, model, credit, lambda pair: Verdict.CORRECT if R1[pair[0]] else Verdict.WRONG)
    flipped = attempt_weights(engine, model, credit, lambda pair: Verdict.WRONG if R1[pair[0]] else Verdict.CORRECT)
    np.testing.assert_array_equal(as_is, flipped)  # attempt 1's verdict is nowhere in its weights
    assert np.abs(as_is).max() > 0.01  # and the anchor pulls
    without = attempt_weights(engine, model, replace(credit, kl_weights_K=(0.0, 0.2)), lambda _: Verdict.WRONG)
    assert np.abs(without).max() == 0


def test_at_the_base_every_stage_1_weight_of_attempt_1_is_0():
    engine, model, _ = make_engine()
    engine.snapshot("base")
    weights = attempt_weights(engine, model, CASES["stage1"], lambda _: Verdict.WRONG)
    assert np.abs(weights).max() < 1e-6  # sampling log-probs are float64 of the model here, the reference float32
