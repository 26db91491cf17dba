"""BatchWriter: every video of a batch becomes a file and an entry, every failure an entry."""

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvideo_lightning.batch.folder import BatchFolder, StorageError
from fastvideo_lightning.batch.manifest import FAILED, Entry
from fastvideo_lightning.output.files import WriteBehind
from fastvideo_lightning.output.video import GeneratedVideo

if TYPE_CHECKING:
    import lightning as L

_log = logging.getLogger(__name__)

_OVERTAKEN = (
    "%.60r is left to another worker: this one gave no sign of life for so long that it was taken "
    "for dead."
)


class BatchWriter:
    """A callback that writes each video while the next one is made.

    Attributes:
        failed: Entries of the prompts that failed.
        num_written: Videos whose files are whole.
        on_written: Called with the path of each, from the thread that wrote it.
        is_claimed: Whether what is to be made was claimed before, for several processes.

    Args:
        folder: Where to.
        entries: For each prompt, by its index, what is known of its entry before it is made.
        fail_fast: End the run with the first prompt that fails.
        settings: Tells how a video is computed that is written now.
        look_again: Called before a video is made; returns its entry with what goes in as it is now,
            and raises where the model was changed since the batch began.
    """

    def __init__(
        self,
        folder: BatchFolder,
        entries: Mapping[int, Entry],
        *,
        fail_fast: bool,
        settings: Callable[[], Mapping[str, Any]] = dict,
        look_again: Callable[[Entry, Mapping[str, Any]], Entry] = lambda entry, item: entry,
    ) -> None:
        self.failed: list[Entry] = []
        self.num_written = 0
        self._folder = folder
        self._entries = dict(entries)
        self._settings = settings
        self._look_again = look_again
        self._fail_fast = fail_fast
        self.on_written: Callable[[Path], None] = lambda path: None
        self.is_claimed = False
        self._is_repeat = False
        self._written: deque[GeneratedVideo] = deque()
        self._writes = WriteBehind()

    def on_predict_batch_start(self, batch: Mapping[str, Any], *, is_repeat: bool = False) -> None:
        """Remember whether another process keeps this video, and look at what goes into it."""
        self._is_repeat = is_repeat
        index = batch["index"]
        self._entries[index] = self._look_again(self._entries[index], batch)

    def on_predict_batch_end(
        self, fabric: "L.Fabric", outputs: GeneratedVideo, batch: Mapping[str, Any]
    ) -> None:
        """Begin to write the video; raises StorageError if the one before could not be written."""
        if self._is_repeat:
            return
        index = batch["index"]
        write = partial(self._keep, outputs, self._entries[index], index)
        self._writes.put(write, partial(fabric.call, video=outputs))

    def on_predict_epoch_end(self) -> None:
        """Wait until the last video is written: at `on_predict_end` all are there."""
        self._writes.finish()
        self._folder.forget()  # before another process closes the folder for all
        self._folder.refresh()

    def on_exception(self) -> None:
        """Finish the video before."""
        try:
            self._writes.finish()
        except Exception as error:
            # The exception that ends the run is on its way; this one must not take its place.
            _log.error("%s", error)
        with suppress(OSError):
            self._folder.refresh()

    def teardown(self) -> None:
        """The same as after an exception."""
        self.on_exception()

    def take_written(self) -> Iterator[GeneratedVideo]:
        """Give out the videos whose files are whole, each once, in the order of the prompts."""
        while self._written:
            yield self._written.popleft()

    def skip_failure(self, batch: Mapping[str, Any], error: Exception) -> bool:
        """Note a prompt that failed, after the video before; True where the run goes on."""
        self._writes.finish()
        if not self._is_repeat:
            index = batch["index"]
            self._note_failure(self._entries[index], index, error)
        return not self._fail_fast

    def takes(self, batch: Mapping[str, Any]) -> bool:
        """Claim a prompt; False where another worker makes it, or has made it."""
        return self.is_claimed or self._folder.claim(batch["index"])

    def _keep(self, video: GeneratedVideo, entry: Entry, index: int) -> None:
        entry = replace(
            entry,
            settings=dict(self._settings()),
            time={"finished": _now(), "generation_s": round(video.generation_time_s, 3)},
            memory={
                "peak_gpu_gib": video.peak_gpu_memory_gib,
                "peak_host_gib": _peak_host_gib(),
                "num_replans": video.num_replans,
            },
        )
        try:
            path = self._folder.keep(video, entry, index)
        except Exception as error:
            self._note_failure(entry, index, error)
            if self._fail_fast or isinstance(error, StorageError):
                raise
            return
        if path is None:
            _log.warning(_OVERTAKEN, video.prompt)
        else:
            video.video_path = path
            self.num_written += 1
            self._written.append(video)
            self.on_written(path)

    def _note_failure(self, entry: Entry, index: int, error: Exception) -> None:
        what = str(error).partition("\n")[0] or type(error).__name__
        if not isinstance(error, RuntimeError | ValueError | OSError):
            what = f"{type(error).__name__}: {what}"
        entry = replace(entry, status=FAILED, error=what, time={"finished": _now()})
        self.failed.append(entry)
        if not isinstance(error, StorageError):  # that one ends the batch and is told then
            # Of one that ends the run the exception says why.
            reason = "." if self._fail_fast else f": {what}"
            _log.warning("Failed: %.60r%s", entry.prompt, reason)
        try:
            self._folder.fail(entry, index)
        except OSError as unwritable:
            raise unwritable from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _peak_host_gib() -> float | None:
    """Return the most memory that the process has had; None on Windows, which does not count it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**30 if sys.platform == "darwin" else 2**20), 3)
