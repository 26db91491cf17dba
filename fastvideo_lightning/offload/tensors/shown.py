"""What a unit's modules show on the host between its calls, and whether it is theirs to keep."""

import sys

import torch
from torch.nn.utils import stateless

from fastvideo_lightning.offload.tensors.bindings import Shown
from fastvideo_lightning.offload.tensors.leaves import addresses_of

_FUNCTIONAL_CODE = stateless._functional_call.__code__


class ShownTensors:
    """The host tensors of a unit, each in every place that shows it.

    Args:
        places: what is shown where.
    """

    def __init__(self, tensors: Shown) -> None:
        self.tensors = tensors
        self._traits = [(addresses_of(tensor), tensor.requires_grad) for _, _, tensor in tensors]

    def changed(self) -> bool:
        """Whether a tensor is another one now, lies elsewhere or became trainable, or no more."""
        return any(
            registry.get(name) is not tensor
            or addresses != addresses_of(tensor)
            or requires_grad is not tensor.requires_grad
            for (registry, name, tensor), (addresses, requires_grad) in zip(
                self.tensors, self._traits, strict=True
            )
        )

    def given(self) -> dict[int, torch.Tensor | None]:
        """What places have in place of their host tensor, by the place's number."""
        return {
            i: registry.get(name)
            for i, (registry, name, tensor) in enumerate(self.tensors)
            if registry.get(name) is not tensor
        }

    def moved(self) -> dict[int, torch.Tensor | None]:
        """Host tensors that lie elsewhere by now, by the place's number."""
        return {
            i: tensor
            for i, ((_, _, tensor), (addresses, _)) in enumerate(
                zip(self.tensors, self._traits, strict=True)
            )
            if addresses != addresses_of(tensor)
        }


def is_lent() -> bool:
    """Whether `torch.func.functional_call` runs: what modules have now is theirs for a call."""
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        if frame.f_code is _FUNCTIONAL_CODE:
            return True
    return False
