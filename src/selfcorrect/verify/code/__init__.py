"""Verdicts on programs: each runs in its own sandbox, and the tests run where the program cannot reach them.

``docs/sandbox.md`` says what is covered and what is not.
"""

from selfcorrect.verify.code.extract import Extracted, extract
from selfcorrect.verify.code.grader import CodeGrade, CodeGrader, CodeRequest
from selfcorrect.verify.code.inside.limits import ProgramLimits
from selfcorrect.verify.code.pool import SandboxError
from selfcorrect.verify.code.report import RISK_NAME, SandboxReport, sandbox_report
from selfcorrect.verify.code.tests_plan import TestPlan, plan_tests

__all__ = ["RISK_NAME", "CodeGrade", "CodeGrader", "CodeRequest", "Extracted", "ProgramLimits", "SandboxError", "SandboxReport", "TestPlan", "extract", "plan_tests", "sandbox_report"]  # fmt: skip
