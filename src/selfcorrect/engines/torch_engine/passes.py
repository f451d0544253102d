"""Forward passes over whole sequences: log-probs at chosen positions, in micro-batches bounded by tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from selfcorrect.engines.torch_engine.cache import cache_argument, run_decoder
from selfcorrect.errors import ModelError
from selfcorrect.types import BoolArray, IntArray

LOGITS_CHUNK = 2**25
"""Logits that exist at once, forward and backward (128 MiB in float32)."""


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Beginnings that several rows of a micro-batch have in common, each computed once."""

    ids_GP: Tensor
    """Right-padded."""
    lengths_G: Tensor
    prefix_of_B: Tensor
    """Index into G of each row's beginning."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Right-padded sequences, or what follows their shared prefixes, with the flat list of positions to score."""

    index: tuple[int, ...]
    """Which of the caller's sequences these rows are."""
    ids_BT: Tensor
    rows_N: Tensor
    columns_N: Tensor
    """Column of each scored token in the caller's sequence."""
    reads_N: Tensor
    """Column of ``ids_BT`` whose output predicts it: that of the token before it."""
    targets_N: Tensor
    prefix: SharedPrefix | None = None

    @property
    def tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.ids_BT.numel() + (self.prefix.ids_GP.numel() if self.prefix is not None else 0)


def micro_batches(
    tokens: Sequence[IntArray],
    positions: Sequence[BoolArray],
    budget: int,
    pad_id: int,
    device: torch.device,
    *,
    share: bool = True,
) -> list[MicroBatch]:
    """Group sequences of similar length so that a pass computes at most ``budget`` tokens, padding included.

    Sequences that are equal up to the token before their first scored position (the samples of one problem: its prompt)
    compute that part once, where this saves tokens. Sequences without a scored position are left out. A single sequence
    longer than the budget still gets its own pass.

    Args:
        tokens: one array of token ids per sequence.
        positions: True where a token's log-prob is wanted; the first token has none.
        budget: tokens per pass.
        pad_id: fills rows up; never attended to by a real token.
        device: of the tensors made.
        share: False computes every sequence whole.
    """
    scored = [i for i in range(len(tokens)) if positions[i].any()]
    assert not any(positions[i][0] for i in scored), "the first token of a sequence has no prediction"

    def pack(sequences: Sequence[int], heads: Mapping[int, int]) -> list[_Pass]:
        keys = {i: tokens[i][: heads[i]].tobytes() for i in sequences}
        return [_Pass(tuple(group), keys, heads) for group in _pack(sequences, keys, heads, tokens, budget)]

    nothing = dict.fromkeys(scored, 0)
    plans = [pack(scored, nothing)]
    if share:
        heads = {i: int(positions[i].argmax()) - 1 for i in scored}
        families = Counter(tokens[i][: heads[i]].tobytes() for i in scored)
        several = [i for i in scored if heads[i] > 0 and families[tokens[i][: heads[i]].tobytes()] > 1]
        plans.append(pack(several, heads) + pack(sorted(set(scored) - set(several)), nothing))
    fewest = min(plans, key=lambda passes: sum(_computed(p.group, p.keys, p.heads, tokens) for p in passes))
    return [_micro_batch(p.group, p.keys, p.heads, tokens, positions, pad_id, device) for p in fewest]


@dataclass(frozen=True, slots=True)
class _Pass:
    """Sequences of one pass, before any tensor is made."""

    group: tuple[int, ...]
    keys: Mapping[int, bytes]
    """Equal for sequences that share their beginning."""
    heads: Mapping[int, int]
    """Length of that beginning; 0: nothing is shared."""


def _computed(
    group: Sequence[int], keys: Mapping[int, bytes], heads: Mapping[int, int], tokens: Sequence[IntArray]
) -> int:
    """Tokens that a pass computes, padding included."""
    prefixes = len({keys[i] for i in group}) * max(heads[i] for i in group)
    return prefixes + len(group) * max(len(tokens[i]) - heads[i] for i in group)


def _pack(
    sequences: Sequence[int],
    keys: Mapping[int, bytes],
    heads: Mapping[int, int],
    tokens: Sequence[IntArray],
    budget: int,
) -> list[list[int]]:
    """Fill passes in the order of length, families (equal keys) together, up to the budget."""
    tails = {i: len(tokens[i]) - heads[i] for i in sequences}
    longest: dict[bytes, int] = {}
    for i in sequences:
        longest[keys[i]] = max(longest.get(keys[i], 0), tails[i])
    groups: list[list[int]] = []
    for i in sorted(sequences, key=lambda i: (longest[keys[i]], keys[i], tails[i], i)):
        if groups and _computed([*groups[-1], i], keys, heads, tokens) <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _micro_batch(
    group: Sequence[int],
    keys: Mapping[int, bytes],
    heads: Mapping[int, int],
    tokens: Sequence[IntArray],
    positions: Sequence[BoolArray],
    pad_id: int,
    device: torch.device,
) -> MicroBatch:
    ids_BT = _padded([tokens[i][heads[i] :] for i in group], pad_id)
    rows_N, places_N = _padded([positions[i][heads[i] :] for i in group], False).nonzero(as_tuple=True)
    starts_B = torch.tensor([heads[i] for i in group])
    prefix = None
    if bool(starts_B.any()):
        member = {keys[i]: i for i in group}
        number = {key: g for g, key in enumerate(member)}
        prefix = SharedPrefix(
            _padded([tokens[i][: heads[i]] for i in member.values()], pad_id).to(device),
            torch.tensor([heads[i] for i in member.values()], device=device),
            torch.tensor([number[keys[i]] for i in group], device=device),
        )
    return MicroBatch(
        tuple(group),
        ids_BT.to(device),
        rows_N.to(device),
        (places_N + starts_B[rows_N]).to(device),
        (places_N - 1).to(device),
        ids_BT[rows_N, places_N].to(device),
        prefix,
    )


def _padded(rows: Sequence[IntArray] | Sequence[BoolArray], value: int | bool) -> Tensor:
    width = max(len(row) for row in rows)
    out = torch.full((len(rows), width), value, dtype=torch.bool if isinstance(value, bool) else torch.long)
    for b, row in enumerate(rows):
        out[b, : len(row)] = torch.as_tensor(row)
    return out


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


class _Seam:
    """Where the graph of rows is cut from that of the prefixes they share, so that one is differentiated after the other.

    In one go autograd would hold the gradients that the rows give to the weights until those of the prefixes have come:
    a second copy of all gradients.
    """

    def __init__(self) -> None:
        self._made: list[Tensor] = []
        self._leaves: list[Tensor] = []

    def cut(self, cache: DynamicCache) -> None:
        """Put leaves into the cache for the keys and values of the prefixes."""
        for layer in cache.layers:
            layer.keys, layer.values = self._leaf(layer.keys), self._leaf(layer.values)

    def _leaf(self, made: Tensor) -> Tensor:
        if not made.requires_grad:
            return made
        leaf = made.detach().requires_grad_()
        self._made.append(made)
        self._leaves.append(leaf)
        return leaf

    def backward(self) -> None:
        """Hand on what the rows have left at the leaves."""
        if self._made:
            torch.autograd.backward(self._made, [leaf.grad for leaf in self._leaves])


class Scorer:
    """Log-probs of chosen tokens: decoder once, output head only at the chosen positions, in chunks.

    Raises:
        ModelError: the model's decoder takes no cache.
    """

    def __init__(self, model: Any) -> None:
        self._decoder: nn.Module = model.get_decoder()
        cache_argument(type(self._decoder))  # type: ignore[arg-type]  # as in run_decoder; refused now, not in a step
        self._head = OutputHead(model)

    def logprobs(self, batch: MicroBatch) -> Tensor:
        """Natural-log probabilities of ``targets_N``, float32, shape [N]. Call without gradients: all chunks' would be kept."""
        hidden_NH = self._chosen(batch)
        parts = self._chunks(len(hidden_NH))
        return torch.cat([self._score(hidden_NH[part], batch.targets_N[part]) for part in parts])

    def backward(self, batch: MicroBatch, loss: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """Add the gradient of a loss that is a sum over tokens, and return the log-probs, as ``logprobs`` does.

        Each chunk of logits goes through the head, the loss and back before the next is made; the decoder is then
        differentiated once, at the gradients that its outputs have received, and after it the shared prefixes.

        Args:
            batch: what to score.
            loss: of some tokens' log-probs [n] (with gradient) and their slice of N; a scalar.
        """
        seam = _Seam()
        hidden_NH = self._chosen(batch, seam)
        leaf_NH = hidden_NH.detach().requires_grad_()
        scored = []
        for part in self._chunks(len(hidden_NH)):
            logprobs = self._score(leaf_NH[part], batch.targets_N[part])
            loss(logprobs, part).backward()  # type: ignore[no-untyped-call]
            scored.append(logprobs.detach())
        hidden_NH.backward(leaf_NH.grad)  # type: ignore[no-untyped-call]
        seam.backward()
        return torch.cat(scored)

    def _chosen(self, batch: MicroBatch, seam: _Seam | None = None) -> Tensor:
        """The decoder's outputs that predict the targets, shape [N, H].

        Right padding needs no mask: under causal attention no real token sees it, and its outputs are not read.
        """
        return self._hidden(batch, seam)[batch.rows_N, batch.reads_N]

    def _chunks(self, n: int) -> list[slice]:
        rows = max(1, LOGITS_CHUNK // self._head.vocabulary)
        return [slice(start, start + rows) for start in range(0, n, rows)]

    def _hidden(self, batch: MicroBatch, seam: _Seam | None) -> Tensor:
        if batch.prefix is None:
            whole: Tensor = self._decoder(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
            return whole
        # The keys and values of the prefixes have a graph: gradients of all rows flow back through the one pass.
        shared = batch.prefix
        cache = DynamicCache()
        run_decoder(self._decoder, cache, input_ids=shared.ids_GP)
        if seam is not None:
            seam.cut(cache)
        cache.batch_select_indices(shared.prefix_of_B)
        rows, width = batch.ids_BT.shape
        starts_B1 = shared.lengths_G[shared.prefix_of_B][:, None]
        steps_T = torch.arange(width, device=batch.ids_BT.device)
        seen_BP = torch.arange(shared.ids_GP.shape[1], device=batch.ids_BT.device) < starts_B1
        mask_BTS = torch.cat(
            [
                seen_BP[:, None].expand(-1, width, -1),
                (steps_T[:, None] >= steps_T).expand(rows, -1, -1),
            ],
            dim=2,
        )
        return run_decoder(
            self._decoder,
            cache,
            input_ids=batch.ids_BT,
            attention_mask=mask_BTS[:, None],
            position_ids=starts_B1 + steps_T,
        )

    def _score(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        return -nn.functional.cross_entropy(self._head.logits(hidden_NH), targets_N, reduction="none")
