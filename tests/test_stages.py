"""The methods as tables of numbers, exactly those of the paper."""

import pytest

from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.stage import Stage
from selfcorrect.algorithm.stages import METHODS, plan
from selfcorrect.algorithm.variants import credit_of
from selfcorrect.config import load_config
from selfcorrect.errors import ConfigError

NUMBERS = ["method.beta1=0.25", "method.beta2=0.5"]  # sums of these are exact


def stages(*overrides):
    """The plan with these numbers; only SCoRe reads beta2."""
    named = [o for o in overrides if o.startswith("method=")]
    return plan(load_config(None, [*(NUMBERS[:1] if named else NUMBERS), *overrides]))


def test_score():
    first, second = stages("train.steps=10", "method.stage1_share=0.4")
    assert first.objective == Credit((0.0, 1.0), (0.75, 0.25), alpha=0.0, gamma=0.0)
    assert second.objective == Credit((1.0, 1.0), (0.25, 0.25), alpha=10.0, gamma=0.0)
    assert (first.name, first.steps, second.name, second.steps) == ("stage1", 4, "stage2", 6)


def test_score_with_three_attempts_holds_all_but_the_last_in_stage_1():
    first, second = stages("play.attempts=3")
    assert first.objective == Credit((0.0, 0.0, 1.0), (0.75, 0.75, 0.25))
    assert second.objective == Credit((1.0, 1.0, 1.0), (0.25,) * 3, alpha=10.0)


def test_multi_turn_has_neither_stage_1_nor_bonus():
    (only,) = stages("method=multi_turn", "train.steps=10")
    assert only.objective == Credit((1.0, 1.0), (0.25, 0.25))
    assert only.steps == 10


def test_single_turn_spends_the_same_responses_on_one_attempt():
    (only,) = stages("method=single_turn", "train.samples_per_problem=4")
    assert only.objective == Credit((1.0,), (0.25,))
    assert only.attempts * only.samples_per_problem == 2 * 4


def test_pag_pays_two_attempts_and_the_verdict_between_them_without_kl():
    (only,) = plan(load_config(None, ["method=pag", "train.steps=10", "train.samples_per_problem=6"]))
    assert only.objective == Credit((1, 1, 1), (0, 0, 0), alpha=1, gamma=0, verdicts=(1,), stop=True)
    assert (only.name, only.steps, only.attempts, only.freeze) == ("pag", 10, 2, "base")
    assert only.samples_per_problem * 3 == 2 * 6  # three responses at most for two
    assert only.responses == 10 * 2 * 6
    weighted = ["method.beta1=0.25", "method.verdict_weight=3", "method.verdict_beta=0.5", "method.alpha=2"]
    (only,) = plan(load_config(None, ["method=pag", *weighted, "method.stop=false", "method.per_role=true"]))
    assert only.objective == Credit((1, 3, 1), (0.25, 0.5, 0.25), alpha=2, verdicts=(1,), per_role=True)


def test_thinktwice_alternates_first_attempts_and_second_ones_of_one_first():
    (only,) = plan(load_config(None, ["method=thinktwice", "train.steps=10", "train.samples_per_problem=4"]))
    firsts, seconds = only.objective.rows
    assert firsts.objective == Credit((1,), (0,), standardise=True)
    assert seconds.objective == Credit((0, 1), (0, 0), standardise=True)
    assert (firsts.samples_per_problem, firsts.branches) == (7, 1)
    assert (seconds.samples_per_problem, seconds.branches) == (1, 7)  # as many second attempts as there were first ones
    assert (only.steps, only.attempts, only.loss) == (10, 2, "importance_sampling")
    assert only.responses == 5 * (7 + 1 + 7) <= 10 * 2 * 4
    (only,) = plan(load_config(None, ["method=thinktwice", "method.beta1=0.25", "method.standardise=false"]))
    assert [row.objective for row in only.objective.rows] == [Credit((1,), (0.25,)), Credit((0, 1), (0, 0.25))]


@pytest.mark.parametrize("method", ["score", "multi_turn", "single_turn"])
def test_every_stage_of_every_method_is_measured_against_the_base(method):
    assert {(s.earlier_reference, s.loss) for s in stages(f"method={method}")} == {("base", "importance_sampling")}


@pytest.mark.parametrize("setting", ["alpha=3", "beta2=0.5", "stage1_share=0.2"])
@pytest.mark.parametrize("method", ["multi_turn", "single_turn"])
def test_a_setting_that_the_method_would_ignore_is_refused(method, setting):
    with pytest.raises(ConfigError, match=r"would be ignored by method=.*; drop it"):
        plan(load_config(None, [f"method={method}", f"method.{setting}"]))


def test_the_recipe_for_three_attempts():
    first, second, third = stages(
        "play.attempts=3", "method.stage1=stepwise", "train.steps=11", "train.samples_per_problem=4"
    )
    assert (first.name, first.title, first.steps, second.name, second.steps) == (
        "stage1a",
        "Stage I(a)",
        2,
        "stage1b",
        2,
    )
    assert first.objective == Credit((0.0, 1.0), (0.75, 0.25))
    assert (first.earlier_reference, first.freeze) == ("base", "base")
    assert second.objective == Credit((0.0, 0.0, 1.0), (0.75, 0.75, 0.25))
    assert (second.earlier_reference, second.freeze) == ("stage1a", "stage1a")
    assert third.objective == Credit((1.0, 1.0, 1.0), (0.25,) * 3, alpha=10.0)
    assert (third.earlier_reference, third.freeze, third.steps) == ("base", None, 7)
    assert [s.samples_per_problem * s.attempts for s in (first, second, third)] == [12, 12, 12]


def test_four_attempts_hold_each_part_at_the_one_before():
    made = stages("play.attempts=4", "method.stage1=stepwise", "train.steps=20")[:3]
    assert [(s.name, s.attempts, s.earlier_reference) for s in made] == [
        ("stage1a", 2, "base"),
        ("stage1b", 3, "stage1a"),
        ("stage1c", 4, "stage1b"),
    ]


def test_interleaving_alternates_the_two_stages():
    made = stages("method.interleave=3", "train.steps=12", "train.warmup_steps=3")
    first, second = stages()
    assert [(s.name, s.steps) for s in made] == [("stage1", 3), ("stage2", 3)] * 2
    assert {s.objective for s in made} == {first.objective, second.objective}


def test_star_in_stage_2_starts_from_the_policy_of_stage_1():
    first, *others = stages("method.stage2=star", "train.steps=10", "method.dataset=D+")
    assert first.objective == stages()[0].objective and first.steps == 4
    assert [(s.name, s.steps, s.loss, s.objective.start, s.objective.keep_right) for s in others] == [
        (f"stage2_star{i}", 2, "cross_entropy", "stage1", True) for i in (1, 2, 3)
    ]
    assert [s.freeze for s in others] == ["stage1", None, None]


def test_branches_spend_the_same_responses_on_fewer_first_attempts():
    for method in ("score", "multi_turn"):
        for stage in stages(f"method={method}", "method.branches=3", "train.samples_per_problem=8"):
            assert stage.branches == 3
            assert stage.samples_per_problem * (1 + stage.branches) == 2 * 8
    assert stages("method.branches=2", "train.samples_per_problem=8")[0].samples_per_problem == 5  # 15 of 16 responses


def test_adaptive_beta2_scales_beta2_alone_and_in_stage_1_alone():
    first, second = stages("method.beta2_target=0.2")
    assert credit_of(first, 2.0).kl_weights_K == (0.25 + 2 * 0.5, 0.25)
    assert credit_of(first, 1.0) == first.objective
    assert credit_of(second, 2.0) is second.objective
    assert credit_of(stages()[0], 2.0) == first.objective  # not adapted


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("method.interleave=3", "train.steps=10"), "multiple of 6"),
        (
            ("method.interleave=5", "train.steps=10", "train.warmup_steps=5", "method.stage2=star"),
            "drop method.stage1 and method.stage2",
        ),
        (
            ("method.interleave=5", "train.steps=10", "train.warmup_steps=5", "method.stage1_share=0.2"),
            "set method.interleave=0",
        ),
        (("method.interleave=5", "train.steps=10", "train.warmup_steps=6"), "never be reached; lower train.warmup"),
        (("method.shaping=scaled", "method.gamma=1"), "drop one of the two"),
        (("method.stage1=stepwise",), "attempts=3 or more"),
        (("method.stage1=stepwise", "play.attempts=5", "train.steps=5"), "has 4 parts, but 2 steps"),
        (("method.stage2=star", "train.steps=4"), "3 iterations, but 2 steps"),
        (("method.stage2=star", "method.alpha=3"), "stage2=reinforce"),
        (("method.stage2=star", "method.offline_share=0.3"), "stage2=reinforce"),
        (("method.stage2=star", "method.stage1_share=0", "method.beta2=0.1"), "use method=star"),
        (("method.beta2_target=0.1", "method.beta2=0"), "beta2 above 0"),
        (("method.beta2_target=0.1", "method.beta2=0.1", "method.stage1_share=0"), "Stage I's"),
        (("method.branches=2", "play.attempts=3"), "trees of two attempts"),
        (("method.branches=2", "method.gamma=1"), "trees of two attempts"),
        (("method.branches=4", "train.samples_per_problem=4"), "to 5 or more"),
        (("method.branches=2", "method.baseline=given_first"), "branches=1"),
        (("method=multi_turn", "method.interleave=2"), "use method=score"),
        (("method=single_turn", "method.branches=2"), "use method=score"),
    ],
)
def test_stages_that_cannot_be_are_refused_with_the_way_out(settings, says):
    with pytest.raises(ConfigError, match=says):
        stages(*settings)


def test_score_without_stage_1_is_stage_2_alone():
    (only,) = stages("method.stage1_share=0", "method.beta2=0.1", "train.steps=1")
    assert only.objective == Credit((1.0, 1.0), (0.25, 0.25), alpha=10.0)
    assert (only.name, only.steps) == ("stage2", 1)


def test_scaled_shaping_is_1_plus_alpha_on_every_later_attempt_and_no_bonus():
    first, second = stages("method.shaping=scaled", "play.attempts=3")
    assert first.objective == stages("play.attempts=3")[0].objective
    assert second.objective == Credit((1.0, 11.0, 11.0), (0.25,) * 3)


def test_the_ablations_of_the_credit_reach_every_stage():
    for stage in stages("method.standardise=true", "method.baseline=given_first"):
        assert stage.objective.standardise and stage.objective.baseline == "given_first"


@pytest.mark.parametrize(
    ("settings", "way_out"),
    [
        (("method.stage1_share=0", "method.beta2=0.5"), "stage1_share above 0"),
        (("method.alpha=0", "method.shaping=scaled"), "alpha above 0"),
        (("method=multi_turn", "method.shaping=scaled"), "use method=score"),
        (("method=single_turn", "method.baseline=given_first"), "use method=score"),
    ],
)
def test_a_setting_that_other_settings_leave_unread_is_refused(settings, way_out):
    with pytest.raises(ConfigError, match=f"would be ignored.*{way_out}"):
        plan(load_config(None, settings))


def test_gamma_and_the_kl_credit_reach_every_stage():
    for stage in stages("method.gamma=0.5", "method.kl_credit=to_go"):
        assert (stage.objective.gamma, stage.objective.kl_credit) == (0.5, "to_go")


@pytest.mark.parametrize(
    "overrides", [("play.attempts=1",), ("method=multi_turn", "play.attempts=1"), ("train.steps=1",)]
)
def test_settings_that_do_not_fit_a_method_are_refused(overrides):
    with pytest.raises(ConfigError):
        stages(*overrides)
    stages(
        "method=single_turn", *[o for o in overrides if not o.startswith("method=")]
    )  # which needs no second attempt


# --- what a new method lacks ----------------------------------------------------------------------------------------


def test_a_method_without_a_function_is_named_with_its_file(monkeypatch):
    monkeypatch.delitem(METHODS, "multi_turn")
    with pytest.raises(
        ConfigError, match=r"method multi_turn is named in config/methods\.py, but algorithm/stages\.py has no"
    ):
        stages("method=multi_turn")


def test_a_method_that_reads_another_class_than_the_one_with_its_name_says_both(monkeypatch):
    monkeypatch.setitem(METHODS, "multi_turn", METHODS["score"])
    with pytest.raises(
        AssertionError, match="method multi_turn reads ScoreConfig, but has its name in MultiTurnConfig"
    ):
        stages("method=multi_turn")


def test_a_row_for_three_attempts_is_refused_because_rows_are_widened(monkeypatch):
    rows = lambda config: [Stage("three", "Three", 5, 4, Credit((0, 0, 1), (0, 0, 0)))]  # noqa: E731
    monkeypatch.setitem(METHODS, "multi_turn", rows)
    with pytest.raises(AssertionError, match="stage three has 3 reward weights; write its row for two attempts"):
        stages("method=multi_turn")
