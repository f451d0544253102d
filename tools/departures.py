"""How attempt 2 treats wrong and right first attempts, from the evaluations of runs: the second table of docs/tasks.md."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from selfcorrect.measuring.compare import read_evaluation
from selfcorrect.measuring.intervals import bootstrap_mean


def percent(values: list[bool]) -> str:
    """A share with its bootstrap interval over problems."""
    if not values:
        return "none"
    share = bootstrap_mean(np.array(values, dtype=float), support=(0.0, 1.0))
    return f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def row(run: Path, name: str) -> str:
    """Departs if wrong, breaks if right, t1, t2 and attempts 2 without an answer, as a row of Markdown."""
    episodes = [e.attempts for e in read_evaluation(run, name)]
    wrong = [a for a in episodes if a[0].wrong]
    right = [a for a in episodes if not a[0].wrong]
    cells = [
        percent([a[0].grade.extracted != a[1].grade.extracted for a in wrong]),
        percent([a[1].wrong for a in right]),
        percent([not a[0].wrong for a in episodes]),
        percent([not a[1].wrong for a in episodes]),
        percent([a[1].grade.verdict.value == "no_answer" for a in episodes]),
    ]
    return f"| {run.name} | {name} | " + " | ".join(cells) + " |"


def main() -> None:
    for run in map(Path, sys.argv[1:]):
        for name in ("base", "final"):
            print(row(run, name))


if __name__ == "__main__":
    main()
