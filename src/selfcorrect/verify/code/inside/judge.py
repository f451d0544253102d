"""The trusted process: evaluates the tests, and calls the untrusted program for its part.

The program's functions appear in the tests as proxies. A proxy sends plain data, gets plain data (or an exception's
name) back, and everything else, comparison, ``assert``, ``sorted``, ``math.isclose``, happens here with real builtins.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import socket
from dataclasses import dataclass
from typing import Any

from .codec import CodecError, FunctionRef, decode, dumps, encode, loads
from .wire import FrameTooLarge, recv_frame, send_frame

# Raised inside `next`, `map` or a generator these end a loop quietly: `all(map(f, xs))` would be true.
# The others must not be caught by a test's `except Exception` when the program meant to leave.
_CONTROL = {"StopIteration", "StopAsyncIteration", "GeneratorExit", "KeyboardInterrupt", "SystemExit"}


class ProgramError(Exception):
    """The program raised an exception of its own class, or one that must not act on the tests' control flow."""


class ProgramGone(BaseException):
    """No more answers will come, or none can be trusted. Not an ``Exception``: tests must not catch it."""


class TestsUnusable(BaseException):
    """The tests ask for something this grader cannot do. The failure is the grader's, not the program's."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the trusted process reports."""

    outcome: str
    """passed, failed, gone (the program ended or broke the protocol), compile, load, unusable, setup (the sandbox)."""
    detail: str
    alternative: int = 0
    """Which of the possible programs in the text was the one that compiled."""


class _Channel:
    """The calls to one program. ``broken`` stays set: a test that swallows the error cannot pass."""

    def __init__(self, sock: socket.socket, answer_limit: int) -> None:
        self.sock = sock
        self.answer_limit = answer_limit
        self.broken = ""
        self.calls = 0

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.broken:
            raise ProgramGone(self.broken)
        try:
            send_frame(self.sock, dumps(message))
        except OSError:
            raise self.lost("the program ended before it answered") from None
        return self.receive()

    def receive(self) -> dict[str, Any]:
        try:
            data = recv_frame(self.sock, self.answer_limit)
            if data is None:
                raise self.lost("the program ended before it answered")
            return loads(data)
        except OSError:
            raise self.lost("the program ended before it answered") from None
        except (FrameTooLarge, CodecError) as error:
            raise self.lost(f"the program's channel carried {error}") from None

    def lost(self, why: str) -> ProgramGone:
        self.broken = self.broken or why
        return ProgramGone(self.broken)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls += 1
        try:
            message = {"op": "call", "name": name, "args": encode(_outgoing(args)), "kwargs": encode(_outgoing(kwargs))}
        except CodecError as error:
            raise TestsUnusable(f"an argument of {name} cannot cross: {error}") from None
        return self.result(self.request(message))

    def result(self, reply: dict[str, Any]) -> Any:
        if "raise" in reply:
            raise self._exception(reply["raise"])
        if "refused" in reply:
            why = f"answer refused: {str(reply['refused'])[:300]}"
            if type(reply.get("truth")) is bool:
                return Opaque(why, reply["truth"])
            raise ProgramError(why)
        if "value" not in reply:
            raise self.lost("the program's channel carried a malformed answer")
        try:
            return decode(reply["value"])
        except CodecError as error:
            raise ProgramError(f"answer refused: {error}") from None

    def _exception(self, body: Any) -> BaseException:
        if not (type(body) is list and len(body) == 3 and all(type(part) is str for part in body)):
            return self.lost("the program's channel carried a malformed exception")
        name, base, text = body
        if base in {"SystemExit", "KeyboardInterrupt", "GeneratorExit"}:
            return self.lost(f"the program raised {name[:100]}")
        kind = getattr(builtins, base, None)
        if base not in _CONTROL and isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(text)
            except TypeError:  # UnicodeDecodeError and its like want more than a text
                return ProgramError(f"{base}: {text}")
        return ProgramError(f"{name}: {text}")


class Proxy:
    """One function of the program, as the tests see it. Equal to nothing but itself; holds nothing but its name."""

    __slots__ = ("_channel", "_name")

    def __init__(self, channel: _Channel, name: str) -> None:
        self._channel = channel
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.call(self._name, args, kwargs)


class Opaque:
    """An answer that is not plain data, such as a ``re.Match``. It has a truth value (``assert f(x)``) and no more.

    Any comparison is an error, so that an object that claims to equal everything fails every test of its value.
    """

    __slots__ = ("_truth", "_why")

    def __init__(self, why: str, truth: bool) -> None:
        self._why = why
        self._truth = truth

    def __bool__(self) -> bool:
        return self._truth

    def _refuse(self, *_: object) -> Any:
        raise ProgramError(self._why)

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __hash__ = __len__ = __iter__ = __str__ = __repr__ = _refuse


def _outgoing(value: Any) -> Any:
    """The arguments with proxies replaced by references: a function of the program may take another one."""
    if isinstance(value, Proxy):
        return FunctionRef(value._name)
    if type(value) in (list, tuple):
        return type(value)(_outgoing(part) for part in value)
    if type(value) is dict:
        return {key: _outgoing(part) for key, part in value.items()}
    return value


def _bind(channel: _Channel, job: dict[str, Any], kinds: Any) -> dict[str, Any]:
    """The tests' namespace: proxies for the program's names, real modules for modules.

    A name that the program lacks stays unbound, so that the tests meet the NameError they would meet in one process.
    """
    namespace: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    if type(kinds) is not dict:
        raise channel.lost("the program's channel carried a malformed answer")
    for name in job["modules"]:
        if kinds.get(name) != "missing":
            namespace[name] = importlib.import_module(name)
    for name in job["names"]:
        kind = kinds.get(name)
        if kind == "function":
            namespace[name] = Proxy(channel, name)
        elif kind == "data":
            channel.calls += 1
            namespace[name] = channel.result(channel.request({"op": "get", "name": name}))
    return namespace


def _execute(source: str, namespace: dict[str, Any], name: str = "<tests>") -> None:
    exec(compile(source, name, "exec", dont_inherit=True), namespace)


def _run_check(channel: _Channel, job: dict[str, Any], kinds: Any) -> None:
    entry = job["names"][0]
    namespace: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    # Tests may use what the prompt defines next to the stub (HumanEval 32, 38, 50). It comes from the prompt, not the program.
    try:
        ast.parse(job["prompt"])
    except SyntaxError:
        pass  # a prompt in prose, or one that ends in the middle of a function: nothing to take from it
    else:
        _execute(job["prompt"], namespace, "<prompt>")
    if type(kinds) is not dict or kinds.get(entry) != "function":
        raise NameError(f"the program defines no function {entry}")
    namespace[entry] = Proxy(channel, entry)
    for source in job["tests"]:
        _execute(source, namespace)
    check = namespace.get("check")
    if not callable(check):
        raise TestsUnusable("the tests define no function check(candidate)")
    check(namespace[entry])


def _evaluate(channel: _Channel, job: dict[str, Any], kinds: Any) -> None:
    if job["fallback"]:
        reply = channel.request({"op": "run_tests", "sources": job["tests"]})
        channel.calls += 1
        if reply != {"passed": True}:
            channel.result(reply)
            raise channel.lost("the program's channel carried a malformed answer")
    elif job["style"] == "humaneval":
        _run_check(channel, job, kinds)
    else:
        namespace = _bind(channel, job, kinds)
        for source in job["tests"]:
            _execute(source, namespace)


def _load(channel: _Channel, job: dict[str, Any]) -> tuple[int, Any, Judgement | None]:
    """Have the program loaded: which alternative it is, the kinds of its names, and an outcome where that decides."""
    wanted = [*job["names"], *job["modules"]]
    reply = channel.request({"op": "load", "alternatives": job["alternatives"], "names": wanted})
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
    channel = _Channel(sock, answer_limit)
    try:
        # The process says that it is confined before it runs anything of the program.
        hello = channel.receive()
    except ProgramGone as error:
        return Judgement("setup", str(error))
    if hello.get("ready") is not True:
        return Judgement("setup", str(hello.get("setup_error", "")))
    index = 0
    kind, detail = "passed", "all tests passed"
    try:
        index, kinds, early = _load(channel, job)
        if early is not None:
            return early
        _evaluate(channel, job, kinds)
    except ProgramGone as error:
        kind, detail = "gone", str(error)
    except TestsUnusable as error:
        kind, detail = "unusable", str(error)
    except BaseException as error:  # noqa: BLE001  # tests may raise anything; whatever it is, they did not pass
        text = str(error).strip().split("\n")[0][:200]
        kind, detail = "failed", f"{type(error).__name__}: {text}" if text else type(error).__name__
    if kind in ("passed", "failed") and channel.broken:
        kind, detail = "gone", channel.broken  # the tests swallowed it
    elif kind == "passed" and channel.calls == 0:
        # Tests that call nothing hold for any program.
        kind, detail = "unusable", "the tests passed without calling the program"
    return Judgement(kind, detail, index)
