"""The trusted end of the channel to a program: calls it, and calls the tests' functions for it.

Names that the program sends are looked up only among its own names and the prompt's classes, and nothing is unpickled.
The program gets only arguments: plain data, names of the standard library, and numbers that stand for the tests'
functions.
"""

from __future__ import annotations

import builtins
import enum
import re
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from .codec import BASES, CHANGEABLE, CodecError, Encoder, TooLarge, decode, dumps, encode, loads, member, member_key
from .remote import (
    MAKER,
    VALUED,
    Link,
    ProgramError,
    Remote,
    coroutine,
    exception,
    exception_class,
    generator,
    link_of,
    remote,
    renew,
    valued,
)
from .wire import FrameTooLarge, recv_frame, send_frame

# Raised inside `next`, `map` or a generator these end a loop quietly: `all(map(f, xs))` would be true.
# The others must not be caught by a test's `except Exception` when the program meant to leave.
_CONTROL = {"StopIteration", "StopAsyncIteration", "GeneratorExit", "KeyboardInterrupt", "SystemExit"}


class ProgramGone(BaseException):
    """No more answers will come, or none can be trusted. Not an ``Exception``: tests must not catch it."""


class TestsUnusable(BaseException):
    """The tests need something that this grader cannot do. The failure is the grader's, not the program's."""


_MAX_NESTED = 200
"""Deepest nesting of calls of the tests' functions."""
_FRAMES_PER_CALL = 40


class Channel:
    """The calls to one program. ``broken`` stays set: a test that swallows the error cannot pass."""

    def __init__(self, sock: socket.socket, answer_limit: int) -> None:
        self.sock = sock
        self.answer_limit = answer_limit
        self.broken = ""
        self.failed = ""
        """An assertion that failed inside a function of the tests while the program was calling it."""
        self.own_word = ""
        """Why the program could have forged a pass."""
        self.own_classes: set[str] = set()
        """Names of classes of the program that the tests are about: see ``TestPlan.classes``."""
        self.calls = 0
        self.busy = False
        """A request has been sent and its answer not read."""
        self.classes: dict[str, type] = {}
        """Classes that the problem's prompt defines: their objects cross by value."""
        self.identity = False
        """Whether the tests ask which objects are the same one: see ``TestPlan.identity``."""
        self.writes = False
        """Whether the tests look at arguments after a call: see ``TestPlan.writes``."""
        self.met: dict[str, str] = {}
        """``Link.met`` of the objects that have met data of the tests, by their target."""
        self.plain: dict[str, tuple[int, Any]] = {}
        """Plain values of objects of subclasses, by their target, with the number of calls at that time."""
        self._data: dict[str, tuple[int, Any, Any]] = {}
        """Data of the program, by name: the number of calls when it was read, as sent, and as the tests see it."""
        self._objects: dict[tuple[str, Any], Any] = {}
        """Stand-ins that are kept: generators, and every object if the tests ask for identity."""
        self._callbacks: list[Callable[..., Any]] = []
        self._raised: list[BaseException] = []
        self._exceptions: dict[tuple[str, type], type] = {}
        self._nested = 0
        self._coroutines: list[tuple[Any, dict[str, Any]]] = []

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.broken:
            raise ProgramGone(self.broken)
        reply = self._exchange(message)
        while "callback" in reply:
            reply = self._exchange(self._called(reply))
        return reply

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        self.busy = True
        try:
            send_frame(self.sock, dumps(message))
            return self.receive()
        except OSError:
            raise self.lost("the program ended before it answered") from None
        finally:
            self.busy = False

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

    def apply(self, what: str, target: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Ask for one operation on a name or an object of the program."""
        self.calls += what != "plain"  # which changes nothing
        try:
            # What the program has sent may be sent back within something larger, which must not make an error of it.
            inputs = {k: encode(v, self._refer, scale=4) for k, v in (("args", args), ("kwargs", kwargs))}
        except CodecError as error:
            name = target.get("function", "an object of the program")
            raise TestsUnusable(
                f"an argument of {name} cannot cross: {error}. Rewrite that test with plain data, functions or objects of "
                "the program's own classes"
            ) from None
        reply = self.request({"op": what, "target": target, "changes": self.writes and what == "call", **inputs})
        if self.writes and what == "call":
            self._write_back({**dict(enumerate(args)), **kwargs}, reply.get("changed", []))
        return self.result(reply)

    def _write_back(self, given: dict[Any, Any], changed: Any) -> None:
        """Change the tests' arguments as the program changed its copies of them."""
        if type(changed) is not list or not all(type(part) is list and len(part) == 2 for part in changed):
            raise self.lost("the program's channel carried a malformed answer")
        for key, node in changed:
            held: Any = given.get(key) if type(key) in (int, str) else None
            try:
                new = decode(node, self._resolve)
            except CodecError as error:
                raise ProgramError(f"changed argument refused: {error}") from None
            if type(held) not in CHANGEABLE or type(new) is not type(held):
                raise self.lost("the program's channel carried a malformed answer")
            held.clear()
            (held.extend if hasattr(held, "extend") else held.update)(new)

    def result(self, reply: dict[str, Any]) -> Any:
        if "raise" in reply:
            raise self._exception(reply)
        truth = reply.get("truth") if type(reply.get("truth")) is bool else None
        if "refused" in reply:
            why = f"answer refused: {str(reply['refused'])[:300]}"
            if type(truth) is bool:
                return Opaque(why, truth)
            raise ProgramError(why)
        if "value" not in reply:
            raise self.lost("the program's channel carried a malformed answer")
        try:
            answer = decode(reply["value"], self._resolve)
        except CodecError as error:
            raise ProgramError(f"answer refused: {error}") from None
        if isinstance(answer, Remote) and (link := link_of(answer)):
            renew(answer, replace(link, truth=truth, at=self.calls))
        return answer

    def _exception(self, reply: dict[str, Any]) -> BaseException:  # noqa: PLR0911  # one return per kind
        body = reply["raise"]
        if not (type(body) is list and len(body) == 3 and all(type(part) is str for part in body)):
            return self.lost("the program's channel carried a malformed exception")
        name, base, text = body
        if base in {"SystemExit", "KeyboardInterrupt", "GeneratorExit"}:
            return self.lost(f"the program raised {name[:100]}")
        kind = getattr(builtins, base, None)
        if base in _CONTROL or not (isinstance(kind, type) and issubclass(kind, Exception)):
            return ProgramError(f"{name}: {text}")
        number, chain = reply.get("raised"), reply.get("chain")
        if type(number) is int and 0 <= number < len(self._raised):
            original = self._raised[number]
            if isinstance(original, Exception) and not {k.__name__ for k in type(original).__mro__} & _CONTROL:
                return original
        try:
            args = decode(reply["arguments"], self._resolve)
            if not chain:
                return kind(*args)
            held = type(reply.get("object")) is int
            link = Link(self, {"object": reply["object"]}, _identifier(name), None, 0) if held else None
            made = exception(link, self.exception_class(chain, kind), text, tuple(args))
            made.__dict__.update(decode(reply.get("state", {"dict": []}), self._resolve))
            return made
        except (CodecError, KeyError, TypeError, ValueError):
            return ProgramError(f"{base}: {text}")

    def exception_class(self, chain: Any, kind: type) -> type:
        """The class for an exception of the program: one class for each name in ``chain``, built from the last name,
        which derives from ``kind``.

        Raises:
            CodecError: a name is not valid.
        """
        if type(chain) is not list or len(chain) > 20 or not all(type(name) is str for name in chain):
            raise CodecError("names of classes expected")
        for name in reversed(chain):
            known = self.classes.get(name, object)
            fits = issubclass(known, Exception) and not issubclass(known, StopIteration | StopAsyncIteration)
            key = _identifier(name), kind
            if key not in self._exceptions:
                self._exceptions[key] = known if fits else exception_class(*key)
            kind = self._exceptions[key]
        return kind

    def named_exception(self, name: str, chain: Any, kind: type) -> type:
        """An exception class of the program, known to the tests by its name; of the prompt, if that defines it.

        Raises:
            CodecError: a name is not valid.
        """
        made = self.exception_class(chain, kind)
        if self.classes.get(name) is not made:
            type.__setattr__(made, MAKER, Link(self, {"function": name}, _identifier(name), None, 0))
        return made

    def data(self, name: str) -> Any:
        """What the program has under a name that is no function, as it is now."""
        at, node, held = self._data.get(name, (-1, None, None))
        # To look at an iterator again would take its items.
        if at != self.calls and not (type(node) is dict and "iterator" in node):
            self.calls += 1
            nothing = {"args": {"tuple": []}, "kwargs": {"dict": []}, "changes": False}
            reply = self.request({"op": "get", "target": {"function": name}, **nothing})
            # What did not change stays the same object of the tests.
            if at < 0 or reply.get("value") != node:
                held = self.result(reply)
            self._data[name] = self.calls, reply.get("value"), held
        return held

    def named(self, name: str) -> Remote:
        """A function or class of the program, known to the tests by its name."""
        return remote(Link(self, {"function": name}, "function", None, 0), None)

    def _resolve(self, tag: str, body: Any, inner: Callable[[Any], Any]) -> Any:
        """Decode parts of the program's message that are not plain data."""
        if tag == "callback" and type(body) is int and 0 <= body < len(self._callbacks):
            return self._callbacks[body]
        if tag in ("member", "instance", "derived") and type(body) is list and len(body) == 2:
            return self._by_value(tag, self.classes[body[0]], inner(body[1]))
        if tag not in ("object", "over", "valued") or type(body) is not list or len(body) != 5:
            raise CodecError(f"unknown tag {tag[:40]!r}")
        number, name, kind, base, plain = body
        if type(number) is not int or type(name) is not str or type(kind) is not str:
            raise CodecError("malformed object")
        generates = kind == "generator" and tag == "object"
        if (self.identity or generates) and tag != "valued":
            if self._objects and (self.identity or (tag, number) in self._objects):
                # Nothing here sees the tests ask which objects are the same, or ``==`` of two generators.
                self.own_word = f"the program says which of its objects are the same ({_identifier(name)})"
            if (tag, number) in self._objects:
                return self._objects[tag, number]
        target = {"object": number}
        link = Link(self, target, _identifier(name), None, 0, self.met.get(str(target), ""))
        made: Any
        if tag == "valued":
            return valued(link, {b.__name__: b for b in VALUED}[base], inner(plain))
        if tag == "over":
            made = remote(link, {b.__name__: b for b in BASES}[base])
        else:
            made = (
                generator(link)
                if kind == "generator"
                else coroutine(link)
                if kind == "coroutine"
                else remote(link, None)
            )
        if kind == "coroutine":
            self._coroutines.append((made, link.target))
        elif self.identity or generates:
            self._objects[tag, number] = made
        return made

    @staticmethod
    def _by_value(tag: str, kind: type, state: Any) -> Any:
        if tag == "member":
            return member(kind, state) if isinstance(kind, enum.EnumMeta) else None
        base: Any = next((b for b in VALUED if issubclass(kind, b)), None)
        if tag == "derived":
            if base is None:
                raise CodecError("no class of plain data")
            return base.__new__(kind, state)
        if type(state) is not dict or base is not None or issubclass(kind, BaseException | enum.Enum):
            raise CodecError("no state of an object")
        made = object.__new__(kind)
        made.__dict__.update(state)
        return made

    def _refer(self, encoder: Encoder, value: Any, depth: int) -> Any:  # noqa: PLR0911, PLR0912  # one return per kind
        """Encode parts of the tests' message that are not plain data."""
        if link := link_of(value):
            return link.target
        if isinstance(value, Opaque):
            raise ProgramError(value.why)
        if target := next((known for held, known in self._coroutines if held is value), None):
            return target
        kind = type(value)
        if self.classes.get(kind.__name__) is kind:
            if isinstance(value, enum.Enum):
                return {"member": [kind.__name__, member_key(encoder, value, depth)]}
            if base := next((b for b in VALUED if issubclass(kind, b)), None):
                return {"derived": [kind.__name__, encoder.encode(BASES[base](value), depth)]}
            if type(getattr(value, "__dict__", None)) is dict:
                return {"instance": [kind.__name__, encoder.encode(value.__dict__, depth)]}
        if isinstance(value, BaseException):
            return self._exception_node(value)
        if isinstance(value, type):
            for (name, _), made in self._exceptions.items():
                if made is value:
                    return {"function": name}
            if self.classes.get(value.__name__) is value:
                return {"function": value.__name__}
        if isinstance(value, type(sys)):
            return {"global": [value.__name__, ""]}
        if where := _standard(value):
            return {"global": where}
        if hasattr(kind, "__next__") and not hasattr(kind, "__length_hint__") and not hasattr(kind, "read"):
            return {"stream": self._register(_Stream(value))}
        if callable(value) and not isinstance(value, type):
            return {"callback": [self._register(value), *_signature(value)]}
        if kind.__module__.partition(".")[0] in sys.stdlib_module_names and not issubclass(kind, tuple(BASES)):
            try:
                return {"pickle": _pickled(value).hex()}
            except Exception as error:  # noqa: BLE001  # pickling calls the value's own methods
                raise CodecError(f"{kind.__name__} is not plain data ({type(error).__name__})") from None
        return None

    def _register(self, function: Callable[..., Any]) -> int:
        for number, known in enumerate(self._callbacks):
            if known is function or (known == function and type(known) is type(function) is type([].append)):
                return number
        self._callbacks.append(function)
        return len(self._callbacks) - 1

    def _exception_node(self, error: BaseException) -> dict[str, Any]:
        names = [k.__name__ for k in type(error).__mro__]
        base = next(k.__name__ for k in type(error).__mro__ if k.__module__ == "builtins")
        self._raised.append(error)
        return {"exception": [names[0], base, str(error)[:300], len(self._raised) - 1]}

    def _called(self, reply: dict[str, Any]) -> dict[str, Any]:
        """Call a function of the tests for the program, and return the message with the answer."""
        number = reply["callback"]
        if type(number) is not int or not 0 <= number < len(self._callbacks):
            raise self.lost("the program's channel carried a malformed call")
        limit = sys.getrecursionlimit()
        self._nested += 1
        try:
            if self._nested > _MAX_NESTED:
                raise RecursionError("calls between the tests and the program are nested too deeply")
            sys.setrecursionlimit(limit + _FRAMES_PER_CALL)
            args, kwargs = (decode(reply.get(k), self._resolve) for k in ("args", "kwargs"))
            answer = self._callbacks[number](*args, **kwargs)
            if hasattr(answer, "cr_frame"):
                answer = _finished(answer)
            return {"value": encode(answer, self._refer, scale=4)}
        except (AssertionError, ProgramError, TooLarge) as error:
            # The program may swallow it; the tests have failed all the same.
            self.failed = self.failed or f"{type(error).__name__}: {str(error)[:200]}"
            return self._exception_node(error)
        except CodecError as error:
            raise TestsUnusable(f"an answer of a function of the tests cannot cross: {error}") from None
        except Exception as error:  # noqa: BLE001  # the program's to catch, or to let through
            return self._exception_node(error)
        finally:
            self._nested -= 1
            sys.setrecursionlimit(limit)


def _pickled(value: Any) -> bytes:
    """A value of the standard library's classes, in which objects of the program stand by their numbers."""
    import io
    import pickle  # only where it is needed: it costs every job its import

    class Pickler(pickle.Pickler):
        def persistent_id(self, part: Any) -> Any:
            link = link_of(part)
            return link.target if link else None

    written = io.BytesIO()
    Pickler(written).dump(value)
    return written.getvalue()


class _Stream:
    """An iterator of the tests, which the program reads item by item."""

    def __init__(self, items: Iterator[Any]) -> None:
        self.items = items

    def __call__(self) -> list[Any]:
        for item in self.items:
            return [True, item]
        return [False, None]


def _finished(coroutine: Any) -> Any:
    """The result of a coroutine of the tests; in a separate thread, because an event loop may be running in this
    one."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)[:100] or "_"


def _standard(value: Any) -> list[str]:
    """[module, name] of a function or class of the standard library; empty for others."""
    module = getattr(value, "__module__", None) or getattr(getattr(value, "__objclass__", None), "__module__", None)
    name = getattr(value, "__qualname__", None)
    if type(module) is not str or type(name) is not str or module.partition(".")[0] not in sys.stdlib_module_names:
        return []
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return [module, name] if found is value else []


def _signature(function: Callable[..., Any]) -> list[Any]:
    """[name, parameters, asynchronous] of a function of the tests. Each parameter is [name, kind, has a default]; None
    if they are not known."""
    import inspect

    try:
        parameters = inspect.signature(function).parameters.values()
        shown = [[p.name, p.kind.value, p.default is not p.empty] for p in parameters]
    except (TypeError, ValueError):
        shown = None
    return [getattr(function, "__name__", type(function).__name__), shown, inspect.iscoroutinefunction(function)]


class Opaque:
    """An answer that cannot be sent, such as one that is too large. It has only a truth value (``assert f(x)``).

    Any comparison is an error, so an object that claims to equal everything fails every test of its value.
    """

    __slots__ = ("_truth", "why")

    def __init__(self, why: str, truth: bool) -> None:
        self.why = why
        self._truth = truth

    def __bool__(self) -> bool:
        return self._truth

    def _refuse(self, *_: object) -> Any:
        raise ProgramError(self.why)

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __hash__ = __len__ = __iter__ = __str__ = __repr__ = _refuse
