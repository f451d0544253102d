"""Make a target from numbers: an answer is hard to find and easy to check. Two forms, ``task.pick``:

``two`` asks for the two numbers that add up to the target, ``all`` for an expression that uses every number once:

    Numbers: 30, 19, 24. Which two add up to 43?              19+24=43, yes
    Numbers: 3, 7, 2. Make 20 from them, each used once, with + - *.    (3+7)*2=10*2=20, yes

The answer is the expression before the first equals sign. What follows is its check: each step does one more operation
and keeps the value, and the last word says whether the target is met. An honest wrong try ends in ``no``: 30+19=49, no.
The check is not judged. Problems are procedural, and the same numbers with the same target are in one split, whatever
their order.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from selfcorrect.config.tasks import CountdownConfig
from selfcorrect.tasks.expressions import (
    UNICODE,
    Tree,
    canonical,
    numbers_in,
    one_step,
    operations_in,
    parse,
    value,
    write,
)
from selfcorrect.tasks.procedural import Drawn, Procedural
from selfcorrect.types import Grade, Problem, Verdict

LONGEST_ANSWER = 1_000
"""Most characters of a text; longer texts are not read."""
_FORM = re.compile(r"([-+*/()0-9 ]+)((?:=[-+*/()0-9 ]+)+),? *(yes|no)\.?")
TRIES = 3
"""Additional random expressions per problem, one of which must miss the target."""


LARGEST_TARGET = 99
"""Largest target with ``pick=all``. With ``two``, targets are sums of two numbers."""
LARGEST_STEP = 999
"""Largest value of a step in demonstrations with ``pick=all``, so that checks stay short."""


class Countdown(Procedural):
    """Implements ``Task``, ``CountsAnswers``, ``Demonstrates`` and ``ChecksItself``."""

    name = "countdown"
    too_few = "raise task.largest_number, or set a higher task.numbers_max"

    def __init__(self, config: CountdownConfig) -> None:
        self._config = config
        self.system = config.system_message
        self.wrong_share = config.wrong_share
        self.demonstrated_attempts = config.demonstrated_attempts

    def draw(self, rng: random.Random) -> Drawn | None:
        """See ``Procedural``; with ``pick=two`` exactly one pair is right, with ``all`` a wrong try exists."""
        c = self._config
        n = rng.randint(c.numbers_min, c.numbers_max)
        if c.pick == "two":
            numbers = tuple(rng.sample(range(1, c.largest_number + 1), n))
            first, second = sorted(rng.sample(range(n), 2))
            tree: Tree = ("+", numbers[first], numbers[second])
            target = numbers[first] + numbers[second]
            if sum(a + b == target for a, b in combinations(numbers, 2)) != 1:
                return None
        else:
            numbers = tuple(rng.randint(1, c.largest_number) for _ in range(n))
            made, others = self._expression(numbers, rng), [self._expression(numbers, rng) for _ in range(TRIES)]
            if made is None or made[0] > LARGEST_TARGET or all(o is None or o[0] == made[0] for o in others):
                return None  # out of bounds, or without an honest wrong try
            target, tree = made
        asked = f"Numbers: {', '.join(map(str, numbers))}. " + (
            f"Which two add up to {target}?"
            if c.pick == "two"
            else f"Make {target} from them, each used once, with {' '.join(c.operations)}."
        )
        place = "up to" if target <= c.largest_number else "above"
        return Drawn(
            asked,
            write(tree),
            f"{n} numbers, target {place} {c.largest_number}",
            {"numbers": numbers, "target": target},
            f"{'-'.join(map(str, sorted(numbers)))}-{target}",
        )

    def verify(self, problem: Problem, text: str) -> Grade:
        """The whole text must have the form of an answer; only its expression is judged, not the check after it."""
        found = _read(text)
        tree = parse(found[0]) if found is not None else None
        if tree is None:
            return Grade(Verdict.NO_ANSWER, None, f"not of the form {self.reference_answer(problem)!r}")
        extracted, fault = write(tree), self._fault(tree, problem)
        return Grade(Verdict.WRONG if fault else Verdict.CORRECT, extracted, fault or "meets the target")

    def demonstrate(self, problem: Problem, right: bool, rng: random.Random) -> str:
        """See ``Procedural``: the drawn expression, or another of the same numbers that misses the target."""
        numbers, target = problem.meta["numbers"], problem.meta["target"]
        text = problem.answer if right else write(self._wrong(numbers, target, rng))
        tree = parse(text)
        assert tree is not None, f"{problem.id} has {text!r}, which is no expression"
        steps = [tree]
        while not isinstance(steps[-1], int):
            steps.append(one_step(steps[-1]))
        return f"{'='.join(map(write, steps))}, {'yes' if steps[-1] == target else 'no'}"

    def check_is_sound(self, problem: Problem, text: str) -> bool | None:
        """Whether every step has the value of the expression, the last is a number, and yes or no is true of the target.

        The check does not say whether the right numbers were used.
        """
        found = _read(text)
        if found is None:
            return None
        expression, steps, word = found
        tree = parse(expression)
        if tree is None:
            return None
        exact = value(tree)
        trees = [parse(step, signs=True) for step in steps]
        same = exact is not None and all(t is not None and value(t) == exact for t in trees)
        ends = re.fullmatch(r"-?[0-9]+", steps[-1]) is not None
        return same and ends and (word == "yes") == (exact == problem.meta["target"])

    def answer_key(self, answer: str) -> str:
        """See ``CountsAnswers``: sums and products in any order are the same."""
        tree = parse(answer)
        return answer if tree is None else canonical(tree)

    def _fault(self, tree: Tree, problem: Problem) -> str:
        """Why an expression is wrong; empty where it is right."""
        numbers, target = problem.meta["numbers"], problem.meta["target"]
        allowed, two = self._config.operations, self._config.pick == "two"
        used, exact = Counter(numbers_in(tree)), value(tree)
        if two and (used.total() != 2 or operations_in(tree) != {"+"}):
            return "not the sum of two numbers"
        if unknown := operations_in(tree) - set(allowed):
            return f"uses {' '.join(sorted(unknown))}, which the question does not allow"
        if (extra := used - Counter(numbers)) or (not two and used != Counter(numbers)):
            return f"uses {next(iter(extra))} more often than it is there" if extra else "does not use every number"
        if exact is None:
            return "divides by zero"
        return "" if exact == target else f"makes {exact}, not {target}"

    def _wrong(self, numbers: Sequence[int], target: int, rng: random.Random) -> Tree:
        """A random expression that misses the target. ``draw`` has made sure that there is one."""
        if self._config.pick == "two":
            a, b = rng.choice([pair for pair in combinations(numbers, 2) if sum(pair) != target])
            return ("+", a, b)
        while True:
            made = self._expression(numbers, rng)
            if made is not None and made[0] != target:
                return made[1]

    def _expression(self, numbers: Sequence[int], rng: random.Random) -> tuple[int, Tree] | None:
        """Value and tree of a random expression of all the numbers; None if a step is not a positive whole number."""
        left: list[tuple[int, Tree]] = [(n, n) for n in numbers]
        while len(left) > 1:
            rng.shuffle(left)
            (a, tree_a), (b, tree_b) = left.pop(), left.pop()
            sign = rng.choice(self._config.operations)
            if (sign == "-" and a <= b) or (sign == "/" and a % b):
                return None
            result = a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a // b
            if result > LARGEST_STEP:
                return None
            left.append((result, (sign, tree_a, tree_b)))
        return left[0]


def _read(text: str) -> tuple[str, list[str], str] | None:
    """Expression, steps of the check, and its yes or no; None for a text of another form."""
    text = text.strip()
    match = _FORM.fullmatch(text.translate(UNICODE)) if len(text) <= LONGEST_ANSWER else None
    if match is None:
        return None
    return match[1].strip(), [step.strip() for step in match[2].split("=")[1:]], match[3]


make = Countdown
