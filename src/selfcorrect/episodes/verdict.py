"""The verdict turn: the model judges its own answer, and its verdict is graded against the verifier's.

Source: PAG (Jiang et al. 2025, arXiv:2506.10406), in which one model writes the answers and verifies them. The wording
of the request is ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from selfcorrect.config import Config
from selfcorrect.config.methods import PagConfig
from selfcorrect.types import Attempt, Episode, Grade, Verdict

Says = Literal["correct", "wrong"]

REQUEST = (
    "Check your answer step by step. Do not write a new answer yet. End with one line, either `Verdict: correct` or "
    "`Verdict: wrong`."
)
"""Asks for the verdict. It is fixed and does not depend on whether the answer is right; a setting replaces it."""

FORM = "`Verdict: correct` or `Verdict: wrong`"

_MARKS = r"[\s*_`\"'.:()\[\]]*"
_NAMED = re.compile(rf"\bverdict{_MARKS}(?P<word>correct|wrong)\b", re.IGNORECASE)
_ALONE = re.compile(rf"{_MARKS}(?P<word>correct|wrong){_MARKS}", re.IGNORECASE)


def said(text: str) -> Says | None:
    """The verdict in a text: the last ``Verdict: correct`` or ``Verdict: wrong``, or a text of one of these words alone.

    Letter case and the marks of Markdown do not matter. Anything else is no verdict.

    >>> said("7 + 5 is 12, so the last digit is 2.\\n**Verdict:** wrong"), said("Correct."), said("It seems right.")
    ('wrong', 'correct', None)
    """
    found = list(_NAMED.finditer(text))
    match = found[-1] if found else _ALONE.fullmatch(text)
    if match is None:
        return None
    return "correct" if match["word"].lower() == "correct" else "wrong"


def verdict_turn(config: Config) -> dict[str, Any]:
    """The fields of ``Play`` that a method with a verdict turn sets; none for other methods."""
    m = config.method
    return {"verdict": m.verdict_instruction or REQUEST, "stop": m.stop} if isinstance(m, PagConfig) else {}


def graded_verdict(text: str, answer: Grade | None, *, truncated: bool) -> Grade:
    """Whether the model judged its answer as the verifier does.

    Args:
        text: the verdict turn.
        answer: the verifier's grade of the answer that is judged.
        truncated: the token cap cut the text.

    Returns:
        ``correct`` where both agree, else ``wrong``; ``no_answer`` or ``truncated`` where the text holds no verdict, which
        earns nothing; ``error`` where the verifier failed on the answer, so that nothing can be compared. ``extracted`` is
        what the model said.
    """
    says = said(text)
    if answer is None or answer.verdict is Verdict.ERROR:
        return Grade(
            Verdict.ERROR, says, "the verifier failed on the answer, so this verdict has nothing to agree with"
        )
    if says is None:
        return Grade(Verdict.TRUNCATED if truncated else Verdict.NO_ANSWER, None, f"asked for {FORM}")
    is_right = answer.verdict is Verdict.CORRECT
    agrees = (says == "correct") == is_right
    detail = f"the model says {says}; the verifier says {answer.verdict.value}"
    return Grade(Verdict.CORRECT if agrees else Verdict.WRONG, says, detail)


def judged(episode: Episode) -> list[tuple[Attempt, Attempt]]:
    """Every verdict turn that was played, after the answer that it judges."""
    pairs = []
    answer: Attempt | None = None
    for a in episode.attempts:
        if a.turn == "answer":
            answer = a
        elif a.turn == "verdict" and a.grade is not None and answer is not None:
            pairs.append((answer, a))
    return pairs


def balanced_accuracy(pairs: Sequence[tuple[Attempt, Attempt]]) -> float | None:
    """Mean of two shares: of the right answers those called correct, of the wrong ones those called wrong.

    A verdict that is always the same has 1/2, whatever the share of right answers. None where answers of one of the kinds
    are missing.

    Args:
        pairs: from ``judged``. Answers that the verifier could not judge are left out.
    """
    kept = [(a, v) for a, v in pairs if v.grade is not None and (a.correct or a.wrong)]
    right = [v.correct for a, v in kept if a.correct]
    wrong = [v.correct for a, v in kept if a.wrong]
    if not right or not wrong:
        return None
    return (sum(right) / len(right) + sum(wrong) / len(wrong)) / 2


def tokens_saved(episode: Episode) -> int:
    """Sampled tokens that an episode has less than one without verdict turns that always revises; below 0 where it has more.

    An estimate: an attempt that was not played counts as long as the first one.
    """
    count = [len(a.token_ids or ()) for a in episode.attempts]
    skipped = sum(a.source == "kept" and a.turn == "answer" for a in episode.attempts)
    return skipped * count[0] - sum(n for a, n in zip(episode.attempts, count, strict=True) if a.turn == "verdict")
