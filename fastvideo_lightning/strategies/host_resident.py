"""The strategy that leaves every weight on the host; callbacks place them."""

import warnings
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning.fabric.strategies.parallel import ParallelStrategy
from lightning.fabric.utilities.distributed import (
    _distributed_is_initialized,
    _get_default_process_group_backend_for_device,
    _init_dist_connection,
    _sync_ddp_if_available,
)
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.distributed import ReduceOp
from torch.distributed.constants import default_pg_timeout

from fastvideo_lightning.prompts.sampler import Replica
from fastvideo_lightning.strategies.base import check_precision
from fastvideo_lightning.strategies.context_parallel import ContextParallel
from fastvideo_lightning.strategies.launcher import (
    GuardedLauncher,
    leave_group_together,
    note_run,
    report_failures,
)

T = TypeVar("T")


class HostResidentStrategy(ParallelStrategy):
    """Runs on 1 to N devices and moves no weight: what reaches a device, a callback brings there.

    With several devices the script is started again for each of them, as with DDP, and joined by a
    process group; with one there is none.

    Args:
        process_group_backend: `nccl`, `gloo`, ...; by default what fits the device.
        timeout: How long a collective may take.
        context_parallel: Processes that make each call of a denoiser together.
        guidance_parallel: 2 where the calls of a step are shared: so many times as many processes
            make each video together.
    """

    def __init__(
        self,
        *,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
        context_parallel: int = 1,
        guidance_parallel: int = 1,
    ) -> None:
        super().__init__()
        # Fabric warns of it and means to move them: weights that are read, beside those on meta.
        warnings.filterwarnings("ignore", message=r"The model passed to `Fabric\.setup")
        self.num_nodes = 1
        self._process_group_backend = process_group_backend
        self._timeout = timeout
        self._context = ContextParallel(context_parallel, guidance_parallel)

    @property
    def root_device(self) -> torch.device:
        """This process's device."""
        assert self.parallel_devices is not None
        return self.parallel_devices[self.local_rank]

    @property
    def num_processes(self) -> int:
        """Processes on this node: one per device."""
        return len(self.parallel_devices or ())

    @property
    def replica(self) -> Replica:
        """This process's place among those that share the prompts."""
        return self._context.replica(self.global_rank, self.world_size)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """How Fabric's samplers are to divide a data set."""
        return {"num_replicas": self.replica.count, "rank": self.replica.index}

    @property
    def _processes_in_all(self) -> int:
        return self.num_nodes * self.num_processes

    def setup_environment(self) -> None:
        """Join the process group, where there is more than one process."""
        super().setup_environment()
        assert self.cluster_environment is not None
        rank = self.node_rank * self.num_processes + self.local_rank
        self.cluster_environment.set_global_rank(rank)
        self.cluster_environment.set_world_size(self._processes_in_all)
        rank_zero_only.rank = self.global_rank  # type: ignore[attr-defined]
        if self.world_size > 1:
            report_failures(self.global_rank)
            backend = self._process_group_backend or _get_default_process_group_backend_for_device(
                self.root_device
            )
            device_id = self.root_device if self.root_device.type != "cpu" else None
            _init_dist_connection(
                self.cluster_environment, backend, timeout=self._timeout, device_id=device_id
            )
            leave_group_together()

    def note_run(self, *, is_over: bool) -> None:
        """Note that a run begins, or that all processes are through it."""
        note_run(is_over=is_over)

    def setup_module(self, module: nn.Module) -> nn.Module:
        """Return the module, its weights where they were.

        Raises:
            ValueError: If Fabric was given a precision: it would cast behind the pipeline. If
                context parallel does not divide the processes or the heads.
        """
        check_precision(self.precision)
        self._context.enable(module, self.world_size, self.root_device)
        return module

    def module_to_device(self, module: nn.Module) -> None:
        """Leave the weights where they are."""

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for all processes."""
        if _distributed_is_initialized():
            on_gpu = self.root_device.type == "cuda"
            torch.distributed.barrier(device_ids=[self.root_device.index] if on_gpu else None)

    def broadcast(self, obj: T, src: int = 0) -> T:
        """Return the object of process `src`."""
        if not _distributed_is_initialized():
            return obj
        box = [obj]
        torch.distributed.broadcast_object_list(box, src)
        return box[0]

    def all_reduce(
        self, tensor: Tensor, group: Any = None, reduce_op: ReduceOp | str | None = "mean"
    ) -> Tensor:
        """Reduce a tensor over all processes; anything else is returned as it is."""
        if isinstance(tensor, Tensor):
            return _sync_ddp_if_available(tensor, group, reduce_op=reduce_op)
        return tensor

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        if self._processes_in_all > 1:
            self._launcher = GuardedLauncher(
                self.cluster_environment, self.num_processes, self.num_nodes
            )
