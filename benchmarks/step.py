"""One optimiser step on fixed work, ours beside TRL's GRPO: SmolLM2-135M, 8 prompts x 4 samples, 64 new tokens each.

    python benchmarks/step.py [--dtype float32|bfloat16] [--lora RANK] [--steps 3] [--trl-python PATH] [--out FILE.json]

Both sides sample exactly 64 tokens per answer (nothing stops one early) from the same prompts, and train on all of
them with one Adam step. TRL runs with beta = 0, so it computes no reference; ours is timed without and with one.
``--trl-python`` names the interpreter of an environment with trl 1.16; without it only ours is timed. Run it on a quiet
machine: the load average is printed, and two busy processes on two cores slow each other several times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

QUESTION = (
    "Here is a list of numbers: 12, 7, 33, 8. Add the first two numbers, then multiply the result by the third number "
    "and explain each step clearly before giving the final number. Question {}"
)
PROMPTS, SAMPLES, NEW = 8, 4, 64


def reward(text: str) -> float:
    """Any number that differs between samples: the work does not depend on it."""
    return float(sum(map(ord, text[:50])) % 7)


def ours(dtype: str, lora: int, steps: int) -> dict[str, object]:
    import numpy as np

    from selfcorrect.config import load_config
    from selfcorrect.engines.base import AdamParams, SampleRequest, SamplingParams
    from selfcorrect.engines.chat import ChatFormat
    from selfcorrect.engines.models import load_tokenizer, resolve_model
    from selfcorrect.engines.torch_engine import TorchEngine
    from selfcorrect.objective import leave_one_out_advantages
    from selfcorrect.types import Datum

    config = load_config(None, ["model=smollm2", f"model.dtype={dtype}", f"model.lora_rank={lora}"])
    resolved = resolve_model("smollm2")
    chat = ChatFormat(load_tokenizer(resolved))
    engine = TorchEngine.from_config(resolved, chat, config.model, config.engine)
    engine.snapshot("base")
    prompts = [chat.prompt_ids([{"role": "user", "content": QUESTION.format(i)}]) for i in range(PROMPTS)]
    rows = []
    for step in range(steps + 1):  # the first is a warm-up
        start = time.perf_counter()
        requests = [SampleRequest(p, (step, i, g)) for i, p in enumerate(prompts) for g in range(SAMPLES)]
        answers = asyncio.run(engine.sample(requests, SamplingParams(NEW)))
        assert all(len(a.token_ids) == NEW for a in answers), "an answer stopped early"
        sampled = time.perf_counter()
        rewards_G = np.array([reward(chat.text(a.token_ids)) for a in answers]).reshape(PROMPTS, SAMPLES)
        everyone = np.ones(SAMPLES, dtype=bool)
        advantages = (
            np.concatenate([leave_one_out_advantages(r, everyone) for r in rewards_G]) + 1e-3
        )  # none is exactly 0
        data = []
        for request, answer, advantage in zip(requests, answers, advantages, strict=True):
            n = len(request.prompt_ids)
            tokens = np.array([*request.prompt_ids, *answer.token_ids])
            mask = np.arange(len(tokens)) >= n
            logprobs = np.zeros(len(tokens))
            logprobs[n:] = answer.logprobs
            data.append(Datum(tokens, mask * advantage / len(requests), logprobs, mask))
        engine.logprobs(data, "base")
        scored = time.perf_counter()
        engine.forward_backward(data, "importance_sampling")
        engine.optim_step(AdamParams(1e-5))
        engine.publish()
        done = time.perf_counter()
        rows.append((sampled - start, scored - sampled, done - scored))
    sample, reference, update = (float(np.mean([r[i] for r in rows[1:]])) for i in range(3))
    return {
        "who": "selfcorrect",
        "step_s": sample + update,
        "step_with_reference_s": sample + reference + update,
        "sample_s": sample,
        "reference_s": reference,
        "update_s": update,
        "prompt_tokens": len(prompts[0]),
        "spread_s": [round(sum(r) - r[1], 2) for r in rows[1:]],
    }


def trl(dtype: str, lora: int, steps: int) -> dict[str, object]:
    """Runs inside the environment that has trl. The model directory comes by SMOLLM2_DIRECTORY."""
    import tempfile

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model = os.environ["SMOLLM2_DIRECTORY"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    questions = [[{"role": "user", "content": QUESTION.format(i)}] for i in range(PROMPTS)]
    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=PROMPTS * SAMPLES // 8,
        num_generations=SAMPLES,
        max_completion_length=NEW,
        generation_kwargs={"min_new_tokens": NEW},
        max_steps=steps + 1,
        learning_rate=1e-5,
        beta=0.0,
        temperature=1.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1000,
        save_strategy="no",
        report_to=[],
        shuffle_dataset=False,
        disable_tqdm=True,
        model_init_kwargs={"dtype": getattr(torch, dtype)},
    )
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_args, **_kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, *_args, **_kwargs):
            times.append(time.perf_counter() - self.start)

    adapters = (
        LoraConfig(r=lora, lora_alpha=2 * lora, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [reward(c[0]["content"]) for c in completions],
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": q} for q in questions] * (steps + 2)),
        peft_config=adapters,
        callbacks=[Clock()],
        processing_class=tokenizer,
    )
    trainer.train()
    kept = times[1:]
    return {"who": "trl", "step_s": sum(kept) / len(kept), "spread_s": [round(t, 2) for t in kept]}


def in_child(python: str, side: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Each side in a process of its own, so that neither's memory nor threads touch the other."""
    from selfcorrect.engines.smollm2 import smollm2_directory

    command = [
        python,
        __file__,
        "--side",
        side,
        "--dtype",
        arguments.dtype,
        "--lora",
        str(arguments.lora),
        "--steps",
        str(arguments.steps),
    ]
    environment = {
        **os.environ,
        "SMOLLM2_DIRECTORY": str(smollm2_directory()),
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    load = os.getloadavg()[0]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    row: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**row, "load_average_before": load}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--lora", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--trl-python")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=["ours", "trl"], help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.side:
        row = (ours if a.side == "ours" else trl)(a.dtype, a.lora, a.steps)
        print(json.dumps({**row, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}))
        return
    rows = [in_child(sys.executable, "ours", a)]
    if a.trl_python:
        rows.append(in_child(a.trl_python, "trl", a))
    work = f"{PROMPTS} prompts x {SAMPLES} samples x {NEW} new tokens, {a.dtype}, " + (
        f"LoRA {a.lora}" if a.lora else "full"
    )
    result = {"work": work, "steps": a.steps, "cores": os.cpu_count(), "rows": rows}
    if a.out:
        a.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
