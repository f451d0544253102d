"""Finding the program in a model's text. No sandbox: which alternative compiles is settled in test_code_grader."""

import time

import pytest

from selfcorrect.verify.code import extract

PROMPT = 'import math\n\ndef helper(x):\n    return x\n\ndef area(r):\n    """Area."""\n'


def first(form, completion, prompt="", entry_point=None, names=("f",)):
    found = extract(form, completion, prompt, entry_point, names)
    return found.alternatives[0] if found.alternatives else None


@pytest.mark.parametrize("tag", ["python", "py", "Python", "python3", ""])
def test_a_fence_with_any_python_tag(tag):
    assert first("text", f"Sure:\n```{tag}\ndef f():\n    return 1\n```\nDone.") == ("def f():\n    return 1",)


def test_the_last_block_that_defines_the_name_wins_over_a_draft_and_over_an_example_after_it():
    one, two, use = (f"```python\n{code}\n```\n" for code in ("def f(): return 1", "def f(): return 2", "print(f())"))
    text = f"{one}Better:\n{two}Use:\n{use}"
    assert first("text", text) == ("def f(): return 2",)


def test_a_draft_is_no_fallback_for_a_broken_last_version():
    text = "```python\ndef f(): return 1\n```\nBetter:\n```python\ndef f(: return 2\n```"
    assert extract("text", text, "", None, ("f",)).alternatives == (("def f(: return 2",),)


def test_the_most_complete_block_wins_when_tests_need_two_names():
    text = "```python\ndef f(): return g()\ndef g(): return 1\n```\n```python\ndef f(): return 3\n```"
    assert first("text", text, names=("f", "g")) == ("def f(): return g()\ndef g(): return 1",)


def test_blocks_of_other_languages_are_passed_over():
    assert first("text", "```python\ndef f(): pass\n```\n```bash\npython f.py\n```") == ("def f(): pass",)


def test_an_open_fence_runs_to_the_end():
    assert first("text", "```python\ndef f():\n    return 1\n") == ("def f():\n    return 1\n",)


def test_fence_inside_a_list_is_dedented_and_carriage_returns_go():
    assert first("text", "1. Code:\r\n   ```python\r\n   def f():\r\n       return 1\r\n   ```") == (
        "def f():\n    return 1",
    )


def test_tildes_and_longer_fences_hold_backticks():
    text = '~~~python\ndef f():\n    """```"""\n    return 1\n~~~'
    assert first("text", text) == ('def f():\n    """```"""\n    return 1',)


def test_the_papers_markers():
    assert first(
        "text", "[BEGIN]\ndef f():\n    return 1\n[DONE]\nYou are an expert [BEGIN]\ndef g(): pass\n[DONE]"
    ) == ("def f():\n    return 1\n",)


@pytest.mark.parametrize("end", ["[END]", "[/BEGIN]", "  [END] "])
def test_another_closing_bracket_ends_the_program_too(end):
    assert first("text", f"[BEGIN]\ndef f():\n    return 1\n{end}\nDone.") == ("def f():\n    return 1\n",)
    plain = f"def f():\n    return 1\n{end}"
    assert first("text", plain) == (plain,), "without [BEGIN] nothing is cut"


@pytest.mark.parametrize("begin", ["[BEGIN]\n", ""])
def test_a_fence_that_closes_what_none_has_opened_ends_the_program(begin):
    code = "def f():\n    return 1"
    assert first("text", f"{begin}{code}\n```\n\nThis code is correct.") == (code,)
    later = f"{begin}{code}\n```\nBetter:\n```python\ndef f(): return 2\n```"
    assert first("text", later) == ("def f(): return 2",), "the last version wins"
    use = f"{begin}{code}\n```\nUse:\n```python\nprint(f())\n```"
    assert first("text", use) == (code,)
    draft = f"{begin}{code}\nBetter:\n```\ndef f(): return 2\n```"
    assert first("text", draft) == ("def f(): return 2",), "two fences are a pair"
    assert first("text", f"{begin}The program:\n```\n{code}") == (code,), "without code before it, it opens"
    assert first("text", f"{begin}{code}\n```python\ndef f(): return 2\n") == ("def f(): return 2\n",), "a tag opens"


def test_prose_before_and_after_plain_code_is_dropped_by_one_of_the_alternatives():
    found = extract("text", "Here it is.\ndef f():\n    return 1\nThis returns one.", "", None, ("f",))
    assert ("def f():\n    return 1",) in found.alternatives


@pytest.mark.parametrize("text", ["", "  \n", "I cannot do this.", "The answer is 42."])
def test_no_program(text):
    assert extract("text", text, "", None, ("f",)).alternatives == ()


def test_humaneval_body_continues_the_prompt():
    assert first("body", "    return 1\n", PROMPT, "area") == (PROMPT + "    return 1\n",)


def test_humaneval_fence_with_the_whole_function_keeps_the_prompts_imports_and_helpers():
    text = "```python\ndef area(r):\n    return math.pi\n```"
    assert first("text", text, PROMPT, "area") == (
        "import math\n\ndef helper(x):\n    return x\n\n",
        "def area(r):\n    return math.pi",
    )


@pytest.mark.parametrize("text", ["```python\n    return math.pi\n```", "    return math.pi"])
def test_humaneval_text_with_the_body_only(text):
    found = extract("text", text, PROMPT, "area", ("area",))
    assert any(compile(a[0], "x", "exec") and a[0].endswith("    return math.pi") for a in found.alternatives[1:])


HOSTILE = ["`" * 300_000, "```\n" * 90_000, "def f(" * 60_000, " " * 390_000, "x = 1\ny\n" * 45_000]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_costs_little(text):
    start = time.process_time()
    extract("text", text, PROMPT, "area", ("area",))
    extract("text", text, "", None, ("f",))
    assert time.process_time() - start < 2
