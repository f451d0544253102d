"""STaR and Pair-SFT: which episodes are kept, which tokens are targets, how a data set is gone through."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcorrect.algorithm.imitation import (
    Example,
    batch_of_step,
    examples,
    imitation_data,
    paired_episodes,
    star_episodes,
)
from selfcorrect.algorithm.stages import plan
from selfcorrect.config import load_config
from selfcorrect.errors import ConfigError
from selfcorrect.types import Attempt, Episode, Grade, Problem, Verdict

PROBLEM = Problem("p", "q", "a")
RIGHT, WRONG, CUT, FAILED = Verdict.CORRECT, Verdict.WRONG, Verdict.TRUNCATED, Verdict.ERROR


def attempt(prompt, ids, verdict, parent=None):
    return Attempt("", prompt, ids, (-1.0,) * len(ids), "end", Grade(verdict, "x"), parent=parent)


def episode(sample, first, second):
    """Prompt 1, two answer tokens, bridge 9, three answer tokens."""
    one = attempt((1,), (10 + sample, 4), first)
    return Episode(PROBLEM, sample, (one, attempt((1, 10 + sample, 4, 9), (20, 21, 4), second, 0)))


EVERY = [
    episode(g, *verdicts)
    for g, verdicts in enumerate(
        [(WRONG, RIGHT), (RIGHT, RIGHT), (WRONG, WRONG), (RIGHT, WRONG), (CUT, RIGHT), (FAILED, RIGHT), (WRONG, FAILED)]
    )
]


def test_star_d_keeps_wrong_to_right_and_d_plus_right_to_right_too():
    assert [e.sample for e in star_episodes(EVERY, keep_right=False)] == [0, 4]
    assert [e.sample for e in star_episodes(EVERY, keep_right=True)] == [0, 1, 4]


def firsts(*verdicts):
    return [Episode(PROBLEM, g, (attempt((1,), (10 + g, 4) if g else (10, 7, 4), v),)) for g, v in enumerate(verdicts)]


def paired(group, keep_right, seed=0):
    made = paired_episodes(group, keep_right, np.random.default_rng(seed), lambda a: (*a.prompt_ids, *a.token_ids, 9))
    return {e.sample: e for e in made}


def test_pair_sft_gives_every_wrong_response_a_right_one_as_it_was_sampled():
    group = firsts(WRONG, RIGHT, CUT, FAILED, RIGHT)
    partners = {paired(group, False, seed)[0].attempts[1].token_ids for seed in range(20)}
    assert partners == {(11, 4), (14, 4)}  # both right ones come up, and nothing else
    made = paired(group, False)
    assert made.keys() == {0, 2}
    assert made[0].attempts[1].prompt_ids == (1, 10, 7, 4, 9)
    assert made[0].attempts[0] == group[0].attempts[0] and made[0].attempts[1].parent == 0


def test_pair_sft_d_plus_adds_right_responses_with_another_right_one_or_themselves():
    group = firsts(WRONG, RIGHT, RIGHT)
    made = paired(group, True)
    assert made.keys() == {0, 1, 2}
    assert made[1].attempts[1].token_ids == (12, 4) and made[2].attempts[1].token_ids == (11, 4)
    alone = paired(firsts(WRONG, RIGHT), True)
    assert alone[1].attempts[1].token_ids == (11, 4)  # the only right one is its own partner


def test_pair_sft_has_nothing_for_a_problem_without_a_right_response():
    assert paired(firsts(WRONG, CUT), True) == {}


def test_an_example_is_one_sequence_with_the_spans_of_its_attempts():
    made = examples(EVERY[0], train_attempt1=False)[0]
    assert made == Example("p", (1, 10, 4, 9, 20, 21, 4), ((0, 1, 3), (1, 4, 7)))
    assert Example.from_json(made.to_json()) == made


def test_targets_are_attempt_2_and_the_denominator_is_the_batchs_target_tokens():
    longer = Example("q", (1, 10, 4, 9, 20, 21, 22, 23, 4), ((0, 1, 3), (1, 4, 9)))
    a, b = imitation_data([examples(EVERY[0], train_attempt1=False)[0], longer], train_attempt1=False)
    assert a.weights_T.tolist() == [0, 0, 0, 0, 1 / 8, 1 / 8, 1 / 8]  # 3 + 5 targets
    assert b.weights_T.tolist() == [0, 0, 0, 0, *[1 / 8] * 5]
    a, b = imitation_data([examples(EVERY[0], train_attempt1=False)[0], longer], train_attempt1=True)
    assert a.weights_T.tolist() == [0, 1 / 12, 1 / 12, 0, 1 / 12, 1 / 12, 1 / 12]  # 3 + 5 + 2 + 2
    assert not a.sampled_T.any()  # nothing of it is the current policy's


@given(st.integers(1, 80), st.integers(1, 30))
def test_one_epoch_over_the_steps_of_a_stage(size, steps):
    drawn = [batch_of_step(size, steps, (3, 0), s) for s in range(steps)]
    assert all(drawn)
    counts = Counter(i for batch in drawn for i in batch)
    if size >= steps:
        assert counts == Counter(range(size))
        assert {len(b) for b in drawn} <= {size // steps, -(-size // steps)}
    else:
        assert sum(counts.values()) == steps
        assert max(counts.values()) - min(counts[i] for i in range(size)) <= 1


def test_the_order_of_examples_is_that_of_the_key():
    orders = [[batch_of_step(40, 4, key, s) for s in range(4)] for key in ((0, 0), (0, 0), (1, 0), (0, 9))]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] and orders[0] != orders[3]


def stages(*overrides):
    return plan(load_config(None, overrides))


def test_star_is_three_iterations_from_the_base():
    made = stages("method=star", "train.steps=11")
    assert [(s.name, s.steps, s.loss, s.objective.start) for s in made] == [
        ("star1", 4, "cross_entropy", "base"),
        ("star2", 4, "cross_entropy", "base"),
        ("star3", 3, "cross_entropy", "base"),
    ]
    assert {(s.attempts, s.objective.source, s.objective.keep_right) for s in made} == {(2, "star", False)}
    assert made[0].title == "STaR D, iteration 1 of 3"
    plus = stages("method=star", "method.dataset=D+", "method.train_attempt1=true")[0]
    assert plus.objective.keep_right and plus.objective.train_attempt1 and plus.title.startswith("STaR D+")


def test_pair_sft_spends_the_responses_of_two_attempts_on_first_ones():
    (only,) = stages("method=pair_sft", "train.samples_per_problem=4")
    assert (only.attempts, only.samples_per_problem, only.title) == (1, 8, "Pair-SFT D")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("method=star", "method.beta1=0.5"), "use method=score"),
        (("method=score", "method.dataset=D+"), "use method=star or pair_sft"),
        (("method=pair_sft", "method.offline_share=0.5"), "would be ignored"),
        (("method=star", "play.attempts=3"), "must be 2"),
        (("method=star", "train.steps=2"), "3 iterations"),
        (("method=self_refine",), "no training"),
    ],
)
def test_what_does_not_fit_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        stages(*settings)


def test_a_failed_verdict_is_neither_right_nor_wrong():
    first = EVERY[5].attempts[0]
    assert not first.wrong and not first.correct
    assert EVERY[0].attempts[0].wrong and not EVERY[1].attempts[0].wrong
    assert not replace(first, grade=None).wrong
