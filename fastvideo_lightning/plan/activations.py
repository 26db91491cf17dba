"""What the activations of a denoiser take: counted where its inputs are known, else estimated."""

from collections.abc import Callable
from math import prod

import torch

from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.plan.denoiser_call import count_denoiser
from fastvideo_lightning.plan.memory_trace import Allocations
from fastvideo_lightning.plan.shapes import config_of, count_tokens, patch_of, widths
from fastvideo_lightning.plan.sizes import ComponentSize

FRAGMENTATION = 1.5
"""The allocator keeps pieces that no later tensor fits into: 1.40 to 1.51 times in Wan's models."""


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
    peak = max(22.5 * width, 4 * hidden + 8.8 * width)
    if per_token:
        peak += 38 * width  # modulation for each token, in fp32
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
