"""One run from config to table: checks, base evaluation, training, choice of checkpoint, final evaluation, export."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from selfcorrect.algorithm.stages import plan
from selfcorrect.config import PRESET_MARKER, Config, TinkerEngineConfig, preset_name
from selfcorrect.engines.base import Engine, TellsProgress
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.models import (
    ResolvedModel,
    check_attention,
    check_length,
    check_vocabulary,
    identity,
    load_chat,
    load_config,
    resolve_model,
)
from selfcorrect.engines.vllm_extra import require_vllm, vllm_version
from selfcorrect.episodes.play import longest_conversation
from selfcorrect.episodes.table import drafted_share_K
from selfcorrect.episodes.verdict import verdict_turn
from selfcorrect.errors import ConfigError, DataError, EngineError, Interrupted, ModelError, RunError
from selfcorrect.measuring.evaluate import (
    FEEDBACK,
    EnginePlayer,
    Evaluation,
    Evaluator,
    answers_per_problem,
    check_attempts,
    check_turns,
    check_verdicts,
    held_out,
)
from selfcorrect.measuring.metrics import EvalSummary
from selfcorrect.measuring.reuse import measured_alike
from selfcorrect.records.files import replacing
from selfcorrect.records.lines import EndRecord, EvalRecord, StartRecord, StepRecord, episode_row
from selfcorrect.records.run_directory import Progress, RunDirectory, WarmUpDirectory
from selfcorrect.tasks import make_task
from selfcorrect.tasks.base import GetsReady, GivesFirst, LeavesOut, Task
from selfcorrect.training.loop import Observer, train
from selfcorrect.training.warmup import warm_up_stage
from selfcorrect.types import Problem

WARMED = "warmed.json"
"""What a warm-up measured, in the directory of its model."""

RELOADS = 3
"""How often a run that loses its engine continues from one checkpoint by itself."""

TRACKED_PACKAGES = ("selfcorrect", "torch", "transformers", "tokenizers", "peft", "numpy")


@dataclass(frozen=True)
class Job:
    """Everything that is known and checked before any weights load."""

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
    if getattr(config.engine, "sampler", None) == "vllm":
        require_vllm()
    task, splits = _problems(config, training)
    resolved = resolve_model(config.model.name)
    if training and resolved.kind == "adapter":
        raise ModelError(
            f"model {config.model.name} is a PEFT adapter, which can be measured but not trained further; merge it into its "
            "base model (merge_and_unload, save_pretrained) and give that directory"
        )
    chat = load_chat(resolved, config)
    attempts = max(config.eval.attempts, config.play.attempts if training else 1)
    between = FEEDBACK if config.method.name == "self_refine" else verdict_turn(config).get("verdict")
    check_turns(config)
    cap = config.play.max_new_tokens
    hf_config = load_config(resolved, config.model.revision, config.model.trust_remote_code)
    longest = check_length(
        hf_config,
        attempts,
        lambda n: max(longest_conversation(chat, task, split, n, cap, between) for split in splits),
    )
    check_attention(hf_config, longest)
    check_vocabulary(hf_config, chat.tokenizer, chat.end_ids)
    return Job(config, task, resolved, chat, longest, tuple(task.left_out) if isinstance(task, LeavesOut) else ())


def _problems(config: Config, training: bool) -> tuple[Task, list[Sequence[Problem]]]:
    """The task, ready to grade, and the splits that are needed."""
    task = make_task(config.task)
    if isinstance(task, GivesFirst) and training:
        raise ConfigError(
            f"task={config.task.name} gives its first attempts and is for measuring; train on another task (for mbpp_repair: "
            "mbpp), then measure with `selfcorrect eval`"
        )
    check_attempts(task, config.eval)
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
        frozen: nothing will be trained or loaded, so no adapters, masters or optimiser are created.

    Raises:
        ModelError: they cannot be loaded.
    """
    engine = job.config.engine
    if engine.name == "tinker":
        return _tinker_engine(job, engine, frozen)
    from selfcorrect.engines.torch_engine import TorchEngine

    return TorchEngine.from_config(job.resolved, job.chat, job.config.model, engine, frozen=frozen)


def _tinker_engine(job: Job, settings: TinkerEngineConfig, frozen: bool) -> Engine:
    from selfcorrect.engines.tinker_engine import TinkerEngine
    from selfcorrect.engines.tinker_engine.client import connect

    model = job.config.model
    if job.resolved.kind == "adapter":
        raise ModelError(
            f"model {model.name} is a PEFT adapter, which a server does not serve; measure it with engine=torch"
        )
    local = load_config(job.resolved, model.revision, model.trust_remote_code).get_text_config(decoder=True)
    return TinkerEngine(
        lambda: connect(settings.base_url, settings.timeout_s),
        job.chat,
        (model.name, job.resolved.path_or_id),
        None if frozen else model.lora_rank,
        settings,
        int(local.max_position_embeddings),
        int(local.vocab_size),
    )


Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    run: RunDirectory
    progress: Progress
    kept_step: int
    """Step of the checkpoint that was measured and exported."""
    evaluations: dict[str, Evaluation]
    """By name: base, final and their controls."""


def run_experiment(
    job: Job,
    run: RunDirectory,
    engine: Engine,
    observer: Observer,
    say: Callable[[str], None] = lambda _text: None,
    stop_requested: Callable[[], bool] = lambda: False,
    others: Path | None = None,
) -> Outcome:
    """Evaluate, train, keep the best checkpoint by training reward, evaluate again, export.

    Args:
        job: from ``prepare``.
        run: a new or reopened run directory; a reopened one is continued from its latest checkpoint.
        engine: fresh, on the job's model.
        observer: watches the training.
        say: receives one line per phase, for people.
        stop_requested: see ``train``.
        others: a directory of runs; if one of them measured the same base in the same way, that measurement is taken.

    Raises:
        Interrupted: asked to stop; a checkpoint was written.
    """
    checkpoint, reached = _begin(job, run, engine, say)
    done: dict[str, Evaluation] = {}
    if checkpoint is None:
        done |= _measured_before(job, run, engine, others, say, observer) if others is not None else {}
        if not done:
            say("measuring the base model")
            done |= _measure(job, run, engine, "base", 0, say, observer)
        check_verdicts(done["base"])
    progress, kept, final = _with_reloads(
        job, run, engine, say, reached, lambda: _train_and_measure(job, run, engine, observer, say, stop_requested)
    )
    return Outcome(run, progress, kept, done | final)


def _begin(
    job: Job, run: RunDirectory, engine: Engine, say: Callable[[str], None]
) -> tuple[Path | None, Progress | None]:
    """Record the start of a run, or of its continuation from the latest checkpoint.

    Raises:
        RunError: the run has trained, and has no checkpoint to continue from, or it began with another model.
    """
    checkpoint, reached = _latest(run, say)
    began, base = run.base, identity(job.resolved)
    unnamed = began == job.resolved.kind == "adapter"  # older runs name an adapter by its kind alone
    if began not in (None, base) and not unnamed:
        raise RunError(
            f"{run.path} began with another model: {job.config.model.name} was {began} then, and is {base} now; call the "
            "command from the directory in which the run was started, or put that model back"
        )
    if checkpoint is None and (steps := [r.step for r in run.records() if isinstance(r, StepRecord)]):
        raise RunError(
            f"{run.path} has records of {max(steps)} steps, but no checkpoint to continue from; put its checkpoints back from "
            "a copy, or start a new run"
        )
    run.rewind(reached or Progress())
    run.append(_start_record(job, engine, reached.step if reached else None))
    return checkpoint, reached


def _with_reloads(
    job: Job,
    run: RunDirectory,
    engine: Engine,
    say: Callable[[str], None],
    reached: Progress | None,
    work: Callable[[], Result],
) -> Result:
    """Do the work of a run from its latest checkpoint, and again from there where the engine was lost on the way. A
    checkpoint that cannot be loaded is set aside.

    Args:
        job, run, engine, say: as for ``run_experiment``.
        reached: where the run was continued.
        work: from the latest checkpoint to the end.
    """
    reloads = 0
    while True:
        try:
            return work()
        except Interrupted:
            run.append(_end_record(run, "interrupted"))
            raise
        except EngineError as error:
            checkpoint = run.latest_checkpoint()
            if error.usable or checkpoint is None:
                raise
            if error.damaged is not None and error.damaged != checkpoint:
                raise
            if error.damaged is not None:
                say(f"{checkpoint} cannot be read and is set aside: {error}")
                run.set_aside(checkpoint)
            _, again = _latest(run, say)
            assert again is not None, "a run that has lost its last checkpoint has ended"
            reloads = reloads + 1 if reached is not None and again.step == reached.step else 1
            if reloads > RELOADS:
                raise
            reached = again
            say(f"{error}. Going on from step {again.step} (try {reloads} of {RELOADS} from there)")
            run.rewind(again)
            run.append(_start_record(job, engine, again.step))


def _latest(run: RunDirectory, say: Callable[[str], None]) -> tuple[Path | None, Progress | None]:
    """The latest checkpoint whose files are as they were written; damaged ones are set aside.

    Raises:
        RunError: none of them can be read.
    """
    while (checkpoint := run.latest_checkpoint()) is not None:
        try:
            run.check(checkpoint)
            return checkpoint, run.read_progress(checkpoint)
        except RunError as error:
            say(f"{error}. It is set aside")
            run.set_aside(checkpoint)
    return None, None


def _train_and_measure(
    job: Job,
    run: RunDirectory,
    engine: Engine,
    observer: Observer,
    say: Callable[[str], None],
    stop_requested: Callable[[], bool],
) -> tuple[Progress, int, dict[str, Evaluation]]:
    """Train and measure from the latest checkpoint to the end. Called again after a failure, it repeats the steps since
    that checkpoint. All steps are functions of seed, step and weights, and the weights are loaded again, so nothing is
    counted twice."""
    progress = train(run, engine, job.task, observer, stop_requested)
    kept = load_kept(run, engine)
    why = "the last" if progress.best_step is None else "the best by training reward"
    say(f"keeping step {kept}, {why}; measuring it")
    export(engine, run.path / "model", {PRESET_MARKER: preset_name(job.config.model.name) + "\n"})
    final = _measure(job, run, engine, "final", kept, say, observer)
    run.append(_end_record(run, "finished"))
    return progress, kept, final


def load_kept(run: RunDirectory, engine: Engine) -> int:
    """Load the checkpoint that a run keeps, the best by training reward, and return its step.

    Raises:
        RunError: the run has no checkpoint yet, or that one cannot be read.
    """
    latest = run.latest_checkpoint()
    if latest is None:
        raise RunError(f"{run.path} has no checkpoint yet; start it again with `selfcorrect train --resume {run.path}`")
    progress = run.read_progress(latest)
    kept = progress.best_step or progress.step
    checkpoint = run.checkpoint(kept)
    try:
        run.check(checkpoint)
        engine.load(checkpoint)
    except (RunError, EngineError) as error:
        if isinstance(error, EngineError) and error.damaged is None:
            raise  # a lost server
        raise RunError(
            f"{checkpoint}, the checkpoint that the run keeps, cannot be read ({error}); put it back from a copy, or train again"
        ) from error
    return kept


def export(engine: Engine, target: Path, more: Mapping[str, str] | None = None) -> None:
    """Write the model directory, replacing an earlier one only when complete.

    Args:
        engine: writes its current weights.
        target: the directory.
        more: text files in it, by name.

    Raises:
        RunError: the disk refused; an earlier one is untouched.
    """
    with replacing(target, "free some space or name another place", "model") as part:
        engine.export(part)
        for name, text in (more or {}).items():
            (part / name).write_text(text, encoding="utf-8")


def warm_up(
    job: Job,
    run: WarmUpDirectory,
    engine: Engine,
    observer: Observer,
    say: Callable[[str], None] = lambda _text: None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> EvalSummary | None:
    """Train on the task's demonstrations, measure, and write the model next to the run directory.

    The measurement is greedy, on the first ``sft.eval_problems`` held-out problems. It is also written to ``WARMED`` in
    the model's directory.

    Args:
        job, run, engine, observer, say, stop_requested: as for ``run_experiment``.

    Returns:
        The measurement; None where the settings ask for none.

    Raises:
        Interrupted: asked to stop; a checkpoint was written.
    """
    config = job.config
    _, reached = _begin(job, run, engine, say)
    stages = [warm_up_stage(config.sft)]
    progress = _with_reloads(
        job, run, engine, say, reached, lambda: train(run, engine, job.task, observer, stop_requested, stages)
    )
    files = {PRESET_MARKER: preset_name(config.model.name) + "\n"}
    summary = None
    if config.sft.eval_problems:
        wanted = {"problems": config.sft.eval_problems, "samples": 1, "temperature": 0.0, "controls": False}
        greedy = config.model_copy(update={"eval": config.eval.model_copy(update=wanted)})
        (measured,) = _measure(
            replace(job, config=greedy), run, engine, "warmed", progress.step, say, observer
        ).values()
        summary = measured.summary
        values = {"command": command_line(), "settings": measured.settings, "summary": summary.to_json()}
        files[WARMED] = json.dumps(values, indent=1) + "\n"
    export(engine, run.target, files)
    run.append(_end_record(run, "finished"))
    run.drop_checkpoints()
    return summary


def _measure(
    job: Job,
    run: RunDirectory,
    engine: Engine,
    name: str,
    step: int,
    say: Callable[[str], None],
    observer: Observer,
) -> dict[str, Evaluation]:
    config = job.config
    problems = held_out(job.task, config.eval.problems)
    with_controls = config.eval.controls and config.eval.attempts > 1
    evaluator = Evaluator.of(EnginePlayer(engine, job.task), job.task, config)
    most = len(problems) * answers_per_problem(config.eval, with_controls, evaluator.verdict is not None)
    with _watched(engine, name, most, observer):
        evaluations = asyncio.run(evaluator.run(problems, name))
        if with_controls and len(evaluations) < 3:
            say("no wrong first attempt was found to give back: that control has no row")
    for e in evaluations:
        run.write_evaluation(e.name, (episode_row(episode) for episode in e.episodes))
        record = EvalRecord(
            name=e.name,
            step=step,
            settings=e.settings,
            summary=e.summary.to_json(),
            seconds=e.seconds,
            drafted=drafted_share_K(e.episodes),
        )
        run.append(record)
        observer.on_record(record)
    return {e.name: e for e in evaluations}


def _measured_before(
    job: Job, run: RunDirectory, engine: Engine, others: Path, say: Callable[[str], None], observer: Observer
) -> dict[str, Evaluation]:
    """The base's measurement from another run, written into this one; empty if none fits."""
    start = next(r for r in reversed(run.records()) if isinstance(r, StartRecord))
    evaluator = Evaluator.of(EnginePlayer(engine, job.task), job.task, job.config)
    found = measured_alike(others, job.config, start, evaluator.between)
    if found is None:
        return {}
    evaluation, record, rows = found
    say(f"the base was measured by {record.reused_from}")
    run.write_evaluation("base", rows)
    run.append(record)
    observer.on_record(record)
    return {"base": evaluation}


@contextmanager
def _watched(engine: Engine, name: str, most: int, observer: Observer) -> Iterator[None]:
    """Tell the observer how many answers a measurement has received, if the engine reports it."""
    answers = 0

    def count(n: int) -> None:
        nonlocal answers
        answers += n
        observer.on_measure(name, answers, most)

    observer.on_measure(name, 0, most)
    if not isinstance(engine, TellsProgress):
        yield
        return
    engine.answered = count
    try:
        yield
    finally:
        engine.answered = lambda _n: None


def command_line() -> str:
    """What this process was called with."""
    name = Path(sys.argv[0]).name
    return shlex.join(["selfcorrect" if name == "__main__.py" else name, *sys.argv[1:]])


def _start_record(job: Job, engine: Engine, resumed_from: int | None) -> StartRecord:
    versions = {name: metadata.version(name) for name in TRACKED_PACKAGES}
    if engine.info.name == "tinker":
        versions["tinker"] = metadata.version("tinker")
    if getattr(job.config.engine, "sampler", None) == "vllm" and (vllm := vllm_version()) is not None:
        versions[vllm[0]] = vllm[1]
    versions["python"] = platform.python_version()
    versions["platform"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return StartRecord(
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        command=command_line(),
        versions=versions,
        engine=asdict(engine.info),
        resumed_from_step=resumed_from,
        base=identity(job.resolved),
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
