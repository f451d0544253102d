"""The same SCoRe run on the torch engine and on SkyRL's Tinker server, there also at a learning rate scaled to its adapters,
and once with the server killed in the middle.

    python tools/skyrl_run.py [--seeds 3] [--steps 100] [--python python3.12] [--out docs/results/skyrl.json]

The embedded model with LoRA on arithmetic, 64 episodes a step. The server is that of ``make conformance-skyrl`` (built, started
and stopped here, JAX on the CPU); it is given the model's directory. In the last run the server's processes are killed
with SIGKILL between two checkpoints and started again on the same port: the run has to go on by itself, and its final
adapter and records must be those of the undisturbed run with the same seed. Needs the extra ``skyrl``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from conformance_skyrl import HOME, SERVER_PYTHON, build, free_port, start, stop
from selfcorrect.engines.models import resolve_model
from selfcorrect.engines.tinker_engine.cluster import SKYRL, Cluster, recipe
from selfcorrect.measuring.compare import compare_runs, paired_estimate, per_problem, read_measured
from selfcorrect.records.lines import StartRecord, StepRecord
from selfcorrect.records.run_directory import RunDirectory

RANK = 8
CHECKPOINT_EVERY = 10
SETTINGS = (
    "task=arithmetic",
    f"model.lora_rank={RANK}",
    "model.lora_alpha=32",
    "train.problems_per_step=8",
    "train.samples_per_problem=8",
    "play.max_new_tokens=16",
    "train.warmup_steps=4",
    f"train.checkpoint_every={CHECKPOINT_EVERY}",
    "eval.problems=1000",
    "eval.controls=false",
)
LEARNING_RATE = 1e-3
SCALE = 6**-0.5
"""Of the learning rate in the row ``skyrl-scaled``: SkyRL's JAX backend draws the random half of an adapter sqrt(6) times as
wide as PEFT does, and Adam then moves the policy about that much farther."""
SETS = ("torch", "skyrl", "skyrl-scaled")
POINTS = {"t1": (-1, 1), "t2": (-1, 1), "delta": (-2, 2)}
"""What is compared between the engines, with the range of a problem's difference."""


def command(run_dir: Path, seed: int, settings: Sequence[str]) -> list[str]:
    """A training run; what it prints goes to a log beside it."""
    return [sys.executable, "-m", "selfcorrect", "train", *SETTINGS, *settings, f"seed={seed}", f"run_dir={run_dir}"]


def begin(run_dir: Path, seed: int, settings: Sequence[str]) -> subprocess.Popen[bytes]:
    shutil.rmtree(run_dir, ignore_errors=True)
    print(f"{run_dir.name} ...", flush=True)
    with run_dir.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command(run_dir, seed, settings), stdout=log, stderr=log)


def finish(process: subprocess.Popen[bytes], run_dir: Path) -> None:
    if process.wait() != 0:
        sys.exit(f"{run_dir.name} failed; see {run_dir.with_suffix('.log')}")


def step_records(run_dir: Path) -> list[StepRecord]:
    return [r for r in RunDirectory.open(run_dir).records() if isinstance(r, StepRecord)]


def steps_of(run_dir: Path) -> list[dict[str, Any]]:
    """Step records without their wall seconds."""
    return [r.model_copy(update={"seconds": {}}).model_dump() for r in step_records(run_dir)]


def starts(run_dir: Path) -> list[StartRecord]:
    return [r for r in RunDirectory.open(run_dir).records() if isinstance(r, StartRecord)]


def wait_for_step(process: subprocess.Popen[bytes], run_dir: Path, step: int) -> None:
    while process.poll() is None:
        if (run_dir / "metrics.jsonl").exists() and len(steps_of(run_dir)) >= step:
            return
        time.sleep(0.5)
    sys.exit(f"{run_dir.name} ended before step {step}; see {run_dir.with_suffix('.log')}")


def kill(server: subprocess.Popen[bytes]) -> None:
    """All its processes at once, as a crash of the machine would."""
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def disturbed(
    run_dir: Path, settings: Sequence[str], server: subprocess.Popen[bytes], url: str, at: int
) -> subprocess.Popen[bytes]:
    """Kill the server after step ``at`` of a run with seed 0 and start it again; returns the new server."""
    process = begin(run_dir, 0, settings)
    wait_for_step(process, run_dir, at)
    kill(server)
    print(f"  server killed after step {len(steps_of(run_dir))}", flush=True)
    server = start(HOME, url, fresh=False)
    finish(process, run_dir)
    return server


def same_run(run_dir: Path, other: Path) -> dict[str, Any]:
    """How a disturbed run compares with the undisturbed one."""
    ours, theirs = (load_file(d / "model/adapter_model.safetensors") for d in (run_dir, other))
    a, b = steps_of(run_dir), steps_of(other)
    return {
        "resumed_from_step": [r.resumed_from_step for r in starts(run_dir)],
        "steps": len(a),
        "records_equal": a == b,
        "largest_weight_difference": max(float(np.abs(ours[n] - theirs[n]).max()) for n in ours),
    }


def compared(folder: Path, seeds: int) -> dict[str, Any]:
    """A row for every set of runs, and both of SkyRL minus torch, paired by problem and seed."""
    runs = {name: [folder / f"{name}-s{seed}" for seed in range(seeds)] for name in SETS}
    labels = [name for name in SETS for _ in range(seeds)]
    out: dict[str, Any] = {
        "rows": [row.to_json() for row in compare_runs([d for name in SETS for d in runs[name]], labels)]
    }
    for name in SETS[1:]:
        pairs = [
            (read_measured(a).final, read_measured(b).final) for a, b in zip(runs["torch"], runs[name], strict=True)
        ]
        out[f"{name}_minus_torch"] = {
            q: paired_estimate(
                [per_problem(a, q) for a, _ in pairs], [per_problem(b, q) for _, b in pairs], span
            ).to_json()
            for q, span in POINTS.items()
        }
    return out


def seconds_per_step(run_dir: Path) -> float:
    """Median over the steps: the first ones compile."""
    return float(np.median([sum(r.seconds.values()) for r in step_records(run_dir)]))


def early_kl(run_dir: Path) -> float:
    """Nats of attempt 2 from the base, mean over steps 9 to 24: how far one learning rate moves the policy."""
    return float(np.mean([r.kl[1] for r in step_records(run_dir)[8:24]]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--python", default=SERVER_PYTHON, help="for the server's environment")
    parser.add_argument("--torch", default="torch==2.13.0", help="installed first")
    parser.add_argument("--runs", type=Path, default=Path("runs/skyrl"), help="directory of the runs")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    asked = parser.parse_args()
    asked.runs.mkdir(parents=True, exist_ok=True)
    model, port = resolve_model("tiny").path_or_id, free_port()
    url = f"http://127.0.0.1:{port}"
    build(HOME, recipe(Cluster(model, rank=RANK, port=port)).files, asked.python, asked.torch)
    length = f"train.steps={asked.steps}"
    rate, scaled = (f"train.learning_rate={r:.6g}" for r in (LEARNING_RATE, LEARNING_RATE * SCALE))
    on_torch = (f"model={model}", "model.dtype=float32", length, rate)
    on_server = (f"model={model}", "engine=tinker", f"engine.base_url={url}", length)
    on_skyrl = (*on_server, rate)
    for seed in range(asked.seeds):
        finish(begin(asked.runs / f"torch-s{seed}", seed, on_torch), asked.runs / f"torch-s{seed}")
    server = start(HOME, url)
    try:
        for name, settings in (("skyrl", on_skyrl), ("skyrl-scaled", (*on_server, scaled))):
            for seed in range(asked.seeds):
                finish(begin(asked.runs / f"{name}-s{seed}", seed, settings), asked.runs / f"{name}-s{seed}")
        middle = asked.steps // 2 + CHECKPOINT_EVERY // 2  # between two checkpoints
        server = disturbed(asked.runs / "skyrl-killed", on_skyrl, server, url, middle)
    finally:
        stop(server)
    result = {
        "settings": [*SETTINGS, length],
        "learning_rates": dict(zip(SETS, (LEARNING_RATE, LEARNING_RATE, LEARNING_RATE * SCALE), strict=True)),
        "episodes_per_step": 64,
        "versions": starts(asked.runs / "skyrl-s0")[0].versions | {"skyrl": SKYRL.partition("==")[2]},
        "notes": starts(asked.runs / "skyrl-s0")[0].engine["notes"],
        "seconds_per_step": {e: seconds_per_step(asked.runs / f"{e}-s0") for e in ("torch", "skyrl")},
        "kl_2_steps_9_to_24": {
            name: [early_kl(asked.runs / f"{name}-s{seed}") for seed in range(asked.seeds)] for name in SETS
        },
        **compared(asked.runs, asked.seeds),
        "killed": same_run(asked.runs / "skyrl-killed", asked.runs / "skyrl-s0"),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n")
    alike = result["killed"]["records_equal"] and result["killed"]["largest_weight_difference"] == 0
    return 0 if alike else 1


if __name__ == "__main__":
    sys.exit(main())
