"""What CI runs: the script, with a stand-in for ``make``; the pinned versions; the hooks that run the same tools."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / ".ci" / "run"
UNPINNED = {"selfcorrect"}
"""Requirements without a pin: the package itself, and what only runs the tests in parallel."""
NOT_IN_CI = {"reasoning-gym", "skyrl", "tinker", "vllm"}
"""Extras that need a compiler, a server or an environment of their own."""


def run(bin_dir: Path, test: str, check: str, docs: str = "true") -> tuple[int, list[str]]:
    """Run the script with these shell lines as ``make test`` and so on. The programs that it would install are there."""
    for name, body in {
        "make": f'case "$1" in test) {test} ;; check) {check} ;; docs) {docs} ;; esac',
        "bwrap": "true",
        "chromium": "true",
        "curl": "true",
    }.items():
        (bin_dir / name).write_text(f"#!/bin/sh\n{body}\n")
        (bin_dir / name).chmod(0o755)
    path = f"{bin_dir}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [SCRIPT],
        env={**os.environ, "PATH": path},
        cwd=bin_dir,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
    ("test", "check", "status", "last"),
    [
        ("echo '3 passed in 0.10s'", "echo fine", 0, "3 passed in 0.10s"),
        ("echo '1 failed, 3 passed in 0.10s'; exit 2", "echo fine", 2, "1 failed, 3 passed in 0.10s"),
        (
            "echo '3 passed, 1 warning in 61.10s (0:01:01)'",
            "echo bad; exit 2",
            2,
            "3 passed, 1 warning in 61.10s (0:01:01)",
        ),
        ("echo '3 passed in 0.10s'; exit 1", "exit 3", 3, "3 passed in 0.10s"),
        ("echo '3 passed in 0.10s'; exit 4", "exit 1", 4, "3 passed in 0.10s"),
        ("echo 'no tests ran in 0.01s'; exit 5", "true", 5, "no tests ran in 0.01s"),
        ("echo 'no tests ran in 0.01s'", "true", 1, "no tests ran in 0.01s"),
        ("echo '7 deselected in 0.01s'", "true", 1, "7 deselected in 0.01s"),
        ("echo '2 skipped in 0.01s'", "true", 1, "2 skipped in 0.01s"),
        ("echo 'cannot install'; exit 2", "true", 2, "no summary by pytest: it did not start, or did not end"),
        ("echo installed", "true", 1, "no summary by pytest: it did not start, or did not end"),
        ("printf '\\033[32m\\033[1m3 passed\\033[0m\\033[32m in 0.10s\\033[0m\\n'", "true", 0, "3 passed in 0.10s"),
        ("cat; echo '3 passed in 0.10s'", "cat", 0, "3 passed in 0.10s"),
        (  # what pytest prints with -n
            "printf 'bringing up nodes...\\n\\n..s [100%%]\\n4041 passed, 1 skipped in 300.12s (0:05:00)\\n'",
            "true",
            0,
            "4041 passed, 1 skipped in 300.12s (0:05:00)",
        ),
        ("echo '2 workers [3 items]'; exit 3", "true", 3, "no summary by pytest: it did not start, or did not end"),
    ],
)
def test_summary_comes_last_and_the_worst_status_wins(tmp_path, test, check, status, last):
    code, lines = run(tmp_path, test, check)
    assert (code, lines[-1]) == (status, last)


def test_every_part_runs_although_others_fail(tmp_path):
    _, lines = run(tmp_path, "echo '1 failed in 0.10s'; exit 2", "echo the checks ran; exit 1", "echo the docs ran")
    assert "the checks ran" in lines and "the docs ran" in lines


def test_documentation_that_cannot_be_built_is_a_failure(tmp_path):
    code, lines = run(tmp_path, "echo '3 passed in 0.10s'", "true", "exit 2")
    assert (code, lines[-1]) == (2, "3 passed in 0.10s")


def test_make_installs_the_pinned_versions_in_ci_and_only_there(tmp_path):
    _, lines = run(tmp_path, 'echo "with $CONSTRAINTS"', "true")
    assert "with constraints.txt" in lines
    free = {name: value for name, value in os.environ.items() if name not in ("CONSTRAINTS", "MAKEFLAGS")}
    for env, given in ((free, False), ({**free, "CONSTRAINTS": "constraints.txt"}, True)):
        command = ["make", "--dry-run", "--always-make", "test"]
        shown = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
        installs = [line for line in shown.splitlines() if "pip install" in line]
        assert len(installs) == 3 and all(('-c "constraints.txt"' in line) is given for line in installs)


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), "every line is a comment or NAME==VERSION"
    return {canonicalize_name(name): version for name, version in pairs}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [lines for name, lines in project["optional-dependencies"].items() if name not in NOT_IN_CI]
    return [Requirement(line) for line in sum(extras, project["dependencies"])]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_pinned_versions_satisfy_the_bounds_of_the_package(requirement):
    name = canonicalize_name(requirement.name)
    if name not in UNPINNED:
        assert name in pins(), f"constraints.txt has no pin for {name}"
        assert requirement.specifier.contains(pins()[name], prereleases=True)


def test_a_pin_outside_the_bounds_would_be_noticed():
    assert not Requirement("zensical>=0.0.73,<0.1").specifier.contains("0.1.0", prereleases=True)
    assert not UNPINNED & pins().keys() and all("+" not in version for version in pins().values())


def test_the_makefile_asks_for_the_pinned_versions():
    asked = dict(re.findall(r"^(?:TORCH|SMOLLM2) \?= ([\w-]+)==(\S+)$", (ROOT / "Makefile").read_text(), re.M))
    assert len(asked) == 2 and asked.items() <= pins().items()


def test_hooks_run_the_tools_of_make_check_from_the_environment():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]  # nothing is downloaded
    entries = [hook["entry"].removesuffix(" --force-exclude") for hook in repos[0]["hooks"]]
    checks = subprocess.run(["make", "--dry-run", "check"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(entry in checks for entry in entries)
    assert [entry.split("/")[-1].split()[0] for entry in entries] == ["ruff", "ruff", "mypy"]
