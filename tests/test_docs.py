"""What the pages say, compared with the code: links, names of functions, commands, settings, the worked example."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import config_reference
import tiny
from build_docs import line_of
from pages import PAGES, ROOT, blocks, text_of
from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.stages import plan
from selfcorrect.algorithm.weights import group_token_weights
from selfcorrect.cli import make_app
from selfcorrect.cli.settings import long_form, read_settings
from selfcorrect.config import Config, all_keys
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.tasks import make_task
from selfcorrect.tasks.arithmetic import INSTRUCTION, question, solution

LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
NAME = re.compile(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)`")
SECTIONS = "|".join(sorted({key.partition(".")[0] for key in all_keys() if "." in key}))
SETTING = re.compile(rf"(?<![\w./-])((?:{SECTIONS})\.[a-z]\w*)(?![\w/(])")
RENAMED = re.compile(r"`[\w.]+` is now `")
"""How the changelog names a setting that is gone."""
NOT_SETTINGS = (".py", ".md", ".toml", ".jsonl")


def relative_links(page: Path) -> list[tuple[str, Path]]:
    found = LINK.findall(text_of(page))
    files = [(label, target.partition("#")[0]) for label, target in found if not re.match(r"\w+:|#", target)]
    return [(label, (page.parent / file).resolve()) for label, file in files]


def defines(source: str, dotted: str) -> bool:
    try:
        return line_of(source, dotted) > 0
    except LookupError:
        return False


def commands(page: Path) -> list[str]:
    """``selfcorrect`` command lines: whole lines of shell blocks, and code inside sentences."""
    text = text_of(page)
    shell = "".join(block.text for block in blocks(text) if block.language == "sh").replace("\\\n", " ")
    lines = [line.split("#")[0].strip() for line in shell.splitlines() if line.startswith("selfcorrect ")]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return lines + re.findall(r"`(selfcorrect [^`]+)`", prose)


def on_every_page(find):
    return [
        pytest.param(page, found, id=f"{page.name}: {found}") for page in PAGES for found in dict.fromkeys(find(page))
    ]


def test_the_pages_are_there():
    names = {p.relative_to(ROOT).as_posix() for p in PAGES}
    assert names >= {
        "README.md",
        "AGENTS.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/reproduction.md",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve_and_name_what_their_file_defines(page):
    for label, target in relative_links(page):
        assert target.exists(), f"{page.name} links to {target}, which does not exist"
        name = NAME.fullmatch(label)
        if name and target.suffix == ".py":
            assert defines(text_of(target), name[1]), f"{page.name}: {target.name} defines no {name[1]}"


def test_the_link_check_can_fail():
    assert defines("class A:\n    def b(self): ...\nC: int = 3\n", "A.b")
    assert not defines("def other(): ...\nx = b\n", "b")
    assert not defines("class A: ...\ndef b(): ...\n", "A.b")
    assert line_of("x = 1\n\n\nclass A:\n    b: int = 2\n", "A.b") == 5


def test_the_configuration_page_is_what_the_classes_say():
    stale = "docs/configuration.md is stale: run python tools/config_reference.py"
    page = config_reference.page()
    assert text_of(config_reference.PAGE) == page, stale
    assert all(f"### {key}\n" in page for key in all_keys())


@pytest.mark.parametrize(("page", "line"), on_every_page(commands))
def test_commands_parse(page, line, monkeypatch):
    monkeypatch.chdir(ROOT)  # a verifier named by import path may lie in the working directory
    name, *arguments = shlex.split(line)[1:]
    command = typer.main.get_command(make_app())
    assert isinstance(command, click.Group) or hasattr(command, "commands")
    known = command.commands
    assert name in known, f"{page.name} shows a command that does not exist: {line}"
    inner = known[name]
    while arguments and hasattr(inner, "commands"):  # `grade math`: its own options must parse too
        inner = inner.commands[arguments.pop(0)]
    if not arguments:
        return
    settings = [long_form(a) if name in ("eval", "scale") else a for a in arguments if re.match(r"[a-z_.0-9]+=", a)]
    if "--task" in arguments:  # reproduce: the settings are of that task
        settings.insert(0, f"task={arguments[arguments.index('--task') + 1]}")
    config = read_settings(settings)
    if name != "eval":
        plan(config)  # method=self_refine is a way to play, not to train
    if config.task.name != "reasoning_gym" or find_spec("reasoning_gym"):  # no part of `make test`
        make_task(config.task)
    inner.make_context(name, list(arguments))
    if name == "train" and "--resume" not in arguments:
        result = CliRunner().invoke(
            make_app(), ["train", *arguments, *(["--dry-run"] if "--dry-run" not in arguments else [])]
        )
        assert result.exit_code == 0, result.output
        assert Config.model_validate(json.loads(result.stdout)) == config


def test_the_readme_shows_every_command():
    shown = {shlex.split(line)[1] for line in commands(ROOT / "README.md")}
    assert shown >= {
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
        "export",
        "reproduce",
    }


def settings_named(page: Path) -> list[str]:
    return [s for s in SETTING.findall(RENAMED.sub("`", text_of(page))) if not s.endswith(NOT_SETTINGS)]


@pytest.mark.parametrize(("page", "key"), on_every_page(settings_named))
def test_settings_exist(page, key):
    assert key in all_keys(), f"{page.name} names a setting that does not exist: {key}"


@pytest.mark.parametrize(
    ("page", "target"), on_every_page(lambda p: re.findall(r"\bmake ([a-z][a-z-]+)\b(?=[^`\n]*`|  |\n)", text_of(p)))
)
def test_make_targets_exist(page, target):
    assert re.search(rf"^{target}:", text_of(ROOT / "Makefile"), re.M), f"{page.name}: make has no target {target}"


def test_the_architecture_page_has_a_place_for_every_module():
    text = text_of(ROOT / "docs/architecture.md")
    inside = (ROOT / "src/selfcorrect").iterdir()
    names = [p.name for p in inside if p.suffix == ".py" or (p.is_dir() and any(p.glob("*.py")))]
    missing = [n for n in names if n != "__init__.py" and f"src/selfcorrect/{n})" not in text]
    assert not missing, f"docs/architecture.md does not say what these hold: {missing}"


def test_the_worked_example_is_what_the_code_does():
    """The table "One episode's life": 35 + 21 + 112 + 21 tokens, A1 = -1, A2 = +10."""
    text = text_of(ROOT / "docs/architecture.md")
    chat = ChatFormat(tiny.tokenizer())
    asked = [{"role": "user", "content": question((4, 7, 2))}]
    wrong, right = (solution((4, 7, 2), off) for off in (2, 0))
    sampled = [(*chat.tokenizer.encode(s, add_special_tokens=False), chat.turn_end_id) for s in (wrong, right)]
    parts = [
        chat.prompt_ids(asked),
        sampled[0],
        chat.bridge_ids(asked, INSTRUCTION, chat.ended(sampled[0])),
        sampled[1],
    ]
    start = 0
    for ids in parts:
        assert f"| {start} to {start + len(ids) - 1} |" in text
        start += len(ids)
    assert f"one sequence of {start} tokens" in text
    assert all(s.replace("\n", "⏎") in text for s in (wrong, right)) and INSTRUCTION[:20] in text
    rewards_GK = np.array([[0.0, 1.0], [1.0, 1.0]])
    unmoved = [[np.zeros(1), np.zeros(1)]] * 2
    weights = group_token_weights(rewards_GK, rewards_GK >= 0, unmoved, Credit((1, 1), (0.01, 0.01), alpha=10)).weights
    assert [float(w[0]) for w in weights[0]] == [-1, 10]


def test_make_lists_its_targets():
    shown = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = (
        "demo",
        "demo-seeds",
        "test",
        "test-slow",
        "test-gpu",
        "conformance-skyrl",
        "conformance-vllm",
        "test-reasoning-gym",
        "check",
        "docs",
        "mutants",
        "clean",
    )
    assert all(f"make {t} " in shown for t in targets)
