"""How to start SkyRL's Tinker server: the files and commands for one CPU, for the GPUs of a machine, for several machines.

No code of this package runs there. The server's settings are fixed when it starts, so this module writes those that a
run needs: no gradient clipping, no weight decay, Adam's betas as in ``train.adam_*``, adapters not merged into the base
model.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

SKYRL = "skyrl==0.4.0"
PYTHON = "3.12"
PLACES = 8
"""Adapters that the server can hold: the policy, one or two snapshots, two for the probes at the start, and a reserve."""
PROJECT = """\
# SkyRL's server starts its second process through `uv run --extra tinker --extra BACKEND`, which needs a project with
# these extras. Everything is installed already, so they are empty.
[project]
name = "tinker-server"
version = "0"
requires-python = ">=3.12"

[project.optional-dependencies]
tinker = []
jax = []
megatron = []

[tool.uv]
package = false
"""
NOT_RUN = "NOT RUN by this project: written from the options of SkyRL 0.4.0."


@dataclass(frozen=True, slots=True)
class Cluster:
    """The server's machines and the model it serves."""

    model: str
    """Hub id or directory, spelled as in the run's ``model``."""
    gpus: int = 0
    """Per machine; 0 is the JAX backend on a CPU, for small models."""
    nodes: int = 1
    tensor_parallel: int = 1
    """GPUs that one copy of the model is spread over, for training and for sampling."""
    rank: int = 32
    """Rank of the adapters: the run's ``model.lora_rank``."""
    host: str = "127.0.0.1"
    port: int = 8000


@dataclass(frozen=True, slots=True)
class Recipe:
    """Files by name, and the steps that use them."""

    title: str
    files: dict[str, str]
    steps: tuple[str, ...]

    def text(self) -> str:
        """Files and steps, for people to read."""
        parts = [f"# {self.title}"]
        parts += [f"\n## {name}\n{content}" for name, content in self.files.items()]
        return "\n".join([*parts, "\n## then", *self.steps])


def backend_config(c: Cluster) -> dict[str, Any]:
    """The server's ``--backend-config``."""
    if not c.gpus:
        return {
            "max_lora_adapters": PLACES,
            "max_lora_rank": c.rank,
            "train_micro_batch_size": 8,
            "sample_max_num_sequences": 64,
        }
    return {
        "trainer.placement.colocate_all": True,
        "trainer.placement.policy_num_nodes": c.nodes,
        "trainer.placement.policy_num_gpus_per_node": c.gpus,
        "trainer.policy.megatron_config.tensor_model_parallel_size": c.tensor_parallel,
        "trainer.policy.megatron_config.lora_config.merge_lora": False,
        "trainer.policy.model.lora.max_loras": PLACES,
        "trainer.policy.optimizer_config.adam_betas": [0.9, 0.999],
        "trainer.policy.optimizer_config.weight_decay": 0.0,
        "trainer.policy.optimizer_config.max_grad_norm": 1e9,
        "generator.inference_engine.num_engines": c.nodes * c.gpus // c.tensor_parallel,
        "generator.inference_engine.tensor_parallel_size": c.tensor_parallel,
    }


def server_command(c: Cluster) -> list[str]:
    """The command that starts the server; run it in the recipe's directory with its environment active."""
    return [
        *("uv", "run", "--active", "--no-sync", "-m", "skyrl.tinker.api"),
        *("--base-model", c.model, "--backend", "megatron" if c.gpus else "jax"),
        *("--host", c.host, "--port", str(c.port)),
        *("--backend-config", json.dumps(backend_config(c))),
    ]


def recipe(c: Cluster) -> Recipe:
    """Files and steps for one cluster.

    Raises:
        ValueError: the numbers do not fit together.
    """
    if c.nodes > 1 and not c.gpus:
        raise ValueError("several machines need GPUs: give the number per machine with --gpus")
    if c.gpus and (c.nodes * c.gpus) % c.tensor_parallel:
        raise ValueError(
            f"{c.nodes} x {c.gpus} GPUs do not divide into groups of {c.tensor_parallel}; change --tensor-parallel"
        )
    extra = "tinker,megatron" if c.gpus else "tinker,jax"
    install = f"""\
#!/bin/sh -e
# A separate environment: the server needs Python {PYTHON} and its own versions of packages.
# It uses Python's own pip settings. On a machine without a GPU, install PyTorch's CPU build first.
[ -d env ] || python{PYTHON} -m venv env
env/bin/pip install '{SKYRL.replace("==", f"[{extra}]==")}' aiohttp uv
"""
    disk = "all machines share" if c.nodes > 1 else "stays"
    platform = "" if c.gpus else "export JAX_PLATFORMS=cpu\n"
    serve = f"""\
#!/bin/sh -e
# A restarted server continues from the checkpoints and the database: keep them on a disk that {disk}.
cd "$(dirname "$0")"
export VIRTUAL_ENV="$PWD/env" PATH="$PWD/env/bin:$PATH"
{platform}exec {shlex.join(server_command(c))} \\
  --checkpoints-base "$PWD/checkpoints" --database-url "sqlite:///$PWD/server.db"
"""
    files = {"pyproject.toml": PROJECT, "install.sh": install, "serve.sh": serve}
    steps = ["sh install.sh   # once", "sh serve.sh     # leave it running"]
    if c.nodes > 1:
        files["ray-head.sh"] = "#!/bin/sh -e\n# On the first machine.\nenv/bin/ray start --head --port=6379\n"
        files["ray-worker.sh"] = (
            "#!/bin/sh -e\n# On every other machine; the directory must be the same there.\n"
            'env/bin/ray start --address="${1:?address of the first machine}:6379"\n'
        )
        steps[1:] = [
            "sh ray-head.sh  # on the first machine",
            f"sh ray-worker.sh FIRST-MACHINE   # on each of the other {c.nodes - 1}",
            "RAY_ADDRESS=auto sh serve.sh     # on the first machine; leave it running",
        ]
    if c.gpus:
        steps[:0] = [
            "# the pip extra names CUDA builds that are not all on the package index: see SkyRL's install guide"
        ]
    where = f"http://{'HOST' if c.host == '0.0.0.0' else c.host}:{c.port}"
    settings = ["model.lora_alpha=32", f"model.lora_rank={c.rank}", f"engine.base_url={where}"]
    steps.append(shlex.join(["selfcorrect", "train", f"model={c.model}", "engine=tinker", *settings, "task=gsm8k"]))
    machines = "one machine" if c.nodes == 1 else f"{c.nodes} machines under Ray"
    title = f"{c.model} on {machines} of {c.gpus} GPU{'s' if c.gpus > 1 else ''} (Megatron and vLLM). {NOT_RUN}"
    if not c.gpus:
        title = f"{c.model} on one CPU (JAX backend), for small models"
    return Recipe(title, files, tuple(steps))
