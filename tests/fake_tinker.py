"""A Tinker server in this process: real adapters on the tiny model, and faults, reductions and forgetfulness on request.

The adapters are torch engines, so losses, steps and log-probs are real; what is added is what servers do around them.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch

import tiny
from selfcorrect.config import TinkerEngineConfig
from selfcorrect.engines.base import CURRENT, SampleRequest, SamplingParams
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.tinker_engine import TinkerEngine
from selfcorrect.engines.tinker_engine.remote import RawSample, RemoteFailure
from selfcorrect.types import Datum

MODEL, ALPHA = "fake/tiny", 32.0


class Fake:
    """The server: what survives a restart is ``states``.

    Args:
        folder: its disk.
        places: adapters that fit at once.
        mean: average over data and over each sequence's tokens, as SkyRL's JAX backend does.
        quirk: one of the faults that the probes look for.
    """

    def __init__(self, folder: Path, *, places: int = 8, mean: bool = False, quirk: str = "") -> None:
        self.folder, self.places, self.mean, self.quirk = folder, places, mean, quirk
        self.loaded: set[FakeTrainer] = set()
        self.states: dict[str, Path] = {}
        self.log: list[str] = []
        """Every verb that reached the server, in order."""
        self.faults: list[tuple[str, int, str, RemoteFailure]] = []
        """(verb, which call of it from now on, "before" or "after" the work, failure)."""
        self.down = 0
        """Connections still to be refused."""
        self._ids = itertools.count()

    def fail(self, verb: str, when: str, failure: RemoteFailure, nth: int = 1) -> None:
        self.faults.append((verb, nth, when, failure))

    def restart(self) -> None:
        """Everything in memory is gone."""
        self.loaded.clear()

    def act(self, verb: str, work):
        """Do the work of a verb, with the fault that is due."""
        due = next((f for f in self.faults if f[0] == verb), None)
        if due is not None:
            self.faults.remove(due)
            if due[1] > 1:
                self.faults.insert(0, (due[0], due[1] - 1, *due[2:]))
                due = None
        if due is not None and due[2] == "before":
            raise due[3]
        self.log.append(verb)
        result = work()
        if due is not None:
            raise due[3]
        return result

    def session(self) -> FakeSession:
        if self.down:
            self.down -= 1
            raise RemoteFailure("connection refused", passing=True)
        return FakeSession(self)


class FakeSession:
    def __init__(self, fake: Fake) -> None:
        self._fake = fake

    def models(self):
        return {MODEL: None}

    def trainer(self, model, rank, seed):
        return self._fake.act("trainer", lambda: self._new(rank))

    def trainer_from(self, path, *, optimiser):
        def make():
            if path not in self._fake.states:
                raise RemoteFailure("Checkpoint not found")
            made = self._new(4)
            made.engine.load(self._fake.states[path])
            if not optimiser:
                made.engine.reset_optimiser()
            return made

        return self._fake.act("trainer_from", make)

    def _new(self, rank):
        if len(self._fake.loaded) >= self._fake.places:
            raise RemoteFailure(f"Maximum number of LoRA adapters ({self._fake.places}) reached", full=True)
        made = FakeTrainer(self._fake, rank)
        self._fake.loaded.add(made)
        return made

    def base_sampler(self, model):
        return FakeSampler(self._fake, tiny.engine())

    def unload(self, trainer):
        self._fake.loaded.discard(trainer)


class FakeTrainer:
    def __init__(self, fake: Fake, rank: int) -> None:
        self._fake = fake
        torch.manual_seed(0)
        self.engine = tiny.engine(lora=(rank, ALPHA))
        self._count = 0

    def _act(self, verb, work):
        if self not in self._fake.loaded:
            raise RemoteFailure("Model not loaded (likely stale request from previous server)")
        return self._fake.act(verb, work)

    def forward(self, data):
        return self._act("forward", lambda: self._forward(data))

    def _forward(self, data):
        return [lp[1:] for lp in self.engine.logprobs([_datum(d, np.ones(len(d.target_ids))) for d in data], CURRENT)]

    def forward_backward(self, data, loss):
        return self._act("forward_backward", lambda: self._forward_backward(data, loss))

    def _forward_backward(self, data, loss):
        logprobs = self._forward(data)
        made = []
        for d, lp in zip(data, logprobs, strict=True):
            weights = np.array(d.weights)
            if self._fake.quirk == "clips" and loss == "importance_sampling":
                ratio = np.exp(lp - d.logprobs)
                weights *= ~((weights > 0) & (ratio > 1.2) | (weights < 0) & (ratio < 0.8))
            if self._fake.mean:
                weights /= weights.sum() if loss == "cross_entropy" else len(d.target_ids)
            made.append(_datum(d, weights))
        if self._fake.quirk == "token mean":
            total = sum(len(d.target_ids) for d in data)
            made = [Datum(d.tokens_T, d.weights_T / total, d.logprobs_T, d.sampled_T) for d in made]
        self.engine.forward_backward(made, loss)
        self._count += len(data)
        return logprobs

    def optim_step(self, adam):
        def step():
            if self._fake.mean:
                for master in self.engine._weights._masters:
                    if master.grad is not None:
                        master.grad /= self._count
            self._count = 0
            if self._fake.quirk == "own adam":
                fixed = type(adam)(adam.learning_rate)
                norm = self.engine.optim_step(fixed).grad_norm
            else:
                norm = self.engine.optim_step(adam).grad_norm
            if self._fake.quirk == "shared adapter":
                for other in self._fake.loaded:
                    self.engine.save(self._fake.folder / "shared")
                    other.engine.load(self._fake.folder / "shared")
            return None if self._fake.quirk == "no norm" else norm

        return self._act("optim_step", step)

    def save(self, name):
        def write():
            path = self._fake.folder / name
            self.engine.save(path)
            self._fake.states[f"tinker://fake/weights/{name}"] = path
            return f"tinker://fake/weights/{name}"

        return self._act("save", write)

    def publish(self):
        def copy():
            frozen = tiny.engine(lora=(4, ALPHA))
            place = self._fake.folder / f"published-{next(self._fake._ids)}"
            self.engine.save(place)
            frozen.load(place)
            return FakeSampler(self._fake, frozen, self)

        return self._act("publish", copy)

    def export(self, name, path):
        self._act("export", lambda: self.engine.export(path))


class FakeSampler:
    def __init__(self, fake: Fake, engine, of: FakeTrainer | None = None) -> None:
        self._fake, self._engine, self._of = fake, engine, of

    async def sample(self, prompt_ids, max_tokens, temperature, stop_ids, seed):
        if self._of is not None and self._of not in self._fake.loaded:  # SkyRL samples from loaded adapters only
            raise RemoteFailure("Model not loaded")
        (answer,) = await self._engine.sample(
            [SampleRequest(tuple(prompt_ids), (seed,))], SamplingParams(max_tokens, temperature, frozenset(stop_ids))
        )
        tokens, logprobs = answer.token_ids, answer.logprobs
        if self._fake.quirk == "no logprobs":
            logprobs = None
        if self._fake.quirk == "other temperature":
            logprobs = tuple(3 * lp for lp in logprobs)
        if self._fake.quirk == "no end token" and answer.stop == "end":
            tokens, logprobs = tokens[:-1], logprobs[:-1]
        return self._fake.act(
            "sample", lambda: RawSample(tokens, logprobs, "stop" if answer.stop == "end" else "length")
        )


def _datum(d, weights):
    tokens = np.array([*d.input_ids, d.target_ids[-1]])
    shifted = [np.concatenate([[0.0], a]) for a in (weights, d.logprobs)]
    return Datum(tokens, *shifted, np.arange(len(tokens)) > 0)


def engine(fake: Fake, rank: int | None = 4, **settings: float) -> TinkerEngine:
    chat = ChatFormat(tiny.tokenizer())
    chat.end_ids |= frozenset(range(5, 60))  # the random model seldom writes its own
    made = TinkerEngineConfig(base_url="http://fake", **settings)
    return TinkerEngine(fake.session, chat, (MODEL,), rank, made, 512, len(tiny.tokenizer()))
