"""Reads a file of cases: one JSON object per line, plain or gzipped.

The rows hold model outputs, so nothing in a row may end the run: a row that cannot be graded becomes ``Broken``. Only a
file that cannot be read raises an error. Memory does not grow with the file: it holds one line at a time, of at most
``MAX_LINE``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from selfcorrect.records.files import BadLine, kind_of, numbered_lines, parse_object
from selfcorrect.verify.code.extract import Form
from selfcorrect.verify.code.grader import CodeRequest, Style
from selfcorrect.verify.math.grader import MathCase

Case = TypeVar("Case")

MAX_LINE = 8 << 20
"""Longest line in bytes. A response of a million characters fits, even with every character escaped."""
_STRAY_BYTE = re.compile(r"\\udc[89a-f][0-9a-f]")
"""A byte that is not UTF-8, as ``surrogateescape`` and JSON write it. Such an id differs from the one in the file."""
_UNUSABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that cannot be graded, and the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class CaseRow(Generic[Case]):
    """One line of the file."""

    id_json: str
    """The row's id as JSON, or the number of its line if it has no id that JSON can repeat."""
    case: Case | Broken
    size: int
    """Bytes of the line."""


class _Fault(Exception):
    """Why a row cannot be graded."""


def read_cases(path: Path, make: Callable[[dict[str, Any]], Case]) -> Iterator[CaseRow[Case]]:
    """One ``CaseRow`` per line that is not blank, in order. Lines are counted from 1, blank ones included.

    Args:
        path: JSONL, plain or gzipped whatever its name; a pipe will do.
        make: ``math_case`` or ``code_request``.

    Raises:
        DataError: the file is missing, unreadable, or becomes unreadable: a damaged gzip stream.
    """
    lines = numbered_lines(path, f"--cases {path}", "give a JSONL file, plain or gzipped", MAX_LINE)
    return (_row(line, number, make) for number, line in lines)


def _row(line: bytes | None, number: int, make: Callable[[dict[str, Any]], Case]) -> CaseRow[Case]:
    if line is None:
        return CaseRow(str(number), Broken(f"line {number} is longer than {MAX_LINE >> 20} MiB"), 0)
    id_json = str(number)
    try:
        fields, fault = parse_object(line)
        id_json = _id_json(fields) or id_json
        if fault:
            raise _Fault(fault)
        given = _present(fields, "id")
        if isinstance(given, str):
            _check_text(given, "id")
        elif isinstance(given, bool) or not isinstance(given, int | float):
            raise _Fault(f"field 'id' is {kind_of(given)}, not a string or a number")
        elif not _id_json(fields):
            raise _Fault("field 'id' is not a finite number")
        return CaseRow(id_json, make(fields), len(line))
    except (BadLine, _Fault) as error:
        return CaseRow(id_json, Broken(f"line {number}: {error}"), len(line))


def _id_json(fields: dict[str, Any]) -> str:
    """The id as JSON; empty if there is none, or if it cannot be written again unchanged."""
    if fields.get("id") is None:
        return ""
    try:
        written = json.dumps(fields["id"], allow_nan=False)
    except (ValueError, RecursionError):
        return ""
    return "" if _STRAY_BYTE.search(written) else written


def _present(fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        there = ", ".join(repr(key)[:40] for key in list(fields)[:12]) or "none"
        raise _Fault(f"no field {name!r} (fields: {there})")
    return fields[name]


def _model_text(fields: dict[str, Any], name: str) -> str:
    """A model's text, whatever it contains: a NUL in it is the model's fault, and the verifier judges it."""
    value = _present(fields, name)
    if not isinstance(value, str):
        raise _Fault(f"field {name!r} is {kind_of(value)}, not a string")
    return value


def _text(fields: dict[str, Any], name: str) -> str:
    return _check_text(_model_text(fields, name), name)


def _text_if_any(fields: dict[str, Any], name: str) -> str:
    return "" if fields.get(name) is None else _text(fields, name)


def _check_text(value: str, name: str) -> str:
    found = _UNUSABLE.search(value)
    if found:
        what = "a NUL" if found[0] == "\x00" else "half of a surrogate pair"
        raise _Fault(f"field {name!r} has {what} at character {found.start()}")
    return value


def math_case(fields: dict[str, Any], *, bare: bool = False) -> MathCase:
    """The case in a row ``id, gold, response``; further fields are ignored."""
    return MathCase(_text(fields, "gold"), _model_text(fields, "response"), bare)


def code_request(fields: dict[str, Any]) -> CodeRequest:
    """The case in a row ``id, style, prompt, entry_point, tests, completion, completion_form``.

    ``prompt`` and ``entry_point`` may be null or left out with style ``mbpp``, except that the form ``body`` needs the
    prompt.
    """
    style, form = _text(fields, "style"), _text(fields, "completion_form")
    if style not in ("mbpp", "humaneval"):
        raise _Fault(f"field 'style' is {style[:40]!r}, not 'mbpp' or 'humaneval'")
    if form not in ("code", "body", "text"):
        raise _Fault(f"field 'completion_form' is {form[:40]!r}, not 'code', 'body' or 'text'")
    needed = style == "humaneval"
    prompt = _text(fields, "prompt") if needed or form == "body" else _text_if_any(fields, "prompt")
    entry_point = _text(fields, "entry_point") if needed else _text_if_any(fields, "entry_point")
    # One string for humaneval, also alone in a list; a list of strings for mbpp.
    tests = _present(fields, "tests")
    wanted = "a string that defines check()" if needed else "a list of strings"
    if needed and isinstance(tests, str):
        tests = [tests]
    if not isinstance(tests, list) or (needed and len(tests) != 1):
        raise _Fault(f"field 'tests' is {kind_of(tests)}, and style {style!r} takes {wanted}")
    for test in tests:
        if not isinstance(test, str):
            raise _Fault(f"field 'tests' holds {kind_of(test)}; style {style!r} takes {wanted}")
        _check_text(test, "tests")
    completion = _model_text(fields, "completion")
    return CodeRequest(cast(Style, style), tuple(tests), completion, cast(Form, form), prompt, entry_point or None)
