"""Which part of a response is its answer."""

from __future__ import annotations

import pytest

from selfcorrect.types import Verdict
from selfcorrect.verify.math import extract_answer, grade_math
from selfcorrect.verify.math.extract import find_answer

CASES = [
    # The asked-for line; the last one wins.
    ("Work.\nFinal answer: 42", "42"),
    ("Final answer: 41\nWait.\nFinal answer: 42", "42"),
    ("**Final answer:** $42$", "$42$"),
    ("### Final Answer: 42.", "42"),
    ("Final answer: \\boxed{42}", "42"),
    ("Final answer:\n\\[\n\\frac{1}{2}\n\\]", "\\[\n\\frac{1}{2}\n\\]"),
    ("Final answer: The final answer is $(0, 1)$. I hope it is correct.", "$(0, 1)$"),
    ("Final answer: The cat sat there for exactly 3 hours.", "3"),
    # The last box; braces balance; the last of several counts alone.
    (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    (r"\boxed{1} then \boxed{2}", "2"),
    (r"\boxed{9} \boxed{9} \boxed{42}", "42"),
    (r"\boxed{1}, \boxed{2}", "2"),
    (r"\boxed{1} and \boxed{2}", "2"),
    (r"\[\boxed{-2} \quad \text{and} \quad \boxed{1}\]", "-2, 1"),
    (r"\boxed 7", "7"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{5} but \boxed{", "5"),
    (r"\boxed{5} but \boxed{}", "5"),
    # An explicit answer followed by another does not count.
    ("Final answer: 41\nNo: \\boxed{42}", "42"),
    ("\\boxed{41}\nFinal answer: 42", "42"),
    ("\\boxed{255} and so on. Final Answer: The final answer is $10,455$. I hope it is correct.", "$10,455$"),
    ("\\boxed{42}. I hope the final answer is correct.", "42"),
    # Fallbacks.
    ("Therefore the answer is -3", "-3"),
    ("The answer is 5. No, the answer is 6.", "6"),
    ("Answer: 42", "42"),
    ("so 2+2=4\n#### 4", "4"),
    ("We find that $x \\lt 3$.", "x \\lt 3"),
    ("First compute 6*7.\n42", "42"),
    ("the probability that Alice wins is 2/3. <|im_start|>user", "2/3"),
    ("it increases by 100%.", "100%"),
    # Not the model's answer: thinking, and what follows the end of its turn.
    ("<think>\\boxed{5}</think>\nThe answer is \\boxed{4}.", "4"),
    ("\\boxed{4}<|im_end|>\n<|im_start|>user \\boxed{5}", "4"),
    # Named or shown in prose, a box is no answer (rows m003, m160 and m164 of public reports, with siblings).
    ("The value is \\boxed{42}. I put it in \\boxed as asked.", "42"),
    ("The value is \\boxed{42}. It stands inside \\boxed.", "42"),
    ("\\boxed{42}\n\nNote: \\boxed{...} was asked for.", "42"),
    ("\\boxed{42} (in the \\boxed{} format)", "42"),
    ("\\boxed{42}. The command `\\boxed` marks it.", "42"),
    ("\\boxed{42}. The form is \\boxed{\\text{answer}}.", "42"),
    ("\\boxed{42}, and not \\boxed{your answer here}.", "42"),
    (
        "\\boxed{42}; \\boxed{<answer>} \\boxed{[number]} \\boxed{ANSWER} \\boxed{\\ldots} \\boxed{\u2026} \\boxed{?} \\boxed{the final answer}",
        "42",
    ),
    ("\\boxed{42}, \\boxed{\\cdots}, \\boxed{\\square}, \\boxed{\\quad}, \\boxed{\\phantom{0}}, \\boxed{___}", "42"),
    ("Final answer: 42 (not in \\boxed)", "42 (not in \\boxed)"),
    ("I use \\boxed for it.\nFinal answer: 42", "42"),
    ("Final answer: 42\nI did not use \\boxed this time.", "42"),
    ("\\fbox{42}, as \\fbox was allowed", "42"),
    ("I will use \\boxed{answer}. The answer is 42.", "42"),
    ("$\\boxed A$", "A"),
    ("\\boxed{\\text{East}}", "\\text{East}"),
    ("\\boxed{\\text{the number 5}}", "\\text{the number 5}"),
    ("\\boxed .5", ".5"),
    # Thoughts, of whatever spelling.
    ("<think>\\boxed{5}", None),
    ("<think>\\boxed{5}</think>", None),
    ("<thinking>\\boxed{5}</thinking>\\boxed{4}", "4"),
    ("[THINK]\\boxed{5}[/THINK]\\boxed{4}", "4"),
    ("\u25c1think\u25b7\\boxed{5}\u25c1/think\u25b7\\boxed{4}", "4"),
    ("\\boxed{5}</think>\\boxed{4}", "4"),
    ("\\boxed{4}<think>\\boxed{5}</think>", "4"),
    (
        "<|channel|>analysis<|message|>\\boxed{5}<|end|><|start|>assistant<|channel|>final<|message|>\\boxed{4}<|return|>",
        "4",
    ),
    ("It prints '</think>'. So \\boxed{4}.", "4"),
    ("<|begin_of_thought|>\nFinal answer: 12\n<|end_of_thought|>\nThe answer is 73.", "73"),
    ("<|START_THINKING|>\\boxed{5}<|END_THINKING|>\\boxed{4}", "4"),
    # Named in prose, in more words.
    ("\\boxed{42}. I used \\boxed 1 time.", "42"),
    ("\\boxed{42}. Formatted as \\boxed{x}, where x is the answer.", "42"),
    ("It is \\boxed{x}.", "x"),
    ("\\boxed 12 is the answer.", "12"),
    ("\\boxed{42}. I used \\boxed 12 times.", "42"),
    ("\\boxed{42} \\boxed{integer} \\boxed{your_answer} \\boxed{final_answer} \\boxed{\u7b54\u6848}", "42"),
    ("\\boxed{42} \\boxed{\\text{insert answer}} \\boxed{$ANSWER} \\boxed{\\checkmark}", "42"),
    # The line in other dress.
    ("[Final answer: 42]", "42"),
    ("Final answer (in cm): f(3)", "f(3)"),
    ("Final answer (an interval): [1,3)", "[1,3)"),
    ("| Final answer | $|x|$ |", "$|x|$"),
    ("**Final Answer**\n\n$x = 4$", "$x = 4$"),
    ("I do not know.", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "answer"), CASES)
def test_extraction(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_without_fallbacks_only_explicit_answers_count() -> None:
    assert find_answer("the answer is 5", fallbacks=False) is None
    found = find_answer("the answer is \\boxed{5}", fallbacks=False)
    assert found is not None and found.rule == "box"


def test_truncated_text() -> None:
    assert grade_math("5", "we get 2 + 3 = 5 and the", truncated=True).verdict is Verdict.TRUNCATED
    assert grade_math("5", "we get \\boxed{5}. Check: 2 +", truncated=True).verdict is Verdict.CORRECT
    assert grade_math("5", "we get \\boxed{6}. Check: 2 +", truncated=True).verdict is Verdict.WRONG
    assert grade_math("5", "we get \\boxed{5", truncated=True).verdict is Verdict.TRUNCATED


def test_no_answer() -> None:
    grade = grade_math("5", "I cannot tell.")
    assert grade.verdict is Verdict.NO_ANSWER and grade.extracted is None


def test_listing_candidates_earns_nothing() -> None:
    for text in (
        "Final answer: 41 or 42",
        "Final answer: 41, 42",
        "\\boxed{41 \\text{ or } 42}",
        "Final answer: 42 (or 41)",
    ):
        assert grade_math("42", text).verdict is Verdict.WRONG


def test_gold_forms() -> None:
    for gold in ("42", "$42$", r"\boxed{42}", "6*7=42\n#### 42", "**42**"):
        assert grade_math(gold, "Final answer: 42").verdict is Verdict.CORRECT
    assert grade_math("", "Final answer: 42").verdict is Verdict.ERROR
