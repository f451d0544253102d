"""Trackio, on this machine unless TRACKIO_SPACE_ID names a Space: ``trackio show --project selfcorrect``."""

from __future__ import annotations

import os
from collections.abc import Mapping

import trackio

from selfcorrect.trackers.base import Tracked


class Trackio:
    """Implements ``Tracker``. Trackio continues a run by its name, so the name contains the id. A new Space is
    private."""

    name = "trackio"

    def start(self, run: Tracked) -> None:
        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "selfcorrect"),
            name=f"{run.name}-{run.id}",
            config=dict(run.config),
            resume="allow",
            private=True,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        trackio.log(dict(metrics), step=step)

    def finish(self) -> None:
        trackio.finish()


make = Trackio
