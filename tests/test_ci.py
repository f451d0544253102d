"""The script that CI runs, with a stand-in for ``make``: what it prints last, and how it exits."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "run"


def run(bin_dir: Path, test: str, check: str, docs: str = "true") -> tuple[int, list[str]]:
    """Run the script where these shell lines are ``make test`` and so on; what it would install is there."""
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
