"""Faster attention on a CPU: key-value heads are not repeated, bfloat16 is computed in float32, and only attention sees
padding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

CPU_ATTENTION = "selfcorrect_cpu"


@dataclass(frozen=True, slots=True)
class Packing:
    """Which row and column of a padded batch each token of a pass without padding belongs to."""

    rows_N: Tensor
    columns_N: Tensor
    rows: int
    width: int


_packing: ContextVar[Packing | None] = ContextVar("packing", default=None)


@contextmanager
def packed_queries(packing: Packing | None) -> Iterator[None]:
    """Let a decoder on a CPU take tokens without padding, each as a row of length one.

    Only attention must know which tokens belong together: keys, values and mask are those of the padded batch.
    """
    token = _packing.set(packing)
    try:
        yield
    finally:
        _packing.reset(token)


def use_cpu_attention(model: Any) -> None:
    """Replace transformers' call of PyTorch's SDPA attention in a model on a CPU. Other kinds of attention do not
    change.

    With a mask, transformers repeats keys and values for every query head, and torch's backward pass takes about twice
    as long in bfloat16 as in float32.
    """
    if model.config._attn_implementation == "sdpa" and model.device.type == "cpu":
        model.set_attn_implementation(CPU_ATTENTION)


def cpu_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As ``sdpa_attention_forward`` of transformers; shapes [B, heads, T, head width], the result [B, T, heads, width].

    Inside ``packed_queries`` the queries have shape [N, heads, 1, head width], and the result has shape [N, 1, heads,
    width].
    """
    packing = _packing.get()
    if packing is None:
        return _attention(module, query, key, value, attention_mask, scaling, is_causal, options), None
    padded = query.new_zeros(packing.rows, query.shape[1], packing.width, query.shape[3])
    padded[packing.rows_N, :, packing.columns_N] = query[:, :, 0]
    out = _attention(module, padded, key, value, attention_mask, scaling, is_causal, options)
    return out[packing.rows_N, packing.columns_N][:, None], None


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    is_causal: bool | None,
    options: dict[str, Any],
) -> Tensor:
    width, known = query.shape[2], key.shape[2]
    plain = all(options.get(name) is None for name in ("position_bias", "cache", "softcap"))
    if width == 1 or not plain or (attention_mask is None and width != known):
        # unusual options, and decoding: there transformers packs the heads, and casting the whole cache would cost more
        usual: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **options
        )[0]
        return usual
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    out = scaled_dot_product_attention(
        query.float(),
        key.float(),
        value.float(),
        attn_mask=attention_mask,
        dropout_p=options.get("dropout", 0.0),
        scale=scaling,
        is_causal=attention_mask is None and causal,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.to(query.dtype).transpose(1, 2).contiguous()


AttentionInterface.register(CPU_ATTENTION, cpu_attention)
AttentionMaskInterface.register(CPU_ATTENTION, sdpa_mask)
