"""Key-value caches of a batch of unequal rows, addressed by slot, and the store that carries them between attempts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from selfcorrect.errors import ModelError

Hit = tuple[int, int, int]
"""(cache id, row, tokens covered) of a stored prefix."""


def run_decoder(decoder: nn.Module, cache: Cache, **inputs: Tensor) -> Tensor:
    """The decoder's outputs over new tokens, shape [B, T, H]; it reads ``cache`` and adds their keys and values to it.

    Raises:
        ModelError: the decoder takes no cache.
    """
    name = cache_argument(type(decoder))  # type: ignore[arg-type]  # mypy takes a class of modules for unhashable
    out: Tensor = decoder(**{name: cache}, **inputs, use_cache=True).last_hidden_state
    return out


@functools.cache
def cache_argument(decoder: type[nn.Module]) -> str:
    """The name of this class's cache argument: transformers 5.24 renamed it. A wrong name would vanish in ``**kwargs``.

    Raises:
        ModelError: it takes none.
    """
    takes = inspect.signature(decoder.forward).parameters
    for name in ("cache", "past_key_values"):
        if name in takes:
            return name
    raise ModelError(
        f"{decoder.__name__} takes no key-value cache (neither 'cache' nor 'past_key_values' is an argument of its "
        "forward), which sampling needs; take a causal language model with full attention"
    )


class SlotCache(Cache):  # type: ignore[misc]  # transformers is not type-checked here
    """A cache in which all rows write the same slot and a mask says which slots of a row hold real tokens.

    Rows of unequal length have holes (``valid_BS`` False) instead of shifted contents, so that an answer that ended
    early can be extended later in the same buffer. Positions are passed to the model explicitly.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor] | None], valid_BS: Tensor, length: int) -> None:
        super().__init__(layers=[])
        self._layers: list[tuple[Tensor, Tensor] | None] = list(layers)
        self.valid_BS = valid_BS
        """True where a slot holds a token of the row; shape [B, capacity]."""
        self.capacity = valid_BS.shape[1]
        self.length = length
        """Slots that all layers have written. The caller adds a pass's slots after it."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write this step's keys and values after the ``length`` slots of earlier steps; return all slots so far."""
        stored = self._layers[layer_idx]
        if stored is None:
            rows, heads, _, width = key_states.shape
            value_width = value_states.shape[-1]
            stored = (
                key_states.new_zeros(rows, heads, self.capacity, width),
                value_states.new_zeros(rows, heads, self.capacity, value_width),
            )
            self._layers[layer_idx] = stored
        end = self.length + key_states.shape[2]
        stored[0][:, :, self.length : end] = key_states
        stored[1][:, :, self.length : end] = value_states
        return stored[0][:, :, :end], stored[1][:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def select(self, rows: Tensor, capacity: int) -> SlotCache:
        """Copy of some rows (repeats allowed) with room for ``capacity`` slots."""

        def copied(tensor: Tensor) -> Tensor:
            out = tensor.new_zeros(len(rows), tensor.shape[1], capacity, tensor.shape[3])
            out[:, :, : self.length] = tensor[rows, :, : self.length]
            return out

        layers = [None if kv is None else (copied(kv[0]), copied(kv[1])) for kv in self._layers]
        valid_BS = torch.zeros(len(rows), capacity, dtype=torch.bool, device=self.valid_BS.device)
        valid_BS[:, : self.length] = self.valid_BS[rows, : self.length]
        return SlotCache(layers, valid_BS, self.length)

    @staticmethod
    def concatenate(parts: Sequence[SlotCache]) -> SlotCache:
        """Stack the rows of caches of equal capacity; shorter ones get holes up to the longest."""
        if len(parts) == 1:
            return parts[0]
        layers: list[tuple[Tensor, Tensor] | None] = []
        for kvs in zip(*(part._layers for part in parts), strict=True):
            written = [kv for kv in kvs if kv is not None]
            layers.append((torch.cat([k for k, _ in written]), torch.cat([v for _, v in written])))
        return SlotCache(layers, torch.cat([p.valid_BS for p in parts]), max(p.length for p in parts))


class PrefixStore:
    """Caches of answered prompts, found by the exact token ids that were fed. The oldest is dropped first."""

    def __init__(self, slot_budget: int) -> None:
        self._slot_budget = slot_budget
        self._kept: dict[int, tuple[SlotCache, list[bytes]]] = {}
        self._where: dict[bytes, tuple[int, int]] = {}
        self._next_id = 0

    def clear(self) -> None:
        """Forget everything: the weights that made these caches are gone."""
        self._kept.clear()
        self._where.clear()

    def add(self, cache: SlotCache, fed_ids: Sequence[Sequence[int]]) -> None:
        """Keep a cache whose row i holds exactly the tokens ``fed_ids[i]``."""
        if cache.valid_BS.shape[0] * cache.length > self._slot_budget:
            return
        keys = [np.asarray(ids, dtype=np.int32).tobytes() for ids in fed_ids]
        self._kept[self._next_id] = cache, keys
        self._where.update({key: (self._next_id, row) for row, key in enumerate(keys)})
        self._next_id += 1
        while sum(kept.valid_BS.numel() for kept, _ in self._kept.values()) > self._slot_budget:
            oldest = next(iter(self._kept))
            for key in self._kept.pop(oldest)[1]:
                if self._where.get(key, (None,))[0] == oldest:
                    del self._where[key]

    def find(self, prompts: Sequence[Sequence[int]]) -> list[Hit | None]:
        """The longest stored proper prefix of each prompt, or None."""
        lengths = sorted({len(key) for key in self._where}, reverse=True)
        hits: list[Hit | None] = []
        for prompt in prompts:
            whole = np.asarray(prompt, dtype=np.int32).tobytes()
            stored = (n for n in lengths if n < len(whole) and whole[:n] in self._where)
            n_bytes = next(stored, 0)
            hits.append((*self._where[whole[:n_bytes]], n_bytes // 4) if n_bytes else None)
        return hits

    def gather(self, hits: Sequence[Hit], extra_slots: int) -> SlotCache:
        """One cache with the rows of ``hits`` in order and room for ``extra_slots`` more."""
        used = sorted({cache_id for cache_id, _, _ in hits})
        capacity = max(self._kept[i][0].length for i in used) + extra_slots
        parts, order = [], []
        for cache_id in used:
            wanted = [n for n, hit in enumerate(hits) if hit[0] == cache_id]
            cache = self._kept[cache_id][0]
            rows = torch.tensor([hits[n][1] for n in wanted], device=cache.valid_BS.device)
            parts.append(cache.select(rows, capacity))
            order += wanted
        merged = SlotCache.concatenate(parts)
        if order == list(range(len(hits))):
            return merged
        back = torch.tensor(np.argsort(order), device=merged.valid_BS.device)
        return merged.select(back, capacity)
