"""Every block of commands in the documentation runs as it is written, or a comment above it says why no test runs it.

The blocks of a page run in their order, in a copy of the checkout, without the Hub.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from code_tools import needs_sandbox

from pages import PAGES, ROOT, Block, blocks, text_of

PORT = "8000"
"""The port that the pages use. The tests replace it with a free one."""
LEFT_BEHIND = shutil.ignore_patterns(".*", "runs", "build", "dist", "site", "__pycache__", "*.egg-info")


class Shell:
    """Runs the blocks of one page."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "checkout"
        shutil.copytree(ROOT, self._directory, ignore=LEFT_BEHIND)
        (self._directory / ".venv").symlink_to(sys.prefix)
        os.utime(self._directory / "pyproject.toml", (0, 0))  # older than .venv: make installs nothing
        self._env = {
            **os.environ,
            "PATH": f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self._directory / "src"),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(directory / "hub"),
        }
        self._servers: list[subprocess.Popen] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = str(free.getsockname()[1])

    def run(self, block: Block) -> None:
        if "needs a sandbox" in block.notes:
            needs_sandbox()
        if "first" in block.notes:
            self._done("sh", block.notes["first"])
        text = re.sub(rf"\b{PORT}\b", self._port, block.text)
        if "background" in block.notes:
            self._serve(text)
        else:
            self._done(block.language, text)

    def _start(self, language: str, text: str) -> subprocess.Popen:
        program = ["python", "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
        return subprocess.Popen(
            [*program, text],
            cwd=self._directory,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _done(self, language: str, text: str) -> None:
        output, _ = (process := self._start(language, text)).communicate(timeout=3600)
        assert process.returncode == 0, f"{text}\nexits with {process.returncode}:\n{output}"

    def _serve(self, text: str) -> None:
        assert self._port != PORT and self._port in text, f"a server in the background says --port {PORT}: {text}"
        self._servers.append(process := self._start("sh", f"exec {text}"))
        health = f"http://127.0.0.1:{self._port}/health"
        for _ in range(600):
            assert process.poll() is None, f"{text}\nhas ended:\n{process.stdout.read()}"
            try:
                with urllib.request.urlopen(health, timeout=5) as answer:
                    assert answer.status == 200
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"{health} never answered")

    def close(self) -> None:
        for process in self._servers:
            process.terminate()
            process.communicate(timeout=60)


@pytest.fixture
def shell(tmp_path):
    shell = Shell(tmp_path)
    yield shell
    shell.close()


LONG = {"commands.md", "sharing.md", "your-own-task.md"}
"""Pages whose blocks take 15 seconds or more in total. They run with the slow tests."""


def pages_with(wanted):
    return [
        pytest.param(page, id=page.relative_to(ROOT).as_posix(), marks=[pytest.mark.slow] if page.name in LONG else [])
        for page in PAGES
        if any(wanted(b) for b in blocks(text_of(page)) if b.runs)
    ]


@pytest.mark.parametrize("page", pages_with(lambda b: "slow" not in b.notes))
def test_blocks_run_as_written(shell, page):
    for block in blocks(text_of(page)):
        if block.runs and "slow" not in block.notes:
            shell.run(block)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with(lambda b: "slow" in b.notes))
def test_slow_blocks_run_as_written(shell, page):
    if not (Path(sys.prefix) / ".installed").exists():
        pytest.skip("make did not create this environment and would install into it")
    for block in blocks(text_of(page)):
        if block.runs:
            shell.run(block)


def test_a_block_that_fails_is_noticed(shell):
    with pytest.raises(AssertionError, match="exits with 3"):
        shell.run(Block("sh", "exit 3", {}))
    with pytest.raises(AssertionError, match="exits with 2"):
        shell.run(Block("sh", "selfcorrect train stepz=3\ntrue", {}))
    with pytest.raises(AssertionError, match="has ended"):
        shell.run(Block("sh", f"selfcorrect serve nothing --port {PORT}", {"background": ""}))


def test_comments_above_a_block_are_understood():
    text = "<!-- not run: no GPU -->\n```sh\nx\n```\n\n```sh\ny\n```\n\n<!-- slow -->\n<!-- first: a -->\n```python\nz\n```\n"
    none, plain, both = blocks(text)
    assert (none.runs, plain.runs, both.runs) == (False, True, True)
    assert both.notes == {"slow": "", "first": "a"} and both.text == "z\n"
    for wrong in (
        "<!-- not run -->\n```sh\nx\n```\n",
        "<!-- perhaps -->\n```sh\nx\n```\n",
        "```bash\nx\n```\n",
        "```\nx\n```\n",
    ):
        with pytest.raises(ValueError):
            blocks(wrong)
