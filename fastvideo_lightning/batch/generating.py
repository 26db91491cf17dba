"""The batches of a generator."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fastvideo_lightning.batch.folder import BatchFolder
from fastvideo_lightning.batch.videos import VideoBatch
from fastvideo_lightning.config import SamplingParams, check_keywords
from fastvideo_lightning.prompts import PromptDataset

if TYPE_CHECKING:
    import lightning as L

_SAMPLING = tuple(SamplingParams.__dataclass_fields__)
# Of the configuration: what makes it another video, and is no matter of where weights live.
_CHANGING_PIXELS = ("cache", "attention_backend")
_TAKEN = ("output_path", "resume", "fail_fast")


class GeneratesBatches:
    """The verb of a generator that makes many videos."""

    module: Any
    config: Any

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
        return VideoBatch(
            PromptDataset(prompts, **sampling),
            BatchFolder(output_path),
            module=self.module,
            resume=resume,
            fail_fast=fail_fast,
            settings={name: getattr(self.config, name) for name in _CHANGING_PIXELS},
            setup=self._launch,
            iterate=self._iterate,
        )
