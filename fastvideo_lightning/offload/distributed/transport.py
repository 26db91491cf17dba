"""How ranks that stream the same blocks share the work: each brings a part, or each everything.

The caller chooses, or both ways are measured and the faster one is taken.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from functools import partial
from typing import NamedTuple, NoReturn

import torch

from fastvideo_lightning.offload.distributed.gather import make_gather
from fastvideo_lightning.offload.distributed.process_group import ShardGroup, find_shard_group
from fastvideo_lightning.offload.distributed.shared_memory import load_together
from fastvideo_lightning.offload.engine import OffloadEngine
from fastvideo_lightning.offload.host import mapped
from fastvideo_lightning.offload.host.slab import HostSlab
from fastvideo_lightning.offload.host.store import HostStore
from fastvideo_lightning.offload.profiling import phase
from fastvideo_lightning.offload.streams import Transport, make_transport
from fastvideo_lightning.offload.tensors.layout import SlabLayout, TensorSpec
from fastvideo_lightning.offload.unit import DeviceSlot, OffloadUnit

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
        size_bytes: of the unit; as much host memory and device memory is held meanwhile.
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
    return LinkSpeeds(*shards.all_max(mine))


def _time(shards: ShardGroup, transport: Transport, slab: HostSlab, slot: DeviceSlot) -> float:
    """The best of several times; a first call that sets things up is not counted."""
    times = []
    for _ in range(1 + REPEATS):
        shards.all_gather(None)  # begin together
        begin = time.perf_counter()
        transport.copy(slab, slot)
        transport.drain()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


_log = logging.getLogger(__name__)

MAX_PROBE_BYTES = 64 << 20
"""Enough to tell the links' speeds apart."""


class ShardTransport(StrEnum):
    """How blocks come to the devices of several ranks.

    AUTO: the faster of the two, as measured when the first blocks are attached. Where that is in
        parts, blocks that computed for longer in the last run than they take to come as a whole
        come so, see Note [Brought alone].
    GATHER: each rank brings a part over its own link, and the parts are joined on the devices. In a
        run every rank must make the same calls.
    LOCAL: each rank brings everything, and may work apart from the others.
    """

    AUTO = "auto"
    GATHER = "gather"
    LOCAL = "local"

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise ValueError(f"shard_transport must be one of {', '.join(cls)}, got {value!r}")


def share_streaming(
    engine: OffloadEngine, choice: ShardTransport, units: Sequence[OffloadUnit]
) -> None:
    """Let an engine stream together with those of the other ranks, before it takes ``units`` over.

    Host memory holds each weight once for all ranks of a node, whatever the choice. Where a process
    is alone on its node, nothing changes. The first call of a process is collective over all ranks.

    Raises:
        ValueError: the engine streams already, by another choice, or the memory cannot be shared.
    """
    with phase("find the ranks of the node"):
        shards = find_shard_group(engine.device)
    if shards is None:
        return
    if not mapped.IS_SUPPORTED:
        if choice is ShardTransport.GATHER:
            raise ValueError(
                "shard_transport='gather' needs memory that processes share, which is supported "
                "on Linux only, where /proc/self/pagemap can be read. Pass shard_transport='local'."
            )
        return
    if engine.store.is_shared:
        is_gathered = engine.transport.is_gathered
        current = ShardTransport.GATHER if is_gathered else ShardTransport.LOCAL
        if choice not in (ShardTransport.AUTO, current):
            raise ValueError(
                f"Callbacks on one module share their transport: got shard_transport='{choice}' "
                f"beside '{current}'. Give all of them the same."
            )
        return
    engine.drain()
    engine.store.is_shared = True
    engine.loading_together = partial(load_together, shards, engine.store)
    chosen, alone_bytes_per_s = _choose(engine, choice, units, shards)
    if chosen is ShardTransport.GATHER:
        engine.use_transport(
            make_gather(engine.device, shards, engine.store, alone_bytes_per_s=alone_bytes_per_s)
        )
        engine.store.brings_parts = True


def _choose(
    engine: OffloadEngine, choice: ShardTransport, units: Sequence[OffloadUnit], shards: ShardGroup
) -> tuple[ShardTransport, float | None]:
    """The choice; and where it was measured, the links' rate while each rank brings everything."""
    alone_bytes_per_s = None
    if choice is not ShardTransport.AUTO:
        reason = "as asked for"
    else:
        largest = max((_size_of(unit) for unit in units), default=0)
        probe = min(max(largest, 1), MAX_PROBE_BYTES)
        with phase("measure the links"):
            speeds = measure_links(shards, engine.device, size_bytes=probe)
        alone_bytes_per_s = probe / speeds.local_s
        is_faster = speeds.gather_s < speeds.local_s
        choice = ShardTransport.GATHER if is_faster else ShardTransport.LOCAL
        reason = (
            f"{probe / 2**20:.3g} MiB take {1e3 * speeds.gather_s:.3g} ms in parts and "
            f"{1e3 * speeds.local_s:.3g} ms as a whole"
        )
    if shards.rank == 0:
        what = {
            ShardTransport.GATHER: f"each brings 1/{shards.size} of a block to all",
            ShardTransport.LOCAL: "each brings every block by itself",
        }
        _log.info(
            "%d ranks stream together: %s (shard_transport=%r: %s).",
            shards.size,
            what[choice],
            str(choice),
            reason,
        )
    return choice, alone_bytes_per_s


def _size_of(unit: OffloadUnit) -> int:
    return sum(b.tensor.numel() * b.tensor.element_size() for b in unit.bindings)
