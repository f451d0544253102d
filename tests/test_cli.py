"""The commands as a user types them: help, results, and every kind of bad input."""

import importlib.util
import json
import os
import resource
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import tiny
import toy
from selfcorrect import cli as package
from selfcorrect import experiment
from selfcorrect.cli.sft import repeated_settings
from selfcorrect.config import load_config
from selfcorrect.engines import models
from selfcorrect.experiment import make_engine
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.tasks import TASKS

BEHIND = ["--backend-url", "http://localhost:1/v1", "--backend-model", "x"]
COMMANDS = (
    "train",
    "eval",
    "scale",
    "compare",
    "report",
    "sft",
    "validate",
    "probe",
    "grade",
    "doctor",
    "serve",
    "export",
    "reproduce",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("model"))


def quick(model, run_dir, *overrides):
    return ["train", *toy.SMALL, f"model={model}", f"run_dir={run_dir}", *overrides]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert f"Example: selfcorrect {command}" in " ".join(out.split())


def test_the_program_lists_its_commands(cli):
    _, out, _ = cli("--help")
    listed = [line.split()[1] for line in out.split("Commands")[1].splitlines() if line.startswith("│ ")]
    assert set(COMMANDS) < set(listed) == package.COMMANDS.keys()


def test_a_misspelt_command_is_told_the_right_one(cli):
    code, _, err = cli("trian")
    assert code == 2 and "Did you mean 'train'?" in err


def test_every_command_that_prints_a_table_has_json(cli):
    for command in ("train", "eval", "scale", "compare", "validate", "probe", "doctor", "reproduce"):
        assert "--json" in cli(command, "--help")[1]


# --- bad input ---------------------------------------------------------------------------------------------------


def write(path, text):
    path.write_text(text)
    return path


def model_without(tmp, *names):
    path = tiny.save_model(tmp / "maimed")
    for name in names:
        (path / name).unlink()
    return path


def gsm8k(tmp, text):
    (tmp / "data").mkdir()
    write(tmp / "data" / "test.jsonl", '{"question": "1+1?", "answer": "it is #### 2"}\n')
    write(tmp / "data" / "train.jsonl", text)
    return ["task=gsm8k", f"task.path={tmp / 'data'}"]


def run_over(tmp):
    (tmp / "old").mkdir()
    write(tmp / "old" / "results.txt", "precious")
    return tmp / "old"


LINE = '{"question": "2+2?", "answer": "it is #### 4"}\n'
BAD = {
    # name: (arguments of `selfcorrect`, made in a scratch directory; what the paragraph must say: fault and way out)
    "unknown key": (lambda t, m: ["train", "nonsense=1"], ["nonsense", "--dry-run"]),
    "misspelt key": (lambda t, m: ["train", "train.step=3"], ["train.step", "did you mean train.steps"]),
    "a trap": (lambda t, m: ["train", "train.temperature=0.7"], ["temperature 1", "eval.temperature"]),
    "wrong type": (lambda t, m: ["train", "train.steps=many"], ["train.steps", "many", "integer"]),
    "out of range": (lambda t, m: ["train", "method.gamma=2"], ["method.gamma", "less than or equal to 1"]),
    "unknown method": (lambda t, m: ["train", "method=magic"], ["method.name", "magic", "score"]),
    "unknown task": (lambda t, m: ["train", "task=chess", f"model={m}"], ["chess", "arithmetic", "gsm8k"]),
    "section as a value": (lambda t, m: ["train", "train=3"], ["is a section", "set one of: steps"]),
    "no such file": (lambda t, m: ["train", "paper.toml"], ["paper.toml", "does not exist", "TOML"]),
    "bad TOML": (lambda t, m: ["train", write(t / "c.toml", "[train\n")], ["not valid TOML", "line 1"]),
    "unknown key in TOML": (
        lambda t, m: ["train", write(t / "c.toml", "[train]\nlr = 1\n")],
        ["train.lr", "train.learning_rate"],
    ),
    "two files": (lambda t, m: ["train", "a.toml", "b.toml"], ["two config files", "key=value"]),
    "group of one": (lambda t, m: ["train", "train.samples_per_problem=1"], ["leave-one-out", "at least 2"]),
    "one attempt": (
        lambda t, m: ["train", "play.attempts=1", f"model={m}"],
        ["play.attempts", "nothing to correct"],
    ),
    "one step": (lambda t, m: ["train", "train.steps=1", f"model={m}"], ["two stages", "at least 2"]),
    "greedy samples": (lambda t, m: ["train", "eval.samples=4"], ["eval.samples", "same greedy answer"]),
    "missing model": (lambda t, m: ["train", f"model={t / 'none'}"], ["does not exist", "tiny", "smollm2"]),
    "no chat template": (
        lambda t, m: ["train", f"model={model_without(t, 'chat_template.jinja')}"],
        ["no chat template", "instruct model"],
    ),
    "no tokenizer": (
        lambda t, m: ["train", f"model={model_without(t, 'tokenizer.json', 'tokenizer_config.json')}"],
        ["no tokenizer", "copy"],
    ),
    "no weights": (
        lambda t, m: quick(model_without(t, "model.safetensors"), t / "r"),
        ["could not be loaded", "save_pretrained"],
    ),
    "no CUDA": (lambda t, m: quick(m, t / "r", "engine.device=cuda"), ["no CUDA device", "engine.device=cpu"]),
    "revision of a directory": (
        lambda t, m: ["train", f"model={m}", "model.revision=v1"],
        ["would be ignored", "drop the setting"],
    ),
    "empty data set": (lambda t, m: ["train", f"model={m}", *gsm8k(t, "")], ["empty", "at least one row"]),
    "malformed line": (
        lambda t, m: ["train", f"model={m}", *gsm8k(t, LINE + '{"question": \n')],
        ["train.jsonl line 2"],
    ),
    "missing field": (
        lambda t, m: ["train", f"model={m}", *gsm8k(t, LINE * 2 + '{"prompt": "?"}\n')],
        ["train.jsonl line 3", "no field 'answer'"],
    ),
    "no data": (
        lambda t, m: ["train", f"model={m}", "task=gsm8k", f"task.path={t / 'x'}"],
        ["does not exist", "task.path"],
    ),
    "data for nothing": (
        lambda t, m: ["train", f"model={m}", "task.path=x"],
        ["would be ignored", "drop it, or use task=gsm8k"],
    ),
    "settings of sft": (
        lambda t, m: ["train", f"model={m}", "sft.steps=3"],
        ["sft.*", "would be ignored", "selfcorrect sft"],
    ),
    "adapters' scale without adapters": (
        lambda t, m: ["train", f"model={m}", "model.lora_rank=0", "model.lora_alpha=16"],
        ["model.lora_alpha = 16.0 would be ignored", "set model.lora_rank"],
    ),
    "short cap": (
        lambda t, m: ["train", f"model={m}", "play.max_new_tokens=9"],
        ["max_new_tokens=9 is shorter than the answer format", "raise play.max_new_tokens"],
    ),
    "long cap": (
        lambda t, m: ["train", f"model={m}", "play.max_new_tokens=400"],
        ["512 positions", "lower play.max_new_tokens"],
    ),
    "existing run directory": (
        lambda t, m: quick(m, run_over(t)),
        ["exists already and is not overwritten", "--resume", "run_dir=NEW"],
    ),
    "unwritable run directory": (
        lambda t, m: quick(m, write(t / "file", "") / "run"),
        ["cannot be written", "is a file", "run_dir=NEW"],
    ),
    "resume with settings": (
        lambda t, m: ["train", "--resume", t, "train.steps=3"],
        ["its own settings", "drop the settings"],
    ),
    "resume nothing": (lambda t, m: ["train", "--resume", t / "none"], ["not a run directory", "`train` printed"]),
    "resume a model": (lambda t, m: ["train", "--resume", m], ["not a run directory", "`train` printed"]),
    "eval: missing model": (lambda t, m: ["eval", t / "none"], ["does not exist", "tiny"]),
    "eval: bad limit": (lambda t, m: ["eval", m, "limit=0"], ["eval.problems", "greater than or equal to 1"]),
    "eval: existing output": (
        lambda t, m: ["eval", m, "--out", write(t / "o.jsonl", "precious")],
        ["exists already and is not overwritten"],
    ),
    "eval: unwritable output": (
        lambda t, m: ["eval", m, "--out", write(t / "file", "") / "o.jsonl"],
        ["cannot be written", "is a file", "name another place"],
    ),
    "compare: nothing there": (lambda t, m: ["compare", t / "none"], ["not a run directory"]),
    "compare: a model": (lambda t, m: ["compare", m], ["not a run directory"]),
    "serve: nothing": (lambda t, m: ["serve"], ["no model is named", "--backend-url"]),
    "serve: missing model": (lambda t, m: ["serve", t / "none", "--port", "0"], ["does not exist", "tiny"]),
    "serve: a training typo": (lambda t, m: ["serve", m, "engine.devices=cpu"], ["did you mean engine.device"]),
    "serve: no key beyond this machine": (
        lambda t, m: ["serve", m, "--host", "0.0.0.0", "--port", "0"],
        ["can be reached from other machines", "SELFCORRECT_API_KEY", "127.0.0.1"],
    ),
    "serve: no such key file": (lambda t, m: ["serve", m, "--api-key-file", t / "key"], ["cannot be read", "key"]),
    "serve: two models": (
        lambda t, m: ["serve", m, *BEHIND],
        ["one model is served", "drop one"],
    ),
    "serve: a backend without a name": (
        lambda t, m: ["serve", "--backend-url", "http://localhost:1/v1"],
        ["needs --backend-model"],
    ),
    "serve: not an address": (
        lambda t, m: ["serve", "--backend-url", "localhost", "--backend-model", "x", "--port", "0"],
        ["not the address of an endpoint", "/v1"],
    ),
    "serve: a training setting": (
        lambda t, m: ["serve", m, "train.steps=5"],
        ["'train.steps' would be ignored", "only model.*", "drop it"],
    ),
    "serve: two instructions": (
        lambda t, m: ["serve", m, "task.instruction=Again.", "--instruction", "Again!"],
        ["task.instruction would be ignored", "drop one"],
    ),
    "serve: a context of another's model": (
        lambda t, m: ["serve", *BEHIND, "--max-context", "100"],
        ["--max-context would be ignored with --backend-url"],
    ),
    "serve: an engine of another's model": (
        lambda t, m: ["serve", "engine.device=cpu", *BEHIND],
        ["'engine.device' would be ignored", "elsewhere"],
    ),
    "serve: a precision of another's model": (
        lambda t, m: ["serve", *BEHIND, "model.dtype=bfloat16"],
        ["'model.dtype' would be ignored", "elsewhere"],
    ),
    "serve: a verdict of another's model is a setting, but a key is missing": (
        lambda t, m: ["serve", "method=pag", *BEHIND, "--host", "0.0.0.0", "--port", "0"],
        ["can be reached from other machines"],
    ),
    "sft: existing directory": (
        lambda t, m: ["sft", run_over(t), f"model={m}"],
        ["exists already and is not overwritten", "name another place"],
    ),
    "sft: a place of its own": (
        lambda t, m: ["sft", t / "warm", f"model={m}", "run_dir=there"],
        ["'run_dir' would be ignored", "warm.run", "drop it"],
    ),
    "sft: no output": (lambda t, m: ["sft"], ["sft needs a directory", "selfcorrect sft OUT"]),
    "sft: nothing to continue": (
        lambda t, m: ["sft", "--resume", t / "warm"],
        ["warm.run is not a run directory", "warmup.json"],
    ),
    "sft: nothing to show": (
        lambda t, m: ["sft", t / "warm", f"model={m}", *gsm8k(t, LINE), "play.max_new_tokens=60"],
        ["no demonstrations", "a method demonstrations (docs/your-own-task.md)"],
    ),
}
NEEDS_WEIGHTS = {"no weights"}
"""Faults that only show in the weights' file."""


def tree(path):
    return {p: (p.read_bytes() if p.is_file() else None) for p in path.rglob("*")}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_paragraph_before_any_weights_load_and_writes_nothing(cli, model, tmp_path, monkeypatch, name):
    if name == "no CUDA":
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    if name not in NEEDS_WEIGHTS:
        monkeypatch.setattr(models, "load_model", lambda *_: pytest.fail("weights were loaded"))
    make, expected = BAD[name]
    arguments = make(tmp_path, model)
    before = tree(tmp_path)
    code, out, err = cli(*arguments)
    assert code not in (0, None)
    assert out == ""
    paragraph = err.strip().splitlines()[-1]
    assert paragraph.startswith("selfcorrect: ")
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2  # before it, at most the line that says what starts
    for part in expected:
        assert part in paragraph
    assert tree(tmp_path) == before


def test_serve_without_its_extra_names_the_command_that_installs_it(cli, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    code, _, err = cli("serve", "tiny")
    assert (code, err.count("\n")) == (2, 1)
    assert "needs uvicorn" in err and "pip install 'selfcorrect[serve]'" in err


@pytest.mark.parametrize(
    ("arguments", "code", "says", "seconds"),
    [(["--help"], 0, "correct its own answers", 0.4), (["train", "nonsense=1"], 2, "unknown setting 'nonsense'", 0.6)],
)
def test_help_and_a_typo_are_answered_at_once_and_without_heavy_libraries(tmp_path, arguments, code, says, seconds):
    program = (
        f"import atexit, sys; from selfcorrect.cli import main; sys.argv = ['selfcorrect', *{arguments!r}];"
        "atexit.register(lambda: print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])); main()"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code
    assert says in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    # Processor time: on an idle machine it is the wall time, and on a busy one other processes do not count.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < seconds


def test_python_m_is_the_same_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "selfcorrect", "train", "nonsense=1"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr.startswith("selfcorrect: unknown setting")) == (2, True)


def test_ctrl_c_while_loading_exits_130_without_a_traceback(cli, model, tmp_path, monkeypatch):
    def stopped(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "prepare", stopped)
    code, _, err = cli(*quick(model, tmp_path / "run"))
    assert code == 130 and "Traceback" not in err


# --- disks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 70 MiB of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=70m", "tmpfs", str(path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this sandbox refuses mounts")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk, leave):
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(b"x" * (free - leave))


def test_a_full_disk_is_refused_before_the_run(cli, model, small_disk):
    fill(small_disk, 5 * 2**20)
    code, _, err = cli(*quick(model, small_disk / "run"))
    assert code == 2 and "only 5 MiB are free" in err
    assert [p.name for p in small_disk.iterdir()] == ["filler"]


def test_a_disk_that_fills_up_in_the_run_leaves_whole_checkpoints(cli, model, small_disk, monkeypatch):
    sizes = []
    write = RunDirectory.writing_checkpoint

    def filling(self, progress):
        if progress.step == 4:
            fill(small_disk, 20_000)  # a checkpoint of this model takes about 300 KB
        sizes.append(progress.step)
        return write(self, progress)

    monkeypatch.setattr(RunDirectory, "writing_checkpoint", filling)
    code, _, err = cli(*quick(model, small_disk / "run", "eval.controls=false"))
    assert code == 2 and "Traceback" not in err
    paragraph = err.strip().splitlines()[-1]
    assert "step-0000004 could not be written" in paragraph and "--resume" in paragraph
    assert sorted(p.name for p in (small_disk / "run" / "checkpoints").iterdir()) == ["step-0000000", "step-0000002"]
    (small_disk / "filler").unlink()
    monkeypatch.setattr(RunDirectory, "writing_checkpoint", write)
    code, out, _ = cli("train", "--resume", small_disk / "run", "--json")
    assert code == 0 and json.loads(out)["evaluations"].keys() == {"base", "final"}


def test_a_disk_too_full_for_the_config_leaves_no_run_directory(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(package.SelfCorrectError, match="No space left on device"):
        RunDirectory.create(toy.config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# --- good input --------------------------------------------------------------------------------------------------


def test_the_version_is_that_of_the_package(cli):
    assert cli("--version") == (0, f"{version('selfcorrect')}\n", "")


def test_dry_run_prints_the_resolved_settings_and_writes_nothing(cli, tmp_path):
    file = write(tmp_path / "c.toml", 'model = "smollm2"\n[train]\nsteps = 7\nlearning_rate = 1e-5\n')
    before = tree(tmp_path)
    code, out, err = cli("train", file, "train.steps=9", "--dry-run")
    assert code == 0
    assert [[cell.strip() for cell in line.split("│")[1:-1]] for line in err.splitlines() if "Stage" in line] == [
        ["Stage I", "4", "2", "3", "0 1", "0.11 0.01", "0"],
        ["Stage II", "5", "2", "3", "1 1", "0.01 0.01", "10"],
    ]
    printed = json.loads(out)
    assert printed == load_config(file, ["train.steps=9"]).model_dump(mode="json")
    assert printed["train"]["steps"] == 9  # the command line over the file
    assert printed["train"]["learning_rate"] == 1e-5  # the file over the preset
    assert printed["model"]["lora_rank"] == 16  # the preset over the class
    assert printed["method"]["alpha"] == 10  # the class
    assert tree(tmp_path) == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model):
    """Two finished runs of different methods, and what `train` printed of them."""
    patch = pytest.MonkeyPatch()
    patch.setitem(TASKS, "toy", lambda config: toy.Toy())
    root = tmp_path_factory.mktemp("runs")
    for method in ("score", "multi_turn"):
        settings = quick(model, root / method, f"method={method}")[1:]
        config = load_config(None, settings)
        job = experiment.prepare(config)
        experiment.run_experiment(job, RunDirectory.create(config), experiment.make_engine(job), toy.Watcher())
    yield root
    patch.undo()


def test_train_ends_with_a_table_and_the_paths_of_what_it_wrote(cli, model, tmp_path):
    code, out, err = cli(*quick(model, tmp_path / "run"))
    assert code == 0
    rows = [line for line in out.splitlines() if line.startswith("│")]
    names = [row.split("│")[1].strip() for row in rows]
    assert names[0] == "base" and "base, attempt 1 swapped".startswith(names[1]) and names[1] != "base"  # wrapped
    assert any(row.split("│")[1].strip() == "score" for row in rows)
    paths = [
        line.split(maxsplit=1)[1] for line in out.splitlines() if line.split()[:1] in (["run"], ["model"], ["records"])
    ]
    assert len(paths) == 3 and all(Path(p).exists() for p in paths)
    assert "Stage I" in err and "Stage II" in err and "measuring the base model" in err


def test_train_json_is_one_object_on_standard_output(cli, model, tmp_path):
    code, out, _ = cli(*quick(model, tmp_path / "run", "eval.controls=false"), "--json")
    printed = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert printed["run"] == str(tmp_path / "run")
    assert printed["evaluations"]["final"]["n_problems"] == 6
    stored = {r.name: r.summary for r in RunDirectory.open(tmp_path / "run").records() if r.kind == "eval"}
    assert printed["evaluations"] == stored


def strict(text):
    """JSON without NaN, which other readers refuse."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_eval_of_a_run_is_the_runs_own_final_measurement(cli, finished):
    code, out, _ = cli("eval", finished / "score", "--json")
    assert code == 0
    printed = strict(out)
    records = RunDirectory.open(finished / "score").records()
    stored = {r.name: r.summary for r in records if r.kind == "eval"}
    assert printed["plain"]["summary"] == stored["final"]
    assert printed["plain-swapped"]["summary"] == stored["final-swapped"]


def test_eval_of_a_run_takes_other_eval_settings_but_no_other_model(cli, finished):
    code, out, _ = cli("eval", finished / "score", "--json", "attempts=3", "limit=4", "eval.controls=false")
    assert code == 0
    settings = json.loads(out)["plain"]["settings"]
    assert (settings["attempts"], settings["problems"]) == (3, 4)
    code, _, err = cli("eval", finished / "score", "model.dtype=bfloat16")
    assert code == 2 and "brings its own model" in err


def test_eval_of_an_exported_model(cli, finished, tmp_path):
    settings = ["task=toy", "limit=6", "play.max_new_tokens=4", "model.dtype=float32", "engine.device=cpu"]
    code, out, _ = cli("eval", finished / "score" / "model", *settings, "--json", "--out", tmp_path / "episodes.jsonl")
    assert code == 0
    records = RunDirectory.open(finished / "score").records()
    stored = {r.name: r.summary for r in records if r.kind == "eval"}
    assert strict(out)["plain"]["summary"] == stored["final"]
    rows = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert sum(row["evaluation"] == "plain" for row in rows) == 6
    code, out, _ = cli("eval", finished / "score" / "model", *settings, "eval.controls=false")
    assert code == 0 and "t1" in out and "plain" in out


def test_eval_with_self_refine_has_an_ungraded_turn_before_every_correction(cli, finished, tmp_path):
    settings = ["task=toy", "limit=4", "play.max_new_tokens=4", "model.dtype=float32", "engine.device=cpu"]
    where, out_file = finished / "score" / "model", tmp_path / "episodes.jsonl"
    code, out, _ = cli("eval", where, *settings, "method=self_refine", "--json", "--out", out_file)
    assert code == 0
    printed = strict(out)
    assert printed["plain"]["settings"]["feedback"].startswith("Read your answer again")
    assert len(printed["plain"]["summary"]["attempts"]) == 2 and "plain-swapped" in printed
    rows = [json.loads(line) for line in out_file.read_text().splitlines()]
    assert all([a["verdict"] is None for a in row["attempts"]] == [False, True, False] for row in rows)
    plain = strict(cli("eval", where, *settings, "--json")[1])["plain"]
    assert "feedback" not in plain["settings"]
    assert (
        plain["summary"]["attempts"][0] == printed["plain"]["summary"]["attempts"][0]
    )  # the first answers are the same
    code, _, err = cli("eval", where, *settings, "method=self_refine", "attempts=1")
    assert code == 2 and "eval.attempts" in err
    code, _, err = cli("train", *settings[:1], f"model={where}", "method=self_refine", f"run_dir={tmp_path / 'run'}")
    assert code == 2 and "selfcorrect eval" in err and not (tmp_path / "run").exists()


def test_a_supervised_run_says_what_it_collects_and_keeps(cli, model, tmp_path):
    code, out, err = cli(*quick(model, tmp_path / "run", "method=star", "method.dataset=D+", "eval.controls=false"))
    assert code == 0 and "star" in out
    assert "STaR D+, iteration 1 of 3: 2 steps from step 1" in err
    assert "star3: sampled part 1 of 1, kept" in err
    assert "nats per token" in err and "keeping step 5, the last" in err


def test_train_json_names_the_step_that_is_kept(cli, model, tmp_path):
    settings = ("eval.controls=false", "--json")
    printed = json.loads(cli(*quick(model, tmp_path / "star", "method=star", "method.dataset=D+"), *settings)[1])
    assert printed["step"] == 5  # no training reward to choose by: the last
    printed = json.loads(cli(*quick(model, tmp_path / "score"), *settings)[1])
    evaluated = {r.name: r.step for r in RunDirectory.open(tmp_path / "score").records() if r.kind == "eval"}
    assert printed["step"] == evaluated["final"]


def test_a_model_is_measured_without_adapters_or_masters(cli, model, monkeypatch):
    made = []

    def keep(job, **options):
        made.append(make_engine(job, **options))
        return made[-1]

    monkeypatch.setattr("selfcorrect.experiment.make_engine", keep)
    settings = ["task=toy", "limit=2", "play.max_new_tokens=4", "engine.device=cpu", "eval.controls=false"]
    assert cli("eval", model, *settings)[0] == 0  # the preset of a language model: bfloat16, lora_rank=32
    assert made[0].info.trainable_parameters == 0
    assert made[0].info.parameters == sum(p.numel() for p in made[0]._base.parameters())


def test_eval_of_a_lora_run(cli, model, tmp_path):
    code, _, err = cli(*quick(model, tmp_path / "run", "model.lora_rank=2", "eval.controls=false"))
    assert code == 0, err
    code, out, err = cli("eval", tmp_path / "run", "--json")
    stored = {r.name: r.summary for r in RunDirectory.open(tmp_path / "run").records() if r.kind == "eval"}
    assert code == 0 and json.loads(out)["plain"]["summary"] == stored["final"]
    assert err == "no controls: the run was made with eval.controls=false; add eval.controls=true to measure them\n"
    _, out, err = cli("eval", tmp_path / "run", "--json", "eval.controls=true")
    assert err == "" and "plain-swapped" in json.loads(out)
    assert cli("eval", tmp_path / "run", "--json", "eval.controls=false")[2] == ""  # asked for


def test_compare_puts_methods_side_by_side(cli, finished):
    code, out, _ = cli("compare", finished / "score", finished / "multi_turn", "--json")
    assert code == 0
    assert [row["name"] for row in strict(out)] == ["base", "score", "multi_turn"]
    code, out, _ = cli("compare", finished / "score", finished / "multi_turn")
    assert code == 0 and all(name in out for name in ("base", "score", "multi_turn", "t2 - base t2"))


def test_compare_refuses_an_unfinished_run(cli, finished, tmp_path):
    run = RunDirectory.create(toy.config(tmp_path / "new"))
    code, _, err = cli("compare", finished / "score", run.path)
    assert code == 2
    assert "has not finished" in err and f"--resume {run.path}" in err


def test_a_run_has_one_writer(cli, tmp_path, model):
    run = RunDirectory.create(load_config(None, [*toy.SMALL, f"model={model}", f"run_dir={tmp_path / 'new'}"]))
    with run.writing():
        code, _, err = cli("train", "--resume", run.path)
    assert code == 2 and "another process is writing" in err
    assert not run.metrics_file.exists()


def test_a_finished_run_is_not_resumed(cli, finished):
    path = finished / "score"
    before = (path / "metrics.jsonl").read_bytes()
    code, _, err = cli("train", "--resume", path)
    assert code == 2 and "is finished, after" in err and f"selfcorrect compare {path}" in err
    assert (path / "metrics.jsonl").read_bytes() == before


def test_sft_writes_a_model_that_train_starts_from(cli, model, tmp_path):
    settings = [*toy.SMALL, f"model={model}", "sft.steps=2", "sft.examples_per_step=2"]
    code, out, err = cli("sft", tmp_path / "warm", *settings)
    assert code == 0 and str(tmp_path / "warm") in out and "Warm-up step 2  loss" in err
    assert f"train model={tmp_path / 'warm'} task=toy" in out
    own = ["task.options.sizes=[3,4]", "task.options.name=a b", 'task.options.text="3"']
    _, out, _ = cli("sft", tmp_path / "again", *settings, *own)
    (line,) = [line for line in out.splitlines() if line.startswith("next")]
    command = shlex.split(line.removeprefix("next"))
    assert load_config(None, command[2:]).task.options == {
        "sizes": [3, 4],
        "name": "a b",
        "text": "3",
    }  # as they were given
    assert cli(*quick(tmp_path / "warm", tmp_path / "run", "eval.controls=false"))[0] == 0


def test_the_command_after_sft_renders_as_the_warm_up_did():
    settings = [
        "model.history=strip",
        "model.template_kwargs.enable_thinking=false",
        "model.template_kwargs.effort=low",
        'model.think_markers=["<a b>", "</a>"]',
        "task=toy",
        "task.shown_as=user",
        "task.options.noisy=False",
    ]
    config = load_config(None, settings)
    again = load_config(None, repeated_settings(config))
    assert (again.model, again.task) == (config.model, config.task)
    assert again.task.options == {"noisy": False}


def test_sft_needs_no_sampler(cli, model, tmp_path, monkeypatch):
    monkeypatch.setattr("selfcorrect.engines.vllm_extra.vllm_version", lambda: None)
    settings = ["engine.sampler=vllm", "engine.sampler_memory_gb=2", "sft.steps=1", "sft.examples_per_step=1"]
    assert cli("train", *toy.SMALL, f"model={model}", *settings[:2], f"run_dir={tmp_path / 'run'}")[0] == 2
    assert cli("sft", tmp_path / "warm", *toy.SMALL, f"model={model}", *settings)[0] == 0


def test_a_real_task_trains_from_a_model_directory(cli, model, tmp_path):
    settings = [
        "task=arithmetic",
        "play.max_new_tokens=24",
        "eval.problems=3",
        "train.steps=2",
        "train.problems_per_step=2",
    ]
    code, out, _ = cli(*quick(model, tmp_path / "run", *settings), "--json")
    assert code == 0
    final = strict(out)["evaluations"]["final"]
    assert final["n_problems"] == 3
    (episode, *_) = RunDirectory.open(tmp_path / "run").episodes_file.read_text().splitlines()
    assert json.loads(episode)["question"].startswith("What is the last digit of ")


def test_doctor_names_what_is_missing_and_how_to_fix_it(cli, monkeypatch):
    code, out, _ = cli("doctor", "--json")
    findings = {f["name"]: f for f in json.loads(out)}
    assert {"python", "torch", "transformers", "device", "tiny model", "free disk here"} <= findings.keys()
    assert findings["torch"]["ok"]
    assert (code == 0) == all(f["ok"] for f in findings.values() if f["needed"])

    from importlib import metadata

    version = metadata.version

    def without_peft(name):
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_peft)
    code, out, _ = cli("doctor")
    assert code == 1
    missing = out[out.index("MISSING peft") :].splitlines()
    assert missing[1].strip().startswith("fix with: pip install")
