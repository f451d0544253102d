"""What the engine needs of a Tinker server, in plain values. ``client.py`` is the real one; tests bring their own.

A *trainer* is one LoRA adapter in the server's memory with its gradients and its optimiser. It takes one of the server's
places; a saved state takes disk only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from selfcorrect.engines.base import AdamParams
from selfcorrect.types import FloatArray, LossName


class RemoteFailure(Exception):
    """A request that failed. Whether the server did the work is not known, unless the server said that it refused."""

    def __init__(self, reason: str, *, passing: bool = False, full: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing
        """No connection, no answer in time, or a server that is busy: the same request may succeed later."""
        self.full = full
        """The server has no place for another adapter now."""


@dataclass(frozen=True, slots=True)
class WireDatum:
    """One sequence as the API wants it. ``input_ids[t]`` predicts ``target_ids[t]``: one shorter than the tokens, T - 1."""

    input_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    weights: FloatArray
    """Per target. Sent as advantages for importance sampling, as weights for cross-entropy."""
    logprobs: FloatArray
    """The sampler's, per target; read by importance sampling only."""


@dataclass(frozen=True, slots=True)
class RawSample:
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    """As the server gives them; None where it gives none."""
    stop: Literal["stop", "length"]


class Sampler(Protocol):
    """One published set of weights."""

    async def sample(
        self, prompt_ids: Sequence[int], max_tokens: int, temperature: float, stop_ids: Sequence[int], seed: int
    ) -> RawSample: ...


class Trainer(Protocol):
    """One adapter. Its requests are carried out in the order in which they were made."""

    def forward(self, data: Sequence[WireDatum]) -> list[FloatArray]:
        """Log-probs of the targets in nats, one array of shape [T - 1] per datum. Changes nothing."""
        ...

    def forward_backward(self, data: Sequence[WireDatum], loss: LossName) -> list[FloatArray]:
        """As ``forward``, and adds the gradient as the server reduces it."""
        ...

    def optim_step(self, adam: AdamParams) -> float | None:
        """Applies and clears the gradient; returns its norm where the server reports one."""
        ...

    def save(self, name: str) -> str:
        """Saves weights and optimiser under a new name; returns the path to load them from."""
        ...

    def publish(self) -> Sampler:
        """A sampler of the weights as they are now."""
        ...

    def export(self, name: str, path: Path) -> None:
        """Writes the adapter as a PEFT directory; ``name`` is a new one on the server."""
        ...


class Server(Protocol):
    """One session with a server."""

    def models(self) -> dict[str, int | None]:
        """Names of the models that it serves, with their longest sequence where it says."""
        ...

    def trainer(self, model: str, rank: int, seed: int) -> Trainer:
        """A fresh adapter, which changes nothing yet."""
        ...

    def trainer_from(self, path: str, *, optimiser: bool) -> Trainer:
        """A new adapter with a saved one's weights, with or without its optimiser."""
        ...

    def base_sampler(self, model: str) -> Sampler:
        """The model without an adapter."""
        ...

    def unload(self, trainer: Trainer) -> None:
        """Frees an adapter's place."""
        ...
