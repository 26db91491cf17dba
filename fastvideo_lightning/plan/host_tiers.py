"""Which of the weights that move wait in locked memory, in the page cache or on the disk.

Note [Host tiers]
What a model moves to the GPU is held by the process (registered or pinned, what copies fastest), or
read from its file on the way: from the page cache, whose memory the system takes back when others
need it, or past it from the disk. A budget bounds what is held. Denoisers' blocks are copied in
every step and come first, then encoders that stream, then whatever comes in for a call. Of one
model the held blocks are evenly spaced, so that reading the others hides behind them.

What is read again and again and is larger than the page cache is found there almost never, for what
is read last drives out what is needed next. So blocks are read through it only as far as they all
fit, and the others past it.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NoReturn

import psutil
import torch

from fastvideo_lightning.config import OffloadConfig
from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.modules.roles import Role
from fastvideo_lightning.offload.blocks import resident_positions
from fastvideo_lightning.plan.host_memory import budget_of, find_free_memory
from fastvideo_lightning.plan.machine import GIB, Machine
from fastvideo_lightning.plan.sizes import ComponentSize, PartSize

COURIER_BYTES = 512 << 20
"""Pinned buffers of whatever is read on its way, see `offload.couriers`."""


@dataclass(frozen=True)
class HostBudget:
    """Host memory for weights.

    Attributes:
        held_bytes: What the process may lock or hold.
        cache_bytes: What the page cache may keep beside it.
        is_asked: Whether the user named it; else it is what is free.
    """

    held_bytes: int
    cache_bytes: int
    is_asked: bool = False


@dataclass(frozen=True)
class Moving:
    """What one callback moves to the GPU.

    Attributes:
        fqn: The component.
        sizes: Bytes of each of its blocks that streams, or of all of it.
        held_sizes: What each of them takes where it is held.
        fixed_bytes: Of these in all, what no file has as it runs, so that it is held anyhow.
        resident_bytes: Held beside them: blocks that stay on the device until another expert's take
            their place, and that come in again for the next video.
    """

    fqn: str
    sizes: tuple[int, ...]
    held_sizes: tuple[int, ...]
    fixed_bytes: int = 0
    resident_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        """All of it."""
        return sum(self.sizes)

    @property
    def held_bytes(self) -> int:
        """All of it, held."""
        return sum(self.held_sizes)

    @property
    def must_hold_bytes(self) -> int:
        """What cannot be read: all of it where most of it cannot."""
        return self.size_bytes if 2 * self.fixed_bytes > self.size_bytes else self.fixed_bytes


@dataclass(frozen=True)
class HostTiers:
    """How many blocks of a component wait where, and their bytes."""

    held: int
    cached: int
    on_disk: int
    held_bytes: int
    cached_bytes: int
    disk_bytes: int

    @classmethod
    def all_held(cls, moving: Moving) -> "HostTiers":
        """Nothing is read on its way."""
        return cls(len(moving.sizes), 0, 0, moving.held_bytes, 0, 0)

    @property
    def read_bytes(self) -> int:
        """What is read from files for each call."""
        return self.cached_bytes + self.disk_bytes

    def read_s(self, machine: Machine) -> float:
        """Seconds that reading takes for each call."""
        cached = self.cached_bytes / machine.cache_bytes_per_s
        return cached + self.disk_bytes / machine.disk_bytes_per_s

    def host_memory(self, kind: str) -> str | Mapping[str, int]:
        """What `LayerwiseOffload` takes as `host_memory`; what is held is of a kind."""
        if not self.read_bytes:
            return kind
        counts = {kind: self.held, "courier": self.cached, "disk": self.on_disk}
        return {name: count for name, count in counts.items() if count}

    def __str__(self) -> str:
        parts = [
            (self.held, "held in memory"),
            (self.cached, "read from the page cache"),
            (self.on_disk, "read from the disk"),
        ]
        return ", ".join(f"{count} {where}" for count, where in parts if count)


def find_moving(
    components: Sequence[ComponentSize], config: OffloadConfig, *, takes_turns: bool
) -> list[Moving]:
    """What moves to the GPU under a set of flags, in the order in which it is held.

    Args:
        components: The model's.
        config: The flags.
        takes_turns: Whether of several denoisers each has a part of the steps to itself, so that
            their resident blocks take each other's place.
    """
    streams = {
        Role.DENOISER: config.dit_layerwise_offload and not config.use_fsdp_inference,
        Role.TEXT_ENCODER: config.text_encoder_layerwise_offload,
    }
    comes = {
        Role.IMAGE_ENCODER: config.image_encoder_cpu_offload,
        Role.VAE: config.vae_cpu_offload,
    }
    found = []
    for role in (Role.DENOISER, Role.TEXT_ENCODER, Role.IMAGE_ENCODER, Role.VAE):
        for size in components:
            if size.role is not role:
                continue
            residents = config.dit_resident_blocks if role is Role.DENOISER else 0
            parts: Sequence[PartSize] = ()
            stays: set[int] = set()
            if streams.get(role) and size.blocks:
                stays = resident_positions(len(size.blocks), residents, config.num_slots)
                parts = [part for i, part in enumerate(size.blocks) if i not in stays]
            elif comes.get(role):
                parts = [size.whole]
            if parts:
                sizes = tuple(part.size_bytes for part in parts)
                how = config.weight_compression if streams.get(role) and size.blocks else "none"
                held = tuple(part.travelling_bytes(how) for part in parts)
                shared = stays if takes_turns and residents else ()
                resident = sum(size.blocks[i].size_bytes for i in shared)
                fixed = sum(part.held_bytes for part in parts)
                found.append(Moving(size.fqn, sizes, held, fixed, resident))
    return found


def plan_tiers(
    components: Sequence[ComponentSize],
    config: OffloadConfig,
    host_memory_bytes: int | None,
    *,
    takes_turns: bool,
) -> dict[str, HostTiers]:
    """The tiers on a machine that need not be there; none where all is held.

    Args:
        components: The model's.
        config: The flags.
        host_memory_bytes: Of the machine in all; None where it is not known.
        takes_turns: As in `find_moving`.

    Raises:
        HostBudgetTooSmallError: As `deal_tiers`.
    """
    asked = config.host_memory_budget
    free = None if host_memory_bytes is None else budget_of(host_memory_bytes)
    if isinstance(asked, str | None):
        if free is None or config.host_memory != "auto":
            return {}
        budget = HostBudget(free, 0)
    else:
        held = round(asked * GIB)
        cache = sys.maxsize if free is None else max(free - held, 0)
        budget = HostBudget(held, cache, is_asked=True)
    return deal_tiers(find_moving(components, config, takes_turns=takes_turns), budget)


def find_host_budget(config: OffloadConfig) -> HostBudget:
    """The budget that a user named, or what cgroups and the machine leave."""
    free = find_free_memory()
    asked = config.host_memory_budget
    if asked is None or asked == "auto":
        return HostBudget(free.budget_bytes, 0)
    held = round(float(asked) * GIB)
    return HostBudget(held, max(free.budget_bytes - held, 0), is_asked=True)


def check_computes_on_cpu(module: VideoModule) -> None:
    """Check before anything is read that the CPU can compute a model in the memory that is free.

    Weights that run as they lie in their files are mapped, and the system may drop them at any
    time; but a denoiser that does not fit whole is read anew from the disk in each of its calls.
    Weights that need a cast are held. Swap counts as memory.

    Raises:
        HostBudgetTooSmallError: What is held and the largest denoiser are more than that.
    """
    cpu = torch.device("cpu")
    held, mapped, seen = 0, dict.fromkeys(module.denoisers, 0), set()
    for fqn, source in module.weight_sources.items():
        if (source.file, source.offset) in seen:  # another name of the same weight
            continue
        seen.add((source.file, source.offset))
        size = source.shape.numel() * source.dtype_on(cpu).itemsize
        owner = fqn.partition(".")[0]
        if source.dtype_on(cpu) != source.stored_dtype:
            held += size
        elif owner in mapped:
            mapped[owner] += size
    free = find_free_memory()
    needed = held + max(mapped.values(), default=0)
    if needed <= free.size_bytes + psutil.swap_memory().free:
        return
    raise HostBudgetTooSmallError(
        f"This model needs {needed / GIB:.1f} GiB of host memory to compute on the CPU, and "
        f"{free.limit} leaves {free.size_bytes / GIB:.1f} GiB. Pass a smaller model, or use a GPU: "
        "beside one the weights stream through little host memory, from the disk where they have "
        "to, and dtype=fp8 halves them; `fastvideo-lightning plan` with --gpu and --host-memory "
        "says how fast."
    )


class HostBudgetTooSmallError(ValueError):
    """More has to be held on the host than the budget allows."""


def deal_tiers(moving: Sequence[Moving], budget: HostBudget) -> dict[str, HostTiers]:
    """Say of each component how many blocks are held, cached and on the disk.

    Args:
        moving: In the order in which they are held: what is copied most often comes first.
        budget: Host memory for all of them.

    Raises:
        HostBudgetTooSmallError: What has to be held anyhow is more than the budget.
    """
    resident = sum(each.resident_bytes for each in moving)
    if sum(each.held_bytes for each in moving) + resident <= budget.held_bytes:
        return {each.fqn: HostTiers.all_held(each) for each in moving}
    fixed = sum(each.must_hold_bytes for each in moving)
    left = budget.held_bytes - COURIER_BYTES - fixed - resident
    if left < 0:
        _refuse(moving, budget, fixed, resident)
    cache = budget.cache_bytes
    tiers = {}
    for each in moving:
        if each.must_hold_bytes == each.size_bytes:
            tiers[each.fqn] = HostTiers.all_held(each)
            continue
        held = _count_within(each.held_sizes, left)
        cached = _count_within(each.sizes[held:], cache)
        rest = held + cached
        sizes = (sum(each.held_sizes[:held]), sum(each.sizes[held:rest]), sum(each.sizes[rest:]))
        tiers[each.fqn] = HostTiers(held, cached, len(each.sizes) - rest, *sizes)
        left, cache = left - sizes[0], cache - sizes[1]
    return tiers


def _count_within(sizes: Sequence[int], size_bytes: int) -> int:
    """How many of some blocks fit; they are alike, or the largest counts for all."""
    if not sizes:
        return 0
    largest = max(sizes)
    return sum(total <= size_bytes for total in accumulate(largest for _ in sizes))


def _refuse(moving: Sequence[Moving], budget: HostBudget, fixed: int, resident: int) -> NoReturn:
    needed = (fixed + resident + COURIER_BYTES) / GIB
    what = f"host_memory_budget={budget.held_bytes / GIB:.3g}"
    if not budget.is_asked:
        what = f"Host memory that is free, {budget.held_bytes / GIB:.3g} GiB,"
    pack = ""
    if fixed:
        parts = ", ".join(each.fqn for each in moving if each.fixed_bytes)
        pack = (
            f"weights of {parts} cannot be read from a file as they run. Write such files with "
            "`fastvideo-lightning pack MODEL OUT` and load OUT, or "
        )
    if resident:
        pack += f"pass a smaller dit_resident_blocks, which hold {resident / GIB:.3g} GiB, or "
    raise HostBudgetTooSmallError(
        f"{what} is too small: {needed:.3g} GiB have to be held{': ' if pack else '. '}{pack}"
        f"{'pass' if pack else 'Pass'} host_memory_budget={needed + 0.05:.2f} or more."
    )
