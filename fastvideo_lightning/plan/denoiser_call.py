"""What one call of Wan's denoiser allocates, counted in two of its blocks."""

from collections.abc import Callable
from typing import Any

import torch

from fastvideo_lightning.plan.memory_trace import Allocations, count_allocations
from fastvideo_lightning.plan.shapes import arguments_of

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
        inputs["encoder_hidden_states_image"] = empty(_IMAGE_TOKENS, config["image_dim"])
    return inputs
