"""The torch engine: the verbs of the contract in one process on one device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError

from selfcorrect.algorithm.losses import cross_entropy_loss, importance_sampling_loss
from selfcorrect.config import ModelConfig, TorchEngineConfig
from selfcorrect.engines.base import (
    CURRENT,
    EXACT_GAP,
    LARGEST_MEAN_GAP,
    AdamParams,
    EngineInfo,
    OptimResult,
    Sampled,
    SampleRequest,
    SamplingParams,
    Scored,
)
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.models import (
    ResolvedModel,
    load_model,
    model_directory,
    save_generation_config,
    steady_length,
)
from selfcorrect.engines.quiet import quiet_peft, quiet_progress
from selfcorrect.engines.torch_engine.agreement import largest_gap
from selfcorrect.engines.torch_engine.attention import use_cpu_attention
from selfcorrect.engines.torch_engine.checkpoint import checkpoint_tensors
from selfcorrect.engines.torch_engine.freed import return_freed_memory
from selfcorrect.engines.torch_engine.passes import MicroBatch, Scorer, micro_batches, recompute_layers
from selfcorrect.engines.torch_engine.repeatable import settle
from selfcorrect.engines.torch_engine.sampler import Sampler
from selfcorrect.engines.torch_engine.vllm_sampler import VllmSampler
from selfcorrect.engines.torch_engine.weights import Weights
from selfcorrect.engines.vllm_extra import require_vllm
from selfcorrect.errors import EngineError, ModelError
from selfcorrect.types import Datum, FloatArray, LossName

TREES_FROM = 20_000_000
"""Parameters of a model from which the trainer lays out the sequences of a problem as a tree. The embedded models are
smaller, so that their recorded runs keep their numbers to the last bit."""

CACHE_BYTES = 2**30
"""Keys and values of all episodes that a measurement plays at once on a CPU. Up to three times this is alive between two
attempts. Of the embedded models, 2,000 problems fit in."""

Pending = tuple[Sequence[SampleRequest], SamplingParams, "asyncio.Future[list[Sampled]]"]


class TorchEngine:
    """Any Hugging Face causal language model with full attention, on a CPU or one GPU.

    The verbs without a docstring are described in ``Engine``.

    Args:
        model: a causal language model, any dtype; moved to evaluation mode (no dropout in any pass).
        chat: the model's chat format.
        settings: token budgets and device.
        lora: rank and alpha of LoRA adapters, or None to train every weight.
        sampler: a sampler with its own weights, which gets the model's weights now; None samples with the model itself.

    Raises:
        ModelError: the model's logits are not its output head on its last hidden state, so that log-probs at chosen
            positions would differ from the model's own; or the sampler cannot run the model.
        EngineError: the sampler's distribution is not the trainer's.
    """

    def __init__(
        self,
        model: Any,
        chat: ChatFormat,
        settings: TorchEngineConfig,
        lora: tuple[int, float] | None = None,
        sampler: VllmSampler | None = None,
    ) -> None:
        self.chat = chat
        self._settings = settings
        self._device = next(model.parameters()).device
        self._base = model
        deterministic = settle(settings, self._device, sum(p.numel() for p in model.parameters()))
        if settings.gradient_checkpointing:
            recompute_layers(model)
        self._model: Any = model if lora is None else _with_adapters(model, *lora)
        self._model.eval()
        self._weights = Weights(self._model)
        use_cpu_attention(model)
        self._scorer = Scorer(model)
        config = model.config.get_text_config(decoder=True)
        exact = next(model.parameters()).dtype == torch.float32
        self._sampler: Sampler | VllmSampler = sampler or Sampler(
            model,
            config.num_hidden_layers,
            chat.pad_id,
            self._device,
            settings.tokens_per_sampling_batch,
            drafts=exact if settings.drafts is None else settings.drafts,
        )
        self.answered: Callable[[int], None] = lambda _n: None
        """See ``TellsProgress``."""
        self._sampler.answered = lambda n: self.answered(n)  # noqa: PLW0108  # ``answered`` may be set later
        self._pending: list[Pending] = []
        self._stale = False
        self._broken: str | None = None
        self.info = EngineInfo(
            name="torch",
            device=str(self._device),
            dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
            parameters=sum(p.numel() for p in self._model.parameters()),
            trainable_parameters=self._weights.count,
            max_length=int(config.max_position_embeddings),
            exact_sampler=exact,
            deterministic=deterministic,
            threads=torch.get_num_threads() if self._device.type == "cpu" else None,
        )
        self._pair_cost: float | None = None
        self._check_scorer()
        self._pair_cost = self._cost_of_pairs()
        if sampler is not None:
            self._compare_sampler()
        else:
            self._check_cache()

    @classmethod
    def from_config(
        cls,
        resolved: ResolvedModel,
        chat: ChatFormat,
        model: ModelConfig,
        settings: TorchEngineConfig,
        *,
        frozen: bool = False,
    ) -> TorchEngine:
        """Load a model and build the engine on it.

        Args:
            resolved: where the model is.
            chat: its chat format.
            model: precision and adapter settings.
            settings: of the engine.
            frozen: for measuring only: no adapters, and no float32 masters of bfloat16 weights.

        Raises:
            ModelError: the model cannot be loaded or used.
            ConfigError: the sampler of the settings is not installed.
        """
        if settings.sampler == "vllm":
            require_vllm()
        device = _pick_device(settings.device)
        module = load_model(resolved, model.dtype, str(device), model.revision, model.trust_remote_code)
        torch.manual_seed(0)  # adapters are initialised at random, but equally in every run
        lora = (model.lora_rank, model.lora_alpha) if model.lora_rank and not frozen else None
        if frozen:
            module.requires_grad_(False)
        sampler = None
        if settings.sampler == "vllm":
            sampler = VllmSampler.start(
                model_directory(resolved, model.revision),
                model.dtype,
                device,
                settings.sampler_memory_gb,
                model.trust_remote_code,
                int(module.get_input_embeddings().weight.shape[0]),
                # vLLM picks one set of longrope's frequencies for all lengths, by the longest that may come
                steady_length(module.config),
            )
        return cls(module, chat, settings, lora, sampler)

    async def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[Sampled]:
        """See ``Engine.sample``. Calls made in the same turn of the event loop become one batch."""
        self._require_usable()
        if self._stale:
            raise EngineError(
                "the weights changed since the last publish(); call publish() before sampling", usable=True
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Sampled]] = loop.create_future()
        self._pending.append((requests, params, future))
        if len(self._pending) == 1:
            loop.call_soon(self._flush)
        return await future

    def episodes_at_once(self, tokens: int) -> int | None:
        """See ``LimitsMemory``. A CPU shares its memory with everything else on the machine; its batches need not be large."""
        if self._device.type != "cpu" or not isinstance(self._sampler, Sampler):
            return None
        return max(1, int(CACHE_BYTES / self._sampler.bytes_per_slot / tokens))

    def drop_caches(self) -> None:
        """See ``LimitsMemory``."""
        self._sampler.drop_caches()

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        for params in dict.fromkeys(p for _, p, _ in pending):
            calls = [(requests, future) for requests, p, future in pending if p == params and not future.done()]
            try:
                flat = self._sampler.run([r for requests, _ in calls for r in requests], params)
            except Exception as error:  # noqa: BLE001  # given to every waiting caller
                failure = error
                if not isinstance(error, EngineError):
                    failure = EngineError(f"sampling failed: {error}", usable=True)
                    try:
                        self._sampler.drop_caches()
                    except EngineError as lost:  # the sampler says itself that it is not usable
                        failure = lost
                for _, future in calls:
                    future.set_exception(failure)
                continue
            start = 0
            for requests, future in calls:
                future.set_result(flat[start : start + len(requests)])
                start += len(requests)

    def logprobs(self, sequences: Sequence[Scored], policy: str) -> list[FloatArray]:
        self._require_usable()
        out: list[FloatArray] = [np.zeros(len(s.tokens_T)) for s in sequences]
        with torch.no_grad(), self._verb("logprobs"), self._weights.acting_as(policy):
            for batch in self._batches([s.tokens_T for s in sequences], [s.sampled_T for s in sequences]):
                _scatter(self._scorer.logprobs(batch), batch, out)
        return out

    def forward_backward(self, data: Sequence[Datum], loss: LossName) -> list[FloatArray]:
        self._require_usable()
        self._sampler.drop_caches()  # training is where memory is short, and the weights are about to change
        return_freed_memory()
        out: list[FloatArray] = [np.full(len(d.tokens_T), np.nan) for d in data]
        with self._verb("forward_backward"):
            for batch in self._batches([d.tokens_T for d in data], [d.weights_T != 0 for d in data]):
                weights_N = self._gather([d.weights_T for d in data], batch)
                sampled_N = self._gather([d.logprobs_T for d in data], batch)
                logprobs_N = self._scorer.backward(batch, partial(_loss, loss, sampled_N, weights_N))
                self._weights.collect_gradients()
                _scatter(logprobs_N, batch, out)
        return out

    def optim_step(self, adam: AdamParams) -> OptimResult:
        self._require_usable()
        with self._verb("optim_step"):
            result = self._weights.step(adam)
        self._stale = True
        return result

    def reset_optimiser(self) -> None:
        self._weights.reset_optimiser()

    def publish(self) -> None:
        """See ``Engine.publish``. A sampler with its own weights gets them in place, merged with the adapters."""
        with self._verb("publish"):
            self._sampler.publish(checkpoint_tensors(self._base))
        self._stale = False

    def snapshot(self, name: str) -> None:
        self._weights.snapshot(name)

    def restore(self, name: str) -> None:
        with self._verb("restore"):
            self._weights.restore(name)
        self._stale = True

    def gradients(self) -> dict[str, torch.Tensor]:
        """Accumulated float32 gradients by parameter name. Not part of the contract: for tests and diagnostics."""
        return self._weights.gradients()

    def save(self, path: Path) -> None:
        with self._verb("save"):
            path.mkdir(parents=True, exist_ok=True)
            self._weights.save(path)

    def load(self, path: Path) -> None:
        try:
            with self._verb("load"):
                self._weights.load(path)
        except EngineError as error:
            raise EngineError(str(error), usable=error.usable, damaged=None if error.usable else path) from error
        self._broken = None
        self.publish()

    def export(self, path: Path) -> None:
        """See ``Engine.export``. The generation config holds the end and padding ids and no sampling defaults."""
        with self._verb("export"), quiet_progress():
            path.mkdir(parents=True, exist_ok=True)
            self._model.save_pretrained(path)
            self.chat.save(path)
            save_generation_config(self.chat, path)

    def _batches(self, tokens: list[np.ndarray], positions: list[np.ndarray]) -> list[MicroBatch]:
        return micro_batches(
            tokens,
            positions,
            self._settings.tokens_per_microbatch,
            self.chat.pad_id,
            self._device,
            share=not self._settings.gradient_checkpointing,  # a recomputed layer would extend the prefix's cache
            pair_cost=self._pair_cost,
        )

    def _gather(self, arrays: list[FloatArray], batch: MicroBatch) -> torch.Tensor:
        rows, columns = batch.rows_N.tolist(), batch.columns_N.tolist()
        picked = [arrays[batch.index[r]][c] for r, c in zip(rows, columns, strict=True)]
        return torch.tensor(np.asarray(picked, dtype=np.float64), dtype=torch.float32, device=self._device)

    @contextmanager
    def _verb(self, name: str) -> Iterator[None]:
        """Turn failures into ``EngineError``. A failed verb clears partial gradients, so that the engine stays usable."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self._weights.zero_gradients()
            raise EngineError(
                f"{name} ran out of memory ({error}); lower engine.tokens_per_microbatch", usable=True
            ) from error
        except (RuntimeError, ValueError, LookupError, OSError, EOFError, UnpicklingError, SafetensorError) as error:
            if name in ("optim_step", "load"):
                self._broken = f"{name} failed half-way; load a checkpoint"
            self._weights.zero_gradients()
            raise EngineError(f"{name} failed: {error}", usable=self._broken is None) from error

    def _require_usable(self) -> None:
        if self._broken is not None:
            raise EngineError(f"the engine is not usable: {self._broken}", usable=False)

    def _compare_sampler(self) -> None:
        """Publish, and record in ``info`` how far the sampler's log-probs are from the trainer's."""
        self.publish()

        def answers(requests: Sequence[SampleRequest], params: SamplingParams) -> list[Sampled]:
            try:
                return self._sampler.run(requests, params)
            except EngineError as error:
                raise ModelError(
                    f"engine.sampler={self._settings.sampler} does not run this model here: {error}; use engine.sampler=native"
                ) from error

        vocabulary = self._base.get_input_embeddings().weight.shape[0]
        gap = largest_gap(answers, lambda sequences: self.logprobs(sequences, CURRENT), vocabulary)
        self.info = replace(
            self.info,
            exact_sampler=self.info.exact_sampler and gap < EXACT_GAP,
            notes=(
                f"sampler {self._settings.sampler}: at the start its log-probs differ from the trainer's by {gap:.2g}",
            ),
        )

    def _check_scorer(self) -> None:
        """Check that the head on chosen positions gives the model's own logits (some models scale or cap them)."""
        ids = np.arange(8) % self._base.get_output_embeddings().weight.shape[0]
        wanted = np.arange(8) > 0
        with torch.no_grad():
            (batch,) = self._batches([ids], [wanted])
            scored = self._scorer.logprobs(batch)
            logits = self._base(input_ids=batch.ids_BT, use_cache=False).logits[0, :-1].float()
            expected = logits.log_softmax(-1).gather(1, batch.targets_N[:, None]).squeeze(1)
        bound = 1e-3 if self.info.dtype == "float32" else 0.1
        if not torch.allclose(scored, expected, atol=bound):
            raise ModelError(
                f"this model's logits differ from its output head on its last hidden state by "
                f"{float((scored - expected).abs().max()):.3g} nats, so log-probs at chosen positions would be wrong (it scales "
                "or caps its logits in an unsupported way); use another model"
            )

    def _cost_of_pairs(self) -> float | None:
        """The ``pair_cost`` of ``micro_batches``; None if the model is small, or its layers do not take trees."""
        config = self._base.config.get_text_config(decoder=True)
        parameters = sum(p.numel() for p in self._base.parameters())
        heads = getattr(config, "num_attention_heads", None)
        if parameters < TREES_FROM or not heads:
            return None
        head = getattr(config, "head_dim", None) or config.hidden_size // heads
        prompt, first = [3, 4, 5, 6], [7, 8]
        rows = [[*prompt, *first], *([*prompt, *first, 9, 4, last, 5] for last in (10, 11))]
        vocabulary = self._base.get_output_embeddings().weight.shape[0]
        tokens = [np.array(row) % vocabulary for row in rows]
        scored = [np.arange(len(row)) >= n for row, n in zip(rows, (4, 8, 8), strict=True)]
        found = []
        try:
            with torch.no_grad():
                for pair_cost in (0.0, None):
                    out: list[FloatArray] = [np.zeros(len(row)) for row in rows]
                    for batch in micro_batches(
                        tokens, scored, 1_000, self.chat.pad_id, self._device, share=False, pair_cost=pair_cost
                    ):
                        _scatter(self._scorer.logprobs(batch), batch, out)
                    found.append(np.concatenate(out))
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            return None
        bound = 1e-3 if self.info.dtype == "float32" else 0.1
        if np.abs(found[0] - found[1]).max() > bound:
            return None
        return float(2 * config.num_hidden_layers * heads * head / parameters)

    def _check_cache(self) -> None:
        """Check that answers in a batch of unequal rows, and second answers from their cache, have the log-probs of a
        plain forward pass.

        This finds an architecture whose layers depend on other rows or on padding, whatever its configuration says.
        """
        vocabulary = self._base.get_output_embeddings().weight.shape[0]
        prompts = [tuple(i % vocabulary for i in range(n)) for n in (5, 11)]
        gaps: list[float] = []
        try:
            with torch.no_grad():
                for turn in range(2):
                    requests = [SampleRequest(p, ("check", turn, i)) for i, p in enumerate(prompts)]
                    answers = self._sampler.run(requests, SamplingParams(3, continued=True))
                    for i, answer in enumerate(answers):
                        row = torch.tensor([[*prompts[i], *answer.token_ids]], device=self._device)
                        logits = self._base(input_ids=row, use_cache=False).logits[0, len(prompts[i]) - 1 : -1]
                        plain = logits.float().log_softmax(-1).gather(1, row[0, len(prompts[i]) :, None])[:, 0]
                        gaps += (plain.cpu().double() - torch.tensor(answer.logprobs).double()).abs().tolist()
                        prompts[i] = (*prompts[i], *answer.token_ids, *prompts[i][:2])
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            what = f"{type(error).__name__}: {str(error)[:200]}"
        else:
            mean = sum(gaps) / len(gaps)
            if max(gaps) < 1e-3 or (self.info.dtype != "float32" and mean < LARGEST_MEAN_GAP):
                return
            what = f"log-probs from the cache differ from a plain forward pass by up to {max(gaps):.3g} nats"
        finally:
            self._sampler.drop_caches()
        raise ModelError(
            f"{self._base.config.model_type} models cannot be sampled in unequal batches from a key-value cache here ({what}); "
            "take a model with full attention in every layer (Llama, Qwen2, Qwen3, SmolLM2, ...)"
        )


def _with_adapters(model: Any, rank: int, alpha: float) -> Any:
    """Add LoRA to all linear layers but the head. Adapters are float32 over a base of any precision."""
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    with quiet_peft():
        return get_peft_model(model, config, autocast_adapter_dtype=True)


def _pick_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("engine.device=cuda, but this PyTorch sees no CUDA device; use engine.device=cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _loss(
    name: LossName, sampled_N: torch.Tensor, weights_N: torch.Tensor, logprobs: torch.Tensor, part: slice
) -> torch.Tensor:
    if name == "importance_sampling":
        return importance_sampling_loss(logprobs, sampled_N[part], weights_N[part])
    return cross_entropy_loss(logprobs, weights_N[part])


def _scatter(logprobs_N: torch.Tensor, batch: MicroBatch, out: list[FloatArray]) -> None:
    values = logprobs_N.double().cpu().numpy()
    rows, columns = batch.rows_N.tolist(), batch.columns_N.tolist()
    for value, row, column in zip(values, rows, columns, strict=True):
        out[batch.index[row]][column] = value
