"""A random Llama of a few thousand parameters with a character tokenizer, for tests that need a real model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfcorrect.config import TorchEngineConfig
from selfcorrect.engines.base import Sampled, SampleRequest
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.torch_engine import TorchEngine
from selfcorrect.types import Datum

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, without merges: any text, one token per byte. Padding is not the end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tok = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", pad_token="<|pad|>", additional_special_tokens=SPECIAL[1:4]
    )
    tok.chat_template = TEMPLATE
    return tok


def random_model(seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: object) -> LlamaForCausalLM:
    """Two layers, grouped-query attention, weights large enough that its distribution is not flat."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer().eos_token_id,
        "pad_token_id": tokenizer().pad_token_id,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **overrides}))
    return model.to(dtype).eval()


def engine(
    seed: int = 0, *, lora: tuple[int, float] | None = None, dtype: torch.dtype = torch.float32, **settings: object
) -> TorchEngine:
    return TorchEngine(
        random_model(seed, dtype), ChatFormat(tokenizer()), TorchEngineConfig(device="cpu", **settings), lora
    )


def sampled_data(requests: Sequence[SampleRequest], answers: Sequence[Sampled], weight: float) -> list[Datum]:
    """What an engine trains on: every sampled token at the same weight."""
    out = []
    for r, a in zip(requests, answers, strict=True):
        tokens = np.array([*r.prompt_ids, *a.token_ids])
        on = np.arange(len(tokens)) >= len(r.prompt_ids)
        logprobs = np.zeros(len(tokens))
        logprobs[on] = a.logprobs
        out.append(Datum(tokens, on * weight, logprobs, on))
    return out


def save_model(path: Path, seed: int = 0) -> Path:
    """A directory that ``model=DIR`` accepts."""
    random_model(seed).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


class Silent:
    """An observer that is told everything and says nothing."""

    def __getattr__(self, _name):
        return lambda *_args: None
