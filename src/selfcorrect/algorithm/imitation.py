"""Supervised learning on the model's own corrections: STaR and Pair-SFT, each with the data sets D and D+ of v2 Table 1.

    STaR       D   episodes that turn a wrong first attempt into a right last one         (Zelikman et al. 2022)
               D+  also those that keep a right one right
    Pair-SFT   D   a wrong first response, with a random right one to the same problem as attempt 2
               D+  also a right first response with a random right one                     (Welleck et al. 2022)

Loss: - mean over the batch's target tokens of log pi(token); targets are attempt 2's tokens, attempt 1 is context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from selfcorrect.algorithm.sequences import sequences
from selfcorrect.types import BASE, Attempt, BoolArray, Datum, Episode


@dataclass(frozen=True, slots=True)
class Imitation:
    """How a stage gets the episodes that it imitates. It samples them all before its first step."""

    source: Literal["star", "pair_sft"]
    attempts: int
    """Attempts played per collected episode: Pair-SFT needs first responses only."""
    keep_right: bool
    """D+: right first attempts that stay right are imitated too."""
    train_attempt1: bool
    start: str = BASE
    """Snapshot that training starts from after sampling the current policy: STaR fine-tunes the base again each
    time."""


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """A warm-up: imitates a task's own answers, and plays nothing."""

    per_step: int
    learning_rate: float
    """Adam's learning rate at the first step; it falls linearly to a tenth."""
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """One training sequence."""

    problem: str
    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int, int], ...]
    """(attempt index, first position, end position) of each attempt."""

    def to_json(self) -> dict[str, Any]:
        return {"problem": self.problem, "tokens": list(self.tokens), "spans": [list(s) for s in self.spans]}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        spans = tuple((int(k), int(start), int(end)) for k, start, end in row["spans"])
        return cls(row["problem"], tuple(row["tokens"]), spans)


def star_episodes(group: Sequence[Episode], keep_right: bool) -> list[Episode]:
    """Episodes wrong first and right last (D), and with ``keep_right`` those right first and last (D+).

    An attempt whose verifier failed is neither right nor wrong.
    """
    kept = []
    for episode in group:
        first, last = episode.attempts[0], episode.attempts[-1]
        if last.correct and (first.wrong or (keep_right and first.correct)):
            kept.append(episode)
    return kept


def paired_episodes(
    group: Sequence[Episode],
    keep_right: bool,
    rng: np.random.Generator,
    next_prompt: Callable[[Attempt], tuple[int, ...]],
) -> list[Episode]:
    """A second attempt for first responses: a random right response to the same problem, as it was sampled.

    Args:
        group: first responses to one problem.
        keep_right: right responses get a partner too (D+): another right one, or themselves where there is no other.
        rng: draws the partners.
        next_prompt: attempt 2's prompt ids after a first attempt.
    """
    right = [e.attempts[0] for e in group if e.attempts[0].correct]
    out = []
    for episode in group:
        first = episode.attempts[0]
        others = [a for a in right if a is not first] or right
        if right and (first.wrong or (keep_right and first.correct)):
            partner = others[int(rng.integers(len(others)))]
            out.append(replace(episode, attempts=(first, replace(partner, prompt_ids=next_prompt(first), parent=0))))
    return out


def examples(episode: Episode, train_attempt1: bool) -> list[Example]:
    """An episode as training sequences: a single one if attempt 2 continues attempt 1, else one per attempt with
    targets.

    Raises:
        ValueError: an attempt has no token ids.
    """
    return [
        Example(episode.problem.id, tuple(s.tokens_T.tolist()), s.spans)
        for s in sequences(episode)
        if train_attempt1 or any(k > 0 for k, _, _ in s.spans)
    ]


def batch_of_step(size: int, steps: int, key: Sequence[int], step: int) -> list[int]:
    """Indices of a 0-based step's examples: all steps together go through a shuffled data set once (one epoch).

    A data set with fewer examples than steps is repeated, one example per step, in a new order each time.

    Args:
        size: examples in the data set.
        steps: of the stage.
        key: seeds the order.
        step: 0-based.
    """
    if size >= steps:
        order = np.random.default_rng([*key, 0]).permutation(size)
        return [int(i) for i in order[step * size // steps : (step + 1) * size // steps]]
    epoch, offset = divmod(step, size)
    return [int(np.random.default_rng([*key, epoch]).permutation(size)[offset])]


def imitation_data(batch: Sequence[Example], train_attempt1: bool) -> list[Datum]:
    """The step's examples as training data: attempt 2's tokens are targets, attempt 1 is context.

    Args:
        batch: the step's examples.
        train_attempt1: attempt 1's tokens are targets too.
    """
    masks: list[BoolArray] = []
    for e in batch:
        mask_T = np.zeros(len(e.tokens), dtype=bool)
        for k, start, end in e.spans:
            mask_T[start:end] = k > 0 or train_attempt1
        masks.append(mask_T)
    return cross_entropy_data([e.tokens for e in batch], masks)


def cross_entropy_data(sequences_T: Sequence[Sequence[int]], targets_T: Sequence[BoolArray]) -> list[Datum]:
    """Sequences with weight 1 / (target tokens of the batch) on every target token, 0 on all others.

    Args:
        sequences_T: token ids of each sequence; shape [T].
        targets_T: True on the tokens to be learned; same shapes.
    """
    total = sum(int(t.sum()) for t in targets_T)
    return [
        Datum(np.array(ids, dtype=np.int64), t / total, np.zeros(len(t)), np.zeros(len(t), dtype=bool))
        for ids, t in zip(sequences_T, targets_T, strict=True)
    ]
