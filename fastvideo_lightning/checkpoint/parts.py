"""What a model is put together of: the folder of a pipeline, and files in the place of its parts.

Nothing slow is imported here: the command asks before it imports torch.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path

from fastvideo_lightning.checkpoint.folder import CheckpointError, check_regular, find_folder
from fastvideo_lightning.libraries import check_installed

GGUF_MAGIC = b"GGUF"
_GGUF_START_BYTES = 24  # magic, version, number of tensors, number of settings
_WEIGHTS = (".safetensors", ".sft", ".gguf")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_EXAMPLE = "Wan-AI/Wan2.1-T2V-14B-Diffusers"


@dataclass(frozen=True)
class ModelParts:
    """A pipeline, and what takes the place of some of its components.

    Attributes:
        pipeline: What names the pipeline: a folder or a hub id.
        folder: Its folder; None for a hub id.
        file: A file of weights, for the components that its header says; or None.
        component: Files and folders, by the name of the component that each is.
    """

    pipeline: str
    folder: Path | None
    file: Path | None = None
    component: Mapping[str, Path] = field(default_factory=dict)


def find_parts(
    model: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    component: Mapping[str, str | PathLike[str]] | None = None,
    revision: str | None = None,
) -> ModelParts:
    """Find what a model is put together of, as far as this machine has it.

    Args:
        model: A folder in diffusers' layout, a hub id, the name of a model inside this package, or
            a `.safetensors` or `.gguf` file.
        base: The pipeline that has the rest, where `model` is a file.
        component: Files and folders that take the place of components, by their names.
        revision: Of a model on the hub.

    Raises:
        FileNotFoundError: If one of them is not there.
        CheckpointError: If one of them is no pipeline, or no file of weights.
        TypeError: If one of them is no text.
        ValueError: If `base` is missing, or has nothing to be the base of.
    """
    given = {name: _find_component(name, place) for name, place in _check_names(component).items()}
    file = _find_file(model)
    if file is None:
        if base is not None:
            raise ValueError(
                f"base={base!r} is for a model that is a file, and {model} is none. Leave "
                "base out, or pass the file as component, such as component={'transformer': FILE}."
            )
        folder = find_folder(model, revision=revision)
        return ModelParts(fspath(model), folder, None, given)
    if base is None:
        raise ValueError(
            f"{file} is a file with a part of a model. Pass the pipeline that has the rest as "
            f"base: a folder, or a hub id such as base={_EXAMPLE!r}."
        )
    if _find_file(base) is not None:
        raise ValueError(
            f"base={base!r} is a file. Pass the pipeline that has the rest of the model: "
            f"a folder, or a hub id such as {_EXAMPLE}."
        )
    check_weight_file(file)
    folder = find_folder(base, revision=revision)
    return ModelParts(fspath(base), folder, file, given)


def _check_names(
    component: Mapping[str, str | PathLike[str]] | None,
) -> Mapping[str, str | PathLike[str]]:
    if component is None:
        return {}
    if not isinstance(component, Mapping) or not all(isinstance(name, str) for name in component):
        raise TypeError(
            "component must hold files or folders by the name of the component, such as "
            f"{{'transformer': 'wan.safetensors'}}, got {component!r}."
        )
    return component


def _find_file(model: str | PathLike[str]) -> Path | None:
    """Return the file of weights that a model is; None where it is none."""
    if not isinstance(model, str | PathLike) or "\0" in fspath(model):
        return None
    path = Path(os.path.expanduser(model))
    if path.is_file():
        is_of_weights = path.suffix in (*_WEIGHTS, *_PICKLES) or is_gguf(path)
        return path if is_of_weights else None
    if path.suffix in _WEIGHTS and not path.exists():
        raise FileNotFoundError(f"There is no file {fspath(model)!r}. Pass one that is there.")
    return None


def _find_component(name: str, place: str | PathLike[str]) -> Path:
    if not isinstance(place, str | PathLike):
        raise TypeError(f"component {name} must be a file or a folder, got {place!r}.")
    path = Path(os.path.expanduser(place))
    if path.is_dir():
        return path
    if not path.exists():
        raise FileNotFoundError(
            f"component {name}: there is no file or folder {fspath(place)!r}. Pass one that is "
            "there; what the hub has, `hf download` brings."
        )
    check_weight_file(path)
    return path


def check_weight_file(path: Path) -> None:
    """Look at the first bytes of a file of weights.

    Raises:
        CheckpointError: If it is damaged, or of a kind that is not read here.
        ImportError: If a package is missing that reads it.
    """
    size_bytes = check_regular(path)
    if is_gguf(path):
        with path.open("rb") as file:
            start = file.read(_GGUF_START_BYTES)
        if start[:4] != GGUF_MAGIC or len(start) < _GGUF_START_BYTES:
            raise CheckpointError(
                f"{path} is no GGUF file, or was cut off ({size_bytes} bytes). Download it again."
            )
        check_installed("gguf", extra="gguf", needed_by=f"{path.name}, a GGUF file,")
    elif path.suffix in _PICKLES:
        raise CheckpointError(
            f"{path} is a pickle, which can run code of its author. Pass the weights as "
            ".safetensors or .gguf."
        )


def is_gguf(path: Path) -> bool:
    """Whether a file is, or should be, a GGUF file."""
    with path.open("rb") as file:
        return file.read(4) == GGUF_MAGIC or path.suffix == ".gguf"
