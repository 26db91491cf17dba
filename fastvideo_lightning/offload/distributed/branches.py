"""Branches: two processes share the calls of a step with guidance, one makes each.

Note [Branches]
Both processes run the whole pipeline, with the same seed, so both come to the same calls in the
same order and form the same groups, see Note [Groups of calls]. Of a group each makes one call, and
then they exchange what the calls returned, byte for byte. All else, such as the first step, in
which a result's shape is not known yet, or a call that is made alone, both make alike.

Before results are exchanged the processes say how they fared: an exception in one of them is one in
both. They also count their groups: where one has formed another group than the other, as it would
where a callback touches a result on one process only, both say so, at the end of the run at latest.

Where ranks bring blocks in parts, one whose call fails leaves the others waiting for its parts. It
says nothing then and raises at once, so that the process ends, and the others with it.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from fastvideo_lightning.offload.deferred import DeferredCall, Promise

NUM_BRANCHES = 2


class BranchGroup:
    """This process and the one that makes the other call.

    Args:
        ranks: their global ranks, in the order of the calls.
        cpu_group: a group of theirs on the CPU.
        device_group: a group for bytes in device memory.
    """

    def __init__(
        self, ranks: Sequence[int], cpu_group: dist.ProcessGroup, device_group: dist.ProcessGroup
    ) -> None:
        self.ranks = ranks
        self.rank = dist.get_rank(cpu_group)
        self._cpu_group = cpu_group
        self._device_group = device_group

    def gather_numbers(self, *numbers: int) -> list[tuple[int, ...]]:
        """What each process passed; a collective call."""
        found = [torch.empty(len(numbers), dtype=torch.int64) for _ in self.ranks]
        mine = torch.tensor(numbers, dtype=torch.int64)
        dist.all_gather(found, mine, group=self._cpu_group)
        return [tuple(row.tolist()) for row in found]

    def gather_reasons(self, reason: str | None) -> list[str | None]:
        """What each process says of its failure; a collective call."""
        reasons: list[str | None] = [None] * len(self.ranks)
        dist.all_gather_object(reasons, reason, group=self._cpu_group)
        return reasons

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give the other process tensors, with the bytes between their rows."""
        for tensor in tensors:
            flat = tensor.as_strided((_extent(tensor),), (1,))
            self._broadcast(flat, self.rank)

    def receive(self, promise: Promise) -> list[torch.Tensor]:
        """Take the tensors that the other process sends, of the promised shapes and strides."""
        tensors = []
        for like, device in zip(promise.tensors, promise.devices, strict=True):
            flat = torch.empty(_extent(like), dtype=like.dtype, device=device)
            self._broadcast(flat, 1 - self.rank)
            tensors.append(flat.as_strided(like.shape, like.stride()))
        return tensors

    def _broadcast(self, flat: torch.Tensor, source: int) -> None:
        if flat.numel():
            data = flat.view(torch.uint8)
            dist.broadcast(data, self.ranks[source], group=self._device_group)


def _extent(tensor: torch.Tensor) -> int:
    """Elements from a tensor's first to its last one."""
    if not tensor.numel():
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)


class OnTwoProcesses:
    """Makes one call of each group and takes what the other returned, see Note [Branches].

    Args:
        group: this process and the other one.
        is_gathered: whether ranks bring the model's blocks in parts now.
    """

    option = "guidance_parallel=2"
    max_calls = NUM_BRANCHES
    makes_all = False
    is_open = True

    def __init__(self, group: BranchGroup, is_gathered: Callable[[], bool]) -> None:
        self._group = group
        self._is_gathered = is_gathered
        self._num_runs = 0
        self._num_groups = 0

    def make(self, calls: Sequence[DeferredCall]) -> None:
        """Make this process's call and exchange results; each call keeps its own or its error.

        Raises:
            RuntimeError: the processes have not made the same calls so far.
        """
        mine = calls[self._group.rank]
        mine.run_alone()
        self._num_groups += 1
        if mine.error is not None and self._is_gathered():
            for call in calls:
                call.fail(mine.error)
            return
        if not self._have_succeeded(mine, calls):
            return
        for call in calls:
            if call is mine:
                self._group.send(call.tensors)
            else:
                call.take(self._group.receive)

    def end_run(self, *, is_whole: bool) -> None:
        """Look whether both have formed the same groups, where the run ends in good order.

        Raises:
            RuntimeError: they have not.
        """
        if is_whole:
            self._check_step(self._group.gather_numbers(self._num_runs, self._num_groups, 0))
        self._num_runs, self._num_groups = self._num_runs + 1, 0

    def _have_succeeded(self, mine: DeferredCall, calls: Sequence[DeferredCall]) -> bool:
        """Tell the other process how the call went; where one has failed, fail all of them."""
        has_failed = mine.error is not None
        told = self._group.gather_numbers(self._num_runs, self._num_groups, int(has_failed))
        self._check_step(told)
        if not any(failed for *_, failed in told):
            return True
        error = mine.error
        reasons = self._group.gather_reasons(
            None if error is None else f"{type(error).__name__}: {error}"
        )
        for rank, reason in zip(self._group.ranks, reasons, strict=True):
            for call in calls if reason is not None else ():
                call.fail(RuntimeError(f"Rank {rank} failed: {reason}"))
        return False

    def _check_step(self, told: Sequence[tuple[int, ...]]) -> None:
        if len({(run, count) for run, count, _ in told}) == 1:
            return
        counts = [f"rank {r}: {n}" for r, (_, n, _) in zip(self._group.ranks, told, strict=True)]
        raise RuntimeError(
            "The two processes of guidance_parallel=2 are out of step: one has used a result of "
            "the denoiser that the other has not, or has failed in between (pairs of calls so far: "
            f"{', '.join(counts)}). Have callbacks do the same in all processes, or pass "
            "guidance_parallel=1."
        )


_FOUND: dict[tuple[dist.ProcessGroup, str, int], BranchGroup] = {}


def find_branch_group(device: torch.device, context_parallel: int) -> BranchGroup:
    """This process and the one that makes the other call of each group.

    The first call for a kind of device is collective over all processes.

    Args:
        device: where the model computes.
        context_parallel: so many processes with consecutive ranks make a call together.

    Raises:
        ValueError: the number of processes is no multiple of both together.
    """
    is_joined = dist.is_available() and dist.is_initialized()
    size = dist.get_world_size() if is_joined else 1
    needed = NUM_BRANCHES * context_parallel
    if size % needed:
        raise ValueError(
            f"guidance_parallel=2 needs a multiple of {needed} processes, got {size}. Start "
            f"{-(-size // needed) * needed}, or pass guidance_parallel=1."
        )
    world = dist.group.WORLD
    assert world is not None
    key = world, device.type, context_parallel
    if key not in _FOUND:
        for old in [found for found in _FOUND if found[0] is not world]:
            del _FOUND[old]  # of a process group that was since taken down
        _FOUND[key] = _make_group(device, context_parallel)
    return _FOUND[key]


def _make_group(device: torch.device, context_parallel: int) -> BranchGroup:
    mine: BranchGroup | None = None
    for base in range(0, dist.get_world_size(), NUM_BRANCHES * context_parallel):
        for first in range(base, base + context_parallel):
            ranks = [first, first + context_parallel]
            # Every process takes part in making every group.
            cpu_group = dist.new_group(ranks, backend="gloo")
            device_group = dist.new_group(
                ranks, backend="nccl" if device.type == "cuda" else "gloo"
            )
            if dist.get_rank() in ranks:
                assert cpu_group is not None
                assert device_group is not None
                mine = BranchGroup(ranks, cpu_group, device_group)
    assert mine is not None
    return mine
