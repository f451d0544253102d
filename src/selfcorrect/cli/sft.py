"""``selfcorrect sft``."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from selfcorrect.cli.settings import from_elsewhere, read_settings
from selfcorrect.config import Config, override
from selfcorrect.errors import ConfigError, RunError, SelfCorrectError


def sft(
    out: Annotated[
        Path | None, typer.Argument(help="Directory for the warmed-up model; it must not exist yet.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG.toml] [key=value ...]", help="A config file, then settings.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="OUT of a stopped warm-up, to continue from its latest checkpoint.")
    ] = None,
) -> None:
    """Teach a model a task's answer format before any reinforcement learning, and write it as a model directory.

    That directory is then the base of every comparison: pass it as `model=DIR`. Its warmed.json holds the accuracy of
    both attempts on held-out problems. While it trains, checkpoints and records are in OUT.run.

    Example: `selfcorrect sft models/smollm2-warm model=smollm2 task=arithmetic sft.steps=100`
    """
    from selfcorrect.cli.progress import TerminalObserver
    from selfcorrect.cli.terminal import plain_console
    from selfcorrect.cli.train import announce_stop
    from selfcorrect.experiment import WARMED, make_engine, prepare, warm_up
    from selfcorrect.records.files import claim
    from selfcorrect.records.run_directory import WarmUpDirectory
    from selfcorrect.training.loop import stop_on_signal
    from selfcorrect.training.warmup import require_demonstrations

    if resume is not None and out is not None:
        raise ConfigError("--resume continues a warm-up with its own settings; drop the other arguments")
    target = resume or out
    if target is None:
        raise ConfigError("sft needs a directory to write the model to: selfcorrect sft OUT [key=value ...]")
    claim(target)
    run = None
    if resume is None:
        config = _settings(target, settings or [])
        WarmUpDirectory.refuse_existing(config)
    else:
        run = WarmUpDirectory.open(WarmUpDirectory.of(resume))
        config = run.config
        if not (run.path / "checkpoints").is_dir():
            raise RunError(f"the warm-up of {target} is finished; to repeat it, remove {run.path} and drop --resume")
    with from_elsewhere(run, config, "`selfcorrect sft --resume {run}`"):
        job = prepare(config)
    require_demonstrations(job.task)
    run = run or WarmUpDirectory.create(config)
    console = plain_console(stderr=True)
    say = partial(console.print, highlight=False, soft_wrap=True)
    with run.writing():
        try:
            engine = make_engine(job)
            with stop_on_signal(announce_stop) as stop, TerminalObserver(console) as terminal:
                summary = warm_up(job, run, engine, terminal, say, stop)
        except SelfCorrectError:
            run.abandon()  # does nothing once there is a record
            raise
    print(f"model    {target}")
    if summary is not None:
        shares = ", ".join(f"t{k} {a.accuracy.text()}" for k, a in enumerate(summary.attempts, 1))
        print(f"measured {shares}, {summary.n_problems} held-out problems, greedy: {target / WARMED}")
    print(f"next     {shlex.join(['selfcorrect', 'train', f'model={target}', *repeated_settings(config)])}")


def repeated_settings(config: Config) -> list[str]:
    """The settings that training on the new directory needs: it stores the model's preset, but not the task or how
    conversations are rendered."""
    model = config.model.model_dump(exclude_defaults=True, include=RENDERING)
    task = config.task.model_dump(exclude_defaults=True, exclude={"name"})
    out = [f"task={config.task.name}"]
    for section, given in (("model", model), ("task", task)):
        for key, value in given.items():
            if isinstance(value, dict):
                # "3" stays a text
                out += [f"{section}.{key}.{name}={json.dumps(inner)}" for name, inner in value.items()]
            else:
                out.append(f"{section}.{key}={value if isinstance(value, str) else json.dumps(value)}")
    return out


RENDERING = {"history", "template_kwargs", "think_markers", "trust_remote_code"}


def _settings(out: Path, settings: list[str]) -> Config:
    """The settings of a warm-up. Its files are next to its output."""
    from selfcorrect.records.run_directory import WarmUpDirectory

    config = read_settings(settings)
    if config.run_dir is not None:
        raise ConfigError(
            f"'run_dir' would be ignored by `selfcorrect sft`: its files are in {WarmUpDirectory.of(out)}; drop it"
        )
    # Every weight is trained: adapters cannot be the base of a run, and merging them into bfloat16 loses precision.
    config = override(config, ["model.lora_rank=0"])
    update: dict[str, object] = {"run_dir": str(WarmUpDirectory.of(out))}
    # only the last measurement samples: another sampler would load the weights a second time for it
    if config.engine.name == "torch":
        update["engine"] = config.engine.model_copy(update={"sampler": "native"})
    return config.model_copy(update=update)
