"""Supervised warm-up on a task's demonstrations: teaches an answer format, before any comparison starts.

The warmed model is the base of every run made from it. This is not one of the paper's methods (STaR and Pair-SFT train
on self-generated corrections); it stands for what an instruct model's own training would have taught it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from selfcorrect.config import Config
from selfcorrect.engines.base import AdamParams, Engine
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.errors import ConfigError, SelfCorrectError
from selfcorrect.tasks.base import Demonstrates, Task
from selfcorrect.types import Datum, Problem

REPORT_EVERY = 10


def require_demonstrations(task: Task) -> Demonstrates:
    """The task as one that can show its answer format. Draws its first demonstration, before any weights load.

    Raises:
        ConfigError: it has no demonstrations, or the first fails.
    """
    if not isinstance(task, Demonstrates):
        raise ConfigError(
            f"task {task.name} has no demonstrations to warm up on; train on it directly, or write a task with a method "
            "demonstrations (docs/your-own-task.md)"
        )
    try:
        problem, answers = next(iter(task.demonstrations(0)))
    except SelfCorrectError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the first demonstration of task {task.name} fails: {type(error).__name__}: {error}; see all of them with "
            "`selfcorrect validate`"
        ) from error
    shown: object = answers  # a user's own task may yield anything; a text alone would be read letter by letter
    if not isinstance(problem, Problem) or not isinstance(shown, tuple | list) or not shown:
        raise ConfigError(
            f"a demonstration of task {task.name} is not a Problem with the texts of its attempts; yield problem, (text, text)"
        )
    return task


def warm_up(engine: Engine, task: Task, config: Config, say: Callable[[str], None]) -> list[float]:
    """Train on demonstrations by cross-entropy over the answers' tokens.

    Args:
        engine: trained in place and published.
        task: must implement ``Demonstrates``.
        config: its ``sft`` section and seed.
        say: receives a line every few steps.

    Returns:
        Mean negative log-likelihood per answer token of every step, in nats.

    Raises:
        ConfigError: the task has no demonstrations.
    """
    stream = require_demonstrations(task).demonstrations(config.seed)
    losses = []
    for step in range(config.sft.steps):
        start = time.perf_counter()
        data = _batch(engine.chat, task, stream, config.sft.examples_per_step)
        logprobs = engine.forward_backward(data, "cross_entropy")
        # linear decay to a tenth: the last steps should settle the format, not shake it
        rate = config.sft.learning_rate * (1 - 0.9 * step / config.sft.steps)
        engine.optim_step(AdamParams(rate, grad_clip=1.0))
        losses.append(-float(np.concatenate([lp[~np.isnan(lp)] for lp in logprobs]).mean()))
        if step % REPORT_EVERY == 0 or step + 1 == config.sft.steps:
            say(
                f"warm-up step {step + 1} of {config.sft.steps}: {losses[-1]:.3f} nats per token, {time.perf_counter() - start:.1f} s per step"
            )
    engine.publish()
    return losses


def _batch(chat: ChatFormat, task: Task, stream: Iterator[tuple[Problem, tuple[str, ...]]], count: int) -> list[Datum]:
    laid_out = [_lay_out(chat, task, problem, answers) for problem, answers in itertools.islice(stream, count)]
    total = sum(int(mask.sum()) for _, mask in laid_out)
    return [
        Datum(np.array(tokens), mask / total, np.zeros(len(tokens)), np.zeros(len(tokens), dtype=bool))
        for tokens, mask in laid_out
    ]


def _lay_out(chat: ChatFormat, task: Task, problem: Problem, answers: Sequence[str]) -> tuple[list[int], np.ndarray]:
    """Token ids of the whole conversation, and a mask of the answers with their end tokens."""
    messages = task.first_messages(problem)
    tokens = list(chat.prompt_ids(messages))
    mask = [False] * len(tokens)
    for k, text in enumerate(answers):
        if k:
            bridge = chat.bridge_ids(messages, task.instruction, chat.ended(tokens))
            tokens += bridge
            mask += [False] * len(bridge)
        answer = chat.answer_ids(text)
        tokens += answer
        mask += [True] * len(answer)
    return tokens, np.array(mask)
