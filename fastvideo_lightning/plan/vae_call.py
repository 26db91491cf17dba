"""What one call of Wan's VAE allocates, decoding or encoding, whole or in tiles."""

import json
from functools import lru_cache
from typing import Any

import torch

from fastvideo_lightning.plan.memory_trace import Allocations, noting
from fastvideo_lightning.plan.repeats import Repeats


@lru_cache(maxsize=64)
def count_vae(
    arguments: str,
    video: tuple[int, int, int],
    *,
    encodes: bool,
    tiled: bool,
    dtype: torch.dtype,
) -> Allocations:
    """Count what a call of Wan's VAE allocates.

    Args:
        arguments: What it is made of, see `plan.shapes.arguments_of`.
        video: Frames, height and width in pixels.
        encodes: From pixels to latents, or else from latents to pixels.
        tiled: In pieces of a frame.
        dtype: In which it computes.
    """
    import diffusers as library

    diffusers: Any = library
    with torch.device("meta"):
        vae = diffusers.AutoencoderKLWan(**json.loads(arguments)).eval()
    for weight in vae.parameters():
        weight.data = weight.data.to(dtype)
    (vae.enable_tiling if tiled else vae.disable_tiling)()
    vae.blend_v = vae.blend_h = _blend  # line by line, in little memory and 15,000 operations
    frames, height, width = video
    space, in_time = vae.spatial_compression_ratio, vae.config.scale_factor_temporal
    shape = (1, 3, frames, height, width)
    if not encodes:
        latent = (frames - 1) // in_time + 1, height // space, width // space
        shape = (1, vae.config.z_dim, *latent)
    given = torch.empty(shape, dtype=dtype, device="meta")
    with noting([*vae.parameters(), *vae.buffers(), given]) as notes:
        vae.encoder.forward = Repeats(notes, vae.encoder.forward)
        vae.decoder.forward = Repeats(notes, vae.decoder.forward)
        (vae.encode if encodes else vae.decode)(given, return_dict=False)
    return notes.allocations


def _blend(above: torch.Tensor, tile: torch.Tensor, extent: int) -> torch.Tensor:
    return tile
