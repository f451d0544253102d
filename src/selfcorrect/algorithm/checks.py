"""Which settings of a method do not fit together, and which it would not read."""

from __future__ import annotations

from collections.abc import Iterator

from selfcorrect.config import Config, MethodConfig, TrainConfig
from selfcorrect.errors import ConfigError

STAR_ITERATIONS = 3
"""As in the paper."""


def check(config: Config) -> None:
    """Refuse a config whose method cannot be carried out as set.

    Raises:
        ConfigError: settings do not fit together, or one would be ignored; the message names the way out.
    """
    for fault in _faults(config):
        raise ConfigError(fault)
    _refuse_ignored(config.method)


def _faults(config: Config) -> Iterator[str]:
    """What does not fit together, each with the way out."""
    m, steps = config.method, config.train.steps
    if m.name == "self_refine":
        yield (
            "method=self_refine has no training: it is a way to play a model; measure it with "
            "`selfcorrect eval MODEL method=self_refine`"
        )
    if (m.name in ("star", "pair_sft") or m.stage2 == "star") and m.attempts != 2:
        yield f"method={m.name} learns one correction here: method.attempts must be 2, not {m.attempts}"
    if m.name == "star" and steps < STAR_ITERATIONS:
        yield f"method=star has {STAR_ITERATIONS} iterations: train.steps must be at least that"
    if m.name in ("score", "multi_turn"):
        yield from _faults_of_rl(m, config.train)
    if m.name == "score" and m.stage1_share > 0:
        yield from _faults_of_stages(m, config.train)


def _faults_of_rl(m: MethodConfig, train: TrainConfig) -> Iterator[str]:
    if m.attempts < 2:
        yield f"method={m.name} needs method.attempts >= 2: there is nothing to correct in a single attempt"
    if m.branches > 1 and (m.attempts != 2 or m.gamma != 0):
        yield "method.branches above 1 makes trees of two attempts with method.gamma 0; set method.attempts=2 and drop gamma"
    if m.shaping == "scaled" and m.gamma != 0:
        yield (
            "method.shaping=scaled stands for the bonus at method.gamma=0, where both have one expected gradient; with gamma it "
            "would pay attempt 1 for attempt 2's factor; drop one of the two"
        )
    least = -(-2 * (1 + m.branches) // m.attempts)
    if m.branches > 1 and train.samples_per_problem < least:
        yield (
            f"method.branches={m.branches} spends the responses of train.samples_per_problem={train.samples_per_problem} on "
            f"a single first attempt, which has no baseline; raise train.samples_per_problem to {least} or more"
        )


def stage1_steps(m: MethodConfig, steps: int) -> int:
    """Steps of Stage I; a step is left for each stage."""
    return min(max(1, round(steps * m.stage1_share)), steps - 1)


def _faults_of_stages(m: MethodConfig, train: TrainConfig) -> Iterator[str]:
    steps = train.steps
    if steps < 2:
        yield "method=score has two stages: train.steps must be at least 2, or method.stage1_share 0 (no Stage I)"
    if m.interleave:
        if steps % (2 * m.interleave):
            yield (
                f"method.interleave={m.interleave} alternates that many steps of Stage I and of Stage II: train.steps={steps} "
                f"must be a multiple of {2 * m.interleave}, so that the last ones are Stage II's"
            )
        if m.interleave < train.warmup_steps:
            yield (
                f"method.interleave={m.interleave} begins the warm-up of train.warmup_steps={train.warmup_steps} anew before it "
                "has ended, so train.learning_rate would never be reached; lower train.warmup_steps or raise method.interleave"
            )
        if m.stage1 != "last" or m.stage2 != "reinforce":
            yield "method.interleave alternates the two stages of SCoRe as they are; drop method.stage1 and method.stage2"
        return
    first = stage1_steps(m, steps)
    if m.stage1 == "stepwise" and first < m.attempts - 1:
        yield f"a stepwise Stage I has {m.attempts - 1} parts, but {first} steps; raise train.steps or method.stage1_share"
    if m.stage2 == "star" and steps - first < STAR_ITERATIONS:
        yield f"STaR in Stage II has {STAR_ITERATIONS} iterations, but {steps - first} steps; raise train.steps"


_IMITATION = ("dataset", "train_attempt1")
_STAGED = ("alpha", "shaping", "beta2", "beta2_target", "stage1", "stage2", "interleave", "stage1_share")
_SEVERAL_ATTEMPTS = ("gamma", "baseline", "offline_share", "branches")
_REINFORCED = ("beta1", "kl_credit", "standardise", *_SEVERAL_ATTEMPTS, *_STAGED)
IGNORED: dict[str, tuple[str, ...]] = {
    "score": (),
    "multi_turn": (*_STAGED, *_IMITATION),
    "single_turn": (*_STAGED, *_SEVERAL_ATTEMPTS, *_IMITATION),
    "star": _REINFORCED,
    "pair_sft": _REINFORCED,
}
"""Settings that a method does not read."""


def _ignored(m: MethodConfig) -> Iterator[tuple[str, str]]:
    """Settings that this method does not read, or not beside its others, and a way to have them read."""
    for name in IGNORED[m.name]:
        yield name, "use method=star or pair_sft" if name in _IMITATION else "use method=score"
    if m.name == "score":
        yield from _ignored_by_score(m)
    if m.branches > 1:
        yield "baseline", "set method.branches=1 (all mates in a branch have one first attempt)"


def _ignored_by_score(m: MethodConfig) -> Iterator[tuple[str, str]]:
    if m.stage1_share == 0:
        for name in ("beta2", "beta2_target", "stage1", "interleave"):
            yield name, "set method.stage1_share above 0 (it is Stage I's)"
        yield "stage2", "use method=star: without Stage I this is STaR"
    if m.interleave:
        yield "stage1_share", "set method.interleave=0"
    if m.beta2 == 0:
        yield "beta2_target", "set method.beta2 above 0, which is what it scales"
    if m.attempts == 2:
        yield "stage1", "set method.attempts=3 or more (with two it is one part)"
    if m.alpha == 0:
        yield "shaping", "set method.alpha above 0"
    if m.stage2 == "star":
        for name in ("alpha", "shaping", "offline_share"):
            yield name, "set method.stage2=reinforce"
    else:
        for name in _IMITATION:
            yield name, "use method=star or pair_sft, or method.stage2=star"


def _refuse_ignored(m: MethodConfig) -> None:
    defaults = MethodConfig()
    for name, way_out in _ignored(m):
        if getattr(m, name) != getattr(defaults, name):
            raise ConfigError(
                f"method.{name} = {getattr(m, name)!r} would be ignored by method={m.name}; drop it, or {way_out}"
            )
