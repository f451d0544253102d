"""Math answers: find the answer in a text, decide whether it equals the gold answer.

``docs/verify-math.md`` states the policies (extraction, units, percent, rounding, order, letters) and the measured
figures. The steps: ``extract`` finds the answer; ``normalise`` gives it one spelling; equal spellings are equal
answers; ``structures`` parses both into trees; ``compare`` decides lists, sets, intervals, relations, units, and exact
numbers in the calling process; scalars beyond that go to worker processes (``pool``, ``worker``) that evaluate them to
250 digits (``numeric``) or, for text outside the grammar, ask math-verify behind guards (``fallback``).
"""

from selfcorrect.verify.math.decide import answer_key
from selfcorrect.verify.math.grader import MathCase, MathGrader, extract_answer, grade_math
from selfcorrect.verify.math.pool import PairLimits

__all__ = ["MathCase", "MathGrader", "PairLimits", "answer_key", "extract_answer", "grade_math"]
