from pathlib import Path

import pytest

from fastvideo_lightning.pack import source
from fastvideo_lightning.pack.source import fingerprint


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of which four pieces of 8 bytes are read in each file."""
    monkeypatch.setattr(source, "_SAMPLES", 4)
    monkeypatch.setattr(source, "_SAMPLE_BYTES", 8)
    (tmp_path / "vae").mkdir()
    return tmp_path


def known_as(folder: Path, content: bytes, name: str = "model.bin") -> str:
    """Return the fingerprint of a folder with a file of that content."""
    path = folder / "vae" / name
    path.write_bytes(content)
    try:
        return fingerprint(folder, {"vae"}, (), {}, {})
    finally:
        path.unlink()


def changed_at(place: int, size_bytes: int) -> bytes:
    content = bytearray(size_bytes)
    content[place] = 1
    return bytes(content)


@pytest.mark.parametrize("place", [0, 130, 199])
def test_a_large_file_of_the_same_size_is_told_by_its_samples(folder: Path, place: int) -> None:
    assert known_as(folder, changed_at(place, 200)) != known_as(folder, bytes(200))


def test_of_a_large_file_only_the_samples_are_read(folder: Path) -> None:
    assert known_as(folder, changed_at(10, 200)) == known_as(folder, bytes(200))


def test_of_a_large_safetensors_file_the_header_is_read(folder: Path) -> None:
    length = (60).to_bytes(8, "little")
    plain, other = (length + content for content in (bytes(192), changed_at(40, 192)))
    assert known_as(folder, plain) == known_as(folder, other), "no sample has it"
    name = "model.safetensors"
    assert known_as(folder, plain, name) != known_as(folder, other, name)


def test_a_small_file_is_read_in_whole(folder: Path) -> None:
    assert known_as(folder, changed_at(10, 32)) != known_as(folder, bytes(32))
