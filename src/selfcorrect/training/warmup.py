"""Supervised warm-up on a task's demonstrations: teaches an answer format, before any comparison starts.

The warmed-up model is the base of every run that starts from it. This is not one of the paper's methods (STaR and
Pair-SFT train on self-generated corrections); it takes the place of the training that an instruct model has had.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from selfcorrect.algorithm.imitation import Demonstrations, cross_entropy_data
from selfcorrect.algorithm.stage import Stage
from selfcorrect.config import SftConfig
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.errors import ConfigError, SelfCorrectError
from selfcorrect.tasks.base import Demonstrates, Task
from selfcorrect.types import Datum, Problem


def warm_up_stage(sft: SftConfig) -> Stage:
    """The warm-up as a stage of the one training loop."""
    return Stage("warm_up", "Warm-up", sft.steps, 0, Demonstrations(sft.examples_per_step, sft.learning_rate))


def require_demonstrations(task: Task) -> Demonstrates:
    """Check that a task has demonstrations, by drawing the first one before any weights load, and return the task.

    Raises:
        ConfigError: the task has no demonstrations, or drawing the first one fails.
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


def demonstration_data(
    chat: ChatFormat, task: Task, demonstrations: Iterable[tuple[Problem, tuple[str, ...]]]
) -> list[Datum]:
    """Demonstrations as training data: 1 / (answer tokens of the batch) on every answer token, its end token included.

    Args:
        chat: renders the conversation.
        task: gives the prompts and the instruction between answers.
        demonstrations: problems, each with the answers to give.
    """
    sequences_T: list[list[int]] = []
    targets_T: list[list[bool]] = []
    for problem, answers in demonstrations:
        prompt = chat.begin(task.first_messages(problem))
        for k, text in enumerate(answers):
            answer = chat.answer_ids(text)
            if k == 0 or chat.renders_anew:  # a later attempt that reads a new rendering is a sequence of its own
                sequences_T.append([])
                targets_T.append([])
            tokens, targets = sequences_T[-1], targets_T[-1]
            asked = prompt.ids[len(tokens) :]
            tokens += [*asked, *answer]
            targets += [*[False] * len(asked), *[True] * len(answer)]
            prompt = chat.extend(prompt, answer, task.instruction)
    return cross_entropy_data(sequences_T, [np.array(targets) for targets in targets_T])
