"""The Tinker engine: the verbs of the contract on a server of the Tinker API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from selfcorrect.config import TinkerEngineConfig
from selfcorrect.engines.base import (
    CURRENT,
    EXACT_GAP,
    AdamParams,
    EngineInfo,
    OptimResult,
    Sampled,
    SampleRequest,
    SamplingParams,
    Scored,
)
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.tinker_engine.client import Server, Trainer, complete_adapter
from selfcorrect.engines.tinker_engine.patience import Gate, retried, waited
from selfcorrect.engines.tinker_engine.probes import Findings, Reduction, probe
from selfcorrect.engines.tinker_engine.remote import RawSample, RemoteFailure, WireDatum
from selfcorrect.errors import EngineError, ModelError
from selfcorrect.types import Datum, FloatArray, LossName

STATE_FILE = "tinker.json"
"""In a checkpoint: where the server keeps the state."""
SEEDS = 2**31


class TinkerEngine:
    """LoRA training of the model that a Tinker server serves. ``Engine`` describes the verbs.

    The policy is one adapter on the server, and each snapshot is another; the probes briefly need two more. A failed
    request that changes nothing is sent again. One that may have changed the adapter is not: the engine is then unusable
    until ``load``, which starts from a saved state in a new session.

    Args:
        connect: opens a session.
        chat: the model's chat format.
        model: names that the server may have for the model; the first one that it serves is used.
        rank: of the adapters; None measures the model itself and trains nothing.
        settings: how long to wait.
        max_length: longest sequence of the model in tokens.
        vocabulary: number of token ids of the model.

    Raises:
        ModelError: the server serves another model.
        EngineError: there is no server, it had no place for an adapter in time, or a probe refused it.
    """

    def __init__(
        self,
        connect: Callable[[], Server],
        chat: ChatFormat,
        model: Sequence[str],
        rank: int | None,
        settings: TinkerEngineConfig,
        max_length: int,
        vocabulary: int,
    ) -> None:
        self.chat = chat
        self._connect = connect
        self._settings = settings
        self._rank = rank
        self._vocabulary = vocabulary
        self._broken: str | None = None
        self._stale = False
        self._accumulated = 0
        self._policy: Trainer | None = None
        self._gate = Gate()
        self._snapshots: dict[str, tuple[str, Trainer]] = {}
        try:
            self._server = connect()
        except RemoteFailure as failure:
            raise EngineError(
                f"no Tinker server could be used: {failure}; start one (`selfcorrect cluster` prints how), or correct "
                "engine.base_url. No other engine is used instead",
                usable=False,
            ) from failure
        findings: Findings | None = None
        try:
            served = self._server.models()
            self._model = next((name for name in model if name in served), "")
            if not self._model:
                raise ModelError(
                    f"model {model[0]!r} is not what the Tinker server serves ({', '.join(map(repr, served)) or 'nothing'}), and "
                    "prompts tokenised for one model mean nothing to another; set model to the server's name, or start the "
                    f"server with --base-model {model[0]}"
                )
            if rank is None:
                self._sampler = self._server.base_sampler(self._model)
            else:
                self._policy = self._place(lambda: self._server.trainer(self._model, rank, 0))
                self._sampler = self._policy.publish()
                scratch = self._place(lambda: self._server.trainer(self._model, rank, 1))
                try:
                    findings = probe(self._server, self._policy, scratch, self._sampler, vocabulary)
                finally:
                    self._unload(scratch)
        except RemoteFailure as failure:
            raise EngineError(
                f"the Tinker server failed while the engine was being set up: {failure}; look at the server's own log",
                usable=False,
            ) from failure
        served_length = served[self._model]
        self._reduction = findings.reduction if findings else Reduction()
        self._takes_adam = findings is None or findings.takes_adam
        self.info = EngineInfo(
            name="tinker",
            device=settings.base_url or "Tinker",
            dtype="the server's",
            parameters=None,
            trainable_parameters=None if rank else 0,
            max_length=min(max_length, served_length or max_length),
            exact_sampler=findings is not None and findings.sampler_gap < EXACT_GAP,
            notes=findings.notes if findings else (),
        )

    # sampling and log-probs: requests that change nothing

    async def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[Sampled]:
        """See ``Engine.sample``. All requests are sent at once; each caller gets its answers when its own are complete."""
        self._require_usable()
        if self._stale:
            raise EngineError(
                "the weights changed since the last publish(); call publish() before sampling", usable=True
            )
        for request in requests:
            self._require_tokens(request.prompt_ids)
        tasks = []
        for r in requests:
            law = (params.max_new_tokens, params.temperature, sorted(params.stop_ids))
            ask = partial(self._sampler.sample, r.prompt_ids, *law, r.stream_key() % SEEDS)
            tasks.append(asyncio.ensure_future(self._gate.retried(ask)))
        with self._verb("sample"):
            try:
                answers = await asyncio.gather(*tasks)
            except RemoteFailure:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise
        return [_sampled(raw, params.stop_ids) for raw in answers]

    def logprobs(self, sequences: Sequence[Scored], policy: str) -> list[FloatArray]:
        self._require_usable()
        trainer = self._trained() if policy == CURRENT else self._snapshot(policy)[1]
        out: list[FloatArray] = [np.zeros(len(s.tokens_T)) for s in sequences]
        wanted = [i for i, s in enumerate(sequences) if s.sampled_T.any()]
        data = [self._wire(sequences[i].tokens_T, np.zeros(len(sequences[i].tokens_T))) for i in wanted]
        if data:
            with self._verb("logprobs"):
                scored = retried(lambda: trainer.forward(data))
            for i, lp in zip(wanted, scored, strict=True):
                on = sequences[i].sampled_T
                out[i][on] = np.concatenate([[0.0], lp])[on]
        return out

    # training: requests that must be carried out once

    def forward_backward(self, data: Sequence[Datum], loss: LossName) -> list[FloatArray]:
        """See ``Engine.forward_backward``. On a server that averages over data, once per step only."""
        policy = self._trained()
        out: list[FloatArray] = [np.full(len(d.tokens_T), np.nan) for d in data]
        weighted = [i for i, d in enumerate(data) if (d.weights_T != 0).any()]
        if not weighted:
            return out
        if self._accumulated and self._reduction.mean_over_data:
            raise EngineError(
                "this server averages the gradient over all data of a step, so a second forward_backward before optim_step "
                "would change the weight of the first; pass all data of a step at once",
                usable=True,
            )
        wire = [self._wire(data[i].tokens_T, data[i].weights_T, data[i].logprobs_T) for i in weighted]
        with self._verb("forward_backward"):
            if loss == "cross_entropy" and not self._reduction.plain_cross_entropy:
                current = retried(lambda: policy.forward(wire))  # the ratio is then 1
                on_policy = [np.where(d.weights != 0, lp, 0.0) for d, lp in zip(wire, current, strict=True)]
                wire = [replace(d, logprobs=lp) for d, lp in zip(wire, on_policy, strict=True)]
                loss = "importance_sampling"
            scored = policy.forward_backward(self._reduction.corrected(wire), loss)
        for i, lp in zip(weighted, scored, strict=True):
            on = data[i].weights_T != 0
            out[i][on] = np.concatenate([[np.nan], lp])[on]
        self._accumulated += len(weighted)
        return out

    def optim_step(self, adam: AdamParams) -> OptimResult:
        policy = self._trained()
        if adam.grad_clip is not None:
            raise EngineError(
                "SkyRL's server does not clip gradients and ignores the setting silently; set train.grad_clip=none, or use "
                "engine=torch",
                usable=True,
            )
        own = replace(adam, learning_rate=0.0)
        if not self._takes_adam and own != AdamParams(learning_rate=0.0):
            raise EngineError(
                "this server ignores a step's Adam settings and uses those that it was started with (`selfcorrect cluster` "
                "writes the defaults there); reset train.adam_beta1, train.adam_beta2, train.adam_eps and train.weight_decay "
                "to their defaults, and change them at the server if needed",
                usable=True,
            )
        self._stale = True
        if not self._accumulated:  # a server would still apply its momentum
            return OptimResult(0.0, adam.learning_rate, False)
        with self._verb("optim_step"):
            norm = policy.optim_step(adam)
        assert norm is not None, "the probes refuse a server that reports no gradient norm"
        self._accumulated = 0
        if not np.isfinite(norm):
            self._broken = f"the gradient's norm was {norm}: training has diverged; reload the last checkpoint"
            raise EngineError(self._broken, usable=False)
        return OptimResult(norm, adam.learning_rate, False)

    @contextlib.contextmanager
    def _verb(self, name: str) -> Iterator[None]:
        """Turn failures into ``EngineError``. After one, the adapter is gone or in an unknown state, and only a saved
        state can be used."""
        try:
            yield
        except RemoteFailure as failure:
            self._broken = (
                f"{name} failed on the Tinker server: {failure}. It is not known what the server has done, so nothing is "
                "sent again; reload the last checkpoint"
            )
            raise EngineError(self._broken, usable=False) from failure

    def publish(self) -> None:
        self._require_usable()
        if self._policy is not None:
            with self._verb("publish"):
                self._sampler = retried(self._policy.publish)
        self._stale = False

    # states are saved on the server's disk and loaded into new adapters, because the API loads only into fresh ones

    def reset_optimiser(self) -> None:
        self._replace_policy(self._save_state(), optimiser=False)
        if not self._stale:  # the published weights belonged to the adapter that is gone
            self.publish()

    def snapshot(self, name: str) -> None:
        path = self._save_state()
        if name in self._snapshots:
            self._unload(self._snapshots.pop(name)[1])
        self._snapshots[name] = path, self._loaded(path, optimiser=False)

    def restore(self, name: str) -> None:
        self._require_usable()
        self._replace_policy(self._snapshot(name)[0], optimiser=False)
        self._stale = True

    def save(self, path: Path) -> None:
        """See ``Engine.save``. The file names states that the server keeps on its own disk."""
        state = {
            "model": self._model,
            "rank": self._rank,
            "policy": self._save_state(),
            "snapshots": {name: kept for name, (kept, _) in self._snapshots.items()},
        }
        path.mkdir(parents=True, exist_ok=True)
        (path / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")

    def load(self, path: Path) -> None:
        """See ``Engine.load``. After a failure it first waits for the server and opens a new session."""
        try:
            state = json.loads((path / STATE_FILE).read_text())
            same = (state["model"], state["rank"]) == (self._model, self._rank)
            policy, snapshots = state["policy"], dict(state["snapshots"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"load failed: {path} is no checkpoint of engine=tinker ({type(error).__name__}: {error}); continue a run with "
                "the engine that wrote it",
                usable=self._broken is None,
            ) from error
        if not same:
            raise EngineError(
                f"load failed: the checkpoint is of model {state['model']} at rank {state['rank']}, and this engine trains "
                f"{self._model} at rank {self._rank}",
                usable=self._broken is None,
            )
        if self._broken is not None:
            what = "the Tinker server to answer again"
            with self._verb("load"):
                self._server = waited(self._connect, lambda failure: failure.passing, what, self._settings.wait_s)
        while self._snapshots:  # those of a lost session too: its heartbeat would keep their places
            self._unload(self._snapshots.popitem()[1][1])
        self._replace_policy(policy, optimiser=True)
        for name, kept in snapshots.items():
            self._snapshots[name] = kept, self._loaded(kept, optimiser=False)
        self._broken = None
        self.publish()

    def export(self, path: Path) -> None:
        """See ``Engine.export``. Writes a PEFT adapter that names the model."""
        policy = self._trained()
        path.mkdir(parents=True, exist_ok=True)
        with self._verb("export"):
            retried(lambda: policy.export(_new_name(), path))
        complete_adapter(path, self._model)
        self.chat.save(path)

    def _save_state(self) -> str:
        policy = self._trained()
        with self._verb("save"):
            return retried(lambda: policy.save(_new_name()))

    def _loaded(self, path: str, *, optimiser: bool) -> Trainer:
        with self._verb("load"):
            return self._place(lambda: self._server.trainer_from(path, optimiser=optimiser))

    def _replace_policy(self, path: str, *, optimiser: bool) -> None:
        """Load a saved state as the policy. The old adapter is unloaded first, because it may hold the server's last
        place."""
        self._unload(self._policy)
        self._policy = None
        self._policy = self._loaded(path, optimiser=optimiser)
        self._accumulated = 0

    def _unload(self, trainer: Trainer | None) -> None:
        """Free an adapter's place if possible. The server frees the places of an ended session later anyway."""
        if trainer is not None:
            with contextlib.suppress(RemoteFailure):
                self._server.unload(trainer)

    def _place(self, make: Callable[[], Trainer]) -> Trainer:
        """A new adapter. Waits while the server is full."""
        what = "a place for another adapter on the Tinker server"
        return waited(make, lambda failure: failure.full, what, self._settings.wait_s)

    def _snapshot(self, name: str) -> tuple[str, Trainer]:
        if name not in self._snapshots:
            raise EngineError(f"there is no snapshot {name!r}; take one with snapshot() first", usable=True)
        return self._snapshots[name]

    def _trained(self) -> Trainer:
        self._require_usable()
        if self._policy is None:
            raise EngineError("this engine measures the model itself and has no adapter to train", usable=True)
        return self._policy

    def _wire(self, tokens_T: np.ndarray, weights_T: FloatArray, logprobs_T: FloatArray | None = None) -> WireDatum:
        """A sequence as the API takes it. Log-probs at weight 0 become 0: the server multiplies both, and 0 times an
        overflow is not 0."""
        self._require_tokens(tokens_T)
        ids, weights = tuple(int(t) for t in tokens_T), weights_T[1:]
        logprobs = np.zeros(len(weights)) if logprobs_T is None else np.where(weights != 0, logprobs_T[1:], 0.0)
        return WireDatum(ids[:-1], ids[1:], np.asarray(weights, dtype=np.float64), logprobs)

    def _require_tokens(self, ids: Sequence[int] | np.ndarray) -> None:
        """Refuse token ids that the model lacks: a server may accept any id and read past its embeddings."""
        array = np.asarray(ids)
        if array.size and not (array.min() >= 0 and array.max() < self._vocabulary):
            raise EngineError(
                f"a token id is outside the model's vocabulary of {self._vocabulary}; nothing was sent", usable=True
            )

    def _require_usable(self) -> None:
        if self._broken is not None:
            raise EngineError(f"the engine is not usable: {self._broken}", usable=False)


def _new_name() -> str:
    """A new name for a state: the server refuses a name that it already has."""
    return f"selfcorrect-{uuid.uuid4().hex[:16]}"


def _sampled(raw: RawSample, stop_ids: frozenset[int]) -> Sampled:
    if not raw.token_ids or raw.logprobs is None or len(raw.logprobs) != len(raw.token_ids):
        raise EngineError("the Tinker server answered without tokens or without their log-probs", usable=True)
    if raw.stop == "stop" and raw.token_ids[-1] not in stop_ids:
        raise EngineError("the Tinker server ended an answer without its end token", usable=True)
    return Sampled(raw.token_ids, raw.logprobs, "end" if raw.stop == "stop" else "length")
