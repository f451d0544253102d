"""How the time and memory of a step grow: SmolLM2-135M, one axis at a time around a base point, beside the fitted model.

    python benchmarks/growth.py [--dtype float32|bfloat16] [--lora RANK] [--steps 2] [--out FILE.json]
    python benchmarks/growth.py --quick
    python benchmarks/growth.py --write-page

Every point runs in a process of its own, whose peak memory is then its own: one step to warm up, then the timed ones. The
whole takes about 20 minutes on two idle cores and fails on nothing: it prints what it measured beside what the model of
``cost_model.py`` says after its prices were fitted to the same points. ``--quick`` is two minutes on a smaller base, to see
that it works. ``--write-page`` measures nothing: it puts the numbers of docs/results/growth.json, and those that
the model gives for larger models, into docs/cost.md. Run it on a quiet machine: the load average is recorded.
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

import numpy as np

import cost_model as cm
from work import Work, mean_seconds, play_step

RESULT = Path(__file__).parent.parent / "docs/results/growth.json"
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
SAMPLING = ("prefill", "decode", "kv", "weights")
"""Kinds that are fitted. The fixed time of a pass is not told apart from its weight reads: both are counted in passes."""


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
    model = ["model=smollm2", f"model.dtype={dtype}", f"model.lora_rank={lora}", "engine.device=cpu"]
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


def setup_of(result: Mapping[str, Any], point: Mapping[str, Any]) -> cm.Setup:
    microbatch, slots = point["budgets"]
    return cm.Setup(cm.SMOLLM2, 4 if result["dtype"] == "float32" else 2, result["lora"], microbatch, slots)


def analyse(result: Mapping[str, Any]) -> dict[str, Any]:
    """Prices and memory constants fitted to all points; per point what the model then gives; lines per axis."""
    counted = [cm.step_work(setup_of(result, p), Work(**p["work"])) for p in result["points"]]
    prices = {**dict.fromkeys(cm.UNITS, 0.0), **_fitted_prices(result["points"], counted)}
    parts = [cm.memory(setup_of(result, p), Work(**p["work"])) for p in result["points"]]
    rest = [sum(m[part] for part in cm.TRAINING if part != "activations") for m in parts]
    measured = np.array([p["peak"] - r for p, r in zip(result["points"], rest, strict=True)])
    columns = np.array([[1.0, m["activations"]] for m in parts])
    process, factor = cm.fit(columns, measured)
    rows = []
    for p, phases, m, r in zip(result["points"], counted, parts, rest, strict=True):
        fitted = cm.seconds(phases, prices)
        sample = sum(s for phase, s in fitted.items() if phase.startswith("sample"))
        score = fitted.get("reference", 0.0) + fitted.get("policy", 0.0)
        modelled = {"sample": sample, "score": score, "update": fitted["update"]}
        rows.append(
            {"measured": measured_seconds(p), "fitted": modelled, "peak": process + factor * m["activations"] + r}
        )
    return {
        "prices": {kind: price for kind, price in prices.items() if price},
        "memory": {"process": float(process), "activations_factor": float(factor)},
        "points": rows,
        "lines": {axis: straight_line(result["points"], axis) for axis in _axes(result["points"])},
        "r2": r_squared([sum(r["measured"].values()) for r in rows], [sum(r["fitted"].values()) for r in rows]),
    }


def measured_seconds(point: Mapping[str, Any]) -> dict[str, float]:
    s = point["seconds"]
    return {"sample": sum(s["sample"]), "score": s["reference"] + s["policy"], "update": s["update"]}


def _fitted_prices(measured: list[dict[str, Any]], counted: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    """Sampling by attempt, scoring, update: three fits with no kind in common."""
    rows: dict[tuple[str, ...], list[tuple[list[float], float]]] = {
        SAMPLING: [],
        ("forward",): [],
        ("train", "adam"): [],
    }
    for point, phases in zip(measured, counted, strict=True):
        s = point["seconds"]
        timed = {f"sample {k + 1}": t for k, t in enumerate(s["sample"])}
        timed |= {"reference": s["reference"], "policy": s["policy"], "update": s["update"]}
        for phase, amounts in phases.items():
            kinds = next(kinds for kinds in rows if kinds[0] in amounts)
            rows[kinds].append(([amounts[kind] for kind in kinds], timed[phase]))
    prices: dict[str, float] = {}
    for kinds, table in rows.items():
        fitted = cm.fit(np.array([a for a, _ in table]), np.array([t for _, t in table]))
        prices |= dict(zip(kinds, map(float, fitted), strict=True))
    return prices


def _axes(measured: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(axis for p in measured for axis in p["axes"]))


def along(measured: list[dict[str, Any]], axis: str) -> list[tuple[int, dict[str, Any]]]:
    """(value, point) along an axis, in order."""
    name = "problems" if axis == "batch" else axis
    return sorted(((p["work"][name], p) for p in measured if axis in p["axes"]), key=lambda vp: vp[0])


def straight_line(measured: list[dict[str, Any]], axis: str) -> dict[str, float | None]:
    """Of the whole step's seconds; no R² from two points, through which every line goes."""
    found = along(measured, axis)
    values, times = [v for v, _ in found], [sum(measured_seconds(p).values()) for _, p in found]
    slope, start = np.polyfit(values, times, 1)
    line = [start + slope * v for v in values]
    return {"slope": float(slope), "start": float(start), "r2": r_squared(times, line) if len(values) > 2 else None}


def r_squared(measured: list[float], fitted: list[float]) -> float:
    y = np.array(measured)
    return float(1 - ((y - fitted) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def show(result: Mapping[str, Any]) -> None:
    from cost_page import measured_tables

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
        from cost_page import write

        write()
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
    show(result)


if __name__ == "__main__":
    main()
