"""Factor a number: hard to find, easy to check. The procedural task of docs/your-own-task.md."""

import re

from selfcorrect.tasks.procedural import Drawn, Procedural
from selfcorrect.types import Grade, Verdict

FORM = re.compile(r"([0-9]{1,4})\*([0-9]{1,4})=([0-9]{1,8}), (yes|no)")


class Factors(Procedural):
    """Write 91 as a product of two numbers above 1.    7*13=91, yes    or an honest wrong try: 7*12=84, no"""

    name = "factors"

    def __init__(self, largest, wrong_share):
        self.largest = largest
        self.wrong_share = wrong_share
        self.counts = {"train": 300, "test": 120, "pretrain": 400}

    def draw(self, rng):
        a, b = rng.randint(2, self.largest), rng.randint(2, self.largest)
        question = f"Write {a * b} as a product of two numbers above 1."
        return Drawn(question, f"{a}*{b}", level=f"{len(str(a * b))} digits", meta={"product": a * b})

    def verify(self, problem, text):
        found = FORM.fullmatch(text.strip())
        if found is None:
            return Verdict.NO_ANSWER
        a, b = int(found[1]), int(found[2])
        right = a > 1 and b > 1 and a * b == problem.meta["product"]
        return Grade(Verdict.CORRECT if right else Verdict.WRONG, f"{a}*{b}")

    def demonstrate(self, problem, right, rng):
        a, b = map(int, problem.answer.split("*"))
        if not right:
            b += rng.choice((-1, 1))
        return f"{a}*{b}={a * b}, {'yes' if right else 'no'}"

    def check_is_sound(self, problem, text):
        found = FORM.fullmatch(text.strip())
        if found is None:
            return None
        product = int(found[1]) * int(found[2])
        return int(found[3]) == product and (found[4] == "yes") == (product == problem.meta["product"])


def make(config, *, largest=60, wrong_share=0.4):
    return Factors(largest, wrong_share)
