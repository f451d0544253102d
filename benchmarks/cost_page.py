"""The generated parts of docs/cost.md: what was measured (docs/results/growth.json) and what the model gives.

python benchmarks/growth.py --write-page
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cost_model as cm
import growth_fit
from selfcorrect.config import Config, load_config
from selfcorrect.engines.tinker_engine.cluster import Cluster
from work import Work

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/cost.md"
PROMPT, BRIDGE = {"gsm8k": 200, "countdown": 60}, {"gsm8k": 80, "countdown": 45}
"""ASSUMED, by task: tokens of a prompt in its chat format, and of the instruction between attempts."""
EAGER_PASS_S = 25e-3
"""ASSUMED: one decoding pass of 28 layers in eager PyTorch, where launching kernels is what takes the time."""
GPU_BYTES = 80e9
H100 = cm.Gpu()
VLLM_SHARE = 0.8
"""Of a GPU's memory that SkyRL 0.4.0 gives vLLM (its default)."""
SHAPES = {
    "Qwen/Qwen2.5-1.5B-Instruct": cm.QWEN_1_5B,
    "Qwen/Qwen3-4B-Instruct-2507": cm.QWEN3_4B,
    "Qwen/Qwen2.5-7B-Instruct": cm.QWEN_7B,
    "Qwen/Qwen2.5-32B-Instruct": cm.QWEN_32B,
}
WORDS = {
    "prefill": "arithmetic of prefill",
    "decode": "arithmetic of decoding",
    "kv": "reading the cache in decoding",
    "weights": "reading the weights in decoding",
    "passes": "fixed time per decoding pass",
    "hops": "latency between the GPUs of a copy",
    "forward": "arithmetic of scoring",
    "train": "arithmetic of the update",
    "adam": "Adam",
    "nvlink": "traffic between the GPUs of a copy",
    "network": "traffic between copies",
    "host": "moving weights to the host and back",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One column of the page."""

    title: str
    config: str
    setup: cm.Setup
    gpu: cm.Gpu = H100
    across_machines: bool = False

    @property
    def resolved(self) -> Config:
        return load_config(ROOT / "configs" / self.config)

    @property
    def work(self) -> Work:
        c = self.resolved
        return Work(
            c.train.problems_per_step,
            c.train.samples_per_problem,
            c.play.attempts,
            PROMPT[c.task.name],
            c.play.max_new_tokens,
            BRIDGE[c.task.name],
        )


def cluster_of(file: str) -> Cluster:
    """The command in a config's comment, as a value."""
    command = re.search(r"selfcorrect cluster (\S+)(.*)", (ROOT / "configs" / file).read_text(encoding="utf-8"))
    assert command is not None, f"{file} names no cluster command"
    options = dict(re.findall(r"--(gpus|nodes|tensor-parallel|rank) (\d+)", command[2]))
    numbers = {name.replace("-", "_"): int(value) for name, value in options.items()}
    return Cluster(command[1], **numbers)


NATIVE_SLOTS = 700_000
"""engine.tokens_per_sampling_batch of the first column: all rows of a step in one batch."""


def cases() -> list[Case]:
    """The columns: the 1.5 B model with its own sampler, as configured (vLLM), with all weights; then
    countdown on one GPU, and the two clusters."""
    name = "qwen2.5-1.5b-1xh100.toml"
    c = load_config(ROOT / "configs" / name)
    tokens = c.engine.tokens_per_microbatch
    native = cm.Setup(SHAPES[c.model.name], 2, c.model.lora_rank, tokens, NATIVE_SLOTS)
    vllm = replace(native, own_sampler=True)  # a pool of as many slots
    full = replace(vllm, lora_rank=0, tokens_per_microbatch=tokens // 2)
    out = [
        Case("1.5B, LoRA", name, native, cm.Gpu(pass_s=EAGER_PASS_S)),
        Case("1.5B, LoRA, vLLM", name, vllm),
        Case("1.5B, all weights, vLLM", name, full),
    ]
    for title, name in (
        ("1.5B, countdown", "countdown-qwen2.5-1.5b-1xh100.toml"),
        ("4B, countdown", "countdown-qwen3-4b-1xh100.toml"),
    ):
        small = load_config(ROOT / "configs" / name)
        setup = cm.Setup(SHAPES[small.model.name], 2, small.model.lora_rank, small.engine.tokens_per_microbatch)
        out.append(Case(title, name, setup, cm.Gpu(pass_s=EAGER_PASS_S)))
    for title, name in (("7B, LoRA", "qwen2.5-7b-8xh100.toml"), ("32B, LoRA", "qwen2.5-32b-64xh100.toml")):
        out.append(_on_skyrl(title, name))
    return out


def _on_skyrl(title: str, name: str) -> Case:
    """As SkyRL 0.4.0's defaults have it: layers recomputed, one sequence per micro-batch, trainer and sampler in turns."""
    cluster, c = cluster_of(name), load_config(ROOT / "configs" / name)
    shape, tp = SHAPES[cluster.model], cluster.tensor_parallel
    setup = cm.Setup(
        shape,
        2,
        c.model.lora_rank,
        tokens_per_microbatch=1,  # below any sequence: each gets its own pass
        checkpointing=True,
        share_prefix=False,
        own_sampler=True,
        swaps=True,
        gpus=cluster.gpus * cluster.nodes,
        tensor_parallel=tp,
    )
    pool = VLLM_SHARE * GPU_BYTES - shape.parameters * setup.weight_bytes / tp
    setup = replace(setup, sampling_slots=int(pool / (cm.kv_bytes(setup) / tp)))
    return Case(title, name, setup, across_machines=cluster.nodes > 1)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _kinds(case: Case) -> dict[str, float]:
    """Seconds of a step by kind of work."""
    prices = cm.gpu_prices(case.gpu, across_machines=case.across_machines)
    out: dict[str, float] = {}
    for amounts in cm.step_work(case.setup, case.work).values():
        for kind, n in amounts.items():
            out[kind] = out.get(kind, 0.0) + prices[kind] * n
    return out


def _phases(case: Case, work: Work | None = None, gpu: cm.Gpu | None = None) -> dict[str, float]:
    prices = cm.gpu_prices(gpu or case.gpu, across_machines=case.across_machines)
    return cm.seconds(cm.step_work(case.setup, work or case.work), prices)


def applied_tables() -> str:
    """Sizes, seconds, memory and what moves them, for every case."""
    columns = cases()
    header = ["", *(c.title for c in columns)]
    works, times = [c.work for c in columns], [_phases(c) for c in columns]
    parts = [cm.memory(c.setup, c.work) for c in columns]

    def row(name: str, values: Sequence[Any]) -> list[str]:
        return [name, *map(str, values)]

    sizes = [
        row("GPUs of 80 GB", [c.setup.gpus for c in columns]),
        row("copies × GPUs per copy", [f"{c.setup.replicas} × {c.setup.tensor_parallel}" for c in columns]),
        row("parameters", [f"{c.setup.shape.parameters / 1e9:.2f} B" for c in columns]),
        row("trained", [f"{c.setup.trainable / 1e6:,.0f} M" for c in columns]),
        row("episodes per step", [w.episodes for w in works]),
        row("sampled tokens per step", [f"{w.sampled_tokens:,}" for w in works]),
        row("tokens computed in the update", [f"{_computed(c):,}" for c in columns]),
    ]
    phases = ["sample 1", "sample 2", "reference", "policy", "update", "swap"]
    seconds = [row(p, [f"{t[p]:.1f}" if p in t else "–" for t in times]) for p in phases]
    seconds.append(row("**step, s**", [f"**{sum(t.values()):.0f}**" for t in times]))
    seconds.append(
        row(
            "hours for its train.steps",
            [_hours(sum(t.values()) * c.resolved.train.steps / 3600) for c, t in zip(columns, times, strict=True)],
        )
    )
    seconds.append(row("largest cost", [_largest(c) for c in columns]))
    names = list(dict.fromkeys([*cm.TRAINING, *cm.SAMPLING]))
    held = [row(n, [f"{m[n] / 1e9:.1f}" for m in parts]) for n in names]
    tops = [cm.peaks(c.setup, m) for c, m in zip(columns, parts, strict=True)]
    held += [
        row(f"**while {phase}, GB**", [f"**{t[phase] / 1e9:.0f}**" for t in tops]) for phase in ("training", "sampling")
    ]
    parts_of_page = [
        _table(header, sizes),
        "Seconds per step:",
        _table(header, seconds),
        "GB per GPU:",
        _table(header, held),
    ]
    return "\n\n".join([*parts_of_page, "Seconds per step, if:", _table(header, _changes(columns))])


def _hours(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 2 else f"{hours:.1f}"


def _computed(case: Case) -> int:
    local = replace(case.work, problems=-(-case.work.problems // case.setup.replicas))
    return sum(p.tokens for p in cm.micro_batches(case.setup, local)) * case.setup.replicas


def _largest(case: Case) -> str:
    kinds = _kinds(case)
    kind = max(kinds, key=lambda k: kinds[k])
    return f"{WORDS[kind]}, {kinds[kind] / sum(kinds.values()):.0%}"


def _changes(columns: Sequence[Case]) -> list[list[str]]:
    def step(case: Case, work: Work | None = None, **gpu: float) -> float:
        return sum(_phases(case, work, replace(case.gpu, **gpu)).values())

    changes = {
        "nothing changes": step,
        "answers are half as long": lambda c: step(c, replace(c.work, answer_tokens=c.work.answer_tokens // 2)),
        "answers are twice as long": lambda c: step(c, replace(c.work, answer_tokens=c.work.answer_tokens * 2)),
        "twice the samples per problem": lambda c: step(c, replace(c.work, samples=c.work.samples * 2)),
        "three attempts": lambda c: step(c, replace(c.work, attempts=3)),
        "prompts are four times as long": lambda c: step(c, replace(c.work, prompt_tokens=4 * c.work.prompt_tokens)),
        "20 % of the FLOPs, not 40": lambda c: step(c, utilisation=0.2),
        "30 % of the bandwidths, not 60": lambda c: step(c, bandwidth=0.3),
        "no fixed time per decoding pass": lambda c: step(c, pass_s=0.0),
    }
    return [[name, *(f"{change(c):.0f}" for c in columns)] for name, change in changes.items()]


def measured_tables(result: Mapping[str, Any] | None) -> str:
    """Measured and fitted times; without a result, a sentence that says so."""
    if result is None:
        return (
            "Not measured yet: there is no `docs/results/growth.json`. `python benchmarks/growth.py` writes it, in about 20 "
            "minutes on two idle cores, and `python benchmarks/growth.py --write-page` puts its numbers here."
        )
    found = growth_fit.analyse(result)
    rows = []
    for point, row in zip(result["points"], found["points"], strict=True):
        w, cells = point["work"], []
        for phase in ("sample", "score", "update"):
            cells.append(f"{row['measured'][phase]:.2f} / {row['fitted'][phase]:.2f}")
        took, modelled = sum(row["measured"].values()), sum(row["fitted"].values())
        name = f"{w['problems']} × {w['samples']} × {w['attempts']}, {w['prompt_tokens']} + {w['answer_tokens']}"
        budget = "" if "batch" not in point["axes"] else f", budget {point['budgets'][0]}"
        memory = [f"{point['peak'] / 1e9:.2f} / {row['peak'] / 1e9:.2f}", f"{row['peak'] / point['peak'] - 1:+.0%}"]
        rows.append([name + budget, *cells, f"{took:.2f} / {modelled:.2f}", f"{modelled / took - 1:+.0%}", *memory])
    header = [
        "problems × samples × attempts, prompt + answer",
        "sampling, s",
        "scoring, s",
        "update, s",
        "step, s",
        "error",
    ]
    m, weights = result["machine"], f"LoRA {result['lora']}" if result["lora"] else "all weights"
    loads = [p["load_before"] for p in result["points"]]
    intro = (
        f"{result['model']}, {result['dtype']}, {weights}; {m['cores']} cores, {m['threads']} threads, torch {m['torch']}; "
        f"load average before a point {min(loads)} to {max(loads)} (one's own last point included); mean of {result['timed_steps']} "
        f"timed steps. Measured / fitted, all points in one fit; R² of the step {found['r2']:.3f}."
    )
    table = _table([*header, "peak, GB", "error"], rows)
    return "\n\n".join([intro, table, _price_words(found), _table(*_line_rows(result, found)), _batch_words(result)])


def _price_words(found: Mapping[str, Any]) -> str:
    prices, memory = found["prices"], found["memory"]
    rates = {"FLOP": (1e9, "GFLOP/s"), "byte": (1e9, "GB/s"), "parameter": (1e6, "M parameters/s")}
    rates_of_kinds = []
    for kind in ("prefill", "decode", "kv", "weights", "forward", "train", "adam"):
        scale, unit = rates[cm.UNITS[kind]]
        rates_of_kinds.append(
            f"{WORDS[kind]} {1 / prices[kind] / scale:.3g} {unit}" if kind in prices else f"{WORDS[kind]} free"
        )
    return (
        f"Fitted rates: {'; '.join(rates_of_kinds)}. Fitted memory: {memory['process'] / 1e9:.2f} GB for the process, and "
        f"{memory['activations_factor']:.2f} times the counted activations."
    )


def _line_rows(result: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for axis, line in found["lines"].items():
        values = growth_fit.along(result["points"], axis)
        times = ", ".join(f"{sum(growth_fit.measured_seconds(p).values()):.1f}" for _, p in values)
        r2 = "n/a" if line["r2"] is None else f"{line['r2']:.3f}"
        name = "problems, at fixed budgets" if axis == "batch" else axis.replace("_tokens", " tokens")
        rows.append([name, ", ".join(str(v) for v, _ in values), times, f"{line['slope']:.3f}", r2])
    return ["axis", "values", "step, s", "s per unit", "R² of a straight line"], rows


def _batch_words(result: Mapping[str, Any]) -> str:
    points = growth_fit.along(result["points"], "batch")
    (few, first), (many, last) = points[0], points[-1]
    return (
        f"At fixed budgets {many // few} times the batch ({few} to {many} problems) took {last['peak'] / first['peak']:.2f} times "
        f"the peak memory: {(last['peak'] - first['peak']) / 1e6:+,.0f} MB on {first['peak'] / 1e9:.2f} GB."
    )


def page(text: str) -> str:
    """The page with its generated parts renewed."""
    result = json.loads(growth_fit.RESULT.read_text(encoding="utf-8")) if growth_fit.RESULT.exists() else None
    for name, made in (("measured", measured_tables(result)), ("applied", applied_tables())):
        marks = re.compile(rf"(<!-- {name}: made by benchmarks/growth.py -->\n).*?(<!-- end -->)", re.S)
        assert marks.search(text), f"{PAGE.name} has no part {name}"
        text = marks.sub(lambda m, made=made: f"{m[1]}\n{made}\n\n{m[2]}", text)
    return text
