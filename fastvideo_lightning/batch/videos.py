"""VideoBatch: the videos of many prompts, one after the other."""

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from inspect import GEN_CLOSED, getgeneratorstate
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import proxy

from fastvideo_lightning.batch.folder import BatchFolder
from fastvideo_lightning.batch.identity import MakesVideos, ModelInputs
from fastvideo_lightning.batch.manifest import Entry
from fastvideo_lightning.batch.writer import BatchWriter
from fastvideo_lightning.output.video import GeneratedVideo
from fastvideo_lightning.prompts.dataset import (
    PromptDataset,
    PromptFileError,
    ResolvedPrompt,
    first_of_many,
    params_of,
)

if TYPE_CHECKING:
    import lightning as L

    from fastvideo_lightning.modules import VideoModule

_UNLIKE = (
    "%d of the videos that are there were not made with %s=%s and are kept. Pass resume=False to "
    "make them again."
)

_OTHER_INPUTS = (
    "%d of the videos that are there were made with other inputs, and are made again beside them: "
    "the model, an adapter, a picture or a video has changed since."
)

_RENAMED = "%d of the videos that are there are asked for under another name and keep theirs."

_WAITING = "Other workers are making the last %d prompts: this one waits in case they do not end."

# Of several processes: how often each has its turn before the first one claims more for all, and
# for how long it waits until it tells the others, who wait for it, that there is nothing as yet.
_TURNS, _AT_MOST_S = 4, 30.0

_log = logging.getLogger(__name__)

# What is chosen for memory or speed and changes pixels slightly: a run that goes on with another of
# these, as one does that ran out of memory, keeps what is there.
_OTHER_ROUNDING = ("vae_tiling", "compile", "context_parallel")


class VideoBatch(Iterator[GeneratedVideo]):
    """The videos that a call of `generate_videos` makes, each given out once its file is whole.

    That is while the next one is made already: writing overlaps making. With several ranks each
    gives out its own. A loop over them may be left at any time: what nobody holds closes itself.

    Attributes:
        total: Videos that were asked for.
        num_skipped: Of them, those whose videos were in the folder already.
        recovered: Files that a killed run finished and may not have told of.
    """

    def __init__(
        self,
        generator: MakesVideos,
        prompts: PromptDataset,
        folder: BatchFolder,
        *,
        resume: bool = True,
        fail_fast: bool = False,
        shard: tuple[int, int] = (1, 1),
    ) -> None:
        number, count = shard
        self.num_skipped = 0
        self._generator, self._folder = generator, folder
        # By a proxy: what it walks would else hold it, and a loop that is left would not let go.
        self._videos = VideoBatch._make(proxy(self), folder)
        inputs = ModelInputs(generator)
        items = _resolve_all(prompts, generator.module)
        self._items = items[number - 1 :: count]
        self.total = len(self._items)
        self._entries = {item["index"]: inputs.describe(item) for item in self._items}
        self._writer = BatchWriter(
            folder,
            self._entries,
            fail_fast=fail_fast,
            settings=partial(_settings, generator),
            look_again=inputs.look_again,
        )
        self._rank = _rank_from_environment()
        if not self._rank:
            try:
                wanted = {item["index"]: item.get("name") or item["prompt"] for item in items}
                there = folder.open(self._entries, wanted=wanted, resume=resume)
                self._items = self._remaining(there, _settings(generator))
            except BaseException:
                folder.close()  # or others wait for it for as long as somebody keeps the error
                raise
        self.recovered = [*folder.recovered]
        self._of_others: tuple[int, list[Entry]] = (0, [])
        self._is_told = False

    @property
    def is_open(self) -> bool:
        """Whether there are videos to come."""
        return getgeneratorstate(self._videos) != GEN_CLOSED

    @property
    def num_made(self) -> int:
        """Videos that were written: by this process, and at the end by all that share the batch."""
        return self._writer.num_written + self._of_others[0]

    @property
    def num_there(self) -> int:
        """Videos of the prompts that are in the folder by now, also while others still make some.

        A rank but the first one knows of its own alone.
        """
        return self.num_skipped + self.num_made if self._rank else self._folder.num_done()

    @property
    def failed(self) -> list[Entry]:
        """Entries of the prompts that failed: this process's, and at the end every worker's."""
        return self._writer.failed + self._of_others[1]

    @property
    def on_written(self) -> Callable[[Path], None]:
        """Called with each path once its file is whole, on the thread that wrote it.

        That is before the iterator gives the video out: by then the next one is made.
        """
        return self._writer.on_written

    @on_written.setter
    def on_written(self, told: Callable[[Path], None]) -> None:
        self._writer.on_written = self._folder.on_recovered = told

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GeneratedVideo:
        return next(self._videos)

    def close(self) -> None:
        """End the batch where it is; what is being written becomes whole."""
        self._videos.close()
        self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _make(self, folder: BatchFolder) -> Generator[GeneratedVideo]:
        try:
            if self._rank is None and not self._wait():
                return  # and no weight is read
            fabric = self._generator.launch()
            # The first rank has joined the workers of the folder, for all.
            folder.enter(fabric.broadcast(folder.worker), self._entries, {})
            self.num_skipped = fabric.broadcast(self.num_skipped)
            self._check_shared(fabric)
            self._writer.is_claimed = fabric.world_size > 1
            while (items := self._next_round(fabric)) is not None:
                for _ in self._generator.iterate(items, self._writer):
                    yield from self._writer.take_written()
                yield from self._writer.take_written()
            self._gather(fabric)
        finally:
            folder.close()

    def _wait(self, at_most_s: float = float("inf")) -> list[ResolvedPrompt]:
        """Wait for a prompt that can be made; return all that are left, none where all is done."""
        indexes = [item["index"] for item in self._items]
        busy = self._folder.wait(indexes, at_most_s=0)
        if busy and not self._is_told and not any(map(self._folder.is_free, busy)):
            self._is_told = True
            _log.info(_WAITING, len(busy))
        left = set(self._folder.wait(busy, at_most_s=at_most_s))
        self._items = [item for item in self._items if item["index"] in left]
        return self._items

    def _next_round(self, fabric: "L.Fabric") -> list[ResolvedPrompt] | None:
        """What is to be made next; None where nothing is left.

        A process by itself walks the list and claims each prompt at its turn. For several the
        first claims some turns for each, and tells the others.
        """
        if fabric.world_size == 1:
            return self._wait() or None
        items, names, worker = None, {}, ""
        if not self._rank:
            left = self._wait(_AT_MOST_S)
            claimed = (item for item in left if self._folder.claim(item["index"]))
            items = [*islice(claimed, _TURNS * fabric.world_size)] if left else None
            names, worker = self._folder.names, self._folder.worker
        items, names, worker = fabric.broadcast((items, names, worker))
        self._folder.enter(worker, self._entries, names)
        return items

    def _check_shared(self, fabric: "L.Fabric") -> None:
        """Raise RuntimeError on all processes where some of them see another folder."""
        if fabric.world_size == 1:
            return
        from torch.distributed import all_gather_object

        mark: Any = fabric.broadcast(None if self._rank else self._folder.make_mark())
        seen: list[Any] = [None] * fabric.world_size
        all_gather_object(seen, self._folder.sees(mark))
        if not self._rank:
            self._folder.remove_mark(mark)
        if not all(seen):
            raise RuntimeError(
                f"{sum(not each for each in seen)} of {fabric.world_size} processes see another "
                f"folder at {str(self._folder.path)!r}: one batch needs a folder that is shared by "
                "all machines. Pass such an output_path, or start each machine by itself with "
                "a part of the prompts each: shard 1/2, shard 2/2 and so on."
            )

    def _gather(self, fabric: "L.Fabric") -> None:
        """Wait for the other processes, and learn what they made and what others have failed at."""
        elsewhere = [] if self._rank else [*self._folder.failures().values()]
        if fabric.world_size > 1:
            from torch.distributed import all_gather_object

            outcomes: list[Any] = [None] * fabric.world_size
            all_gather_object(outcomes, (self._writer.num_written, self._writer.failed, elsewhere))
            own = outcomes.pop(fabric.global_rank)
            ranks = [*outcomes, (0, [], own[2])]
        else:
            ranks = [(0, [], elsewhere)]
        failed = [entry for _, entries, _ in ranks for entry in entries]
        known = {entry.identity for entry in [*self._writer.failed, *failed]}
        failed += [e for *_, entries in ranks for e in entries if e.identity not in known]
        self._of_others = sum(made for made, *_ in ranks), failed

    def _remaining(
        self, there: Mapping[int, Entry], settings: Mapping[str, Any]
    ) -> list[ResolvedPrompt]:
        """Return the prompts whose videos are not there; one asked for twice is made twice."""
        num_renamed, unlike = 0, Counter[str]()
        for index, entry in there.items():
            before, name = entry.settings, self._entries[index].name
            num_renamed += name not in (None, entry.name)
            unlike.update(n for n in settings.keys() & before if before[n] != settings[n])
        remaining = [item for item in self._items if item["index"] not in there]
        self.num_skipped = self.total - len(remaining)
        others = Counter(entry.request for entry in self._folder.unused)
        num_others = sum(self._entries[i["index"]].request in others for i in remaining)
        if num_others:
            _log.info(_OTHER_INPUTS, num_others)
        if num_renamed:
            _log.info(_RENAMED, num_renamed)
        for name, number in unlike.items():
            _log.info(_UNLIKE, number, name, settings[name])
        return remaining


def _settings(generator: MakesVideos) -> dict[str, Any]:
    return {name: getattr(generator.config, name) for name in _OTHER_ROUNDING}


def _resolve_all(prompts: PromptDataset, module: "VideoModule") -> list[ResolvedPrompt]:
    """Resolve each prompt; what the model refuses is told with the prompts that ask for it.

    What it refuses of all alike was asked for beside them and is told once, unless a file with
    settings beside its prompts says so.
    """
    resolved, wrong, errors = [], [], []
    places = prompts.locations
    for item in prompts:
        index = item["index"]
        try:
            params = module.resolve_sampling(params_of(item))
            name = item.get("name")
            resolved.append(ResolvedPrompt(item["prompt"], params, index, name=name))
        except (TypeError, ValueError) as error:
            number = index // prompts.seeds
            place = places[number] if places else f"Prompt {number + 1}, {item['prompt']:.40}"
            wrong.append(f"{place}: {error}")
            errors.append(error)
    if not errors:
        return resolved
    wrong = list(dict.fromkeys(wrong))  # of a prompt, once for all its seeds
    if places:
        raise PromptFileError(wrong) from errors[0]
    if not resolved and len({str(error) for error in errors}) == 1:
        raise errors[0]
    kind = TypeError if isinstance(errors[0], TypeError) else ValueError
    raise kind("\n".join(first_of_many(wrong, "prompt"))) from errors[0]


def _rank_from_environment() -> int | None:
    """Return this process's rank as whoever launched it says; None for a process on its own."""
    from lightning.fabric.utilities.rank_zero import _get_rank

    return _get_rank()
