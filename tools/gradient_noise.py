"""Noise of Stage II's gradient by estimator, on real models: who estimates attempt 2's gradient best from equal responses?

    python tools/gradient_noise.py MODEL_OR_RUN... [--steps 40] [settings: key=value]

For every model, ``--steps`` independent batches are played with the model as the policy and as the reference, and turned
into attempt 2's gradient by each estimator. The estimators on linear episodes get the same episodes; trees get as many
responses. Printed: the trace of the covariance of a step's gradient over its squared length (below 1 a step shows more
signal than noise), with a 95 % jackknife interval over the batches.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.sequences import lay_out, policy_gradient_data
from selfcorrect.config import load_config
from selfcorrect.engines.torch_engine import TorchEngine
from selfcorrect.episodes.play import Play, play
from selfcorrect.experiment import make_engine, prepare
from selfcorrect.types import BASE

PAPER = Credit((0, 1), (0.0, 0.01), alpha=10.0)
"""Of Stage II, without attempt 1's reward and KL: what is left is attempt 2's gradient."""
SCALED = Credit((0, 11), (0.0, 0.01))
LINEAR = {
    "alpha (r2 - r1), the paper": PAPER,
    "(1 + alpha) r2 alone": SCALED,
    "the paper, baseline given r1": replace(PAPER, baseline="given_first"),
    "(1 + alpha) r2, baseline given r1": replace(SCALED, baseline="given_first"),
}
BRANCHES = 3
TREES = f"trees of {BRANCHES} branches"


def gradient(engine: TorchEngine, groups, credit: Credit) -> torch.Tensor:
    layout = lay_out(groups)
    reference = layout.by_attempt(engine.logprobs(layout.sequences, BASE))
    data, _ = policy_gradient_data(layout, reference, credit)
    engine.forward_backward(data, "importance_sampling")
    flat = torch.cat([g.flatten() for g in engine.gradients().values()]).double()
    engine._weights.zero_gradients()
    return flat


def ratio(gram: np.ndarray) -> float:
    """Unbiased trace of the covariance over the unbiased squared length of the mean, from inner products; shape [B, B]."""
    n = len(gram)
    diagonal = float(np.trace(gram))
    signal = (float(gram.sum()) - diagonal) / (n * (n - 1))
    return (diagonal / n - signal) / signal


def with_interval(gradients: list[torch.Tensor]) -> str:
    g = torch.stack(gradients)
    gram = (g @ g.T).numpy()
    n = len(gram)
    left_out = np.array([ratio(np.delete(np.delete(gram, i, 0), i, 1)) for i in range(n)])
    error = float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))
    value = ratio(gram)
    return f"{value:.2f} [{value - 1.96 * error:.2f}, {value + 1.96 * error:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_intermixed_args()
    settings = [a for a in arguments.models if "=" in a]
    print("| model | P(r1), P(r2) | " + " | ".join([*LINEAR, TREES]) + " |")
    print("|---" * (len(LINEAR) + 3) + "|")
    for model in [a for a in arguments.models if "=" not in a]:
        config = load_config(None, [f"model={model}", *settings])
        job = prepare(config)
        engine = make_engine(job)
        assert isinstance(engine, TorchEngine)
        engine.snapshot(BASE)
        problems = job.task.problems("train")
        size, samples, cap = (
            config.train.problems_per_step,
            config.train.samples_per_problem,
            config.play.max_new_tokens,
        )
        found: dict[str, list[torch.Tensor]] = {name: [] for name in [*LINEAR, TREES]}
        rewards = []
        for step in range(arguments.steps):
            chosen = np.random.default_rng((config.seed, step)).choice(len(problems), size, replace=False)
            batch = [problems[i] for i in chosen]
            how = Play(2, samples, cap, 1.0, (config.seed, "noise", step))
            groups = asyncio.run(play(engine, job.task, batch, how))
            rewards += [e.rewards_K for group in groups for e in group]
            for name, credit in LINEAR.items():
                found[name].append(gradient(engine, groups, credit))
            trees = replace(how, samples=samples * 2 // (1 + BRANCHES), branches=BRANCHES)
            found[TREES].append(gradient(engine, asyncio.run(play(engine, job.task, batch, trees)), PAPER))
        r1, r2 = np.mean(rewards, axis=0)
        cells = " | ".join(with_interval(g) for g in found.values())
        print(f"| {Path(model).name} | {r1:.2f}, {r2:.2f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
