"""The command line with the toy task, and faults on request: run as a script by tests of real processes.

Environment: ``SIGNAL_AT=STEP:NUMBER`` sends a signal to this process while that step plays; ``KILL_IN_SAVE=N`` writes half
of the N-th checkpoint and dies by SIGKILL.
"""

import os
import signal

import toy
from selfcorrect.cli import main
from selfcorrect.engines.torch_engine import TorchEngine
from selfcorrect.tasks import TASKS
from selfcorrect.training import context as training

TASKS["toy"] = lambda config: toy.Toy()


def signal_at(step: int, number: int) -> None:
    draw = training.problems_of_step

    def drawn(problems, seed, at, count):
        if at == step:
            os.kill(os.getpid(), number)
        return draw(problems, seed, at, count)

    training.problems_of_step = drawn


def kill_in_save(n: int) -> None:
    save = TorchEngine.save
    calls = []

    def half(self, path):
        save(self, path)
        calls.append(path)
        if len(calls) == n:
            weights = path / "weights.safetensors"
            os.truncate(weights, weights.stat().st_size // 2)
            (path / "optimiser.pt").unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    TorchEngine.save = half


if "SIGNAL_AT" in os.environ:
    signal_at(*map(int, os.environ["SIGNAL_AT"].split(":")))
if "KILL_IN_SAVE" in os.environ:
    kill_in_save(int(os.environ["KILL_IN_SAVE"]))
main()
