"""Context parallel: several processes compute one video, each a part of its tokens.

The splitting is diffusers' own, in the way of DeepSpeed Ulysses (https://arxiv.org/abs/2309.14509):
between the blocks each process has all heads of its tokens, in attention all tokens of its heads.

A family that knows its tokens is asked before the work whether the processes divide them; for all
others it shows where diffusers splits them.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers.hooks.hooks import HookRegistry, ModelHook
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from fastvideo_lightning.checkpoint.weights import StoredWeight
from fastvideo_lightning.config import OffloadConfig
from fastvideo_lightning.libraries import unheard
from fastvideo_lightning.prompts.sampler import Replica

_NAME = "fastvideo_lightning_tokens"


class _NameTheDenoiser(ModelHook):
    """Says which model has a length that diffusers cannot split: diffusers only asserts it."""

    def __init__(self, fqn: str, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fqn = fqn
        self._size = size

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.fn_ref.original_forward(*args, **kwargs)  # type: ignore[misc]
        except AssertionError as error:
            if "divisible by mesh size" not in str(error):
                raise
            raise ValueError(
                f"{self._fqn} has a number of tokens in this video that context_parallel="
                f"{self._size} does not divide. Pass context_parallel=1, or another height, width "
                "or num_frames."
            ) from error


def name_denoiser(fqn: str, denoiser: nn.Module, size: int) -> None:
    """Have a denoiser that diffusers splits say by name what it cannot split."""
    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    registry.register_hook(_NameTheDenoiser(fqn, size), _NAME)


@runtime_checkable
class HasDenoisers(Protocol):
    """A module that says which of its submodules are denoisers, and where their weights lie."""

    @property
    def denoisers(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def weight_sources(self) -> Mapping[str, StoredWeight]: ...  # noqa: D102


class ContextParallel:
    """A number of processes with consecutive ranks make each call of a denoiser together.

    Args:
        size: Processes for one call; 1 leaves each process its own.
        num_branches: Such groups, one behind the other, that make one video together.
    """

    def __init__(self, size: int, num_branches: int = 1) -> None:
        self.size = size
        self.num_branches = num_branches

    def replica(self, rank: int, world_size: int) -> Replica:
        """Return a rank's place among those that share the prompts."""
        each = self.size * self.num_branches
        return Replica(rank // each, world_size // each, rank % each == 0)

    def enable(self, module: nn.Module, world_size: int, device: torch.device) -> None:
        """Have the module's denoisers split their tokens; a collective call.

        Raises:
            TypeError: If the module does not say which of its parts are denoisers.
            ValueError: If the size does not divide the processes or a denoiser's heads.
        """
        if self.size == 1:
            return
        check_context(module, self.size, world_size)
        assert isinstance(module, HasDenoisers)
        import diffusers

        make_config: Any = diffusers.ContextParallelConfig
        mesh = init_device_mesh(
            device.type,
            (world_size // self.size, 1, self.size),
            mesh_dim_names=("data", "ring", "ulysses"),
        )
        with _counting_devices(), unheard(_is_notice):
            for fqn in module.denoisers:
                denoiser: Any = module.get_submodule(fqn)
                config = make_config(ulysses_degree=self.size, mesh=mesh)
                denoiser.enable_parallelism(config=config)
                name_denoiser(fqn, denoiser, self.size)


def check_context(module: nn.Module, size: int, num_processes: int) -> None:
    """Check that this number of processes can make a video of this model together; reads no weight.

    Raises:
        TypeError: If the module does not say which of its parts are denoisers.
        ValueError: If they cannot; names the nearest number that can.
    """
    if size == 1:
        return
    if not isinstance(module, HasDenoisers):
        raise TypeError(
            f"context_parallel={size} splits the denoisers of a VideoModule, got "
            f"{type(module).__name__}. Pass VideoModule.from_pretrained(...)."
        )
    heads = {fqn: _heads_of(fqn, module.get_submodule(fqn), size) for fqn in module.denoisers}
    able = [
        n
        for n in range(1, num_processes + 1)
        if num_processes % n == 0 and all(count % n == 0 for count in heads.values())
    ]
    if size in able:
        return
    nearest = min(able, key=lambda n: (abs(n - size), n))
    fqn = next((fqn for fqn, count in heads.items() if count % size), None)
    if fqn is not None:
        raise ValueError(
            f"context_parallel={size} does not divide the {heads[fqn]} attention heads of {fqn}. "
            f"Pass context_parallel={nearest}, the nearest that does."
        )
    processes = "1 process" if num_processes == 1 else f"{num_processes} processes"
    raise ValueError(
        f"context_parallel={size} needs a multiple of {size} processes, got {processes} "
        f"(num_gpus={num_processes}). Pass num_gpus={-(-num_processes // size) * size}, or "
        f"context_parallel={nearest}."
    )


def check_guidance(config: OffloadConfig, num_processes: int) -> None:
    """Raise ValueError where so many processes cannot share the calls of a step with guidance."""
    each = config.num_processes_each
    if config.guidance_parallel == 1 or num_processes % each == 0:
        return
    needs = "needs a multiple of 2 processes"
    if config.context_parallel > 1:
        needs = (
            f"with context_parallel={config.context_parallel} needs a multiple of {each} processes"
        )
    processes = "1 process" if num_processes == 1 else f"{num_processes} processes"
    raise ValueError(
        f"guidance_parallel=2 {needs}, got {processes} (num_gpus={num_processes}). Pass "
        f"num_gpus={-(-num_processes // each) * each}, or guidance_parallel=1."
    )


def _heads_of(fqn: str, denoiser: nn.Module, size: int) -> int:
    if getattr(denoiser, "_cp_plan", None) is None:
        raise ValueError(
            f"context_parallel={size} needs a denoiser that diffusers can split, and "
            f"{fqn}, a {type(denoiser).__name__}, is none. Pass context_parallel=1."
        )
    config: Any = denoiser.config
    return int(config.get("num_attention_heads") or size)


@contextmanager
def _counting_devices() -> Iterator[None]:
    """Let diffusers number the processes on a machine without accelerators, where it divides by 0.

    The number is not used: the mesh is given.
    """
    count = torch.accelerator.device_count
    if not count():
        torch.accelerator.device_count = lambda: 1
    try:
        yield
    finally:
        torch.accelerator.device_count = count


def _is_notice(record: logging.LogRecord) -> bool:
    """Whether diffusers tells that the interface may change: that is for us to know."""
    return record.name == "diffusers.models.modeling_utils" and record.levelno < logging.ERROR
