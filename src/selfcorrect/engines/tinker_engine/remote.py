"""The values that the engine exchanges with a Tinker server. ``client.py`` sends them; tests use a server of their own.

A *trainer* is one LoRA adapter in the server's memory with its gradients and its optimiser. It occupies one of the
server's places; a saved state takes only disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from selfcorrect.types import FloatArray


class RemoteFailure(Exception):
    """A request that failed. Unless the server reports a refusal, it is unknown whether it did the work."""

    def __init__(self, reason: str, *, passing: bool = False, full: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing
        """No connection, no answer in time, or a server that is busy: the same request may succeed later."""
        self.full = full
        """The server has no place for another adapter now."""


@dataclass(frozen=True, slots=True)
class WireDatum:
    """One sequence as the API takes it. ``input_ids[t]`` predicts ``target_ids[t]``: one shorter than the tokens, T - 1."""

    input_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    weights: FloatArray
    """One weight per target. Sent as advantages for importance sampling, as weights for cross-entropy."""
    logprobs: FloatArray
    """The sampler's log-probs, one per target; read by importance sampling only."""


@dataclass(frozen=True, slots=True)
class RawSample:
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    """The log-probs that the server returns; None if it returns none."""
    stop: Literal["stop", "length"]
