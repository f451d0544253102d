"""A task small enough for whole runs in tests: a verdict that depends on every character of the answer."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import tiny
from selfcorrect.config import Config, load_config
from selfcorrect.engines.torch_engine import TorchEngine
from selfcorrect.episodes import play, verdict
from selfcorrect.records.run_directory import RunDirectory, WarmUpDirectory
from selfcorrect.training.loop import train
from selfcorrect.training.warmup import warm_up_stage
from selfcorrect.types import Grade, Problem, Verdict

SMALL = (
    "task=toy",
    "model.name=none/none",
    "model.dtype=float32",
    "model.lora_rank=0",
    "train.steps=5",
    "train.problems_per_step=4",
    "train.samples_per_problem=2",
    "play.max_new_tokens=4",
    "train.learning_rate=1e-2",
    "train.warmup_steps=0",
    "train.checkpoint_every=2",
    "eval.problems=6",
    "engine.device=cpu",
)
"""Settings of a run of about a second. Five steps with a share of 0.4: two of Stage I, three of Stage II."""


class Toy:
    """Right when the sum of the answer's code points is even: about half of what a random model writes."""

    name = "toy"

    def __init__(self, n_train: int = 40, n_test: int = 12) -> None:
        self.instruction = "Again."
        self._sizes = {"train": n_train, "test": n_test}

    def problems(self, split):
        return [Problem(f"{split}-{i}", f"{split} {i}", "even", f"level {i % 2}") for i in range(self._sizes[split])]

    def first_messages(self, problem):
        return [{"role": "user", "content": problem.question}]

    def reference_answer(self, problem):
        return "ab"

    def grade(self, problem, text, *, truncated):
        total = sum(map(ord, text))
        return Grade(Verdict.WRONG if total % 2 else Verdict.CORRECT, str(total % 7))

    def answer_key(self, answer):
        return answer

    def demonstrations(self, seed):
        i = seed
        while True:
            yield Problem(f"pretrain-{i}", f"pretrain {i}", "even"), ("a", "bb")
            i += 1


class Watcher:
    """An observer that keeps what it is told; ``at_step`` may do something in the middle of a run."""

    def __init__(self, at_step=lambda record: None) -> None:
        self.stages, self.steps, self.alarms, self.checkpoints, self.parts = [], [], [], [], []
        self.measured, self.evaluations = [], []
        self._at_step = at_step

    def on_stage(self, stage, first_step, total_steps):
        self.stages.append((stage.name, first_step, total_steps))

    def on_record(self, record):
        getattr(self, f"on_{record.kind}")(record)

    def on_step(self, record):
        self.steps.append(record)
        self._at_step(record)

    def on_collect(self, record):
        self.parts.append(record)

    def on_alarm(self, record):
        self.alarms.append(record)

    def on_checkpoint(self, record):
        self.checkpoints.append(record)

    def on_measure(self, name, answers, most):
        self.measured.append((name, answers, most))

    def on_eval(self, record):
        self.evaluations.append(record)


def config(run_dir: Path, *overrides: str) -> Config:
    return load_config(None, [*SMALL, f"run_dir={run_dir}", *overrides])


def engine(c: Config) -> TorchEngine:
    """The random model under the engine settings of a config."""
    lora = (c.model.lora_rank, c.model.lora_alpha) if c.model.lora_rank else None
    import torch

    torch.manual_seed(0)
    model = tiny.random_model(dtype=getattr(torch, c.model.dtype))
    return TorchEngine(model, tiny.ChatFormat(tiny.tokenizer()), c.engine, lora)


@contextmanager
def judging():
    """Reads every text as a verdict, by the sum of its code points: a random model never writes one in the asked-for form."""

    def said(text):
        return "wrong" if sum(map(ord, text)) % 2 else "correct"

    as_shipped = verdict.said
    verdict.said = play.said = said
    try:
        yield
    finally:
        verdict.said = play.said = as_shipped


def run(run_dir: Path, *overrides: str, watcher: Watcher | None = None, stop=lambda: False, task: Toy | None = None):
    """A new run of the shipped loop; returns (run directory, engine, progress)."""
    c = config(run_dir, *overrides)
    directory = RunDirectory.create(c)
    e = engine(c)
    with judging():
        return directory, e, train(directory, e, task or Toy(), watcher or Watcher(), stop)


def resume(run_dir: Path, *, watcher: Watcher | None = None, task: Toy | None = None):
    """Continue a run with a fresh engine, as ``train --resume`` does."""
    directory = RunDirectory.open(run_dir)
    checkpoint = directory.latest_checkpoint()
    assert checkpoint is not None
    directory.rewind(directory.read_progress(checkpoint))
    e = engine(directory.config)
    with judging():
        return directory, e, train(directory, e, task or Toy(), watcher or Watcher())


def warm(out: Path, *overrides: str, watcher: Watcher | None = None, stop=lambda: False):
    """A warm-up by the shipped loop, new or resumed; returns (its directory, engine)."""
    path = WarmUpDirectory.of(out)
    if path.exists():
        directory = WarmUpDirectory.open(path)
        checkpoint = directory.latest_checkpoint()
        directory.rewind(directory.read_progress(checkpoint))
    else:
        directory = WarmUpDirectory.create(config(path, *overrides))
    e = engine(directory.config)
    train(directory, e, Toy(), watcher or Watcher(), stop, [warm_up_stage(directory.config.sft)])
    return directory, e


def step_records(run: RunDirectory):
    """Step records without their wall seconds."""
    return [r.model_copy(update={"seconds": {}}) for r in run.records() if r.kind == "step"]
