"""Which episodes go on the page, and in what form: a balanced mix, no more than a page can hold."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfcorrect.records.lines import episode_from_row
from selfcorrect.report.reading import Episodes, Line, RunData, read_rows
from selfcorrect.report.tags import TAGS, tags_of
from selfcorrect.report.text import shown, visible

MOST_EPISODES = 400
"""Shared by the runs on a page; a held-out problem with its base beside it counts once."""
MOST_BYTES = 3 * 2**20
"""Of all episodes as JSON, so that the page stays below 5 MB."""
TRAINING_SHARE = 0.25
"""Of a run's episodes, where it has been evaluated too."""
SHORT_CHARACTERS = 200
"""Of ids, levels and extracted answers shown."""

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """What the episode browser is given; see report.js."""

    runs: tuple[dict[str, Any], ...]
    """Per run its name and, per source, how many episodes there are, with each tag."""
    entries: tuple[Entry, ...]

    def to_json(self) -> dict[str, Any]:
        return {"tags": TAGS, "runs": list(self.runs), "entries": list(self.entries)}


def sample_episodes(runs: Sequence[RunData], most: int = MOST_EPISODES, most_bytes: int = MOST_BYTES) -> Sample:
    """Choose and read episodes of all runs, each run with an equal part of the room.

    The same runs give the same sample.
    """
    entries: list[Entry] = []
    for number, run in enumerate(runs):
        entries += _of_run(run, number, most // len(runs), most_bytes // len(runs))
    return Sample(tuple(_totals(run) for run in runs), tuple(entries))


def _totals(run: RunData) -> dict[str, Any]:
    sources = {"trained": run.held_out.get("final"), "base": run.held_out.get("base"), "training": run.training}
    return {
        "name": visible(run.name),
        "totals": {
            name: {"all": len(e.lines), **e.tag_counts, **({} if e.is_whole else {"partial": True})}
            for name, e in sources.items()
            if e is not None and e.lines
        },
    }


def _of_run(run: RunData, number: int, most: int, most_bytes: int) -> list[Entry]:
    held_out = run.held_out.get("final") or run.held_out.get("base")
    training = round(most * TRAINING_SHARE) if held_out is not None else most
    training = min(training, len(run.training.lines))
    entries: list[Entry] = []
    if held_out is not None:
        sides = {
            who: run.held_out[name] for who, name in (("trained", "final"), ("base", "base")) if name in run.held_out
        }
        chosen = balanced(held_out.lines, most - training)
        entries += _within(_held_out(chosen, sides, number), most_bytes * (most - training) // most)
    chosen = balanced(run.training.lines, training)
    entries += _within(_training(chosen, number), most_bytes * training // most)
    return entries


def balanced(lines: Sequence[Line], most: int) -> list[Line]:
    """Up to ``most`` lines, the groups of equal tags taking turns, so that the rare ones are seen; by lot within a group."""
    shuffled = list(lines)
    random.Random(0).shuffle(shuffled)
    groups: dict[tuple[str, ...], list[Line]] = {}
    for line in shuffled:
        groups.setdefault(line.tags, []).append(line)
    ordered = [groups[key] for key in sorted(groups)]
    out: list[Line] = []
    turn = 0
    while len(out) < min(most, len(lines)):
        out += [group[turn] for group in ordered if turn < len(group)]
        turn += 1
    return out[:most]


def _held_out(chosen: Sequence[Line], sides: dict[str, Episodes], number: int) -> list[Entry]:
    wanted = [(line.problem, line.sample) for line in chosen]
    places = {who: {(line.problem, line.sample): line for line in e.lines} for who, e in sides.items()}
    rows = {
        who: dict(zip(found, read_rows([at[key] for key in found]), strict=True))
        for who, at in places.items()
        for found in [[key for key in wanted if key in at]]
    }
    out = []
    for key in wanted:
        parts = {who: rows[who][key] for who in sides if key in rows[who]}
        out.append(_entry(next(iter(parts.values())), parts, number))
    return out


def _training(chosen: Sequence[Line], number: int) -> list[Entry]:
    return [_entry(row, {"training": row}, number) for row in read_rows(chosen)]


def _entry(row: dict[str, Any], parts: dict[str, dict[str, Any]], number: int) -> Entry:
    entry: Entry = {
        "run": number,
        "id": _short(row["problem"]),
        "level": _short(row["level"]),
        "sample": row["sample"],
        "question": shown(row["question"])[0],
        "gold": _short(row["gold"]),
        "sides": {who: _side(part) for who, part in parts.items()},
    }
    if row.get("step") is not None:
        entry["step"] = row["step"]
        entry["stage"] = _short(row["stage"])
    return entry


def _side(row: dict[str, Any]) -> dict[str, Any]:
    return {"tags": tags_of(episode_from_row(row)), "attempts": [_attempt(a) for a in row["attempts"]]}


def _attempt(a: dict[str, Any]) -> dict[str, Any]:
    text, left_out = shown(a["text"])
    return {
        "text": text,
        "leftOut": left_out,
        "verdict": a["verdict"],
        "extracted": _short(a["extracted"]),
        "detail": _short(a["detail"]),
        "tokens": a["tokens"],
        "stop": a["stop"],
        "given": a["source"] != "sampled",
    }


def _short(text: str | None) -> str | None:
    if text is None or len(text) <= SHORT_CHARACTERS:
        return None if text is None else visible(text)
    return f"{visible(text[:SHORT_CHARACTERS])}… ({len(text):,} characters)"


def _within(entries: Sequence[Entry], most_bytes: int) -> list[Entry]:
    """As many entries as fit, in their order; one that is too long makes way for shorter ones."""
    out, used = [], 0
    for entry in entries:
        size = len(json.dumps(entry, ensure_ascii=False).encode())
        if used + size <= most_bytes:
            out.append(entry)
            used += size
    return out
