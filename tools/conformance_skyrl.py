"""Build SkyRL's Tinker server in an environment of its own, start it on the CPU, run the conformance suite, stop it.

    python tools/conformance_skyrl.py [--python python3.12] [--torch torch==2.13.0] [--serve-only]

The server is started as `selfcorrect cluster` says, with a directory of its own under ``.skyrl``; compiled kernels are kept
there, so that a second run is faster. Needs the extra ``skyrl`` where this runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2

from selfcorrect.engines.tinker_engine.cluster import Cluster, recipe

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/conformance")]
HOME = ROOT / ".skyrl"
READY_WITHIN_S = 300.0
SERVER_PYTHON = "python3.12"


def build(folder: Path, made: dict[str, str], python: str, torch: str) -> None:
    """The environment, once. PyTorch first and alone: pip's settings may then offer a build without CUDA."""
    folder.mkdir(exist_ok=True)
    for name, content in made.items():
        (folder / name).write_text(content)
    done = folder / ".installed"
    if done.exists():
        return
    try:
        subprocess.run([python, "-m", "venv", folder / "env"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(
            f"{python} made no environment for the server, which needs Python 3.12 ({error}); name one with --python"
        )
    subprocess.run([folder / "env/bin/pip", "install", torch], check=True)
    subprocess.run(["sh", "install.sh"], cwd=folder, check=True)
    done.touch()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start(folder: Path, url: str, *, fresh: bool = True) -> subprocess.Popen[bytes]:
    """The server in a process group of its own: it starts a second process. Not fresh, it keeps what an earlier one stored."""
    for old in ("checkpoints", "server.db") if fresh else ():
        shutil.rmtree(folder / old, ignore_errors=True)
        (folder / old).unlink(missing_ok=True)
    kept = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # another Python's packages
    log = (folder / "server.log").open("wb" if fresh else "ab")
    server = subprocess.Popen(
        ["sh", "serve.sh"],
        cwd=folder,
        env=clean | kept | {"HF_HUB_OFFLINE": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            httpx2.get(f"{url}/api/v1/healthz", timeout=5).raise_for_status()
            return server
        except httpx2.HTTPError:
            if server.poll() is not None or time.monotonic() > deadline:
                stop(server)
                sys.exit(f"the server did not start; see {folder / 'server.log'}")
            time.sleep(1)


def stop(server: subprocess.Popen[bytes]) -> None:
    for number in (15, 9):
        try:
            os.killpg(server.pid, number)
            server.wait(20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--python", default=SERVER_PYTHON, help="for the server's environment")
    parser.add_argument("--torch", default="torch==2.13.0", help="installed first")
    parser.add_argument("--serve-only", action="store_true", help="leave it running until Ctrl-C, and run nothing")
    asked = parser.parse_args()
    from kinds import MODEL_VARIABLE, RANK, URL_VARIABLE

    import tiny

    model, port = HOME / "tiny", free_port()
    tiny.save_model(model)
    url = f"http://127.0.0.1:{port}"
    build(HOME, recipe(Cluster(str(model), rank=RANK, port=port)).files, asked.python, asked.torch)
    server = start(HOME, url)
    try:
        if asked.serve_only:
            print(f"{URL_VARIABLE}={url} {MODEL_VARIABLE}={model}")
            return server.wait()
        # the client leaves idle connections open at its end, which are no fault of the engine
        ignore = ["-W", "ignore::pytest.PytestUnraisableExceptionWarning"]
        tests = [sys.executable, "-m", "pytest", "tests/conformance", "--engine", "tinker", *ignore]
        where = {URL_VARIABLE: url, MODEL_VARIABLE: str(model)}
        return subprocess.run(tests, cwd=ROOT, env=os.environ | where, check=False).returncode
    except KeyboardInterrupt:
        return 130
    finally:
        stop(server)


if __name__ == "__main__":
    sys.exit(main())
