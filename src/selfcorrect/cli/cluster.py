"""``selfcorrect cluster``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from selfcorrect.errors import ConfigError, RunError
from selfcorrect.records.files import disk_reason


def cluster(
    model: Annotated[str, Argument(help="Hub id or directory; the server and the run must use the same name.")],
    gpus: Annotated[int, Option(min=0, help="GPUs per machine; 0 uses SkyRL's JAX backend on a CPU.")] = 0,
    nodes: Annotated[int, Option(min=1, help="Machines; several are joined with Ray.")] = 1,
    tensor_parallel: Annotated[int, Option(min=1, help="GPUs that hold one copy of the model.")] = 1,
    rank: Annotated[int, Option(min=1, help="Rank of the LoRA adapters.")] = 32,
    host: Annotated[str, Option(help="Address to listen on. The server asks for no API key.")] = "127.0.0.1",
    port: Annotated[int, Option(min=1, max=65535)] = 8000,
    write: Annotated[Path | None, Option(help="Write the files into this new directory.")] = None,
) -> None:
    """Print how to start SkyRL's Tinker server for engine=tinker: on a CPU, on GPUs, on several machines.

    Example: `selfcorrect cluster Qwen/Qwen2.5-7B-Instruct --gpus 8`

    This project has run the recipe for a CPU only; the other recipes say so.
    """
    from selfcorrect.engines.tinker_engine.cluster import Cluster, recipe

    try:
        made = recipe(Cluster(model, gpus, nodes, tensor_parallel, rank, host, port))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if write is None:
        print(made.text())
        return
    try:
        write.mkdir(parents=True)
        for name, content in made.files.items():
            (write / name).write_text(content, encoding="utf-8")
    except FileExistsError:
        raise RunError(f"{write} exists already and is not overwritten; name another place with --write") from None
    except OSError as error:
        raise RunError(f"{write} cannot be written: {disk_reason(error)}; name another place with --write") from None
    print(f"# {made.title}\ncd {write}")
    print("\n".join(made.steps))
