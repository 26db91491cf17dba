"""Workers on one folder, at which everything happens: `elastic_script.py FOLDER FIRST_SEED RUNS`.

Workers are real processes that run the batch room with frames in place of a model. They are killed,
stopped for longer than their heartbeat and woken, find the disk full, and see clocks jump.
"""

import errno
import json
import os
import random
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from fastvideo_lightning.batch.folder import BatchFolder, StorageError
from fastvideo_lightning.batch.manifest import DONE, Manifest
from fastvideo_lightning.batch.writer import BatchWriter
from fastvideo_lightning.output.video import GeneratedVideo
from tests.batch.batches import Silent, check_videos, make_entry, make_video

STALE_S = 0.5
NUM_WORKERS, NUM_PROMPTS, NUM_EVENTS = 5, 30, 40
ENTRIES = {index: make_entry(index) for index in range(NUM_PROMPTS)}


def work(path: Path, seed: int, full: Path, told: int) -> int:
    """Be a worker; return 0 where every video is there."""
    jump = random.Random(seed)
    really_save, really_time = GeneratedVideo.save, time.time

    def save(video: GeneratedVideo, part: Path) -> Path:
        if full.exists():
            part.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return really_save(video, part)

    GeneratedVideo.save = save  # type: ignore[method-assign]
    time.time = lambda: really_time() + jump.uniform(-1e6, 1e6)
    folder = BatchFolder(path, stale_s=STALE_S)
    there = folder.open(ENTRIES)
    writer = BatchWriter(folder, ENTRIES, fail_fast=False)
    tell = writer.on_written = folder.on_recovered = lambda video: os.write(
        told, f"{video.name}\n".encode()
    )
    for video in folder.recovered:
        tell(video)
    try:
        while left := folder.wait(index for index in ENTRIES if index not in there):
            for index in left:
                if writer.takes({"index": index}):
                    time.sleep(jump.uniform(0, 0.03))
                    writer.on_predict_batch_end(Silent(), make_video(index), {"index": index})
            writer.on_predict_epoch_end()
    except StorageError:
        return 3
    finally:
        folder.close()
    return 0 if folder.num_done() == NUM_PROMPTS else 3


class Run:
    """One folder and its workers."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.random = path, random.Random(seed)
        self.full = path.with_suffix(".full")
        self.told = path.with_suffix(".told")
        self.codes: dict[int, int | None] = {}  # by process; None of one that runs
        self.stopped: dict[int, float] = {}
        self.happened = dict.fromkeys(("kill", "stop", "full", "touch"), 0)

    def start(self) -> None:
        """Start a worker."""
        seed = self.random.random()
        if not (child := os.fork()):
            told = os.open(self.told, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            code = 70
            try:
                code = work(self.path, seed, self.full, told)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        self.codes[child] = None

    def running(self) -> list[int]:
        """Reap who has ended; return who has not."""
        for pid in [pid for pid, code in self.codes.items() if code is None]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.codes[pid] = os.waitstatus_to_exitcode(status)
                assert self.codes[pid] in (0, 3, -signal.SIGKILL), f"{pid} ended {self.codes[pid]}"
        return [pid for pid, code in self.codes.items() if code is None]

    def leave_claims(self) -> None:
        """Claim prompts, and publish one, as a machine that is gone for good."""
        folder = BatchFolder(self.path, stale_s=STALE_S)
        folder.open(ENTRIES)
        for index in self.random.sample(range(NUM_PROMPTS), 3):
            folder.claim(index)
        folder.keep(make_video(index), ENTRIES[index], index)
        folder._session._ends.set()
        (folder._session.home / "about").write_text(json.dumps({"host": "gone", "mark": "x y z"}))

    def happen(self) -> None:
        """Have something happen."""
        what = self.random.choice([*self.happened])
        awake = [pid for pid in self.running() if pid not in self.stopped]
        if what in ("kill", "stop") and awake:
            pid = self.random.choice(awake)
            os.kill(pid, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
            if what == "stop":
                until = time.monotonic() + STALE_S * self.random.uniform(0.5, 3)
                self.stopped[pid] = until
        elif what == "full":
            if self.full.exists():
                self.full.unlink()
            elif self.random.random() < 0.3:
                self.full.touch()
        else:  # what files say of time is nobody's concern
            for folder, _, files in os.walk(self.path / ".batch"):
                for file in files:
                    with suppress(OSError):
                        os.utime(Path(folder) / file, (self.random.uniform(0, 4e9),) * 2)
        self.happened[what] += 1

    def wake(self) -> None:
        """Go on with those that were stopped for long enough."""
        for pid, until in [*self.stopped.items()]:
            if time.monotonic() >= until:
                del self.stopped[pid]
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def end(self) -> None:
        """Let all come to their end; start others until one finds that all is there."""
        self.full.unlink(missing_ok=True)
        until = time.monotonic() + 60
        while running := self.running():
            self.wake()
            assert time.monotonic() < until, f"{running} do not end"
            time.sleep(0.01)
        self.start()
        while self.running():
            assert time.monotonic() < until, "the last one does not end"
            time.sleep(0.01)
        assert [*self.codes.values()][-1] == 0

    def go(self) -> None:
        """Start workers, have things happen, and check what is there in the end."""
        if self.random.random() < 0.5:
            self.leave_claims()
        for _ in range(NUM_EVENTS):
            while len(self.running()) < NUM_WORKERS:
                self.start()
            time.sleep(self.random.uniform(0, 0.06))
            self.wake()
            self.happen()
        self.end()
        done = [entry for entry in Manifest(self.path).read() if entry.status == DONE]
        check_videos(self.path, done, NUM_PROMPTS)
        told = set(self.told.read_text().split())
        assert told <= {entry.file for entry in done}, "told of what is not there"


if __name__ == "__main__":
    for seed in range(int(sys.argv[2]), int(sys.argv[2]) + int(sys.argv[3])):
        run = Run(Path(sys.argv[1]) / str(seed), seed)
        started = time.monotonic()
        try:
            run.go()
        except BaseException:
            print(f"seed {seed}", file=sys.stderr)
            for pid in run.running():
                os.kill(pid, signal.SIGKILL)
            raise
        print(
            json.dumps({**run.happened, "took": round(time.monotonic() - started, 1)}), flush=True
        )
