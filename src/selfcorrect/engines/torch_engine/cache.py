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
    """The name of this class's cache argument, which transformers 5.24 renamed. ``**kwargs`` would swallow a wrong
    name.

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
    """A cache in which a token's slot is its position, so that rows may have different lengths and grow at different
    speeds.

    ``place`` says where a pass writes. What is written past a row's length (padding, drafts that were refused) is never
    attended to, and is overwritten once the row has a token at that position.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor] | None], lengths_B: Tensor, capacity: int) -> None:
        super().__init__(layers=[])
        self._layers: list[tuple[Tensor, Tensor] | None] = list(layers)
        self.lengths_B = lengths_B
        """Tokens that each row holds, on the CPU. The caller adds those that a pass was to keep."""
        self.capacity = capacity
        """Slots of each row, one more than the tokens that it may hold: padding past the end goes into the last one."""
        self._rows: Tensor | None = None
        self._slots: Tensor | None = None
        self._end = 0

    @property
    def slots(self) -> int:
        """Number of slots of all rows together."""
        return len(self.lengths_B) * self.capacity

    @property
    def bytes_per_slot(self) -> float:
        """Bytes of the keys and values of one token, in all layers."""
        return sum(x.nbytes for kv in self._layers if kv is not None for x in kv) / self.slots

    def place(self, rows_NQ: Tensor, slots_NQ: Tensor, end: int) -> None:
        """Say where the next pass writes.

        Args:
            rows_NQ, slots_NQ: row and slot of each token of the pass, on the device.
            end: the pass attends to the slots before this one.
        """
        self._rows, self._slots, self._end = rows_NQ, slots_NQ, end

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write this pass's keys and values; return those of all rows up to the end, shape [B, heads, end, width]."""
        stored = self._layers[layer_idx]
        if stored is None:
            rows, heads = len(self.lengths_B), key_states.shape[1]
            stored = (
                key_states.new_zeros(rows, heads, self.capacity, key_states.shape[-1]),
                value_states.new_zeros(rows, heads, self.capacity, value_states.shape[-1]),
            )
            self._layers[layer_idx] = stored
        for kept, new in zip(stored, (key_states, value_states), strict=True):
            kept[self._rows, :, self._slots] = new.transpose(1, 2)
        return stored[0][:, :, : self._end], stored[1][:, :, : self._end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.lengths_B.max())

    def select(self, rows: Tensor, capacity: int) -> SlotCache:
        """Copy of some rows (repeats allowed; indices on the CPU) with ``capacity`` slots each."""
        return SlotCache.gathered([(self, rows, torch.arange(len(rows)))], capacity)

    @staticmethod
    def gathered(parts: Sequence[tuple[SlotCache, Tensor, Tensor]], capacity: int) -> SlotCache:
        """Copy of rows of several caches with ``capacity`` slots each. It takes the memory of the result and no more, which
        in a measurement of many problems has gigabytes.

        Args:
            parts: a cache, its rows (repeats allowed), and their places in the result; indices on the CPU. The places of all
                parts together are 0, 1, 2 and so on, in any order.
            capacity: not below the length of any of these rows.
        """
        n_rows = sum(len(rows) for _, rows, _ in parts)
        lengths_B = torch.zeros(n_rows, dtype=torch.long)
        for cache, rows, places in parts:
            lengths_B[places] = cache.lengths_B[rows]

        def copied(sources: Sequence[Tensor]) -> Tensor:
            _, heads, _, width = sources[0].shape
            out = sources[0].new_zeros(n_rows, heads, capacity, width)
            for source, (cache, rows, places) in zip(sources, parts, strict=True):
                longest = int(cache.lengths_B[rows].max())
                out[places.to(out.device), :, :longest] = source[rows.to(out.device), :, :longest]
            return out

        layers: list[tuple[Tensor, Tensor] | None] = []
        for kvs in zip(*(cache._layers for cache, _, _ in parts), strict=True):
            written = [kv for kv in kvs if kv is not None]
            layers.append((copied([k for k, _ in written]), copied([v for _, v in written])) if written else None)
        return SlotCache(layers, lengths_B, capacity)


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
        if cache.slots > self._slot_budget:
            return
        keys = [np.asarray(ids, dtype=np.int32).tobytes() for ids in fed_ids]
        self._kept[self._next_id] = cache, keys
        self._where.update({key: (self._next_id, row) for row, key in enumerate(keys)})
        self._next_id += 1
        while sum(kept.slots for kept, _ in self._kept.values()) > self._slot_budget:
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

    def gather(self, hits: Sequence[Hit], capacity: int) -> SlotCache:
        """One cache with the rows of ``hits`` in order, and ``capacity`` slots for each."""
        parts = []
        for cache_id in sorted({cache_id for cache_id, _, _ in hits}):
            places = [n for n, hit in enumerate(hits) if hit[0] == cache_id]
            rows = torch.tensor([hits[n][1] for n in places])
            parts.append((self._kept[cache_id][0], rows, torch.tensor(places)))
        return SlotCache.gathered(parts, capacity)
