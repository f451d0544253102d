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
    """Beginnings that several rows of a micro-batch share, each computed once."""

    ids_GP: Tensor
    """Right-padded."""
    lengths_G: Tensor
    prefix_of_B: Tensor
    """Index into G of each row's beginning."""


@dataclass(frozen=True, slots=True)
class Trees:
    """Rows that hold several sequences each. A token that they agree on, with all before it, is there once."""

    row_of_S: Tensor
    """Row of each sequence."""
    positions_BT: Tensor
    sees_BTT: Tensor
    """Which columns (last) a token attends to: itself and the tokens before it in its sequences."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Right-padded sequences, what follows their shared prefixes, or trees of them, with the flat list of positions to
    score."""

    index: tuple[int, ...]
    """Index of each sequence among the caller's. Without trees a sequence is a row."""
    ids_BT: Tensor
    rows_N: Tensor
    """Sequence of each scored token, as its place in ``index``."""
    columns_N: Tensor
    """Column of each scored token in the caller's sequence."""
    reads_N: Tensor
    """Column of ``ids_BT`` whose output predicts the scored token: the column of the token before it."""
    targets_N: Tensor
    prefix: SharedPrefix | None = None
    trees: Trees | None = None

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
    pair_cost: float | None = None,
) -> list[MicroBatch]:
    """Group sequences of similar length so that a pass computes at most ``budget`` tokens, padding included.

    If sequences are equal up to the token before their first scored position (such as the prompt of one problem's
    samples), that part is computed once, if this saves tokens. If ``pair_cost`` is given, all sequences of a problem may
    become one tree, in which nothing is computed twice: neither the prompt, nor an attempt 1 that several second attempts
    follow. Sequences without a scored position are left out. A single sequence longer than the budget gets its own pass.

    Args:
        tokens: one array of token ids per sequence.
        positions: True where a token's log-prob is wanted; the first token has none.
        budget: most tokens per pass.
        pad_id: fills rows up; no real token attends to it.
        device: of the returned tensors.
        share: False computes no shared prefix.
        pair_cost: work of attention for one pair of a query and a key, in units of the work for a token elsewhere; trees
            are taken where they cost less by this account. None: no trees.
    """
    scored = [i for i in range(len(tokens)) if positions[i].any()]
    assert not any(positions[i][0] for i in scored), "the first token of a sequence has no prediction"
    whole = _Cut(tokens, dict.fromkeys(scored, 0))
    plans = [[(group, whole) for group in whole.packed(scored, budget)]]
    if share:
        cut = _Cut(tokens, {i: int(positions[i].argmax()) - 1 for i in scored})
        families = Counter(cut.keys.values())
        several = [i for i in scored if cut.heads[i] > 0 and families[cut.keys[i]] > 1]
        others = sorted(set(scored) - set(several))
        plans.append([(group, cut) for group in cut.packed(several, budget)])
        plans[-1] += [(group, whole) for group in whole.packed(others, budget)]
    fewest = min(plans, key=lambda passes: sum(cut.computed(group) for group, cut in passes))
    if pair_cost is not None:
        forests = _forests(tokens, positions, scored, budget)
        cost = sum(cut.computed(group) + pair_cost * cut.pairs(group) for group, cut in fewest)
        if sum(_padded_size(trees) * (1 + pair_cost * max(map(len, trees))) for trees in forests) < cost:
            return [_batch_of_trees(trees, tokens, positions, pad_id, device) for trees in forests]
    return [_micro_batch(group, cut, tokens, positions, pad_id, device) for group, cut in fewest]


class _Cut:
    """Sequences cut into a head, which is computed once for all that share it, and a tail. Length 0: nothing is shared.

    Args:
        tokens: one array of token ids per sequence.
        heads: length of the head of each sequence that may be packed, by its index.
    """

    def __init__(self, tokens: Sequence[IntArray], heads: Mapping[int, int]) -> None:
        self.heads = heads
        self.keys = {i: tokens[i][:n].tobytes() for i, n in heads.items()}
        """Equal for sequences that share their head."""
        self._tails = {i: len(tokens[i]) - n for i, n in heads.items()}

    def computed(self, group: Sequence[int]) -> int:
        """Tokens that one pass over these sequences computes, padding included."""
        prefixes = len({self.keys[i] for i in group}) * max(self.heads[i] for i in group)
        return prefixes + len(group) * max(self._tails[i] for i in group)

    def pairs(self, group: Sequence[int]) -> int:
        """Pairs of a query and a key in that pass, masked ones included."""
        head, tail = max(self.heads[i] for i in group), max(self._tails[i] for i in group)
        return len({self.keys[i] for i in group}) * head**2 + len(group) * tail * (head + tail)

    def packed(self, sequences: Sequence[int], budget: int) -> list[list[int]]:
        """Fill passes up to the budget, in the order of length and with sequences of equal heads together."""
        keys, tails = self.keys, self._tails
        longest: dict[bytes, int] = {}
        for i in sequences:
            longest[keys[i]] = max(longest.get(keys[i], 0), tails[i])
        groups: list[list[int]] = []
        heads: set[bytes] = set()
        head = tail = 0  # with ``heads``, of the last group: its distinct heads, and its longest head and tail
        for i in sorted(sequences, key=lambda i: (longest[keys[i]], keys[i], tails[i], i)):
            distinct = len(heads) + (keys[i] not in heads)
            head, tail = max(head, self.heads[i]), max(tail, tails[i])
            if groups and distinct * head + (len(groups[-1]) + 1) * tail <= budget:
                groups[-1].append(i)
            else:
                groups.append([i])
                heads, head, tail = set(), self.heads[i], tails[i]
            heads.add(keys[i])
        return groups


def _micro_batch(
    group: Sequence[int],
    cut: _Cut,
    tokens: Sequence[IntArray],
    positions: Sequence[BoolArray],
    pad_id: int,
    device: torch.device,
) -> MicroBatch:
    heads, keys = cut.heads, cut.keys
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


class _Tree:
    """The tokens of some sequences up to their last scored position, as a tree from their common first token on."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parents: list[int] = []
        """Column of the token before; -1 for a first one."""
        self.paths: dict[int, list[int]] = {}
        """Columns of each sequence's tokens, by its index."""
        self._next: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def missing(self, ids: Sequence[int]) -> int:
        """How many of a sequence's tokens are not there yet."""
        at = -1
        for n, token in enumerate(ids):
            if (at, token) not in self._next:
                return len(ids) - n
            at = self._next[at, token]
        return 0

    def add(self, index: int, ids: Sequence[int]) -> None:
        at, path = -1, []
        for token in ids:
            column = self._next.setdefault((at, token), len(self.ids))
            if column == len(self.ids):
                self.ids.append(token)
                self.parents.append(at)
            path.append(column)
            at = column
        self.paths[index] = path

    def sees_TT(self) -> Tensor:
        """See ``Trees``."""
        sees_TT = torch.eye(len(self.ids), dtype=torch.bool)
        for column, parent in enumerate(self.parents):
            if parent >= 0:
                sees_TT[column] |= sees_TT[parent]
        return sees_TT


def _forests(
    tokens: Sequence[IntArray], positions: Sequence[BoolArray], scored: Sequence[int], budget: int
) -> list[list[_Tree]]:
    """Trees of the scored sequences, packed into passes. Sequences are of one tree if they begin with the same prompt."""
    firsts = {i: tokens[i][: int(positions[i].argmax())] for i in scored}
    prompts = {first.tobytes() for first in firsts.values()}
    lengths = sorted({len(first) for first in firsts.values()})
    families: dict[bytes, list[int]] = {}
    for i in scored:  # the prompt of a second attempt begins with that of the first
        heads = (tokens[i][:n].tobytes() for n in lengths)
        families.setdefault(next(head for head in heads if head in prompts), []).append(i)
    # the last scored token is only a target: nothing reads its output
    read = {i: tokens[i][: int(positions[i].nonzero()[0][-1])].tolist() for i in scored}
    trees = []
    for family in families.values():
        tree = _Tree()
        for i in sorted(family, key=lambda i: read[i]):  # neighbours share most
            if len(tree) and len(tree) + tree.missing(read[i]) > budget:
                trees.append(tree)
                tree = _Tree()
            tree.add(i, read[i])
        trees.append(tree)
    passes: list[list[_Tree]] = []
    for tree in sorted(trees, key=len):
        if passes and _padded_size([*passes[-1], tree]) <= budget:
            passes[-1].append(tree)
        else:
            passes.append([tree])
    return passes


def _padded_size(trees: Sequence[_Tree]) -> int:
    return len(trees) * max(map(len, trees))


def _batch_of_trees(
    trees: Sequence[_Tree],
    tokens: Sequence[IntArray],
    positions: Sequence[BoolArray],
    pad_id: int,
    device: torch.device,
) -> MicroBatch:
    members = [(row, i) for row, tree in enumerate(trees) for i in tree.paths]
    width = max(map(len, trees))
    ids_BT = torch.full((len(trees), width), pad_id)
    positions_BT = torch.zeros(len(trees), width, dtype=torch.long)
    sees_BTT = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)  # padding sees itself: no row of nan
    for row, tree in enumerate(trees):
        n, sees_TT = len(tree), tree.sees_TT()
        ids_BT[row, :n] = torch.tensor(tree.ids)
        sees_BTT[row, :n, :n] = sees_TT
        positions_BT[row, :n] = sees_TT.sum(dim=1) - 1
    where = [
        (s, int(c), trees[row].paths[i][c - 1], int(tokens[i][c]))
        for s, (row, i) in enumerate(members)
        for c in positions[i].nonzero()[0]
    ]
    rows_N, columns_N, reads_N, targets_N = torch.tensor(where, device=device).unbind(dim=1)
    return MicroBatch(
        tuple(i for _, i in members),
        ids_BT.to(device),
        rows_N,
        columns_N,
        reads_N,
        targets_N,
        trees=Trees(
            torch.tensor([row for row, _ in members], device=device), positions_BT.to(device), sees_BTT.to(device)
        ),
    )


def _padded(rows: Sequence[IntArray] | Sequence[BoolArray], value: int | bool) -> Tensor:
    width = max(len(row) for row in rows)
    out = torch.full((len(rows), width), value, dtype=torch.bool if isinstance(value, bool) else torch.long)
    for b, row in enumerate(rows):
        out[b, : len(row)] = torch.as_tensor(row)
    return out


def recompute_layers(model: nn.Module) -> None:
    """Let every decoder layer keep only its input and run again in the backward pass: less memory, a third more time.

    transformers' own switch works in training mode only, in which dropout would be on.

    Raises:
        ModelError: the model's layers cannot be identified.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            "engine.gradient_checkpointing=true has no effect on this model, whose layers do not support it; remove the setting"
        )
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


class OutputHead:
    """A model's output head on selected hidden states."""

    def __init__(self, model: Any) -> None:
        self._head: Any = model.get_output_embeddings()
        self._softcap: float | None = getattr(model.config, "final_logit_softcapping", None)
        self.vocabulary = int(self._head.weight.shape[0])

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Float32 logits, shape [N, V]. Two dimensions on purpose: on a CPU in bfloat16, torch copies the whole head once
        per row of a strided [B, 1, H]."""
        logits_NV: Tensor = self._head(hidden_NH).float()
        if self._softcap is not None:
            logits_NV = self._softcap * torch.tanh(logits_NV / self._softcap)
        return logits_NV


class _Seam:
    """Separates the graph of the rows from the graph of their shared prefixes, so that one backward pass follows the
    other.

    In a single backward pass autograd would keep the rows' weight gradients until those of the prefixes arrive: a
    second copy of all gradients.
    """

    def __init__(self) -> None:
        self._made: list[Tensor] = []
        self._leaves: list[Tensor] = []

    def cut(self, tensor: Tensor) -> Tensor:
        """Replace keys or values of the prefixes by a leaf of the graph."""
        if not tensor.requires_grad:
            return tensor
        leaf = tensor.detach().requires_grad_()
        self._made.append(tensor)
        self._leaves.append(leaf)
        return leaf

    def backward(self) -> None:
        """Pass the gradients that the rows left at the leaves on to the prefixes."""
        if self._made:
            torch.autograd.backward(self._made, [leaf.grad for leaf in self._leaves])


class Scorer:
    """Log-probs of chosen tokens: runs the decoder once, and the output head only at the chosen positions, in chunks.

    Raises:
        ModelError: the model's decoder takes no cache.
    """

    def __init__(self, model: Any) -> None:
        self._decoder: nn.Module = model.get_decoder()
        cache_argument(type(self._decoder))  # type: ignore[arg-type]  # as in run_decoder; refused now, not in a step
        self._head = OutputHead(model)

    def logprobs(self, batch: MicroBatch) -> Tensor:
        """Natural-log probabilities of ``targets_N``, float32, shape [N]. Call it without gradients; otherwise the
        logits of all chunks are kept."""
        hidden_NH = self._hidden(batch)
        parts = self._chunks(len(hidden_NH))
        return torch.cat([self._score(hidden_NH[part], batch.targets_N[part]) for part in parts])

    def backward(self, batch: MicroBatch, loss: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """Add the gradient of a loss that is a sum over tokens, and return the log-probs, as ``logprobs`` does.

        Each chunk of logits goes through the head, the loss and the backward pass before the next one is computed. Then
        follow one backward pass of the decoder, from the gradients at its outputs, and that of the shared prefixes.

        Args:
            batch: what to score.
            loss: of some tokens' log-probs [n] (with gradient) and their slice of N; a scalar.
        """
        seam = _Seam()
        hidden_NH = self._hidden(batch, seam)
        leaf_NH = hidden_NH.detach().requires_grad_()
        scored = []
        for part in self._chunks(len(hidden_NH)):
            logprobs = self._score(leaf_NH[part], batch.targets_N[part])
            loss(logprobs, part).backward()  # type: ignore[no-untyped-call]
            scored.append(logprobs.detach())
        hidden_NH.backward(leaf_NH.grad)  # type: ignore[no-untyped-call]
        seam.backward()
        return torch.cat(scored)

    def _chunks(self, n: int) -> list[slice]:
        rows = max(1, LOGITS_CHUNK // self._head.vocabulary)
        return [slice(start, start + rows) for start in range(0, n, rows)]

    def _hidden(self, batch: MicroBatch, seam: _Seam | None = None) -> Tensor:
        """The decoder's outputs that predict the targets, shape [N, H].

        Right padding needs no mask: under causal attention no real token sees it, and its outputs are not read.
        """
        if batch.trees is not None:
            trees = batch.trees
            outputs_BTH: Tensor = self._decoder(
                input_ids=batch.ids_BT,
                attention_mask=trees.sees_BTT[:, None],
                position_ids=trees.positions_BT,
                use_cache=False,
            ).last_hidden_state
            return outputs_BTH[trees.row_of_S[batch.rows_N], batch.reads_N]
        if batch.prefix is None:
            whole: Tensor = self._decoder(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
            return whole[batch.rows_N, batch.reads_N]
        # The keys and values of the prefixes have a graph: gradients of all rows flow back through one pass over them.
        shared = batch.prefix
        cache = DynamicCache()
        run_decoder(self._decoder, cache, input_ids=shared.ids_GP)
        if seam is not None:
            for layer in cache.layers:
                layer.keys, layer.values = seam.cut(layer.keys), seam.cut(layer.values)
        cache.batch_select_indices(shared.prefix_of_B)
        rows, width = batch.ids_BT.shape
        starts_B1 = shared.lengths_G[shared.prefix_of_B][:, None]
        steps_T = torch.arange(width, device=batch.ids_BT.device)
        seen_BP = torch.arange(shared.ids_GP.shape[1], device=batch.ids_BT.device) < starts_B1
        mask_BTS = torch.cat(
            [seen_BP[:, None].expand(-1, width, -1), (steps_T[:, None] >= steps_T).expand(rows, -1, -1)], dim=2
        )
        hidden_BTH = run_decoder(
            self._decoder,
            cache,
            input_ids=batch.ids_BT,
            attention_mask=mask_BTS[:, None],
            # padding may lie beyond the longest sequence, where some models change the positions of a whole batch
            position_ids=torch.minimum(starts_B1 + steps_T, batch.columns_N.max()),
        )
        return hidden_BTH[batch.rows_N, batch.reads_N]

    def _score(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        return -nn.functional.cross_entropy(self._head.logits(hidden_NH), targets_N, reduction="none")
