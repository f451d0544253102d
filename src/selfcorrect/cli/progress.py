"""Shows a run in a terminal, or as plain lines if output goes elsewhere."""

from __future__ import annotations

import time
from functools import partial
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

from selfcorrect.algorithm.stage import Stage
from selfcorrect.measuring.metrics import EvalSummary
from selfcorrect.records.lines import AlarmRecord, CollectRecord, EvalRecord, StepRecord, VerdictNumbers

if TYPE_CHECKING:
    from selfcorrect.records.run_directory import RunDirectory
    from selfcorrect.training.loop import Watched

PLAIN_LINE_EVERY_S = 5.0
STEPS_TIMED = 20
"""The time left is estimated from this many of the latest steps."""
MEASURED = {
    "base": "measuring the base",
    "final": "measuring the kept checkpoint",
    "warmed": "measuring the warmed model",
}


def measuring_seconds(run: RunDirectory) -> float | None:
    """Seconds that an earlier process of this run took to measure the base; None if no record says."""
    seconds = [r.seconds for r in run.records() if isinstance(r, EvalRecord) and r.name.partition("-")[0] == "base"]
    return sum(seconds) if seconds else None


class TerminalObserver:
    """Shows a live table on a terminal, or prints a line every few seconds elsewhere. Use as a context manager.

    Args:
        console: where to show it.
        measuring_s: seconds for one measurement with its controls, from an earlier process of the run. With None, the
            first measurement of the base sets it.
    """

    def __init__(self, console: Console, measuring_s: float | None = None) -> None:
        self._console = console
        self._print = partial(console.print, highlight=False, soft_wrap=True, markup=False)
        self._live: Live | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._measuring: tuple[str, TaskID, float] | None = None
        """Name, bar and start time of the current measurement."""
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
            self._measuring = name, self._bar.add_task(words, total=most, note="answers at most"), time.monotonic()
            if self._live is not None:
                self._live.update(self._bar, refresh=True)  # removes the table of the last step
        _, task, began = self._measuring
        self._bar.update(task, completed=answers)
        if self._live is None and answers and self._line_due():
            left = (time.monotonic() - began) * (most - answers) / answers
            self._print(f"{words}: {answers:,} of at most {most:,} answers, left {duration(left)} at most")

    def _on_evaluation(self, record: EvalRecord) -> None:
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
            self._task = self._bar.add_task(stage.title, total=total_steps, completed=first_step, note="")
        else:
            self._bar.update(self._task, description=stage.title)
        self._print(f"{stage.title}: {stage.steps} steps from step {first_step + 1}")

    def on_record(self, record: Watched) -> None:
        """Show a record. Checkpoints are not shown: one that fails raises an error anyway."""
        match record:
            case StepRecord():
                self._on_step(record)
            case EvalRecord():
                self._on_evaluation(record)
            case CollectRecord():
                self._on_collect(record)
            case AlarmRecord():
                text = f"alarm at step {record.step}, {record.name}: {record.message}"
                self._console.print(text, style="yellow", highlight=False)

    def _on_collect(self, record: CollectRecord) -> None:
        if self._line_due() or record.part == record.parts:
            self._print(
                f"{record.stage}: sampled part {record.part} of {record.parts}, kept {record.kept} of {record.episodes}"
            )

    def _on_step(self, record: StepRecord) -> None:
        assert self._stage is not None and self._task is not None
        self._steps_timed = [*self._steps_timed[1 - STEPS_TIMED :], sum(record.seconds.values())]
        left = sum(self._steps_timed) / len(self._steps_timed) * (self._total - record.step)
        # The final measurement takes about as long as that of the base.
        note = "" if self._measuring_s is None else f"run {duration(left + self._measuring_s)}"
        self._bar.update(self._task, completed=record.step, note=note)
        if self._live is not None:
            self._live.update(Group(*([_table(record)] if record.reward else []), self._bar))
        elif self._line_due() or record.step == self._total:
            self._print(f"{self._stage.title} {_line(record)}  left {duration(left)}{', ' if note else ''}{note}")

    def _line_due(self) -> bool:
        if time.monotonic() - self._last_line <= PLAIN_LINE_EVERY_S:
            return False
        self._last_line = time.monotonic()
        return True


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _rows(r: StepRecord) -> dict[str, list[str]]:
    """The numbers of a step as text, with one value per attempt."""
    shown = {
        "reward": (r.reward, ".3f"),
        "KL": (r.kl, ".3f"),
        "cut": (r.truncated, ".0%"),
        "tokens": (r.answer_tokens, ".0f"),
    }
    rows = {name: ["n/a" if v is None else format(v, form) for v in values] for name, (values, form) in shown.items()}
    return {**rows, "same verdict": [f"{share:.0%}" for share in r.zero_variance]}


def _line(r: StepRecord) -> str:
    if r.loss is not None:
        return f"step {r.step}  loss {r.loss:.3f} nats per token, {r.episodes} sequences"
    rows = {name: " ".join(cells) for name, cells in _rows(r).items()}
    verdicts = "" if r.verdicts is None else f"  {_verdict_words(r.verdicts)}"
    return (
        f"step {r.step}  reward {rows['reward']}  KL {rows['KL']}  {_changes(r)}  cut {rows['cut']}  "
        f"same-verdict groups {rows['same verdict']}{verdicts}  {r.sampled_tokens / max(sum(r.seconds.values()), 1e-9):.0f} tokens/s"
    )


def _verdict_words(v: VerdictNumbers) -> str:
    shares = ["n/a" if x is None else f"{x:.0%}" for x in (v.accuracy, v.balanced, v.says_wrong)]
    return "verdicts right {}, balanced {}, revisions asked for {}".format(*shares)


def _table(r: StepRecord) -> Table:
    table = Table("", title=f"step {r.step}", title_justify="left")
    for k in range(len(r.reward)):
        table.add_column(f"attempt {k + 1}", justify="right")
    rows = _rows(r)
    table.add_row("reward (unshaped)", *rows["reward"])
    table.add_row("KL to the base, nats", *rows["KL"])
    table.add_row("cut by the token cap", *rows["cut"])
    table.add_row("groups with one verdict", *rows["same verdict"])
    table.add_row("tokens per answer", *rows["tokens"])
    table.caption = f"{r.sampled_tokens / max(sum(r.seconds.values()), 1e-9):.0f} tokens/s"
    if r.answer_change is not None:
        table.caption = f"{_changes(r)}; {table.caption}"
    if r.verdicts is not None:
        table.caption = f"{_verdict_words(r.verdicts)}; {table.caption}"
    return table


def _changes(r: StepRecord) -> str:
    """Changed, fixed and broken answers as text: a change alone is not a correction."""
    shares = {"changed": r.answer_change, "fixed": r.fixed, "broken": r.broken}
    return ", ".join(f"{name} {'n/a' if share is None else format(share, '.1%')}" for name, share in shares.items())
