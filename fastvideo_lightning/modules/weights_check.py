"""Whether every component of a module is where it can run, before the first batch.

Moving a module whose weights still wait in their files is refused.
"""

from collections.abc import Mapping

import torch
from torch import nn

from fastvideo_lightning.checkpoint.weights import StoredWeight


def check_placement(name: str, component: nn.Module, device: torch.device) -> None:
    """Raise unless a component's weights are on `device`, or hooks bring them there.

    Args:
        name: FQN of the component.
        component: The model.
        device: The execution device.

    Raises:
        RuntimeError: If nothing has placed it.
    """
    hooked = _is_hooked(component)
    for fqn, weight in component.named_parameters():
        if weight.is_meta:
            found = "has not been read from its file"
        elif weight.device != device and not hooked:
            found = f"is on {weight.device}, and nothing brings it to {device}"
        else:
            continue
        raise RuntimeError(
            f"{name} is not placed: {name}.{fqn} {found}. Give the run a callback for it, such as "
            f'Resident("{name}") or ModelOffload("{name}").'
        )


def read_in_place(
    name: str, component: nn.Module, sources: Mapping[str, StoredWeight], device: torch.device
) -> None:
    """Bring the parameters that are still on meta to host memory; tied ones stay one.

    Raises:
        RuntimeError: If no checkpoint says where the bytes of one are.
    """
    made: dict[int, nn.Parameter] = {}
    for path, owner in component.named_modules(prefix=name):
        for short, weight in owner._parameters.items():
            if weight is None or not weight.is_meta:
                continue
            if id(weight) not in made:
                source = sources.get(f"{path}.{short}")
                if source is None:
                    raise RuntimeError(
                        f"{path}.{short} is on the meta device and no checkpoint says where its "
                        "bytes are. Take away what keeps them elsewhere, as accelerate's offload "
                        "does (pipeline.remove_all_hooks()), or pass a folder to from_pretrained."
                    )
                memory = source.as_host_tensor(source.dtype_on(device))
                made[id(weight)] = _like(weight, memory)
            owner._parameters[short] = made[id(weight)]


def _like(weight: nn.Parameter, memory: torch.Tensor) -> nn.Parameter:
    """Return a parameter over some memory, of the class that another has and with its attributes.

    That of GGUF's blocks has no more to it than its bytes and their type.
    """
    made: nn.Parameter = torch.Tensor._make_subclass(type(weight), memory, weight.requires_grad)
    made.__dict__.update(weight.__dict__)
    return made


def _is_hooked(component: nn.Module) -> bool:
    """Whether hooks sit anywhere inside, or its `encode` and `decode` are wrapped."""
    wrapped = {"encode", "decode", "forward"} & vars(component).keys()
    return bool(wrapped) or any(
        module._forward_pre_hooks or module._forward_hooks for module in component.modules()
    )


def find_unread(module: nn.Module) -> str | None:
    """Return the name of a child with weights on meta, or None."""
    children = module.named_children()
    return next((n for n, child in children if any(w.is_meta for w in child.parameters())), None)
