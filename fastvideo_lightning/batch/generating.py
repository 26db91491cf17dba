"""The batches of a generator."""

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

from fastvideo_lightning.batch.folder import BatchFolder
from fastvideo_lightning.batch.identity import describe, dtypes_of, look_again
from fastvideo_lightning.batch.manifest import Entry
from fastvideo_lightning.batch.videos import VideoBatch
from fastvideo_lightning.config import SamplingParams, check_keywords, check_switch
from fastvideo_lightning.prompts.dataset import PlacedPrompts, PromptDataset

if TYPE_CHECKING:
    import lightning as L

    from fastvideo_lightning.modules import VideoModule

_SAMPLING = tuple(SamplingParams.__dataclass_fields__)
# Of the configuration: what makes it another video, and is no matter of where weights live.
_OTHER_VIDEO = ("cache", "attention_backend")
# What is chosen for memory or speed and changes pixels slightly: a run that goes on with another of
# these, as one does that ran out of memory, keeps what is there.
_OTHER_ROUNDING = ("vae_tiling", "compile", "context_parallel")
_TAKEN = ("output_path", "resume", "fail_fast")


class Unchanged:
    """Holds a model against what it was when its batch was asked for.

    Args:
        module: The model.
        is_set_up: Whether it is placed; else caches and backends are set before the first video.
    """

    def __init__(self, module: "VideoModule", is_set_up: bool) -> None:
        from fastvideo_lightning.modules.content import live_state

        self._module = module
        self._before = live_state(module)
        if not is_set_up:
            for name in ("attention_backend", "cache"):
                del self._before[name]

    def look_again(self, entry: Entry, item: Mapping[str, Any]) -> Entry:
        """Return the entry with what goes in as it is now.

        Raises:
            RuntimeError: If adapters, scheduler, backend or a part of the model was changed.
        """
        from fastvideo_lightning.modules.content import live_state

        now = live_state(self._module)
        changed = sorted(n for n in now.keys() & self._before if now[n] != self._before[n])
        if changed or self._before.keys() - now.keys():
            raise RuntimeError(
                f"{', '.join(changed) or 'A part of the model'} was changed in the middle of a "
                "batch: its other videos would not be what its manifest says. Read the videos of "
                "a batch to the end, or close() it, before anything is changed."
            )
        self._before = now
        return look_again(entry, item)


class GeneratesBatches:
    """The verb of a generator that makes many videos."""

    module: Any
    config: Any
    device_type: Any

    _fabric: Any = None
    _batch: "ref[VideoBatch] | None" = None

    def _launch(self) -> "L.Fabric":
        raise NotImplementedError

    def _iterate(self, prompts: Any, writer: Any) -> Iterator[Any]:
        raise NotImplementedError

    def generate_videos(
        self,
        prompts: Iterable[str | Mapping[str, Any]],
        *,
        output_path: str | os.PathLike[str] = "output/",
        resume: bool = True,
        fail_fast: bool = False,
        **sampling: Any,
    ) -> VideoBatch:
        """Make a video of each prompt, with a manifest from which a broken run goes on.

        Args:
            prompts: Texts, or mappings with `prompt` and `SamplingParams` fields that override.
            output_path: Folder of the videos and of `manifest.jsonl`.
            resume: Leave out what the manifest calls done and whose file is there unchanged.
            fail_fast: End with the first prompt that fails; else it is noted and the next follows.
            **sampling: As in `generate_video`; the n-th prompt gets `seed + n`.

        Returns:
            An iterator over the videos that it makes, each with its `video_path`.

        Raises:
            TypeError, ValueError, OSError: For what was passed, before any work is done.
            RuntimeError: If another batch is being written into the folder.
        """
        check_keywords(sampling, known=_SAMPLING, others=_TAKEN, where="generate_videos()")
        check_switch("resume", resume)
        check_switch("fail_fast", fail_fast)
        from fastvideo_lightning.modules.content import model_keys
        from fastvideo_lightning.modules.prompt_checks import warn_of_unread

        module, dataset = self.module, PromptDataset(prompts, **sampling)
        warn_of_unread(module.pipeline, dataset)
        batch = VideoBatch(
            dataset,
            BatchFolder(output_path, suffix=getattr(module, "file_suffix", ".mp4")),
            describe=partial(
                describe,
                module=module,
                settings=self._settings(_OTHER_VIDEO),
                dtypes=dtypes_of(module, self.device_type),
                model_inputs=model_keys(module),
            ),
            look_again=Unchanged(module, self._fabric is not None).look_again,
            resume=resume,
            fail_fast=fail_fast,
            settings=partial(self._settings, _OTHER_ROUNDING),
            setup=self._launch,
            iterate=self._iterate,
            places=prompts.places if isinstance(prompts, PlacedPrompts) else (),
        )
        self._batch = ref(batch)
        return batch

    def _check_between_batches(self, verb: str) -> None:
        """Raise RuntimeError where a batch is read that a call of `verb` would change."""
        batch = None if self._batch is None else self._batch()
        if batch is not None and batch.is_open:
            raise RuntimeError(
                f"{verb} cannot be called in the middle of a batch: its other videos would not be "
                "what its manifest says. Read the videos of the batch to the end, or close() it."
            )

    def _settings(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: getattr(self.config, name) for name in names}
