"""Every alarm rings on what it is for, and not on a healthy run."""

import re

import pytest

from selfcorrect.config import all_keys
from selfcorrect.records.lines import StepRecord
from selfcorrect.training.alarms import WINDOW, check

HEALTHY = {
    "stage": "stage2",
    "episodes": 8,
    "reward": [0.4, 0.6],
    "kl": [0.1, 0.1],
    "truncated": [0.0, 0.05],
    "no_answer": [0.0, 0.0],
    "errors": 0,
    "answer_tokens": [10.0, 10.0],
    "zero_variance": [0.5, 0.5],
    "skipped_groups": [0, 0],
    "answer_change": 0.3,
    "fixed": 0.25,
    "broken": 0.05,
    "grad_norm": 1.0,
    "clipped": False,
    "learning_rate": 1e-4,
    "sampler_mismatch": 1e-5,
    "sampled_tokens": 160,
    "seconds": {},
}


def history(n=WINDOW, **changes):
    return [StepRecord(**{**HEALTHY, "step": i + 1, "stage_step": i + 1, **changes}) for i in range(n)]


def names(records, strict="stage1"):
    return [a.name for a in check(records, strict)]


def test_a_healthy_run_is_left_alone():
    assert names(history(5 * WINDOW)) == []


FAULTS = {
    "copying": {"answer_change": 0.01},
    "no signal": {"zero_variance": [0.95, 1.0]},
    "truncation": {"truncated": [0.0, 0.2]},
    "first attempt moved": {"stage": "stage1", "kl": [0.6, 0.1]},
    "sampler mismatch": {"sampler_mismatch": 1.5},
    "ratios bounded": {"ratio_capped": 0.01, "ratio_masked": 0.02},
    "verifier errors": {"errors": 1},  # one of 16 answers
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_alarm_rings_on_its_fault_alone_and_names_a_way_out(name):
    (alarm,) = check(history(**FAULTS[name]), "stage1")
    assert (alarm.name, alarm.step) == (name, WINDOW)
    named = re.findall(r"(?:play|train|method|model|task|engine|eval)\.\w+", alarm.message)
    assert set(named) <= set(all_keys())
    assert named or name == "verifier errors"


@pytest.mark.parametrize("name", FAULTS)
def test_one_step_is_noise_and_so_is_a_short_history(name):
    assert names(history(WINDOW - 1, **FAULTS[name])) == []
    if name == "sampler mismatch":
        return  # a single token that far off is a fault, not noise
    spike = history(WINDOW - 1) + history(1, **{**FAULTS[name], "stage": "stage2"})
    assert name not in names(spike) or name == "verifier errors"


def test_an_attempt_without_a_reward_gives_no_signal():
    silent = history(zero_variance=[0.5, 1.0])
    assert names(silent) == []
    (alarm,) = check(silent, "stage1", [False, True])
    assert alarm.name == "no signal"
    assert check(history(zero_variance=[1.0, 0.5]), "stage1", [False, True]) == []


def test_copying_is_no_fault_where_the_answers_are_right():
    assert names(history(answer_change=0.0, reward=[0.95, 0.95])) == []


def test_copying_is_not_asked_of_a_single_attempt():
    one = {k: v[:1] for k, v in HEALTHY.items() if isinstance(v, list)}
    assert names(history(**one, answer_change=None, fixed=None, broken=None)) == []


def test_one_attempt_with_signal_is_signal():
    assert names(history(zero_variance=[1.0, 0.5])) == []


def test_a_sacrificed_first_attempt_is_seen_against_the_start_of_the_run():
    start, middle = history(WINDOW, reward=[0.4, 0.4]), history(WINDOW)
    assert names(start + middle + history(WINDOW, reward=[0.2, 0.8])) == ["first attempt sacrificed"]
    assert names(start + middle + history(WINDOW, reward=[0.2, 0.4])) == []  # lost, but nothing was bought with it
    assert names(start + middle + history(WINDOW, reward=[0.5, 0.8])) == []


def test_the_first_attempt_may_move_where_no_stage_holds_it():
    assert names(history(kl=[3.0, 3.0])) == []
    assert names(history(stage="multi_turn", kl=[3.0, 3.0]), strict=None) == []


def in_turns(*kinds, n, each):
    """Steps of two kinds that take turns, as in interleaved stages or in ThinkTwice."""
    return [
        StepRecord(**{**HEALTHY, "step": i + 1, "stage_step": i + 1, **kinds[i // each % len(kinds)]}) for i in range(n)
    ]


@pytest.mark.parametrize("each", [1, 4, 5, 8])
def test_a_first_attempt_that_moves_is_seen_in_the_short_turns_of_an_interleaved_stage_1(each):
    moved, free = {"stage": "stage1", "kl": [0.6, 0.1]}, {"stage": "stage2", "kl": [3.0, 3.0]}
    assert names(in_turns(moved, free, n=4 * WINDOW, each=each)) == ["first attempt moved"]
    held = {**moved, "kl": [0.1, 0.1]}
    assert names(in_turns(held, free, n=4 * WINDOW, each=each)) == []
    once = history(WINDOW, **moved) + history(4, **free)  # one stage after the other
    assert names(once) == []


def test_what_the_last_attempt_won_is_measured_where_it_is_played():
    def round_of(first, second):
        one = {k: v[:1] for k, v in HEALTHY.items() if isinstance(v, list)}
        return {**one, "reward": [first], "answer_change": None}, {"reward": [first, second]}

    start = in_turns(*round_of(0.4, 0.4), n=2 * WINDOW, each=1)
    assert names(start + in_turns(*round_of(0.3, 0.55), n=WINDOW, each=1)) == ["first attempt sacrificed"]
    assert names(start + in_turns(*round_of(0.3, 0.42), n=WINDOW, each=1)) == []


def test_steps_without_a_verdict_on_any_answer_raise_no_alarm_about_rewards():
    unknown = {"reward": [None, None], "fixed": None, "broken": None, "answer_change": 0.0, "errors": 16}
    assert names(history(4 * WINDOW, **unknown)) == ["verifier errors"]
    assert names(history(2 * WINDOW) + history(WINDOW, **unknown)) == ["verifier errors"]
