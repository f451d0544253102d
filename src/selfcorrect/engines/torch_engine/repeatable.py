"""Repeatable runs: deterministic kernels, and a number of threads that fits the model.

Measured on a CPU (docs/engines.md): with deterministic algorithms and MKL's strict reproducibility a run has the same
records and weights, bit for bit, in another process, on a busy machine, and with another number of threads. Another
kind of CPU or another version of torch may give other last digits.
"""

from __future__ import annotations

import os

import torch

from selfcorrect.config import TorchEngineConfig
from selfcorrect.errors import ConfigError

SMALL_MODEL = 5_000_000
"""Largest number of parameters for which one thread is fastest: a second one costs more waiting than it saves."""


def settle(settings: TorchEngineConfig, device: torch.device, parameters: int) -> bool:
    """Set this process's threads and kernels for a run; call it before the first pass.

    Args:
        settings: ``deterministic`` and ``threads``.
        device: where the model runs.
        parameters: of the model, which decide the number of threads where neither the settings nor OMP_NUM_THREADS do.

    Returns:
        Whether the run is repeatable bit for bit.

    Raises:
        ConfigError: the settings ask for determinism, which this device or sampler cannot guarantee.
    """
    possible = device.type == "cpu" and settings.sampler == "native"
    if settings.deterministic and not possible:
        culprit = "engine.sampler=vllm" if settings.sampler == "vllm" else f"device {device.type}"
        raise ConfigError(
            f"engine.deterministic=true is not possible with {culprit}: its kernels may sum in another order each time; "
            "use engine.device=cpu with engine.sampler=native, or drop the setting"
        )
    deterministic = possible and settings.deterministic is not False
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:  # MKL reads it at its first call, which no import makes; a user's own value wins
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    elif device.type == "cpu" and parameters <= SMALL_MODEL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    return deterministic
