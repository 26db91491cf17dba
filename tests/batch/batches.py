"""Batches whose videos cost nothing to make: small frames, no model."""

import json
from pathlib import Path

import av
import numpy as np

from fastvideo_lightning.batch.folder import BatchFolder
from fastvideo_lightning.batch.manifest import DONE, Entry, Manifest, sha256_of
from fastvideo_lightning.batch.session import About
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


def write_batch(path: Path, size: int, *, tell=lambda path: None, stale_s=60.0) -> int:
    """Write the videos that the folder lacks, as a worker does; return how many it wrote."""
    folder = BatchFolder(path, stale_s=stale_s)
    entries = {index: make_entry(index) for index in range(size)}
    there = folder.open(entries)
    for recovered in folder.recovered:
        tell(recovered)
    writer = BatchWriter(folder, entries, fail_fast=False)
    writer.on_written = folder.on_recovered = tell
    while missing := folder.wait(index for index in entries if index not in there):
        for index in missing:
            if writer.takes({"index": index}):
                writer.on_predict_batch_end(Silent(), make_video(index), {"index": index})
        writer.on_predict_epoch_end()
    folder.close()
    assert not writer.failed
    return writer.num_written


def die(folder: BatchFolder) -> None:
    """Leave a folder as a process does that is killed."""
    folder._session._ends.set()
    about = About("here", 1, About.of_this_process().mark.rpartition(" ")[0] + " never")
    (folder._session.home / "about").write_text(json.dumps(vars(about)))
    folder._is_open = False


def check_folder(path: Path, size: int) -> None:
    """Every video is there once, whole, and as its entry says; and nothing else is there."""
    entries = Manifest(path).read()
    assert [entry.status for entry in entries] == [DONE] * size
    check_videos(path, entries, size)


def check_videos(path: Path, entries: list[Entry], size: int) -> None:
    """Every video is there once, whole, and as its entry says; and nothing else is there."""
    assert len(entries) == size
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
