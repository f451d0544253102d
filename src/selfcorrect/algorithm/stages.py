"""The methods as stages. What differs between those that reinforce is in this table, nothing else.

| stage             | w      | beta                  | alpha |
|-------------------|--------|-----------------------|-------|
| SCoRe Stage I     | (0, 1) | (beta1 + beta2, beta1) | 0     |
| SCoRe Stage II    | (1, 1) | (beta1, beta1)         | alpha |
| multi-turn RL     | (1, 1) | (beta1, beta1)         | 0     |
| single-turn RL    | (1,)   | (beta1,)               | 0     |

| stages that imitate | episodes                                     | start      |
|---------------------|----------------------------------------------|------------|
| STaR, 3 iterations  | wrong -> right of the policy so far (D+: also right -> right) | base |
| Pair-SFT            | pairs of the base's own responses            | base       |

Ablations of SCoRe are settings: without Stage I (method.stage1_share=0), without shaping (method.alpha=0), (1 + alpha)
r2 alone (method.shaping=scaled: Stage II with w = (1, 1 + alpha) and alpha = 0), the baseline given r1
(method.baseline), standardised advantages (method.standardise), credit between attempts (method.gamma).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from selfcorrect.algorithm.checks import STAR_ITERATIONS, check, stage1_steps
from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.imitation import Imitation
from selfcorrect.config.sections import (
    Config,
    MultiAttemptConfig,
    MultiTurnConfig,
    PairSftConfig,
    ScoreConfig,
    SingleTurnConfig,
    StarConfig,
)
from selfcorrect.types import BASE, LossName

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training with one objective."""

    name: str
    title: str
    """For people: shown in progress and tables."""
    steps: int
    samples_per_problem: int
    credit: Credit | None
    """Reinforcement: what turns verdicts into weights. None in a stage that imitates."""
    earlier_reference: str = BASE
    """Snapshot that the KL of all attempts but the last is measured against (the last one: always the base); another
    one in the later parts of a stepwise Stage I."""
    loss: LossName = "importance_sampling"
    imitate: Imitation | None = None
    """Imitation: episodes are collected before the first step and trained on by cross-entropy."""
    offline_share: float = 0.0
    """Share of each step's problems whose first attempts are stored answers of the base."""
    freeze: str | None = None
    """Snapshot taken of the policy when the stage begins."""
    branches: int = 1
    """Second attempts per first attempt."""
    beta2: float = 0.0
    """The part of the KL weights of all but the last attempt that ``kl_target`` moves."""
    kl_target: float | None = None
    """Nats at which adaptive beta2 keeps the held attempts; None: fixed."""

    @property
    def attempts(self) -> int:
        """Attempts played per episode."""
        if self.imitate is not None:
            return self.imitate.attempts
        assert self.credit is not None
        return len(self.credit.reward_weights_K)

    def credit_at(self, beta2_scale: float) -> Credit:
        """The credit with beta2 multiplied; unchanged in a stage that does not adapt it."""
        assert self.credit is not None
        if self.kl_target is None:
            return self.credit
        *held, last = self.credit.kl_weights_K
        moved = tuple(beta + self.beta2 * (beta2_scale - 1) for beta in held)
        return replace(self.credit, kl_weights_K=(*moved, last))


def score(config: Config) -> list[Stage]:
    """SCoRe, two stages (v2 Eq. 3 and Eq. 4).

    Stage I rewards the last attempt only and holds the earlier ones at the base with the strict beta2 on top of the
    beta1 that is on everything. Stage II rewards all attempts and adds the progress bonus.
    """
    m, total = _method(config, ScoreConfig), config.train.steps
    if m.stage1_share == 0:
        return _stage2(config, total)
    if m.interleave:
        rounds = range(total // (2 * m.interleave))
        return [s for _ in rounds for s in (*_stage1(config, m.interleave), *_stage2(config, m.interleave))]
    first = stage1_steps(m, total)
    return [*_stage1(config, first), *_stage2(config, total - first)]


def _stage1(config: Config, steps: int) -> list[Stage]:
    """Stage I in one go, or (stepwise) for one more attempt at a time."""
    n = config.play.attempts
    if _method(config, ScoreConfig).stage1 == "last":
        return [_held(config, "stage1", "Stage I", steps, n)]
    parts: list[Stage] = []
    for j in range(2, n + 1):
        letter = "abcdefghi"[j - 2]
        before = parts[-1].name if parts else None
        part = _held(config, f"stage1{letter}", f"Stage I({letter})", _share(steps, n - 1, j - 2), j)
        parts.append(replace(part, freeze=before, earlier_reference=before or BASE))
    return parts


def _held(config: Config, name: str, title: str, steps: int, attempts: int) -> Stage:
    """Reward on the last attempt, all earlier ones held by beta2 on top of beta1."""
    m, held = _method(config, ScoreConfig), attempts - 1
    credit = _credit(m, rewards=(0.0,) * held + (1.0,), betas=(m.beta1 + m.beta2,) * held + (m.beta1,))
    samples = _samples(config, attempts)
    return Stage(name, title, steps, samples, credit, branches=m.branches, beta2=m.beta2, kl_target=m.beta2_target)


def _stage2(config: Config, steps: int) -> list[Stage]:
    """Stage II by REINFORCE, or STaR from Stage I's policy: each iteration tunes that one anew, as STaR does the base."""
    m, n = _method(config, ScoreConfig), config.play.attempts
    if m.stage2 == "star":
        how = Imitation("star", 2, m.dataset == "D+", m.train_attempt1, start="stage1")
        k = config.train.samples_per_problem
        first, *others = _iterations("stage2_star", f"Stage II, STaR {m.dataset}", steps, k, how)
        return [replace(first, freeze="stage1"), *others]
    samples = _samples(config, n)
    return [
        Stage("stage2", "Stage II", steps, samples, _joint(m, n), offline_share=m.offline_share, branches=m.branches)
    ]


def _samples(config: Config, attempts: int) -> int:
    """Episodes per problem that spend the budget of responses, rounded down: trees have more answers, parts of Stage I fewer."""
    m = _method(config, MultiAttemptConfig)
    answers = attempts if m.branches == 1 else 1 + m.branches
    return config.train.samples_per_problem * config.play.attempts // answers


def _share(steps: int, parts: int, i: int) -> int:
    """Steps of part i; the first parts take what is left over."""
    return steps // parts + (i < steps % parts)


def _joint(m: ScoreConfig, attempts: int) -> Credit:
    """Stage II: the bonus, or its equal in expectation: (1 + alpha) r_k on every attempt after the first."""
    betas = (m.beta1,) * attempts
    if m.shaping == "scaled":
        return _credit(m, rewards=(1.0, *(1.0 + m.alpha,) * (attempts - 1)), betas=betas)
    return _credit(m, rewards=(1.0,) * attempts, betas=betas, alpha=m.alpha)


def multi_turn(config: Config) -> list[Stage]:
    """Plain multi-turn RL: every attempt paid its own reward, no Stage I, no bonus (v2 Eq. 1 with the KL of Eq. 2)."""
    m, n = _method(config, MultiTurnConfig), config.play.attempts
    credit = _credit(m, rewards=(1.0,) * n, betas=(m.beta1,) * n)
    samples = _samples(config, n)
    return [
        Stage(
            "multi_turn",
            "Multi-turn RL",
            config.train.steps,
            samples,
            credit,
            offline_share=m.offline_share,
            branches=m.branches,
        )
    ]


def single_turn(config: Config) -> list[Stage]:
    """RL on the first attempt only (v2 Eq. 2). The budget of sampled responses goes into more samples per problem."""
    m = _method(config, SingleTurnConfig)
    credit = Credit((1.0,), (m.beta1,), kl_credit=m.kl_credit, standardise=m.standardise)
    samples = config.train.samples_per_problem * config.play.attempts
    return [Stage("single_turn", "Single-turn RL", config.train.steps, samples, credit)]


def star(config: Config) -> list[Stage]:
    """STaR (v2 Table 1): three times sample from the current policy, keep corrections, fine-tune the base on them."""
    m = _method(config, StarConfig)
    how = Imitation("star", 2, m.dataset == "D+", m.train_attempt1)
    return _iterations("star", f"STaR {m.dataset}", config.train.steps, config.train.samples_per_problem, how)


def pair_sft(config: Config) -> list[Stage]:
    """Pair-SFT (v2 Table 1): pairs of the base's own first responses, one epoch.

    Only first responses are sampled, so the budget of responses goes into more of them per problem.
    """
    m = _method(config, PairSftConfig)
    how = Imitation("pair_sft", 1, m.dataset == "D+", m.train_attempt1)
    samples = config.train.samples_per_problem * config.play.attempts
    return [_imitating("pair_sft", f"Pair-SFT {m.dataset}", config.train.steps, samples, how)]


def _iterations(name: str, title: str, steps: int, samples: int, how: Imitation) -> list[Stage]:
    """STaR's iterations; the first ones take the steps left over. Each collects what as many steps of RL would play."""
    return [
        _imitating(
            f"{name}{i + 1}",
            f"{title}, iteration {i + 1} of {STAR_ITERATIONS}",
            _share(steps, STAR_ITERATIONS, i),
            samples,
            how,
        )
        for i in range(STAR_ITERATIONS)
    ]


def _imitating(name: str, title: str, steps: int, samples: int, how: Imitation) -> Stage:
    return Stage(name, title, steps, samples, None, loss="cross_entropy", imitate=how)


METHODS: dict[str, Callable[[Config], list[Stage]]] = {
    "score": score,
    "multi_turn": multi_turn,
    "single_turn": single_turn,
    "star": star,
    "pair_sft": pair_sft,
}


def plan(config: Config) -> list[Stage]:
    """The stages of a run.

    Raises:
        ConfigError: the method's settings do not fit together.
    """
    check(config)
    return METHODS[config.method.name](config)


def _method(config: Config, kind: type[M]) -> M:
    """The method's settings, as the class that ``plan`` chose the stages by."""
    assert isinstance(config.method, kind)
    return config.method


def _credit(
    m: MultiAttemptConfig, *, rewards: tuple[float, ...], betas: tuple[float, ...], alpha: float = 0.0
) -> Credit:
    return Credit(rewards, betas, alpha, m.gamma, m.kl_credit, m.baseline, m.standardise)
