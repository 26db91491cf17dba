"""Shapes of published models that come with the package, so that a plan needs no network.

`assets/published.json` holds each model's configurations, the dtypes of its weights and where each
number is from. A folder that is written of them is like one whose headers were fetched: read by the
same code, and with holes in place of the weights.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastvideo_lightning.checkpoint.building import built_on_meta
from fastvideo_lightning.checkpoint.components import is_diffusers_model, weight_stem
from fastvideo_lightning.checkpoint.folder import ASSETS, INDEX

_ITEM_BYTES = {"F32": 4, "BF16": 2}
_MOST_PARAMETERS, _MOST_ELEMENTS = 10_000, 1 << 34
_CONFIG = {"scheduler": "scheduler_config.json"}


@cache
def _catalog() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ASSETS / "published.json").read_text(encoding="utf-8"))
    return found


def published_models() -> list[str]:
    """Return the hub ids whose shapes come with the package."""
    return list(_catalog()["models"])


def published_revision(hub_id: str) -> str | None:
    """Return the commit of a model whose shapes come with the package; None for any other."""
    model = _catalog()["models"].get(hub_id)
    return None if model is None else str(model["revision"])


def write_published(hub_id: str, folder: Path, *, is_packed: bool = False) -> None:
    """Fill a folder with a published model's configurations and the headers of its weights.

    Args:
        hub_id: One of `published_models`.
        folder: An empty folder.
        is_packed: Give the weights the dtypes that they run in on a GPU, as `pack` writes them.
    """
    model = _catalog()["models"][hub_id]
    index = {**model["index"], "tokenizer": [None, None]}
    for name, part in model["parts"].items():
        index[name] = part["class"]
        config = _catalog()["configs"][part["config"]]
        path = folder / name / _CONFIG.get(name, "config.json")
        path.parent.mkdir()
        path.write_text(json.dumps(config), encoding="utf-8")
        if "dtype" in part:
            dtype = "BF16" if is_packed and name != "vae" else part["dtype"]
            _write_header(path.parent, _class_of(*part["class"]), config, dtype)
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _write_header(folder: Path, model_class: Any, config: Mapping[str, Any], dtype: str) -> None:
    """Build a component on meta, and write the header that its weights in one file would have."""
    with built_on_meta(torch.float32, max_parameters=_MOST_PARAMETERS, max_elements=_MOST_ELEMENTS):
        if is_diffusers_model(model_class):
            model: nn.Module = model_class.from_config(config)
        else:
            model = model_class(model_class.config_class(**config))
    header, end = {}, 0
    # Diffusers' models run these in fp32, whatever else runs in.
    is_diffusers = is_diffusers_model(model_class)
    in_fp32 = set(model_class._keep_in_fp32_modules or ()) if is_diffusers else set()
    for fqn, weight in model.named_parameters():
        stored = "F32" if in_fp32.intersection(fqn.split(".")) else dtype
        start, end = end, end + weight.numel() * _ITEM_BYTES[stored]
        offsets = [start, end]
        header[fqn] = {"dtype": stored, "shape": list(weight.shape), "data_offsets": offsets}
    write_hole(folder / f"{weight_stem(model_class)}.safetensors", header, end)


def _class_of(library: str, kind: str) -> Any:
    import diffusers
    import transformers

    return getattr({"diffusers": diffusers, "transformers": transformers}[library], kind)


def write_hole(path: Path, header: Mapping[str, Any], size_bytes: int) -> None:
    """Write a safetensors file that is as long as with its weights, and empty behind its header.

    Args:
        path: Of the file.
        header: As the format has it: dtype, shape and offsets of each tensor by name.
        size_bytes: Of all tensors.
    """
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as target:
        target.write(len(text).to_bytes(8, "little") + text)
        target.truncate(8 + len(text) + size_bytes)
