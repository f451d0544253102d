"""Weights & Biases. Its own environment variables apply: WANDB_MODE=offline, WANDB_PROJECT, WANDB_API_KEY."""

from __future__ import annotations

import os
from collections.abc import Mapping

import wandb

from selfcorrect.trackers.base import Tracked


class Wandb:
    """Implements ``Tracker``. Sends the config and the numbers, but no code, git state, output or system data."""

    name = "wandb"

    def start(self, run: Tracked) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "selfcorrect"),
            id=run.id,
            name=run.name,
            dir=str(run.directory),
            config=dict(run.config),
            resume="allow",
            settings=wandb.Settings(console="off", disable_code=True, disable_git=True, x_disable_stats=True),
        )
        # its own step counter only goes up, and the kept checkpoint may be an earlier one than the last step
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def finish(self) -> None:
        self._run.finish()


make = Wandb
