"""What a run samples before the first step of a stage: data to imitate, or first attempts of the base.

It is stored in the run directory part by part, so that a resumed run samples nothing twice. Random streams and problems
are functions of the seed, the stage and the part, and the weights are those of the stage's start: a part sampled after a
crash is the part that was lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfcorrect.algorithm.imitation import Example, Imitation, examples, paired_episodes, star_episodes
from selfcorrect.algorithm.stages import Stage
from selfcorrect.engines.base import Engine
from selfcorrect.engines.chat import Prompt
from selfcorrect.episodes.play import GivenFirst, Play, play
from selfcorrect.episodes.table import judged_means
from selfcorrect.errors import DataError, Interrupted, RunError
from selfcorrect.records.lines import CollectRecord
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.tasks.base import Task
from selfcorrect.types import Attempt, Episode, Problem

OFFLINE = "offline"
"""Name of the stored first attempts of the base."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Collector:
    """Samples from the engine's published weights into the run directory."""

    run: RunDirectory
    engine: Engine
    task: Task
    runner: asyncio.Runner
    step: int
    """Optimiser steps done."""
    tell: Callable[[CollectRecord], None]
    """Hears of every new part."""
    stop_requested: Callable[[], bool]
    """Asked before every part."""
    may_sample: bool = True
    """False once the weights have moved on: what is stored must then be whole."""

    def examples(self, stage: Stage, batches: Sequence[Sequence[Problem]]) -> tuple[list[Example], list[CollectRecord]]:
        """All that an imitating stage trains on.

        Args:
            stage: its ``imitate`` says what is played and kept.
            batches: the problems of each part: as many parts as the stage has steps, as many problems as a step of
                reinforcement learning, so that every method samples as many responses.

        Raises:
            DataError: nothing was kept.
            Interrupted: a stop was requested.
        """
        how = stage.imitate
        assert how is not None

        def keep(part: int, groups: Sequence[Sequence[Episode]]) -> Rows:
            rng = np.random.default_rng([self.run.config.seed, self.step, part, 2])
            kept = [e for group in groups for e in self._kept(how, group, rng)]
            return [x.to_json() for e in kept for x in examples(e, how.train_attempt1)]

        rows, records = self._parts(stage.name, stage.attempts, stage.samples_per_problem, batches, keep)
        if not rows:
            raise self._nothing(stage, how, sum(r.episodes for r in records))
        return [Example.from_json(row) for row in rows], records

    def first_attempts(
        self, samples: int, batches: Sequence[Sequence[Problem]]
    ) -> tuple[GivenFirst, list[CollectRecord]]:
        """Stored first attempts of the base, ``samples`` for each problem. Call before the first step only."""

        def keep(_part: int, groups: Sequence[Sequence[Episode]]) -> Rows:
            return [{"problem": g[0].problem.id, "answers": [list(_ids(e.attempts[0])) for e in g]} for g in groups]

        rows, records = self._parts(OFFLINE, 1, samples, batches, keep)
        return {row["problem"]: [tuple(ids) for ids in row["answers"]] for row in rows}, records

    def _parts(
        self,
        name: str,
        attempts: int,
        samples: int,
        batches: Sequence[Sequence[Problem]],
        keep: Callable[[int, Sequence[Sequence[Episode]]], Rows],
    ) -> tuple[Rows, list[CollectRecord]]:
        stored = self.run.collected(name)
        if len(stored) < len(batches) and not self.may_sample:
            raise RunError(
                f"{self.run.path} holds {len(stored)} of {len(batches)} parts of collected/{name}.jsonl, and the weights that "
                "sampled them have moved on; put the file back, or start a new run"
            )
        for part in range(len(stored), len(batches)):
            if self.stop_requested():
                raise Interrupted(
                    f"stopped after step {self.step} as asked, with {part} of {len(batches)} parts of {name} sampled; "
                    f"continue with `selfcorrect train --resume {self.run.path}`"
                )
            start = time.perf_counter()
            config = self.run.config
            how = Play(attempts, samples, config.play.max_new_tokens, 1.0, (config.seed, "collect", name, part))
            groups = self.runner.run(play(self.engine, self.task, batches[part], how))
            rows = keep(part, groups)
            record = self._record(name, part, len(batches), groups, len(rows), time.perf_counter() - start)
            stored.append({"record": record.model_dump(mode="json"), "rows": rows})
            self.run.append_collected(name, stored[-1])
            self.tell(record)
        return [row for s in stored for row in s["rows"]], [CollectRecord.model_validate(s["record"]) for s in stored]

    def _record(
        self, name: str, part: int, parts: int, groups: Sequence[Sequence[Episode]], kept: int, seconds: float
    ) -> CollectRecord:
        episodes = [e for group in groups for e in group]
        attempts = [a for e in episodes for a in e.attempts]
        return CollectRecord(
            step=self.step,
            stage=name,
            part=part + 1,
            parts=parts,
            episodes=len(episodes),
            reward=judged_means(episodes),
            kept=kept,
            sampled_responses=len(attempts),
            sampled_tokens=sum(len(_ids(a)) for a in attempts),
            seconds=seconds,
        )

    def _kept(self, how: Imitation, group: Sequence[Episode], rng: np.random.Generator) -> list[Episode]:
        if how.source == "star":
            return star_episodes(group, how.keep_right)

        def prompt_after(first: Attempt) -> tuple[int, ...]:
            asked = Prompt(first.prompt_ids or (), self.task.first_messages(group[0].problem))
            return self.engine.chat.extend(asked, _ids(first), self.task.instruction).ids

        return paired_episodes(group, how.keep_right, rng, prompt_after)

    def _nothing(self, stage: Stage, how: Imitation, episodes: int) -> DataError:
        wanted = {
            "star": "no second attempt that turns a wrong first one into a right one",
            "pair_sft": "no problem with both a wrong and a right response",
        }[how.source]
        more = "" if how.keep_right else "method.dataset=D+ (keeps right answers too), "
        return DataError(
            f"{stage.title} has nothing to train on: {episodes} sampled episodes hold {wanted}"
            f"{', nor a right one kept' if how.keep_right else ''}. Start a new run with {more}a larger "
            f"train.samples_per_problem or easier problems; this one is kept as it is in {self.run.path}"
        )


def _ids(attempt: Attempt) -> tuple[int, ...]:
    assert attempt.token_ids is not None, "an engine's answers have token ids"
    return attempt.token_ids
