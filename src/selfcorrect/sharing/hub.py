"""Uploads an exported directory to the Hugging Face Hub. All refusals come before anything is written."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from selfcorrect.errors import EndpointError

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def check_push(api: HfApi, repo_id: str) -> None:
    """Ask the Hub whether this user may create that model; writes nothing.

    Raises:
        EndpointError: the id is malformed, the token is missing or refused, there is no network, or the model exists
            already.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, and not in __all__

    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("it names no owner")
    except HFValidationError as error:
        raise EndpointError(f"{repo_id!r} is not an id of a model on the Hub ({error}); write OWNER/NAME") from None
    with _explained(repo_id, "nothing was written"):
        api.whoami()
        if api.repo_exists(repo_id):
            raise EndpointError(
                f"{repo_id} exists on the Hub already and is not overwritten; name another, or export without --push and upload "
                f"it yourself: `hf upload {repo_id} DIR`"
            )


def push(api: HfApi, directory: Path, repo_id: str, *, private: bool) -> str:
    """Create the model on the Hub, upload the directory as one commit, and return its address.

    Raises:
        EndpointError: the Hub refused or the network failed; the directory stays as it is.
    """
    upload = shlex.join(["hf", "upload", repo_id, str(directory)])
    upload += " --private" if private else ""  # the model may not exist yet, and `hf upload` makes a public one
    with _explained(repo_id, f"{directory} is complete; upload it with `{upload}`"):
        url = api.create_repo(repo_id, private=private, repo_type="model")
        api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message="Export of a selfcorrect run")
    return str(url)


@contextlib.contextmanager
def _explained(repo_id: str, state: str) -> Iterator[None]:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError:
        raise EndpointError(
            f"no token for the Hugging Face Hub was found, so {repo_id} cannot be created; `hf auth login`, or set HF_TOKEN; {state}"
        ) from None
    except OfflineModeIsEnabled:
        raise EndpointError(
            f"HF_HUB_OFFLINE is set, so {repo_id} cannot be created on the Hub; unset it, or export without --push; {state}"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        reason = " ".join((error.server_message or str(error)).split())
        way_out = "log in with a token that may write there (`hf auth login`)" if status in (401, 403) else "try again"
        raise EndpointError(
            f"the Hub refused {repo_id} ({status}: {reason}); {way_out}; {state}", status=status
        ) from error
    except (httpx2.HTTPError, OSError) as error:
        raise EndpointError(
            f"the Hugging Face Hub could not be reached for {repo_id} ({type(error).__name__}: {error}); check the network and "
            f"HF_ENDPOINT; {state}"
        ) from error
