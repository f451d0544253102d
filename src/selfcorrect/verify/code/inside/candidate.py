"""The untrusted process: loads one program, then answers calls with plain data until the trusted side hangs up.

The program shares this process, so it can change or forge anything here. That only lets it
choose its own answers, as any program does: expected values, assertions and the verdict never come here. The one exception is
``run_tests``, the fallback for tests that need the program's own classes; its verdicts are marked as forgeable.
"""

from __future__ import annotations

import builtins
import socket
import sys
import types
from typing import Any

from .codec import CodecError, decode, dumps, encode, loads
from .wire import recv_frame, send_frame

MODULE = "program"
_REQUEST_LIMIT = 1 << 30  # requests come from the trusted side
_PLAIN_EXCEPTIONS = {
    name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)
}


def _describe(error: BaseException) -> dict[str, Any]:
    kinds = [k.__name__ for k in type(error).__mro__ if k.__module__ == "builtins" and k.__name__ in _PLAIN_EXCEPTIONS]
    try:
        text = str(error)[:300]
    except Exception:  # noqa: BLE001  # the program's own __str__ runs here and may raise anything
        text = ""
    return {"raise": [type(error).__name__[:100], kinds[0] if kinds else "Exception", text]}


class _Program:
    def __init__(self, answer_limit: int) -> None:
        self.answer_limit = answer_limit
        self.module = types.ModuleType(MODULE)
        # Dataclasses and pickle look a class's module up by name.
        sys.modules[MODULE] = self.module

    def load(self, alternatives: list[list[str]], names: list[str]) -> dict[str, Any]:
        """Run the first alternative that compiles; without one, report what is wrong with the first."""
        first_error: Exception | None = None
        for index, sources in enumerate(alternatives):  # noqa: B007  # read after the loop
            try:
                codes = [compile(source, "<program>", "exec", dont_inherit=True) for source in sources]
                break
            except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
                first_error = first_error or error
        else:
            assert first_error is not None, "no alternative to compile"
            return {**_describe(first_error), "stage": "compile"}
        try:
            for code in codes:
                exec(code, self.module.__dict__)
        except BaseException as error:  # noqa: BLE001  # the program may raise anything, SystemExit included
            return {**_describe(error), "stage": "load", "alternative": index}
        return {"kinds": {name: self._kind(name) for name in names}, "alternative": index}

    def _kind(self, name: str) -> str:
        if name not in self.module.__dict__:
            return "missing"
        value = self.module.__dict__[name]
        if isinstance(value, types.ModuleType):
            return "module"
        return "function" if callable(value) else "data"

    def call(self, name: str, args: Any, kwargs: Any) -> dict[str, Any]:
        functions = self.module.__dict__.__getitem__
        try:
            function = functions(name)
            answer = function(*decode(args, functions), **decode(kwargs, functions))
            try:
                return {"value": encode(answer)}
            except CodecError as error:
                return {"refused": str(error)[:300], "truth": bool(answer)}
        except BaseException as error:  # noqa: BLE001  # as above
            return _describe(error)

    def get(self, name: str) -> dict[str, Any]:
        try:
            return {"value": encode(self.module.__dict__[name])}
        except BaseException as error:  # noqa: BLE001  # encoding calls the value's own methods
            return {"refused": str(error)[:300]}

    def run_tests(self, sources: list[str]) -> dict[str, Any]:
        namespace = dict(self.module.__dict__)
        try:
            for source in sources:
                exec(compile(source, "<tests>", "exec", dont_inherit=True), namespace)
        except BaseException as error:  # noqa: BLE001  # as above
            return _describe(error)
        return {"passed": True}

    def answer(self, request: dict[str, Any]) -> bytes:
        operation = request["op"]
        if operation == "load":
            reply = self.load(request["alternatives"], request["names"])
        elif operation == "call":
            reply = self.call(request["name"], request["args"], request["kwargs"])
        elif operation == "get":
            reply = self.get(request["name"])
        else:
            reply = self.run_tests(request["sources"])
        data = dumps(reply)
        if len(data) > self.answer_limit:
            data = dumps({"refused": f"an answer of {len(data)} bytes; the limit is {self.answer_limit}"})
        return data


def prepare_globals() -> None:
    """Give programs what an ordinary interpreter has; the zygote runs without ``site``."""
    import _sitebuiltins

    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    # Loaded once in the zygote, these cost a program no start-up time. Every page makes each fork more
    # expensive, so only what the benchmarks' programs often import is loaded.
    for module in _PRELOADED:
        __import__(module)


_PRELOADED = """
    array bisect cmath collections.abc copy functools heapq itertools math operator random re string threading typing
""".split()  # noqa: SIM905  # a list of quoted names is harder to read


def serve(channel: socket.socket, answer_limit: int) -> None:
    """Answer requests until the channel closes. The first frame says that confinement worked: no program ran before."""
    send_frame(channel, dumps({"ready": True}))
    program = _Program(answer_limit)
    while (data := recv_frame(channel, _REQUEST_LIMIT)) is not None:
        send_frame(channel, program.answer(loads(data)))
