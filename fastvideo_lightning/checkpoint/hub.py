"""What the hub has for an id: its files, or their headers alone and the rest as a hole.

A folder of headers is read like any other, by the same code. It costs some hundred kilobytes, where
the weights would be tens of gigabytes.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from fastvideo_lightning.checkpoint.folder import (
    INDEX,
    MODULAR_INDEX,
    CheckpointError,
    find_cached,
    find_folder,
    not_a_pipeline,
)
from fastvideo_lightning.checkpoint.published import (
    published_revision,
    write_hole,
    write_published,
)


def download(hub_id: str, *, revision: str | None, variant: str | None) -> Path:
    """Fetch the files a pipeline needs; diffusers knows which, and uses the cache when offline.

    Of a modular pipeline the index, which says where its components lie.
    """
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
        modular = _find_modular(hub_id, revision)
        if modular is not None:
            return modular
        if _is_of_the_hub(error):
            raise not_a_pipeline(hub_id) from error
        raise _unreachable(hub_id, error) from error


def _find_modular(hub_id: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub_id, MODULAR_INDEX, revision=revision)).parent
    except OSError:  # neither on the hub nor in the cache
        return None


_OF_A_PART = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken")


def download_part(hub_id: str, subfolder: str, *, revision: str | None) -> Path:
    """Fetch a component that lies in a repository, and return its folder.

    Raises:
        CheckpointError: If the hub cannot be reached and the cache has no such folder.
        FileNotFoundError: If the hub has no such model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    start = f"{subfolder}/" if subfolder else ""
    patterns = [start + ending for ending in _OF_A_PART]
    try:
        found = Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"The hub has no {hub_id}, or it is not open to you, and there is no such folder here."
        ) from error
    except (OSError, ValueError) as error:
        raise _unreachable(hub_id, error) from error
    if not (found / subfolder).is_dir():
        raise CheckpointError(f"{hub_id} has no folder {subfolder!r}. " + what_instead(hub_id))
    return found / subfolder


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


_CONNECTIONS = 8
_NO_MODEL: list[None] = [None, None]


@contextmanager
def headers_folder(
    model: str | PathLike[str],
    *,
    revision: str | None = None,
    variant: str | None = None,
    is_packed: bool = False,
) -> Iterator[Path | None]:
    """Give a folder with the headers of a hub id; it is gone when the context ends.

    Of a model whose shapes come with the package the hub is not asked.

    Args:
        model: What the user named.
        revision: Branch, tag or commit.
        variant: Variant of the weight files.
        is_packed: Of a model whose shapes come with the package: as `pack` would write it.

    Yields:
        The folder; None for what is a folder already, lies in the local cache, or has weights
        whose headers cannot be asked for alone.

    Raises:
        FileNotFoundError: If the hub has no such model.
        CheckpointError: If the hub cannot be reached, or has no pipeline of that id.
    """
    if find_folder(model, revision=revision) is not None or _is_cached(fspath(model), revision):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="fastvideo-lightning-") as name:
        if find_published(model, revision=revision, variant=variant) is not None:
            write_published(fspath(model), Path(name), is_packed=is_packed)
            yield Path(name)
        else:
            yield Path(name) if _fetch(fspath(model), revision, Path(name)) else None


def find_published(
    model: str | PathLike[str], *, revision: str | None = None, variant: str | None = None
) -> str | None:
    """Return the commit whose shapes come with the package and stand for a model in a plan.

    None for a folder, for what lies in the local cache, where a revision or a variant is asked for,
    and for any other model.
    """
    known = None if revision or variant else published_revision(fspath(model))
    if known is None or find_folder(model) is not None or _is_cached(fspath(model), None):
        return None
    return known


def _is_cached(hub_id: str, revision: str | None) -> bool:
    """Whether the local cache has weights of every component."""
    folder = find_cached(hub_id, revision=revision)
    if folder is None:
        return False
    entries = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    names = [n for n, e in entries.items() if isinstance(e, list) and None not in e[:2]]
    return all((folder / name).is_dir() for name in names)


def _fetch(hub_id: str, revision: str | None, folder: Path) -> bool:
    """Fill a folder; False where a component has pickled weights and no others."""
    import huggingface_hub.errors as errors
    from huggingface_hub import HfApi

    api = HfApi()
    unreachable: Any = (OSError, *errors.HfHubHTTPError.__bases__)  # of whatever client it has
    try:
        found = api.model_info(hub_id, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
        return _Headers(api, hub_id, found.sha, sizes, folder).fetch()
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        wanted = f"{hub_id} at revision {revision}" if revision else hub_id
        raise FileNotFoundError(
            f"The hub has no {wanted}, or it is not open to you, and there is no such folder here."
        ) from error
    except CheckpointError:
        raise
    except unreachable as error:
        if find_cached(hub_id, revision=revision, index=MODULAR_INDEX) is not None:
            return False
        raise CheckpointError(
            f"{hub_id} is not in the local cache, and the hub cannot be asked for its headers "
            f"({type(error).__name__}). {what_instead(hub_id)}"
        ) from error


class _Headers:
    """The files of one commit that a plan asks for."""

    def __init__(
        self, api: Any, hub_id: str, commit: str | None, sizes: dict[str, int], folder: Path
    ) -> None:
        self._api, self._hub_id, self._commit = api, hub_id, commit
        self._sizes, self._folder = sizes, folder

    def fetch(self) -> bool:
        if INDEX not in self._sizes and MODULAR_INDEX in self._sizes:
            return False  # its components may lie anywhere
        if INDEX not in self._sizes:
            raise not_a_pipeline(self._hub_id)
        self._download(INDEX)
        index_path = self._folder / INDEX
        index = json.loads(index_path.read_text(encoding="utf-8"))
        listed = [n for n, e in index.items() if isinstance(e, list) and None not in e[:2]]
        parts = [name for name in listed if self._is_planned(name)]
        if any(self._is_pickled(name) for name in listed):
            return False
        # Tokenizers weigh megabytes here and nothing on a device.
        index.update({name: _NO_MODEL for name in listed if name not in parts})
        index_path.write_text(json.dumps(index), encoding="utf-8")
        small = [f for f in self._sizes if f == "sampling.json" or _ends(f, parts, ".json", ".py")]
        weights = [file for file in self._sizes if _ends(file, parts, ".safetensors")]
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(self._download, small))
            list(pool.map(self._make_hole, weights))
        return True

    def _is_planned(self, name: str) -> bool:
        has_weights = any(_ends(file, [name], ".safetensors") for file in self._sizes)
        return has_weights or f"{name}/scheduler_config.json" in self._sizes

    def _is_pickled(self, name: str) -> bool:
        pickled = any(_ends(f, [name], ".bin", ".pt", ".pth", ".ckpt") for f in self._sizes)
        return pickled and not self._is_planned(name)

    def _download(self, file: str) -> None:
        self._api.hf_hub_download(
            self._hub_id,
            file,
            revision=self._commit,
            local_dir=self._folder,
            tqdm_class=_no_bar(),
        )

    def _make_hole(self, file: str) -> None:
        """Write the header; behind it the file is as long as it was, and empty."""
        found = self._api.parse_safetensors_file_metadata(self._hub_id, file, revision=self._commit)
        header: dict[str, Any] = {"__metadata__": found.metadata or {}}
        for name, tensor in found.tensors.items():
            facts = asdict(tensor)
            header[name] = {key: facts[key] for key in ("dtype", "shape", "data_offsets")}
        ends = [each.data_offsets[1] for each in found.tensors.values()]
        write_hole(self._folder / file, header, max(ends, default=0))


def _ends(file: str, parts: list[str], *endings: str) -> bool:
    """Whether a file lies in the folder of one of the parts, and ends so."""
    name, slash, rest = file.partition("/")
    return bool(slash) and name in parts and "/" not in rest and rest.endswith(endings)


def _no_bar() -> Any:
    from tqdm import tqdm

    class Silent(tqdm):  # type: ignore[misc]
        """Draws nothing: the command's own output would be torn."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent
