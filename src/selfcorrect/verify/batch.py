"""Grades a file of cases into a file of verdicts: in order, in parallel, in bounded memory.

Verdicts are written as they come. A run that is cut off leaves the verdicts of the first rows, and ``resume`` continues
after them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from selfcorrect.errors import DataError, RunError
from selfcorrect.records.files import disk_reason, lock
from selfcorrect.types import Grade, Verdict
from selfcorrect.verify.cases import Broken, CaseRow

Case = TypeVar("Case")
Item = TypeVar("Item")
Result = TypeVar("Result")

ROWS_AHEAD = 4096
"""Most rows that are read but not written: enough that one slow row does not leave the other workers idle."""
BYTES_AHEAD = 64 << 20
"""The same limit in bytes of the file, for files with long rows."""
_LONGEST_DETAIL = 2000
_OWN_START = b'{"id": '
"""The beginning of every line of verdicts. An incomplete last line that begins differently is from another program."""
_STOP_POLL_S = 0.2


@dataclass(slots=True)
class Tally:
    """The result for one file."""

    verdicts: Counter[str] = field(default_factory=Counter)
    """Rows written by this run, per verdict."""
    kept: int = 0
    """Rows that an earlier run wrote."""
    seconds: float = 0.0
    stopped: bool = False
    """A stop was requested: the file holds the verdicts of the first rows only."""

    @property
    def written(self) -> int:
        return self.verdicts.total()

    def text(self) -> str:
        """One line for people."""
        rate = f" ({self.written / self.seconds:.0f}/s)" if self.seconds > 0 else ""
        kept = f", {self.kept} more were there" if self.kept else ""
        counts = ", ".join(f"{v.value} {self.verdicts[v]}" for v in Verdict if self.verdicts[v])
        return f"{self.written} rows in {self.seconds:.1f} s{rate}{kept}: {counts or 'nothing to grade'}"


def grade_rows(
    rows: Iterator[CaseRow[Case]],
    out: Path,
    grade: Callable[[Case], Grade],
    workers: int,
    *,
    resume: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Tally:
    """Grade every row and write one verdict per row to a file, in the order of the rows.

    Args:
        rows: from ``cases.read_cases``.
        out: must not exist, unless ``resume``.
        grade: called in ``workers`` threads; an exception becomes the verdict ``error`` of its row.
        workers: rows graded at once.
        resume: keep the whole lines of ``out`` and continue with the next row.
        stop_requested: once true, no further row is started; rows that were started are finished and written.

    Raises:
        RunError: the file exists, or cannot be written; what was written before stays.
        DataError: reading the cases fails, or (``resume``) they are not the cases that ``out`` was made from.
    """
    tally, start = Tally(), time.perf_counter()

    rows = itertools.chain([*itertools.islice(rows, 1)], rows)  # cases that cannot be read leave no empty file
    try:
        with _opened(out, resume) as file:
            tally.kept = _keep(file, rows, out) if resume else 0
            for verdict, line in in_order(
                rows, partial(_judged, grade), workers, stop_requested, size=lambda row: row.size
            ):
                file.write(line)
                file.flush()  # what is graded is in the file, whatever becomes of this process
                tally.verdicts[verdict] += 1
    except OSError as error:
        raise RunError(
            f"{out} cannot be written: {disk_reason(error)}; the verdicts of its first rows stay, and --resume "
            "continues after them"
        ) from error
    tally.seconds = time.perf_counter() - start
    tally.stopped = stop_requested()
    return tally


def in_order(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    workers: int,
    stop_requested: Callable[[], bool] = lambda: False,
    *,
    size: Callable[[Item], int] = lambda _item: 0,
) -> Iterator[Result]:
    """``map(work, items)`` on threads, in order, reading at most ``ROWS_AHEAD`` items and ``BYTES_AHEAD`` bytes ahead.

    After a stop, or if reading the items fails, all started work is finished and returned. Threads take items in order,
    so a stop drops only items at the end that were not started.
    """
    waiting: deque[tuple[Future[Result], int]] = deque()
    held = 0
    failed: DataError | None = None
    with ThreadPoolExecutor(workers, thread_name_prefix="grade") as pool:
        try:
            items = iter(items)
            while not stop_requested():
                try:
                    item = next(items)
                except StopIteration:
                    break
                except DataError as error:
                    failed = error
                    break
                waiting.append((pool.submit(work, item), size(item)))
                held += waiting[-1][1]
                while waiting and (waiting[0][0].done() or len(waiting) >= ROWS_AHEAD or held > BYTES_AHEAD):
                    if _first_is_done(waiting, stop_requested):
                        future, bytes_held = waiting.popleft()
                        held -= bytes_held
                        yield future.result()
            while _first_is_done(waiting, stop_requested):
                yield waiting.popleft()[0].result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed is not None:
        raise failed


def _first_is_done(waiting: deque[tuple[Future[Result], int]], stop_requested: Callable[[], bool]) -> bool:
    """Wait for the first item. If a stop comes meanwhile, items that were not started are dropped. False if none is
    left."""
    while waiting and not waiting[0][0].done():
        while stop_requested() and waiting and waiting[-1][0].cancel():
            waiting.pop()
        if waiting:
            with contextlib.suppress(TimeoutError):
                waiting[0][0].exception(timeout=_STOP_POLL_S)
    return bool(waiting)


def _judged(grade: Callable[[Case], Grade], row: CaseRow[Case]) -> tuple[Verdict, bytes]:
    """The verdict on a row, and its output line in plain ASCII, because a detail may quote a model's text."""
    start = time.perf_counter()
    if isinstance(row.case, Broken):
        found, seconds = Grade(Verdict.ERROR, None, row.case.reason), 0.0
    else:
        try:
            found = grade(row.case)
        except Exception as fault:  # noqa: BLE001  # one row must not end the file
            found = Grade(Verdict.ERROR, None, f"verifier failure: {type(fault).__name__}: {fault}")
        seconds = time.perf_counter() - start
    detail = found.detail[:_LONGEST_DETAIL].encode("utf-8", "replace").decode("utf-8")
    rest = json.dumps({"verdict": found.verdict.value, "seconds": round(seconds, 6), "detail": detail})
    return found.verdict, f'{{"id": {row.id_json}, {rest[1:]}\n'.encode("ascii")


def _opened(out: Path, resume: bool) -> BinaryIO:
    try:
        file = out.open("r+b" if resume and out.exists() else "x+b")
    except FileExistsError:
        raise RunError(
            f"{out} exists already and is not overwritten; remove it, name another place, or finish it with --resume"
        ) from None
    lock(file, out)
    return file


def _keep(file: BinaryIO, rows: Iterator[CaseRow[Case]], out: Path) -> int:
    """Skip the rows whose verdicts are in the file, cut off an incomplete last line, and seek to the end of the
    file."""
    kept = end = 0
    for line in file:
        torn = not line.endswith(b"\n")
        if torn and _OWN_START.startswith(line[: len(_OWN_START)]):
            break
        row = None if torn else next(rows, None)
        if row is None or not line.startswith(f'{{"id": {row.id_json}, "verdict": '.encode("ascii")):
            raise DataError(
                f"{out} line {kept + 1} is not the verdict on row {kept + 1} of the cases, so it was made from another "
                "file or by another program; drop --resume and name another place"
            )
        kept, end = kept + 1, end + len(line)
    file.seek(end)
    file.truncate()
    return kept
