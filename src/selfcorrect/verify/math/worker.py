"""The worker process: symbolic comparison under limits on CPU time and memory. Started by ``pool`` as a module.

One request per line on stdin, one reply per line on stdout, both JSON. Replies: ``{"equal": bool}``, ``{"limit": why}``
when the pair used up its limits, ``{"error": why}`` when this code failed; before the first pair that needs
math-verify, ``{"loading": true}`` and ``{"loaded": true}`` before and after its import. Nothing is evaluated as code.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from fractions import Fraction
from typing import Any, BinaryIO

import mpmath  # type: ignore[import-untyped]  # it carries no types

from selfcorrect.verify.math import fallback, numeric
from selfcorrect.verify.math.compare import Scalars, Ternary
from selfcorrect.verify.math.decide import decide
from selfcorrect.verify.math.nodes import Node, TooHard
from selfcorrect.verify.math.normalise import normalise


class ManyDigits(Scalars):
    """Decides scalars by evaluating them to many digits."""

    def identical(self, a: Node, b: Node) -> Ternary:
        with suppress(numeric.Unevaluable, TooHard):
            return numeric.identical(a, b)
        return False

    def factor_between(self, a: Node, b: Node) -> int | None:
        with suppress(numeric.Unevaluable, TooHard):
            return numeric.factor_between(a, b)
        return 0

    def within(self, a: Node, b: Node, tolerance: Fraction) -> Ternary:
        with suppress(numeric.Unevaluable, TooHard):
            return numeric.within(a, b, tolerance)
        return False


def answer(request: dict[str, Any]) -> dict[str, Any] | None:
    """The reply to one request ``{"gold", "given", "shortcut"}``; None if math-verify must be loaded first."""
    try:
        gold, given = str(request["gold"]), str(request["given"])
        decision = decide(gold, given, ManyDigits(), shortcut=bool(request["shortcut"]))
        if not decision.for_math_verify:
            return {"equal": bool(decision.equal), "how": "compared to 250 digits"}
        if not fallback.loaded():
            return None
        return {"equal": fallback.verify(normalise(gold), normalise(given)), "how": "math-verify"}
    except (MemoryError, RecursionError) as fault:
        return {"limit": type(fault).__name__}
    except Exception as fault:  # noqa: BLE001  # the worker's edge: our own fault is reported, not fatal
        return {"error": f"{type(fault).__name__}: {fault}"}


def _within_time(request: dict[str, Any], cpu_s: float) -> dict[str, Any] | None:
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    reply = answer(request)
    signal.setitimer(signal.ITIMER_PROF, 0)
    return reply


def _set_limits(memory_bytes: int) -> None:
    for kind, most in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(kind, (most, most))


def main(cpu_s: float, memory_bytes: int, *, preload: bool) -> None:
    """Answer requests until stdin closes. A pair that exceeds its CPU time ends the process by SIGPROF."""
    replies: BinaryIO = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message).encode() + b"\n")

    mpmath.mp.dps = 60
    if preload:
        fallback.load()
    _set_limits(memory_bytes)
    send({"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        reply = _within_time(request, cpu_s)
        if reply is None:
            send({"loading": True})
            fallback.load()
            send({"loaded": True})
            reply = _within_time(request, cpu_s)
        assert reply is not None
        send(reply)
        if "limit" in reply:
            return


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), preload="preload" in sys.argv[3:])
