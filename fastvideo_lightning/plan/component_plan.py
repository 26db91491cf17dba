"""Where the flags put each component, as `placements.make_placements` does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastvideo_lightning.config import OffloadConfig
from fastvideo_lightning.modules.roles import Role
from fastvideo_lightning.offload.blocks import resident_positions
from fastvideo_lightning.plan.sizes import ComponentSize, PartSize
from fastvideo_lightning.plan.workload import Workload

RESIDENT, ON_CALL, ON_CPU = "resident", "on the GPU for each call", "computed on the CPU"


@dataclass(frozen=True)
class ComponentPlan:
    """Where one component is.

    Attributes:
        fqn: Its name.
        size_bytes: Of its weights.
        where: In words, such as `streamed, 8 of 40 blocks resident`.
        device_bytes: On the device for as long as the generator lives, without shared slots.
        host_bytes: In host memory.
        streamed_bytes: Copied for each call.
        cached_bytes: Of these, what is read from the page cache.
        disk_bytes: Of these, what is read past it.
        waits: In words, how many of its blocks wait where on the host.
        copy_s: Seconds in which all that is copied for a call comes; None for no known machine.
    """

    fqn: str
    size_bytes: int
    where: str
    device_bytes: int
    host_bytes: int
    streamed_bytes: int = 0
    cached_bytes: int = 0
    disk_bytes: int = 0
    waits: str = ""
    copy_s: float | None = None


def place_component(size: ComponentSize, config: OffloadConfig, slot_bytes: int) -> ComponentPlan:
    """Say where the flags put a component, as `placements.make_placements` does."""
    if size.role is Role.DENOISER and config.dit_layerwise_offload and size.blocks:
        return _stream(size, config, config.dit_resident_blocks, slot_bytes)
    if size.role is Role.TEXT_ENCODER:
        if config.text_encoder_layerwise_offload and size.blocks:
            return _stream(size, config, 0, slot_bytes)
        if config.text_encoder_cpu_offload:
            return ComponentPlan(size.fqn, size.whole.size_bytes, ON_CPU, 0, size.whole.size_bytes)
    offloads = {
        Role.IMAGE_ENCODER: config.image_encoder_cpu_offload,
        Role.VAE: config.vae_cpu_offload,
    }
    whole = size.whole
    if size.role is not None and offloads.get(size.role, False):
        return ComponentPlan(
            size.fqn, whole.size_bytes, ON_CALL, 0, whole.size_bytes, whole.size_bytes
        )
    return _keep(size)


def _keep(size: ComponentSize) -> ComponentPlan:
    return ComponentPlan(size.fqn, size.whole.size_bytes, RESIDENT, size.whole.kept_bytes, 0)


def _stream(
    size: ComponentSize, config: OffloadConfig, resident_blocks: int, slot_bytes: int
) -> ComponentPlan:
    stays = resident_positions(len(size.blocks), resident_blocks, config.num_slots)
    kept = sum((size.blocks[i] for i in stays), PartSize())
    streamed = sum(
        part.travelling_bytes(config.weight_compression)
        for i, part in enumerate(size.blocks)
        if i not in stays
    )
    if not streamed:  # fewer blocks than slots, or as many residents as blocks
        return _keep(size)
    tables = sum((table for table in size.tables if table.size_bytes > slot_bytes), PartSize())
    return ComponentPlan(
        size.fqn,
        size.whole.size_bytes,
        f"streamed, {len(stays)} of {len(size.blocks)} blocks resident" if stays else "streamed",
        size.between.kept_bytes - tables.kept_bytes + kept.kept_bytes,
        streamed + tables.size_bytes,
        streamed,
    )


def place_components(
    subject: Workload, config: OffloadConfig, slot_bytes: int
) -> tuple[ComponentPlan, ...]:
    """Place every component; of denoisers that take turns the first one has the residents."""
    places = []
    kept = 0
    for size in subject.components:
        place = place_component(size, config, slot_bytes)
        shares = subject.takes_turns and config.dit_layerwise_offload
        if size.role is Role.DENOISER and shares:
            stays = denoiser_residents(size, config)
            own = sum((size.blocks[i] for i in stays), PartSize())
            # What is not shared lies between the blocks; the slots hold the largest set.
            shared = max(own.kept_bytes - kept, 0)
            kept = max(kept, own.kept_bytes)
            place = replace(
                place,
                device_bytes=place.device_bytes - own.kept_bytes + shared,
                host_bytes=place.host_bytes + own.size_bytes,
            )
        places.append(place)
    return tuple(places)


def denoiser_residents(size: ComponentSize, config: OffloadConfig) -> set[int]:
    """The blocks of a streamed denoiser that stay on the device."""
    return resident_positions(len(size.blocks), config.dit_resident_blocks, config.num_slots)


def slot_size(subject: Workload, config: OffloadConfig) -> int:
    """Bytes of one slot: the largest block that is streamed."""
    streamed: list[Sequence[PartSize]] = []
    for size in subject.by_role(Role.DENOISER):
        if config.dit_layerwise_offload:
            streamed.append(_all_but(size, denoiser_residents(size, config)))
    for size in subject.by_role(Role.TEXT_ENCODER):
        if config.text_encoder_layerwise_offload:
            left_over = resident_positions(len(size.blocks), 0, config.num_slots)
            streamed.append(_all_but(size, left_over))
    return max((part.size_bytes for blocks in streamed for part in blocks), default=0)


def _all_but(size: ComponentSize, stays: set[int]) -> list[PartSize]:
    return [part for i, part in enumerate(size.blocks) if i not in stays]
