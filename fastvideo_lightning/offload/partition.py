"""Finds the blocks of a model: the lists of alike modules that a forward walks through."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class BlockList:
    """A list of blocks in a model.

    Attributes:
        fqn: name of the list, seen from the module that was searched.
        blocks: its modules with their names, in the order of registration.
    """

    fqn: str
    blocks: tuple[tuple[str, nn.Module], ...]

    @classmethod
    def of(cls, module: nn.Module, fqn: str) -> "BlockList":
        """The members of ``module`` as blocks."""
        return cls(fqn, tuple((f"{fqn}.{name}", block) for name, block in module.named_children()))


def spread(total: int, count: int) -> set[int]:
    """``count`` of the positions ``0 .. total - 1``, evenly spaced."""
    return {(2 * i + 1) * total // (2 * count) for i in range(count)}


def find_block_lists(model: nn.Module, prefix: str = "") -> list[BlockList]:
    """The outermost block lists of ``model``, in the order of registration.

    A list counts when its members have weights and are either of one class, two or more of them, or
    all made of further modules. Lists inside of a block belong to the block.

    Args:
        model: where to search; a list itself is searched for lists below it.
        prefix: FQN of ``model``, put before the names found.
    """
    found: list[BlockList] = []
    for name, child in model.named_children():
        fqn = f"{prefix}.{name}" if prefix else name
        if is_block_list(child):
            found.append(BlockList.of(child, fqn))
        else:
            found.extend(find_block_lists(child, fqn))
    return found


def is_block_list(module: nn.Module) -> bool:
    """Whether a module is a list of blocks."""
    if not isinstance(module, nn.ModuleList | nn.Sequential):
        return False
    members = list(module.children())
    if not members or not all(any(True for _ in member.parameters()) for member in members):
        return False
    alike = len(members) > 1 and len({type(member) for member in members}) == 1
    nested = isinstance(module, nn.ModuleList) and all(
        any(True for _ in member.children()) for member in members
    )
    return alike or nested
