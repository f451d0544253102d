"""From a finished run to a directory that others can load, and to the Hub."""

from __future__ import annotations

from pathlib import Path

from selfcorrect.errors import ConfigError, DataError, RunError
from selfcorrect.records.files import claim, replacing
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.report.reading import read_run
from selfcorrect.sharing.card import build_card, hub_id
from selfcorrect.sharing.hub import check_push, push
from selfcorrect.sharing.weights import Weights, choose_form, write_weights


def export_run(
    path: Path,
    target: Path,
    *,
    merge: bool | None = None,
    base_model: str | None = None,
    license: str | None = None,
    push_to: str | None = None,
    private: bool = True,
) -> tuple[Weights, str | None]:
    """Write a finished run's model with its card, and push it if asked to.

    Args:
        path: a run directory.
        target: the directory to write; must not exist.
        merge: for a run with LoRA: True or None merges the adapter into the weights, False writes the adapter alone.
        base_model: Hub id of the base, if the run names a local directory.
        license: for the card; None takes the base's own.
        push_to: id of a model to create on the Hub.
        private: whether that model is private.

    Returns:
        What was written, and its address on the Hub; None where it was not pushed.

    Raises:
        RunError: not a finished run, its model is gone, or the target cannot be written.
        DataError: the run holds no evaluation of base and trained model.
        ConfigError: an option that would be ignored, or an adapter that nobody else could load.
        EndpointError: the Hub refuses or cannot be reached.
    """
    data = read_run(path)
    if data.state != "finished":
        raise RunError(
            f"{path} is {data.state}: there is no final model and no measurement of it yet; finish it with "
            f"`selfcorrect train --resume {path}`"
        )
    missing = [name for name in ("base", "final") if name not in data.summaries or name not in data.held_out]
    if missing:
        raise DataError(
            f"{path} holds no evaluation {' and none '.join(map(repr, missing))}, so its card would have no numbers: files of "
            "the run were removed; put evaluations/ and metrics.jsonl back, or train again"
        )
    run = RunDirectory.open(path)
    form = choose_form(run, merge)
    if form == "adapter" and push_to is not None and base_model is None and hub_id(data.config, data.base) is None:
        raise ConfigError(
            f"the adapter belongs to {data.config.model.name}, which is not on the Hub: nobody could load it from there; push "
            "the merged weights (leave out --adapter), or name the same model on the Hub with --base-model"
        )
    claim(target)
    api = None
    if push_to is not None:
        from huggingface_hub import HfApi

        api = HfApi(library_name="selfcorrect")
        check_push(api, push_to)
    name = target.name if push_to is None else push_to.partition("/")[2]
    with replacing(target, "free some space or name another place", "model") as part:
        weights = write_weights(run, form, base_model, part)
        build_card(run.path, data, weights, name, base_model, license).save(part / "README.md")
    url = push(api, target, push_to, private=private) if api is not None and push_to is not None else None
    return weights, url
