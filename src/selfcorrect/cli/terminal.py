"""The console of all commands."""

from __future__ import annotations

from typing import Any

from rich.console import Console


def plain_console(**options: Any) -> Console:
    """A console that prints every text as it is. Paths, settings and messages of servers have brackets and colons, which rich
    would take for markup and emoji: it drops ``[again]``, and ``[/INST]`` is an error."""
    return Console(markup=False, emoji=False, **options)
