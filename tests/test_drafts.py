"""Drafts make answers come faster and change none of them."""

import asyncio
import dataclasses

import numpy as np
import pytest
import torch

import tiny
from selfcorrect.engines.base import SampleRequest, SamplingParams
from selfcorrect.engines.torch_engine import sampler
from selfcorrect.engines.torch_engine.drafts import LEAST_CHANCE, Draft, plan
from selfcorrect.episodes.table import drafted_share_K
from selfcorrect.types import Attempt, Episode, Problem

END = 4
HEADER = (1, 50, 2)
FIRST = tuple(range(100, 130))
PROMPT = (*HEADER, *FIRST, END, *HEADER)
"""One earlier attempt, between the headers of two turns."""


def proposed(draft, most=5):
    return draft.propose(most, 0.0)[0]


def test_an_answer_follows_the_last_attempt_from_its_start_and_not_past_its_end():
    draft = Draft(PROMPT, (), frozenset({END}))
    assert proposed(draft) == [100, 101, 102, 103, 104]
    for token in FIRST[:28]:
        draft.observe(token)
    assert proposed(draft) == [128, 129, END]
    again = Draft((*PROMPT, *range(200, 210), END, *HEADER), (), frozenset({END}))
    assert proposed(again, 2) == [200, 201]


@pytest.mark.parametrize(
    ("said", "next_up"),
    [
        ((*FIRST[:4], 7), 105),  # replaced
        ((*FIRST[:4], 7, 8, *FIRST[4:6]), 106),  # inserted
        ((*FIRST[:4], *FIRST[9:12]), 112),  # left out
        ((*FIRST[:9], 7, 7, 7, *FIRST[2:5]), 105),  # went back
    ],
)
def test_an_answer_finds_its_place_again_after_a_change(said, next_up):
    draft = Draft(PROMPT, (), frozenset({END}))
    for token in said:
        draft.observe(token)
    assert proposed(draft, 1) == [next_up]
    assert proposed(Draft(PROMPT, said, frozenset({END})), 1) == ([next_up] if len(said) > 5 else [])


def test_an_answer_that_repeats_nothing_drafts_nothing():
    assert proposed(Draft((5, 6, 7, 8), (), frozenset())) == []
    draft = Draft(PROMPT, (), frozenset({END}))
    for token in range(10, 40):
        draft.observe(token)
    assert proposed(draft) == []


def test_ids_are_found_as_wholes_and_not_across_their_bytes():
    assert proposed(Draft((0x0100, 0x0200, 0x0300, 0x01, 0x02), (), frozenset())) == []


def test_a_row_drafts_more_the_more_its_drafts_hold_and_nothing_once_they_fail():
    prompt = (*HEADER, *range(100, 160), *HEADER)
    draft = Draft(prompt, (), frozenset())
    lengths = []
    for token in range(100, 130):
        lengths.append(len(draft.propose(16, 0.5)[0]))
        draft.observe(token)
    assert lengths[0] == 0 and lengths[1] < lengths[4] < lengths[-1]
    stubborn = Draft((*HEADER, *[60, 61] * 20, *HEADER), (), frozenset())
    for _ in range(10):
        stubborn.observe(60)
        stubborn.observe(62)
        stubborn.observe(60)
    assert stubborn.propose(16, LEAST_CHANCE)[1] < 1


def test_the_fuller_the_pass_the_fewer_drafts():
    def total(rows):
        drafts = [Draft(PROMPT, FIRST[:5], frozenset()) for _ in range(rows)]
        for token in FIRST[5:9]:
            for draft in drafts:
                draft.observe(token)
        return sum(map(len, plan(drafts, [16] * rows, 16.0))) / rows

    assert total(1) > total(8) > total(32) > total(500) == 0
    assert plan([None, Draft(PROMPT, FIRST[:5], frozenset())], [4, 0], 16.0) == [[], []]


def with_adapters(engine):
    """Adapters that change the law: a fresh one is zero."""
    torch.manual_seed(3)
    for name, parameter in sorted(engine._model.named_parameters()):
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    engine.publish()
    return engine


def play(engine, temperature, n=24, part=0):
    """Two attempts of unequal lengths at prompts of unequal lengths; the second continues the caches of the first."""
    params = SamplingParams(20, temperature, frozenset({END, *range(5, 12)}), continued=True)
    rng = np.random.default_rng(part)
    first = [
        SampleRequest((1, *(int(t) for t in rng.integers(12, 200, size=rng.integers(3, 25))), END, 2), (part, i))
        for i in range(n)
    ]
    one = asyncio.run(engine.sample(first, params))
    second = [
        SampleRequest((*r.prompt_ids, *s.token_ids, 1, 9, 9, END, 2), (part, i, "again"))
        for i, (r, s) in enumerate(zip(first, one, strict=True))
    ]
    return [*first, *second], [*one, *asyncio.run(engine.sample(second, params))]


def oracle(requests, answers, right=0.8):
    """Drafts of the length that chance gives, each token the answer's own with this probability."""
    rng = np.random.default_rng(0)
    known = {r.key: a.token_ids for r, a in zip(requests, answers, strict=True)}

    def _plan(_self, rows, params, _followed):
        out = []
        for row in rows:
            rest = known[row.request.key][len(row.token_ids) :]
            most = 0 if sampler._done(row, params) else params.max_new_tokens - len(row.token_ids) - 1
            length = min(int(rng.integers(0, 7)), most)
            guess = [int(t) if rng.random() < right else int(rng.integers(12, 200)) for t in rest[:length]]
            out.append([*guess, *(int(t) for t in rng.integers(12, 200, size=length - len(guess)))])
        return out

    return _plan


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("lora", [None, (4, 8.0)], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_right_and_wrong_drafts_change_no_token(monkeypatch, temperature, lora, packs):
    requests, plain = play(with_adapters(tiny.engine(lora=lora, drafts=False)), temperature)
    engine = with_adapters(tiny.engine(lora=lora, drafts=True))
    engine._sampler._packs = packs
    monkeypatch.setattr(sampler.Sampler, "_plan", oracle(requests, plain))
    again, drafted = play(engine, temperature)
    assert again == requests
    assert [a.token_ids for a in drafted] == [a.token_ids for a in plain]
    assert [a.stop for a in drafted] == [a.stop for a in plain]
    assert sum(a.drafted for a in drafted) > 0.3 * sum(len(a.token_ids) for a in drafted)
    assert all(a.drafted < len(a.token_ids) for a in drafted)
    for request, a, b in zip(requests, plain, drafted, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
        datum = tiny.sampled_data([request], [b], 1.0)
        np.testing.assert_allclose(engine.logprobs(datum, "current")[0][datum[0].sampled_T], b.logprobs, atol=1e-4)


def script(monkeypatch, answers):
    """Let every answer be the given one: the model computes all its laws, and the draws are replaced."""
    draw = sampler._draw

    def forced(logits_NV, uniforms_N, temperature):
        draw(logits_NV, uniforms_N, temperature)
        tokens_N = (uniforms_N * 2**20).long()
        return tokens_N, logits_NV.log_softmax(-1).gather(1, tokens_N[:, None]).squeeze(1)

    monkeypatch.setattr(sampler, "_draw", forced)
    monkeypatch.setattr(
        sampler, "_stream", lambda request, n: np.array([*answers[request.key], *[END] * n][:n]) / 2**20
    )


@pytest.mark.parametrize(("copied", "most_passes", "least_share"), [(1.0, 8, 0.8), (0.0, 40, 0.0)])
def test_a_copy_takes_few_passes_and_a_new_text_no_more_than_before(monkeypatch, copied, most_passes, least_share):
    rng = np.random.default_rng(0)
    first = [tuple(int(t) for t in rng.integers(12, 200, size=40)) for _ in range(4)]
    second = {(i,): (f if copied else tuple(reversed(f))) for i, f in enumerate(first)}
    engine = tiny.engine(drafts=True)
    script(monkeypatch, second)
    passes = []
    forward = engine._sampler._forward
    engine._sampler._forward = lambda *args, **how: passes.append(sum(map(len, args[1]))) or forward(*args, **how)
    requests = [SampleRequest((*HEADER, *f, END, *HEADER), (i,)) for i, f in enumerate(first)]
    answers = asyncio.run(engine.sample(requests, SamplingParams(40, 1.0, frozenset({END}))))
    assert [a.token_ids for a in answers] == list(second.values())
    assert len(passes) <= most_passes
    share = sum(a.drafted for a in answers) / 160
    assert share >= least_share and (copied or share < 0.02), "a chance hit at most"
    if not copied:
        assert sum(passes[1:]) <= 1.05 * 39 * 4, "drafts of a text that follows nothing"


def test_drafts_are_off_in_bfloat16_unless_asked_for_and_switched_off_by_the_setting():
    assert tiny.engine()._sampler._drafts and not tiny.engine(drafts=False)._sampler._drafts
    assert not tiny.engine(dtype=torch.bfloat16)._sampler._drafts
    assert tiny.engine(dtype=torch.bfloat16, drafts=True)._sampler._drafts


def test_the_share_of_drafted_tokens_is_over_the_sampled_tokens_of_each_attempt():
    problem = Problem("p", "?", "!")
    one = Attempt("a", (1,), (5,) * 10, (0.0,) * 10, "end")
    episodes = [
        Episode(problem, 0, (one, dataclasses.replace(one, drafted=7))),
        Episode(problem, 1, (dataclasses.replace(one, source="given"), dataclasses.replace(one, drafted=1))),
    ]
    assert drafted_share_K(episodes) == [0.0, 0.4]
    assert drafted_share_K(episodes[1:]) == [None, 0.1]
