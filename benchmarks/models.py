"""Wan transformers with random weights, in the shapes of the published models.

The weights are tiles of random numbers in a checkpoint file, so that 28 GB are there in seconds,
all instances of a model agree bit for bit, and loading is what it is for a real model.

Safetensors files of random weights: tiles of random numbers, so that 28 GB take seconds.
"""

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import WanTransformer3DModel

from fastvideo_lightning.checkpoint.weights import StoredWeight, read_header

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_TILE_NUMBERS = 1 << 24
_WRITERS = 8  # one thread alone does not keep up with the page cache


class Shape(NamedTuple):
    """One tensor of a file."""

    fqn: str
    shape: torch.Size
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return self.shape.numel() * self.dtype.itemsize


@cache
def _tile(dtype: torch.dtype, center: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_TILE_NUMBERS, generator=generator).mul_(0.02).add_(center).to(dtype)


def _tile_of(tensor: Shape) -> torch.Tensor:
    is_norm = "norm" in tensor.fqn and tensor.fqn.endswith("weight")
    return _tile(tensor.dtype, 1.0 if is_norm else 0.0)


def write_random_weights(path: Path, shapes: Iterable[Shape], *, seed: int = 0) -> None:
    """Write a file of such tensors, unless it is there.

    Numbers have deviation 0.02, which keeps the activations of a wide model near 1; the weights of
    norms lie around 1.

    Args:
        path: of the file.
        shapes: its tensors; nothing of it is held in memory.
        seed: files of different seeds hold different numbers.
    """
    if path.exists():
        return
    tensors, header, end = list(shapes), {}, 0
    for tensor in tensors:
        header[tensor.fqn] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.size_bytes],
        }
        end += tensor.size_bytes
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 4096)
    path.parent.mkdir(parents=True, exist_ok=True)
    for tensor in tensors:
        _tile_of(tensor)  # made once, before the threads ask for it
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file, ThreadPoolExecutor(_WRITERS) as pool:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        file.truncate(8 + len(text) + end)

        def write(number: int) -> None:
            tensor = tensors[number]
            start = 8 + len(text) + int(header[tensor.fqn]["data_offsets"][0])
            _write_tiles(file.fileno(), start, tensor, (number + 1000 * seed) * 7919)

        list(pool.map(write, range(len(tensors))))
    unfinished.rename(path)


def _write_tiles(descriptor: int, position: int, tensor: Shape, phase: int) -> None:
    tile = _tile_of(tensor)
    missing, start = tensor.shape.numel(), phase % tile.numel()
    while missing:
        part = tile[start : start + missing].view(torch.uint8).numpy()
        done = os.pwrite(descriptor, part, position)
        assert done % tensor.dtype.itemsize == 0
        position += done
        missing -= done // tensor.dtype.itemsize
        start = (start + done // tensor.dtype.itemsize) % tile.numel()


CONFIGS: dict[str, dict[str, int]] = {
    "wan-14b": {},
    "wan-1.3b": {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
    # 1.3B's number of blocks, each so small that launching sets the pace in every mode: what a mode
    # takes longer than the resident one is what it costs the host.
    "wan-narrow": {"num_attention_heads": 2, "num_layers": 30, "ffn_dim": 256, "text_dim": 256},
    "wan-tiny": {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "num_layers": 4,
        "ffn_dim": 64,
        "text_dim": 32,
    },
}
ON_CPU = ("wan-tiny", "wan-narrow")
"""Those whose weights and steps are small enough for a machine without a GPU."""


class RandomWan(WanTransformer3DModel):
    """A Wan transformer on meta that says where its weights lie."""

    weight_sources: dict[str, StoredWeight]


def make_transformer(name: str, folder: Path) -> RandomWan:
    """The transformer of that name on meta, its weights in a file of the folder.

    Args:
        name: a key of ``CONFIGS``.
        folder: where the file is; it is written at the first call.
    """
    with torch.device("meta"):
        model = RandomWan(**CONFIGS[name]).eval().requires_grad_(False)
    model.rope = type(model.rope)(
        model.config.attention_head_dim, model.config.patch_size, model.config.rope_max_seq_len
    )
    path = folder / f"{name}.safetensors"
    write_random_weights(path, transformer_shapes(model))
    model.weight_sources = {
        fqn: StoredWeight(tensor, tensor.dtype, tensor.dtype)
        for fqn, tensor in read_header(path).items()
    }
    return model


def transformer_shapes(model: WanTransformer3DModel) -> Iterator[Shape]:
    """The weights in their run dtypes: bf16, and in fp32 what Wan keeps so."""
    in_fp32 = set(model._keep_in_fp32_modules)
    for fqn, parameter in sorted(model.named_parameters()):
        is_fp32 = bool(in_fp32.intersection(fqn.split(".")))
        yield Shape(fqn, parameter.shape, torch.float32 if is_fp32 else torch.bfloat16)


def streamed_bytes(model: RandomWan) -> int:
    """Bytes of the blocks, which streaming moves in every step."""
    return sum(
        s.shape.numel() * s.stored_dtype.itemsize
        for fqn, s in model.weight_sources.items()
        if fqn.startswith("blocks.")
    )


def weight_bytes(model: RandomWan) -> int:
    """Bytes of all weights in their run dtypes."""
    return sum(s.shape.numel() * s.stored_dtype.itemsize for s in model.weight_sources.values())


def make_inputs(
    model: RandomWan, frames: int, size: tuple[int, int], *, device: torch.device
) -> dict[str, torch.Tensor]:
    """Arguments of one denoising step, batch 1: ``frames`` frames of height and width ``size``."""
    height, width = size
    generator = torch.Generator().manual_seed(frames)
    latent = (1, model.config.in_channels, (frames - 1) // 4 + 1, height // 8, width // 8)
    text = (1, 512, model.config.text_dim)
    return {
        "hidden_states": torch.randn(latent, generator=generator).to(device, torch.bfloat16),
        "timestep": torch.tensor([987.0], device=device),
        "encoder_hidden_states": torch.randn(text, generator=generator).to(device, torch.bfloat16),
    }
