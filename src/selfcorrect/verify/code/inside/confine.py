"""Takes rights away from the calling process: namespaces, scratch, limits, capabilities, Landlock, seccomp.

Each step is one function that raises ``OSError`` if the kernel refuses. The caller decides what may be skipped.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import resource
import struct
from collections.abc import Iterable
from typing import Any

from .limits import ProgramLimits

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x10000000, 0x20000000, 0x40000000
SCRATCH = "/tmp"

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
_MNT_DETACH = 2
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
# Landlock has these three numbers on every architecture.
_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT = 444, 445, 446
_FS_READ, _FS_WRITE_FILE, _FS_READ_FILE, _FS_TRUNCATE = 0b1100, 1 << 1, 1 << 2, 1 << 14
_FS_SCRATCH = _FS_READ | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 14


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    _check(_libc().unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    _check(_libc().setns(fd, kind), "setns")


def enter_namespaces(limits: ProgramLimits) -> None:
    """Give the process its own mounts, network, IPC, host name and users, and an empty scratch directory.

    The network namespace has no interface that is up, so not even loopback. ``/proc`` goes away. The user namespace
    comes last and has no mapping: nothing in it owns the mounts, so no capability gained in it could undo them.
    """
    libc = _libc()
    unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
    _check(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mount --make-rprivate /")
    options = f"size={limits.scratch_mb}m,nr_inodes=4096,mode=0777".encode()
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _check(libc.mount(b"scratch", SCRATCH.encode(), b"tmpfs", flags, options), "mount scratch")
    _check(libc.umount2(b"/proc", _MNT_DETACH), "umount /proc")
    os.chdir(SCRATCH)
    unshare(CLONE_NEWUSER)


def set_limits(limits: ProgramLimits) -> None:
    """Set resource limits of the calling process, which it cannot raise again."""
    mib = 1 << 20
    wanted = {
        # The supervisor ends a program at cpu_s; this stops it should the supervisor get no core to do so.
        resource.RLIMIT_CPU: math.ceil(1.5 * limits.cpu_s) + 1,
        resource.RLIMIT_AS: limits.memory_mb * mib,
        resource.RLIMIT_FSIZE: limits.scratch_mb * mib,
        resource.RLIMIT_NOFILE: limits.files,
        resource.RLIMIT_NPROC: limits.threads,
        resource.RLIMIT_STACK: 8 * mib,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    for name in ("RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE"):
        if hasattr(resource, name):
            wanted[getattr(resource, name)] = 64 if name.endswith("PENDING") else 0
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (least, least))


def drop_privileges() -> None:
    """Give up every capability for good, and forbid gaining rights by running a file."""
    libc = _libc()
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(64):
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # past the last capability of this kernel, or none held to begin with
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(libc.capset(header, bytes(24)), "capset")


def landlock_abi() -> int:
    """The kernel's Landlock version; 0 if it has none."""
    version: int = _libc().syscall(_LANDLOCK_CREATE, None, 0, 1)
    return max(version, 0)


def landlock(readable: Iterable[str], scratch: str) -> None:
    """Restrict files to reading below ``readable`` and writing below ``scratch``; forbid TCP and outgoing signals.
    No-op without Landlock.

    The mount namespace restricts files in the same way. This layer holds even if a mount were wrong.
    """
    abi = landlock_abi()
    if abi == 0:
        return
    libc = _libc()
    files = (1 << 13) - 1
    files |= 1 << 13 if abi >= 2 else 0
    files |= 1 << 14 if abi >= 3 else 0
    files |= 1 << 15 if abi >= 5 else 0
    network, scopes = 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0
    attributes = struct.pack("=QQQ", files, network, scopes)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _check(libc.syscall(_LANDLOCK_CREATE, attributes, size, 0), "landlock_create_ruleset")
    rules = [*((path, _FS_READ) for path in readable), (scratch, _FS_SCRATCH)]
    rules.append(("/dev/null", _FS_READ_FILE | _FS_WRITE_FILE | _FS_TRUNCATE))
    try:
        for path, rights in rules:
            if not os.path.exists(path):
                continue
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            wanted = rights & files if os.path.isdir(path) else rights & files & (_FS_READ_FILE | 0b11 | _FS_TRUNCATE)
            rule = struct.pack("=Qi", wanted, fd)
            _check(libc.syscall(_LANDLOCK_ADD_RULE, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
            os.close(fd)
        _check(libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)
