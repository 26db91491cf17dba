"""What tells a pack's sources apart."""

import os
from pathlib import Path

import pytest

from fastvideo_lightning.pack import source
from fastvideo_lightning.pack.source import fingerprint


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of which files of 32 bytes are read as a whole."""
    monkeypatch.setattr(source, "_READ_WHOLE_BYTES", 32)
    (tmp_path / "vae").mkdir()
    return tmp_path


def known_as(folder: Path, content: bytes, *, changed_at_s: int = 1) -> str:
    """Return the fingerprint of a folder with a file of that content and time of change."""
    path = folder / "vae" / "model.safetensors"
    path.write_bytes(content)
    os.utime(path, (changed_at_s, changed_at_s))
    return fingerprint(folder, {"vae"}, (), {}, {})


def test_a_small_file_is_known_by_its_content_whenever_it_was_written(folder: Path) -> None:
    assert known_as(folder, bytes(32)) == known_as(folder, bytes(32), changed_at_s=2)
    assert known_as(folder, bytes(32)) != known_as(folder, bytes(31) + b"1")


def test_a_large_file_is_known_by_its_time_of_change_too(folder: Path) -> None:
    assert known_as(folder, bytes(200)) == known_as(folder, bytes(200))
    assert known_as(folder, bytes(200)) != known_as(folder, bytes(200), changed_at_s=2)
    assert known_as(folder, bytes(200)) != known_as(folder, bytes(201))


def test_of_a_large_file_the_header_is_read(folder: Path) -> None:
    length = (60).to_bytes(8, "little")
    plain, other = (length + header + bytes(192) for header in (bytes(60), bytes(59) + b"1"))
    assert known_as(folder, plain) != known_as(folder, other)
