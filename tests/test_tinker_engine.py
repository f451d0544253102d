"""The Tinker engine against a server in this process: probes, corrections, retries, unclear failures, replay."""

import asyncio
import logging
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest

import fake_tinker
import tiny
import toy
from fake_tinker import Fake
from selfcorrect.config import TinkerEngineConfig, load_config
from selfcorrect.engines.base import CURRENT, AdamParams, SampleRequest, SamplingParams
from selfcorrect.engines.models import resolve_model
from selfcorrect.engines.tinker_engine import client, patience
from selfcorrect.engines.tinker_engine import engine as module
from selfcorrect.engines.tinker_engine.remote import RemoteFailure
from selfcorrect.errors import ConfigError, EngineError, ModelError
from selfcorrect.experiment import RELOADS, run_experiment
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.types import Datum

LOST = RemoteFailure("no answer in time", passing=True)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Waits are counted, not waited."""
    waits = []
    clock = [0.0]

    def sleep(seconds):
        waits.append(seconds)
        clock[0] += seconds

    async def asleep(seconds):
        sleep(seconds)

    monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]))
    monkeypatch.setattr(patience.asyncio, "sleep", asleep)
    return waits


def data(n=4, seed=0):
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        tokens = rng.integers(5, 200, size=8 + 2 * i)
        on = np.arange(len(tokens)) >= 4
        out.append(Datum(tokens, np.where(on, 0.1 * (i - 1.3), 0.0), np.where(on, -4.0, 0.0), on))
    return out


def prompts(n=3):
    return [SampleRequest((10, 11, 12 + i), ("t", i)) for i in range(n)]


def sample(engine, n=3):
    return asyncio.run(engine.sample(prompts(n), SamplingParams(6, 1.0, engine.chat.end_ids)))


def current(engine, sequences):
    return np.concatenate(
        [lp[s.sampled_T] for lp, s in zip(engine.logprobs(sequences, CURRENT), sequences, strict=True)]
    )


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("loss", ["importance_sampling", "cross_entropy"])
def test_whatever_the_server_averages_a_step_is_that_of_the_sum(tmp_path, mean, loss):
    plain = AdamParams(100.0, eps=1e4)
    remote, local = fake_tinker.engine(Fake(tmp_path, mean=mean)), tiny.engine(lora=(4, fake_tinker.ALPHA))
    before = current(remote, data())
    np.testing.assert_allclose(before, current(local, data()), atol=1e-6)
    norms = []
    for engine in (remote, local):
        engine.forward_backward(data(), loss)
        norms.append(engine.optim_step(plain).grad_norm)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    moved = current(remote, data()) - before
    assert np.abs(moved).max() > 1e-3
    np.testing.assert_allclose(moved, current(local, data()) - before, rtol=1e-2, atol=1e-5)


def test_what_was_found_out_is_in_the_records(tmp_path):
    plain, averaging = (fake_tinker.engine(Fake(tmp_path / str(m), mean=m)).info for m in (False, True))
    assert len(plain.notes) == 1 and "differ by" in plain.notes[0]
    for note, found in zip(
        averaging.notes, ("averages over data", "averages over a sequence", "normalises"), strict=False
    ):
        assert found in note
    assert plain.exact_sampler


@pytest.mark.parametrize(
    ("quirk", "reason"),
    [
        ("clips", "clips or drops the importance ratio"),
        ("token mean", "reduces losses in an unknown way|no factor per sequence"),
        ("no norm", "reports no gradient norm"),
        ("shared adapter", "does not keep a reference frozen"),
        ("no logprobs", "does not return the log-probs"),
        ("other temperature", "differ from the trainer's"),
        ("no end token", "leaves the end token out"),
    ],
)
def test_a_server_that_cannot_be_corrected_is_refused_with_the_reason(tmp_path, quirk, reason):
    fake = Fake(tmp_path, quirk=quirk)
    with pytest.raises(EngineError, match=reason) as caught:
        fake_tinker.engine(fake)
    assert not caught.value.usable and "engine=torch" in str(caught.value)


def test_a_server_with_an_adam_of_its_own_takes_no_other_settings(tmp_path):
    engine = fake_tinker.engine(Fake(tmp_path, quirk="own adam"))
    assert any("started with" in note for note in engine.info.notes)
    engine.forward_backward(data(), "cross_entropy")
    with pytest.raises(EngineError, match="ignores a step's Adam settings") as caught:
        engine.optim_step(AdamParams(0.01, eps=1e-6))
    assert caught.value.usable
    assert engine.optim_step(AdamParams(0.01)).grad_norm > 0


def test_the_probes_leave_two_places_and_the_policy_as_they_were(tmp_path):
    fake = Fake(tmp_path, places=3)
    engine = fake_tinker.engine(fake)
    assert len(fake.loaded) == 1
    np.testing.assert_array_equal(current(engine, data()), current(tiny.engine(lora=(4, 32.0)), data()))


def test_a_second_pass_on_an_averaging_server_is_refused_and_harms_nothing(tmp_path):
    engine = fake_tinker.engine(Fake(tmp_path, mean=True))
    engine.forward_backward(data(), "cross_entropy")
    with pytest.raises(EngineError, match="second forward_backward") as caught:
        engine.forward_backward(data(), "cross_entropy")
    assert caught.value.usable
    engine.optim_step(AdamParams(0.01))
    engine.forward_backward(data(), "cross_entropy")


@pytest.mark.parametrize("verb", ["sample", "forward", "publish", "save"])
def test_what_changes_nothing_is_sent_again_with_growing_waits(tmp_path, no_waiting, verb):
    fake = Fake(tmp_path)
    engine = fake_tinker.engine(fake)
    expected = sample(engine), current(engine, data())
    for _ in range(3):
        fake.fail(verb, "before", LOST)
    do = {
        "sample": lambda: sample(engine, 1),
        "forward": lambda: current(engine, data()),
        "publish": engine.publish,
        "save": lambda: engine.snapshot("s"),
    }[verb]
    do()
    assert no_waiting == [1.0, 2.0, 4.0]
    assert sample(engine) == expected[0]
    np.testing.assert_array_equal(current(engine, data()), expected[1])


def test_retries_end_and_a_refusal_is_not_retried(tmp_path, no_waiting):
    fake = Fake(tmp_path)
    engine = fake_tinker.engine(fake)
    for _ in range(patience.RETRIES + 1):
        fake.fail("forward", "before", LOST)
    with pytest.raises(EngineError, match="reload the last checkpoint") as caught:
        current(engine, data())
    assert not caught.value.usable and len(no_waiting) == patience.RETRIES
    again = fake_tinker.engine(fake)
    fake.fail("sample", "before", RemoteFailure("invalid prompt"))
    no_waiting.clear()
    with pytest.raises(EngineError, match="invalid prompt"):
        sample(again)
    assert no_waiting == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("verb", ["forward_backward", "optim_step"])
def test_an_unclear_failure_of_training_is_never_sent_again(tmp_path, verb, when):
    fake = Fake(tmp_path)
    engine = fake_tinker.engine(fake)
    engine.save(tmp_path / "checkpoint")
    start, started = current(engine, data()), fake.log.count(verb)
    fake.fail(verb, when, LOST)
    with pytest.raises(EngineError, match="reload the last checkpoint") as caught:
        engine.forward_backward(data(), "cross_entropy")
        engine.optim_step(AdamParams(0.05))
    assert not caught.value.usable
    assert fake.log.count(verb) == started + (when == "after")
    for do in (lambda: sample(engine), lambda: current(engine, data()), engine.publish, lambda: engine.snapshot("x")):
        with pytest.raises(EngineError, match="not usable") as refused:
            do()
        assert not refused.value.usable
    engine.load(tmp_path / "checkpoint")
    np.testing.assert_array_equal(current(engine, data()), start)
    assert sample(engine)


def test_loading_after_a_loss_waits_for_the_server_and_says_so(tmp_path, no_waiting, caplog):
    fake = Fake(tmp_path)
    engine = fake_tinker.engine(fake, wait_s=100)
    engine.snapshot("base")
    engine.save(tmp_path / "checkpoint")
    fake.restart()
    with pytest.raises(EngineError, match="not loaded"):
        engine.forward_backward(data(), "cross_entropy")
    fake.down = 4
    with caplog.at_level(logging.WARNING):
        engine.load(tmp_path / "checkpoint")
    assert no_waiting[-4:] == [1.0, 2.0, 4.0, 8.0]
    assert "waiting for the Tinker server to answer again, up to 100 s (engine.wait_s)" in caplog.text
    assert engine.logprobs(data(), "base") and len(fake.loaded) == 2


def test_a_server_that_does_not_come_back_is_an_error(tmp_path, no_waiting):
    fake = Fake(tmp_path)
    engine = fake_tinker.engine(fake, wait_s=50)
    engine.save(tmp_path / "checkpoint")
    fake.restart()
    with pytest.raises(EngineError):
        sample(engine) and engine.publish()
    fake.down = 10**6
    with pytest.raises(EngineError, match="connection refused") as caught:
        engine.load(tmp_path / "checkpoint")
    assert not caught.value.usable and sum(no_waiting) <= 50


def test_a_full_server_is_waited_for_and_then_named(tmp_path, no_waiting, caplog):
    fake = Fake(tmp_path, places=3)
    others = [fake.session()._new(4) for _ in range(2)]
    free = [30]

    def leave():
        if sum(no_waiting) >= free[0] and others:
            fake.loaded.discard(others.pop())

    session = fake.session

    def watched():
        made = session()
        trainer = made.trainer
        made.trainer = lambda *a: leave() or trainer(*a)
        return made

    fake.session = watched
    with pytest.raises(EngineError, match=r"Maximum number of LoRA adapters \(3\)") as caught:
        fake_tinker.engine(fake, wait_s=10)
    assert not caught.value.usable and sum(no_waiting) <= 10
    assert "waiting for a place for another adapter" in caplog.text
    fake.loaded = set(others)
    free[0] = 0
    fake.places = 4
    assert sample(fake_tinker.engine(fake, wait_s=100))


def test_no_server_and_another_model_are_refused_at_once(tmp_path, no_waiting):
    fake = Fake(tmp_path)
    fake.down = 1
    with pytest.raises(EngineError, match="No other engine is used instead") as caught:
        fake_tinker.engine(fake)
    assert not caught.value.usable and no_waiting == []
    settings = TinkerEngineConfig(base_url="http://fake")
    with pytest.raises(ModelError, match=r"'org/other' is not what the Tinker server serves .*'fake/tiny'"):
        module.TinkerEngine(fake.session, None, ("org/other", "/dir"), 4, settings, 512, 261)
    assert fake.loaded == set()


def test_nothing_listens_at_the_address():
    pytest.importorskip("tinker")
    with pytest.raises(RemoteFailure, match=r"no answer from http://127\.0\.0\.1:9"):
        client.connect("http://127.0.0.1:9", 5)


@pytest.mark.parametrize(
    ("version", "hosted", "reason"),
    [
        (None, True, r"not installed; install it with `pip install 'selfcorrect\[tinker\]'`"),
        (None, False, r"not installed; .*'selfcorrect\[skyrl\]'"),
        ("0.24.9", False, r"too old .* 0\.25 .*'selfcorrect\[skyrl\]'"),
        ("0.38.0", False, r"0\.38\.0 does not understand SkyRL's server.*'selfcorrect\[skyrl\]'"),
        ("0.38.0", True, None),
        ("0.25.3", False, None),
    ],
)
def test_a_missing_or_wrong_client_names_the_extra(monkeypatch, version, hosted, reason):
    def found(name):
        assert name == "tinker"
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(client.metadata, "version", found)
    if reason is None:
        client.require_client(hosted)
        return
    with pytest.raises(ConfigError, match=reason):
        client.require_client(hosted)


def test_tinker_itself_needs_a_key(monkeypatch):
    monkeypatch.setattr(client.metadata, "version", lambda _name: "0.25.0")
    monkeypatch.delenv(client.KEY_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=r"TINKER_API_KEY, or name your own server with engine\.base_url"):
        client.connect(None, 5)


def test_a_token_outside_the_vocabulary_is_not_sent(tmp_path):
    fake = Fake(tmp_path)
    engine = fake_tinker.engine(fake)
    sent = len(fake.log)
    bad = Datum(np.array([1, 10**6]), np.array([0.0, 1.0]), np.zeros(2), np.array([False, True]))
    with pytest.raises(EngineError, match="vocabulary") as caught:
        engine.forward_backward([*data(), bad], "cross_entropy")
    assert caught.value.usable and len(fake.log) == sent


def test_measuring_only_samples_the_model_itself(tmp_path):
    fake = Fake(tmp_path)
    engine = fake_tinker.engine(fake, rank=None)
    assert [s.token_ids for s in sample(engine)] and fake.loaded == set()
    with pytest.raises(EngineError, match="no adapter"):
        engine.forward_backward(data(), "cross_entropy")


def test_a_checkpoint_of_another_engine_or_model_is_refused(tmp_path):
    engine = fake_tinker.engine(Fake(tmp_path))
    tiny.engine().save(tmp_path / "torch")
    with pytest.raises(EngineError, match="no checkpoint of engine=tinker"):
        engine.load(tmp_path / "torch")
    engine.save(tmp_path / "own")
    file = tmp_path / "own" / module.STATE_FILE
    file.write_text(file.read_text().replace('"rank": 4', '"rank": 8'))
    with pytest.raises(EngineError, match="rank 8"):
        engine.load(tmp_path / "own")
    assert sample(engine)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["model.lora_rank=0"], "LoRA adapters only"),
        (["model.lora_alpha=16"], "lora_alpha=16 would be ignored"),
        (["train.grad_clip=1"], "grad_clip"),
        (["engine.device=cpu"], r"engine\.device = 'cpu' would be ignored by engine=tinker"),
        (["model.dtype=bfloat16"], r"model\.dtype = 'bfloat16' would be ignored with engine=tinker"),
        (["engine.name=torch", "engine.base_url=http://x"], r"engine\.base_url = .* would be ignored by engine=torch"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        load_config(None, ["engine=tinker", "model.lora_rank=4", *settings])


# whole runs

SETTINGS = [
    *(s for s in toy.SMALL if not s.startswith(("engine.", "model.dtype", "model.lora_rank"))),
    "engine=tinker",
    "engine.base_url=http://fake",
    "model.lora_rank=4",
    "model.lora_alpha=32",
    "eval.controls=false",
]


def whole(tmp_path, fake, name, *overrides, watcher=None, lines=None):
    config = load_config(None, [*SETTINGS, f"run_dir={tmp_path / name}", *overrides])
    run = RunDirectory.create(config)
    job = SimpleNamespace(config=config, task=toy.Toy(), resolved=resolve_model("tiny"), chat=None, longest=99)
    lines = [] if lines is None else lines
    outcome = run_experiment(job, run, fake_tinker.engine(fake), watcher or toy.Watcher(), lines.append)
    return outcome, lines


def adapter(run):
    from safetensors.numpy import load_file

    return load_file(run.path / "model" / "adapter_model.safetensors")


def _known_version(patch):
    """Runs record the client's version; with a fake server there need be none."""
    version = metadata.version
    patch.setattr(metadata, "version", lambda name: "0.25.0" if name == "tinker" else version(name))


@pytest.fixture(autouse=True)
def client_version(monkeypatch):
    _known_version(monkeypatch)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        _known_version(patch)
        folder = tmp_path_factory.mktemp("straight")
        return whole(folder, Fake(folder / "disk"), "run")[0]


@pytest.mark.parametrize("verb", ["forward_backward", "optim_step", "sample", "save", "publish", "export"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_that_loses_its_server_replays_and_counts_nothing_twice(tmp_path, straight, verb, when):
    fake = Fake(tmp_path / "b")

    def crash(record):
        if record.step == 3 and not crashed:  # the latest checkpoint is that of step 2
            crashed.append(record.step)
            fake.fail(verb, when, RemoteFailure("the server is gone"), nth=1)

    crashed = []
    outcome, lines = whole(tmp_path, fake, "crashed", watcher=toy.Watcher(crash))
    assert crashed and any("Going on from step" in line for line in lines)
    assert toy.step_records(outcome.run) == toy.step_records(straight.run)
    resumed, expected = adapter(outcome.run), adapter(straight.run)
    assert resumed.keys() == expected.keys() and all(np.array_equal(resumed[n], expected[n]) for n in resumed)
    assert outcome.run.episodes_file.read_text() == straight.run.episodes_file.read_text()
    assert {r.name: r.summary for r in outcome.run.records() if r.kind == "eval"} == {
        r.name: r.summary for r in straight.run.records() if r.kind == "eval"
    }
    resumed = [r.resumed_from_step for r in outcome.run.records() if r.kind == "start"]
    assert len(resumed) == 2 and resumed[0] is None


def test_a_server_restarted_in_the_middle_of_a_run_is_waited_for(tmp_path, straight):
    fake = Fake(tmp_path / "b")

    def kill(record):
        if record.step == 3 and not killed:
            killed.append(1)
            fake.restart()
            fake.down = 3

    killed = []
    outcome, _ = whole(tmp_path, fake, "killed", watcher=toy.Watcher(kill))
    assert toy.step_records(outcome.run) == toy.step_records(straight.run)
    assert all(np.array_equal(a, adapter(straight.run)[n]) for n, a in adapter(outcome.run).items())


def test_reloads_from_one_checkpoint_are_bounded(tmp_path):
    fake, lines = Fake(tmp_path / "a"), []

    def always(record):
        if record.step >= 3:
            fake.fail("forward_backward", "after", RemoteFailure("the server is gone"))

    with pytest.raises(EngineError, match="the server is gone"):
        whole(tmp_path, fake, "run", watcher=toy.Watcher(always), lines=lines)
    assert RunDirectory.open(tmp_path / "run").latest_checkpoint().name == "step-0000002"
    tries = [line for line in lines if "Going on from step 2" in line]
    assert [f"try {n} of {RELOADS}" in line for n, line in enumerate(tries, 1)] == [True] * RELOADS


def test_a_usable_failure_is_not_replayed(tmp_path):
    fake = Fake(tmp_path / "a", mean=True)
    with pytest.raises(EngineError, match="Adam"):
        fake.quirk = "own adam"
        whole(tmp_path, fake, "run", "train.adam_eps=1e-5")
    assert [r.kind for r in RunDirectory.open(tmp_path / "run").records()].count("start") == 1
