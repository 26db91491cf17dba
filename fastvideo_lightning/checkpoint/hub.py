"""What the hub has for an id, or its cache on this machine."""

import os
from pathlib import Path

from fastvideo_lightning.checkpoint.folder import MODULAR_INDEX, CheckpointError, not_a_pipeline


def download(hub_id: str, *, revision: str | None, variant: str | None) -> Path:
    """Fetch the files a pipeline needs; diffusers knows which, and uses the cache when offline."""
    from diffusers import DiffusionPipeline
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(DiffusionPipeline.download(hub_id, revision=revision, variant=variant))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        wanted = f"{hub_id} at revision {revision}" if revision else hub_id
        raise FileNotFoundError(
            f"The hub has no {wanted}, or it is not open to you, and there is no such folder here."
        ) from error
    except (OSError, ValueError) as error:
        is_modular = _is_modular(hub_id, revision)
        if is_modular or _is_of_the_hub(error):
            raise not_a_pipeline(hub_id, is_modular=is_modular) from error
        raise _unreachable(hub_id, error) from error


def _is_modular(hub_id: str, revision: str | None) -> bool:
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(hub_id, MODULAR_INDEX, revision=revision)
    except OSError:  # neither on the hub nor in the cache
        return False
    return True


def _is_of_the_hub(error: Exception) -> bool:
    """Whether it is the hub that says that a file is not there."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    is_missing = isinstance(error, EntryNotFoundError)
    return is_missing and not isinstance(error, LocalEntryNotFoundError)


def find_snapshot(hub_id: str) -> Path:
    """Return the cache's folder for what the hub has now, or had when it was asked last.

    Nothing is fetched into it.

    Raises:
        CheckpointError: If the hub cannot be reached, and never was for this id.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[]))
    except LocalEntryNotFoundError as error:
        raise _unreachable(hub_id, error) from error


def _unreachable(hub_id: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{hub_id} is not in the local cache and cannot be downloaded ({type(error).__name__}). "
        + what_instead(hub_id)
    )


def what_instead(hub_id: str) -> str:
    """Say what to do where the hub cannot be reached."""
    from huggingface_hub import constants

    first = "Connect to the network"
    if constants.HF_HUB_OFFLINE:
        names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        name = next((name for name in names if os.environ.get(name)), names[0])
        first = f"{name} is set, which forbids downloads: unset it"
    return f"{first}, run `hf download {hub_id}` where there is a network, or pass a folder."
