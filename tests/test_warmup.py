"""The warm-up: demonstrations through the one training loop, resumed bit for bit, measured at its end."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

import tiny
import toy
from selfcorrect.engines.base import AdamParams
from selfcorrect.engines.models import resolve_model
from selfcorrect.errors import Interrupted
from selfcorrect.experiment import warm_up
from selfcorrect.records.run_directory import WarmUpDirectory
from selfcorrect.training.warmup import demonstration_data

SETTINGS = ("sft.steps=5", "sft.examples_per_step=3", "sft.learning_rate=1e-2", "seed=1")


def state(engine):
    return {name: p.detach().clone() for name, p in engine._model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return toy.warm(tmp_path_factory.mktemp("straight") / "warm", *SETTINGS)


def test_it_is_plain_cross_entropy_on_the_answers_with_a_falling_rate(tmp_path, straight):
    engine, task = toy.engine(toy.config(tmp_path / "run")), toy.Toy()
    stream = task.demonstrations(1)
    for step in range(5):
        data = demonstration_data(engine.chat, task, itertools.islice(stream, 3))
        engine.forward_backward(data, "cross_entropy")
        engine.optim_step(AdamParams(1e-2 * (1 - 0.9 * step / 5), grad_clip=1.0))
    run, looped = straight
    assert same(state(looped), state(engine))
    steps = toy.step_records(run)
    # 1e-2 * (1 - 0.9 * 4 / 5) = 2.8e-3
    assert [steps[0].learning_rate, steps[4].learning_rate] == pytest.approx([1e-2, 2.8e-3])
    assert [(s.stage, s.episodes, s.reward) for s in steps] == [("warm_up", 3, [])] * 5
    assert steps[4].loss < steps[0].loss


def test_targets_are_the_answers_with_their_end_tokens_and_nothing_else():
    chat, task = tiny.ChatFormat(tiny.tokenizer()), toy.Toy()
    (datum,) = demonstration_data(chat, task, itertools.islice(task.demonstrations(0), 1))
    targets = datum.weights_T > 0
    answers = [*chat.answer_ids("a"), *chat.answer_ids("bb")]
    assert datum.tokens_T[targets].tolist() == answers and datum.weights_T.sum() == pytest.approx(1)


def test_a_checkpoint_holds_no_reference(straight):
    """Nothing is held at the base, so a checkpoint of a large model has no copy of it."""
    files = {file.name for file in straight[0].latest_checkpoint().iterdir()}
    assert files == {"weights.safetensors", "optimiser.pt", "progress.json", "files.json"}


@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(tmp_path, straight, step):
    watcher = toy.Watcher()
    with pytest.raises(Interrupted, match=rf"selfcorrect sft --resume {tmp_path / 'warm'}`"):
        toy.warm(tmp_path / "warm", *SETTINGS, watcher=watcher, stop=lambda: len(watcher.steps) >= step)
    run, engine = toy.warm(tmp_path / "warm")
    whole, expected = straight
    assert toy.step_records(run) == toy.step_records(whole)
    assert same(state(engine), state(expected))


def test_a_cut_checkpoint_falls_back_to_the_one_before(tmp_path, straight):
    watcher = toy.Watcher()
    with pytest.raises(Interrupted):
        toy.warm(
            tmp_path / "warm", *SETTINGS, "sft.eval_problems=0", watcher=watcher, stop=lambda: len(watcher.steps) >= 4
        )
    run = WarmUpDirectory.open(WarmUpDirectory.of(tmp_path / "warm"))
    weights = run.latest_checkpoint() / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    lines, engine = [], toy.engine(run.config)
    warm_up(
        SimpleNamespace(config=run.config, task=toy.Toy(), resolved=resolve_model(run.config.model.name)),
        run,
        engine,
        toy.Watcher(),
        lines.append,
    )
    assert any("100 bytes" in line and "set aside" in line for line in lines)
    assert same(state(engine), state(straight[1]))
    assert (tmp_path / "warm" / "model.safetensors").exists()


def cli(arguments, tmp_path, **environment):
    script = Path(__file__).with_name("toy_cli.py")
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=tmp_path, env=os.environ | environment, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


def test_killed_at_a_checkpoint_it_loses_no_more_and_writes_the_same_model(tmp_path):
    model = tiny.save_model(tmp_path / "model")
    arguments = [*toy.SMALL, *SETTINGS, f"model={model}", "sft.eval_problems=6"]
    out, other = tmp_path / "warm", tmp_path / "straight"
    # saves: step 0, step 2, step 4 (half-written)
    assert cli(["sft", out, *arguments], tmp_path, KILL_IN_SAVE="3")[0] == -signal.SIGKILL
    assert not out.exists() and WarmUpDirectory.open(WarmUpDirectory.of(out)).latest_checkpoint().name == "step-0000002"
    code, printed, err = cli(["sft", "--resume", out], tmp_path)
    assert code == 0, err
    assert "Warm-up: 5 steps from step 3" in err and "left" in err
    assert cli(["sft", other, *arguments], tmp_path)[0] == 0
    assert same(load_file(out / "model.safetensors"), load_file(other / "model.safetensors"))

    values = json.loads((out / "warmed.json").read_text())
    assert values["summary"] == json.loads((other / "warmed.json").read_text())["summary"]
    assert values["settings"]["temperature"] == 0 and values["settings"]["problems"] == 6
    assert "measured t1 " in printed and "6 held-out problems, greedy" in printed
    run = WarmUpDirectory.open(WarmUpDirectory.of(out))
    assert [r.reason for r in run.records() if r.kind == "end"] == ["finished"]
    assert [r.step for r in run.records() if r.kind == "step"] == [1, 2, 3, 4, 5]
    assert not (run.path / "checkpoints").exists()

    # a finished one is neither continued nor overwritten
    code, _, err = cli(["sft", "--resume", out], tmp_path)
    assert code == 2 and "exists already" in err
    code, _, err = cli(["sft", tmp_path / "new", "--resume", out], tmp_path)
    assert code == 2 and "drop the other arguments" in err
    out.rename(tmp_path / "moved")
    code, _, err = cli(["sft", "--resume", out], tmp_path)
    assert code == 2 and f"remove {out}.run" in err
    code, _, err = cli(["sft", out, *arguments], tmp_path)
    assert code == 2 and f"`selfcorrect sft --resume {out}`, or remove it" in err
    code, _, err = cli(["train", "--resume", f"{out}.run"], tmp_path)
    assert code == 2 and "not a run directory" in err
