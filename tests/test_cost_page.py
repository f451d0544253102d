"""docs/cost.md and configs/: every file loads, its commands run, and the page says what the model gives."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from typer.testing import CliRunner

import cost_page
import growth
import growth_fit
from pages import ROOT, text_of
from selfcorrect.algorithm.stages import plan
from selfcorrect.cli import make_app
from selfcorrect.config import Config, load_config
from selfcorrect.tasks import make_task
from work import Work

CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


def commands(config):
    return [shlex.split(line)[1:] for line in re.findall(r"^#   (selfcorrect .*)$", text_of(config), re.M)]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda p: p.name)
def test_a_config_is_a_run_and_is_on_the_page(file):
    config = load_config(file, [])
    assert [stage.name for stage in plan(config)] == ["stage1", "stage2"]
    make_task(config.task)
    assert f"](../configs/{file.name})" in text_of(cost_page.PAGE)
    assert "NOT RUN" in text_of(file).splitlines()[0]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda p: p.name)
def test_the_commands_of_a_config_run(file, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    *before, train = commands(file)
    assert train[:2] == ["train", f"configs/{file.name}"]
    shown = CliRunner().invoke(make_app(), [*train[:2], "--dry-run"])
    config = load_config(file, [])
    for command in (*before, train):
        if command[0] in ("sft", "probe", "train"):
            assert f"configs/{file.name}" in command
            load_config(file, [word for word in command if "=" in word])
    servers = [command for command in before if command[0] == "cluster"]
    assert [command[0] for command in before if command not in servers] in ([], ["sft", "probe"])
    assert shown.exit_code == 0 and Config.model_validate(json.loads(shown.stdout)) == config
    assert len(servers) == (config.engine.name == "tinker")
    for command in servers:
        into = command.index("--write") + 1
        command[into] = str(tmp_path / "server")
        written = CliRunner().invoke(make_app(), command)
        assert written.exit_code == 0, written.output
        cluster = cost_page.cluster_of(file.name)
        assert (cluster.model, cluster.rank) == (config.model.name, config.model.lora_rank)
        assert f":{cluster.port}" in str(config.engine.base_url)
        assert f"{cluster.gpus * cluster.nodes}xh100" in file.name


def test_the_page_says_what_the_model_gives():
    stale = "docs/cost.md is stale: run python benchmarks/growth.py --write-page"
    text = text_of(cost_page.PAGE)
    assert cost_page.page(text) == text, stale
    assert cost_page.page(text.replace("| **step, s** |", "| **gone** |")) == text
    assert "**Not run.**" in text


def test_every_model_of_the_page_fits_its_gpu():
    for case in cost_page.cases():
        top = max(cost_page.cm.peaks(case.setup, cost_page.cm.memory(case.setup, case.work)).values())
        assert top < 0.9 * cost_page.GPU_BYTES, case.title


def made_result(quick=False):
    """What a machine would measure whose prices are exactly these."""
    prices = {
        **dict.fromkeys(growth_fit.cm.UNITS, 0.0),
        "prefill": 1e-11,
        "decode": 3e-11,
        "kv": 2e-10,
        "weights": 1e-10,
    }
    prices |= {"forward": 2e-11, "train": 1.5e-11, "adam": 5e-9}
    result = {"model": "SmolLM2-135M", "dtype": "float32", "lora": 0, "timed_steps": 1, "points": []}
    result["machine"] = {"cores": 2, "threads": 2, "torch": "0"}
    for point in growth.points(quick):
        work, setup = Work(**point["work"]), growth_fit.setup_of(result, point)
        s = growth_fit.cm.seconds(growth_fit.cm.step_work(setup, work), prices)
        sample = [s[f"sample {k + 1}"] for k in range(work.attempts)]
        seconds = {"sample": sample, "reference": s["reference"], "policy": 0.0, "update": s["update"]}
        parts = growth_fit.cm.memory(setup, work)
        rest = sum(parts[p] for p in growth_fit.cm.TRAINING if p != "activations")
        peak = 5e8 + 1.2 * parts["activations"] + rest
        result["points"].append({**point, "seconds": seconds, "peak": peak, "load_before": 0.1})
    return result, prices


def test_the_fit_finds_the_prices_of_a_made_machine():
    result, prices = made_result()
    found = growth_fit.analyse(result)
    assert found["prices"] == pytest.approx({k: v for k, v in prices.items() if v}, rel=1e-6)
    assert found["memory"] == pytest.approx({"process": 5e8, "activations_factor": 1.2}, rel=1e-6)
    assert found["r2"] == pytest.approx(1)
    assert found["lines"]["samples"]["r2"] == pytest.approx(1)
    # not exactly: of a batch above the slot budget only the last caches are kept for attempt 2
    assert 0.99 < found["lines"]["batch"]["r2"] < 1
    tables = cost_page.measured_tables(result)
    assert "+0%" in tables and "nan" not in tables
    assert "4 times the batch (4 to 16 problems) took 1.00 times the peak memory: +0 MB" in tables


def test_the_axes_start_from_the_base_and_the_whole_is_measured_once():
    for quick, base in ((False, growth.BASE), (True, growth.QUICK_BASE)):
        points = growth.points(quick)
        assert points[0]["work"]["samples"] == base.samples and len(points[0]["axes"]) == 4
        assert len({(json.dumps(p["work"]), *p["budgets"]) for p in points}) == len(points)
    lines = growth_fit.analyse(made_result(quick=True)[0])["lines"]
    assert lines["samples"]["r2"] is not None and lines["attempts"]["r2"] is None
