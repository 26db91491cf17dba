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
from bisect import bisect_right
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
    first_line,
    is_diffusers_model,
)
from fastvideo_lightning.checkpoint.encodings import Scaled, take_scales
from fastvideo_lightning.checkpoint.folder import CheckpointError
from fastvideo_lightning.checkpoint.gguf import Blocks, as_parameter, read_gguf
from fastvideo_lightning.checkpoint.parts import check_weight_file, is_gguf
from fastvideo_lightning.checkpoint.weights import StoredTensor, StoredWeight, read_header


def read_file(path: Path) -> dict[str, StoredTensor]:
    """Return what a file has, by name, each weight with its scales; only its header is read.

    Raises:
        CheckpointError: If it is damaged, or of a kind that is not read here.
    """
    check_weight_file(path)
    return read_gguf(path) if is_gguf(path) else take_scales(read_header(path))


def build_from_file(
    model_class: type[nn.Module],
    folder: Path,
    path: Path,
    *,
    dtypes: RunDtypes,
    device_type: str,
    is_quantized: bool = False,
    keeps_blocks: bool = True,
) -> Component:
    """Build a model of its configuration, and find its weights in one file.

    Args:
        model_class: A class of diffusers or transformers.
        folder: Has its configuration.
        path: The file.
        dtypes: The dtypes it will run in.
        device_type: Where it will likely run.
        is_quantized: Whether it shall be, as `fp8` and `int8` have it.
        keeps_blocks: Have linear layers compute with GGUF's blocks as they lie in the file.

    Raises:
        CheckpointError: If it is damaged, or holds another model; says which it looks like.
        ValueError: If it shall be quantized.
    """
    tensors = read_file(path)
    if is_quantized:
        raise ValueError(
            f"dtype='fp8' and 'int8' quantize weights out of a folder, and {path} is a file. Leave "
            "dtype out, or write a folder first (`fastvideo-lightning pack FILE OUT --base ...`)."
        )
    with LOADING, _naming_model(path, tensors):
        component = build_without_weights(
            model_class,
            folder,
            tensors,
            dtypes,
            dtypes.on(device_type),
            convert,
            keeps_blocks=keeps_blocks,
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
    tensors = read_file(path)
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
    module: nn.Module, tensors: Mapping[str, StoredTensor], dtype: torch.dtype
) -> dict[str, StoredTensor | torch.Tensor]:
    """Bring original names to the library's. See Note [Converted where it lies].

    Args:
        module: The model.
        tensors: What the file has.
        dtype: What the model runs in.
    """
    from diffusers.loaders import single_file_model

    if not is_diffusers_model(type(module)):
        return _read_language_model(module, tensors, dtype)
    loader: Any = single_file_model
    kind = loader._get_single_file_loadable_mapping_class(type(module))
    if kind is None:
        return dict(tensors)
    mapping_fn = loader.SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"]
    config: Any = module.config
    files = {path: _Mapping(path, tensors) for path in {each.path for each in tensors.values()}}

    def run(computed: Mapping[str, torch.Tensor]) -> dict[str, StoredTensor | torch.Tensor]:
        mapped = {
            name: computed[name] if name in computed else files[tensor.path].view(tensor)
            for name, tensor in tensors.items()
        }
        return {
            name: next(filter(None, (file.find(tensor) for file in files.values())), tensor)
            for name, tensor in mapping_fn(config=dict(config), checkpoint=mapped).items()
        }

    converted = run({})
    # What is computed of scaled weights has to be computed of the products.
    kept = [each for each in converted.values() if isinstance(each, StoredTensor)]
    kept_bytes = {(each.path, byte) for each in kept for byte in (each.offset, each.end)}
    scaled = {
        name: StoredWeight(tensor, dtype, dtype).as_host_tensor(dtype)
        for name, tensor in tensors.items()
        if isinstance(tensor.encoding, Scaled)
        and not {(tensor.path, tensor.offset), (tensor.path, tensor.end)} <= kept_bytes
    }
    return run(scaled) if scaled else converted


def _read_language_model(
    module: nn.Module, tensors: Mapping[str, StoredTensor], dtype: torch.dtype
) -> dict[str, StoredTensor | torch.Tensor]:
    """Return a transformers model's weights, of llama.cpp's names as transformers reads them."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = next(iter(tensors.values())).path if tensors else Path()
    if "token_embd.weight" not in tensors or not is_gguf(path):
        return dict(tensors)
    read: Any = load_gguf_checkpoint
    try:
        found = read(str(path), return_tensors=True, model_to_load=module, torch_dtype=dtype)
    except Exception as error:  # whatever a damaged or an unknown model makes the reader trip over
        raise CheckpointError(
            f"{path} holds a language model that transformers does not read as "
            f"{type(module).__name__} ({first_line(error)}). Pass its folder."
        ) from error
    weights: dict[str, StoredTensor | torch.Tensor] = found["tensors"]
    return weights


class _Mapping:
    """A file in memory, privately: what lies where in it is found again by its address."""

    def __init__(self, path: Path, tensors: Mapping[str, StoredTensor]) -> None:
        self._path = path
        mine = (tensor for tensor in tensors.values() if tensor.path == path and tensor.size_bytes)
        self._tensors = sorted(mine, key=lambda tensor: tensor.offset)
        self._offsets = [tensor.offset for tensor in self._tensors]
        with path.open("rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._begin = torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()

    def view(self, tensor: StoredTensor) -> torch.Tensor:
        """Return a tensor of the file."""
        count = tensor.shape.numel()
        if not count:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        flat = torch.frombuffer(self._memory, dtype=tensor.dtype, count=count, offset=tensor.offset)
        stored: torch.Tensor = flat.view(tensor.shape)
        if isinstance(tensor.encoding, Blocks):
            stored = as_parameter(stored, tensor.encoding)
        return stored

    def find(self, tensor: torch.Tensor) -> StoredTensor | None:
        """Return where a tensor lies in the file; None for one that does not, or was changed."""
        offset = tensor.data_ptr() - self._begin
        is_inside = offset >= 0 and offset + tensor.nbytes <= len(self._memory)
        if not is_inside or not tensor.is_contiguous() or tensor._version or not tensor.numel():
            return None
        whole = self._tensors[bisect_right(self._offsets, offset) - 1]
        found = StoredTensor(self._path, offset, torch.Size(tensor.shape), tensor.dtype)
        if whole.encoding is None:
            return found
        if found.shape == whole.shape:
            return whole
        if found.shape[1:] != whole.shape[1:]:
            return None
        start = (offset - whole.offset) // (whole.size_bytes // whole.shape[0])
        return whole.rows(start, start + found.shape[0])
