"""The same engine on CUDA: parity with the CPU, snapshots, one tiny run. `make test-gpu`."""

import asyncio

import numpy as np
import pytest
import torch

import tiny
from selfcorrect.config import TorchEngineConfig, load_config
from selfcorrect.engines.base import AdamParams, SampleRequest, SamplingParams
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.torch_engine import TorchEngine
from selfcorrect.experiment import make_engine, prepare, run_experiment
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.types import Datum

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
PARAMS = SamplingParams(24, 1.0, frozenset({tiny.tokenizer().eos_token_id}))
REQUESTS = [SampleRequest(tuple(range(20, 30 + i)), ("gpu", i)) for i in range(16)]


def on(device: str, dtype: torch.dtype = torch.float32) -> TorchEngine:
    return TorchEngine(tiny.random_model(dtype=dtype).to(device), ChatFormat(tiny.tokenizer()), TorchEngineConfig())


def play(engine: TorchEngine) -> list[Datum]:
    data = []
    for i, (r, s) in enumerate(zip(REQUESTS, asyncio.run(engine.sample(REQUESTS, PARAMS)), strict=True)):
        tokens = np.array([*r.prompt_ids, *s.token_ids])
        mask = np.arange(len(tokens)) >= len(r.prompt_ids)
        logprobs = np.zeros(len(tokens))
        logprobs[mask] = s.logprobs
        data.append(Datum(tokens, mask * 0.1 * (i - 7.5), logprobs, mask))
    return data


def test_logprobs_and_gradients_equal_the_cpus():
    data = play(on("cpu"))
    cpu, gpu = on("cpu"), on("cuda")
    for a, b in zip(cpu.logprobs(data, "current"), gpu.logprobs(data, "current"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
    for engine in (cpu, gpu):
        engine.forward_backward(data, "importance_sampling")
    for name, g in cpu.gradients().items():
        scale = float(g.abs().max()) + 1e-9
        assert float((g - gpu.gradients()[name].cpu()).abs().max()) / scale < 1e-2, name


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.bfloat16, 0.25)])
def test_sampler_and_trainer_agree(dtype, bound):
    engine = on("cuda", dtype)
    data = play(engine)
    for d, lp in zip(data, engine.logprobs(data, "current"), strict=True):
        assert np.abs(lp - d.logprobs_T)[d.sampled_T].max() < bound


def test_a_snapshot_stays_and_the_policy_moves():
    engine = on("cuda")
    data = play(engine)
    engine.snapshot("base")
    before = engine.logprobs(data, "base")
    engine.forward_backward(data, "cross_entropy")
    engine.optim_step(AdamParams(0.05))
    engine.publish()
    for a, b, c in zip(before, engine.logprobs(data, "base"), engine.logprobs(data, "current"), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - c).max() > 0.01


def test_a_tiny_run_on_cuda(tmp_path):
    settings = [
        "engine.device=cuda",
        "train.steps=4",
        "train.problems_per_step=8",
        "eval.problems=50",
        f"run_dir={tmp_path / 'run'}",
    ]
    job = prepare(load_config(None, settings))
    run = RunDirectory.create(job.config)

    outcome = run_experiment(job, run, make_engine(job), tiny.Silent())
    assert outcome.progress.step == 4
    assert outcome.evaluations["final"].summary.n_problems == 50
