"""The literal codec: exact types go and come back; nothing else does."""

import array
import collections
import datetime
import decimal
import enum
import fractions
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcorrect.verify.code.inside.codec import CodecError, decode, dumps, encode, loads

ATOMS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
ATOMS |= st.complex_numbers(allow_nan=False)
HASHABLE = st.recursive(ATOMS, lambda s: st.tuples(s, s) | st.frozensets(s, max_size=4), max_leaves=8)
VALUES = st.recursive(
    HASHABLE | st.sets(HASHABLE, max_size=4),
    lambda s: st.lists(s, max_size=5) | st.dictionaries(HASHABLE, s, max_size=4) | st.tuples(s, s, s),
    max_leaves=20,
)


def across(value):
    return decode(loads(dumps({"v": encode(value)}))["v"])


def same(a, b):
    """Equal with equal types all the way down: 1, 1.0 and True are three values."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    return repr(a) == repr(b) if isinstance(a, float | complex) else a == b


@given(VALUES)
def test_round_trip(value):
    assert same(across(value), value)


@pytest.mark.parametrize(
    "value",
    [
        bytearray(b"ab"), range(1, 9, 2), collections.Counter("aab"), collections.OrderedDict(a=1), ...,
        collections.deque([1, 2], 3), decimal.Decimal("1.10"), fractions.Fraction(1, 3), datetime.date(2020, 1, 2),
        datetime.datetime(2020, 1, 2, 3), datetime.timedelta(1, 2, 3), datetime.time(1), array.array("i", [1, 2]),
        int, str, list, -(2**63), 2**63, -0.0, math.inf, "\ud800", {1: {2: (3,)}}, {"int": "0x1"},
    ],
)  # fmt: skip
def test_other_plain_values(value):
    back = across(value)
    assert type(back) is type(value) and repr(back) == repr(value)


def test_an_int_beyond_the_digit_limit_of_decimal_text():
    assert across(10**5000) == 10**5000


def test_nan_views_and_iterators():
    assert math.isnan(across(math.nan))
    assert across({1: 2}.keys()) == {1} and list(across({1: 2}.values())) == [2] and across({1: 2}.items()) == {(1, 2)}
    assert list(across(x for x in (1, 2))) == [1, 2] and next(across(map(str, [1]))) == "1"


def test_sets_keep_their_order_of_iteration():
    # CPython builds the display from a frozenset and iterates [16, 12, 13, 14, 15]; set([...]) gives [12, ..., 16].
    assert list(across({12, 13, 14, 15, 16})) == list({12, 13, 14, 15, 16})


class EqualToAll(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


class NeverUnequal(str):
    def __ne__(self, other):
        return False

    __hash__ = str.__hash__


class Plain:
    pass


@pytest.mark.parametrize("value", [EqualToAll(1), [EqualToAll(1)], NeverUnequal("a"), Plain(), Plain, len, (lambda: 1)])
def test_what_compares_in_its_own_way_or_is_no_data_is_refused(value):
    with pytest.raises(CodecError):
        encode(value)


def test_harmless_subclasses_cross_as_their_base_value():
    point = collections.namedtuple("point", "x y")(1, 2)
    assert same(across(point), (1, 2))
    assert same(across(enum.IntEnum("Colour", "RED").RED), 1)


def test_endless_deep_and_cyclic_values_are_refused():
    import itertools

    cycle: list = []
    cycle.append(cycle)
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (itertools.count(), cycle, deep, list(range(500_000))):
        with pytest.raises(CodecError):
            encode(value)
    while deep:  # or its deallocation recurses
        deep = deep[0]


@pytest.mark.parametrize(
    "node",
    [
        {"int": "5; import os"}, {"int": 5}, {"int": None}, {"set": [[1]]}, {"dict": [1]}, {"dict": 3}, {"type": "os"},
        {"function": "f"}, {"eval": "1"}, {"__class__": []}, {}, {"a": 1, "b": 2}, {"tuple": "ab"}, {"complex": []},
        {"range": ["a"]}, {"range": [1, 2, 0]}, {"Fraction": [1, 0]}, {"bytes": "zz"}, {"array": ["q", "a"]},
        {"array": []}, {"deque": []}, {"Decimal": "1e999999999"}, {"Decimal": "x"}, {"date": "x"}, {"timedelta": ["x"]},
    ],
)  # fmt: skip
def test_malformed_nodes_are_refused(node):
    with pytest.raises(CodecError):
        decode(node)


HOSTILE = [b"", b"[]", b"1", b"{", b"\xff", b"[" * 1_000_000, b'{"a":' * 500_000, b"9" * 100_000]


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_malformed_messages_are_refused_quickly(data):
    start = time.process_time()
    with pytest.raises(CodecError):
        loads(data)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(("data", "why"), [(b"[" * 200_000, "nested too deeply"), (b"[", "not a message")])
def test_an_unreadable_message_is_named(data, why):
    with pytest.raises(CodecError, match=why):
        loads(data)
