"""Weights packed for matrix products with few rows, for the sampler on a CPU.

Decoding multiplies a matrix of a few dozen rows by every weight. With weights as the trainer holds them, such products
reach about half the speed of large ones. oneDNN's blocked layout, packed once per published policy, is 1.5 to 1.7 times
as fast (docs/results/step.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 32
"""The layout is chosen for this many rows; others work too."""
SMALLEST = 2**16
"""Smaller matrices are not packed: they stay in the processor's cache and gain nothing. Adapters are that small."""


class PackedWeights:
    """A second copy of a model's linear layers, in a layout for products with few rows. Empty if torch has no such
    layout."""

    def __init__(self, model: Any) -> None:
        self._linears = [m for m in model.modules() if type(m) is nn.Linear and _can_pack(m.weight)]
        self._packed: list[Tensor] = []

    def drop(self) -> None:
        """Free them, because the weights have changed or the memory is needed."""
        self._packed.clear()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model's linear layers use them; packs them first if they were dropped. Only without gradients."""
        if len(self._packed) < len(self._linears):
            reorder = torch.ops.mkldnn._reorder_linear_weight
            self._packed = [reorder(linear.weight.detach(), ROWS) for linear in self._linears]
        try:
            for linear, weight in zip(self._linears, self._packed, strict=True):
                linear.forward = partial(_product, weight, linear.bias)  # type: ignore[method-assign]
            yield
        finally:
            for linear in self._linears:
                linear.__dict__.pop("forward", None)


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or weight.numel() < SMALLEST or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def _product(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y
