"""Plays the evaluations of ``selfcorrect.measuring.evaluate`` against an endpoint. A stopped measurement can continue.

Every finished episode is one line of a journal, written at once. The summary is made from the journal, so a measurement
in two parts equals one in a single part. A conversation that the endpoint refuses is an episode with the verdict
``error``; a measurement that continues tries it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfcorrect.config import Config
from selfcorrect.engines.chat import ShownAs
from selfcorrect.episodes.completion import REFUSED
from selfcorrect.episodes.endpoint import Endpoint, TextSource
from selfcorrect.episodes.play import Key, Play, Reply, graded, play_turns
from selfcorrect.episodes.verdict import verdict_turn
from selfcorrect.errors import EndpointError, RunError
from selfcorrect.measuring.evaluate import FEEDBACK, Firsts, usable_wrong
from selfcorrect.records.files import append_line, cut_torn_line, disk_reason, lock, read_journal
from selfcorrect.records.lines import episode_from_row, episode_row
from selfcorrect.tasks.base import GivesFirst, Task
from selfcorrect.types import Attempt, Episode, Problem

WRONG_FIRSTS = "wrong-firsts"
"""Journal's name for single attempts that are sampled to find wrong ones for the control."""
SETTINGS = "settings"
"""Key of a journal's first line."""
FIRST_REFUSED = 10
"""A measurement ends after this many refusals (or all episodes, if fewer) without any answer: the request itself must
be wrong."""
MOST_REFUSED = 0.1
"""A measurement ends if more than this share of its episodes, and more than one, is refused: the rest would be a biased
selection."""


class Journal:
    """Episodes of one measurement, in a JSONL file whose first line holds the settings. Use ``Journal.opened``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, dict[tuple[str, int], Episode]] = {}

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path, settings: Mapping[str, Any]) -> Iterator[Journal]:
        """A new journal, or one that the same settings began.

        Raises:
            RunError: the file belongs to other settings, is no journal, is being written, or cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        except OSError as error:
            raise RunError(f"{path} cannot be written: {disk_reason(error)}; name another file with --out") from None
        with file:
            lock(file, path)
            journal = cls(path)
            journal._read(settings)
            yield journal

    def _read(self, settings: Mapping[str, Any]) -> None:
        """Read what an earlier process wrote, or begin the file. A file that is not such a journal is left
        unchanged."""
        way_out = "it is not overwritten; name another file with --out"
        lines = read_journal(self._path, _journal_line, way_out)
        where = [i for i, (name, _) in enumerate(lines) if name == SETTINGS]
        begun = b'{"settings": '.startswith(self._path.read_bytes()[:13])  # by a process killed in its first line
        if where != [0] if lines else not begun:
            raise RunError(f"{self._path} holds something else; {way_out}")
        found = lines[0][1] if lines else settings
        changed = sorted(k for k in {*found, *settings} if found.get(k) != settings.get(k))
        if changed:
            was = ", ".join(f"{k} was {json.dumps(found.get(k))[:80]}" for k in changed)
            raise RunError(
                f"{self._path} was begun with other settings ({was}), and one table must not mix them; give the same settings "
                "to continue, or name another file with --out"
            )
        cut_torn_line(self._path)
        if not lines:
            self._write({SETTINGS: dict(settings)})
        for name, episode in lines[1:]:
            self._rows.setdefault(name, {})[episode.problem.id, episode.sample] = episode

    def _write(self, row: Mapping[str, Any]) -> None:
        append_line(self._path, json.dumps(row), "free some space and give the same command again to continue")

    def append(self, name: str, episode: Episode) -> None:
        row = episode_row(episode)
        self._write({"evaluation": name, **row})
        self._rows.setdefault(name, {})[episode.problem.id, episode.sample] = episode_from_row(row)

    def episodes(self, name: str) -> dict[tuple[str, int], Episode]:
        """The finished episodes of one evaluation, by problem id and sample."""
        return dict(self._rows.get(name, {}))

    @property
    def n_episodes(self) -> int:
        return sum(map(len, self._rows.values()))


def _journal_line(line: str) -> tuple[str, Any]:
    """(``SETTINGS``, the settings) of the first line; (name of the evaluation, episode) of all others.

    Raises:
        ValueError: the line is neither.
    """
    try:
        row = json.loads(line)
        if SETTINGS in row:
            return SETTINGS, dict(row[SETTINGS])
        return row.pop("evaluation"), episode_from_row(row)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None


def settings_of(
    endpoint: Endpoint, task: Task, problems: Sequence[Problem], config: Config, body: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that a measurement depends on; a journal is continued only if all of it is the same."""
    asked = hashlib.sha256()
    for p in problems:
        given = [list(task.first_answers(p))] if isinstance(task, GivesFirst) else []
        asked.update(json.dumps([p.id, task.first_messages(p), p.answer, *given]).encode())
    return {
        "base_url": endpoint.base_url,
        "model": endpoint.model,
        "body": dict(body),
        "task": task.name,
        "instruction": task.instruction,
        "problems": len(problems),
        "problems_sha256": asked.hexdigest(),
        "attempts": config.eval.attempts,
        "samples": config.eval.samples,
        "temperature": config.eval.temperature,
        "max_new_tokens": config.play.max_new_tokens,
        "seed": config.seed,
        "task_settings": {
            key: value
            for key, value in config.task.model_dump(exclude={"name", "path"}).items()
            if (key, value) != ("shown_as", "assistant")  # which older journals do not have
        },
        **({"feedback": FEEDBACK} if config.method.name == "self_refine" else {}),
        **verdict_turn(config),
    }


class EndpointPlayer:
    """A ``Player`` against an endpoint, through a journal; ``selfcorrect.measuring.evaluate`` says what it plays.

    Args:
        endpoint: as many episodes are played at once as it allows requests at once.
        task: prompts, instruction, verdicts.
        journal: an episode that it holds is not played again, unless the endpoint refused it.
        on_episode: called after every new episode.
        shown_as: who shows an answer to the next attempt.

    Raises:
        EndpointError: raised by every method if the endpoint kept failing or refused too many episodes
            (``MOST_REFUSED``, ``FIRST_REFUSED``). Finished episodes are in the journal.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        task: Task,
        journal: Journal,
        on_episode: Callable[[], None] = lambda: None,
        shown_as: ShownAs = "assistant",
    ) -> None:
        self._endpoint, self._task, self._journal, self._on_episode = endpoint, task, journal, on_episode
        self._shown_as = shown_as
        self._refused: Counter[str] = Counter()

    async def play(self, name: str, problems: Sequence[Problem], how: Play, firsts: Firsts | None) -> list[Episode]:
        keys = [(p, g) for p in problems for g in range(how.samples)]
        done = {key for key, e in self._journal.episodes(name).items() if not was_refused(e)}
        missing = ((p, g) for p, g in keys if (p.id, g) not in done)
        await _all(
            (self._episode(name, p, g, how, firsts[p.id][g] if firsts else None, len(keys)) for p, g in missing),
            self._endpoint.concurrency,
        )
        finished = self._journal.episodes(name)
        return [replace(finished[p.id, g], problem=p) for p, g in keys]

    async def wrong_firsts(self, problems: Sequence[Problem], how: Play) -> Firsts:
        """See ``Player``. Samples one answer after the other until one is wrong, because every request may cost
        money."""
        found: dict[str, tuple[str]] = {}

        async def seek(problem: Problem) -> None:
            rows = self._journal.episodes(WRONG_FIRSTS)
            for g in range(how.samples):
                episode = rows.get((problem.id, g))
                if episode is None or was_refused(episode):
                    episode = await self._episode(WRONG_FIRSTS, problem, g, how, None, len(problems))
                if usable_wrong(episode):
                    found[problem.id] = (episode.attempts[0].text,)
                if usable_wrong(episode) or was_refused(episode):
                    return

        await _all((seek(p) for p in problems), self._endpoint.concurrency)
        return found

    def stored(self, problems: Sequence[Problem], samples: int) -> Firsts | None:
        task = self._task
        if not isinstance(task, GivesFirst):
            return None
        texts = {p.id: task.first_answers(p) for p in problems}
        return {i: [stored[g % len(stored)] for g in range(samples)] for i, stored in texts.items()}

    def first_of(self, attempt: Attempt) -> str | None:
        return None if attempt.stop == "refused" else attempt.text

    async def _episode(
        self, name: str, problem: Problem, sample: int, how: Play, first: str | None, episodes: int
    ) -> Episode:
        """Play one episode (of ``episodes`` in total), grade it, and write it to the journal."""

        def seed_of(key: Key) -> int | None:
            """A seed of 31 bits, which every server accepts; the same in every run."""
            digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
            return int.from_bytes(digest) >> 1 if how.temperature > 0 else None

        refusals: list[EndpointError] = []

        def on_fault(fault: EndpointError) -> Reply:
            if fault.status not in REFUSED and not fault.one_answer:
                raise fault
            refusals.append(fault)
            return Reply("", "refused", fault=str(fault))

        source = TextSource(self._endpoint, how.max_new_tokens, how.temperature, seed_of, on_fault, self._shown_as)
        (replies,) = await play_turns(
            source,
            self._task.first_messages(problem),
            how,
            self._task.instruction,
            (*how.stream, name, problem.id),
            samples=(sample,),
            given=None if first is None else [Reply(first, "end")],
        )
        (episode,) = await graded(self._task, problem, {sample: replies}, how, given=first is not None)
        self._journal.append(name, episode)
        self._on_episode()
        if refusals:
            self._stop_if_many_are_refused(name, refusals[0], episodes)
        return episode

    def _stop_if_many_are_refused(self, name: str, error: EndpointError, episodes: int) -> None:
        self._refused[name] += 1
        n = self._refused[name]
        none_answered = all(was_refused(e) for e in self._journal.episodes(name).values())
        if n <= max(1, MOST_REFUSED * episodes) and not (none_answered and n >= min(FIRST_REFUSED, episodes)):
            return
        what = "without answering any" if none_answered else f"of {episodes}"
        raise EndpointError(
            f"{error}. It has refused {n} episodes {what}, too many to leave out; correct the request (--body, "
            "play.max_new_tokens, task.*) or the server",
            status=error.status,
        )


def was_refused(episode: Episode) -> bool:
    """Whether the endpoint refused a turn of this episode. Later turns are then not requested."""
    return any(a.stop == "refused" for a in episode.attempts)


async def _all(work: Iterator[Coroutine[Any, Any, object]], at_once: int) -> None:
    """Run everything, ``at_once`` at a time; the first fault stops the rest.

    Limiting requests alone is not enough: every episode would get its first attempt before any gets its second, and a
    stop in the first half would lose them all.
    """

    async def worker() -> None:
        for coroutine in work:  # shared: each worker takes the next
            await coroutine

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())
    except ExceptionGroup as faults:
        raise faults.exceptions[0] from None


def journal_path(model: str, task: str, seed: int) -> Path:
    """The default file of a measurement."""
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in model.rpartition("/")[2]).strip(".") or "model"
    return Path("runs") / f"endpoint-{name}-{task}-s{seed}.jsonl"
