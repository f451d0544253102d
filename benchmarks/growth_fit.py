"""Prices and memory constants fitted to what growth.py measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import cost_model as cm
from work import Work

RESULT = Path(__file__).parent.parent / "docs/results/growth.json"
SAMPLING = ("prefill", "decode", "kv", "weights")
"""Kinds that are fitted. The fixed time of a pass is not told apart from its weight reads: both are counted in passes."""


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
