"""``selfcorrect sft``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from selfcorrect.cli.settings import read_settings
from selfcorrect.config import PRESET_MARKER, override, preset_name


def sft(
    out: Annotated[Path, typer.Argument(help="Directory for the warmed-up model; it must not exist yet.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG.toml] [key=value ...]", help="A config file, then settings.")
    ] = None,
) -> None:
    """Teach a model a task's answer format before any reinforcement learning, and write it as a model directory.

    That directory is then the base of every comparison: pass it as `model=DIR`.

    Example: `selfcorrect sft models/smollm2-warm model=smollm2 task=arithmetic sft.steps=100`
    """
    from rich.console import Console

    from selfcorrect.experiment import export, make_engine, prepare
    from selfcorrect.records.files import claim
    from selfcorrect.training.warmup import require_demonstrations, warm_up

    # Every weight is trained: adapters cannot be the base of a run, and merging them into bfloat16 loses precision.
    config = override(read_settings(settings or []), ["model.lora_rank=0"])
    # nothing is sampled: another sampler would only load the weights a second time
    if config.engine.name == "torch":
        config = config.model_copy(update={"engine": config.engine.model_copy(update={"sampler": "native"})})
    claim(out)
    job = prepare(config)
    require_demonstrations(job.task)
    console = Console(stderr=True)
    engine = make_engine(job)
    warm_up(engine, job.task, config, console.print)
    export(engine, out)
    (out / PRESET_MARKER).write_text(preset_name(config.model.name) + "\n")
    # The directory stores the model's preset but not the task, so the next command repeats the task's settings.
    given = config.task.model_dump(exclude_defaults=True, exclude={"name"})
    options = given.pop("options", {})
    task = [f"task.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]
    task += [f"task.options.{key}={json.dumps(value)}" for key, value in options.items()]  # "3" stays a text
    print(f"model    {out}")
    print(f"next     {shlex.join(['selfcorrect', 'train', f'model={out}', f'task={config.task.name}', *task])}")
