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

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from selfcorrect.config import Config, MethodConfig
from selfcorrect.errors import ConfigError
from selfcorrect.methods.imitation import Imitation
from selfcorrect.objective import Credit
from selfcorrect.types import BASE, LossName

STAR_ITERATIONS = 3
"""As in the paper."""


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
    reference: str = BASE
    """Snapshot that the KL terms are measured against: the policy as it was loaded, in every stage."""
    loss: LossName = "importance_sampling"
    imitate: Imitation | None = None
    """Imitation: episodes are collected before the first step and trained on by cross-entropy."""
    offline_share: float = 0.0
    """Share of each step's problems whose first attempts are stored answers of the base."""
    freeze: str | None = None
    """Snapshot taken of the policy when the stage begins."""

    @property
    def attempts(self) -> int:
        """Attempts played per episode."""
        if self.imitate is not None:
            return self.imitate.attempts
        assert self.credit is not None
        return len(self.credit.reward_weights_K)


def score(config: Config) -> list[Stage]:
    """SCoRe, two stages (v2 Eq. 3 and Eq. 4).

    Stage I rewards the last attempt only and holds the earlier ones at the base with the strict beta2 on top of the
    beta1 that is on everything. Stage II rewards all attempts and adds the progress bonus.
    """
    m = config.method
    k = config.train.samples_per_problem
    if m.stage1_share == 0:
        return [Stage("stage2", "Stage II", config.train.steps, k, _joint(m), offline_share=m.offline_share)]
    first = min(max(1, round(config.train.steps * m.stage1_share)), config.train.steps - 1)  # a step for each stage
    earlier = m.attempts - 1
    stage1 = _credit(m, rewards=(0.0,) * earlier + (1.0,), betas=(m.beta1 + m.beta2,) * earlier + (m.beta1,))
    return [
        Stage("stage1", "Stage I", first, k, stage1),
        Stage("stage2", "Stage II", config.train.steps - first, k, _joint(m), offline_share=m.offline_share),
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
    k = config.train.samples_per_problem
    return [Stage("multi_turn", "Multi-turn RL", config.train.steps, k, credit, offline_share=m.offline_share)]


def single_turn(config: Config) -> list[Stage]:
    """RL on the first attempt only (v2 Eq. 2). The budget of sampled responses goes into more samples per problem."""
    m = config.method
    credit = _credit(m, rewards=(1.0,), betas=(m.beta1,))
    samples = config.train.samples_per_problem * m.attempts
    return [Stage("single_turn", "Single-turn RL", config.train.steps, samples, credit)]


def star(config: Config) -> list[Stage]:
    """STaR (v2 Table 1): three times sample from the current policy, keep corrections, fine-tune the base on them."""
    m = config.method
    how = Imitation("star", 2, m.dataset == "D+", m.train_attempt1)
    return _iterations("star", f"STaR {m.dataset}", config.train.steps, config.train.samples_per_problem, how)


def pair_sft(config: Config) -> list[Stage]:
    """Pair-SFT (v2 Table 1): pairs of the base's own first responses, one epoch.

    Only first responses are sampled, so the budget of responses goes into more of them per problem.
    """
    m = config.method
    how = Imitation("pair_sft", 1, m.dataset == "D+", m.train_attempt1)
    samples = config.train.samples_per_problem * m.attempts
    return [_imitating("pair_sft", f"Pair-SFT {m.dataset}", config.train.steps, samples, how)]


def _iterations(name: str, title: str, steps: int, samples: int, how: Imitation) -> list[Stage]:
    """STaR's iterations; the first ones take the steps left over. Each collects what as many steps of RL would play."""
    shares = [steps // STAR_ITERATIONS + (i < steps % STAR_ITERATIONS) for i in range(STAR_ITERATIONS)]
    return [
        _imitating(f"{name}{i + 1}", f"{title}, iteration {i + 1} of {STAR_ITERATIONS}", n, samples, how)
        for i, n in enumerate(shares)
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
    m = config.method
    if m.name == "self_refine":
        raise ConfigError(
            "method=self_refine has no training: it is a way to play a model; measure it with "
            "`selfcorrect eval MODEL method=self_refine`"
        )
    if m.name in ("star", "pair_sft") and m.attempts != 2:
        raise ConfigError(f"method={m.name} learns one correction: method.attempts must be 2, not {m.attempts}")
    if m.name == "star" and config.train.steps < STAR_ITERATIONS:
        raise ConfigError(f"method=star has {STAR_ITERATIONS} iterations: train.steps must be at least that")
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


_IMITATION = ("dataset", "train_attempt1")
_STAGED = ("alpha", "shaping", "beta2", "stage1_share")
_REINFORCED = ("beta1", "gamma", "kl_credit", "baseline", "standardise", "offline_share", *_STAGED)
IGNORED: dict[str, tuple[str, ...]] = {
    "score": _IMITATION,
    "multi_turn": (*_STAGED, *_IMITATION),
    "single_turn": (*_STAGED, "gamma", "baseline", "offline_share", *_IMITATION),
    "star": _REINFORCED,
    "pair_sft": _REINFORCED,
}
"""Settings that a method does not read."""


def _ignored(m: MethodConfig) -> Iterator[tuple[str, str]]:
    """Settings that this method does not read, or not beside its others, and a way to have them read."""
    for name in IGNORED[m.name]:
        yield name, "use method=star or pair_sft" if name in _IMITATION else "use method=score"
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
