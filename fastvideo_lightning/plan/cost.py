"""What a video asks of each component: floating-point operations, memory traffic, activations.

Note [Coefficients]
Where each number was measured is said in the table "Constants" of `docs/planning.md`, under its
name here. Shapes: a latent is [channels, latent frames, height / 8, width / 8]; tokens are its
patches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

from fastvideo_lightning.config import OffloadConfig, SamplingParams
from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.plan.activations import FRAGMENTATION, denoiser_activations
from fastvideo_lightning.plan.sizes import (
    ComponentSize,
    config_of,
    count_tokens,
    count_weights,
    latent_shape,
    patch_of,
    widths,
)

# Shares of what a block takes that are left when it is compiled, for several kernels become one.
COMPILED_TRAFFIC = 0.38
COMPILED_KERNELS = 0.6
COMPILED_ACTIVATIONS = 0.5
COMPILING_BYTES = 120 << 20  # that stay reserved after the compiler has timed its kernels
TEXT_TOKENS = 512
TRAFFIC_BYTES = 425  # per token and width of a block, beside matrix products and attention
KERNELS_PER_BLOCK = 105  # launches
ENCODER_KERNELS_PER_BLOCK = 130  # launches
WIDENED_BYTES = 5  # per quantized weight: read, and as bf16 written and read
_UNKNOWN = {"height": 480, "width": 832, "num_frames": 81, "num_inference_steps": 50}


def under_flags(work: "CallCost", config: OffloadConfig) -> "CallCost":
    """Return a denoiser's work as the flags change it."""
    if config.cache is not None:
        work = replace(work, kept_bytes=work.cached_bytes.get(config.cache, 0))
    if config.compile:
        work = replace(
            work,
            activation_bytes=round(COMPILED_ACTIVATIONS * work.activation_bytes),
            held_bytes=round(COMPILED_ACTIVATIONS * work.held_bytes),
            traffic_bytes=COMPILED_TRAFFIC * work.traffic_bytes,
            num_kernels=round(COMPILED_KERNELS * work.num_kernels),
            compiling_bytes=COMPILING_BYTES,
        )
    if config.cuda_graphs:
        work = replace(work, num_kernels=0, kept_bytes=work.kept_bytes + work.held_bytes)
    return work


@dataclass(frozen=True)
class CallCost:
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
        hidden_bytes: Of what goes from block to block.
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
    hidden_bytes: int = 0


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
            has_image=filled.get("image_path") is not None
            or module.needs_image
            or bool(module.image_encoders),
        )

    @property
    def pixels(self) -> int:
        """Of one frame."""
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.num_frames} frames"

    @property
    def num_prompts(self) -> int:
        """What a step is computed for: with guidance the prompt and the negative one."""
        return self.num_calls * self.batch


def denoiser_work(module: VideoModule, size: ComponentSize, request: Request) -> CallCost:
    """One call of a denoiser, see Note [Coefficients]."""
    config = config_of(module, size)
    width, _ = widths(config, size)
    latent = latent_shape(module, request.num_frames, request.height, request.width)
    tokens = count_tokens(latent, config)
    num_blocks = max(len(size.blocks), 1)
    weights, text_weights = count_weights(module, size)
    widened = widest = 0
    if size.is_quantized:
        widened = WIDENED_BYTES * (weights + text_weights)
        # One layer at a time is widened.
        widest = 2 * max(w.numel() for w in module.get_submodule(size.fqn).parameters())
    activations = denoiser_activations(module, size, latent, request.batch)
    output_bytes = 2 * tokens * prod(patch_of(config)) * 16
    return CallCost(
        activation_bytes=activations.allocated_bytes + widest,
        held_bytes=activations.reserved_bytes + widest,
        matmul_flop=2 * (weights * tokens + text_weights * TEXT_TOKENS) * request.batch,
        attention_flop=num_blocks * 4 * tokens * (tokens + TEXT_TOKENS) * width * request.batch,
        traffic_bytes=num_blocks * TRAFFIC_BYTES * tokens * width * request.batch + widened,
        num_kernels=num_blocks * KERNELS_PER_BLOCK,
        hidden_bytes=2 * tokens * width * request.batch,
        cached_bytes={
            # Counted in diffusers' hooks: three of the tokens between blocks for each prompt, one
            # for each block, two of the output for each prompt.
            "first_block": 3 * 2 * tokens * width * request.num_prompts,
            "pyramid": num_blocks * 2 * tokens * width * request.batch,
            "taylorseer": output_bytes * request.num_prompts,
        },
    )


def text_encoder_work(module: VideoModule, size: ComponentSize) -> CallCost:
    """One prompt through a text encoder."""
    config = config_of(module, size)
    width = int(getattr(config, "d_model", None) or getattr(config, "hidden_size", 0) or 4096)
    heads = int(getattr(config, "num_heads", None) or 32)
    weights, _ = count_weights(module, size)
    num_blocks = max(len(size.blocks), 1)
    # Scores, their bias, and both once more in fp32.
    activation_bytes = 12 * heads * TEXT_TOKENS**2 + 10 * TEXT_TOKENS * width
    return CallCost(
        activation_bytes=activation_bytes,
        held_bytes=round(FRAGMENTATION * activation_bytes),
        matmul_flop=2 * weights * TEXT_TOKENS,
        traffic_bytes=num_blocks * TRAFFIC_BYTES * TEXT_TOKENS * width,
        num_kernels=num_blocks * ENCODER_KERNELS_PER_BLOCK,
    )


def _is_wan(module: VideoModule) -> bool:
    return type(module.pipeline).__name__.startswith("Wan")
