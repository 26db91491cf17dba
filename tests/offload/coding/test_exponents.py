"""The code for bf16 numbers: every bit comes back, and weights take 0.7 of their bytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvideo_lightning.offload.coding.exponents import TILE, decode, encode

NAN, INF = float("nan"), float("inf")


def bits_of(numbers):
    return numbers.view(torch.int16)


def assert_equal_bits(numbers):
    coded = encode(numbers)
    assert coded.numbers == numbers.numel()
    assert torch.equal(bits_of(decode(coded)), bits_of(numbers))
    return coded.data.numel() / (2 * numbers.numel())


def draw(kind, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if kind == "any bits":
        return torch.randint(-(1 << 15), 1 << 15, (count,), generator=generator).to(torch.int16)
    numbers = torch.randn(count, generator=generator)
    scale = {"weights": 0.02, "large": 1e30, "subnormal": 1e-39, "tiny": 1e-37}[kind]
    return bits_of((numbers * scale).bfloat16())


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(["any bits", "weights", "large", "subnormal", "tiny"]),
    pairs=st.integers(1, TILE + 3),
    spoiled=st.lists(st.tuples(st.integers(0, TILE), st.sampled_from([0.0, -0.0, NAN, INF, -INF]))),
    seed=st.integers(0, 99),
)
def test_every_bit_comes_back(kind, pairs, spoiled, seed):
    numbers = draw(kind, 2 * pairs, seed).view(torch.bfloat16)
    for position, value in spoiled:
        numbers[position % numbers.numel()] = value
    assert_equal_bits(numbers)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, NAN, INF, -INF])
def test_a_tile_of_one_value_comes_back(value):
    assert_equal_bits(torch.full((TILE,), value).bfloat16())


def test_weights_take_seven_tenths_of_their_bytes():
    assert assert_equal_bits(draw("weights", 16 * TILE).view(torch.bfloat16)) < 0.7


def test_each_tile_has_a_base_of_its_own():
    numbers = draw("weights", 16 * TILE).view(torch.bfloat16).view(16, TILE)
    numbers *= 2.0 ** torch.arange(16)[:, None]
    assert assert_equal_bits(numbers.view(-1)) < 0.7


def test_a_part_of_a_tile_costs_a_tile():
    assert (
        encode(torch.ones(2).bfloat16()).data.numel()
        == encode(torch.ones(TILE).bfloat16())[0].numel()
    )
