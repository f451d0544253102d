"""Returns freed memory to the system."""

from __future__ import annotations

import ctypes
import sys


def return_freed_memory() -> None:
    """Let glibc return the freed memory that it keeps; does nothing with other C libraries.

    glibc keeps freed tensors of up to 32 MiB, in holes that the tensors of the next phase may not fit. The peak of a step
    is then that of two phases together.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
