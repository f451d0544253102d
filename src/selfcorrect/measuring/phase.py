"""What decides whether correction can be learned: how often the model changes right and wrong answers, and with what luck.

With p = P(attempt 1 right), d = P(attempt 2 departs | wrong), q = P(right | departed from a wrong answer) and
f = P(attempt 2 wrong | attempt 1 right), the two attempts differ by

    delta = (1 - p) d q - p f = i->c - c->i

Plain multi-turn RL reinforces a change where changes help more than they harm, so i->c against c->i at temperature 1
says which way its first steps go. Stage I holds attempt 1 back, so it needs only enough corrections per step to
reinforce.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from selfcorrect.episodes.table import EpisodeTable
from selfcorrect.types import Episode, Verdict


@dataclass(frozen=True, slots=True)
class Revising:
    """How a model revises, from two attempts at temperature 1. Shares in [0, 1]; None: no episode says anything."""

    episodes: int
    right_first: float | None
    """p: attempt 1 is right."""
    departs: float | None
    """d: the answer changes, given that it was wrong."""
    lands: float | None
    """q: the new answer is right, given that a wrong one was changed."""
    breaks: float | None
    """f: attempt 2 is wrong, given that attempt 1 was right."""
    fixed: float | None
    """i->c: (1 - p) d q, as a share of all episodes."""
    broken: float | None
    """c->i: p f, as a share of all episodes."""
    samples: int
    """k of ``pass_at_k``."""
    pass_at_k: float | None
    """Problems that one of k first attempts solves: how far reinforcement could take attempt 1, at most."""
    sound: float | None = None
    """Share of attempts whose own check is sound; None where the task cannot tell."""

    @property
    def delta(self) -> float | None:
        """Of the base at temperature 1."""
        return None if self.fixed is None or self.broken is None else self.fixed - self.broken

    @property
    def delta_bound(self) -> float | None:
        """delta of a model that changes wrong answers only, and all of them, with today's luck: (1 - p) q."""
        if self.right_first is None or self.lands is None:
            return None
        return (1 - self.right_first) * self.lands

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "delta": self.delta, "delta_bound": self.delta_bound}


def revising(
    groups: Sequence[Sequence[Episode]], check_is_sound: Callable[[Any, str], bool | None] | None = None
) -> Revising:
    """Count over groups of episodes, one group for each problem, all of at least two attempts and sampled at temperature 1.

    Args:
        groups: ``groups[n]`` are the episodes of problem n.
        check_is_sound: of a task that can tell whether an answer's own check is sound; None is "says nothing".
    """
    episodes = [e for group in groups for e in group]
    table = EpisodeTable.of(episodes)
    judged_E = table.valid_EK[:, 0] & table.valid_EK[:, 1]
    right_EK = table.is_EK(Verdict.CORRECT)
    first_E, second_E = right_EK[judged_E, 0], right_EK[judged_E, 1]
    changed_E = np.array([_answer(a) != _answer(b) for a, b, *_ in table.attempts], dtype=bool)[judged_E]
    solved = [
        any(a.correct for a in firsts) for group in groups if (firsts := [e.attempts[0] for e in group if e.valid_K[0]])
    ]
    told = []
    if check_is_sound is not None:
        told = [check_is_sound(e.problem, a.text) for e in episodes for a in e.answers if a.source != "kept"]
    sound = [t for t in told if t is not None]
    return Revising(
        episodes=int(judged_E.sum()),
        right_first=_share(first_E),
        departs=_share(changed_E[~first_E]),
        lands=_share(second_E[~first_E & changed_E]),
        breaks=_share(~second_E[first_E]),
        fixed=_share(~first_E & second_E),
        broken=_share(first_E & ~second_E),
        samples=min(map(len, groups), default=0),
        pass_at_k=_share(solved),
        sound=float(np.mean(sound)) if sound else None,
    )


def _answer(attempt: Any) -> str | None:
    return attempt.grade.extracted if attempt.grade else None


def _share(values_E: Any) -> float | None:
    return float(np.mean(values_E)) if len(values_E) else None
