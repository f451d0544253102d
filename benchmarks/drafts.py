"""Drafts in the native sampler: how much faster a second attempt is, and whether it is the same.

    python benchmarks/drafts.py speed [--model smollm2] [--batches 1 8 32] [--copied 0 0.5 0.7 0.9 1] [--out FILE.json]
    python benchmarks/drafts.py same [--model smollm2] [--answers 10000] [--lora RANK] [--out FILE.json]

``speed`` writes the second attempt in advance: a copy of the first in which pieces are replaced, so that exactly the given
share of its tokens is copied. The model computes every law and every draw; then the draw is replaced by the written token.
With and without drafts take turns in one process, so both meet the same load; the ratio is the median of paired ratios.
Without drafts the passes are those of ``engine.drafts=false``. Run it on an idle machine: the load average is in every row,
with the ratio of processor seconds, which load moves less.

``same`` plays two attempts at the task's problems at temperature 0 and 1, with and without drafts, and counts the answers
that differ. Prompts and answers have unequal lengths.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfcorrect.config import load_config
from selfcorrect.engines.base import Sampled, SampleRequest, SamplingParams
from selfcorrect.engines.torch_engine import TorchEngine, sampler
from selfcorrect.experiment import make_engine, prepare
from selfcorrect.tasks.base import Task

KEPT = 14
"""Mean tokens of a copied piece. That of a replaced one follows from the share: 6 at a share of 0.7."""


def engine_of(model: str, lora: int) -> tuple[TorchEngine, Task]:
    words = [] if model == "tiny" else ["task.asks=sum", "play.max_new_tokens=64"]
    settings = [f"model={model}", *words, f"model.lora_rank={lora}"]
    job = prepare(load_config(None, settings))
    engine = make_engine(job)
    assert isinstance(engine, TorchEngine)
    if lora:  # a fresh adapter changes nothing
        torch.manual_seed(3)
        for name, parameter in sorted(engine._model.named_parameters()):
            if "lora_B" in name:
                parameter.data.normal_(0, 0.01)
        engine.publish()
    return engine, job.task


def second_attempt(first: list[int], copied: float, rng: np.random.Generator, vocabulary: int) -> list[int]:
    """The first attempt with pieces replaced, so that this share of the tokens is copied."""
    if copied in (0, 1):
        return list(first) if copied else [int(t) for t in rng.integers(100, vocabulary, size=len(first))]
    changed_mean = KEPT * (1 - copied) / copied
    out: list[int] = []
    while len(out) < len(first):
        kept = int(rng.geometric(1 / KEPT))
        out += first[len(out) : len(out) + kept]
        changed = int(rng.geometric(1 / max(1.0, changed_mean)))
        out += [int(t) for t in rng.integers(100, vocabulary, size=changed)]
    return out[: len(first)]


def speed(model: str, batches: list[int], shares: list[float], tokens: int, rounds: int) -> list[dict[str, Any]]:
    engine, task = engine_of(model, 0)
    vocabulary = min(40_000, int(engine._base.get_input_embeddings().weight.shape[0]))
    written: dict[Any, list[int]] = {}
    draw = sampler._draw

    def forced(logits_NV: torch.Tensor, uniforms_N: torch.Tensor, temperature: float) -> Any:
        _, logprobs_N = draw(logits_NV, torch.full_like(uniforms_N, 0.5), temperature)
        return (uniforms_N * 2**20).long(), logprobs_N

    sampler._draw = forced
    sampler._stream = lambda request, n: np.array(written[request.key][:n]) / 2**20
    rows = []
    for batch in batches:
        for share in shares:
            rng = np.random.default_rng(batch)
            seconds: dict[bool, list[float]] = {True: [], False: []}
            work: dict[bool, list[float]] = {True: [], False: []}
            drafted = copied = 0
            for number in range(rounds + 1):
                for drafts in (True, False) if number % 2 else (False, True):
                    engine._sampler._drafts = drafts
                    rng = np.random.default_rng([batch, number])
                    answers = play_written(engine, task, written, batch, share, tokens, rng, vocabulary)
                    seconds[drafts].append(answers[0][0])
                    work[drafts].append(answers[0][1])
                    if drafts:
                        drafted += sum(a.drafted for a in answers[2])
                        copied += sum(
                            a == b
                            for one, two in zip(answers[1], answers[2], strict=True)
                            for a, b in zip(one.token_ids, two.token_ids, strict=True)
                        )
                engine._sampler.drop_caches()
            on, off = seconds[True][1:], seconds[False][1:]  # the first round is a warm-up
            cpu_on, cpu_off = work[True][1:], work[False][1:]
            row = {
                "batch": batch,
                "copied": share,
                "copied_in_place": copied / (tokens * batch * (rounds + 1)),
                "drafted": drafted / (tokens * batch * (rounds + 1)),
                "seconds_without": statistics.median(off),
                "seconds_with": statistics.median(on),
                "times_as_fast": statistics.median(b / a for a, b in zip(on, off, strict=True)),
                "times_less_cpu": statistics.median(b / a for a, b in zip(cpu_on, cpu_off, strict=True)),
                "load_average": round(os.getloadavg()[0], 2),
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def play_written(
    engine: TorchEngine,
    task: Task,
    written: dict[Any, list[int]],
    batch: int,
    share: float,
    tokens: int,
    rng: np.random.Generator,
    vocabulary: int,
) -> tuple[tuple[float, float], list[Sampled], list[Sampled]]:
    """Wall and processor seconds of the second attempt, and both attempts."""
    params = SamplingParams(tokens, 1.0, frozenset(), continued=True)
    problems = task.problems("test")[:batch]
    messages = [task.first_messages(p) for p in problems]
    first = [SampleRequest(engine.chat.prompt_ids(m), (1, i)) for i, m in enumerate(messages)]
    for request in first:
        written[request.key] = [int(t) for t in rng.integers(100, vocabulary, size=tokens)]
        written[(2, request.key[1])] = second_attempt(written[request.key], share, rng, vocabulary)
    engine._sampler.drop_caches()
    one = asyncio.run(engine.sample(first, params))
    second = bridged(engine, task, messages, first, one, 2)
    start, cpu = time.perf_counter(), time.process_time()
    two = asyncio.run(engine.sample(second, params))
    return (time.perf_counter() - start, time.process_time() - cpu), one, two


def bridged(engine: TorchEngine, task: Task, messages: Any, first: Any, one: Any, name: Any) -> list[SampleRequest]:
    bridge = [
        engine.chat.bridge_ids(m, task.instruction, engine.chat.ended(a.token_ids))
        for m, a in zip(messages, one, strict=True)
    ]
    return [
        SampleRequest((*r.prompt_ids, *a.token_ids, *b), (name, *r.key[1:]))
        for r, a, b in zip(first, one, bridge, strict=True)
    ]


def same(model: str, answers: int, lora: int, tokens: int, batch: int) -> list[dict[str, Any]]:
    engine, task = engine_of(model, lora)
    problems = task.problems("test")
    rows = []
    for temperature in (0.0, 1.0):
        compared = different = drafted = sampled = 0
        largest = 0.0
        params = SamplingParams(tokens, temperature, engine.chat.end_ids, continued=True)
        start = time.perf_counter()
        for part in range(-(-answers // (4 * batch))):  # two temperatures, two attempts
            chosen = [problems[(part * batch + i) % len(problems)] for i in range(batch)]
            messages = [task.first_messages(p) for p in chosen]
            first = [SampleRequest(engine.chat.prompt_ids(m), (1, part, i)) for i, m in enumerate(messages)]
            plays = {}
            for drafts in (False, True):
                engine._sampler._drafts = drafts
                engine._sampler.drop_caches()
                one = asyncio.run(engine.sample(first, params))
                two = asyncio.run(engine.sample(bridged(engine, task, messages, first, one, 2), params))
                plays[drafts] = [*one, *two]
            for a, b in zip(plays[False], plays[True], strict=True):
                compared += 1
                drafted += b.drafted
                sampled += len(b.token_ids)
                if a.token_ids != b.token_ids:
                    different += 1
                else:
                    largest = max(largest, float(np.abs(np.subtract(a.logprobs, b.logprobs)).max()))
        row = {
            "model": model,
            "lora": lora,
            "temperature": temperature,
            "answers": compared,
            "tokens": sampled,
            "different": different,
            "drafted": drafted / sampled,
            "largest_difference_of_logprobs": largest,
            "seconds": round(time.perf_counter() - start, 1),
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "same"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--copied", nargs="+", type=float, default=[0.0, 0.5, 0.7, 0.9, 1.0])
    parser.add_argument("--tokens", type=int, default=64, help="per attempt; same: at most")
    parser.add_argument("--rounds", type=int, default=5, help="speed: timed pairs, after one of warm-up")
    parser.add_argument("--answers", type=int, default=10_000, help="same: over both temperatures and attempts")
    parser.add_argument("--batch", type=int, default=32, help="same: rows of a batch")
    parser.add_argument("--lora", type=int, default=0, help="same: rank of adapters")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    if a.what == "speed":
        rows = speed(a.model, a.batches, a.copied, a.tokens, a.rounds)
    else:
        rows = same(a.model, a.answers, a.lora, a.tokens, a.batch)
    if a.out:
        result = {"what": a.what, "model": a.model, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
        a.out.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
