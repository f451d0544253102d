"""Reading JSONL data sets, plain or gzipped, with faults told by file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from selfcorrect.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a file as (``"FILE line N"``, row), lines counted from 1. Blank lines are skipped.

    Raises:
        DataError: the file is missing, unreadable or damaged, or a line is not a JSON object.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            lines: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=raw) if packed else raw
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{path} line {number}"
                    yield where, _parse(line, where)
    except FileNotFoundError:
        raise DataError(f"data file {path} does not exist; set task.path to a JSONL file or to its directory") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"data file {path} is a damaged gzip file ({error}); fetch or pack it again") from error
    except OSError as error:
        raise DataError(
            f"data file {path} cannot be read: {error.strerror}; check the path and its permissions"
        ) from error


def text_field(row: dict[str, Any], field: str, where: str) -> str:
    """A field that must be a text with something in it.

    Raises:
        DataError: it is missing, of another type or blank; the message names the line and the fields there are.
    """
    value = row.get(field)
    if isinstance(value, str) and value.strip():
        return value
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


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is not valid JSON: {error.msg} at column {error.colno}; mend or drop that line"
        ) from None
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(f"{where} is not usable JSON: {error}; mend or drop that line") from None
    except RecursionError:
        raise DataError(f"{where} nests too deeply for JSON; mend or drop that line") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} is not a JSON object but {type(row).__name__}; every line holds one {{...}}")
    return row
