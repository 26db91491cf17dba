"""Files as people have them beside diffusers' folders, written small."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from support.checkpoints import weights_of

_WAN = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".to_out.0.", ".o."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".add_k_proj.", ".k_img."),
    (".add_v_proj.", ".v_img."),
    (".norm_added_k.", ".norm_k_img."),
    (".ffn.net.0.proj.", ".ffn.0."),
    (".ffn.net.2.", ".ffn.2."),
    (".norm2.", ".norm__."),
    (".norm3.", ".norm2."),
    (".norm__.", ".norm3."),
    (".scale_shift_table", ".modulation"),
)


def wan_name(name: str) -> str:
    """Return the name that Wan's own code has for a weight of diffusers' denoiser."""
    name = re.sub(r"^scale_shift_table$", "head.modulation", name)
    name = re.sub(r"^proj_out\.", "head.head.", name)
    for own, original in _WAN:
        name = name.replace(own, original)
    return name


def read_component(folder: Path, component: str = "transformer") -> dict[str, torch.Tensor]:
    """Return the weights of a component of a checkpoint."""
    return load_file(weights_of(folder, component))


def write_wan(
    folder: Path,
    path: Path,
    *,
    component: str = "transformer",
    prefix: str = "",
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a Wan denoiser with its original names."""
    weights = {
        prefix + wan_name(name): tensor if dtype is None else tensor.to(dtype)
        for name, tensor in read_component(folder, component).items()
    }
    return write(weights, path)


def write(weights: Mapping[str, torch.Tensor], path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return path
