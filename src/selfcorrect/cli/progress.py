"""What a run looks like in a terminal; plain lines where there is none."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

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

from selfcorrect.algorithm.stages import Stage
from selfcorrect.measuring.metrics import EvalSummary
from selfcorrect.records.lines import AlarmRecord, CheckpointRecord, CollectRecord, EvalRecord, StepRecord

if TYPE_CHECKING:
    from selfcorrect.records.run_directory import RunDirectory

PLAIN_LINE_EVERY_S = 5.0
STEPS_TIMED = 20
"""The time left is that of so many latest steps."""
MEASURED = {"base": "measuring the base", "final": "measuring the kept checkpoint"}


def measuring_seconds(run: RunDirectory) -> float | None:
    """What measuring the base took in an earlier process of this run; None where that is not recorded."""
    seconds = [r.seconds for r in run.records() if isinstance(r, EvalRecord) and r.name.partition("-")[0] == "base"]
    return sum(seconds) if seconds else None


class TerminalObserver:
    """Live table on a terminal, a line every few seconds elsewhere. Use as a context manager.

    Args:
        console: where to show it.
        measuring_s: what one measurement with its controls takes, from an earlier process of the run. None: it becomes
            known when the base has been measured here.
    """

    def __init__(self, console: Console, measuring_s: float | None = None) -> None:
        self._console = console
        self._live: Live | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[whole]}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._measuring: tuple[str, TaskID, float] | None = None
        """Name, bar and start of the measurement that is going on."""
        self._measuring_s = measuring_s
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

    def on_measure(self, name: str, answers: int, most: int) -> None:
        words = MEASURED.get(name, f"measuring {name}")
        if self._measuring is None or self._measuring[0] != name:
            self._measuring = name, self._bar.add_task(words, total=most, whole="answers at most"), time.monotonic()
            if self._live is not None:
                self._live.update(self._bar, refresh=True)  # the table of the last step is history
        _, task, began = self._measuring
        self._bar.update(task, completed=answers)
        if self._live is None and answers and self._line_due():
            left = (time.monotonic() - began) * (most - answers) / answers
            self._print(f"{words}: {answers:,} of at most {most:,} answers, left {duration(left)} at most")

    def on_evaluation(self, record: EvalRecord) -> None:
        if self._measuring is not None:
            name, task, began = self._measuring
            self._bar.remove_task(task)
            self._measuring = None
            if name == "base":
                self._measuring_s = time.monotonic() - began
        summary = EvalSummary.from_json(record.summary)
        shares = ", ".join(f"t{k} {a.accuracy.text()}" for k, a in enumerate(summary.attempts, 1))
        self._print(f"{record.name}: {shares}, {summary.n_problems} problems")

    def on_stage(self, stage: Stage, first_step: int, total_steps: int) -> None:
        self._stage, self._total = stage, total_steps
        if self._task is None:
            self._task = self._bar.add_task(stage.title, total=total_steps, completed=first_step, whole="")
        else:
            self._bar.update(self._task, description=stage.title)
        self._print(f"{stage.title}: {stage.steps} steps from step {first_step + 1}")

    def on_collect(self, record: CollectRecord) -> None:
        if self._line_due() or record.part == record.parts:
            self._print(
                f"{record.stage}: sampled part {record.part} of {record.parts}, kept {record.kept} of {record.episodes}"
            )

    def on_step(self, record: StepRecord) -> None:
        assert self._stage is not None and self._task is not None
        self._steps_timed = [*self._steps_timed[1 - STEPS_TIMED :], sum(record.seconds.values())]
        left = sum(self._steps_timed) / len(self._steps_timed) * (self._total - record.step)
        whole = self._whole(left)
        self._bar.update(self._task, completed=record.step, whole=whole)
        if self._live is not None:
            self._live.update(Group(*([_table(record)] if record.reward else []), self._bar))
        elif self._line_due() or record.step == self._total:
            self._print(f"{self._stage.title} {_line(record)}  left {duration(left)}{', ' if whole else ''}{whole}")

    def on_alarm(self, record: AlarmRecord) -> None:
        self._console.print(
            f"alarm at step {record.step}, {record.name}: {record.message}", style="yellow", highlight=False
        )

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        """Checkpoints are not announced: their absence is what a user must hear of, as an error."""

    def _whole(self, steps_left_s: float) -> str:
        """The time left for the run: its steps, and the last measurement, which takes about as long as the first."""
        return "" if self._measuring_s is None else f"run {duration(steps_left_s + self._measuring_s)}"

    def _line_due(self) -> bool:
        due = time.monotonic() - self._last_line > PLAIN_LINE_EVERY_S
        if due:
            self._last_line = time.monotonic()
        return due

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


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
