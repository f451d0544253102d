"""TensorBoard event files in the run directory: ``tensorboard --logdir RUN``."""

from __future__ import annotations

import json
from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from selfcorrect.trackers.base import Tracked


class TensorBoard:
    """Implements ``Tracker``. A resumed run adds a file to the same directory, which TensorBoard shows as one run."""

    name = "tensorboard"

    def start(self, run: Tracked) -> None:
        directory = run.directory / "tensorboard"
        is_new = not directory.exists()
        self._writer = SummaryWriter(str(directory))
        if is_new:
            self._writer.add_text("config", f"```json\n{json.dumps(run.config, indent=2)}\n```")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed process loses nothing

    def finish(self) -> None:
        self._writer.close()


make = TensorBoard
