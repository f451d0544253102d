# one case a line keeps the tables readable
"""The grader's interface: forms, styles, order, errors of ours against errors of the program, unsafe machines."""

import asyncio
import os

import pytest
from code_tools import mbpp, needs_sandbox

from selfcorrect.errors import ConfigError
from selfcorrect.types import Grade, Verdict
from selfcorrect.verify.code import RISK_NAME, CodeGrader, CodeRequest, ProgramLimits, report, sandbox_report

PROMPT = 'from typing import List\n\ndef total(xs: List[int]) -> int:\n    """Sum them."""\n'
CHECK = "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n"


@pytest.fixture(scope="module")
def grader():
    needs_sandbox()
    with CodeGrader(limits=ProgramLimits(cpu_s=2, idle_s=2), workers=2) as made:
        yield made


def humaneval(completion, form, **more):
    return CodeRequest("humaneval", CHECK, completion, form, PROMPT, "total", **more)


@pytest.mark.parametrize(
    ("form", "completion"),
    [
        ("body", "    return sum(xs)\n"),
        ("code", "def total(xs): return sum(xs)"),
        ("text", "    return sum(xs)"),
        ("text", "return sum(xs)"),
        ("text", "    s = 0\n    for x in xs:\n        s += x\n    return s"),
        ("text", "Sure!\n```python\ndef total(xs: List[int]) -> int:\n    return sum(xs)\n```\nIt sums."),
        ("text", "```python\n    return sum(xs)\n```"),
        ("text", "Here:\n\ndef total(xs: List[int]):\n    return sum(xs)\n\nThis adds the numbers."),
        ("text", "```\ndef total(xs): return 1\n```\nNo, rather:\n```\ndef total(xs): return sum(xs)\n```"),
    ],
)
def test_humaneval_forms(grader, form, completion):
    grade = grader.grade(humaneval(completion, form))
    assert grade.verdict is Verdict.CORRECT, grade
    assert isinstance(grade, Grade) and grade.extracted and grade.extracted.strip() in completion


def test_the_program_that_ran_is_the_one_reported(grader):
    grade = grader.grade(mbpp("def f(x):\n    return 41\nwhich is the answer.", form="text"))
    assert (grade.verdict, grade.extracted) == (Verdict.CORRECT, "def f(x):\n    return 41")


@pytest.mark.parametrize(
    ("test", "program"),
    [
        ("assert f(2) == 41", "def f(x): return 41"),
        ("assert set(f(2)) == set([1])", "def f(x): return [1, 1]"),
        ("assert math.isclose(f(2), 1 / 3, rel_tol=1e-3)", "import math\ndef f(x): return 0.3334"),
        ("assert f(2)", "import re\ndef f(x): return re.match('a', 'a')"),
        ("assert not f(2)", "import re\ndef f(x): return re.match('a', 'b')"),
        ("assert sum(2, 3) == 5", "def sum(a, b): return a + b"),
        ("assert f(x=2) == {'x': (2, None)}", "def f(x): return {'x': (x, None)}"),
        ("try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'low'", "def f(x): raise ValueError('low')"),
        ("try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass", "class Low(ValueError): pass\ndef f(x): raise Low"),
        ("assert list(map(f, [1, 2])) == [2, 3]", "f = lambda x: x + 1"),
        ("assert twice(f, 2) == 4", "def f(x): return x + 1\ndef twice(g, x): return g(g(x))"),
        ("assert f(2) == LIMIT", "LIMIT = 7\ndef f(x): return 7"),
        ("assert next(f(2)) == 0", "def f(x): yield from range(x)"),
        ("assert f(2) == (1, 2)", "import collections\ndef f(x): return collections.namedtuple('P', 'a b')(1, 2)"),
        ("assert f(2) == {'a': 2}", "import collections\ndef f(x): return collections.Counter('aa')"),
        ("assert f({3, 1}) == 4", "def f(x): assert type(x) is set; return sum(x)"),
        ("assert f(10**30) == 10**31", "def f(x): return x * 10"),
        ("assert f((1, 'a', 2.5), int) == ['a', 2.5]", "def f(t, k): return [v for v in t if type(v) is not k]"),
        ("assert f(2) == 2", "import hashlib, sqlite3, uuid, decimal, zoneinfo, unittest, asyncio, csv, ssl\ndef f(x): return x"),
        ("assert f(2) == 41", "if __name__ == '__main__':\n    input()\ndef f(x): return 41"),
        ("assert f(2) == 41", "\r\ndef f(x):\r\n\treturn 41\r\n"),
    ],
)  # fmt: skip
def test_right_programs_pass(grader, test, program):
    grade = grader.grade(mbpp(program, test))
    assert grade.verdict is Verdict.CORRECT, grade


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("def f(x): return 40", "AssertionError"),
        ("def g(x): return 41", "NameError"),
        ("def f(x): return 41 +", "not a program: SyntaxError"),
        ("def f(x): return undefined", "NameError: name 'undefined'"),
        ("def f(): return 41", "TypeError"),
        ("import numpy", "failed before its tests: ModuleNotFoundError"),
        ("f = 41", "TypeError"),
        ("x = input()", "EOFError"),
        ("\0", "not a program"),
    ],
)
def test_wrong_programs_fail_with_the_reason(grader, program, detail):
    grade = grader.grade(mbpp(program))
    assert grade.verdict is Verdict.WRONG and detail in grade.detail, grade


def test_a_module_that_the_program_did_not_import_is_missing_as_in_one_process(grader):
    grade = grader.grade(mbpp("def f(x): return 1.0", "assert math.isclose(f(2), 1.0)"))
    assert grade.verdict is Verdict.WRONG and "math" in grade.detail


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        (mbpp("def f(x): return 41", "assert f(2) =="), "not Python"),
        (CodeRequest("mbpp", [], "def f(x): return 41", "code"), "no tests"),
        (mbpp("def f(x): return 41", "assert 1 == 1"), "cannot judge"),
        (mbpp("def f(x): return 41", "try:\n    pass\nfinally:\n    g = f"), "without calling"),
        (CodeRequest("humaneval", "x = 1", "def f(x): return 41", "code", "", "f"), "no function check"),
        (CodeRequest("humaneval", CHECK, "def f(x): return 41", "code"), "entry_point"),
        (CodeRequest("other", "x", "y"), "style"),
        (CodeRequest("mbpp", "assert f(1)", "y", "other"), "form"),
    ],
)
def test_a_broken_problem_is_our_error_and_not_the_models(grader, request_, detail):
    grade = grader.grade(request_)
    assert grade.verdict is Verdict.ERROR and detail in grade.detail, grade


@pytest.mark.parametrize("text", ["", "I cannot.", "The answer is 41."])
def test_no_program_is_no_answer_or_truncated(grader, text):
    assert grader.grade(mbpp(text, form="text")).verdict is Verdict.NO_ANSWER
    assert grader.grade(mbpp(text, form="text", truncated=True)).verdict is Verdict.TRUNCATED


def test_a_cut_program_is_truncated_and_a_whole_one_in_a_cut_text_is_graded(grader):
    assert (
        grader.grade(mbpp("```python\ndef f(x):\n    return (", form="text", truncated=True)).verdict
        is Verdict.TRUNCATED
    )
    assert grader.grade(mbpp("```python\ndef f(x):\n    return (", form="text")).verdict is Verdict.WRONG
    whole = "```python\ndef f(x): return 41\n```\nThis works bec"
    assert grader.grade(mbpp(whole, form="text", truncated=True)).verdict is Verdict.CORRECT


def test_grade_many_keeps_the_order_and_verdicts_repeat(grader):
    requests = [mbpp(f"def f(x): return {40 + i % 3}") for i in range(60)]
    wanted = [Verdict.CORRECT if i % 3 == 1 else Verdict.WRONG for i in range(60)]
    assert [g.verdict for g in grader.grade_many(requests)] == wanted
    assert [g.verdict for g in grader.grade_many(reversed(requests))] == wanted[::-1]


def test_grade_async_runs_beside_the_loop(grader):
    async def both():
        slow = mbpp("import time\ndef f(x): time.sleep(1); return 41")
        first = asyncio.create_task(grader.grade_async(slow))
        second = await grader.grade_async(mbpp("def f(x): return 41"))
        return not first.done(), (await first).verdict, second.verdict

    assert asyncio.run(both()) == (True, Verdict.CORRECT, Verdict.CORRECT)


def test_answers_that_hang_on_chance_or_on_hashing_are_the_same_in_every_sandbox():
    needs_sandbox()
    program = "import random\ndef f(x): return [random.random(), ''.join({'a', 'b', 'c', 'd'})]"
    seen = set()
    for _ in range(2):
        with CodeGrader(workers=1) as one:
            for _ in range(2):
                detail = one.grade(mbpp(program, "raise ValueError(str(f(2)))")).detail
                seen.add(detail)
    assert len(seen) == 1, seen


def test_a_closed_grader_says_so(grader):
    with CodeGrader(workers=1) as closed:
        pass
    grade = closed.grade(mbpp("def f(x): return 41"))
    assert grade.verdict is Verdict.ERROR and "closed" in grade.detail


@pytest.mark.parametrize(
    "settings",
    [{"cpu_s": 0}, {"memory_mb": 1}, {"wall_s": 5}, {"message_mb": 0}, {"files": 1}, {"idle_s": 0}, {"scratch_mb": 0}, {"threads": 0}],
)  # fmt: skip
def test_limits_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        CodeGrader(limits=ProgramLimits(**settings))


@pytest.mark.parametrize(
    ("limit", "program", "fits"),
    [
        (ProgramLimits(cpu_s=0.5), "import time\ndef f(x):\n  while time.process_time() < 1: pass\n  return 41", ProgramLimits(cpu_s=3)),
        (ProgramLimits(idle_s=0.5), "import time\ndef f(x): time.sleep(2); return 41", ProgramLimits(idle_s=5)),
        (ProgramLimits(wall_s=1, cpu_s=1, idle_s=9), "import time\ndef f(x): time.sleep(3); return 41", ProgramLimits(wall_s=60, idle_s=9)),
        (ProgramLimits(memory_mb=128), "def f(x): return len(bytearray(200 << 20)) and 41", ProgramLimits(memory_mb=512)),
        (ProgramLimits(scratch_mb=1), "def f(x): open('a', 'wb').write(bytes(3 << 20)); return 41", ProgramLimits(scratch_mb=8)),
        (ProgramLimits(files=16), "def f(x): a = [open('/dev/null') for _ in range(40)]; return 41", ProgramLimits(files=64)),
        (ProgramLimits(message_mb=1), "def f(x): return 41 if x else 0\nbig = lambda: 0\ndef f(x): return 'x' * (2 << 20)", None),
    ],
)  # fmt: skip
def test_each_limit_changes_something(limit, program, fits):
    needs_sandbox()
    with CodeGrader(limits=limit, workers=1) as tight:
        assert tight.grade(mbpp(program)).verdict in (Verdict.WRONG, Verdict.TIMEOUT)
    if fits:
        with CodeGrader(limits=fits, workers=1) as wide:
            assert wide.grade(mbpp(program)).verdict is Verdict.CORRECT


@pytest.fixture
def unsafe_machine(monkeypatch):
    """A machine without bubblewrap."""
    monkeypatch.setattr(report.bwrap, "find", lambda: None)
    sandbox_report.cache_clear()
    yield
    sandbox_report.cache_clear()


def test_an_unsafe_machine_is_refused_by_naming_what_is_missing(unsafe_machine):
    assert not sandbox_report().complete
    assert "MISSING bubblewrap" in sandbox_report().describe()
    with pytest.raises(ConfigError, match=f"bubblewrap.*install.*{RISK_NAME}"):
        CodeGrader()


@pytest.mark.parametrize("consent", ["yes", "true", "", RISK_NAME.upper()])
def test_the_risk_is_accepted_by_its_name_only(unsafe_machine, consent):
    with pytest.raises(ConfigError, match="accept_risk"):
        CodeGrader(accept_risk=consent)


def test_with_the_risk_accepted_verdicts_are_as_unforgeable_and_the_rest_still_holds(unsafe_machine, tmp_path):
    canary = tmp_path / "canary"
    canary.write_text("untouched")
    with CodeGrader(limits=ProgramLimits(cpu_s=1, idle_s=1), workers=1, accept_risk=RISK_NAME) as plain:
        assert plain.grade(mbpp("def f(x): return 41")).verdict is Verdict.CORRECT
        equal = "class E:\n  def __eq__(s, o): return True\ndef f(x): return E()"
        assert plain.grade(mbpp(equal)).verdict is Verdict.WRONG
        assert plain.grade(mbpp("def f(x):\n  while True: pass")).verdict is Verdict.TIMEOUT
        if sandbox_report.__wrapped__().items[2].present:  # seccomp
            for body in ("os.fork()", "os.kill(os.getppid(), 9)", "socket.socket()", "os.kill(-1, 9)"):
                program = f"import os, socket\ndef f(x):\n  try: {body}\n  except OSError: return 41"
                assert plain.grade(mbpp(program)).verdict is Verdict.CORRECT, body
        if sandbox_report.__wrapped__().items[3].present:  # Landlock
            for mode in ("r", "w"):
                program = f"def f(x):\n  try: open({str(canary)!r}, {mode!r})\n  except OSError: return 41"
                assert plain.grade(mbpp(program)).verdict is Verdict.CORRECT
        scratch = plain.grade(
            mbpp("import os\ndef f(x): open('a', 'w'); return os.getcwd()", "raise ValueError(f(2))")
        ).detail
    assert canary.read_text() == "untouched"
    assert not os.path.exists(scratch.removeprefix("ValueError: "))


def test_the_report_names_every_protection():
    names = [item.name.split()[0] for item in sandbox_report().items]
    assert names in (["bubblewrap", "namespaces", "seccomp", "Landlock"], ["Linux"])


def test_another_system_is_refused_even_with_the_risk_accepted(monkeypatch):
    monkeypatch.setattr(report.platform, "system", lambda: "Darwin")
    sandbox_report.cache_clear()
    try:
        with pytest.raises(ConfigError, match="Darwin has no namespaces"):
            CodeGrader(accept_risk=RISK_NAME)
    finally:
        sandbox_report.cache_clear()
