"""benchmarks/cost_model.py against hand counts, against the engine's own packing, and against autograd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import cost_model as cm
import tiny
from selfcorrect.config import TorchEngineConfig
from selfcorrect.engines.torch_engine import passes
from selfcorrect.engines.torch_engine.engine import _with_adapters
from work import Work, play_step

SMALL = cm.Shape(1, 4, 8, 2, 1, 2, 10, tied=True)
WORK = Work(problems=4, samples=4, attempts=2, prompt_tokens=64, answer_tokens=32, bridge_tokens=16)
SETUP = cm.Setup(cm.SMOLLM2)
UNIT = dict.fromkeys(cm.UNITS, 1.0)


def total(phases):
    return {phase: sum(amounts.values()) for phase, amounts in phases.items()}


def test_flops_of_a_tiny_model_by_hand():
    # queries and output 2 * 4 * 4, keys and values 2 * 4 * 2, feed-forward 3 * 4 * 8
    assert SMALL.matrices == 32 + 16 + 96
    assert SMALL.parameters == 144 + 2 * 4 + 4 + 40
    # rank 2: q 4 + 4, k and v 4 + 2 each, o 4 + 4, gate, up, down 12 each
    assert SMALL.adapters(2) == 2 * (8 + 6 + 6 + 8 + 36)
    # 2 * 144 per token, 4 * width 4 per pair, 2 * 40 per scored position
    assert cm.forward_flops(SMALL, 10, 7, 3) == 2880 + 112 + 240


def test_one_step_of_a_tiny_model_by_hand():
    """1 problem x 2 samples x 1 attempt, prompt 3, answer 2: rows of 5 tokens, of which 2 are shared."""
    work = Work(1, 2, 1, 3, 2, 0)
    counted = cm.step_work(cm.Setup(SMALL), work)
    first = counted["sample 1"]
    assert first["prefill"] == cm.forward_flops(SMALL, 3, 6, 1)  # once for both samples; 1 + 2 + 3 pairs
    assert first["decode"] == 2 * cm.forward_flops(SMALL, 1, 4, 1)  # the second token sees 3 + 1
    assert first["passes"] == 2
    assert first["weights"] == 2 * (144 + 40) * 4
    assert first["kv"] == 2 * 4 * (2 * 2 * 4)  # 2 rows x 4 slots x keys and values of width 2 in float32
    # 2 shared tokens (1 + 2 pairs), then 3 per row (3 + 4 + 5 pairs), 2 scored each
    assert counted["reference"]["forward"] == cm.forward_flops(SMALL, 2 + 2 * 3, 3 + 2 * 12, 4)
    assert counted["update"]["train"] == 3 * counted["reference"]["forward"]
    assert counted["update"]["adam"] == SMALL.parameters
    frozen = cm.step_work(cm.Setup(SMALL, lora_rank=2), work)["update"]["train"]
    adapters = 2 * SMALL.adapters(2) * 8
    assert frozen == 2 * cm.forward_flops(SMALL, 8, 0, 4) + 3 * cm.forward_flops(SMALL, 0, 27, 0) + 3 * adapters


@pytest.mark.parametrize("shape", [cm.QWEN_1_5B, cm.QWEN_7B, cm.QWEN_32B])
def test_parameters_are_those_of_the_real_architectures(shape):
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
        model.tie_weights()
        assert sum(p.numel() for p in model.parameters()) == shape.parameters
        adapted = _with_adapters(model, 8, 32.0)
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == shape.adapters(8)


@pytest.mark.parametrize("budget", [300, 1024, 4096])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("work", [WORK, replace(WORK, samples=3, problems=5), replace(WORK, samples=1)])
def test_micro_batches_are_the_engines(work, share, budget):
    rng = np.random.default_rng(0)
    sampled = np.zeros(work.sequence_tokens, dtype=bool)
    for k in range(work.attempts):
        sampled[work.prompt_of(k) : work.prompt_of(k) + work.answer_tokens] = True
    prompts = [np.full(work.prompt_tokens, b) for b in range(work.problems) for _ in range(work.samples)]
    answers = work.sequence_tokens - work.prompt_tokens
    tokens = [np.concatenate([p, rng.integers(100, 200, answers)]) for p in prompts]
    made = passes.micro_batches(tokens, [sampled] * len(tokens), budget, 0, torch.device("cpu"), share=share)
    counted = cm.micro_batches(cm.Setup(SMALL, tokens_per_microbatch=budget, share_prefix=share), work)
    assert sorted(m.tokens for m in made) == sorted(p.tokens for p in counted)
    assert sorted(len(m.index) for m in made) == sorted(p.rows for p in counted)


def test_the_chunk_of_logits_is_the_engines():
    assert cm.LOGITS_CHUNK == passes.LOGITS_CHUNK


def test_a_longer_prompt_is_computed_once_per_problem():
    longer = replace(WORK, prompt_tokens=WORK.prompt_tokens + 10)
    tokens = [sum(p.tokens for p in cm.micro_batches(SETUP, w)) for w in (WORK, longer)]
    assert tokens[1] - tokens[0] == 10 * WORK.problems
    whole = replace(SETUP, share_prefix=False)
    tokens = [sum(p.tokens for p in cm.micro_batches(whole, w)) for w in (WORK, longer)]
    assert tokens[1] - tokens[0] == 10 * WORK.episodes


def test_work_is_linear_in_problems():
    """At budgets that hold whole problems; the passes of one sampling batch do not grow, nor does Adam."""
    one, two, three = (
        cm.step_work(replace(SETUP, tokens_per_microbatch=400), replace(WORK, problems=n)) for n in (4, 8, 12)
    )
    for phase, amounts in one.items():
        for kind, n in amounts.items():
            fixed = kind in ("weights", "passes", "adam")
            assert (two[phase][kind], three[phase][kind]) == ((n, n) if fixed else (2 * n, 3 * n)), (phase, kind)


@pytest.mark.parametrize("axis", ["samples", "prompt_tokens"])
def test_time_is_a_straight_line_in_samples_and_nearly_in_the_prompt(axis):
    start = getattr(WORK, axis)
    works = [replace(WORK, **{axis: start * n}) for n in (2, 3, 4)]
    roomy = replace(SETUP, tokens_per_microbatch=10**6)
    times = [sum(total(cm.step_work(roomy, w)).values()) for w in works]
    bend = abs(times[0] + times[2] - 2 * times[1]) / times[1]
    assert bend < (1e-12 if axis == "samples" else 0.02)  # attention to the prompt is the rest


def test_later_attempts_feed_the_bridge_alone():
    """What the cache of attempt 1 holds is not computed again, unless the slot budget has pushed it out."""
    second = cm.sampling(SETUP, WORK, 1)["prefill"]
    crowded = replace(SETUP, sampling_slots=WORK.sequence_tokens * 4)  # 4 of the 16 rows fit into a batch
    assert second < cm.sampling(crowded, WORK, 1)["prefill"]
    assert cm.kept_rows(SETUP, WORK, 1) == 16
    assert cm.kept_rows(crowded, WORK, 1) < 16


@pytest.mark.parametrize("setup", [SETUP, cm.Setup(cm.QWEN_1_5B, 2, 32)])
def test_memory_is_bounded_by_the_token_budgets_and_not_by_the_batch(setup):
    bounded = replace(setup, tokens_per_microbatch=1024, sampling_slots=16 * WORK.sequence_tokens)
    base, larger = (cm.memory(bounded, replace(WORK, problems=n)) for n in (32, 128))
    assert base == larger
    free = replace(setup, tokens_per_microbatch=10**6, sampling_slots=10**6)
    base, larger = (cm.peaks(free, cm.memory(free, replace(WORK, problems=n))) for n in (32, 128))
    assert larger["training"] > base["training"] and larger["sampling"] > base["sampling"]


def test_sharding_divides_what_it_should():
    whole = cm.Setup(cm.QWEN_7B, 2, tokens_per_microbatch=100, share_prefix=False)  # one sequence each
    split = replace(whole, gpus=8, fsdp=8)
    one, eight = cm.memory(whole, WORK), cm.memory(split, WORK)
    assert eight["Adam"] == one["Adam"] / 8 and eight["masters"] == one["masters"] / 8
    assert eight["activations"] == one["activations"]  # each GPU has a micro-batch of its own
    parallel = cm.memory(replace(whole, gpus=4, tensor_parallel=4), WORK)
    assert parallel["activations"] == one["activations"] / 4 and parallel["weights"] == one["weights"] / 4
    flops = [cm.step_work(s, replace(WORK, problems=8))["update"]["train"] for s in (whole, split)]
    assert flops[1] == flops[0] / 8
    assert cm.step_work(split, WORK)["update"]["network"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 4])
def test_activations_are_what_autograd_keeps(dtype, rank):
    """Two depths, so that what is not of a layer falls out; the attention mask is the one of shared prefixes."""
    kept = [_kept_bytes(layers, dtype, rank) for layers in (2, 3)]
    shape = cm.Shape(1, 64, 192, 4, 2, 16, 128, tied=True)
    counted = cm.activation_bytes(cm.Setup(shape, torch.finfo(dtype).bits // 8, rank))
    assert kept[1] - kept[0] == pytest.approx(counted, rel=0.06)


def _kept_bytes(layers, dtype, rank, rows=2, width=32):
    """Bytes of saved tensors per token, parameters left out."""
    model: LlamaForCausalLM = tiny.random_model(
        dtype=dtype, hidden_size=64, intermediate_size=192, num_hidden_layers=layers
    )
    if rank:
        _with_adapters(model, rank, 32.0)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model.get_decoder()(
            input_ids=torch.randint(0, 200, (rows, width)),
            attention_mask=torch.ones(rows, 1, width, width, dtype=torch.bool).tril(),
            position_ids=torch.arange(width).expand(rows, -1),
            use_cache=False,
        )
    return sum(n for n, _ in kept.values()) / (rows * width)


def test_fitted_prices_are_found_again_and_never_negative():
    rng = np.random.default_rng(0)
    amounts = rng.uniform(1, 5, (20, 3)) * [1e9, 1e3, 1]
    prices = np.array([2e-10, 0.0, 0.3])
    assert cm.fit(amounts, amounts @ prices) == pytest.approx(prices, abs=1e-12)
    opposed = np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])  # would want a negative constant
    assert (cm.fit(opposed, np.array([1.0, 4.0, 9.0])) >= 0).all()


def test_a_step_is_played_at_exactly_its_size():
    work = Work(3, 2, 3, 7, 4, 5)
    engine = tiny.engine()
    engine.snapshot("base")
    seen = []
    forward_backward = engine.forward_backward
    engine.forward_backward = lambda data, loss: seen.extend(data) or forward_backward(data, loss)
    taken = play_step(engine, work)
    assert len(taken.sample) == 3 and taken.reference > 0 and taken.policy == 0
    assert taken.total == pytest.approx(sum(taken.sample) + taken.reference + taken.update)
    assert [len(d.tokens_T) for d in seen] == [work.sequence_tokens] * work.episodes  # one sequence per episode
    assert sum(int((d.weights_T != 0).sum()) for d in seen) == work.sampled_tokens == 3 * 2 * 3 * 4
    assert all(((d.weights_T != 0) == d.sampled_T).all() for d in seen)
    single = play_step(engine, replace(work, attempts=1, reference=False))
    assert len(single.sample) == 1 and single.reference == 0


def test_in_bfloat16_the_policys_own_log_probs_are_a_phase():
    engine = tiny.engine(dtype=torch.bfloat16)
    engine.snapshot("base")
    assert play_step(engine, Work(1, 2, 1, 4, 3, 0)).policy > 0
    assert "policy" in cm.step_work(cm.Setup(SMALL, 2), WORK)
    assert "policy" not in cm.step_work(cm.Setup(SMALL, 4), WORK)


def test_the_defaults_are_the_engines():
    engine = TorchEngineConfig()
    assert (SETUP.tokens_per_microbatch, SETUP.sampling_slots) == (
        engine.tokens_per_microbatch,
        engine.tokens_per_sampling_batch,
    )
