"""Imports point one way, and reading a config or the objective loads no heavy library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import selfcorrect

SOURCE = Path(selfcorrect.__file__).parent

LAYERS = [
    {"__init__", "types", "errors"},
    {"config"},
    {"algorithm", "records"},
    {"verify", "engines"},
    {"tasks"},
    {"episodes"},
    {"training"},
    {"measuring"},
    {"experiment", "trackers"},
    {"report", "serve"},
    {"sharing", "reproduce"},
    {"cli"},
    {"__main__"},
]
"""An import may point to an earlier row only. Members of one row do not know each other."""

RANK = {name: i for i, row in enumerate(LAYERS) for name in row}
HEAVY = ("torch", "transformers", "peft", "datasets", "vllm", "tinker", "skyrl", "starlette", "uvicorn", "httpx2")


def absolute(file: Path, node: ast.ImportFrom) -> str:
    """Dotted name of what a (perhaps relative) import names; the sandbox's own modules import each other relatively."""
    if node.level == 0:
        return node.module or ""
    package = ("selfcorrect", *file.relative_to(SOURCE).parts[:-1])
    return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])


def imported(file: Path) -> set[str]:
    """Every dotted module of a file's imports, inside functions and TYPE_CHECKING blocks too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = absolute(file, node)
            found.add(module)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def part_of(file: Path) -> str:
    """Top-level part of the package that a file belongs to."""
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def parts_imported(file: Path) -> set[str]:
    dotted = [name.split(".") for name in imported(file)]
    return {d[1] for d in dotted if d[0] == "selfcorrect" and len(d) > 1 and d[1] in RANK}


FILES = sorted(SOURCE.rglob("*.py"))


def test_every_part_has_its_place():
    assert {part_of(f) for f in FILES} <= RANK.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_no_import_points_back(file):
    own = part_of(file)
    wrong = {p for p in parts_imported(file) - {own} if RANK[p] >= RANK[own]}
    assert not wrong, f"{own} may not import {', '.join(sorted(wrong))}"


def test_the_check_sees_an_arrow_that_points_back(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from selfcorrect.training.loop import train\n    import selfcorrect.engines.base\n")
    assert parts_imported(bad) == {"training", "engines"}


NO_TERMINAL = {"rich", "typer"}
NO_MODEL = {"torch", "transformers"}
NOT_ALLOWED = {
    "algorithm": {"transformers", "selfcorrect.engines", "selfcorrect.tasks"},
    "config": NO_MODEL,
    "records": NO_MODEL | NO_TERMINAL,
    "episodes": NO_MODEL | NO_TERMINAL | {"selfcorrect.algorithm"},
    "training": NO_TERMINAL,
    "measuring": NO_TERMINAL | NO_MODEL,
    **dict.fromkeys(("experiment", "reproduce", "serve", "trackers"), NO_TERMINAL),
    "sharing": NO_TERMINAL | {"selfcorrect.training"},
    "report": NO_MODEL | NO_TERMINAL | {"selfcorrect.engines", "selfcorrect.training", "selfcorrect.tasks"},
}
"""What docs/architecture.md says that these parts do not import, beyond the rows above."""


@pytest.mark.parametrize("file", [f for f in FILES if part_of(f) in NOT_ALLOWED], ids=lambda f: f.name)
def test_parts_stay_clear_of_what_they_need_not_know(file):
    names = imported(file)
    for banned in NOT_ALLOWED[part_of(file)]:
        assert not {n for n in names if n == banned or n.startswith(f"{banned}.")}


def test_the_equations_know_no_config_and_only_the_losses_know_torch():
    for file in (SOURCE / "algorithm").glob("*.py"):
        names = {name.split(".")[0] for name in imported(file)}
        assert ("torch" in names) == (file.name == "losses.py")
    for name in ("credit.py", "losses.py", "sequences.py", "imitation.py"):
        assert "selfcorrect.config" not in imported(SOURCE / "algorithm" / name)


@pytest.mark.parametrize(
    "module",
    [
        "selfcorrect",
        "selfcorrect.algorithm.stages",
        "selfcorrect.config",
        "selfcorrect.algorithm.credit",
        "selfcorrect.report",
        "selfcorrect.cli",
    ],
)
def test_importing_is_light(module):
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
