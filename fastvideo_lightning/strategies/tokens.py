"""Whether what context parallel divides has a length that the processes divide.

A family that knows its tokens is asked before the work; for all others the lengths are seen where
diffusers splits them, which would otherwise end in an assertion that names neither.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from diffusers.hooks.context_parallel import _get_submodule_by_name
from diffusers.hooks.hooks import HookRegistry, ModelHook
from torch import nn

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
