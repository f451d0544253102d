"""What decides whether correction can be learned: how often the model changes right and wrong answers, and how often a
change is right.

With p = P(attempt 1 right), d = P(attempt 2 changes the answer | attempt 1 wrong), q = P(attempt 2 right | wrong answer
changed) and f = P(attempt 2 wrong | attempt 1 right), the two attempts differ by

    delta = (1 - p) d q - p f = i->c - c->i

Plain multi-turn RL reinforces changes if they help more than they harm, so i->c compared with c->i at temperature 1
shows the direction of its first steps. Stage I holds attempt 1 back, so it needs only enough corrections per step to
reinforce.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from selfcorrect.episodes.table import EpisodeTable
from selfcorrect.measuring.intervals import Estimate
from selfcorrect.types import Episode, Verdict


@dataclass(frozen=True, slots=True)
class Revising:
    """How a model revises, from two attempts at temperature 1. Shares in [0, 1]; None if no episode tells."""

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
    """Share of problems that one of k first attempts solves: an upper bound on what RL could reach at attempt 1."""
    sound: float | None = None
    """Share of attempts whose own check is sound; None where the task cannot tell."""
    fresh: float | None = None
    """Another first attempt at the same problem is right, given that this one was wrong. If ``lands`` is no higher, the model
    does not revise: a changed answer is only a new try."""
    sound_if_wrong: float | None = None
    """The same among wrong attempts: there an unsound check hides the mistake."""

    @property
    def delta(self) -> float | None:
        """delta of the base at temperature 1."""
        return None if self.fixed is None or self.broken is None else self.fixed - self.broken

    @property
    def delta_bound(self) -> float | None:
        """delta of a model that changes all wrong answers and no right ones, with the present q: (1 - p) q."""
        if self.right_first is None or self.lands is None:
            return None
        return (1 - self.right_first) * self.lands

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "delta": self.delta, "delta_bound": self.delta_bound}


def revising(
    groups: Sequence[Sequence[Episode]], check_is_sound: Callable[[Any, str], bool | None] | None = None
) -> Revising:
    """Measure how a model revises, from one group of episodes per problem, with at least two attempts sampled at
    temperature 1.

    Args:
        groups: ``groups[n]`` are the episodes of problem n.
        check_is_sound: the method of a task that can tell whether an answer's own check is sound. It may return None
            for "cannot tell".
    """
    episodes = [e for group in groups for e in group]
    table = EpisodeTable.of(episodes)
    judged_E = table.valid_EK[:, 0] & table.valid_EK[:, 1]
    right_EK = table.is_EK(Verdict.CORRECT)
    first_E, second_E = right_EK[judged_E, 0], right_EK[judged_E, 1]
    changed_E = np.array([_answer(a) != _answer(b) for a, b, *_ in table.attempts], dtype=bool)[judged_E]
    groups_of_firsts = [[e.attempts[0].correct for e in group if e.valid_K[0]] for group in groups]
    fresh = [sum(rs) / (len(rs) - 1) for rs in groups_of_firsts if len(rs) > 1 for right in rs if not right]
    solved = [any(rights) for rights in groups_of_firsts if rights]
    told: list[tuple[bool, bool]] = []
    if check_is_sound is not None:
        answers = ((e.problem, a) for e in episodes for a in e.answers if a.source != "kept")
        found = ((check_is_sound(problem, a.text), a.wrong) for problem, a in answers)
        told = [(sound, wrong) for sound, wrong in found if sound is not None]
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
        fresh=_share(fresh),
        sound=_share([sound for sound, _ in told]),
        sound_if_wrong=_share([sound for sound, wrong in told if wrong]),
    )


ENOUGH = 1.0
"""Corrections in a step's second attempts below which Stage I has too little to reinforce. A guess that the map has not
checked yet; ``tiny-rare``, on which SCoRe learns, has five."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Which method to try first."""

    method: Literal["score", "multi_turn"] | None
    """None: neither, or these numbers cannot tell."""
    reason: str


def recommend(delta: Estimate, fixed: float, second_attempts: int) -> Recommendation:
    """Read a base's place on the map: whether copying is reinforced first, and whether Stage I has enough to start from.

    Args:
        delta: of the base at temperature 1, i->c minus c->i, with its interval over problems.
        fixed: i->c, as a share of episodes.
        second_attempts: sampled in a step of training.
    """
    per_step = fixed * second_attempts
    seen = f"i→c minus c→i is {delta.text(sign=True)} points at T = 1, and a step has {per_step:.1f} corrections"
    if delta.has_interval and delta.low > 0:
        return Recommendation(
            "multi_turn", f"{seen}: changes help from the start, so multi-turn RL needs no help; compare it with SCoRe"
        )
    if per_step < ENOUGH:
        return Recommendation(
            None,
            f"{seen}: too few even for Stage I, so both methods will probably copy; warm up, play more episodes per step, or "
            "take easier problems",
        )
    if not delta.has_interval or delta.high >= 0:
        return Recommendation(
            None, f"{seen}: that does not say whether copying is reinforced first; probe more problems"
        )
    return Recommendation("score", f"{seen}: copying is reinforced first, and Stage I has corrections to start from")


def _answer(attempt: Any) -> str | None:
    return attempt.grade.extracted if attempt.grade else None


def _share(values_E: Any) -> float | None:
    return float(np.mean(values_E)) if len(values_E) else None
