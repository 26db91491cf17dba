"""What a model's configuration and weights say of its shapes."""

import inspect
import re
from typing import Any

import torch

from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.plan.sizes import ComponentSize

_OF_TEXT = re.compile(r"\.attn2\.(to|add)_[kv](_proj)?\.weight$")


def dtype_of(module: VideoModule, fqn: str) -> torch.dtype | None:
    """The dtype of a component's first floating-point weight on a GPU; None without one."""
    for name, weight in module.get_submodule(fqn).named_parameters(prefix=fqn):
        if name in module.weight_sources:
            return module.weight_sources[name].accelerator_dtype
        if weight.is_floating_point():
            return weight.dtype
    return None


def count_weights(module: VideoModule, size: ComponentSize) -> tuple[int, int]:
    """Weights of the blocks that meet every token, and those that meet the text alone.

    The latter make keys and values of the text for cross-attention.
    """
    component = module.get_submodule(size.fqn)
    of_text = sum(
        weight.numel() for name, weight in component.named_parameters() if _OF_TEXT.search(name)
    )
    whole = sum(block.num_weights for block in size.blocks) or size.whole.num_weights
    return whole - of_text, of_text


def widths(config: Any, size: ComponentSize) -> tuple[int, int]:
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


def latent_shape(module: VideoModule, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Frames, rows and columns of a video's latent."""
    pipeline = module.pipeline
    space = int(getattr(pipeline, "vae_scale_factor_spatial", None) or 8)
    return latent_frames(module, frames), height // space, width // space


def latent_frames(module: VideoModule, frames: int) -> int:
    """Frames of a video's latent."""
    return (frames - 1) // frames_per_latent(module) + 1


def frames_per_latent(module: VideoModule) -> int:
    """Frames that a latent frame stands for, but for the first, which is one."""
    return int(getattr(module.pipeline, "vae_scale_factor_temporal", None) or 4)


def count_tokens(latent: tuple[int, int, int], config: Any) -> int:
    """The patches of a latent."""
    patch = patch_of(config)
    return -(-latent[0] // patch[0]) * (latent[1] // patch[1]) * (latent[2] // patch[2])


def patch_of(config: Any) -> tuple[int, int, int]:
    """Latent frames, rows and columns that make one token; 1 each where nothing is said."""
    size = getattr(config, "patch_size", None) or 1
    in_time = getattr(config, "patch_size_t", None) or 1
    if isinstance(size, int):
        return int(in_time), size, size
    size = tuple(size)
    return size if len(size) == 3 else (int(in_time), *size[-2:])


def config_of(module: VideoModule, size: ComponentSize) -> Any:
    """A component's configuration; None for one without."""
    return getattr(module.get_submodule(size.fqn), "config", None)


def arguments_of(component: Any, kind: type) -> dict[str, Any]:
    """What a component of diffusers is made of, as one of that class.

    A published configuration may hold more than the class asks for, such as `clip_output`.
    """
    asked_for = inspect.signature(kind).parameters
    return {name: value for name, value in component.config.items() if name in asked_for}
