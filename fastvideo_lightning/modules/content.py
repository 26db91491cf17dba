"""What a video is made from, known by its content and not by its name.

# Note [Known by content]
Two runs make the same video where the same bytes go in. A small file is known by the hash of all of
it. To read a large file of weights would take as long as the video: it is known by its size, the
times of its changes, its inode and the hash of its header; one in the hub's cache by the name that
it has there, which is the hash that the hub gave it. Weights that were in memory when they came, as
those of `from_pipeline`, are known by their bytes, and so are those that somebody edited since they
were read: there a row here and there is held against the file. Everything else of a pipeline, such
as its scheduler, is known by its class and configuration as they are now, whatever file they are
from.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from fastvideo_lightning.checkpoint.folder import CheckpointError
from fastvideo_lightning.checkpoint.weights import StoredWeight, file_key
from fastvideo_lightning.modules.media import media_path

if TYPE_CHECKING:
    from fastvideo_lightning.modules.base import VideoModule


_ROWS_BYTES = 1 << 16  # of a weight are held against its file, at each of three places
_NOT_CONTENT = ("_name_or_path", "_diffusers_version", "transformers_version", "name_or_path")
_MEDIA = ("image_path", "last_image_path", "video_path")


def value_key(value: Any) -> str:
    """Return what tells a value from others: of a media file's path that file's content."""
    digest = hashlib.sha256()
    _add_value(digest, value)
    return digest.hexdigest()


def _add_value(digest: Any, value: Any) -> None:
    digest.update(type(value).__name__.encode())
    if isinstance(value, torch.Tensor):
        digest.update(tensor_key(value).encode())
    elif isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(
            f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes()
        )
    elif hasattr(value, "tobytes") and hasattr(value, "size"):  # a picture
        digest.update(f"{value.size} {getattr(value, 'mode', '')}".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        for name in sorted(value, key=str):
            digest.update(str(name).encode())
            _add_value(digest, value[name])
    elif isinstance(value, list | tuple):
        digest.update(str(len(value)).encode())
        for each in value:
            _add_value(digest, each)
    elif (path := media_path(value)) is not None and path.is_file():
        digest.update(file_key(path, whole=True).encode())
    else:
        digest.update(repr(value).encode(errors="backslashreplace"))


def tensor_key(tensor: torch.Tensor) -> str:
    """Return the hash of a tensor's dtype, shape and bytes; of a subclass, of its inner ones."""
    if hasattr(tensor, "to_local"):  # a part of a divided one
        tensor = tensor.to_local()
    if hasattr(tensor, "__tensor_flatten__"):
        inner, _ = tensor.__tensor_flatten__()
        return " ".join([type(tensor).__name__, *(tensor_key(getattr(tensor, n)) for n in inner)])
    host = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    if host.numel():
        digest.update(host.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def media_keys(values: Mapping[str, Any]) -> dict[str, str]:
    """Return for each picture, video and further argument of a prompt what tells its content."""
    keys = {}
    for name in _MEDIA:
        if values.get(name) is not None:
            keys[name] = file_key(values[name], whole=True)
    for name, value in (values.get("pipeline_arguments") or {}).items():
        keys[f"pipeline_arguments.{name}"] = value_key(value)
    return keys


def model_keys(module: "VideoModule") -> dict[str, str]:
    """Return for each part of a model that counts what tells its content, and that of adapters."""
    pipeline = module.pipeline
    keys = {"pipeline": _digest([type(pipeline).__name__, _configuration(pipeline)])}
    for name, component in pipeline.components.items():
        if isinstance(component, nn.Module):
            keys[name] = _digest([*_about(component), *_weights(module, name, component)])
        elif component is not None:
            keys[name] = _digest(_about(component))
    adapters = [text for fqn, layer in _adapter_layers(module) for text in _adapters(fqn, layer)]
    return keys | ({"loras": _digest(adapters)} if adapters else {})


def live_state(module: "VideoModule") -> dict[str, str]:
    """Return what of a model can be switched between two videos, cheaply, without its weights."""
    pipeline = module.pipeline
    layers = [f"{fqn} {_switches(layer)}" for fqn, layer in _adapter_layers(module)]
    backends: set[str] = set()
    caches = []
    for fqn in module.denoisers:
        denoiser = module.get_submodule(fqn)
        caches.append(repr(getattr(denoiser, "_cache_config", None)))
        processors = getattr(denoiser, "attn_processors", {})
        found: Iterable[Any] = getattr(processors, "values", list)()
        backends |= {str(getattr(each, "_attention_backend", "")) for each in found}
    state = {"LoRA adapters": _digest(layers), "attention_backend": repr(sorted(backends))}
    state["cache"] = _digest(caches)
    for name, component in pipeline.components.items():
        is_model = isinstance(component, nn.Module)
        state[name] = str(id(component)) if is_model else _digest(_about(component))
    return state


def _about(component: Any) -> list[str]:
    """Return the class and the configuration of a part of a pipeline."""
    return [type(component).__name__, _configuration(component)]


def _configuration(component: Any) -> str:
    tokenizer = getattr(component, "backend_tokenizer", None)
    if tokenizer is not None:
        special = getattr(component, "special_tokens_map", {})
        settings = [component.model_max_length, component.padding_side, special]
        # What a call asked for last stays in it.
        kept = json.loads(tokenizer.to_str()) | {"truncation": None, "padding": None}
        return json.dumps([kept, settings], sort_keys=True, default=repr)
    if hasattr(component, "get_vocab"):
        return repr(sorted(component.get_vocab().items(), key=str))
    config: Any = getattr(component, "config", None)
    described: Any = config if hasattr(config, "to_dict") else component
    if hasattr(described, "to_dict"):
        config = described.to_dict()
    kept = {k: v for k, v in dict(config or {}).items() if k not in _NOT_CONTENT}
    return json.dumps(kept, sort_keys=True, default=repr)


def _weights(module: "VideoModule", name: str, component: nn.Module) -> list[str]:
    """Return the keys of the files with a model's weights, or of the tensors themselves."""
    prefix = f"{name}."
    sources = {
        fqn.removeprefix(prefix): source
        for fqn, source in module.weight_sources.items()
        if fqn.startswith(prefix)
    }
    if not sources:
        return _tensor_keys(dict(_own_tensors(component)))
    files = {module.weight_file_key(source.file) for source in sources.values()}
    edited = {
        fqn: tensor
        for fqn, tensor in _own_tensors(component)
        if fqn in sources and _is_edited(tensor, sources[fqn])
    }
    return [*sorted(files), *_tensor_keys(edited)]


def _own_tensors(component: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Give a model's weights and kept buffers by FQN, as if no adapter were there."""
    for fqn, tensor in (*component.named_parameters(), *component.named_buffers()):
        if ".lora_" not in f".{fqn}" and not tensor.is_meta:
            yield fqn.replace(".base_layer.", "."), tensor


def _tensor_keys(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        keys = pool.map(tensor_key, tensors.values())
        return [f"{fqn} {key}" for fqn, key in zip(tensors, keys, strict=True)]


def _is_edited(tensor: torch.Tensor, source: StoredWeight) -> bool:
    """Whether a weight that was read is another than its file's; looks at some of its rows."""
    if type(tensor.data) is not torch.Tensor or tensor.shape != source.shape:
        return tensor.shape != source.shape and not hasattr(tensor, "__tensor_flatten__")
    if not tensor.numel():
        return False
    if tensor.dim() == 0:
        parts: list[tuple[torch.Tensor, StoredWeight]] = [(tensor, source)]
    else:
        size = tensor.shape[0]
        row_bytes = max(tensor.numel() // size * tensor.element_size(), 1)
        count = min(max(_ROWS_BYTES // row_bytes, 1), size)
        starts = sorted({0, (size - count) // 2, size - count})
        parts = [(tensor[s : s + count], source.rows(s, s + count)) for s in starts]
    try:
        return not all(
            torch.equal(part.detach().cpu(), stored.as_host_tensor(part.dtype))
            for part, stored in parts
        )
    except (OSError, CheckpointError):  # its file is gone: what was read of it stays what it is
        return False


def _adapter_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((fqn, layer) for fqn, layer in module.named_modules() if hasattr(layer, "lora_A"))


def _counting(layer: Any) -> Sequence[str]:
    """Return the adapters of a layer that count beside its weights."""
    if getattr(layer, "disable_adapters", False) or getattr(layer, "merged", False):
        return []
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _switches(layer: Any) -> str:
    scales = {name: layer.scaling.get(name) for name in _counting(layer)}
    return f"{scales} {sorted(layer.lora_A)} {sorted(getattr(layer, 'merged_adapters', ()))}"


def _adapters(fqn: str, layer: Any) -> Iterator[str]:
    """Give for each adapter that counts its strength and the content of its weights."""
    for name in sorted(_counting(layer), key=lambda name: repr(layer.scaling.get(name))):
        if layer.scaling.get(name):
            pair = layer.lora_A[name].weight, layer.lora_B[name].weight
            yield f"{fqn} {layer.scaling[name]} {' '.join(map(tensor_key, pair))}"


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="backslashreplace")).hexdigest()
