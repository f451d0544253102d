"""What training looks like in a terminal; plain lines where there is none."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from selfcorrect.methods import Stage
from selfcorrect.records import AlarmRecord, CheckpointRecord, CollectRecord, StepRecord

PLAIN_LINE_EVERY_S = 5.0


class TerminalObserver:
    """Live table on a terminal, a line every few seconds elsewhere. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID | None = None
        self._stage: Stage | None = None
        self._total = 0
        self._last_line = 0.0
        self._steps_timed: list[float] = []

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(self._bar, console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def on_stage(self, stage: Stage, first_step: int, total_steps: int) -> None:
        self._stage, self._total = stage, total_steps
        if self._task is None:
            self._task = self._bar.add_task(stage.title, total=total_steps, completed=first_step)
        else:
            self._bar.update(self._task, description=stage.title)
        self._console.print(f"{stage.title}: {stage.steps} steps from step {first_step + 1}", highlight=False)

    def on_collect(self, record: CollectRecord) -> None:
        if time.monotonic() - self._last_line > PLAIN_LINE_EVERY_S or record.part == record.parts:
            self._last_line = time.monotonic()
            self._console.print(
                f"{record.stage}: sampled part {record.part} of {record.parts}, kept {record.kept} of {record.episodes}",
                highlight=False,
            )

    def on_step(self, record: StepRecord) -> None:
        assert self._stage is not None and self._task is not None
        self._bar.update(self._task, completed=record.step)
        self._steps_timed = [*self._steps_timed[-19:], sum(record.seconds.values())]
        if self._live is not None:
            self._live.update(Group(*([_table(record)] if record.reward else []), self._bar))
        elif time.monotonic() - self._last_line > PLAIN_LINE_EVERY_S or record.step == self._total:
            self._last_line = time.monotonic()
            left = sum(self._steps_timed) / len(self._steps_timed) * (self._total - record.step)
            self._console.print(
                f"{self._stage.title} {_line(record)}  left {left:.0f} s", highlight=False, soft_wrap=True
            )

    def on_alarm(self, record: AlarmRecord) -> None:
        self._console.print(
            f"alarm at step {record.step}, {record.name}: {record.message}", style="yellow", highlight=False
        )

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        """Checkpoints are not announced: their absence is what a user must hear of, as an error."""


def _tokens_per_second(record: StepRecord) -> float:
    return record.sampled_tokens / max(sum(record.seconds.values()), 1e-9)


def _per_attempt(values: list[float | None], form: str) -> str:
    return " ".join(_cells(values, form))


def _cells(values: list[float | None], form: str) -> list[str]:
    return ["n/a" if v is None else format(v, form) for v in values]


def _line(r: StepRecord) -> str:
    if r.loss is not None:
        return f"step {r.step}  loss {r.loss:.3f} nats per token, {r.episodes} sequences"
    change = "n/a" if r.answer_change is None else f"{r.answer_change:.0%}"
    return (
        f"step {r.step}  reward {_per_attempt(r.reward, '.3f')}  KL {_per_attempt(r.kl, '.3f')}  changed {change}  "
        f"cut {_per_attempt(r.truncated, '.0%')}  same-verdict groups {' '.join(f'{x:.0%}' for x in r.zero_variance)}  "
        f"{_tokens_per_second(r):.0f} tokens/s"
    )


def _table(r: StepRecord) -> Table:
    table = Table(title=f"step {r.step}", title_justify="left")
    table.add_column("")
    for k in range(len(r.reward)):
        table.add_column(f"attempt {k + 1}", justify="right")
    table.add_row("reward (unshaped)", *_cells(r.reward, ".3f"))
    table.add_row("KL to base, nats", *_cells(r.kl, ".3f"))
    table.add_row("cut by the cap", *_cells(r.truncated, ".0%"))
    table.add_row("groups with one verdict", *(f"{x:.0%}" for x in r.zero_variance))
    table.add_row("tokens per answer", *_cells(r.answer_tokens, ".0f"))
    if r.answer_change is not None and r.fixed is not None and r.broken is not None:
        table.caption = f"changed {r.answer_change:.0%}, fixed {r.fixed:.0%}, broken {r.broken:.0%}; {_tokens_per_second(r):.0f} tokens/s"
    else:
        table.caption = f"{_tokens_per_second(r):.0f} tokens/s"
    return table
