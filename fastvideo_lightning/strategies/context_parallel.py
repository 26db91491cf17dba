"""Context parallel: several processes compute one video, each a part of its tokens.

The splitting is diffusers' own, in the way of DeepSpeed Ulysses (https://arxiv.org/abs/2309.14509):
between the blocks each process has all heads of its tokens, in attention all tokens of its heads.

Whether what context parallel divides has a length that the processes divide.

A family that knows its tokens is asked before the work; for all others the lengths are seen where
diffusers splits them, which would otherwise end in an assertion that names neither.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers.hooks.context_parallel import _get_submodule_by_name
from diffusers.hooks.hooks import HookRegistry, ModelHook
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from fastvideo_lightning.checkpoint.weights import StoredWeight
from fastvideo_lightning.libraries import unheard
from fastvideo_lightning.prompts.sampler import Replica

_NAME = "fastvideo_lightning_tokens"
Check = Callable[[str, torch.Tensor, Any], None]


def watch_tokens(fqn: str, denoiser: nn.Module, size: int) -> None:
    """Have every length checked that is about to be split; to be called before the splitting is.

    Args:
        fqn: Name of the denoiser, for the message.
        denoiser: A model that diffusers can split.
        size: Processes that make each video.
    """

    def check(what: str, value: torch.Tensor, split: Any) -> None:
        if split.expected_dims not in (None, value.dim()):
            return  # diffusers leaves it whole
        length = value.shape[split.split_dim]
        if length % size:
            nearest = next(n for n in range(size, 0, -1) if length % n == 0 and size % n == 0)
            raise ValueError(
                f"{fqn} has {length} {what} in this video, which context_parallel={size} does not "
                f"divide. Pass context_parallel={nearest}, or another height, width or num_frames."
            )

    plan: Mapping[str, Any] = denoiser._cp_plan  # type: ignore[assignment]
    for name, splits in plan.items():
        if not isinstance(splits, Mapping):
            continue  # what is gathered
        found = _get_submodule_by_name(denoiser, name)
        for module in found if isinstance(found, list) else [found]:
            _watch(module, splits, check)


def _watch(module: nn.Module, splits: Mapping[Any, Any], check: Check) -> None:
    outputs = {k: s for k, s in splits.items() if getattr(s, "split_output", False)}
    if outputs:
        registry = HookRegistry.check_if_exists_or_initialize(module)
        registry.register_hook(_OutputCheck(outputs, check), _NAME)
    inputs = {k: s for k, s in splits.items() if k not in outputs}
    if inputs:
        names = list(inspect.signature(type(module).forward).parameters)[1:]

        def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            for name, split in inputs.items():
                for value, how in _pairs(given.get(name), split):
                    check(_say(name), value, how)

        module.register_forward_pre_hook(look, with_kwargs=True)


class _OutputCheck(ModelHook):
    """Looks at a module's output before the hook around it, diffusers' own, splits it."""

    def __init__(self, splits: Mapping[int, Any], check: Check) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._splits = splits
        self._check = check

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        parts = [output] if isinstance(output, torch.Tensor) else list(output)
        for index, split in self._splits.items():
            if index < len(parts):
                self._check("tokens", parts[index], split)
        return output


def _pairs(value: Any, split: Any) -> Iterator[tuple[torch.Tensor, Any]]:
    """A tensor with how it is split; of a list each, but those whose split comes later."""
    values = value if isinstance(value, list | tuple) else [value]
    splits = split if isinstance(split, list | tuple) else [split] * len(values)
    for one, how in zip(values, splits, strict=False):
        if isinstance(one, torch.Tensor) and not how.split_output:
            yield one, how


def _say(name: str) -> str:
    return {"hidden_states": "tokens", "encoder_hidden_states": "text tokens"}.get(name, name)


@runtime_checkable
class HasDenoisers(Protocol):
    """A module that says which of its submodules are denoisers, and where their weights lie."""

    @property
    def denoisers(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def weight_sources(self) -> Mapping[str, StoredWeight]: ...  # noqa: D102


class ContextParallel:
    """So many processes with consecutive ranks make each video together.

    Args:
        size: Processes for one video; 1 leaves each process its own.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def replica(self, rank: int, world_size: int) -> Replica:
        """Return a rank's place among those that share the prompts."""
        return Replica(rank // self.size, world_size // self.size, rank % self.size == 0)

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
                watch_tokens(fqn, denoiser, self.size)
                config = make_config(ulysses_degree=self.size, mesh=mesh)
                denoiser.enable_parallelism(config=config)


def check_context(module: nn.Module, size: int, num_processes: int) -> None:
    """Check that so many processes can make a video of this model together; reads no weight.

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
