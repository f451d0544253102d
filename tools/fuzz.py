"""Fuzz the readers of what models, files, endpoints and clients send. CONTRIBUTING.md says how to run it.

Each target draws hostile and almost valid input and checks what must hold for all of it: only the documented errors, no
example that takes long, and that a good answer is found in whatever stands around it. What it finds becomes a row of
``SEEDS`` in tests/test_fuzz.py.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from selfcorrect.config.loading import load_config
from selfcorrect.episodes.completion import NoCompletion, read_completion
from selfcorrect.errors import DataError, EndpointError, SelfCorrectError
from selfcorrect.records.files import read_journal
from selfcorrect.records.lines import parse_record, read_episodes
from selfcorrect.serve.protocol import (
    ApiError,
    Bounds,
    Outcome,
    ServedAttempt,
    parse_request,
    response,
    streamed,
)
from selfcorrect.tasks import make_task
from selfcorrect.tasks.gsm8k import Gsm8k, grade_number, parse_number
from selfcorrect.types import Verdict
from selfcorrect.verify.cases import Broken, code_request, math_case, read_cases
from selfcorrect.verify.code.extract import extract
from selfcorrect.verify.code.inside.channel import Channel, ProgramGone
from selfcorrect.verify.code.inside.codec import CodecError, decode, loads
from selfcorrect.verify.code.inside.remote import ProgramError
from selfcorrect.verify.code.tests_plan import plan_tests
from selfcorrect.verify.math.extract import bare_answer, find_answer

SLOWEST_S = 3.0
"""CPU time of one example. Inputs are short, so more is a search that is not linear."""

# --- What inputs are made of ----------------------------------------------------------------------------------------

ANSWER_PARTS = [
    "Final answer:", "**Final Answer**", "The final answer is", "final answer", "Answer:", "#### ", "\\boxed{", "\\boxed", "\\fbox{", "}", "{",
    "$", "$$", "\\(", "\\)", "\\[", "\\]", "\\frac{1}{2}", "\\frac", "\\dfrac12", "\\sqrt{2}", "\\sqrt[3]{", "\\text{ dollars}", "\\text{",
    "\\dot{3}", "\\overline{", "\\left(", "\\right)", "\\pm", "\\cup", "\\infty", "\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "&", "\\pi",
    "\\%", "%", "12", "-3", "+", "-", "--", "0.5", ".5", "5.", "1/2", "1/0", "73{,}000", "1,234", "1e9", "10^9", "x=", "x", "(1,2)", "[1,2)",
    "1:2", "3 and 4", "or", "\u2212", "\u00bd", "\uff11\uff12", "12\u4e2a", "\u7b54\u6848\u662f", "<think>", "</think>", "[THINK]", "[/THINK]",
    "</s>", "\t", " ", ".", ",", ";", "*", "_", "`", "~", "\u202f", "\u2009", "\ufeff", "\u200b", "\u2028", "\u0000", "I hope it is correct",
    "billion", "apples", "!", "\n", "\n\n", "|", "<|im_end|>",
]  # fmt: skip
CODE_PARTS = [
    "```", "````", "~~~", "```python\n", "```\n", "[BEGIN]", "[DONE]", "[END]", "[/BEGIN]", "[PYTHON]", "<code>", "</code>", "def f(x):",
    "class A:", "    return x", "import os", "from x import y", "'''", "\"\"\"", "'", "\"", "#", "\\", "(", ")", "[", "]", "{", "}", ":", "=",
    ",", "end", "arr[end]", "x = 1", "for i in x", "<think>", "</think>", "</s>", "def f(", "\n", "\n    ", "\r\n", "\r", "\t", " ", "\ufeff",
    "\u00a0", "\u2028", "\u0000", "\ud800", "assert f(1)", "Here it is:", "- ", "<|channel|>final<|message|>",
]  # fmt: skip
NAMES = ["end", "done", "begin", "code", "python", "END", "DONE", "CODE", "x", "answer", "think"]


def joined(parts: list[str]) -> st.SearchStrategy[str]:
    """Texts of parts, and now and then any characters."""
    part = st.sampled_from(parts) | st.sampled_from(parts) | st.sampled_from(parts) | st.text(max_size=6)
    return st.lists(part, max_size=40).map("".join) | st.tuples(st.sampled_from(parts), st.integers(1, 3000)).map(
        lambda pair: pair[0] * pair[1]
    )


DEEP = b'"@deep"'
"""Stands for lists nested deeply."""
SCALARS = (
    st.none()
    | st.just(json.loads(DEEP))
    | st.booleans()
    | st.integers()
    | st.integers(-3, 5)
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=8)
)


def nested(*keys: str) -> st.SearchStrategy[Any]:
    """JSON values whose objects often have the keys that a reader looks for."""
    key = st.sampled_from(keys) | st.text(max_size=5)
    return st.recursive(
        SCALARS | st.sampled_from(keys),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(key, inner, max_size=6),
        max_leaves=25,
    )


def changed(whole: Any, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A valid value in which some parts are replaced, removed or added."""

    @st.composite
    def change(draw: st.DrawFn) -> Any:
        def visit(value: Any) -> Any:
            if draw(st.integers(0, 11)) == 0:
                return draw(values)
            if isinstance(value, dict):
                kept = {k: visit(v) for k, v in value.items() if draw(st.integers(0, 15)) != 0}
                return kept | (
                    draw(st.dictionaries(st.text(max_size=4), values, max_size=1))
                    if draw(st.integers(0, 9)) == 0
                    else {}
                )
            return [visit(v) for v in value] if isinstance(value, list) else value

        return visit(whole)

    return change()


def as_bytes(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """JSON of values; sometimes cut, in another encoding, damaged, or no JSON at all."""

    @st.composite
    def write(draw: st.DrawFn) -> bytes:
        text = json.dumps(draw(values), ensure_ascii=draw(st.booleans()))
        data = text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig"])), "surrogatepass")
        depth = draw(st.integers(1, 1500)) if DEEP in data else 0
        data = data.replace(DEEP, b"[" * depth + b"]" * depth)
        match draw(st.integers(0, 12)):
            case 0:
                return data[: draw(st.integers(0, len(data)))]
            case 1:
                at = draw(st.integers(0, len(data)))
                return data[:at] + draw(st.binary(max_size=5)) + data[at:]
            case 2:
                return draw(st.binary(max_size=60) | st.text(max_size=40).map(lambda t: t.encode("utf-8", "replace")))
            case 3:
                return data.replace(b"1", b"9" * draw(st.integers(1, 6000)), 1)
        return data

    return write()


# --- The targets ----------------------------------------------------------------------------------------------------


def check_answer(text: str, gold: str, truncated: bool) -> None:
    """The readers of answers: no fault of theirs, no verdict without a text, and a final line after anything counts."""
    grade = grade_number(gold, text, truncated=truncated)
    assert grade.verdict not in (Verdict.ERROR, Verdict.TIMEOUT), grade
    assert grade == grade_number(gold, text, truncated=truncated)
    parse_number(text)
    bare_answer(text)
    found = find_answer(text)
    assert found is None or found.answer
    for task in TASKS:
        problem = task.problems("train")[0]
        for whole in (text, text + task.reference_answer(problem)[-30:]):
            assert task.grade(problem, whole, truncated=truncated).verdict is not Verdict.ERROR
    if not any(mark in text.lower() for mark in ("<", "[", "\u25c1", "{", "\\", "$", "|")):
        for ending in ("\nFinal answer: 7301", "\n\nFinal answer: $7301$", "\nSo it is \\boxed{7301}."):
            assert grade_number("7301", text + ending, truncated=False).verdict is Verdict.CORRECT, ending
            assert grade_number("7302", text + ending, truncated=False).verdict is Verdict.WRONG, ending


def check_program(text: str, prompt: str, program: str, frame: str, reply: Any, tests: str) -> None:
    """The readers of programs and of what the sandbox sends: a program in a frame comes out as it went in."""
    for form in ("text", "body", "code"):
        found = extract(form, text, prompt, "f" if prompt else None, ("f",))  # type: ignore[arg-type]
        assert len(found.alternatives) == len(found.shown)
    framed = extract("text", frame.format(program), "", None, ("f",))
    assert framed.alternatives and _dump(_compiling(framed.alternatives)) == _dump((program,)), framed
    channel = Channel(None, 1 << 20)  # type: ignore[arg-type]  # nothing is sent in what is checked here
    channel.request = lambda message: {"value": None}  # type: ignore[method-assign]
    if isinstance(reply, dict):
        try:
            channel.result(reply)
        except (ProgramGone, Exception) as error:  # noqa: BLE001  # what the tests would meet as the program's doing
            assert isinstance(error, ProgramGone | ProgramError) or "raise" in reply, repr(error)
    with contextlib.suppress(CodecError):
        decode(reply)
    with contextlib.suppress(CodecError):
        loads(json.dumps(reply).encode()[: len(text)])
    with contextlib.suppress(DataError):
        plan_tests.__wrapped__("mbpp", None, (tests,))


def _compiling(alternatives: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    for sources in alternatives:
        try:
            for source in sources:
                compile(source, "<fuzz>", "exec")
        except (SyntaxError, ValueError):
            continue
        return sources
    return ()


def _dump(sources: tuple[str, ...]) -> list[str]:
    return [ast.dump(ast.parse(source)) for source in sources]


def check_lines(data: bytes, packed: bool) -> None:
    """The readers of JSONL: an error that says what to do, or values; a file of cases ends in a row for each line."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "test.jsonl")
        file.write_bytes(gzip.compress(data) if packed else data)
        for make in (math_case, code_request):
            for row in read_cases(file, make):  # type: ignore[arg-type]  # one of the two
                json.loads(row.id_json)
                assert not isinstance(row.case, Broken) or row.case.reason.isprintable(), row
        for read in (
            lambda: list(read_episodes(file, "drop it")),
            lambda: read_journal(file, parse_record, "drop it"),
            lambda: Gsm8k(str(file)).problems("test"),
            lambda: load_own(file),
        ):
            try:
                read()
            except SelfCorrectError as error:
                str(error).encode()


def load_own(file: Path) -> Any:
    """The problems of an own task."""
    config = load_config(None, ["task=own", f"task.path={file}", "task.verifier=exact"])
    return make_task(config.task).problems("test")


def check_reply(data: bytes, text: str) -> None:
    """The reader of endpoint replies: a reply that can be written anywhere, or one of the two errors."""
    try:
        reply = read_completion(data)
    except (NoCompletion, EndpointError) as error:
        str(error).encode()
        assert len(str(error)) < 1000 and str(error).isprintable()
    else:
        (reply.text + reply.thinking).encode()
        assert reply.stop in ("end", "length")
    whole = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    if not any(mark in text for mark in "<[\u25c1\ud800\udfff\ud83d"):
        assert read_completion(json.dumps(whole).encode()).text.strip() == text.strip()


ATTEMPT = ServedAttempt("\ud83d <b>\u2028\x00", "end", 3, 0.1, thinking="a\nb")
OUTCOME = Outcome((ATTEMPT, ATTEMPT), (0.5,), None, 3, 6, 0, 0.2)


def check_request(data: bytes) -> None:
    """The reader of server requests: a request within the bounds that can be answered, or an error that can be sent."""
    bounds = Bounds()
    try:
        request = parse_request(data, "tiny", bounds)
    except ApiError as error:
        json.dumps(error.body(), ensure_ascii=False).encode()
        assert error.status in (400, 404) and 0 < len(str(error)) < 1000
        return
    assert 1 <= request.attempts <= bounds.max_attempts and 1 <= request.votes <= bounds.max_votes
    assert 1 <= request.max_tokens <= bounds.tokens_limit and 0 <= request.temperature <= 2
    assert request.messages[-1]["role"] == "user"
    for message in request.messages:
        message["content"].encode()
    json.dumps(response(request, OUTCOME, "id", 1, "tiny"), allow_nan=False)
    assert all(e.startswith("data: ") and e.endswith("\n\n") and e.count("\n") == 2 for e in streamed(request, OUTCOME, "id", 1, "tiny"))  # fmt: skip


# --- What each target draws -----------------------------------------------------------------------------------------

TASKS = [make_task(load_config(None, [f"task={name}"]).task) for name in ("arithmetic", "countdown")]
GOLDS = st.sampled_from(["73", "-3", "0.5", "73,000", "1/3", "1000000000"])


@st.composite
def programs(draw: st.DrawFn) -> str:
    """A program that defines f, whose names and texts look like marks and fences."""
    name, other, text = (
        draw(st.sampled_from(NAMES)),
        draw(st.sampled_from(NAMES)),
        draw(st.sampled_from([*CODE_PARTS[:14], "it's", "a # b"])),
    )
    lines = [
        f"{name} = 3",
        f"    {name}, {other} = xs, 2",
        f"    x = xs[{name}]",
        f"    for {name} in range(3):\n        x = [{name}]",
        f"    x = {text.strip()!r}",
        f"    # {text.strip()}",
        f"    x = (lambda {name}: xs[{name}])",
        f"    while {name} < xs[{name}]:\n        {name} = 1",
        f"    x = [\n        [{name}],\n        [{name}]\n    ]",
        f'    """Doc.\n\n    {text.strip()}\n    """',
        f"    return xs[{name}]",
        f"    return {other}",
        "    if x:\n        return 1\n    else:\n        pass",
    ]
    body = draw(st.lists(st.sampled_from(lines[1:]), min_size=1, max_size=6))
    head = draw(st.sampled_from(["", f"{name} = 3\n", "import os\n\n", f"@staticmethod\ndef g({name}):\n    return [{name}]\n\n"]))  # fmt: skip
    return f"{head}def f(xs, {name}=1):\n" + "\n".join([*body, "    return x"])


FRAMES = ["{}", "[BEGIN]\n{}\n[DONE]", "```python\n{}\n```", "Here it is:\n\n```\n{}\n```\nIt works.", "[BEGIN]\n```python\n{}\n```\n[DONE]", "[PYTHON]\n{}\n[/PYTHON]"]  # fmt: skip
TAGS = [
    "value", "raise", "refused", "truth", "raised", "chain", "arguments", "object", "over", "valued", "callback", "list", "tuple", "dict", "set", "int",
    "Decimal", "date", "array", "range", "deque", "Fraction", "type", "iterator", "complex", "instance", "member", "derived", "ValueError", "int", "generator", "f",
]  # fmt: skip
REPLIES = nested(*TAGS) | st.sampled_from(
    [
        {"value": {"object": [0, "E", "object", "", None]}, "truth": True},
        {"value": {"valued": [0, "P", "object", "tuple", {"tuple": [1]}]}},
        {"raise": ["Bad", "ValueError", "x"], "chain": ["Bad"], "arguments": [1], "object": 0},
        {"value": {"dict": [1, {"set": [1, 2]}]}},
    ]
).flatmap(lambda whole: changed(whole, nested(*TAGS)))
ROWS = st.sampled_from(
    [
        {"id": 1, "gold": "1", "response": "\\boxed{1}"},
        {"id": "a", "style": "mbpp", "tests": ["assert f(1)"], "completion": "x", "completion_form": "text"},
        {"question": "1+1?", "answer": "2\n#### 2"},
        {"id": "p", "question": "q", "answer": "a", "split": "test", "level": None},
        {"problem": "p", "question": "q", "gold": "g", "level": None, "sample": 0, "attempts": [{"text": "t", "verdict": "correct", "extracted": "1", "detail": "", "tokens": 1, "stop": "end", "source": "sampled"}]},
        {"kind": "start", "time": "t", "command": "c", "versions": {}, "engine": {}},
        {"kind": "end", "step": 1, "reason": "finished", "train_seconds": 1.0, "sampled_tokens": 1, "sampled_responses": 1},
    ]
).flatmap(lambda row: changed(row, nested("id", "gold", "text", "test")))  # fmt: skip
LINES = st.lists(as_bytes(ROWS), max_size=5).flatmap(
    lambda rows: st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\x00\n", b"\xe2\x80\xa8"]).map(lambda end: end.join(rows))
)
COMPLETION = {
    "id": "x",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {
                "role": "assistant",
                "content": [{"type": "text", "text": "4"}, {"type": "thinking", "thinking": "t"}],
                "refusal": None,
                "reasoning_content": "r",
            },
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 1}},
}
PLAIN_COMPLETION = {
    "choices": [{"message": {"content": "<think>a</think>b"}, "finish_reason": "length"}],
    "error": {"message": "no", "code": 500},
}
ANSWER_KEYS = ("choices", "message", "content", "finish_reason", "error", "text", "type", "thinking", "refusal", "code", "stop", "detail")  # fmt: skip
REQUEST = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "1+1"}]},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "user", "content": "2+2?"},
    ],
    "temperature": 0.5,
    "max_tokens": 5,
    "stream": True,
    "stream_options": {"include_usage": True},
    "attempts": 2,
    "votes": 1,
    "seed": 1,
    "top_p": 1,
    "stop": [],
    "tools": [],
}
REQUEST_KEYS = (*REQUEST, "role", "content", "user", "max_completion_tokens", "n", "logit_bias", "response_format", "modalities", "metadata")  # fmt: skip

TARGETS: dict[str, tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...]]] = {
    "answers": (check_answer, (joined(ANSWER_PARTS), GOLDS, st.booleans())),
    "programs": (
        check_program,
        (
            joined(CODE_PARTS),
            st.sampled_from(["", "def f(x):\n    '''Do it.'''\n", "class S:\n    def f(self):\n        "]),
            programs(),
            st.sampled_from(FRAMES),
            REPLIES,
            joined(CODE_PARTS) | programs(),
        ),
    ),
    "lines": (check_lines, (LINES, st.booleans())),
    "replies": (
        check_reply,
        (
            as_bytes(
                changed(COMPLETION, nested(*ANSWER_KEYS))
                | changed(PLAIN_COMPLETION, nested(*ANSWER_KEYS))
                | nested(*ANSWER_KEYS)
            ),
            st.text(max_size=30),
        ),
    ),
    "requests": (check_request, (as_bytes(changed(REQUEST, nested(*REQUEST_KEYS)) | nested(*REQUEST_KEYS)),)),
}


def fuzz(name: str, examples: int, number: int) -> int:
    """Run one target on that many examples of a seed. Returns how many were checked.

    Raises:
        AssertionError: and whatever else a reader raised; hypothesis prints the smallest example.
    """
    check, strategies = TARGETS[name]
    ran = 0

    def timed(values: tuple[Any, ...]) -> None:
        nonlocal ran
        ran += 1
        start = time.process_time()
        check(*values)
        assert time.process_time() - start < SLOWEST_S, "an example that takes long"

    quiet = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    seed(number)(quiet(given(values=st.tuples(*strategies))(timed)))()
    return ran


def main() -> int:
    """Fuzz until the CPU time is over; exit code 1 where a target failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("targets", nargs="*", help=f"of: {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=60, help="CPU time for each target")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the first seed; each round takes the next")
    asked = parser.parse_args()
    failed = []
    for name in asked.targets or TARGETS:
        start, number, total = time.process_time(), asked.seed, 0
        try:
            while time.process_time() - start < asked.seconds:
                total += fuzz(name, 1000, number)
                number += 1
        except (Exception, ProgramGone) as error:  # noqa: BLE001  # told, and the next target runs
            failed.append(name)
            notes = "\n".join(getattr(error, "__notes__", ()))
            print(f"{name}: FAILED with seed {number}: {type(error).__name__}: {error}\n{notes}", flush=True)
        spent = time.process_time() - start
        print(f"{name}: {total} examples in {spent:.0f} s of CPU time, seeds {asked.seed} to {number}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
