"""The policy as a checkpoint of plain weights, tensor by tensor: adapters merged, names as in the model's directory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor
from transformers.core_model_loading import WeightRenaming, revert_weight_conversion

from selfcorrect.errors import ModelError


@torch.no_grad()
def checkpoint_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every parameter under its name in the checkpoint, layer by layer. The model's own tensors are not changed.

    An adapted weight W is yielded as W + scale * B A, summed in float32 and rounded once to W's precision; only one
    such sum exists at a time. Other tensors are the model's own, not copies: use each before the model changes. Tied
    weights are yielded once, under the name of the embedding.

    Args:
        model: a Hugging Face causal language model, with or without LoRA layers in it.

    Yields:
        Name and tensor, in the model's precision and on its device.

    Raises:
        ModelError: the model has an adapter other than plain LoRA on linear layers, or its checkpoint stores the weights in
            another shape.
    """
    conversions = getattr(model, "_weight_conversions", None) or ()  # set if it was loaded from a checkpoint
    if any(not isinstance(c, WeightRenaming) for c in conversions):
        raise _unsupported("weights that its checkpoint stores in another shape (a mixture of experts)")
    adapters: set[int] = set()
    layer_of: dict[int, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise _unsupported(f"a whole module that an adapter replaces ({name})")
        if isinstance(module, BaseTunerLayer):
            # a variant is DoRA and the like, whose merged weight is not W + scale * B A
            if not isinstance(module, LoraLinear) or module.lora_variant or any(module.lora_bias.values()):
                raise _unsupported(f"an adapter other than plain LoRA on a linear layer ({name})")
            adapters |= {id(p) for p in module.parameters()}
            layer_of[id(module.get_base_layer().weight)] = module
    for name, parameter in model.named_parameters():
        if id(parameter) in adapters and ".base_layer." not in name:
            continue
        tensor = parameter.detach()
        if (layer := layer_of.get(id(parameter))) is not None:
            total = tensor.float()  # a copy unless it is float32, and then the first sum makes one
            for adapter in layer.active_adapters:
                if adapter in layer.lora_A:
                    total = total + layer.get_delta_weight(adapter)
            tensor = total.to(parameter.dtype)
        plain = name.replace(".base_layer.", ".")
        yield from revert_weight_conversion(model, {plain: tensor}).items() if conversions else [(plain, tensor)]


def _unsupported(what: str) -> ModelError:
    return ModelError(f"the model has {what}, which engine.sampler=vllm does not support; use engine.sampler=native")
