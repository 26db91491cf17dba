"""Watch: what a call did to a unit's device memory that no version counter shows.

Note [Unseen writes]
A write through ``.data`` has a counter of its own, so a slot looks unwritten after it. Reading all
of a slot tells, but a slot has hundreds of megabytes and the host would have to wait for it. On a
GPU therefore the first call of a unit alone is watched: a module that writes its weights so does it
there as a rule, and from then on all that its calls leave in the slot is carried to the host. On
the CPU, where nothing runs ahead, every call is watched. Buffers do not need it: they stay on the
device, see ``bindings.split_buffers``.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from fastvideo_lightning.offload.results import lies_in
from fastvideo_lightning.offload.tensors.bindings import Shown
from fastvideo_lightning.offload.tensors.leaves import addresses_of

_ROW = 1024
"""Numbers of 8 bytes that are added up to one."""


class Watch:
    """The state of a unit's memory as a call begins, see Note [Unseen writes].

    Args:
        memory: ``[bytes] uint8``, what the tensors lie in.
        shown: the tensors that the module sees.
    """

    def __init__(self, memory: torch.Tensor, shown: Shown) -> None:
        self.memory = memory
        self._sums = _sums_of(memory)
        self._shown = shown
        self._addresses = [addresses_of(tensor) for _, _, tensor in shown]

    def is_written(self) -> bool:
        """Whether other bytes lie in the memory now; the host waits for them."""
        return not torch.equal(self._sums, _sums_of(self.memory))

    def moved(self) -> set[int]:
        """The numbers of tensors that were given other memory (``weight.data = ...``)."""
        pairs = zip(self._shown, self._addresses, strict=True)
        return {i for i, ((_, _, t), before) in enumerate(pairs) if addresses_of(t) != before}

    def find_kept(self, module: nn.Module, inputs: object) -> str | None:
        """Where the module, or what it was called with, keeps a view of the memory, if it does.

        The tensors themselves may be kept: who does so looks whether they are still shown (RNNs).
        """
        known = {id(tensor) for _, _, tensor in self._shown}
        registrations = {(id(registry), name) for registry, name, _ in self._shown}
        for name, tensor in _registered_by(module, registrations):
            if lies_in(tensor, self.memory):
                return name
        for name, value in _attributes_of(module):
            for leaf in tree_leaves(value):
                if id(leaf) not in known and lies_in(leaf, self.memory):
                    return name
        if any(lies_in(leaf, self.memory) for leaf in tree_leaves(inputs)):
            return "what it was called with"
        return None


def _registered_by(
    module: nn.Module, registrations: set[tuple[int, str]]
) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Tensors in other places than these, by name."""
    for prefix, part in module.named_modules():
        for registry in (part._parameters, part._buffers):
            for name, tensor in registry.items():
                if (id(registry), name) not in registrations:
                    yield f"{prefix}.{name}" if prefix else name, tensor


def _attributes_of(module: nn.Module) -> Iterator[tuple[str, object]]:
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            if name not in ("_parameters", "_buffers", "_modules") and "_hooks" not in name:
                yield f"{prefix}.{name}" if prefix else name, value


def _sums_of(memory: torch.Tensor) -> torch.Tensor:
    """Sums along rows and columns of the bytes, and the last few bytes themselves."""
    whole = memory.numel() // 8
    numbers = memory[: whole * 8].view(torch.int64)
    body = numbers[: whole // _ROW * _ROW].view(-1, _ROW)
    tail = memory[body.numel() * 8 :].to(torch.int64)
    return torch.cat([body.sum(dim=0), body.sum(dim=1), tail])
