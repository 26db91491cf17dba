"""Replanning: what happens when the device runs out of memory."""

import gc
import logging
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fastvideo_lightning.config import OffloadConfig, SamplingParams
from fastvideo_lightning.generator.placements import ModelPlacement
from fastvideo_lightning.modules.acceleration import models_that_decode_by
from fastvideo_lightning.modules.steps import Stage
from fastvideo_lightning.plan import Plan, make_plan
from fastvideo_lightning.plan.choose import CHOSEN, choose_tighter
from fastvideo_lightning.prompts.dataset import params_of

if TYPE_CHECKING:
    import lightning as L

    from fastvideo_lightning.loop import SkipFailure, Takes
    from fastvideo_lightning.output.video import GeneratedVideo

_log = logging.getLogger(__name__)
MAX_REPLANS = 2
_STAGES = {Stage.ENCODE: "encode", Stage.DENOISE: "denoise", Stage.DECODE: "decode"}


class OutOfGPUMemoryError(RuntimeError):
    """The device ran out of memory; the message names the stage and what would fit.

    Attributes:
        stage: `encode`, `denoise`, `decode`, or None while weights were placed.
        flags: The flags of a plan that takes less, those that differ; None where nothing does.
    """

    def __init__(self, message: str, *, stage: str | None, flags: dict[str, Any] | None) -> None:
        super().__init__(message)
        self.stage = stage
        self.flags = flags


class Replanner:
    """Makes a video again with less on the device, `MAX_REPLANS` times at most.

    It stands among Fabric's callbacks too, to note on each video how often that was needed.

    Args:
        placing: What is placed again.
    """

    def __init__(self, placing: ModelPlacement) -> None:
        self._placing = placing
        self._num_replans: Counter[int] = Counter()  # by the index of the prompt
        self._num_while_loading = 0
        self._begun: int | None = None

    def on_predict_batch_start(self, batch: Mapping[str, Any]) -> None:
        """Remember which prompt is in work."""
        self._begun = batch["index"]

    def on_predict_batch_end(self, outputs: "GeneratedVideo") -> None:
        """Note on the video how many plans it took beyond the first."""
        outputs.num_replans = self._num_replans[outputs.index]

    def iterate(
        self,
        fabric: "L.Fabric",
        prompts: Iterable[Mapping[str, Any]],
        skip_failure: "SkipFailure | None",
        takes: "Takes | None" = None,
    ) -> Generator[Any]:
        """Make the videos; on running out of memory, replan or explain.

        Args:
            fabric: Launched and set up.
            prompts: Items of a `PromptDataset`.
            skip_failure: As in `PredictLoop.iterate`.
            takes: As there.
        """
        from fastvideo_lightning.loop import PredictLoop

        items = list(prompts)
        self._num_replans.clear()
        if items:  # the weights were placed for the first video, and count as its own
            self._num_replans[items[0]["index"]] = self._num_while_loading
            self._num_while_loading = 0
        self._adapt(fabric, items)
        skipping = _Skipping(skip_failure, self._gives_up, self.explain)
        places = {item["index"]: place for place, item in enumerate(items)}
        place, self._begun = 0, None
        while True:
            try:
                yield from PredictLoop(fabric).iterate(
                    self._placing.module,
                    items[place:],
                    skip_failure=skipping if skip_failure else None,
                    takes=takes,
                    num_before=place,
                )
                return
            except torch.OutOfMemoryError as error:
                place = place if self._begun is None else places[self._begun]
                self._tighten(fabric, items[place], error)

    def load(self, fabric: "L.Fabric", params: SamplingParams | None) -> None:
        """Have Fabric set the module up; on running out of memory, replan or explain.

        Args:
            fabric: Launched.
            params: The first video; None for one that the model makes by default.
        """
        item = {} if params is None else params.given()
        for num_replans in range(MAX_REPLANS + 1):
            try:
                fabric.setup(self._placing.module)
                return
            except torch.OutOfMemoryError as error:
                may_replan = self._placing.given.on_oom == "replan" and num_replans < MAX_REPLANS
                tighter = self._tighter(item, Stage.IDLE) if may_replan else None
                release(error)
                if tighter is None:
                    raise self.explain(error, item) from error
                self._warn("while placing the weights", "placing them", tighter, num_replans + 1)
                self._placing.exchange(fabric, tighter.config)
                self._num_while_loading = num_replans + 1

    def _adapt(self, fabric: "L.Fabric", items: list[Mapping[str, Any]]) -> None:
        """Place for the videos that are asked for; on running out of memory, replan or explain."""
        tighter: Plan | None = None
        first: Mapping[str, Any] = items[0] if items else {}
        while True:
            try:
                if tighter is None:
                    self._placing.adapt(fabric, items)
                else:
                    self._placing.tighten(fabric, tighter.prediction)
                return
            except torch.OutOfMemoryError as error:
                gives_up = not items or self._gives_up(first)
                tighter = None if gives_up else self._tighter(first, Stage.IDLE)
                release(error)
                if tighter is None:
                    raise self.explain(error, first) from error
                self._num_replans[first["index"]] += 1
                number = self._num_replans[first["index"]]
                self._warn("while placing the weights", "placing them", tighter, number)

    @contextmanager
    def _explained(self, item: Mapping[str, Any]) -> Iterator[None]:
        """Explain running out of memory while weights are placed."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            release(error)
            raise self.explain(error, item) from error

    def explain(self, error: torch.OutOfMemoryError, item: Mapping[str, Any]) -> Exception:
        """Turn the device's error into one that names the stage and a plan that takes less."""
        stage = self._placing.module.stage
        tighter = self._tighter(item, stage)
        has_tiles = bool(models_that_decode_by("tiling", self._placing.module))
        message = explain_memory(stage, self._placing.config, has_tiles=has_tiles)
        flags = None
        if tighter is not None:
            flags = self._difference(tighter)
            words = ", ".join(f"{name}={value}" for name, value in flags.items())
            message += f" Less is taken, {tighter.reserved_bytes / 2**30:.1f} GiB, with {words}."
        reason = str(error).partition("\n")[0]
        return OutOfGPUMemoryError(f"{message} ({reason})", stage=_STAGES.get(stage), flags=flags)

    def _gives_up(self, item: Mapping[str, Any]) -> bool:
        is_asked = self._placing.given.on_oom == "replan"
        return not is_asked or self._num_replans[item["index"]] >= MAX_REPLANS

    def _tighten(
        self, fabric: "L.Fabric", item: Mapping[str, Any], error: torch.OutOfMemoryError
    ) -> None:
        """Release what the failed video held and place for a tighter plan, or raise."""
        stage = self._placing.module.stage
        tighter = None if self._gives_up(item) else self._tighter(item, stage)
        release(error)
        if tighter is None:
            raise self.explain(error, item) from error
        self._num_replans[item["index"]] += 1
        where = f"in the {_STAGES.get(stage, 'set-up')} stage"
        self._warn(where, "making the video", tighter, self._num_replans[item["index"]])
        with self._explained(item):
            self._placing.tighten(fabric, tighter.prediction)
        fabric.call("on_replan", fabric=fabric, module=self._placing.module, plan=tighter)

    def _warn(self, where: str, doing: str, tighter: Plan, number: int) -> None:
        flags = self._difference(tighter)
        words = ", ".join(f"{name}={value}" for name, value in flags.items())
        said = f"Out of GPU memory {where}: {doing} again with {words}"
        _log.warning("%s (%d of %d).", said, number, MAX_REPLANS)

    def _tighter(self, item: Mapping[str, Any], stage: Stage) -> Plan | None:
        if self._placing.config.use_fsdp_inference:
            return None
        try:
            plan = self._plan(item)
        except ValueError:  # what the model makes by default needs an image, or has no size
            return None
        tighter = choose_tighter(
            plan.subject,
            self._placing.given,
            plan.machine,
            self._placing.config,
            _STAGES.get(stage),
        )
        return None if tighter is None else replace(plan, prediction=tighter)

    def _plan(self, item: Mapping[str, Any]) -> Plan:
        return make_plan(self._placing.module, params_of(item), flags={})

    def _difference(self, tighter: Plan) -> dict[str, Any]:
        now, then = self._placing.config, tighter.config
        changed = {name: getattr(then, name) for name in CHOSEN}
        return {name: value for name, value in changed.items() if value != getattr(now, name)}


class _Skipping:
    """Lets a batch go on after a failure, but for one that is replanned."""

    def __init__(
        self,
        skip_failure: "SkipFailure | None",
        gives_up: Callable[[Mapping[str, Any]], bool],
        explain: Callable[[torch.OutOfMemoryError, Mapping[str, Any]], Exception],
    ) -> None:
        self._skip_failure = skip_failure
        self._gives_up = gives_up
        self._explain = explain

    def __call__(self, batch: Mapping[str, Any], error: Exception) -> bool:
        assert self._skip_failure is not None
        if isinstance(error, torch.OutOfMemoryError):
            if not self._gives_up(batch):
                return False
            release(error)
            error = self._explain(error, batch)
        return self._skip_failure(batch, error)


def release(error: BaseException) -> None:
    """Let go of the tensors that the frames of an exception hold, and of the allocator's cache."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def explain_memory(stage: Stage, config: OffloadConfig, *, has_tiles: bool = True) -> str:
    """Say in which stage memory ran out and which flag would help.

    Args:
        stage: How far the video was.
        config: The flags in force.
        has_tiles: Whether the model can decode in tiles.
    """
    streamed = config.text_encoder_cpu_offload or config.text_encoder_layerwise_offload
    flags = {
        "dit_layerwise_offload=True": config.dit_layerwise_offload,
        "text_encoder_cpu_offload=True": streamed,
        "vae_cpu_offload=True": config.vae_cpu_offload,
        "image_encoder_cpu_offload=True": config.image_encoder_cpu_offload,
    }
    first = {
        Stage.IDLE: (
            "while placing the weights",
            "dit_layerwise_offload=True",
        ),
        Stage.ENCODE: ("in the encode stage", "text_encoder_cpu_offload=True"),
        Stage.DENOISE: ("in the denoise stage", "dit_layerwise_offload=True"),
        Stage.DECODE: ("in the decode stage", "vae_cpu_offload=True"),
    }
    where, best = first[stage]
    off = [flag for flag, is_on in flags.items() if not is_on]
    if best in off:
        help_ = f"Pass {best}."
    elif stage is Stage.DECODE and has_tiles and not config.vae_tiling:
        help_ = "Pass vae_tiling=True: it decodes in tiles, which changes pixels slightly."
    elif off:
        help_ = f"Pass {off[0]}."
    else:
        help_ = "Pass a smaller height, width or num_frames."
    return f"Out of GPU memory {where}. {help_}"
