"""Whole runs of the shipped loop on a random model of a few thousand weights."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
import toy
from selfcorrect.algorithm.stages import plan
from selfcorrect.algorithm.variants import adapted_scale
from selfcorrect.config import load_config
from selfcorrect.engines.base import AdamParams, SampleRequest, SamplingParams
from selfcorrect.errors import ConfigError, DataError, EngineError, Interrupted, RunError
from selfcorrect.experiment import export
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.training.context import offline_of_step, problems_of_step
from selfcorrect.training.loop import stop_on_signal, train
from selfcorrect.types import Datum, Grade, Verdict

LORA = "model.lora_rank=2"


def weights(run):
    """Every tensor of the latest checkpoint, snapshots too."""
    return {
        f"{file.stem}/{name}": tensor
        for file in run.latest_checkpoint().glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def assert_same_run(a, b):
    assert toy.step_records(a) == toy.step_records(b)
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert logged(a) == logged(b)


def logged(run):
    """The episodes that were logged; none in a run that only imitates."""
    return run.episodes_file.read_text() if run.episodes_file.exists() else ""


def interrupt(run_dir, step, *overrides):
    watcher = toy.Watcher()
    with pytest.raises(Interrupted, match="--resume"):
        toy.run(run_dir, *overrides, watcher=watcher, stop=lambda: len(watcher.steps) >= step)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Uninterrupted runs by their overrides."""
    made = {}

    def get(*overrides):
        if overrides not in made:
            made[overrides] = toy.run(tmp_path_factory.mktemp("straight") / "run", *overrides)
        return made[overrides]

    return get


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(tmp_path, straight, step):
    interrupt(tmp_path / "run", step)
    resumed, _, progress = toy.resume(tmp_path / "run")
    whole, _, expected = straight()
    assert_same_run(resumed, whole)
    assert (progress.best_step, progress.best_reward) == (expected.best_step, expected.best_reward)
    assert progress.sampled_tokens == expected.sampled_tokens


def test_in_bf16_the_kl_of_an_unmoved_policy_is_exactly_0(tmp_path):
    # the sampler's log-probs are off by up to 0.25 nats a token there; the KL compares two passes of the trainer
    run, _, _ = toy.run(tmp_path / "run", "model.dtype=bfloat16")
    first = toy.step_records(run)[0]
    assert first.sampler_mismatch > 1e-3
    assert first.kl == [0.0, 0.0]


KINDS = [
    (LORA,),
    ("method=multi_turn",),
    ("method=single_turn", "train.warmup_steps=4"),
    ("method=star",),
    ("method=star", "method.dataset=D+", LORA),
    ("method=pair_sft", "method.train_attempt1=true"),
    ("method.offline_share=0.4",),
    ("method.stage2=star", "train.steps=6", "train.problems_per_step=16", "train.learning_rate=1e-3"),
    ("method.beta2_target=0.01",),
    ("method.interleave=1", "train.steps=4"),
    ("play.attempts=3", "method.stage1=stepwise"),
    ("method.branches=2", "train.samples_per_problem=3"),
    ("method.branches=2", "train.samples_per_problem=3", "method.offline_share=0.5"),
]
"""Every way in which a run gets its data."""


@pytest.mark.parametrize("overrides", KINDS)
def test_every_kind_of_run_resumes_bit_for_bit(tmp_path, straight, overrides):
    interrupt(tmp_path / "run", 3, *overrides)
    resumed, _, _ = toy.resume(tmp_path / "run")
    assert_same_run(resumed, straight(*overrides)[0])


def test_the_same_seed_is_the_same_run_and_another_seed_is_not(tmp_path, straight):
    again, _, _ = toy.run(tmp_path / "again")
    assert_same_run(again, straight()[0])
    other, _, _ = toy.run(tmp_path / "other", "seed=1")
    assert toy.step_records(other) != toy.step_records(again)


def test_records_written_after_the_checkpoint_are_cut_back(tmp_path, straight):
    def crash(record):
        if record.step == 3:
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError):
        toy.run(tmp_path / "run", watcher=toy.Watcher(crash))
    run = RunDirectory.open(tmp_path / "run")
    assert [r.step for r in run.records() if r.kind == "step"] == [1, 2, 3]  # 3 is after the checkpoint of step 2
    with run.metrics_file.open("a") as file:
        file.write('{"kind": "st')  # and a line cut by the crash
    resumed, _, _ = toy.resume(tmp_path / "run")
    assert [r.step for r in resumed.records() if r.kind == "step"] == [1, 2, 3, 4, 5]
    assert_same_run(resumed, straight()[0])
    steps = [json.loads(line)["step"] for line in resumed.episodes_file.read_text().splitlines()]
    assert steps == sorted(steps) and len(steps) == 5 * 2 * 2  # two problems of two samples are logged per step


def test_a_checkpoint_survives_a_power_failure_together_with_its_records(tmp_path, monkeypatch):
    synced = []

    def note(descriptor):
        found = os.fstat(descriptor)
        synced.append((found.st_ino, found.st_size))

    monkeypatch.setattr(os, "fsync", note)
    run, _, progress = toy.run(tmp_path / "run", "method=star")
    directory = run.latest_checkpoint().stat().st_ino
    # synced just before it is renamed; an earlier checkpoint that is gone may have had the same number
    complete = max(i for i, (inode, _) in enumerate(synced) if inode == directory)
    sizes = {run.metrics_file: progress.metrics_bytes}
    sizes |= {file: file.stat().st_size for file in run.path.glob("collected/*.jsonl")}
    assert len(sizes) == 4
    assert {(file.stat().st_ino, size) for file, size in sizes.items()} <= set(synced[:complete])


def test_a_line_in_the_middle_that_is_no_record_is_an_error(tmp_path, straight):
    run = straight()[0]
    copy = RunDirectory(tmp_path, run.config)
    lines = run.metrics_file.read_text().splitlines()
    copy.metrics_file.write_text("\n".join([lines[0], "{}", *lines[1:]]))
    with pytest.raises(RunError, match="line 2"):
        copy.records()


def cli(arguments, tmp_path, **environment):
    script = Path(__file__).with_name("toy_cli.py")
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | environment,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("model"))


def arguments(model, tmp_path):
    return ["train", *toy.SMALL, f"model={model}", f"run_dir={tmp_path / 'run'}", "eval.controls=false"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_exits_130_with_the_way_to_go_on(tmp_path, straight, model, number):
    code, out, err = cli(arguments(model, tmp_path), tmp_path, SIGNAL_AT=f"2:{int(number)}")
    assert code == 130
    assert "Traceback" not in err and out == ""
    assert "stopping after this step; a second signal stops at once" in err
    last = err.strip().splitlines()[-1]
    assert last == (
        f"selfcorrect: stopped after step 3 as asked; continue with `selfcorrect train --resume {tmp_path / 'run'}`"
    )
    run = RunDirectory.open(tmp_path / "run")
    assert run.latest_checkpoint().name == "step-0000003"
    assert [r.reason for r in run.records() if r.kind == "end"] == ["interrupted"]
    resumed, _, _ = toy.resume(tmp_path / "run")
    assert_same_run(resumed, straight()[0])


def test_killed_in_the_middle_of_a_checkpoint_resumes_from_the_last_good_one(tmp_path, straight, model):
    # saves: step 0, step 2 (end of Stage I), step 4 (half-written)
    code, _, _ = cli(arguments(model, tmp_path), tmp_path, KILL_IN_SAVE="3")
    assert code == -signal.SIGKILL
    run = RunDirectory.open(tmp_path / "run")
    assert len(list((run.path / "checkpoints").glob(".step-*.part"))) == 1
    assert run.latest_checkpoint().name == "step-0000002"
    code, out, err = cli(["train", "--resume", str(run.path), "--json"], tmp_path)
    assert code == 0, err
    assert list((run.path / "checkpoints").glob(".*")) == []
    assert_same_run(run, straight()[0])
    printed = json.loads(out)
    assert {"base", "final"} == printed["evaluations"].keys()
    assert [r.resumed_from_step for r in run.records() if r.kind == "start"] == [None, 2]
    assert [r.reason for r in run.records() if r.kind == "end"] == ["finished"]
    assert [r.name for r in run.records() if r.kind == "eval"] == ["base", "final"]


def test_a_lora_checkpoint_holds_the_adapters_alone(straight):
    run, engine, _ = straight(LORA)
    assert all("lora_" in name for name in weights(run))
    size = sum(file.stat().st_size for file in run.latest_checkpoint().iterdir())
    # float32: the adapters, their base, and Adam's two moments; headers and names come on top
    assert 16 * engine.info.trainable_parameters < size < 16 * engine.info.trainable_parameters + 60_000
    assert engine.info.trainable_parameters < engine.info.parameters / 2


def test_the_best_checkpoint_is_that_of_the_last_attempts_reward_over_the_window_in_the_final_stage(tmp_path):
    settings = ["train.steps=8", "train.checkpoint_every=1", "train.best_window=2", "method.stage1_share=0.25"]
    run, _engine, progress = toy.run(tmp_path / "run", *settings)
    steps = toy.step_records(run)
    final = [s for s in steps if s.stage == "stage2"]
    assert [s.step for s in final] == [3, 4, 5, 6, 7, 8]
    found = {r.step: r for r in run.records() if r.kind == "checkpoint"}
    assert all(found[k].window_reward is None and not found[k].best for k in (0, 1, 2))
    best = None
    assert found[3].window_reward is None and not found[3].best  # one step is no window of two
    for i, s in enumerate(final[1:], 1):
        window = float(np.mean([f.reward[-1] for f in final[i - 1 : i + 1]]))
        assert found[s.step].window_reward == pytest.approx(window)
        assert found[s.step].best == (best is None or window > best)
        best = window if best is None else max(best, window)
    assert progress.best_reward == pytest.approx(best)
    assert found[progress.best_step].window_reward == pytest.approx(best)


class Outage(toy.Toy):
    """Its verifier fails on all answers of the third step."""

    def __init__(self):
        super().__init__()
        self._graded = 0

    def grade(self, problem, text, *, truncated):
        self._graded += 1
        if 32 < self._graded <= 48:
            return Grade(Verdict.ERROR, None, "an outage")
        return super().grade(problem, text, truncated=truncated)


def test_a_step_that_the_verifier_judged_nothing_of_is_no_reward_of_0(tmp_path):
    settings = ["method=multi_turn", "train.steps=4", "train.checkpoint_every=1", "train.best_window=2"]
    run, _, _ = toy.run(tmp_path / "run", *settings, task=Outage())
    steps = toy.step_records(run)
    assert [s.errors for s in steps] == [0, 0, 16, 0]
    assert steps[2].reward == [None, None] and steps[2].fixed is None and steps[2].broken is None
    windows = {r.step: r.window_reward for r in run.records() if r.kind == "checkpoint"}
    assert windows[3] == steps[1].reward[-1] and windows[4] == steps[3].reward[-1]


class Early(toy.Toy):
    """Right in every answer to begin with, wrong in every later one."""

    def __init__(self, answers):
        super().__init__()
        self._left = answers

    def grade(self, problem, text, *, truncated):
        self._left -= 1
        return Grade(Verdict.CORRECT if self._left >= 0 else Verdict.WRONG, text)


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    per_step = 4 * 2 * 2
    settings = ["train.steps=8", "train.checkpoint_every=1", "train.best_window=1", "train.keep_checkpoints=2"]
    run, engine, progress = toy.run(tmp_path / "run", *settings, task=Early(4 * per_step))  # Stage I takes 3 steps
    assert progress.best_step == 4
    names = sorted(p.name for p in (run.path / "checkpoints").iterdir())
    assert names == ["step-0000004", "step-0000007", "step-0000008"]
    engine.load(run.checkpoint(4))


def greedy(engine, prompts):
    requests = [SampleRequest(p, (i,)) for i, p in enumerate(prompts)]
    return asyncio.run(engine.sample(requests, SamplingParams(12, 0.0, engine.chat.end_ids)))


def generated(model, prompts):
    out = []
    for prompt in prompts:
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
        out.append(tuple(ids.tolist()))
    return out


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # plain peft 0.21's
@pytest.mark.parametrize("overrides", [(), (LORA,)])
def test_an_export_loads_without_us_and_answers_with_the_same_tokens(tmp_path, straight, overrides):
    _run, engine, _progress = straight(*overrides)
    export(engine, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    if overrides:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(tiny.random_model(), tmp_path / "model")
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    prompts = [
        tuple(
            tokenizer.apply_chat_template([{"role": "user", "content": f"test {i}"}], add_generation_prompt=True)[
                "input_ids"
            ]
        )
        for i in range(4)
    ]
    assert prompts == [engine.chat.prompt_ids([{"role": "user", "content": f"test {i}"}]) for i in range(4)]
    ours = [s.token_ids for s in greedy(engine, prompts)]
    assert generated(loaded, prompts) == ours
    untrained = generated(tiny.random_model(), prompts)
    assert untrained != ours


def test_a_diverged_run_stops_with_words_instead_of_recording_nonsense(tmp_path):
    with pytest.raises(EngineError, match=r"diverged.*train\.learning_rate"):
        toy.run(tmp_path / "run", "train.learning_rate=1e30")
    run = RunDirectory.open(tmp_path / "run")
    assert [r.step for r in run.records() if r.kind == "step"] == [1]  # readable: no record holds a nan
    assert run.latest_checkpoint() == run.checkpoint(0)


def test_a_gradient_that_is_not_finite_changes_no_weight():
    engine = tiny.engine()
    before = {n: p.clone() for n, p in engine._model.named_parameters()}
    on = np.arange(6) > 0
    engine.forward_backward([Datum(np.arange(6) + 9, np.where(on, np.inf, 0.0), np.zeros(6), on)], "cross_entropy")
    with pytest.raises(EngineError, match="not finite") as caught:
        engine.optim_step(AdamParams(0.1))
    assert caught.value.usable
    assert all(p.equal(before[n]) for n, p in engine._model.named_parameters())
    assert engine.gradients() == {}


def test_the_optimiser_starts_afresh_in_stage_2(straight):
    _, engine, _ = straight()
    counts = {int(state["step"]) for state in engine._weights._adam.state.values()}
    assert counts == {3}  # five steps, two of them in Stage I
    _, engine, _ = straight("method=multi_turn")
    assert {int(state["step"]) for state in engine._weights._adam.state.values()} == {5}


@pytest.mark.parametrize("overrides", [(), (LORA,), ("method=single_turn",)])
def test_kl_is_0_at_the_first_step_and_not_later(straight, overrides):
    steps = toy.step_records(straight(*overrides)[0])
    assert max(map(abs, steps[0].kl)) < 1e-4
    assert max(map(abs, steps[-1].kl)) > 1e-2


def test_the_reference_of_stage_2_is_the_base_not_the_stage_1_checkpoint(straight):
    run, _, _ = straight()
    frozen = load_file(run.latest_checkpoint() / "snapshot-base.safetensors")
    base = dict(tiny.random_model().named_parameters())
    assert all(tensor.equal(base[name]) for name, tensor in frozen.items())
    steps = toy.step_records(run)
    assert min(steps[2].kl) > 0.1  # the first step of Stage II is already away from the reference


def test_training_samples_at_temperature_1_with_the_cap_and_the_end_tokens(tmp_path):
    run = RunDirectory.create(toy.config(tmp_path / "run", "eval.temperature=0.3"))
    engine = toy.engine(run.config)
    seen, keys = set(), []
    sample = engine.sample

    async def spy(requests, params):
        seen.add((params.temperature, params.max_new_tokens, params.stop_ids))
        keys.extend(r.key for r in requests)
        return await sample(requests, params)

    engine.sample = spy
    train(run, engine, toy.Toy(), toy.Watcher())
    assert seen == {(1.0, 4, engine.chat.end_ids)}
    assert len(set(keys)) == len(keys) == 5 * 4 * 2 * 2  # no two answers of a run share a random stream


def test_the_sampler_has_no_cache_of_older_weights(straight):
    """Trainer and sampler agree at every step: an answer sampled from a stale cache would show here."""
    for overrides in ((), (LORA,), ("play.attempts=3",)):
        assert max(r.sampler_mismatch for r in toy.step_records(straight(*overrides)[0])) < 1e-3


def test_signals_ask_first_and_stop_at_once_the_second_time():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signal() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_stages_share_the_steps_and_each_gets_one():
    for steps, share, expected in ((10, 0.4, (4, 6)), (2, 0.99, (1, 1)), (10, 0.99, (9, 1)), (10, 0.01, (1, 9))):
        stages = plan(load_config(None, [f"train.steps={steps}", f"method.stage1_share={share}"]))
        assert tuple(s.steps for s in stages) == expected


def test_every_method_samples_the_same_number_of_responses_per_step(straight):
    made = {m: straight(f"method={m}") for m in ("score", "multi_turn", "single_turn", "star", "pair_sft")}
    assert {m: progress.sampled_responses for m, (_, _, progress) in made.items()} == dict.fromkeys(made, 5 * 4 * 2 * 2)
    for run, _, progress in made.values():
        records = [r for r in run.records() if r.kind in ("step", "collect")]
        assert sum(r.sampled_responses for r in records) == progress.sampled_responses
        assert sum(r.sampled_tokens for r in records) == progress.sampled_tokens
        assert sum(r.kind == "step" for r in records) == 5


def collected(run, name):
    return [json.loads(line) for line in (run.path / "collected" / f"{name}.jsonl").read_text().splitlines()]


def test_star_samples_the_policy_so_far_and_tunes_the_base(tmp_path):
    base = dict(tiny.random_model().named_parameters())
    seen = []

    class Spy(toy.Watcher):
        def on_collect(self, record):
            seen.append((record.stage, record.part, record.parts, {n: p.clone() for n, p in model.items()}))

        def on_stage(self, stage, first_step, total_steps):
            super().on_stage(stage, first_step, total_steps)

    run = RunDirectory.create(toy.config(tmp_path / "run", "method=star", "train.checkpoint_every=1"))
    engine = toy.engine(run.config)
    model = dict(engine._model.named_parameters())
    restored, restore = [], engine.restore
    engine.restore = lambda name: (restored.append(name), restore(name))[1]
    train(run, engine, toy.Toy(), Spy())
    assert [s[:3] for s in seen] == [
        ("star1", 1, 2),
        ("star1", 2, 2),
        ("star2", 1, 2),
        ("star2", 2, 2),
        ("star3", 1, 1),
    ]
    assert all(seen[0][3][n].equal(base[n]) for n in base)  # the first data set is the base's own
    assert not all(seen[2][3][n].equal(base[n]) for n in base)  # the second that of the first iteration's policy
    assert restored == ["base"] * 3
    losses = [r.loss for r in toy.step_records(run)]
    assert len(losses) == 5 and all(loss > 0 for loss in losses)
    kept = [len(part["rows"]) for name in ("star1", "star2", "star3") for part in collected(run, name)]
    assert kept == [r.kept for r in run.records() if r.kind == "collect"]


def test_imitated_sequences_are_what_was_sampled_and_only_attempt_2_is_a_target(tmp_path):
    run, engine, _ = toy.run(tmp_path / "run", "method=pair_sft")
    task, answers = toy.Toy(), set()
    for part in collected(run, "pair_sft"):
        for row in part["rows"]:
            (first, second), tokens = row["spans"], row["tokens"]
            problem = next(p for p in task.problems("train") if p.id == row["problem"])
            texts = [engine.chat.text(tokens[start:end]) for _, start, end in (first, second)]
            right = [task.grade(problem, t, truncated=False).verdict is Verdict.CORRECT for t in texts]
            assert right == [False, True]
            messages = task.first_messages(problem)
            assert tuple(tokens[: first[1]]) == engine.chat.prompt_ids(messages)
            ended = engine.chat.ended(tokens[first[1] : first[2]])
            bridge = engine.chat.bridge_ids(messages, task.instruction, ended)
            assert tuple(tokens[first[2] : second[1]]) == bridge and second[2] == len(tokens)
            answers.add(tuple(tokens[second[1] :]))
    assert len(answers) > 3


def test_a_stop_while_collecting_loses_nothing_that_was_sampled(tmp_path, straight):
    watcher = toy.Watcher()
    with pytest.raises(Interrupted, match=r"1 of 2 parts of star1 sampled.*--resume"):
        toy.run(tmp_path / "run", "method=star", watcher=watcher, stop=lambda: len(watcher.parts) >= 1)
    file = tmp_path / "run" / "collected" / "star1.jsonl"
    with file.open("a") as stream:
        stream.write('{"record": {"st')  # and a line cut by a crash
    again = toy.Watcher()
    resumed, _, progress = toy.resume(tmp_path / "run", watcher=again)
    assert [(r.stage, r.part) for r in again.parts][:2] == [("star1", 2), ("star2", 1)]
    whole, _, expected = straight("method=star")
    assert_same_run(resumed, whole)
    assert progress.sampled_responses == expected.sampled_responses

    def content(run):
        return [[p["rows"] for p in collected(run, f"star{i}")] for i in (1, 2, 3)]

    assert content(resumed) == content(whole)


@pytest.mark.parametrize(
    ("name", "overrides"), [("star2", ("method=star",)), ("offline", ("method=multi_turn", "method.offline_share=1"))]
)
def test_data_lost_after_the_weights_moved_on_is_not_sampled_anew(tmp_path, name, overrides):
    interrupt(tmp_path / "run", 3, *overrides)
    (tmp_path / "run" / "collected" / f"{name}.jsonl").unlink()
    with pytest.raises(RunError, match=f"holds 0 of . parts of collected/{name}.jsonl.*put the file back"):
        toy.resume(tmp_path / "run")


class Always(toy.Toy):
    """A verifier with one answer to everything."""

    def __init__(self, verdict):
        super().__init__()
        self._verdict = verdict

    def grade(self, problem, text, *, truncated):
        return Grade(self._verdict, "x")


@pytest.mark.parametrize("settings", [("method=star",), ("method=star", "method.dataset=D+"), ("method=pair_sft",)])
def test_nothing_to_imitate_is_an_error_in_words_and_the_run_is_kept(tmp_path, settings):
    with pytest.raises(
        DataError, match=r"nothing to train on: \d+ sampled episodes hold no .*Start a new run with"
    ) as caught:
        toy.run(tmp_path / "run", *settings, task=Always(Verdict.WRONG))
    assert ("method.dataset=D+" in str(caught.value)) == ("method.dataset=D+" not in settings)
    run = RunDirectory.open(tmp_path / "run")
    assert run.latest_checkpoint() == run.checkpoint(0) and list((run.path / "collected").iterdir())


def test_offline_first_attempts_are_the_bases_and_carry_no_gradient(tmp_path):
    run = RunDirectory.create(toy.config(tmp_path / "run", "method=multi_turn", "method.offline_share=1"))
    engine = toy.engine(run.config)
    trained, forward_backward = [], engine.forward_backward
    engine.forward_backward = lambda data, loss: (trained.append(data), forward_backward(data, loss))[1]
    progress = train(run, engine, toy.Toy(), toy.Watcher())
    stored = {row["problem"]: row["answers"] for part in collected(run, "offline") for row in part["rows"]}
    rows = [json.loads(line) for line in run.episodes_file.read_text().splitlines()]
    for row in rows:
        first = row["attempts"][0]
        assert first["source"] == "given"
        assert first["text"] == engine.chat.text(stored[row["problem"]][row["sample"]])  # each sample has its own
    assert any(a != b for a, b in stored.values())
    for data in trained:
        assert all(d.sampled_T.sum() <= 4 and d.weights_T[~d.sampled_T].any() == 0 for d in data)  # attempt 2 alone
    # 20 visits of 20 problems: 40 stored first attempts, 40 second ones
    assert progress.sampled_responses == 80
    assert [r.sampled_responses for r in toy.step_records(run)] == [8] * 5
    for r in toy.step_records(run):  # nothing of attempt 1 is the policy's: n/a, and never 0
        assert [r.reward[0], r.kl[0], r.truncated[0], r.no_answer[0], r.answer_tokens[0]] == [None] * 5
        assert r.episodes == 8 and None not in (r.reward[1], r.kl[1], r.answer_tokens[1])


def test_records_of_first_attempts_leave_the_stored_ones_out(tmp_path):
    run, _, _ = toy.run(
        tmp_path / "run", "method=multi_turn", "method.offline_share=0.5", "train.log_problems_per_step=4"
    )
    rows = [json.loads(line) for line in run.episodes_file.read_text().splitlines()]
    for r in toy.step_records(run):
        firsts = [row["attempts"][0] for row in rows if row["step"] == r.step]
        sampled = [a for a in firsts if a["source"] == "sampled"]
        assert (len(firsts), len(sampled)) == (8, 4)
        assert r.reward[0] == sum(a["verdict"] == "correct" for a in sampled) / 4
        assert r.answer_tokens[0] == sum(a["tokens"] for a in sampled) / 4


def test_a_share_of_0_samples_no_first_attempts_offline_and_stage_1_has_none(straight):
    assert not (straight()[0].path / "collected").exists()
    run, _, progress = straight("method.offline_share=0.4")
    by_step = [r.sampled_responses for r in toy.step_records(run)]
    assert by_step[:2] == [16, 16] and min(by_step[2:]) < 16
    assert toy.step_records(run)[0] == toy.step_records(straight()[0])[0]
    stored = sum(r.sampled_responses for r in run.records() if r.kind == "collect")
    assert stored > 0 and progress.sampled_responses == sum(by_step) + stored <= 80


@given(st.integers(0, 3), st.integers(0, 400), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_offline_problems_are_a_share_of_the_step(seed, step, share):
    batch = PROBLEMS[:6]
    chosen = offline_of_step(batch, seed, step, share)
    assert chosen == offline_of_step(batch, seed, step, share)
    assert abs(len(chosen) - 6 * share) < 1 and all(p in batch for p in chosen)


def test_adaptive_beta2_falls_while_the_first_attempt_stays_and_rises_when_it_strays(straight):
    run, _, progress = straight("method.beta2_target=0.01")
    steps = toy.step_records(run)
    scale = 1.0
    for step in steps[:2]:
        assert step.beta2_scale == scale
        scale = adapted_scale(scale, step.kl[0], 0.01)
    assert [s.beta2_scale for s in steps[2:]] == [None] * 3  # Stage II has none
    assert progress.beta2_scale == scale
    assert steps[1].beta2_scale == pytest.approx(1 / 1.1)  # at the first step the policy is the base: KL 0
    assert toy.step_records(straight()[0])[0].beta2_scale is None


def test_the_stepwise_recipe_holds_earlier_attempts_at_the_part_before(tmp_path):
    run = RunDirectory.create(
        toy.config(tmp_path / "run", "play.attempts=3", "method.stage1=stepwise", "train.checkpoint_every=1")
    )
    engine = toy.engine(run.config)
    asked, logprobs = [], engine.logprobs
    engine.logprobs = lambda sequences, policy: (asked.append(policy), logprobs(sequences, policy))[1]
    watcher = toy.Watcher()
    train(run, engine, toy.Toy(), watcher)
    assert [s[:2] for s in watcher.stages] == [("stage1a", 0), ("stage1b", 1), ("stage2", 2)]
    assert asked == ["base", "base", "stage1a", "base", "base", "base"]
    first, second, *_ = toy.step_records(run)
    assert len(first.reward) == 2 and len(second.reward) == 3
    assert (
        max(map(abs, second.kl[:2])) < 1e-4 < abs(second.kl[2])
    )  # the policy is stage1a itself, and no longer the base


def test_trees_are_recorded_as_episodes_of_two_attempts(straight):
    run, _, progress = straight("method.branches=2", "train.samples_per_problem=3")
    for step in toy.step_records(run):
        assert (step.episodes, step.sampled_responses, len(step.reward)) == (4 * 2 * 2, 4 * 2 * 3, 2)
        assert step.sampler_mismatch < 1e-3  # every branch continues its own first attempt's cache
    assert progress.sampled_responses == 5 * 4 * 2 * 3
    rows = [json.loads(line) for line in run.episodes_file.read_text().splitlines()]
    assert len(rows) == 5 * 2 * 4 and all(len(r["attempts"]) == 2 for r in rows)
    by_tree = {}
    for r in rows:
        by_tree.setdefault((r["step"], r["problem"], r["sample"] // 2), set()).add(r["attempts"][0]["text"])
    assert all(len(texts) == 1 for texts in by_tree.values()) and len(by_tree) == 20


def test_interleaved_stages_compete_for_the_best_checkpoint_in_the_last_round_alone(tmp_path):
    run, _, progress = toy.run(
        tmp_path / "run", "method.interleave=2", "train.steps=8", "train.checkpoint_every=1", "train.best_window=9"
    )
    steps = toy.step_records(run)
    assert [s.stage for s in steps] == (["stage1"] * 2 + ["stage2"] * 2) * 2
    windows = {r.step: r.window_reward for r in run.records() if r.kind == "checkpoint"}
    assert [k for k, w in windows.items() if w is not None] == [8]  # the whole round, which is shorter than the window
    assert windows[8] == pytest.approx(np.mean([s.reward[-1] for s in steps[6:]]))
    assert progress.best_step == 8


def test_the_offline_share_is_exact_on_average():
    counts = [len(offline_of_step(PROBLEMS[:6], 0, step, 0.25)) for step in range(2000)]
    assert np.mean(counts) == pytest.approx(1.5, abs=0.05)
    assert len({tuple(p.id for p in offline_of_step(PROBLEMS[:6], 0, step, 0.5)) for step in range(200)}) > 15


def test_a_group_of_one_is_refused_by_the_config():
    with pytest.raises(ConfigError, match="at least 2 samples"):
        load_config(None, ["train.samples_per_problem=1"])


PROBLEMS = toy.Toy(n_train=17).problems("train")


@given(st.integers(0, 5), st.integers(0, 60), st.integers(1, 30))
def test_problems_of_a_step(seed, step, count):
    drawn = problems_of_step(PROBLEMS, seed, step, count)
    assert drawn == problems_of_step(PROBLEMS, seed, step, count)
    ids = [p.id for p in drawn]
    assert len(set(ids)) == len(ids) <= count
    assert ids  # a step always plays something


@given(st.integers(0, 5), st.integers(1, 17), st.integers(0, 3))
def test_every_epoch_visits_every_problem_once(seed, count, epoch):
    problems = PROBLEMS[: 17 // count * count]
    steps = len(problems) // count
    drawn = [p.id for s in range(steps) for p in problems_of_step(problems, seed, epoch * steps + s, count)]
    assert sorted(drawn) == sorted(p.id for p in problems)


def test_epochs_and_seeds_have_different_orders():
    orders = {
        tuple(p.id for p in problems_of_step(PROBLEMS, seed, epoch, 17)) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9
