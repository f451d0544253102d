"""Sampling with a key-value cache, for batches of unequal prompts, exactly at the requested temperature.

Each row draws from its own counter-based random stream, so its tokens do not depend on other rows, on the order of rows
or on how a batch is split. An answer's cache is kept, so that the next attempt feeds only the bridge. Where an answer
repeats an earlier attempt, a pass checks several of its tokens at once (``drafts``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfcorrect.engines.base import Sampled, SampleRequest, SamplingParams
from selfcorrect.engines.torch_engine.attention import CPU_ATTENTION, Packing, packed_queries
from selfcorrect.engines.torch_engine.cache import Hit, PrefixStore, SlotCache, run_decoder
from selfcorrect.engines.torch_engine.drafts import Draft, plan
from selfcorrect.engines.torch_engine.packed import PackedWeights
from selfcorrect.engines.torch_engine.passes import OutputHead
from selfcorrect.types import FloatArray

COMPACT_BELOW = 0.75
"""Finished rows are dropped from the batch when less than this share is still running. This copies the cache, which
must be worth it."""

PASS_COST = {"cpu": 16.0, "cuda": 256.0}
"""The fixed cost of a decoding pass (reading the weights, launching kernels), in tokens of the pass."""
MOST_ROWS = {"cpu": 64, "cuda": 256}
"""Larger batches draft nothing: their passes are full already, and following every row takes time."""

BLOCK = 128
"""Tokens whose probabilities are summed before the rest; a divisor of most vocabularies, which then need no padding."""


@dataclass
class _Row:
    """One unfinished answer."""

    request: SampleRequest
    uniforms: FloatArray
    """The row's own random stream in [0, 1): Philox, keyed by the request, counted by token position."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False
    drafted: int = 0
    """Number of tokens that a draft predicted correctly."""

    @property
    def fed(self) -> int:
        """Number of tokens in the cache. The next pass feeds the last sampled one."""
        return len(self.request.prompt_ids) + max(0, len(self.token_ids) - 1)


class Sampler:
    """Batched autoregressive sampling on a Hugging Face causal language model, the trainer's own.

    ``VllmSampler`` has the same methods, on its own copy of the weights. Calls do not overlap.

    Args:
        model: the trainer's.
        n_layers: of the model.
        pad_id: fills rows up.
        device: of the model.
        slots_per_batch: bounds the key-value cache of a batch, and that kept for later attempts.
        drafts: check several tokens per pass where an answer repeats an earlier attempt.
    """

    def __init__(
        self,
        model: Any,
        n_layers: int,
        pad_id: int,
        device: torch.device,
        slots_per_batch: int,
        *,
        drafts: bool = False,
    ) -> None:
        self._decoder: nn.Module = model.get_decoder()
        self._head = OutputHead(model)
        self._n_layers = n_layers
        self._pad_id = pad_id
        self._device = device
        self._slots_per_batch = slots_per_batch
        self._store = PrefixStore(slots_per_batch)
        self._packed = PackedWeights(model)
        self._drafts = drafts
        self._packs = model.config._attn_implementation == CPU_ATTENTION
        self.bytes_per_slot = 0.0
        """Of the last cache that was kept."""
        self.answered: Callable[[int], None] = lambda _n: None
        """Called with the number of answers in each batch that finishes."""

    def publish(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Sample from the published weights. Trainer and sampler share them, so this only drops the caches."""
        self.drop_caches()

    def drop_caches(self) -> None:
        """Forget what was kept of earlier prompts, and the packed weights."""
        self._store.clear()
        self._packed.drop()

    @torch.inference_mode()
    def run(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[Sampled]:
        """Answer all requests, in their order, from the published weights. After any exception the sampler is still usable."""
        rows = [_Row(r, _stream(r, params.max_new_tokens)) for r in requests]
        hits = self._store.find([r.prompt_ids for r in requests])
        made: list[tuple[SlotCache, list[_Row]]] = []
        with self._packed.applied():
            for batch in self._batches(requests, hits, params.max_new_tokens):
                made += self._run_batch([rows[i] for i in batch], [hits[i] for i in batch], params)
                if made:
                    self.bytes_per_slot = made[-1][0].bytes_per_slot
                while sum(cache.slots for cache, _ in made) > self._slots_per_batch:
                    made.pop(0)  # the store would drop it anyway; held until then, memory would grow with the batches
                self.answered(len(batch))
        for cache, cached in made:  # only now: adding may push out a cache that a later batch of this run continues
            # the last sampled token has not been fed: its keys and values are not in the cache
            self._store.add(cache, [(*row.request.prompt_ids, *row.token_ids[:-1]) for row in cached])
        return [Sampled(tuple(r.token_ids), tuple(r.logprobs), "end" if r.ended else "length", r.drafted) for r in rows]

    def _batches(self, requests: Sequence[SampleRequest], hits: Sequence[object], max_new: int) -> list[list[int]]:
        """Split into batches of similar prompts within the slot budget; continued rows are kept apart from new ones."""
        order = sorted(range(len(requests)), key=lambda i: (hits[i] is None, len(requests[i].prompt_ids)))
        batches: list[list[int]] = []
        for i in order:
            slots = len(requests[i].prompt_ids) + max_new
            same_kind = batches and (hits[batches[-1][0]] is None) == (hits[i] is None)
            if same_kind and (len(batches[-1]) + 1) * slots <= self._slots_per_batch:
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches

    def _run_batch(
        self, rows: list[_Row], hits: list[Hit | None], params: SamplingParams
    ) -> list[tuple[SlotCache, list[_Row]]]:
        cache, logits_NV = self._prefill(rows, hits, params.max_new_tokens)
        retired: list[tuple[SlotCache, list[_Row]]] = []
        running = list(rows)
        drafts: list[list[int]] = [[] for _ in rows]
        followed: dict[int, Draft] = {}
        while True:
            self._take(running, drafts, logits_NV, params, followed)
            alive = [i for i, row in enumerate(running) if not _done(row, params)]
            if not alive:
                break
            cache.lengths_B = torch.tensor([row.fed for row in running])
            if len(alive) < COMPACT_BELOW * len(running):
                if params.continued:
                    done = [i for i in range(len(running)) if i not in set(alive)]
                    kept = torch.tensor(done)
                    retired.append((cache.select(kept, int(cache.lengths_B[kept].max())), [running[i] for i in done]))
                cache = cache.select(torch.tensor(alive), cache.capacity)
                running = [running[i] for i in alive]
            drafts = [[] for _ in running]
            if self._drafts and len(alive) <= MOST_ROWS[self._device.type]:
                drafts = self._plan(running, params, followed)
            fed = [(row.token_ids[-1], *drafted) for row, drafted in zip(running, drafts, strict=True)]
            logits_NV = self._forward(cache, fed, last_only=False)
        if params.continued:
            cache.lengths_B = torch.tensor([row.fed for row in running])
            retired.append((cache, running))
        return retired

    def _take(
        self,
        rows: Sequence[_Row],
        drafts: Sequence[Sequence[int]],
        logits_NV: Tensor,
        params: SamplingParams,
        followed: dict[int, Draft],
    ) -> None:
        """Draw at every position of a pass. Each row keeps its draws up to the first token that its draft got wrong.

        A row draws with the random number that its stream has for the position, so a draft decides only how many draws
        count. Draws after a wrong draft token follow a text that is not the answer's.
        """
        uniforms = [
            row.uniforms[min(len(row.token_ids) + j, len(row.uniforms) - 1)]
            for row, drafted in zip(rows, drafts, strict=True)
            for j in range(len(drafted) + 1)
        ]
        uniforms_N = torch.tensor(uniforms, dtype=torch.float64, device=self._device)
        tokens_N, logprobs_N = _draw(logits_NV, uniforms_N, params.temperature)
        drawn = iter(zip(tokens_N.tolist(), logprobs_N.tolist(), strict=True))
        for row, drafted in zip(rows, drafts, strict=True):
            wrong = _done(row, params)
            for expected in (*drafted, None):
                token, logprob = next(drawn)
                if wrong:
                    continue
                row.token_ids.append(token)
                row.logprobs.append(finite(logprob))
                row.ended = token in params.stop_ids
                if id(row) in followed:
                    followed[id(row)].observe(token)
                row.drafted += token == expected
                wrong = token != expected or row.ended

    def _plan(self, rows: Sequence[_Row], params: SamplingParams, followed: dict[int, Draft]) -> list[list[int]]:
        """The draft of every row for the next pass. Rows missing from ``followed`` are added to it."""
        most = [0 if _done(row, params) else params.max_new_tokens - len(row.token_ids) - 1 for row in rows]
        for row, n in zip(rows, most, strict=True):
            if n and id(row) not in followed:
                followed[id(row)] = Draft(row.request.prompt_ids, row.token_ids, params.stop_ids)
        cost = PASS_COST[self._device.type]
        return plan([followed[id(row)] if n else None for row, n in zip(rows, most, strict=True)], most, cost)

    def _prefill(self, rows: Sequence[_Row], hits: Sequence[Hit | None], max_new: int) -> tuple[SlotCache, Tensor]:
        """Feed each distinct prompt once, without the part that the store already holds. Returns each row's logits [B,
        V]."""
        first_of: dict[tuple[int, ...], int] = {}
        unique: list[int] = []
        for i, row in enumerate(rows):
            if row.request.prompt_ids not in first_of:
                first_of[row.request.prompt_ids] = len(unique)
                unique.append(i)
        prompts = [rows[i].request.prompt_ids for i in unique]
        capacity = max(map(len, prompts)) + max_new
        known = [hit for i in unique if (hit := hits[i]) is not None]
        if known:
            cache = self._store.gather(known, capacity)
        else:
            cache = SlotCache([None] * self._n_layers, torch.zeros(len(unique), dtype=torch.long), capacity)
        suffixes = [prompt[n:] for prompt, n in zip(prompts, cache.lengths_B.tolist(), strict=True)]
        logits_NV = self._forward(cache, suffixes, last_only=True)
        cache.lengths_B = torch.tensor([len(prompt) for prompt in prompts])
        if len(unique) == len(rows):
            return cache, logits_NV
        spread = torch.tensor([first_of[row.request.prompt_ids] for row in rows])
        return cache.select(spread, capacity), logits_NV[spread.to(self._device)]

    def _forward(self, cache: SlotCache, new_ids: Sequence[Sequence[int]], *, last_only: bool) -> Tensor:
        """One pass over each row's next tokens, at least one.

        Returns:
            Float32 logits after every token, row by row, shape [N, V]; or after each row's last one, shape [B, V].
        """
        widths_B = torch.tensor([len(ids) for ids in new_ids])
        width = int(widths_B.max())
        steps_W = torch.arange(width)
        real_BW = steps_W < widths_B[:, None]
        positions_BW = cache.lengths_B[:, None] + steps_W
        slots_BW = positions_BW.clamp(max=cache.capacity - 1)
        end = int(slots_BW.max()) + 1
        ids_BW = torch.full(real_BW.shape, self._pad_id)
        ids_BW[real_BW] = torch.tensor([token for ids in new_ids for token in ids])
        rows_BW = torch.arange(len(new_ids))[:, None].expand_as(ids_BW)
        mask = (torch.arange(end) <= slots_BW[..., None])[:, None].to(self._device)
        packs = self._packs and not bool(real_BW.all())  # the padding then costs attention alone
        if packs:
            rows_N, columns_N = real_BW.nonzero(as_tuple=True)
            packing = Packing(rows_N, columns_N, len(new_ids), width)
            ids_BW, rows_BW, slots_BW = (x[real_BW][:, None] for x in (ids_BW, rows_BW, slots_BW))
        slots_XQ = slots_BW.to(self._device)
        cache.place(rows_BW.to(self._device), slots_XQ, end)
        with packed_queries(packing if packs else None):
            hidden_XQH = run_decoder(
                self._decoder, cache, input_ids=ids_BW.to(self._device), attention_mask=mask, position_ids=slots_XQ
            )
        hidden_NH = hidden_XQH[:, 0] if packs else hidden_XQH[real_BW.to(self._device)]
        if last_only:
            hidden_NH = hidden_NH[(widths_B.cumsum(0) - 1).to(self._device)]
        return self._head.logits(hidden_NH)


def _stream(request: SampleRequest, n: int) -> FloatArray:
    """The first numbers of a row's own random stream, in [0, 1)."""
    return np.random.Generator(np.random.Philox(key=request.stream_key())).random(n)


def _done(row: _Row, params: SamplingParams) -> bool:
    return row.ended or len(row.token_ids) == params.max_new_tokens


def _draw(logits_BV: Tensor, uniforms_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token per row by inverse CDF, and its log-prob. No top-k, no top-p: the distribution is softmax(logits /
    T)."""
    if temperature == 0:
        tokens_B1 = logits_BV.argmax(-1, keepdim=True)
        return tokens_B1.squeeze(1), logits_BV.log_softmax(-1).gather(1, tokens_B1).squeeze(1)
    probs_BV = (logits_BV if temperature == 1 else logits_BV / temperature).softmax(-1)
    tokens_B1 = _inverse_cdf(probs_BV, uniforms_B)
    return tokens_B1.squeeze(1), probs_BV.gather(1, tokens_B1).log().squeeze(1)


def _inverse_cdf(probs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The token at which the cumulative probability passes the uniform number, shape [B, 1].

    It searches the blocks of tokens first, then one block. Cumulative sums are in float64, because in float32 they
    drift over a large vocabulary; only the sum of one block is in float32, which avoids a float64 copy of the whole
    vocabulary.
    """
    rows, vocabulary = probs_BV.shape
    if vocabulary % BLOCK:
        probs_BV = nn.functional.pad(probs_BV, (0, -vocabulary % BLOCK))
    blocks_BKW = probs_BV.view(rows, -1, BLOCK)
    upto_BK = blocks_BKW.sum(-1).double().cumsum(-1)
    targets_B1 = uniforms_B[:, None] * upto_BK[:, -1:]
    block_B1 = _first_above(upto_BK, targets_B1)
    before_B1 = torch.where(block_B1 > 0, upto_BK.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    row_B = torch.arange(rows, device=probs_BV.device)
    upto_BW = blocks_BKW[row_B, block_B1.squeeze(1)].double().cumsum(-1)
    tokens_B1 = block_B1 * BLOCK + _first_above(upto_BW, targets_B1 - before_B1)
    return tokens_B1.clamp(max=vocabulary - 1)  # if all are NaN; the log-prob is then refused


def _first_above(cumulated_BN: Tensor, targets_B1: Tensor) -> Tensor:
    """Index of the first cumulative sum above the target. Despite rounding, it is never past the last token of positive
    probability."""
    below = torch.nextafter(cumulated_BN[:, -1:], torch.zeros_like(targets_B1))
    found_B1 = torch.searchsorted(cumulated_BN, torch.minimum(targets_B1, below), right=True)
    return found_B1.clamp(max=cumulated_BN.shape[1] - 1)


def finite(logprob: float) -> float:
    """The log-prob itself.

    Raises:
        ValueError: it is NaN or infinite.
    """
    if not math.isfinite(logprob):
        raise ValueError(
            f"the model gives {logprob} as a log-prob: its weights are broken or training has diverged; start a new "
            "run with a lower train.learning_rate, or take another model"
        )
    return logprob
