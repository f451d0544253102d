"""Operations on a program's objects that tests can request, and stand-ins for the tests' functions. Runs in the
untrusted process."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

from .codec import BASES, base_of
from .remote import BINARY


def resumed(taken: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    """An iterator that starts again from its first item, after some items were taken."""
    yield from taken
    yield from rest


_ABSENT = object()
"""The default of a parameter that has one: the tests' function fills in its own."""
_STARRED = {2: "*", 4: "**"}
"""By ``inspect.Parameter.kind``: 0 by position, 1 either way, 2 the rest by position, 3 by name, 4 the rest by name."""


def stand_in(call: Callable[[Any, Any], Any], name: str, parameters: Any, asynchronous: bool) -> Any:
    """A function with the name and parameters of one of the tests' functions, because programs inspect both.

    Args:
        call: is called with the arguments by position and by name.
        parameters: [name, kind, has a default] of each; None if they are not known.
    """
    parameters = parameters or [["args", 2, False], ["kwargs", 4, False]]
    kinds = [kind for _, kind, _ in parameters]
    shown = []
    for position, (parameter, kind, optional) in enumerate(parameters):
        if kind == 3 and 2 not in kinds and 3 not in kinds[:position]:
            shown.append("*")
        shown.append(_STARRED.get(kind, "") + parameter + ("=_absent" if optional else ""))
        if kind == 0 and 0 not in kinds[position + 1 :]:
            shown.append("/")

    def send(values: dict[str, Any]) -> Any:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        gap = False  # after a parameter that was left out, the others go by name
        for parameter, kind, _ in parameters:
            value = values[parameter]
            if value is _ABSENT:
                gap = True
            elif kind in _STARRED:
                args.extend(value) if kind == 2 else kwargs.update(value)
            elif kind == 3 or (kind == 1 and gap):
                kwargs[parameter] = value
            else:
                args.append(value)
        return call(tuple(args), kwargs)

    scope: dict[str, Any] = {"_send": send, "_absent": _ABSENT}
    exec(f"{'async ' if asynchronous else ''}def _made({', '.join(shown)}): return _send(locals())", scope)
    made = scope["_made"]
    made.__name__ = made.__qualname__ = name
    made.__module__ = "tests"
    return made


def _step(program: Any, value: Any, how: str, sent: Any) -> tuple[bool, Any]:
    """One step of a generator: whether it yielded, and what."""
    try:
        return True, value.close() if how == "close" else getattr(value, how)(sent)
    except StopIteration as end:
        return False, end.value


def _next(program: Any, value: Any) -> tuple[bool, Any]:
    try:
        return True, next(value)
    except StopIteration:
        return False, None


def _anext(program: Any, value: Any) -> tuple[bool, Any]:
    try:
        return True, _await(program, anext(value))
    except StopAsyncIteration:
        return False, None


def _await(program: Any, value: Any) -> Any:
    import asyncio

    async def wait() -> Any:
        return await value

    program.loop = program.loop or asyncio.new_event_loop()
    return program.loop.run_until_complete(wait())


def _throw(program: Any, kind: Any, *args: Any, **kwargs: Any) -> None:
    """Build an exception. What is raised crosses as an exception, what is returned as an object."""
    raise kind(*args, **kwargs)


def _comparable(a: Any, b: Any) -> bool:
    """Whether two objects may be equal. Objects of unrelated classes are never equal, whatever they claim."""
    ours = [getattr(type(value), "__module__", "") == "program" for value in (a, b)]
    return not all(ours) or issubclass(type(a), type(b)) or issubclass(type(b), type(a))


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda _, f, *args, **kwargs: f(*args, **kwargs),
    "throw": _throw,
    "get": lambda _, value: value,
    "plain": lambda _, value: BASES[base_of(type(value))](value),  # type: ignore[index]  # sent for such objects only
    "resume": _step,
    "next": _next,
    "anext": _anext,
    "await": _await,
    "eq": lambda _, a, b: _comparable(a, b) and bool(a == b),
    "ne": lambda _, a, b: not _comparable(a, b) or bool(a != b),
    "contains": lambda _, value, item: item in value,
    "instancecheck": lambda _, kind, value: isinstance(value, kind),
    "subclasscheck": lambda _, kind, value: issubclass(value, kind),
    "divmod": lambda _, a, b: divmod(a, b),
    "rdivmod": lambda _, a, b: divmod(b, a),
    "pow": lambda _, *args: pow(*args),
}
"""Operations on an object that tests can request. Arguments: the program, the object, and those of the operation."""


def _plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, *args: function(*args)


def _turned(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, a, b: function(b, a)


_SIMPLE: tuple[Callable[..., Any], ...] = (
    getattr, setattr, delattr, len, iter, reversed, hash, str, repr, format, dir, round, int, float, complex, math.trunc, math.floor, math.ceil
)  # fmt: skip
OPERATIONS |= {function.__name__: _plainly(function) for function in _SIMPLE}
for _name in ("lt", "le", "gt", "ge", "getitem", "setitem", "delitem", "truth", "neg", "pos", "abs", "invert", "index"):
    OPERATIONS[_name] = _plainly(getattr(operator, _name))
for _name in BINARY:
    _function = getattr(operator, {"and": "and_", "or": "or_"}.get(_name, _name))
    OPERATIONS.setdefault(_name, _plainly(_function))
    OPERATIONS[f"r{_name}"] = _turned(_function)
    OPERATIONS[f"i{_name}"] = _plainly(getattr(operator, f"i{_name}"))

_ABOUT_ANY = {"str", "repr", "format", "hash", "dir", "getattr", "setattr", "delattr", "eq", "ne", "get", "throw"}
OPERATORS = {
    f"__{name}__" for name in OPERATIONS.keys() - _ABOUT_ANY | {"contains", "missing", "bool", "enter", "exit"}
}
"""Methods that make a class more than plain data with additional names."""
HARMLESS = {"__module__", "__doc__", "__dict__", "__weakref__", "__slots__", "__new__", "__init__", "__match_args__"}
"""Attributes that every class may define without counting as more than plain data with names."""
