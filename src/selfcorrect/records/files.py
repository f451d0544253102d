"""File operations for the whole package: atomic writes, one writer at a time, journals that survive a crash, JSONL."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

from selfcorrect.errors import DataError, EngineError, RunError

Value = TypeVar("Value")

_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"


def disk_reason(error: Exception) -> str:
    """Why the system refused a file, in its own words. The message is clearer if a file is in the place of a
    directory."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{error.filename} is a file, not a directory"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


# --- written whole or not at all ------------------------------------------------------------------------------------


def claim(target: Path) -> None:
    """Refuse an output path that exists or cannot be written, before any work.

    Raises:
        RunError: it exists, or its directory refuses a file.
    """
    if target.exists():
        raise RunError(f"{target} exists already and is not overwritten; remove it or name another place")
    trial = _part(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        remove(trial)  # or what a killed process left under this name: a half-written directory
    except OSError as error:
        raise RunError(f"{target} cannot be written: {disk_reason(error)}; name another place") from None


@contextlib.contextmanager
def replacing(target: Path, way_out: str, kind: str = "") -> Iterator[Path]:
    """A path for a new file or directory. If the block ends without an error, it is synced and renamed to ``target``.

    Args:
        target: the final path; what is there stays until the new one is complete.
        way_out: ends the message, after a semicolon.
        kind: begins the message: "checkpoint", "model".

    Raises:
        RunError: the disk refused. The earlier target is untouched and nothing is left next to it.
        EngineError: the engine that writes the files was lost.
    """
    part = _part(target)
    try:
        _remove(part)
        yield part
        for path in (part, *part.rglob("*")):
            sync(path)
        if target.is_dir():
            remove(target)
        part.replace(target)
        sync(target.parent)
    except (OSError, EngineError) as error:
        if isinstance(error, EngineError) and not error.usable:
            raise  # a lost server, not a disk: the run continues from an earlier checkpoint
        name = f"{kind} {target}".lstrip()
        raise RunError(f"{name} could not be written: {disk_reason(error)}; {way_out}") from error
    finally:
        _remove(part)


def write_text(target: Path, text: str, way_out: str) -> None:
    """Write a text file, see ``replacing``."""
    with replacing(target, way_out) as part:
        part.write_text(text, encoding="utf-8")


def write_jsonl(target: Path, rows: Iterable[Mapping[str, Any]], way_out: str) -> None:
    """Write a row per line, see ``replacing``."""
    with replacing(target, way_out) as part, part.open("w", encoding="ascii") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def remove(path: Path) -> None:
    """Remove a file, a directory with everything in it, or a link, but not what the link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        remove(path)


def sync(path: Path) -> None:
    """Make a file or a directory survive a power failure as it is now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksums(directory: Path) -> dict[str, list[int]]:
    """Size in bytes and CRC-32 of every file in a directory, by its path in there."""
    found = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        crc = 0
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                crc = zlib.crc32(piece, crc)
        found[path.relative_to(directory).as_posix()] = [path.stat().st_size, crc]
    return found


# --- one writer -----------------------------------------------------------------------------------------------------


def lock(file: IO[Any], path: Path, wait: bool = False) -> None:
    """Lock an open file until it is closed or its process ends, killed or not.

    Args:
        file: closed if the lock is refused.
        path: what the lock protects, for the message.
        wait: until the other process has ended, instead of refusing.

    Raises:
        RunError: another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunError(
            f"another process is writing to {path}, and two would damage it; wait for it to end, or stop it"
        ) from None


@contextlib.contextmanager
def only_writer(directory: Path, wait: bool = False) -> Iterator[None]:
    """Be the only process that writes to a directory. The lock is its file ``.lock``.

    Raises:
        RunError: another process writes there and ``wait`` is False, or nothing can be written there.
    """
    try:
        file = (directory / ".lock").open("w")
    except OSError as error:
        raise RunError(f"{directory} cannot be written: {disk_reason(error)}; choose another place") from None
    with file:
        lock(file, directory, wait)
        yield


# --- journals: lines that are only appended -------------------------------------------------------------------------


def append_line(file: Path, line: str, way_out: str) -> None:
    """Add one line to a journal.

    Raises:
        RunError: the disk refused.
    """
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
    except OSError as error:
        raise RunError(f"{file} could not be written: {disk_reason(error)}; {way_out}") from error


def read_journal(file: Path, parse: Callable[[str], Value], way_out: str) -> list[Value]:
    """The lines of a journal. A last line without a line end was cut by a crash and does not count.

    Args:
        file: no lines where it does not exist.
        parse: turns a line into its value; raises ValueError if it is damaged.
        way_out: ends the message, after a semicolon.

    Raises:
        RunError: a line is damaged.
    """
    if not file.exists():
        return []
    *lines, _torn = file.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    out = []
    for number, line in enumerate(lines, 1):
        try:
            out.append(parse(line))
        except ValueError:
            raise RunError(
                f"{file}, line {number} cannot be read: the file was changed, or another version wrote it; {way_out}"
            ) from None
    return out


def cut_torn_line(file: Path) -> None:
    """Remove the rest of a line that a crash cut, so that the next line is a separate one."""
    if file.exists():
        content = file.read_bytes()
        os.truncate(file, content.rfind(b"\n") + 1)


# --- JSONL: whole files, plain or gzipped ---------------------------------------------------------------------------


class BadLine(Exception):
    """Why a line is not a JSON object; completes the sentence "the line is …"."""


def read_jsonl(
    path: Path, missing: str, repair: str = "correct or drop that line"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a file as (``"FILE line N"``, row), lines counted from 1. Blank lines are skipped.

    Args:
        path: gzipped or not, whatever its name.
        missing: what to do if it does not exist.
        repair: what to do if a line is damaged.

    Raises:
        DataError: the file is missing, unreadable or damaged, or a line is not a JSON object.
    """
    for number, line in numbered_lines(path, f"data file {path}", missing):
        assert line is not None, "no line is too long"
        where = f"{path} line {number}"
        try:
            row, fault = parse_object(line)
        except BadLine as error:
            raise DataError(f"{where} is {error}; {repair}") from None
        if fault:
            raise DataError(f"{where} is {fault}; save the file as UTF-8")
        yield where, row


def numbered_lines(
    path: Path, name: str, missing: str, max_bytes: int | None = None
) -> Iterator[tuple[int, bytes | None]]:
    """Lines that are not blank, with their numbers from 1, blank lines counted. A line over ``max_bytes`` comes as None.

    Args:
        path: gzipped or not, whatever its name; a pipe will do.
        name: of the file, for messages.
        missing: what to do where it does not exist.
        max_bytes: limit for a line; longer lines are skipped in pieces. None: no limit.

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
        raise DataError(f"{name} does not exist; {missing}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{name} is a damaged gzip file after line {number} ({error}); fetch or pack it again"
        ) from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {disk_reason(error)}; check the path and its permissions") from error


def _bounded_lines(stream: BinaryIO | gzip.GzipFile, max_bytes: int | None) -> Iterator[bytes | None]:
    most = -1 if max_bytes is None else max_bytes + 1
    while line := stream.readline(most):
        whole = max_bytes is None or len(line) <= max_bytes or line.endswith(b"\n")
        piece = line
        while not whole and piece and not piece.endswith(b"\n"):
            piece = stream.readline(most)
        yield line if whole else None


def parse_object(line: bytes) -> tuple[dict[str, Any], str]:
    """The object on a line, and a fault of the line that does not prevent reading it; empty without a fault.

    Raises:
        BadLine: the line is not an object.
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
