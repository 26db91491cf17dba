"""Measures how fast a unit comes to the device, alone and together."""

import time
from contextlib import suppress
from typing import NamedTuple

import torch

from fastvideo_lightning.offload.distributed.gather import make_gather
from fastvideo_lightning.offload.distributed.process_group import ShardGroup
from fastvideo_lightning.offload.host.slab import HostSlab
from fastvideo_lightning.offload.host.store import HostStore
from fastvideo_lightning.offload.streams import Transport, make_transport
from fastvideo_lightning.offload.tensors.layout import SlabLayout, TensorSpec
from fastvideo_lightning.offload.unit import DeviceSlot

REPEATS = 3


class LinkSpeeds(NamedTuple):
    """Seconds until every rank has a unit, the same numbers on all of them."""

    gather_s: float
    local_s: float


def measure_links(shards: ShardGroup, device: torch.device, *, size_bytes: int) -> LinkSpeeds:
    """Time both ways to bring a unit to all devices at once; a collective call.

    Args:
        shards: the ranks; all measure at the same time, as they will stream.
        device: this rank's.
        size_bytes: of the unit. So much host memory, and device memory, is held meanwhile.
    """
    slab = HostSlab(SlabLayout([TensorSpec.contiguous(torch.Size([size_bytes]), torch.uint8)]))
    slot = DeviceSlot(size_bytes, device)
    if device.type == "cuda":
        with suppress(RuntimeError):  # where pinning is refused, that is what streaming meets too
            slab.pin()
    try:
        gather = make_gather(device, shards, HostStore(device), common=[slab])
        gather.agree((), [slot])
        mine = [_time(shards, way, slab, slot) for way in (gather, make_transport(device))]
    finally:
        slab.close()
    return LinkSpeeds(*shards.slowest(mine))


def _time(shards: ShardGroup, transport: Transport, slab: HostSlab, slot: DeviceSlot) -> float:
    """The best of several times, after one for what the first call sets up."""
    times = []
    for _ in range(1 + REPEATS):
        shards.exchange(None)  # begin together
        begin = time.perf_counter()
        transport.copy(slab, slot)
        transport.drain()
        times.append(time.perf_counter() - begin)
    return min(times[1:])
