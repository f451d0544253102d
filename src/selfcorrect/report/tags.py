"""Tags that say what happened in an episode, to filter by."""

from __future__ import annotations

from selfcorrect.types import Episode, Verdict

TAGS = {
    "fixed": "Fixed: wrong at first, right in the end",
    "broken": "Broken: right at first, wrong in the end",
    "kept-right": "Kept right",
    "kept-wrong": "Kept wrong",
    "copied": "Copied: the last attempt repeats the previous one, character for character",
    "not-revised": "Not revised: the model called its answer correct",
    "cut": "Cut or no answer, in any attempt",
    "one-right": "One attempt only, right",
    "one-wrong": "One attempt only, wrong",
    "error": "The verifier failed",
}
"""Every tag with its label. An episode has at most one of fixed, broken, kept-right and kept-wrong, and any of the others."""
_UNANSWERED = (Verdict.TRUNCATED, Verdict.NO_ANSWER, Verdict.TIMEOUT)


def tags_of(episode: Episode) -> tuple[str, ...]:
    """Tags of an episode, in the order of `TAGS`. Turns between attempts do not count. After a verifier error no verdict does."""
    attempts = [a for a in episode.answers if a.grade is not None]
    verdicts = [a.grade.verdict for a in attempts if a.grade is not None]
    found = set()
    if Verdict.ERROR in verdicts:
        found.add("error")
    elif len(verdicts) == 1:
        found.add("one-right" if attempts[0].correct else "one-wrong")
    elif verdicts:
        flows = {(False, True): "fixed", (True, False): "broken", (True, True): "kept-right"}
        found.add(flows.get((attempts[0].correct, attempts[-1].correct), "kept-wrong"))
    if any(a.source == "kept" for a in attempts):
        found.add("not-revised")
    elif len(attempts) > 1 and attempts[-1].text == attempts[-2].text:
        found.add("copied")
    if any(v in _UNANSWERED for v in verdicts):
        found.add("cut")
    return tuple(tag for tag in TAGS if tag in found)
