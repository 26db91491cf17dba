"""Rest: what a module shows between its calls, and whether somebody has changed that."""

from fastvideo_lightning.offload.bindings import Shown
from fastvideo_lightning.offload.leaves import addresses_of


class Rest:
    """The host tensors of a unit, each in every place that shows it.

    Args:
        places: what is shown where.
    """

    def __init__(self, places: Shown) -> None:
        self.places = places
        self._traits = [(addresses_of(tensor), tensor.requires_grad) for _, _, tensor in places]

    def is_left(self) -> bool:
        """Whether a tensor is another one now, lies elsewhere or became trainable, or no more."""
        return any(
            registry[name] is not tensor
            or addresses != addresses_of(tensor)
            or requires_grad is not tensor.requires_grad
            for (registry, name, tensor), (addresses, requires_grad) in zip(
                self.places, self._traits, strict=True
            )
        )
