"""How the time and memory of a step grow: SmolLM2-135M, one axis at a time around a base point, and the fitted model.

    python benchmarks/growth.py [--dtype float32|bfloat16] [--lora RANK] [--steps 2] [--out FILE.json]
    python benchmarks/growth.py --quick
    python benchmarks/growth.py --write-page

Every point runs in its own process, so that its peak memory is its own: one warm-up step, then the timed ones. The whole run
takes about 20 minutes on two idle cores and has no bound to fail: it prints each measurement with what ``cost_model.py``
predicts after its prices were fitted to the same points. ``--quick`` takes two minutes on a smaller base, as a check that it
works. ``--write-page`` measures nothing: it writes the numbers of docs/results/growth.json, and the predictions for larger
models, into docs/cost.md. Run it on a quiet machine: the load average is recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cost_model as cm
from cost_page import PAGE, measured_tables, page
from growth_fit import RESULT, analyse
from work import Work, mean_seconds, play_step

BASE = Work(problems=4, samples=4, attempts=2, prompt_tokens=64, answer_tokens=32, bridge_tokens=16)
AXES = {
    "samples": (2, 4, 6, 8),
    "attempts": (1, 2, 3),
    "prompt_tokens": (32, 64, 128, 256),
    "answer_tokens": (16, 32, 64, 96),
}
BATCHES = (4, 8, 16)
"""Problems of the memory axis, at budgets of half the smallest batch's tokens and all its cache slots."""
QUICK_BASE = Work(problems=2, samples=2, attempts=2, prompt_tokens=16, answer_tokens=8, bridge_tokens=8)
QUICK_AXES = {"samples": (2, 4, 6), "attempts": (1, 2), "prompt_tokens": (16, 64), "answer_tokens": (8, 24)}
QUICK_BATCHES = (2, 8)
WIDE = 4_096, 131_072
"""The engine's default budgets: padded tokens of a micro-batch, slots of a sampling batch."""


def points(quick: bool) -> list[dict[str, Any]]:
    """What to measure: the base once, then each axis, then the batch at fixed budgets."""
    base, axes, batches = (QUICK_BASE, QUICK_AXES, QUICK_BATCHES) if quick else (BASE, AXES, BATCHES)
    out = [{"axes": list(axes), "work": asdict(base), "budgets": list(WIDE)}]
    for axis, values in axes.items():
        others = [v for v in values if v != getattr(base, axis)]
        out += [{"axes": [axis], "work": asdict(replace(base, **{axis: v})), "budgets": list(WIDE)} for v in others]
    first = replace(base, problems=batches[0])
    # half of the smallest batch: every batch then takes several micro-batches
    tokens = sum(p.tokens for p in cm.micro_batches(cm.Setup(cm.SMOLLM2), first)) // 2
    budgets = [tokens, first.episodes * first.sequence_tokens]
    return out + [{"axes": ["batch"], "work": asdict(replace(base, problems=n)), "budgets": budgets} for n in batches]


def measure(point: Mapping[str, Any], dtype: str, lora: int, steps: int) -> dict[str, Any]:
    """Runs in the point's own process."""
    from selfcorrect.config import load_config
    from selfcorrect.engines.chat import ChatFormat
    from selfcorrect.engines.models import load_tokenizer, resolve_model
    from selfcorrect.engines.torch_engine import TorchEngine

    microbatch, slots = point["budgets"]
    settings = [f"engine.tokens_per_microbatch={microbatch}", f"engine.tokens_per_sampling_batch={slots}"]
    model = [
        "model=smollm2",
        f"model.dtype={dtype}",
        f"model.lora_rank={lora}",
        "engine.device=cpu",
        "engine.drafts=false",
    ]
    config = load_config(None, [*model, *settings])
    resolved = resolve_model("smollm2")
    engine = TorchEngine.from_config(resolved, ChatFormat(load_tokenizer(resolved)), config.model, config.engine)
    engine.snapshot("base")
    work = Work(**point["work"])
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = [play_step(engine, work, step) for step in range(steps + 1)][1:]  # the first is a warm-up
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    totals = [round(t.total, 3) for t in taken]
    return {
        **point,
        "seconds": asdict(mean_seconds(taken)),
        "steps_s": totals,
        "peak": peak * 1024,
        "loaded": loaded * 1024,
    }


def in_child(point: Mapping[str, Any], a: argparse.Namespace) -> dict[str, Any]:
    options = ["--dtype", a.dtype, "--lora", str(a.lora), "--steps", str(a.steps)]
    command = [sys.executable, __file__, *options, "--point", json.dumps(point)]
    load = os.getloadavg()[0]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{point} failed:\n{done.stderr[-3000:]}")
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "load_before": round(load, 2)}


def machine() -> dict[str, Any]:
    import torch
    import transformers

    return {
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def show(result: Mapping[str, Any]) -> None:
    print(json.dumps({k: v for k, v in result.items() if k != "points"}))
    print(measured_tables(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--lora", type=int, default=0, help="rank of the adapters; 0 trains every weight")
    parser.add_argument("--steps", type=int, default=2, help="timed steps per point")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller points; written only with --out")
    parser.add_argument(
        "--out", type=Path, help=f"default: {RESULT.name} under docs/results, float32 and all weights only"
    )
    parser.add_argument("--write-page", action="store_true", help="update docs/cost.md and measure nothing")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.write_page:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    if a.point:
        print(json.dumps(measure(a.point, a.dtype, a.lora, a.steps)))
        return
    result: dict[str, Any] = {
        "model": "SmolLM2-135M",
        "dtype": a.dtype,
        "lora": a.lora,
        "timed_steps": a.steps,
        "quick": a.quick,
        "machine": machine(),
        "points": [],
    }
    todo = points(a.quick)
    for n, point in enumerate(todo):
        result["points"].append(in_child(point, a))
        print(f"{n + 1}/{len(todo)}: {result['points'][-1]}", file=sys.stderr, flush=True)
    out = a.out or (RESULT if not a.quick and a.dtype == "float32" and not a.lora else None)
    if out:
        out.write_text(json.dumps({**result, "analysis": analyse(result)}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "points"}))
    print(measured_tables(result))


if __name__ == "__main__":
    main()
