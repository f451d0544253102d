"""One run from config to table: checks, base evaluation, training, choice of checkpoint, final evaluation, export."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from selfcorrect.config import Config
from selfcorrect.engines.base import Engine
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.models import (
    ResolvedModel,
    check_attention,
    check_length,
    check_vocabulary,
    load_config,
    load_tokenizer,
    resolve_model,
)
from selfcorrect.errors import ConfigError, DataError, EngineError, Interrupted, ModelError, RunError, disk_reason
from selfcorrect.evaluate import FEEDBACK, Evaluation, controls, evaluate, held_out
from selfcorrect.methods import plan
from selfcorrect.records import EndRecord, EvalRecord, StartRecord, episode_row
from selfcorrect.rollout import longest_conversation
from selfcorrect.run import Progress, RunDirectory
from selfcorrect.tasks import make_task
from selfcorrect.tasks.base import GetsReady, GivesFirst, LeavesOut, Task
from selfcorrect.train import Observer, train
from selfcorrect.types import Problem

TRACKED_PACKAGES = ("selfcorrect", "torch", "transformers", "tokenizers", "peft", "numpy")


@dataclass(frozen=True)
class Job:
    """Everything that is known, and was checked, before any weights load."""

    config: Config
    task: Task
    resolved: ResolvedModel
    chat: ChatFormat
    longest: int
    """Tokens of the longest episode."""
    left_out: tuple[str, ...] = ()
    """Rows that the task had to leave out of its data, one line each."""

    @property
    def note(self) -> str:
        """One line for people about rows left out; empty where there are none."""
        n = len(self.left_out)
        return f"rows left out of the data: {n}; the first: {self.left_out[0]}" if n else ""


def prepare(config: Config, *, training: bool = True) -> Job:
    """Check settings, data, model files, chat template and lengths. Loads no weights, writes nothing.

    Raises:
        SelfCorrectError: whatever is wrong, in one paragraph.
    """
    if training:
        plan(config)
    task, splits = _problems(config, training)
    resolved = resolve_model(config.model.name)
    if training and resolved.kind == "adapter":
        raise ModelError(
            f"model {config.model.name} is a PEFT adapter, which can be measured but not trained further; merge it into its "
            "base model (merge_and_unload, save_pretrained) and give that directory"
        )
    chat = ChatFormat(load_tokenizer(resolved, config.model.revision, config.model.trust_remote_code))
    attempts = max(config.eval.attempts, config.method.attempts if training else 1)
    feedback = FEEDBACK if config.method.name == "self_refine" else None
    if feedback is not None and config.eval.attempts < 2:
        raise ConfigError("method=self_refine asks for feedback between attempts: set eval.attempts to 2 or more")
    cap = config.train.max_new_tokens
    longest = max(longest_conversation(chat, task, split, attempts, cap, feedback) for split in splits)
    hf_config = load_config(resolved, config.model.revision, config.model.trust_remote_code)
    check_length(hf_config, longest)
    check_attention(hf_config, longest)
    check_vocabulary(hf_config, chat.tokenizer)
    return Job(config, task, resolved, chat, longest, tuple(task.left_out) if isinstance(task, LeavesOut) else ())


def _problems(config: Config, training: bool) -> tuple[Task, list[Sequence[Problem]]]:
    """The task, ready to grade, and the splits that are needed."""
    task = make_task(config.task)
    if isinstance(task, GivesFirst) and training:
        raise ConfigError(
            f"task={config.task.name} gives its first attempts and is for measuring; train on another task (for mbpp_repair: "
            "mbpp), then measure with `selfcorrect eval`"
        )
    if isinstance(task, GivesFirst) and config.eval.attempts < 2:
        raise ConfigError(
            f"task={config.task.name} gives attempt 1, so eval.attempts=1 would measure nothing of the model; set it to 2"
        )
    splits = [task.problems("test"), *([task.problems("train")] if training else [])]
    if not all(splits):
        raise DataError(f"task {task.name} has an empty split; check task.path and the task's settings")
    if isinstance(task, GetsReady):
        task.get_ready(training=training)
    return task, splits


def make_engine(job: Job, *, frozen: bool = False) -> Engine:
    """Load the weights and build the engine that the config names.

    Args:
        job: from ``prepare``.
        frozen: nothing will be trained or loaded into it: no adapters, masters or optimiser are made.

    Raises:
        ModelError: they cannot be loaded.
    """
    from selfcorrect.engines.torch_engine import TorchEngine

    return TorchEngine.from_config(job.resolved, job.chat, job.config.model, job.config.engine, frozen=frozen)


@dataclass(frozen=True)
class Outcome:
    run: RunDirectory
    progress: Progress
    evaluations: dict[str, Evaluation]
    """By name: base, final and their controls."""


def run_experiment(
    job: Job,
    run: RunDirectory,
    engine: Engine,
    observer: Observer,
    say: Callable[[str], None] = lambda _text: None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Evaluate, train, keep the best checkpoint by training reward, evaluate again, export.

    Args:
        job: from ``prepare``.
        run: a new or reopened run directory; a reopened one is continued from its latest checkpoint.
        engine: fresh, on the job's model.
        observer: watches the training.
        say: receives one line per phase, for people.
        stop_requested: see ``train``.

    Raises:
        Interrupted: asked to stop; a checkpoint was written.
    """
    checkpoint = run.latest_checkpoint()
    reached = run.read_progress(checkpoint) if checkpoint is not None else None
    run.rewind(reached or Progress())
    run.append(_start_record(engine, reached.step if reached else None))
    done: dict[str, Evaluation] = {}
    if checkpoint is None:
        say("measuring the base model")
        done |= _measure(job, run, engine, "base", 0, say)
    try:
        progress = train(run, engine, job.task, observer, stop_requested)
    except Interrupted:
        run.append(_end_record(run, "interrupted"))
        raise
    kept = load_kept(run, engine)
    why = "the last" if progress.best_step is None else "the best by training reward"
    say(f"keeping step {kept}, {why}; measuring it")
    export(engine, run.path / "model")
    done |= _measure(job, run, engine, "final", kept, say)
    run.append(_end_record(run, "finished"))
    return Outcome(run, progress, done)


def load_kept(run: RunDirectory, engine: Engine) -> int:
    """Load the checkpoint that a run keeps, the best by training reward, and return its step.

    Raises:
        RunError: the run has no checkpoint yet.
    """
    latest = run.latest_checkpoint()
    if latest is None:
        raise RunError(f"{run.path} has no checkpoint yet; start it again with `selfcorrect train --resume {run.path}`")
    progress = run.read_progress(latest)
    kept = progress.best_step or progress.step
    engine.load(run.checkpoint(kept))
    return kept


def claim(target: Path) -> None:
    """Refuse an output path that holds something or cannot be written, before any work.

    Raises:
        RunError: it exists, or its directory refuses a file.
    """
    if target.exists():
        raise RunError(f"{target} exists already and is not overwritten; remove it or name another place")
    trial = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise RunError(f"{target} cannot be written: {disk_reason(error)}; name another place") from None


def export(engine: Engine, target: Path) -> None:
    """Write the model directory, replacing an earlier one only when complete.

    Raises:
        RunError: the disk refused; an earlier one is untouched.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        engine.export(part)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    except (OSError, EngineError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise RunError(
            f"model {target} could not be written: {disk_reason(error)}; free room or name another place"
        ) from error


def _measure(
    job: Job, run: RunDirectory, engine: Engine, name: str, step: int, say: Callable[[str], None]
) -> dict[str, Evaluation]:
    config = job.config
    problems = held_out(job.task, config.eval.problems)
    cap = config.train.max_new_tokens
    evaluations = [evaluate(engine, job.task, problems, config.eval, cap, name=name, seed=config.seed)]
    if config.eval.controls and config.eval.attempts > 1:
        evaluations += controls(engine, job.task, evaluations[0], config.eval, cap, seed=config.seed)
        if len(evaluations) < 3:
            say("no wrong first attempt was found to give back: that control has no row")
    for e in evaluations:
        run.write_evaluation(e.name, (episode_row(episode) for episode in e.episodes))
        run.append(
            EvalRecord(name=e.name, step=step, settings=e.settings, summary=e.summary.to_json(), seconds=e.seconds)
        )
    return {e.name: e for e in evaluations}


def command_line() -> str:
    """What this process was called with."""
    name = Path(sys.argv[0]).name
    return shlex.join(["selfcorrect" if name == "__main__.py" else name, *sys.argv[1:]])


def _start_record(engine: Engine, resumed_from: int | None) -> StartRecord:
    versions = {name: metadata.version(name) for name in TRACKED_PACKAGES}
    versions["python"] = platform.python_version()
    versions["platform"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return StartRecord(
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        command=command_line(),
        versions=versions,
        engine=asdict(engine.info),
        resumed_from_step=resumed_from,
    )


def _end_record(run: RunDirectory, reason: str) -> EndRecord:
    checkpoint = run.latest_checkpoint()
    progress = run.read_progress(checkpoint) if checkpoint is not None else Progress()
    return EndRecord(
        step=progress.step,
        reason="finished" if reason == "finished" else "interrupted",
        train_seconds=progress.train_seconds,
        sampled_tokens=progress.sampled_tokens,
        sampled_responses=progress.sampled_responses,
    )
