"""The trusted process: evaluates the tests, and calls the untrusted program for its part.

The program's functions and objects appear in the tests as ``remote.Remote``. They send plain data, and get back plain
data, another object, or an exception's name. Everything else (comparison, ``assert``, ``sorted``, ``math.isclose``)
happens here with real builtins. Functions of the tests that are passed to the program stay here: it gets a stand-in
that asks the judge at each call.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import re
import socket
from dataclasses import dataclass
from typing import Any

from .channel import Channel, ProgramGone, TestsUnusable
from .codec import CodecError


@dataclass(frozen=True, slots=True)
class Judgement:
    """The report of the trusted process."""

    outcome: str
    """passed, failed, gone (the program ended or broke the protocol), compile, load, unusable, setup (the sandbox)."""
    detail: str
    alternative: int = 0
    """Which of the possible programs in the text was the one that compiled."""
    forgeable: str = ""
    """Why the program could have forged a pass; empty if it could not."""


class _Names(dict[str, Any]):
    """The tests' namespace, where data of the program is looked up again after each call of the program."""

    def __init__(self, channel: Channel, live: set[str], names: dict[str, Any]) -> None:
        super().__init__(names)
        self.channel = channel
        self.live = live

    def __getitem__(self, name: str) -> Any:
        return self.channel.data(name) if name in self.live else super().__getitem__(name)


def _bind(channel: Channel, job: dict[str, Any], kinds: Any) -> dict[str, Any]:
    """The tests' namespace: proxies for the program's names, real modules for modules.

    A name that the program lacks stays unbound, so that the tests get a NameError, as in a single process.
    """
    live: set[str] = set()
    namespace: dict[str, Any] = _Names(channel, live, {"__name__": "tests", "__builtins__": builtins})
    if type(kinds) is not dict:
        raise channel.lost("the program's channel carried a malformed answer")
    for name in job["modules"]:
        if kinds.get(name) != "missing":
            namespace[name] = importlib.import_module(name)
    for name in job["names"]:
        kind = kinds.get(name)
        if kind == "class" and name in job["classes"]:
            channel.own_classes.add(name)
        if kind in ("function", "class"):
            namespace[name] = channel.named(name)
        elif kind == "data":
            live.add(name)
            namespace[name] = channel.data(name)
        elif type(kind) is list and len(kind) == 2 and kind[0]:
            base = getattr(builtins, str(kind[1]), None)
            if isinstance(base, type) and issubclass(base, Exception):
                with contextlib.suppress(CodecError):
                    namespace[name] = channel.named_exception(name, kind[0], base)
    return namespace


def _execute(source: str, namespace: dict[str, Any], name: str = "<tests>") -> None:
    exec(compile(source, name, "exec", dont_inherit=True), namespace)


def _prompt_namespace(job: dict[str, Any]) -> dict[str, Any]:
    """Definitions of the prompt besides the stub (HumanEval 32, 38, 50). Tests may use them, and the program cannot
    change them."""
    namespace: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    lines = job["prompt"].split("\n")
    while lines:
        try:
            tree = ast.parse("\n".join(lines))
        except SyntaxError:
            # A prompt in prose, or one that ends in the middle of its last function or class.
            ends = [i for i, line in enumerate(lines) if re.match(r"(?:async def|def|class|@)\W*\w", line)]
            lines = lines[: ends[-1]] if ends else []
            continue
        exec(compile(tree, "<prompt>", "exec", dont_inherit=True), namespace)
        break
    return namespace


def _run_check(channel: Channel, job: dict[str, Any], kinds: Any, namespace: dict[str, Any]) -> None:
    root = job["names"][0]
    if type(kinds) is not dict or (kinds.get(root) not in ("function", "class") and type(kinds.get(root)) is not list):
        raise NameError(f"the program defines no function {root}")
    namespace[root] = channel.named(root)
    for source in job["tests"]:
        _execute(source, namespace)
    check = namespace.get("check")
    if not callable(check):
        raise TestsUnusable("the tests define no function check(candidate)")
    check(eval(compile(job["entry_point"], "<entry point>", "eval", dont_inherit=True), {root: namespace[root]}))


def _evaluate(channel: Channel, job: dict[str, Any], kinds: Any, namespace: dict[str, Any]) -> None:
    if job["fallback"]:
        sources = [*job["tests"], *([f"check({job['entry_point']})"] if job["style"] == "humaneval" else [])]
        reply = channel.request({"op": "run_tests", "sources": sources})
        channel.calls += 1
        if reply != {"passed": True}:
            channel.result(reply)
            raise channel.lost("the program's channel carried a malformed answer")
    elif job["style"] == "humaneval":
        _run_check(channel, job, kinds, namespace)
    else:
        namespace = _bind(channel, job, kinds)
        for source in job["tests"]:
            _execute(source, namespace)


def _load(channel: Channel, job: dict[str, Any]) -> tuple[int, Any, Judgement | None]:
    """Load the program. Returns which alternative compiled, the kinds of its names, and an outcome if that already
    decides."""
    wanted = [*job["names"], *job["modules"]]
    classes = list(channel.classes)
    reply = channel.request({"op": "load", "alternatives": job["alternatives"], "names": wanted, "classes": classes})
    chosen = reply.get("alternative", 0)
    index = chosen if type(chosen) is int and 0 <= chosen < len(job["alternatives"]) else 0
    if "raise" not in reply:
        return index, reply.get("kinds"), None
    stage = "compile" if reply.get("stage") == "compile" else "load"
    body = reply["raise"]
    what = f"{body[0]}: {body[2]}"[:200] if type(body) is list and len(body) == 3 else "an exception"
    return index, None, Judgement(stage, what, index)


def judge(sock: socket.socket, job: dict[str, Any], answer_limit: int) -> Judgement:
    """Load the program, run the tests, and report the result. Never raises."""
    channel = Channel(sock, answer_limit)
    try:
        # The process says that it is confined before it runs anything of the program.
        hello = channel.receive()
    except ProgramGone as error:
        return Judgement("setup", str(error))
    if hello.get("ready") is not True:
        return Judgement("setup", str(hello.get("setup_error", "")))
    channel.identity, channel.writes = job["identity"], job["writes"]
    index = 0
    kind, detail = "passed", "all tests passed"
    try:
        prompt = _prompt_namespace(job) if job["style"] == "humaneval" else {}
        channel.classes = {
            name: kind
            for name, kind in prompt.items()
            if isinstance(kind, type) and kind.__module__ == "tests" and kind.__name__ == name != job["names"][0]
        }
        index, kinds, early = _load(channel, job)
        if early is not None:
            return early
        _evaluate(channel, job, kinds, prompt)
    except ProgramGone as error:
        kind, detail = "gone", str(error)
    except TestsUnusable as error:
        kind, detail = "unusable", str(error)
    except BaseException as error:  # noqa: BLE001  # tests may raise anything; whatever it is, they did not pass
        text = str(error).strip().split("\n")[0][:200]
        kind, detail = "failed", f"{type(error).__name__}: {text}" if text else type(error).__name__
    if kind in ("passed", "failed") and channel.broken:
        kind, detail = "gone", channel.broken  # the tests swallowed it
    elif kind == "passed" and channel.failed:
        kind, detail = "failed", channel.failed  # the program swallowed it
    elif kind == "passed" and channel.calls == 0:
        # Tests that call nothing hold for any program.
        kind, detail = "unusable", "the tests passed without calling the program"
    return Judgement(kind, detail, index, channel.own_word)
