"""vLLM as the torch engine's sampler: in this process, on the trainer's device, with its own copy of the weights.

The only module that imports vLLM, and only when this sampler is used. It relies on what the source of vLLM 0.32.0 shows:

- ``logprobs_mode="processed_logprobs"`` gives log-probs of the distribution a token was drawn from, log_softmax(logits
/ T),
  and at temperature 0 those of the model at temperature 1.
- A seed gives a request its own stream. Temperatures in (0, 0.01) are raised silently, and those above 2 refused.
- ``reload_weights`` takes tensors by their checkpoint's names and writes them in place. A missing weight is only a warning.
  The model therefore starts from random weights, so that a weight missing from the first publication is noticed.
- ``generation_config="vllm"`` and ``ignore_eos`` exclude the model's own sampling defaults and end tokens.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfcorrect.engines.base import Sampled, SampleRequest, SamplingParams
from selfcorrect.engines.quiet import quiet_progress
from selfcorrect.engines.torch_engine.sampler import finite
from selfcorrect.engines.vllm_extra import require_vllm
from selfcorrect.errors import EngineError, ModelError

COOLEST, HOTTEST = 0.01, 2.0
"""Temperatures that vLLM uses unchanged, besides 0."""
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
"""Set unless the user has set them: vLLM's log is meant for the operator of a server."""


class VllmSampler:
    """Samples with vLLM. Same methods as ``Sampler``; calls do not overlap.

    Args:
        llm: vLLM's ``LLM``.
        vocabulary: number of tokens that the model embeds; for others vLLM would read past the table.
    """

    def __init__(self, llm: Any, vocabulary: int) -> None:
        self._llm = llm
        self._vocabulary = vocabulary
        self._max_length = int(llm.llm_engine.model_config.max_model_len)
        self._broken: str | None = None
        self.answered: Callable[[int], None] = lambda _n: None

    @classmethod
    def start(
        cls,
        directory: Path,
        dtype: str,
        device: torch.device,
        memory_gb: float,
        trust_remote_code: bool,
        vocabulary: int,
        max_length: int | None = None,
    ) -> VllmSampler:
        """Start vLLM on a model's architecture. Its weights are random until the first ``publish``.

        Args:
            directory: of the model; its config is read.
            dtype, device, trust_remote_code: as for the trainer's model.
            memory_gb: GiB for the key-value cache.
            vocabulary: number of tokens that the model embeds.
            max_length: of a sequence; None: the model's, or as much of it as the cache holds.

        Raises:
            ConfigError: vLLM is not installed, or in another version.
            ModelError: vLLM cannot run the model here, or is built for another device.
        """
        require_vllm()
        if "VLLM_LOGGING_LEVEL" not in os.environ:
            logging.getLogger("vllm").setLevel(logging.ERROR)  # what it logs before it reads the variable
        os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are passed as tensors of this process
        try:
            with _process_restored():
                from vllm import LLM
                from vllm.platforms import current_platform

                if current_platform.device_type != device.type:
                    raise ModelError(
                        f"this vLLM samples on {current_platform.device_type}, but the trainer's device is {device.type}; set "
                        "engine.device, or install the other build of vLLM (docs/engines.md)"
                    )
                llm = LLM(
                    model=str(directory),
                    dtype=dtype,
                    load_format="dummy",
                    skip_tokenizer_init=True,
                    trust_remote_code=trust_remote_code,
                    generation_config="vllm",
                    logprobs_mode="processed_logprobs",
                    enable_prefix_caching=True,
                    max_model_len=-1 if max_length is None else max_length,
                    kv_cache_memory_bytes=int(memory_gb * 2**30),
                    gpu_memory_utilization=0.01,  # unused with kv_cache_memory_bytes, but checked against free memory
                    # on a CPU vLLM would compile for a minute at every start, with a C++ compiler
                    enforce_eager=device.type == "cpu",
                    seed=0,
                )
        except ModelError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(
                f"vLLM cannot run the model in {directory} here: {reason[:600]}; use engine.sampler=native, or set "
                "engine.sampler_memory_gb if it lacks memory"
            ) from error
        return cls(llm, vocabulary)

    def run(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[Sampled]:
        """Answer all requests, in their order.

        Raises:
            ValueError: vLLM would not treat a request as specified; nothing was sampled.
            EngineError: vLLM failed; says whether it is still usable.
        """
        self._require_usable()
        for request in requests:
            self._check(request, params)
        from vllm import SamplingParams as VllmParams

        # the distribution is softmax(logits / T), and only ``stop_ids`` end an answer
        common = {
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "stop_token_ids": sorted(params.stop_ids),
            "ignore_eos": True,
            "detokenize": False,
            "logprobs": 0,  # of the sampled token alone
            "flat_logprobs": True,
        }
        each = [VllmParams(seed=request.stream_key() % 2**63, **common) for request in requests]
        prompts = [{"prompt_token_ids": list(r.prompt_ids)} for r in requests]
        ids: list[str] = []
        finished: dict[int, Any] = {}
        """By the number that vLLM gave each request, which counts up."""
        engine = self._llm.llm_engine
        try:
            ids = self._llm.enqueue(prompts, each, use_tqdm=False)
            while engine.has_unfinished_requests():
                ended = [output for output in engine.step() if output.finished]
                finished |= {int(output.request_id): output for output in ended}
                if ended:
                    self.answered(len(ended))
        except BaseException as error:
            self._clear(ids)
            if not isinstance(error, Exception):
                raise
            raise EngineError(f"vLLM failed while sampling: {error}", usable=self._broken is None) from error
        if len(finished) != len(ids):
            raise ValueError(f"vLLM answered {len(finished)} of {len(ids)} requests")
        return [_sampled(finished[key], params) for key in sorted(finished)]

    def publish(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy weights into vLLM's own, in place, and drop the caches made with the old ones.

        Args:
            weights: all weights of the model, by the names in its checkpoint.

        Raises:
            EngineError: the engine is not usable: some weights are new and some are old.
            ModelError: the weights cannot be written as a checkpoint.
        """
        self._require_usable()
        self._broken = "vLLM took only some of the published weights"
        try:
            with _process_restored():
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
                self._llm.apply_model(_pack_tied)
        except ModelError:
            raise
        except Exception as error:
            raise EngineError(f"publishing the weights to vLLM failed: {error}", usable=False) from error
        self._broken = None
        self.drop_caches()

    def drop_caches(self) -> None:
        """Forget every cached prefix.

        Raises:
            EngineError: the engine is not usable: vLLM kept some prefixes of older weights.
        """
        if not self._llm.reset_prefix_cache():
            self._broken = "vLLM did not drop its cache"
            self._require_usable()

    def _check(self, request: SampleRequest, params: SamplingParams) -> None:
        if params.temperature and not COOLEST <= params.temperature <= HOTTEST:
            raise ValueError(
                f"vLLM samples at temperature 0 or from {COOLEST:g} to {HOTTEST:g}, not at {params.temperature:g}; use "
                "engine.sampler=native for it"
            )
        length = len(request.prompt_ids) + params.max_new_tokens
        if length > self._max_length:
            raise ValueError(
                f"a prompt of {len(request.prompt_ids)} tokens and {params.max_new_tokens} new ones are more than the "
                f"{self._max_length} that vLLM can hold; raise engine.sampler_memory_gb if the model takes more"
            )
        strange = [t for t in request.prompt_ids if not 0 <= t < self._vocabulary]
        if strange or not request.prompt_ids:
            raise ValueError(f"token id {strange[0]} is not in the vocabulary" if strange else "the prompt is empty")

    def _clear(self, ids: list[str]) -> None:
        """After a failure: remove all requests, or mark vLLM as unusable."""
        try:
            engine = self._llm.llm_engine
            engine.abort_request(ids, internal=True)
            if not engine.has_unfinished_requests() and self._llm.reset_prefix_cache():
                return
        except Exception:  # noqa: BLE001  # the failure that led here is the one to report
            pass
        self._broken = "vLLM failed and could not be cleared"

    def _require_usable(self) -> None:
        if self._broken is not None:
            raise EngineError(f"{self._broken}; start the command again", usable=False)


def _pack_tied(model: torch.nn.Module) -> None:
    """Pack the output head again if it is tied to the embedding.

    On a CPU vLLM multiplies by a packed copy of a weight. ``reload_weights`` updates it only for the layers in its
    list, so a tied head would keep its first weights forever.
    """
    seen: set[int] = set()
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is None:
            continue
        if id(weight) in seen:
            module.quant_method.process_weights_after_loading(module)  # type: ignore[operator,union-attr]
        seen.add(id(weight))


def _sampled(output: Any, params: SamplingParams) -> Sampled:
    (answer,) = output.outputs
    tokens = tuple(int(t) for t in answer.token_ids)
    logprobs = tuple(finite(float(lp)) for lp in answer.logprobs.logprobs)
    ended = answer.finish_reason == "stop"
    consistent = bool(tokens) and ended == (tokens[-1] in params.stop_ids)
    if not consistent or tuple(answer.logprobs.token_ids) != tokens or answer.finish_reason not in ("stop", "length"):
        raise ValueError(
            f"vLLM ended an answer of {len(tokens)} tokens and {len(logprobs)} log-probs with "
            f"{answer.finish_reason!r}, neither at one of the end tokens nor at the cap"
        )
    return Sampled(tokens, logprobs, "end" if ended else "length")


@contextlib.contextmanager
def _process_restored() -> Iterator[None]:
    """Undo what vLLM does to its process.

    It makes child processes preload its libraries, replaces ``torch.set_num_threads`` and the exception hook, and emits
    deprecation warnings of other packages.
    """
    kept = {name: os.environ.get(name) for name in ("LD_PRELOAD", "LD_LIBRARY_PATH")}
    set_num_threads, hook = torch.set_num_threads, sys.excepthook
    with warnings.catch_warnings(), quiet_progress():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.set_num_threads, sys.excepthook = set_num_threads, hook
            for name, value in kept.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
