"""Expected gradients by exact enumeration, on a policy small enough to list every pair of episodes.

Two tokens in the vocabulary, two tokens per attempt, two attempts: 16 episodes, 256 groups of two. Every group goes
through the shipped method (``plan``, ``policy_gradient_data``) and the engine's ``forward_backward``; its probability
scales its weights. The sum is the exact expected gradient, and is compared with autograd on the written-out objective.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
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
from selfcorrect.episodes.verdict import graded_verdict
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


def gradient_of(engine, laid_out, total):
    """The gradient of sequences with these weights, to be maximised; by the name of the parameter."""
    engine.forward_backward(
        [Datum(s.tokens_T, total[pair], s.logprobs_T, s.sampled_T) for pair, s in laid_out.items()],
        "importance_sampling",
    )
    gradient = {name: -g.double() for name, g in engine.gradients().items()}
    engine._weights.zero_gradients()
    return gradient


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
    return gradient_of(engine, laid_out, total)


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


# --- the verdict turn ------------------------------------------------------------------------------------------------

JUDGED = list(itertools.product(ANSWERS, (0, 1)))
"""(y1, v): the verdict is one token, 1 for "correct" and 0 for "wrong"."""
ALWAYS = [(y1, v, y2) for y1, v in JUDGED for y2 in ANSWERS]
STOPPED = [(y1, v, y2) for y1, v in JUDGED for y2 in (ANSWERS if v == 0 else [None])]
"""With the stop rule: y2 is None where the verdict is "correct"."""


def verdict_logprobs(model):
    """log pi of the tokens of y1 [2], v [1] and y2 [2] for every path, in float64, with gradient."""
    rows = torch.tensor([(*PROMPT, *y1, *BRIDGE, v, *BRIDGE, *y2) for y1, v, y2 in ALWAYS])
    lps = model(rows).logits.double().log_softmax(-1)
    picked = lps[:, :-1].gather(2, rows[:, 1:, None])[..., 0]
    return {path: (picked[i, 2:4], picked[i, 6:7], picked[i, 9:11]) for i, path in enumerate(ALWAYS)}


def judged_episode(sample, path, lps):
    """As the player would make it: an attempt that was not played has no tokens, and text and grade of attempt 1."""
    y1, v, y2 = path
    lp1, lpv, lp2 = lps[(y1, v, y2 or ANSWERS[0])]

    def right(is_right):
        return Grade(Verdict.CORRECT if is_right else Verdict.WRONG, "x")

    said = ("wrong", "correct")[v]
    first = Attempt("", PROMPT, y1, tuple(lp1.tolist()), "length", right(R1[y1]))
    grade = graded_verdict(said, first.grade, truncated=False)
    asked = (*PROMPT, *y1, *BRIDGE)
    verdict = Attempt(said, asked, (v,), tuple(lpv.tolist()), "length", grade, parent=0, turn="verdict")
    if y2 is None:
        second = Attempt("", None, None, None, "kept", first.grade, source="kept", parent=1)
    else:
        prompt = (*asked, v, *BRIDGE)
        second = Attempt("", prompt, y2, tuple(lp2.tolist()), "length", right(R2[y1, y2]), parent=1)
    return Episode(PROBLEM, sample, (first, verdict, second))


def verdict_gradient(engine, model, credit, paths, size):
    """The expected gradient over all groups of ``size`` paths. Groups that differ in order only are counted, not repeated;
    on policy the gradient is linear in the weights, so those that fall on one path are added up before the pass."""
    with torch.no_grad():
        lps = verdict_logprobs(model)
    episodes = {path: judged_episode(0, path, lps) for path in paths}
    laid = {path: sequences(e)[0] for path, e in episodes.items()}
    reference = dict(zip(paths, engine.logprobs([laid[p] for p in paths], "base"), strict=True))
    chance = {}
    for path in paths:
        lp1, lpv, lp2 = lps[(path[0], path[1], path[2] or ANSWERS[0])]
        chance[path] = float((lp1.sum() + lpv.sum() + (0 if path[2] is None else lp2.sum())).exp())
    assert sum(chance.values()) == pytest.approx(1)
    total = {path: np.zeros(len(laid[path].tokens_T)) for path in paths}
    for group in itertools.combinations_with_replacement(paths, size):
        orders = math.factorial(size) / math.prod(math.factorial(n) for n in Counter(group).values())
        layout = lay_out([[replace(episodes[path], sample=g) for g, path in enumerate(group)]])
        data, _ = policy_gradient_data(layout, layout.by_attempt([reference[path] for path in group]), credit)
        p = orders * math.prod(chance[path] for path in group)
        for path, d in zip(group, data, strict=True):
            total[path] += p * d.weights_T
    engine.forward_backward(
        [Datum(laid[p].tokens_T, total[p], laid[p].logprobs_T, laid[p].sampled_T) for p in paths], "importance_sampling"
    )
    gradient = {n: -g.double() for n, g in engine.gradients().items()}
    engine._weights.zero_gradients()
    return gradient


def exact_verdict_gradient(model, base, credit, paths):
    """Autograd on the objective of ``algorithm/verdicts.py`` as it is written there."""
    lps = verdict_logprobs(model)
    with torch.no_grad():
        refs = verdict_logprobs(base)
    (w1, wv, w2), (b1, bv, b2), alpha = credit.reward_weights_K, credit.kl_weights_K, credit.alpha
    total = torch.zeros((), dtype=torch.float64)
    for y1 in ANSWERS:
        lp1, ref1 = lps[y1, 0, ANSWERS[0]][0], refs[y1, 0, ANSWERS[0]][0]
        p1 = lp1.sum().exp()
        total = total + p1 * (w1 * R1[y1] - b1 * (lp1 - ref1).sum())
        for v in (0, 1):
            lpv, refv = lps[y1, v, ANSWERS[0]][1], refs[y1, v, ANSWERS[0]][1]
            pv = lpv.sum().exp()
            agrees = float(v == R1[y1])
            total = total + p1.detach() * pv * (wv * agrees - bv * (lpv - refv).sum())
            for y2 in ANSWERS if (y1, v, None) not in paths else ():
                lp2, ref2 = lps[y1, v, y2][2], refs[y1, v, y2][2]
                second = w2 * R2[y1, y2] + alpha * (R2[y1, y2] - R1[y1]) - b2 * (lp2 - ref2).sum()
                total = total + (p1 * pv).detach() * lp2.sum().exp() * second
    model.zero_grad()
    total.backward()
    gradient = {n: p.grad.double().clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradient


PAG = stage("pag", "pag")
ANCHORED = stage("pag", "pag", beta1=0.2, verdict_beta=0.5, verdict_weight=2, alpha=3, kl_credit="to_go")


@pytest.mark.parametrize(
    ("credit", "paths", "size"),
    [
        (replace(PAG, stop=False), ALWAYS, 2),
        (PAG, STOPPED, 2),
        (PAG, STOPPED, 3),  # now one, two or three of a group may have played attempt 2
        (ANCHORED, STOPPED, 2),
        (replace(ANCHORED, stop=False), ALWAYS, 2),
    ],
    ids=["always", "stop, pairs", "stop, threes", "stop, KL", "always, KL"],
)
def test_the_verdict_turn_has_the_expected_gradient_of_its_objective(policy, credit, paths, size):
    engine, model, base = policy
    got = verdict_gradient(engine, model, credit, paths, size)
    assert relative_gap(got, exact_verdict_gradient(model, base, credit, paths)) < 1e-4


def test_the_three_turns_are_paid_apart(policy):
    """Each turn's weights alone give that turn's part of the objective, and the stop rule changes attempt 2's alone."""
    engine, model, base = policy
    parts = [Credit(w, (0, 0, 0), verdicts=(1,), stop=True) for w in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    for credit in parts:
        got = verdict_gradient(engine, model, credit, STOPPED, 2)
        assert relative_gap(got, exact_verdict_gradient(model, base, credit, STOPPED)) < 1e-4
    first, verdict, second = (exact_verdict_gradient(model, base, c, STOPPED) for c in parts)
    assert relative_gap(first, exact_verdict_gradient(model, base, parts[0], ALWAYS)) == 0
    assert relative_gap(verdict, exact_verdict_gradient(model, base, parts[1], ALWAYS)) == 0
    assert relative_gap(second, exact_verdict_gradient(model, base, parts[2], ALWAYS)) > 0.1


def test_a_turn_that_is_not_played_has_no_tokens_and_no_weight(policy):
    _, model, _ = policy
    with torch.no_grad():
        lps = verdict_logprobs(model)
    kept, played = ((0, 1), 1, None), ((0, 0), 0, (0, 1))
    layout = lay_out([[judged_episode(g, path, lps) for g, path in enumerate((kept, played))]])
    reference = layout.by_attempt([np.zeros(len(s.tokens_T)) for s in layout.sequences])
    data, report = policy_gradient_data(layout, reference, PAG)
    assert [d.sampled_T.nonzero()[0].tolist() for d in data] == [[3, 4, 7], [3, 4, 7, 10, 11]]
    # attempt 1: right and wrong; both verdicts agree; the lone revision (a return of w r2 + alpha r2) stands against the
    # answer that was kept, whose return is r1
    r2 = R2[(0, 0), (0, 1)]
    assert data[0].weights_T.tolist() == [0, 0, 0, 0.5, 0.5, 0, 0, 0]
    assert data[1].weights_T.tolist() == [0, 0, 0, -0.5, -0.5, 0, 0, 0, 0, 0, *[(2 * r2 - 1) / 2] * 2]
    assert report.kl_K[2] is not None


# --- one expanded first attempt --------------------------------------------------------------------------------------


def one_first_gradient(engine, model, credit, seconds):
    """The expected gradient of one problem's tree with a single first attempt and this many second ones."""
    with torch.no_grad():
        lp1, lp2 = answer_logprobs(model)
    laid_out = {pair: sequences(episode(0, *pair, lp1, lp2))[0] for pair in PAIRS}
    reference = dict(zip(PAIRS, engine.logprobs(list(laid_out.values()), "base"), strict=True))
    total = {pair: np.zeros(len(laid_out[pair].tokens_T)) for pair in PAIRS}
    for y1, *y2s in itertools.product(ANSWERS, repeat=1 + seconds):
        branches = [episode(0, y1, y2, lp1, lp2).attempts for y2 in y2s]
        tree = Episode(PROBLEM, 0, (branches[0][0], *(second for _, second in branches)))
        layout = lay_out([[tree]])
        ref = [
            np.where(s.sampled_T, reference[y1, y2], 0) for s, y2 in zip(layout.sequences, y2s, strict=True)
        ]  # a branch's own sequence: attempt 1 is context of the second one
        data, _ = policy_gradient_data(layout, layout.by_attempt(ref), credit)
        p = float((lp1[y1].sum() + sum(lp2[y1, y2].sum() for y2 in y2s)).exp())
        for y2, d in zip(y2s, data, strict=True):
            total[y1, y2] += p * d.weights_T
    return gradient_of(engine, laid_out, total)


def thinktwice_rows(**settings):
    overrides = ["method=thinktwice", *(f"method.{k}={v}" for k, v in settings.items())]
    (only,) = plan(load_config(None, overrides))
    return only.objective.rows


def test_the_seconds_of_one_first_attempt_have_the_gradient_of_attempt_2_alone(policy):
    engine, model, base = policy
    for settings in ({"standardise": "false"}, {"standardise": "false", "beta1": 0.3}):
        _, seconds = thinktwice_rows(**settings)
        got = one_first_gradient(engine, model, seconds.objective, 3)
        assert relative_gap(got, exact_gradient(model, base, seconds.objective)) < 1e-4


def test_standardised_seconds_of_three_have_that_gradient_times_the_root_of_2(policy):
    """Of three answers one or two are right where anything is learnt, and their spread is then sqrt(2) / 3. So the expected
    advantage is sqrt(2) (1 - P) of a right and - sqrt(2) P of a wrong one, sqrt(2) times that of a reward of 0 or 1."""
    engine, model, base = policy
    _, seconds = thinktwice_rows()
    assert seconds.objective.standardise
    got = one_first_gradient(engine, model, seconds.objective, 3)
    want = exact_gradient(model, base, Credit((0, 1), (0, 0)))
    assert relative_gap(got, {n: math.sqrt(2) * g for n, g in want.items()}) < 1e-4


def test_a_single_first_attempt_with_a_weight_of_its_own_is_refused(policy):
    engine, model, _ = policy
    with pytest.raises(ValueError, match="no baseline"):
        one_first_gradient(engine, model, Credit((1, 1), (0, 0)), 2)
