"""Tables for people. Every number carries its interval and n; what was not measured is n/a, never 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.stage import Alternating, Stage
from selfcorrect.cli.terminal import plain_console
from selfcorrect.measuring.metrics import EvalSummary

WIDTH_OF_A_FILE = 160


def show_stages(stages: Sequence[Stage]) -> None:
    """Print to standard error what each stage does, one row each: the numbers that tell the methods apart.

    Weights have one number per turn. Branches are second attempts per first one. Rows that take turns share their stage's steps.
    """
    table = Table("stage", "steps", "samples per problem", "branches", "reward weights", "KL weights", "bonus")
    for stage in stages:
        taking_turns = stage.objective.rows if isinstance(stage.objective, Alternating) else (stage,)
        for row in taking_turns:
            numbers = [str(n) for n in (stage.steps // len(taking_turns), row.samples_per_problem, row.branches)]
            if isinstance(row.objective, Credit):
                weights = (row.objective.reward_weights_K, row.objective.kl_weights_K, (row.objective.alpha,))
                table.add_row(row.title, *numbers, *(" ".join(f"{w:g}" for w in ws) for ws in weights))
            else:
                table.add_row(row.title, *numbers, "imitation", "", "")
    plain_console(stderr=True, width=WIDTH_OF_A_FILE).print(table)


def summary_table(rows: Mapping[str, EvalSummary], title: str) -> Table:
    """One row per evaluation: accuracy of every attempt, delta, i->c, c->i, share of changed answers.

    With more than two attempts the last four columns describe the last revision.
    """
    attempts = max((len(s.attempts) for s in rows.values()), default=0)
    table = Table("", title=title, title_justify="left", caption_justify="left")
    revision = ["delta", "i→c", "c→i", "changed"] if attempts > 1 else []
    for name in (*(f"t{k + 1}" for k in range(attempts)), *revision, "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, s in rows.items():
        accuracies, last = s.texts(attempts)
        table.add_row(name, *accuracies, *last[: len(revision)], str(s.n_problems))
    table.caption = (
        "percent; 95 % intervals by bootstrap over problems (one training seed: not the spread between seeds)"
    )
    return table


def verdict_table(rows: Mapping[str, EvalSummary], title: str) -> Table | None:
    """How the model judged its own answers, one row per evaluation; None where no evaluation has verdict turns."""
    found = {name: s.verdicts for name, s in rows.items() if s.verdicts is not None}
    if not found:
        return None
    table = Table("", title=title, title_justify="left", caption_justify="left")
    for name in ("agree", "balanced", "say wrong", "no verdict", "tokens", "tokens saved"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, v in found.items():
        shares = (v.accuracy, v.balanced, v.says_wrong, v.says_nothing)
        counts = (v.tokens.text(scale=1), v.tokens_saved.text(scale=1, sign=True))
        table.add_row(name, *(e.text() for e in shares), *counts)
    table.caption = (
        "percent of the verdict turns that agree with the verifier, balanced over right and wrong answers, ask for a revision, and "
        "have no verdict; tokens saved per episode are net, with a revision counted as long as attempt 1"
    )
    return table


def show_summaries(rows: Mapping[str, EvalSummary], title: str) -> None:
    """Print the summaries and, where there are verdict turns, what they say."""
    show(summary_table(rows, title))
    if (verdicts := verdict_table(rows, "the model's verdicts on its own answers")) is not None:
        show(verdicts)


def show(table: Table) -> None:
    """Print a table on standard output; in a pipe or a file its lines are not wrapped to a terminal's width."""
    console = plain_console()
    if not console.is_terminal:
        console = plain_console(width=WIDTH_OF_A_FILE)
    console.print(table)
