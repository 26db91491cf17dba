"""What a video asks of each component: floating-point operations, memory traffic, activations.

Note [Coefficients]
Byte counts per token and per pixel were counted from the allocations of diffusers' models, run at
several sizes; they depend on a model's code, not on a card. `benchmarks/plan.py` holds them against
a GPU. Shapes: a latent is [channels, latent frames, height / 8, width / 8]; tokens are its patches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.plan.activations import FRAGMENTATION, denoiser_activations
from fastvideo_lightning.plan.measure import ComponentSize
from fastvideo_lightning.plan.shapes import (
    config_of,
    count_tokens,
    count_weights,
    dtype_of,
    latent_frames,
    latent_shape,
    patch_of,
    widths,
)
from fastvideo_lightning.plan.vae_call import count_vae

TEXT_TOKENS = 512
# Elements per token and width beyond matrix products and attention, in bytes of memory traffic.
TRAFFIC_BYTES = 425
KERNELS_PER_BLOCK = 105
# An encoder of transformers asks more Python of the host for each of its kernels.
ENCODER_KERNELS_PER_BLOCK = 130
# A VAE's convolutions reach this share of the rate of matrix products, by bytes of a number; beside
# them so many numbers are read and written for each pixel and channel of the first width; the first
# frame, of a latent frame of its own, takes so much longer than one of four. Fitted to decoding on
# an H100 and an H200, whose memory rates differ, see `benchmarks/results`.
CONVOLUTION_SHARE = {4: 0.21, 2: 0.28}
DECODER_TRAFFIC = 329
FIRST_FRAME = 0.22
# For each latent frame (of each tile); and of them those that a tile is too small to hide.
DECODER_KERNELS, EXPOSED_KERNELS = 383, 230
TILE_PIXELS, TILE_STRIDE = 256, 192  # of diffusers' tiles
# What the allocator holds for a VAE beyond the count depends on what was free before: of decoding
# on those two cards at most so much more.
VAE_SPLIT = 1.045
VAE_FRAGMENTATION = 1.56  # where it is not counted
CONVOLUTION_BYTES = 128 << 20  # of the library that VAEs compute with, beside each call's own
_UNKNOWN = {"height": 480, "width": 832, "num_frames": 81, "num_inference_steps": 50}


@dataclass(frozen=True)
class Work:
    """What one call of a component asks for.

    Attributes:
        activation_bytes: Most that is allocated at once beside the weights.
        held_bytes: What the device allocator holds for that.
        matmul_flop: In matrix products and convolutions.
        attention_flop: In attention.
        traffic_bytes: Of device memory, in everything else.
        num_kernels: Kernels to launch.
        num_exposed: Of kernels too small to hide the launch of the next.
        cached_bytes: What each of diffusers' caches would keep on the device from call to call.
        kept_bytes: What does stay there, by the flags.
        compiling_bytes: What the allocator still holds of a compilation at the first call.
    """

    activation_bytes: int = 0
    held_bytes: int = 0
    matmul_flop: float = 0
    attention_flop: float = 0
    traffic_bytes: float = 0
    num_kernels: int = 0
    num_exposed: int = 0
    cached_bytes: Mapping[str, int] = field(default_factory=dict)
    kept_bytes: int = 0
    compiling_bytes: int = 0


@dataclass(frozen=True)
class Request:
    """A video's size as the components see it.

    Attributes:
        height: Pixels.
        width: Pixels.
        num_frames: Frames.
        num_steps: Denoising steps.
        num_calls: Calls of a denoiser in each step.
        batch: Latents in one call.
        has_image: Whether an image is encoded first.
    """

    height: int
    width: int
    num_frames: int
    num_steps: int
    num_calls: int
    batch: int
    has_image: bool

    @classmethod
    def of(cls, module: VideoModule, params: SamplingParams) -> "Request":
        """Read it off a module and sampling parameters; what neither says is 480x832, 81 frames."""
        filled = {**_UNKNOWN, **module.fill_sampling(params).given()}
        guided = filled.get("guidance_scale", 5.0) > 1
        # Wan calls its denoiser once for each prompt; other pipelines stack both in one call.
        in_turn = guided and _is_wan(module)
        return cls(
            height=filled["height"],
            width=filled["width"],
            num_frames=filled["num_frames"],
            num_steps=filled["num_inference_steps"],
            num_calls=2 if in_turn else 1,
            batch=2 if guided and not in_turn else 1,
            has_image=filled.get("image_path") is not None or bool(module.image_encoders),
        )

    @property
    def pixels(self) -> int:
        """Of one frame."""
        return self.height * self.width

    @property
    def num_prompts(self) -> int:
        """What a step is computed for: with guidance the prompt and the negative one."""
        return self.num_calls * self.batch


def denoiser_work(module: VideoModule, size: ComponentSize, request: Request) -> Work:
    """One call of a denoiser, see Note [Coefficients]."""
    config = config_of(module, size)
    width, _ = widths(config, size)
    latent = latent_shape(module, request.num_frames, request.height, request.width)
    tokens = count_tokens(latent, config)
    num_blocks = max(len(size.blocks), 1)
    weights, text_weights = count_weights(module, size)
    widened = widest = 0
    if size.is_quantized:
        # Each weight is read, and written and read once more as bf16; a layer's at a time.
        widened = 5 * (weights + text_weights)
        widest = 2 * max(w.numel() for w in module.get_submodule(size.fqn).parameters())
    activations = denoiser_activations(module, size, latent, request.batch)
    output_bytes = 2 * tokens * prod(patch_of(config)) * 16
    return Work(
        activation_bytes=activations.allocated_bytes + widest,
        held_bytes=activations.reserved_bytes + widest,
        matmul_flop=2 * (weights * tokens + text_weights * TEXT_TOKENS) * request.batch,
        attention_flop=num_blocks * 4 * tokens * (tokens + TEXT_TOKENS) * width * request.batch,
        traffic_bytes=num_blocks * TRAFFIC_BYTES * tokens * width * request.batch + widened,
        num_kernels=num_blocks * KERNELS_PER_BLOCK,
        cached_bytes={
            # Counted in diffusers' hooks: three of the tokens between blocks for each prompt, one
            # for each block, two of the output for each prompt.
            "first_block": 3 * 2 * tokens * width * request.num_prompts,
            "pyramid": num_blocks * 2 * tokens * width * request.batch,
            "taylorseer": output_bytes * request.num_prompts,
        },
    )


def text_encoder_work(module: VideoModule, size: ComponentSize) -> Work:
    """One prompt through a text encoder."""
    config = config_of(module, size)
    width = int(getattr(config, "d_model", None) or getattr(config, "hidden_size", 0) or 4096)
    heads = int(getattr(config, "num_heads", None) or 32)
    weights, _ = count_weights(module, size)
    num_blocks = max(len(size.blocks), 1)
    # Scores, their bias, and both once more in fp32.
    activation_bytes = 12 * heads * TEXT_TOKENS**2 + 10 * TEXT_TOKENS * width
    return Work(
        activation_bytes=activation_bytes,
        held_bytes=round(FRAGMENTATION * activation_bytes),
        matmul_flop=2 * weights * TEXT_TOKENS,
        traffic_bytes=num_blocks * TRAFFIC_BYTES * TEXT_TOKENS * width,
        num_kernels=num_blocks * ENCODER_KERNELS_PER_BLOCK,
    )


def decode_work(module: VideoModule, size: ComponentSize, request: Request, *, tiled: bool) -> Work:
    """From latents to frames; with tiles, in pieces of 256 by 256 pixels that overlap."""
    vae = _Autoencoder.of(module, size)
    output = 3 * vae.itemsize * request.num_frames * request.pixels
    pixels, copies, repeats, exposed = request.pixels, 1.0, 1.0, 0
    passes = latent_frames(module, request.num_frames)
    if tiled:
        pixels = min(TILE_PIXELS**2, request.pixels)
        copies = 3.6 if vae.patch > 1 else 1.4
        rows, columns = _tile_sides(request.height), _tile_sides(request.width)
        repeats = sum(rows) * sum(columns) / request.pixels
        passes *= len(rows) * len(columns)
        exposed = passes * EXPOSED_KERNELS
    channels = vae.decoder_channels if request.num_frames > 1 else vae.decoder_channels * 0.37
    allocated = round(pixels * vae.itemsize * channels + copies * output)
    computed = repeats * (request.num_frames + FIRST_FRAME) * request.pixels
    return Work(
        **_vae_memory(module, size, request, allocated, encodes=False, tiled=tiled),
        matmul_flop=vae.flop_per_pixel * computed,
        traffic_bytes=vae.traffic_per_pixel * computed,
        num_kernels=passes * DECODER_KERNELS,
        num_exposed=exposed,
    )


def _tile_sides(side: int) -> list[int]:
    """Pixels of the tiles along a side: each begins where its neighbour still goes on."""
    return [min(TILE_PIXELS, side - start) for start in range(0, side, TILE_STRIDE)]


def encode_work(module: VideoModule, size: ComponentSize, request: Request, *, tiled: bool) -> Work:
    """From an image, in a video's length, to latents; with tiles, in pieces."""
    vae = _Autoencoder.of(module, size)
    video = 3 * vae.itemsize * request.num_frames * request.pixels
    pixels = min(TILE_PIXELS**2, request.pixels) if tiled else request.pixels
    allocated = round(pixels * vae.itemsize * vae.encoder_channels + video)
    memory = _vae_memory(module, size, request, allocated, encodes=True, tiled=tiled)
    memory["held_bytes"] += 2 * video  # the frames, put together from the image and nothing
    computed = (request.num_frames + FIRST_FRAME) * request.pixels / 2
    return Work(
        **memory,
        matmul_flop=vae.flop_per_pixel * computed,
        traffic_bytes=vae.traffic_per_pixel * computed,
    )


def _vae_memory(
    module: VideoModule,
    size: ComponentSize,
    request: Request,
    estimate: int,
    *,
    encodes: bool,
    tiled: bool,
) -> dict[str, Any]:
    """What a VAE allocates and what is held for it, counted where its code is known."""
    counted = count_vae(
        module.get_submodule(size.fqn),
        (request.num_frames, request.height, request.width),
        encodes=encodes,
        tiled=tiled,
        dtype=dtype_of(module, size.fqn) or torch.float32,
    )
    allocated, held = estimate, VAE_FRAGMENTATION * estimate
    if counted is not None:
        allocated, held = counted.allocated_bytes, VAE_SPLIT * counted.reserved_bytes
    return {"activation_bytes": allocated, "held_bytes": round(held) + CONVOLUTION_BYTES}


@dataclass(frozen=True)
class _Autoencoder:
    """A VAE in channels that are alive at once for each pixel of a frame.

    Of Wan's, 51 times the first width are in the decoder (85 where its blocks have shortcuts) and
    37 in the encoder. Any other VAE is taken for one that decodes a group of frames at a time,
    like Wan's, 96 channels wide.
    """

    decoder_channels: float
    encoder_channels: float
    flop_per_pixel: float
    traffic_per_pixel: float
    patch: int
    itemsize: int

    @classmethod
    def of(cls, module: VideoModule, size: ComponentSize) -> "_Autoencoder":
        config = config_of(module, size)
        base = getattr(config, "base_dim", None) or 96
        decoder_base = getattr(config, "decoder_base_dim", None) or base
        patch = int(getattr(config, "patch_size", None) or 1)
        per_pixel = (85 if getattr(config, "is_residual", False) else 51) * decoder_base
        itemsize = (dtype_of(module, size.fqn) or torch.float32).itemsize
        share = CONVOLUTION_SHARE.get(itemsize, CONVOLUTION_SHARE[2])
        return cls(
            decoder_channels=per_pixel / patch**2,
            encoder_channels=37 * base / patch**2,
            # In matrix products that would take as long.
            flop_per_pixel=950 * decoder_base**2 / patch**2 / share,
            traffic_per_pixel=DECODER_TRAFFIC * decoder_base * itemsize / patch**2,
            patch=patch,
            itemsize=itemsize,
        )


def _is_wan(module: VideoModule) -> bool:
    return type(module.pipeline).__name__.startswith("Wan")
