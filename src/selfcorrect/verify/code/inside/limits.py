"""Limits on what one program may use. The grader sets them, and the sandbox applies them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProgramLimits:
    """Limits on one program. CPU time decides; the wall clock only ends programs that no longer compute."""

    cpu_s: float = 10.0
    """CPU seconds of all threads together. The tests have a separate limit of the same size."""
    idle_s: float = 5.0
    """Longest time in seconds in which neither the program nor the tests run or wait for a core: they sleep, or wait
    forever."""
    wall_s: float = 1800.0
    """The backstop. Far above ``cpu_s``, so that a correct program does not time out on a busy machine."""
    memory_mb: int = 512
    """Address space, MiB."""
    scratch_mb: int = 16
    """Size of the scratch directory and of any one file, MiB."""
    files: int = 64
    """Open files."""
    threads: int = 64
    """Most threads. The kernel enforces this only if the host user is not root; for root, the memory limit bounds
    them."""
    message_mb: int = 4
    """Largest answer of one call, MiB as encoded."""

    def problems(self) -> list[str]:
        """Faults in these limits, as sentences."""
        low = {"cpu_s": 0.1, "idle_s": 0.5, "wall_s": 1, "memory_mb": 128, "scratch_mb": 1, "files": 16, "threads": 1}
        found = [f"{name} must be at least {least}" for name, least in low.items() if getattr(self, name) < least]
        if not 1 <= self.message_mb <= 64:
            found.append("message_mb must be from 1 to 64")
        if self.wall_s < self.cpu_s:
            found.append("wall_s must not be below cpu_s: CPU time is the limit, the wall clock the backstop")
        return found
