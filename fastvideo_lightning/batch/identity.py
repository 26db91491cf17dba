"""What is known of a video before it is made: everything that makes it this one and no other."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvideo_lightning.batch.manifest import Entry
from fastvideo_lightning.checkpoint.folder import ASSETS
from fastvideo_lightning.modules.content import media_keys
from fastvideo_lightning.prompts.dataset import params_of
from fastvideo_lightning.version import __version__

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fastvideo_lightning.modules import VideoModule


def describe(
    item: Mapping[str, Any],
    module: "VideoModule",
    *,
    settings: Mapping[str, Any],
    dtypes: Mapping[str, str],
    model_inputs: Mapping[str, str],
) -> Entry:
    """Return the entry of a prompt.

    Args:
        item: Resolved against the model.
        module: The model.
        settings: Of the configuration, what makes it another video; None where it does not.
        dtypes: As `dtypes_of` has them.
        model_inputs: As `model_keys` has them.
    """
    parameters = params_of(item).given()
    seed = parameters.pop("seed")
    if loras := {name: weight for name, weight in module.loras.items() if weight}:
        parameters["loras"] = loras
    parameters |= {name: value for name, value in settings.items() if value is not None}
    parameters["dtypes"] = dict(dtypes)
    pipeline = module.pipeline
    return Entry(
        prompt=item["prompt"],
        seed=seed,
        status="",
        parameters={
            name: os.fspath(value) if isinstance(value, os.PathLike) else value
            for name, value in parameters.items()
        },
        model=name_model(pipeline.config.get("_name_or_path") or type(pipeline).__name__),
        inputs={**model_inputs, **media_keys(parameters)},
        versions=versions(),
    )


def look_again(entry: Entry, item: Mapping[str, Any]) -> Entry:
    """Return the entry with the pictures and videos of its prompt as they are now."""
    return replace(entry, inputs={**entry.inputs, **media_keys(item)})


def name_model(path: str | os.PathLike[str]) -> str:
    """Return a name that a checkpoint has wherever it is asked for from.

    A model of this package has its own name, one of the hub's cache its id and commit, another
    folder its absolute path.
    """
    text = os.fspath(path)
    if not os.path.isdir(text):
        return text
    place = Path(text).resolve()
    if place.parent == ASSETS.resolve():
        return place.name
    *_, repository, kind, commit = ("", "", *place.parts)
    if kind == "snapshots" and repository.startswith("models--"):
        return f"{repository.removeprefix('models--').replace('--', '/')}@{commit}"
    return str(place)


def dtypes_of(module: "VideoModule", device_type: str) -> dict[str, str]:
    """Return by name what each component computes in: the dtype of its largest weight.

    Of a quantized weight its class and the dtypes of its inner tensors are named.
    """
    import torch

    device = torch.device(device_type)
    return {
        name: _dtype_of(name, component, module, device)
        for name, component in module.named_children()
        if next(component.parameters(), None) is not None
    }


def _dtype_of(
    name: str, component: "nn.Module", module: "VideoModule", device: "torch.device"
) -> str:
    fqn, weight = max(component.named_parameters(), key=lambda named: named[1].numel())
    source = module.weight_sources.get(f"{name}.{fqn}")
    if source is not None:
        return _short(source.dtype_on(device))
    if not hasattr(weight, "__tensor_flatten__"):
        return _short(weight.dtype)
    inner, _ = weight.__tensor_flatten__()
    dtypes = (_short(getattr(weight, each).dtype) for each in inner)
    return f"{type(weight).__name__}({', '.join(dtypes)})"


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def versions() -> dict[str, str]:
    """This package and the libraries that settle the pixels."""
    versions = {"fastvideo-lightning": __version__}
    for library in ("torch", "diffusers", "transformers", "lightning"):
        try:
            versions[library] = version(library)
        except PackageNotFoundError:  # on the path, not installed
            continue
    return versions
