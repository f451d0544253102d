"""``selfcorrect export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfcorrect.errors import ConfigError


def export(
    run: Annotated[Path, typer.Argument(help="Directory of a finished run.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Directory to write; must not exist.")],
    push: Annotated[
        str | None, typer.Option(metavar="HUB_ID", help="Also make this model on the Hub, private.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: make it public.")] = False,
    merge: Annotated[
        bool | None,
        typer.Option(
            "--merge/--adapter", help="Runs with LoRA: merge the adapter into the weights (default), or keep it alone."
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(metavar="HUB_ID", help="The base on the Hub, where the run's model was a local directory."),
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="Licence for the card, e.g. apache-2.0; else the base's own.")
    ] = None,
) -> None:
    """Write a finished run as one directory to give away: weights, tokenizer and a model card made from the records.

    It loads with plain transformers. LoRA is merged unless told otherwise, so that nothing else is needed to load it.

    Example: `selfcorrect export runs/tiny-arithmetic-score-s0 my-model`
    """
    from selfcorrect.sharing import export_run
    from selfcorrect.sharing.card import Said

    if public and push is None:
        raise ConfigError("--public would be ignored without --push HUB_ID; drop it, or say where to push")
    made = export_run(run, out, merge=merge, said=Said(base_model, license), push_to=push, private=not public)
    rounded = made.weights.rounded
    note = (
        f"; rounding changed them by {rounded:.1%} of the update" if rounded and made.weights.dtype != "float32" else ""
    )
    print(f"model    {out} ({made.weights.form}, {made.weights.dtype}{note})\ncard     {out / 'README.md'}")
    if made.url is not None:
        print(f"hub      {made.url} ({'public' if public else 'private'})")
