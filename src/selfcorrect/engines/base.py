"""The engine contract: what a training loop needs. It follows the Tinker API, so that the remote engine stays thin.

Engines take and return token ids. ``sample`` is asynchronous: a rollout is one coroutine per problem. A remote engine
pipelines the calls, and a local one merges concurrent calls into one batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from selfcorrect.types import BoolArray, Datum, FloatArray, IntArray, LossName

if TYPE_CHECKING:
    from selfcorrect.engines.chat import ChatFormat

CURRENT = "current"
"""Policy name of the weights being trained. Any other name is a frozen snapshot."""
EXACT_GAP = 1e-4
"""Nats. A sampler whose log-probs differ from the trainer's by less is exact: float32 rounding explains the difference."""
LARGEST_MEAN_GAP = 0.5
"""Nats per token. Above it the sampler runs another model or samples from another distribution. Rounding in bfloat16
gives about 0.01."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One answer to sample."""

    prompt_ids: tuple[int, ...]
    key: tuple[int | str, ...]
    """Names the row's own random stream, e.g. (seed, step, problem id, sample, attempt). In float32, equal keys and
    prompts give equal tokens in any batch, except where a draw depends on the last bits of a probability. These vary
    with the batch. In bfloat16 such exceptions are not rare."""

    def stream_key(self) -> int:
        """128-bit key of the row's random stream."""
        return int.from_bytes(hashlib.blake2b(repr(self.key).encode(), digest_size=16).digest())


@dataclass(frozen=True, slots=True)
class SamplingParams:
    max_new_tokens: int
    temperature: float = 1.0
    """0 is greedy. There is no top-p or top-k, and a model's own generation defaults are never read."""
    stop_ids: frozenset[int] = frozenset()
    continued: bool = False
    """A later prompt will extend the answers: an engine may keep their key-value cache."""


@dataclass(frozen=True, slots=True)
class Sampled:
    token_ids: tuple[int, ...]
    """The sampled tokens, with the end token if the model emitted it; at least one."""
    logprobs: tuple[float, ...]
    """Log-probs in nats under the sampling distribution (at temperature 0: under the model at temperature 1)."""
    stop: Literal["end", "length"]
    drafted: int = 0
    """Number of tokens that were copied from an earlier attempt in the prompt and only checked (``engine.drafts``)."""


@dataclass(frozen=True, slots=True)
class AdamParams:
    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip: float | None = None


@dataclass(frozen=True, slots=True)
class OptimResult:
    grad_norm: float
    """Norm of the gradient before clipping."""
    learning_rate: float
    clipped: bool


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is and can do; written into the run's records."""

    name: str
    device: str
    dtype: str
    parameters: int | None
    """None if a remote engine does not say; likewise ``trainable_parameters``."""
    trainable_parameters: int | None
    max_length: int
    """Longest sequence in tokens that the model accepts."""
    exact_sampler: bool = False
    """The sampler's log-probs are the trainer's to within ``EXACT_GAP``. Otherwise the KL terms take the policy's
    log-probs from one more pass of the trainer: log-ratios between two kinds of pass, summed over an answer, are no
    estimate of the KL."""
    deterministic: bool = False
    """Equal settings give equal records and weights, bit for bit, on the same kind of CPU with the same torch."""
    threads: int | None = None
    """CPU threads of the passes; None on another device, or if a remote engine does not say."""
    notes: tuple[str, ...] = ()
    """Findings about a remote engine that are corrected for, or about a sampler with its own weights."""


class Scored(Protocol):
    """A token sequence with the positions whose log-probs are wanted."""

    @property
    def tokens_T(self) -> IntArray: ...
    @property
    def sampled_T(self) -> BoolArray: ...


@runtime_checkable
class TellsProgress(Protocol):
    """An engine that reports progress within one call of ``sample``."""

    answered: Callable[[int], None]
    """Called with the number of answers in each batch that finishes."""


@runtime_checkable
class LimitsMemory(Protocol):
    """An engine whose own caches grow with the number of episodes played at once."""

    def episodes_at_once(self, tokens: int) -> int | None:
        """The most episodes of that many tokens to play at once, at least 1; None: as many as there are."""

    def drop_caches(self) -> None:
        """Forget what is kept of earlier prompts. This changes time and memory, and no answer."""


class Engine(Protocol):
    """Every verb either completes or raises ``EngineError``, which says whether the engine is still usable."""

    info: EngineInfo
    chat: ChatFormat

    async def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[Sampled]:
        """Sample one answer per request from the published weights, in the order of the requests."""

    def logprobs(self, sequences: Sequence[Scored], policy: str) -> list[FloatArray]:
        """Log-probs in nats at the sampled positions, 0 elsewhere; one array of shape [T] per sequence.

        Args:
            sequences: token sequences with their mask of wanted positions.
            policy: ``"current"`` or the name of a frozen snapshot.
        """

    def forward_backward(self, data: Sequence[Datum], loss: LossName) -> list[FloatArray]:
        """Add the gradient of the loss summed over all data; nothing is averaged.

        Returns:
            The trainer's log-probs at positions of non-zero weight, NaN elsewhere; one array of shape [T] per datum.
        """

    def optim_step(self, adam: AdamParams) -> OptimResult:
        """Apply the accumulated gradient and clear it."""

    def reset_optimiser(self) -> None:
        """Forget Adam's moments (between stages)."""

    def publish(self) -> None:
        """Let ``sample`` use the trained weights, and drop every cache made with older ones."""

    def snapshot(self, name: str) -> None:
        """Freeze a named copy of the current policy. It never moves; an existing name is replaced."""

    def restore(self, name: str) -> None:
        """Set the current policy back to a snapshot, and forget Adam's moments. Call ``publish`` after it."""

    def save(self, path: Path) -> None:
        """Write everything ``load`` needs to continue bit for bit: weights, optimiser, snapshots."""

    def load(self, path: Path) -> None:
        """Return to a saved state. The weights are published."""

    def export(self, path: Path) -> None:
        """Write an ordinary Hugging Face (or PEFT adapter) directory with the tokenizer."""
