"""From a folder or hub id to a diffusers pipeline and the places of its weights.

Only headers are read here; the bytes of a weight are read once, by whoever gives them their home.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastvideo_lightning.checkpoint import modular
from fastvideo_lightning.checkpoint.components import (
    Component,
    RunDtypes,
    build_component,
    first_line,
    needs_package,
)
from fastvideo_lightning.checkpoint.folder import (
    INDEX,
    MODULAR_INDEX,
    CheckpointError,
    check_files,
    check_index,
)
from fastvideo_lightning.checkpoint.hub import download
from fastvideo_lightning.checkpoint.parts import find_parts
from fastvideo_lightning.checkpoint.quantization import QUANTIZATIONS, make_quantization
from fastvideo_lightning.checkpoint.replacements import check_replacements
from fastvideo_lightning.checkpoint.single_file import build_from_file, find_components
from fastvideo_lightning.checkpoint.trust import check_code
from fastvideo_lightning.checkpoint.weights import StoredWeight, read_json
from fastvideo_lightning.config import nearest_name
from fastvideo_lightning.libraries import quiet_imports

__all__ = ["Checkpoint", "CheckpointError", "StoredWeight", "load_pipeline", "open_checkpoint"]

_MOST_STEPS = 1_000_000

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
        file: Weights of the components that its header says, or None.
        component: Files and folders that take the place of components.
    """

    folder: Path
    class_name: str
    components: dict[str, tuple[str, str]]
    sampling: dict[str, Any] = field(default_factory=dict)
    variant: str | None = None
    allow_pickle: bool = False
    absent: tuple[str, ...] = ()
    file: Path | None = None
    component: Mapping[str, Path] = field(default_factory=dict)

    def folder_of(self, name: str) -> Path:
        """Where a component lies, with its configuration."""
        place = self.component.get(name)
        return place if place is not None and place.is_dir() else self.folder / name


def open_checkpoint(
    path: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    component: Mapping[str, str | PathLike[str]] | None = None,
    revision: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Find a checkpoint and read its index.

    Args:
        path: A folder in diffusers' layout, a hub id such as `Wan-AI/Wan2.1-T2V-1.3B-Diffusers`,
            the name of a model inside this package such as `tiny-shapes`, or a file of weights.
        base: The pipeline that has the rest of the model, where `path` is a file.
        component: Files and folders that take the place of components, by their names.
        revision: Branch, tag or commit on the hub.
        variant: Variant of the weight files.
        allow_pickle: Load pickled weights where there are no others.

    Raises:
        FileNotFoundError: If there is no such folder or hub id.
        CheckpointError: If the folder is no pipeline, or a component is missing.
        ValueError: If a revision of a folder is asked for.
    """
    parts = find_parts(path, base=base, component=component, revision=revision)
    folder = parts.folder
    if folder is None:
        folder = download(parts.pipeline, revision=revision, variant=variant)
        check_index(folder)
    index_path = folder / INDEX
    places = parts.component
    if index_path.exists():
        index = read_json(index_path)
        class_name = index.get("_class_name")
        if not isinstance(class_name, str):
            raise CheckpointError(
                f"{index_path} must name a diffusers pipeline in _class_name, got {class_name!r}."
            )
    else:
        index_path = folder / MODULAR_INDEX
        class_name, index, found = modular.find_components(folder, parts.component)
        places = {**found, **parts.component}
    components = {
        name: _parse_component(index_path, name, entry)
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and None not in entry
    }
    _check_listed(folder, parts.component, components)
    for name, (library, component_class) in components.items():
        if name in places and places[name].is_dir():
            check_files(places[name])
            continue
        if not (folder / name).is_dir():
            raise CheckpointError(
                f"Missing component: {folder / name}, which model_index.json lists as "
                f"{library}.{component_class}. Download the checkpoint again."
            )
        check_files(folder / name)
    sampling = folder / "sampling.json"
    return Checkpoint(
        folder,
        class_name,
        components,
        read_json(sampling) if sampling.exists() else {},
        variant,
        allow_pickle,
        tuple(name for name, entry in index.items() if entry == [None, None]),
        parts.file,
        places,
    )


def _check_listed(
    folder: Path, given: Mapping[str, Path], components: Mapping[str, tuple[str, str]]
) -> None:
    """Raise ValueError for the name of a component that a pipeline has not."""
    for name in given:
        if name not in components:
            nearest = nearest_name(name, components)
            raise ValueError(
                f"component {name}={given[name]}: {folder} has no {name!r}. "
                + (f"Did you mean {nearest}?" if nearest else f"It has {', '.join(components)}.")
            )


def _parse_component(index: Path, name: str, entry: list[Any]) -> tuple[str, str]:
    """Return the library and the class of a component."""
    library, class_name = entry
    names = [*library.split("."), class_name] if isinstance(library, str) else [None]
    if not all(isinstance(each, str) and each.isidentifier() for each in (name, *names)):
        raise CheckpointError(
            f"{index} lists {name!r} as {entry!r:.200}, and must name a component, the library of "
            "its class and the class. Download the checkpoint again."
        )
    return library, class_name


def load_pipeline(
    checkpoint: Checkpoint,
    *,
    dtype: str | torch.dtype = "auto",
    device_type: str | None = None,
    stays_fp32: Callable[[str, type], bool] = lambda name, model_class: False,
    quantizes: Callable[[str, type], bool] = lambda name, model_class: False,
    keeps_blocks: bool = True,
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
        keeps_blocks: Have linear layers compute with GGUF's blocks; else they are widened.

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
    pipeline_class = _pipeline_class(checkpoint)
    classes = {name: _component_class(checkpoint, name) for name in checkpoint.components}
    check_replacements(checkpoint.component, classes)
    files = _find_files(checkpoint, classes)
    built: dict[str, Component] = {}
    for name, model_class in classes.items():
        if not issubclass(model_class, nn.Module):
            continue
        if chosen is not None:
            dtypes = RunDtypes(chosen, chosen)
        else:
            wide = stays_fp32(name, model_class)
            dtypes = RunDtypes(torch.float32, torch.float32 if wide else torch.bfloat16)
        if name in files:
            built[name] = build_from_file(
                model_class,
                checkpoint.folder_of(name),
                files[name],
                dtypes=dtypes,
                device_type=device_type,
                is_quantized=quantization is not None and quantizes(name, model_class),
                keeps_blocks=keeps_blocks,
            )
            continue
        built[name] = build_component(
            model_class,
            checkpoint.folder_of(name),
            dtypes=dtypes,
            quantization=quantization if quantizes(name, model_class) else None,
            device_type=device_type,
            variant=checkpoint.variant,
            allow_pickle=checkpoint.allow_pickle,
        )
    parts: dict[str, Any] = {name: component.module for name, component in built.items()}
    for name, kind in classes.items():
        if name not in parts:
            parts[name] = _load_part(checkpoint.folder_of(name), kind)
    pipeline = _join(checkpoint, pipeline_class, parts)
    sources = {
        f"{name}.{fqn}": source
        for name, component in built.items()
        for fqn, source in component.sources.items()
    }
    return pipeline, sources


def _find_files(checkpoint: Checkpoint, classes: Mapping[str, type]) -> dict[str, Path]:
    """Return the file of each component that comes out of one.

    Raises:
        ValueError: If a file is to be what is no model, or could be either of two components.
    """
    files = {name: place for name, place in checkpoint.component.items() if place.is_file()}
    for name, path in files.items():
        if not issubclass(classes[name], nn.Module):
            raise ValueError(
                f"component {name}={path}: {name} is a {classes[name].__name__}, which has no "
                "weights. Pass its folder."
            )
    if checkpoint.file is not None:
        models = {
            name: (model_class, checkpoint.folder_of(name))
            for name, model_class in classes.items()
            if issubclass(model_class, nn.Module) and name not in checkpoint.component
        }
        found = find_components(checkpoint.file, models)
        experts = [name for name in found if classes[name] is classes[found[0]]]
        if len(experts) > 1:
            raise ValueError(
                f"{checkpoint.file} may be {' or '.join(experts)}, and its header does not tell. "
                f"Pass {checkpoint.folder} as model, and each file by component "
                + ", ".join(f"{name}=FILE" for name in experts)
                + "."
            )
        files |= dict.fromkeys(found, checkpoint.file)
    return files


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
    listed = f"model_index.json in {checkpoint.folder} lists {name} as {library}.{class_name}"
    try:
        with quiet_imports():
            found, _ = get_class_obj_and_candidates(
                library, class_name, ALL_IMPORTABLE_CLASSES, pipelines, hasattr(pipelines, library)
            )
            kinds = _kinds()
    except (AttributeError, ImportError, ValueError) as error:
        raise CheckpointError(f"{listed}, which cannot be imported: {error}") from error
    _check_has_packages(found, listed)
    if not isinstance(found, type) or not issubclass(found, kinds):
        raise CheckpointError(
            f"{listed}, which is no part of a pipeline. Download the checkpoint again."
        )
    return found


@cache
def _kinds() -> tuple[type, ...]:
    """What parts of a pipeline are made of."""
    import diffusers
    import transformers
    from diffusers.configuration_utils import ConfigMixin
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
    from transformers import PreTrainedTokenizerBase

    named = [
        *(getattr(diffusers, name) for name in LOADABLE_CLASSES["diffusers"]),
        *(getattr(transformers, name) for name in LOADABLE_CLASSES["transformers"]),
    ]
    whole = (diffusers.DiffusionPipeline, ConfigMixin)
    return (*(kind for kind in named if kind not in whole), PreTrainedTokenizerBase)


def _check_has_packages(found: Any, listed: str) -> None:
    """Raise CheckpointError for what diffusers and transformers have in place of a class."""
    if type(found).__name__ == "DummyObject":
        names = " ".join(found._backends)
        raise CheckpointError(
            f"{listed}, which needs a package that is not installed. Install it: "
            f"pip install {names}"
        )


def _pipeline_class(checkpoint: Checkpoint) -> Any:
    """Return the class of the pipeline; nothing else is looked up in diffusers."""
    import diffusers

    name = checkpoint.class_name
    listed = f"model_index.json in {checkpoint.folder} names {name}"
    with quiet_imports():
        found = getattr(diffusers, name, None) if name.isidentifier() else None
    _check_has_packages(found, listed)
    pipelines = diffusers.DiffusionPipeline, diffusers.ModularPipeline
    if not isinstance(found, type) or not issubclass(found, pipelines):
        raise CheckpointError(
            f"{listed}, which is no pipeline of diffusers {diffusers.__version__}. "
            "Update diffusers."
        )
    return found


def _load_part(folder: Path, kind: Any) -> Any:
    """Load what is no model: a tokenizer, a scheduler, ..."""
    from diffusers import SchedulerMixin

    if issubclass(kind, SchedulerMixin):
        _check_numbers(folder / str(kind.config_name))
    try:
        with quiet_imports():
            return kind.from_pretrained(str(folder))
    except ImportError as error:
        raise needs_package(f"{kind.__name__} in {folder}", error) from error
    except Exception as error:  # whatever a damaged file makes a library trip over
        for path in sorted(folder.glob("*.json")):
            read_json(path)  # where that is why, it names the file
        raise CheckpointError(
            f"{folder} holds no {kind.__name__} that can be loaded ({first_line(error)}). "
            "Download the checkpoint again."
        ) from error


def _check_numbers(config: Path) -> None:
    """Refuse a scheduler with more steps than any has: it makes tables of so many numbers."""
    for name, value in read_json(config, infinite=True).items():
        if isinstance(value, int) and abs(value) > _MOST_STEPS:
            raise CheckpointError(
                f"{config} has {name}={str(value)[:20]}, more than any scheduler has. "
                "Download the checkpoint again."
            )


def _join(checkpoint: Checkpoint, kind: Any, parts: dict[str, Any]) -> Any:
    """Put a pipeline together, as `DiffusionPipeline.from_pretrained` does."""
    from diffusers import ModularPipeline

    if issubclass(kind, ModularPipeline):
        return modular.join_modular(checkpoint.folder, kind, parts)
    index = checkpoint.folder / INDEX
    known, optional = map(set, kind._get_signature_keys(kind))
    needed = known - parts.keys() - {*checkpoint.absent, *kind._optional_components}
    if needed:
        raise CheckpointError(
            f"{index} lists no {', '.join(sorted(needed))}, which {checkpoint.class_name} needs. "
            "Download the checkpoint again."
        )
    try:
        with quiet_imports():
            settings, _, _ = kind.extract_init_dict(kind.load_config(checkpoint.folder))
            settings = {name: settings[name] for name in settings if name in optional - known}
            pipeline = kind(**settings, **{name: parts.get(name) for name in known})
            pipeline.register_to_config(_name_or_path=str(checkpoint.folder))
    except ImportError as error:
        raise needs_package(checkpoint.class_name, error) from error
    except Exception as error:  # whatever an index makes a constructor trip over
        raise CheckpointError(
            f"{index} describes no {checkpoint.class_name} that can be made "
            f"({first_line(error)}). Download the checkpoint again."
        ) from error
    return pipeline
