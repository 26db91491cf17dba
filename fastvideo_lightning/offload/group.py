"""UnitGroup: the units of one model."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastvideo_lightning.offload.unit import OffloadUnit


@dataclass(eq=False)
class UnitGroup:
    """What one callback moves of one model.

    Attributes:
        streamed: the units that take turns in the ring's slots, in the order of execution.
        residents: units that stay in homes, see Note [Homes].
        otherwise: the order in which the last pass needed the streamed ones, where it was another.
    """

    streamed: Sequence[OffloadUnit] = ()
    residents: Sequence[OffloadUnit] = field(default=())
    otherwise: Sequence[OffloadUnit] = field(default=())

    @property
    def first(self) -> OffloadUnit | None:
        """Who is needed first when the model is called, as far as the ring goes."""
        return next(iter((*self.streamed, *self.residents)), None)

    @property
    def units(self) -> tuple[OffloadUnit, ...]:
        """All of them."""
        return (*self.streamed, *self.residents)
