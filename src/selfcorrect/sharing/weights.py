"""Writes the weights of a run's kept checkpoint: whole, with LoRA merged into them, or the adapter alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfcorrect.engines.models import (
    EMBEDDED,
    ResolvedModel,
    base_of,
    load_adapter,
    load_chat,
    load_model,
    resolve_model,
    save_generation_config,
)
from selfcorrect.engines.quiet import quiet_peft, quiet_progress
from selfcorrect.errors import ConfigError, RunError
from selfcorrect.records.run_directory import RunDirectory

Form = Literal["full", "merged", "adapter"]


@dataclass(frozen=True, slots=True)
class Weights:
    """What was written."""

    form: Form
    dtype: str
    rounded: float | None = None
    """merged: norm of the change by rounding to ``dtype``, relative to the norm of the whole update. 0: nothing is
    lost; 1: the rounding is as large as the update."""


def choose_form(run: RunDirectory, merge: bool | None) -> Form:
    """The form to write; ``merge=None`` merges adapters.

    Raises:
        RunError: the run's model does not exist.
        ConfigError: the run has no adapter to merge or to keep apart.
    """
    model = run.path / "model"
    if (model / "adapter_config.json").is_file():
        return "adapter" if merge is False else "merged"
    if not (model / "config.json").is_file():
        raise RunError(
            f"{model} does not hold the run's model, which `selfcorrect train` writes at its end; put it back, or train again"
        )
    if merge is not None:
        raise ConfigError(
            f"--{'merge' if merge else 'adapter'} is about LoRA adapters, but {run.path} trained every weight; drop the option"
        )
    return "full"


def write_weights(run: RunDirectory, form: Form, base_model: str | None, target: Path) -> Weights:
    """Write weights, tokenizer and generation config into a new directory.

    In an adapter's config, ``base_model`` is the name under which others find the base; None keeps the recorded one.

    Raises:
        ModelError: the base of an adapter cannot be loaded.
    """
    model, settings = run.path / "model", run.config.model
    _require_whole(model)
    adapter_files = () if form == "adapter" else ("adapter_*",)
    shutil.copytree(model, target, ignore=shutil.ignore_patterns("README.md", *adapter_files))
    base = ResolvedModel(str(model), "directory") if form == "full" else _base(run)
    rounded = _write_merged(run, base, target) if form == "merged" else None
    if form == "adapter" and base_model is None and base.kind == "directory":
        base_model = str(Path(base.path_or_id).resolve())
    if form == "adapter" and base_model is not None:
        file = target / "adapter_config.json"
        values = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": base_model}
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    on_hub = settings.model_copy(update={"revision": settings.revision if base.kind == "hub" else None})
    save_generation_config(load_chat(base, run.config.model_copy(update={"model": on_hub})), target)
    return Weights(form, settings.dtype, rounded)


def _base(run: RunDirectory) -> ResolvedModel:
    """The base of a run's adapter. A relative path in the settings counts from where the run was started, so the path that
    the adapter recorded is taken."""
    recorded = base_of(ResolvedModel(str(run.path / "model"), "adapter"))
    name = run.config.model.name
    return recorded if recorded.kind == "directory" and name not in EMBEDDED else resolve_model(name)


def _require_whole(model: Path) -> None:
    """Refuse a model whose weights are missing or cut; they would be copied as they are.

    Raises:
        RunError: a file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    index = model / "model.safetensors.index.json"
    files = {"adapter_model.safetensors" if (model / "adapter_config.json").is_file() else "model.safetensors"}
    name = index.name
    try:
        if index.is_file():
            files = set(json.loads(index.read_text())["weight_map"].values())
        for name in sorted(files):
            with safe_open(model / name, "np"):
                pass
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise RunError(
            f"{model / name} cannot be read ({error}), so the run's model is not whole; put it back from a copy, or train again"
        ) from None


def _write_merged(run: RunDirectory, base: ResolvedModel, target: Path) -> float:
    """Add the adapter, in float32, to the base it was trained on; round once.

    Returns:
        Norm of the change by rounding the merged weights, relative to the norm of the update.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    settings = run.config.model
    revision = settings.revision if base.kind == "hub" else None
    whole = load_model(base, settings.dtype, "cpu", revision, settings.trust_remote_code).float()
    lost = update = 0.0
    with quiet_progress(), quiet_peft(), torch.no_grad():
        tuned = load_adapter(whole, str(run.path / "model"))
        dtype = getattr(torch, settings.dtype)
        for layer in tuned.modules():
            if isinstance(layer, LoraLayer):
                delta = layer.get_delta_weight("default").double()
                exact = layer.get_base_layer().weight.double() + delta
                lost += float((exact.to(dtype).double() - exact).square().sum())
                update += float(delta.square().sum())
        tuned.merge_and_unload().to(dtype).save_pretrained(target)
    return (lost / update) ** 0.5 if update else 0.0
