"""What a pack takes over from its source, and what tells its sources apart."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fastvideo_lightning.pack import pack, source
from fastvideo_lightning.pack.source import files_beside, fingerprint


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


def test_files_of_linked_folders_are_taken_over_and_a_link_to_a_parent_ends(tmp_path: Path) -> None:
    real, linked = tmp_path / "real", tmp_path / "linked"
    for name in ("model_index.json", "vae/config.json", "tokenizer/more/vocab.txt"):
        (real / name).parent.mkdir(parents=True, exist_ok=True)
        (real / name).touch()
    linked.mkdir()
    for path in real.iterdir():
        (linked / path.name).symlink_to(path)
    expected = [Path("tokenizer/more/vocab.txt"), Path("vae/config.json")]
    assert list(files_beside(linked, {"vae"})) == list(files_beside(real, {"vae"})) == expected
    (linked / "around").symlink_to(linked)
    (linked / "up").symlink_to(tmp_path)
    (real / "tokenizer" / "back").symlink_to(linked)
    assert list(files_beside(linked, {"vae"})) == expected


def test_a_change_in_a_linked_folder_of_a_component_is_one_of_the_source(tmp_path: Path) -> None:
    real, vae = tmp_path / "real", tmp_path / "source" / "vae"
    real.mkdir()
    vae.mkdir(parents=True)
    (vae / "more").symlink_to(real)
    digests = set()
    for text in ("{}", "[]"):
        (real / "config.json").write_text(text)
        digests.add(fingerprint(vae.parent, {"vae"}, (), {}, {}))
    assert len(digests) == 2


def test_a_folder_of_links_to_components_is_packed_as_the_components_are(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in checkpoint("t2v").iterdir():
        (linked / path.name).symlink_to(path)
    out = pack(linked, tmp_path / "packed")
    for path in checkpoint("t2v").rglob("*"):
        relative = path.relative_to(checkpoint("t2v"))
        assert (out / relative).exists(), relative
