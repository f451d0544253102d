"""The nouns of the project. Plain frozen values: no models, no I/O.

Shape suffixes, used on array names everywhere:

    _G  samples of one problem (a baseline group)      _K  attempts of one episode, in order
    _T  tokens of one sequence or one attempt          _N  anything flat (rows of a batch, problems of a split)
    _V  vocabulary                                     _M  columns of a tree: attempt 1, then its second attempts

``rewards_GK[g, k]`` is the reward of sample g's attempt k+1: the paper counts attempts from 1, arrays from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.integer[Any]]

Turn = Literal["answer", "feedback", "verdict"]
"""What the model does in a turn: it answers, it comments on its answer (not graded), or it judges its answer."""

LossName = Literal["importance_sampling", "cross_entropy"]
"""The losses an engine applies to per-token weights; see ``algorithm/losses.py``."""

BASE = "base"
"""Snapshot of the policy as it was loaded at step 0 of the first stage: the reference of every method."""


class Verdict(StrEnum):
    """The verifier's verdict on one attempt. Only ``CORRECT`` earns reward."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    """The text ended on its own but has no answer in the requested form."""
    TRUNCATED = "truncated"
    """The token cap cut the text before it held an answer: a wrong setting more often than a wrong model. Thinking that
    never ends counts as cut."""
    TIMEOUT = "timeout"
    """The candidate's program or expression used up its limits."""
    ERROR = "error"
    """The verifier failed, not the model. It is counted, and left out of baselines; it is never a silent 0."""


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict with the reasons for it."""

    verdict: Verdict
    extracted: str | None = None
    """The answer or program found in the text; None where none was found."""
    detail: str = ""
    """One line for people that explains the verdict."""


@dataclass(frozen=True, slots=True)
class Problem:
    id: str
    question: str
    answer: str
    """Gold answer (math) or tests (code), for the verifier. Shown to the model only if the task's own prompt contains
    it: MBPP asks for programs that pass the tests it shows."""
    level: str | None = None
    """Difficulty as the data set gives it; tables can be broken down by it."""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One answer of the model (or a given one), with everything needed to weight its tokens."""

    text: str
    """The answer, without its thinking."""
    prompt_ids: tuple[int, ...] | None
    """Everything before the answer, as fed to the model; None from a text-only endpoint."""
    token_ids: tuple[int, ...] | None
    """The sampled ids, with the end token when the model emitted it; None from a text-only endpoint."""
    logprobs: tuple[float, ...] | None
    """Natural-log probabilities of ``token_ids`` under the sampling distribution, in nats; None for a given attempt."""
    stop: Literal["end", "length", "given", "refused", "kept"]
    """``refused``: an endpoint would not answer; there is no text, and the verdict is ``error``."""
    grade: Grade | None = None
    """None for a turn that is not graded (a feedback turn). That of a verdict turn says whether the model judged its answer
    as the verifier does; ``extracted`` is then what the model said, ``correct`` or ``wrong``."""
    source: Literal["sampled", "given", "kept"] = "sampled"
    """``kept``: this attempt was not played, as the model's verdict was "correct". Text and grade are those of the attempt
    before, which stands; there are no tokens."""
    parent: int | None = None
    """Index in the episode of the attempt that this one continues; None for a first attempt."""
    thinking: str = ""
    """What the model thought before its answer. ``text`` is what follows it: the part that is judged."""
    thinking_tokens: int | None = None
    """Number of thinking tokens among ``token_ids``, markers included. None from an endpoint that does not report
    it."""
    drafted: int = 0
    """Number of tokens that were copied from an earlier attempt and only checked (``engine.drafts``)."""
    turn: Turn = "answer"

    @property
    def correct(self) -> bool:
        return self.grade is not None and self.grade.verdict is Verdict.CORRECT

    @property
    def wrong(self) -> bool:
        """Whether the attempt was judged and is not right. An ``error`` was not judged."""
        return self.grade is not None and self.grade.verdict not in (Verdict.CORRECT, Verdict.ERROR)


@dataclass(frozen=True, slots=True)
class Episode:
    """All attempts at one problem by one sample, in the order they were played. Verdict and feedback turns are among them."""

    problem: Problem
    sample: int
    attempts: tuple[Attempt, ...]

    @property
    def answers(self) -> tuple[Attempt, ...]:
        """The attempts without the turns between them."""
        return tuple(a for a in self.attempts if a.turn == "answer")

    @property
    def verdicts(self) -> tuple[Attempt, ...]:
        """The turns in which the model judged its answer."""
        return tuple(a for a in self.attempts if a.turn == "verdict")

    @property
    def paths(self) -> tuple[Episode, ...]:
        """For a tree (several second attempts after one first attempt), a linear episode per second attempt. Otherwise
        this episode."""
        seconds = [a for a in self.attempts[1:] if a.parent == 0]
        if len(seconds) < 2:
            return (self,)
        return tuple(
            Episode(self.problem, self.sample * len(seconds) + b, (self.attempts[0], second))
            for b, second in enumerate(seconds)
        )

    @property
    def rewards_K(self) -> FloatArray:
        """1.0 per correct attempt, else 0.0; shape [K]. An ``error`` is 0 here and must be masked by ``valid_K``."""
        return np.array([float(a.correct) for a in self.attempts])

    @property
    def valid_K(self) -> BoolArray:
        """False where the verifier itself failed; shape [K]."""
        return np.array([a.grade is not None and a.grade.verdict is not Verdict.ERROR for a in self.attempts])

    @property
    def played_K(self) -> BoolArray:
        """False for an attempt that was not played, as the model's verdict was "correct"; shape [K]."""
        return np.array([a.source != "kept" for a in self.attempts])


@dataclass(frozen=True, slots=True)
class Datum:
    """One training sequence. ``weights_T[t]`` multiplies log p(tokens[t] | tokens[<t]); ``weights_T[0]`` is 0."""

    tokens_T: IntArray
    weights_T: FloatArray
    logprobs_T: FloatArray
    """Sampling log-probs in nats on sampled positions; 0 elsewhere."""
    sampled_T: BoolArray
    """True where the token was sampled by the policy. Separate from the weights, because a weight may be 0 by
    chance."""

    def __post_init__(self) -> None:
        n = len(self.tokens_T)
        assert n == len(self.weights_T) == len(self.logprobs_T) == len(self.sampled_T), (
            "a Datum's arrays differ in length"
        )
        assert n > 0, "a Datum needs at least one token"
        assert self.weights_T[0] == 0, "the first token has no prediction: its weight must be 0"
