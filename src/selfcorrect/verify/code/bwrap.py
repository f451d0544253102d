"""The command lines that start a sandbox, and the files of the host that it may read."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

INSIDE = Path(__file__).parent / "inside"
_INSIDE_AT = "/sandbox/inside"
_ENVIRONMENT = {
    "PYTHONHASHSEED": "1",  # fixed: sets of strings have one order, and programs that depend on it get one verdict
    "PYTHONDONTWRITEBYTECODE": "1",
    "LANG": "C.UTF-8",
    "PATH": "/nonexistent",
    "MALLOC_ARENA_MAX": "1",  # else each thread reserves 64 MiB of the address space that a program may have
}

# Prints every shared object that the interpreter and its own extension modules map, by the name it was requested with.
_LIST_LIBRARIES = """
import ctypes, glob, importlib.machinery, importlib.util, sys, sysconfig
for path in glob.glob(sysconfig.get_path("platstdlib") + "/lib-dynload/*.so"):
    name = path.rsplit("/", 1)[1].split(".")[0]
    if name in ("_tkinter", "_curses", "_curses_panel", "readline", "_gdbm", "_dbm") or "test" in name:
        continue
    try:
        __import__(name)
    except Exception:
        pass
class Info(ctypes.Structure):
    _fields_ = [("addr", ctypes.c_void_p), ("name", ctypes.c_char_p)]
def show(info, size, data):
    if info.contents.name.startswith(b"/"):
        print(info.contents.name.decode())
    return 0
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Info), ctypes.c_size_t, ctypes.c_void_p)
ctypes.CDLL(None).dl_iterate_phdr(CALLBACK(show), None)
"""


def interpreter() -> str:
    """The real executable behind a virtual environment's."""
    return os.path.realpath(sys.executable)


@functools.cache
def _libraries() -> tuple[str, ...]:
    command = [interpreter(), "-I", "-S", "-c", _LIST_LIBRARIES]
    listing = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env={}).stdout
    return tuple(sorted({os.path.normpath(line) for line in listing.splitlines()}))


def standard_library() -> tuple[str, ...]:
    """The directories of the standard library, without any ``site-packages``."""
    base = {"base": sys.base_prefix, "installed_base": sys.base_prefix}
    base |= {"platbase": sys.base_exec_prefix, "installed_platbase": sys.base_exec_prefix}
    return tuple(sorted({sysconfig.get_path(kind, vars=base) for kind in ("stdlib", "platstdlib")}))


def find() -> str | None:
    """Path of bubblewrap, or None."""
    return shutil.which("bwrap")


def sandbox_arguments(bwrap: str) -> list[str]:
    """The arguments before the command: new namespaces, an empty root, the interpreter read-only.

    All capabilities are kept *inside the new user namespace*: the supervisor needs them to make each program's own
    namespaces. Programs give them up before their first line runs.
    """
    arguments = [bwrap, "--unshare-all", "--unshare-user", "--uid", "0", "--gid", "0", "--cap-add", "ALL"]
    arguments += ["--hostname", "sandbox", "--proc", "/proc", "--dir", "/dev", "--dev-bind", "/dev/null", "/dev/null"]
    arguments += ["--ro-bind", interpreter(), interpreter()]
    for directory in standard_library():
        arguments += ["--ro-bind", directory, directory]
        for packages in ("site-packages", "dist-packages"):
            if os.path.isdir(os.path.join(directory, packages)):
                arguments += ["--tmpfs", os.path.join(directory, packages)]
    for library in _libraries():
        if not library.startswith(standard_library()):
            arguments += ["--ro-bind", library, library]
    arguments += ["--ro-bind", str(INSIDE), _INSIDE_AT, "--dir", "/tmp", "--chdir", "/", "--remount-ro", "/"]
    arguments += ["--clearenv"]
    folders = sorted({os.path.dirname(library) for library in _libraries()})
    for name, value in {**_ENVIRONMENT, "LD_LIBRARY_PATH": ":".join(folders)}.items():
        arguments += ["--setenv", name, value]
    return [*arguments, "--"]


def python_arguments(isolated: bool) -> list[str]:
    """The command of an interpreter without ``site``, and without the working directory on its path."""
    parent = os.path.dirname(_INSIDE_AT) if isolated else str(INSIDE.parent)
    run = f"import sys; sys.path.insert(0, {parent!r}); from inside.zygote import main; main(sys.argv[1:])"
    return [interpreter(), "-s", "-S", "-P", "-B", "-c", run]


def zygote_command(bwrap: str | None, control_fd: int, use_seccomp: bool) -> tuple[list[str], dict[str, str]]:
    """The command and environment of a supervisor, in bubblewrap or, with ``bwrap=None``, without it."""
    readable = (*standard_library(), *_libraries(), str(INSIDE))
    mode = {"isolated": bwrap is not None, "seccomp": use_seccomp, "readable": readable}
    prefix = sandbox_arguments(bwrap) if bwrap is not None else []
    command = [*prefix, *python_arguments(bwrap is not None), str(control_fd), json.dumps(mode)]
    return command, dict(_ENVIRONMENT)
