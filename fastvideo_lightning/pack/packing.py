"""Packing: a checkpoint written in the dtype it runs in on a GPU, each unit in one piece.

The result is a diffusers folder like its source. `model_index.json` comes last, so a folder that
was not finished does not pass for a pipeline.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import torch
from rich.filesize import decimal
from torch import nn

from fastvideo_lightning.checkpoint.components import CONFIG, is_diffusers_model, weight_stem
from fastvideo_lightning.checkpoint.folder import readable
from fastvideo_lightning.checkpoint.pipeline import Checkpoint, open_checkpoint, parse_dtype
from fastvideo_lightning.checkpoint.quantization import QUANTIZATIONS
from fastvideo_lightning.checkpoint.weights import StoredWeight, file_key, read_json
from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.pack.files import copy_file, is_finished, write_bytes, write_file
from fastvideo_lightning.pack.layout import PackedFile, make_index, plan_files
from fastvideo_lightning.pack.source import INDEXES, RECORD, files_beside, fingerprint, with_dtype
from fastvideo_lightning.pack.target import (
    check_record,
    check_target,
    free_bytes,
    naming_folder,
    only_writer,
)

Progress = Callable[[Path, int], None]
"""Told the file, relative to OUT, and how many of its bytes were written or read back."""


@dataclass(frozen=True)
class Packing:
    """A checkpoint that is to be packed, checked and planned to the byte.

    Attributes:
        folder: The source.
        out: The folder that is written.
        weights: The files of weights, by path relative to `out`.
        texts: Configurations and indexes that differ from the source's.
        copies: Files that are copied as they are, by path relative to `out`.
        record: What `packing.json` will say.
    """

    folder: Path
    out: Path
    weights: dict[Path, PackedFile]
    texts: dict[Path, bytes]
    copies: dict[Path, Path]
    record: dict[str, str]

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights and of what is copied."""
        copied = sum(source.stat().st_size for source in self.copies.values())
        return copied + sum(packed.size_bytes for packed in self.weights.values())

    @property
    def unfinished(self) -> dict[Path, PackedFile]:
        """The files of weights that are not there yet."""
        return {
            path: packed
            for path, packed in self.weights.items()
            if not is_finished(packed, self.out / path)
        }

    def check_space(self) -> None:
        """Raise OSError where the disk has less room than what is still to be written."""
        missing = {path: packed.size_bytes for path, packed in self.unfinished.items()}
        for path, content in self.texts.items():
            if not (self.out / path).exists():
                missing[path] = len(content)
        for path, source in self.copies.items():
            if not (self.out / path).exists():
                missing[path] = source.stat().st_size
        needed, free = sum(missing.values()), free_bytes(self.out, missing)
        if free < needed:
            raise OSError(
                f"No room for {self.out}: {decimal(needed)} are needed, {decimal(free)} are free. "
                "Free some, or pass a folder on another disk."
            )

    def write(self, progress: Progress = lambda path, size_bytes: None) -> None:
        """Write what is not there yet; may be stopped at any moment and called again.

        Args:
            progress: Told of every piece that was written, and again when it was read back.

        Raises:
            CheckpointError: If a file reads back otherwise than it was written.
            FileExistsError: If the folder has become a pack of something else.
            OSError: If the disk refuses.
            RuntimeError: If another process is packing into the folder.
        """
        with naming_folder(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            with only_writer(self.out):
                check_record(self.out, self.record)  # another may have come since the plan
                self._write(progress)

    def _write(self, progress: Progress) -> None:
        write_bytes(_as_json(self.record), self.out / RECORD)
        for path, packed in self.unfinished.items():
            (self.out / path).parent.mkdir(parents=True, exist_ok=True)
            write_file(packed, self.out / path, lambda size, path=path: progress(path, size))  # type: ignore[misc]
        for path, content in self.texts.items():
            write_bytes(content, self.out / path)
        for path, source in self.copies.items():
            copy_file(source, self.out / path)
        for index in INDEXES:
            if (self.folder / index).exists():
                copy_file(self.folder / index, self.out / index)


def pack(
    model: str | PathLike[str],
    out: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    component: Mapping[str, str | PathLike[str]] | None = None,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
) -> Path:
    """Write a checkpoint in the dtype it runs in on a GPU, each unit contiguous and on a page.

    Args:
        model: A folder in diffusers' layout, a hub id, `tiny-shapes`, or a file of weights.
        out: The folder to write; one that an earlier run left unfinished is completed.
        base: The pipeline that has the rest of the model, where `model` is a file.
        component: Files and folders that take the place of components, by their names.
        dtype: `auto`: bf16, and fp32 for a VAE that was published so (Wan's); `bf16`, `fp16`,
            `fp32`: all components in it.
        revision: Branch, tag or commit on the hub.
        variant: Variant of the weight files to read; what is written has none.
        allow_pickle: Read pickled weights where there are no others; they can run code.

    Returns:
        `out`.

    Raises:
        ValueError: If `out` is the model's folder or lies in it, or a component is quantized.
        FileExistsError: If `out` holds anything else.
        CheckpointError: If the model is incomplete or damaged, or what was written reads back
            otherwise.
        OSError: If the disk has no room.
        RuntimeError: If another process is packing into `out`.
    """
    packing = plan_packing(
        model,
        out,
        base=base,
        component=component,
        dtype=dtype,
        revision=revision,
        variant=variant,
        allow_pickle=allow_pickle,
    )
    packing.check_space()
    packing.write()
    return packing.out


def plan_packing(
    model: str | PathLike[str],
    out: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    component: Mapping[str, str | PathLike[str]] | None = None,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
) -> Packing:
    """Check what `pack` is asked for and plan it; only headers are read. See `pack`."""
    parse_dtype(dtype)
    if dtype in QUANTIZATIONS:
        raise ValueError(
            f"dtype={dtype!r} quantizes while a model is loaded; a packed checkpoint holds plain "
            "weights. Pass dtype='auto' or 'bf16' here, and this one to from_pretrained."
        )
    with readable(model):
        checkpoint = open_checkpoint(
            model,
            base=base,
            component=component,
            revision=revision,
            variant=variant,
            allow_pickle=allow_pickle,
        )
    folder, target = checkpoint.folder, Path(os.path.expanduser(out))
    with naming_folder(target):
        check_target(folder, target)
    with readable(folder):
        _check_plain(checkpoint)
        module = VideoModule.from_checkpoint(
            checkpoint, dtype=dtype, device_type="cuda", keeps_blocks=False
        )
        weights: dict[Path, PackedFile] = {}
        texts: dict[Path, bytes] = {}
        for name, model_part in module.named_children():
            if is_diffusers_model(type(model_part)) and not hasattr(model_part, "config"):
                raise ValueError(
                    f"{folder / name} and the folders beside it make one "
                    f"{type(model_part).__name__}, which cannot be packed. Use the checkpoint as "
                    "it is."
                )
            files = plan_files(
                model_part, _sources_of(module.weight_sources, name), weight_stem(type(model_part))
            )
            weights |= {Path(name, path): packed for path, packed in files.items()}
            texts |= _texts_of(checkpoint.folder_of(name), name, model_part, files)
        components = {name for name, _ in module.named_children()}
        copies = _copies_of(checkpoint, components, texts)
        record = {
            "model": fspath(model),
            "dtype": str(dtype).removeprefix("torch."),
            "fingerprint": _fingerprint(checkpoint, components, copies, weights, texts),
        }
    check_record(target, record)
    return Packing(folder, target, weights, texts, copies, record)


def _copies_of(
    checkpoint: Checkpoint, components: set[str], texts: Mapping[Path, bytes]
) -> dict[Path, Path]:
    """Return what is copied, by its path in the pack; of another folder's component, from there."""
    moved = {name: place for name, place in checkpoint.component.items() if place.is_dir()}
    copies = {
        path: checkpoint.folder / path
        for path in files_beside(checkpoint.folder, components)
        if path.parts[0] not in moved
    }
    for name, place in moved.items():
        of_component = files_beside(place, {name} & components, name)
        copies |= {Path(name, path): place / path for path in of_component}
    return {path: source for path, source in copies.items() if path not in texts}


def _fingerprint(
    checkpoint: Checkpoint,
    components: set[str],
    copies: Mapping[Path, Path],
    weights: Mapping[Path, PackedFile],
    texts: Mapping[Path, bytes],
) -> str:
    """Return that of the folder, and of what takes the place of its components."""
    folder = checkpoint.folder
    own = tuple(path for path, source in copies.items() if source == folder / path)
    digest = fingerprint(folder, components, own, weights, texts)
    others = [path for path in (checkpoint.file, *checkpoint.component.values()) if path]
    files = [
        file for path in others for file in ([path] if path.is_file() else sorted(path.rglob("*")))
    ]
    keys = [file_key(file) for file in files if file.is_file()]
    return hashlib.sha256(" ".join([digest, *keys]).encode()).hexdigest() if keys else digest


def _check_plain(checkpoint: Checkpoint) -> None:
    for name in checkpoint.components:
        config = checkpoint.folder_of(name) / "config.json"
        if config.is_file() and read_json(config).get("quantization_config"):
            raise ValueError(
                f"Quantized: {config.parent}. Its weights have no run dtype to pack "
                "them in. Use the checkpoint as it is."
            )


def _texts_of(
    folder: Path, name: str, component: nn.Module, files: Mapping[str, PackedFile]
) -> dict[Path, bytes]:
    """A component's index and configuration, where they are not those of the source."""
    model_class, texts = type(component), {}
    index = make_index(files)
    if index is not None:
        texts[Path(name, f"{weight_stem(model_class)}.safetensors.index.json")] = _as_json(index)
    if not is_diffusers_model(model_class):
        config = Path(name, "config.json")
        texts[config] = _as_json(with_dtype(read_json(folder / CONFIG), _main_dtype(files)))
    return texts


def _sources_of(sources: Mapping[str, StoredWeight], name: str) -> dict[str, StoredWeight]:
    begin = f"{name}."
    return {
        fqn.removeprefix(begin): source for fqn, source in sources.items() if fqn.startswith(begin)
    }


def _main_dtype(files: Mapping[str, PackedFile]) -> torch.dtype:
    """The floating-point dtype that most bytes of a component have."""
    sizes: Counter[torch.dtype] = Counter()
    for packed in files.values():
        for tensor in packed.tensors:
            if tensor.dtype.is_floating_point:
                sizes[tensor.dtype] += tensor.size_bytes
    return sizes.most_common(1)[0][0]


def _as_json(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
