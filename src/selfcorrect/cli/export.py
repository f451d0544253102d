"""``selfcorrect export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from selfcorrect.errors import ConfigError


def export(
    run: Annotated[Path, Argument(help="Directory of a finished run.")],
    out: Annotated[Path, Argument(metavar="DIR", help="Directory to write; must not exist.")],
    push: Annotated[str | None, Option(metavar="HUB_ID", help="Also create this model on the Hub, private.")] = None,
    public: Annotated[bool, Option("--public", help="With --push: make it public.")] = False,
    merge: Annotated[
        bool | None,
        Option(
            "--merge/--adapter", help="Runs with LoRA: merge the adapter into the weights (default), or keep it alone."
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        Option(metavar="HUB_ID", help="The base on the Hub, where the run's model was a local directory."),
    ] = None,
    license: Annotated[str | None, Option(help="Licence for the card, e.g. apache-2.0; else the base's own.")] = None,
) -> None:
    """Write a finished run as one directory to share: weights, tokenizer and a model card made from the records.

    It loads with plain transformers. LoRA is merged by default, so that nothing else is needed to load it.

    Example: `selfcorrect export runs/tiny-arithmetic-score-s0 my-model`
    """
    from selfcorrect.sharing import export_run

    if public and push is None:
        raise ConfigError("--public would be ignored without --push HUB_ID; drop it, or say where to push")
    weights, url = export_run(
        run, out, merge=merge, base_model=base_model, license=license, push_to=push, private=not public
    )
    note = ""
    if weights.rounded and weights.dtype != "float32":
        note = f"; rounding changed them by {weights.rounded:.1%} of the update"
    print(f"model    {out} ({weights.form}, {weights.dtype}{note})\ncard     {out / 'README.md'}")
    if url is not None:
        print(f"hub      {url} ({'public' if public else 'private'})")
