"""A unit's bytes in fewer: what of it is coded, and where that waits on the host.

Note [Coded units]
A unit that lies in its file in the dtype that it runs in can travel coded, see Note [Exponent
codes]. Its parameters stay views of the file, as ever; what a copy moves are pinned pieces of coded
bytes, made once from what the file brings to a slot. A piece comes into a staging buffer on the
copy stream, and is decoded from there into the slot on a stream of its own. That stream alone waits
until the slot is free: copies run ahead of it by the staging buffers there are.

What gains nothing travels as it is, in the same unit: other dtypes, small tensors, and pieces whose
numbers have too many exponents. A unit that is edited goes back to plain bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, NoReturn, Protocol

import torch

from fastvideo_lightning.offload.coding.exponents import (
    BODY_BYTES,
    HEADER_BYTES,
    TILE,
    Coded,
    encode,
    split,
)
from fastvideo_lightning.offload.tensors.layout import SlabLayout


class WeightCompression(StrEnum):
    """How the bytes of blocks travel.

    NONE: as they are.
    LOSSLESS: in fewer bytes where that gains, the same bits on arrival; see Note [Coded units].
    """

    NONE = "none"
    LOSSLESS = "lossless"

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise ValueError(f"weight_compression must be one of {', '.join(cls)}, got {value!r}")


PIECE_BYTES = 32 << 20
"""Of a buffer that coded pieces come into."""

NUM_STAGING = 8
"""Buffers for coded pieces: what is copied ahead while no slot is free."""

STAGING_BYTES = NUM_STAGING * PIECE_BYTES

PIECE_NUMBERS = PIECE_BYTES // (HEADER_BYTES + BODY_BYTES + TILE // 16) * TILE
"""Of a piece: what fits its buffer even if every sixteenth number is an escape."""

PART_PIECES = 4
"""Of what is coded at once."""

LEAST_RUN_BYTES = 8 * 2 * TILE
"""A shorter run is not coded: its last tile alone would cost what it saves."""

LARGEST_SHARE = 0.95
"""A piece that takes more of its plain bytes travels plainly."""


class CodedPiece(NamedTuple):
    """Coded bytes on the host that one kernel decodes.

    Attributes:
        coded: the numbers.
        offset: where they begin in a slot, in bytes.
    """

    coded: Coded
    offset: int

    @property
    def end(self) -> int:
        """Where they end in a slot, in bytes."""
        return self.offset + 2 * self.coded.numbers


class Memory(Protocol):
    """Host memory that coded bytes lie in."""

    pinned: bool

    @property
    def size_bytes(self) -> int: ...  # noqa: D102

    def close(self) -> None:
        """Take back the registration."""
        ...


@dataclass(eq=False)
class CodedBytes:
    """What a copy of a coded unit moves, but for what lies in memory of its own anyway.

    Attributes:
        pieces: coded, in the order of the slot.
        plain: the rest: bytes, and where they begin in a slot.
        memory: all that this holds on the host.
    """

    pieces: list[CodedPiece] = field(default_factory=list)
    plain: list[tuple[torch.Tensor, int]] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Host memory, and what a copy moves, in bytes."""
        return sum(memory.size_bytes for memory in self.memory)

    @property
    def pinned(self) -> bool:
        """Whether copies are asynchronous."""
        return all(memory.pinned for memory in self.memory)

    def close(self) -> None:
        """Take back the registrations. No copy may be in flight."""
        for memory in self.memory:
            memory.close()


class Part(NamedTuple):
    """Bytes of a slot, and whether to try and code them."""

    begin: int
    end: int
    is_coded: bool


def parts_of(layout: SlabLayout, is_filled: Sequence[bool]) -> Iterator[Part]:
    """What of a slot a coded unit has to bring: parts that are coded, and what is between.

    Args:
        layout: of the unit.
        is_filled: which of its tensors lie in the file; the others are brought from elsewhere.
    """
    begin = end = 0
    is_run = False
    for spec, offset, filled in zip(layout.specs, layout.offsets, is_filled, strict=True):
        fits = spec.dtype == torch.bfloat16 and spec.shape.numel() % 2 == 0
        is_joined = fits == is_run and (offset - begin) % 4 == 0  # a word holds two numbers
        if end > begin and not (filled and is_joined):
            yield from _cut(begin, end, is_run)
            begin = end
        if filled and spec.size_bytes:
            if end == begin:
                begin, is_run = offset, fits
            end = offset + spec.size_bytes
    yield from _cut(begin, end, is_run)


def _cut(begin: int, end: int, is_run: bool) -> Iterator[Part]:
    is_coded = is_run and end - begin >= LEAST_RUN_BYTES
    step = 2 * PIECE_NUMBERS * PART_PIECES if is_coded else max(end - begin, 1)
    for first in range(begin, end, step):
        yield Part(first, min(first + step, end), is_coded)


def encode_part(slot: torch.Tensor, part: Part) -> Iterator[tuple[Part, Coded | None]]:
    """Code a part of what lies in a slot, in pieces; None for one that gains too little.

    Args:
        slot: ``[bytes] uint8``.
        part: which bytes of it.
    """
    begin = part.begin
    for coded in split(encode(slot[begin : part.end].view(torch.bfloat16)), PIECE_NUMBERS):
        end = begin + 2 * coded.numbers
        size_bytes = coded.data.numel()
        is_smaller = size_bytes <= min(LARGEST_SHARE * (end - begin), PIECE_BYTES)
        yield Part(begin, end, is_smaller), coded if is_smaller else None
        begin = end
