"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import sys


def return_freed_memory() -> None:
    """Let the C library give back what it keeps of freed memory, where it can (glibc); elsewhere nothing happens.

    glibc keeps freed tensors of up to 32 MiB for itself, in holes that the tensors of the next phase may not fit: the peak
    of a step is then that of two phases.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
