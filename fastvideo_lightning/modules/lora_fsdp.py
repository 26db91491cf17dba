"""Adapters around weights that are divided, by FSDP or context parallel, or quantized."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor


@contextmanager
def unsharded(denoiser: nn.Module) -> Iterator[None]:
    """Take away what divides a denoiser's tokens, and put it back around the layers that are then.

    Diffusers' hooks sit at single layers. An adapter around one of them would be left out: the
    output would be gathered within it, and the adapter's part added to that is of one process.
    """
    from diffusers.hooks.context_parallel import apply_context_parallel, remove_context_parallel

    model: Any = denoiser
    config = getattr(getattr(model, "_parallel_config", None), "context_parallel_config", None)
    if config is None:
        yield
        return
    remove_context_parallel(model, model._cp_plan)
    try:
        yield
    finally:
        apply_context_parallel(model, config, model._cp_plan)


def place_beside_shards(denoiser: nn.Module, device: torch.device) -> None:
    """Bring the adapters of a denoiser that FSDP shards to the device, whole.

    PEFT leaves them where the weights are that they belong to, and shards may be on the host.
    """
    weights = list(denoiser.parameters())
    if any(isinstance(weight, DTensor) for weight in weights):
        for weight in weights:
            if not isinstance(weight, DTensor):
                weight.data = weight.data.to(device)


def check_can_fuse(fqn: str, denoiser: nn.Module) -> None:
    """Raise ValueError, before any weight is changed, where adapters cannot be added to them."""
    if any(isinstance(weight, DTensor) for weight in denoiser.parameters()):
        raise ValueError(
            f"fuse_lora cannot add to the weights of {fqn}, which FSDP shards. Leave it out: "
            "unfused adapters count as they are."
        )
    layer: Any
    for name, layer in denoiser.named_modules():
        if _adds_to_bytes(layer):
            kind = type(layer.get_base_layer().weight).__name__
            raise ValueError(
                f"fuse_lora cannot add to {fqn}.{name}.weight ({kind}), whose bytes are no "
                "numbers. Leave it out: unfused adapters count as they are."
            )


def _adds_to_bytes(layer: Any) -> bool:
    """Whether an active adapter lies around packed weights that PEFT takes for plain ones.

    Of kinds that it can widen and narrow again (torchao's, bitsandbytes') it has own layers.
    """
    if type(layer).__module__ != "peft.tuners.lora.layer" or not hasattr(layer, "lora_A"):
        return False
    weight = getattr(layer.get_base_layer(), "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.is_floating_point():
        return False
    return bool(layer.lora_A.keys() & set(layer.active_adapters))


@contextmanager
def skip_missing_adapters(denoiser: nn.Module) -> Iterator[None]:
    """Have layers around torchao's weights pass over what they lack while adapters are fused.

    PEFT's other layers do by themselves; these fail where an adapter has other layers. What is
    noted as merged is not merged again.
    """
    noted: list[tuple[Any, set[str]]] = []
    layer: Any
    for layer in denoiser.modules():
        if hasattr(layer, "get_apply_tensor_subclass"):
            lacking = set(layer.active_adapters) - layer.lora_A.keys()
            layer.merged_adapters.extend(lacking)
            noted.append((layer, lacking))
    try:
        yield
    finally:
        for layer, lacking in noted:
            layer.merged_adapters[:] = [n for n in layer.merged_adapters if n not in lacking]
