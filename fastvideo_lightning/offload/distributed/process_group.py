"""ShardGroup: the processes of one node that stream the same weights together."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

# torch 2.13 renames it; 2.11 has the old name only.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class ShardGroup:
    """The ranks that share one host copy of the weights, each bringing a part of it to its device.

    Args:
        ranks: their global ranks, in order.
        world: a group of all ranks of all nodes, on the CPU.
        cpu_group: a group on the CPU, for objects and numbers.
        device_group: a group for bytes in device memory, used for nothing else: its collectives run
            beside those of the model.
    """

    def __init__(
        self,
        ranks: list[int],
        world: dist.ProcessGroup,
        cpu_group: dist.ProcessGroup,
        device_group: dist.ProcessGroup,
    ) -> None:
        self.ranks = ranks
        self._world = world
        self.rank = dist.get_rank(cpu_group)
        self.size = len(ranks)
        self._cpu_group = cpu_group
        self._device_group = device_group

    def all_gather(self, item: T) -> list[T]:
        """What every rank passed, in the order of the ranks; a collective call."""
        items: list[T | None] = [None] * self.size
        dist.all_gather_object(items, item, group=self._cpu_group)
        return items  # type: ignore[return-value]

    def all_gather_numbers(self, numbers: list[int]) -> torch.Tensor:
        """The same for equally many whole numbers on each rank: ``[ranks, numbers] int64``."""
        mine = torch.tensor(numbers, dtype=torch.int64)
        all_of_them = torch.empty(self.size * len(numbers), dtype=torch.int64)
        _all_gather(all_of_them, mine, group=self._cpu_group)
        return all_of_them.view(self.size, -1)

    def all_max(self, times_s: list[float]) -> list[float]:
        """The largest of each time on any rank of any node; collective over all of them."""
        times = torch.tensor(times_s, dtype=torch.float64)
        dist.all_reduce(times, dist.ReduceOp.MAX, group=self._world)
        return [float(time) for time in times]

    def join(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        """Fill ``whole`` with the ranks' parts, in their order; a collective call.

        Args:
            whole: ``[size * bytes] uint8`` on the device.
            part: ``[bytes] uint8``, this rank's; it lies in ``whole``, at the rank's position.
        """
        _all_gather(whole, part, group=self._device_group)

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """Let an exception on one rank be an exception on every rank.

        Raises:
            RuntimeError: another rank failed, and this one did not; says which and why.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        reasons = self.all_gather(
            None if failure is None else f"{type(failure).__name__}: {failure}"
        )
        if failure is not None:
            raise failure
        for rank, reason in zip(self.ranks, reasons, strict=True):
            if reason is not None:
                raise RuntimeError(f"Rank {rank} failed: {reason}")


_FOUND: dict[tuple[dist.ProcessGroup, str], ShardGroup | None] = {}


def find_shard_group(device: torch.device) -> ShardGroup | None:
    """The ranks on this node; None where a process, here or elsewhere, is alone on its node.

    The first call for a kind of device is collective over all ranks of all nodes.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None
    world = dist.group.WORLD
    assert world is not None
    key = world, device.type
    if key not in _FOUND:
        for old in [found for found in _FOUND if found[0] is not world]:
            del _FOUND[old]  # of a process group that was since taken down
        _FOUND[key] = _make_shard_group(device)
    return _FOUND[key]


def _make_shard_group(device: torch.device) -> ShardGroup | None:
    nodes: list[str] = [""] * dist.get_world_size()
    everyone = dist.new_group(backend="gloo")
    assert everyone is not None
    dist.all_gather_object(nodes, _node(), group=everyone)
    if min(nodes.count(node) for node in nodes) == 1:
        return None
    mine: ShardGroup | None = None
    for node in sorted(set(nodes)):
        ranks = [rank for rank, other in enumerate(nodes) if other == node]
        # Every rank takes part in making every group.
        cpu_group = dist.new_group(ranks, backend="gloo")
        device_group = dist.new_group(ranks, backend="nccl" if device.type == "cuda" else "gloo")
        if node == nodes[dist.get_rank()]:
            assert cpu_group is not None
            assert device_group is not None
            mine = ShardGroup(ranks, everyone, cpu_group, device_group)
    return mine


def _node() -> str:
    """A name that is equal for processes that can open each other's memory: those of a node.

    Two containers of one machine count as two nodes.
    """
    try:
        return os.readlink("/proc/self/ns/pid") + socket.gethostname()
    except OSError:
        return socket.gethostname()
