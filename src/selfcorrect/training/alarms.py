"""Alarms: what goes wrong in self-correction training, in words, while it happens. The thresholds are chosen by this
project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress, pairwise

import numpy as np

from selfcorrect.records.lines import AlarmRecord, StepRecord

WINDOW = 10
"""Steps that are averaged before an alarm: single steps are noise."""
NEVER_CHANGED = 0.02
"""Answer-change rate below which the last attempt counts as a copy of the one before."""
STILL_WRONG = 0.1
"""Share of wrong last attempts above which copying is a fault: below it there is little left to correct."""
ONE_VERDICT = 0.9
"""Share of groups with a single verdict, above which the reward teaches nothing."""
CUT_OFF = 0.1
"""Share of answers cut by the token cap above which the cap is at fault."""
VERIFIER_ERRORS = 0.01
"""Share of answers on which the verifier itself fails, above which there is an alarm."""

ONE_SIDED = 0.98
"""Share of verdict turns that say the same above which the model judges nothing."""

BOUNDED = 0.02
"""Share of trained tokens with a bounded importance ratio, above which the step is no longer a policy gradient."""


def check(
    history: Sequence[StepRecord], strict_stage: str | None, rewarded_K: Sequence[bool] = ()
) -> list[AlarmRecord]:
    """Alarms that the last ``WINDOW`` steps give rise to.

    Args:
        history: all step records so far, oldest first.
        strict_stage: name of the stage that must keep the first attempt at the base, or None.
        rewarded_K: whether the present stage rewards each attempt; empty where it rewards all.

    Returns:
        Zero or more alarms, stamped with the last step.
    """
    if len(history) < WINDOW:
        return []
    recent = history[-WINDOW:]
    found = [
        _copying(recent),
        _sacrificed_first_attempt(history),
        _no_signal(recent, rewarded_K),
        _truncation(recent),
        _moved_first_attempt(history, strict_stage),
        _mismatch(recent),
        _bounded(recent),
        _verifier_errors(recent),
        *_one_sided_verdicts(recent),
        _wrong_on_purpose(history),
    ]
    step = history[-1].step
    return [AlarmRecord(step=step, name=name, message=message) for name, message in filter(None, found)]


Finding = tuple[str, str] | None


def _copying(recent: Sequence[StepRecord]) -> Finding:
    revised = [r for r in recent if r.answer_change is not None]
    if 2 * len(revised) < len(recent):  # of two kinds of steps in turn, one may play first attempts only
        return None
    changes = [r.answer_change for r in revised if r.answer_change is not None]
    lasts = [x for r in revised if (x := r.reward[-1]) is not None]
    if not lasts:
        return None  # the verifier judged none
    wrong = 1 - np.mean(lasts)
    if np.mean(changes) < NEVER_CHANGED and wrong > STILL_WRONG:
        return "copying", (
            f"the last attempt repeats the one before in {1 - np.mean(changes):.0%} of episodes although {wrong:.0%} are "
            "wrong: the collapse the paper describes. Try a longer or stricter Stage I (method.stage1_share, method.beta2)."
        )
    return None


def _sacrificed_first_attempt(history: Sequence[StepRecord]) -> Finding:
    if len(history[-1].reward) < 2 or len(history) < 3 * WINDOW:
        return None
    start, now = history[:WINDOW], history[-WINDOW:]
    before, after = ([x for r in steps if (x := r.reward[0]) is not None] for steps in (start, now))
    # of two kinds of steps in turn, one may play first attempts only
    then, lately = (
        [x for r in steps if len(r.reward) > 1 and (x := r.reward[-1]) is not None] for steps in (start, now)
    )
    if not (before and after and then and lately):
        return None  # stored first attempts only: none of the policy's own; or the verifier judged none
    lost = np.mean(before) - np.mean(after)
    won = np.mean(lately) - np.mean(then)
    if lost > 0.05 and won > 0.05:
        return "first attempt sacrificed", (
            f"attempt 1 lost {lost:.0%} while the last attempt won {won:.0%}: the bonus may be earned by being wrong first. "
            "Compare the last attempt with the base, not delta; lower method.alpha or raise method.beta2."
        )
    return None


def _one_sided_verdicts(recent: Sequence[StepRecord]) -> list[Finding]:
    """A verdict that is always the same is a fault only where it is often untrue."""
    verdicts = [r.verdicts for r in recent if r.verdicts is not None]
    first = [x for r in recent if (x := r.reward[0]) is not None]
    if len(verdicts) < len(recent) or not first:
        return []
    right = float(np.mean(first))
    found: list[Finding] = []
    if np.mean([v.says_correct for v in verdicts]) > ONE_SIDED and 1 - right > STILL_WRONG:
        found.append(
            (
                "verdict always correct",
                f"the model calls all of its answers correct although {1 - right:.0%} are wrong, so nothing is revised and attempt 2 "
                "learns nothing: raise method.verdict_weight, set method.per_role=true, or raise train.samples_per_problem.",
            )
        )
    if np.mean([v.says_wrong for v in verdicts]) > ONE_SIDED and right > STILL_WRONG:
        found.append(
            (
                "verdict always wrong",
                f"the model calls all of its answers wrong although {right:.0%} are right, so every answer is revised: raise "
                "method.verdict_weight, lower method.alpha, or raise train.samples_per_problem.",
            )
        )
    return found


def _wrong_on_purpose(history: Sequence[StepRecord]) -> Finding:
    """A verdict is easiest on an answer that is plainly wrong."""
    if len(history) < 3 * WINDOW:
        return None
    start, now = history[:WINDOW], history[-WINDOW:]

    def mean(steps: Sequence[StepRecord], number: Callable[[StepRecord], float | None]) -> float | None:
        known = [x for r in steps if (x := number(r)) is not None]
        return float(np.mean(known)) if known else None

    def judged(r: StepRecord) -> float | None:
        return None if r.verdicts is None else r.verdicts.accuracy

    firsts = [mean(steps, lambda r: r.reward[0]) for steps in (start, now)]
    verdicts = [mean(steps, judged) for steps in (start, now)]
    if firsts[0] is None or firsts[1] is None or verdicts[0] is None or verdicts[1] is None:
        return None
    lost, won = firsts[0] - firsts[1], verdicts[1] - verdicts[0]
    if lost > 0.05 and won > 0.05:
        return "first attempt wrong on purpose", (
            f"attempt 1 lost {lost:.0%} since the start while the verdicts on it won {won:.0%}: wrong answers may be written "
            "because they are easy to judge. Watch the balanced accuracy; lower method.verdict_weight or method.alpha, or hold "
            "attempt 1 with method.beta1."
        )
    return None


def _no_signal(recent: Sequence[StepRecord], rewarded_K: Sequence[bool]) -> Finding:
    recent = [r for r in recent if r.stage == recent[-1].stage]
    # of two kinds of steps in turn, one has fewer attempts, all of them rewarded
    rewarded = [
        rewarded_K if len(rewarded_K) == len(r.zero_variance) else [True] * len(r.zero_variance) for r in recent
    ]
    share = np.mean(
        [min(compress(r.zero_variance, kept), default=0.0) for r, kept in zip(recent, rewarded, strict=True)]
    )
    if share > ONE_VERDICT:
        return "no signal", (
            f"in {share:.0%} of groups all samples get the same verdict, so reward teaches nothing. The task is too easy or "
            "too hard for this model: change the difficulty or raise train.samples_per_problem."
        )
    return None


def _truncation(recent: Sequence[StepRecord]) -> Finding:
    share = np.mean([max(x for x in r.truncated if x is not None) for r in recent])
    if share > CUT_OFF:
        return "truncation", f"{share:.0%} of answers hit the token cap before an answer; raise play.max_new_tokens."
    return None


def _moved_first_attempt(history: Sequence[StepRecord], strict_stage: str | None) -> Finding:
    recent = [r.stage == strict_stage for r in history[-WINDOW:]]
    # short turns of an interleaved Stage I never fill the last steps of the run, so its own last steps are taken
    takes_turns = any(a.stage != strict_stage == b.stage for a, b in pairwise(history))
    held = [r for r in history if r.stage == strict_stage][-WINDOW:]
    if len(held) < WINDOW or not (all(recent) or (takes_turns and any(recent))):
        return None
    kl = np.mean([r.kl[0] for r in held])  # sampled ones: Stage I is given none
    if kl > 0.5:
        return "first attempt moved", (
            f"attempt 1 is {kl:.2f} nats from the base in Stage I, which is meant to hold it there: raise method.beta2 or "
            "lower train.learning_rate."
        )
    return None


def _mismatch(recent: Sequence[StepRecord]) -> Finding:
    worst = max(r.sampler_mismatch for r in recent)
    if worst > 1.0:
        return "sampler mismatch", (
            f"trainer and sampler disagree by up to {worst:.2f} nats on a token: the importance ratio is far from 1. Use "
            "model.dtype=float32 to see whether precision is the cause."
        )
    return None


def _bounded(recent: Sequence[StepRecord]) -> Finding:
    shares = [(r.ratio_capped or 0) + (r.ratio_masked or 0) for r in recent]
    if np.mean(shares) > BOUNDED:
        return "ratios bounded", (
            f"{np.mean(shares):.0%} of the trained tokens had their importance ratio truncated or their sequence left out: "
            "trainer and sampler compute different laws. Use model.dtype=float32 or engine.sampler=native, or see whether "
            "train.ratio_cap and train.ratio_mask are too narrow."
        )
    return None


def _verifier_errors(recent: Sequence[StepRecord]) -> Finding:
    total = sum(r.errors for r in recent)
    share = total / sum(r.episodes * len(r.reward) for r in recent)
    if share > VERIFIER_ERRORS:
        return "verifier errors", f"the verifier itself failed on {share:.1%} of answers; these episodes teach nothing."
    return None
