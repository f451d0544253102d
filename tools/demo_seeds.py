"""The demo over several seeds and methods at equal budget: runs what is missing, then writes the tables.

    python tools/demo_seeds.py [--seeds 0 1 2 3 4] [--out docs/results/demo] [--runs runs/demo-seeds] [key=value ...]

Two runs at once, one thread each. Learning rates per method are those of ``LEARNING_RATES``, chosen by ``--grid`` on
exploration seeds that are never reported:

    python tools/demo_seeds.py --grid --seeds 100 101 --out docs/results/demo-grid
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from selfcorrect.comparison import compare_runs, read_evaluation
from selfcorrect.metrics import EvalSummary, correctness_matrix
from selfcorrect.records import EndRecord, EvalRecord
from selfcorrect.run import RunDirectory
from selfcorrect.stats import Estimate, bootstrap_mean

METHODS = ("score", "multi_turn", "single_turn")
GRID = (1e-4, 3e-4)
LEARNING_RATES = {"score": 3e-4, "multi_turn": 3e-4, "single_turn": 3e-4}


def run_path(root: Path, method: str, seed: int, rate: float) -> Path:
    return root / f"{method}-lr{rate:g}-s{seed}"


def finished(path: Path) -> bool:
    return path.exists() and any(
        isinstance(r, EndRecord) and r.reason == "finished" for r in RunDirectory.open(path).records()
    )


def launch(path: Path, method: str, seed: int, rate: float, settings: list[str]) -> None:
    """One run in its own process with one thread; an interrupted one is resumed."""
    if finished(path):
        return
    command = [sys.executable, "-c", "from selfcorrect.cli import main; main()", "train"]
    if path.exists():
        command += ["--resume", str(path)]
    else:
        command += [f"method={method}", f"seed={seed}", f"train.learning_rate={rate}", f"run_dir={path}", *settings]
    log = path.parent / f"{path.name}.log"
    with log.open("w") as out:
        code = subprocess.run(
            command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        ).returncode
    if code:
        raise SystemExit(f"{path.name} ended with exit code {code}; see {log}")
    print(f"{path.name} done, load {os.getloadavg()[0]:.1f}", flush=True)


def last_minus(a: Path, b: Path, evaluation_b: str) -> Estimate:
    """Final last-attempt accuracy of run a minus that of an evaluation of run b, paired by problem."""
    left = correctness_matrix(read_evaluation(a, "final"))
    right = correctness_matrix(read_evaluation(b, evaluation_b))
    assert left.problem_ids == right.problem_ids, "measured on different problems"
    return bootstrap_mean(left.correct_NK[:, -1] - right.correct_NK[:, -1], support=(-1, 1))


def summary(path: Path, name: str) -> EvalSummary:
    records = [r for r in RunDirectory.open(path).records() if isinstance(r, EvalRecord) and r.name == name]
    return EvalSummary.from_json(records[-1].summary)


def train_seconds(path: Path) -> float:
    return next(r.train_seconds for r in reversed(RunDirectory.open(path).records()) if isinstance(r, EndRecord))


def seed_row(root: Path, seed: int) -> dict[str, object]:
    """What the demo promises, for one seed."""
    paths = {m: run_path(root, m, seed, LEARNING_RATES[m]) for m in METHODS}
    score = paths["score"]
    base, final, swapped = summary(score, "base"), summary(score, "final"), summary(score, "final-swapped")
    gain = final.accuracy(2).value - base.accuracy(2).value
    return {
        "seed": seed,
        "base t1": base.accuracy(1).text(),
        "base t2": base.accuracy(2).text(),
        **{f"{m} t1": summary(p, "final").accuracy(1).text() for m, p in paths.items()},
        **{f"{m} t2": summary(p, "final").accuracy(2).text() for m, p in paths.items()},
        "score delta": final.delta_first_last.text(sign=True),
        "multi_turn delta": summary(paths["multi_turn"], "final").delta_first_last.text(sign=True),
        "score t1 - base t1": f"{100 * (final.accuracy(1).value - base.accuracy(1).value):+.1f}",
        "score t2 - base t2": last_minus(score, score, "base").text(sign=True),
        "score t2 - single_turn t2": last_minus(score, paths["single_turn"], "final").text(sign=True),
        "score t2 - multi_turn t2": last_minus(score, paths["multi_turn"], "final").text(sign=True),
        "score t2, attempt 1 swapped": swapped.accuracy(2).text(),
        "gain lost when swapped": f"{100 * (final.accuracy(2).value - swapped.accuracy(2).value) / (100 * gain):.0%}",
        "train seconds": " / ".join(f"{train_seconds(p):.0f}" for p in paths.values()),
    }


def markdown(rows: list[dict[str, object]]) -> str:
    """Transposed: one line per quantity, one column per seed."""
    lines = ["| | " + " | ".join(f"seed {r['seed']}" for r in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    lines += [f"| {key} | " + " | ".join(str(r[key]) for r in rows) + " |" for key in rows[0] if key != "seed"]
    return "\n".join(lines)


def across(paths: list[Path]) -> str:
    lines = ["| | t1 | t2 | delta | t2 - base t2 | seeds | problems |", "|---|---|---|---|---|---|---|"]
    for row in compare_runs(paths):
        cells = [row.t1.text(), row.t2.text(), row.delta.text(sign=True), row.t2_over_base.text(sign=True)]
        lines.append(f"| {row.name} | " + " | ".join(cells) + f" | {row.seeds} | {row.problems} |")
    return "\n".join(lines)


def grid_report(root: Path, seeds: list[int]) -> str:
    lines = [
        "| method | learning rate | " + " | ".join(f"t1 / t2, seed {s}" for s in seeds) + " | mean t2 |",
        "|---" * (len(seeds) + 3) + "|",
    ]
    for method in METHODS:
        for rate in GRID:
            finals = [summary(run_path(root, method, s, rate), "final") for s in seeds]
            cells = [f"{100 * f.accuracy(1).value:.1f} / {100 * f.accuracy(2).value:.1f}" for f in finals]
            mean = 100 * float(np.mean([f.accuracy(2).value for f in finals]))
            lines.append(f"| {method} | {rate:g} | " + " | ".join(cells) + f" | {mean:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs/demo-seeds"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/demo"))
    arguments, settings = parser.parse_known_args()
    root: Path = arguments.runs
    root.mkdir(parents=True, exist_ok=True)
    rates = {m: GRID if arguments.grid else (LEARNING_RATES[m],) for m in METHODS}
    todo = [(run_path(root, m, s, r), m, s, r) for s in arguments.seeds for m in METHODS for r in rates[m]]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: launch(*job, settings), todo))
    command = "python tools/demo_seeds.py " + " ".join(sys.argv[1:])
    if arguments.grid:
        body = grid_report(root, arguments.seeds)
    else:
        rows = [seed_row(root, s) for s in arguments.seeds]
        arguments.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        paths = [run_path(root, m, s, LEARNING_RATES[m]) for m in METHODS for s in arguments.seeds]
        body = (
            "Over seeds (t-interval on the seeds' means; the base is one model, its interval is over problems):\n\n"
            f"{across(paths)}\n\nPer seed (bootstrap over problems, paired where two are subtracted; train seconds: "
            f"{' / '.join(METHODS)}):\n\n{markdown(rows)}"
        )
    arguments.out.with_suffix(".md").write_text(f"Command: `{command}`. Percent, 95 % intervals.\n\n{body}\n")
    print(body)


if __name__ == "__main__":
    main()
