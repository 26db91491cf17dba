"""Batches whose videos cost nothing to make: small frames, no model."""

from pathlib import Path

import av
import numpy as np

from fastvideo_lightning.batch.folder import BatchFolder
from fastvideo_lightning.batch.manifest import DONE, Entry, Manifest, sha256_of
from fastvideo_lightning.batch.writer import BatchWriter
from fastvideo_lightning.output.video import GeneratedVideo


def make_entry(index: int) -> Entry:
    return Entry(prompt=f"video {index % 4}", seed=index, status="")


def make_video(index: int) -> GeneratedVideo:
    frames = np.full((3, 16, 16, 3), 10 * (index % 25), np.uint8)
    return GeneratedVideo(frames, f"video {index % 4}", index, 8, index=index)


class Silent:
    """Stands in for a Fabric that nobody listens to: importing one takes seconds."""

    def call(self, moment, **_):
        pass


def write_batch(path: Path, size: int, *, tell=lambda path: None) -> int:
    """Write the videos that the folder lacks, as a run does; return how many there were."""
    folder = BatchFolder(path)
    done = folder.open()
    for path in folder.recovered:
        tell(path)
    entries = {index: make_entry(index) for index in range(size)}
    missing = [index for index, entry in entries.items() if entry.identity not in done]
    writer = BatchWriter(folder, entries, fail_fast=False)
    writer.on_written = tell
    for index in missing:
        writer.on_predict_batch_end(Silent(), make_video(index), {"index": index})
    writer.on_predict_epoch_end()
    folder.close()
    assert not writer.failed
    return len(missing)


def check_folder(path: Path, size: int) -> None:
    """Every video is there once, whole, and as its entry says; and nothing else is there."""
    entries = Manifest(path).read()
    assert [entry.status for entry in entries] == [DONE] * size
    assert {entry.identity for entry in entries} == {make_entry(i).identity for i in range(size)}
    for entry in entries:
        assert sha256_of(path / entry.file) == entry.sha256
        with av.open(str(path / entry.file)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 3
        assert abs(int(frames[0].mean()) - 10 * (entry.seed % 25)) < 8, "another video's pixels"
    names = {entry.file for entry in entries} | {"manifest.jsonl"}
    assert {left.name for left in path.iterdir()} == names
    assert len(names) == size + 1
