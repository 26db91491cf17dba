"""What of a unit is coded."""

import pytest
import torch

from fastvideo_lightning.offload.coding import coded
from fastvideo_lightning.offload.coding.coded import (
    LEAST_RUN_BYTES,
    PART_PIECES,
    PIECE_NUMBERS,
    encode_part,
    parts_of,
)
from fastvideo_lightning.offload.coding.exponents import TILE, decode, encode
from fastvideo_lightning.offload.tensors.layout import SlabLayout, TensorSpec

BF16, FP32 = torch.bfloat16, torch.float32


def layout_of(*sizes):
    return SlabLayout([TensorSpec.contiguous(torch.Size([n]), dtype) for n, dtype in sizes])


def test_parts_cover_what_lies_in_the_file_and_nothing_else():
    many = LEAST_RUN_BYTES
    layout = layout_of((many, BF16), (10, BF16), (7, FP32), (many, BF16), (3, BF16), (many, BF16))
    is_filled = [True, True, True, False, True, True]
    parts = list(parts_of(layout, is_filled))
    assert [part.is_coded for part in parts] == [True, False, False, True]
    covered = torch.zeros(layout.size_bytes, dtype=torch.bool)
    for part in parts:
        assert not covered[part.begin : part.end].any()
        covered[part.begin : part.end] = True
    for spec, offset, filled in zip(layout.specs, layout.offsets, is_filled, strict=True):
        assert covered[offset : offset + spec.size_bytes].all() == filled


def test_a_large_run_is_cut_into_pieces():
    whole = PIECE_NUMBERS * PART_PIECES
    parts = list(parts_of(layout_of((whole + 6, BF16)), [True]))
    assert [part.end - part.begin for part in parts] == [2 * whole, 12]


def test_a_part_is_coded_in_pieces(monkeypatch):
    monkeypatch.setattr(coded, "PIECE_NUMBERS", 3 * TILE)
    numbers = torch.randn(8 * TILE - 4).bfloat16()
    found = list(encode_part(numbers.view(torch.uint8), coded.Part(0, 2 * numbers.numel(), True)))
    assert [piece.numbers for _, piece in found] == [3 * TILE, 3 * TILE, 2 * TILE - 4]
    assert torch.equal(torch.cat([decode(piece) for _, piece in found]), numbers)
    assert [part.begin for part, _ in found] == [0, 6 * TILE, 12 * TILE]


@pytest.mark.exhaustive
def test_a_piece_fits_its_buffer():
    worst = torch.ones(PIECE_NUMBERS).bfloat16()
    worst[::17] = 2.0**40
    assert encode(worst).data.numel() <= coded.PIECE_BYTES


def test_what_gains_too_little_is_not_coded():
    anything = torch.randint(-(1 << 15), 1 << 15, (16 * TILE,)).to(torch.int16).view(torch.uint8)
    part = coded.Part(0, anything.numel(), True)
    assert [found for _, found in encode_part(anything, part)] == [None]
