"""FSDP2 for inference: each rank keeps a part of the denoisers, joined to compute each block."""

import logging
from datetime import timedelta
from typing import Any

from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from torch import nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fastvideo_lightning.prompts.sampler import Replica
from fastvideo_lightning.strategies.base import check_precision
from fastvideo_lightning.strategies.context_parallel import ContextParallel, HasDenoisers
from fastvideo_lightning.strategies.launcher import (
    GuardedLauncher,
    leave_group_together,
    note_run,
    report_failures,
)
from fastvideo_lightning.strategies.sharding import shard_denoiser

_log = logging.getLogger(__name__)


class FSDPInferenceStrategy(ModelParallelStrategy):
    """Shards the denoisers over all ranks with FSDP2, block by block; moves nothing else.

    A block's parts are gathered while the block before it computes, and freed after it. Each rank
    reads its own part of each tensor from the files. Encoders and VAE are left to callbacks.

    Args:
        cpu_offload: Keep the parts in host memory and bring them over for each gather; on a CPU
            they are there anyway.
        pin_memory: Pin the parts in host memory.
        process_group_backend: `nccl`, `gloo`, ...; by default what fits the device.
        timeout: How long a collective may take.
        context_parallel: Processes that make each video together.
    """

    def __init__(
        self,
        *,
        cpu_offload: bool = False,
        pin_memory: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
        context_parallel: int = 1,
    ) -> None:
        super().__init__(self._shard, process_group_backend=process_group_backend, timeout=timeout)
        self._cpu_offload = cpu_offload
        self._pin_memory = pin_memory
        self._context = ContextParallel(context_parallel)

    lockstep = True
    """Every forward of a denoiser gathers weights from all ranks: all must make the same calls."""

    @property
    def replica(self) -> Replica:
        """This process's place among those that share the prompts."""
        return self._context.replica(self.global_rank, self.world_size)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """How Fabric's samplers are to divide a data set."""
        return {"num_replicas": self.replica.count, "rank": self.replica.index}

    def setup_environment(self) -> None:
        """Join the process group; all ranks are one data-parallel group, over which FSDP shards."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()
        if self.world_size > 1:
            report_failures(self.global_rank)
            leave_group_together()

    def note_run(self, *, is_over: bool) -> None:
        """Note that a run begins, or that all processes are through it."""
        note_run(is_over=is_over)

    def setup_module(self, module: nn.Module) -> nn.Module:
        """Shard the module's denoisers, in place, and read this rank's parts.

        Not Lightning's own way, which would then empty every module that has weights on meta and
        reset its buffers.

        Raises:
            TypeError: If the module does not say which of its parts are denoisers.
            ValueError: If Fabric was given a precision: it would cast behind the pipeline. If
                context parallel does not divide the processes or the heads.
        """
        check_precision(self.precision)
        self._context.enable(module, self.world_size, self.root_device)
        # PEFT tells by the name that a layer computes with the whole weight, not with its shard.
        mesh = init_device_mesh(self.root_device.type, (self.world_size,), mesh_dim_names=("fsdp",))
        return self._shard(module, mesh)

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        if self.num_nodes * self.num_processes > 1:
            self._launcher = GuardedLauncher(
                self.cluster_environment, self.num_processes, self.num_nodes
            )

    def _shard(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, HasDenoisers):
            raise TypeError(
                f"{type(self).__name__} shards the denoisers of a VideoModule, got "
                f"{type(module).__name__}. Pass VideoModule.from_pretrained(...), or wrap a "
                "pipeline with VideoModule.from_pipeline(...)."
            )
        if mesh.size() == 1:
            _log.info(
                "FSDP over one process shards nothing and copies without overlap: on one GPU "
                "dit_layerwise_offload=True is faster."
            )
        for fqn in module.denoisers:
            shard_denoiser(
                fqn,
                module.get_submodule(fqn),
                module.weight_sources,
                mesh=mesh,
                device=self.root_device,
                cpu_offload=self._cpu_offload,
                pin_memory=self._pin_memory,
            )
        return module
