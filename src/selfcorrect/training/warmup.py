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
from selfcorrect.errors import ConfigError
from selfcorrect.tasks.base import Demonstrates, Task
from selfcorrect.types import Datum, Problem

REPORT_EVERY = 10


def require_demonstrations(task: Task) -> Demonstrates:
    """The task as one that can show its answer format.

    Raises:
        ConfigError: it has no demonstrations.
    """
    if not isinstance(task, Demonstrates):
        raise ConfigError(
            f"task {task.name} has no demonstrations to warm up on; train on it directly, or use task=arithmetic"
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
    drawn = itertools.islice(stream, count)
    laid_out = [part for problem, answers in drawn for part in _lay_out(chat, task, problem, answers)]
    total = sum(int(mask.sum()) for _, mask in laid_out)
    return [
        Datum(np.array(tokens), mask / total, np.zeros(len(tokens)), np.zeros(len(tokens), dtype=bool))
        for tokens, mask in laid_out
    ]


def _lay_out(
    chat: ChatFormat, task: Task, problem: Problem, answers: Sequence[str]
) -> list[tuple[list[int], np.ndarray]]:
    """Token ids of the conversation, each with a mask of its answers and their end tokens.

    One sequence, or one per answer where a later attempt reads a newly rendered conversation.
    """
    out: list[tuple[list[int], list[bool]]] = []
    prompt = chat.begin(task.first_messages(problem))
    for text in answers:
        answer = chat.answer_ids(text)
        tokens, mask = out.pop() if out and not chat.renders_anew else ([], [])
        asked = prompt.ids[len(tokens) :]
        out.append(([*tokens, *asked, *answer], [*mask, *[False] * len(asked), *[True] * len(answer)]))
        prompt = chat.extend(prompt, answer, task.instruction)
    return [(tokens, np.array(mask)) for tokens, mask in out]
