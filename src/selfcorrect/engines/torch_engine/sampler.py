"""Sampling with a key-value cache for batches of unequal prompts, exactly at the requested temperature.

Each row draws from its own counter-based random stream, so its tokens do not depend on its neighbours, on the order
of rows or on how a batch is split. An answer's cache is kept, so that the next attempt feeds only the bridge.
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
from selfcorrect.engines.torch_engine.cache import Hit, PrefixStore, SlotCache, run_decoder
from selfcorrect.engines.torch_engine.packed import PackedWeights
from selfcorrect.engines.torch_engine.passes import OutputHead
from selfcorrect.types import FloatArray

COMPACT_BELOW = 0.75
"""Finished rows are dropped from the batch when fewer than this share is still running: a copy of the cache must pay."""

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


class Sampler:
    """Batched autoregressive sampling on a Hugging Face causal language model, the trainer's own.

    ``VllmSampler`` has the same methods, on its own copy of the weights. Calls do not overlap.
    """

    def __init__(self, model: Any, n_layers: int, pad_id: int, device: torch.device, slots_per_batch: int) -> None:
        self._decoder: nn.Module = model.get_decoder()
        self._head = OutputHead(model)
        self._n_layers = n_layers
        self._pad_id = pad_id
        self._device = device
        self._slots_per_batch = slots_per_batch
        self._store = PrefixStore(slots_per_batch)
        self._packed = PackedWeights(model)
        self.answered: Callable[[int], None] = lambda _n: None
        """Called with the number of answers in each batch that finishes."""

    def publish(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Sample from the published weights. Trainer and sampler share them, so only the caches must go."""
        self.drop_caches()

    def drop_caches(self) -> None:
        """Forget what was kept of earlier prompts, and the packed weights."""
        self._store.clear()
        self._packed.drop()

    @torch.inference_mode()
    def run(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[Sampled]:
        """Answer all requests, in their order, from the published weights. After any exception the sampler is still usable."""
        rows = [
            _Row(r, np.random.Generator(np.random.Philox(key=r.stream_key())).random(params.max_new_tokens))
            for r in requests
        ]
        hits = self._store.find([r.prompt_ids for r in requests])
        made: list[tuple[SlotCache, list[_Row]]] = []
        with self._packed.applied():
            for batch in self._batches(requests, hits, params.max_new_tokens):
                made += self._run_batch([rows[i] for i in batch], [hits[i] for i in batch], params)
                while sum(cache.valid_BS.numel() for cache, _ in made) > self._slots_per_batch:
                    made.pop(0)  # the store would drop it anyway; held until then, memory would grow with the batches
                self.answered(len(batch))
        for cache, cached in made:  # only now: adding may push out a cache that a later batch of this run continues
            # the last sampled token has not been fed: its keys and values are not in the cache
            self._store.add(cache, [(*row.request.prompt_ids, *row.token_ids[:-1]) for row in cached])
        return [Sampled(tuple(r.token_ids), tuple(r.logprobs), "end" if r.ended else "length") for r in rows]

    def _batches(self, requests: Sequence[SampleRequest], hits: Sequence[object], max_new: int) -> list[list[int]]:
        """Split into batches of similar prompts within the slot budget; continued rows apart from fresh ones."""
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
        cache, logits_BV, positions_B = self._prefill(rows, hits, params.max_new_tokens)
        stop_ids = torch.tensor(sorted(params.stop_ids), dtype=torch.long, device=self._device)
        alive = torch.ones(len(rows), dtype=torch.bool, device=self._device)
        retired: list[tuple[SlotCache, list[_Row]]] = []
        running = list(rows)
        for step in range(params.max_new_tokens):
            uniforms_B = torch.tensor([row.uniforms[step] for row in running], dtype=torch.float64, device=self._device)
            tokens_B, logprobs_B = _draw(logits_BV, uniforms_B, params.temperature)
            ends_B = torch.isin(tokens_B, stop_ids)
            columns = (alive.tolist(), tokens_B.tolist(), logprobs_B.tolist(), ends_B.tolist())
            for row, is_alive, token, logprob, ends in zip(running, *columns, strict=True):
                if is_alive:
                    row.token_ids.append(token)
                    row.logprobs.append(finite(logprob))
                    row.ended = ends
            alive = alive & ~ends_B
            n_alive = int(alive.sum())
            if n_alive == 0 or step == params.max_new_tokens - 1:
                break
            if n_alive < COMPACT_BELOW * len(running):
                if params.continued:
                    done = torch.nonzero(~alive).flatten()
                    retired.append((cache.select(done, cache.length), [running[i] for i in done.tolist()]))
                keep = torch.nonzero(alive).flatten()
                cache = cache.select(keep, cache.capacity)
                running = [running[i] for i in keep.tolist()]
                tokens_B, positions_B, alive = tokens_B[keep], positions_B[keep], alive[keep]
            logits_BV = self._forward(cache, tokens_B[:, None], positions_B[:, None], alive[:, None])
            positions_B = positions_B + 1
        if params.continued:
            retired.append((cache, running))
        return retired

    def _prefill(
        self, rows: Sequence[_Row], hits: Sequence[Hit | None], max_new: int
    ) -> tuple[SlotCache, Tensor, Tensor]:
        """Feed each distinct prompt once, left-padded, after the part of it that the store already holds."""
        first_of: dict[tuple[int, ...], int] = {}
        unique: list[int] = []
        for i, row in enumerate(rows):
            if row.request.prompt_ids not in first_of:
                first_of[row.request.prompt_ids] = len(unique)
                unique.append(i)
        covered = [hit[2] if (hit := hits[i]) is not None else 0 for i in unique]
        suffixes = [rows[i].request.prompt_ids[n:] for i, n in zip(unique, covered, strict=True)]
        width = max(len(s) for s in suffixes)
        known = [hit for i in unique if (hit := hits[i]) is not None]
        if known:
            cache = self._store.gather(known, width + max_new)
        else:
            valid_BS = torch.zeros(len(unique), width + max_new, dtype=torch.bool, device=self._device)
            cache = SlotCache([None] * self._n_layers, valid_BS, 0)
        ids_BQ = torch.full((len(unique), width), self._pad_id, dtype=torch.long)
        real_BQ = torch.zeros(len(unique), width, dtype=torch.bool)
        for b, suffix in enumerate(suffixes):
            ids_BQ[b, width - len(suffix) :] = torch.tensor(suffix)
            real_BQ[b, width - len(suffix) :] = True
        start_B = torch.tensor(covered)
        positions_BQ = (real_BQ.cumsum(1) - 1).clamp(min=0) + start_B[:, None]
        logits_BV = self._forward(
            cache, ids_BQ.to(self._device), positions_BQ.to(self._device), real_BQ.to(self._device)
        )
        next_B = torch.tensor([len(rows[i].request.prompt_ids) for i in unique], device=self._device)
        if len(unique) == len(rows):
            return cache, logits_BV, next_B
        spread = torch.tensor([first_of[row.request.prompt_ids] for row in rows], device=self._device)
        return cache.select(spread, cache.capacity), logits_BV[spread], next_B[spread]

    def _forward(self, cache: SlotCache, ids_BQ: Tensor, positions_BQ: Tensor, real_BQ: Tensor) -> Tensor:
        """One pass over Q new tokens per row; returns the last position's logits, shape [B, V], float32."""
        past, width = cache.length, ids_BQ.shape[1]
        end = past + width
        cache.valid_BS[:, past:end] = real_BQ
        if width == 1:
            mask = cache.valid_BS[:, None, None, :end].clone()
            mask[..., -1] = True  # a finished row attends to its own padding: a softmax over nothing is NaN
        else:
            causal_QQ = torch.ones(width, width, dtype=torch.bool, device=self._device).tril()
            own_QQ = torch.eye(width, dtype=torch.bool, device=self._device)
            new = (real_BQ[:, None, :] & causal_QQ) | own_QQ
            old = cache.valid_BS[:, None, :past].expand(-1, width, -1)
            mask = torch.cat([old, new], dim=2)[:, None]
        hidden_BQH = run_decoder(self._decoder, cache, input_ids=ids_BQ, attention_mask=mask, position_ids=positions_BQ)
        cache.length += width
        return self._head.logits(hidden_BQH[:, -1])


def _draw(logits_BV: Tensor, uniforms_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token per row by inverse CDF, and its log-prob. No top-k, no top-p: the law is softmax(logits / T)."""
    if temperature == 0:
        tokens_B1 = logits_BV.argmax(-1, keepdim=True)
        return tokens_B1.squeeze(1), logits_BV.log_softmax(-1).gather(1, tokens_B1).squeeze(1)
    probs_BV = (logits_BV if temperature == 1 else logits_BV / temperature).softmax(-1)
    tokens_B1 = _inverse_cdf(probs_BV, uniforms_B)
    return tokens_B1.squeeze(1), probs_BV.gather(1, tokens_B1).log().squeeze(1)


def _inverse_cdf(probs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The token at which the cumulated probabilities pass the uniform number, shape [B, 1].

    It searches the blocks of tokens first, then one block. Cumulated sums are in float64, because in float32 they drift over
    a large vocabulary; only the sum of one block is in float32, which avoids a float64 copy of the whole vocabulary.
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
    """Index of the first cumulated sum above the target; rounding never moves it past the last one that grew."""
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
