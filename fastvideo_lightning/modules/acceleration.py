"""Faster sampling: diffusers' attention backends, caches and slicing, and compiled blocks.

A list of alike blocks needs one compilation, and what is compiled runs with whichever weights the
block has at that moment. A model compiled as a whole would take the hooks that bring weights in for
part of its program.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from fastvideo_lightning.config import OffloadConfig, nearest_name
from fastvideo_lightning.modules.base import VideoModule
from fastvideo_lightning.offload.blocks import find_block_lists

if TYPE_CHECKING:
    from fastvideo_lightning.modules import VideoModule


def check_attention_backend(backend: str | None, *, context_parallel: int = 1) -> None:
    """Refuse an attention backend that diffusers does not have, or cannot run here or divided.

    Raises:
        ValueError: Names the nearest, what it lacks, or those that processes can share.
    """
    if backend is None:
        return
    from diffusers.models import attention_dispatch as dispatch

    known = [each.value for each in dispatch.AttentionBackendName]
    if backend not in known:
        near = nearest_name(backend, known)
        hint = f"Did you mean {near}?" if near else f"Known are: {', '.join(sorted(known))}."
        raise ValueError(f"attention_backend={backend!r}: diffusers has none of this name. {hint}")
    able: set[str] = dispatch._AttentionBackendRegistry._supports_context_parallel
    if context_parallel > 1 and backend not in able:
        raise ValueError(
            f"attention_backend={backend!r} cannot be combined with "
            f"context_parallel={context_parallel}: diffusers divides attention among processes "
            f"only with {', '.join(sorted(able))}. Pass attention_backend='native', or another of "
            "these, or context_parallel=1."
        )
    try:
        check: Any = dispatch._check_attention_backend_requirements
        check(dispatch.AttentionBackendName(backend))
    except (RuntimeError, ImportError) as error:
        raise ValueError(
            f"attention_backend={backend!r} cannot be used here: {error} Leave it out, or install "
            "what it needs."
        ) from error


def accelerate(module: "VideoModule", config: OffloadConfig) -> Callable[[], None]:
    """Turn on what the configuration asks for, once the weights are placed.

    Returns:
        What turns it off again.

    Raises:
        ValueError: If the model has no such means, or there is no such attention backend.
    """
    undo: list[Callable[[], None]] = []

    def turn_off() -> None:
        while undo:
            undo.pop()()

    try:
        for fqn in module.denoisers:
            denoiser = module.get_submodule(fqn)
            if config.attention_backend is not None:
                undo.append(_set_attention_backend(fqn, module, config.attention_backend))
            if config.cache is not None:
                undo.append(_enable_cache(fqn, denoiser, config.cache, module))
        for means in ("tiling", "slicing"):
            if getattr(config, f"vae_{means}"):
                undo.extend(_decode_by(means, module))
    except BaseException:
        turn_off()
        raise
    return turn_off


def _decode_by(means: str, module: "VideoModule") -> list[Callable[[], None]]:
    """Turn on `tiling` or `slicing` where a model knows it; a sound's VAE or a vocoder does not."""
    able = models_that_decode_by(means, module)
    if not able:
        kinds = [f"{fqn} ({type(module.get_submodule(fqn)).__name__})" for fqn in module.vaes]
        named = ", ".join(kinds) or "this pipeline"
        raise ValueError(
            f"vae_{means}=True: diffusers has no {means} for {named}. Leave vae_{means} out."
        )
    off = [vae for vae in able if not getattr(vae, f"use_{means}")]  # the others came so
    for vae in off:
        getattr(vae, f"enable_{means}")()
    return [getattr(vae, f"disable_{means}") for vae in off]


def _set_attention_backend(fqn: str, module: "VideoModule", backend: str) -> Callable[[], None]:
    """Set it on the attention layers of a denoiser, and on those beside it that have none.

    diffusers' own `set_attention_backend` sets it for the whole process too, where a video on
    another thread would meet it.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName

    before = {each: each._attention_backend for each in _backend_takers(module.get_submodule(fqn))}
    if not before:
        raise ValueError(
            f"attention_backend={backend!r}: no attention layer of {fqn} "
            f"({type(module.get_submodule(fqn)).__name__}) takes a backend of its own. Leave "
            "attention_backend out."
        )
    for component in module.pipeline.components.values():
        if isinstance(component, nn.Module) and component is not module.get_submodule(fqn):
            others = (each for each in _backend_takers(component) if each not in before)
            before |= {each: None for each in others if each._attention_backend is None}
    for processor in before:
        processor._attention_backend = AttentionBackendName(backend)

    def reset() -> None:
        for processor, own in before.items():
            processor._attention_backend = own

    return reset


def _backend_takers(component: nn.Module) -> set[Any]:
    """The attention processors of a component that know an attention backend."""
    processors = {getattr(inner, "processor", None) for inner in component.modules()}
    return {each for each in processors if hasattr(each, "_attention_backend")}


def _enable_cache(fqn: str, denoiser: Any, cache: str, module: "VideoModule") -> Callable[[], None]:
    refusal = f"cache={cache!r} is not for {fqn} ({type(denoiser).__name__})"
    if not hasattr(denoiser, "enable_cache"):
        raise ValueError(f"{refusal}: diffusers has no caches for it. Leave cache out.")
    try:
        denoiser.enable_cache(_cache_config(cache, module))
    except ValueError as error:
        raise ValueError(f"{refusal}: {error}. Leave cache out.") from error
    hooks = [getattr(inner, "_diffusers_hook", None) for inner in denoiser.modules()]
    if not any(hook is not None and hook.hooks for hook in hooks):
        denoiser.disable_cache()
        raise ValueError(f"{refusal}: it finds no block that it knows. Leave cache out.")
    return denoiser.disable_cache  # type: ignore[no-any-return]


def _cache_config(cache: str, module: "VideoModule") -> Any:
    """Diffusers' configuration of a cache, with the values that its documentation uses."""
    import diffusers as library

    diffusers: Any = library
    if cache == "first_block":
        return diffusers.FirstBlockCacheConfig(threshold=0.05)
    if cache == "taylorseer":
        return diffusers.TaylorSeerCacheConfig(use_lite_mode=True)
    pipeline: Any = module.pipeline
    if not hasattr(type(pipeline), "current_timestep"):
        raise ValueError(f"{type(pipeline).__name__} does not tell its current timestep")
    return diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        current_timestep_callback=lambda: module.current_timestep,
    )


def models_that_decode_by(means: str, module: VideoModule) -> list[nn.Module]:
    """Return those of the VAEs, and of what else runs outside of the steps, that can save memory.

    Args:
        means: `tiling` or `slicing`.
        module: diffusers gives the methods to models too that then refuse; those have no switch.
    """
    models = map(module.get_submodule, module.vaes)
    return [m for m in models if hasattr(m, f"enable_{means}") and hasattr(m, f"use_{means}")]


# Inductor would time several kernels for one reduction and keep the fastest. They add in different
# orders: the bits would be those of whichever won, in this process and until it compiles again.
OPTIONS = {"deterministic": True}


def compile_blocks(root: nn.Module, fqn: str) -> int:
    """Compile the blocks of one model in place (``nn.Module.compile``) and return their number.

    Nothing is compiled yet: that happens at each kind of block's first call, and again for another
    size of video. What was compiled before, here or in another process, does not change the bits.

    Args:
        root: holds the model.
        fqn: name of the model.

    Raises:
        ValueError: the model has no list of blocks.
    """
    model = root.get_submodule(fqn)
    blocks = [block for found in find_block_lists(model, fqn) for _, block in found.blocks]
    if not blocks:
        raise ValueError(
            f"compile=True compiles block by block, and {fqn} ({type(model).__name__}) has no list "
            "of blocks. Leave compile out."
        )
    for block in blocks:
        block.compile(options=OPTIONS)
    return len(blocks)
