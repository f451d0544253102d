"""A Tinker server through the ``tinker`` client. The only module that imports it.

The client itself repeats a request when the connection fails. For training requests that is safe: each carries a sequence
number, and if the server has seen the number before, it answers with the first request's result. This module only
decides when to stop waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import numpy as np

from selfcorrect.engines.base import AdamParams
from selfcorrect.engines.tinker_engine.remote import RawSample, RemoteFailure, WireDatum
from selfcorrect.errors import ConfigError
from selfcorrect.types import FloatArray, LossName

T = TypeVar("T")

OLDEST, SELF_HOSTED_BELOW = (0, 25), (0, 26)
"""Client versions. SkyRL 0.4.0 takes request bodies as 0.25 sends them; 0.38 fails at its first sample against it."""
KEY_VARIABLE = "TINKER_API_KEY"
NO_KEY = "tml-none"
"""Self-hosted servers need no key, but the client does not start without one."""
HEALTH_TIMEOUT_S, UNLOAD_TIMEOUT_S = 10.0, 10.0
FULL = re.compile(r"maximum number of .*adapters|no (free|available) (adapter|slot|place)", re.I)
PASSING_STATUS = frozenset({408, 425, 429})
"""With 5xx, the HTTP statuses after which the same request may succeed."""


def require_client(hosted: bool) -> None:
    """Refuse a missing client, or one that the server does not understand. Imports nothing.

    Raises:
        ConfigError: names the extra to install.
    """
    extra = "tinker" if hosted else "skyrl"
    way_out = f"install it with `pip install 'selfcorrect[{extra}]'`"
    try:
        found = metadata.version("tinker")
    except metadata.PackageNotFoundError:
        raise ConfigError(f"engine=tinker needs the package tinker, which is not installed; {way_out}") from None
    version = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if version < OLDEST:
        raise ConfigError(
            f"tinker {found} is too old for this engine, which needs {'.'.join(map(str, OLDEST))} or newer; {way_out}"
        )
    if not hosted and version >= SELF_HOSTED_BELOW:
        raise ConfigError(
            f"tinker {found} does not understand SkyRL's server, which engine.base_url names: versions from "
            f"{'.'.join(map(str, SELF_HOSTED_BELOW))} on fail at the first sample; {way_out}"
        )


def connect(base_url: str | None, timeout_s: float) -> Server:
    """Open a session.

    Args:
        base_url: of a self-hosted server; None is Tinker itself, with the key in TINKER_API_KEY.
        timeout_s: longest wait for one answer.

    Raises:
        ConfigError: the client is missing or of the wrong version, or there is no key.
        RemoteFailure: no server answers there.
    """
    require_client(hosted=base_url is None)
    key = os.environ.get(KEY_VARIABLE)
    if base_url is None and not key:
        raise ConfigError(
            f"engine=tinker without engine.base_url is Tinker itself, which needs a key: set {KEY_VARIABLE}, or name your own "
            "server with engine.base_url=http://HOST:PORT (`selfcorrect cluster` says how to start one)"
        )
    if base_url is not None:  # one request of its own: the client would repeat its first one for five minutes
        try:
            answer = httpx2.get(f"{base_url.rstrip('/')}/api/v1/healthz", timeout=HEALTH_TIMEOUT_S)
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise RemoteFailure(f"no answer from {base_url} ({error})", passing=True) from error
        if answer.status_code != httpx2.codes.OK:
            raise RemoteFailure(
                f"{base_url} answers, but not as a Tinker server (HTTP {answer.status_code} at /api/v1/healthz)",
                passing=answer.status_code >= 500,
            )
    import tinker

    address = {} if base_url is None else {"base_url": base_url}
    service = _answer(lambda: tinker.ServiceClient(api_key=key or NO_KEY, **address), timeout_s)
    return Server(service, timeout_s)


class Server:
    """One session with a server."""

    def __init__(self, service: Any, timeout_s: float) -> None:
        self._service = service
        self._timeout_s = timeout_s

    def models(self) -> dict[str, int | None]:
        """Names of the models that the server has, with their longest sequence if it reports one."""
        found = _answer(self._service.get_server_capabilities, self._timeout_s).supported_models
        return {m.model_name: m.max_context_length for m in found}

    def trainer(self, model: str, rank: int, seed: int) -> Trainer:
        """A new adapter, which does not change the model yet."""
        s = self._service
        made = _answer(lambda: s.create_lora_training_client(base_model=model, rank=rank, seed=seed), self._timeout_s)
        return Trainer(made, s, self._timeout_s)

    def trainer_from(self, path: str, *, optimiser: bool) -> Trainer:
        """A new adapter with a saved one's weights, with or without its optimiser."""
        s = self._service
        make = s.create_training_client_from_state_with_optimizer if optimiser else s.create_training_client_from_state
        return Trainer(_answer(lambda: make(path), self._timeout_s), s, self._timeout_s)

    def base_sampler(self, model: str) -> Sampler:
        """The model without an adapter."""
        client = _answer(lambda: self._service.create_sampling_client(base_model=model), self._timeout_s)
        return Sampler(client, self._timeout_s)

    def unload(self, trainer: Trainer) -> None:
        """Free an adapter's place on the server. The client has no method for this request."""
        from tinker import types
        from tinker.lib.client_connection_pool_type import ClientConnectionPoolType

        holder, model_id = trainer.client.holder, trainer.client.model_id

        async def send() -> None:
            with holder.aclient(ClientConnectionPoolType.TRAIN) as client:
                await client.models.unload(request=types.UnloadModelRequest(model_id=model_id), max_retries=0)

        with _translated():
            holder.run_coroutine_threadsafe(send()).result(min(self._timeout_s, UNLOAD_TIMEOUT_S))


class Trainer:
    """One adapter. The server carries out its requests in the order in which they were made."""

    def __init__(self, client: Any, service: Any, timeout_s: float) -> None:
        self.client = client
        self._service = service
        self._timeout_s = timeout_s

    def forward(self, data: Sequence[WireDatum]) -> list[FloatArray]:
        """Log-probs of the targets in nats, one array of shape [T - 1] per datum. Changes nothing."""
        unweighted = [_datum(d, weights=np.zeros(len(d.target_ids))) for d in data]
        return _logprobs(_answer(lambda: self.client.forward(unweighted, "cross_entropy").result(), self._timeout_s))

    def forward_backward(self, data: Sequence[WireDatum], loss: LossName) -> list[FloatArray]:
        """As ``forward``, and adds the gradient as the server reduces it."""
        if loss == "importance_sampling":
            made = [_datum(d, advantages=d.weights, logprobs=d.logprobs) for d in data]
        else:
            made = [_datum(d, weights=d.weights) for d in data]
        return _logprobs(_answer(lambda: self.client.forward_backward(made, loss).result(), self._timeout_s))

    def optim_step(self, adam: AdamParams) -> float | None:
        """Apply and clear the gradient; returns its norm if the server reports one."""
        from tinker import types

        params = types.AdamParams(
            learning_rate=adam.learning_rate,
            beta1=adam.beta1,
            beta2=adam.beta2,
            eps=adam.eps,
            weight_decay=adam.weight_decay,
        )
        metrics = _answer(lambda: self.client.optim_step(params).result(), self._timeout_s).metrics or {}
        norms = [value for name, value in metrics.items() if name.endswith("/grad_norm") or name == "grad_norm"]
        return float(norms[0]) if norms else None

    def save(self, name: str) -> str:
        """Save weights and optimiser under a new name; returns the path to load them from."""
        return str(_answer(lambda: self.client.save_state(name).result(), self._timeout_s).path)

    def publish(self) -> Sampler:
        """A sampler with the current weights."""
        return Sampler(_answer(self.client.save_weights_and_get_sampling_client, self._timeout_s), self._timeout_s)

    def export(self, name: str, path: Path) -> None:
        """Write the adapter as a PEFT directory; ``name`` is a new one on the server."""

        def fetch() -> bytes:
            self.client.save_weights_for_sampler(name).result()
            archive = self._service.create_rest_client().get_checkpoint_archive_url(self.client.model_id, name)
            answer = httpx2.get(archive.result().url, timeout=self._timeout_s, follow_redirects=True)
            answer.raise_for_status()
            return answer.content

        with _translated(), tarfile.open(fileobj=io.BytesIO(_bounded(fetch, self._timeout_s))) as tar:
            tar.extractall(path, filter="data")


class Sampler:
    """One published set of weights."""

    def __init__(self, client: Any, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s

    async def sample(
        self, prompt_ids: Sequence[int], max_tokens: int, temperature: float, stop_ids: Sequence[int], seed: int
    ) -> RawSample:
        """One answer."""
        from tinker import types

        stop = list(stop_ids) or None
        params = types.SamplingParams(
            max_tokens=max_tokens, seed=seed, temperature=temperature, top_k=-1, top_p=1.0, stop=stop
        )
        prompt = types.ModelInput.from_ints(list(prompt_ids))
        with _translated():
            pending = self._client.sample_async(prompt=prompt, num_samples=1, sampling_params=params)
            (answer,) = (await asyncio.wait_for(pending, self._timeout_s)).sequences
        logprobs = None if answer.logprobs is None else tuple(map(float, answer.logprobs))
        return RawSample(tuple(map(int, answer.tokens)), logprobs, answer.stop_reason)


def _logprobs(output: Any) -> list[FloatArray]:
    return [np.asarray(o["logprobs"].tolist(), dtype=np.float64).reshape(-1) for o in output.loss_fn_outputs]


def _datum(d: WireDatum, **inputs: FloatArray) -> Any:
    from tinker import types

    arrays: dict[str, Any] = {key: np.asarray(value, dtype=np.float32) for key, value in inputs.items()}
    return types.Datum(
        model_input=types.ModelInput.from_ints(list(d.input_ids)),
        loss_fn_inputs={"target_tokens": np.asarray(d.target_ids, dtype=np.int64), **arrays},
    )


def _bounded(call: Callable[[], T], timeout_s: float) -> T:
    """Wait for a blocking call up to a limit. It continues in a thread that does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  # given to the waiting caller
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(timeout_s)


def _answer(call: Callable[[], T], timeout_s: float) -> T:
    with _translated():
        return _bounded(call, timeout_s)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn any exception of the client, whose classes differ by version, into ``RemoteFailure``."""
    try:
        yield
    except (RemoteFailure, ConfigError):
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, TimeoutError):
            raise RemoteFailure("no answer in time (engine.timeout_s)", passing=True) from error
        status = getattr(error, "status_code", None)
        unreachable = isinstance(error, httpx2.TransportError) or type(error).__name__ == "APIConnectionError"
        passing = unreachable or (status is not None and (status in PASSING_STATUS or status >= 500))
        raise RemoteFailure(text[:500], passing=passing, full=bool(FULL.search(text))) from error


def complete_adapter(path: Path, model: str) -> None:
    """Complete ``adapter_config.json``: a server leaves out the base model and the adapted modules.

    Without the modules PEFT would use its default for the architecture and drop the other weights.
    """
    from safetensors import safe_open

    file = path / "adapter_config.json"
    config = json.loads(file.read_text())
    with safe_open(path / "adapter_model.safetensors", "np") as tensors:
        names = list(tensors.keys())
    modules = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in names})
    base = str(Path(model).resolve()) if Path(model).is_dir() else model
    config |= {"base_model_name_or_path": base, "target_modules": modules, "task_type": "CAUSAL_LM"}
    file.write_text(json.dumps(config, indent=2) + "\n")
