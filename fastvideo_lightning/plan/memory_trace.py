"""What a component allocates when it is called: its forward on meta, each tensor noted.

Shapes flow through diffusers' own code, without a number in them, in a copy of a few blocks. Two
operations are composed of others on meta but are one kernel on CUDA: there they are taken for that.
A convolution's library brings its input into another order, and its output back: it allocates both
once more while it computes (decoding 17 and 81 frames on an H200 allocated within 0.3 % of what is
counted so).

Tape: what some calls took from an allocator and gave back, to be done again.

CachingAllocator: what torch's allocator on CUDA reserves for a sequence of tensors.

The rules are those of `c10/cuda/CUDACachingAllocator` with its defaults: sizes are multiples of 512
bytes. Up to 1 MiB tensors share segments of 2 MiB, below 10 MiB segments of 20 MiB, and beyond that
a segment is as large as the first tensor in it, a multiple of 2 MiB. A tensor takes the smallest
free block that has room for it, and the rest of the block stays free for others where it is larger
than 1 MiB (among small tensors 512 bytes). Free neighbours are joined; segments stay reserved.

Calls that allocate what a call before did: computed once on meta, then repeated.

Note [Repeated calls]
Wan's VAE calls its decoder for each latent frame of each tile, and keeps the last frames of what
each layer was given for the next call. Calls with inputs of one shape, and frames of one shape kept
from before, take the same from the allocator and give the same back, in the same order. The first
of them is computed on meta and noted; the others only repeat in the allocator what was noted. That
is how decoding in tiles is counted in a second or two and not in 25.
"""

import weakref
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Taken(NamedTuple):
    """A block was taken."""

    size_bytes: int


class GivenBack(NamedTuple):
    """A block was given back: which of those that were taken before, the first being 0."""

    take: int


class Dropped(NamedTuple):
    """A block that was there before was given back: the place that stands for it."""

    place: int


@dataclass
class Tape:
    """Events in their order.

    Attributes:
        places: What stands for the blocks that were there before.
        events: What was taken and given back.
        takes: The blocks that were taken and not given back: which of the takes each one was.
        num_takes: Of all.
    """

    places: "Mapping[Block, int]"
    events: list[Taken | GivenBack | Dropped] = field(default_factory=list)
    takes: "dict[Block, int]" = field(default_factory=dict)
    num_takes: int = 0

    def take(self, block: "Block", size_bytes: int) -> None:
        """Note that a block was taken."""
        self.events.append(Taken(size_bytes))
        self.takes[block] = self.num_takes
        self.num_takes += 1

    def give_back(self, block: "Block") -> None:
        """Note that a block was given back."""
        take = self.takes.pop(block, None)
        self.events.append(Dropped(self.places[block]) if take is None else GivenBack(take))


MIB = 1 << 20
_ROUNDING, _SMALL, _SHARED, _STEP = 512, MIB, 10 * MIB, 2 * MIB


@dataclass(eq=False)
class Block:
    """A part of a segment, in use or free, between its neighbours in that segment."""

    start: int
    size_bytes: int
    is_small: bool
    is_free: bool = False
    before: "Block | None" = None
    behind: "Block | None" = None

    @property
    def key(self) -> tuple[int, int]:
        """What free blocks are ordered by: size, then address."""
        return self.size_bytes, self.start


class CachingAllocator:
    """Counts what is reserved; there is no memory behind it.

    Attributes:
        reserved_bytes: Bytes of all segments.
        peak_bytes: The most that was in use at once.
    """

    def __init__(self) -> None:
        self.reserved_bytes = self.peak_bytes = self._used = 0
        self._free: dict[bool, list[Block]] = {True: [], False: []}

    def take(self, size_bytes: int) -> Block:
        """Make room for a tensor."""
        size = max(-(-size_bytes // _ROUNDING), 1) * _ROUNDING
        is_small = size <= _SMALL
        free = self._free[is_small]
        place = bisect_left(free, (size, 0), key=lambda block: block.key)
        block = free.pop(place) if place < len(free) else self._reserve(size, is_small)
        block.is_free = False
        self._split(block, size)
        self._used += block.size_bytes
        self.peak_bytes = max(self.peak_bytes, self._used)
        return block

    def give_back(self, block: Block) -> None:
        """Take a tensor's room for free, and join it with what is free beside it."""
        self._used -= block.size_bytes
        for other in (block.before, block.behind):
            if other is not None and other.is_free:
                self._free[block.is_small].remove(other)
                block.start = min(block.start, other.start)
                block.size_bytes += other.size_bytes
                if other is block.before:
                    _join(other.before, block)
                else:
                    _join(block, other.behind)
        block.is_free = True
        insort(self._free[block.is_small], block, key=lambda each: each.key)

    def _reserve(self, size: int, is_small: bool) -> Block:
        segment = -(-size // _STEP) * _STEP
        if is_small:
            segment = 2 * MIB
        elif size < _SHARED:
            segment = 20 * MIB
        block = Block(self.reserved_bytes, segment, is_small)
        self.reserved_bytes += segment
        return block

    def _split(self, block: Block, size: int) -> None:
        rest = block.size_bytes - size
        if rest < _ROUNDING or not (block.is_small or rest > _SMALL):
            return
        free = Block(block.start + size, rest, block.is_small, is_free=True)
        block.size_bytes = size
        _join(free, block.behind)
        _join(block, free)
        insort(self._free[block.is_small], free, key=lambda each: each.key)


def _join(before: Block | None, behind: Block | None) -> None:
    if before is not None:
        before.behind = behind
    if behind is not None:
        behind.before = before


def reserved_for(sizes: Iterable[int]) -> int:
    """Bytes that are reserved for tensors that come one after the other and stay."""
    allocator = CachingAllocator()
    for size in sizes:
        allocator.take(size)
    return allocator.reserved_bytes


@dataclass(frozen=True)
class _Made:
    """A tensor that a call leaves.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        take: Which of the call's takes it lies in.
    """

    shape: torch.Size
    dtype: torch.dtype
    take: int


@dataclass(frozen=True)
class _Call:
    """What a call does to the allocator, and what it leaves: its result and what it keeps."""

    tape: Tape
    result: _Made
    kept: list[Any]


class Repeats:
    """The forward of an encoder or a decoder of Wan's, see Note [Repeated calls].

    Args:
        notes: Where allocations are noted.
        forward: The forward itself.
    """

    def __init__(self, notes: "Notes", forward: Callable[..., torch.Tensor]) -> None:
        self._notes = notes
        self._forward = forward
        self._calls: dict[Hashable, _Call] = {}

    def __call__(
        self, x: torch.Tensor, feat_cache: list[Any], feat_idx: list[int], **options: Hashable
    ) -> torch.Tensor:
        """Compute on meta or repeat; ``feat_cache`` has what is kept, before and after."""
        kind = (x.shape, x.dtype, *map(_kind, feat_cache), *sorted(options.items()))
        if kind in self._calls:
            return self._repeat(self._calls[kind], feat_cache)
        blocks = [self._block_of(kept) for kept in feat_cache]
        places = {block: place for place, block in enumerate(blocks) if block is not None}
        with self._notes.recording(places) as tape:
            found = self._forward(x, feat_cache=feat_cache, feat_idx=feat_idx, **options)
        result, *kept = (self._made(value, tape) for value in (found, *feat_cache))
        self._calls[kind] = _Call(tape, result, kept)
        return found

    def _repeat(self, call: _Call, feat_cache: list[Any]) -> torch.Tensor:
        allocator, blocks = self._notes.allocator, list[Block]()
        for event in call.tape.events:
            match event:
                case Taken(size_bytes):
                    blocks.append(allocator.take(size_bytes))
                case GivenBack(take):
                    allocator.give_back(blocks[take])
                case Dropped(place):
                    feat_cache[place] = None

        def make(made: _Made) -> torch.Tensor:
            return self._notes.adopt(made.shape, made.dtype, blocks[made.take])

        feat_cache[:] = [make(kept) if isinstance(kept, _Made) else kept for kept in call.kept]
        return make(call.result)

    def _made(self, value: Any, tape: Tape) -> Any:
        block = self._block_of(value)
        return value if block is None else _Made(value.shape, value.dtype, tape.takes[block])

    def _block_of(self, value: object) -> Block | None:
        return self._notes.block_of(value) if isinstance(value, torch.Tensor) else None


def _kind(kept: object) -> Hashable:
    """What of a kept value tells calls apart."""
    return (kept.shape, kept.dtype) if isinstance(kept, torch.Tensor) else str(kept)


_CONVOLUTIONS = (torch.conv2d, torch.conv3d)


@dataclass(frozen=True)
class Allocations:
    """What the tensors of some calls take.

    Attributes:
        allocated_bytes: The most that is alive at once.
        reserved_bytes: What the caching allocator holds for them.
    """

    allocated_bytes: int
    reserved_bytes: int


def count_allocations(call: Callable[[], object], known: Sequence[torch.Tensor]) -> Allocations:
    """Count what a call on meta would allocate on a GPU.

    Args:
        call: Computes on meta.
        known: Weights and buffers, which are not counted.
    """
    with noting(known) as notes:
        call()
    return notes.allocations


@contextmanager
def noting(known: Sequence[torch.Tensor]) -> Iterator["Notes"]:
    """Note what is allocated on meta within, but for what is known."""
    notes = Notes(known)
    with torch.no_grad(), notes, _AsOnCuda():
        yield notes


class Notes(TorchDispatchMode):
    """Tells an allocator of each storage that comes and goes.

    Args:
        known: What is not to be noted.
    """

    def __init__(self, known: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocator = CachingAllocator()
        self._seen = {_key(tensor) for tensor in known}
        self._blocks: dict[int, Block] = {}
        self._adopted: Block | None = None
        self._tape: Tape | None = None

    @property
    def allocations(self) -> Allocations:
        """Of everything so far."""
        return Allocations(self.allocator.peak_bytes, self.allocator.reserved_bytes)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_iter(found):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                self._note(tensor)
        return found

    def block_of(self, tensor: torch.Tensor) -> Block | None:
        """Where a tensor lies; None for one that is not noted."""
        return self._blocks.get(_key(tensor))

    def adopt(self, shape: Sequence[int], dtype: torch.dtype, block: Block) -> torch.Tensor:
        """A tensor in a block that was taken already, and is given back when the tensor goes."""
        self._adopted = block
        return torch.empty(shape, dtype=dtype, device="meta")

    @contextmanager
    def recording(self, places: Mapping[Block, int]) -> Iterator[Tape]:
        """Record what is taken and given back within.

        Args:
            places: What stands for the blocks that are there before and may be given back within.
        """
        self._tape = Tape(places)
        try:
            yield self._tape
        finally:
            self._tape = None

    def _note(self, tensor: torch.Tensor) -> None:
        key = _key(tensor)
        storage = tensor.untyped_storage()
        if key in self._seen or not storage.nbytes():
            return
        self._seen.add(key)
        self._blocks[key] = self._take(storage.nbytes())

        def forget() -> None:
            self._seen.discard(key)
            self._give_back(self._blocks.pop(key))

        weakref.finalize(storage, forget)

    def _take(self, size_bytes: int) -> Block:
        if self._adopted is not None:
            block, self._adopted = self._adopted, None
            return block
        block = self.allocator.take(size_bytes)
        if self._tape is not None:
            self._tape.take(block, size_bytes)
        return block

    def _give_back(self, block: Block) -> None:
        if self._tape is not None:
            self._tape.give_back(block)
        self.allocator.give_back(block)


class _AsOnCuda(TorchFunctionMode):
    """Attention, RMS norms and convolutions allocate what their kernels on CUDA do."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.rms_norm, torch.nn.functional.rms_norm):
            rows = args[0].new_empty(args[0].shape[:-1], dtype=torch.float32)
            found = torch.empty_like(args[0])
            del rows
            return found
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attend(*args, **{k: v for k, v in kwargs.items() if k in _QUERY_KEY_VALUE})
        found = func(*args, **kwargs)
        if func in _CONVOLUTIONS:
            found.new_empty(args[0].numel() + args[1].numel() + found.numel())
        return found


_QUERY_KEY_VALUE = ("query", "key", "value")


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
    """Shapes are [batch, heads, tokens, width of a head]."""
    batch, heads, tokens, _width = query.shape
    sums = query.new_empty(batch, heads, tokens, dtype=torch.float32)
    found = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
    del sums
    return found


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
