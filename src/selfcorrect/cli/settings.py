"""Reading ``[CONFIG.toml] [key=value ...]`` from a command line."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selfcorrect.config import Config, load_config, override
from selfcorrect.errors import ConfigError, RunError, SelfCorrectError

if TYPE_CHECKING:
    from selfcorrect.records.run_directory import RunDirectory

SHORT = {
    "attempts": "eval.attempts",
    "temperature": "eval.temperature",
    "limit": "eval.problems",
    "samples": "eval.samples",
}
"""Evaluation settings that the measuring commands accept without their section."""


def read_settings(arguments: Sequence[str]) -> Config:
    """Resolve a command's arguments: at most one config file, then overrides.

    Raises:
        ConfigError: two files, or a setting that is not one.
    """
    files = [a for a in arguments if "=" not in a]
    if len(files) > 1:
        raise ConfigError(
            f"two config files are given ({files[0]}, {files[1]}); settings are written key=value, without spaces"
        )
    return load_config(Path(files[0]) if files else None, [a for a in arguments if "=" in a])


def refuse_ignored(settings: Sequence[str], used: Collection[str], reason: str) -> None:
    """Refuse settings that a command would not read. A config file among them is skipped.

    Args:
        settings: ``key=value`` each.
        used: settings and whole sections that the command reads.
        reason: says why other settings are not read, and which settings are.

    Raises:
        ConfigError: one of them would be ignored.
    """
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if "=" in setting and not any(key == u or key.startswith(f"{u}.") for u in used):
            raise ConfigError(f"setting {key!r} would be ignored: {reason}; drop it")


def find_run(model: str) -> RunDirectory | None:
    """The run directory at this path; None where ``model`` names a model."""
    from selfcorrect.records.run_directory import RunDirectory

    path = Path(model)
    return RunDirectory.open(path) if (path / "checkpoints").is_dir() and (path / "config.json").exists() else None


@contextlib.contextmanager
def from_elsewhere(run: RunDirectory | None, config: Config, command: str) -> Iterator[None]:
    """Say that relative paths of a run count from where it was started, if that may be why the block failed.

    Args:
        run: None changes nothing.
        config: the settings in use; those that are not the run's own count from here.
        command: to be given in that directory; ``{run}`` stands for the run.
    """
    try:
        yield
    except SelfCorrectError as error:
        if run is None or not (lost := _not_here(run.config, config)):
            raise
        fault = str(error).partition("; ")[0]  # without its way out, which names settings that a run refuses
        names = " and ".join(lost)
        on_hub = "Hub or its local cache" in fault
        condition = f"if {names} is a directory, it" if on_hub else names
        network = "check the network; " if on_hub else ""
        raise RunError(
            f"{fault}; {network}{condition} counts from the directory in which the run was started, so change to that directory "
            f"and give {command.format(run=run.target.resolve())}"
        ) from error


def _not_here(own: Config, used: Config) -> list[str]:
    """Settings of a run that are relative paths and do not exist from here."""
    from selfcorrect.engines.models import EMBEDDED

    found = []
    for section, keys in (("model", ("name",)), ("task", ("path", "first_attempts"))):
        for key in keys:
            value = getattr(getattr(own, section), key, None)
            changed = getattr(getattr(used, section), key, None) != value
            if not value or changed or value in EMBEDDED or Path(value).is_absolute() or Path(value).exists():
                continue
            found.append(f"{section}.{key} = {value!r}")
    return found


def long_form(setting: str) -> str:
    """``eval.problems=100`` for ``limit=100``; other settings unchanged."""
    key, equals, value = setting.partition("=")
    return f"{SHORT.get(key, key)}{equals}{value}"


def model_and_settings(model: str, given: Sequence[str]) -> tuple[RunDirectory | None, Config]:
    """What a command measures: a model with the given settings (in their long form), or a run whose settings they
    change.

    Raises:
        ConfigError: a setting is wrong, or names another model than the run's.
    """
    run = find_run(model)
    if run is None:
        return None, read_settings([f"model={json.dumps(model)}", *given])
    refused = [s for s in given if "=" not in s or s.partition("=")[0].partition(".")[0] == "model"]
    if refused:
        raise ConfigError(
            f"{refused[0]!r} cannot be combined with a run, which brings its own model and settings; give eval.* or task.* "
            f"settings, or measure the exported model {run.path / 'model'}"
        )
    return run, override(run.config, given)
