"""Files as people have them beside diffusers' folders, written small."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
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
        prefix + name: tensor if dtype is None else tensor.to(dtype)
        for name, tensor in read_wan(folder, component).items()
    }
    return write(weights, path)


def read_wan(folder: Path, component: str = "transformer") -> dict[str, torch.Tensor]:
    """Return the weights of a Wan denoiser by their original names."""
    return {wan_name(name): tensor for name, tensor in read_component(folder, component).items()}


def write(weights: Mapping[str, torch.Tensor], path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return path


_BLOCKS = re.compile(r"blocks|blk\.\d+\.(attn_[qkvo]|ffn_\w+)\.")


def write_gguf(
    weights: Mapping[str, torch.Tensor],
    path: Path,
    kind: str,
    *,
    seed: int = 0,
    architecture: str = "wan",
    title: str | None = None,
) -> Path:
    """Write weights as a GGUF file: those of linear layers in blocks with random bits.

    Args:
        weights: By name.
        path: The file.
        kind: Name of the blocks' type.
        seed: Of the bits; the scales of the blocks are small numbers.
        architecture: What llama.cpp calls the kind of model.
        title: The model's name, which the header has.
    """
    import gguf

    quant_type = gguf.GGMLQuantizationType[kind]
    values, size_bytes = gguf.GGML_QUANT_SIZES[quant_type]
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    if title is not None:
        writer.add_name(title)
    for name, tensor in weights.items():
        if tensor.dim() == 2 and tensor.shape[1] % values == 0 and _BLOCKS.search(name):
            rows, columns = tensor.shape
            raw = random_blocks(random, kind, rows * columns // values, size_bytes)
            writer.add_tensor(name, raw.reshape(rows, -1), raw_dtype=quant_type)
        else:
            writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Where a block of a type has its half-precision scales, in bytes.
_HALVES = {
    "Q8_0": [0],
    "Q5_1": [0, 2],
    "Q5_0": [0],
    "Q4_1": [0, 2],
    "Q4_0": [0],
    "Q6_K": [208],
    "Q5_K": [0, 2],
    "Q4_K": [0, 2],
    "Q3_K": [108],
    "Q2_K": [80, 82],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
}


GGUF_KINDS = [*_HALVES, "BF16"]


def random_blocks(
    random: np.random.Generator, kind: str, count: int, size_bytes: int
) -> np.ndarray:
    """Return `[blocks, bytes] uint8`: any bits, with scales that make small numbers."""
    if kind == "BF16":
        numbers = torch.from_numpy(random.normal(0, 0.1, count)).to(torch.bfloat16)
        return numbers.view(torch.uint8).numpy().reshape(count, size_bytes)
    raw = random.integers(0, 256, (count, size_bytes), dtype=np.uint8)
    for begin in _HALVES[kind]:
        scales = random.uniform(0.0001, 0.002, count).astype(np.float16)
        raw[:, begin : begin + 2] = scales.view(np.uint8).reshape(count, 2)
    return raw
