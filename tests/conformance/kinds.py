"""The engines that the conformance suite knows, each on the tiny random model with a LoRA adapter of rank 4 and alpha 32.

A new engine is one more function here. What it returns must start from a fresh adapter.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tiny
from selfcorrect.config import ModelConfig, TinkerEngineConfig, TorchEngineConfig
from selfcorrect.engines.base import Engine
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.models import ResolvedModel
from selfcorrect.engines.torch_engine import TorchEngine

RANK, ALPHA = 4, 32.0
URL_VARIABLE, MODEL_VARIABLE = "CONFORMANCE_BASE_URL", "CONFORMANCE_MODEL"
"""Address of a server, and the name under which it serves the model that ``tiny.save_model`` writes."""


def torch_engine(device: str = "cpu") -> Engine:
    model = tiny.random_model().to(device)
    return TorchEngine(model, ChatFormat(tiny.tokenizer()), TorchEngineConfig(device=device), (RANK, ALPHA))


def tinker_engine() -> Engine:
    from selfcorrect.engines.tinker_engine import TinkerEngine
    from selfcorrect.engines.tinker_engine.client import connect

    url, model = os.environ[URL_VARIABLE], os.environ[MODEL_VARIABLE]
    settings = TinkerEngineConfig(base_url=url)
    vocabulary = len(tiny.tokenizer())
    chat = ChatFormat(tiny.tokenizer())
    return TinkerEngine(lambda: connect(url, settings.timeout_s), chat, (model,), RANK, settings, 512, vocabulary)


wide_model = functools.partial(tiny.random_model, head_dim=32)
"""vLLM's attention on a CPU has no kernel for the heads of width 8 that the others get."""


def vllm_engine() -> Engine:
    """By way of the settings and a directory, as a run makes it."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)  # an export looks back at it
    wide_model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return TorchEngine.from_config(
        ResolvedModel(folder, "directory"),
        ChatFormat(tiny.tokenizer()),
        ModelConfig(name=folder, lora_rank=RANK, lora_alpha=ALPHA),
        TorchEngineConfig(device="cpu", sampler="vllm", sampler_memory_gb=0.25),
    )


@dataclass(frozen=True)
class Kind:
    make: Callable[[], Engine]
    """The engine at its start."""
    model: Callable[[], Any] = tiny.random_model
    """The model that it was made on, for transformers to say what is true."""


KINDS = {
    "torch": Kind(torch_engine),
    "torch-cuda": Kind(functools.partial(torch_engine, "cuda")),
    "vllm": Kind(vllm_engine, wide_model),
    "tinker": Kind(tinker_engine),
}
