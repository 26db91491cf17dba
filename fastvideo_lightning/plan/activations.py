"""What the activations of a denoiser take: counted where its inputs are known, else estimated.

Of Wan's denoiser two blocks are counted.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch

from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.plan.memory_trace import Allocations, count_allocations
from fastvideo_lightning.plan.sizes import (
    ComponentSize,
    arguments_of,
    config_of,
    count_tokens,
    patch_of,
    widths,
)

# From the second block on, and from the second call on, each meets the same blocks of memory.
_NUM_BLOCKS, _NUM_CALLS = 2, 2
_TEXT_TOKENS, _IMAGE_TOKENS = 512, 257


def count_denoiser(
    component: Any,
    latent: tuple[int, int, int],
    *,
    batch: int,
    dtype_of: Callable[[str], torch.dtype],
    timestep_per_token: bool,
) -> Allocations | None:
    """Count what a call allocates; None for a class whose inputs are not known here.

    Args:
        component: The denoiser, in any state: it is not touched.
        latent: Frames, rows and columns of a latent.
        batch: Latents in one call.
        dtype_of: The dtype in which a weight of that name computes.
        timestep_per_token: Whether each token has a timestep of its own.
    """
    import diffusers as library

    diffusers: Any = library
    if not isinstance(component, diffusers.WanTransformer3DModel):
        return None
    config = arguments_of(component, diffusers.WanTransformer3DModel)
    with torch.device("meta"):
        copy = diffusers.WanTransformer3DModel(**{**config, "num_layers": _NUM_BLOCKS}).eval()
    for name, weight in copy.named_parameters():
        weight.data = weight.data.to(dtype_of(name))
    dtype = dtype_of("proj_out.weight")
    frames, rows, columns = latent
    known = [*copy.parameters(), *copy.buffers()]

    def call() -> None:
        inputs = _inputs(config, batch, frames, rows, columns, dtype, timestep_per_token)
        for _ in range(_NUM_CALLS):
            copy(**inputs, return_dict=False)

    return count_allocations(call, known)


def _inputs(
    config: dict[str, Any],
    batch: int,
    frames: int,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    timestep_per_token: bool,
) -> dict[str, torch.Tensor]:
    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(batch, *shape, dtype=dtype, device="meta")

    patch = config["patch_size"]
    tokens = (frames // patch[0]) * (rows // patch[1]) * (columns // patch[2])
    inputs = {
        "hidden_states": empty(config["in_channels"], frames, rows, columns),
        "timestep": empty(*[tokens] * timestep_per_token, dtype=torch.float32),
        "encoder_hidden_states": empty(_TEXT_TOKENS, config["text_dim"]),
    }
    if config.get("image_dim"):
        of_both = config.get("pos_embed_seq_len")  # of a first and a last picture, in a row
        pictures, tokens = (2, of_both // 2) if of_both else (1, _IMAGE_TOKENS)
        inputs["encoder_hidden_states_image"] = torch.empty(
            pictures * batch, tokens, config["image_dim"], dtype=dtype, device="meta"
        )
    return inputs


# Each is a row of the table "Constants" in `docs/planning.md`.
FRAGMENTATION = 1.5  # of what is allocated, held: pieces stay that no later tensor fits into
ATTENTION_BYTES = 22.5  # per token and width, alive in attention
FEED_FORWARD_BYTES = 8.8  # per token and width, alive in a feed-forward layer beside its own 4
MODULATION_BYTES = 38  # per token and width, where each token has a time step of its own


def denoiser_activations(
    module: VideoModule, size: ComponentSize, latent: tuple[int, int, int], batch: int
) -> Allocations:
    """Count or estimate what one call of a denoiser takes beside its weights.

    Args:
        module: The model.
        size: The denoiser.
        latent: Frames, rows and columns.
        batch: Latents in one call.
    """
    per_token = bool(getattr(module.pipeline.config, "expand_timesteps", False))
    counted = count_denoiser(
        module.get_submodule(size.fqn),
        latent,
        batch=batch,
        dtype_of=_dtypes(module, size.fqn),
        timestep_per_token=per_token,
    )
    if counted is not None:
        return counted
    config = config_of(module, size)
    width, hidden = widths(config, size)
    tokens = count_tokens(latent, config)
    # Attention's own chains are the peak, or the feed-forward layer's where that one is wide.
    peak = max(ATTENTION_BYTES * width, 4 * hidden + FEED_FORWARD_BYTES * width)
    if per_token:
        peak += MODULATION_BYTES * width
    latents = 4 * 4 * tokens * prod(patch_of(config)) * 16
    allocated = round(batch * (tokens * peak + latents))
    return Allocations(allocated, round(FRAGMENTATION * allocated))


def _dtypes(module: VideoModule, fqn: str) -> Callable[[str], torch.dtype]:
    """The dtype in which each weight of a component computes; bf16 for quantized ones."""

    def dtype_of(name: str) -> torch.dtype:
        source = module.weight_sources.get(f"{fqn}.{name}")
        weight = module.get_submodule(fqn).get_parameter(name)
        # Not the weight's own, which is another where it is computed on a CPU.
        dtype = source.accelerator_dtype if source else weight.dtype
        return dtype if dtype.is_floating_point and dtype.itemsize > 1 else torch.bfloat16

    return dtype_of
