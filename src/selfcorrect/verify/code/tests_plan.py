"""What a problem's tests need from a program, read from the tests' text alone.

Decides which names are the program's, which are modules, and whether the tests can run in the trusted process.
Nothing that the program does or returns can change this.
"""

from __future__ import annotations

import ast
import builtins
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from selfcorrect.errors import DataError

_BUILTINS = frozenset(dir(builtins))


@dataclass(frozen=True, slots=True)
class TestPlan:
    """How to run one problem's tests."""

    __test__ = False  # not a pytest class

    names: tuple[str, ...]
    """Names of the program that the tests use, the entry point first."""
    modules: tuple[str, ...]
    """Modules that the tests use without importing them. As in a single process, the program must import them."""
    fallback: str
    """Why these tests must run in the program's process; empty for all others."""
    classes: tuple[str, ...] = ()
    """Names of which the tests compare or combine two objects with each other, so that they are about these classes."""
    identity: bool = False
    """Whether the tests ask which objects are the same one (``a.next is b``)."""
    writes: bool = False
    """Whether the tests look at an argument after the call, so that they see how the program changed it."""


def _walk(trees: list[ast.Module]) -> Iterator[ast.AST]:
    for tree in trees:
        yield from ast.walk(tree)


def _bound(trees: list[ast.Module]) -> set[str]:
    """Every name that the tests themselves define, in any scope."""
    names: set[str] = set()
    for node in _walk(trees):
        match node:
            case (
                ast.Name(id=name, ctx=ast.Store() | ast.Del())
                | ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
                | ast.arg(arg=name)
                | ast.ExceptHandler(name=str(name))
            ):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names.update((alias.asname or alias.name).split(".")[0] for alias in aliases)
    return names


def _first_called(trees: list[ast.Module]) -> str | None:
    """The outermost function called by the first assert with a call. It is the name under test if it hides a
    builtin."""
    for node in _walk(trees):
        if not isinstance(node, ast.Assert):
            continue
        part: ast.expr = node.test
        while isinstance(part, ast.Compare | ast.UnaryOp):
            part = part.left if isinstance(part, ast.Compare) else part.operand
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Name):
            return part.func.id
    return None


def _name(node: ast.AST | None) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _called(node: ast.AST, names: set[str]) -> str:
    """The name among these that a node calls; empty if it calls none."""
    name = _name(node.func) if isinstance(node, ast.Call) else ""
    return name if name in names else ""


def _needs_classes(trees: list[ast.Module], names: set[str]) -> str:
    """Why the tests need objects of the program's own classes; empty if they do not.

    A class is recognised by its capital letter and by the use of its result: the result is passed to another function
    of the program, or its attributes are read. A capitalised function whose result is only compared with data is not a
    class.
    """
    classes = {name for name in names if name[:1].isupper()}
    held: dict[str, str] = {}
    for node in _walk(trees):
        if isinstance(node, ast.Assign) and (name := _called(node.value, classes)):
            held.update((target.id, name) for target in node.targets if isinstance(target, ast.Name))
    for node in _walk(trees):
        reason = ""
        if isinstance(node, ast.Attribute):
            if name := _called(node.value, classes) or held.get(_name(node.value), ""):
                reason = f"an attribute of the program's class {name} is used"
        elif isinstance(node, ast.ExceptHandler) and _name(node.type) in classes:
            reason = f"the program's class {_name(node.type)} is used as a type"
        elif isinstance(node, ast.Call):
            reason = _call_needs_class(node, names, classes, held)
        if reason:
            return reason
    return ""


def _root(node: ast.AST) -> str:
    """The name that a chain of attributes, calls and items begins with."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return _name(node)


def _results(trees: list[ast.Module], names: set[str]) -> set[str]:
    """Names of the tests that hold what a function of the program gave."""
    return {
        target.id
        for node in _walk(trees)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _root(node.value) in names
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _arguments(node: ast.Call) -> set[str]:
    """Names that are arguments of a call."""
    return {_name(part) for part in (*node.args, *(keyword.value for keyword in node.keywords))} - {""}


def _passed(trees: list[ast.Module], ours: set[str]) -> set[str]:
    """Names of the tests that are arguments of calls of the program."""
    calls = [node for node in _walk(trees) if isinstance(node, ast.Call) and _root(node) in ours]
    return set[str]().union(*map(_arguments, calls)) - ours


def _looks_at_arguments(trees: list[ast.Module], names: set[str]) -> bool:
    """Whether the tests look at an argument after the call: they assert something about it without the program, or do
    not use what the call gave.

    Not in ``assert f(xs) == sorted(xs)``: there a program that changes the argument would choose the expected value.
    """
    results = _results(trees, names)
    ours = names | results
    passed = _passed(trees, ours)
    loaded = [n.id for n in _walk(trees) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    for node in _walk(trees):
        match node:
            case ast.Expr(value=ast.Call() as call) if _root(call) in ours:
                found = any(loaded.count(name) > 1 for name in _arguments(call) - ours)
            case ast.Compare(left=ast.Call() as call, comparators=[ast.Constant(value=None)]) if _root(call) in ours:
                found = any(loaded.count(name) > 1 for name in _arguments(call) - ours)
            case ast.Assert(test=test):
                found = _without_the_program(test, passed, names, results)
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name)) as test) if name.startswith("assert"):
                found = _without_the_program(test, passed, names, results)
            case _:
                continue
        if found:
            return True
    return False


def _without_the_program(test: ast.expr, passed: set[str], names: set[str], results: set[str]) -> bool:
    """Whether an assertion is about an argument alone; what the program gave may say how much of it (``xs[:k]``)."""
    used = {_name(part) for part in ast.walk(test)}
    cuts = any(isinstance(part, ast.Slice) and _name(part.upper) in results for part in ast.walk(test))
    return bool(used & passed) and not used & (names if cuts else names | results)


def _combined(trees: list[ast.Module], names: set[str]) -> tuple[str, ...]:
    """Names that both sides of one operator call: ``Vec(1) + Vec(2)``, but not ``Sort(xs) == [1, 2]``."""
    found: set[str] = set()
    for node in _walk(trees):
        match node:
            case ast.Compare(left=left, comparators=others):
                sides = [left, *others]
            case ast.BinOp(left=left, right=right):
                sides = [left, right]
            case _:
                continue
        called = [{name for part in ast.walk(side) if (name := _called(part, names))} for side in sides]
        found.update(*(a & b for a, b in pairwise(called)))
    return tuple(sorted(found))


def _call_needs_class(node: ast.Call, names: set[str], classes: set[str], held: dict[str, str]) -> str:
    function = _name(node.func)
    if function in ("isinstance", "issubclass") and len(node.args) == 2 and _name(node.args[1]) in classes:
        return f"the program's class {_name(node.args[1])} is used as a type"
    if function not in names:
        return ""
    arguments = [*node.args, *(k.value for k in node.keywords)]
    for part in (inner for argument in arguments for inner in ast.walk(argument)):
        inner = _called(part, classes - {function}) or held.get(_name(part))
        if inner:
            return f"an object of the program's class {inner} is passed to {function}"
    return ""


_IDENTITY = frozenset({"assertIs", "assertIsNot", "is_", "is_not"})


def _asks_identity(trees: list[ast.Module]) -> bool:
    """Whether the tests compare two values by identity, other than with constants and builtin types."""
    for node in _walk(trees):
        match node:
            case ast.Compare(left=left, ops=ops, comparators=others):
                sides = [isinstance(side, ast.Constant) or _name(side) in _BUILTINS for side in (left, *others)]
                asked = [isinstance(op, ast.Is | ast.IsNot) for op in ops]
                if any(one and not a and not b for one, (a, b) in zip(asked, pairwise(sides), strict=True)):
                    return True
            case ast.Name(id="id", ctx=ast.Load()):
                return True
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name) if name in _IDENTITY:
                return True
    return False


_WATCHED = frozenset(
    "redirect_stdout redirect_stderr patch capsys monkeypatch assertLogs assertNoLogs assertWarns assertWarnsRegex".split()  # noqa: SIM905
)


def _watches(trees: list[ast.Module], passed: set[str]) -> bool:
    """Whether the tests watch what the program prints, logs, warns of, reads or writes to a file object of theirs."""
    imported = [alias for node in _walk(trees) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    recorders = {alias.asname for alias in imported if alias.name == "catch_warnings"} | {"catch_warnings"}
    systems = {alias.asname for alias in imported if alias.name == "sys"} | {"sys"}
    for node in _walk(trees):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr="stdout" | "stdin" | "stderr") if name in systems:
                return True
            case ast.Attribute(value=ast.Name(id="builtins"), ctx=ast.Store()):
                return True
            case ast.alias(name=name) | ast.Name(id=name) | ast.Attribute(attr=name) if (
                name.rpartition(".")[2] in _WATCHED
            ):
                return True
            case ast.Attribute(value=ast.Name(id=name), attr="getvalue") if name in passed:
                return True
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in recorders:
                if any(k.arg == "record" and not _is_false(k.value) for k in node.keywords):
                    return True
    return False


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def _needs_one_process(trees: list[ast.Module], names: set[str]) -> str:  # one return per reason
    """Why the tests and the program must share a process, apart from the program's classes; empty if they need not."""
    own = {node.name for node in _walk(trees) if isinstance(node, ast.ClassDef)}
    held: dict[str, str] = {}
    for node in _walk(trees):
        if isinstance(node, ast.Assign) and (name := _called(node.value, own)):
            held.update((target.id, name) for target in node.targets if isinstance(target, ast.Name))
    results = _results(trees, names)
    if _watches(trees, _passed(trees, names | results)):
        return "the tests watch what the program prints, logs or reads"
    for node in _walk(trees):
        match node:
            case ast.With(items=items) | ast.AsyncWith(items=items):
                entered = [item.context_expr for item in items]
                if any(_name(part) in names for context in entered for part in ast.walk(context)) or any(
                    _name(context) in results for context in entered
                ):
                    return "a context manager of the program is entered"
            case ast.ClassDef(bases=bases):
                if base := next((_name(part) for part in bases if _name(part) in names), ""):
                    return f"a class of the tests derives from the program's {base}"
            case ast.Call(func=function) if _name(function) in names:
                arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
                for part in (inner for argument in arguments for inner in ast.walk(argument)):
                    if name := _called(part, own) or held.get(_name(part), ""):
                        return f"an object of the tests' class {name} is passed to the program"
    return ""


@functools.lru_cache(maxsize=4096)
def plan_tests(style: str, entry_point: str | None, tests: tuple[str, ...]) -> TestPlan:
    """Read the tests of one problem.

    Args:
        style: ``mbpp`` (statements) or ``humaneval`` (definition of ``check``).
        entry_point: name of the function under test; optional for ``mbpp``.
        tests: set-up code and tests, in order.

    Raises:
        DataError: the tests are empty, are not Python, or name nothing to test.
    """
    if not any(test.strip() for test in tests):
        raise DataError("This problem has no tests, so no verdict on a program is possible. Give at least one.")
    trees = _parse(tests)
    if style == "humaneval":
        if not entry_point:
            raise DataError("A humaneval problem needs entry_point, the name of the function that check() is given.")
        root = _entry_root(entry_point)
        fallback = _needs_one_process(trees, {"candidate", root})
        return TestPlan(
            (root,),
            (),
            fallback,
            identity=_asks_identity(trees),
            writes=_looks_at_arguments(trees, {"candidate", root}),
        )
    bound = _bound(trees)
    with_attributes = {_name(node.value) for node in _walk(trees) if isinstance(node, ast.Attribute)}
    modules = tuple(sorted((with_attributes & sys.stdlib_module_names) - bound - {entry_point}))
    loaded = dict.fromkeys(n.id for n in _walk(trees) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
    names = [n for n in loaded if n not in _BUILTINS and n not in bound and n not in modules]
    # With an unknown name to call, names of builtins are builtins. Without, the function under test hides one.
    first = entry_point or (None if names else _first_called(trees))
    if first and first not in names and first not in bound:
        names.append(first)
    if entry_point in names:
        names.sort(key=lambda n: n != entry_point)
    if not names:
        raise DataError(
            "These tests call nothing that a program could define, so they cannot judge one. Correct that row."
        )
    fallback = _needs_classes(trees, set(names)) or _needs_one_process(trees, set(names))
    about = _combined(trees, {n for n in names if n[:1].isupper()})
    return TestPlan(
        tuple(names), modules, fallback, about, _asks_identity(trees), _looks_at_arguments(trees, set(names))
    )


def _entry_root(entry_point: str) -> str:
    """The program's name that an entry point begins with: ``Solution`` in ``Solution().solve``.

    Raises:
        DataError: it is not a name, an attribute or a call without arguments.
    """
    try:
        part: ast.expr = ast.parse(entry_point, mode="eval").body
    except (SyntaxError, ValueError):
        part = ast.Constant(None)
    while isinstance(part, ast.Attribute) or (isinstance(part, ast.Call) and not part.args and not part.keywords):
        part = part.value if isinstance(part, ast.Attribute) else part.func
    if not isinstance(part, ast.Name):
        raise DataError(f"entry_point is {entry_point[:80]!r}; give a name, or an expression such as Solution().solve.")
    return part.id


def _parse(tests: tuple[str, ...]) -> list[ast.Module]:
    try:
        trees = [ast.parse(test) for test in tests]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"A test of this problem is not Python ({error}). Correct that row of the data set.") from None
    for node in _walk(trees):
        match node:
            case ast.Import(names=aliases):
                modules = [alias.name for alias in aliases]
            case ast.ImportFrom(module=str(module), level=0):
                modules = [module]
            case _:
                continue
        if missing := {module.partition(".")[0] for module in modules} - sys.stdlib_module_names:
            raise DataError(
                f"The tests import {', '.join(sorted(missing))}, and the sandbox has the standard library only. Rewrite the "
                "tests of that row without it, or leave the row out."
            )
    return trees
