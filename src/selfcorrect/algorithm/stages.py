"""The methods as stages. The objectives of the RL methods differ only in the numbers of their ``Credit``.

Every row is that of its method's paper, for two attempts. ``variants.py`` applies the other settings. With the paper's
settings, which include method.branches=1, the rows are unchanged. The default makes trees: three second attempts follow
each first one (``trees.py``). Single-turn RL plays one attempt, so it spends the same responses on more samples and has no
trees.
Ablations of SCoRe: without Stage I (method.stage1_share=0), without the bonus (method.alpha=0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from selfcorrect.algorithm.checks import check, stage1_steps
from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.imitation import Imitation
from selfcorrect.algorithm.stage import Stage, star_iterations
from selfcorrect.algorithm.variants import varied
from selfcorrect.config.methods import (
    MultiTurnConfig,
    PagConfig,
    PairSftConfig,
    ScoreConfig,
    SingleTurnConfig,
    StarConfig,
    ThinkTwiceConfig,
)
from selfcorrect.config.sections import Config
from selfcorrect.errors import ConfigError
from selfcorrect.types import BASE

M = TypeVar("M")
Method = Callable[[Config], list[Stage]]

METHODS: dict[str, Method] = {}
"""The functions of this file that are marked ``@method``, by name."""


def method(function: Method) -> Method:
    """Mark a function as the method of its name. ``config/methods.py`` has the same name, in the class of settings that
    the function reads."""
    METHODS[function.__name__] = function
    return function


@method
def score(config: Config) -> list[Stage]:
    """SCoRe (Eq. 3 and Eq. 4).

    Stage I rewards attempt 2 only, and holds attempt 1 at the base with the strict beta2, which is added to the beta1
    of every attempt. Stage II starts from Stage I's weights, rewards both attempts and adds the progress bonus.
    """
    m, samples = settings_of(config, ScoreConfig), config.train.samples_per_problem
    steps1 = stage1_steps(m, config.train.steps)
    steps2 = config.train.steps - steps1
    return [  # reward weights w and KL weights beta of attempts 1 and 2, then the bonus
        Stage("stage1", "Stage I", steps1, samples, Credit((0, 1), (m.beta1 + m.beta2, m.beta1), alpha=0)),
        Stage("stage2", "Stage II", steps2, samples, Credit((1, 1), (m.beta1, m.beta1), alpha=m.alpha)),
    ]


@method
def multi_turn(config: Config) -> list[Stage]:
    """Plain multi-turn RL: each attempt earns its own reward, without Stage I and bonus (Eq. 1 with the KL of Eq.
    2)."""
    m, train = settings_of(config, MultiTurnConfig), config.train
    credit = Credit((1, 1), (m.beta1, m.beta1), alpha=0)
    return [Stage("multi_turn", "Multi-turn RL", train.steps, train.samples_per_problem, credit)]


@method
def single_turn(config: Config) -> list[Stage]:
    """RL on the first attempt only (Eq. 2). The same budget of responses allows more samples per problem."""
    m, train = settings_of(config, SingleTurnConfig), config.train
    samples = train.samples_per_problem * config.play.attempts
    return [Stage("single_turn", "Single-turn RL", train.steps, samples, Credit((1,), (m.beta1,), alpha=0))]


@method
def pag(config: Config) -> list[Stage]:
    """PAG (arXiv:2506.10406): attempt 1, the model's own verdict on it, and attempt 2 where that says "wrong".

    Three turns that are paid apart, and the progress bonus on attempt 2. Departs from the paper: leave-one-out in place
    of a critic, REINFORCE in place of PPO. The budget of responses counts three for every episode.
    """
    m, train = settings_of(config, PagConfig), config.train
    samples = 2 * train.samples_per_problem // 3
    weights, betas = (1, m.verdict_weight, 1), (m.beta1, m.verdict_beta, m.beta1)
    credit = Credit(weights, betas, alpha=m.alpha, verdicts=(1,), per_role=m.per_role, stop=m.stop)
    return [Stage("pag", "PAG", train.steps, samples, credit)]


@method
def thinktwice(config: Config) -> list[Stage]:
    """ThinkTwice (arXiv:2604.01591): a step on first attempts, then one on second attempts, on the same problems.

    The second attempts of a problem follow one first attempt: a tree with one first and as many seconds as the step
    before had firsts. Departs from the paper: that first attempt is sampled afresh, by the policy after the first step,
    which has the law of picking one at random. ``varied`` makes the two rows take turns.
    """
    m, train = settings_of(config, ThinkTwiceConfig), config.train
    group = 2 * train.samples_per_problem - 1  # with the one first attempt, a step of seconds spends the budget
    return [
        Stage("thinktwice", "first attempts", train.steps // 2, group, Credit((1,), (m.beta1,))),
        Stage("thinktwice", "second attempts", train.steps // 2, 1, Credit((0, 1), (0, m.beta1)), branches=group),
    ]


@method
def star(config: Config) -> list[Stage]:
    """STaR (Table 1): three times, sample from the current policy, keep the corrections, and fine-tune the base on
    them."""
    m, train = settings_of(config, StarConfig), config.train
    how = Imitation("star", attempts=2, keep_right=m.dataset == "D+", train_attempt1=m.train_attempt1, start=BASE)
    return star_iterations(Stage("star", f"STaR {m.dataset}", train.steps, train.samples_per_problem, how))


@method
def pair_sft(config: Config) -> list[Stage]:
    """Pair-SFT (Table 1): pairs of the base's own first responses, one epoch.

    Only first responses are sampled, so the budget allows more of them per problem.
    """
    m, train = settings_of(config, PairSftConfig), config.train
    how = Imitation("pair_sft", attempts=1, keep_right=m.dataset == "D+", train_attempt1=m.train_attempt1, start=BASE)
    samples = train.samples_per_problem * config.play.attempts
    return [Stage("pair_sft", f"Pair-SFT {m.dataset}", train.steps, samples, how)]


def plan(config: Config) -> list[Stage]:
    """The stages of a run. The first one freezes the base.

    Raises:
        ConfigError: the method's settings do not fit together, or nobody has written it.
    """
    check(config)
    name = config.method.name
    if name not in METHODS:
        raise ConfigError(
            f"method {name} is named in config/methods.py, but algorithm/stages.py has no function {name} marked @method; "
            f"write it, or take one of: {', '.join(METHODS)}"
        )
    first, *others = varied(METHODS[name](config), config)
    return [replace(first, freeze=BASE), *others]


def settings_of(config: Config, kind: type[M]) -> M:
    """The method's settings, as the class that has its name in ``config/methods.py``."""
    m = config.method
    assert isinstance(m, kind), f"method {m.name} reads {kind.__name__}, but has its name in {type(m).__name__}"
    return m
