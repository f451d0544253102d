"""Lines of JSONL files, plain or gzipped, and the object on a line: what data sets and files of cases have in common."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from selfcorrect.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"


class BadLine(Exception):
    """Why a line holds no JSON object: what completes "the line is …"."""


def numbered_lines(
    path: Path, name: str, way_out: str, max_bytes: int | None = None
) -> Iterator[tuple[int, bytes | None]]:
    """Lines that are not blank with their numbers from 1, blank ones counted; None in place of one over ``max_bytes``.

    Args:
        path: gzipped or not, whatever its name; a pipe will do.
        name: of the file, for messages.
        way_out: what to do where it does not exist.
        max_bytes: of a line; what is longer is passed over in pieces. None: no limit.

    Raises:
        DataError: the file is missing, unreadable, or becomes unreadable: a damaged gzip stream.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2).startswith(_GZIP_MAGIC)
            stream: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=raw) if packed else raw
            for number, line in enumerate(_bounded_lines(stream, max_bytes), start=1):
                if line is None or line.strip():
                    yield number, line.removeprefix(_BOM) if line and number == 1 else line
    except FileNotFoundError:
        raise DataError(f"{name} does not exist; {way_out}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{name} is a damaged gzip file after line {number} ({error}); fetch or pack it again"
        ) from error
    except OSError as error:
        raise DataError(
            f"{name} cannot be read: {error.strerror or error}; check the path and its permissions"
        ) from error


def _bounded_lines(stream: BinaryIO | gzip.GzipFile, max_bytes: int | None) -> Iterator[bytes | None]:
    most = -1 if max_bytes is None else max_bytes + 1
    while line := stream.readline(most):
        whole = max_bytes is None or len(line) <= max_bytes or line.endswith(b"\n")
        piece = line
        while not whole and piece and not piece.endswith(b"\n"):
            piece = stream.readline(most)
        yield line if whole else None


def parse_object(line: bytes) -> tuple[dict[str, Any], str]:
    """The object on a line, and what is wrong with the line although its object can be read; empty where nothing is.

    Raises:
        BadLine: there is no object to be read.
    """
    fault = ""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        fault = f"not UTF-8 ({error.reason} at byte {error.start})"
        text = line.decode("utf-8", "surrogateescape")
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadLine(fault or f"not valid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise BadLine(fault or "nested too deeply for JSON") from None
    except ValueError as error:  # an integer of thousands of digits
        raise BadLine(fault or f"not usable JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadLine(fault or f"not a JSON object but {kind_of(found)}")
    return found, fault


def kind_of(value: Any) -> str:
    """The JSON type of a value, for messages."""
    names = {type(None): "null", bool: "true or false", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
