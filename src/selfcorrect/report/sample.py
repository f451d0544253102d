"""Chooses the episodes of the page: a balanced mix that fits on it, with texts shortened and made visible."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from selfcorrect.records.lines import episode_from_row
from selfcorrect.report.reading import Location, RunData, read_rows
from selfcorrect.report.tags import TAGS, tags_of
from selfcorrect.report.text import shown, visible

MOST_EPISODES = 400
"""Most episodes on a page, over all its runs. A held-out problem counts once, although the trained model and the base
answer it."""
MOST_BYTES = 3 * 2**20
"""Most bytes of all episodes as JSON, so that the page stays below 5 MB."""
TRAINING_SHARE = 0.25
"""Share of the shown episodes that are training episodes, if the run also has evaluations."""
SHORT_CHARACTERS = 200
"""Most characters shown of an id, a level or an extracted answer."""

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """The data of the episode browser in report.js."""

    runs: tuple[dict[str, Any], ...]
    """For each run its name and, for each source, the number of episodes in total and with each tag."""
    entries: tuple[Entry, ...]

    def to_json(self) -> dict[str, Any]:
        return {"tags": TAGS, "runs": list(self.runs), "entries": list(self.entries)}


def sample_episodes(runs: Sequence[RunData], most: int = MOST_EPISODES, most_bytes: int = MOST_BYTES) -> Sample:
    """Choose and read episodes of all runs, equally many of each. The same runs give the same sample."""
    entries: list[Entry] = []
    totals = []
    for number, run in enumerate(runs):
        entries += _of_run(run, number, most // len(runs), most_bytes // len(runs))
        sources = {"trained": run.held_out.get("final"), "base": run.held_out.get("base"), "training": run.training}
        counts = {
            name: {
                "all": len(e.lines),
                **Counter(tag for line in e.lines for tag in line.tags),
                **({} if e.is_whole else {"partial": True}),
            }
            for name, e in sources.items()
            if e is not None and e.lines
        }
        totals.append({"name": visible(run.name), "totals": counts})
    return Sample(tuple(totals), tuple(entries))


def _of_run(run: RunData, number: int, most: int, most_bytes: int) -> list[Entry]:
    sides = {who: run.held_out[name] for who, name in (("trained", "final"), ("base", "base")) if name in run.held_out}
    training = min(round(most * TRAINING_SHARE) if sides else most, len(run.training.lines))
    entries: list[Entry] = []
    if sides:
        chosen = [(line.problem, line.sample) for line in balanced(next(iter(sides.values())).lines, most - training)]
        rows: dict[tuple[str, int], dict[str, dict[str, Any]]] = {key: {} for key in chosen}
        for who, episodes in sides.items():
            found = {key: line for line in episodes.lines if (key := (line.problem, line.sample)) in rows}
            for key, row in zip(found, read_rows(list(found.values())), strict=True):
                rows[key][who] = row
        entries += _within([_entry(rows[key], number) for key in chosen], most_bytes * (most - training) // most)
    rest = read_rows(balanced(run.training.lines, training))
    return entries + _within([_entry({"training": row}, number) for row in rest], most_bytes * training // most)


def balanced(lines: Sequence[Location], most: int) -> list[Location]:
    """Up to ``most`` lines. They are taken in turn from groups with the same tags, so that rare groups appear; within a
    group at random."""
    shuffled = list(lines)
    random.Random(0).shuffle(shuffled)
    groups: dict[tuple[str, ...], list[Location]] = {}
    for line in shuffled:
        groups.setdefault(line.tags, []).append(line)
    turns = zip_longest(*(groups[key] for key in sorted(groups)))
    return [line for turn in turns for line in turn if line is not None][:most]


def _entry(rows: dict[str, dict[str, Any]], number: int) -> Entry:
    """One entry of run ``number``: the rows of one problem, by whose answers they are."""
    row = next(iter(rows.values()))
    sides: dict[str, Any] = {}
    for who, part in rows.items():
        attempts = []
        before = None  # the answer before this one, whole: two long texts may be shown alike and differ in the middle
        for a in part["attempts"]:
            text, left_out = shown(a["text"])
            kept = {key: a[key] for key in ("verdict", "tokens", "stop")}
            short = {key: _short(a[key]) for key in ("extracted", "detail")}
            if thinking := a.get("thinking"):
                kept |= {"thinking": shown(thinking)[0], "thinkingTokens": a.get("thinking_tokens")}
            if a.get("turn") == "verdict":
                kept["turn"] = "verdict"
            else:
                if a["source"] == "kept":
                    kept["kept"] = True
                elif a["text"] == before:
                    kept["repeats"] = True
                before = a["text"]
            attempts.append({"text": text, "leftOut": left_out, "given": a["source"] == "given", **kept, **short})
        sides[who] = {"tags": tags_of(episode_from_row(part)), "attempts": attempts}
    entry: Entry = {
        "run": number,
        "id": _short(row["problem"]),
        "level": _short(row["level"]),
        "sample": row["sample"],
        "question": shown(row["question"])[0],
        "gold": _short(row["gold"]),
        "sides": sides,
    }
    if row.get("step") is not None:
        entry |= {"step": row["step"], "stage": _short(row["stage"])}
    return entry


def _short(text: str | None) -> str | None:
    if text is None or len(text) <= SHORT_CHARACTERS:
        return None if text is None else visible(text)
    return f"{visible(text[:SHORT_CHARACTERS])}… ({len(text):,} characters)"


def _within(entries: Sequence[Entry], most_bytes: int) -> list[Entry]:
    """As many entries as fit, in order. An entry that is too long is skipped, and shorter ones may follow."""
    out, used = [], 0
    for entry in entries:
        size = len(json.dumps(entry, ensure_ascii=False).encode())
        if used + size <= most_bytes:
            out.append(entry)
            used += size
    return out
