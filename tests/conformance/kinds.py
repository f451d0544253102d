"""The engines that the conformance suite knows, each on the tiny random model with a LoRA adapter of rank 4 and alpha 32.

A new engine is one more function here. What it returns must start from a fresh adapter.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import tiny
from selfcorrect.config import EngineConfig
from selfcorrect.engines.base import Engine
from selfcorrect.engines.chat import ChatFormat

RANK, ALPHA = 4, 32.0
URL_VARIABLE, MODEL_VARIABLE = "CONFORMANCE_BASE_URL", "CONFORMANCE_MODEL"
"""Address of a server, and the name under which it serves the model that ``tiny.save_model`` writes."""


def torch_engine() -> Engine:
    return tiny.engine(lora=(RANK, ALPHA))


def tinker_engine() -> Engine:
    from selfcorrect.engines.tinker_engine import TinkerEngine
    from selfcorrect.engines.tinker_engine.client import connect

    url, model = os.environ[URL_VARIABLE], os.environ[MODEL_VARIABLE]
    settings = EngineConfig(name="tinker", base_url=url)
    vocabulary = len(tiny.tokenizer())
    chat = ChatFormat(tiny.tokenizer())
    return TinkerEngine(lambda: connect(url, settings.timeout_s), chat, (model,), RANK, settings, 512, vocabulary)


KINDS: dict[str, Callable[[], Engine]] = {"torch": torch_engine, "tinker": tinker_engine}
