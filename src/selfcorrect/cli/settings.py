"""Reading ``[CONFIG.toml] [key=value ...]`` from a command line."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selfcorrect.config import Config, load_config
from selfcorrect.errors import ConfigError

if TYPE_CHECKING:
    from selfcorrect.run import RunDirectory


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
    """Refuse settings that a command would not read.

    Args:
        settings: ``key=value`` each; others (a config file) are passed over.
        used: settings, or whole sections, that it reads.
        reason: why the others do not count, and which do.

    Raises:
        ConfigError: one of them would be ignored.
    """
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if "=" in setting and key not in used and key.partition(".")[0] not in used:
            raise ConfigError(f"setting {key!r} would be ignored: {reason}; drop it")


def find_run(model: str) -> RunDirectory | None:
    """The run directory that a name stands for; None where it is that of a model."""
    from selfcorrect.run import RunDirectory

    path = Path(model)
    return RunDirectory.open(path) if (path / "checkpoints").is_dir() and (path / "config.json").exists() else None
