"""What one step costs: a count of work (FLOPs, bytes, passes) by phase, times a price per unit; and memory by part.

The counts follow from the shape of the model, the size of the step (``Work``) and how it is held (``Setup``). The prices
are fitted to measurements on a CPU (``growth.py``) or assumed for a GPU (``gpu_prices``). docs/cost.md explains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from math import ceil

import numpy as np

from work import Work

LOGITS_CHUNK = 2**25
"""As in the torch engine's ``passes.py``; a test compares them."""
ACTIVATIONS = {(4, False): (24, 16, 16), (2, False): (16, 8, 8), (4, True): (16, 16, 16), (2, True): (28, 10, 12)}
"""(bytes per weight, LoRA?) -> bytes that autograd keeps per token and layer, per unit of the (hidden, intermediate,
attention) width. Counted with saved-tensor hooks on Llama; a test counts again. LoRA in bfloat16 keeps float32 copies of
its inputs."""
UNITS = {
    "prefill": "FLOP",
    "decode": "FLOP",
    "kv": "byte",
    "weights": "byte",
    "passes": "pass",
    "hops": "all-reduce",
    "forward": "FLOP",
    "train": "FLOP",
    "adam": "parameter",
    "nvlink": "byte",
    "network": "byte",
    "host": "byte",
}
"""Kinds of work; a price is in seconds per unit of it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder with gated feed-forward layers and grouped-query attention (Llama, Qwen2)."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    """The output head is the embedding."""
    biases: bool = False
    """On queries, keys and values."""

    @property
    def attention(self) -> int:
        return self.heads * self.head_width

    @property
    def kv(self) -> int:
        return self.kv_heads * self.head_width

    @property
    def matrices(self) -> int:
        """Weights of all layers' linear maps: each costs 2 FLOPs per token."""
        return self.layers * self.hidden * (2 * self.attention + 2 * self.kv + 3 * self.intermediate)

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        small = self.layers * (2 * self.hidden + self.biases * (self.attention + 2 * self.kv)) + self.hidden
        return self.matrices + small + self.head * (1 if self.tied else 2)

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA on all linear maps but the head."""
        ends = 4 * self.hidden + 2 * self.attention + 2 * self.kv + 3 * (self.hidden + self.intermediate)
        return self.layers * rank * ends


SMOLLM2 = Shape(30, 576, 1536, 9, 3, 64, 49152, tied=True)
QWEN_1_5B = Shape(28, 1536, 8960, 12, 2, 128, 151936, tied=True, biases=True)
QWEN3_4B = Shape(36, 2560, 9728, 32, 8, 128, 151936, tied=True)
QWEN_7B = Shape(28, 3584, 18944, 28, 4, 128, 152064, tied=False, biases=True)
QWEN_32B = Shape(64, 5120, 27648, 40, 8, 128, 152064, tied=False, biases=True)


@dataclass(frozen=True, slots=True)
class Setup:
    """How a model is held and run."""

    shape: Shape
    weight_bytes: int = 4
    """4: float32; 2: bfloat16, with float32 masters of what is trained."""
    lora_rank: int = 0
    tokens_per_microbatch: int = 4_096
    sampling_slots: int = 131_072
    """Cache slots (rows x length) of one sampling batch, on one replica."""
    checkpointing: bool = False
    """Layers keep their input only and run again in the backward pass."""
    share_prefix: bool = True
    """The samples of a problem compute their prompt once in training."""
    own_sampler: bool = False
    """The sampler (vLLM) has weights of its own."""
    swaps: bool = False
    """Trainer and sampler leave the GPU to each other (SkyRL, colocated)."""
    gpus: int = 1
    tensor_parallel: int = 1
    fsdp: int = 1
    """GPUs that share one copy of weights and optimiser between micro-batches."""

    @property
    def trainable(self) -> int:
        return self.shape.adapters(self.lora_rank) if self.lora_rank else self.shape.parameters

    @property
    def replicas(self) -> int:
        return self.gpus // self.tensor_parallel


@dataclass(frozen=True, slots=True)
class Pass:
    """One micro-batch of equal sequences."""

    rows: int
    prefixes: int
    """Shared beginnings computed once; 0 where none is shared."""
    tokens: int
    pairs: int
    """(query, key) pairs, causal."""


def micro_batches(setup: Setup, work: Work) -> list[Pass]:
    """The engine's packing (``passes.micro_batches``) for sequences of one length, whole or with shared prefixes."""
    head, length, budget = work.prompt_tokens - 1, work.sequence_tokens, setup.tokens_per_microbatch
    plans = [_pack(work, 0, length, budget)]
    if setup.share_prefix and not setup.checkpointing and work.samples > 1 and head:
        plans.append(_pack(work, head, length - head, budget))
    return min(plans, key=lambda passes: sum(p.tokens for p in passes))


def _pack(work: Work, head: int, tail: int, budget: int) -> list[Pass]:
    def one(start: int, end: int) -> Pass:
        rows, prefixes = end - start, _problems(work, start, end) if head else 0
        pairs = prefixes * head * (head + 1) // 2 + rows * (tail * head + tail * (tail + 1) // 2)
        return Pass(rows, prefixes, prefixes * head + rows * tail, pairs)

    passes, start = [], 0
    for end in range(1, work.episodes + 1):
        if end == work.episodes or one(start, end + 1).tokens > budget:
            passes.append(one(start, end))
            start = end
    return passes


def _problems(work: Work, start: int, end: int) -> int:
    """Problems with a sample among rows [start, end)."""
    return (end - 1) // work.samples - start // work.samples + 1


def forward_flops(shape: Shape, tokens: int, pairs: int, scored: int) -> float:
    """2 per weight and token, 4 per pair and attention width (scores and values), the head where it is read."""
    return 2.0 * shape.matrices * tokens + 4.0 * shape.layers * shape.attention * pairs + 2.0 * shape.head * scored


def sampling_batches(setup: Setup, work: Work, attempt: int, rows: int) -> list[int]:
    """Rows of each batch within the slot budget."""
    most = max(1, setup.sampling_slots // (work.prompt_of(attempt) + work.answer_tokens))
    return [min(most, rows - start) for start in range(0, rows, most)]


def kept_rows(setup: Setup, work: Work, attempt: int) -> int:
    """Rows whose cache is still there when this attempt begins: the last batches of the one before, within the budget."""
    kept, slots = 0, work.prompt_of(attempt - 1) + work.answer_tokens
    for rows in reversed(sampling_batches(setup, work, attempt - 1, work.episodes) if attempt else []):
        if (kept + rows) * slots > setup.sampling_slots:
            break
        kept += rows
    return kept


def sampling(setup: Setup, work: Work, attempt: int) -> dict[str, float]:
    """Work of sampling one attempt on one replica: prefill, then answer_tokens - 1 passes of one token per row."""
    shape, past, new = setup.shape, work.prompt_of(attempt), work.answer_tokens - 1
    kept = kept_rows(setup, work, attempt)
    work_done = dict.fromkeys(("prefill", "decode", "kv", "weights", "passes"), 0.0)
    for n_rows, fed in ((kept, work.bridge_tokens + 1), (work.episodes - kept, past)):
        start = 0
        for rows in sampling_batches(setup, work, attempt, n_rows):
            distinct = rows if attempt else _problems(work, start, start + rows)
            start += rows
            fed_pairs = distinct * (fed * (past - fed) + fed * (fed + 1) // 2)
            work_done["prefill"] += forward_flops(shape, distinct * fed, fed_pairs, distinct)
            pairs = rows * (new * past + new * (new + 1) // 2)
            work_done["decode"] += forward_flops(shape, rows * new, pairs, rows * new)
            work_done["kv"] += pairs * kv_bytes(setup)
            work_done["passes"] += new + 1
    work_done["weights"] = work_done["passes"] * (shape.matrices + shape.head) * setup.weight_bytes
    return work_done


def kv_bytes(setup: Setup) -> int:
    """Of one token in all layers."""
    return 2 * setup.shape.layers * setup.shape.kv * setup.weight_bytes


def step_work(setup: Setup, work: Work) -> dict[str, dict[str, float]]:
    """Work per GPU by phase and kind. Problems are split over replicas, everything of a replica over its GPUs."""
    local = replace(work, problems=ceil(work.problems / setup.replicas))
    tp, shape = setup.tensor_parallel, setup.shape
    phases = {f"sample {k + 1}": sampling(setup, local, k) for k in range(work.attempts)}
    for amounts in phases.values():
        amounts["hops"] = amounts["passes"] * 2 * shape.layers if tp > 1 else 0.0
    passes = micro_batches(setup, local)
    scored = work.attempts * work.answer_tokens
    tokens = sum(p.tokens for p in passes)
    # one all-reduce of the activations after attention and one after the feed-forward part of every layer
    reduced = 2.0 * shape.layers * 2 * (tp - 1) * tokens * shape.hidden * setup.weight_bytes if tp > 1 else 0.0
    gathered = len(passes) * shape.parameters * setup.weight_bytes if setup.fsdp > 1 else 0.0
    forward = sum(forward_flops(shape, p.tokens, p.pairs, p.rows * scored) for p in passes)
    once = {"forward": forward, "nvlink": reduced, "network": gathered}
    if work.reference:
        phases["reference"] = once
    if work.reference and setup.weight_bytes < 4:  # the sampler's log-probs are not exact
        phases["policy"] = dict(once)
    synced = 2 * 4 * setup.trainable if setup.replicas > 1 and setup.fsdp == 1 else 0
    phases["update"] = {
        "train": sum(_train_flops(setup, p, scored) for p in passes),
        "adam": setup.trainable / setup.fsdp,
        "nvlink": reduced * (3 if setup.checkpointing else 2),
        "network": gathered * 3 + synced,
    }
    if setup.swaps:  # trainer out, sampler in, and back
        phases["swap"] = {"host": 4.0 * shape.parameters * setup.weight_bytes}
    return {
        phase: {kind: n if kind in ("passes", "hops") else n / tp for kind, n in amounts.items()}
        for phase, amounts in phases.items()
    }


def _train_flops(setup: Setup, p: Pass, scored: int) -> float:
    """Forward, gradients of activations, and gradients of those weights that are trained: 6 per weight, 4 if frozen."""
    shape, extra = setup.shape, int(setup.checkpointing)
    linear = (2 if setup.lora_rank else 3) + extra
    adapters = 2.0 * shape.adapters(setup.lora_rank) * p.tokens * (3 + extra)
    return (
        linear * forward_flops(shape, p.tokens, 0, 0)
        + (3 + extra) * forward_flops(shape, 0, p.pairs, 0)
        + (2 if setup.lora_rank else 3) * forward_flops(shape, 0, 0, p.rows * scored)
        + adapters
    )


def seconds(phases: Mapping[str, Mapping[str, float]], prices: Mapping[str, float]) -> dict[str, float]:
    """Wall time by phase: every kind of work is paid for, none hides behind another."""
    return {phase: sum(prices[kind] * n for kind, n in amounts.items()) for phase, amounts in phases.items()}


def memory(setup: Setup, work: Work) -> dict[str, float]:
    """Bytes per GPU by part."""
    shape, tp = setup.shape, setup.tensor_parallel
    local = replace(work, problems=ceil(work.problems / setup.replicas))
    held, lora, half = tp * setup.fsdp, bool(setup.lora_rank), setup.weight_bytes < 4
    largest = max(micro_batches(setup, local), key=lambda p: p.tokens)
    unsummed = 2 if half and not lora else 0  # the float32 sum: a micro-batch's own gradients in bfloat16
    # A row of the vocabulary while a token is chosen. This project's: logits before and after a pass, in bfloat16 also those not yet
    # cast. vLLM's is ASSUMED: logits, log-probs, probabilities and noise in float32.
    drawn = 16 if setup.own_sampler else 10 if half else 8
    scored = largest.rows * work.attempts * work.answer_tokens * shape.vocabulary
    return {
        "weights": shape.parameters * setup.weight_bytes / held + (4 * setup.trainable / held if lora else 0),
        "masters": 4 * setup.trainable / held if half and not lora else 0.0,
        "gradients": setup.trainable * (4 + unsummed) / held,
        "Adam": 8 * setup.trainable / held,
        "reference": setup.trainable * (4 if lora else setup.weight_bytes) / held,
        "activations": largest.tokens * activation_bytes(setup) / tp,
        "logits": 3 * 4 * min(scored, LOGITS_CHUNK) / tp,
        "sampler": shape.parameters * setup.weight_bytes / tp if setup.own_sampler else 0.0,
        "cache": cache_slots(setup, local) * kv_bytes(setup) / tp,
        "drawing": drawn * sampling_batches(setup, local, 0, local.episodes)[0] * shape.vocabulary / tp,
    }


def activation_bytes(setup: Setup) -> float:
    """Kept for the backward pass, per token of a micro-batch."""
    s = setup.shape
    weights = ACTIVATIONS[setup.weight_bytes, bool(setup.lora_rank)]
    layer = sum(w * n for w, n in zip(weights, (s.hidden, s.intermediate, s.attention), strict=True))
    return s.layers * s.hidden * setup.weight_bytes + layer if setup.checkpointing else s.layers * layer


def cache_slots(setup: Setup, work: Work) -> int:
    """Most slots alive at once: caches kept from the attempt before, those kept for the next, the running batch.

    vLLM keeps all of them in the blocks of one pool.
    """
    most = 0
    for k in range(work.attempts):
        slots = work.prompt_of(k) + work.answer_tokens
        batches = sampling_batches(setup, work, k, work.episodes)
        if setup.own_sampler:
            most = max(most, batches[0] * slots)
            continue
        kept = kept_rows(setup, work, k) * (work.prompt_of(k - 1) + work.answer_tokens) if k else 0
        for_next = min(sum(batches[:-1]) * slots, setup.sampling_slots) if k + 1 < work.attempts else 0
        most = max(most, kept + for_next + batches[0] * slots)
    return most


TRAINING = ("weights", "masters", "gradients", "Adam", "reference", "activations", "logits")
STATE = ("weights", "masters", "Adam", "reference")
SAMPLING = ("sampler", "cache", "drawing")


def peaks(setup: Setup, parts: Mapping[str, float]) -> dict[str, float]:
    """Bytes while training and while sampling. A sampler with weights of its own keeps them, unless the two swap."""
    resident = parts["sampler"] + parts["cache"] if setup.own_sampler and not setup.swaps else 0.0
    return {
        "training": sum(parts[p] for p in TRAINING) + resident,
        "sampling": sum(parts[p] for p in (SAMPLING if setup.swaps else STATE + SAMPLING)),
    }


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a data sheet says, and the shares of it that are ASSUMED. FLOPs and bytes per second."""

    flops: float = 989e12
    """H100 SXM, dense bfloat16."""
    memory: float = 3.35e12
    nvlink: float = 450e9
    network: float = 50e9
    """Per GPU, between machines."""
    host: float = 64e9
    """PCIe 5, one way."""
    utilisation: float = 0.40
    """ASSUMED: of the FLOPs, in training and in prefill."""
    bandwidth: float = 0.60
    """ASSUMED: of every bandwidth."""
    pass_s: float = 3e-3
    """ASSUMED: fixed time of one decoding pass, by the sampler's own overhead."""
    hop_s: float = 20e-6
    """ASSUMED: latency of an all-reduce inside a machine."""


def gpu_prices(gpu: Gpu, *, across_machines: bool = False) -> dict[str, float]:
    """Seconds per unit of every kind of work."""
    flop, byte = 1 / (gpu.flops * gpu.utilisation), 1 / gpu.bandwidth
    link = gpu.network if across_machines else gpu.nvlink
    return {
        **dict.fromkeys(("prefill", "decode", "forward", "train"), flop),
        **dict.fromkeys(("kv", "weights"), byte / gpu.memory),
        "passes": gpu.pass_s,
        "hops": gpu.hop_s,
        "adam": 28 * byte / gpu.memory,  # reads gradient, master and both moments; writes master and moments
        "nvlink": byte / gpu.nvlink,
        "network": byte / link,
        "host": byte / gpu.host,
    }


def fit(amounts_NF: np.ndarray, measured_N: np.ndarray) -> np.ndarray:
    """Non-negative prices that minimise the squared RELATIVE errors, shape [F].

    Tries every subset of the few columns: the best unconstrained solution without a negative price is the answer.
    """
    scale_F = amounts_NF.max(axis=0)
    scaled_NF = amounts_NF / scale_F / measured_N[:, None]
    features = scaled_NF.shape[1]
    best, best_error = np.zeros(features), float("inf")
    for size in range(1, features + 1):
        for columns in map(list, combinations(range(features), size)):
            prices, *_ = np.linalg.lstsq(scaled_NF[:, columns], np.ones(len(measured_N)), rcond=None)
            error = float(((scaled_NF[:, columns] @ prices - 1) ** 2).sum())
            if (prices >= 0).all() and error < best_error - 1e-12:
                best, best_error = np.zeros(features), error
                best[columns] = prices
    prices_F: np.ndarray = best / scale_F
    return prices_F
