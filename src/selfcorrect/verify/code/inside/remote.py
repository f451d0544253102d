"""Objects of the program, as the tests see them in the trusted process.

Whatever a test does with such an object becomes a request to the program. The reply is plain data or another object,
like the answer of a function.

An answer must not judge itself. So an object never equals plain data, whatever its class says, and an operator that
received plain data from the tests must not return plain data: with ``abs(f(2) - 41) < 1e-6`` the program would
subtract. It may return an object, which then has met the tests' data (``Link.met``): nothing is asked of it that its
value would answer, or the program would subtract and be asked for the absolute value next. Where two objects of the
program are compared, or the tests are about one of its classes, only the program can tell. The channel notes that it did
(``Channel.own_word``): such a pass could be forged.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

from .codec import BASES

Channel = Any
"""The channel imports this module."""
LINK = "_selfcorrect_link"
MAKER = "_selfcorrect_maker"
"""Attribute of a class of exceptions: the link to the program's class that builds its objects."""
BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split()  # noqa: SIM905
"""Names, without underscores, of operators that have a reflected and an in-place form."""
UNARY = "neg pos abs invert int float complex index trunc floor ceil".split()  # noqa: SIM905

GROWS = frozenset(form + name for name in ("add", "mul", "matmul") for form in ("", "r", "i"))
"""Operators after which an object's items and text are not what the tests compare with, as they are after ``sub``."""
_VALUE = frozenset("int float complex index trunc floor ceil round truth hash".split())  # noqa: SIM905
_ITEMS = frozenset("len iter reversed contains str repr format".split())  # noqa: SIM905
_STILL = frozenset("neg pos abs invert".split())  # noqa: SIM905
_NUMBERS = frozenset(
    name for kind in (complex, Fraction, Decimal, timedelta) for name in dir(kind) if not name.startswith("_")
)

OTHERS = "round dir setattr delattr call getitem setitem delitem len reversed".split()  # noqa: SIM905


class ProgramError(Exception):
    """The program raised an exception of its own class, or gave an answer that the tests may not use in this way."""


@dataclass(frozen=True, slots=True)
class Link:
    """The program's object behind an object of the tests."""

    channel: Channel
    target: dict[str, Any]
    """The encoded node by which the program knows the object."""
    name: str
    """Name of its class."""
    truth: bool | None
    """Its truth value, if the program sent it."""
    at: int
    """Number of calls so far when the truth value was sent. After the next call it may have changed."""
    met: str = ""
    """The operator that returned this object when plain data of the tests met one of the program's; empty for others."""


def link_of(value: Any) -> Link | None:
    """The link behind a value; None if the value is not an object of the program."""
    if type(value).__module__ != "program":
        return None
    try:
        found = object.__getattribute__(value, LINK)
    except AttributeError:
        return None
    return found if isinstance(found, Link) else None


def ask(value: Any, what: str, *args: Any, **kwargs: Any) -> Any:
    """The program's answer to one operation on one of its objects."""
    link = link_of(value)
    assert link is not None
    if not link.met or may_compare(value):
        return link.channel.apply(what, link.target, args, kwargs)
    collapsed = link.met not in GROWS and (what in _ITEMS or (what == "getattr" and args[0] in _NUMBERS))
    if what in _VALUE or collapsed:
        raise _judges(link, what)
    answer = link.channel.apply(what, link.target, args, kwargs)
    return _meeting(link, what, answer) if what in _STILL else answer


def _judges(link: Link, what: str) -> ProgramError:
    """The fault, which tests that catch it do not pass either: the program has seen their data by then."""
    error = ProgramError(f"{link.name} is not plain data, and only the program could say what {what} gives")
    link.channel.failed = link.channel.failed or str(error)
    return error


def _meeting(link: Link, what: str, answer: Any) -> Any:
    """What an operator on an object and data of the tests gives: an object, which has met them."""
    if not isinstance(answer, Remote) or isinstance(answer, Substitute):
        raise _judges(link, what)
    found = link_of(answer)
    assert found is not None
    # Once it has met them after another operator than these, it stays so.
    kept = next((met for met in (link.met, found.met) if met and met not in GROWS), "")
    met = kept or (link.met if what in _STILL else what)
    link.channel.met[str(found.target)] = met
    renew(answer, replace(found, met=met))
    return answer


class Remote:
    """An object of the program. All public names belong to the program's object, so this class has none."""

    __slots__ = (LINK,)
    __module__ = "program"

    def __getattr__(self, name: str) -> Any:
        found: Any = ask(self, "getattr", name)
        if name not in PREDICATES | _ECHOES.keys() or not isinstance(found, Remote):
            return found
        call: Any = found

        def method(*args: Any, **kwargs: Any) -> Any:
            if name in PREDICATES and (args or kwargs or name.startswith("is")):
                return _about_data(self, name, lambda: call(*args, **kwargs), *args, **kwargs)
            given = [*args, *kwargs.values()]
            if name in _ECHOES and len(given) >= _ECHOES[name] and not all(isinstance(part, Remote) for part in given):
                link = link_of(self)
                assert link is not None
                link.channel.own_word = f"the program judged data of the tests by its own method {name} ({link.name})"
            return call(*args, **kwargs)

        return method

    def __bool__(self) -> bool:
        link = link_of(self)
        assert link is not None
        known = not link.met and link.truth is not None and link.at == link.channel.calls
        return bool(link.truth) if known else ask(self, "truth") is True

    def __iter__(self) -> Iterator[Any]:
        found = ask(self, "iter")
        return _steps(self) if _same(found, self) else iter(found)

    def __contains__(self, item: Any) -> bool:
        if may_compare(self):
            return _own_word(self, "contains", item)
        # A class may claim to hold everything. It has to produce it.
        return any(item is held or item == held for held in self)

    def __next__(self) -> Any:
        more, value = ask(self, "next")
        if more is not True:
            raise StopIteration
        return value

    def __await__(self) -> Generator[Any, Any, Any]:
        yield from ()
        return ask(self, "await")

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        more, value = ask(self, "anext")
        if more is not True:
            raise StopAsyncIteration
        return value

    def __instancecheck__(self, instance: Any) -> bool:
        return link_of(instance) is not None and _own_word(self, "instancecheck", instance)

    def __subclasscheck__(self, subclass: Any) -> bool:
        return link_of(subclass) is not None and _own_word(self, "subclasscheck", subclass)

    def __eq__(self, other: Any) -> Any:
        return _compared(self, "eq", other)

    def __ne__(self, other: Any) -> Any:
        return _compared(self, "ne", other)

    def __hash__(self) -> int:
        return hash(ask(self, "hash"))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ProgramError("an object of the program cannot be copied by the tests")


def _same(value: Any, other: Any) -> bool:
    """Whether two stand-ins are for one object of the program."""
    links = link_of(value), link_of(other)
    return links[0] is not None and links[1] is not None and links[0].target == links[1].target


def _steps(iterator: Remote) -> Iterator[Any]:
    while True:
        more, value = ask(iterator, "next")
        if more is not True:
            return
        yield value


_OWN = frozenset(
    """append add clear copy difference_update discard extend fromkeys get insert intersection_update items keys pop
    popitem remove reverse setdefault sort symmetric_difference_update update values
    decode encode find format join partition replace split translate union""".split()  # noqa: SIM905
)
"""Methods of plain data that classes of programs also have as their own: they change the object, or give its data."""
PREDICATES = (
    {
        name
        for kind in (str, bytes, list, tuple, dict, set, frozenset, int, float, complex)
        for name in dir(kind)
        if not name.startswith("_")
    }
    | {name for name in dir(Decimal) if name.startswith("compare")}
    | {"is_nan", "is_zero", "is_signed"}
) - _OWN
"""Methods of plain data that test the data or take some of it. An object that has them would judge itself."""
_ECHOES = {"find": 1, "partition": 1, "replace": 1, "union": 1, "get": 2, "pop": 2, "setdefault": 2}
"""Those in ``_OWN`` that may give back or judge what they were given, with as many arguments."""


def may_compare(value: Any) -> bool:
    """Whether the tests are about the class of an object, so that it may judge data of theirs (``TestPlan.classes``)."""
    link = link_of(value)
    return link is not None and link.name in link.channel.own_classes


def _own_word(value: Any, what: str, *others: Any) -> bool:
    """The program's answer to a question about its own objects. It is noted, because it could make a test pass."""
    link = link_of(value)
    assert link is not None
    answer = ask(value, what, *others)
    link.channel.own_word = f"the program compared its own objects ({link.name})"
    return answer is True


def _about_data(value: Any, what: str, compute: Callable[[], Any], *others: Any, **named: Any) -> Any:
    """The result of an operator or method, unless an object would judge data of the tests."""
    objects = bool(others) and not named and all(isinstance(other, Remote) for other in others)
    if isinstance(value, Substitute) and not objects:
        plain = [copy.copy(_plain(other)) if isinstance(other, Substitute) else other for other in (value, *others)]
        if what in PREDICATES:
            return getattr(plain[0], what)(*plain[1:], **named)
        return _function_of(what)(*plain)
    links = [link for part in (value, *others) if (link := link_of(part))]
    link = next((one for one in links if one.met), links[0])
    if objects and not link.met:
        return compute()
    if may_compare(value):
        link.channel.own_word = f"the program judged its own objects ({link.name})"
        return compute()
    if what in PREDICATES:
        raise _judges(link, what)
    return _meeting(link, what, compute())


def _function_of(what: str) -> Callable[..., Any]:
    """The operator of a name in ``BINARY``, of its reflected form ``rsub`` or its in-place form."""
    if what in BINARY:
        found: Callable[..., Any] = getattr(operator, {"and": "and_", "or": "or_"}.get(what, what))
        return found
    forward = {"divmod": divmod, "rdivmod": divmod}.get(what) or _function_of(what[1:])
    return (lambda a, b: forward(b, a)) if what.startswith("r") else forward


def _compared(value: Any, what: str, other: Any) -> Any:
    link = link_of(value)
    assert link is not None
    if isinstance(value, Substitute):
        return getattr(operator, what)(_plain(value), _plain(other) if isinstance(other, Substitute) else other)
    if other is None and what in ("eq", "ne"):
        return what == "ne"
    objects = isinstance(other, Remote) and not isinstance(other, Substitute)
    if not objects and not may_compare(value):
        raise ProgramError(f"{link.name} is not plain data, and only the program could compare it")
    return _own_word(value, what, other)


class Substitute(Remote):
    """An object of a class that derives from plain data and changes more than names. It is compared by its plain
    value."""

    __slots__ = ()


def _plain(value: Substitute) -> Any:
    """Its plain value: one for all comparisons until the next request that could change it."""
    link = link_of(value)
    assert link is not None
    base: type = value.__class__
    known = link.channel.plain.get(str(link.target))
    if known is None or (base not in VALUED and known[0] != link.channel.calls):
        found = ask(value, "plain")
        if type(found) is not base:
            raise ProgramError(f"{link.name} has no plain value")
        known = link.channel.plain[str(link.target)] = link.channel.calls, found
    return known[1]


def _words(what: str) -> Callable[..., str]:
    def method(self: Any, *args: Any) -> str:
        text = ask(self, what, *args)
        if type(text) is not str:
            raise ProgramError(f"{what} gave no text")
        return text

    return method


def _operation(what: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: ask(self, what, *args, **kwargs)


def _order(what: str) -> Callable[..., Any]:
    return lambda self, other: _compared(self, what, other)


def _binary(what: str) -> Callable[..., Any]:
    return lambda self, other, *more: _about_data(self, what, lambda: ask(self, what, other, *more), other)


for _name in BINARY:
    for _form in (_name, f"r{_name}", f"i{_name}"):
        setattr(Remote, f"__{_form}__", _binary(_form))
for _name in ("divmod", "rdivmod"):
    setattr(Remote, f"__{_name}__", _binary(_name))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _order(_name))
for _name in (*UNARY, *OTHERS):
    setattr(Remote, f"__{_name}__", _operation(_name))
_TEXTS = {f"__{name}__": _words(name) for name in ("str", "repr", "format")}
for _name, _method in _TEXTS.items():
    setattr(Remote, _name, _method)


def remote(link: Link, over: type | None) -> Remote:
    """An object for the tests.

    Args:
        over: the class of plain data from which its class derives, with changes; None for other classes.
    """
    names = {
        "__slots__": (),
        "__module__": "program",
        "__doc__": property(lambda self: ask(self, "getattr", "__doc__")),
    }
    spoof = {"__class__": property(lambda self: over)} if over else {}
    made: Remote = object.__new__(type(link.name, (Substitute if over else Remote,), names | spoof))
    renew(made, link)
    return made


def renew(made: Remote, link: Link) -> None:
    """Replace the link behind an object."""
    object.__setattr__(made, LINK, link)


def valued(link: Link, base: type, plain: Any) -> Any:
    """Plain data with additional names, for a class that only adds names, such as a named tuple or an ``IntEnum``."""
    names = {
        **_TEXTS,
        "__getattr__": Remote.__getattr__,
        "__module__": "program",
        "__reduce_ex__": Remote.__reduce_ex__,
    }
    made: Any = base.__new__(type(link.name, (base,), names), plain)
    made.__dict__[LINK] = link
    return made


VALUED = (int, float, str, bytes, tuple, frozenset)
"""Immutable base classes, so that a copy in the tests stays correct."""
assert set(VALUED) < set(BASES)


def exception(link: Link | None, kind: type, text: str, args: tuple[Any, ...]) -> Exception:
    """An exception of the program's own class. The tests know its arguments and the names of its classes."""
    made: Exception = kind.__new__(kind, *args)
    made.args = args
    made.__dict__["_selfcorrect_text"] = text
    if link is not None:
        made.__dict__[LINK] = link
    return made


class _ExceptionClass(type):
    """Its objects are built by the program, if the tests know the class by its name in the program."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        link = cls.__dict__.get(MAKER)
        if link is None:
            return super().__call__(*args, **kwargs)
        try:
            link.channel.apply("throw", link.target, args, kwargs)
        except cls as made:  # type: ignore[misc]  # a class of exceptions
            return made.with_traceback(None)
        raise ProgramError(f"{link.name} built no exception")


def _exception_equal(error: Any, other: Any) -> bool:
    if other is not None and not isinstance(other, BaseException):
        raise ProgramError(f"{type(error).__name__} is not plain data, and only the program could compare it")
    return error is other


def exception_class(name: str, base: type) -> type:
    """A class for ``except`` clauses that stands for one of the program's classes."""
    names = {
        "__module__": "program",
        "__str__": _exception_text,
        "__getattr__": _exception_attribute,
        "__eq__": _exception_equal,
        "__hash__": BaseException.__hash__,
    }
    return _ExceptionClass(name, (base,), names)


def _exception_text(error: Any) -> str:
    return str(error.__dict__.get("_selfcorrect_text", error.args[0] if len(error.args) == 1 else error.args or ""))


def _exception_attribute(error: Any, name: str) -> Any:
    if link_of(error) is None:
        raise AttributeError(name)
    return ask(error, "getattr", name)


def generator(link: Link) -> Generator[Any, Any, Any]:
    """A generator of the program. Each step is requested when the tests take it."""
    how: tuple[str, Any] = "send", None
    while True:
        more, value = link.channel.apply("resume", link.target, how, {})
        if more is not True:
            return value
        try:
            how = "send", (yield value)
        except GeneratorExit:
            if not link.channel.busy:  # the collector may end it in the middle of another request
                link.channel.apply("resume", link.target, ("close", None), {})
            raise
        except Exception as error:  # noqa: BLE001  # whatever the tests throw into it
            how = "throw", error


def coroutine(link: Link) -> Coroutine[Any, Any, Any]:
    """A coroutine of the program. It runs to its end when the tests await it."""

    async def wait() -> Any:
        return link.channel.apply("await", link.target, (), {})

    return wait()
