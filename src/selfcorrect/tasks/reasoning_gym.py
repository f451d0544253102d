"""Any data set of the package reasoning-gym (Apache-2.0): over a hundred kinds of procedural problems with verifiers.

    task=reasoning_gym task.dataset=spell_backward task.options.max_word_len=6

The data set draws the problems and scores the answers; a score of 1 is right, any other is wrong. Answers are between
<answer> and </answer>, as in that package's own prompts.
"""

from __future__ import annotations

import difflib
import inspect
import json
import random
import re
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from selfcorrect.config.tasks import ReasoningGymConfig
from selfcorrect.errors import ConfigError
from selfcorrect.tasks.procedural import Drawn, Procedural
from selfcorrect.tasks.user_code import refuse_unknown_options
from selfcorrect.types import Grade, Problem, Verdict
from selfcorrect.verify.code.report import RISK_NAME

FORM = "Write the answer between <answer> and </answer>."
SIZE = 20_000
"""Size with which a data set is built. A run draws only some problems, but some data sets make all of them at once."""
EXAMPLES = ("possible_answer", "example_answer", "example_correct_answer")
"""Metadata fields in which data sets without a single right answer keep an example."""
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_RUNS_ANSWERS = re.compile(r"\b(eval|exec|parse_expr|sympify)\(answer\b")
"""Matches source code of a data set whose score evaluates the model's text as Python. sympy's parser does so too."""


class ReasoningGym(Procedural):
    """Implements ``Task``, ``CountsAnswers`` and ``Demonstrates``: single turns with the data set's own answer.

    Raises:
        ConfigError: the package is missing, there is no such data set or option, or its score runs a model's text as
            code.
    """

    counts = MappingProxyType({"train": 1_000, "test": 300, "pretrain": 1_000})
    wrong_share = 0.0
    demonstrated_attempts = 1
    too_few = (
        "problems without an answer that scores 1 are left out; set other task.options, or take another task.dataset"
    )

    def __init__(self, config: ReasoningGymConfig) -> None:
        try:
            from reasoning_gym import factory
        except ImportError as error:
            raise ConfigError(
                f"task=reasoning_gym needs the package reasoning-gym ({error}); install it with pip install "
                "'selfcorrect[reasoning-gym]'"
            ) from error
        name, names = config.dataset, sorted(factory.DATASETS.keys() - {"composite"})  # which joins others
        if name is None or name not in names:
            close = difflib.get_close_matches(str(name), names, n=3)
            some = f"did you mean {' or '.join(close)}?" if close else f"take one of: {', '.join(names)}"
            raise ConfigError(f"task.dataset = {name!r} is no data set of reasoning-gym that stands alone; {some}")
        made, made_config = factory.DATASETS[name]
        if _RUNS_ANSWERS.search(inspect.getsource(made)) and config.accept_risk != RISK_NAME:
            raise ConfigError(
                f"task.dataset = {name!r} is refused: its score evaluates the model's text as Python, in this process and "
                f"without a sandbox; take another data set, or accept that with task.accept_risk={RISK_NAME}"
            )
        known = [f.name for f in fields(made_config)]
        refuse_unknown_options(config.options, known, f"the data set {name}")
        try:
            self._data: Any = factory.create_dataset(name, **{"seed": 0, "size": SIZE, **config.options})
        except Exception as error:
            raise ConfigError(
                f"task.dataset = {name!r} cannot be made: {type(error).__name__}: {error}; correct task.options (it has "
                f"{', '.join(known)})"
            ) from error
        self.name = f"reasoning_gym-{name}"

    def draw(self, rng: random.Random) -> Drawn | None:
        """See ``Procedural``: one of the data set's problems, with the request for the form of the answer.

        Its answer is the data set's own, or else the example in its metadata. A problem is left out if neither scores
        1, because it could not be checked before a run.
        """
        entry = self._data[rng.randrange(len(self._data))]
        for answer in (entry["answer"], *(entry["metadata"].get(key) for key in EXAMPLES)):
            text = answer if isinstance(answer, str) else json.dumps(answer)  # a colouring is an object
            if answer is not None and self._score(text, entry) >= 1:
                return Drawn(f"{entry['question']}\n\n{FORM}", text, None, {"entry": entry})
        return None

    def verify(self, problem: Problem, text: str) -> Grade:
        """The data set's score of the last marked answer, thresholded at 1."""
        found = _ANSWER.findall(text)
        if not found:
            return Grade(Verdict.NO_ANSWER, None, "no <answer> with its </answer>")
        answer = found[-1].strip()
        score = self._score(answer, problem.meta["entry"])
        return Grade(Verdict.CORRECT if score >= 1 else Verdict.WRONG, answer, f"score {score:g}")

    def _score(self, answer: str, entry: dict[str, Any]) -> float:
        return float(self._data.score_answer(answer.strip(), entry))

    def demonstrate(self, problem: Problem, right: bool, rng: random.Random) -> str:
        """See ``Procedural``: the data set's own answer, marked. The data set has no wrong ones."""
        assert right, "a data set brings no wrong answers"
        return f"<answer>{problem.answer}</answer>"

    def answer_key(self, answer: str) -> str:
        """See ``CountsAnswers``: compares by words."""
        return " ".join(answer.split())


make = ReasoningGym
