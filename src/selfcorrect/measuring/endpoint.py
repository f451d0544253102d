"""Measuring a model behind an endpoint, with the table of ``selfcorrect.measuring.evaluate``; a stopped measurement goes on.

Every finished episode is one line of a journal, written at once. What is summed up is read back from that journal, so
a measurement in two parts is the same as one in a single part. A conversation that the endpoint refuses is an episode
with the verdict ``error``; it is asked for again when a measurement goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from selfcorrect.config import Config
from selfcorrect.episodes.endpoint import REFUSED, Endpoint, Reply, alternate
from selfcorrect.errors import EndpointError, RunError
from selfcorrect.measuring.evaluate import TRIES_FOR_A_WRONG_ANSWER, Evaluation, partners
from selfcorrect.measuring.metrics import summarise
from selfcorrect.records.files import disk_reason, lock
from selfcorrect.records.lines import episode_from_row, episode_row
from selfcorrect.tasks.base import Answer, GivesFirst, Task, grade_answers
from selfcorrect.types import Attempt, Episode, Grade, Problem, Verdict

WRONG_FIRSTS = "wrong-firsts"
"""Name in the journal of single attempts, sampled in search of wrong ones to give back."""
FIRST_REFUSED = 10
"""So many refusals (or all episodes, if fewer) without any answer end a measurement: the request itself is at fault."""
MOST_REFUSED = 0.1
"""More than this share of an evaluation's episodes refused, and more than one, end it: the rest would be a selection."""
Key = tuple[str, int]
"""Problem id and sample."""


class Journal:
    """Episodes of one measurement, in a JSONL file whose first line holds the settings. Use ``Journal.opened``."""

    def __init__(self, file: IO[str], path: Path) -> None:
        self._file = file
        self._path = path
        self._rows: dict[str, dict[Key, Episode]] = {}

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path, settings: Mapping[str, Any]) -> Iterator[Journal]:
        """A new journal, or one that the same settings began.

        Raises:
            RunError: the file belongs to other settings, is no journal, is being written, or cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise RunError(f"{path} cannot be written: {disk_reason(error)}; name another file with --out") from None
        with file:
            lock(file, path)
            journal = cls(file, path)
            journal._read(settings)
            yield journal

    def _read(self, settings: Mapping[str, Any]) -> None:
        self._file.seek(0)
        try:
            content = self._file.read()
            whole, newline, _ = content.rpartition("\n")
            lines = whole.split("\n") if newline else []
            found = dict(json.loads(lines[0])["settings"]) if lines else None
            rows = [json.loads(line) for line in lines[1:]]
            for row in rows:
                self._keep(row.pop("evaluation"), episode_from_row(row))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RunError(
                f"{self._path} is not the record of a measurement by this version, and is not overwritten; name another file "
                "with --out"
            ) from None
        if found is None:
            if content and not content.startswith('{"settings": '):
                raise RunError(
                    f"{self._path} holds something else and is not overwritten; name another file with --out"
                )
            self._file.truncate(0)
            self._write({"settings": dict(settings)})
            return
        changed = sorted(k for k in {*found, *settings} if found.get(k) != settings.get(k))
        if changed:
            was = ", ".join(f"{k} was {json.dumps(found.get(k))[:80]}" for k in changed)
            raise RunError(
                f"{self._path} was begun with other settings ({was}), and one table must not mix them; give the same settings "
                "to go on, or name another file with --out"
            )
        # a killed process leaves at most one unfinished line
        self._file.truncate(len((whole + newline).encode("utf-8")))

    def _keep(self, name: str, episode: Episode) -> None:
        self._rows.setdefault(name, {})[episode.problem.id, episode.sample] = episode

    def _write(self, row: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(row, ensure_ascii=True) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunError(
                f"{self._path} cannot be written: {disk_reason(error)}; free room and give the same command again to go on"
            ) from None

    def append(self, name: str, episode: Episode) -> None:
        row = episode_row(episode)
        self._write({"evaluation": name, **row})
        self._keep(name, episode_from_row(row))

    def episodes(self, name: str) -> dict[Key, Episode]:
        """The finished episodes of one evaluation."""
        return dict(self._rows.get(name, {}))

    @property
    def n_episodes(self) -> int:
        return sum(map(len, self._rows.values()))


def settings_of(
    endpoint: Endpoint, task: Task, problems: Sequence[Problem], config: Config, body: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that a measurement depends on; a journal is continued only under the same."""
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
        "max_new_tokens": config.train.max_new_tokens,
        "seed": config.seed,
        "task_settings": config.task.model_dump(exclude={"name", "path"}),
    }


@dataclass(frozen=True, slots=True)
class _Play:
    """How the episodes of one evaluation are played."""

    name: str
    attempts: int
    temperature: float
    episodes: int = 0
    """In all, those that the journal holds already too."""


class Measurement:
    """Plays against an endpoint, through a journal.

    Args:
        endpoint: as many episodes are under way as it takes requests at once.
        task: prompts, instruction, verdicts.
        problems: held-out problems.
        config: its ``eval``, ``seed`` and ``train.max_new_tokens`` count.
        journal: what is in it is not asked for again.
        said: called after every new episode.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        task: Task,
        problems: Sequence[Problem],
        config: Config,
        journal: Journal,
        said: Callable[[], None] = lambda: None,
    ) -> None:
        self._endpoint, self._task, self._problems = endpoint, task, problems
        self._config, self._journal, self._said = config, journal, said
        self._refused: Counter[str] = Counter()

    async def run(self) -> list[Evaluation]:
        """The plain evaluation and, where the settings ask for them, its controls.

        Raises:
            EndpointError: the endpoint kept failing, or refused too many (``MOST_REFUSED``, ``FIRST_REFUSED``); what was
                finished is in the journal.
        """
        wanted = self._config.eval
        out = [await self._plain(_Play("plain", wanted.attempts, wanted.temperature), wanted.samples)]
        if wanted.controls and wanted.attempts > 1:
            out += await self._controls(_Play("plain-swapped", 2, wanted.temperature), out[0].episodes)
        return out

    async def _plain(self, how: _Play, samples: int) -> Evaluation:
        firsts: dict[Key, str | None] = {}
        for p in self._problems:
            stored = self._task.first_answers(p) if isinstance(self._task, GivesFirst) else [None]
            firsts |= {(p.id, g): stored[g % len(stored)] for g in range(samples)}
        return await self._evaluation(how, firsts)

    async def _controls(self, how: _Play, plain: Sequence[Episode]) -> list[Evaluation]:
        """As ``selfcorrect.measuring.evaluate.controls``, with texts for token ids."""
        firsts = {e.problem.id: e.attempts[0].text for e in plain if e.sample == 0 and not _is_refused(e.attempts[0])}
        partner = partners([p for p in self._problems if p.id in firsts])
        swapped = {(i, 0): firsts[partner[i]] for i in firsts}
        out = [await self._evaluation(how, swapped)]
        wrong = {} if isinstance(self._task, GivesFirst) else await self._wrong_firsts()
        if wrong:
            out.append(await self._evaluation(replace(how, name="plain-given-wrong"), wrong))
        return out

    async def _evaluation(self, how: _Play, firsts: Mapping[Key, str | None]) -> Evaluation:
        start = time.perf_counter()
        by_id = {p.id: p for p in self._problems}
        how = replace(how, episodes=len(firsts))
        done = {key: e for key, e in self._journal.episodes(how.name).items() if not was_refused(e)}
        missing = ((key, first) for key, first in firsts.items() if key not in done)
        await self._all(self._play(how, by_id[i], g, first) for (i, g), first in missing)
        finished = self._journal.episodes(how.name)
        episodes = [replace(finished[key], problem=by_id[key[0]]) for key in firsts]
        seed = self._config.seed
        settings = {
            "task": self._task.name,
            "problems": len({i for i, _ in firsts}),
            "attempts": how.attempts,
            "samples": len({g for _, g in firsts}),
            "temperature": how.temperature,
            "max_new_tokens": self._config.train.max_new_tokens,
            "seed": seed,
        }
        return Evaluation(how.name, episodes, summarise(episodes, seed=seed), settings, time.perf_counter() - start)

    async def _play(self, how: _Play, problem: Problem, sample: int, first: str | None) -> Episode:
        messages: list[dict[str, object]] = [dict(m) for m in self._task.first_messages(problem)]
        attempts: list[Attempt] = []
        for k in range(how.attempts):
            if k > 0:
                messages = alternate(messages, attempts[-1].text, self._task.instruction)
            if k == 0 and first is not None:
                attempts.append(_given(first))
                continue
            try:
                reply = await self._endpoint.complete(
                    messages,
                    max_tokens=self._config.train.max_new_tokens,
                    temperature=how.temperature,
                    seed=_seed(self._config.seed, how.name, problem.id, sample, k) if how.temperature > 0 else None,
                )
            except EndpointError as error:
                if error.status not in REFUSED:
                    raise
                attempts += [_refused(error, j) for j in range(k, how.attempts)]
                episode = await self._record(how.name, problem, sample, attempts)
                self._stop_if_many_are_refused(how, error)
                return episode
            attempts.append(_sampled(reply, k))
        return await self._record(how.name, problem, sample, attempts)

    async def _record(self, name: str, problem: Problem, sample: int, attempts: Sequence[Attempt]) -> Episode:
        answers = [Answer(a.text, truncated=a.stop == "length") for a in attempts if a.grade is None]
        grades = iter(await grade_answers(self._task, problem, answers) if answers else [])
        graded = tuple(a if a.grade else replace(a, grade=next(grades)) for a in attempts)
        episode = Episode(problem, sample, graded)
        self._journal.append(name, episode)
        self._said()
        return episode

    def _stop_if_many_are_refused(self, how: _Play, error: EndpointError) -> None:
        self._refused[how.name] += 1
        n = self._refused[how.name]
        none_answered = all(was_refused(e) for e in self._journal.episodes(how.name).values())
        if n <= max(1, MOST_REFUSED * how.episodes) and not (none_answered and n >= min(FIRST_REFUSED, how.episodes)):
            return
        what = "without answering any" if none_answered else f"of {how.episodes}"
        raise EndpointError(
            f"{error}. It has refused {n} episodes {what}, too many to leave out; mend the request (--body, "
            "train.max_new_tokens, task.*) or the server",
            status=error.status,
        )

    async def _wrong_firsts(self) -> dict[Key, str]:
        """A wrong answer of the model's own per problem, where a few samples hold one."""
        how = _Play(WRONG_FIRSTS, 1, 1.0, len(self._problems))
        await self._all(self._seek_wrong(how, p) for p in self._problems)
        found: dict[Key, str] = {}
        rows = self._journal.episodes(WRONG_FIRSTS)
        for p in self._problems:
            tries = [e for g in range(TRIES_FOR_A_WRONG_ANSWER) if (e := rows.get((p.id, g))) is not None]
            wrong = next((e for e in tries if _usable_wrong(e)), None)
            if wrong is not None:
                found[p.id, 0] = wrong.attempts[0].text
        return found

    async def _all(self, work: Iterator[Coroutine[Any, Any, object]]) -> None:
        await _all(work, self._endpoint.concurrency)

    async def _seek_wrong(self, how: _Play, problem: Problem) -> None:
        """One sample after the other until one is wrong: every request may cost money."""
        rows = self._journal.episodes(how.name)
        for g in range(TRIES_FOR_A_WRONG_ANSWER):
            episode = rows.get((problem.id, g))
            if episode is None or was_refused(episode):
                episode = await self._play(how, problem, g, None)
            if _usable_wrong(episode) or was_refused(episode):
                return


def _usable_wrong(episode: Episode) -> bool:
    return episode.attempts[0].wrong and episode.attempts[0].stop == "end"


def _is_refused(attempt: Attempt) -> bool:
    return attempt.stop == "refused"


def was_refused(episode: Episode) -> bool:
    """Whether the endpoint refused one of its attempts; those after it were not asked for."""
    return any(map(_is_refused, episode.attempts))


def _refused(error: EndpointError, k: int) -> Attempt:
    grade = Grade(Verdict.ERROR, None, str(error))
    return Attempt("", None, None, None, "refused", grade, parent=k - 1 if k else None)


def _sampled(reply: Reply, k: int) -> Attempt:
    return Attempt(reply.text, None, None, None, reply.stop, parent=k - 1 if k else None)


def _given(text: str) -> Attempt:
    return Attempt(text, None, None, None, "given", source="given")


def _seed(*key: int | str) -> int:
    """A seed per answer, the same in every run; 31 bits, which every server takes."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest()) >> 1


async def _all(work: Iterator[Coroutine[Any, Any, object]], at_once: int) -> None:
    """Run everything, so many at once; the first fault stops the rest.

    Bounded here and not only at the requests: otherwise every episode would have its first attempt before any has its
    second, and a stop in the first half would lose them all.
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
    """Where a measurement goes that names no file."""
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in model.rpartition("/")[2]).strip(".") or "model"
    return Path("runs") / f"endpoint-{name}-{task}-s{seed}.jsonl"
