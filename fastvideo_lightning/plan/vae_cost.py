"""What decoding and encoding ask of a VAE, and what a call allocates, whole or in tiles."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.plan.cost import CallCost, Request
from fastvideo_lightning.plan.memory_trace import Allocations, Repeats, noting
from fastvideo_lightning.plan.sizes import (
    ComponentSize,
    arguments_of,
    config_of,
    dtype_of,
    frames_per_latent,
)


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


# Each is a row of the table "Constants" in `docs/planning.md`.
CONVOLUTION_SHARE = {4: 0.21, 2: 0.28}  # of the rate of matrix products, by bytes of a number
FLOP = 950  # per pixel and square of the first width
TRAFFIC = 329  # numbers read or written per pixel and channel of the first width
FIRST_FRAME = 0.22  # of a frame's time, which the first takes more
KERNELS = 383  # launches per latent frame and tile
EXPOSED_KERNELS = 230  # of these in a tile, which is too small to hide them
DECODER_NUMBERS = 51  # alive per pixel of a frame and channel of the first width
RESIDUAL_DECODER_NUMBERS = 85  # the same where blocks have shortcuts
ENCODER_NUMBERS = 37  # the same when it encodes
SPLIT = 1.045  # of what is counted, held by the allocator
FRAGMENTATION = 1.56  # of what is allocated, held where nothing is counted
CONVOLUTION_BYTES = 128 << 20  # of the convolutions' library, beside each call's own
TILE_PIXELS, TILE_STRIDE = 256, 192  # of diffusers' tiles


@dataclass(frozen=True)
class Autoencoder:
    """A VAE in plain numbers.

    Any other VAE is taken for one that decodes a group of frames at a time, like Wan's, 96 channels
    wide.

    Attributes:
        arguments: What it is made of, as JSON; None for a class whose calls are not known.
        dtype: In which it computes.
        decoder_channels: Numbers that are alive at once for each pixel of a frame.
        encoder_channels: The same when it encodes.
        flop_per_pixel: In matrix products that would take as long.
        traffic_per_pixel: Bytes that are read and written.
        patch: Pixels of a patch's side.
        frames_per_latent: Frames that one latent frame stands for.
    """

    arguments: str | None
    dtype: torch.dtype
    decoder_channels: float
    encoder_channels: float
    flop_per_pixel: float
    traffic_per_pixel: float
    patch: int
    frames_per_latent: int

    @classmethod
    def of(cls, module: VideoModule, size: ComponentSize) -> "Autoencoder":
        """Read it off a module, which may be on meta and is not kept."""
        config = config_of(module, size)
        base = getattr(config, "base_dim", None) or 96
        decoder_base = getattr(config, "decoder_base_dim", None) or base
        patch = int(getattr(config, "patch_size", None) or 1)
        is_residual = getattr(config, "is_residual", False)
        numbers = RESIDUAL_DECODER_NUMBERS if is_residual else DECODER_NUMBERS
        dtype = dtype_of(module, size.fqn) or torch.float32
        share = CONVOLUTION_SHARE.get(dtype.itemsize, CONVOLUTION_SHARE[2])
        return cls(
            arguments=_arguments_of_wan(module.get_submodule(size.fqn)),
            dtype=dtype,
            decoder_channels=numbers * decoder_base / patch**2,
            encoder_channels=ENCODER_NUMBERS * base / patch**2,
            flop_per_pixel=FLOP * decoder_base**2 / patch**2 / share,
            traffic_per_pixel=TRAFFIC * decoder_base * dtype.itemsize / patch**2,
            patch=patch,
            frames_per_latent=frames_per_latent(module),
        )

    def decode(self, request: Request, *, tiled: bool) -> CallCost:
        """From latents to frames; with tiles, in pieces of 256 by 256 pixels that overlap."""
        video = 3 * self.dtype.itemsize * request.num_frames * request.pixels
        copies = (3.6 if self.patch > 1 else 1.4) if tiled else 1.0
        channels = self.decoder_channels * (1 if request.num_frames > 1 else 0.37)
        estimate = channels * self.dtype.itemsize * _pixels(request, tiled=tiled) + copies * video
        return self._work(request, estimate, encodes=False, tiled=tiled)

    def encode(self, request: Request, *, tiled: bool) -> CallCost:
        """From an image, in a video's length, to latents, in half of decoding's time."""
        video = 3 * self.dtype.itemsize * request.num_frames * request.pixels
        pixels = _pixels(request, tiled=tiled)
        estimate = self.encoder_channels * self.dtype.itemsize * pixels + video
        # Beside it the frames, put together from the image and nothing.
        return self._work(request, estimate, encodes=True, tiled=tiled, beside=2 * video)

    def _work(
        self, request: Request, estimate: float, *, encodes: bool, tiled: bool, beside: int = 0
    ) -> CallCost:
        allocated, held = estimate, FRAGMENTATION * estimate
        if self.arguments is not None:
            video = request.num_frames, request.height, request.width
            counted = count_vae(
                self.arguments, video, encodes=encodes, tiled=tiled, dtype=self.dtype
            )
            allocated, held = counted.allocated_bytes, SPLIT * counted.reserved_bytes
        rows, columns = [request.height], [request.width]
        if tiled:
            rows, columns = _tile_sides(request.height), _tile_sides(request.width)
        latents = (request.num_frames - 1) // self.frames_per_latent + 1
        passes = len(rows) * len(columns) * latents
        computed = (request.num_frames + FIRST_FRAME) * sum(rows) * sum(columns)
        computed /= 2 if encodes else 1
        return CallCost(
            activation_bytes=round(allocated),
            held_bytes=round(held) + beside + CONVOLUTION_BYTES,
            matmul_flop=self.flop_per_pixel * computed,
            traffic_bytes=self.traffic_per_pixel * computed,
            num_kernels=passes * KERNELS,
            num_exposed=passes * EXPOSED_KERNELS if tiled else 0,
        )


def _arguments_of_wan(component: nn.Module) -> str | None:
    import diffusers as library

    diffusers: Any = library
    kind = diffusers.AutoencoderKLWan
    return json.dumps(arguments_of(component, kind)) if isinstance(component, kind) else None


def _pixels(request: Request, *, tiled: bool) -> int:
    """Of what is computed at once."""
    return min(TILE_PIXELS**2, request.pixels) if tiled else request.pixels


def _tile_sides(side: int) -> list[int]:
    """Pixels of the tiles along a side: each begins where its neighbour still goes on."""
    return [min(TILE_PIXELS, side - start) for start in range(0, side, TILE_STRIDE)]
