"""What a video asks of each component: floating-point operations, memory traffic, activations.

Note [Coefficients]
Byte counts per token and per pixel were counted from the allocations of diffusers' models, run at
several sizes; they depend on a model's code, not on a card. `benchmarks/plan.py` holds them against
a GPU. Shapes: a latent is [channels, latent frames, height / 8, width / 8]; tokens are its patches.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.plan.measure import ComponentSize

TEXT_TOKENS = 512
# Elements per token and width beyond matrix products and attention, in bytes of memory traffic.
TRAFFIC_BYTES = 425
KERNELS_PER_BLOCK = 105
# An encoder of transformers asks more Python of the host for each of its kernels.
ENCODER_KERNELS_PER_BLOCK = 130
# A convolution of a VAE reaches this share of the rate of matrix products, by bytes of a number:
# from decoding on an H100, see `benchmarks/results/plan.md`.
CONVOLUTION_SHARE = {4: 0.112, 2: 0.177}
# Tiles overlap, and their small convolutions reach less: so many times as long as the whole.
TILES_TAKE = 1.9
_OF_TEXT = re.compile(r"\.attn2\.(to|add)_[kv](_proj)?\.weight$")
_UNKNOWN = {"height": 480, "width": 832, "num_frames": 81, "num_inference_steps": 50}


@dataclass(frozen=True)
class Work:
    """What one call of a component asks for.

    Attributes:
        activation_bytes: Most that is allocated at once beside the weights.
        matmul_flop: In matrix products and convolutions.
        attention_flop: In attention.
        traffic_bytes: Of device memory, in everything else.
        num_kernels: Kernels to launch.
        cached_bytes: What each of diffusers' caches would keep on the device from call to call.
        kept_bytes: What does stay there, by the flags.
    """

    activation_bytes: int = 0
    matmul_flop: float = 0
    attention_flop: float = 0
    traffic_bytes: float = 0
    num_kernels: int = 0
    cached_bytes: Mapping[str, int] = field(default_factory=dict)
    kept_bytes: int = 0


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
    config = _config(module, size)
    width, hidden = _widths(config, size)
    tokens = _tokens(module, config, request)
    num_blocks = max(len(size.blocks), 1)
    weights, text_weights = _count_weights(module, size)
    widened = widest = 0
    if size.is_quantized:
        # Each weight is read, and written and read once more as bf16; a layer's at a time.
        widened = 5 * (weights + text_weights)
        widest = 2 * max(w.numel() for w in module.get_submodule(size.fqn).parameters())
    # Attention's own chains are the peak, or the feed-forward layer's where that one is wide.
    peak = max(22.5 * width, 4 * hidden + 8.8 * width)
    if getattr(module.pipeline.config, "expand_timesteps", False):
        peak += 38 * width  # modulation for each token, in fp32
    latents = 4 * 4 * tokens * prod(_patch(config)) * 16
    return Work(
        activation_bytes=round(request.batch * (tokens * peak + latents)) + widest,
        matmul_flop=2 * (weights * tokens + text_weights * TEXT_TOKENS) * request.batch,
        attention_flop=num_blocks * 4 * tokens * (tokens + TEXT_TOKENS) * width * request.batch,
        traffic_bytes=num_blocks * TRAFFIC_BYTES * tokens * width * request.batch + widened,
        num_kernels=num_blocks * KERNELS_PER_BLOCK,
        cached_bytes={
            # Counted in diffusers' hooks: three of the tokens between blocks for each prompt, one
            # for each block, two of the output for each prompt.
            "first_block": 3 * 2 * tokens * width * request.num_prompts,
            "pyramid": num_blocks * 2 * tokens * width * request.batch,
            "taylorseer": latents // 8 * request.num_prompts,
        },
    )


def text_encoder_work(module: VideoModule, size: ComponentSize) -> Work:
    """One prompt through a text encoder."""
    config = _config(module, size)
    width = int(getattr(config, "d_model", None) or getattr(config, "hidden_size", 0) or 4096)
    heads = int(getattr(config, "num_heads", None) or 32)
    weights, _ = _count_weights(module, size)
    num_blocks = max(len(size.blocks), 1)
    return Work(
        # Scores, their bias, and both once more in fp32.
        activation_bytes=12 * heads * TEXT_TOKENS**2 + 10 * TEXT_TOKENS * width,
        matmul_flop=2 * weights * TEXT_TOKENS,
        traffic_bytes=num_blocks * TRAFFIC_BYTES * TEXT_TOKENS * width,
        num_kernels=num_blocks * ENCODER_KERNELS_PER_BLOCK,
    )


def decode_work(module: VideoModule, size: ComponentSize, request: Request, *, tiled: bool) -> Work:
    """From latents to frames; with tiles, in pieces of 256 by 256 pixels that overlap."""
    vae = _Autoencoder.of(module, size)
    output = 3 * vae.itemsize * request.num_frames * request.pixels
    pixels, copies, repeats = request.pixels, 1.0, 1.0
    if tiled:
        pixels = min(256 * 256, request.pixels)
        copies = 3.6 if vae.patch > 1 else 1.4
        repeats = TILES_TAKE
    channels = vae.decoder_channels if request.num_frames > 1 else vae.decoder_channels * 0.37
    return Work(
        activation_bytes=round(pixels * vae.itemsize * channels + copies * output),
        matmul_flop=vae.flop_per_pixel * request.num_frames * request.pixels * repeats,
    )


def encode_work(module: VideoModule, size: ComponentSize, request: Request) -> Work:
    """From an image, in a video's length, to latents."""
    vae = _Autoencoder.of(module, size)
    video = 3 * vae.itemsize * request.num_frames * request.pixels
    return Work(
        activation_bytes=round(request.pixels * vae.itemsize * vae.encoder_channels + video),
        matmul_flop=vae.flop_per_pixel * request.num_frames * request.pixels / 2,
    )


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
    patch: int
    itemsize: int

    @classmethod
    def of(cls, module: VideoModule, size: ComponentSize) -> "_Autoencoder":
        config = _config(module, size)
        base = getattr(config, "base_dim", None) or 96
        decoder_base = getattr(config, "decoder_base_dim", None) or base
        patch = int(getattr(config, "patch_size", None) or 1)
        per_pixel = (85 if getattr(config, "is_residual", False) else 51) * decoder_base
        itemsize = next(iter(_itemsizes(module, size.fqn)), 4)
        share = CONVOLUTION_SHARE.get(itemsize, CONVOLUTION_SHARE[2])
        return cls(
            decoder_channels=per_pixel / patch**2,
            encoder_channels=37 * base / patch**2,
            # In matrix products that would take as long.
            flop_per_pixel=950 * decoder_base**2 / patch**2 / share,
            patch=patch,
            itemsize=itemsize,
        )


def _itemsizes(module: VideoModule, fqn: str) -> list[int]:
    """Bytes per element of a component's first floating-point weight on a GPU."""
    for name, weight in module.get_submodule(fqn).named_parameters(prefix=fqn):
        if weight.is_meta and name in module.weight_sources:
            return [module.weight_sources[name].accelerator_dtype.itemsize]
        if weight.is_floating_point():
            return [weight.element_size()]
    return []


def _count_weights(module: VideoModule, size: ComponentSize) -> tuple[int, int]:
    """Weights of the blocks that meet every token, and those that meet the text alone.

    The latter make keys and values of the text for cross-attention.
    """
    component = module.get_submodule(size.fqn)
    of_text = sum(
        weight.numel() for name, weight in component.named_parameters() if _OF_TEXT.search(name)
    )
    whole = sum(block.num_weights for block in size.blocks) or size.whole.num_weights
    return whole - of_text, of_text


def _widths(config: Any, size: ComponentSize) -> tuple[int, int]:
    """Width of a denoiser's tokens and of its feed-forward layer, in elements."""
    heads = getattr(config, "num_attention_heads", None)
    head_width = getattr(config, "attention_head_dim", None)
    width = None
    if isinstance(heads, int) and isinstance(head_width, int):
        width = heads * head_width
    if width is None and size.blocks:
        # A block is about 12 square matrices of its width.
        width = round((max(block.size_bytes for block in size.blocks) / 2 / 12) ** 0.5)
    width = width or 2048
    return width, int(getattr(config, "ffn_dim", None) or 4 * width)


def _tokens(module: VideoModule, config: Any, request: Request) -> int:
    pipeline = module.pipeline
    space = int(getattr(pipeline, "vae_scale_factor_spatial", None) or 8)
    time = int(getattr(pipeline, "vae_scale_factor_temporal", None) or 4)
    patch = _patch(config)
    frames = -(-((request.num_frames - 1) // time + 1) // patch[0])
    return frames * (request.height // space // patch[1]) * (request.width // space // patch[2])


def _patch(config: Any) -> tuple[int, int, int]:
    """Latent frames, rows and columns that make one token; 1 each where nothing is said."""
    size = getattr(config, "patch_size", None) or 1
    in_time = getattr(config, "patch_size_t", None) or 1
    if isinstance(size, int):
        return int(in_time), size, size
    size = tuple(size)
    return size if len(size) == 3 else (int(in_time), *size[-2:])


def _config(module: VideoModule, size: ComponentSize) -> Any:
    """A component's configuration; None for one without."""
    return getattr(module.get_submodule(size.fqn), "config", None)


def _is_wan(module: VideoModule) -> bool:
    return type(module.pipeline).__name__.startswith("Wan")
