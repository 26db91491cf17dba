"""Weights that lie in a file as fewer bits than they compute with, and what they are.

Note [Scaled fp8]
ComfyUI's files hold a weight as fp8 and, beside it, one scale for all of it or one for each row:
`scale_weight` or `weight_scale`. No library that is used here reads them. The weight is what is
stored times its scale, both brought to the run's dtype first, as ComfyUI computes it. The scales
of activations (`scale_input`, `input_scale`) are for products in fp8, which are not computed here.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastvideo_lightning.checkpoint.folder import CheckpointError
from fastvideo_lightning.checkpoint.weights import StoredTensor, StoredWeight

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALE = re.compile(r"(?P<layer>.*\.)?(scale_weight|weight_scale)$")
_ASIDE = re.compile(r"(^|\.)(scale_input|input_scale|scaled_fp8|comfy_quant)$|^spiece_model$")

_REFUSED = {
    r"\.(weight_scale_2|weight\._double_scale)$": "nvfp4 weights",
    r"\.(smooth_factor|smooth_factor_orig|proj_down|proj_up|wscales|wtscale)$": "svdquant weights",
    r"\.(qzeros|g_idx)$": "GPTQ or AWQ weights",
    r"\.(absmax|quant_state\.bitsandbytes__\w+|SCB)$": "bitsandbytes weights",
    r"^adaln_t_table$": "a pruned MiniMax-H3",
}


@dataclass(frozen=True)
class Scaled:
    """A weight times a scale. See Note [Scaled fp8].

    Attributes:
        scale: One number, or one for each row.
        is_by_row: Whether there is one for each row.
    """

    scale: StoredTensor
    is_by_row: bool

    def shape(self, stored: torch.Size) -> torch.Size:
        """Return the shape of the weight, which is that of what is stored."""
        return stored

    def rows(self, start: int, stop: int) -> "Scaled":
        """Return the encoding of some rows."""
        return replace(self, scale=self.scale.rows(start, stop)) if self.is_by_row else self

    def decode(self, stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the products in a dtype."""
        scale = StoredWeight(self.scale, dtype, dtype).as_host_tensor(dtype)
        shape = [-1, *[1] * (stored.dim() - 1)] if self.is_by_row else []
        return stored.to(dtype) * scale.reshape(shape)


def take_scales(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return weights without their scales, which are with them from then on.

    Raises:
        CheckpointError: If a scale is of no weight, or weights are of a kind that is not read here.
    """
    check_kind(tensors)
    scales = {name: match for name in tensors if (match := _SCALE.match(name))}
    weights = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in scales and not _ASIDE.search(name)
    }
    for name, match in scales.items():
        weight = f"{match['layer'] or ''}weight"
        if weight not in weights:
            raise CheckpointError(
                f"{tensors[name].path} has the scale {name!r} and no {weight!r}. Download it again."
            )
        weights[weight] = _scaled(weight, weights[weight], name, tensors[name])
    return weights


def _scaled(name: str, weight: StoredTensor, scale_name: str, scale: StoredTensor) -> StoredTensor:
    count = scale.shape.numel()
    is_by_row = count != 1
    rows = weight.shape[0] if weight.shape else 1
    if weight.dtype not in _FP8 or not scale.dtype.is_floating_point or count not in (1, rows):
        raise CheckpointError(
            f"{weight.path} holds {name!r} as {_short(weight.dtype)} {list(weight.shape)} with "
            f"scales {scale_name!r} as {_short(scale.dtype)} {list(scale.shape)}; read here is fp8 "
            "with one scale, or one for each row. Pass the model in bf16, fp8 or GGUF."
        )
    shape = torch.Size([count]) if is_by_row else torch.Size([])
    return replace(weight, encoding=Scaled(replace(scale, shape=shape), is_by_row))


def check_kind(tensors: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError, naming it, for a kind of weights that no library reads out of a file.

    A kind is told by the names and, in ComfyUI's newer files, by a note beside each weight.
    """
    for pattern, kind in _REFUSED.items():
        name = next((name for name in tensors if re.search(pattern, name)), None)
        if name is not None:
            raise _refusal(tensors[name].path, kind, name)
    for name, tensor in tensors.items():
        if name.endswith(".comfy_quant"):
            kind = _read_note(tensor)
            if not kind.startswith("float8"):
                raise _refusal(tensor.path, f"{kind} weights", name)
        elif tensor.dtype is torch.int8 and name.endswith(".weight"):
            raise _refusal(tensor.path, "int8 weights (such as int8-convrot)", name)


def _read_note(tensor: StoredTensor) -> str:
    raw = StoredWeight(tensor, tensor.dtype, tensor.dtype).as_host_tensor(tensor.dtype)
    try:
        note: Any = json.loads(bytes(raw.view(torch.uint8).flatten().tolist()))
        return str(note["format"])
    except (ValueError, KeyError, TypeError):
        return "unknown"


def _refusal(path: Path, kind: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds {kind}, as {name!r} tells, which no library loads here. Pass the model in "
        "bf16, fp8 (also with scales) or GGUF."
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
