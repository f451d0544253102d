"""`selfcorrect probe`: what is counted, what is said of it, and at which numbers it is said."""

import itertools
import json
from dataclasses import replace

import pytest

import tiny
import toy
from selfcorrect.config import all_keys
from selfcorrect.measuring.advice import (
    ALWAYS_RIGHT,
    FEW_GROUPS,
    NO_FORMAT,
    RARELY_FIXED,
    RARELY_RIGHT,
    ROOM,
    SOUND,
    Numbers,
    advise,
    gate,
)
from selfcorrect.measuring.probe import (
    Plan,
    caps,
    expected_one_verdict,
    group_sizes,
    is_cut,
    numbers,
    probe,
    training_sample,
)
from selfcorrect.training import alarms
from selfcorrect.types import Attempt, Verdict

GOOD = Numbers(
    samples=8,
    cap=100,
    attempts=2,
    accuracy_first=0.4,
    accuracy_last=0.45,
    no_answer=0.05,
    verifier_errors=0.0,
    cap_hits={25: 0.9, 50: 0.4, 100: 0.05, 200: 0.0},
    one_verdict=0.4,
    changed=0.3,
    fixed=0.1,
    can_warm_up=True,
)
CAN, CHANGE, CANNOT = "can learn", "can learn, but change something first", "cannot learn as it is"


def test_healthy_numbers_can_learn():
    assert advise(GOOD) == type(advise(GOOD))(CAN, ())


RULES = {
    # name: (numbers that just give no finding, numbers that just do, the outlook then, what the sentence holds)
    "verdict": ({"no_verdict": 0.2}, {"no_verdict": 0.21}, CHANGE, "method.verdict_instruction"),
    "no verdict": ({"no_verdict": None}, {"no_verdict": 1.0}, CANNOT, "teach it the form first"),
    "verifier": ({"verifier_errors": alarms.VERIFIER_ERRORS}, {"verifier_errors": 0.0101}, CHANGE, "validate"),
    "cap": (
        {"cap_hits": {100: alarms.CUT_OFF, 200: 0.0}},
        {"cap_hits": {100: 0.101, 200: 0.101, 400: alarms.CUT_OFF}},
        CHANGE,
        "raise play.max_new_tokens to 400",
    ),
    "no cap is enough": ({}, {"cap_hits": {100: 0.5, 200: 0.3}}, CHANGE, "--largest-cap 400"),
    "form": ({"no_answer": NO_FORMAT}, {"no_answer": 0.201}, CHANGE, "warm up with `selfcorrect sft`"),
    "never right": (
        {"accuracy_first": RARELY_RIGHT, "accuracy_last": 0.0, "changed": 0.5},
        {"accuracy_first": 0.0199, "accuracy_last": 0.0199},
        CANNOT,
        "hardly any answer is right",
    ),
    "always right": (
        {"accuracy_first": ALWAYS_RIGHT, "accuracy_last": 1.0},
        {"accuracy_first": 0.981, "accuracy_last": 0.981},
        CANNOT,
        "take harder problems",
    ),
    "few groups": ({"one_verdict": FEW_GROUPS}, {"one_verdict": 0.801}, CHANGE, "raise train.samples_per_problem"),
    "hardly a group": ({"one_verdict": FEW_GROUPS}, {"one_verdict": 0.901}, CANNOT, "groups of 8"),
    "copies": ({"changed": alarms.NEVER_CHANGED}, {"changed": 0.0199}, CANNOT, "Stage I has no corrections"),
    "no corrections": ({"fixed": RARELY_FIXED}, {"fixed": 0.0099}, CHANGE, "Stage I will be slow"),
    "no verdicts": ({}, {"accuracy_first": None, "accuracy_last": None}, CANNOT, "no answer got a verdict"),
}


@pytest.mark.parametrize("name", RULES)
def test_each_rule_speaks_from_its_threshold_on(name):
    below, above, outlook, says = RULES[name]
    assert advise(replace(GOOD, **below)).findings == ()
    advice = advise(replace(GOOD, **above))
    assert advice.outlook == outlook and len(advice.findings) == 1 and says in advice.findings[0]


def test_between_few_groups_and_the_alarm_a_change_is_advised_and_beyond_it_there_is_no_learning():
    assert advise(replace(GOOD, one_verdict=alarms.ONE_VERDICT)).outlook == CHANGE
    assert advise(replace(GOOD, one_verdict=alarms.ONE_VERDICT + 1e-6)).outlook == CANNOT
    for accuracy, other in ((0.9, "harder"), (0.1, "easier")):
        (text,) = advise(replace(GOOD, accuracy_last=accuracy, one_verdict=0.85)).findings
        assert f"take {other} problems" in text


def test_copying_is_no_fault_where_little_is_wrong():
    right = 1 - alarms.STILL_WRONG
    assert advise(replace(GOOD, changed=0.0, fixed=0.0, accuracy_last=right)).outlook == CAN
    advice = advise(replace(GOOD, changed=0.0, fixed=0.0, accuracy_last=right - 0.01))
    assert advice.outlook == CANNOT and len(advice.findings) == 1  # copying explains the missing corrections


def test_the_worst_finding_makes_the_outlook_and_all_are_told():
    advice = advise(replace(GOOD, cap_hits={100: 0.5, 200: 0.0}, changed=0.0, no_answer=0.9, can_warm_up=False))
    assert advice.outlook == CANNOT and len(advice.findings) == 3
    assert "cap of 100" in advice.findings[0] and "no demonstrations" in advice.findings[1]


def test_one_attempt_has_no_corrections_to_miss():
    assert advise(replace(GOOD, attempts=1, changed=None, fixed=None)).outlook == CAN


def test_the_settings_that_sentences_name_exist():
    texts = [t for _, above, _, _ in RULES.values() for t in advise(replace(GOOD, **above)).findings]
    named = {w.strip("(),;") for t in texts for w in t.split() if w.startswith(("train.", "task.", "method."))}
    assert named and named <= set(all_keys())


@pytest.mark.parametrize(("right", "samples", "k"), [*itertools.product(range(5), [4], [2, 3, 4])])
def test_one_verdict_is_the_share_of_subsets(right, samples, k):
    subsets = list(itertools.combinations([True] * right + [False] * (samples - right), k))
    assert expected_one_verdict(right, samples, k) == pytest.approx(
        sum(len(set(s)) == 1 for s in subsets) / len(subsets)
    )


def test_one_verdict_needs_k_samples():
    assert expected_one_verdict(1, 3, 4) is None


def test_caps_and_group_sizes():
    assert caps(16, 32) == [4, 8, 16, 32]
    assert caps(100, 350) == [25, 50, 100, 200, 350]
    assert caps(1, 1) == [1]
    assert group_sizes(8) == [2, 4, 8] and group_sizes(12) == [2, 4, 8, 12] and group_sizes(2) == [2]


def test_an_answer_that_ends_at_the_cap_is_not_cut():
    def attempt(n, stop):
        return Attempt("", (), tuple(range(n)), None, stop)

    assert [is_cut(attempt(4, "end"), cap) for cap in (3, 4, 5)] == [True, False, False]
    assert [is_cut(attempt(4, "length"), cap) for cap in (3, 4)] == [True, True]


@pytest.fixture(scope="module")
def found():
    task = toy.Toy()
    return probe(tiny.engine(), task, training_sample(task, 6, 0), Plan(2, 4, 4, 16))


def test_a_smaller_cap_would_have_cut_just_those(found):
    """The same streams under the run's own cap: attempt 1 is the same tokens, so its figures are exact."""
    task = toy.Toy()
    again = probe(tiny.engine(), task, training_sample(task, 6, 0), Plan(2, 4, 4, 4))
    assert again.sampled.attempts[0].truncated.value > 0
    assert found.cap_hits[4][0] == again.cap_hits[4][0] == pytest.approx(again.sampled.attempts[0].truncated.value)
    for long, short in zip(found.episodes, again.episodes, strict=True):
        assert long.attempts[0].token_ids[:4] == short.attempts[0].token_ids


def test_counts_are_those_of_the_episodes(found):
    assert len(found.episodes) == 24 and found.sampled.n_episodes == 24 and found.greedy.n_episodes == 6
    assert {e.problem.id.split("-")[0] for e in found.episodes} == {"train"}
    lengths = sorted(len(e.attempts[1].token_ids) for e in found.episodes)
    assert found.tokens_K[1][-1] == lengths[-1] and found.tokens_K[1][0] in lengths
    # the chance that 4 of 4 samples agree is whether they do
    groups = [found.episodes[i : i + 4] for i in range(0, 24, 4)]
    same = [len({e.attempts[0].correct for e in g}) == 1 for g in groups]
    assert found.one_verdict[4][0] == pytest.approx(sum(same) / 6)
    told = numbers(found, toy.Toy())
    assert told.one_verdict == found.one_verdict[4][1] and told.cap_hits[4] == max(found.cap_hits[4])
    assert (
        told.accuracy_first == found.sampled.accuracy(1).value and told.fixed == found.sampled.revisions[0].i_to_c.value
    )
    assert told.can_warm_up
    assert found.sampling_seconds(48) == pytest.approx(48 * found.tokens_per_episode / found.tokens_per_s)


def test_verifier_errors_leave_the_groups(found):
    class Failing(toy.Toy):
        def grade(self, problem, text, *, truncated):
            return replace(super().grade(problem, text, truncated=truncated), verdict=Verdict.ERROR)

    task = Failing()
    failed = probe(tiny.engine(), task, training_sample(task, 2, 0), Plan(2, 2, 4, 4))
    assert failed.verifier_errors == 1 and failed.one_verdict[2] == (None, None)
    advice = advise(numbers(failed, task))
    assert advice.outlook == CANNOT and "verifier itself failed on 100.0%" in advice.findings[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("model"))


def arguments(model, *more):
    small = [s for s in toy.SMALL if not s.startswith("model.name")]
    return ["probe", *small, f"model={model}", "--problems", "4", *more]


def test_the_command_says_whether_and_what_to_change(cli, model, tmp_path):
    code, out, _ = cli(*arguments(model), "--out", tmp_path / "episodes.jsonl")
    assert code == 0
    for part in (
        "T = 1, cap 8",
        "greedy, cap 4",
        "cut by a cap of 4 (the run's)",
        "2 samples (the run's)",
        "estimate:",
    ):
        assert part in out
    assert any(outlook in out.splitlines()[-2] or outlook in out for outlook in (CAN, CHANGE, CANNOT))
    assert "raise play.max_new_tokens" in out or "--largest-cap" in out  # a random model rarely stops
    rows = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(r["problem"].startswith("train") for r in rows)


def test_json_is_one_object(cli, model):
    code, out, _ = cli(*arguments(model, "--largest-cap", "5", "--json"))
    printed = json.loads(out, parse_constant=pytest.fail)
    assert code == 0 and printed["largest_cap"] == 5 and list(printed["cap_hits"]) == ["1", "2", "4", "5"]
    assert printed["outlook"] in (CAN, CHANGE, CANNOT) and printed["estimate"]["step_episodes"] == 8
    assert printed["estimate"]["step_seconds"] > printed["estimate"]["step_sampling_seconds"]
    assert len(printed["gate"]) == 3 and (printed["recommended"] is None or "reason" in printed["recommended"])


GATE = {
    # numbers that just pass, and that just do not
    "form": ({"no_answer": 0.05}, {"no_answer": 0.0501}),
    "right": ({"accuracy_first": ROOM[0]}, {"accuracy_first": ROOM[0] - 0.001}),
    "too right": ({"accuracy_first": ROOM[1]}, {"accuracy_first": ROOM[1] + 0.001}),
    "change": ({"changed": alarms.NEVER_CHANGED}, {"changed": alarms.NEVER_CHANGED - 0.001}),
    "sound": ({"sound": SOUND}, {"sound": SOUND - 0.001}),
}


@pytest.mark.parametrize("name", GATE)
def test_the_gate_names_the_number_that_stands_against_a_long_run(name):
    passes, fails = GATE[name]
    assert all(c.passed for c in gate(replace(GOOD, **passes)))
    (found,) = [c for c in gate(replace(GOOD, **fails)) if not c.passed]
    assert str(found).startswith("NOT PASSED") and "asked for" in str(found)


def test_an_answer_that_never_came_is_not_in_the_asked_for_form():
    class Wordy(toy.Toy):
        def grade(self, problem, text, *, truncated):
            grade = super().grade(problem, text, truncated=truncated)
            return replace(grade, verdict=Verdict.TRUNCATED) if truncated else grade

    found = probe(tiny.engine(), Wordy(), training_sample(Wordy(), 6, 0), Plan(2, 4, 4, 4))
    cut = sum(e.attempts[0].stop == "length" for e in found.episodes)
    form = gate(numbers(found, Wordy()))[0]
    assert cut > 1 and form.value == pytest.approx(1 - cut / len(found.episodes)) and not form.passed


def test_the_gate_does_not_ask_for_what_cannot_be_told():
    assert len(gate(replace(GOOD, sound=None))) == 3 and len(gate(replace(GOOD, attempts=1, changed=None))) == 2
    assert not any(c.passed for c in gate(replace(GOOD, accuracy_first=None, no_answer=None, changed=None)))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--largest-cap", "3"], "below play.max_new_tokens=4"),
        (["--largest-cap", "5000"], "512 positions"),
        (["task=chess"], "chess"),
    ],
)
def test_bad_input_is_one_paragraph(cli, model, more, says):
    code, out, err = cli(*arguments(model), *more)
    assert (code, out) == (2, "") and err.startswith("selfcorrect: ") and says in err
