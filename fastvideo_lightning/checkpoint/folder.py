"""Where a checkpoint lies on this machine, found and looked at without an import of seconds."""

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import cast

from fastvideo_lightning.config import nearest_name

ASSETS = Path(__file__).parent.parent / "assets"
INDEX = "model_index.json"
MODULAR_INDEX = "modular_model_index.json"

_READ_WHOLE = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".yaml")
_MAX_READ_BYTES = 256_000_000  # the largest tokenizers have some 40 MB


class CheckpointError(OSError):
    """A checkpoint on disk is incomplete, damaged or not what its name says."""


def find_folder(path: str | PathLike[str], *, revision: str | None = None) -> Path | None:
    """Return the folder of a pipeline; None where `path` is a hub id.

    Args:
        path: A folder in diffusers' layout, a hub id, or the name of a model inside this package.
        revision: Of a model on the hub.

    Raises:
        FileNotFoundError: If it is neither.
        CheckpointError: If it is no pipeline.
        TypeError: If `path` is no text.
        ValueError: If a revision of a folder is asked for.
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(f"model must be a folder or a hub id, got {path!r}. Pass it as text.")
    text = fspath(path)
    if "\0" in text:
        raise ValueError(f"model must be a folder or a hub id, got {text!r}. Leave the NUL out.")
    if not text:
        raise ValueError(
            f"model must be a folder or a hub id, got {text!r}. Leave it out for tiny-shapes."
        )
    folder = Path(os.path.expanduser(text))
    if not folder.exists() and "/" not in text and (ASSETS / text / INDEX).is_file():
        folder = ASSETS / text
    if folder.is_file():
        raise CheckpointError(f"{text} is a file. Pass the folder that holds {INDEX}.")
    if not folder.is_dir():
        if isinstance(path, str) and _looks_like_hub_id(text):
            return None
        bundled = nearest_name(text, [index.parent.name for index in ASSETS.glob(f"*/{INDEX}")])
        how = "Pass an existing folder, or an id such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers."
        raise FileNotFoundError(
            f"No folder {text!r} here, and it is no hub id either. "
            + (f"Did you mean {bundled}?" if bundled else how)
        )
    if revision is not None:
        raise ValueError(
            f"revision={revision!r} is for models from the hub, and {text} is a folder here. "
            "Leave revision out."
        )
    check_index(folder)
    return folder


@contextmanager
def readable(model: str | PathLike[str]) -> Iterator[None]:
    """Say which file of a model may not be read, where that is why something fails within.

    Raises:
        CheckpointError: Names the file, and what to type.
    """
    try:
        yield
    except Exception as error:
        folder, cause = Path(os.path.expanduser(model)), cast(BaseException | None, error)
        while cause is not None and not isinstance(cause, PermissionError):
            cause = cause.__cause__ or cause.__context__
        if cause is None or folder not in Path(cause.filename or "").parents:
            raise
        raise CheckpointError(
            f"You may not read {cause.filename}. Type `chmod -R u+rX {fspath(model)}` if it is "
            "yours, or pass a model that you may read."
        ) from error


def check_regular(path: Path) -> int:
    """Return the size of a file in bytes; a link counts as what it leads to.

    Raises:
        CheckpointError: If it is a pipe, a device or a folder, or cannot be looked at.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}). Download the checkpoint again."
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(
            f"{path} is no regular file, and is not opened. Download the checkpoint again."
        )
    return found.st_size


def check_files(folder: Path) -> None:
    """Look at the files of a component before a library opens any of them.

    Raises:
        CheckpointError: Names what is no regular file, or what is too large to be read whole.
    """
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if not path.is_symlink():
                check_files(path)
        elif path.is_symlink() and not path.exists():
            continue  # a part that was not downloaded
        elif check_regular(path) > _MAX_READ_BYTES and path.suffix in _READ_WHOLE:
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes, more than any {path.suffix} file of a "
                "model. Download the checkpoint again."
            )


def find_cached(hub_id: str, *, revision: str | None = None, index: str = INDEX) -> Path | None:
    """Return the folder with an index that the local cache has for a hub id; or None.

    There may be no more in it than the index.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, index, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def check_index(folder: Path) -> None:
    """Raise CheckpointError where a folder has no index, and so is no pipeline."""
    if not (folder / INDEX).exists() and not (folder / MODULAR_INDEX).exists():
        raise not_a_pipeline(folder)


def not_a_pipeline(place: str | Path) -> CheckpointError:
    """Return the error that says of a folder or a hub id that it has no index, and what to do."""
    original = _original_layout(Path(place))
    if original is not None:
        return CheckpointError(
            f"{place} is in the layout of Wan's own code. Pass the model in diffusers' layout: "
            f"{original}."
        )
    return CheckpointError(
        f"{place} is no diffusers pipeline: it has no model_index.json. Pass the folder that holds "
        "model_index.json, or a hub id ending in -Diffusers."
    )


# Kind and width of a denoiser in the layout of Wan's own code, as its config.json says them, and
# the same model in diffusers' layout, https://huggingface.co/Wan-AI.
_WAN = {
    ("t2v", 1536): "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    ("t2v", 5120): "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    ("i2v", 5120): "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers or Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
    ("ti2v", 3072): "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
}
_WAN_EXPERTS = {
    "t2v": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    "i2v": "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
}


def _original_layout(folder: Path) -> str | None:
    """Return the diffusers counterpart of a folder in the layout of Wan's own code, or None."""
    experts = folder / "high_noise_model" / "config.json"
    path = experts if experts.is_file() else folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind, width = config["model_type"], config["dim"]
        if config["_class_name"] != "WanModel":
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _WAN_EXPERTS.get(kind) if path == experts else _WAN.get((kind, width))


def _looks_like_hub_id(text: str) -> bool:
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        return False
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def find_variants(folder: Path, stem: str) -> list[str]:
    """Return the variants, such as `fp16`, that a component has safetensors files of.

    Args:
        folder: The component's folder.
        stem: File name without endings, such as `model`.
    """
    weights = re.compile(rf"{stem}\.([^.]+?)(?:-\d+-of-\d+)?\.safetensors")
    index = re.compile(rf"{stem}\.safetensors\.index\.([^.]+)\.json")
    names = [path.name for path in folder.glob(f"{stem}.*")]
    found = [match for name in names for match in (weights.fullmatch(name), index.fullmatch(name))]
    return sorted({match[1] for match in found if match is not None})
