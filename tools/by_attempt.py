"""Accuracy after every attempt, and how Stage I ended, from finished runs: the numbers of docs/results/options.md.

    python tools/by_attempt.py runs/options/*

Runs whose names differ only in ``-s<seed>`` are one row, with a t-interval over its seeds.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from selfcorrect.measuring.compare import read_evaluation
from selfcorrect.measuring.intervals import Estimate, across_seeds
from selfcorrect.measuring.metrics import correctness_matrix
from selfcorrect.records.lines import StepRecord
from selfcorrect.records.run_directory import RunDirectory


def accuracies(run: Path, name: str) -> list[float]:
    """Accuracy after each attempt, then the last minus the first."""
    by_attempt = np.nanmean(correctness_matrix(read_evaluation(run, name)).correct_NK, axis=0)
    return [*by_attempt, by_attempt[-1] - by_attempt[0]]


def cell(found: Estimate) -> str:
    """In percent."""
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def end_of_stage1(run: Path) -> str:
    """KL of the held attempts, reward of the last one and factor of beta2, over the last 20 steps of Stage I."""
    records = RunDirectory.open(run).records()
    steps = [r for r in records if isinstance(r, StepRecord) and r.stage == "stage1"][-20:]
    if not steps:
        return ""
    kl, reward = np.mean([r.kl[:-1] for r in steps]), np.mean([r.reward[-1] for r in steps])
    return f"{run.name}: held KL {kl:.3f} nats, last reward {reward:.3f}, beta2 times {steps[-1].beta2_scale or 1:.1f}"


def main() -> None:
    runs = [Path(name) for name in sys.argv[1:]]
    rows: dict[str, list[list[float]]] = defaultdict(list)
    for run in runs:
        rows[re.sub(r"-s\d+$", "", run.name)].append(accuracies(run, "final"))
    base = accuracies(runs[0], "base")
    heads = [f"t{k}" for k in range(1, len(base))] + ["last - t1"]
    print(f"| | {' | '.join(heads)} | seeds |\n|{'---|' * (len(heads) + 2)}")
    print(f"| base | {' | '.join(f'{100 * value:.1f}' for value in base)} | |")
    for name, found in rows.items():
        cells = [cell(across_seeds(np.array(column))) for column in zip(*found, strict=True)]
        print(f"| {name} | {' | '.join(cells)} | {len(found)} |")
    print(*filter(None, map(end_of_stage1, runs)), sep="\n")


if __name__ == "__main__":
    main()
