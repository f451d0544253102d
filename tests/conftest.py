"""Fixtures that several files of tests share."""

import os
import sys

import pytest

from browser import Browser, find_chromium


def pytest_addoption(parser):
    parser.addoption("--engine", default="torch", help="tests/conformance: the engine, one of those in its kinds.py")


def _toy(_config):
    import toy  # loads torch, which most commands do without

    return toy.Toy()


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """``cli("train", ...)`` -> (exit code, standard output, standard error), in an empty working directory."""
    from selfcorrect import cli as package
    from selfcorrect.tasks import TASKS

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "toy", _toy)

    def call(*arguments):
        capsys.readouterr()  # what the preparation of a test printed
        monkeypatch.setattr(sys, "argv", ["selfcorrect", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            package.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium. Where there is none, tests skip, but in CI they fail."""
    if find_chromium() is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            "no Chromium: install the package chromium (apt-get install chromium)"
        )
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()
