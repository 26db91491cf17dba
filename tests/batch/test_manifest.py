import json

import pytest

from fastvideo_lightning.batch.folder import BatchFolder
from fastvideo_lightning.batch.manifest import DONE, FAILED, Entry, Manifest, sha256_of


@pytest.fixture
def manifest(tmp_path):
    return Manifest(tmp_path)


def write(manifest, *entries):
    """Put entries in place as a worker does, beside what is there."""
    lines = [*manifest.read_lines(), *(each.to_line() for each in entries)]
    new = manifest.folder / "new"
    new.write_bytes(b"".join(line + b"\n" for line in lines))
    manifest.replace(new)


def entry(prompt="a red circle", **fields):
    return Entry(prompt=prompt, seed=7, status=DONE, file="a.mp4", sha256="00", **fields)


def test_an_entry_comes_back_as_it_was_written(manifest):
    full = entry(
        "a 😀\n" + "x" * 10_000,
        parameters={"height": 64, "guidance_scale": 2.0},
        model="m",
        versions={"torch": "2"},
        time={"finished": "2030-01-01T00:00:00+00:00", "generation_s": 1.5},
        memory={"peak_gpu_gib": None},
    )
    write(manifest, full)
    assert manifest.read() == [full]
    assert manifest.path.read_text(encoding="utf-8").count("\n") == 1


def test_a_line_names_what_a_reader_looks_for(manifest):
    write(manifest, entry())
    line = json.loads(manifest.path.read_text())
    asked = {"prompt", "seed", "status", "file", "sha256", "parameters", "versions", "time"}
    assert asked | {"memory"} <= line.keys()


def test_a_folder_without_a_manifest_has_no_entries(manifest):
    assert manifest.read() == []


@pytest.mark.parametrize(
    "torn", ['{"prompt": "b", "se', "{", '{"prompt": "b", "seed": 1}', "\0" * 9]
)
def test_a_torn_last_line_is_passed_over_and_the_next_entry_stands_on_its_own(
    manifest, torn, caplog
):
    write(manifest, entry("a"))
    with manifest.path.open("a") as file:
        file.write(torn)
    assert [e.prompt for e in manifest.read()] == ["a"]
    assert not caplog.records
    write(manifest, entry("c"))
    assert [e.prompt for e in manifest.read()] == ["a", "c"]


@pytest.mark.parametrize("line", ["[]", "3", "nonsense", '{"prompt": "a"}', "[" * 100_000])
def test_a_line_that_is_no_entry_is_told_by_its_number(manifest, line, caplog):
    manifest.path.write_text(line + "\n\n")
    write(manifest, entry())
    assert len(manifest.read()) == 1
    assert "line 1 is no entry" in caplog.text


@pytest.mark.parametrize(
    "changed", [{"prompt": 5}, {"file": 7}, {"file": ["a.mp4"]}, {"sha256": {}}, {"settings": []}]
)
def test_a_line_whose_values_somebody_has_changed_is_no_entry_either(manifest, changed, caplog):
    line = {"prompt": "a", "seed": 7, "status": DONE, "file": "a.mp4", "sha256": "0", **changed}
    manifest.path.write_text(json.dumps(line) + "\n")
    folder = BatchFolder(manifest.folder)
    assert folder.open({0: Entry("a", 7, "")}) == {}
    folder.close()
    assert "line 1 is no entry" in caplog.text


def test_what_a_later_version_adds_to_an_entry_is_no_obstacle(manifest):
    write(manifest, entry())
    line = json.loads(manifest.path.read_text())
    manifest.path.write_text(json.dumps({**line, "new": 1}) + "\n")
    assert manifest.read() == [entry()]


def test_what_cannot_be_put_in_place_leaves_what_stands_there(manifest):
    write(manifest, entry("a"))
    with pytest.raises(FileNotFoundError):
        manifest.replace(manifest.folder / "gone")
    assert [e.prompt for e in manifest.read()] == ["a"]


def test_a_symlink_in_its_place_is_not_written_through(manifest, tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    manifest.path.symlink_to(outside)
    for use in (manifest.read, lambda: write(manifest, entry())):
        with pytest.raises(OSError, match="is a symlink"):
            use()
    assert outside.read_text() == "mine"


def test_what_makes_a_video_another_one_is_in_its_identity():
    size, inputs = {"height": 64, "width": 64}, {"transformer": "1", "image_path": "2"}
    one = entry(parameters={**size, "image_path": "a.png"}, inputs=inputs, model="m")
    elsewhere = {"image_path": "moved/b.png", "width": 64, "height": 64}
    same = Entry("a red circle", 7, FAILED, parameters=elsewhere, inputs=inputs, model="moved/m")
    assert one.identity == same.identity
    others = [
        entry("b", parameters=one.parameters, inputs=inputs),
        entry(parameters={"height": 32, "width": 64}, inputs=inputs),
        entry(parameters=one.parameters, inputs={**inputs, "transformer": "3"}),
        entry(parameters=one.parameters, inputs={**inputs, "image_path": "3"}),
        entry(parameters=one.parameters, inputs={**inputs, "loras": "4"}),
        entry(parameters=one.parameters),
        Entry("a red circle", 8, DONE, parameters=one.parameters, inputs=inputs),
    ]
    assert one.identity not in {other.identity for other in others}


def test_only_a_regular_file_has_a_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a").startswith("ba7816bf")
    assert sha256_of(tmp_path) is None
    assert sha256_of(tmp_path / "none") is None
