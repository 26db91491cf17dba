"""Finds the blocks of a model: the lists of alike modules that a forward walks through."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from fastvideo_lightning.offload.host.slab import HostMemory
from fastvideo_lightning.offload.tensors.bindings import find_bindings
from fastvideo_lightning.offload.tensors.embeddings import is_table


@dataclass(frozen=True)
class BlockList:
    """A list of blocks in a model.

    Attributes:
        fqn: name of the list, seen from the module that was searched.
        blocks: its modules with their names, in the order of registration.
    """

    fqn: str
    blocks: tuple[tuple[str, nn.Module], ...]


def spread(total: int, count: int) -> set[int]:
    """``count`` of the positions ``0 .. total - 1``, evenly spaced."""
    return {(2 * i + 1) * total // (2 * count) for i in range(count)}


def streamed_share(model: nn.Module, *, num_slots: int = 2) -> float:
    """The share of ``model``'s bytes that does not stay on the device when its blocks stream.

    Not on the device are the blocks, but for those left over when the number of slots does not
    divide them, and embedding tables larger than a block, of which only rows are copied. 0.0 for a
    model without blocks.
    """
    blocks = [block for found in find_block_lists(model) for _, block in found.blocks]
    if not blocks:
        return 0.0
    stays = spread(len(blocks), len(blocks) % num_slots)
    streamed = sum(_count(block) for i, block in enumerate(blocks) if i not in stays)
    largest = max(map(_count, blocks))
    inside = {id(module) for block in blocks for module in block.modules()}
    tables = (
        b
        for b in find_bindings(model)
        if is_table(b) and id(b.registrations[0].owner) not in inside
    )
    streamed += sum(b.tensor.numel() for b in tables if b.tensor.numel() > largest)
    return streamed / _count(model)


def find_block_lists(model: nn.Module, prefix: str = "") -> list[BlockList]:
    """The block lists of ``model``, in the order of registration; each block once.

    A list counts when its members have weights and are either of one class, two or more of them, or
    all made of further modules. Lists inside of a block belong to the block, unless the list is one
    of stages, as a U-Net has: then the blocks are what the stages are made of. Left out are the
    lists of a child that weighs next to nothing beside one block: keeping it on the device costs
    little, and it may be called many times in one forward (WanAnimate's motion encoder is, once for
    each group of frames).

    Args:
        model: where to search; a list itself is searched for lists below it.
        prefix: FQN of ``model``, put before the names found.
    """
    found = _each_once(_search(model, prefix))
    largest = max((_count(block) for each in found for _, block in each.blocks), default=0)
    start = f"{prefix}." if prefix else ""
    kept = tuple(
        f"{start}{name}."
        for name, child in model.named_children()
        if _count(child) > _SLIGHT * largest
    )
    return [each for each in found if f"{each.fqn}.".startswith(kept)]


def split_list(module: nn.Module, fqn: str) -> list[BlockList]:
    """The blocks of one list: its members, or the lists that its stages are made of."""
    return _each_once(_split(module, fqn))


def deal(num_blocks: int, counts: Mapping[HostMemory, int]) -> list[HostMemory]:
    """Deal kinds of host memory to blocks, each kind evenly spaced.

    Args:
        num_blocks: blocks to deal to; where the counts sum to more, each kind gets its share.
        counts: blocks of each kind; the first kind also gets all blocks beyond the sum.
    """
    first = next(iter(counts))
    total = max(sum(counts.values()), 1)
    over = max(num_blocks - total, 0)
    shares = {kind: count + over * (kind is first) for kind, count in counts.items()}
    whole = max(sum(shares.values()), 1)
    dealt = dict.fromkeys(shares, 0)
    kinds = []
    for number in range(1, num_blocks + 1):
        due = {kind: share * number / whole - dealt[kind] for kind, share in shares.items()}
        kind = max(due, key=lambda each: due[each])
        dealt[kind] += 1
        kinds.append(kind)
    return kinds


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


# A stage is at most a few times as large as its neighbours, or it is not worth cutting up; and what
# it has outside of its own lists would stay on the device.
_UNLIKE_SIZES = 4
_INSIDE_LISTS = 0.9
# Share of the largest block that a child may have whose blocks stay on the device.
_SLIGHT = 1 / 8


def _search(model: nn.Module, prefix: str) -> Iterator[BlockList]:
    for name, child in model.named_children():
        fqn = f"{prefix}.{name}" if prefix else name
        yield from _split(child, fqn) if is_block_list(child) else _search(child, fqn)


def _split(module: nn.Module, fqn: str) -> Iterator[BlockList]:
    """A list as it is, or cut up where its members are lists themselves or stages."""
    sizes = [_count(member) for member in module.children()]
    unlike = max(sizes) > _UNLIKE_SIZES * min(sizes)
    whole: list[tuple[str, nn.Module]] = []
    inside: list[BlockList] = []
    for name, member in module.named_children():
        lists = list(_search(member, f"{fqn}.{name}"))
        if isinstance(member, nn.ModuleList | nn.ModuleDict):  # nothing calls it: its members are
            inside += list(_split(member, f"{fqn}.{name}")) if is_block_list(member) else lists
        elif unlike and _is_stage(member, lists):
            inside += lists
        else:
            whole.append((f"{fqn}.{name}", member))
    if whole:
        yield BlockList(fqn, tuple(whole))
    yield from inside


def _is_stage(member: nn.Module, lists: list[BlockList]) -> bool:
    blocks = [block for found in lists for _, block in found.blocks]
    covered = sum(_count(block) for block in blocks)
    return len(blocks) > 1 and covered >= _INSIDE_LISTS * _count(member)


def _each_once(lists: Iterable[BlockList]) -> list[BlockList]:
    """Leave out a block that an earlier list has."""
    seen: set[int] = set()
    found = []
    for listed in lists:
        new = tuple(named for named in listed.blocks if id(named[1]) not in seen)
        seen |= {id(block) for _, block in new}
        if new:
            found.append(BlockList(listed.fqn, new))
    return found


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def resident_positions(num_blocks: int, resident_blocks: int, num_slots: int) -> set[int]:
    """The blocks that stay on the device, as `LayerwiseOffload` chooses them."""
    streamed = max(num_blocks - resident_blocks, 0)
    return spread(num_blocks, num_blocks - streamed + streamed % num_slots)
