"""What the progress bonus does beyond weighting, on the two-attempt toy of the tests: expectation exact, variance measured.

    python tools/shaping.py [--batches 4000]

Prints the tables of docs/shaping.md. The policy is that of tests/test_exact_gradient.py (a Llama of a few thousand
parameters, two tokens, two attempts: 16 episodes), moved off its base. On policy the gradient of a group is a sum of
score vectors, grad log pi(y1) and grad log pi(y2 | y1), times the shipped weights, so all lengths and angles follow
from the 20 x 20 table of their inner products.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from selfcorrect.algorithm.credit import Credit  # noqa: E402
from selfcorrect.algorithm.trees import tree_token_weights  # noqa: E402
from selfcorrect.algorithm.weights import group_token_weights  # noqa: E402
from selfcorrect.measuring.intervals import bootstrap_mean  # noqa: E402
from test_exact_gradient import ANSWERS, PAIRS, R1, R2, answer_logprobs, make_engine  # noqa: E402  (found by the path)

ALPHA, BETA = 10.0, 0.01
PROGRESS = Credit((1, 1), (BETA, BETA), alpha=ALPHA)
SCALED = Credit((1, 1 + ALPHA), (BETA, BETA))
CREDITS = {
    "alpha (r2 - r1), the paper": PROGRESS,
    "(1 + alpha) r2 alone": SCALED,
    "the paper, baseline given r1": replace(PROGRESS, baseline="given_first"),
    "(1 + alpha) r2, baseline given r1": replace(SCALED, baseline="given_first"),
}
"""One gradient in expectation."""
OTHERS = {
    "no shaping": Credit((1, 1), (BETA, BETA)),
    "the paper, standardised": replace(PROGRESS, standardise=True),
    "the paper, gamma 1": replace(PROGRESS, gamma=1.0),
}
GROUP, TREES, BRANCHES = 8, 4, 3
"""8 episodes, or 4 trees of 3 branches: 16 responses either way."""


@dataclass(frozen=True)
class Toy:
    """A policy as numbers."""

    gram: np.ndarray
    """Inner products of the score vectors: 4 of attempt 1, then 16 of attempt 2."""
    p1: np.ndarray
    p2: np.ndarray
    """p(y1), shape [4]; p(y2 | y1), shape [4, 4]."""
    kl1: np.ndarray
    kl2: np.ndarray
    """Summed lp - ref of the answers, the same shapes."""

    def rates(self, r2: np.ndarray) -> tuple[float, float]:
        """P(r1 = 1) and P(r2 = 1)."""
        return float(self.p1 @ first_rewards()), float(self.p1 @ (self.p2 * r2).sum(1))

    def best_coefficient(self, r2: np.ndarray) -> float:
        """The c for which (1 + alpha) r2 - c r1 has the least noise, in large groups and without KL.

        Noise is E[(R - E R)^2 |score|^2], so c is a regression slope in which an episode counts p |score of y2|^2. The
        bonus has c = alpha; it beats c = 0 where the best c is above alpha / 2.
        """
        m1, m2 = self.rates(r2)
        norms = self.gram.diagonal()[4:].reshape(4, 4)
        w = self.p1[:, None] * self.p2 * norms
        d1 = np.broadcast_to(first_rewards()[:, None] - m1, w.shape)
        return float((1 + ALPHA) * (w * d1 * (r2 - m2)).sum() / (w * d1**2).sum())


def first_rewards() -> np.ndarray:
    return np.array([R1[y] for y in ANSWERS])


def make_toy() -> Toy:
    _, model, base = make_engine()
    lp1, lp2 = answer_logprobs(model)
    with torch.no_grad():
        ref1, ref2 = answer_logprobs(base)
    outputs = [lp1[y].sum() for y in ANSWERS] + [lp2[pair].sum() for pair in PAIRS]
    parameters = list(model.parameters())
    rows = []
    for value in outputs:
        grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads, strict=True)]
            )
        )
    scores = torch.stack(rows).double()
    p = np.exp([float(v.detach()) for v in outputs])
    kl = [float((lp1[y] - ref1[y]).detach().sum()) for y in ANSWERS]
    kl2 = [float((lp2[pair] - ref2[pair]).detach().sum()) for pair in PAIRS]
    n = len(ANSWERS)
    return Toy((scores @ scores.T).numpy(), p[:n], p[n:].reshape(n, n), np.array(kl), np.array(kl2).reshape(n, n))


def second_rewards(toy: Toy) -> dict[str, np.ndarray]:
    """Who is right at attempt 2: the tests' rule, and three situations of a run. Shape [4, 4] each."""
    rare = toy.p2 == toy.p2.min(axis=1, keepdims=True)
    follows = np.where(rare, 1 - first_rewards()[:, None], first_rewards()[:, None])
    return {
        "the tests' rule": np.array([[R2[a, b] for b in ANSWERS] for a in ANSWERS]),
        "attempt 2 mostly wrong": rare.astype(float),
        "attempt 2 mostly right": (~rare).astype(float),
        "attempt 2 mostly as right as attempt 1": follows,
    }


def linear(toy: Toy, r2: np.ndarray, credit: Credit, firsts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Coefficients of the score vectors in the gradient of one group of episodes; shape [20]."""
    rewards_GK = np.stack([first_rewards()[firsts], r2[firsts, seconds]], axis=1)
    ratios = [[np.array([toy.kl1[a]]), np.array([toy.kl2[a, b]])] for a, b in zip(firsts, seconds, strict=True)]
    weights = group_token_weights(rewards_GK, rewards_GK >= 0, ratios, credit).weights
    out = np.zeros(20)
    for a, b, (w1, w2) in zip(firsts, seconds, weights, strict=True):
        out[a] += w1[0] / len(firsts)
        out[4 + 4 * a + b] += w2[0] / len(firsts)
    return out


def tree(toy: Toy, r2: np.ndarray, credit: Credit, firsts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The same of one group of trees; ``seconds`` has shape [G, M]."""
    rewards_GM = np.concatenate([first_rewards()[firsts][:, None], r2[firsts[:, None], seconds]], axis=1)
    ratios = [
        [np.array([toy.kl1[a]]), *(np.array([toy.kl2[a, b]]) for b in row)]
        for a, row in zip(firsts, seconds, strict=True)
    ]
    weights = tree_token_weights(rewards_GM, rewards_GM >= 0, ratios, credit).weights
    out = np.zeros(20)
    for a, row, (w1, *w2) in zip(firsts, seconds, weights, strict=True):
        out[a] += w1[0] / len(firsts)
        for b, w in zip(row, w2, strict=True):
            out[4 + 4 * a + b] += w[0] / len(firsts)
    return out


def enumerated(toy: Toy, r2: np.ndarray, credit: Credit) -> tuple[np.ndarray, np.ndarray]:
    """All groups of two: their probabilities, shape [256], and coefficients, shape [256, 20]."""
    pairs = list(itertools.product(range(4), range(4)))
    p = {pair: toy.p1[pair[0]] * toy.p2[pair] for pair in pairs}
    groups = list(itertools.product(pairs, pairs))
    made = [linear(toy, r2, credit, np.array([a[0], b[0]]), np.array([a[1], b[1]])) for a, b in groups]
    return np.array([p[a] * p[b] for a, b in groups]), np.array(made)


def expected(toy: Toy, r2: np.ndarray, credit: Credit) -> np.ndarray:
    """Exact expected coefficients; without standardising they do not depend on the size of the group."""
    p, made = enumerated(toy, r2, credit)
    return p @ made


def length(toy: Toy, c: np.ndarray) -> float:
    return float(np.sqrt(max(c @ toy.gram @ c, 0.0)))


def part(c: np.ndarray, attempt: int) -> np.ndarray:
    """Only the coefficients of one attempt."""
    out = np.zeros_like(c)
    where = slice(0, 4) if attempt == 1 else slice(4, 20)
    out[..., where] = c[..., where]
    return out


def draw(toy: Toy, rng: np.random.Generator, branches: int | None) -> tuple[np.ndarray, np.ndarray]:
    """A sampled group: first answers [G], second ones [G] or [G, M]."""
    firsts = rng.choice(4, size=GROUP if branches is None else TREES, p=toy.p1 / toy.p1.sum())
    rows = toy.p2[firsts] / toy.p2[firsts].sum(1, keepdims=True)
    seconds = np.array([rng.choice(4, size=branches or 1, p=row) for row in rows])
    return firsts, seconds if branches is not None else seconds[:, 0]


def squared_noise(toy: Toy, c: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Squared distance of attempt 2's part from its expectation, for each row of coefficients."""
    d = part(c, 2) - part(mean, 2)
    return np.einsum("ni,ij,nj->n", d, toy.gram, d)


def expectation_table(toy: Toy, r2: np.ndarray) -> list[str]:
    paper = expected(toy, r2, PROGRESS)
    lines = [
        "| Stage II with | attempt 1: length / the paper's | cosine | attempt 2: length / the paper's | cosine | gap to the paper's gradient |",
        "|---|---|---|---|---|---|",
    ]
    for name, credit in {**CREDITS, **OTHERS}.items():
        c = expected(toy, r2, credit)
        cells = []
        for attempt in (1, 2):
            a, b = part(c, attempt), part(paper, attempt)
            cells += [
                f"{length(toy, a) / length(toy, b):.4f}",
                f"{a @ toy.gram @ b / length(toy, a) / length(toy, b):+.4f}",
            ]
        lines.append(f"| {name} | {' | '.join(cells)} | {length(toy, c - paper) / length(toy, paper):.1e} |")
    return lines


def variance_table(toy: Toy, batches: int) -> list[str]:
    lines = [
        "| situation | P(r1), P(r2) | best c | " + " | ".join(CREDITS) + f" | {TREES} trees of {BRANCHES} |",
        "|---" * (len(CREDITS) + 4) + "|",
    ]
    for situation, r2 in second_rewards(toy).items():
        mean = expected(toy, r2, PROGRESS)
        signal = length(toy, part(mean, 2)) ** 2
        cells = [
            noise_text(toy, lambda rng, c=credit, r=r2: linear(toy, r, c, *draw(toy, rng, None)), mean, signal, batches)
            for credit in CREDITS.values()
        ]
        cells.append(
            noise_text(toy, lambda rng, r=r2: tree(toy, r, PROGRESS, *draw(toy, rng, BRANCHES)), mean, signal, batches)
        )
        m1, m2 = toy.rates(r2)
        best = toy.best_coefficient(r2)
        lines.append(f"| {situation} | {m1:.2f}, {m2:.2f} | {best:+.1f} | {' | '.join(cells)} |")
    return lines


def noise_text(
    toy: Toy, sample: Callable[[np.random.Generator], np.ndarray], mean: np.ndarray, signal: float, batches: int
) -> str:
    """Variance of attempt 2's gradient (trace) over its squared length, with a 95 % bootstrap interval over batches."""
    rng = np.random.default_rng(0)
    noise = squared_noise(toy, np.array([sample(rng) for _ in range(batches)]), mean) / signal
    return bootstrap_mean(noise, resamples=2000).text(scale=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=4000)
    batches = parser.parse_args().batches
    toy = make_toy()
    print("In expectation (exact, all 256 groups of two, the tests' rule for r2):\n")
    print("\n".join(expectation_table(toy, second_rewards(toy)["the tests' rule"])))
    print(
        f"\nVariance of attempt 2's gradient / its squared length ({batches} groups of {2 * GROUP} responses each):\n"
    )
    print("\n".join(variance_table(toy, batches)))


if __name__ == "__main__":
    main()
