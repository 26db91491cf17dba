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


def test_what_a_folder_s_files_are_read_with_is_measured_and_nothing_is_left(tmp_path):
    before = find_card("H100")
    machine = probing.with_reads(before, tmp_path, size_bytes=2 << 20)
    assert machine.cache_bytes_per_s > 0
    assert machine.cache_bytes_per_s != before.cache_bytes_per_s
    assert machine.disk_bytes_per_s > 0
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_never_read_past_the_cache_keeps_its_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(probing, "_reads_direct", lambda path: False)
    before = find_card("H100")
    machine = probing.with_reads(before, tmp_path, size_bytes=2 << 20)
    assert machine.disk_bytes_per_s == before.disk_bytes_per_s
