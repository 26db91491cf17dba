"""Safetensors files of random weights: tiles of random numbers, so that 28 GB take seconds."""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

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
