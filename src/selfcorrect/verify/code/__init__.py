"""Verdicts on programs: each runs in its own sandbox, and the tests run where the program cannot reach them.

See ``docs/sandbox.md`` for what is covered and what is not.
"""

from .extract import Extracted, extract
from .grader import CodeGrade, CodeGrader, CodeRequest
from .inside.limits import Limits
from .pool import SandboxError
from .report import RISK_NAME, SandboxReport, sandbox_report
from .tests_plan import TestPlan, plan_tests

__all__ = [
    "RISK_NAME",
    "CodeGrade",
    "CodeGrader",
    "CodeRequest",
    "Extracted",
    "Limits",
    "SandboxError",
    "SandboxReport",
    "TestPlan",
    "extract",
    "plan_tests",
    "sandbox_report",
]
