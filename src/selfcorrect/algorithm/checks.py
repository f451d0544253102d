"""Which settings of a method do not fit the rest of the run."""

from __future__ import annotations

from collections.abc import Iterator

from selfcorrect.algorithm.stage import STAR_ITERATIONS
from selfcorrect.config.methods import ImitateConfig, MultiAttemptConfig, PagConfig, ScoreConfig, ThinkTwiceConfig
from selfcorrect.config.sections import Config
from selfcorrect.errors import ConfigError


def check(config: Config) -> None:
    """Refuse a config whose method cannot be carried out as set.

    Raises:
        ConfigError: settings do not fit together, or one would be ignored; the message names the way out.
    """
    for fault in _faults(config):
        raise ConfigError(fault)


def _faults(config: Config) -> Iterator[str]:
    """The settings that do not fit together, each with the way out."""
    m, steps, attempts = config.method, config.train.steps, config.play.attempts
    if m.name == "self_refine":
        yield (
            "method=self_refine has no training: it is a way to play a model; measure it with "
            "`selfcorrect eval MODEL method=self_refine`"
        )
    imitates = m.stage2 == "star" if isinstance(m, ScoreConfig) else isinstance(m, ImitateConfig)
    if imitates and attempts != 2:
        yield f"method={m.name} learns one correction here: play.attempts must be 2, not {attempts}"
    if m.name == "star" and steps < STAR_ITERATIONS:
        yield f"method=star has {STAR_ITERATIONS} iterations: train.steps must be at least that"
    if isinstance(m, PagConfig | ThinkTwiceConfig):
        yield from _faults_of_two(m, config)
    if isinstance(m, MultiAttemptConfig):
        yield from _faults_of_attempts(m, attempts, config.train.samples_per_problem)
    if isinstance(m, ScoreConfig):
        if m.shaping == "scaled" and m.gamma != 0:
            yield (
                "method.shaping=scaled stands for the bonus at method.gamma=0, where both have one expected gradient; with "
                "gamma it would pay attempt 1 for attempt 2's factor; drop one of the two"
            )
        if m.stage1_share > 0:
            yield from _faults_of_stages(m, config)


def _faults_of_two(m: PagConfig | ThinkTwiceConfig, config: Config) -> Iterator[str]:
    train, attempts = config.train, config.play.attempts
    if attempts != 2:
        yield (
            f"method={m.name} has exactly two attempts, and play.attempts is {attempts}; set play.attempts=2, or use "
            "method=score or multi_turn, which train more"
        )
    if isinstance(m, PagConfig) and train.samples_per_problem < 3:
        yield (
            "method=pag spends the responses of two attempts on three turns, so train.samples_per_problem="
            f"{train.samples_per_problem} leaves a single episode of each problem, which has no baseline; raise it to 3 or more"
        )
    if isinstance(m, ThinkTwiceConfig) and train.steps % 2:
        yield (
            f"method=thinktwice alternates a step on first attempts and a step on second ones, and train.steps={train.steps} "
            f"is odd; set train.steps to {train.steps + 1}, so that the last step is on second attempts"
        )


def _faults_of_attempts(m: MultiAttemptConfig, attempts: int, samples: int) -> Iterator[str]:
    if attempts < 2:
        yield f"method={m.name} needs play.attempts >= 2: there is nothing to correct in a single attempt"
    if m.branches is None or m.branches == 1:
        return
    if attempts != 2 or m.gamma != 0:
        yield "method.branches above 1 makes trees of two attempts with method.gamma 0; set play.attempts=2 and drop gamma"
    least = -(-2 * (1 + m.branches) // attempts)
    if samples < least:
        yield (
            f"method.branches={m.branches} spends the responses of train.samples_per_problem={samples} on a single first "
            f"attempt, which has no baseline; raise train.samples_per_problem to {least} or more"
        )


def stage1_steps(m: ScoreConfig, steps: int) -> int:
    """Steps of Stage I. If both stages are used, each has at least one step."""
    if m.stage1_share == 0:
        return 0
    return min(max(1, round(steps * m.stage1_share)), steps - 1)


def _faults_of_stages(m: ScoreConfig, config: Config) -> Iterator[str]:
    train, steps, attempts = config.train, config.train.steps, config.play.attempts
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
                f"method.interleave={m.interleave} restarts the warm-up of train.warmup_steps={train.warmup_steps} before it "
                "has ended, so train.learning_rate would never be reached; lower train.warmup_steps or raise method.interleave"
            )
        if m.stage1 != "last" or m.stage2 != "reinforce":
            yield "method.interleave alternates the two stages of SCoRe as they are; drop method.stage1 and method.stage2"
        return
    first = stage1_steps(m, steps)
    if m.stage1 == "stepwise" and attempts == 2:
        yield "method.stage1=stepwise would be ignored: with two attempts it is one part; drop it, or set play.attempts=3 or more"
    if m.stage1 == "stepwise" and first < attempts - 1:
        yield f"a stepwise Stage I has {attempts - 1} parts, but {first} steps; raise train.steps or method.stage1_share"
    if m.stage2 == "star" and steps - first < STAR_ITERATIONS:
        yield f"STaR in Stage II has {STAR_ITERATIONS} iterations, but {steps - first} steps; raise train.steps"
