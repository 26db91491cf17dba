from dataclasses import replace

import pytest
import torch

from fastvideo_lightning.plan import find_card
from fastvideo_lightning.plan import probe as probing

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTVIDEO_LIGHTNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A card")


def test_a_measurement_is_kept_for_the_card_it_was_made_on(monkeypatch):
    assert probing.load_probe() is None
    machine = replace(find_card("H100"), name="A card", source="measured here")
    probing.save_probe(machine)
    assert probing.load_probe() == machine
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Another card")
    assert probing.load_probe() is None


@pytest.mark.parametrize("content", ["", "[]", '{"name": "A card"}', '{"older": 1}'])
def test_a_damaged_or_older_measurement_is_none(content):
    probing.cache_file().parent.mkdir()
    probing.cache_file().write_text(content)
    assert probing.load_probe() is None


def test_every_rate_is_a_positive_number():
    assert probing.measure_link(CPU, size_bytes=1 << 16) > 0
    assert probing.measure_matmul(CPU, size=32) > 0
    assert probing.measure_attention(CPU, tokens=16, heads=1) > 0
    assert probing.measure_memory(CPU, size_bytes=1 << 12) > 0
    assert 0 < probing.measure_launch(CPU, num_blocks=1) < 1
