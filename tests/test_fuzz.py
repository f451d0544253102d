"""The fuzzer runs, and fails where a reader fails. ``SEEDS`` are inputs that it found, or that were found beside it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fuzz

ROOT = Path(__file__).parent.parent

SEEDS = {
    "a name of the program like a mark": ("programs", ("", "", "def f(xs, end=1):\n    x = xs[end]\n    return x", "[BEGIN]\n{}\n[DONE]", None, "")),
    "an object on a class that is none": ("programs", ("", "", "def f(xs):\n    return 1", "{}", {"value": {"valued": [0, "P", "object", None, None]}}, "")),
    "a substitute on a class that is none": ("programs", ("", "", "def f(xs):\n    return 1", "{}", {"value": {"over": [0, "P", "object", "x", None]}}, "")),
    "a reason that is a long object": ("replies", (b'{"choices":[{"finish_reason":{"a":' + b"9" * 900 + b'},"message":{"content":"x"}}]}', "")),
    "a reason with signs for a terminal": ("replies", (b'{"choices":[{"finish_reason":"\\u001b[31m","message":{"content":"x"}}]}', "")),
    **{f"a {field} nested deeply": ("replies", (b'{"choices":[{"finish_reason":"stop","message":{"%b":%b}}]}' % (field.encode(), b"[" * 900 + b"]" * 900), "")) for field in ("refusal", "reasoning", "content")},
    "a part nested deeply": ("replies", (b'{"choices":[{"message":{"content":[{"text":%b}]}}]}' % (b"[" * 900 + b"]" * 900), "")),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEDS)
def test_what_was_found_holds(name):
    target, values = SEEDS[name]
    fuzz.TARGETS[target][0](*values)


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_a_few_examples_of_every_target_hold(target):
    assert fuzz.fuzz(target, 25, 0) >= 25


def test_a_reader_that_fails_is_found(monkeypatch):
    def careless(data):
        assert isinstance(json.loads(data), dict)

    monkeypatch.setitem(fuzz.TARGETS, "requests", (careless, fuzz.TARGETS["requests"][1]))
    with pytest.raises(Exception):  # noqa: B017  # of whatever kinds: hypothesis may find several
        fuzz.fuzz("requests", 500, 0)


def test_a_slow_example_is_found(monkeypatch):
    monkeypatch.setattr(fuzz, "SLOWEST_S", -1.0)
    with pytest.raises(AssertionError, match="takes long"):
        fuzz.fuzz("replies", 5, 0)


def test_the_command_says_how_much_it_did():
    command = [sys.executable, "tools/fuzz.py", "replies", "--seconds", "0.1", "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("replies: 1000 examples in "), done.stdout
