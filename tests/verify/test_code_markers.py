"""Programs in the texts that models write: marks, fences, drafts and hidden characters. Rows c004 to c069 of public reports."""

import time

import pytest
from code_tools import first_that_compiles

from selfcorrect.verify.code import extract

GOOD = "def twice(n):\n    return 2 * n"
BAD = "def twice(n):\n    return n"
HOLDS = "def ended(line):\n    return line == {!r}"
MARKS = (
    "[BEGIN]",
    "[DONE]",
    "[END]",
    "[/BEGIN]",
    "data: [DONE]\n",
    "a [BEGIN] b",
    "</think>",
    "<think>",
    "</s>",
    "<|im_end|>",
    "</code>",
    "```",
)


def namespace(text, *, prompt="", entry_point=None, names=("twice",)):
    """What the first alternative that compiles defines."""
    scope = {"__name__": "program"}
    for source in first_that_compiles(extract("text", text, prompt, entry_point, names)):
        exec(source, scope)
    return scope


def doubles(text, **more):
    return namespace(text, **more)["twice"](4) == 8


# What stands around a good program. {} is the program.
AROUND = {
    "plain": "{}",
    "fence": "```python\n{}\n```",
    "marks": "[BEGIN]\n{}\n[DONE]",
    "marks around a fence": "[BEGIN]\n```python\n{}\n```\n[DONE]",
    "marks in a fence": "```python\n[BEGIN]\n{}\n[DONE]\n```",
    "marks in a fence, blank lines": "```python\n\n[BEGIN]\n\n{}\n\n[DONE]\n\n```",
    "end mark only": "{}\n[DONE]\nNow the next task.",
    "end mark after a fence": "```python\n{}\n```\n[DONE]\nYou are an expert",
    "other end": "[BEGIN]\n{}\n[END]\nDone.",
    "bracket end": "[BEGIN]\n{}\n[/BEGIN]\nDone.",
    "bold marks": "**[BEGIN]**\n{}\n**[DONE]**",
    "ticked marks": "`[BEGIN]`\n```python\n{}\n```\n`[DONE]`",
    "lower-case marks": "[begin]\n{}\n[done]",
    "spaced marks": "  [ BEGIN ]  \n{}\n [ DONE ] \n",
    "marks with punctuation": "[BEGIN]:\n{}\n[DONE].",
    "CodeLlama's marks": "[PYTHON]\n{}\n[/PYTHON]\nThis doubles.",
    "tags": "<code>\n{}\n</code>\nThis doubles.",
    "answer tags around a fence": "<answer>\n```python\n{}\n```\n</answer>",
    "marks named in prose": "I will put it between [BEGIN] and [DONE].\n\n```python\n{}\n```",
    "marks named in prose, then plain": "It stands between [BEGIN] and [DONE].\n\n{}",
    "marks named in prose after": "```python\n{}\n```\nAs asked, without [BEGIN] and [DONE].",
    "marks named in prose, then used": "Between [BEGIN] and [DONE]:\n\n[BEGIN]\n{}\n[DONE]",
    "the instruction repeated": "There might be an error. Write it out again, between [BEGIN] and [DONE].\n\n[BEGIN]\n{}\n[DONE]",
    "the instruction on lines": "Write the program between\n[BEGIN]\nand\n[DONE]\n\n```python\n{}\n```",
    "empty marks first": "[BEGIN]\n[DONE]\n\n[BEGIN]\n{}\n[DONE]",
    "doubled begin": "[BEGIN]\n[BEGIN]\n{}\n[DONE]",
    "a draft between marks": f"[BEGIN]\n{BAD}\n[DONE]\nThat is wrong.\n[BEGIN]\n{{}}\n[DONE]",
    "a draft in a fence": f"```python\n{BAD}\n```\nThat is wrong.\n[BEGIN]\n{{}}\n[DONE]",
    "another task after it": "[BEGIN]\n{}\n[DONE]\nYou are an expert. Your code should pass: assert g(1)\n[BEGIN]\ndef g(x):\n    return x\n[DONE]",
    "another task, cut": "[BEGIN]\n{}\n[DONE]\nYou are an expert.\n[BEGIN]\ndef twice(n):\n    return",
    "an example after it": "[BEGIN]\n{}\n[DONE]\n```python\nprint(twice(2))\n```",
    "four backticks": "````python\n{}\n````",
    "tildes": "~~~python\n{}\n~~~",
    "tildes around backticks": "~~~~\n```python\n{}\n```\n~~~~",
    "Markdown in a longer fence": "````markdown\n```python\n{}\n```\n````",
    "Markdown in an equal fence": "```markdown\n```python\n{}\n```\n```",
    "Markdown with prose in it": "````md\nHere it is:\n\n```python\n{}\n```\n\nIt doubles.\n````",
    "bare fence around a fence": "````\n```python\n{}\n```\n````",
    "doubled opening": "```python\n```python\n{}\n```\n```",
    "no closing fence": "```python\n{}",
    "glued closing fence": "```python\n{}```\nIt doubles.",
    "closing fence only": "{}\n```\nIt doubles.",
    "fence in a list": "1. The program:\n\n   ```python\n{}\n   ```",
    "fence on a list line": "- ```python\n{}\n  ```",
    "attributes": '```python title="twice.py" linenums="1"\n{}\n```',
    "pandoc": "```{{.python}}\n{}\n```",
    "version": "```python3.11\n{}\n```",
    "upper case": "```PYTHON\n{}\n```",
    "file name": "```python:twice.py\n{}\n```",
    "another language after it": "```python\n{}\n```\n```bash\npython twice.py\n```",
    "output after it": "```python\n{}\n```\nOutput:\n```\n8\n```",
    "end of turn": "```python\n{}\n```<|im_end|>",
    "end of turn, next turn": f"```python\n{{}}\n```<|im_end|>\n<|im_start|>user\n```python\n{BAD}\n```",
    "end of text": "{}\n</s>",
    "carriage returns": "```python\r\n{}\r\n```\r\n",
    "draft in thoughts, plain answer": f"<think>\nTry:\n```python\n{BAD}\n```\nno.\n</think>\n{{}}",
    "draft in thoughts, fenced answer": f"<think>\n```python\n{BAD}\n```\n</think>\n\n```python\n{{}}\n```",
    "draft in an open fence in thoughts": f"<think>\n```python\n{BAD}\n</think>\n{{}}",
    "thoughts without a start": f"Try:\n```python\n{BAD}\n```\nno.\n</think>\n\n{{}}",
    "thoughts with a later end": f"<think>\n[BEGIN]\n{BAD}\n[DONE]\n</think>\n[BEGIN]\n{{}}\n[DONE]",
    "thinking": f"<thinking>\n```python\n{BAD}\n```\n</thinking>\n{{}}",
    "bracketed thoughts": f"[THINK]\n```python\n{BAD}\n```\n[/THINK]\n{{}}",
    "channels": f"<|channel|>analysis<|message|>```python\n{BAD}\n```<|end|><|start|>assistant<|channel|>final<|message|>{{}}",
    "thoughts after the answer": f"```python\n{{}}\n```\n<think>\n```python\n{BAD}\n```\n</think>",
    "other thoughts": f"<|START_THINKING|>\n```python\n{BAD}\n```\n<|END_THINKING|>{{}}",
    "thoughts and a solution": f"<|begin_of_thought|>\n```python\n{BAD}\n```\n<|end_of_thought|>\n<|begin_of_solution|>\n{{}}\n<|end_of_solution|>",
    "a channel of thoughts": f"<|channel>thought\n```python\n{BAD}\n```\n<channel|>{{}}",
    "no closing fence, then prose": "```python\n{}\n\nThis function doubles the number.",
    "words on the closing fence": "```python\n{}\n``` This doubles.",
    "a word on the closing fence": "```python\n{}\n```end\nMore words.",
    "an opening fence closes": "```python\n{}\n```python\nassert twice(1) == 2\n```",
    "end mark on the last line": "{} [DONE]\nYou are an expert",
    "both marks on lines of code": "[BEGIN]{} [DONE]\nYou are an expert",
    "prose that looks like code": "from the list we take n.\nfor example 2.\n\n{}",
    "prose around": "Here it is:\n\n{}\n\nThis doubles the number.",
}  # fmt: skip


@pytest.mark.parametrize("name", AROUND)
def test_a_good_program_is_found(name):
    assert doubles(AROUND[name].format(GOOD))


@pytest.mark.parametrize(
    "text",
    [
        "[BEGIN]\ndef twice(n):\n    return {'a': 2 * n}['a'] [DONE]\nNext",
        "[BEGIN] def twice(n): return 2 * n [DONE]",
        "[BEGIN]twice = lambda n: 2 * n[DONE]",
        "DONE = 'a'\nflags = {'a': 2}\ndef twice(n):\n    return n * flags[DONE]",
        "def twice(n):\n    return 2 * n\ndef other(n):\n    return flags[DONE]",
        "def twice(n):\n    mark = ' [DONE]'; return 2 * n",
    ],
)
def test_a_mark_ends_a_line_of_code_outside_its_strings(text):
    assert doubles(text)


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_in_a_string_or_comment_is_the_programs(mark, name):
    if mark == "```" and name in (
        "glued closing fence",
        "no closing fence",
        "no closing fence, then prose",
        "Markdown in an equal fence",
        "doubled opening",
    ):
        pytest.skip("a fence at the end of a line of code closes the block there")
    code = HOLDS.format(mark).replace(":\n", f":  # {mark.strip()}\n    # {mark.strip()}\n", 1) + f"\n{GOOD}"
    found = namespace(AROUND[name].format(code), names=("ended", "twice"))
    assert found["ended"](mark) and found["twice"](4) == 8


# Names that are spelled like the word in a mark. {0} is the name.
OWN_NAMES = {
    "last index": "def twice(n):\n    {0} = n\n    pair = [0, 0, 0, 0, 2 * n]\n    return pair[{0}]",
    "index in an assignment": "def twice(n):\n    a, {0} = list(range(9)), n\n    a[0], a[4] = a[4], a[{0}]\n    return a[0] + n",
    "index before a colon": "def twice(n):\n    s, {0} = [9], 0\n    while n < s[{0}]:\n        s[{0}] = 0\n    return 2 * n",
    "parameter": "def at(xs, {0}):\n    return xs[{0}]\ndef twice(n):\n    return at([0, 2 * n], 1)",
    "parameter on its line": "def at(\n    xs,\n    {0},\n):\n    return xs[{0}]\ndef twice(n):\n    return at([0, 2 * n], 1)",
    "loop": "def twice(n):\n    for {0} in range(n + 1):\n        last = list(range(9))[{0}]\n    return last + n",
    "loop over pairs": "def twice(n):\n    for i, {0} in [(0, n)]:\n        last = range(9)[{0}]\n    return last + n",
    "comprehension over lines": "def twice(n):\n    return sum([\n        range(9)[{0}]\n        for {0} in (n, n)\n    ])",
    "constant": "{0} = 1\ndef twice(n):\n    return [0, 2 * n][{0}]",
    "constant after it": "def twice(n):\n    return [0, 2 * n][{0}]\n{0} = 1",
    "list of one": "def twice(n):\n    {0} = n\n    (x,) = [{0}]\n    y, = [\n        {0}]\n    z = [{0}]\n    return x + z[0]",
    "row of its own": "def twice(n):\n    {0} = n\n    rows = [\n        [{0}],\n        [{0}]\n    ]\n    return rows[0][0] + rows[1][0]",
    "import": "from math import pi as {0}\ndef twice(n):\n    return 2 * n if [{0}] else [{0}]",
    "lambda": "at = lambda xs, {0}: xs[{0}]\ndef twice(n):\n    return at([0, 2 * n], 1)",
}  # fmt: skip


@pytest.mark.parametrize("word", ["end", "done", "begin", "code", "python", "END", "DONE", "BEGIN", "CODE"])
@pytest.mark.parametrize("program", OWN_NAMES)
@pytest.mark.parametrize("name", ["marks", "lower-case marks", "plain", "fence", "end mark only", "marks named in prose, then used"])  # fmt: skip
def test_a_name_of_the_program_is_no_mark(name, program, word):
    assert doubles(AROUND[name].format(OWN_NAMES[program].format(word)))


@pytest.mark.parametrize("end", ["[DONE]", " [DONE]", " [done]", "[END]", " [/BEGIN]", " [/CODE]"])
def test_a_mark_may_follow_the_last_line_of_code(end):
    assert doubles(f"[BEGIN]\n{GOOD}{end}\nThis is the end, and it is done.")


def test_many_names_like_marks_take_no_time():
    start = time.process_time()
    extract("text", "[BEGIN]\n" + "end " * 90_000 + "\n" + "end=1\n" * 20_000 + "x[end]\n" * 20_000, "", None, ("f",))
    assert time.process_time() - start < 5


INNER = {
    "fence": "```\n    twice(2) -> 4\n    ```",
    "tagged fence": "```python\n    >>> twice(2)\n    4\n    ```",
    "tildes": "~~~\n    twice(2)\n    ~~~",
    "opening fence only": "```python",
    "end mark": "[DONE]",
    "begin mark": "[BEGIN]",
    "both marks": "[BEGIN]\n    twice(2)\n    [DONE]",
    "tag": "<code>\n    twice(2)\n    </code>",
}


@pytest.mark.parametrize("quote", ["'''", '"""', 'r"""'])
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", ["plain", "fence", "marks", "marks around a fence", "tildes", "four backticks", "Markdown in a longer fence", "prose around", "end mark only"])  # fmt: skip
def test_a_docstring_may_hold_fences_and_marks(name, inner, quote):
    code = f"def twice(n):\n    {quote}Doubles.\n\n    {INNER[inner]}\n    {quote[-3:]}\n    return 2 * n"
    assert doubles(AROUND[name].format(code))


def test_a_multi_line_text_keeps_its_lines():
    code = 'TEXT = """a\n```\n[DONE]\nb [DONE]\n"""\ndef twice(n):\n    return TEXT'
    for name in ("fence", "marks", "plain"):
        assert namespace(AROUND[name].format(code))["twice"](1) == "a\n```\n[DONE]\nb [DONE]\n"


def test_a_docstring_that_never_ends_does_not_swallow_the_last_version():
    text = f'```python\ndef twice(n):\n    """Doubles.\n    return n\n```\nBetter:\n```python\n{GOOD}\n```'
    assert doubles(text)


def test_marks_that_share_a_line_with_code():
    assert doubles("[BEGIN] def twice(n):\n    return 2 * n [DONE]\nYou are")
    assert doubles("```python def twice(n): return 2 * n```")
    assert doubles("It is `def twice(n): return 2 * n`, or:\n`def twice(n): return 2 * n`")


HIDDEN = {
    "byte-order mark": "\ufeff" + GOOD,
    "zero-width spaces": GOOD.replace("return", "\u200breturn"),
    "zero-width joiner in the margin": "\u200d" + GOOD,
    "no-break spaces": GOOD.replace("    ", "\u00a0\u00a0\u00a0\u00a0"),
    "ideographic spaces": GOOD.replace("    ", "\u3000\u3000"),
    "line separator": GOOD.replace("\n", "\u2028"),
    "minus sign": "def twice(n):\n    return n \u2212 -n",
    "curly quotes": "def twice(n):\n    return 2 * n if n != \u2018x\u2019 else \u201cy\u201d",
}


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("name", ["plain", "fence", "marks", "draft in thoughts, plain answer"])
def test_hidden_characters_do_not_break_a_program(name, hidden):
    assert doubles(AROUND[name].format(HIDDEN[hidden]))


def test_hidden_characters_in_strings_stay():
    assert (
        namespace("```python\ndef twice(n):\n    return '\u200b\u00a0\ufeff\u201c'\n```")["twice"](1)
        == "\u200b\u00a0\ufeff\u201c"
    )


PROMPT = "import math\n\ndef twice(n):\n    '''Doubles. Ends with [DONE].'''\n"
CLASS = "class Solution:\n    def twice(self, n: int) -> int:\n        "


@pytest.mark.parametrize("name", AROUND)
def test_humaneval_and_own_tasks_read_the_same_way(name):
    assert doubles(AROUND[name].format(GOOD), prompt=PROMPT, entry_point="twice")


@pytest.mark.parametrize(
    "text",
    [
        "```python\nclass Solution:\n    def twice(self, n):\n        return 2 * n\n```",
        "class Solution:\n    def twice(self, n):\n        return 2 * n",
        "```python\ndef twice(self, n):\n    return 2 * n\n```",
        "        return 2 * n",
        "return 2 * n",
        "```python\n        m = n\n        return 2 * m\n```",
        "        m = n\n        return 2 * m",
    ],
)
def test_an_entry_point_may_be_a_method(text):
    found = namespace(text, prompt=CLASS, entry_point="Solution().twice")
    assert found["Solution"]().twice(4) == 8


@pytest.mark.parametrize(
    "text",
    [
        "<think>\n```python\n" + GOOD + "\n```",
        "<think>\n" + GOOD + "\n</think>\n",
        "[BEGIN]\n[DONE]",
        "Between [BEGIN] and [DONE].",
    ],
)
def test_thoughts_and_marks_alone_are_no_program(text):
    assert extract("text", text, "", None, ("twice",)).alternatives == ()


HOSTILE = [
    "~" * 300_000 + "`", "[BEGIN]\n" * 40_000, "'</s>'" * 60_000, "<think>" * 50_000, "</think>" * 40_000, "'''\n" * 90_000, "\\" * 390_000,
    "'''" + "\\'''" * 90_000, "````markdown\n" * 25_000, "```\n[DONE]\n" * 30_000, "[" * 390_000, " " * 300_000 + "[DONE]", "`x=1" * 90_000,
    "def f():\n'''\n```\n'''\n" * 15_000, "<|channel|>final" * 20_000, "\ufeff" * 390_000, "x=1 '\n" * 60_000,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_costs_little(text):
    start = time.process_time()
    extract("text", text, PROMPT, "twice", ("twice",))
    extract("text", text, "", None, ("twice",))
    assert time.process_time() - start < 4
