"""Denoising steps under the placements that a plan chooses, beside what it predicts for them."""

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

from benchmarks.harness import (
    Deadline,
    DeviceMemory,
    empty_caches,
    read_peak,
    reset_peak,
    time_steps,
)
from benchmarks.models import CONFIGS, RandomWan, make_inputs, make_transformer, transformer_shapes
from fastvideo_lightning import OffloadConfig, SamplingParams, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from fastvideo_lightning.callbacks.memory_budget import take_workspace
from fastvideo_lightning.callbacks.placement import Placement
from fastvideo_lightning.modules.roles import Role
from fastvideo_lightning.plan import BudgetTooSmallError
from fastvideo_lightning.plan.choose import choose
from fastvideo_lightning.plan.machine import GIB, Machine
from fastvideo_lightning.plan.predict import Prediction, StagePlan, predict
from fastvideo_lightning.plan.probe import measure_launch
from fastvideo_lightning.plan.workload import Subject

LONG_STEP_S = 1.0
SETUP_S, READ_BYTES_PER_S = 2.0, 4e9  # of a placement, as seen on one H100


@dataclass
class Place:
    """One placement of a denoiser, and the videos that it is measured with.

    Attributes:
        config: its flags.
        budgets: for each number of frames the budgets that choose it, in GiB; none where
            everything streams whatever would fit.
    """

    config: OffloadConfig
    budgets: dict[int, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As the table has it."""
        if not self.config.dit_layerwise_offload:
            return "resident"
        slots = (
            ""
            if self.config.num_slots == OffloadConfig.num_slots
            else f", {self.config.num_slots} slots"
        )
        return f"streamed, {self.config.dit_resident_blocks} resident{slots}"

    def make_callback(self) -> Placement:
        """What puts the weights there."""
        if not self.config.dit_layerwise_offload:
            return Resident("")
        return LayerwiseOffload(
            "blocks",
            num_slots=self.config.num_slots,
            resident_blocks=self.config.dit_resident_blocks,
        )


class Steps:
    """The steps of one model.

    Args:
        name: a key of ``CONFIGS``.
        folder: where its weights are, or will be.
        size: height and width.
        machine: what predictions are made for.
        table: the same from the table of cards; None for a card that is not in it.
        device: where it computes.
        deadline: when to stop.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        size: tuple[int, int],
        machine: Machine,
        table: Machine | None,
        device: torch.device,
        deadline: Deadline,
    ) -> None:
        self._name, self._folder, self._size, self._device = name, folder, size, device
        self._machine, self._table, self._deadline = machine, table, deadline
        self._subjects: dict[int, Subject] = {}

    @cached_property
    def _module(self) -> VideoModule:
        return make_module(self._name)

    def subject(self, frames: int) -> Subject:
        """One call of the denoiser alone."""
        if frames not in self._subjects:
            height, width = self._size
            params = SamplingParams(height=height, width=width, num_frames=frames)
            params = params.merge(num_inference_steps=1, guidance_scale=1.0)
            whole = Subject.of(self._module, params)
            denoiser = tuple(s for s in whole.components if s.role is Role.DENOISER)
            self._subjects[frames] = replace(whole, components=denoiser)
        return self._subjects[frames]

    def list_places(self, lengths: Iterable[int], budgets_gib: Iterable[float]) -> list[Place]:
        """The placements that budgets lead to; those that most rows share come first.

        Of those for one length alone, the longest comes first.
        """
        places: dict[OffloadConfig, Place] = {}
        for frames in lengths:
            streamed = OffloadConfig()
            places.setdefault(streamed, Place(streamed)).budgets[frames] = []
            for budget_gib in budgets_gib:
                try:
                    config = self._choose(frames, budget_gib).config
                except BudgetTooSmallError:
                    continue
                place = places.setdefault(config, Place(config))
                place.budgets.setdefault(frames, []).append(budget_gib)
        return sorted(places.values(), key=lambda place: (-len(place.budgets), -max(place.budgets)))

    def _choose(self, frames: int, budget_gib: float) -> Prediction:
        found = choose(self.subject(frames), OffloadConfig(), self._machine, budget_gib * GIB)
        flags = ("dit_layerwise_offload", "dit_resident_blocks", "num_slots")
        config = OffloadConfig(**{flag: getattr(found.config, flag) for flag in flags})
        return replace(found, config=config)

    def measure(self, places: Iterable[Place]) -> Iterator[dict[str, object]]:
        """A row for each placement and number of frames, as long as there is time."""
        for place in places:
            first = predict(self.subject(next(iter(place.budgets))), place.config, self._machine)
            if not self._deadline.allows(SETUP_S + first.device_bytes / READ_BYTES_PER_S):
                continue
            model = make_transformer(self._name, self._folder)
            callback = place.make_callback()
            empty_caches(self._device)
            callback.attach(model, self._device)
            callback.on_predict_batch_start()
            for frames, budgets_gib in place.budgets.items():
                stage = self._predict(frames, place.config)
                assert stage.time_s is not None
                if not self._deadline.allows(4 * stage.time_s):
                    continue
                yield {
                    "model": self._name,
                    "frames": frames,
                    "budgets_gib": budgets_gib,
                    "where": place.name,
                    "predicted_bytes": stage.reserved_bytes,
                    "predicted_s": stage.time_s,
                    "bound": stage.bound,
                    "predicted_from_table_s": self._from_table(frames, place.config),
                    **self._measure(model, frames),
                }
            callback.on_predict_batch_end()
            callback.detach()
            del model, callback
            empty_caches(self._device)

    def _predict(self, frames: int, config: OffloadConfig) -> StagePlan:
        """Where launches are the bound, with their rate of this moment: hosts of clouds vary."""
        subject, machine = self.subject(frames), self._machine
        stage = predict(subject, config, machine).stages[1]
        if stage.bound != "launches" or self._device.type != "cuda":
            return stage
        now = replace(machine, launch_s=measure_launch(self._device))
        return predict(subject, config, now).stages[1]

    def _from_table(self, frames: int, config: OffloadConfig) -> float | None:
        if self._table is None:
            return None
        return predict(self.subject(frames), config, self._table).stages[1].time_s

    def _measure(self, model: RandomWan, frames: int) -> dict[str, float]:
        """Reserved memory from an empty cache on, as a stage begins, and the time of a step."""
        inputs = make_inputs(model, frames, self._size, device=self._device)

        def step() -> None:
            with torch.no_grad():
                model(**inputs, return_dict=False)

        before = begin_stage(self._device)
        reset_peak(self._device)
        seconds = [time_steps(step, self._device, 1)]
        if seconds[0] < LONG_STEP_S:
            seconds = [time_steps(step, self._device, 2) for _ in range(5)]
        peak = read_peak(self._device)
        return {
            "measured_bytes": peak.reserved,
            "allocated_bytes": peak.allocated,
            "before_bytes": before.reserved,
            "measured_s": statistics.median(seconds),
        }


def begin_stage(device: torch.device) -> DeviceMemory:
    """Leave nothing of earlier rows, and take the workspace as `MemoryBudget` does."""
    if device.type == "cuda":
        torch._C._cuda_clearCublasWorkspaces()
    empty_caches(device)
    if device.type == "cuda":
        take_workspace(device)
    return empty_caches(device)


def make_module(name: str) -> VideoModule:
    """A pipeline whose denoiser has its dtypes and weighs nothing here."""
    transformer = make_meta_transformer(name)
    for fqn, shape, dtype in transformer_shapes(transformer):
        weight = transformer.get_parameter(fqn)
        weight.data = torch.empty(shape, dtype=dtype, device="meta")
    with torch.device("meta"):
        vae = AutoencoderKLWan()
    parts = {"tokenizer": None, "text_encoder": None, "scheduler": UniPCMultistepScheduler()}
    return VideoModule.from_pipeline(WanPipeline(transformer=transformer, vae=vae, **parts))


def make_meta_transformer(name: str) -> RandomWan:
    """The shapes of a transformer."""
    with torch.device("meta"):
        return RandomWan(**CONFIGS[name]).eval().requires_grad_(False)


def count_bytes(name: str) -> int:
    """Bytes of a transformer's weights."""
    shapes = transformer_shapes(make_meta_transformer(name))
    return sum(shape.size_bytes for shape in shapes)
