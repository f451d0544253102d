"""Whether a model, a task and a token cap can learn, in words: numbers in, sentences out.

The thresholds are chosen by this project. If training has an alarm for the same thing, the alarm's threshold is used
(``alarms``), so that a probe predicts the alarms of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from selfcorrect.training import alarms

RARELY_RIGHT = 0.02
"""Accuracy at temperature 1 below which nothing is learned. At 2 %, only 15 % of groups of 8 have a right answer, and
hardly any has two, so the baseline has almost nothing to compare."""
ALWAYS_RIGHT = 0.98
"""Accuracy at temperature 1 above which nothing is left to correct."""
FEW_GROUPS = 0.8
"""Share of groups with one verdict above which learning is slow: of 64 problems in a step fewer than 13 have a reward
gradient. Between this and the alarm's ``ONE_VERDICT`` a run learns mostly from noise for a long time."""
NO_FORMAT = 0.2
"""Share of first attempts without an answer in the requested form. Above it, reward first teaches mostly the form,
which supervised steps teach more cheaply."""
RARELY_FIXED = 0.01
"""Share of episodes that go from wrong to right, below which Stage I has almost nothing to reinforce: five of 512
episodes in a step."""

SOUND = 0.5
"""Share of wrong answers with a sound check, below which checks do not tell right from wrong. A base that learned
nothing had 7 % (docs/results/smollm2.md). The embedded ``tiny``, which learns, has 70 %."""
IN_FORM = 0.95
"""Share of first attempts in the requested form that a base should have before a run."""
ROOM = (0.15, 0.6)
"""Accuracy of attempt 1 at temperature 1 that leaves room for corrections and has enough right answers to learn
from."""

Outlook = Literal["can learn", "can learn, but change something first", "cannot learn as it is"]
_ORDER: tuple[Outlook, ...] = ("can learn", "can learn, but change something first", "cannot learn as it is")


@dataclass(frozen=True, slots=True)
class Numbers:
    """What was measured on training problems at temperature 1. Shares in [0, 1]; None is not measured, never 0."""

    samples: int
    """Group size k of the run."""
    cap: int
    """Token cap per attempt of the run."""
    accuracy_first: float | None
    accuracy_last: float | None
    attempts: int
    no_answer: float | None
    """Share of first attempts that ended on their own without an answer in the requested form."""
    verifier_errors: float
    cap_hits: Mapping[int, float]
    """Share of answers that each cap would cut, for the attempt with the larger share. Has ``cap`` and larger caps."""
    one_verdict: float | None
    """Share of groups of ``samples`` whose last attempts all get the same verdict."""
    changed: float | None
    """Share of episodes whose answer differs between the last two attempts; None with one attempt."""
    fixed: float | None
    """Share of episodes wrong at the attempt before the last and right at the last; None with one attempt."""
    can_warm_up: bool
    """The task has demonstrations for `selfcorrect sft`."""
    sound: float | None = None
    """Share of wrong attempts whose own check is sound; None where the task cannot tell."""
    unfinished: float = 0.0
    """Share of first attempts that were cut before they held an answer, under the largest cap that was probed."""
    no_verdict: float | None = None
    """Share of verdict turns without a verdict in the requested form; None where the method has none."""


@dataclass(frozen=True, slots=True)
class Advice:
    """The outlook and the findings behind it. Each finding says what was seen and what to change."""

    outlook: Outlook
    findings: tuple[str, ...]


def advise(n: Numbers) -> Advice:
    """Say whether training can work, and what to change. Most fundamental finding first."""
    found = [*_verdict_findings(n), *_findings(n)]
    worst = max((_ORDER.index(outlook) for outlook, _ in found), default=0)
    return Advice(_ORDER[worst], tuple(text for _, text in found))


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition of the gate before training."""

    what: str
    value: float | None
    """A share; None if it was not measured."""
    asked: str
    passed: bool

    def __str__(self) -> str:
        shown = "n/a" if self.value is None else f"{self.value:.1%}"
        return f"{'passed' if self.passed else 'NOT PASSED'}: {self.what} {shown}, asked for {self.asked}"


def gate(n: Numbers) -> list[Gate]:
    """The conditions that a model should meet before a long run."""
    form = None if n.no_answer is None else 1 - n.no_answer - n.unfinished
    conditions = [
        Gate(
            "first attempts in the asked-for form", form, f"{IN_FORM:.0%} or more", form is not None and form >= IN_FORM
        ),
        Gate(
            "attempt 1 right",
            n.accuracy_first,
            f"{ROOM[0]:.0%} to {ROOM[1]:.0%}",
            n.accuracy_first is not None and ROOM[0] <= n.accuracy_first <= ROOM[1],
        ),
    ]
    if n.attempts > 1:
        asked = f"{alarms.NEVER_CHANGED:.0%} or more"
        conditions.append(
            Gate("answers that change", n.changed, asked, n.changed is not None and n.changed >= alarms.NEVER_CHANGED)
        )
    if n.sound is not None:
        conditions.append(
            Gate("checks of wrong answers that are sound", n.sound, f"{SOUND:.0%} or more", n.sound >= SOUND)
        )
    return conditions


def _findings(n: Numbers) -> Iterator[tuple[Outlook, str]]:
    _, change, cannot = _ORDER
    warm_up = "take a model that was taught this form (the task has no demonstrations for `selfcorrect sft`)"
    if n.can_warm_up:
        warm_up = "warm up with `selfcorrect sft`"
    much_is_wrong = n.accuracy_last is not None and 1 - n.accuracy_last > alarms.STILL_WRONG

    if n.verifier_errors > alarms.VERIFIER_ERRORS:
        yield (
            change,
            (
                f"the verifier itself failed on {n.verifier_errors:.1%} of answers, which teach nothing; see which problems "
                "with `selfcorrect validate` and correct or drop them"
            ),
        )
    share = n.cap_hits[n.cap]
    if share > alarms.CUT_OFF:
        enough = [cap for cap in sorted(n.cap_hits) if cap > n.cap and n.cap_hits[cap] <= alarms.CUT_OFF]
        largest = max(n.cap_hits)
        way_out = (
            f"even {largest} would cut {n.cap_hits[largest]:.0%}: probe again with --largest-cap {2 * largest}, or teach "
            "the model to stop"
        )
        if enough:
            way_out = f"raise play.max_new_tokens to {enough[0]}, which would cut {n.cap_hits[enough[0]]:.0%}"
        yield change, f"the cap of {n.cap} tokens cuts {share:.0%} of answers; {way_out}"
    if n.no_answer is not None and n.no_answer > NO_FORMAT:
        yield (
            change,
            (
                f"{n.no_answer:.0%} of first attempts hold no answer in the asked-for form, and reward would teach the form "
                f"first; {warm_up}"
            ),
        )
    if n.accuracy_first is None or n.accuracy_last is None:
        yield cannot, "no answer got a verdict, so there is no reward; see `selfcorrect validate`"
    elif max(n.accuracy_first, n.accuracy_last) < RARELY_RIGHT:
        yield (
            cannot,
            (
                f"hardly any answer is right (t1 {n.accuracy_first:.1%}), so there is no reward to learn from; take easier "
                f"problems or a stronger model, or {warm_up}"
            ),
        )
    elif min(n.accuracy_first, n.accuracy_last) > ALWAYS_RIGHT:
        yield (
            cannot,
            (
                f"nearly every answer is right (t1 {n.accuracy_first:.1%}), so nothing is left to correct; take harder problems"
            ),
        )
    if n.one_verdict is not None and n.one_verdict > FEW_GROUPS:
        other = "harder" if (n.accuracy_last or 0) > 0.5 else "easier"
        yield (
            cannot if n.one_verdict > alarms.ONE_VERDICT else change,
            (
                f"in {n.one_verdict:.0%} of groups of {n.samples} all last attempts get one verdict and teach nothing; raise "
                f"train.samples_per_problem, or take {other} problems"
            ),
        )
    if n.changed is not None and n.changed < alarms.NEVER_CHANGED:
        if much_is_wrong:
            yield (
                cannot,
                (
                    f"the last attempt changes {n.changed:.1%} of answers, so Stage I has no corrections to reinforce; try "
                    f"another task.instruction or another model, or {warm_up}"
                ),
            )
    elif n.fixed is not None and n.fixed < RARELY_FIXED and much_is_wrong:
        yield (
            change,
            (
                f"answers change but only {n.fixed:.1%} of episodes go from wrong to right, so Stage I will be slow; play "
                "more episodes per step (train.problems_per_step, train.samples_per_problem) or take easier problems"
            ),
        )


def _verdict_findings(n: Numbers) -> Iterator[tuple[Outlook, str]]:
    _, change, cannot = _ORDER
    if n.no_verdict is not None and n.no_verdict > NO_FORMAT:
        yield (
            cannot if n.no_verdict == 1 else change,
            (
                f"{n.no_verdict:.0%} of the requests for a verdict get no answer in the asked-for form, which earns nothing and asks "
                "for no revision; set method.verdict_instruction to a request that this model follows, raise "
                "play.max_new_tokens, or teach it the form first"
            ),
        )
