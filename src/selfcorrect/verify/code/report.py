"""Which protections this machine has, and whether untrusted programs may run on it."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from dataclasses import dataclass

from selfcorrect.errors import ConfigError
from selfcorrect.verify.code import bwrap
from selfcorrect.verify.code.inside import confine, seccomp
from selfcorrect.verify.code.pool import Protection, SandboxError, Zygote

RISK_NAME = "run-untrusted-code-without-a-sandbox"
"""What a user passes as ``accept_risk`` to run programs on a machine that lacks a protection."""


@dataclass(frozen=True, slots=True)
class Item:
    """One protection."""

    name: str
    present: bool
    required: bool
    detail: str
    fix: str = ""
    """The command that adds it, if there is one."""


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """The protections of this machine, as found by trying them."""

    items: tuple[Item, ...]

    @property
    def missing(self) -> tuple[Item, ...]:
        """Required protections that this machine lacks."""
        return tuple(item for item in self.items if item.required and not item.present)

    @property
    def complete(self) -> bool:
        """True if untrusted programs can run without accepting a risk."""
        return not self.missing

    def describe(self) -> str:
        """One line per protection, for ``selfcorrect doctor``."""
        return "\n".join(
            f"{'ok     ' if i.present else 'MISSING' if i.required else 'absent '} {i.name}: {i.detail}"
            for i in self.items
        )


_INSTALL = "apt-get install bubblewrap"
_ALLOW_NAMESPACES = "sysctl -w user.max_user_namespaces=10000 kernel.apparmor_restrict_unprivileged_userns=0"
"""To run as root on the host. The second setting exists on Ubuntu only."""


def _seccomp_works() -> bool:
    return seccomp.supported() and os.path.exists("/proc/sys/kernel/seccomp/actions_avail")


def _namespaces(path: str | None) -> Item:
    name = "namespaces (user, mount, PID, network, IPC, UTS)"
    if path is None:
        return Item(name, False, True, "not tried: needs bubblewrap", _INSTALL)
    try:
        Zygote(Protection(path, _seccomp_works())).close()
    except (SandboxError, subprocess.SubprocessError, OSError) as error:
        why = " ".join(str(error).split())[:300]
        hint = "a container or the kernel may forbid user namespaces (sysctl user.max_user_namespaces, AppArmor)"
        return Item(name, False, True, f"{why} ({hint})", _ALLOW_NAMESPACES)
    return Item(name, True, True, "a supervisor started in its own; each program gets a new set")


@functools.cache
def sandbox_report() -> SandboxReport:
    """Try every protection once. Starts and ends one sandbox; runs no untrusted program."""
    if platform.system() != "Linux":
        why = f"{platform.system()} has no namespaces; use Linux, or a Linux container or virtual machine"
        return SandboxReport((Item("Linux", False, True, why),))
    path = bwrap.find()
    if path is None:
        missing = f"no bwrap on PATH; install it: {_INSTALL}, dnf install bubblewrap"
        bubblewrap = Item("bubblewrap", False, True, missing, _INSTALL)
    else:
        found = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
        bubblewrap = Item("bubblewrap", True, True, f"{found.stdout.strip() or 'unknown version'} at {path}")
    filters = "system calls by allow-list" if _seccomp_works() else "the kernel has no filters"
    if not seccomp.supported():
        filters = f"no system call table for {platform.machine()}"
    abi = confine.landlock_abi()
    landlock = f"ABI {abi}" if abi else "the kernel has none; the mount namespace alone keeps files apart"
    return SandboxReport(
        (
            bubblewrap,
            _namespaces(path),
            Item("seccomp", _seccomp_works(), True, filters),
            Item("Landlock", abi > 0, False, landlock),
        )
    )


def choose_protection(accept_risk: str | None) -> Protection:
    """The strongest protection this machine has, if it suffices or the user accepts what is missing.

    Args:
        accept_risk: None, or ``RISK_NAME``.

    Raises:
        ConfigError: a required protection is missing, and the risk was not accepted by name.
    """
    if accept_risk not in (None, RISK_NAME):
        raise ConfigError(f"accept_risk is {accept_risk!r}; the only risk that can be accepted is {RISK_NAME!r}.")
    report = sandbox_report()
    if platform.system() != "Linux":
        raise ConfigError(f"Programs cannot be run here: {report.items[0].detail}.")
    if not report.complete and accept_risk is None:
        missing = "; ".join(f"{item.name}: {item.detail}" for item in report.missing)
        raise ConfigError(
            f"Refusing to run untrusted programs: this machine lacks {missing}. Install what is missing, or accept "
            f"that programs run with your rights and resource limits only: accept_risk={RISK_NAME!r}, on the command "
            f"line --accept-risk {RISK_NAME}."
        )
    present = {item.name: item.present for item in report.items}
    isolated = all(present.get(item.name, False) for item in report.items[:2])
    return Protection(bwrap.find() if isolated else None, present.get("seccomp", False))
