"""What tests ask of a program, by their text alone."""

import pytest

from selfcorrect.errors import DataError
from selfcorrect.verify.code import plan_tests


def plan(*tests, entry_point=None, style="mbpp"):
    return plan_tests(style, entry_point, tests)


def test_plain_assert():
    found = plan("assert f(1) == 2")
    assert (found.names, found.modules, found.fallback) == (("f",), (), "")


def test_builtins_in_a_test_are_builtins():
    assert plan("assert set(f([1])) == set([1])", "assert sorted(f(2)) == list((1,))").names == ("f",)


def test_a_function_that_hides_a_builtin_is_found_by_position():
    assert plan("assert sum(10, 15) == 6").names == ("sum",)
    assert plan("assert not all([1])").names == ("all",)


def test_an_entry_point_settles_it():
    assert plan("assert sum(10, 15) == abs(-6)", entry_point="sum").names == ("sum",)
    assert plan("assert g(f(1)) == 2", entry_point="g").names == ("g", "f")


def test_modules_used_without_import_are_modules_of_the_tests():
    found = plan("assert math.isclose(f(1), 2.0)")
    assert (found.names, found.modules) == (("f",), ("math",))
    assert plan("import math", "assert math.isclose(f(1), 2.0)").modules == ()


def test_names_that_the_tests_define_are_not_the_programs():
    found = plan("xs = [1]\ndef close(a, b): return a == b", "assert close(f(xs), [y for y in xs])")
    assert found.names == ("f",)


@pytest.mark.parametrize(
    "tests",
    [
        ["assert longest([Pair(5, 24), Pair(15, 25)], 4) == 3"],
        ["root = Node(1)\nroot.left = Node(2)", "assert height(root) == 2"],
        ["root = Node(1)", "assert height(root) == 2"],
        ["assert Point(1, 2).x == 1"],
        ["assert isinstance(make(1), Point)"],
        ["try:\n    f(1)\nexcept TooLarge:\n    pass"],
    ],
)
def test_tests_that_need_the_programs_classes_fall_back(tests):
    assert plan(*tests).fallback


def test_a_function_of_the_tests_needs_no_common_process():
    assert not plan("assert apply(lambda x: x + 1, 2) == 3").fallback
    assert not plan("def inc(x):\n    return x + 1\nassert apply(inc, 2) == 3").fallback


@pytest.mark.parametrize(
    "tests",
    [
        ["assert Find_Max([[1], [2, 3]]) == [2, 3]"],
        ["assert decode(encode('a')) == 'a'"],
        ["assert f('a').lower() == 'a'"],
        ["result = f(1)\nassert result.real == 1"],
        ["assert list(map(f, [1, 2])) == [1, 2]"],
        ["assert remove_type((4, 'a'), int) == ['a']"],
    ],
)
def test_others_do_not(tests):
    assert plan(*tests).fallback == ""


def test_humaneval_tests_need_the_entry_point_only():
    assert plan("def check(candidate):\n    assert candidate(1) == 1", entry_point="f", style="humaneval").names == (
        "f",
    )


@pytest.mark.parametrize("tests", [[], [" "], ["assert f(1) =="], ["assert 1 == 1"], ["assert \0"]])
def test_unusable_tests_are_named(tests):
    with pytest.raises(DataError):
        plan(*tests)


def test_humaneval_without_entry_point():
    with pytest.raises(DataError, match="entry_point"):
        plan("def check(c): pass", style="humaneval")


@pytest.mark.parametrize(
    ("test", "classes"),
    [
        ("assert Vec(1) + Vec(2) == Vec(3)", ("Vec",)),
        ("assert Money(5) == Money(5) and Money(5) == 5", ("Money",)),
        ("assert Sort([2, 1]) == [1, 2]", ()),
        ("assert abs(Area(2) - 4) < 1e-6", ()),
        ("assert Sort([2, 1]) == [1, 2]\nassert Sort([3]) == [3]", ()),
        ("assert sort(1) == sort(2)", ()),
    ],
)
def test_tests_are_about_a_class_where_they_combine_its_objects(test, classes):
    assert plan(test).classes == classes


@pytest.mark.parametrize(
    ("test", "identity"),
    [
        ("assert f(1) is f(2)", True),
        ("h = f(1)\nassert h.next is not h", True),
        ("from unittest import TestCase as T\nT().assertIs(f(1), f(2))", True),
        ("from operator import is_ as same\nassert same(f(1), f(2))", True),
        ("assert id(f(1)) == id(f(2))", True),
        ("assert f(1) is None and f(2) is not True and type(f(3)) is int", False),
        ("assert f(1) == f(2) and f(3).id == 4", False),
    ],
)
def test_tests_that_ask_for_identity_are_known(test, identity):
    assert plan(test).identity is identity


@pytest.mark.parametrize(
    "test",
    [
        "import warnings\nwith warnings.catch_warnings():\n    assert f(1) == 1",
        "import io\nassert f(io.StringIO('a')) == 'a'",
        "import io\nout = io.StringIO()\nout.write(f(1))\nassert out.getvalue() == 'a'",
        "xs = [2, 1]\nassert f(xs) == [1, 2]\nassert g(xs) == [1, 2]",
        "xs = [2, 1]\nassert f(xs) == sorted(xs)",
        "xs = [2, 1]\nr = f(xs)\nassert r == sorted(xs)\nassert len(r) == len(xs)",
        "xs = [2, 1]\nf(xs)",
        "xs = [2, 1]\nassert xs\nassert f([1]) == 1",
    ],
)
def test_these_tests_neither_watch_the_program_nor_look_at_arguments(test):
    assert not plan(test).fallback and not plan(test).writes
