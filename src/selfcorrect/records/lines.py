"""Typed records. One JSONL stream per run is the single source of truth: reports, comparisons and servers read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from selfcorrect.errors import DataError
from selfcorrect.records.files import read_jsonl
from selfcorrect.types import Attempt, Episode, Grade, Problem, Verdict


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StartRecord(_Record):
    kind: Literal["start"] = "start"
    time: str
    command: str
    versions: dict[str, str]
    engine: dict[str, Any]
    resumed_from_step: int | None = None
    base: str | None = None
    """What the model's name stood for, see ``engines.models.identity``. Older versions did not record it."""


class VerdictNumbers(_Record):
    """The verdict turns of one optimiser step: how the model judges its own answers."""

    accuracy: float | None
    """Share of the verdicts that agree with the verifier; a text without a verdict does not. None: nothing to compare."""
    balanced: float | None
    """Mean of two shares: of the right answers those called correct, of the wrong ones those called wrong. None where
    answers of one of the kinds are missing."""
    says_correct: float
    """Share of the verdict turns that say "correct"."""
    says_wrong: float
    """Share that say "wrong", and so ask for a revision."""
    kl: float | None
    """As ``StepRecord.kl``."""
    tokens: float
    """Mean sampled tokens of a verdict turn."""
    tokens_saved: float
    """Per episode, net and estimated: tokens of the first attempt where no second one was played, less the verdict's."""
    zero_variance: float
    """Share of groups whose verdicts all earn the same."""
    skipped_groups: int


class StepRecord(_Record):
    """One optimiser step. Lists have one entry per attempt unless their name says otherwise.

    reward, kl, truncated, no_answer and answer_tokens are over the attempts that were sampled in this step: stored
    first attempts of the base say nothing about the policy. If none was sampled, they hold None; so do reward, fixed and
    broken if the verifier judged none. Changes between
    attempts (answer_change, fixed, broken) are over all episodes. An attempt that was not played, because the model
    called the one before correct, counts in reward with that one's: it is the episode's answer.
    """

    kind: Literal["step"] = "step"
    step: int
    """1-based over the whole run."""
    stage: str
    stage_step: int
    episodes: int
    """Paths from attempt 1 to the last attempt; not the denominator where there are trees."""
    reward: list[float | None]
    """Share of correct answers: unshaped."""
    kl: list[float | None]
    """Mean KL estimate to the reference in nats per attempt."""
    truncated: list[float | None]
    no_answer: list[float | None]
    errors: int
    """Verifier failures in this step, over all attempts."""
    answer_tokens: list[float | None]
    """Mean sampled tokens."""
    thinking_tokens: list[float | None] | None = None
    """Of these, mean tokens of thinking. None where no answer of the step holds any."""
    zero_variance: list[float]
    skipped_groups: list[int]
    answer_change: float | None
    """Share of episodes whose extracted answer differs between the last two attempts; None with one attempt."""
    fixed: float | None
    """Share of episodes wrong at the first and right at the last attempt."""
    broken: float | None
    grad_norm: float
    clipped: bool
    learning_rate: float
    sampler_mismatch: float
    """Largest |trainer log-prob - sampler log-prob| over trained tokens, nats."""
    sampled_tokens: int
    seconds: dict[str, float]
    """Wall seconds by phase: sample, reference, update."""
    sampled_responses: int | None = None
    """Answers sampled in this step, without given ones. None in records of an older version, in which all attempts were
    sampled."""
    beta2_scale: float | None = None
    """Factor of method.beta2 in this step, where it is adapted."""
    ratio_capped: float | None = None
    """Share of the trained tokens whose ratio was truncated (train.ratio_cap); None where ratios were not bounded."""
    ratio_masked: float | None = None
    """Share of the trained tokens whose sequence was left out (train.ratio_mask)."""
    drafted: list[float | None] | None = None
    """Share of the sampled tokens that were copied from an earlier attempt and only checked; None in older records."""
    verdicts: VerdictNumbers | None = None
    """Of the verdict turns; None where there are none."""
    loss: float | None = None
    """Supervised steps only: mean negative log-likelihood per target token, nats. Such a step plays no episodes:
    ``episodes`` counts its training sequences and the lists are empty."""


class CollectRecord(_Record):
    """A part of what a stage samples before its first step: data to imitate, or first attempts of the base."""

    kind: Literal["collect"] = "collect"
    step: int
    """Optimiser steps done before this part."""
    stage: str
    part: int
    """1-based; a part plays as many problems as a step of reinforcement learning."""
    parts: int
    episodes: int
    reward: list[float]
    """Share of correct answers per attempt."""
    kept: int
    """Number of training sequences (or stored first attempts) that were kept."""
    sampled_responses: int
    sampled_tokens: int
    seconds: float


class AlarmRecord(_Record):
    kind: Literal["alarm"] = "alarm"
    step: int
    name: str
    message: str


class CheckpointRecord(_Record):
    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    window_reward: float | None
    """Windowed mean of the unshaped last-attempt training reward; None outside the final stage, before its
    first full window, and if a stop wrote a checkpoint that was not due."""
    best: bool


class EvalRecord(_Record):
    kind: Literal["eval"] = "eval"
    name: str
    """``base``, ``final``, or the name of a control."""
    step: int
    settings: dict[str, Any]
    summary: dict[str, Any]
    """The summary as JSON, from ``metrics.EvalSummary.to_json``."""
    seconds: float
    drafted: list[float | None] | None = None
    """As in the record of a step; one value per attempt."""
    reused_from: str | None = None
    """The run that measured this, where the run took it over instead of measuring again; see ``measuring.reuse``."""


class EndRecord(_Record):
    kind: Literal["end"] = "end"
    step: int
    reason: Literal["finished", "interrupted"]
    train_seconds: float
    sampled_tokens: int
    sampled_responses: int


Record = Annotated[
    StartRecord | StepRecord | CollectRecord | AlarmRecord | CheckpointRecord | EvalRecord | EndRecord,
    Field(discriminator="kind"),
]
_ADAPTER: TypeAdapter[Record] = TypeAdapter(Record)


def parse_record(line: str) -> Record:
    """One line of metrics.jsonl.

    Raises:
        pydantic.ValidationError: not a record of this version.
    """
    return _ADAPTER.validate_json(line)


def episode_row(episode: Episode, *, step: int | None = None, stage: str | None = None) -> dict[str, Any]:
    """An episode as one JSON object: texts and verdicts, no token ids."""
    row: dict[str, Any] = {
        "problem": episode.problem.id,
        "question": episode.problem.question,
        "gold": episode.problem.answer,
        "level": episode.problem.level,
        "sample": episode.sample,
        "attempts": [
            {
                "text": a.text,
                "verdict": a.grade.verdict.value if a.grade else None,
                "extracted": a.grade.extracted if a.grade else None,
                "detail": a.grade.detail if a.grade else "",
                "tokens": len(a.token_ids) if a.token_ids is not None else None,
                "stop": a.stop,
                "source": a.source,
                **({"thinking": a.thinking, "thinking_tokens": a.thinking_tokens} if a.thinking else {}),
                **({"turn": a.turn} if a.turn == "verdict" else {}),
            }
            for a in episode.attempts
        ],
    }
    if step is not None:
        row = {"step": step, "stage": stage, **row}
    return row


def read_episodes(file: Path, repair: str) -> Iterator[tuple[dict[str, Any], Episode]]:
    """Rows of a file of episodes, which may have further fields, each with its episode.

    Args:
        file: a complete file.
        repair: ends the message, after a semicolon.

    Raises:
        DataError: the file is missing or damaged, or a row is not an episode.
    """
    for where, row in read_jsonl(file, repair, repair):
        try:
            episode = episode_from_row(row)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{where} is not an episode ({type(error).__name__}: {error}); {repair}") from None
        yield row, episode


def episode_from_row(row: dict[str, Any]) -> Episode:
    """The episode that ``episode_row`` wrote, without token ids and log-probs.

    Raises:
        KeyError, ValueError: the row does not have that form.
    """
    attempts = tuple(
        Attempt(
            text=a["text"],
            prompt_ids=None,
            token_ids=None,
            logprobs=None,
            stop=a["stop"],
            grade=None if a["verdict"] is None else Grade(Verdict(a["verdict"]), a["extracted"], a["detail"]),
            source=a["source"],
            parent=k - 1 if k else None,
            thinking=a.get("thinking", ""),
            thinking_tokens=a.get("thinking_tokens"),
            turn=a.get("turn", "feedback" if a["verdict"] is None else "answer"),
        )
        for k, a in enumerate(row["attempts"])
    )
    problem = Problem(row["problem"], row["question"], row["gold"], row["level"])
    return Episode(problem, row["sample"], attempts)
