"""The settings of every method: a class each, and their union ``MethodConfig``."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from selfcorrect.config.section import Named


class ReinforceConfig(Named):
    beta1: float = Field(0.01, ge=0)
    """KL weight on every attempt, both stages (paper: 0.01). pag and thinktwice have none unless it is set."""
    kl_credit: Literal["sequence", "to_go", "token"] = "sequence"
    """The part of its attempt's KL that a token is charged with: all of it, the part from this token on, or the token's
    own (biased)."""
    standardise: bool = False
    """Divide the reward part of the advantages by its standard deviation in the group, per attempt. Not in the
    paper. thinktwice does so unless this is false."""


BRANCHES = 3
"""Second attempts per first attempt in the default estimator."""


class MultiAttemptConfig(ReinforceConfig):
    gamma: float = Field(0.0, ge=0, le=1)
    """Discount between attempts. 0 in the paper; other values show the failure."""
    baseline: Literal["leave_one_out", "given_first"] = "leave_one_out"
    """given_first: the baseline of later attempts uses only samples whose first attempt had the same verdict."""
    offline_share: float = Field(0.0, ge=0, le=1)
    """Share of a step's problems whose first attempts are stored answers of the base (Stage II and multi_turn). The
    paper names the option without a share; 1 is its ablation "only offline first attempts"."""
    branches: int | None = Field(None, ge=1, le=16)
    """Second attempts per first attempt, each with the others as its baseline: the objective is the paper's, the gradient has
    less noise (docs/shaping.md). None takes 3, or 1 where trees do not fit the other settings. 1 is the paper's estimator."""

    @model_validator(mode="after")
    def _baseline_of_branches(self) -> Self:
        way_out = "set method.branches=1 (all mates in a branch have one first attempt)"
        return self.refuse_ignored("method", [((self.branches or 1) > 1, ("baseline",), way_out)])

    def fitting_branches(self, attempts: int, samples: int) -> int:
        """The branches that None stands for: 3 where trees are possible and leave at least two first attempts.

        Args:
            attempts: ``play.attempts``.
            samples: ``train.samples_per_problem``.
        """
        linear = attempts != 2 or self.gamma != 0 or self.baseline != "leave_one_out" or self.standardise
        return 1 if linear or samples * attempts < 2 * (1 + BRANCHES) else BRANCHES


class ImitateConfig(Named):
    dataset: Literal["D", "D+"] = "D"
    """D holds corrections of wrong first attempts; D+ also right first attempts that stay right. score: with
    stage2=star only."""
    train_attempt1: bool = False
    """Also imitate the first attempt, which is otherwise only context. score: with stage2=star only."""


class ScoreConfig(ImitateConfig, MultiAttemptConfig):
    name: Literal["score"] = "score"
    """The training method; ``self_refine`` is for `selfcorrect eval` only."""
    alpha: float = Field(10.0, ge=0)
    """Progress bonus of Stage II (paper: 10). 0 is the ablation without shaping. pag: 1, on attempt 2 where it is played."""
    shaping: Literal["progress", "scaled"] = "progress"
    """progress: the bonus alpha (r2 - r1), as in the paper. scaled: (1 + alpha) r2 alone, nothing subtracted."""
    beta2: float = Field(0.1, ge=0)
    """Extra KL weight on all but the last attempt in Stage I (paper: 0.1 for MATH, 0.25 for MBPP)."""
    beta2_target: float | None = Field(None, gt=0)
    """Stage I: adapt beta2 so that the held attempts' KL stays near this many nats; None keeps it fixed."""
    stage1: Literal["last", "stepwise"] = "last"
    """last: Stage I rewards the last attempt. stepwise: attempt 2, then 3, ..., each time with the earlier attempts
    held at the policy of the part before (the paper's recipe for three attempts)."""
    stage2: Literal["reinforce", "star"] = "reinforce"
    """star: the ablation with STaR in place of REINFORCE in Stage II."""
    interleave: int = Field(0, ge=0)
    """Alternate Stage I and Stage II in turns of this many steps (v1 of the paper names the option); 0 runs one after the other."""
    stage1_share: float = Field(0.4, ge=0, lt=1)
    """Share of train.steps spent in Stage I (the paper is silent). 0 is the ablation without Stage I."""

    def fitting_branches(self, attempts: int, samples: int) -> int:
        """See ``MultiAttemptConfig``. It is 1 with scaled shaping, which is another way to reduce the same noise."""
        return 1 if self.shaping == "scaled" else super().fitting_branches(attempts, samples)

    @model_validator(mode="after")
    def _stages_read_all(self) -> Self:
        no_stage1, star = self.stage1_share == 0, self.stage2 == "star"
        return self.refuse_ignored(
            "method",
            [
                (
                    no_stage1,
                    ("beta2", "beta2_target", "stage1", "interleave"),
                    "set method.stage1_share above 0 (it is Stage I's)",
                ),
                (no_stage1, ("stage2",), "use method=star: without Stage I this is STaR"),
                (self.interleave > 0, ("stage1_share",), "set method.interleave=0"),
                (self.beta2 == 0, ("beta2_target",), "set method.beta2 above 0, which is what it scales"),
                (self.alpha == 0, ("shaping",), "set method.alpha above 0"),
                (star, ("alpha", "shaping", "offline_share"), "set method.stage2=reinforce"),
                (
                    not star,
                    ("dataset", "train_attempt1"),
                    "use method=star or pair_sft, or method.stage2=star",
                ),
            ],
        )


class MultiTurnConfig(MultiAttemptConfig):
    name: Literal["multi_turn"] = "multi_turn"


class SingleTurnConfig(ReinforceConfig):
    name: Literal["single_turn"] = "single_turn"


class PagConfig(ReinforceConfig):
    name: Literal["pag"] = "pag"
    beta1: float = Field(0.0, ge=0)
    """KL weight on both attempts; PAG has none by default."""
    alpha: float = Field(1.0, ge=0)
    """Bonus alpha (r2 - r1) on attempt 2, where it is played (PAG: 1)."""
    verdict_weight: float = Field(1.0, ge=0)
    """Reward weight of the verdict turn, in which the model judges its own answer."""
    verdict_beta: float = Field(0.0, ge=0)
    """KL weight on the verdict turn."""
    verdict_instruction: str | None = None
    """Request for the verdict; None takes one that asks to check the answer step by step. It must ask for one of the lines
    `Verdict: correct` and `Verdict: wrong`, or for one of these words alone, and must not say whether the answer is right."""
    stop: bool = True
    """Play attempt 2 only where the verdict is "wrong"; false always plays it."""
    per_role: bool = False
    """Divide the reward part of the advantages by its spread over the whole step, apart for attempts and for verdicts."""

    @field_validator("verdict_instruction")
    @classmethod
    def _names_both_words(cls, value: str | None) -> str | None:
        words = () if value is None else ("correct", "wrong")
        if missing := [w for w in words if not re.search(rf"\b{w}\b", value or "", re.IGNORECASE)]:
            raise ValueError(
                f"it does not name the word {' nor '.join(map(repr, missing))}, so no answer to it could be read as a verdict; "
                "ask for `Verdict: correct` or `Verdict: wrong`"
            )
        return value

    @model_validator(mode="after")
    def _one_spread(self) -> Self:
        if self.standardise and self.per_role:
            raise ValueError(
                "method.standardise and method.per_role both divide the advantages by a spread, of the group and of the step; "
                "drop one of them"
            )
        return self


class ThinkTwiceConfig(ReinforceConfig):
    name: Literal["thinktwice"] = "thinktwice"
    beta1: float = Field(0.0, ge=0)
    """KL weight on every attempt."""
    standardise: bool = True
    """Divide the reward part of the advantages by its spread in the group."""


class StarConfig(ImitateConfig):
    name: Literal["star"] = "star"


class PairSftConfig(ImitateConfig):
    name: Literal["pair_sft"] = "pair_sft"


class SelfRefineConfig(Named):
    name: Literal["self_refine"] = "self_refine"


MethodConfig = Annotated[
    ScoreConfig
    | MultiTurnConfig
    | SingleTurnConfig
    | StarConfig
    | PairSftConfig
    | PagConfig
    | ThinkTwiceConfig
    | SelfRefineConfig,
    Field(discriminator="name"),
]
