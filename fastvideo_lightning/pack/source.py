"""What a pack takes over from its source besides the weights, and how it knows the source again."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fastvideo_lightning.checkpoint.weights import MAX_HEADER_BYTES
from fastvideo_lightning.pack.layout import PackedFile

RECORD = "packing.json"
"""What OUT is a pack of: another run with the same source goes on where this one stopped."""

LOCK = ".packing.lock"
"""Held, in OUT, by the one process that writes there; gone when that is done."""

INDEXES = ("model_index.json", "modular_model_index.json")
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".gguf"}
_READ_WHOLE_BYTES = 64 << 20
_LEFT_OUT = {".git", ".cache", "__pycache__"}  # what tools keep beside a checkpoint


def with_dtype(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """A transformers configuration that asks for the dtype of the files, nested ones included.

    Plain loading takes the dtype from there, and would cast back to the source's.
    """
    name = str(dtype).removeprefix("torch.")

    def renamed(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {inner: renamed(inner, content) for inner, content in value.items()}
        return name if key in ("dtype", "torch_dtype") else value

    changed: dict[str, Any] = renamed("", {"dtype": name, **config})
    return changed


def files_beside(folder: Path, components: set[str], name: str = "") -> Iterator[Path]:
    """Yield every file but the weights of `components`, the index and what tools left.

    Args:
        folder: Of a pipeline, or of one component.
        components: Their weights are left out.
        name: The component that `folder` is of, if it is of one.
    """
    for path in _files_under(folder):
        relative = path.relative_to(folder)
        is_weight = (name or relative.parts[0]) in components and (
            path.suffix in _WEIGHT_SUFFIXES or ".index." in path.name
        )
        if not is_weight and str(relative) not in (*INDEXES, RECORD, LOCK):
            yield relative


def fingerprint(
    folder: Path,
    components: set[str],
    copies: tuple[Path, ...],
    weights: Mapping[Path, PackedFile],
    texts: Mapping[Path, bytes],
) -> str:
    """A digest of the source's files and of the plan.

    Small files are known by their content, so that those of a model that was installed again are
    the same. Of large ones it would take as long as packing them: they are known by their size,
    header and time of change.
    """
    digest = hashlib.sha256()
    parts = [
        path.relative_to(folder) for name in components for path in _files_under(folder / name)
    ]
    for path in sorted({*parts, *copies, *map(Path, INDEXES)}):
        if (folder / path).is_file():
            found = (folder / path).stat()
            digest.update(f"{path.as_posix()} {found.st_size}\n".encode())
            if found.st_size <= _READ_WHOLE_BYTES:
                digest.update((folder / path).read_bytes())
                continue
            digest.update(f"{found.st_mtime_ns}\n".encode())
            if path.suffix == ".safetensors":
                digest.update(_read_header_bytes(folder / path))
    for path, packed in sorted(weights.items()):
        digest.update(path.as_posix().encode() + packed.header)
    for path, content in sorted(texts.items()):
        digest.update(path.as_posix().encode() + content)
    return digest.hexdigest()


def _files_under(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files of a folder and of those in it, linked ones too, but for what tools left.

    A link to a folder that the link itself lies in is not followed: it would never end.
    """
    here = folder.resolve()
    if any(here == other or here in other.parents for other in above):
        return
    for path in sorted(folder.iterdir()):
        if path.name in _LEFT_OUT:
            continue
        if path.is_dir():
            yield from _files_under(path, (*above, here))
        elif path.is_file():
            yield path


def _read_header_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(min(length, MAX_HEADER_BYTES))
