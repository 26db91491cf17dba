"""What is known of a video before it is made: everything that makes it this one and no other."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fastvideo_lightning.batch.manifest import Entry
from fastvideo_lightning.checkpoint.folder import ASSETS
from fastvideo_lightning.config import OffloadConfig
from fastvideo_lightning.modules.content import live_state, media_keys, model_keys
from fastvideo_lightning.prompts.dataset import ResolvedPrompt
from fastvideo_lightning.version import __version__

if TYPE_CHECKING:
    import lightning as L
    import torch
    from torch import nn

    from fastvideo_lightning.modules import VideoModule


class MakesVideos(Protocol):
    """What a batch asks of a `VideoGenerator`."""

    @property
    def module(self) -> "VideoModule": ...  # noqa: D102
    @property
    def config(self) -> OffloadConfig: ...  # noqa: D102
    @property
    def device_type(self) -> str: ...  # noqa: D102
    @property
    def is_set_up(self) -> bool: ...  # noqa: D102
    def launch(self) -> "L.Fabric": ...  # noqa: D102
    def iterate(self, prompts: Iterable[ResolvedPrompt], writer: Any) -> Iterator[Any]: ...  # noqa: D102


# Of the configuration: what makes it another video, and is no matter of where weights live.
_OTHER_VIDEO = ("cache", "attention_backend")


class ModelInputs:
    """What goes into the videos of a batch beside their prompts, as it was when it was asked for.

    Args:
        generator: What makes them. Before it is set up, caches and backends are not in place yet.
    """

    def __init__(self, generator: MakesVideos) -> None:
        module = self._module = generator.module
        self._settings = {name: getattr(generator.config, name) for name in _OTHER_VIDEO}
        self._dtypes = dtypes_of(module, generator.device_type)
        self._keys = model_keys(module)
        self._before = live_state(module)
        if not generator.is_set_up:
            for name in _OTHER_VIDEO:
                del self._before[name]

    def describe(self, item: ResolvedPrompt) -> Entry:
        """Return the entry of a prompt."""
        module, parameters = self._module, item.params.given()
        seed = parameters.pop("seed")
        if loras := {name: weight for name, weight in module.loras.items() if weight}:
            parameters["loras"] = loras
        parameters |= {name: value for name, value in self._settings.items() if value is not None}
        parameters["dtypes"] = dict(self._dtypes)
        pipeline = module.pipeline
        return Entry(
            prompt=item["prompt"],
            seed=seed,
            status="",
            name=item.get("name"),
            parameters={
                name: os.fspath(value) if isinstance(value, os.PathLike) else value
                for name, value in parameters.items()
            },
            model=name_model(pipeline.config.get("_name_or_path") or type(pipeline).__name__),
            inputs={**self._keys, **media_keys(parameters)},
            versions=versions(),
        )

    def look_again(self, entry: Entry, item: Mapping[str, Any]) -> Entry:
        """Return the entry with what goes in as it is now.

        Raises:
            RuntimeError: If adapters, scheduler, backend or a part of the model was changed.
        """
        now = live_state(self._module)
        changed = sorted(n for n in now.keys() & self._before if now[n] != self._before[n])
        if changed or self._before.keys() - now.keys():
            raise RuntimeError(
                f"{', '.join(changed) or 'A part of the model'} was changed in the middle of a "
                "batch: its other videos would not be what its manifest says. Read the videos of "
                "a batch to the end, or close() it, before anything is changed."
            )
        self._before = now
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
