"""Memory and time of a set of flags: few terms, each explained in `docs/planning.md`.

How far copies hide under computing is followed block by block.

Note [Reserved memory]
What decides whether a video fits is not what is allocated but what the caching allocator reserves.
In each stage that is the weights that are there, as the allocator holds them, what it holds for
the activations, and the workspaces of the libraries. Weights are known from the headers to the
byte, so only what is computed has a margin. Between stages the allocator's cache is emptied where
a budget is kept, so the stages do not add up.

Note [Why a step may take longer than computing and copying do]
A block's copy begins once a slot is free, so with two slots it is at most one block ahead of what
computes. Where a block takes about as long to come as to compute, that is too little to keep what a
resident block gains: the link waits for a slot while it computes, and the blocks behind it are late
again. A third slot keeps the gain.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from fastvideo_lightning.config import OffloadConfig
from fastvideo_lightning.modules.roles import Role
from fastvideo_lightning.offload.coding.coded import STAGING_BYTES
from fastvideo_lightning.plan.component_plan import (
    ON_CALL,
    ON_CPU,
    ComponentPlan,
    denoiser_residents,
    place_components,
    slot_size,
)
from fastvideo_lightning.plan.cost import CallCost, under_flags
from fastvideo_lightning.plan.host_tiers import HostTiers, plan_tiers
from fastvideo_lightning.plan.machine import Machine
from fastvideo_lightning.plan.sizes import ComponentSize
from fastvideo_lightning.plan.workload import Workload

PASSES = 3
"""Until a pass begins as the one before it did: the first finds every slot free."""


@dataclass(frozen=True)
class BlockTime:
    """What one block takes.

    Attributes:
        compute_s: To compute.
        copy_s: To come in; 0 where it stays on the device.
    """

    compute_s: float
    copy_s: float = 0.0


def step_time(blocks: Sequence[BlockTime], num_slots: int) -> float:
    """Seconds of one pass through the blocks, in the middle of many.

    Args:
        blocks: In the order in which they compute.
        num_slots: Blocks that have device memory at the same time.
    """
    return _time_of_step(tuple(blocks), num_slots)


@lru_cache(maxsize=4096)
def _time_of_step(blocks: tuple[BlockTime, ...], num_slots: int) -> float:
    computed = copied = began = 0.0
    freed = [0.0] * num_slots  # when each slot was left last
    place = 0
    for _ in range(PASSES):
        began = computed
        for block in blocks:
            if block.copy_s:
                copied = max(copied, freed[place]) + block.copy_s
                computed = max(computed, copied) + block.compute_s
                freed[place] = computed
                place = (place + 1) % num_slots
            else:
                computed += block.compute_s
    return computed - began


# Each is a row of the table "Constants" in `docs/planning.md`. Where a small tensor splits a large
# free piece, which depends on what was free before, a denoiser holds more than was counted. That is
# set aside in full only where it is a small share of everything, so that the plan is at most a
# tenth above where nothing splits.
WORKSPACE_BYTES = 34 << 20  # of the matrix library
SPLIT = 0.18  # of the activations, held more
WHOLE_SPLIT = 0.08  # of everything: up to here it is set aside in full
PART_SPLIT = 0.06  # of everything: set aside in its place


@dataclass(frozen=True)
class StagePlan:
    """What one stage is predicted to take.

    Attributes:
        name: `encode`, `denoise` or `decode`.
        reserved_bytes: Device memory that the allocator holds at most.
        time_s: Of the whole stage; None where no machine is known.
        bound: What the time is the time of: `compute`, `link`, `reading` (of files), `launches` or
            `CPU`.
        compute_s: Time if no weight had to be copied.
        link_s: Time of the copies alone.
        moved_bytes: Copied to the device.
    """

    name: str
    reserved_bytes: int
    time_s: float | None
    bound: str
    compute_s: float | None
    link_s: float | None
    moved_bytes: int


@dataclass(frozen=True)
class Prediction:
    """Components and stages under one set of flags."""

    config: OffloadConfig
    components: tuple[ComponentPlan, ...]
    stages: tuple[StagePlan, ...]
    slot_bytes: int

    @cached_property
    def reserved_bytes(self) -> int:
        """Device memory of the stage that takes most."""
        return max(stage.reserved_bytes for stage in self.stages)

    @cached_property
    def time_s(self) -> float:
        """Of all stages."""
        return sum(stage.time_s or 0.0 for stage in self.stages)

    @cached_property
    def device_bytes(self) -> int:
        """Weights that stay on the device."""
        return sum(part.device_bytes for part in self.components)


def predict(subject: Workload, config: OffloadConfig, machine: Machine | None) -> Prediction:
    """Predict memory and time of one video under a set of flags.

    Args:
        subject: The model and the video.
        config: The flags.
        machine: The hardware; None predicts memory alone.
    """
    slot_bytes = slot_size(subject, config)
    host = None if machine is None else machine.host_memory_bytes
    tiers = plan_tiers(subject.components, config, host, takes_turns=subject.takes_turns)
    components = tuple(
        _on_host(part, tiers.get(part.fqn))
        for part in place_components(subject, config, slot_bytes)
    )
    clock = _Clock(machine)
    if machine is not None:
        components = tuple(
            replace(part, copy_s=max(clock.link(part.streamed_bytes), clock.read(part)))
            for part in components
        )
    kept = sum(part.device_bytes for part in components)
    staging = STAGING_BYTES if slot_bytes and config.weight_compression != "none" else 0
    stays = kept + config.num_slots * _whole_segments(slot_bytes) + staging
    places = {part.fqn: part for part in components}
    works = {
        size.fqn: under_flags(subject.work[size.fqn], config)
        for size in subject.by_role(Role.DENOISER)
    }
    lasting = sum(work.kept_bytes for work in works.values())
    stages = (
        _encode(subject, config, places, stays, clock),
        _denoise(subject, config, works, places, stays + lasting, slot_bytes, clock),
        _decode(subject, config, places, stays + lasting, slot_bytes, clock),
    )
    return Prediction(config, components, stages, slot_bytes)


def _on_host(part: ComponentPlan, tiers: HostTiers | None) -> ComponentPlan:
    """A component of which not all that moves is held on the host."""
    if tiers is None or not tiers.read_bytes:
        return part
    return replace(
        part,
        host_bytes=part.host_bytes - part.streamed_bytes + tiers.held_bytes,
        streamed_bytes=tiers.held_bytes + tiers.read_bytes,
        cached_bytes=tiers.cached_bytes,
        disk_bytes=tiers.disk_bytes,
        waits=str(tiers),
    )


def _whole_segments(size_bytes: int) -> int:
    """What the allocator reserves for one large tensor."""
    return -(-size_bytes // (2 << 20)) * (2 << 20)


class _Clock:
    """Turns work into time."""

    def __init__(self, machine: Machine | None) -> None:
        self.machine = machine

    def compute(self, work: CallCost) -> tuple[float, str]:
        """Seconds of one call on the device, and what they are spent on."""
        if self.machine is None:
            return 0.0, "compute"
        device = (
            work.matmul_flop / self.machine.matmul_flops
            + work.attention_flop / self.machine.attention_flops
            + work.traffic_bytes / self.machine.memory_bytes_per_s
        )
        launches = work.num_kernels * self.machine.launch_s
        exposed = work.num_exposed * self.machine.launch_s
        bound = "compute" if device >= launches + exposed else "launches"
        return max(device, launches) + exposed, bound

    def link(self, size_bytes: int) -> float:
        """Seconds of copying so many bytes to the device."""
        return size_bytes / self.machine.link_bytes_per_s if self.machine else 0.0

    def read(self, place: ComponentPlan) -> float:
        """Seconds of reading from files what a component does not hold on the host."""
        if self.machine is None:
            return 0.0
        cached = place.cached_bytes / self.machine.cache_bytes_per_s
        return cached + place.disk_bytes / self.machine.disk_bytes_per_s

    def cpu(self, work: CallCost) -> float:
        """Seconds of one call on the host."""
        if self.machine is None:
            return 0.0
        flop = work.matmul_flop + work.attention_flop
        return flop / self.machine.cpu_flops + work.num_kernels * self.machine.launch_s

    def stage(
        self,
        name: str,
        reserved: float,
        compute: float,
        link: float,
        total: float,
        bound: str,
        moved: int,
    ) -> StagePlan:
        """Round memory up, and leave times out where there is no machine."""
        known = self.machine is not None
        reserved_bytes = round(reserved) + WORKSPACE_BYTES
        return StagePlan(
            name,
            reserved_bytes,
            total if known else None,
            bound if known else "",
            compute if known else None,
            link if known else None,
            moved,
        )


def _encode(
    subject: Workload,
    config: OffloadConfig,
    places: dict[str, ComponentPlan],
    stays: int,
    clock: _Clock,
) -> StagePlan:
    num_prompts = 2 if subject.request.num_calls * subject.request.batch > 1 else 1
    peak, compute, link, total, moved, bounds = 0.0, 0.0, 0.0, 0.0, 0, {"compute": 0.0}
    calls: list[tuple[str, CallCost, int]] = []
    for size in (*subject.by_role(Role.TEXT_ENCODER), *subject.by_role(Role.IMAGE_ENCODER)):
        is_text = size.role is Role.TEXT_ENCODER
        if is_text or subject.request.has_image:
            calls.append((size.fqn, subject.work[size.fqn], num_prompts if is_text else 1))
    if subject.request.has_image:
        encoding = subject.tiled_encoding if config.vae_tiling else subject.encoding
        calls += [(fqn, work, 1) for fqn, work in encoding.items()]
    for fqn, work, count in calls:
        place = places[fqn]
        if place.where == ON_CPU:
            seconds = count * clock.cpu(work)
            total += seconds
            bounds["CPU"] = bounds.get("CPU", 0.0) + seconds
            continue
        once, kind = clock.compute(work)
        copy = max(clock.link(place.streamed_bytes), clock.read(place))
        transient = place.size_bytes if place.where == ON_CALL else 0
        spent = once + copy if transient else max(once, copy)
        peak = max(peak, transient + work.held_bytes)
        compute, link, total = compute + count * once, link + count * copy, total + count * spent
        moved += count * place.streamed_bytes
        kind = kind if once >= copy else "link"
        bounds[kind] = bounds.get(kind, 0.0) + count * spent
    bound = max(bounds, key=lambda kind: bounds[kind])
    return clock.stage("encode", stays + peak, compute, link, total, bound, moved)


def _on_call(
    subject: Workload, places: dict[str, ComponentPlan], slot_bytes: int
) -> dict[str, int]:
    """Bytes that each VAE takes while it is on the device; none where it borrows a slot."""
    return {
        size.fqn: 0 if places[size.fqn].size_bytes <= slot_bytes else places[size.fqn].size_bytes
        for size in subject.by_role(Role.VAE)
        if places[size.fqn].where == ON_CALL
    }


def _denoise(
    subject: Workload,
    config: OffloadConfig,
    works: dict[str, CallCost],
    places: dict[str, ComponentPlan],
    stays: int,
    slot_bytes: int,
    clock: _Clock,
) -> StagePlan:
    """All steps; of two experts each does some of them, and their times are alike."""
    denoisers = subject.by_role(Role.DENOISER)
    # A decoder that no slot has room for comes in under the last step, beside its activations.
    is_streamed = any(places[size.fqn].streamed_bytes for size in denoisers)
    ahead = sum(_on_call(subject, places, slot_bytes).values()) if is_streamed else 0
    # Calls that pass each block together compute one after the other, and copy once.
    lanes = subject.request.num_calls if config.pair_guidance is True and is_streamed else 1
    num_passes = subject.request.num_steps * subject.request.num_calls // lanes
    if config.guidance_parallel > 1 and subject.request.num_calls > 1:
        # Another process makes every other call, but for the first step's.
        num_passes = num_passes // config.guidance_parallel + 1
    peak = max((w.held_bytes + (lanes - 1) * w.hidden_bytes for w in works.values()), default=0)
    compute = link = total = 0.0
    moved = 0
    kind = "compute"
    for size in denoisers:
        once, kind = clock.compute(works[size.fqn])
        once *= lanes
        copy = clock.link(places[size.fqn].streamed_bytes)
        share = num_passes / len(denoisers)
        compute, link = compute + share * once, link + share * copy
        reading = clock.read(places[size.fqn])
        hidden = _step_time(size, config, once, copy) if copy else once
        total += share * max(hidden, reading)
        moved += round(share * places[size.fqn].streamed_bytes)
        kind = kind if once >= copy else "link"
        kind = kind if hidden >= reading else "reading"
    compiling = max((work.compiling_bytes for work in works.values()), default=0)
    reserved: float = stays + peak + ahead + compiling
    reserved += _set_aside(SPLIT * peak, reserved + WORKSPACE_BYTES)
    return clock.stage("denoise", reserved, compute, link, total, kind, moved)


def _set_aside(split: float, everything: float) -> float:
    """Bytes that a plan adds because free pieces may be split."""
    return split if split <= WHOLE_SPLIT * everything else PART_SPLIT * everything


def _step_time(
    size: ComponentSize, config: OffloadConfig, compute_s: float, copy_s: float
) -> float:
    """Seconds of one call of a streamed denoiser; blocks take time in proportion to their size."""
    stays = denoiser_residents(size, config)
    whole = sum(block.size_bytes for block in size.blocks)
    moving = sum(block.size_bytes for i, block in enumerate(size.blocks) if i not in stays)
    blocks = [
        BlockTime(
            compute_s * block.size_bytes / whole,
            0.0 if i in stays else copy_s * block.size_bytes / moving,
        )
        for i, block in enumerate(size.blocks)
    ]
    return step_time(blocks, config.num_slots)


def _decode(
    subject: Workload,
    config: OffloadConfig,
    places: dict[str, ComponentPlan],
    stays: int,
    slot_bytes: int,
    clock: _Clock,
) -> StagePlan:
    peak, compute, link, moved, kind = 0.0, 0.0, 0.0, 0, "compute"
    on_call = _on_call(subject, places, slot_bytes)
    for size in subject.by_role(Role.VAE):
        work = (subject.tiled if config.vae_tiling else subject.work)[size.fqn]
        place = places[size.fqn]
        peak = max(peak, on_call.get(size.fqn, 0) + work.held_bytes)
        once, kind = clock.compute(work)
        compute += once
        link += max(clock.link(place.streamed_bytes), clock.read(place))
        moved += place.streamed_bytes
    bound = kind if compute >= link else "link"
    return clock.stage("decode", stays + peak, compute, link, compute + link, bound, moved)
