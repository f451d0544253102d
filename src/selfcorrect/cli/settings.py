"""Reading ``[CONFIG.toml] [key=value ...]`` from a command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfcorrect.config import Config, load_config
from selfcorrect.errors import ConfigError


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
