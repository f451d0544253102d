"""The codec of plain data: the only values that trusted tests and untrusted program exchange.

Values become JSON, with one-key objects for what JSON lacks. Decoding builds values of exactly the types listed here
and runs no code of the sender: no pickle, no ``eval``, no lookup of names. The caller limits the bytes before decoding.
"""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import fractions
import json
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

MAX_DEPTH = 200
MAX_ITEMS = 400_000
"""Most nodes of one message. Together with the byte limit this bounds the memory for decoding."""
MAX_ITERATOR = 20_000
"""Most items taken from a generator: enough for a test's answer, and a limit for endless generators."""

_JSON_INT = 2**63
_TYPES: dict[str, type] = {
    t.__name__: t
    for t in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, object, type(None))
}


class CodecError(Exception):
    """The value is not plain data, is too large or too deep, or the message is malformed."""


class TooLarge(CodecError):
    """The value has too many parts or levels."""


Refer = Callable[["Encoder", Any, int], Any]
"""Encodes a value that is not plain data, such as a function, at a depth; None leaves the value to this module."""
Resolve = Callable[[str, Any, Callable[[Any], Any]], Any]
"""Decodes a tag that ``Refer`` made. Arguments: the tag, its body, and a function that decodes the nodes in it."""


class Encoder:
    """Encodes one message and counts its parts."""

    def __init__(self, refer: Refer | None, scale: int) -> None:
        self.left = scale * MAX_ITEMS
        self.depth = scale * MAX_DEPTH
        self.refer = refer

    def encode(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        self.left -= 1
        if self.left < 0:
            raise TooLarge("the value has too many parts")
        if depth > self.depth:
            raise TooLarge("the value is nested too deeply")
        if value is None or kind is bool or kind is float or kind is str:
            return value
        if kind is int:
            return value if -_JSON_INT < value < _JSON_INT else {"int": hex(value)}
        if kind is list:
            return [self.encode(v, depth + 1) for v in value]
        if (encoder := _ENCODERS.get(kind)) is not None:
            return encoder(self, value, depth + 1)
        return self._encode_other(value, kind, depth)

    def items(self, values: Iterable[Any], depth: int) -> list[Any]:
        return [self.encode(v, depth) for v in values]

    def pairs(self, mapping: Any, depth: int) -> list[Any]:
        return [self.encode(part, depth) for pair in mapping.items() for part in pair]

    def _encode_other(self, value: Any, kind: type, depth: int) -> Any:
        if self.refer is not None and (node := self.refer(self, value, depth)) is not None:
            return node
        # A subclass crosses as its base value, which is all that a comparison on the trusted side can see. One that
        # compares in its own way means something else by its value, so it does not cross.
        if base := base_of(kind):
            if not compares_like(kind, base):
                raise CodecError(f"{kind.__name__} compares in its own way: only plain data crosses")
            return self.encode(BASES[base](value), depth)
        if hasattr(kind, "__next__"):
            taken = list(islice(value, MAX_ITERATOR + 1))
            if len(taken) > MAX_ITERATOR:
                raise CodecError(f"an iterator of more than {MAX_ITERATOR} items")
            return {"iterator": self.items(taken, depth + 1)}
        raise CodecError(f"{kind.__name__} is not plain data")


BASES: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: lambda v: bytes(bytes.__iter__(v)),
    list: lambda v: list(list.__iter__(v)),
    tuple: lambda v: tuple(tuple.__iter__(v)),
    collections.OrderedDict: lambda v: collections.OrderedDict(dict.items(v)),
    dict: lambda v: dict(dict.items(v)),
    set: lambda v: set(set.__iter__(v)),
    frozenset: lambda v: frozenset(frozenset.__iter__(v)),
}


CHANGEABLE = (
    list,
    dict,
    set,
    bytearray,
    collections.deque,
    collections.OrderedDict,
    collections.defaultdict,
    collections.Counter,
)
"""Plain data that a function may change in place."""


def base_of(kind: type) -> type | None:
    """The class of plain data that a class derives from. The ``__class__`` that a value claims does not count."""
    return next((base for base in BASES if issubclass(kind, base)), None)


def compares_like(kind: type, base: type) -> bool:
    """Whether a subclass inherits its equality from the base."""
    return kind.__eq__ is base.__eq__ and kind.__ne__ is base.__ne__


def member_key(encoder: Encoder, value: enum.Enum, depth: int) -> Any:
    """What stands for a member of an enum: its name, or the value of a combination of flags."""
    return value.name if value.name in type(value).__members__ else {"tuple": [encoder.encode(value.value, depth)]}


def member(kind: Any, key: Any) -> Any:
    """The member that ``member_key`` stands for."""
    return kind(*key) if type(key) is tuple else kind[key]


def _type_name(encoder: Encoder, value: type, depth: int) -> Any:
    if _TYPES.get(value.__name__) is value:
        return {"type": value.__name__}
    if encoder.refer is not None and (node := encoder.refer(encoder, value, depth)) is not None:
        return node
    raise CodecError(f"the class {value.__name__} is not plain data")


_Encode = Callable[[Encoder, Any, int], Any]
_ENCODERS: dict[type, _Encode] = {
    tuple: lambda e, v, d: {"tuple": e.items(v, d)},
    dict: lambda e, v, d: {"dict": e.pairs(v, d)},
    set: lambda e, v, d: {"set": e.items(v, d)},
    frozenset: lambda e, v, d: {"frozenset": e.items(v, d)},
    complex: lambda e, v, d: {"complex": [v.real, v.imag]},
    bytes: lambda e, v, d: {"bytes": v.hex()},
    bytearray: lambda e, v, d: {"bytearray": v.hex()},
    range: lambda e, v, d: {"range": e.items((v.start, v.stop, v.step), d)},
    type(Ellipsis): lambda e, v, d: {"ellipsis": None},
    type: _type_name,
    collections.OrderedDict: lambda e, v, d: {"OrderedDict": e.pairs(v, d)},
    collections.defaultdict: lambda e, v, d: {"defaultdict": e.pairs(v, d)},
    collections.Counter: lambda e, v, d: {"Counter": e.pairs(v, d)},
    collections.deque: lambda e, v, d: {"deque": [e.encode(v.maxlen, d), *e.items(v, d)]},
    type({}.keys()): lambda e, v, d: {"dict_keys": e.items(v, d)},
    type({}.values()): lambda e, v, d: {"dict_values": e.items(v, d)},
    type({}.items()): lambda e, v, d: {"dict_items": e.pairs(dict(v), d)},
    decimal.Decimal: lambda e, v, d: {"Decimal": str(v)},
    fractions.Fraction: lambda e, v, d: {"Fraction": [e.encode(v.numerator, d), e.encode(v.denominator, d)]},
    datetime.date: lambda e, v, d: {"date": v.isoformat()},
    datetime.time: lambda e, v, d: {"time": v.isoformat()},
    datetime.datetime: lambda e, v, d: {"datetime": v.isoformat()},
    datetime.timedelta: lambda e, v, d: {"timedelta": [v.days, v.seconds, v.microseconds]},
    array.array: lambda e, v, d: {"array": [v.typecode, *e.items(v, d)]},
}


def _pairs(parts: list[Any]) -> list[tuple[Any, Any]]:
    if len(parts) % 2:
        raise CodecError("a mapping with an odd number of parts")
    return list(zip(parts[::2], parts[1::2], strict=True))


def _decimal(text: Any) -> decimal.Decimal:
    value = decimal.Decimal(_text(text))
    # A short text can hold a number whose integer value fills the memory.
    if value.is_finite() and abs(value.adjusted()) > 100_000:
        raise CodecError("a Decimal with a huge exponent")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise CodecError("text expected")
    return value


def _set(parts: list[Any]) -> set[Any]:
    """The set in the sender's order of iteration, if one of the two ways to build it gives that order.

    Programs that return ``tuple(given_set)`` depend on it. A display like ``{12, 13}`` is built from a frozenset.
    """
    plain = set(parts)
    if list(plain) == parts:
        return plain
    copied = set(frozenset(parts))
    return copied if list(copied) == parts else plain


_FROM_PARTS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "dict": lambda p: dict(_pairs(p)),
    "set": _set,
    "frozenset": frozenset,
    "complex": lambda p: complex(float(p[0]), float(p[1])),
    "range": lambda p: range(*p),
    "OrderedDict": lambda p: collections.OrderedDict(_pairs(p)),
    "defaultdict": lambda p: collections.defaultdict(None, _pairs(p)),
    "Counter": lambda p: collections.Counter(dict(_pairs(p))),
    "deque": lambda p: collections.deque(p[1:], p[0]),
    "dict_keys": lambda p: dict.fromkeys(p).keys(),
    "dict_values": lambda p: dict(enumerate(p)).values(),
    "dict_items": lambda p: dict(_pairs(p)).items(),
    "iterator": iter,
    "Fraction": lambda p: fractions.Fraction(p[0], p[1]),
    "timedelta": lambda p: datetime.timedelta(*p),
    "array": lambda p: array.array(p[0], p[1:]),
}
_FROM_TEXT: dict[str, Callable[[Any], Any]] = {
    "int": lambda v: int(_text(v), 16),
    "bytes": lambda v: bytes.fromhex(_text(v)),
    "bytearray": lambda v: bytearray.fromhex(_text(v)),
    "Decimal": _decimal,
    "date": lambda v: datetime.date.fromisoformat(_text(v)),
    "time": lambda v: datetime.time.fromisoformat(_text(v)),
    "datetime": lambda v: datetime.datetime.fromisoformat(_text(v)),
    "type": lambda v: _TYPES[_text(v)],
    "ellipsis": lambda v: ...,
}


def _decode(node: Any, resolve: Resolve | None) -> Any:
    if type(node) is list:
        return [_decode(v, resolve) for v in node]
    if type(node) is not dict:
        return node
    if len(node) != 1:
        raise CodecError("malformed value")
    ((tag, body),) = node.items()
    if tag in _FROM_PARTS:
        if type(body) is not list:
            raise CodecError("a list expected")
        return _FROM_PARTS[tag]([_decode(v, resolve) for v in body])
    if tag in _FROM_TEXT:
        return _FROM_TEXT[tag](body)
    if resolve is not None:
        return resolve(tag, body, lambda inner: _decode(inner, resolve))
    raise CodecError(f"unknown tag {tag[:40]!r}")


def encode(value: Any, refer: Refer | None = None, *, scale: int = 1) -> Any:
    """Turn plain data into JSON nodes.

    Args:
        refer: encodes values that are not plain data; without it they are refused.
        scale: factor on the usual size limit.

    Raises:
        CodecError: the value, or a part of it, is not plain data, or is too large.
    """
    try:
        return Encoder(refer, scale).encode(value)
    except RecursionError:
        raise TooLarge("the value is nested too deeply") from None


def decode(node: Any, resolve: Resolve | None = None) -> Any:
    """Rebuild a value from JSON nodes. ``resolve`` decodes the tags of ``Refer``.

    Raises:
        CodecError: the message is not one that ``encode`` can produce.
    """
    try:
        return _decode(node, resolve)
    except CodecError:
        raise
    except Exception as error:  # noqa: BLE001  # a StopIteration would end a loop of the tests as if it had passed
        raise CodecError(f"malformed value: {type(error).__name__}") from None


def dumps(message: dict[str, Any]) -> bytes:
    """One message as bytes. ASCII, so that lone surrogates can be sent."""
    return json.dumps(message, separators=(",", ":")).encode()


def loads(data: bytes) -> dict[str, Any]:
    """Parse one message.

    Raises:
        CodecError: not a JSON object, or nested too deeply.
    """
    try:
        message = json.loads(data)
    except RecursionError:
        raise CodecError("a message that is nested too deeply") from None
    except ValueError:
        raise CodecError("not a message") from None
    if type(message) is not dict:
        raise CodecError("not a message")
    return message
