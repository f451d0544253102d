"""The page on the sandbox: its example runs, and its account of the limits names every one."""

import dataclasses
import re

from code_tools import ROOT, needs_sandbox

from selfcorrect.verify.code import RISK_NAME, ProgramLimits

PAGE = (ROOT / "docs" / "sandbox.md").read_text()


def test_the_example_runs(capsys):
    needs_sandbox()
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, {})
    assert capsys.readouterr().out == "correct all tests passed\n"


def test_every_limit_and_the_risk_are_named():
    missing = [field.name for field in dataclasses.fields(ProgramLimits) if f"`{field.name}`" not in PAGE]
    assert missing == [] and RISK_NAME in PAGE
