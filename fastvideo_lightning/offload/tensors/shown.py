"""What a unit's modules show on the host between its calls, and whether somebody has changed it."""

import sys

import torch
from torch.nn.utils import stateless

from fastvideo_lightning.offload.tensors.bindings import Shown
from fastvideo_lightning.offload.tensors.leaves import addresses_of

_FUNCTIONAL_CODE = stateless._functional_call.__code__


class ShownTensors:
    """The host tensors of a unit, with every registration that shows them.

    Args:
        tensors: each registration and its tensor.
    """

    def __init__(self, tensors: Shown) -> None:
        self.tensors = tensors
        self._traits = [(addresses_of(tensor), tensor.requires_grad) for _, _, tensor in tensors]

    def changed(self) -> bool:
        """Whether a tensor was replaced, given other memory, frozen or made trainable."""
        return any(
            registry.get(name) is not tensor
            or addresses != addresses_of(tensor)
            or requires_grad is not tensor.requires_grad
            for (registry, name, tensor), (addresses, requires_grad) in zip(
                self.tensors, self._traits, strict=True
            )
        )

    def given(self) -> dict[int, torch.Tensor | None]:
        """What registrations have in place of their host tensors, by the registration's number."""
        return {
            i: registry.get(name)
            for i, (registry, name, tensor) in enumerate(self.tensors)
            if registry.get(name) is not tensor
        }

    def moved(self) -> dict[int, torch.Tensor | None]:
        """Host tensors that were given other memory, by the registration's number."""
        return {
            i: tensor
            for i, ((_, _, tensor), (addresses, _)) in enumerate(
                zip(self.tensors, self._traits, strict=True)
            )
            if addresses != addresses_of(tensor)
        }


def is_lent() -> bool:
    """Whether `torch.func.functional_call` runs: modules have its tensors for one call only."""
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        if frame.f_code is _FUNCTIONAL_CODE:
            return True
    return False
