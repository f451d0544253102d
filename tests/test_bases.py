"""Pretraining of small bases from recipes."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcorrect.episodes.verdict import REQUEST, said
from selfcorrect.reproduce.bases import EMBEDDED, VERDICTS, batches, judged, pretrain, rare, skills_name
from selfcorrect.tasks.arithmetic import Habits, demonstrate, solution

SHORT = {"steps_sums": 2, "steps_skills": 2, "steps_habits": 2, "batch": 8, "hidden": 16, "layers": 1, "heads": 2}


def weights(recipe, skills=None):
    return pretrain(recipe, skills)[0].state_dict()


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_bases_that_share_their_skills_are_those_made_in_one_go(tmp_path):
    one, other = (replace(rare(fix=f), **SHORT) for f in (0.0, 1.0))
    assert skills_name(one) == skills_name(other) != skills_name(replace(one, seed=2))
    file = tmp_path / skills_name(one)
    assert same(weights(one, file), weights(one))
    assert same(weights(other, file), weights(other))  # from the file that the first one wrote
    assert not same(weights(one), weights(other))


def test_the_seed_decides_the_weights():
    recipe = replace(EMBEDDED["tiny"], **SHORT)
    assert same(weights(recipe), weights(recipe))
    assert not same(weights(recipe), weights(replace(recipe, seed=1)))


def test_a_base_of_two_attempts_is_what_it_was_and_one_of_three_is_another():
    two = replace(rare(), **SHORT)
    three = replace(two, attempts=3)
    for recipe, turns in ((two, 2), (three, 3)):
        chats = [chat for batch in batches(recipe) for chat in batch]
        assert {len(chat) for chat in chats} == {2, 2 * turns}  # sums alone have one attempt
    assert skills_name(two) != skills_name(three) and not same(weights(two), weights(three))


def test_a_third_attempt_follows_the_habits_from_the_second():
    habits = Habits(slip_short=0.5, slip_long=0.5, fix_short=0.2, fix_long=0.2, redo=0.0)
    rng = random.Random(0)
    rows = [demonstrate((4, 7, 2), habits, 4, rng, attempts=3) for _ in range(4_000)]
    right = solution((4, 7, 2))
    wrong = [row for row in rows if row[1] != right]
    assert np.mean([row[2] == right for row in wrong]) == pytest.approx(0.2, abs=0.03)
    assert all(row[2] in (row[1], right) for row in rows)


def test_a_verdict_is_true_as_often_as_the_recipe_says_and_decides_whether_attempt_2_follows():
    rng, digits = random.Random(0), [4, 7, 2]
    answers = (solution(digits, 1), solution(digits))
    chats = [judged(digits, answers, 0.8, rng) for _ in range(2_000)]
    said_wrong = [chat[3]["content"] == VERDICTS[False] for chat in chats]
    assert np.mean(said_wrong) == pytest.approx(0.8, abs=0.03)  # attempt 1 is wrong
    assert all(len(chat) == (6 if wrong else 4) for chat, wrong in zip(chats, said_wrong, strict=True))
    assert all(
        said(chat[3]["content"]) == ("wrong" if wrong else "correct")
        for chat, wrong in zip(chats, said_wrong, strict=True)
    )
    assert chats[0][2]["content"] == REQUEST


def test_verdicts_are_in_the_asked_for_share_of_conversations_after_sums():
    recipe = replace(rare(), **{**SHORT, "steps_skills": 40, "steps_habits": 40}, verdict_share=0.3)
    chats = [chat for batch in batches(recipe) for chat in batch if len(chat) > 2]
    assert np.mean([chat[2]["content"] == REQUEST for chat in chats]) == pytest.approx(0.3, abs=0.06)
