"""`selfcorrect grade math` and `grade code`: one verdict per row, in order, whatever the rows hold."""

import fcntl
import gzip
import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from selfcorrect.errors import DataError
from selfcorrect.types import Grade, Verdict
from selfcorrect.verify import batch, cases
from selfcorrect.verify.batch import grade_rows, in_order
from selfcorrect.verify.cases import Broken, CaseRow
from selfcorrect.verify.code import RISK_NAME, bwrap, report

sys.path.append(str(Path(__file__).parent / "verify"))
from code_tools import mbpp_rows, mbpp_tests, needs_sandbox, rows  # found by the line above

WORKERS = {"math": 1, "code": 4}
KEYS = ["id", "verdict", "seconds", "detail"]


def save(path, lines):
    """Rows (dicts), or lines as bytes or text."""
    parts = [json.dumps(x) if isinstance(x, dict) else x for x in lines]
    path.write_bytes(b"".join((p if isinstance(p, bytes) else p.encode()) + b"\n" for p in parts))
    return path


def verdicts(path):
    found = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert all(list(row) == KEYS for row in found)
    return found


def brief(path):
    return [(row["id"], row["verdict"]) for row in verdicts(path)]


def math_row(identity, gold="42", response="Final answer: 42"):
    return {"id": identity, "gold": gold, "response": response}


@pytest.fixture
def grade(cli, tmp_path):
    """``grade("math", lines)`` -> (exit code, standard error, path of the verdicts)."""

    def call(kind, lines, *options):
        path, out = save(tmp_path / "cases.jsonl", lines), tmp_path / "out.jsonl"
        code, printed, err = cli("grade", kind, "--cases", path, "--out", out, "--workers", WORKERS[kind], *options)
        assert printed == "" and "Traceback" not in err
        return code, err, out

    return call


def shown_rows(kind):
    """The example rows of docs/commands.md: those after the table of a kind, and the one verdict."""
    text = (Path(__file__).parent.parent / "docs/commands.md").read_text()
    part = text[text.index(f"| `grade {kind}` |") :].partition(
        "Further fields" if kind == "code" else "| `grade code`"
    )[0]
    verdict = re.search(r"^    (\{.*\"verdict\".*\})$", text, re.M)[1]
    return [json.loads(line) for line in re.findall(r"^    (\{.*\})$", part, re.M)], json.loads(verdict)


def test_the_rows_of_the_docs_math(grade):
    rows, shown = shown_rows("math")
    code, _, out = grade("math", rows)
    (found,) = verdicts(out)
    assert code == 0 and {**found, "seconds": 0} == {**shown, "seconds": 0}


# --- math --------------------------------------------------------------------------------------------------------


def test_one_verdict_per_row_in_order_and_ids_keep_their_type(grade):
    given = [
        math_row("a", r"\frac{1}{2}", "so\nFinal answer: 0.5"),
        math_row(1, "2", r"\boxed{3}"),
        math_row("1", "2", "no number here"),
        math_row(1.0, "(x+1)^2", r"\boxed{x^2+2x+1}"),  # needs a worker, and is still written in its place
        math_row(-7, "", "Final answer: 2"),
        math_row("ü\n\U0001f600", "4"),
    ]
    code, err, out = grade("math", given)
    assert code == 0
    expected = ["correct", "wrong", "no_answer", "correct", "error", "wrong"]
    assert brief(out) == [(row["id"], verdict) for row, verdict in zip(given, expected, strict=True)]
    assert [type(row["id"]) for row in verdicts(out)] == [str, int, str, float, int, str]
    assert all(row["seconds"] >= 0 and row["detail"] for row in verdicts(out))
    assert "6 rows" in err and "correct 2, wrong 2, no_answer 1, error 1" in err


BROKEN = {
    # a line: (the id of its verdict, None for the number of the line; a part of the reason)
    "not JSON": ('{"id": "x", "gold": ', None, "not valid JSON"),
    "two objects": ('{"id": "x"} {"id": "y"}', None, "not valid JSON"),
    "a list": ("[1, 2]", None, "not a JSON object but a list"),
    "a number": ("42", None, "not a JSON object but a number"),
    "null": ("null", None, "not a JSON object but null"),
    "no id": ('{"gold": "1", "response": "1"}', None, "no field 'id'"),
    "null id": ('{"id": null, "gold": "1", "response": "1"}', None, "field 'id' is null"),
    "list id": ('{"id": [1, {"a": 2}], "gold": "1", "response": "1"}', [1, {"a": 2}], "field 'id' is a list"),
    "boolean id": ('{"id": true, "gold": "1", "response": "1"}', True, "field 'id' is true or false"),
    "infinite id": ('{"id": 1e999, "gold": "1", "response": "1"}', None, "not a finite number"),
    "NaN id": ('{"id": NaN, "gold": "1", "response": "1"}', None, "not a finite number"),
    "surrogate in id": (r'{"id": "\ud800", "gold": "1", "response": "1"}', "\ud800", "half of a surrogate pair"),
    "no gold": ('{"id": 5, "response": "1"}', 5, "no field 'gold' (fields: 'id', 'response')"),
    "null gold": ('{"id": 5, "gold": null, "response": "1"}', 5, "field 'gold' is null, not a string"),
    "number as gold": ('{"id": 5, "gold": 1, "response": "1"}', 5, "field 'gold' is a number"),
    "empty gold": ('{"id": 5, "gold": " ", "response": "1"}', 5, "gold answer is empty"),
    "no response": ('{"id": "r", "gold": "1"}', "r", "no field 'response'"),
    "list as response": ('{"id": "r", "gold": "1", "response": ["1"]}', "r", "field 'response' is a list"),
    "lone surrogate": (r'{"id": "s", "gold": "1 \udc00", "response": "1"}', "s", "half of a surrogate pair"),
    "escaped NUL": (r'{"id": "n", "gold": "1\u0000", "response": "1"}', "n", "has a NUL at character 1"),
    "raw NUL": ('{"id": "n", "gold": "1", "response": "1\0"}', None, "not valid JSON"),
    "not UTF-8": (b'{"id": "u", "gold": "1", "response": "\xff"}', "u", "not UTF-8"),
    "not UTF-8 in the id": (b'{"id": "\xff", "gold": "1", "response": "1"}', None, "not UTF-8"),
    "surrogate as bytes": (b'{"id": "u", "gold": "1", "response": "\xed\xa0\x80"}', "u", "not UTF-8"),
    "deep": ('{"id": 1, "gold": ' + "[" * 100_000 + "]" * 100_000 + "}", None, "nested too deeply"),
    "thousands of digits": ('{"id": 1, "gold": ' + "1" * 5000 + "}", None, "not usable JSON"),
}


def test_every_broken_row_is_an_error_with_its_reason_and_costs_no_other_row(grade):
    lines = list(
        itertools.chain.from_iterable((line, math_row(f"good {name}")) for name, (line, _, _) in BROKEN.items())
    )
    code, _, out = grade("math", lines)
    assert code == 0
    found = verdicts(out)
    assert len(found) == 2 * len(BROKEN)
    for i, (name, (_, identity, reason)) in enumerate(BROKEN.items()):
        bad, good = found[2 * i : 2 * i + 2]
        assert (bad["id"], bad["verdict"]) == (2 * i + 1 if identity is None else identity, "error"), name
        assert type(bad["id"]) is (int if identity is None else type(identity)), name
        assert reason in bad["detail"] and bad["detail"].isascii(), (name, bad)
        assert (good["id"], good["verdict"]) == (f"good {name}", "correct")


def test_blank_lines_are_no_rows_but_count_as_lines(grade):
    _, _, out = grade("math", ["", math_row("a"), "  \t", "{", math_row("b"), ""])
    assert brief(out) == [("a", "correct"), (4, "error"), ("b", "correct")]


def test_no_rows_give_an_empty_file(grade):
    code, err, out = grade("math", [""])
    assert code == 0 and out.read_bytes() == b"" and "0 rows" in err


def test_an_unread_field_may_hold_anything(grade):
    _, _, out = grade("math", ['{"id": 1, "gold": "2", "response": "Final answer: 2", "loss": NaN, "note": "\\ud800"}'])
    assert brief(out) == [(1, "correct")]


def test_what_a_model_wrote_is_judged_whatever_it_holds(grade):
    _, _, out = grade("math", [r'{"id": 1, "gold": "2", "response": "Final answer: 3\ud800\u0000"}'])
    assert brief(out) == [(1, "wrong")]


@pytest.mark.parametrize("name", ["cases.jsonl.gz", "cases.jsonl", "cases"])
def test_gzip_is_known_by_its_content_and_a_byte_order_mark_is_no_text(cli, tmp_path, name):
    data = b"\xef\xbb\xbf" + json.dumps(math_row("a")).encode()  # and no newline at the end
    (tmp_path / name).write_bytes(gzip.compress(data) if name != "cases.jsonl" else data)
    assert cli("grade", "math", "--cases", tmp_path / name, "--out", tmp_path / "out")[0] == 0
    assert brief(tmp_path / "out") == [("a", "correct")]


def test_bare_takes_the_response_as_the_answer(grade):
    row = math_row("a", "42", "It is not 41 but 42")
    assert brief(grade("math", [row])[2]) == [("a", "correct")]
    (Path("out.jsonl")).unlink()
    assert brief(grade("math", [row, math_row("b", "1/2", r"\boxed{\frac12}")], "--bare")[2]) == [
        ("a", "wrong"),
        ("b", "correct"),
    ]


HOSTILE = {
    "tower": "Final answer: 9^{9^{9^9}}",
    "sum": r"\boxed{\sum_{k=1}^{10^{10}} \frac{1}{k}}",
    "long line": "x" * 1_000_000,
    "long number": "Final answer: " + "9" * 1_000_000,
    "parentheses": "Final answer: " + "(" * 100_000 + "1" + ")" * 100_000,
    "fractions": r"\boxed{" + r"\frac{1}{" * 100_000 + "1" + "}" * 100_001,
}


def test_hostile_rows_cost_at_most_the_stated_bound(grade):
    lines = [
        r for name, text in HOSTILE.items() for r in (math_row(name, r"\sqrt{2} + x", text), math_row(f"after {name}"))
    ]
    start = time.process_time()
    code, _, out = grade("math", lines)
    assert code == 0
    for row in verdicts(out):
        wanted = {"correct"} if row["id"].startswith("after") else {"wrong", "timeout", "no_answer"}
        assert row["verdict"] in wanted, row
        # elapsed time is ours to bound only where the machine has a core to give
        assert row["seconds"] < 5 or os.getloadavg()[0] > (os.cpu_count() or 1), row
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 1 << 30


def test_a_line_too_long_to_hold_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "MAX_LINE", 100)
    path = save(tmp_path / "c", ["y" * 100, "x" * 1000, {"id": "b", "gold": "1", "response": "1"}, "z" * 101])
    found = list(cases.read_cases(path, cases.math_case))
    assert [row.id_json for row in found] == ["1", "2", '"b"', "4"]
    assert [isinstance(row.case, Broken) for row in found] == [True, True, False, True]
    assert "not valid JSON" in found[0].case.reason and "longer than" in found[1].case.reason


# --- files -------------------------------------------------------------------------------------------------------


def test_an_existing_file_is_not_overwritten(grade, tmp_path):
    (tmp_path / "out.jsonl").write_text("precious")
    code, err, out = grade("math", [math_row(1)])
    assert code == 2 and "exists already and is not overwritten" in err and "--resume" in err
    assert out.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("missing", lambda path: None, "does not exist"),
        ("directory", lambda path: path.mkdir(), "Is a directory"),
        ("damaged at once", lambda path: path.write_bytes(b"\x1f\x8bnonsense"), "damaged gzip"),
    ],
)
def test_cases_that_cannot_be_read_leave_no_file(cli, tmp_path, name, make, says):
    make(tmp_path / "cases")
    code, _, err = cli("grade", "math", "--cases", tmp_path / "cases", "--out", tmp_path / "out")
    assert code == 2 and err.startswith("selfcorrect: --cases") and says in err
    assert not (tmp_path / "out").exists()


def test_a_file_damaged_in_the_middle_keeps_the_verdicts_before(cli, tmp_path):
    whole = gzip.compress(b"".join(json.dumps(math_row(os.urandom(30).hex())).encode() + b"\n" for _ in range(2000)))
    (tmp_path / "cases").write_bytes(whole[: len(whole) // 2])
    code, _, err = cli("grade", "math", "--cases", tmp_path / "cases", "--out", tmp_path / "out")
    found = verdicts(tmp_path / "out")
    assert code == 2 and f"damaged gzip file after line {len(found)}" in err
    assert 100 < len(found) < 2000 and {row["verdict"] for row in found} == {"correct"}


def test_a_place_that_cannot_be_written_is_refused_before_any_work(cli, tmp_path):
    (tmp_path / "file").write_text("")
    path = save(tmp_path / "cases", [math_row(1)])
    code, _, err = cli("grade", "math", "--cases", path, "--out", tmp_path / "file" / "out")
    assert code == 2 and "cannot be written" in err


def test_resume_goes_on_behind_the_whole_lines(cli, tmp_path):
    path = save(tmp_path / "cases", [math_row(1), "", "broken", math_row("x", "7"), math_row(2.5)])
    assert cli("grade", "math", "--cases", path, "--out", tmp_path / "whole")[0] == 0
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for cut in (b"", b"".join(lines[:2]), b"".join(lines[:2]) + lines[2][:-1], b"".join(lines)):
        (tmp_path / "part").write_bytes(cut)
        code, _, err = cli("grade", "math", "--cases", path, "--out", tmp_path / "part", "--resume")
        assert code == 0
        assert brief(tmp_path / "part") == [(1, "correct"), (3, "error"), ("x", "wrong"), (2.5, "correct")]
        assert (tmp_path / "part").read_bytes().startswith(b"".join(lines[: cut.count(b"\n")]))
    assert "4 more were there" in err
    (tmp_path / "new").unlink(missing_ok=True)
    assert cli("grade", "math", "--cases", path, "--out", tmp_path / "new", "--resume")[0] == 0
    assert brief(tmp_path / "new") == brief(tmp_path / "whole")


@pytest.mark.parametrize("there", ['{"id": "1", "verdict": "correct", "seconds": 0, "detail": ""}\n', "other\n"])
def test_resume_refuses_the_verdicts_of_other_cases(cli, tmp_path, there):
    path = save(tmp_path / "cases", [math_row(1)])
    (tmp_path / "out").write_text(there)
    code, _, err = cli("grade", "math", "--cases", path, "--out", tmp_path / "out", "--resume")
    assert code == 2 and "line 1 is not the verdict on row 1" in err
    assert (tmp_path / "out").read_text() == there


def test_resume_leaves_a_file_that_is_not_its_own(cli, tmp_path):
    path = save(tmp_path / "cases", [math_row("a")])
    notes = tmp_path / "notes"
    notes.write_text("my notes, without a newline at the end")
    for out in (notes, path):
        before = out.read_bytes()
        code, _, err = cli("grade", "math", "--cases", path, "--out", out, "--resume")
        assert code == 2 and "made from another file" in err and out.read_bytes() == before


def test_a_file_of_verdicts_has_one_writer(cli, tmp_path):
    path = save(tmp_path / "cases", [math_row("a")])
    with (tmp_path / "out").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        code, _, err = cli("grade", "math", "--cases", path, "--out", tmp_path / "out", "--resume")
    assert code == 2 and "another process is writing" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_was_graded_and_resumes(tmp_path, number):
    count = 10_000
    path = save(tmp_path / "cases", [math_row(i, str(i), f"Final answer: {i}") for i in range(count)])
    command = [
        sys.executable,
        "-m",
        "selfcorrect",
        "grade",
        "math",
        "--cases",
        str(path),
        "--out",
        str(tmp_path / "out"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not ((tmp_path / "out").exists() and (tmp_path / "out").stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in err
    found = brief(tmp_path / "out")
    assert 0 < len(found) < count
    assert f"the verdicts of the first {len(found)} rows" in err and "--resume" in err
    assert found == [(i, "correct") for i in range(len(found))]
    if number == signal.SIGINT:
        done = subprocess.run([*command, "--resume"], check=True, capture_output=True, text=True)
        assert brief(tmp_path / "out") == [(i, "correct") for i in range(count)]
        assert f"{len(found)} more were there" in done.stderr


def test_a_full_disk_says_so_and_how_to_go_on(tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            if self.file.tell() > 100:
                raise OSError(28, "No space left on device")
            self.file.write(data)

        def flush(self):
            self.file.flush()

    opened = batch._opened
    monkeypatch.setattr(batch, "_opened", lambda *given: Full(opened(*given)))
    given = iter([CaseRow(str(i), None, 1) for i in range(50)])
    with pytest.raises(batch.RunError, match=r"No space left on device; .* --resume"):
        grade_rows(given, tmp_path / "out", lambda _case: Grade(Verdict.CORRECT, None, "x"), 2)
    assert 1 <= len(verdicts(tmp_path / "out")) <= 3


# --- order and bounds --------------------------------------------------------------------------------------------


def test_results_come_in_order_from_several_threads():
    met = threading.Barrier(3, timeout=20)

    def work(i):
        if i < 3:
            met.wait()  # three at once, or this breaks
        time.sleep(0.02 if i % 3 == 0 else 0)
        return i

    assert list(in_order(range(30), work, 3)) == list(range(30))


def test_reading_ahead_is_bounded_in_rows_and_in_bytes(monkeypatch):
    monkeypatch.setattr(batch, "ROWS_AHEAD", 10)
    monkeypatch.setattr(batch, "BYTES_AHEAD", 500)
    for size, most in ((1, 11), (100, 7)):
        ahead, given = [], 0

        def items(given_out=lambda: given, ahead=ahead):
            for i in range(200):
                ahead.append(i + 1 - given_out())
                yield i

        for given, _ in enumerate(in_order(items(), lambda i: i, 2, size=lambda _i, size=size: size), start=1):  # noqa: B007
            pass
        assert given == 200 and max(ahead) <= most


def test_a_stop_finishes_what_was_begun_and_begins_no_more():
    begun, stop = [], threading.Event()

    def work(i):
        begun.append(i)
        if i == 5:
            stop.set()
        time.sleep(0.05)
        return i

    out = list(in_order(range(1000), work, 3, stop.is_set))
    assert out == sorted(begun) == list(range(len(out)))
    assert 6 <= len(out) <= 20


def test_a_fault_in_the_reading_comes_after_the_results():
    def items():
        yield from range(5)
        raise DataError("damaged")

    got = []
    with pytest.raises(DataError, match="damaged"):
        for x in in_order(items(), lambda i: i, 2):
            got.append(x)
    assert got == list(range(5))


def test_a_grader_that_raises_costs_its_own_row_only(tmp_path):
    def grade(case):
        if case == 1:
            raise MemoryError("a bomb \ud800")
        return Grade(Verdict.CORRECT, None, "fine")

    tally = grade_rows(iter([CaseRow(str(i), i, 1) for i in range(3)]), tmp_path / "out", grade, 2)
    assert brief(tmp_path / "out") == [(0, "correct"), (1, "error"), (2, "correct")]
    assert "MemoryError: a bomb ?" in verdicts(tmp_path / "out")[1]["detail"]
    assert tally.verdicts == {"correct": 2, "error": 1}


# --- code --------------------------------------------------------------------------------------------------------


def code_row(identity, completion, form="code", **more):
    row = {"id": identity, "style": "mbpp", "prompt": "", "entry_point": None, "tests": ["assert f(2) == 4"]}
    return {**row, "completion": completion, "completion_form": form, **more}


STUB = 'def f(x):\n    """Square."""\n'
CHECK = "def check(candidate):\n    assert candidate(3) == 9\n"


def humaneval(identity, completion, form, **more):
    style = {"style": "humaneval", "prompt": STUB, "entry_point": "f", "tests": CHECK}
    return code_row(identity, completion, form, **{**style, **more})


def test_both_styles_and_every_form(grade):
    needs_sandbox()
    right, wrong = "def f(x):\n    return x * x\n", "def f(x):\n    return x\n"
    given = [
        code_row("code", right),
        code_row("wrong", "def f(x):\n    return x + 1\n"),
        code_row("text", f"Sure:\n```python\n{right}```\nDone.", "text"),
        code_row("body", "    return x * x\n", "body", prompt="def f(x):\n"),
        humaneval("h code", right, "code"),
        humaneval("h wrong", wrong, "code"),
        humaneval("h body", "    return x * x\n", "body"),
        humaneval("h text", f"```python\n{right}```", "text"),
        humaneval("h list", right, "code", tests=[CHECK]),
        code_row("nothing", "I do not know.", "text"),
        code_row("loop", "def f(x):\n    exit(0)\n"),
    ]
    code, err, out = grade("code", given)
    assert code == 0 and "11 rows" in err
    assert brief(out) == [
        (row["id"], verdict)
        for row, verdict in zip(
            given, ["correct", "wrong", *["correct"] * 3, "wrong", *["correct"] * 3, "no_answer", "wrong"], strict=True
        )
    ]


def test_references_of_both_data_sets(grade):
    needs_sandbox()
    table = mbpp_rows()
    given = [
        code_row(t, table[t]["code"], prompt=table[t].get("text", ""), tests=mbpp_tests(table[t]))
        for t in (2, 11, 105, 601)
    ]
    for row in rows("humaneval/test.jsonl.gz")[::60]:
        shared = {"prompt": row["prompt"], "entry_point": row["entry_point"], "tests": row["test"]}
        solution = row["canonical_solution"]
        given.append(humaneval(row["task_id"], solution, "body", **shared))
        given.append(humaneval(f"{row['task_id']} whole", row["prompt"] + solution, "code", **shared))
    _, _, out = grade("code", given)
    assert brief(out) == [(row["id"], "correct") for row in given]
    assert ["forgeable" in row["detail"] for row in verdicts(out)][:4] == [
        False,
        False,
        False,
        True,
    ]  # 601: its own class
    out.unlink()
    _, _, out = grade("code", given[:4], "--no-trust-forgeable")
    assert [verdict for _, verdict in brief(out)] == ["correct"] * 3 + ["error"]


BROKEN_CODE = {
    "no style": ({"style": None}, "field 'style' is null"),
    "unknown style": ({"style": "apps"}, "field 'style' is 'apps'"),
    "unknown form": ({"completion_form": "diff"}, "field 'completion_form' is 'diff'"),
    "number as completion": ({"completion": 3}, "field 'completion' is a number"),
    "number as prompt": ({"prompt": 3}, "field 'prompt' is a number"),
    "number as entry point": ({"entry_point": 3}, "field 'entry_point' is a number"),
    "text as tests": ({"tests": "assert f(2) == 4"}, "takes a list of strings"),
    "numbers as tests": ({"tests": [1]}, "field 'tests' holds a number"),
    "no tests": ({"tests": []}, "no tests"),
    "tests that are no Python": ({"tests": ["assert ("]}, "not Python"),
    "deep tests": ({"tests": ["assert " + "-" * 100_000 + "f(2)"]}, ""),
    "NUL in tests": ({"tests": ["assert f(2) == 4\0"]}, "has a NUL"),
    "surrogate in prompt": ({"completion_form": "body", "prompt": "\ud800"}, "surrogate"),
    "humaneval without entry point": (
        {"style": "humaneval", "tests": CHECK, "entry_point": None},
        "'entry_point' is null",
    ),
    "humaneval without prompt": (
        {"style": "humaneval", "tests": CHECK, "entry_point": "f", "prompt": None},
        "'prompt'",
    ),
    "humaneval with two tests": (
        {"style": "humaneval", "tests": [CHECK, CHECK], "entry_point": "f"},
        "defines check()",
    ),
}


def test_broken_code_rows(grade):
    needs_sandbox()
    good = code_row("good", "def f(x): return x * x")
    missing = [{k: v for k, v in good.items() if k != name} for name in good]
    bad = [{**good, "id": name, **change} for name, (change, _) in BROKEN_CODE.items()]
    code, _, out = grade("code", [*bad, *missing, good])
    found = verdicts(out)
    assert code == 0
    for row, (name, (_, reason)) in zip(found, BROKEN_CODE.items(), strict=False):
        assert (row["id"], row["verdict"]) == (name, "error") and reason in row["detail"], row
    # without prompt or entry_point an mbpp row can be graded: nothing reads them
    rest = {name: row["verdict"] for name, row in zip(good, found[len(bad) :], strict=False)}
    assert rest == {name: "correct" if name in ("prompt", "entry_point") else "error" for name in good}
    assert found[-1]["verdict"] == "correct"


def test_hostile_programs_cost_their_own_row_only(grade):
    needs_sandbox()
    given = [
        code_row("memory", "x = bytearray(10**12)\ndef f(x): return 4"),
        code_row("long", "def f(x): return 4 # " + "x" * 390_000),
        code_row("too long", "#" * 500_000),
        code_row("deep", "x = " + "[" * 90_000 + "]" * 90_000),
        code_row("last", "def f(x): return x * x"),
    ]
    _, _, out = grade("code", given)
    assert brief(out) == [
        ("memory", "wrong"),
        ("long", "correct"),
        ("too long", "wrong"),
        ("deep", "wrong"),
        ("last", "correct"),
    ]


def test_a_machine_without_bubblewrap_is_told_how_to_get_it(grade, monkeypatch):
    monkeypatch.setattr(bwrap, "find", lambda: None)
    report.sandbox_report.cache_clear()
    try:
        code, err, out = grade("code", [code_row(1, "")])
    finally:
        report.sandbox_report.cache_clear()
    assert code == 2 and not out.exists()
    for part in ("Refusing", "bubblewrap", "apt-get install bubblewrap", f"--accept-risk {RISK_NAME}"):
        assert part in err


def test_a_risk_is_accepted_by_its_name_only(grade):
    code, err, out = grade("code", [code_row(1, "")], "--accept-risk", "yes")
    assert code == 2 and "'yes'" in err and RISK_NAME in err and not out.exists()


def test_help_is_fast_and_loads_no_model_library():
    code = (
        "import atexit, sys; from selfcorrect.cli import main; sys.argv = ['selfcorrect', 'grade', 'code', '--help'];"
        "atexit.register(lambda: print([m for m in ('torch', 'transformers', 'sympy') if m in sys.modules])); main()"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "--accept-risk" in done.stdout and done.stdout.splitlines()[-1] == "[]"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_the_rows_of_the_docs_code(grade):
    needs_sandbox()
    rows, _ = shown_rows("code")
    assert len(rows) == 2
    code, _, out = grade("code", rows)
    assert code == 0 and brief(out) == [(11, "correct"), ("h/0", "correct")]
