"""Which architectures are sampled exactly: unequal batches and second attempts from the cache equal a plain forward pass."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from transformers.utils import logging

import architectures
import tiny
from selfcorrect.config import ModelConfig
from selfcorrect.engines.base import CURRENT, SampleRequest, SamplingParams
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.models import ResolvedModel, check_attention, load_config, steady_length
from selfcorrect.engines.torch_engine import TorchEngine
from selfcorrect.engines.torch_engine import engine as engine_module
from selfcorrect.errors import ModelError

PAGE = Path(__file__).parent.parent / "docs" / "engines.md"
TABLE = Path(__file__).parent / "data" / "architectures.json"
"""What the table of the page says, with the version of transformers that it was made with."""


def largest_gap(engine: TorchEngine) -> float:
    """Nats, over two attempts of three unequal rows in one batch, against each row alone without a cache."""
    prompts = [tuple(range(5, 5 + n)) for n in (3, 11, 19)]
    worst = 0.0
    for _ in range(2):
        requests = [SampleRequest(p, (i, len(p))) for i, p in enumerate(prompts)]
        answers = asyncio.run(engine.sample(requests, SamplingParams(7, continued=True)))
        for prompt, answer in zip(prompts, answers, strict=True):
            row = torch.tensor([[*prompt, *answer.token_ids]])
            with torch.no_grad():
                logits = engine._base(input_ids=row, use_cache=False).logits.float()[0, len(prompt) - 1 : -1]
            plain = logits.log_softmax(-1).gather(1, row[0, len(prompt) :, None])[:, 0]
            worst = max(worst, float(np.abs(plain.numpy() - np.array(answer.logprobs)).max()))
        prompts = [(*p, *a.token_ids, 5, 6, 7) for p, a in zip(prompts, answers, strict=True)]
    return worst


def gap_of_trees(engine: TorchEngine) -> float:
    """Nats, over two first attempts with two second ones each, against each sequence alone."""
    prompt, scored = list(range(5, 15)), []
    for first in ([20, 21], [20, 22, 23]):
        scored.append((prompt, first))
        scored += [([*prompt, *first, 6, 7], second) for second in ([30, 31, 32], [30, 33])]
    data = [SimpleNamespace(tokens_T=np.array(p + a), sampled_T=np.arange(len(p + a)) >= len(p)) for p, a in scored]
    (batch,) = engine._batches([d.tokens_T for d in data], [d.sampled_T for d in data])
    assert batch.trees is not None and len(batch.ids_BT) == 1
    worst = 0.0
    for d, found in zip(data, engine.logprobs(data, CURRENT), strict=True):
        row = torch.tensor(d.tokens_T)
        with torch.no_grad():
            logits = engine._base(input_ids=row[None], use_cache=False).logits[0, :-1].float()
        plain = logits.log_softmax(-1).gather(1, row[1:, None])[:, 0].numpy()
        worst = max(worst, float(np.abs(plain[d.sampled_T[1:]] - found[d.sampled_T]).max()))
    return worst


def outcome(name: str, path: Path) -> str:
    """``exact``, or why it is refused."""
    logging.set_verbosity_error()
    try:
        engine = architectures.engine(architectures.config(name), path)
    except ModelError as error:
        text = str(error)
        reasons = {
            "layers of type": "layers without a key-value cache",
            "recurrent state": "a recurrent state",
            "attends to the last": "a window shorter than an episode",
            "alibi": "a bias by distance (alibi)",
            "longrope": "rotary positions that depend on length",
            "output head": "scaled logits",
            "scaled_dot_product_attention": "no SDPA attention in transformers",
        }
        return next((f"refused: {why}" for part, why in reasons.items() if part in text), text)
    assert largest_gap(engine) < 1e-4
    assert engine._pair_cost is not None and gap_of_trees(engine) < 1e-4
    return "exact"


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_an_architecture_is_exact_or_refused_before_anything_runs(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(engine_module, "TREES_FROM", 0)
    stored = json.loads(TABLE.read_text())
    if stored["transformers"] == transformers.__version__:
        assert outcome(name, tmp_path) == stored["outcomes"][name]
    else:  # another version may support other ones, and none wrongly
        found = outcome(name, tmp_path)
        assert found == "exact" or found.startswith("refused"), found


def test_the_table_of_the_page_is_the_stored_one() -> None:
    stored = json.loads(TABLE.read_text())
    assert list(stored["outcomes"]) == list(architectures.ARCHITECTURES)
    rows = "\n".join(f"| {name} | {said} |" for name, said in stored["outcomes"].items())
    page = PAGE.read_text(encoding="utf-8")
    assert rows in page, rows
    assert f"transformers {stored['transformers']}" in page


def test_longrope_is_refused_only_beyond_its_first_length() -> None:
    config = architectures.config("Phi-3, longrope within it")
    assert steady_length(config) == 64
    check_attention(config, 64)
    with pytest.raises(ModelError, match=r"beyond 64 tokens \(longrope\).*lower play\.max_new_tokens"):
        check_attention(config, 65)
    old = transformers.LlamaConfig()
    assert steady_length(old) is None


FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}


@pytest.mark.parametrize(
    ("raw", "limit"),
    [
        ({"model_type": "phi3", "rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 32}, 32),
        ({"model_type": "phi3", "rope_scaling": {"type": "yarn"}, "original_max_position_embeddings": 32}, 32),
        ({"model_type": "granite", "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 32}}, 32),
        (
            {"model_type": "qwen3", "rope_scaling": {"rope_type": "longrope", "original_max_position_embeddings": 32}},
            32,
        ),
        ({"model_type": "minicpm3", "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 32}}, 32),
        ({"model_type": "llama", "rope_scaling": {"type": "longrope", "factor": 4.0}}, 128),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, None),
        ({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}, None),
    ],
)
def test_longrope_is_known_by_every_spelling_of_a_configuration(raw: dict, limit: int | None, tmp_path: Path) -> None:
    rope = raw["rope_scaling"] | (FACTORS if limit else {})
    small = architectures.SMALL | {"max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(small | raw | {"rope_scaling": rope}))
    assert steady_length(load_config(ResolvedModel(str(tmp_path), "directory"))) == limit


@pytest.mark.parametrize("rope", [{"type": "su"}, {"full_attention": {"rope_type": "longrope"}}])
def test_longrope_of_a_configuration_with_its_own_code(rope: dict) -> None:
    text = SimpleNamespace(rope_scaling=rope, original_max_position_embeddings=32)
    assert steady_length(SimpleNamespace(get_text_config=lambda decoder: text)) == 32


def test_vllm_may_not_expect_more_than_longropes_first_length(monkeypatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(engine_module, "require_vllm", lambda: None)
    monkeypatch.setattr(engine_module.VllmSampler, "start", lambda *given: asked.append(given[-1]))
    for name in ("Phi-3, longrope within it", "Phi-3"):
        path = tmp_path / name
        transformers.AutoModelForCausalLM.from_config(architectures.config(name)).save_pretrained(path)
        settings = tiny.TorchEngineConfig(device="cpu", sampler="vllm")
        chat = ChatFormat(tiny.tokenizer())
        TorchEngine.from_config(ResolvedModel(str(path), "directory"), chat, ModelConfig(), settings)
    assert asked == [64, None]


def test_padding_behind_a_shared_beginning_stays_within_the_longest_sequence(tmp_path: Path) -> None:
    """Four rows share a long beginning and have short tails; two have a short beginning and a long tail."""
    engine = architectures.engine(architectures.config("Phi-3, longrope within it"), tmp_path)
    rng = np.random.default_rng(0)
    heads = [rng.integers(5, 200, size=n) for n in (58, 20)]
    tails = [(0, 3), (0, 4), (0, 2), (0, 3), (1, 40), (1, 38)]
    rows = [np.array([*heads[h], *rng.integers(5, 200, size=n)]) for h, n in tails]
    wanted = [np.arange(len(row)) >= len(heads[h]) for row, (h, _) in zip(rows, tails, strict=True)]
    scored = engine.logprobs(
        [SimpleNamespace(tokens_T=t, sampled_T=w) for t, w in zip(rows, wanted, strict=True)], CURRENT
    )
    for row, mask, lp in zip(rows, wanted, scored, strict=True):
        with torch.no_grad():
            logits = engine._base(input_ids=torch.tensor(row)[None], use_cache=False).logits[0, :-1].float()
        plain = logits.log_softmax(-1).gather(1, torch.tensor(row)[1:, None])[:, 0].numpy()
        assert np.abs(plain[mask[1:]] - lp[mask]).max() < 1e-4


def test_layers_that_depend_on_neighbours_are_found_by_running_them() -> None:
    model = tiny.random_model()
    inner = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: inner(x) + x.mean(0, keepdim=True)  # mixes the rows of a batch
    with pytest.raises(ModelError, match=r"cannot be sampled in unequal batches.*differ from a plain forward pass"):
        TorchEngine(model, ChatFormat(tiny.tokenizer()), tiny.TorchEngineConfig(device="cpu"))
