"""Where a module keeps its tensors: each tensor once, with all of its registrations."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from fastvideo_lightning.offload.tensors.layout import TensorSpec

Registry = dict[str, torch.Tensor | None]
"""A module's own ``_parameters`` or ``_buffers``."""

Shown = list[tuple[Registry, str, torch.Tensor]]
"""What modules are to show: for each registration its tensor."""

STAYING_BYTES = 1 << 20
"""Bytes of a unit's buffers that stay on the device, at most."""


def show(tensors: Iterable[tuple[Registry, str, torch.Tensor | None]]) -> None:
    """Let the registrations have these tensors."""
    for registry, name, tensor in tensors:
        registry[name] = tensor


@dataclass(frozen=True, eq=False)
class Registration:
    """One registration of a tensor: the module that has it, under which name."""

    owner: nn.Module
    registry: Registry
    name: str


@dataclass(eq=False)
class TensorBinding:
    """A parameter or buffer; which tensor it is may change.

    A tied tensor is registered several times and is stored and moved once.

    Attributes:
        fqn: the first name that the tensor is known by, seen from the root module.
        is_buffer: whether it is a buffer; everything else is a parameter.
        registrations: all that the tensor has within the root module.
    """

    fqn: str
    is_buffer: bool
    registrations: list[Registration] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)

    @property
    def tensor(self) -> torch.Tensor:
        """The tensor that the module sees now."""
        registration = self.registrations[0]
        tensor = registration.registry[registration.name]
        assert tensor is not None, f"{self.fqn} was removed from its module"
        return tensor

    def bind(self, tensor: torch.Tensor) -> None:
        """Let every registration show ``tensor``."""
        for registration in self.registrations:
            registration.registry[registration.name] = tensor

    @property
    def names(self) -> tuple[str, ...]:
        """Every FQN of the tensor."""
        return (self.fqn, *self.aliases)


def find_bindings(root: nn.Module, prefix: str = "") -> list[TensorBinding]:
    """List the tensors of ``root`` and below in the order of registration, tied ones once.

    Args:
        root: the module to walk.
        prefix: FQN of ``root`` itself, put before every name.
    """
    bindings: dict[int, TensorBinding] = {}
    for path, owner in root.named_modules(prefix=prefix):
        registries: tuple[tuple[bool, Registry], ...] = (
            (False, owner._parameters),
            (True, owner._buffers),
        )
        for is_buffer, registry in registries:
            for name, tensor in registry.items():
                if tensor is None:
                    continue
                fqn = f"{path}.{name}" if path else name
                binding = bindings.get(id(tensor))
                if binding is None:
                    binding = bindings[id(tensor)] = TensorBinding(fqn, is_buffer)
                else:
                    binding.aliases.append(fqn)
                binding.registrations.append(Registration(owner, registry, name))
    return list(bindings.values())


def registrations_in(module: nn.Module) -> list[tuple[int, str]]:
    """Which names have a tensor, for each registry of a module; equal until a tensor comes or goes.

    This holds only as long as somebody keeps the modules that were there, as bindings do.
    """
    return [
        (id(registry), name)
        for owner in module.modules()
        for registry in (owner._parameters, owner._buffers)
        for name, tensor in registry.items()
        if tensor is not None
    ]


def split_staying(
    inside: list[list[TensorBinding]], outside: list[TensorBinding]
) -> tuple[list[list[TensorBinding]], list[TensorBinding]]:
    """Tell what moves of each unit from what stays: ``split_sharing`` and ``split_buffers``."""
    apart, staying = split_sharing(inside, outside)
    split = [split_buffers(unit) for unit in apart]
    return [moving for moving, _ in split], [*staying, *(b for _, small in split for b in small)]


def split_buffers(
    bindings: list[TensorBinding],
) -> tuple[list[TensorBinding], list[TensorBinding]]:
    """Tell what moves with a unit from those of its buffers that stay on the device.

    Weights do not change in a forward; buffers may, in ways that nothing shows: a cache, a counter,
    running statistics. A buffer that stays is an ordinary tensor, so whatever a forward does to it
    is right. The smallest stay, up to ``STAYING_BYTES``; what is larger holds weights as a rule.

    Returns:
        What moves, and what stays.
    """
    small: list[TensorBinding] = []
    left_bytes = STAYING_BYTES
    for binding in sorted((b for b in bindings if b.is_buffer), key=_size_bytes):
        left_bytes -= _size_bytes(binding)
        if left_bytes >= 0:
            small.append(binding)
    return [b for b in bindings if b not in small], small


def _size_bytes(binding: TensorBinding) -> int:
    return binding.tensor.numel() * binding.tensor.element_size()


def split_ties(bindings: list[TensorBinding]) -> list[TensorBinding]:
    """The same bindings, but one more for each registration that was given a tensor of its own.

    Registrations that have none any more are left out.
    """
    split: list[TensorBinding] = []
    for binding in bindings:
        apart: dict[int, TensorBinding] = {}
        for fqn, registration in zip(binding.names, binding.registrations, strict=True):
            tensor = registration.registry.get(registration.name)
            if tensor is None:
                continue
            if id(tensor) not in apart:
                apart[id(tensor)] = TensorBinding(fqn, binding.is_buffer, [registration])
                continue
            apart[id(tensor)].registrations.append(registration)
            apart[id(tensor)].aliases.append(fqn)
        split.extend(apart.values())
    return split


def split_by_owner(
    bindings: list[TensorBinding], modules: list[nn.Module], root: nn.Module | None = None
) -> tuple[list[list[TensorBinding]], list[TensorBinding]]:
    """Sort bindings by the one module of ``modules`` that has all of their registrations.

    Args:
        bindings: what to sort.
        modules: the owners to sort by.
        root: what the modules are part of; a module in one of them that ``root`` also has elsewhere
            then belongs to none.

    Returns:
        One list of bindings per module, and the rest: what lies outside of all of them, and what is
        tied across two of them or into the outside.
    """
    home: dict[int, int | None] = {}
    for i, module in enumerate(modules):
        for inner in module.modules():
            other = home.get(id(inner), i)
            same = other is not None and modules[other] is module
            home[id(inner)] = other if same else None
    for inner in _reached_around(root, modules):
        home[id(inner)] = None
    inside: list[list[TensorBinding]] = [[] for _ in modules]
    outside: list[TensorBinding] = []
    for binding in bindings:
        homes = {home.get(id(registration.owner)) for registration in binding.registrations}
        index = homes.pop()
        if homes or index is None:
            outside.append(binding)
        else:
            inside[index].append(binding)
    return inside, outside


def split_sharing(
    inside: list[list[TensorBinding]], outside: list[TensorBinding]
) -> tuple[list[list[TensorBinding]], list[TensorBinding]]:
    """Tell tensors that reach into another one's memory, or have gaps, from those that may move.

    A write to one of two such tensors is a write to the other; moved, each would have bytes of its
    own. A tensor with gaps would lose its gaps, and other kernels would give other last bits.

    Args:
        inside: the tensors of each unit.
        outside: all others of the root module.

    Returns:
        What may move of each unit, and what may not.
    """
    every = [binding for unit in inside for binding in unit]
    sharing = _sharing_memory([*every, *outside]) | set(filter(_has_gaps, every))
    moving = [[binding for binding in unit if binding not in sharing] for unit in inside]
    return moving, [binding for binding in every if binding in sharing]


def _sharing_memory(bindings: list[TensorBinding]) -> set[TensorBinding]:
    extents = sorted(
        (
            (tensor.device.type, tensor.device.index or 0, *_extent(tensor), i)
            for i, tensor in enumerate(binding.tensor for binding in bindings)
            if type(tensor) in (torch.Tensor, nn.Parameter) and tensor.numel()
            if not tensor.is_meta and tensor.layout is torch.strided
        ),
    )
    sharing: set[TensorBinding] = set()
    furthest: tuple[str, int, int, int] | None = None  # device, where it ends, and whose end it is
    for kind, index, begin, end, i in extents:
        if furthest is not None and furthest[:2] == (kind, index) and begin < furthest[2]:
            sharing |= {bindings[furthest[3]], bindings[i]}
        if furthest is None or furthest[:2] != (kind, index) or end > furthest[2]:
            furthest = (kind, index, end, i)
    return sharing


def _has_gaps(binding: TensorBinding) -> bool:
    tensor = binding.tensor
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.is_meta or not tensor.numel():
        return False
    return tuple(tensor.stride()) != TensorSpec.of(tensor).stride


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Where a tensor's memory begins and ends, gaps included."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in pairs)
    begin = tensor.data_ptr()
    return begin, begin + (last + 1) * tensor.element_size()


def _reached_around(root: nn.Module | None, modules: list[nn.Module]) -> Iterator[nn.Module]:
    """Every module of ``root`` that is reached without going through one of ``modules``."""
    seen = {id(module) for module in modules}
    waiting = [] if root is None else [root]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield module
        waiting.extend(module.children())
