"""Trainable weights: float32 masters at any compute precision, named frozen copies, the optimiser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selfcorrect.engines.base import CURRENT, AdamParams, OptimResult
from selfcorrect.errors import EngineError


class Weights:
    """The trainable parameters of a model, their float32 masters, Adam, and snapshots.

    A parameter in float32 is its own master. A bfloat16 one gets a float32 copy: at small learning rates pure bfloat16
    updates are lost to rounding. Gradients are summed into the masters after every micro-batch for the same reason.

    Snapshots are copies of the trainable tensors only, swapped in by pointer. The frozen policy then runs through the
    same modules and kernels as the current one, so that at step 0 the KL between them is exactly 0.
    """

    _adam: torch.optim.Optimizer

    def __init__(self, model: nn.Module) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.names = [n for n, _ in named]
        self._params: list[Tensor] = [p for _, p in named]
        self._masters = [p if p.dtype == torch.float32 else p.detach().float().clone() for p in self._params]
        self.count = sum(p.numel() for p in self._params)
        self._snapshots: dict[str, list[Tensor]] = {}
        self.reset_optimiser()

    def reset_optimiser(self) -> None:
        """Forget Adam's moments."""
        # a model that is only measured may have nothing to train, which AdamW itself refuses
        self._adam = torch.optim.AdamW(self._masters or [torch.zeros(0)], lr=0.0)

    def snapshot(self, name: str) -> None:
        self._snapshots[name] = [p.detach().clone() for p in self._params]

    @torch.no_grad()
    def restore(self, name: str) -> None:
        """Copy a snapshot back into the parameters and their masters; reset the optimiser, drop the gradients.

        Raises:
            KeyError: no snapshot of that name.
        """
        for param, master, frozen in zip(self._params, self._masters, self._snapshots[name], strict=True):
            param.copy_(frozen)
            master.copy_(frozen)
        self.zero_gradients()
        self.reset_optimiser()

    @contextmanager
    def acting_as(self, policy: str) -> Iterator[None]:
        """Run the model with the weights of a snapshot (``"current"``: as they are)."""
        if policy == CURRENT:
            yield
            return
        frozen = self._snapshots[policy]
        current = [p.data for p in self._params]
        try:
            for param, tensor in zip(self._params, frozen, strict=True):
                param.data = tensor
            yield
        finally:
            for param, tensor in zip(self._params, current, strict=True):
                param.data = tensor

    def collect_gradients(self) -> None:
        """Move the gradients of a micro-batch into the float32 masters."""
        for param, master in zip(self._params, self._masters, strict=True):
            if param is not master and param.grad is not None:
                master.grad = param.grad.float() if master.grad is None else master.grad.add_(param.grad)
                param.grad = None

    def zero_gradients(self) -> None:
        for tensor in (*self._params, *self._masters):
            tensor.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """Copies of the accumulated float32 gradients by parameter name; for tests and diagnostics."""
        masters = zip(self.names, self._masters, strict=True)
        return {name: master.grad.clone() for name, master in masters if master.grad is not None}

    @torch.no_grad()
    def step(self, adam: AdamParams) -> OptimResult:
        """One Adam update with decoupled weight decay; clears the gradients.

        Raises:
            EngineError: the gradient is not finite; the weights are unchanged.
        """
        grads = [master.grad for master in self._masters if master.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads) if grads else torch.zeros(())
        if not bool(torch.isfinite(norm)):
            self.zero_gradients()
            raise EngineError(
                "the gradient is not finite, so the weights were left as they are: training has diverged; start a new run with a "
                "lower train.learning_rate, or set train.grad_clip",
                usable=True,
            )
        if adam.grad_clip is not None and grads:
            torch.nn.utils.clip_grads_with_norm_(self._masters, adam.grad_clip, norm)
        for group in self._adam.param_groups:
            group.update(
                lr=adam.learning_rate, betas=(adam.beta1, adam.beta2), eps=adam.eps, weight_decay=adam.weight_decay
            )
        self._adam.step()
        for param, master in zip(self._params, self._masters, strict=True):
            if param is not master:
                param.copy_(master)
        self.zero_gradients()
        clipped = adam.grad_clip is not None and float(norm) > adam.grad_clip
        return OptimResult(float(norm), adam.learning_rate, clipped)

    def save(self, path: Path) -> None:
        """Write masters, snapshots and optimiser state into a directory."""

        def write(tensors: Sequence[Tensor], file: str) -> None:
            save_file({n: t.detach().contiguous() for n, t in zip(self.names, tensors, strict=True)}, path / file)

        write(self._masters, "weights.safetensors")
        for name, frozen in self._snapshots.items():
            write(frozen, f"snapshot-{name}.safetensors")
        torch.save(self._adam.state_dict(), path / "optimiser.pt")

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Restore what ``save`` wrote, bit for bit.

        Raises:
            KeyError: the file lacks a parameter of this model.
        """
        stored = load_file(path / "weights.safetensors")
        for name, param, master in zip(self.names, self._params, self._masters, strict=True):
            master.copy_(stored[name])
            param.copy_(stored[name])
        self._snapshots = {}
        for file in sorted(path.glob("snapshot-*.safetensors")):
            tensors = load_file(file)
            self._snapshots[file.stem.removeprefix("snapshot-")] = [
                tensors[n].to(p.device) for n, p in zip(self.names, self._params, strict=True)
            ]
        self._adam.load_state_dict(torch.load(path / "optimiser.pt", weights_only=True, map_location="cpu"))
        self.zero_gradients()
