"""Token ids in, token ids out: how attempts are chained, and which tokens are weighted how."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

import tiny
import toy
from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.sequences import last_attempt_from, lay_out, policy_gradient_data, sequences
from selfcorrect.config import load_config
from selfcorrect.engines.base import Sampled
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.torch_engine import engine as engine_of_torch
from selfcorrect.episodes.play import Play, longest_conversation, play
from selfcorrect.errors import ConfigError
from selfcorrect.measuring.evaluate import EnginePlayer
from selfcorrect.measuring.metrics import summarise
from selfcorrect.records.lines import episode_from_row, episode_row
from selfcorrect.types import Attempt, Episode, Grade, Problem, Verdict

CHAT = ChatFormat(tiny.tokenizer())
END = tiny.tokenizer().eos_token_id
PAD = tiny.tokenizer().pad_token_id
LONE_BYTE = tiny.tokenizer().get_vocab()["ÿ"]  # byte 0xff, no UTF-8 text: decoded and encoded again it is three others
TASK = toy.Toy()
PROBLEM = TASK.problems("test")[0]
PROMPT = CHAT.prompt_ids(TASK.first_messages(PROBLEM))


def ids(text):
    return tuple(tiny.tokenizer().encode(text, add_special_tokens=False))


class Scripted:
    """An engine that gives prepared answers, attempt by attempt, and keeps what it was asked."""

    def __init__(self, *answers):
        self.chat = CHAT
        self.asked = []
        self._answers = [a if isinstance(a[0], tuple) else (a,) for a in answers]

    async def sample(self, requests, params):
        answers = self._answers[len(self.asked)]
        self.asked.append((list(requests), params))
        stops = ["end" if a[-1] in params.stop_ids else "length" for a in answers]
        return [Sampled(a, (-1.0,) * len(a), s) for a, s in zip(answers, stops, strict=True)]


def played(*answers, attempts=2, samples=1, given=None, task=TASK):
    engine = Scripted(*answers)
    how = Play(attempts, samples, 8, 1.0, (7, "test", 3))
    (group,) = asyncio.run(play(engine, task, [PROBLEM], how, given))
    return engine, group


def bridge(ended):
    return CHAT.bridge_ids(TASK.first_messages(PROBLEM), TASK.instruction, ended)


def test_attempt_2_is_asked_with_the_sampled_ids_never_with_their_text():
    first = (*ids("4"), LONE_BYTE, *ids("2"), END)
    assert ids(tiny.tokenizer().decode(first[:-1])) != first[:-1]  # what re-tokenising would have made of it
    engine, (episode,) = played(first, (*ids("5"), END))
    assert engine.asked[0][0][0].prompt_ids == PROMPT
    assert engine.asked[1][0][0].prompt_ids == (*PROMPT, *first, *bridge(ended=True))
    assert episode.attempts[1].prompt_ids == engine.asked[1][0][0].prompt_ids
    assert episode.attempts[0].token_ids == first


def test_attempt_2_of_one_problem_does_not_wait_for_attempt_1_of_another():
    """On a server, which answers them when they are done; the slow first answer here comes only after the other's second."""
    slow, fast = TASK.problems("test")[:2]
    second_asked = asyncio.Event()

    class Server(Scripted):
        async def sample(self, requests, params):
            ((_, problem, _, attempt),) = [r.key for r in requests]
            self.asked.append((problem, attempt))
            if (problem, attempt) == (fast.id, 1):
                second_asked.set()
            if (problem, attempt) == (slow.id, 0):
                await asyncio.wait_for(second_asked.wait(), timeout=10)
            return [Sampled((*ids("4"), END), (-1.0, -1.0), "end")]

    engine = Server()
    groups = asyncio.run(play(engine, TASK, [slow, fast], Play(2, 1, 8, 1.0, ("test",))))
    assert [len(group[0].attempts) for group in groups] == [2, 2]
    assert engine.asked.index((fast.id, 1)) < engine.asked.index((slow.id, 1))


def test_the_turn_is_closed_once_whether_the_answer_ended_or_was_cut():
    for first, ended in (((*ids("42"), END), True), (ids("42"), False)):
        engine, (episode,) = played(first, ids("5"))
        between = engine.asked[1][0][0].prompt_ids[len(PROMPT) :]
        assert between == (*first, *bridge(ended))
        assert between == (*ids("42"), END, *bridge(ended=True))  # the same conversation either way
        assert episode.attempts[0].stop == ("end" if ended else "length")
        assert episode.attempts[0].text == "42"


def test_the_task_hears_of_truncation():
    class Listening(toy.Toy):
        def grade(self, problem, text, *, truncated):
            return Grade(Verdict.TRUNCATED if truncated else Verdict.WRONG)

    _, (episode,) = played(ids("42"), (*ids("5"), END), task=Listening())
    assert [a.grade.verdict for a in episode.attempts] == [Verdict.TRUNCATED, Verdict.WRONG]
    _, (episode,) = played(ids("5"), task=Listening(), given={PROBLEM.id: [ids("42")]})
    assert episode.attempts[0].grade.verdict is Verdict.TRUNCATED  # as it was when these ids were sampled


def test_three_attempts_see_all_that_came_before():
    answers = [(*ids("a"), END), ids("b"), (*ids("c"), END)]
    engine, (episode,) = played(*answers, attempts=3)
    second = (*PROMPT, *answers[0], *bridge(True))
    third = (*second, *answers[1], *bridge(False))
    assert [asked[0][0].prompt_ids for asked in engine.asked] == [PROMPT, second, third]
    assert [a.parent for a in episode.attempts] == [None, 0, 1]
    assert [params.continued for _, params in engine.asked] == [True, True, False]
    (sequence,) = sequences(episode)
    assert sequence.tokens_T.tolist() == [*third, *answers[2]]
    assert sequence.sampled_T.sum() == sum(map(len, answers))


def test_every_answer_has_its_own_random_stream():
    engine, _ = played((ids("a"), ids("b"), ids("c")), (ids("a"), ids("b"), ids("c")), samples=3)
    keys = [r.key for requests, _ in engine.asked for r in requests]
    assert len(set(keys)) == 6
    assert {k[:4] for k in keys} == {(7, "test", 3, PROBLEM.id)}


def test_the_second_prompt_does_not_depend_on_the_verdict():
    class Other(toy.Toy):
        def grade(self, problem, text, *, truncated):
            return Grade(Verdict.CORRECT)

    prompts = {played(ids("a"), ids("b"), task=task)[0].asked[1][0][0].prompt_ids for task in (TASK, Other())}
    assert len(prompts) == 1


def test_given_first_answers_are_shown_but_carry_no_log_probs_and_no_weight():
    given = {PROBLEM.id: [(*ids("x"), END), ids("yy")]}
    engine, group = played((ids("a"), ids("b")), samples=2, given=given)
    assert len(engine.asked) == 1  # only second attempts are sampled
    for episode, first in zip(group, given[PROBLEM.id], strict=True):
        a, b = episode.attempts
        assert (a.source, a.stop, a.logprobs, a.token_ids) == ("given", "given", None, first)
        assert b.prompt_ids == (*PROMPT, *first, *bridge(ended=first[-1] == END))
        (sequence,) = sequences(episode)
        assert sequence.sampled_T.nonzero()[0].tolist() == [len(b.prompt_ids)]
    data, report = weighted(group, Credit((1, 1), (0.1, 0.1), alpha=10))
    assert all(d.weights_T[: len(e.attempts[1].prompt_ids)].any() == 0 for d, e in zip(data, group, strict=True))
    assert report.kl_K[0] is None


def attempt(prompt, tokens, verdict, parent=None, logprob=-1.0):
    return Attempt("", prompt, tokens, (logprob,) * len(tokens), "end", Grade(verdict, "x"), parent=parent)


def pair(sample, first, second, problem=PROBLEM, n=(2, 3)):
    """An episode with attempts of n tokens and the given verdicts."""
    one, two = (1, 2, 3), tuple(range(10, 10 + n[0]))
    a = attempt(one, two, first)
    b = attempt((*one, *two, 4, 5), tuple(range(20, 20 + n[1])), second, 0)
    return Episode(problem, sample, (a, b))


def weighted(*groups, kl=0.0):
    """policy_gradient_data with a reference that is ``kl`` nats less likely on every token."""
    *groups, credit = groups
    layout = lay_out(groups)
    reference = layout.by_attempt([s.logprobs_T - kl * s.sampled_T for s in layout.sequences])
    return policy_gradient_data(layout, reference, credit)


def by_attempt(datum, n=(2, 3)):
    first, second = 3, 3 + n[0] + 2
    return datum.weights_T[first : first + n[0]].tolist(), datum.weights_T[second : second + n[1]].tolist()


RIGHT, WRONG, FAILED = Verdict.CORRECT, Verdict.WRONG, Verdict.ERROR


def test_weights_lie_on_the_sampled_tokens_end_token_included_and_nowhere_else():
    data, _ = weighted([pair(0, RIGHT, WRONG), pair(1, WRONG, RIGHT)], Credit((1, 1), (0, 0), alpha=10))
    # A1 = 1, -1; R2 = 0 - 10 and 1 + 10, so A2 = -21, 21; two episodes
    assert data[0].weights_T.tolist() == [0, 0, 0, 0.5, 0.5, 0, 0, -10.5, -10.5, -10.5]
    assert data[1].weights_T.tolist() == [0, 0, 0, -0.5, -0.5, 0, 0, 10.5, 10.5, 10.5]
    assert (data[0].sampled_T == (data[0].weights_T != 0)).all()


def test_the_denominator_is_the_episodes_played_not_tokens_nor_groups_that_teach():
    teaching = [pair(0, RIGHT, WRONG), pair(1, WRONG, WRONG)]
    idle = [pair(0, WRONG, WRONG), pair(1, WRONG, WRONG), pair(2, WRONG, WRONG, n=(5, 9))]
    alone, _ = weighted(teaching, Credit((1, 1), (0, 0)))
    diluted, report = weighted(teaching, idle, Credit((1, 1), (0, 0)))
    assert by_attempt(alone[0])[0] == [1 / 2, 1 / 2]
    assert by_attempt(diluted[0])[0] == [1 / 5, 1 / 5]
    assert report.zero_variance_share_K == (0.5, 1.0)
    longer, _ = weighted([pair(0, RIGHT, WRONG, n=(7, 3)), pair(1, WRONG, WRONG, n=(1, 1))], Credit((1, 1), (0, 0)))
    assert by_attempt(longer[0], (7, 3))[0] == [1 / 2] * 7  # no share of the tokens


def test_given_groups_count_in_the_denominator_and_r1_still_enters_the_bonus():
    def offline(e):
        return replace(e, attempts=(replace(e.attempts[0], source="given", logprobs=None), e.attempts[1]))

    sampled = [pair(0, RIGHT, WRONG), pair(1, WRONG, WRONG)]
    given = [offline(pair(0, RIGHT, WRONG)), offline(pair(1, WRONG, RIGHT))]
    data, _ = weighted(sampled, given, Credit((1, 1), (0, 0), alpha=10))
    assert by_attempt(data[2]) == ([0, 0], [-21 / 4] * 3)
    assert by_attempt(data[3]) == ([0, 0], [21 / 4] * 3)
    assert by_attempt(data[0])[0] == [1 / 4] * 2


def test_a_verifier_failure_leaves_the_baseline_and_is_no_reward_of_0():
    group = [pair(0, RIGHT, RIGHT), pair(1, FAILED, RIGHT), pair(2, WRONG, WRONG)]
    data, report = weighted(group, Credit((1, 1), (0, 0), alpha=10))
    # without sample 1: A1 = 1 - 0 and 0 - 1; R2 = 1 + 0 and 0 + 0, so A2 = 1 and -1; three episodes were played
    assert by_attempt(data[0]) == ([1 / 3] * 2, [1 / 3] * 3)
    assert by_attempt(data[1]) == ([0, 0], [0, 0, 0])  # its bonus would need the unknown r1
    assert by_attempt(data[2]) == ([-1 / 3] * 2, [-1 / 3] * 3)
    assert report.skipped_groups_K == (0, 0)
    data, report = weighted(group[:2], Credit((1, 1), (0, 0), alpha=10))
    assert not any(d.weights_T.any() for d in data)  # one known return is no group
    assert report.skipped_groups_K == (1, 1)


def test_a_verifier_failure_at_attempt_1_spares_attempt_2_where_there_is_no_bonus():
    group = [pair(0, RIGHT, RIGHT), pair(1, FAILED, WRONG)]
    data, report = weighted(group, Credit((0, 1), (0, 0)))
    assert by_attempt(data[0])[1] == [0.5] * 3 and by_attempt(data[1])[1] == [-0.5] * 3
    assert report.skipped_groups_K == (1, 0)


def test_reported_kl_is_the_mean_per_episode_of_the_sum_over_tokens():
    _, report = weighted([pair(0, RIGHT, WRONG), pair(1, WRONG, WRONG, n=(4, 3))], Credit((1, 1), (0, 0)), kl=0.5)
    assert report.kl_K == (pytest.approx(0.5 * (2 + 4) / 2), pytest.approx(0.5 * 3))
    group = [pair(0, RIGHT, WRONG), pair(1, WRONG, WRONG, n=(4, 3))]
    given = replace(group[0].attempts[0], source="given", logprobs=None)
    group[0] = replace(group[0], attempts=(given, *group[0].attempts[1:]))
    _, report = weighted(group, Credit((1, 1), (0, 0)), kl=0.5)
    assert report.kl_K == (pytest.approx(0.5 * 4), pytest.approx(0.5 * 3))  # attempt 1: the one that was sampled


def test_a_branch_is_a_second_sequence_and_every_sampled_token_is_weighted_once():
    """Attempts 2 and 3 both continue attempt 1: a tree. Attempt 1's tokens are context of the second sequence."""
    one = (1, 2, 3)
    first = attempt(one, (10, 11), RIGHT)
    second = attempt((*one, 10, 11, 4), (20,), WRONG, 0)
    third = attempt((*one, 10, 11, 5), (30, 31), RIGHT, 0)
    episode = Episode(PROBLEM, 0, (first, second, third))
    a, b = sequences(episode)
    assert a.tokens_T.tolist() == [1, 2, 3, 10, 11, 4, 20] and a.spans == ((0, 3, 5), (1, 6, 7))
    assert b.tokens_T.tolist() == [1, 2, 3, 10, 11, 5, 30, 31] and b.spans == ((2, 6, 8),)
    other = replace(episode, sample=1, attempts=tuple(replace(x, grade=Grade(WRONG)) for x in episode.attempts))
    data, _ = weighted([episode, other], Credit((1, 1, 1), (0, 0, 0)))
    mine = data[:2]
    assert [d.tokens_T[d.weights_T != 0].tolist() for d in mine] == [[10, 11], [30, 31]]  # attempt 2: no variance
    assert [d.tokens_T[d.sampled_T].tolist() for d in mine] == [[10, 11, 20], [30, 31]]


def test_branches_share_their_first_attempt_and_have_streams_of_their_own():
    seconds = [(*ids(x), END) for x in "cdefgh"]
    engine = Scripted(((*ids("a"), END), (*ids("b"), END)), tuple(seconds))
    ((one, two),) = asyncio.run(play(engine, TASK, [PROBLEM], Play(2, 2, 8, 1.0, ("t",), branches=3)))
    assert [a.text for a in one.attempts] == ["a", "c", "d", "e"] and [a.text for a in two.attempts] == [
        "b",
        "f",
        "g",
        "h",
    ]
    assert [a.parent for a in one.attempts] == [None, 0, 0, 0]
    assert {a.prompt_ids for a in two.attempts[1:]} == {(*PROMPT, *two.attempts[0].token_ids, *bridge(True))}
    keys = [r.key for requests, _ in engine.asked for r in requests]
    assert len(set(keys)) == len(keys) == 8
    assert [(p.sample, [a.text for a in p.attempts]) for p in two.paths] == [
        (3, ["b", "f"]),
        (4, ["b", "g"]),
        (5, ["b", "h"]),
    ]
    assert [s.tokens_T[s.sampled_T].tolist() for s in sequences(one)] == [
        [*ids("a"), END, *ids("c"), END],
        [*ids("d"), END],
        [*ids("e"), END],
    ]  # attempt 1's tokens are trained on in exactly one sequence


def test_a_step_of_trees_divides_by_trees_and_reports_by_attempt():
    def tree(g, first, *seconds):
        one = attempt((1, 2, 3), (10, 11), first)
        return Episode(
            PROBLEM, g, (one, *(attempt((1, 2, 3, 10, 11, 4), (20 + b,), v, 0) for b, v in enumerate(seconds)))
        )

    group = [tree(0, RIGHT, RIGHT, WRONG), tree(1, WRONG, WRONG, WRONG)]
    data, report = weighted(group, Credit((1, 1), (0, 0), alpha=10), kl=0.5)
    # A1 = 1, -1; tree 0: A2 = 11, -11, halved; two trees
    assert [d.weights_T.tolist() for d in data] == [
        [0, 0, 0, 0.5, 0.5, 0, 11 / 4],
        [0, 0, 0, 0, 0, 0, -11 / 4],
        [0, 0, 0, -0.5, -0.5, 0, 0],
        [0] * 7,
    ]
    assert report.zero_variance_share_K == (0.0, 0.5) and report.skipped_groups_K == (0, 0)
    assert report.kl_K == (pytest.approx(1.0), pytest.approx(0.5))


def test_the_last_attempt_may_be_measured_against_another_policy():
    groups = [[pair(0, RIGHT, WRONG), pair(1, WRONG, WRONG)]]
    layout = lay_out(groups)
    held, base = (layout.by_attempt([np.full(10, x) for _ in layout.sequences]) for x in (1.0, 2.0))
    merged = last_attempt_from(held, base)
    assert [[a.tolist() for a in e] for e in merged[0]] == [[[1, 1], [2, 2, 2]]] * 2


def test_a_feedback_turn_is_asked_for_shown_and_not_graded():
    engine = Scripted((*ids("a"), END), (*ids("hm"), END), (*ids("b"), END))
    ((episode,),) = asyncio.run(play(engine, TASK, [PROBLEM], Play(2, 1, 8, 1.0, ("f",), feedback="What is wrong?")))
    asked = CHAT.bridge_ids(TASK.first_messages(PROBLEM), "What is wrong?", True)
    told = (*PROMPT, *ids("a"), END, *asked)
    assert [requests[0].prompt_ids for requests, _ in engine.asked] == [
        PROMPT,
        told,
        (*told, *ids("hm"), END, *bridge(True)),
    ]
    assert [a.grade is None for a in episode.attempts] == [False, True, False]
    assert [p.continued for _, p in engine.asked] == [True, True, False]
    summary = summarise([episode])
    assert len(summary.attempts) == 2
    row = episode_row(episode)
    assert [a["verdict"] is None for a in row["attempts"]] == [False, True, False]
    assert summarise([episode_from_row(row)]).revisions[0].delta == summary.revisions[0].delta


def test_the_longest_conversation_counts_feedback_turns():
    cap, text = 8, "What is wrong?"
    longest = longest_conversation(CHAT, TASK, [PROBLEM], 3, cap, text)
    engine = Scripted(*[ids("x" * cap)] * 5)
    ((episode,),) = asyncio.run(play(engine, TASK, [PROBLEM], Play(3, 1, cap, 1.0, ("l",), feedback=text)))
    assert len(episode.attempts[-1].prompt_ids) + cap == longest


def test_an_answer_without_ids_cannot_be_trained_on():
    text_only = replace(pair(0, RIGHT, WRONG).attempts[0], token_ids=None)
    with pytest.raises(ValueError, match="cannot be trained on"):
        sequences(Episode(PROBLEM, 0, (text_only,)))


def test_unequal_lengths_with_a_padding_id_that_is_not_the_end_id_are_scored_where_they_were_sampled():
    assert PAD != END
    engine = tiny.engine()
    engine.snapshot("base")
    engine.chat.end_ids |= frozenset(range(5, 40))  # a random model ends its answers soon, at different lengths
    groups = asyncio.run(play(engine, TASK, TASK.problems("test"), Play(3, 2, 12, 1.0, ("pad",))))
    episodes = [e for group in groups for e in group]
    lengths = {len(a.token_ids) for e in episodes for a in e.attempts}
    assert len(lengths) > 4 and {a.stop for e in episodes for a in e.attempts} == {"end", "length"}
    for e in episodes:
        for a in e.attempts:
            assert (a.token_ids[-1] in engine.chat.end_ids) == (a.stop == "end")
            assert not set(a.token_ids[:-1]) & engine.chat.end_ids
    laid_out = [s for e in episodes for s in sequences(e)]
    assert len(laid_out) == len(episodes)
    for s, scored in zip(laid_out, engine.logprobs(laid_out, "base"), strict=True):
        np.testing.assert_allclose(scored, s.logprobs_T, atol=1e-4)


def test_the_longest_conversation_is_that_of_an_episode_cut_at_every_cap():
    cap = 8
    problems = TASK.problems("test")
    how = Play(3, 1, cap, 1.0, ("long",))
    longest = longest_conversation(CHAT, TASK, problems, 3, cap)
    lengths = []
    for p in problems:
        engine = Scripted(*[ids("x" * cap)] * 3)
        ((episode,),) = asyncio.run(play(engine, TASK, [p], how))
        lengths.append(len(episode.attempts[-1].prompt_ids) + cap)
    assert max(lengths) == longest


def test_a_cap_below_the_answer_format_is_refused_before_a_run():
    longest_conversation(CHAT, TASK, [PROBLEM], 2, 3)  # "ab" and the end token
    with pytest.raises(ConfigError, match=r"max_new_tokens=2 is shorter than the answer format.*raise play"):
        longest_conversation(CHAT, TASK, [PROBLEM], 2, 2)


def test_problems_of_one_id_would_share_a_stream_and_are_the_callers_fault():
    """Two rows of one key and prompt get the same tokens: why a step never plays a problem twice."""
    engine = tiny.engine()
    twice = [PROBLEM, Problem(PROBLEM.id, PROBLEM.question, "")]
    one, two = asyncio.run(play(engine, TASK, twice, Play(1, 1, 6, 1.0, ("same",))))
    assert one[0].attempts[0].token_ids == two[0].attempts[0].token_ids


def measured_twelve(samples):
    """Token ids of a measurement of 12 problems with a random model, how many answers were sampled at once, and the bytes of
    one episode's cache."""
    engine = toy.engine(load_config(None, toy.SMALL))
    at_once = []
    run = engine._sampler.run
    engine._sampler.run = lambda requests, params: at_once.append(len(requests)) or run(requests, params)
    problems = TASK.problems("test")
    episodes = asyncio.run(EnginePlayer(engine, TASK).play("base", problems, Play(2, samples, 6, 1.0, (0,)), None))
    assert len(engine._sampler._store._where) <= max(at_once)  # caches of earlier parts are gone
    tokens = longest_conversation(engine.chat, TASK, problems, 2, 6, any_cap=True)
    assert tokens >= max(len(e.attempts[1].prompt_ids) for e in episodes) + 6
    return [[a.token_ids for a in e.attempts] for e in episodes], at_once, engine._sampler.bytes_per_slot * tokens


@pytest.mark.parametrize(("fit", "samples", "expected"), [(5, 1, [5, 5, 2]), (5, 3, [3] * 12), (0.5, 1, [1] * 12)])
def test_a_measurement_whose_caches_would_take_too_much_is_played_in_parts(monkeypatch, fit, samples, expected):
    whole, at_once, size = measured_twelve(samples)
    assert at_once == [12 * samples] * 2
    monkeypatch.setattr(engine_of_torch, "CACHE_BYTES", fit * size)
    parts, at_once, _ = measured_twelve(samples)
    assert parts == whole
    assert at_once == [n for n in expected for _ in range(2)]
