"""Conformance of an engine: tokens in and out, both losses, the reduction, masks, snapshots, determinism."""

import asyncio
import dataclasses
import inspect
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import BaseModelOutputWithPast

import tiny
from selfcorrect.config import TorchEngineConfig
from selfcorrect.engines.base import AdamParams, SampleRequest, SamplingParams
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.torch_engine import TorchEngine, freed, packed, passes, sampler
from selfcorrect.engines.torch_engine.attention import cpu_attention
from selfcorrect.engines.torch_engine.cache import PrefixStore, SlotCache, run_decoder
from selfcorrect.engines.torch_engine.passes import micro_batches
from selfcorrect.errors import EngineError, ModelError
from selfcorrect.types import Datum

END = tiny.tokenizer().eos_token_id
FREE = SamplingParams(12, 1.0, frozenset({END}))


def prompts(n, seed=0):
    """Unequal lengths, ids of ordinary characters."""
    rng = np.random.default_rng(seed)
    return [tuple(int(t) for t in rng.integers(5, 200, size=rng.integers(3, 15))) for _ in range(n)]


def requests(n=6, seed=0):
    return [SampleRequest(p, (seed, "test", i)) for i, p in enumerate(prompts(n, seed))]


def sample(engine, reqs, params=FREE):
    return asyncio.run(engine.sample(reqs, params))


def datum(prompt, answer, logprobs, weights):
    tokens = np.array([*prompt, *answer])
    n = len(prompt)
    mask = np.arange(len(tokens)) >= n
    spread = np.zeros(len(tokens))
    spread[n:] = weights
    lps = np.zeros(len(tokens))
    lps[n:] = logprobs
    return Datum(tokens, spread, lps, mask)


def sampled_data(engine, n=6, weight=lambda i: 0.1 * (i - 2.3)):
    reqs = requests(n)
    return [
        datum(r.prompt_ids, s.token_ids, s.logprobs, weight(i))
        for i, (r, s) in enumerate(zip(reqs, sample(engine, reqs), strict=True))
    ]


def test_same_key_same_tokens_and_other_key_other_tokens():
    engine = tiny.engine()
    first, second = sample(engine, requests()), sample(engine, requests())
    assert first == second
    other = [SampleRequest(r.prompt_ids, ("other", i)) for i, r in enumerate(requests())]
    assert [s.token_ids for s in sample(engine, other)] != [s.token_ids for s in first]


def test_row_order_batch_split_and_neighbours_do_not_change_the_tokens():
    together = sample(tiny.engine(), requests(12))
    backwards = sample(tiny.engine(), requests(12)[::-1])[::-1]
    alone = [sample(tiny.engine(), [r])[0] for r in requests(12)]
    split = sample(tiny.engine(tokens_per_sampling_batch=60), requests(12))
    for other in (backwards, alone, split):
        assert [s.token_ids for s in other] == [s.token_ids for s in together]


def test_caches_held_for_the_next_attempt_stay_within_the_budget_of_one_batch(monkeypatch):
    held = []
    add = PrefixStore.add
    engine = tiny.engine(tokens_per_sampling_batch=60)
    monkeypatch.setattr(PrefixStore, "add", lambda self, cache, ids: held.append(cache.slots) or add(self, cache, ids))
    continued = dataclasses.replace(FREE, continued=True)
    sample(engine, requests(12), continued)
    assert 0 < sum(held) <= 60


def test_concurrent_calls_are_answered_by_one_batch_and_to_the_right_caller():
    engine = tiny.engine()
    calls = []
    run = engine._sampler.run
    engine._sampler.run = lambda reqs, params: calls.append(len(reqs)) or run(reqs, params)

    async def many():
        return await asyncio.gather(*(engine.sample([r], FREE) for r in requests(8)))

    answers = [a[0].token_ids for a in asyncio.run(many())]
    assert calls == [8]
    assert answers == [s.token_ids for s in sample(tiny.engine(), requests(8))]


def test_sampler_and_trainer_logprobs_agree_in_fp32():
    engine = tiny.engine()
    data = sampled_data(engine, 16)
    trained = engine.logprobs(data, "current")
    for d, lp in zip(data, trained, strict=True):
        np.testing.assert_allclose(lp[d.sampled_T], d.logprobs_T[d.sampled_T], atol=1e-4)


def test_logprobs_equal_the_plain_model():
    engine = tiny.engine()
    for d, lp in zip(data := sampled_data(engine), engine.logprobs(data, "current"), strict=True):
        with torch.no_grad():
            logits = tiny.random_model()(torch.tensor(d.tokens_T)[None]).logits[0]
        slow = logits[:-1].log_softmax(-1).gather(1, torch.tensor(d.tokens_T[1:])[:, None])[:, 0].numpy()
        np.testing.assert_allclose(lp[1:][d.sampled_T[1:]], slow[d.sampled_T[1:]], atol=1e-5)
        assert (lp[~d.sampled_T] == 0).all()


def families(samples=3):
    """Several samples of each of some problems, and one problem with a single sample."""
    rng = np.random.default_rng(1)
    data = []
    for n, prompt in enumerate(prompts(4, seed=2)):
        for _ in range(samples if n else 1):
            answer = rng.integers(5, 200, size=rng.integers(1, 9))
            data.append(datum(prompt, answer, np.full(len(answer), -5.0), rng.normal(size=len(answer))))
    return data


def test_rows_of_several_stored_caches_are_gathered_in_the_order_asked_for():
    store, stored = PrefixStore(1000), {}
    for cache_id, (rows, capacity) in enumerate([(3, 7), (2, 9), (4, 5)]):
        layers = [(torch.randn(rows, 2, capacity, 4), torch.randn(rows, 2, capacity, 6)) for _ in range(2)]
        lengths_B = torch.randint(1, capacity, (rows,))
        fed = [[cache_id + 1, row] * 10 for row in range(rows)]
        store.add(SlotCache(layers, lengths_B, capacity), [ids[:n] for ids, n in zip(fed, lengths_B, strict=True)])
        stored |= {(cache_id, row): (layers, row, int(lengths_B[row])) for row in range(rows)}
    wanted = [(2, 3), (0, 1), (1, 0), (0, 1), (2, 0), (1, 1)]
    found = store.gather([(*key, stored[key][2]) for key in wanted], 11)
    assert found.lengths_B.tolist() == [stored[key][2] for key in wanted] and found.capacity == 11
    for layer, kv in enumerate(found._layers):
        for which, tensor in enumerate(kv):
            assert tensor.shape[2] == 11
            for place, key in enumerate(wanted):
                layers, row, length = stored[key]
                assert tensor[place, :, :length].equal(layers[layer][which][row, :, :length])


@pytest.mark.parametrize("lora", [None, (4, 8.0)])
@pytest.mark.parametrize("budget", [16_384, 40])
def test_a_prompt_computed_once_changes_no_log_prob_and_no_gradient(monkeypatch, lora, budget):
    def measured(share):
        engine = tiny.engine(lora=lora, tokens_per_microbatch=budget)
        monkeypatch.setattr(
            "selfcorrect.engines.torch_engine.engine.micro_batches",
            lambda *args, **kwargs: micro_batches(*args, **{**kwargs, "share": share}),
        )
        batches = engine._batches([d.tokens_T for d in families()], [d.sampled_T for d in families()])
        return engine.logprobs(families(), "current"), gradients(engine, families()), batches

    shared, whole = measured(True), measured(False)
    assert any(b.prefix is not None for b in shared[2])
    assert all(b.prefix is None for b in whole[2])
    assert sum(b.tokens for b in shared[2]) < sum(b.tokens for b in whole[2])
    assert all(b.tokens <= budget for b in shared[2])
    for a, b in zip(shared[0], whole[0], strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert_same_gradients(shared[1], whole[1])


def test_rows_give_a_weight_their_gradient_before_the_prompt_they_share_does():
    """In one go autograd would hold the first until the second has come: a copy of all gradients beside the gradients."""
    engine = tiny.engine()
    weight = engine._model.get_decoder().layers[0].mlp.up_proj.weight
    given = []
    weight.register_post_accumulate_grad_hook(lambda p: given.append(p.grad.clone()))
    engine.forward_backward(families()[1:4], "importance_sampling")
    rows, both = given
    assert rows.abs().sum() > 0 and not torch.equal(rows, both)
    assert torch.equal(both, weight.grad)


def test_a_prompt_is_shared_only_where_that_computes_fewer_tokens():
    first, *others = families(1)  # every problem has one sample
    tokens, wanted = [d.tokens_T for d in (first, *others)], [d.sampled_T for d in (first, *others)]
    assert all(b.prefix is None for b in micro_batches(tokens, wanted, 1000, 0, torch.device("cpu")))
    (batch,) = micro_batches(tokens[:1] * 4, wanted[:1] * 4, 1000, 0, torch.device("cpu"))
    answer = int(wanted[0].sum())
    # the prompt but its last token once, then that token and the answer four times
    assert batch.tokens == len(tokens[0]) - answer - 1 + 4 * (answer + 1)
    assert sorted(batch.index) == [0, 1, 2, 3]


def tree_data():
    """Per problem two first attempts, and three second attempts after each; one problem with a single attempt."""
    rng = np.random.default_rng(4)
    data = []
    for n, prompt in enumerate(prompts(4, seed=3)):
        for _ in range(2 if n else 1):
            answer = rng.integers(5, 200, size=rng.integers(2, 7))
            data.append(datum(prompt, answer, np.full(len(answer), -5.0), rng.normal(size=len(answer))))
            shown = (*prompt, *answer.tolist(), 9, 8, 7)
            for _again in range(3 if n else 0):
                again = np.concatenate(
                    [answer[:1], rng.integers(5, 200, size=rng.integers(1, 9))]
                )  # a common beginning
                data.append(datum(shown, again, np.full(len(again), -5.0), rng.normal(size=len(again))))
    return [*data, data[-1]]  # twice the same


@pytest.mark.parametrize("lora", [None, (4, 8.0)])
@pytest.mark.parametrize("budget", [16_384, 60, 10])
@pytest.mark.parametrize("recomputed", [False, True])
def test_trees_change_no_log_prob_and_no_gradient(monkeypatch, lora, budget, recomputed):
    data = tree_data()

    def measured(trees_from):
        monkeypatch.setattr("selfcorrect.engines.torch_engine.engine.TREES_FROM", trees_from)
        engine = tiny.engine(lora=lora, tokens_per_microbatch=budget, gradient_checkpointing=recomputed)
        batches = engine._batches([d.tokens_T for d in data], [d.sampled_T for d in data])
        return engine.logprobs(data, "current"), gradients(engine, data), batches

    trees, others = measured(0), measured(10**9)
    assert all(b.trees is not None for b in trees[2]) and all(b.trees is None for b in others[2])
    assert sorted(i for b in trees[2] for i in b.index) == list(range(len(data)))
    assert sum(b.tokens for b in trees[2]) < sum(b.tokens for b in others[2])
    longest = max(len(d.tokens_T) for d in data) - 1
    assert all(b.tokens <= max(budget, longest) for b in trees[2])
    for a, b in zip(trees[0], others[0], strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert_same_gradients(trees[1], others[1])


def test_a_tree_has_every_token_once():
    data = tree_data()
    tokens, wanted = [d.tokens_T for d in data], [d.sampled_T for d in data]
    made = micro_batches(tokens, wanted, 10**6, 0, torch.device("cpu"), pair_cost=0.0)
    nodes = {tuple(t[: n + 1]) for t, w in zip(tokens, wanted, strict=True) for n in range(int(np.flatnonzero(w)[-1]))}
    sees = [b.trees.sees_BTT for b in made]
    real = sum(int((s.sum(dim=2) > 1).sum()) for s in sees) + sum(len(b.ids_BT) for b in made)
    assert real == len(nodes)
    assert sum(len(b.ids_BT) for b in made) == 4  # one row for each problem


def test_trees_are_left_where_attention_over_them_costs_more_than_they_save():
    """Long answers to one short prompt: in a tree every token looks at all of them, though it sees its own alone."""
    rng = np.random.default_rng(5)
    data = [datum((3, 4, 5), rng.integers(5, 200, size=40), np.zeros(40), np.zeros(40)) for _ in range(8)]
    arguments = [d.tokens_T for d in data], [d.sampled_T for d in data], 10**6, 0, torch.device("cpu")
    assert all(b.trees is not None for b in micro_batches(*arguments, pair_cost=1e-5))
    assert all(b.trees is None for b in micro_batches(*arguments, pair_cost=1e-2))
    assert all(b.trees is None for b in micro_batches(*arguments))


@pytest.mark.parametrize("refuses", [False, True])
def test_a_model_whose_layers_do_not_take_trees_has_none(monkeypatch, refuses):
    monkeypatch.setattr("selfcorrect.engines.torch_engine.engine.TREES_FROM", 0)
    model = tiny.random_model()
    parameters = sum(p.numel() for p in model.parameters())
    assert tiny.engine()._pair_cost == pytest.approx(2 * 2 * 32 / parameters)  # two layers, width 32
    inner = model.model.forward

    def forward(use_cache=True, position_ids=None, **kwargs):
        """Counts positions itself in a pass without a cache, or refuses one that has a mask."""
        if not use_cache and refuses and kwargs.get("attention_mask") is not None:
            raise ValueError("no mask")
        return inner(use_cache=use_cache, position_ids=position_ids if use_cache else None, **kwargs)

    forward.__signature__ = inspect.signature(inner)
    model.model.forward = forward
    assert TorchEngine(model, ChatFormat(tiny.tokenizer()), TorchEngineConfig(device="cpu"))._pair_cost is None


def test_logits_in_chunks_change_no_log_prob_and_no_gradient(monkeypatch):
    def measured(rows):
        monkeypatch.setattr(passes, "LOGITS_CHUNK", rows * len(tiny.tokenizer()))
        e = tiny.engine()
        logprobs = e.forward_backward(families(), "importance_sampling")
        return logprobs, e.gradients()

    whole, in_parts = measured(10_000), measured(3)
    for a, b in zip(whole[0], in_parts[0], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert_same_gradients(whole[1], in_parts[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("queries", "keys", "masked"), [(7, 7, False), (7, 12, True), (1, 12, True)])
def test_attention_on_a_cpu_is_that_of_transformers(dtype, queries, keys, masked):
    module = tiny.random_model().model.layers[0].self_attn
    g = torch.Generator().manual_seed(queries)
    q, k, v = (torch.randn(3, h, n, 8, generator=g).to(dtype) for h, n in ((4, queries), (2, keys), (2, keys)))
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).expand(3, 1, -1, -1) if masked else None
    results = []
    for attend in (sdpa_attention_forward, cpu_attention):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out, _ = attend(module, *leaves, mask, scaling=0.3, dropout=0.0)
        out.float().square().sum().backward()
        results.append([out, *(x.grad for x in leaves)])
    bound = 1e-5 if dtype == torch.float32 else 0.05
    for expected, found in zip(*results, strict=True):
        assert found.dtype == dtype and found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=bound, rtol=bound)


@pytest.mark.parametrize("lora", [None, (4, 8.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_are_the_published_ones_and_gone_while_training(monkeypatch, lora, dtype):
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN multiplies no bfloat16 on this processor, so nothing is packed")
    monkeypatch.setattr(packed, "SMALLEST", 1)
    e = tiny.engine(lora=lora, dtype=dtype)
    linears = e._sampler._packed._linears
    assert len(linears) == 15 + (28 if lora else 0)  # 7 a layer and the head; two adapters on each but the head
    used = []
    product = packed._product
    monkeypatch.setattr(packed, "_product", lambda *args: used.append(1) or product(*args))
    data = sampled_data(e)
    assert used and len(e._sampler._packed._packed) == len(linears)
    bound = 1e-4 if dtype == torch.float32 else 0.25
    for _ in range(2):
        for d, lp in zip(data, e.logprobs(data, "current"), strict=True):
            np.testing.assert_allclose(lp[d.sampled_T], d.logprobs_T[d.sampled_T], atol=bound)
        n = len(used)
        e.forward_backward(data, "importance_sampling")
        assert len(used) == n and not e._sampler._packed._packed
        e.optim_step(AdamParams(0.03))
        e.publish()
        data = sampled_data(e)  # by the new weights


def test_the_attention_is_ours_and_one_that_misreads_the_mask_is_refused():
    model = tiny.random_model()
    TorchEngine(model, ChatFormat(tiny.tokenizer()), TorchEngineConfig(device="cpu"))
    assert model.config._attn_implementation == "selfcorrect_cpu"
    eager = tiny.random_model()
    eager.set_attn_implementation("eager")  # it adds the mask, True and False, to the scores
    with pytest.raises(ModelError, match="differ from a plain forward pass"):
        TorchEngine(eager, ChatFormat(tiny.tokenizer()), TorchEngineConfig(device="cpu"))


def test_layers_that_run_again_get_whole_sequences():
    engine = tiny.engine(gradient_checkpointing=True)
    data = families()
    assert all(b.prefix is None for b in engine._batches([d.tokens_T for d in data], [d.sampled_T for d in data]))


def test_a_continued_answer_reuses_its_cache_and_gives_the_same_tokens():
    params = SamplingParams(8, 1.0, frozenset({END}), continued=True)

    def second(engine, drop):
        firsts = sample(engine, requests(10), params)
        if drop:
            engine._sampler.drop_caches()
        fed = []
        forward = engine._sampler._forward
        engine._sampler._forward = lambda cache, ids, **how: (
            fed.append(max(map(len, ids))) or forward(cache, ids, **how)
        )
        longer = [
            SampleRequest((*r.prompt_ids, *s.token_ids, 7, 8, 9), ("second", i))
            for i, (r, s) in enumerate(zip(requests(10), firsts, strict=True))
        ]
        return [s.token_ids for s in sample(engine, longer, params)], fed[0]

    cached, fed_cached = second(tiny.engine(), drop=False)
    fresh, fed_fresh = second(tiny.engine(), drop=True)
    assert cached == fresh
    assert fed_cached == 4  # the last sampled token, which had not been fed, and the three new ones
    assert fed_fresh > 10


def test_publish_drops_the_caches():
    engine = tiny.engine()
    params = SamplingParams(8, 1.0, frozenset({END}), continued=True)
    firsts = sample(engine, requests(), params)
    longer = [
        SampleRequest((*r.prompt_ids, *s.token_ids, 7), ("second", i))
        for i, (r, s) in enumerate(zip(requests(), firsts, strict=True))
    ]
    engine.forward_backward(sampled_data(engine), "importance_sampling")
    engine.optim_step(AdamParams(0.1))
    engine.publish()
    moved = sample(engine, longer, params)
    for r, s in zip(longer, moved, strict=True):
        d = datum(r.prompt_ids, s.token_ids, s.logprobs, 1.0)
        np.testing.assert_allclose(engine.logprobs([d], "current")[0][d.sampled_T], s.logprobs, atol=1e-4)


def test_greedy_takes_the_mode_and_temperature_scales_the_law():
    engine = tiny.engine()
    greedy = sample(engine, requests(4), SamplingParams(1, 0.0))
    with torch.no_grad():
        for r, s in zip(requests(4), greedy, strict=True):
            assert s.token_ids[0] == int(tiny.random_model()(torch.tensor([r.prompt_ids])).logits[0, -1].argmax())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampling_follows_the_softmax_at_the_asked_temperature(temperature):
    engine, prompt = tiny.engine(), prompts(1)[0]
    n = 4000
    drawn = sample(engine, [SampleRequest(prompt, ("law", i)) for i in range(n)], SamplingParams(1, temperature))
    with torch.no_grad():
        law = (tiny.random_model()(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1).numpy()
    counts = np.bincount([s.token_ids[0] for s in drawn], minlength=len(law))
    # chi-square over tokens with at least 5 expected, the rest in one bin; 5 standard deviations of slack
    common = law * n >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(law[common] * n, law[~common].sum() * n)
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = len(observed) - 1
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)
    lps = {s.token_ids[0]: s.logprobs[0] for s in drawn}
    for token, lp in lps.items():
        assert lp == pytest.approx(np.log(law[token]), abs=1e-4)


@pytest.mark.parametrize("vocabulary", [5, sampler.BLOCK, 300, 8 * sampler.BLOCK])
def test_a_draw_is_where_the_cumulated_law_passes_the_uniform_number(vocabulary):
    """Whatever the vocabulary's size is to the block's; against float64 sums over the whole of it."""
    rng = np.random.default_rng(vocabulary)
    logits_BV = torch.tensor(rng.normal(size=(500, vocabulary)) * 3, dtype=torch.float32)
    logits_BV[:, ::3] = -torch.inf  # these are never drawn
    uniforms_B = torch.tensor(np.append(rng.random(498), [0.0, np.nextafter(1.0, 0.0)]))
    tokens_B, logprobs_B = sampler._draw(logits_BV, uniforms_B, 1.0)
    upto_BV = logits_BV.double().softmax(-1).cumsum(-1).numpy()
    tokens = tokens_B.numpy()
    rows = np.arange(500)
    before = np.where(tokens > 0, upto_BV[rows, np.maximum(tokens - 1, 0)], 0.0)
    assert (before - 1e-6 <= uniforms_B.numpy()).all() and (uniforms_B.numpy() <= upto_BV[rows, tokens] + 1e-6).all()
    assert (tokens % 3 != 0).all()
    exact = logits_BV.double().log_softmax(-1).gather(1, tokens_B[:, None]).squeeze(1)
    torch.testing.assert_close(logprobs_B.double(), exact, atol=1e-5, rtol=0)


def test_logits_that_are_no_numbers_give_no_log_prob():
    _, logprobs_B = sampler._draw(torch.full((2, 300), torch.nan), torch.tensor([0.1, 0.9], dtype=torch.float64), 1.0)
    assert logprobs_B.isnan().all()


def test_an_answer_stops_at_the_end_token_and_says_so():
    engine = tiny.engine()
    params = SamplingParams(60, 1.0, frozenset(range(5, 60)))
    for s in sample(engine, requests(12), params):
        assert (s.token_ids[-1] in params.stop_ids) == (s.stop == "end")
        assert not set(s.token_ids[:-1]) & params.stop_ids
        assert s.stop == "end" or len(s.token_ids) == 60


def test_a_models_own_generation_defaults_never_leak_in():
    model = tiny.random_model()
    model.generation_config.update(top_k=1, temperature=0.01, do_sample=True, repetition_penalty=5.0)
    leaking = tiny.TorchEngine(model, tiny.ChatFormat(tiny.tokenizer()), tiny.TorchEngineConfig(device="cpu"))
    assert sample(leaking, requests()) == sample(tiny.engine(), requests())


def gradients(engine, data, loss="importance_sampling"):
    engine.forward_backward(data, loss)
    return {name: g.double() for name, g in engine.gradients().items()}


def assert_same_gradients(a, b, rtol=1e-4):
    assert a.keys() == b.keys()
    for name in a:
        scale = a[name].abs().max() + 1e-12
        assert float((a[name] - b[name]).abs().max() / scale) < rtol, name


@pytest.mark.parametrize("loss", ["importance_sampling", "cross_entropy"])
def test_the_loss_is_a_sum_and_the_micro_batch_split_changes_nothing(loss):
    data = sampled_data(tiny.engine(), 8)
    whole = gradients(tiny.engine(), data, loss)
    split = gradients(tiny.engine(tokens_per_microbatch=1), data, loss)
    shuffled = gradients(tiny.engine(), data[::-1], loss)
    one_by_one = tiny.engine()
    for d in data:
        one_by_one.forward_backward([d], loss)
    for other in (split, shuffled, {n: g.double() for n, g in one_by_one.gradients().items()}):
        assert_same_gradients(whole, other)


def test_both_losses_have_the_policy_gradient_on_policy():
    # at lp == lp_sampled: d/dtheta of -exp(lp - lp_s) w and of -w lp are the same
    data = sampled_data(tiny.engine(), 6)
    assert_same_gradients(gradients(tiny.engine(), data), gradients(tiny.engine(), data, "cross_entropy"), rtol=1e-3)


def test_gradient_of_the_plain_loss_by_hand():
    data = sampled_data(tiny.engine(), 4)
    model = tiny.random_model()
    total = torch.zeros(())
    for d in data:
        logits = model(torch.tensor(d.tokens_T)[None]).logits[0]
        lp = logits[:-1].log_softmax(-1).gather(1, torch.tensor(d.tokens_T[1:])[:, None])[:, 0]
        total = total - (lp * torch.tensor(d.weights_T[1:], dtype=torch.float32)).sum()
    total.backward()
    slow = {n: p.grad.double() for n, p in model.named_parameters()}
    assert_same_gradients(slow, gradients(tiny.engine(), data, "cross_entropy"))


def test_off_policy_the_ratio_scales_the_gradient():
    data = sampled_data(tiny.engine(), 3)
    doubled = [
        Datum(d.tokens_T, d.weights_T, np.where(d.sampled_T, d.logprobs_T - np.log(2), 0), d.sampled_T) for d in data
    ]
    base, twice = gradients(tiny.engine(), data), gradients(tiny.engine(), doubled)
    assert_same_gradients({n: 2 * g for n, g in base.items()}, twice, rtol=1e-3)


def test_weight_zero_positions_give_no_gradient_even_where_the_ratio_overflows():
    (d, *_) = sampled_data(tiny.engine(), 1)
    absurd = np.where(d.sampled_T, -1e30, 0.0)
    absurd[-1] = d.logprobs_T[-1]
    weights = np.zeros_like(d.weights_T)
    weights[-1] = 1.0
    got = gradients(tiny.engine(), [Datum(d.tokens_T, weights, absurd, d.sampled_T)])
    assert all(bool(torch.isfinite(g).all()) for g in got.values())
    assert_same_gradients(got, gradients(tiny.engine(), [Datum(d.tokens_T, weights, d.logprobs_T, d.sampled_T)]))


def test_training_logprobs_come_back_at_weighted_positions_only():
    engine = tiny.engine()
    data = sampled_data(engine, 3)
    for d, lp in zip(data, engine.forward_backward(data, "importance_sampling"), strict=True):
        np.testing.assert_array_equal(~np.isnan(lp), d.weights_T != 0)
        np.testing.assert_allclose(lp[d.sampled_T], d.logprobs_T[d.sampled_T], atol=1e-4)


def test_restore_is_the_snapshot_again_with_a_fresh_optimiser():
    for dtype in (torch.float32, torch.bfloat16):
        engine = tiny.engine(dtype=dtype)
        engine.snapshot("base")
        before = {n: p.clone() for n, p in engine._model.named_parameters()}
        on = np.arange(6) > 0
        datum = [Datum(np.arange(6) + 9, on * 1.0, np.zeros(6), on)]

        def step(engine=engine, datum=datum):
            engine.forward_backward(datum, "cross_entropy")
            engine.optim_step(AdamParams(0.1))
            return {n: p.clone() for n, p in engine._model.named_parameters()}

        first = step()
        step()
        engine.restore("base")
        with pytest.raises(EngineError, match="publish"):
            asyncio.run(engine.sample([SampleRequest((10,), (0,))], SamplingParams(2)))
        engine.publish()
        assert all(p.equal(before[n]) for n, p in engine._model.named_parameters())
        again = step()  # the same step from the same place: masters and moments are those of the start
        assert all(again[n].equal(first[n]) for n in first)
    with pytest.raises(EngineError, match="restore failed"):
        engine.restore("nobody")


@pytest.mark.parametrize("lora", [None, (4, 8.0)])
def test_a_snapshot_never_moves_and_kl_to_it_is_exactly_0_before_the_first_step(lora):
    engine = tiny.engine(lora=lora)
    data = sampled_data(engine)
    engine.snapshot("base")
    before = engine.logprobs(data, "base")
    for a, b in zip(before, engine.logprobs(data, "current"), strict=True):
        np.testing.assert_array_equal(a, b)
    for _ in range(3):
        engine.forward_backward(data, "importance_sampling")
        engine.optim_step(AdamParams(0.05))
    engine.publish()
    for a, b in zip(before, engine.logprobs(data, "base"), strict=True):
        np.testing.assert_array_equal(a, b)
    gaps = [np.abs(a - b).max() for a, b in zip(before, engine.logprobs(data, "current"), strict=True)]
    assert max(gaps) > 0.01


@pytest.mark.parametrize("lora", [None, (4, 8.0)])
def test_a_base_taken_after_a_warm_up_is_the_warmed_policy(lora):
    engine = tiny.engine(lora=lora)
    data = sampled_data(engine)
    cold = engine.logprobs(data, "current")
    engine.forward_backward(data, "cross_entropy")
    engine.optim_step(AdamParams(0.05))
    engine.publish()
    engine.snapshot("base")
    for warm, base, old in zip(engine.logprobs(data, "current"), engine.logprobs(data, "base"), cold, strict=True):
        np.testing.assert_array_equal(warm, base)
        assert np.abs(base - old).max() > 1e-3


def test_gradients_accumulate_until_the_step_and_are_cleared_by_it():
    data = sampled_data(tiny.engine(), 4)
    engine = tiny.engine()
    engine.forward_backward(data, "cross_entropy")
    engine.forward_backward(data, "cross_entropy")
    assert_same_gradients(
        {n: 2 * g for n, g in gradients(tiny.engine(), data, "cross_entropy").items()}, engine.gradients()
    )
    engine.optim_step(AdamParams(0.01))
    assert engine.gradients() == {}


def test_bf16_weights_train_through_fp32_masters():
    # 1e-4 is below bfloat16's resolution of most weights: without masters, repeated small steps would be lost
    engine = tiny.engine(dtype=torch.bfloat16)
    data = sampled_data(engine)
    before = np.concatenate(engine.logprobs(data, "current"))
    for _ in range(100):
        engine.forward_backward(data, "cross_entropy")
        engine.optim_step(AdamParams(1e-4))
    engine.publish()
    masters = torch.cat([m.flatten() for m in engine._weights._masters])
    params = torch.cat([p.detach().float().flatten() for p in engine._weights._params])
    start = torch.cat([p.detach().float().flatten() for p in tiny.random_model(dtype=torch.bfloat16).parameters()])
    travelled = (masters - start).abs()
    assert float(travelled.median()) > 2e-3  # about 100 steps of 1e-4, Adam moves each weight by about the rate
    assert float((params - masters).abs().max()) <= float(masters.abs().max()) * 2**-8
    assert np.abs(np.concatenate(engine.logprobs(data, "current")) - before).max() > 0.01


def test_bf16_sampler_and_trainer_agree_within_the_stated_bound():
    engine = tiny.engine(dtype=torch.bfloat16)
    data = sampled_data(engine, 16)
    gaps = [
        np.abs(lp - d.logprobs_T)[d.sampled_T] for d, lp in zip(data, engine.logprobs(data, "current"), strict=True)
    ]
    assert np.concatenate(gaps).max() < 0.25  # bfloat16 keeps 8 bits: logits near 8 are known to about 0.03
    assert np.concatenate(gaps).mean() < 0.03


def test_lora_adapters_are_float32_over_a_bf16_base_and_only_they_train():
    engine = tiny.engine(lora=(4, 8.0), dtype=torch.bfloat16)
    assert all("lora" in name for name in engine._weights.names)
    assert all(
        m is p and p.dtype == torch.float32
        for m, p in zip(engine._weights._masters, engine._weights._params, strict=True)
    )
    assert engine.info.trainable_parameters < engine.info.parameters / 2


@pytest.mark.parametrize("lora", [None, (4, 8.0)])
def test_save_and_load_go_on_bit_for_bit(tmp_path, lora):
    def steps(engine, n):
        for _ in range(n):
            engine.forward_backward(sampled_data_fixed, "cross_entropy")
            engine.optim_step(AdamParams(0.01))
        engine.publish()

    sampled_data_fixed = sampled_data(tiny.engine(), 4)
    straight = tiny.engine(lora=lora)
    straight.snapshot("base")
    steps(straight, 4)
    stopped = tiny.engine(lora=lora)
    stopped.snapshot("base")
    steps(stopped, 2)
    stopped.save(tmp_path / "ck")
    resumed = tiny.engine(seed=5, lora=lora) if lora is None else tiny.engine(lora=lora)
    resumed.load(tmp_path / "ck")
    steps(resumed, 2)
    for policy in ("current", "base"):
        for a, b in zip(
            straight.logprobs(sampled_data_fixed, policy), resumed.logprobs(sampled_data_fixed, policy), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_sampling_with_unpublished_weights_is_refused():
    engine = tiny.engine()
    engine.forward_backward(sampled_data(engine), "cross_entropy")
    engine.optim_step(AdamParams(0.01))
    with pytest.raises(EngineError, match="publish"):
        sample(engine, requests())


def test_a_failed_verb_leaves_the_engine_usable():
    engine = tiny.engine()
    good = sampled_data(engine, 2)
    bad = Datum(np.array([1, 10**6]), np.array([0.0, 1.0]), np.zeros(2), np.array([False, True]))
    with pytest.raises(EngineError) as caught:
        engine.forward_backward([*good, bad], "cross_entropy")
    assert caught.value.usable
    assert_same_gradients(gradients(tiny.engine(), good, "cross_entropy"), gradients(engine, good, "cross_entropy"))
    with pytest.raises(EngineError):
        sample(engine, [SampleRequest((10**6,), ("bad",))])
    assert sample(engine, requests()) == sample(tiny.engine(), requests())


def test_gradient_clipping_reports_the_norm_before_and_that_it_clipped():
    data = sampled_data(tiny.engine(), 4)
    engine = tiny.engine()
    engine.forward_backward(data, "cross_entropy")
    norm = float(torch.cat([g.flatten() for g in engine.gradients().values()]).norm())
    result = engine.optim_step(AdamParams(0.01, grad_clip=norm / 2))
    assert result.clipped
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)


class Takes(torch.nn.Module):
    """A decoder that says what it was given, and ignores arguments that it does not know, as transformers' do."""

    def forward(self, **kwargs):
        self.given = kwargs
        return BaseModelOutputWithPast(last_hidden_state=torch.zeros(1, 1, 1))


class TakesCache(Takes):  # transformers 5.24
    def forward(self, cache=None, **kwargs):
        return super().forward(cache=cache, **kwargs)


class TakesPastKeyValues(Takes):  # before
    def forward(self, past_key_values=None, **kwargs):
        return super().forward(past_key_values=past_key_values, **kwargs)


def test_a_decoder_gets_its_cache_by_the_name_it_gives_it():
    cache, ids = DynamicCache(), torch.zeros(1, 1, dtype=torch.long)
    for made, name in ((TakesCache(), "cache"), (TakesPastKeyValues(), "past_key_values")):
        run_decoder(made, cache, input_ids=ids)
        assert made.given == {name: cache, "input_ids": ids, "use_cache": True}
    with pytest.raises(ModelError, match="Takes takes no key-value cache"):
        run_decoder(Takes(), cache, input_ids=ids)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is called")
def test_the_c_library_is_asked_for_freed_memory_where_it_can_be(monkeypatch):
    trimmed = []
    monkeypatch.setattr(freed.ctypes, "CDLL", lambda _name: SimpleNamespace(malloc_trim=trimmed.append))
    freed.return_freed_memory()
    assert trimmed == [0]
    monkeypatch.setattr(freed.ctypes, "CDLL", lambda _name: SimpleNamespace())  # not glibc
    freed.return_freed_memory()


def test_an_update_begins_with_what_sampling_has_freed(monkeypatch):
    engine, order = tiny.engine(), []
    data = sampled_data(engine)
    monkeypatch.setattr(engine._sampler, "drop_caches", lambda: order.append("caches"))
    monkeypatch.setattr("selfcorrect.engines.torch_engine.engine.return_freed_memory", lambda: order.append("memory"))
    engine.forward_backward(data, "importance_sampling")
    assert order == ["caches", "memory"]
