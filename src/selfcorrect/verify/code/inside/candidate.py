"""The untrusted process: loads one program, then answers calls with plain data until the trusted side hangs up.

The program shares this process, so it can change or forge anything here. That only lets it choose its own answers, as
any program does: expected values, assertions and the verdict are never in this process. The one exception is
``run_tests``, the fallback for tests that need the program's own classes; its verdicts are marked as forgeable.
"""

from __future__ import annotations

import builtins
import enum
import importlib
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from .codec import (
    BASES,
    CHANGEABLE,
    MAX_ITERATOR,
    CodecError,
    Encoder,
    base_of,
    compares_like,
    decode,
    dumps,
    encode,
    loads,
    member,
    member_key,
)
from .operations import HARMLESS, OPERATIONS, OPERATORS, resumed, stand_in
from .remote import VALUED
from .wire import recv_frame, send_frame

MODULE = "program"
_FRAMES_PER_CALL = 40
_DEEPEST_VALUE = 40
_REQUEST_LIMIT = 1 << 30  # requests come from the trusted side
_PLAIN_EXCEPTIONS = {
    name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)
}


class _Program:
    def __init__(self, channel: socket.socket, answer_limit: int) -> None:
        self.channel = channel
        self.answer_limit = answer_limit
        self.module = types.ModuleType(MODULE)
        # Dataclasses and pickle look a class's module up by name.
        sys.modules[MODULE] = self.module
        self.objects: list[Any] = []
        """What the tests hold, by its number."""
        self.numbers: dict[int, int] = {}
        self.callbacks: dict[int, Any] = {}
        """Stand-ins for functions of the tests, by their number there; and the numbers by the id of the stand-in."""
        self.callback_numbers: dict[int, int] = {}
        self.classes: list[str] = []
        """Classes of the prompt, whose objects cross by value."""
        self.lock = threading.RLock()
        self.loop: Any = None

    def load(self, alternatives: list[list[str]], names: list[str], classes: list[str]) -> dict[str, Any]:
        """Run the first alternative that compiles; without one, report what is wrong with the first."""
        self.classes = classes
        first_error: Exception | None = None
        for index, sources in enumerate(alternatives):  # noqa: B007  # read after the loop
            try:
                codes = [compile(source, "<program>", "exec", dont_inherit=True) for source in sources]
                break
            except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
                first_error = first_error or error
        else:
            assert first_error is not None, "no alternative to compile"
            return {**self.describe(first_error), "stage": "compile"}
        try:
            for code in codes:
                exec(code, self.module.__dict__)
        except BaseException as error:  # noqa: BLE001  # the program may raise anything, SystemExit included
            return {**self.describe(error), "stage": "load", "alternative": index}
        return {"kinds": {name: self._kind(name) for name in names}, "alternative": index}

    def _kind(self, name: str) -> Any:
        if name not in self.module.__dict__:
            return "missing"
        value = self.module.__dict__[name]
        if isinstance(value, types.ModuleType):
            return "module"
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == MODULE:
            return _ancestry(value)
        if isinstance(value, type):
            return "class"
        return "function" if callable(value) else "data"

    def describe(self, error: BaseException) -> dict[str, Any]:
        """What the tests learn about an exception."""
        chain, base = _ancestry(type(error))
        try:
            text = str(error)[:300]
        except Exception:  # noqa: BLE001  # the program's own __str__ runs here and may raise anything
            text = ""
        found: dict[str, Any] = {"raise": [type(error).__name__[:100], base, text], "chain": chain}
        if type(number := getattr(error, "_selfcorrect_raised", None)) is int:
            found["raised"] = number
        try:
            found["arguments"] = encode(list(error.args), self.refer)
            if chain:
                found["object"] = self._number(error)
            if chain and chain[0] in self.classes:
                found["state"] = encode(dict(error.__dict__), self.refer)
        except Exception:  # noqa: BLE001  # they hold what cannot cross; the text is enough
            found["arguments"] = [text]
        return found

    def apply(self, what: str, target: Any, args: Any, kwargs: Any, changes: bool) -> dict[str, Any]:
        """Carry out one operation on a name or an object. Return the result, and with ``changes`` also the arguments
        that it changed."""
        given: list[tuple[Any, Any, Any]] = []
        try:
            by_place, by_name = decode(args, self.resolve), decode(kwargs, self.resolve)
            if changes:
                given = [(k, v, self._state(v)) for k, v in (*enumerate(by_place), *by_name.items())]
            found = self._sent(OPERATIONS[what](self, self.resolve_target(target), *by_place, **by_name), what)
        except BaseException as error:  # noqa: BLE001  # as above
            found = self.describe(error)
        now = [(key, before, self._state(value)) for key, value, before in given if before is not None]
        if changed := [[key, after] for key, before, after in now if after is not None and after != before]:
            found["changed"] = changed
        return found

    def _sent(self, answer: Any, what: str) -> dict[str, Any]:
        try:
            found = {"value": encode(answer, self.refer)}
        except CodecError as error:
            return {"refused": str(error)[:300], "truth": bool(answer)}
        if type(found["value"]) is dict and not found["value"].keys().isdisjoint(("object", "over")):
            # An assertion of an object is most often one of its truth value.
            found["truth"] = None if callable(answer) or what == "truth" else bool(answer)
        return found

    def _state(self, value: Any) -> Any:
        """An argument that may be changed in place, encoded; None for others."""

        def refer(encoder: Encoder, part: Any, depth: int) -> Any:
            if hasattr(type(part), "__next__"):
                raise CodecError("to look at its items would take them")
            return self.refer(encoder, part, depth)

        try:
            return encode(value, refer) if type(value) in CHANGEABLE else None
        except Exception:  # noqa: BLE001  # it holds what cannot cross, so the tests keep theirs
            return None

    def resolve_target(self, target: Any) -> Any:
        return self.module.__dict__[target["function"]] if "function" in target else self.objects[target["object"]]

    def _number(self, value: Any) -> int:
        if id(value) not in self.numbers:
            self.objects.append(value)  # kept, so that its id stays its own
            self.numbers[id(value)] = len(self.objects) - 1
        return self.numbers[id(value)]

    def refer(self, encoder: Encoder, value: Any, depth: int) -> Any:  # noqa: PLR0911  # one return per kind
        """Encode parts of the program's answer that are not plain data, see ``judge.Channel``."""
        kind = type(value)
        if id(value) in self.callback_numbers:
            return {"callback": self.callback_numbers[id(value)]}
        if (
            hasattr(kind, "__next__")
            and kind.__module__ in ("builtins", "itertools")
            and kind is not types.GeneratorType
        ):
            taken = list(islice(value, MAX_ITERATOR + 1))
            if len(taken) <= MAX_ITERATOR:
                return {"iterator": encoder.items(taken, depth + 1)}
            return self.refer(encoder, resumed(taken, value), depth)
        base = base_of(kind)
        if kind.__name__ in self.classes and kind is self.module.__dict__.get(kind.__name__):
            if isinstance(value, enum.Enum):
                return {"member": [kind.__name__, member_key(encoder, value, depth)]}
            if base in VALUED and compares_like(kind, base):
                return {"derived": [kind.__name__, encoder.encode(BASES[base](value), depth)]}
            # Deeper in a linked list, the tests take the next nodes when they get there.
            if base is None and depth < _DEEPEST_VALUE and type(getattr(value, "__dict__", None)) is dict:
                return {"instance": [kind.__name__, encoder.encode(value.__dict__, depth)]}
        form = {types.GeneratorType: "generator", types.CoroutineType: "coroutine"}.get(kind, "object")
        if base is None or not compares_like(kind, base):
            return {"object": [self._number(value), kind.__name__, form, "", None]}
        added = {name for k in kind.__mro__[: kind.__mro__.index(base)] for name in k.__dict__} - HARMLESS
        own = {name for name in added if not name.startswith("__") or hasattr(base, name) or name in OPERATORS}
        if not any(not name.startswith("_") for name in added) and not own & OPERATORS:
            return None  # only a name for plain data
        if base in VALUED and not any(hasattr(base, name) or name in OPERATORS for name in own):
            plain = encoder.encode(BASES[base](value), depth)
            return {"valued": [self._number(value), kind.__name__, form, base.__name__, plain]}
        return {"over": [self._number(value), kind.__name__, form, base.__name__, None]}

    def resolve(self, tag: str, body: Any, inner: Callable[[Any], Any]) -> Any:  # noqa: PLR0911  # one return per tag
        """Decode parts of the tests' message that are not plain data. The tests are trusted."""
        match tag:
            case "function" | "object":
                return self.resolve_target({tag: body})
            case "callback":
                number, name, parameters, asynchronous = body
                if number not in self.callbacks:
                    made = stand_in(
                        lambda args, kwargs: self.call_back(number, args, kwargs), name, parameters, asynchronous
                    )
                    self.callbacks[number] = made
                    self.callback_numbers[id(made)] = number
                return self.callbacks[number]
            case "stream":
                return self._stream(body)
            case "exception":
                name, base, text, number = body
                kind = getattr(builtins, base)
                made = (kind if name == base else type(name, (kind,), {"__module__": "tests"}))(text)
                made._selfcorrect_raised = number
                return made
            case "global":
                found: Any = importlib.import_module(body[0])
                for part in filter(None, body[1].split(".")):
                    found = getattr(found, part)
                return found
            case "pickle":
                import io
                import pickle

                class Unpickler(pickle.Unpickler):
                    persistent_load = staticmethod(self.resolve_target)

                return Unpickler(io.BytesIO(bytes.fromhex(body))).load()
        kind, state = self.module.__dict__[body[0]], inner(body[1])
        if tag == "member":
            return member(kind, state)
        if tag == "derived":
            plain: Any = base_of(kind)
            return plain.__new__(kind, state)
        made = object.__new__(kind)
        made.__dict__.update(state)
        return made

    def _stream(self, number: int) -> Iterator[Any]:
        while (item := self.call_back(number, (), {}))[0]:
            yield item[1]

    def call_back(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Ask the judge to call a function of the tests. Meanwhile the tests may call this program."""
        message = {"callback": number, "args": encode(args, self.refer), "kwargs": encode(kwargs, self.refer)}
        limit = sys.getrecursionlimit()
        with self.lock:
            send_frame(self.channel, dumps(message))
            sys.setrecursionlimit(limit + _FRAMES_PER_CALL)
            try:
                while (data := recv_frame(self.channel, _REQUEST_LIMIT)) is not None:
                    reply = loads(data)
                    if "op" in reply:
                        send_frame(self.channel, self.answer(reply))
                    elif "value" in reply:
                        return decode(reply["value"], self.resolve)
                    else:
                        raise decode(reply, self.resolve)
            finally:
                sys.setrecursionlimit(limit)
        raise SystemExit

    def run_tests(self, sources: list[str]) -> dict[str, Any]:
        namespace = dict(self.module.__dict__)
        try:
            for source in sources:
                exec(compile(source, "<tests>", "exec", dont_inherit=True), namespace)
        except BaseException as error:  # noqa: BLE001  # as above
            return self.describe(error)
        return {"passed": True}

    def answer(self, request: dict[str, Any]) -> bytes:
        operation = request["op"]
        if operation == "load":
            reply = self.load(request["alternatives"], request["names"], request["classes"])
        elif operation == "run_tests":
            reply = self.run_tests(request["sources"])
        else:
            reply = self.apply(operation, **{k: request[k] for k in ("target", "args", "kwargs", "changes")})
        data = dumps(reply)
        if len(data) > self.answer_limit:
            data = dumps({"refused": f"an answer of {len(data)} bytes; the limit is {self.answer_limit}"})
        return data


def _ancestry(kind: type) -> tuple[list[str], str]:
    """Names of an exception's own classes, and of the builtin class that they derive from."""
    own = [k.__name__[:100] for k in kind.__mro__ if k.__module__ != "builtins" and issubclass(k, BaseException)]
    base = [k.__name__ for k in kind.__mro__ if k.__module__ == "builtins" and k.__name__ in _PLAIN_EXCEPTIONS]
    return own[:20], base[0] if base else "Exception"


def prepare_globals() -> None:
    """Give programs the names that an ordinary interpreter has, because the zygote runs without ``site``."""
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
    """Answer requests until the channel closes. The first frame reports that confinement worked. It is sent before any
    program runs."""
    send_frame(channel, dumps({"ready": True}))
    program = _Program(channel, answer_limit)
    while (data := recv_frame(channel, _REQUEST_LIMIT)) is not None:
        send_frame(channel, program.answer(loads(data)))
