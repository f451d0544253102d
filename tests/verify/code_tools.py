"""Shared by the tests of code verdicts: where data lies, when to skip, and short ways to grade."""

import gzip
import json
import os
from pathlib import Path

import pytest

from selfcorrect.verify.code import CodeRequest, sandbox_report

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("SELFCORRECT_DATA", ROOT.parent / "shared" / "data"))


def needs_sandbox():
    """Skip where the machine lacks a protection; fail there when CI=true, so that CI cannot pass without one."""
    report = sandbox_report()
    if not report.complete:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no complete sandbox:\n{report.describe()}")


def rows(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent: set SELFCORRECT_DATA to the directory with {name}")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def mbpp_tests(row):
    setup = [row["test_setup_code"]] if row.get("test_setup_code") else []
    return [*setup, *row.get("test_imports", []), *row["test_list"]]


def mbpp_rows():
    return {
        row["task_id"]: row
        for split in ("prompt", "train", "validation", "test")
        for row in rows(f"mbpp/{split}.jsonl.gz")
    }


def mbpp(completion, *tests, form="code", **more):
    return CodeRequest("mbpp", tests or ("assert f(2) == 41",), completion, form, **more)


def first_that_compiles(found):
    """The alternative that the sandbox would run; empty where none compiles."""
    for sources in found.alternatives:
        try:
            for source in sources:
                compile(source, "<program>", "exec")
        except (SyntaxError, ValueError):
            continue
        return sources
    return ()
