"""SCoRe, multi-turn and single-turn RL as stages. What differs is in the table of method.md, nothing else.

| stage             | w      | beta                  | alpha |
|-------------------|--------|-----------------------|-------|
| SCoRe Stage I     | (0, 1) | (beta1 + beta2, beta1) | 0     |
| SCoRe Stage II    | (1, 1) | (beta1, beta1)         | alpha |
| multi-turn RL     | (1, 1) | (beta1, beta1)         | 0     |
| single-turn RL    | (1,)   | (beta1,)               | 0     |

Ablations of SCoRe are settings: without Stage I (method.stage1_share=0), without shaping (method.alpha=0), (1 + alpha)
r2 alone (method.shaping=scaled: Stage II with w = (1, 1 + alpha) and alpha = 0), the baseline given r1
(method.baseline), standardised advantages (method.standardise), credit between attempts (method.gamma).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from selfcorrect.config import Config, MethodConfig
from selfcorrect.errors import ConfigError
from selfcorrect.objective import Credit
from selfcorrect.types import BASE, LossName


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training with one objective."""

    name: str
    title: str
    """For people: shown in progress and tables."""
    steps: int
    samples_per_problem: int
    credit: Credit
    reference: str = BASE
    """Snapshot that the KL terms are measured against: the policy as it was loaded, in every stage."""
    loss: LossName = "importance_sampling"

    @property
    def attempts(self) -> int:
        return len(self.credit.reward_weights_K)


def score(config: Config) -> list[Stage]:
    """SCoRe, two stages (v2 Eq. 3 and Eq. 4).

    Stage I rewards the last attempt only and holds the earlier ones at the base with the strict beta2 on top of the
    beta1 that is on everything. Stage II rewards all attempts and adds the progress bonus.
    """
    m = config.method
    k = config.train.samples_per_problem
    if m.stage1_share == 0:
        return [Stage("stage2", "Stage II", config.train.steps, k, _joint(m))]
    first = min(max(1, round(config.train.steps * m.stage1_share)), config.train.steps - 1)  # a step for each stage
    earlier = m.attempts - 1
    stage1 = _credit(m, rewards=(0.0,) * earlier + (1.0,), betas=(m.beta1 + m.beta2,) * earlier + (m.beta1,))
    return [
        Stage("stage1", "Stage I", first, k, stage1),
        Stage("stage2", "Stage II", config.train.steps - first, k, _joint(m)),
    ]


def _joint(m: MethodConfig) -> Credit:
    """Stage II: the bonus, or its equal in expectation: (1 + alpha) r_k on every attempt after the first."""
    betas = (m.beta1,) * m.attempts
    if m.shaping == "scaled":
        return _credit(m, rewards=(1.0, *(1.0 + m.alpha,) * (m.attempts - 1)), betas=betas)
    return _credit(m, rewards=(1.0,) * m.attempts, betas=betas, alpha=m.alpha)


def multi_turn(config: Config) -> list[Stage]:
    """Plain multi-turn RL: every attempt paid its own reward, no Stage I, no bonus (v2 Eq. 1 with the KL of Eq. 2)."""
    m = config.method
    credit = _credit(m, rewards=(1.0,) * m.attempts, betas=(m.beta1,) * m.attempts)
    return [Stage("multi_turn", "Multi-turn RL", config.train.steps, config.train.samples_per_problem, credit)]


def single_turn(config: Config) -> list[Stage]:
    """RL on the first attempt only (v2 Eq. 2). The budget of sampled responses goes into more samples per problem."""
    m = config.method
    credit = _credit(m, rewards=(1.0,), betas=(m.beta1,))
    samples = config.train.samples_per_problem * m.attempts
    return [Stage("single_turn", "Single-turn RL", config.train.steps, samples, credit)]


METHODS: dict[str, Callable[[Config], list[Stage]]] = {
    "score": score,
    "multi_turn": multi_turn,
    "single_turn": single_turn,
}


def plan(config: Config) -> list[Stage]:
    """The stages of a run.

    Raises:
        ConfigError: the method's settings do not fit together.
    """
    m = config.method
    if m.name in ("score", "multi_turn") and m.attempts < 2:
        raise ConfigError(
            f"method={m.name} needs method.attempts >= 2: there is nothing to correct in a single attempt"
        )
    if m.name == "score" and m.stage1_share > 0 and config.train.steps < 2:
        raise ConfigError(
            "method=score has two stages: train.steps must be at least 2, or method.stage1_share 0 (no Stage I)"
        )
    _refuse_ignored(m)
    return METHODS[m.name](config)


IGNORED: dict[str, tuple[str, ...]] = {
    "score": (),
    "multi_turn": ("alpha", "shaping", "beta2", "stage1_share"),
    "single_turn": ("alpha", "shaping", "beta2", "gamma", "baseline", "stage1_share"),
}
"""Settings that a method does not read."""


def _ignored(m: MethodConfig) -> Iterator[tuple[str, str]]:
    """Settings that this method does not read, or not beside its others, and a way to have them read."""
    yield from ((name, "use method=score") for name in IGNORED[m.name])
    if m.name == "score" and m.stage1_share == 0:
        yield "beta2", "set method.stage1_share above 0 (beta2 is Stage I's)"
    if m.alpha == 0:
        yield "shaping", "set method.alpha above 0"


def _refuse_ignored(m: MethodConfig) -> None:
    defaults = MethodConfig()
    for name, way_out in _ignored(m):
        if getattr(m, name) != getattr(defaults, name):
            raise ConfigError(
                f"method.{name} = {getattr(m, name)!r} would be ignored by method={m.name}; drop it, or {way_out}"
            )


def _credit(m: MethodConfig, *, rewards: tuple[float, ...], betas: tuple[float, ...], alpha: float = 0.0) -> Credit:
    return Credit(rewards, betas, alpha, m.gamma, m.kl_credit, m.baseline, m.standardise)
