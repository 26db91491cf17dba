"""The decoding of Note [Exponent codes] by a GPU: one Triton kernel, a tile for each program."""

# What Triton compiles has no types that Python knows.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False

import torch

from fastvideo_lightning.offload.coding.exponents import BODY_BYTES, HEADER_BYTES, LANES, PAIRS

try:
    import triton
    from triton import language as tl
except ImportError:  # a build of torch for CPUs alone
    triton = None

_WARPS = 8

if triton is not None:

    @triton.jit
    def _ones(words):
        """How many bits of each word are set, ``int32`` in and out."""
        words = words - ((words >> 1) & 0x55555555)
        words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
        words = (words + (words >> 4)) & 0x0F0F0F0F
        return ((words * 0x01010101) >> 24) & 0xFF

    @triton.jit
    def _every_other(words):
        """Bits 0, 2, ... 14 and 16, 18, ... 30 of each word as bits 0 to 7 and 16 to 23."""
        words = words & 0x55555555
        words = (words | (words >> 1)) & 0x33333333
        words = (words | (words >> 2)) & 0x0F0F0F0F
        return (words | (words >> 4)) & 0x00FF00FF

    @triton.jit
    def _place_escapes(
        body,
        escapes,
        numbers,
        missing,
        rounds,
        lanes: tl.constexpr,
        pairs_of_lane: tl.constexpr,
    ):
        """Write the numbers of a tile whose exponents stand by themselves.

        Args:
            body: pointer to uint8, the tile's words.
            escapes: pointer to uint8, its escapes.
            numbers: pointer to int16, where its numbers go.
            missing: ``[lanes] int32``, which numbers of each lane they are.
            rounds: the most that a lane has.
            lanes: of a tile.
            pairs_of_lane: in a lane.
        """
        lane = tl.arange(0, lanes)
        count = _ones(missing)
        at = tl.cumsum(count, 0) - count
        for _ in range(rounds):
            is_one = missing != 0
            lowest = missing & (-missing)
            bit = _ones(lowest - 1)
            pair_at = bit & (pairs_of_lane - 1)
            second = bit >> 4
            place = ((pair_at >> 1) * lanes + lane) * 4 + (pair_at & 1) + 2 * second
            sign = tl.load(body + place, mask=is_one, other=0).to(tl.int32)
            exponent = tl.load(escapes + at, mask=is_one, other=0).to(tl.int32)
            number = (sign & 0x7F) | ((sign & 0x80) << 8) | (exponent << 7)
            where = numbers + (pair_at * lanes + lane) * 2 + second
            tl.store(where, number.to(tl.int16), mask=is_one)
            missing = missing ^ lowest
            at += 1

    @triton.jit
    def _decode_tile(
        data,
        out,
        pairs,
        header_bytes: tl.constexpr,
        body_bytes: tl.constexpr,
        lanes: tl.constexpr,
        pairs_of_lane: tl.constexpr,
    ):
        """Decode one tile.

        Args:
            data: pointer to uint8, the coded run.
            out: pointer to int32, where the pairs go.
            pairs: how many pairs the run has.
            header_bytes: of a tile.
            body_bytes: of a tile.
            lanes: of a tile.
            pairs_of_lane: in a lane.
        """
        tile = tl.program_id(0)
        tiles = tl.num_programs(0)
        header = (data + tile.to(tl.int64) * header_bytes).to(tl.pointer_type(tl.int32))
        begin = tl.load(header)
        base = tl.load(header + 1)
        rounds = tl.load(header + 2)
        body = data + tiles.to(tl.int64) * header_bytes + tile.to(tl.int64) * body_bytes
        escapes = data + tiles.to(tl.int64) * (header_bytes + body_bytes) + begin

        lane = tl.arange(0, lanes)
        words = body.to(tl.pointer_type(tl.int32)) + lane
        first = tile * (lanes * pairs_of_lane)
        target = out + first.to(tl.int64) + lane
        # All loads come before any store, which the compiler cannot know to be elsewhere.
        signs = (
            tl.load(words),
            tl.load(words + lanes),
            tl.load(words + 2 * lanes),
            tl.load(words + 3 * lanes),
            tl.load(words + 4 * lanes),
            tl.load(words + 5 * lanes),
            tl.load(words + 6 * lanes),
            tl.load(words + 7 * lanes),
        )
        low = tl.load(words + 8 * lanes)
        high = tl.load(words + 9 * lanes)
        top = tl.load(words + 10 * lanes)
        shift = (base << 7) | (base << 23)
        is_whole = first + lanes * pairs_of_lane <= pairs
        for k in tl.static_range(pairs_of_lane):
            lower = low if k < 8 else high
            code = (lower >> (2 * (k % 8))) & 0x00030003
            upper = (top >> (k - 2)) if k >= 2 else (top << (2 - k))
            code = code | (upper & 0x00040004)
            now = signs[k // 2] >> (8 * (k % 2))
            pair = (now & 0x007F007F) | ((now & 0x00800080) << 8) | ((code << 7) + shift)
            if is_whole:
                tl.store(target + k * lanes, pair)
            else:
                tl.store(target + k * lanes, pair, mask=first + k * lanes + lane < pairs)

        if rounds > 0:
            missing = _every_other(low & (low >> 1)) | (_every_other(high & (high >> 1)) << 8)
            missing = missing & top
            tl.debug_barrier()  # a program's own stores, which the ones below are to overwrite
            numbers = (out + first.to(tl.int64)).to(tl.pointer_type(tl.int16))
            _place_escapes(body, escapes, numbers, missing, rounds, lanes, pairs_of_lane)


def check_available() -> None:
    """Raise RuntimeError where weights cannot be decoded by a GPU."""
    if triton is None:
        raise RuntimeError(
            "weight_compression='lossless' decodes weights by Triton, which is not installed. "
            "`pip install triton`, or pass weight_compression='none'."
        )


def decode_into(data: torch.Tensor, tiles: int, out: torch.Tensor) -> None:
    """Decode a run on the current stream.

    Args:
        data: ``[bytes] uint8`` on a CUDA device, at an address that is a multiple of 16.
        tiles: of the run.
        out: ``[4 * pairs] uint8`` on the same device, at such an address.
    """
    _decode_tile[(tiles,)](
        data,
        out.view(torch.int32),
        out.numel() // 4,
        HEADER_BYTES,
        BODY_BYTES,
        LANES,
        PAIRS,
        num_warps=_WARPS,
    )
