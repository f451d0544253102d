"""Supervised warm-up on a task's demonstrations: teaches an answer format, before any comparison starts.

The warmed model is the base of every run made from it. This is not one of the paper's methods (STaR and Pair-SFT train
on self-generated corrections); it stands for what an instruct model's own training would have taught it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from selfcorrect.algorithm.imitation import Demonstrations, cross_entropy_data
from selfcorrect.algorithm.stage import Stage
from selfcorrect.config import SftConfig
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.errors import ConfigError
from selfcorrect.tasks.base import Demonstrates, Task
from selfcorrect.types import Datum, Problem


def warm_up_stage(sft: SftConfig) -> Stage:
    """The warm-up as a stage of the one training loop."""
    return Stage("warm_up", "Warm-up", sft.steps, 0, Demonstrations(sft.examples_per_step, sft.learning_rate))


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


def demonstration_data(
    chat: ChatFormat, task: Task, demonstrations: Iterable[tuple[Problem, tuple[str, ...]]]
) -> list[Datum]:
    """Demonstrations as training data: 1 / (answer tokens of the batch) on every answer token, its end token included.

    Args:
        chat: renders the conversation.
        task: its prompts and instruction stand between the answers.
        demonstrations: problems, each with the answers to give.
    """
    sequences_T, targets_T = [], []
    for problem, answers in demonstrations:
        messages = task.first_messages(problem)
        tokens = list(chat.prompt_ids(messages))
        targets = [False] * len(tokens)
        for k, text in enumerate(answers):
            if k:
                tokens += chat.bridge_ids(messages, task.instruction, chat.ended(tokens))
                targets += [False] * (len(tokens) - len(targets))
            tokens += chat.answer_ids(text)
            targets += [True] * (len(tokens) - len(targets))
        sequences_T.append(tokens)
        targets_T.append(np.array(targets))
    return cross_entropy_data(sequences_T, targets_T)
