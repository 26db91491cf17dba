"""Tape: what some calls took from an allocator and gave back, to be done again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from fastvideo_lightning.plan.allocator import Block


class Taken(NamedTuple):
    """A block was taken."""

    size_bytes: int


class GivenBack(NamedTuple):
    """A block was given back: which of those that were taken before, the first being 0."""

    take: int


class Dropped(NamedTuple):
    """A block that was there before was given back: the place that stands for it."""

    place: int


@dataclass
class Tape:
    """Events in their order.

    Attributes:
        places: What stands for the blocks that were there before.
        events: What was taken and given back.
        takes: The blocks that were taken and not given back: which of the takes each one was.
        num_takes: Of all.
    """

    places: Mapping[Block, int]
    events: list[Taken | GivenBack | Dropped] = field(default_factory=list)
    takes: dict[Block, int] = field(default_factory=dict)
    num_takes: int = 0

    def take(self, block: Block, size_bytes: int) -> None:
        """Note that a block was taken."""
        self.events.append(Taken(size_bytes))
        self.takes[block] = self.num_takes
        self.num_takes += 1

    def give_back(self, block: Block) -> None:
        """Note that a block was given back."""
        take = self.takes.pop(block, None)
        self.events.append(Dropped(self.places[block]) if take is None else GivenBack(take))
