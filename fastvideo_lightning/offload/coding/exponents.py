"""A code for bf16 numbers that takes 11 bits of their 16, without loss.

Note [Exponent codes]
Weights use few of bf16's 256 exponents: seven neighbouring ones hold some 98 of 100 numbers. A
number becomes its sign and mantissa, a byte, and a code of 3 bits: 0 to 6 say how far its exponent
lies above a base, and 7 that the exponent stands by itself, a byte among the *escapes*.

A *tile* of ``TILE`` numbers has a base of its own. It is laid out for ``LANES`` lanes of a GPU that
work side by side, each on ``PAIRS`` pairs of numbers: pair ``k`` of lane ``i`` is the tile's pair
``k * LANES + i``, so that lanes read and write neighbouring words. A lane's 32-bit words are

- ``PAIRS / 2`` of signs and mantissas, each for two pairs: the first number of both, then the
  second number of both, a byte each;
- 2 of the codes' lower two bits: those of pair ``k`` begin at bit ``2 * (k % 8)`` for its first
  number, and 16 bits higher for its second;
- 1 of their upper bit: at bit ``k`` and ``16 + k``.

Two numbers are then decoded at once, as the two halves of a word, by a few operations each. The
escapes of a tile lie in the order of its lanes, and of the bits of the last kind of word there. A
tile's *header* of four int32 says where its escapes begin, its base, and how many the lane with the
most of them has.

Coded numbers are one run of bytes: all headers, all words, all escapes.
"""

from typing import NamedTuple

import torch

LANES = 256
"""Of a tile."""

PAIRS = 16
"""Of numbers, in a lane."""

TILE = 2 * LANES * PAIRS
"""Numbers of a tile."""

HEADER_BYTES = 16
"""Of a tile's header."""

WORDS = PAIRS // 2 + 3
"""32-bit words of a lane."""

BODY_BYTES = 4 * WORDS * LANES
"""Of a tile's words."""

_ESCAPE = 7
_BESIDE_MEAN, _BESIDE_MAX = range(-6, -1), (-6, -7)
"""Bases that are tried for a tile, as offsets from the mean and the largest of its exponents."""


class Coded(NamedTuple):
    """Coded numbers.

    Attributes:
        data: ``[bytes] uint8``, see Note [Exponent codes].
        numbers: how many they are; an even number.
    """

    data: torch.Tensor
    numbers: int

    @property
    def tiles(self) -> int:
        """How many tiles they lie in; the last one may be filled in part."""
        return -(-self.numbers // TILE)


def encode(numbers: torch.Tensor) -> Coded:
    """Code numbers, where they lie.

    Args:
        numbers: ``[count] bfloat16``, contiguous, an even number of them.
    """
    assert numbers.dtype == torch.bfloat16, "what is coded is bf16"
    assert numbers.numel() % 2 == 0, "numbers are coded in pairs"
    tiles, count = -(-numbers.numel() // TILE), numbers.numel()
    bits = numbers.view(torch.int16)
    if bits.numel() < tiles * TILE:
        bits = torch.cat([bits, bits.new_zeros(tiles * TILE - bits.numel())])
    exponents = ((bits >> 7) & 0xFF).to(torch.uint8).view(tiles, TILE)
    bases = _find_bases(exponents, count)
    codes = (exponents - bases[:, None]).clamp_(max=_ESCAPE)  # below the base it wraps around
    codes.view(-1)[count:] = 0
    counts, escapes = _find_escapes(exponents, codes)
    totals = counts.sum(1, dtype=torch.int32)
    headers = torch.stack(
        [totals.cumsum(0, dtype=torch.int32) - totals, bases.int(), counts.amax(1), totals * 0], 1
    )
    signs = (((bits >> 8) & 0x80) | (bits & 0x7F)).to(torch.uint8).view(tiles, TILE)
    body = torch.cat([_pack_signs(signs), _pack_low_bits(codes), _pack_top_bits(codes)], 1)
    parts = [headers.view(-1).view(torch.uint8), body.view(-1).view(torch.uint8), escapes]
    return Coded(torch.cat(parts), count)


def split(coded: Coded, numbers: int) -> list[Coded]:
    """Cut coded numbers into pieces that are decoded by themselves.

    Args:
        coded: what to cut.
        numbers: of a piece, whole tiles; the last one has what is left.
    """
    step = numbers // TILE
    if coded.tiles <= step:
        return [coded]
    body_at, escapes_at = HEADER_BYTES * coded.tiles, (HEADER_BYTES + BODY_BYTES) * coded.tiles
    headers = coded.data[:body_at].view(torch.int32).view(-1, 4)
    begins = [*headers[::step, 0].tolist(), coded.data.numel() - escapes_at]
    pieces = []
    for i, first in enumerate(range(0, coded.tiles, step)):
        last = min(first + step, coded.tiles)
        own = headers[first:last].clone()
        own[:, 0] -= begins[i]
        body = coded.data[body_at + BODY_BYTES * first : body_at + BODY_BYTES * last]
        escapes = coded.data[escapes_at + begins[i] : escapes_at + begins[i + 1]]
        data = torch.cat([own.view(-1).view(torch.uint8), body, escapes])
        pieces.append(Coded(data, min(coded.numbers - first * TILE, numbers)))
    return pieces


def decode(coded: Coded) -> torch.Tensor:
    """The numbers again, ``[count] bfloat16``, by plain torch: what a kernel must equal."""
    tiles = coded.tiles
    body_at, escapes_at = HEADER_BYTES * tiles, (HEADER_BYTES + BODY_BYTES) * tiles
    headers = coded.data[:body_at].view(torch.int32).view(tiles, 4)
    body = coded.data[body_at:escapes_at].view(torch.int32).view(tiles, WORDS, LANES)
    codes = _unpack_codes(body[:, PAIRS // 2 :])
    exponents = (codes + headers[:, 1, None].to(torch.uint8)).view(tiles, TILE)
    order = _by_lane(codes == _ESCAPE)
    in_order = _by_lane(exponents)
    in_order[order] = coded.data[escapes_at:]
    exponents = _from_lanes(in_order)
    signs = _unpack_signs(body[:, : PAIRS // 2])
    bits = (signs.int() & 0x80) << 8 | exponents.int() << 7 | signs.int() & 0x7F
    flat = bits.view(-1)[: coded.numbers]
    return torch.where(flat < 1 << 15, flat, flat - (1 << 16)).to(torch.int16).view(torch.bfloat16)


def _find_bases(exponents: torch.Tensor, count: int) -> torch.Tensor:
    """The base of each tile that leaves the fewest escapes, ``[tiles] uint8``."""
    sums = exponents.sum(1, dtype=torch.int64)
    numbers = torch.full_like(sums, TILE)
    numbers[-1] = count - (len(exponents) - 1) * TILE  # what fills up the last one is zeros
    means, largest = (sums / numbers).round().int(), exponents.amax(1).int()
    bases, most = torch.zeros_like(means), torch.full_like(sums, -1)
    tried = [means + offset for offset in _BESIDE_MEAN]
    for base in (*tried, *(largest + offset for offset in _BESIDE_MAX)):
        base = base.clamp(0, 255 - _ESCAPE)
        held = ((exponents - base.to(torch.uint8)[:, None]) < _ESCAPE).sum(1)
        bases = torch.where(held > most, base, bases)
        most = torch.maximum(held, most)
    return bases.to(torch.uint8)


def _find_escapes(
    exponents: torch.Tensor, codes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many escapes each lane has, ``[tiles, LANES] int32``, and their exponents in order."""
    places = (codes == _ESCAPE).view(-1).nonzero().view(-1)
    tile, pair, half = places // TILE, places % TILE // 2, places % 2
    lane = tile * LANES + pair % LANES
    order = ((lane * 2 + half) * PAIRS + pair // LANES).argsort()
    counts = torch.zeros(len(codes) * LANES, dtype=torch.int32, device=codes.device)
    counts.index_add_(0, lane, counts.new_ones(1).expand(len(lane)))
    return counts.view(-1, LANES), exponents.view(-1)[places[order]]


def _by_lane(values: torch.Tensor) -> torch.Tensor:
    """``[tiles, TILE]`` as ``[tiles, LANES, 2 * PAIRS]``, in the order of escapes."""
    return values.view(-1, PAIRS, LANES, 2).permute(0, 2, 3, 1).reshape(-1, LANES, 2 * PAIRS)


def _from_lanes(values: torch.Tensor) -> torch.Tensor:
    """``_by_lane`` undone."""
    return values.view(-1, LANES, 2, PAIRS).permute(0, 3, 1, 2).reshape(-1, TILE)


def _pack_signs(signs: torch.Tensor) -> torch.Tensor:
    """``[tiles, TILE] uint8`` as words ``[tiles, PAIRS / 2, LANES] int32``."""
    by_pair = signs.view(-1, PAIRS // 2, 2, LANES, 2).permute(0, 1, 3, 4, 2)
    return by_pair.reshape(-1, PAIRS // 2, 4 * LANES).view(torch.int32)


def _unpack_signs(words: torch.Tensor) -> torch.Tensor:
    by_pair = words.contiguous().view(torch.uint8).view(-1, PAIRS // 2, LANES, 2, 2)
    return by_pair.permute(0, 1, 4, 2, 3).reshape(-1, TILE)


def _pack_low_bits(codes: torch.Tensor) -> torch.Tensor:
    """The lower two bits of codes, as words ``[tiles, 2, LANES] int32``."""
    fours = (codes & 3).view(-1, 2, 2, 4, LANES, 2)  # of pairs, whose bits share a byte
    packed = fours[:, :, :, 0]
    for i in range(1, 4):
        packed = packed | fours[:, :, :, i] << 2 * i
    return packed.permute(0, 1, 3, 4, 2).reshape(-1, 2, 4 * LANES).view(torch.int32)


def _pack_top_bits(codes: torch.Tensor) -> torch.Tensor:
    """The upper bit of codes, as words ``[tiles, 1, LANES] int32``."""
    eights = (codes >> 2).view(-1, 2, 8, LANES, 2)
    packed = eights[:, :, 0]
    for i in range(1, 8):
        packed = packed | eights[:, :, i] << i
    return packed.permute(0, 2, 3, 1).reshape(-1, 1, 4 * LANES).view(torch.int32)


def _unpack_codes(words: torch.Tensor) -> torch.Tensor:
    codes = torch.empty(len(words), PAIRS, LANES, 2, dtype=torch.uint8, device=words.device)
    for k in range(PAIRS):
        for half in range(2):
            low = words[:, k // 8] >> (2 * (k % 8) + 16 * half) & 3
            codes[:, k, :, half] = low | (words[:, 2] >> (k + 16 * half) & 1) << 2
    return codes.view(-1, TILE)
