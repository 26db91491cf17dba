"""Weights in GGUF files: blocks of a few bits with their scales, as llama.cpp writes them.

The format is read by the `gguf` package, what it holds is computed by diffusers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fastvideo_lightning.checkpoint.building import built_on_meta
from fastvideo_lightning.checkpoint.folder import CheckpointError
from fastvideo_lightning.checkpoint.parts import check_weight_file
from fastvideo_lightning.checkpoint.weights import StoredTensor

_PLAIN = {"F32": torch.float32, "F16": torch.float16}
_SHAPE = "comfy.gguf.orig_shape."


@dataclass(frozen=True)
class Blocks:
    """Blocks of one of llama.cpp's types, row by row.

    Attributes:
        type_name: Such as `Q4_K`.
    """

    type_name: str

    @property
    def quant_type(self) -> Any:
        """The type, as the `gguf` package has it."""
        import gguf

        return gguf.GGMLQuantizationType[self.type_name]

    def shape(self, stored: torch.Size) -> torch.Size:
        """Return the shape of the weight."""
        values, size_bytes = _block_size(self.type_name)
        return torch.Size([*stored[:-1], stored[-1] // size_bytes * values])

    def rows(self, start: int, stop: int) -> "Blocks":
        """Return the encoding of some rows."""
        return self

    def decode(self, stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the numbers, as diffusers' layers compute them before each product."""
        return dequantize(as_parameter(stored, self)).to(dtype)


@cache
def _block_size(type_name: str) -> tuple[int, int]:
    import gguf

    values, size_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    return values, size_bytes


def read_gguf(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a GGUF file by name, without reading any.

    Raises:
        CheckpointError: If it is damaged, or has a type that diffusers does not compute.
        ImportError: If the `gguf` package is not installed.
    """
    check_weight_file(path)
    import gguf
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    try:
        reader = gguf.GGUFReader(path)
        shapes = {
            name.removeprefix(_SHAPE): torch.Size(map(int, field.contents()))
            for name, field in reader.fields.items()
            if name.startswith(_SHAPE)
        }
    except Exception as error:  # whatever a damaged file makes the reader trip over
        raise CheckpointError(
            f"{path} is no GGUF file, or was cut off ({path.stat().st_size} bytes): "
            f"{type(error).__name__}. Download it again."
        ) from error
    found = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type
        shape = torch.Size(tensor.data.shape)
        offset = int(tensor.data_offset)
        if kind.name in _PLAIN:
            shape = shapes.get(tensor.name, shape)
            found[tensor.name] = StoredTensor(path, offset, shape, _PLAIN[kind.name])
        elif kind in SUPPORTED_GGUF_QUANT_TYPES:
            blocks = Blocks(kind.name)
            found[tensor.name] = StoredTensor(path, offset, shape, torch.uint8, blocks)
        else:
            known = ", ".join(sorted({each.name for each in SUPPORTED_GGUF_QUANT_TYPES}))
            raise CheckpointError(
                f"{path} holds {tensor.name!r} as {kind.name}, which diffusers does not compute. "
                f"Pass a file of another type: {known}."
            )
    return found


def as_parameter(stored: torch.Tensor, blocks: Blocks) -> Any:
    """Return stored blocks as diffusers' layers have them."""
    from diffusers.quantizers.gguf.utils import GGUFParameter

    parameter: Any = GGUFParameter
    return parameter(stored, quant_type=blocks.quant_type)


def is_of_blocks(tensor: torch.Tensor) -> bool:
    """Whether a tensor of the host is diffusers' parameter of blocks."""
    return hasattr(tensor, "quant_type")


def dequantize(tensor: torch.Tensor) -> torch.Tensor:
    """Return the numbers that blocks hold."""
    from diffusers.quantizers.gguf import utils

    library: Any = utils
    numbers: torch.Tensor = library.dequantize_gguf_tensor(tensor)
    return numbers


def put_layers(
    module: nn.Module,
    stored: Mapping[str, StoredTensor | torch.Tensor],
    rule: Callable[[str, torch.dtype], torch.dtype],
    dtype: torch.dtype,
) -> bool:
    """Have diffusers' layers for blocks in the place of linear ones whose weights are blocks.

    Args:
        module: The model, on meta.
        stored: Its weights.
        rule: The dtype of a weight; what a model keeps in fp32 has a plain layer.
        dtype: What the layers compute in.

    Returns:
        Whether there is any.
    """
    found = False
    for fqn, tensor in stored.items():
        if isinstance(tensor, StoredTensor):
            blocks = tensor.encoding
        else:
            quant_type: Any = getattr(tensor, "quant_type", None)
            blocks = None if quant_type is None else Blocks(quant_type.name)
        is_kept = rule(fqn, torch.bfloat16) is torch.float32
        if isinstance(blocks, Blocks) and not is_kept and _put_layer(module, fqn, dtype):
            path, _, name = fqn.rpartition(".")
            meta = torch.empty(tensor.shape, dtype=torch.uint8, device="meta")
            module.get_submodule(path)._parameters[name] = as_parameter(meta, blocks)
            found = True
    if found:
        _mark(module, dtype)
    return found


def _put_layer(module: nn.Module, fqn: str, dtype: torch.dtype) -> bool:
    """Put diffusers' layer in the place of a linear one; say whether it is one."""
    from diffusers.quantizers.gguf.utils import GGUFLinear

    path, _, name = fqn.rpartition(".")
    own = module.get_submodule(path)
    if not isinstance(own, nn.Linear) or name != "weight":
        return False
    kind: Any = GGUFLinear
    largest = own.weight.numel() + 1
    with built_on_meta(dtype, max_parameters=2, max_elements=largest):
        layer = kind(own.in_features, own.out_features, own.bias is not None, compute_dtype=dtype)
    layer.source_cls = type(own)
    layer.requires_grad_(False)
    parent, _, child = path.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)
    return True


def _mark(module: nn.Module, dtype: torch.dtype) -> None:
    """Have a model say that it is quantized, as diffusers' loader does."""
    import diffusers
    from diffusers import quantizers

    library: Any = diffusers
    config = library.GGUFQuantizationConfig(compute_dtype=dtype)
    marked: Any = module
    marked.hf_quantizer = cast(Any, quantizers).DiffusersAutoQuantizer.from_config(config)
    marked.is_quantized = True
    marked.quantization_method = config.quant_method
