"""A component out of one file, as ComfyUI's users have it.

Note [Converted where it lies]
Names that are not diffusers' go through diffusers' own converters
(`diffusers.loaders.single_file_utils`). A converter gets tensors over a private mapping of the
file, so that nothing is read. Afterwards the address of a tensor tells whether it is still where it
was: most conversions give names and cut rows, and such a weight streams from the file as any other.
What a converter computes, such as two halves that change places, is in memory from then on.
"""

import mmap
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastvideo_lightning.checkpoint.components import (
    LOADING,
    Component,
    RunDtypes,
    build_without_weights,
)
from fastvideo_lightning.checkpoint.folder import CheckpointError
from fastvideo_lightning.checkpoint.weights import StoredTensor, read_header


def build_from_file(
    model_class: type[nn.Module],
    folder: Path,
    path: Path,
    *,
    dtypes: RunDtypes,
    device_type: str,
) -> Component:
    """Build a model of its configuration, and find its weights in one file.

    Args:
        model_class: A class of diffusers or transformers.
        folder: Has its configuration.
        path: The file.
        dtypes: The dtypes it will run in.
        device_type: Where it will likely run.

    Raises:
        CheckpointError: If it is damaged, or holds another model; says which it looks like.
    """
    tensors = read_header(path)
    with LOADING, _naming_model(path, tensors):
        component = build_without_weights(
            model_class, folder, tensors, dtypes, dtypes.on(device_type), convert
        )
        assert component is not None
    component.module.eval()
    return component


def find_components(path: Path, models: Mapping[str, tuple[type[nn.Module], Path]]) -> list[str]:
    """Return which components of a pipeline a file has the weights of.

    Args:
        path: The file.
        models: By the component's name its class and the folder with its configuration.

    Raises:
        CheckpointError: If it has those of none; says which model it looks like.
    """
    tensors = read_header(path)
    found, reasons = [], {}
    for name, (model_class, folder) in models.items():
        try:
            with LOADING:
                dtypes = RunDtypes(torch.float32, torch.float32)
                build_without_weights(model_class, folder, tensors, dtypes, torch.float32, convert)
            found.append(name)
        except CheckpointError as error:
            reasons[name] = error
    if not found:
        with _naming_model(path, tensors):
            raise CheckpointError(
                f"{path} has the weights of no component of the base ({', '.join(models)})."
            ) from next(iter(reasons.values()), None)
    return found


@contextmanager
def _naming_model(path: Path, tensors: Mapping[str, StoredTensor]) -> Iterator[None]:
    """Say which model a file looks like, where it is not the one that was asked for."""
    try:
        yield
    except CheckpointError as error:
        if (looks := looks_like(tensors)) is None:
            raise
        raise CheckpointError(f"{error} {path.name} looks like {looks}.") from error


_TELLING = {
    r"\.(lora_[AB]|lora_(up|down))\.": "a LoRA: pass it as lora",
    r"(^|\.)block\.\d+\.layer\.0\.SelfAttention\.q\.": "a T5 text encoder",
    r"(^|\.)layers\.\d+\.self_attn\.q_proj\.": "a text encoder, a language model",
    r"(^|\.)token_embd\.weight$": "a text encoder in GGUF",
    r"^condition_embedder\.time_embedder\.": "a denoiser of Wan with diffusers' names",
    r"^(time_embed\.emb|adaln_single)\..*linear_1": "a denoiser of LTX-Video",
    r"^(transformer_blocks|blocks)\.0\.": "another denoiser",
    r"^(decoder|encoder)\.(conv_in|conv1|mid_block|middle|up_blocks|down_blocks)\.": "a VAE",
}


def looks_like(tensors: Mapping[str, StoredTensor]) -> str | None:
    """Return the model whose weights these are by their names; None where none is known."""
    from diffusers.loaders import single_file_utils

    known: Any = single_file_utils
    try:
        kind = known.infer_diffusers_model_type(tensors)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # of names by chance
        kind = "v1"
    if kind != "v1":  # what it says of any other, too
        where = known.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"]
        return f"a file of {where}: pass that as base, or another file"
    return next(
        (
            words
            for pattern, words in _TELLING.items()
            if any(re.search(pattern, n) for n in tensors)
        ),
        None,
    )


def convert(
    module: nn.Module, tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor | torch.Tensor]:
    """Bring original names to diffusers'. See Note [Converted where it lies].

    Raises:
        CheckpointError: If diffusers has no converter for the class.
    """
    from diffusers.loaders import single_file_model

    loader: Any = single_file_model
    kind = loader._get_single_file_loadable_mapping_class(type(module))
    if kind is None:
        return dict(tensors)
    config: Any = module.config
    mapping_fn = loader.SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"]
    files = {path: _Mapping(path) for path in {tensor.path for tensor in tensors.values()}}
    mapped = {name: files[tensor.path].view(tensor) for name, tensor in tensors.items()}
    converted = mapping_fn(config=dict(config), checkpoint=mapped)
    return {
        name: next(filter(None, (file.find(tensor) for file in files.values())), tensor)
        for name, tensor in converted.items()
    }


class _Mapping:
    """A file in memory, privately: what lies where in it is found again by its address."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._begin = torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()

    def view(self, tensor: StoredTensor) -> torch.Tensor:
        """Return a tensor of the file."""
        count = tensor.shape.numel()
        if not count:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        flat = torch.frombuffer(self._memory, dtype=tensor.dtype, count=count, offset=tensor.offset)
        return flat.view(tensor.shape)

    def find(self, tensor: torch.Tensor) -> StoredTensor | None:
        """Return where a tensor lies in the file; None for one that does not, or was changed."""
        offset = tensor.data_ptr() - self._begin
        is_inside = offset >= 0 and offset + tensor.nbytes <= len(self._memory)
        if not is_inside or not tensor.is_contiguous() or tensor._version or not tensor.numel():
            return None
        return StoredTensor(self._path, offset, tensor.shape, tensor.dtype)
