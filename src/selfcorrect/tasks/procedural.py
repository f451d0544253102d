"""Problems drawn by a program: the base class of such tasks, in this package and your own. See docs/your-own-task.md.

A task brings three functions: draw a problem, judge an answer, write an answer. The base does the rest: distinct
problems, disjoint splits, prompts, references and the demonstrations of `selfcorrect sft`.
"""

from __future__ import annotations

import functools
import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from selfcorrect.errors import ConfigError
from selfcorrect.tasks.base import Message, Split
from selfcorrect.tasks.user_code import judged
from selfcorrect.types import Grade, Problem, Verdict

AnySplit = Literal["train", "test", "pretrain"]
BUCKETS: dict[AnySplit, range] = {"test": range(15), "train": range(15, 50), "pretrain": range(50, 100)}
"""Hash buckets (of 100) per split; the embedded model and warm-ups learn from ``pretrain``."""
IN_VAIN = 5_000
"""After this many draws in a row without a new problem for a split, its problems count as used up."""
INSTRUCTION = "There might be an error in the answer above. Correct it if so, and write the whole answer again."


@dataclass(frozen=True, slots=True)
class Drawn:
    """One problem as ``Procedural.draw`` returns it."""

    question: str
    answer: str
    """Shown in records, never to the model."""
    level: str | None = None
    """Tables can be broken down by it, and controls swap attempts within a level."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """For the other methods of the task."""
    key: str | None = None
    """Problems with the same key count as the same problem and are in the same split. The key is part of the problem's
    id. None takes the question as the key, and a hash of it for the id."""


class Procedural(ABC):
    """A task whose problems are drawn by a program. Implements ``Task``, ``Demonstrates`` and ``ChecksItself``."""

    name: str
    instruction: str = INSTRUCTION
    system: str | None = None
    """System message before the question; None sends none, because some chat templates refuse one."""
    counts: Mapping[AnySplit, int] = {"train": 3_000, "test": 1_000, "pretrain": 5_000}
    """Distinct problems of each split. Of all problems that can be drawn, about 35 %, 15 % and 50 % belong to these
    splits."""
    wrong_share: float = 0.4
    """Share of the demonstrated attempts that are honest wrong tries."""
    demonstrated_attempts: int = 2
    """Attempts of one demonstration. They are drawn independently, so nothing is taught about correcting."""
    too_few: str = "let draw() return more different problems, or set lower counts"
    """The way out if there are too few problems for the counts."""

    @abstractmethod
    def draw(self, rng: random.Random) -> Drawn | None:
        """One problem, drawn from these random numbers only; None to draw again."""

    @abstractmethod
    def verify(self, problem: Problem, text: str) -> bool | Verdict | Grade:
        """Judge what a model wrote. It is untrusted: read it, do not run it. The same arguments must give the same
        verdict."""

    @abstractmethod
    def demonstrate(self, problem: Problem, right: bool, rng: random.Random) -> str:
        """A whole answer as the model should write it: a right one, or a wrong one in the same form.

        A right answer also serves as the reference, and the token cap is checked against it. If ``wrong_share`` is 0,
        no wrong answer is requested.
        """

    def check_is_sound(self, problem: Problem, text: str) -> bool | None:
        """See ``ChecksItself``; a task whose answers check nothing leaves this as it is."""
        return None

    def problems(self, split: Split) -> Sequence[Problem]:
        """See ``Task``: distinct, in a fixed order, the same in every run; drawn once.

        Raises:
            ConfigError: there are too few for ``counts``.
        """
        return self._problems(split)

    def first_messages(self, problem: Problem) -> list[Message]:
        """See ``Task``: the question, after the system message if there is one."""
        question: Message = {"role": "user", "content": problem.question}
        return [question] if self.system is None else [{"role": "system", "content": self.system}, question]

    def reference_answer(self, problem: Problem) -> str:
        """See ``Task``: a right answer, drawn with the problem's id as the seed."""
        return self.demonstrate(problem, True, random.Random(f"reference {problem.id}"))

    def grade(self, problem: Problem, text: str, *, truncated: bool) -> Grade:
        """See ``Task``. An exception of ``verify`` becomes an ``error`` with the reason. A cut text without an answer
        is ``truncated``."""
        grade = judged(f"{type(self).__name__}.verify", lambda: self.verify(problem, text), text, truncated)
        if truncated and grade.verdict is Verdict.NO_ANSWER:
            return replace(grade, verdict=Verdict.TRUNCATED)
        return grade

    def demonstrations(self, seed: int) -> Iterator[tuple[Problem, tuple[str, ...]]]:
        """See ``Demonstrates``: independent draws, each wrong with probability ``wrong_share``.

        Every attempt of a demonstration is right with the same probability, whatever came before. A model that has
        learned them gains nothing from attempt 1 to attempt 2.

        Raises:
            ConfigError: there are too few problems for ``counts``.
        """
        return ((p, tuple(text for _, text in attempts)) for p, attempts in self.labelled_demonstrations(seed))

    def labelled_demonstrations(self, seed: int) -> Iterator[tuple[Problem, tuple[tuple[bool, str], ...]]]:
        """Like ``demonstrations``, and also whether each attempt is meant to be right, for `selfcorrect validate`."""
        problems = self._problems("pretrain")
        rng = random.Random(f"{self.name} demonstrations {seed}")

        def attempt(problem: Problem) -> tuple[bool, str]:
            right = rng.random() >= self.wrong_share
            return right, self.demonstrate(problem, right, rng)

        while True:
            problem = rng.choice(problems)
            yield problem, tuple(attempt(problem) for _ in range(self.demonstrated_attempts))

    @functools.cached_property
    def _drawn(self) -> dict[AnySplit, tuple[Problem, ...]]:
        return {}

    def _problems(self, split: AnySplit) -> tuple[Problem, ...]:
        if split in self._drawn:
            return self._drawn[split]
        if split not in self.counts:
            raise ConfigError(
                f"task {self.name} does not say how many problems its {split} split has; add {split!r} to its counts"
            )
        rng, count = random.Random(f"{self.name} {split}"), self.counts[split]
        found: dict[str, Problem] = {}
        in_vain = 0
        while len(found) < count and in_vain < IN_VAIN:
            in_vain += 1
            try:
                drawn = self.draw(rng)
            except (Exception, SystemExit) as error:
                raise ConfigError(
                    f"task {self.name} cannot draw a problem: {type(error).__name__}: {error}; correct its draw()"
                ) from error
            if drawn is None:
                continue
            key = drawn.question if drawn.key is None else drawn.key
            if key not in found and split_of(key) == split:
                identity = f"{_hash(key):016x}" if drawn.key is None else key
                found[key] = Problem(f"{split}-{identity}", drawn.question, drawn.answer, drawn.level, drawn.meta)
                in_vain = 0
        if len(found) < count:
            raise ConfigError(
                f"task {self.name} has {len(found)} distinct problems for its {split} split and needs {count}: "
                f"{IN_VAIN:,} draws in a row brought no new one; {self.too_few}"
            )
        return self._drawn.setdefault(split, tuple(found.values()))


def split_of(key: str) -> AnySplit:
    """The split that a problem belongs to, from a hash of its key or question."""
    return next(name for name, buckets in BUCKETS.items() if _hash(key) % 100 in buckets)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
