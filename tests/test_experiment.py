"""One run from base evaluation to export, and what happens when it stops on the way."""

import json
import shutil
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

import tiny
import toy
from selfcorrect import experiment
from selfcorrect.cli import train as train_command
from selfcorrect.cli.settings import from_elsewhere
from selfcorrect.config import load_config, override, preset_name
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.models import base_of, resolve_model
from selfcorrect.engines.torch_engine import TorchEngine
from selfcorrect.errors import DataError, Interrupted, ModelError, RunError
from selfcorrect.experiment import load_kept, run_experiment
from selfcorrect.measuring.compare import read_evaluation
from selfcorrect.measuring.reuse import measured_alike
from selfcorrect.records.files import append_line
from selfcorrect.records.run_directory import Progress, RunDirectory, WarmUpDirectory


def job(c):
    return SimpleNamespace(config=c, task=toy.Toy(), resolved=resolve_model(c.model.name), chat=None, longest=99)


def engine(c):
    """The random model with many end tokens, so that some answers end on their own, as ``given-wrong`` needs."""
    e = toy.engine(c)
    e.chat.end_ids |= frozenset(range(5, 60))
    return e


def whole(run_dir, *overrides, stop=lambda: False, watcher=None, others=None):
    c = toy.config(run_dir, *overrides)
    run = RunDirectory.create(c)
    return run_experiment(job(c), run, engine(c), watcher or toy.Watcher(), stop_requested=stop, others=others)


def again(run_dir):
    run = RunDirectory.open(run_dir)
    return run_experiment(job(run.config), run, engine(run.config), toy.Watcher())


def evals(run):
    return {r.name: (r.step, r.summary) for r in run.records() if r.kind == "eval"}


def test_a_whole_run_leaves_everything_that_its_docstring_names(tmp_path):
    outcome = whole(tmp_path / "run")
    run = outcome.run
    inside = {p.name for p in run.path.iterdir()}
    assert inside == {"config.json", "metrics.jsonl", "episodes.jsonl", "evaluations", "checkpoints", "model"}
    assert (run.path / "model" / "config.json").exists() and not list(run.path.glob(".*"))
    assert preset_name(str(run.path / "model")) == preset_name(
        run.config.model.name
    )  # a run may start from its weights
    kinds = [r.kind for r in run.records()]
    assert kinds[0] == "start" and kinds[-1] == "end"
    names = {"base", "base-swapped", "base-given-wrong", "final", "final-swapped", "final-given-wrong"}
    assert {r.name for r in run.records() if r.kind == "eval"} == names == outcome.evaluations.keys()
    for name in names:
        stored = read_evaluation(run.path, name)
        assert [e.problem.id for e in stored] == [e.problem.id for e in outcome.evaluations[name].episodes]
        assert [e.rewards_K.tolist() for e in stored] == [
            e.rewards_K.tolist() for e in outcome.evaluations[name].episodes
        ]
    end = run.records()[-1]
    assert (end.step, end.reason) == (5, "finished")
    assert end.sampled_responses == sum(r.episodes * len(r.reward) for r in run.records() if r.kind == "step")


GREEDY = ("eval.controls=false", "train.steps=2", "train.checkpoint_every=2")


def test_runs_of_one_base_measure_it_once_and_train_as_without(tmp_path):
    whole(tmp_path / "runs" / "first", *GREEDY)
    (tmp_path / "runs" / "aside").mkdir()
    (tmp_path / "runs" / "a.log").write_text("not a run")
    alone = whole(tmp_path / "alone", *GREEDY, "seed=1").run
    shared = whole(tmp_path / "runs" / "second", *GREEDY, "seed=1", others=tmp_path / "runs").run
    third = whole(tmp_path / "runs" / "third", *GREEDY, "seed=2", others=tmp_path / "runs").run
    assert [r.reused_from for r in third.records() if r.kind == "eval"] == ["first", None]
    base, final = (r for r in shared.records() if r.kind == "eval")
    assert (base.reused_from, final.reused_from, base.settings["seed"]) == ("first", None, 0)
    for name in ("base", "final"):
        files = [(run.path / "evaluations" / f"{name}.jsonl").read_bytes() for run in (alone, shared)]
        assert files[0] == files[1]
    steps = [[r.model_dump(exclude={"seconds"}) for r in run.records() if r.kind == "step"] for run in (alone, shared)]
    assert steps[0] == steps[1] and len(steps[0]) == 2
    weights = [load_file(run.path / "model" / "model.safetensors") for run in (alone, shared)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    "change",
    [
        "eval.temperature=1",
        "eval.controls=true",
        "eval.problems=3",
        "play.max_new_tokens=5",
        "engine.tokens_per_sampling_batch=1000",
    ],
)
def test_a_base_measured_otherwise_is_measured_again(tmp_path, change):
    changed = (*GREEDY, change)
    whole(tmp_path / "runs" / "first", *(changed if change in {"eval.temperature=1", "eval.controls=true"} else GREEDY))
    run = whole(tmp_path / "runs" / "second", *changed, "seed=1", others=tmp_path / "runs").run
    assert [r.reused_from for r in run.records() if r.kind == "eval" and r.name == "base"] == [None]


@pytest.mark.parametrize("field", ["base", "versions", "engine"])
def test_a_measurement_of_another_base_or_version_is_not_taken(tmp_path, field):
    first = whole(tmp_path / "runs" / "first", *GREEDY).run
    start, *rest = first.metrics_file.read_text().splitlines(keepends=True)
    changed = json.loads(start)
    changed[field] = "another" if field == "base" else changed[field] | {"name": "another"}
    first.metrics_file.write_text(json.dumps(changed) + "\n" + "".join(rest))
    run = whole(tmp_path / "runs" / "second", *GREEDY, others=tmp_path / "runs").run
    assert [r.reused_from for r in run.records() if r.kind == "eval"] == [None, None]


def test_another_turn_between_the_attempts_is_another_measurement(tmp_path):
    whole(tmp_path / "runs" / "first", *GREEDY)
    found = [
        measured_alike(
            tmp_path / "runs", (run := RunDirectory.open(tmp_path / "runs" / "first")).config, run.records()[0], b
        )
        for b in ({}, {"feedback": "What is wrong?"})
    ]
    assert found[0] is not None and found[1] is None


def test_the_exported_and_measured_model_is_the_kept_checkpoint(tmp_path):
    outcome = whole(tmp_path / "run", "train.checkpoint_every=1", "eval.controls=false")
    kept = outcome.progress.best_step
    model = load_file(outcome.run.path / "model" / "model.safetensors")
    stored = load_file(outcome.run.checkpoint(kept) / "weights.safetensors")
    assert model.keys() == stored.keys()
    assert all(model[n].equal(stored[n]) for n in model)
    assert evals(outcome.run)["final"][0] == kept
    assert evals(outcome.run)["base"][0] == 0


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path):
    straight = whole(tmp_path / "straight")
    watcher = toy.Watcher()
    with pytest.raises(Interrupted):
        whole(tmp_path / "run", stop=lambda: len(watcher.steps) >= 4, watcher=watcher)
    resumed = again(tmp_path / "run")
    assert evals(resumed.run) == evals(straight.run)
    kinds = [r.kind for r in resumed.run.records() if r.kind in ("start", "end")]
    assert kinds == ["start", "start", "end"]  # the interrupted end is cut back, as it is after the checkpoint


def test_a_stop_at_the_last_step_leaves_the_measuring_to_the_resumed_run(tmp_path):
    watcher = toy.Watcher()
    with pytest.raises(Interrupted, match="stopped after step 5"):
        whole(tmp_path / "run", stop=lambda: len(watcher.steps) >= 5, watcher=watcher)
    assert "final" in evals(again(tmp_path / "run").run)


def test_a_finished_run_resumed_measures_again_and_repeats_nothing(tmp_path):
    first = whole(tmp_path / "run")
    before = evals(first.run)
    resumed = again(tmp_path / "run")
    assert evals(resumed.run) == before
    names = [r.name for r in resumed.run.records() if r.kind == "eval"]
    assert len(names) == len(set(names))
    assert [r.step for r in resumed.run.records() if r.kind == "step"] == [1, 2, 3, 4, 5]


def test_a_run_that_died_before_its_first_checkpoint_starts_over(tmp_path, monkeypatch):
    def die(*_args):
        raise RuntimeError("power failure")

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "train", die)
        with pytest.raises(RuntimeError):
            whole(tmp_path / "run")
    assert "base" in evals(RunDirectory.open(tmp_path / "run"))
    resumed = again(tmp_path / "run")
    names = [r.name for r in resumed.run.records() if r.kind == "eval"]
    assert len(names) == len(set(names)) == 6
    assert [r.resumed_from_step for r in resumed.run.records() if r.kind == "start"] == [None]


def test_an_existing_run_directory_is_left_as_it_is(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("results")
    with pytest.raises(RunError, match="exists already and is not overwritten"):
        RunDirectory.create(toy.config(tmp_path / "run"))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_checkpoint_that_fails_to_be_written_leaves_no_trace(tmp_path):
    run = RunDirectory.create(toy.config(tmp_path / "run"))
    with run.writing_checkpoint(Progress(step=1)) as directory:
        (directory / "weights").write_text("good")
    with pytest.raises(RunError, match="No space left"), run.writing_checkpoint(Progress(step=2)) as directory:
        (directory / "weights").write_text("half")
        raise OSError(28, "No space left on device")
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["step-0000001"]
    assert run.latest_checkpoint() == run.checkpoint(1)


def test_an_export_replaces_an_older_one_only_when_complete(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")

    def broken(path):
        path.mkdir()
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left"):
        experiment.export(SimpleNamespace(export=broken), target)
    assert (target / "old").exists()
    experiment.export(SimpleNamespace(export=lambda path: path.mkdir()), target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("file", ["weights.safetensors", "optimiser.pt", "snapshot-base.safetensors", "progress.json"])
@pytest.mark.parametrize("left", [0, 100])
def test_a_cut_checkpoint_falls_back_to_the_one_before(tmp_path, file, left):
    straight = whole(tmp_path / "straight", "eval.controls=false")
    watcher = toy.Watcher()
    with pytest.raises(Interrupted):
        whole(tmp_path / "run", "eval.controls=false", stop=lambda: len(watcher.steps) >= 4, watcher=watcher)
    checkpoint = RunDirectory.open(tmp_path / "run").latest_checkpoint()
    content = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(content[: min(left, len(content) // 2)])
    lines = []
    run = RunDirectory.open(tmp_path / "run")
    outcome = run_experiment(job(run.config), run, engine(run.config), toy.Watcher(), lines.append)
    assert evals(outcome.run) == evals(straight.run)
    assert toy.step_records(outcome.run) == toy.step_records(straight.run)
    assert (checkpoint.parent / f"damaged-{checkpoint.name}").is_dir()
    assert sum("set aside" in line for line in lines) == 1


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped after step 4, with checkpoints of steps 3 and 4, and an uninterrupted one."""
    there = tmp_path_factory.mktemp("stopped")
    settings = ("eval.controls=false", "train.checkpoint_every=1")
    straight = whole(there / "straight", *settings)
    watcher = toy.Watcher()
    with pytest.raises(Interrupted):
        whole(there / "run", *settings, stop=lambda: len(watcher.steps) >= 4, watcher=watcher)
    return there / "run", straight.run


@pytest.fixture
def copied(stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run")
    return tmp_path / "run"


def flip(file):
    """Change bytes in the middle of a file."""
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(255 - b for b in content[middle : middle + 8])
    file.write_bytes(content)


def linked(path):
    """Move a directory elsewhere and leave a link."""
    elsewhere = path.parent.parent / f"elsewhere-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


LAST = "checkpoints/step-0000004"
HARMLESS = {
    "weights changed": (lambda run: flip(run / LAST / "weights.safetensors"), True),
    "optimiser changed": (lambda run: flip(run / LAST / "optimiser.pt"), True),
    "optimiser missing": (lambda run: (run / LAST / "optimiser.pt").unlink(), True),
    "snapshot missing": (lambda run: (run / LAST / "snapshot-base.safetensors").unlink(), True),
    "checksums cut": (lambda run: (run / LAST / "files.json").write_text("{"), True),
    "everything missing": (lambda run: [f.unlink() for f in (run / LAST).iterdir()], True),
    "a file in its place": (lambda run: (shutil.rmtree(run / LAST), (run / LAST).touch()), True),
    "a copy next to it": (lambda run: shutil.copytree(run / LAST, run / "checkpoints/step-0000004-copy"), False),
    "files of others": (
        lambda run: [(run / "checkpoints" / n).touch() for n in (".DS_Store", ".step-0000005.part")],
        False,
    ),
    "an older one elsewhere": (lambda run: linked(run / "checkpoints/step-0000003"), False),
    "all of them elsewhere": (lambda run: linked(run / "checkpoints"), False),
    "model elsewhere": (lambda run: ((run / "model").mkdir(), linked(run / "model")), False),
    "empty directories left out": (lambda run: shutil.rmtree(run / "evaluations"), False),
    "zeros behind the records": (lambda run: append_line(run / "metrics.jsonl", "\0" * 99, ""), False),
}
"""Damage, and whether it sets the last checkpoint aside."""


@pytest.mark.parametrize("name", HARMLESS)
def test_damage_that_changes_no_number(stopped, copied, name):
    damage, aside = HARMLESS[name]
    damage(copied)
    outcome = again(copied)
    assert toy.step_records(outcome.run) == toy.step_records(stopped[1])
    assert evals(outcome.run)["final"] == evals(stopped[1])["final"]
    assert (copied / "checkpoints" / "damaged-step-0000004").exists() == aside
    assert (copied / "checkpoints/step-0000004-copy").exists() == (name == "a copy next to it")


LOST = {
    "records missing": (lambda run: (run / "metrics.jsonl").unlink(), r"metrics\.jsonl has 0 bytes, but had"),
    "records cut": (lambda run: (run / "metrics.jsonl").write_text(""), "records are gone.*put the file back"),
    "no checkpoints": (lambda run: shutil.rmtree(run / "checkpoints"), "no checkpoint to continue from; put"),
    "all set aside": (
        lambda run: [c.rename(c.with_name(f"damaged-{c.name}")) for c in list((run / "checkpoints").iterdir())],
        "records of 4 steps, but no checkpoint.*or start a new run",
    ),
    "settings cut": (
        lambda run: (run / "config.json").write_text('{"method"'),
        "config.json cannot be read.*from a copy",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_damage_beyond_repair_is_told_and_nothing_is_deleted(copied, name):
    damage, words = LOST[name]
    damage(copied)
    before = {p for p in copied.rglob("*") if p.name != ".lock"}
    with pytest.raises(RunError, match=words):
        again(copied)
    RunDirectory(copied, None).abandon()  # what the command does after such an error
    assert before == {p for p in copied.rglob("*") if p.name != ".lock"}


def test_a_kept_checkpoint_that_was_changed_is_told(stopped, copied):
    run = RunDirectory.open(copied)
    flip(copied / LAST / "weights.safetensors")
    with pytest.raises(RunError, match=r"the run keeps, cannot be read.*weights\.safetensors was changed.*from a copy"):
        load_kept(run, engine(run.config))


def test_a_run_without_a_readable_checkpoint_says_so(tmp_path):
    watcher = toy.Watcher()
    with pytest.raises(Interrupted):
        whole(tmp_path / "run", "eval.controls=false", stop=lambda: len(watcher.steps) >= 1, watcher=watcher)
    for weights in (tmp_path / "run" / "checkpoints").glob("*/weights.safetensors"):
        weights.write_bytes(b"")
    with pytest.raises(RunError, match=r"cannot be read.*no checkpoint before it.*start a new run"):
        again(tmp_path / "run")


def test_a_run_is_not_continued_on_another_model(tmp_path, monkeypatch):
    watcher = toy.Watcher()
    with pytest.raises(Interrupted):
        whole(tmp_path / "run", "eval.controls=false", stop=lambda: len(watcher.steps) >= 1, watcher=watcher)
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    monkeypatch.setattr(experiment, "identity", lambda _resolved: "directory 0123")
    with pytest.raises(RunError, match=r"began with another model: .* was hub then, and is directory 0123 now"):
        again(tmp_path / "run")
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_resuming_from_elsewhere_recommends_nothing_that_it_refuses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save_model(tmp_path / "base")
    c = load_config(None, ["model=base", "task=arithmetic", f"run_dir={tmp_path / 'run'}"])
    RunDirectory.create(c)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"model\.name = 'base' counts from.*change to that directory") as error:
        train_command._run(c, RunDirectory.open(tmp_path / "run"), False, [])
    assert "tiny" not in str(error.value) and "give " not in str(error.value).partition("change to")[0]


@pytest.mark.parametrize("command", [("eval",), ("scale",), ("serve",)])
def test_measuring_a_run_from_elsewhere_says_where_to_go(cli, tmp_path, monkeypatch, command):
    tiny.save_model(tmp_path / "base")
    RunDirectory.create(load_config(None, ["model=base", "task=arithmetic", "run_dir=run"]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, err = cli(*command, "../run")
    words = " ".join(err.split())
    assert code == 2 and "model.name = 'base' counts from the directory in which the run was started" in words
    assert f"the same command for {tmp_path / 'run'}" in words and "tiny" not in words


def test_a_warm_up_is_continued_where_it_was_started(cli, tmp_path, monkeypatch):
    tiny.save_model(tmp_path / "base")
    WarmUpDirectory.create(load_config(None, ["model=base", "task=arithmetic", "run_dir=warm.run"]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, err = cli("sft", "--resume", "../warm")
    assert code == 2 and f"give `selfcorrect sft --resume {tmp_path / 'warm'}`" in " ".join(err.split())


def test_a_setting_given_here_counts_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.create(load_config(None, ["model=tiny", "task=gsm8k", "task.path=data", "run_dir=run"]))
    with pytest.raises(RunError, match=r"task\.path = 'data' counts from"), from_elsewhere(run, run.config, "it"):
        raise DataError("data file data/test.jsonl does not exist; give another task.path")
    with (
        pytest.raises(DataError, match="give another"),
        from_elsewhere(run, override(run.config, ["task.path=x"]), "it"),
    ):
        raise DataError("data file x/test.jsonl does not exist; give another task.path")
    on_hub = load_config(None, ["model=owner/base", "task=arithmetic", "run_dir=run"])
    fault = "model 'owner/base' could not be loaded from the Hugging Face Hub or its local cache: no network; give tiny"
    words = r"check the network; if model\.name = 'owner/base' is a directory, it counts from"
    run = RunDirectory(tmp_path / "run", on_hub)
    with pytest.raises(RunError, match=words), from_elsewhere(run, on_hub, "`it {run}`"):
        raise ModelError(fault)


def test_an_adapter_names_its_base_for_every_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save_model(tmp_path / "base")
    c = load_config(None, ["model=base", "model.lora_rank=2", "model.dtype=float32", "engine.device=cpu"])
    e = TorchEngine.from_config(resolve_model("base"), ChatFormat(tiny.tokenizer()), c.model, c.engine)
    e.export(tmp_path / "adapter")
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str((tmp_path / "base").resolve())
    monkeypatch.chdir("/")
    assert base_of(resolve_model(str(tmp_path / "adapter"))).path_or_id == named
