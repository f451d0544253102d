"""Imports point one way, no module imports itself through others, and reading a config or the objective is light.

The contracts stand in pyproject.toml; import-linter checks them.
"""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "peft", "datasets", "vllm", "tinker", "skyrl", "starlette", "uvicorn", "httpx2")


@pytest.fixture
def lint(monkeypatch, capsys):
    """``lint()`` -> (exit code, what import-linter prints)."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])  # import-linter adds the working directory
    monkeypatch.setenv("COLUMNS", "200")
    return lambda: (lint_imports(no_cache=True, no_logo=True), capsys.readouterr().out)


def test_every_contract_of_pyproject_is_kept(lint):
    code, printed = lint()
    assert code == 0, printed


@pytest.mark.parametrize(
    ("importer", "imported", "contract"),
    [
        ("selfcorrect.engines.base", "selfcorrect.training.loop", "Imports point down"),
        ("selfcorrect.verify.batch", "selfcorrect.engines.base", "Imports point down"),  # the same row
        ("selfcorrect.new_room", "selfcorrect.types", "Imports point down"),
        ("selfcorrect.records.lines", "selfcorrect.records.run_directory", "No circle"),
        ("selfcorrect.experiment", "rich", "Only the command line"),
        ("selfcorrect.measuring.metrics", "torch", "These rooms need no model library"),
        ("selfcorrect.algorithm.credit", "torch", "In the algorithm only the losses know torch"),
        ("selfcorrect.algorithm.credit", "selfcorrect.config", "The equations know no settings"),
        ("selfcorrect.episodes.play", "selfcorrect.algorithm.stages", "Playing knows no method"),
        ("selfcorrect.report.page", "selfcorrect.engines.base", "A report reads records only"),
        ("selfcorrect.sharing.card", "selfcorrect.training.loop", "Sharing knows no training"),
    ],
)
def test_a_wrong_import_breaks_its_contract(lint, monkeypatch, importer, imported, contract):
    build = grimp.build_graph

    def with_one_more(*names, **options):
        graph = build(*names, **options)
        graph.add_module(importer)
        graph.add_import(importer=importer, imported=imported)
        return graph

    monkeypatch.setattr(grimp, "build_graph", with_one_more)
    code, printed = lint()
    assert code == 1
    assert re.search(rf"^{contract}.* BROKEN", printed, re.M), printed


def circle(files):
    """Modules of loose files that import each other in a circle, or None. Imports inside functions count."""
    imports = {}
    for file in files:
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        imports[file.stem] = names | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


@pytest.mark.parametrize("directory", ["benchmarks", "tools", "tests"])
def test_scripts_import_in_no_circle(directory):
    """import-linter checks packages only."""
    files = sorted((ROOT / directory).glob("*.py"))
    assert files and circle(files) is None


def test_a_circle_is_found(tmp_path):
    (tmp_path / "a.py").write_text("import b\n")
    (tmp_path / "b.py").write_text("def f():\n    from a import g\n")
    assert set(circle(tmp_path.glob("*.py"))) == {"a", "b"}


@pytest.mark.parametrize(
    "module",
    [
        "selfcorrect",
        "selfcorrect.algorithm.stages",
        "selfcorrect.config",
        "selfcorrect.algorithm.credit",
        "selfcorrect.report",
        "selfcorrect.cli; selfcorrect.cli.make_app()",
    ],
)
def test_importing_is_light(module):
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
