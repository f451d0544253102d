"""Where a task's problems come from: a directory with one file per split, a single file, or the Hugging Face Hub."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfcorrect.errors import DataError
from selfcorrect.records.files import read_jsonl
from selfcorrect.tasks.jsonl import SET_PATH, split_file
from selfcorrect.types import Problem

Row = dict[str, Any]
SPLITS = ("train", "validation", "test", "prompt")
"""Every split that any task has; a row's own field ``split`` holds one of these."""


@dataclass(frozen=True, slots=True)
class Hub:
    """A data set on the Hugging Face Hub."""

    id: str
    config: str | None = None
    named_by_user: bool = False
    """Whether the id comes from ``task.path``, because there is no file or directory of that name."""


@dataclass(frozen=True)
class Source:
    """Rows of a data set by split.

    A directory holds ``<split>.jsonl`` or ``.jsonl.gz``. All rows of a single file belong to the split that its name
    starts with. Otherwise each row belongs to the split in its field ``split``. Without that field, a tenth of the
    questions (fixed by hash, at least one) is test and the rest is train, so no question is in both. A task with only
    one split takes all rows of a file.
    """

    task: str
    path: Path | None
    hub: Hub | None
    """The data set that is read if ``path`` is None; None if the task is not on the Hub."""
    splits: tuple[str, ...] = ("train", "test")
    fields: str = "question, answer"
    """Fields of a row, for error messages."""
    _loaded: dict[str, tuple[Problem, ...]] = field(default_factory=dict, repr=False, compare=False)

    def load(self, split: str, parse: Callable[[str, Row, str], Problem | None]) -> tuple[Problem, ...]:
        """The problems of a split, in the order of the data set; read once.

        Args:
            split: one of ``splits``.
            parse: turns (default id, row, ``"FILE line N"``) into a problem, or returns None to leave the row out.

        Raises:
            DataError: the data is missing, empty or malformed (with file and line), two problems have the same id, or
                there is no network.
        """
        if split in self._loaded:
            return self._loaded[split]
        rows, is_shared = self._rows(split)
        parsed = [
            (parse(f"{self.task}-{split}-{i}", row, where), where, row.get("split"))
            for i, (where, row) in enumerate(rows)
        ]
        unnamed = [where for _, where, name in parsed if name is None]
        if is_shared and 0 < len(unnamed) < len(parsed):
            raise DataError(
                f"{unnamed[0]} has no split, and other rows of the file have one; name the split of every row, or of none"
            )
        if is_shared and parsed and not unnamed:
            for _, where, name in parsed:
                if name not in SPLITS:
                    raise DataError(f"{where} has split {name!r}; take one of: {', '.join(SPLITS)}")
            found = [p for p, _, name in parsed if p is not None and name == split]
        else:
            found = [p for p, _, _ in parsed if p is not None]
            if is_shared:
                ranked = sorted({p.question for p in found}, key=lambda q: hashlib.sha256(q.encode()).digest())
                held_out = set(ranked[: max(1, len(ranked) // 10)])
                found = [
                    p for p in found if split in ("train", "test") and (p.question in held_out) == (split == "test")
                ]
        origin = f"the {split} split of {self.task} from {self.path or (self.hub.id if self.hub else 'no source')}"
        if not found:
            raise DataError(f"{origin} is empty; give a file with at least one row for it")
        name, times = Counter(p.id for p in found).most_common(1)[0]
        if times > 1:
            raise DataError(
                f"{origin} has {times} problems with the id {name!r}, but an id names a random stream; give each row an "
                "id of its own, or none"
            )
        return self._loaded.setdefault(split, tuple(found))

    def has(self, split: str) -> bool:
        """Whether ``load`` would find a place to look for that split; for a file, by its name."""
        if self.path is None or not self.path.is_dir():
            return self.path is None or self._named() in (None, split)
        try:
            split_file(self.path, split)
        except DataError:
            return False
        return True

    def _named(self) -> str | None:
        """The split that a file's name starts with."""
        assert self.path is not None
        return next((s for s in self.splits if self.path.name.startswith(s)), None)

    def _rows(self, split: str) -> tuple[Iterable[tuple[str, Row]], bool]:
        """Rows that contain a split, and whether they contain others too and have to be split."""
        if self.path is None:
            return self._hub_rows(split), False
        if self.path.is_dir():
            return read_jsonl(split_file(self.path, split), SET_PATH), False
        named = self._named() if self.path.is_file() else None
        if named is not None and named != split:
            raise DataError(
                f"task.path {self.path} holds the {named} split by its name, and the {split} split is needed too; set "
                f"task.path to a directory with {named}.jsonl and {split}.jsonl"
            )
        return read_jsonl(self.path, SET_PATH), named is None and len(self.splits) > 1

    def _hub_rows(self, split: str) -> list[tuple[str, Row]]:
        way_out = (
            f"set task.path to a directory with {split}.jsonl (plain or .gz), rows {{{self.fields}}}; docs/tasks.md says "
            "where to get it"
        )
        if self.hub is None:
            raise DataError(f"task {self.task} has no {split} data of its own on the Hub; {way_out}")
        import datasets

        name = (self.hub.id,) if self.hub.config is None else (self.hub.id, self.hub.config)
        try:
            data = datasets.load_dataset(*name, split=split)
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            here = "is no file or directory here, and " if self.hub.named_by_user else ""
            raise DataError(
                f"data set {self.hub.id} {here}could not be loaded from the Hugging Face Hub or its local cache: {reason}; {way_out}"
            ) from error
        return [(f"{self.hub.id} {split} row {i}", dict(row)) for i, row in enumerate(data)]


def local(path: str | None) -> Path | None:
    """The path of a setting, with ``~`` expanded."""
    return None if path is None else Path(path).expanduser()
