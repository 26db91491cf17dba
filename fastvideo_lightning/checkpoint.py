"""From a folder or hub id to a diffusers pipeline and the places of its weights.

Only headers are read here; the bytes of a weight are read once, by whoever gives them their home.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastvideo_lightning.checkpoint_folder import (
    INDEX,
    CheckpointError,
    check_index,
    find_folder,
)
from fastvideo_lightning.components import Component, RunDtypes, build_component, library_bars_off
from fastvideo_lightning.downloads import download
from fastvideo_lightning.imports import quiet_imports
from fastvideo_lightning.quantization import QUANTIZATIONS, make_quantization
from fastvideo_lightning.trust import check_code
from fastvideo_lightning.weights import StoredWeight, read_json

__all__ = ["Checkpoint", "CheckpointError", "StoredWeight", "load_pipeline", "open_checkpoint"]

_DTYPE_NAMES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
}


@dataclass(frozen=True)
class Checkpoint:
    """A pipeline folder whose index was read.

    Attributes:
        folder: Where it lies.
        class_name: The diffusers pipeline it declares.
        components: Library and class of each part that is not null, by name.
        sampling: What `sampling.json` beside the weights says, or nothing.
        variant: Variant of the weight files, such as `fp16`.
        allow_pickle: Whether pickled weights may be loaded.
        absent: Parts that are null.
    """

    folder: Path
    class_name: str
    components: dict[str, tuple[str, str]]
    sampling: dict[str, Any] = field(default_factory=dict)
    variant: str | None = None
    allow_pickle: bool = False
    absent: tuple[str, ...] = ()


def open_checkpoint(
    path: str | PathLike[str],
    *,
    revision: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Find a checkpoint and read its index.

    Args:
        path: A folder in diffusers' layout, a hub id such as `Wan-AI/Wan2.1-T2V-1.3B-Diffusers`,
            or the name of a model inside this package such as `tiny-shapes`.
        revision: Branch, tag or commit on the hub.
        variant: Variant of the weight files.
        allow_pickle: Load pickled weights where there are no others.

    Raises:
        FileNotFoundError: If there is no such folder or hub id.
        CheckpointError: If the folder is no pipeline, or a component is missing.
        ValueError: If a revision of a folder is asked for.
    """
    folder = find_folder(path, revision=revision)
    if folder is None:
        folder = download(fspath(path), revision=revision, variant=variant)
        check_index(folder)
    index_path = folder / INDEX
    index = read_json(index_path)
    class_name = index.get("_class_name")
    if not isinstance(class_name, str):
        raise CheckpointError(
            f"{index_path} must name a diffusers pipeline in _class_name, got {class_name!r}."
        )
    components = {
        name: (entry[0], entry[1])
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and None not in entry
    }
    for name, (library, component_class) in components.items():
        if not (folder / name).is_dir():
            raise CheckpointError(
                f"Missing component: {folder / name}, which model_index.json lists as "
                f"{library}.{component_class}. Download the checkpoint again."
            )
    sampling = folder / "sampling.json"
    return Checkpoint(
        folder,
        class_name,
        components,
        read_json(sampling) if sampling.is_file() else {},
        variant,
        allow_pickle,
        tuple(name for name, entry in index.items() if entry == [None, None]),
    )


def load_pipeline(
    checkpoint: Checkpoint,
    *,
    dtype: str | torch.dtype = "auto",
    device_type: str | None = None,
    stays_fp32: Callable[[str, type], bool] = lambda name, model_class: False,
    quantizes: Callable[[str, type], bool] = lambda name, model_class: False,
) -> tuple[Any, dict[str, StoredWeight]]:
    """Build the pipeline with its parameters on meta.

    Args:
        checkpoint: What to build.
        dtype: `auto`: fp32 on a CPU; elsewhere bf16, and fp32 for the components of `stays_fp32`.
            A `torch.dtype` or one of `bf16`, `fp16`, `fp32`: every component runs in it, as with
            `DiffusionPipeline.from_pretrained(torch_dtype=...)`. What a library keeps in fp32
            (`_keep_in_fp32_modules`) stays so. `fp8` or `int8`: as `auto`, but with the linear
            layers of the components of `quantizes` in it, by torchao.
        device_type: Where the run will likely be; by default `cuda` where there is one.
        stays_fp32: Whether `auto` keeps a component, by name and class, in fp32.
        quantizes: Whether `fp8` and `int8` are for a component.

    Returns:
        The pipeline, and for each weight on meta, by its FQN such as `vae.conv1.weight`, its place.

    Raises:
        ValueError: If `dtype` or the variant is unknown.
        CheckpointError: If the weights are incomplete or damaged.
    """
    chosen = parse_dtype(dtype)
    quantization = make_quantization(dtype)
    device_type = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_variant(checkpoint)
    built: dict[str, Component] = {}
    for name in checkpoint.components:
        model_class = _component_class(checkpoint, name)
        if not issubclass(model_class, nn.Module):
            continue
        if chosen is not None:
            dtypes = RunDtypes(chosen, chosen)
        else:
            wide = stays_fp32(name, model_class)
            dtypes = RunDtypes(torch.float32, torch.float32 if wide else torch.bfloat16)
        built[name] = build_component(
            model_class,
            checkpoint.folder / name,
            dtypes=dtypes,
            quantization=quantization if quantizes(name, model_class) else None,
            device_type=device_type,
            variant=checkpoint.variant,
            allow_pickle=checkpoint.allow_pickle,
        )
    pipeline = _join(checkpoint, {name: component.module for name, component in built.items()})
    sources = {
        f"{name}.{fqn}": source
        for name, component in built.items()
        for fqn, source in component.sources.items()
    }
    return pipeline, sources


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """Return the dtype that was meant; None for `auto`, `fp8`, `int8`; ValueError for no dtype."""
    if dtype == "auto" or dtype in QUANTIZATIONS:
        return None
    chosen = _DTYPE_NAMES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen not in _DTYPE_NAMES.values():
        raise ValueError(
            f"dtype must be one of auto, bf16, fp16, fp32, fp8 and int8, got {dtype!r}. "
            "Pass dtype='auto', or leave it out."
        )
    return chosen


def _check_variant(checkpoint: Checkpoint) -> None:
    variant = checkpoint.variant
    if variant and not any(checkpoint.folder.glob(f"*/*.{variant}*.*")):
        raise ValueError(
            f"No weights of variant {variant!r} in {checkpoint.folder}. Leave variant out to take "
            "the files without one."
        )


def _component_class(checkpoint: Checkpoint, name: str) -> Any:
    """Return the class of a component, looked up by diffusers' own rules."""
    with quiet_imports():
        from diffusers import pipelines
        from diffusers.pipelines.pipeline_loading_utils import (
            ALL_IMPORTABLE_CLASSES,
            get_class_obj_and_candidates,
        )

    library, class_name = checkpoint.components[name]
    check_code(checkpoint.folder, name, library, class_name)
    try:
        with quiet_imports():
            found, _ = get_class_obj_and_candidates(
                library, class_name, ALL_IMPORTABLE_CLASSES, pipelines, hasattr(pipelines, library)
            )
    except (AttributeError, ImportError, ValueError) as error:
        raise CheckpointError(
            f"model_index.json in {checkpoint.folder} lists {name} as {library}.{class_name}, "
            f"which cannot be imported: {error}"
        ) from error
    return found


def _join(checkpoint: Checkpoint, modules: dict[str, nn.Module]) -> Any:
    """Have diffusers load what is no model (tokenizer, scheduler, ...) and put it together."""
    import diffusers

    with quiet_imports():
        pipeline_class = getattr(diffusers, checkpoint.class_name, None)
    if pipeline_class is None:
        raise CheckpointError(
            f"model_index.json in {checkpoint.folder} names {checkpoint.class_name}, which is not "
            f"in diffusers {diffusers.__version__}. Update diffusers."
        )
    try:
        with library_bars_off():
            absent = dict.fromkeys(checkpoint.absent)
            return pipeline_class.from_pretrained(checkpoint.folder, **absent, **modules)
    except ImportError as error:
        raise CheckpointError(
            f"{checkpoint.class_name} needs a package that is not installed: {error}"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(" .:")
        raise CheckpointError(
            f"diffusers cannot load {checkpoint.class_name} from {checkpoint.folder} ({reason}). "
            "Download the checkpoint again."
        ) from error
