"""JSONL data sets: where the file of a split is, and what a row must hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from selfcorrect.errors import DataError

_HALF_PAIR = re.compile("[\ud800-\udfff]")


SET_PATH = "set task.path to a JSONL file or to its directory"
"""What to do if a data file does not exist."""


def text_field(row: dict[str, Any], field: str, where: str) -> str:
    """A field that must be a text that is not blank.

    Raises:
        DataError: it is missing, of another type or blank, or holds half of a surrogate pair, which no tokenizer and no
            file takes; the message names the line and the fields of the row.
    """
    value = row.get(field)
    if isinstance(value, str) and value.strip():
        half = _HALF_PAIR.search(value)
        if half is None:
            return value
        raise DataError(
            f"{where} has half of a surrogate pair in field {field!r}, at character {half.start()}; correct or drop that row"
        )
    fault = f"has no field {field!r}" if field not in row else f"has a field {field!r} that is not a text with content"
    there = ", ".join(map(repr, row)) or "none"
    raise DataError(f"{where} {fault} (fields: {there}); every row needs it as a string")


def split_file(directory: Path, split: str) -> Path:
    """The file of a split in a directory: ``<split>.jsonl`` or ``.jsonl.gz``, else the only ``<split>_*`` file of such
    a type.

    Raises:
        DataError: there is no such file, or several match.
    """
    names = (f"{split}.jsonl", f"{split}.jsonl.gz")
    for name in names:
        if (directory / name).is_file():
            return directory / name
    longer = sorted(p for p in directory.glob(f"{split}_*") if p.name.endswith((".jsonl", ".jsonl.gz")))
    if len(longer) == 1:
        return longer[0]
    several = f", and {' and '.join(p.name for p in longer)} leave open which is meant" if longer else ""
    raise DataError(
        f"directory {directory} holds neither {names[0]} nor {names[1]}{several}; put the {split} "
        "split there under one of these names, or set task.path to another directory"
    )
