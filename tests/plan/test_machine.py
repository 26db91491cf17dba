import pytest

from fastvideo_lightning.plan.machine import CARDS, find_card, match_card


@pytest.mark.parametrize("name", ["RTX 4090", "rtx4090", "NVIDIA GeForce RTX 4090", "rtx-4090"])
def test_a_card_is_known_by_any_common_spelling(name):
    assert find_card(name).name == "RTX 4090"


def test_an_unknown_card_names_the_nearest():
    with pytest.raises(ValueError, match=r"Did you mean 'RTX 4090'\? Known are: H200, .*3060"):
        find_card("RTX 4900")
    with pytest.raises(ValueError, match="Known are"):
        find_card("abacus")


@pytest.mark.parametrize(
    ("device", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("A card from the future", None),
    ],
)
def test_what_a_driver_calls_its_card_is_matched(device, card):
    found = match_card(device)
    assert (found.name if found else None) == card


def test_every_card_has_plausible_figures():
    for name in CARDS:
        machine = find_card(name)
        assert 8e9 < machine.memory_bytes < 300e9
        assert 10e9 < machine.link_bytes_per_s < 64e9
        assert 1e13 < machine.attention_flops < machine.matmul_flops < 3e15
