"""Forward passes over whole sequences: log-probs at chosen positions, in micro-batches bounded by tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from selfcorrect.errors import ModelError
from selfcorrect.types import BoolArray, IntArray

LOGITS_KEPT = 2**28
"""Above this many logits (positions x vocabulary, 1 GiB in float32) a pass recomputes them in the backward instead."""
LOGITS_CHUNK = 2**25
"""Logits computed at once (128 MiB in float32)."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Right-padded sequences with the flat list of positions to score."""

    index: tuple[int, ...]
    """Which of the caller's sequences these rows are."""
    ids_BT: Tensor
    rows_N: Tensor
    columns_N: Tensor
    """Column of each scored token; its prediction is read one column to the left."""
    targets_N: Tensor


def micro_batches(
    tokens: Sequence[IntArray], positions: Sequence[BoolArray], budget: int, pad_id: int, device: torch.device
) -> list[MicroBatch]:
    """Group sequences of similar length so that rows x longest stays within ``budget`` tokens.

    Sequences without a scored position are left out. A single sequence longer than the budget still gets its own pass.
    """
    order = sorted((i for i in range(len(tokens)) if positions[i].any()), key=lambda i: (len(tokens[i]), i))
    groups: list[list[int]] = []
    for i in order:
        if groups and (len(groups[-1]) + 1) * len(tokens[i]) <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [_micro_batch(group, tokens, positions, pad_id, device) for group in groups]


def _micro_batch(
    group: list[int], tokens: Sequence[IntArray], positions: Sequence[BoolArray], pad_id: int, device: torch.device
) -> MicroBatch:
    width = max(len(tokens[i]) for i in group)
    ids_BT = torch.full((len(group), width), pad_id, dtype=torch.long)
    wanted_BT = torch.zeros(len(group), width, dtype=torch.bool)
    for b, i in enumerate(group):
        ids_BT[b, : len(tokens[i])] = torch.as_tensor(tokens[i], dtype=torch.long)
        wanted_BT[b, : len(tokens[i])] = torch.as_tensor(positions[i])
    rows_N, columns_N = wanted_BT.nonzero(as_tuple=True)
    assert bool((columns_N > 0).all()), "the first token of a sequence has no prediction"
    targets_N = ids_BT[rows_N, columns_N]
    return MicroBatch(tuple(group), ids_BT.to(device), rows_N.to(device), columns_N.to(device), targets_N.to(device))


def recompute_layers(model: nn.Module) -> None:
    """Let every decoder layer keep only its input and run again in the backward pass: less memory, a third more time.

    transformers' own switch acts in training mode only, and there dropout would be on.

    Raises:
        ModelError: the model's layers cannot be told apart.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            "engine.gradient_checkpointing=true has no effect on this model, whose layers do not support it; drop the setting"
        )
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


class OutputHead:
    """A model's output head on chosen hidden states alone."""

    def __init__(self, model: Any) -> None:
        self._head: Any = model.get_output_embeddings()
        self._softcap: float | None = getattr(model.config, "final_logit_softcapping", None)
        self.vocabulary = int(self._head.weight.shape[0])

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Float32 logits, shape [N, V]. Two dimensions on purpose: on a CPU, torch copies the whole head once per row of
        a strided [B, 1, H] in bfloat16."""
        logits_NV: Tensor = self._head(hidden_NH).float()
        if self._softcap is not None:
            logits_NV = self._softcap * torch.tanh(logits_NV / self._softcap)
        return logits_NV


class Scorer:
    """Log-probs of chosen tokens: decoder once, output head only at the chosen positions, in chunks."""

    def __init__(self, model: Any) -> None:
        self._decoder: nn.Module = model.get_decoder()
        self._head = OutputHead(model)

    def logprobs(self, batch: MicroBatch) -> Tensor:
        """Natural-log probabilities of ``targets_N``, float32, shape [N]; with gradient where enabled.

        Right padding needs no mask: under causal attention no real token sees it, and its outputs are not read.
        """
        hidden_BTH: Tensor = self._decoder(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
        hidden_NH = hidden_BTH[batch.rows_N, batch.columns_N - 1]
        vocabulary = self._head.vocabulary
        rows = max(1, LOGITS_CHUNK // vocabulary)
        recompute = torch.is_grad_enabled() and len(hidden_NH) * vocabulary > LOGITS_KEPT
        chunks = []
        for hidden, targets in zip(torch.split(hidden_NH, rows), torch.split(batch.targets_N, rows), strict=True):
            if recompute:
                chunks.append(checkpoint(self._score, hidden, targets, use_reentrant=False))
            else:
                chunks.append(self._score(hidden, targets))
        return torch.cat(chunks)

    def _score(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        logits_NV = self._head.logits(hidden_NH)
        picked_N = logits_NV.gather(1, targets_N[:, None]).squeeze(1)
        return picked_N - logits_NV.logsumexp(-1)
