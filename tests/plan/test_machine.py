import pytest

from fastvideo_lightning.plan.machine import CARDS, GIB, LINK_SHARE, find_card, match_card


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
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000 Max-Q"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti SUPER"),
        ("Tesla V100-SXM2-16GB", "V100 16GB"),
        ("A card from the future", None),
    ],
)
def test_what_a_driver_calls_its_card_is_matched(device, card):
    found = match_card(device)
    assert (found.name if found else None) == card


@pytest.mark.parametrize(
    ("typed", "card", "lanes"),
    [
        ("RTX 4060 Ti", "RTX 4060 Ti 8GB", (4, 8)),
        ("4060 Ti 16GB", "RTX 4060 Ti 16GB", (4, 8)),
        ("4060", "RTX 4060", (4, 8)),
        ("5060ti 16 gb", "RTX 5060 Ti 16GB", (5, 8)),
        ("RTX 5070", "RTX 5070", (5, 16)),
        ("3060", "RTX 3060", (4, 16)),
        ("RTX 3060 12GB", "RTX 3060", (4, 16)),
        ("3060 8GB", "RTX 3060 8GB", (4, 16)),
        ("RTX 3050", "RTX 3050", (4, 8)),
        ("2080 ti", "RTX 2080 Ti", (3, 16)),
        ("RTX 2000 Ada Generation", "RTX 2000 Ada", (4, 8)),
        ("RTX PRO 4000 Blackwell", "RTX PRO 4000", (5, 16)),
        ("A6000", "RTX A6000", (4, 16)),
        ("a100", "A100 40GB", (4, 16)),
        ("T4", "T4", (3, 16)),
    ],
)
def test_a_card_is_found_by_what_its_owner_calls_it_with_the_lanes_that_it_has(typed, card, lanes):
    generation, count = lanes
    machine = find_card(typed)
    assert machine.name == card
    nominal = {3: 1e9, 4: 2e9, 5: 4e9}[generation] * count
    assert machine.link_bytes_per_s == pytest.approx(nominal * LINK_SHARE)


def test_a_size_that_a_card_is_not_sold_with_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'RTX 4060 Ti"):
        find_card("RTX 4060 Ti 12GB")


def test_the_memory_that_is_there_tells_cards_of_one_name_apart():
    for memory_gib, card in ((7.7, "RTX 4060 Ti 8GB"), (15.7, "RTX 4060 Ti 16GB")):
        found = match_card("NVIDIA GeForce RTX 4060 Ti", round(memory_gib * GIB))
        assert (found.name, found.memory_bytes) == (card, round(memory_gib * GIB))


@pytest.mark.parametrize("name", CARDS)
def test_every_card_is_found_by_its_name_and_by_what_a_driver_makes_of_it(name):
    assert find_card(name).name == name
    assert match_card(f"NVIDIA {name}").name == name


def test_every_card_has_plausible_figures():
    for name in CARDS:
        machine = find_card(name)
        assert 3e9 < machine.memory_bytes < 300e9
        assert 10e9 < machine.link_bytes_per_s < 64e9
        assert 3e12 < machine.attention_flops < machine.matmul_flops < 3e15
