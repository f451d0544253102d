"""Equal settings give the same run, bit for bit, whatever the process and its number of threads."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from selfcorrect.config import TorchEngineConfig, load_config
from selfcorrect.engines.torch_engine.repeatable import settle
from selfcorrect.errors import ConfigError

SHORT = ("train.steps=6", "train.problems_per_step=32", "eval.problems=50", "eval.controls=false")


def short_run(out: Path, *settings: str) -> tuple[str, list[dict]]:
    """Train in a process of its own; the checksum of its weights, and its records without the clock."""
    command = [sys.executable, "-m", "selfcorrect", "train", *SHORT, *settings, f"run_dir={json.dumps(str(out))}"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "2"}, timeout=300)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [{k: v for k, v in r.items() if k != "seconds"} for r in records if r["kind"] == "step"]
    return hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest(), steps


def test_one_and_two_threads_give_the_same_weights_and_records(tmp_path: Path) -> None:
    one = short_run(tmp_path / "one", "engine.threads=1")
    two = short_run(tmp_path / "two", "engine.threads=2")
    assert len(one[1]) == 6
    assert one == two
    for out, threads in (("one", 1), ("two", 2)):
        start = json.loads((tmp_path / out / "metrics.jsonl").read_text().splitlines()[0])
        assert (start["engine"]["deterministic"], start["engine"]["threads"]) == (True, threads)


@pytest.fixture
def undo(monkeypatch: pytest.MonkeyPatch):
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    for name in ("MKL_CBWR", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)
    yield monkeypatch
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def test_small_models_take_one_thread_unless_the_user_says_otherwise(undo) -> None:
    torch.set_num_threads(2)
    settle(TorchEngineConfig(), torch.device("cpu"), 10**8)
    assert torch.get_num_threads() == 2
    undo.setenv("OMP_NUM_THREADS", "2")
    settle(TorchEngineConfig(), torch.device("cpu"), 10**5)
    assert torch.get_num_threads() == 2
    undo.delenv("OMP_NUM_THREADS")
    settle(TorchEngineConfig(), torch.device("cpu"), 10**5)
    assert torch.get_num_threads() == 1
    settle(TorchEngineConfig(threads=2), torch.device("cpu"), 10**5)
    assert torch.get_num_threads() == 2


def test_switching_it_off(undo) -> None:
    assert settle(TorchEngineConfig(), torch.device("cpu"), 10**5)
    assert os.environ["MKL_CBWR"] == "AUTO,STRICT"
    assert torch.are_deterministic_algorithms_enabled()
    assert not settle(TorchEngineConfig(deterministic=False), torch.device("cpu"), 10**5)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("settings", "device", "culprit"),
    [
        (TorchEngineConfig(deterministic=True, sampler="vllm"), "cpu", "engine.sampler=vllm"),
        (TorchEngineConfig(deterministic=True), "cuda", "device cuda"),
    ],
)
def test_determinism_is_refused_where_it_cannot_be_kept(undo, settings, device: str, culprit: str) -> None:
    with pytest.raises(ConfigError, match=culprit):
        settle(settings, torch.device(device), 10**5)
    assert not settle(TorchEngineConfig(sampler=settings.sampler), torch.device(device), 10**5)


def test_a_remote_engine_refuses_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"engine\.deterministic"):
        load_config(None, ["engine=tinker", "model.lora_rank=8", "engine.deterministic=true"])


@pytest.mark.parametrize(
    ("mine", "expected"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "5"}, "None")],
)
def test_waiting_threads_are_passive_unless_the_user_says_otherwise(mine: dict[str, str], expected: str) -> None:
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
    code = "import os, sys, selfcorrect; assert 'torch' not in sys.modules; print(os.environ.get('OMP_WAIT_POLICY'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env | mine)
    assert done.stdout.strip() == expected
