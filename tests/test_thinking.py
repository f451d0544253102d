"""Models that think: what is judged, what attempt 2 sees, and that training is exact under either policy."""

from __future__ import annotations

import asyncio
import copy
import functools
import itertools
import json
from dataclasses import replace
from importlib import resources
from types import SimpleNamespace

import jinja2
import numpy as np
import pytest
import torch

import test_exact_gradient as exact
import tiny
import toy
from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.imitation import examples
from selfcorrect.algorithm.sequences import lay_out, policy_gradient_data, sequences
from selfcorrect.config import load_config
from selfcorrect.engines.base import CURRENT, Sampled
from selfcorrect.engines.chat import ChatFormat, Rendering, next_messages
from selfcorrect.engines.thinking import USUAL
from selfcorrect.engines.torch_engine import TorchEngine
from selfcorrect.episodes.play import Play, Reply, graded, longest_conversation, play
from selfcorrect.errors import Interrupted, ModelError
from selfcorrect.measuring.evaluate import usable_wrong
from selfcorrect.measuring.metrics import EvalSummary, summarise
from selfcorrect.records.lines import episode_from_row, episode_row
from selfcorrect.report.sample import _entry
from selfcorrect.training.warmup import demonstration_data
from selfcorrect.types import Attempt, Episode, Grade, Problem, Verdict

TEMPLATE = (
    "{% for m in messages %}{% set c = m['content'] %}{% if m['role'] == 'assistant' and '</t>' in c %}"
    "{% set c = c.split('</t>')[-1] %}{% endif %}{{ '<|' + m['role'] + '|>' + c + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{{ '<t>' if thinks | default(true) else '<t></t>' }}{% endif %}"
)
MARKERS = ("<t>", "</t>")


@functools.cache
def tokenizer():
    made = copy.deepcopy(tiny.tokenizer())
    made.chat_template = TEMPLATE
    return made


def chat_format(**rendering):
    return ChatFormat(tokenizer(), (), Rendering(think_markers=MARKERS, **rendering))


class ThinksAloud(TorchEngine):
    """A tiny model whose sampled answers close their thinking, so that both parts are there; log-probs are its own."""

    async def sample(self, requests, params):
        out = []
        for r, a in zip(requests, await super().sample(requests, params), strict=True):
            ids = list(a.token_ids)
            if sum(r.stream_key().to_bytes(16)) % 4:  # the others never stop thinking
                close = self.chat.tokenizer.encode("</t>", add_special_tokens=False)
                ids = [*ids[:1], *close, *(ids[1:] or ids)]
            sequence = SimpleNamespace(
                tokens_T=np.array([*r.prompt_ids, *ids]),
                sampled_T=np.arange(len(r.prompt_ids) + len(ids)) >= len(r.prompt_ids),
            )
            (lp,) = self.logprobs([sequence], CURRENT)
            stop = "end" if ids[-1] in self.chat.end_ids else "length"
            out.append(Sampled(tuple(ids), tuple(lp[len(r.prompt_ids) :].tolist()), stop))
        return out


def engine(history="keep", kind=TorchEngine, **rendering):
    return kind(tiny.random_model(), chat_format(history=history, **rendering), tiny.TorchEngineConfig(device="cpu"))


def played(e, **how):
    how = Play(**{"attempts": 3, "samples": 4, "max_new_tokens": 6, "temperature": 1.0, "stream": (0,), **how})
    return asyncio.run(play(e, toy.Toy(), toy.Toy().problems("train")[:3], how))


@pytest.mark.parametrize(
    ("text", "opened", "thinking", "answer", "finished"),
    [
        ("<think>a</think>b", False, "a", "b", True),
        ("<think>\na\n</think>\n\nb", False, "a", "b", True),
        ("a</think>b", True, "a", "b", True),
        ("a</think>b", False, "a", "b", True),  # a server's template wrote the opening marker
        ("</think>b", True, "", "b", True),
        ("<think></think>b", False, "", "b", True),
        ("b", False, "", "b", True),
        ("", False, "", "", True),
        ("a", True, "a", "", False),
        ("", True, "", "", False),
        ("  <think>a", False, "a", "", False),
        ("<think>a</think><think>b</think>c", False, "a\nb", "c", True),
        ("<think>a</think><think>b", False, "a\nb", "", False),
        ("Use <think> and </think>.", False, "", "Use <think> and </think>.", True),
        ("<think>a</think>print('</think>')", False, "a", "print('</think>')", True),
    ],
)
def test_where_the_thinking_ends(text, opened, thinking, answer, finished):
    parts = USUAL.split(text, opened=opened)
    assert (parts.thinking, parts.answer, parts.finished) == (thinking, answer, finished)
    assert text[parts.start :].endswith(answer)


@pytest.mark.parametrize("stop", ["end", "length"])
def test_thinking_without_an_end_is_truncated_and_not_judged(stop):
    class Refuses(toy.Toy):
        def grade(self, problem, text, *, truncated):
            raise AssertionError("there is nothing to judge")

    reply = Reply("", stop, thinking="hm", finished=False)
    how = Play(1, 1, 8, 1.0, (0,))
    (episode,) = asyncio.run(graded(Refuses(), Problem("p", "q", "a"), {0: [reply]}, how, given=False))
    assert episode.attempts[0].grade.verdict is Verdict.TRUNCATED


def test_thinking_without_an_end_is_not_given_as_a_wrong_answer():
    def first(verdict, stop="end"):
        return Episode(Problem("p", "q", "a"), 0, (Attempt("5", None, None, None, stop, Grade(verdict)),))

    assert usable_wrong(first(Verdict.WRONG))
    assert not usable_wrong(first(Verdict.TRUNCATED)) and not usable_wrong(first(Verdict.WRONG, "length"))


def test_the_verdict_reads_the_answer_and_the_record_keeps_the_thinking():
    episodes = [e for group in played(engine(kind=ThinksAloud)) for e in group]
    attempts = [a for e in episodes for a in e.attempts]
    unfinished = [a for a in attempts if a.grade.detail == "the thinking never ended"]
    assert 0 < len(unfinished) < len(attempts)
    for a in attempts:
        whole = tokenizer().decode(a.token_ids, skip_special_tokens=True)
        if a in unfinished:
            assert (a.text, a.grade.verdict, a.thinking_tokens) == (
                "",
                Verdict.TRUNCATED,
                len(a.token_ids) - (a.stop == "end"),
            )
        else:
            assert whole.split("</t>", 1)[1].lstrip("\n") == a.text
            assert a.grade == toy.Toy().grade(None, a.text, truncated=False)
            assert a.thinking_tokens == 5
    row = episode_row(episodes[0])
    assert [a.thinking for a in episode_from_row(row).attempts] == [a.thinking for a in episodes[0].attempts]


def test_keep_is_one_sequence_and_strip_one_per_attempt():
    for history, count in (("keep", 1), ("strip", 3)):
        e = engine(history, ThinksAloud)
        for episode in (ep for group in played(e) for ep in group):
            laid = sequences(episode)
            assert len(laid) == count
            for k, attempt in enumerate(episode.attempts):
                (found,) = [(s, a, b) for s in laid for j, a, b in s.spans if j == k]
                assert found[0].tokens_T[found[1] : found[2]].tolist() == list(attempt.token_ids)
            if history == "strip":
                for before, after in zip(episode.attempts, episode.attempts[1:], strict=False):
                    asked = tokenizer().decode(after.prompt_ids, skip_special_tokens=False)
                    assert "</t>" not in asked
                    assert before.text.strip() in asked or "�" in before.text


@pytest.mark.parametrize(
    "rendering", [{"history": "keep"}, {"history": "strip"}, {"history": "refuse", "shown_as": "user"}]
)
@pytest.mark.parametrize("branches", [1, 3])
def test_sampler_and_trainer_agree(rendering, branches):
    e = engine(**rendering)
    groups = played(e, attempts=2, branches=branches)
    layout = lay_out(groups)
    scored = e.logprobs(layout.sequences, CURRENT)
    for s, lp in zip(layout.sequences, scored, strict=True):
        assert np.abs(lp - s.logprobs_T).max() < 1e-4
    assert sum(len(s.spans) for s in layout.sequences) == sum(len(x.attempts) for g in groups for x in g)


@pytest.mark.parametrize("history", ["keep", "strip"])
@pytest.mark.parametrize(
    "credit",
    [
        Credit((0.0, 1.0), (0.05, 0.01)),
        Credit((1.0, 1.0), (0.01, 0.01), alpha=10.0),
        Credit((1.0, 1.0), (0.0, 0.0), gamma=1.0),
    ],
    ids=["stage 1", "stage 2", "gamma"],
)
def test_the_expected_gradient_is_exact(history, credit, monkeypatch):
    """As ``test_exact_gradient``, where token 1 of an answer is its thinking, and strip shows attempt 2 the other one."""
    shown = (lambda y: y) if history == "keep" else (lambda y: y[1:])
    before = (
        (lambda y1: (*exact.PROMPT, *y1, *exact.BRIDGE))
        if history == "keep"
        else (lambda y1: (0, 1, *shown(y1), *exact.BRIDGE))
    )

    def answer_logprobs(model):
        def of(prompt, answer):
            row = torch.tensor([(*prompt, *answer)])
            lps = model(row).logits.double().log_softmax(-1)
            return lps[0, len(prompt) - 1 : -1].gather(1, row[0, len(prompt) :, None])[:, 0]

        lp1 = {y1: of(exact.PROMPT, y1) for y1 in exact.ANSWERS}
        return lp1, {(y1, y2): of(before(y1), y2) for y1, y2 in exact.PAIRS}

    made = exact.episode

    def episode(sample, y1, y2, lp1, lp2):
        first, second = made(sample, y1, y2, lp1, lp2).attempts
        return Episode(exact.PROBLEM, sample, (first, replace(second, prompt_ids=before(y1))))

    monkeypatch.setattr(exact, "answer_logprobs", answer_logprobs)
    e, model, base = exact.make_engine()
    with torch.no_grad():
        lp1, lp2 = answer_logprobs(model)
    data = []
    pairs = {pair: episode(0, *pair, lp1, lp2) for pair in exact.PAIRS}
    layouts = {pair: lay_out([[x]]) for pair, x in pairs.items()}
    assert {len(x.sequences) for x in layouts.values()} == {1 if history == "keep" else 2}
    reference = {pair: x.by_attempt(e.logprobs(x.sequences, "base")) for pair, x in layouts.items()}
    for a in exact.PAIRS:
        for b in exact.PAIRS:
            layout = lay_out([[pairs[a], replace(pairs[b], sample=1)]])
            made_data, _ = policy_gradient_data(layout, [[reference[a][0][0], reference[b][0][0]]], credit)
            p = float(sum(lp1[y1].sum() + lp2[y1, y2].sum() for y1, y2 in (a, b)).exp())
            data += [replace(d, weights_T=d.weights_T * p) for d in made_data]
    e.forward_backward(data, "importance_sampling")
    found = {n: -g.double() for n, g in e.gradients().items()}
    wanted = exact.exact_gradient(model, base, credit)
    scale = max(float(g.abs().max()) for g in wanted.values())
    assert scale > 0
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, atol=2e-4 * scale), name


@pytest.mark.parametrize("history", ["keep", "strip"])
@pytest.mark.parametrize("method", ["score", "star", "pair_sft"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch, history, method):
    monkeypatch.setattr(toy, "engine", lambda _c: engine(history, ThinksAloud))
    settings = (f"method={method}", f"model.history={history}", "train.problems_per_step=8")
    whole, _, _ = toy.run(tmp_path / "whole", *settings)
    stopped = tmp_path / "stopped"
    seen = []
    with pytest.raises(Interrupted, match="--resume"):
        toy.run(stopped, *settings, watcher=toy.Watcher(seen.append), stop=lambda: len(seen) == 3)
    resumed, _, _ = toy.resume(stopped)
    assert toy.step_records(resumed) == toy.step_records(whole)
    if method == "score":
        assert all(len(r.thinking_tokens) == 2 for r in toy.step_records(whole))


def test_imitation_takes_the_sequences_with_targets():
    e = engine("strip", ThinksAloud)
    episode = played(e, attempts=2)[0][0]
    assert [x.spans[0][0] for x in examples(episode, train_attempt1=False)] == [1]
    assert [x.spans[0][0] for x in examples(episode, train_attempt1=True)] == [0, 1]


@pytest.mark.parametrize("history", ["keep", "strip"])
def test_a_warm_up_lays_out_what_play_shows(history):
    e = engine(history)
    seen = demonstration_data(e.chat, toy.Toy(), itertools.islice(toy.Toy().demonstrations(0), 1))
    assert len(seen) == (1 if history == "keep" else 2)
    chat = e.chat
    first = chat.begin(toy.Toy().first_messages(Problem("", "pretrain 0", "")))
    one, two = chat.answer_ids("a"), chat.answer_ids("bb")
    assert chat.parts(first.ids, one).answer == "a", "the prompt opened the thinking, so the answer closes it"
    asked = chat.extend(first, one, "Again.").ids
    assert seen[-1].tokens_T.tolist() == [*asked, *two]
    targets = [d.tokens_T[d.weights_T != 0].tolist() for d in seen]
    assert [t for row in targets for t in row] == [*one, *two]


def test_the_longest_conversation_bounds_every_episode():
    for rendering in ({"history": "keep"}, {"history": "strip"}, {"history": "refuse", "shown_as": "document"}):
        e = engine(kind=ThinksAloud, **rendering)
        bound = longest_conversation(e.chat, toy.Toy(), toy.Toy().problems("train"), 3, 10)
        most = max(len(a.prompt_ids) + len(a.token_ids) for g in played(e) for ep in g for a in ep.attempts)
        assert most <= bound


def test_broken_characters_take_no_more_room_than_was_sampled():
    chat = chat_format(history="strip")
    start = chat.begin([{"role": "user", "content": "q"}])
    broken = tuple(tokenizer().convert_tokens_to_ids(["Ã"] * 20))
    closed = tuple(tokenizer().encode("</t>", add_special_tokens=False))
    second = chat.extend(start, (*closed, *broken), "Again.")
    assert broken == second.ids[second.ids.index(broken[0]) :][: len(broken)]


def test_a_thinking_template_names_the_policies():
    with pytest.raises(ModelError, match=r"model\.history=keep.*model\.history=strip"):
        chat_format()


def test_an_evaluation_says_how_much_was_thinking():
    thinks, plain = (
        summarise([e for group in played(x) for e in group]) for x in (engine(kind=ThinksAloud), tiny.engine())
    )
    assert all(0 < a.thinking_tokens.value < a.tokens.value for a in thinks.attempts)
    assert [a.thinking_tokens for a in plain.attempts] == [None, None, None]
    assert EvalSummary.from_json(json.loads(json.dumps(thinks.to_json()))) == thinks


def attempt_lines(c):
    """The card's Python that plays the attempts."""
    text = resources.files("selfcorrect").joinpath("sharing/card.md.j2").read_text()
    part = text.split("messages = [{{ first_messages }}]\n")[1].split("{%- endset -%}")[0]
    *_, shown = next_messages([{"role": "user", "content": ""}], "{shown}", "{instruction}", c.task.shown_as)
    values = {"quotes_answers": c.task.shown_as != "assistant", "quoted": repr(shown["content"])}
    return jinja2.Template(part).render(config=c, end_of_thinking="'</think>'", **values)


@pytest.mark.parametrize("shown_as", ["user", "document"])
def test_the_card_plays_attempts_as_the_run_did(shown_as):
    c = load_config(None, [f"task.shown_as={shown_as}", "eval.attempts=3"])
    asked = []

    def answer(messages):
        asked.append(messages[-1]["content"])
        return "<think>hm</think>4"

    names = {"answer": answer, "instruction": "Again.", "messages": [{"role": "user", "content": "q"}], "print": str}
    exec(attempt_lines(c), names)
    wanted = [{"role": "user", "content": "q"}]
    for said in asked:
        assert said == wanted[-1]["content"]
        wanted = next_messages(wanted, "4", "Again.", shown_as)
    assert len(asked) == 3
    assert "thinking of earlier ones" in attempt_lines(load_config(None, ["model.history=keep"]))


def test_thinking_is_folded_apart_from_given_attempts():
    a = Attempt("4", None, None, None, "end", Grade(Verdict.CORRECT, "4"), thinking="2 + 2", thinking_tokens=3)
    row = episode_row(Episode(Problem("p", "q", "4"), 0, (a, replace(a, thinking="", thinking_tokens=0))))
    assert (row["attempts"][0]["thinking"], row["attempts"][0]["thinking_tokens"]) == ("2 + 2", 3)
    assert "thinking" not in row["attempts"][1]
    shown = _entry({"final": {**row, "level": None}}, 0)["sides"]["final"]["attempts"]
    assert (shown[0]["thinking"], shown[0]["thinkingTokens"], "thinking" in shown[1]) == ("2 + 2", 3, False)
