"""Run directories written by hand through the package's own writers: every state of a run, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfcorrect.config import load_config
from selfcorrect.measuring.metrics import summarise
from selfcorrect.records.lines import (
    AlarmRecord,
    CheckpointRecord,
    EndRecord,
    EvalRecord,
    StartRecord,
    StepRecord,
    episode_row,
)
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.types import Attempt, Episode, Grade, Problem, Verdict

HOSTILE = {
    "script": "<script>document.title = 'owned'</script>",
    "end of data": "</script><script>document.title = 'owned'</script>",
    "comment": "<!--<script>",
    "image": "<img src=x onerror=\"document.title = 'owned'\">",
    "direction": "safe \u202egnirts\u202c \u2067more",
    "terminal": "\x1b[31mred\x1b[0m \x07",
    "nul": "before\x00after",
    "surrogate": "half \ud83d of a pair",
    "separators": "a\u2028b\u2029c",
    "template": "{{ 7 * 7 }} {% raw %} ${7*7}",
    "long line": "head " + "x" * 1_000_000 + " tail",
}


def attempt(text: str, verdict: str, stop: str = "end") -> Attempt:
    ids = tuple(range(min(len(text), 50)))
    extracted = text.rsplit(maxsplit=1)[-1] if text.split() else None
    return Attempt(text, (), ids, None, stop, Grade(Verdict(verdict), extracted, "made up"))


def episode(number: int, *attempts: tuple[str, str], level: str | None = None, question: str | None = None) -> Episode:
    """One problem and its attempts, each a text and a verdict."""
    problem = Problem(f"test-{number:05d}", question or f"What is {number} + 1?", str(number + 1), level)
    return Episode(problem, 0, tuple(attempt(*a) for a in attempts))


def held_out(n: int = 40, *, trained: bool) -> list[Episode]:
    """A base that copies itself, and a trained model that fixes most of what is wrong; two levels."""
    out = []
    for i in range(n):
        first = (f"the sum is {i + i % 2}", "wrong")
        if i % 4 == 0:
            first = (f"the sum is {i + 1}", "correct")
        second = first if not trained or i % 8 == 0 else (f"checked, the sum is {i + 1}", "correct")
        if trained and i % 20 == 4:
            second = ("the sum is off", "wrong")
        if trained and i % 20 == 5:
            second = ("the sum", "truncated")
        out.append(episode(i, first, second, level=f"level {i % 2}"))
    return out


def step(number: int, stage: str, attempts: int = 2) -> StepRecord:
    several = attempts > 1
    return StepRecord(
        step=number,
        stage=stage,
        stage_step=number,
        episodes=16,
        reward=[0.25, 0.25 + number / 100][:attempts],
        kl=[0.01 * number, 0.02 * number][:attempts],
        truncated=[0.0] * attempts,
        no_answer=[0.0] * attempts,
        errors=0,
        answer_tokens=[9.0, 10.0][:attempts],
        zero_variance=[0.1] * attempts,
        skipped_groups=[0] * attempts,
        answer_change=0.5 if several else None,
        fixed=0.3 if several else None,
        broken=0.1 if several else None,
        grad_norm=1.0,
        clipped=False,
        learning_rate=1e-3,
        sampler_mismatch=0.0,
        sampled_tokens=100,
        seconds={"sample": 0.1},
    )


def begin(path: Path, *overrides: str) -> RunDirectory:
    """A run of which only the start is recorded."""
    run = RunDirectory.create(load_config(None, ["train.steps=20", *overrides, f"run_dir={path}"]))
    run.append(
        StartRecord(
            time="2026-01-01T00:00:00Z",
            command="selfcorrect train",
            versions={"selfcorrect": "0"},
            engine={"name": "torch"},
        )
    )
    return run


def evaluate(run: RunDirectory, name: str, episodes: Sequence[Episode], at_step: int = 0) -> None:
    run.write_evaluation(name, (episode_row(e) for e in episodes))
    summary = summarise(episodes).to_json()
    run.append(EvalRecord(name=name, step=at_step, settings={"problems": len(episodes)}, summary=summary, seconds=1.0))


def train(run: RunDirectory, steps: int = 20, attempts: int = 2) -> None:
    """Two stages of equal length, a checkpoint at the end, an alarm, and two training episodes a step."""
    for n in range(1, steps + 1):
        stage = "stage1" if n <= steps // 2 and attempts > 1 else "stage2"
        run.append(step(n, stage, attempts))
        for e in (episode(n, *[("try one", "wrong"), ("try two", "correct")][:attempts]),) * 2:
            run.append_episode(episode_row(e, step=n, stage=stage))
    run.append(AlarmRecord(step=steps // 2, name="copying", message="the last attempt repeats the one before"))
    run.append(CheckpointRecord(step=steps - 1, window_reward=0.5, best=True))
    run.append(CheckpointRecord(step=steps, window_reward=0.4, best=False))


def finish(run: RunDirectory, steps: int = 20) -> None:
    run.append(EndRecord(step=steps, reason="finished", train_seconds=1.0, sampled_tokens=2000, sampled_responses=100))


def finished(path: Path, *overrides: str) -> Path:
    """A whole run: base, training, final, end."""
    run = begin(path, *overrides)
    evaluate(run, "base", held_out(trained=False))
    train(run)
    evaluate(run, "final", held_out(trained=True), at_step=19)
    finish(run)
    return path


def hostile(path: Path) -> Path:
    """A finished run in which every text that a model or a data set could bring is out to do harm."""
    run = begin(path, "task.instruction=</script><img src=x onerror=alert(1)>\u202e")
    episodes = [
        episode(i, (text, "wrong"), (f"{text} again", "correct"), level=text[:300], question=f"{name}: {text[:300]}")
        for i, (name, text) in enumerate(HOSTILE.items())
    ]
    evaluate(run, "base", episodes)
    train(run)
    run.append(AlarmRecord(step=20, name="<b>alarm</b>", message="<img src=x onerror=alert(1)>\u202e"))
    evaluate(run, "final", episodes, at_step=19)
    finish(run)
    return path


def large(path: Path, n: int) -> Path:
    """A finished run with n episodes of two attempts, 420 characters and more each, in both of its evaluations."""
    run = begin(path)
    words = "the number of apples left over is then divided by the rest of them " * 6
    for name in ("base", "final"):
        episodes = [
            episode(
                i,
                (f"{words}{i}", "wrong"),
                (f"{words}{i + 1}", ["wrong", "correct"][i % 2]),
                level=f"level {i % 5}",
            )
            for i in range(n)
        ]
        evaluate(run, name, episodes)
    finish(run)
    return path
