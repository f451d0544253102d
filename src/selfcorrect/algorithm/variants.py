"""Methods that go beyond the paper's two-attempt recipe, built on its rows.

More attempts, a stepwise Stage I, trees, stored first attempts, STaR in Stage II, interleaving, an adaptive beta2,
scaled shaping, and the credit's ablations. Every function takes rows of ``stages.py`` and returns changed ones.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.imitation import Imitation
from selfcorrect.algorithm.stage import Alternating, Stage, shares, star_iterations
from selfcorrect.config.methods import MultiAttemptConfig, ReinforceConfig, ScoreConfig, ThinkTwiceConfig
from selfcorrect.config.sections import Config
from selfcorrect.types import BASE


def varied(rows: list[Stage], config: Config) -> list[Stage]:
    """A method's rows under the settings of this run.

    With the paper's settings, which include method.branches=1, the rows are unchanged. The default makes trees of three.
    """
    m, attempts = config.method, config.play.attempts
    if not isinstance(m, ReinforceConfig):
        return rows
    options = m.model_dump(include={"kl_credit", "standardise", "gamma", "baseline"})
    stages = [replace(s, objective=replace(credit_of(s), **options)) for s in rows if s.steps]
    if isinstance(m, ThinkTwiceConfig):
        return [alternating(stages, "ThinkTwice", config.train.steps)]
    if not isinstance(m, MultiAttemptConfig):
        return stages
    *earlier, last = stages
    if isinstance(m, ScoreConfig) and m.stage1 == "stepwise":
        earlier = [part for s in earlier for part in stepwise(s, attempts)]
    else:
        earlier = [widened(s, attempts) for s in earlier]
    last = replace(widened(last, attempts), offline_share=m.offline_share)
    stages = [branching(s, m.branches or 1, config.train.samples_per_problem * attempts) for s in (*earlier, last)]
    return _varied_score(stages, m, config) if isinstance(m, ScoreConfig) else stages


def _varied_score(stages: list[Stage], m: ScoreConfig, config: Config) -> list[Stage]:
    """SCoRe's own options: what Stage I rewards and holds, what Stage II does, and how the two alternate."""
    *first, second = stages
    if m.beta2_target is not None:
        first = [replace(s, beta2=m.beta2, kl_target=m.beta2_target) for s in first]
    if m.shaping == "scaled":
        second = scaled(second)
    if m.interleave:
        turns = range(config.train.steps // (2 * m.interleave))
        return [replace(s, steps=m.interleave) for _ in turns for s in (*first, second)]
    if m.stage2 == "star":
        # each iteration tunes Stage I's policy from its start, as STaR does the base
        how = Imitation("star", 2, m.dataset == "D+", m.train_attempt1, start="stage1")
        title, samples = f"Stage II, STaR {m.dataset}", config.train.samples_per_problem
        return [*first, *star_iterations(Stage("stage2_star", title, second.steps, samples, how, freeze="stage1"))]
    return [*first, second]


def alternating(rows: list[Stage], title: str, steps: int) -> Stage:
    """One stage in which the rows take turns, one step each. The samples are those of the first row."""
    turns = Alternating(tuple(replace(row, steps=1) for row in rows))
    return Stage(rows[0].name, title, steps, rows[0].samples_per_problem, turns)


def widened(stage: Stage, attempts: int) -> Stage:
    """Extend a row of two attempts to more: all attempts but the last get the numbers of attempt 1, the last those of
    attempt 2."""
    credit = credit_of(stage)
    n = len(credit.reward_weights_K)
    assert n == 2, f"stage {stage.name} has {n} reward weights; write its row for two attempts, which this widens"
    (w1, w2), (beta1, beta2) = credit.reward_weights_K, credit.kl_weights_K
    rewards, betas = (w1,) * (attempts - 1) + (w2,), (beta1,) * (attempts - 1) + (beta2,)
    return replace(stage, objective=replace(credit, reward_weights_K=rewards, kl_weights_K=betas))


def stepwise(stage1: Stage, attempts: int) -> list[Stage]:
    """Stage I for one more attempt at a time: each part holds the earlier attempts at the policy of the part before."""
    parts: list[Stage] = []
    for j, steps in enumerate(shares(stage1.steps, attempts - 1), 2):
        letter, before = "abcdefghi"[j - 2], parts[-1].name if parts else None
        part = replace(widened(stage1, j), name=f"stage1{letter}", title=f"Stage I({letter})", steps=steps)
        parts.append(replace(part, freeze=before, earlier_reference=before or BASE))
    return parts


def branching(stage: Stage, branches: int, responses: int) -> Stage:
    """Turn episodes into trees, with as many trees per problem as the budget of responses allows.

    The number is rounded down. A tree has more answers than a linear episode, and a part of a stepwise Stage I has
    fewer.
    """
    answers = stage.attempts if branches == 1 else 1 + branches
    return replace(stage, branches=branches, samples_per_problem=responses // answers)


def scaled(stage2: Stage) -> Stage:
    """Stage II with (1 + alpha) r_k on every attempt after the first: in expectation the same gradient as with the
    bonus."""
    credit = credit_of(stage2)
    first, *later = credit.reward_weights_K
    rewards = (first, *(w + credit.alpha for w in later))
    return replace(stage2, objective=replace(credit, reward_weights_K=rewards, alpha=0))


def credit_of(stage: Stage, beta2_scale: float = 1.0) -> Credit:
    """The credit of an RL stage. If the stage adapts beta2, its beta2 is scaled."""
    assert isinstance(stage.objective, Credit)
    if stage.kl_target is None:
        return stage.objective
    *held, last = stage.objective.kl_weights_K
    moved = tuple(beta + stage.beta2 * (beta2_scale - 1) for beta in held)
    return replace(stage.objective, kl_weights_K=(*moved, last))


def scale_after(stage: Stage, scale: float, kl_K: list[float | None]) -> float:
    """Factor of beta2 after a step with these KL estimates per attempt. A stage that does not adapt beta2 leaves it
    unchanged."""
    if stage.kl_target is None:
        return scale
    return adapted_scale(scale, float(np.mean([kl for kl in kl_K[:-1] if kl is not None])), stage.kl_target)


def adapted_scale(scale: float, kl: float, target: float) -> float:
    """Factor of beta2 for the next step: a tenth larger if the KL is too high, a tenth smaller if it is too low.

        scale * 1.1  if kl > 1.5 target;  scale / 1.1  if kl < target / 1.5;  kept within 1/32 and 32

    Args:
        scale: factor of this step.
        kl: this step's mean KL estimate of the attempts that are held, in nats.
        target: ``method.beta2_target``, in nats.

    Departs from the paper: it names an adaptive beta2 without a formula. The thresholds are those of the adaptive KL
    penalty of PPO (Schulman et al. 2017); its factor of 2 is meant for whole rounds of updates; the factor here applies
    to every step.
    """
    if kl > 1.5 * target:
        scale *= 1.1
    elif kl < target / 1.5:
        scale /= 1.1
    return min(max(scale, 1 / 32), 32.0)
