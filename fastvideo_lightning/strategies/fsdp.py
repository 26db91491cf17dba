"""FSDP2 for inference: each rank keeps a part of the denoisers, joined to compute each block.

Each rank reads its own part of each weight.
"""

import logging
from collections.abc import Mapping
from datetime import timedelta
from itertools import pairwise
from typing import Any, cast

import torch
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from torch import nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState
from torch.distributed.tensor import DTensor

from fastvideo_lightning.checkpoint.weights import StoredWeight
from fastvideo_lightning.offload.blocks import find_block_lists
from fastvideo_lightning.prompts.sampler import Replica
from fastvideo_lightning.strategies.base import check_precision
from fastvideo_lightning.strategies.context_parallel import ContextParallel, HasDenoisers
from fastvideo_lightning.strategies.launcher import (
    GuardedLauncher,
    leave_group_together,
    note_run,
    report_failures,
)


def shard_denoiser(
    fqn: str,
    denoiser: nn.Module,
    sources: Mapping[str, StoredWeight],
    *,
    mesh: DeviceMesh,
    device: torch.device,
    cpu_offload: bool,
    pin_memory: bool,
) -> None:
    """Shard a model in place: a group for each block, one for what lies between.

    Args:
        fqn: Name of the model, put before its weights' to find their sources.
        denoiser: The model; what is on meta is read, what has memory is divided.
        sources: Where the weights on meta lie.
        mesh: The ranks to shard over, one dimension.
        device: This rank's device.
        cpu_offload: Keep the parts in host memory.
        pin_memory: Pin them there.

    Raises:
        ValueError: If a weight is quantized.
    """
    _check_plain(fqn, denoiser)
    offloads = cpu_offload and device.type != "cpu"
    policy = CPUOffloadPolicy(pin_memory=pin_memory) if offloads else OffloadPolicy()
    denoiser.requires_grad_(False)
    # What has no dimension has no rows to divide: it stays whole on each rank.
    whole = {weight for weight in denoiser.parameters() if not weight.ndim}
    for weight in whole:
        if not weight.is_meta:
            weight.data = weight.data.to(device)
    options: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": True,
        "mp_policy": MixedPrecisionPolicy(),
        "offload_policy": policy,
        "ignored_params": whole,
    }
    blocks = [block for found in find_block_lists(denoiser) for _, block in found.blocks]
    sharded = [fully_shard(module, **options) for module in (*blocks, denoiser)]
    root = sharded[-1]
    for module, following in pairwise([root, *sharded[:-1]]):
        module.set_modules_to_forward_prefetch([following])
    read_shards(fqn, denoiser, sources, device=device, host=offloads)
    denoiser.register_forward_hook(lambda *_: reset_iteration(root), always_call=True)


def _check_plain(fqn: str, denoiser: nn.Module) -> None:
    for name, weight in denoiser.named_parameters():
        kind = type(weight) if type(weight) is not nn.Parameter else type(weight.data)
        if kind not in (nn.Parameter, torch.Tensor):
            raise ValueError(
                f"{fqn}.{name} is a {kind.__name__}, which FSDP does not divide. Leave FSDP off: "
                "with dit_layerwise_offload=True quantized weights stream, over several GPUs as "
                "well."
            )


def read_shards(
    fqn: str,
    denoiser: nn.Module,
    sources: Mapping[str, StoredWeight],
    *,
    device: torch.device,
    host: bool,
) -> None:
    """Read this rank's rows of every weight that is on meta; of the rest of the file, nothing."""
    read: dict[int, nn.Parameter] = {}
    names: dict[str, nn.Parameter] = {}
    for name, weight in denoiser.named_parameters(remove_duplicate=False):
        if not weight.is_meta:
            continue
        if id(weight) not in read:
            source = sources[f"{fqn}.{name}"]
            tensor = _read_rows(weight, source, device=device, host=host)
            read[id(weight)] = nn.Parameter(tensor, requires_grad=False)
        names[name] = read[id(weight)]
    # By `load_state_dict`, after which FSDP takes over what was put in the place of its own.
    denoiser.load_state_dict(names, strict=False, assign=True)


def _read_rows(
    weight: nn.Parameter,
    source: StoredWeight,
    *,
    device: torch.device,
    host: bool,
) -> torch.Tensor:
    dtype = source.dtype_on(device)
    if not isinstance(weight, DTensor):
        whole = torch.empty(source.shape, dtype=dtype)
        source.read_into(whole)
        return whole.to(device)
    mesh = weight.device_mesh
    rows_each = -(-source.shape[0] // mesh.size())
    first = min(mesh.get_local_rank() * rows_each, source.shape[0])
    mine = source.rows(first, min(first + rows_each, source.shape[0]))
    if host:  # `from_local` would bring it to the mesh's devices; FSDP pins it
        with torch.no_grad():
            shard = cast(DTensor, torch.empty_like(weight, dtype=dtype, device="cpu"))
            mine.read_into(shard.to_local())
        return shard
    memory = torch.empty(mine.shape, dtype=dtype)
    mine.read_into(memory)
    return DTensor.from_local(
        memory.to(device),
        mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )


def reset_iteration(root: FSDPModule) -> None:
    """Have FSDP forget a forward, which it keeps for a backward that never comes.

    After an exception in a forward, the next one works.
    """
    if hasattr(root, "reset_iter_state"):
        root.reset_iter_state()
    else:
        _reset_each_group(root)


def _reset_each_group(root: Any) -> None:
    """Do the same where torch has no method for it, as 2.11 has none."""
    context = root._get_fsdp_state()
    context._comm_ctx.post_forward_order.clear()
    context._state_ctx.iter_forward_root = None
    for module in root.modules():
        if not isinstance(module, FSDPModule):
            continue
        state = module._get_fsdp_state()
        state._training_state = TrainingState.IDLE
        group = state._fsdp_param_group
        if group is not None:
            group.wait_for_unshard()  # of a block that was brought ahead, and not called
            group._training_state = TrainingState.IDLE
            group._post_forward_indices.clear()
        module.reshard()


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
