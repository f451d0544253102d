"""Trackers: every record once over every interruption, failures that cost nothing, and the real packages offline."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import struct
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

import made_runs
import tiny
import toy
from selfcorrect import trackers
from selfcorrect.cli import doctor
from selfcorrect.config import load_config
from selfcorrect.errors import ConfigError, Interrupted
from selfcorrect.experiment import run_experiment
from selfcorrect.measuring.compare import compare_runs
from selfcorrect.records.lines import EvalRecord
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.trackers import NAMES, Tracking, base
from selfcorrect.training.loop import Observers
from test_experiment import engine, job


class Fake:
    """Keeps what it is told; ``fails`` names the call that raises, ``at`` the step."""

    def __init__(self, name="fake", fails=None, at=0):
        self.name, self.logged, self.runs, self.finished = name, [], [], 0
        self._fails, self._at = fails, at

    def start(self, run):
        self.runs.append(run)
        if self._fails == "start":
            raise RuntimeError("no key")

    def log(self, step, metrics):
        if self._fails == "log" and step >= self._at:
            raise ConnectionError("the network\nis gone")
        self.logged.append((step, metrics))

    def finish(self):
        self.finished += 1
        if self._fails == "finish":
            raise TimeoutError("cannot flush")


def tracked_run(path, trackers, *overrides, stop_at=None, new=True, warnings=None):
    """A toy run with trackers, or the next process of one; stops after a step if asked to."""
    run = RunDirectory.create(toy.config(path, *overrides)) if new else RunDirectory.open(path)
    watcher = toy.Watcher()
    warn = [].append if warnings is None else warnings.append
    with Tracking(run, trackers, warn) as tracking:
        observer = Observers(watcher, tracking)
        stop = lambda: stop_at is not None and watcher.steps[-1].step >= stop_at  # noqa: E731
        return run_experiment(job(run.config), run, engine(run.config), observer, stop_requested=stop)


def steps_of(tracker):
    return [step for step, metrics in tracker.logged if any(name.startswith("train/") for name in metrics)]


def evaluations_of(tracker):
    return [name.split("/")[1] for _, metrics in tracker.logged for name in metrics if name.endswith("/problems")]


ALL_EVALUATIONS = [f"{model}{how}" for model in ("base", "final") for how in ("", "-swapped", "-given-wrong")]


def test_a_tracker_is_told_of_every_step_and_evaluation_once_over_an_interruption(tmp_path):
    first, second = Fake(), Fake()
    with pytest.raises(Interrupted):
        tracked_run(tmp_path / "run", [first], stop_at=3)
    tracked_run(tmp_path / "run", [second], new=False)
    assert steps_of(first) == [1, 2, 3] and steps_of(second) == [4, 5]
    assert evaluations_of(first) + evaluations_of(second) == ALL_EVALUATIONS
    assert [t.finished for t in (first, second)] == [1, 1]
    (a,), (b,) = first.runs, second.runs
    assert (a.id, a.name, a.directory) == (b.id, b.name, b.directory) == (a.id, "run", tmp_path / "run")
    assert a.config["train"]["steps"] == 5


def test_steps_that_are_played_again_after_a_crash_are_not_sent_again(tmp_path):
    class Crash(Exception):
        pass

    class Dies(toy.Watcher):
        def on_step(self, record):
            if record.step == 4:
                raise Crash  # checkpoints are written every second step: 3 and 4 are played again

    first, second = Fake(), Fake()
    run = RunDirectory.create(toy.config(tmp_path / "run", "train.checkpoint_every=2"))
    with pytest.raises(Crash), Tracking(run, [first], print) as tracking:
        run_experiment(job(run.config), run, engine(run.config), Observers(tracking, Dies()))
    assert RunDirectory.open(tmp_path / "run").latest_checkpoint().name == "step-0000002"
    tracked_run(tmp_path / "run", [second], new=False)
    assert steps_of(first) == [1, 2, 3, 4] and steps_of(second) == [5]


def test_what_is_sent_are_the_numbers_of_the_records(tmp_path):
    fake = Fake()
    run = tracked_run(tmp_path / "run", [fake]).run
    records = [r for r in run.records() if r.kind == "step"]
    told = {step: metrics for step, metrics in fake.logged if "train/reward/t1" in metrics}
    for r in records:
        m = told[r.step]
        assert [m["train/reward/t1"], m["train/reward/t2"]] == r.reward
        assert (m["train/grad_norm"], m["train/clipped"]) == (r.grad_norm, 0.0)
        assert m["train/seconds/sample"] == r.seconds["sample"]
        assert not {"train/step", "train/kind", "train/stage", "train/loss"} & m.keys()  # a loss is not measured here
    (final,) = (r for r in run.records() if r.kind == "eval" and r.name == "final")
    (sent,) = (m for step, m in fake.logged if "eval/final/t2" in m)
    assert sent["eval/final/t2"] == final.summary["attempts"][1]["accuracy"]["value"]
    assert sent["eval/final/delta_low"] == final.summary["revisions"][0]["delta"]["low"]
    assert sent["eval/final/problems"] == 6
    assert all(math.isfinite(v) for _, metrics in fake.logged for v in metrics.values())


def test_a_metric_that_was_not_measured_has_no_number():
    empty = EvalRecord(name="base", step=0, settings={}, summary=made_runs.summarise([]).to_json(), seconds=1.0)
    assert base.evaluation_metrics(empty) == {"eval/base/problems": 0.0, "eval/base/seconds": 1.0}
    one = base.step_metrics(made_runs.step(1, "stage2", attempts=1))
    assert "train/answer_change" not in one and "train/reward/t2" not in one


def test_a_tracker_that_fails_is_dropped_with_one_warning_and_the_run_goes_on(tmp_path):
    warnings, broken, sound = [], Fake("broken", "log", at=2), Fake("sound")
    outcome = tracked_run(tmp_path / "run", [broken, sound], warnings=warnings)
    assert outcome.progress.step == 5 and steps_of(sound) == [1, 2, 3, 4, 5]
    assert steps_of(broken) == [1]
    (said,) = warnings
    assert "tracker broken failed and receives nothing more: ConnectionError: the network is gone" in said
    assert outcome.run.records()[-1].kind == "end"
    assert (broken.finished, sound.finished) == (0, 1)


def test_a_tracker_that_failed_or_came_late_gets_what_it_lacks_on_resume(tmp_path):
    with pytest.raises(Interrupted):
        tracked_run(tmp_path / "run", [Fake("broken", "log", at=2)], stop_at=3)
    mended, late = Fake("broken"), Fake("late")
    tracked_run(tmp_path / "run", [mended, late], new=False)
    assert steps_of(mended) == [2, 3, 4, 5] and steps_of(late) == [1, 2, 3, 4, 5]
    assert evaluations_of(late) == ALL_EVALUATIONS


def test_one_that_cannot_start_or_finish(tmp_path):
    run = RunDirectory.create(toy.config(tmp_path / "run"))
    other = Fake("other")
    refused = pytest.raises(
        ConfigError, match=r"tracker bad could not be started: RuntimeError: no key; .*trackers=none"
    )
    with refused, Tracking(run, [other, Fake("bad", "start")], print):
        pytest.fail("it began")
    assert other.finished == 1
    warnings = []
    with Tracking(run, [Fake("slow", "finish")], warnings.append):
        pass
    assert len(warnings) == 1 and "cannot flush" in warnings[0]


def test_without_trackers_a_run_has_no_file_of_theirs(tmp_path):
    tracked_run(tmp_path / "run", [], "eval.controls=false")
    assert not list((tmp_path / "run").glob("tracker*"))


def test_a_damaged_state_is_said(tmp_path):
    run = RunDirectory.create(toy.config(tmp_path / "run"))
    (run.path / "trackers.json").write_text("{")
    with pytest.raises(ConfigError, match=r"trackers\.json cannot be read"), Tracking(run, [Fake()], print):
        pass


# --- the setting ----------------------------------------------------------------------------------------------------


def test_the_setting(tmp_path):
    assert load_config(None, []).trackers == ()
    for said, names in {"wandb": ("wandb",), "wandb, trackio": ("wandb", "trackio"), "none": ()}.items():
        assert load_config(None, [f"trackers={said}"]).trackers == names
    assert load_config(None, ['trackers=["tensorboard"]']).trackers == ("tensorboard",)
    with pytest.raises(ConfigError, match=r"trackers = 5: "):
        load_config(None, ["trackers=5"])
    *some, last = map(repr, NAMES)
    with pytest.raises(ConfigError, match=f"trackers = 'mlflow': Input should be {', '.join(some)} or {last}"):
        load_config(None, ["trackers=mlflow"])


def test_it_is_no_part_of_what_runs_of_a_row_must_share(tmp_path):
    a = made_runs.finished(tmp_path / "a")
    b = made_runs.finished(tmp_path / "b", "seed=1", "trackers=wandb")
    assert [row.seeds for row in compare_runs([a, b])][1] == 2


@pytest.mark.parametrize("name", [name for name in NAMES if base.package_of(name)])
def test_a_package_that_is_not_installed_is_named_with_its_extra(cli, tmp_path, monkeypatch, name):
    monkeypatch.delitem(sys.modules, f"selfcorrect.trackers.{name}", raising=False)
    for module in (base.package_of(name), "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    model = tiny.save_model(tmp_path / "m")
    code, _, err = cli("train", *toy.SMALL, f"model={model}", f"run_dir={tmp_path / 'run'}", f"trackers={name}")
    assert code == 2 and f"pip install 'selfcorrect[{name}]'" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert cli("train", f"trackers={name}", "--dry-run") == (2, "", err)  # a dry run refuses what the run would


def complete(**changes):
    """A tracker's class with these attributes in place of the usual ones; None takes one away."""
    members = {"name": "wandb", "start": print, "log": print, "finish": print} | changes
    return type("Mine", (), {key: value for key, value in members.items() if value is not None})


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ({}, r"trackers/wandb\.py has no class or function `make`.*write `make = `"),
        ({"make": complete(name=None)}, r"trackers/wandb\.py made a Mine without name; a tracker needs what "),
        ({"make": complete(log=None, finish=None)}, r"made a Mine without log, finish; "),
        ({"make": complete(name="csv")}, r"has the name 'csv'; write name = 'wandb'"),
    ],
)
def test_what_is_no_tracker_is_refused_before_anything_runs_with_what_it_lacks(monkeypatch, module, says):
    monkeypatch.setitem(sys.modules, "selfcorrect.trackers.wandb", SimpleNamespace(**module))
    with pytest.raises(ConfigError, match=says):
        base.make_trackers(["wandb"])


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("selfcorrect.trackers.wandb", r"there is no selfcorrect/trackers/wandb\.py; write that file$"),
        ("selfcorrect.nothing", r"trackers/wandb\.py imports what this package does not have .*; correct that import$"),
        ("wandb.sdk", r"needs the package wandb, .*; install it with `pip install 'selfcorrect\[wandb\]'`, or "),
    ],
)
def test_an_import_that_fails_is_told_by_whose_module_is_missing(monkeypatch, missing, says):
    def fail(name):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(base.importlib, "import_module", fail)
    with pytest.raises(ConfigError, match=says):
        base.make_trackers(["wandb"])


def test_a_tracker_without_an_extra_is_told_the_module_and_not_an_extra(monkeypatch):
    monkeypatch.setattr(base.metadata, "requires", lambda _: None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "selfcorrect.trackers.wandb", raising=False)
    with pytest.raises(ConfigError, match="install the package that has the module wandb, or leave") as caught:
        base.make_trackers(["wandb"])
    assert "pip install" not in str(caught.value)


def test_doctor_lists_the_packages_of_trackers_and_no_tracker_without_one(monkeypatch):
    lists = lambda: {f.name: f.fix for f in doctor._software()}  # noqa: E731
    monkeypatch.setattr(doctor.metadata, "version", fail := Mock(side_effect=doctor.metadata.PackageNotFoundError))
    assert {base.package_of(name) for name in NAMES} - {None} <= lists().keys()
    assert lists()["wandb"] == "pip install 'selfcorrect[wandb]'" and fail.called
    monkeypatch.setattr("selfcorrect.trackers.package_of", lambda _: None)
    assert not set(NAMES) & lists().keys()


def test_a_run_whose_tracker_cannot_start_leaves_nothing_and_resume_can_do_without(cli, tmp_path, monkeypatch):
    made = []

    def make(name):
        made.append(Fake(name, "start" if len(made) == 0 else None))
        return made[-1]

    monkeypatch.setattr(trackers, "make_trackers", lambda names: [make(name) for name in names])
    model = tiny.save_model(tmp_path / "m")
    train = [
        "train",
        *toy.SMALL,
        f"model={model}",
        f"run_dir={tmp_path / 'run'}",
        "trackers=wandb",
        "eval.controls=false",
    ]
    code, _, err = cli(*train)
    assert code == 2 and "tracker wandb could not be started" in err and not (tmp_path / "run").exists()
    code, out, _ = cli(*train, "--json")
    assert code == 0 and json.loads(out)["step"]  # nothing of a tracker's on standard output
    assert steps_of(made[1]) == [1, 2, 3, 4, 5]
    code, _, err = cli("train", "--resume", tmp_path / "run", "trackers=none", "seed=3")
    assert code == 2 and "only trackers= may change" in err


def test_resume_takes_other_trackers(cli, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        trackers, "make_trackers", lambda names: [made.append(Fake(name)) or made[-1] for name in names]
    )
    model = tiny.save_model(tmp_path / "m")
    run = toy.config(tmp_path / "run", f"model={model}", "trackers=wandb", "eval.controls=false")
    directory = RunDirectory.create(run)
    with pytest.raises(Interrupted):
        run_experiment(job(run), directory, engine(run), toy.Watcher(), stop_requested=lambda: True)
    code, _, _ = cli("train", "--resume", tmp_path / "run", "trackers=trackio")
    assert code == 0 and [t.name for t in made] == ["trackio"] and steps_of(made[0]) == [1, 2, 3, 4, 5]
    assert RunDirectory.open(tmp_path / "run").config.trackers == ("wandb",)


# --- the packages themselves ------------------------------------------------------------------------------------------


def process(tmp_path, name, metrics_of, environment=()):
    """One process of a run that only tells its tracker: numbers at some steps."""
    code = f"""
import sys
from pathlib import Path
from selfcorrect.trackers import Tracked, make_trackers
(tracker,) = make_trackers(["{name}"])
tracker.start(Tracked("1a2b3c4d", "run", Path({str(tmp_path)!r}), {{"train": {{"steps": 5}}}}))
for step, value in {metrics_of!r}.items():
    tracker.log(step, {{"train/reward/t1": value}})
tracker.finish()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **dict(environment)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_tensorboard_reads_back_what_two_processes_wrote(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    process(tmp_path, "tensorboard", {1: 0.25, 2: 0.5})
    process(tmp_path, "tensorboard", {3: 0.75})
    found = reading.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("train/reward/t1")] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert [e.step for e in found.Tensors("config/text_summary")] == [0]


def leveldb_log(data):
    """Records of a LevelDB log of one block: checksum (4 bytes), length (2), kind (1; 1 is whole), content."""
    while data:
        length, kind = struct.unpack("<HB", data[4:7])
        assert kind == 1
        yield data[7 : 7 + length]
        data = data[7 + length :]


def test_wandb_offline_goes_on_with_the_same_id(tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    offline = {"WANDB_MODE": "offline", "WANDB_API_KEY": "", "HOME": str(tmp_path)}
    process(tmp_path, "wandb", {1: 0.25, 2: 0.5}, offline)
    process(tmp_path, "wandb", {3: 0.75, 2: 1.0}, offline)  # the kept checkpoint lies before the last step
    said = []
    for file in sorted(tmp_path.glob("wandb/offline-run-*-1a2b3c4d/run-1a2b3c4d.wandb")):
        for data in leveldb_log(file.read_bytes()[7:]):  # behind wandb's own header
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("history"):
                items = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
                said.append((items["step"], items["train/reward/t1"]))
    assert said == [(1, 0.25), (2, 0.5), (3, 0.75), (2, 1.0)]


def test_trackio_on_this_machine_goes_on_with_the_same_run(tmp_path):
    pytest.importorskip("trackio")
    where = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    process(tmp_path, "trackio", {1: 0.25, 2: 0.5}, where)
    process(tmp_path, "trackio", {3: 0.75}, where)
    with sqlite3.connect(tmp_path / "trackio" / "selfcorrect.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [(name, step, json.loads(m)["train/reward/t1"]) for name, step, m in rows] == [
        ("run-1a2b3c4d", 1, 0.25),
        ("run-1a2b3c4d", 2, 0.5),
        ("run-1a2b3c4d", 3, 0.75),
    ]
