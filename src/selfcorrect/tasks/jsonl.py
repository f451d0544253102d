"""Reading JSONL data sets, plain or gzipped, with faults told by file and line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfcorrect.errors import DataError
from selfcorrect.records.files import BadLine, numbered_lines, parse_object

_HALF_PAIR = re.compile("[\ud800-\udfff]")


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a file as (``"FILE line N"``, row), lines counted from 1. Blank lines are skipped.

    Raises:
        DataError: the file is missing, unreadable or damaged, or a line is not a JSON object.
    """
    name, way_out = f"data file {path}", "set task.path to a JSONL file or to its directory"
    for number, line in numbered_lines(path, name, way_out):
        assert line is not None, "no line is too long"
        where = f"{path} line {number}"
        try:
            row, fault = parse_object(line)
        except BadLine as error:
            raise DataError(f"{where} is {error}; mend or drop that line") from None
        if fault:
            raise DataError(f"{where} is {fault}; save the file as UTF-8")
        yield where, row


def text_field(row: dict[str, Any], field: str, where: str) -> str:
    """A field that must be a text with something in it.

    Raises:
        DataError: it is missing, of another type or blank, or holds half of a surrogate pair, which no tokenizer and no
            file takes; the message names the line and the fields there are.
    """
    value = row.get(field)
    if isinstance(value, str) and value.strip():
        half = _HALF_PAIR.search(value)
        if half is None:
            return value
        raise DataError(
            f"{where} has half of a surrogate pair in field {field!r}, at character {half.start()}; mend or drop that row"
        )
    fault = f"has no field {field!r}" if field not in row else f"has a field {field!r} that is not a text with content"
    there = ", ".join(map(repr, row)) or "none"
    raise DataError(f"{where} {fault} (fields: {there}); every row needs it as a string")


def split_file(directory: Path, split: str) -> Path:
    """The file of a split in a directory: ``<split>.jsonl`` or ``.jsonl.gz``, else the only ``<split>_*`` of such a form.

    Raises:
        DataError: there is none, or several could be meant.
    """
    candidates = [directory / f"{split}.jsonl", directory / f"{split}.jsonl.gz"]
    for path in candidates:
        if path.is_file():
            return path
    longer = sorted(p for p in directory.glob(f"{split}_*") if p.name.endswith((".jsonl", ".jsonl.gz")))
    if len(longer) == 1:
        return longer[0]
    several = f", and {' and '.join(p.name for p in longer)} leave open which is meant" if longer else ""
    raise DataError(
        f"directory {directory} holds neither {candidates[0].name} nor {candidates[1].name}{several}; put the {split} "
        "split there under one of these names, or set task.path to another directory"
    )
