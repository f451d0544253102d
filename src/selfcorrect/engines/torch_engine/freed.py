"""Returns freed memory to the system."""

from __future__ import annotations

import ctypes
import sys


def return_freed_memory() -> None:
    """Make glibc return the freed memory that it keeps; with other C libraries this does nothing.

    glibc keeps the memory of freed tensors of up to 32 MiB. Tensors of the next phase may not fit into these gaps, and
    the peak of a step is then that of two phases together.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
