"""LayerwiseOffload: the blocks of a model stream through a few device slots."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from weakref import WeakSet

import torch
from torch import nn

from fastvideo_lightning.callbacks.guidance import check_branches, find_branches
from fastvideo_lightning.callbacks.placement import (
    Attachment,
    Placement,
    bindings_inside,
    claimed_by_others,
    is_within,
    weight_sources,
)
from fastvideo_lightning.config.checks import check_count
from fastvideo_lightning.offload.blocks import (
    BlockList,
    deal,
    find_block_lists,
    resident_positions,
    split_list,
)
from fastvideo_lightning.offload.coding.coded import WeightCompression
from fastvideo_lightning.offload.distributed.transport import ShardTransport
from fastvideo_lightning.offload.host.mapped import check_supported
from fastvideo_lightning.offload.host.slab import HostMemory
from fastvideo_lightning.offload.registry import engine_of
from fastvideo_lightning.offload.streaming import stream
from fastvideo_lightning.offload.tensors.bindings import TensorBinding, split_staying
from fastvideo_lightning.offload.unit import OffloadUnit

_log = logging.getLogger(__name__)


class LayerwiseOffload(Placement):
    """Streams a model's blocks: while one computes, the next is copied.

    The device holds ``num_slots`` blocks and what lies between them: norms, the output layer, small
    embeddings. Of a table larger than a block, such as a text encoder's, it holds the rows that are
    looked up. The number of streamed blocks is a multiple of ``num_slots``, so that each block
    always meets the same slot; the few that are over stay on the device.

    Args:
        target: FQN of a block list (``"transformer.blocks"``), or of a model whose block lists are
            found (``"transformer"``).
        num_slots: blocks that have device memory at the same time. A third helps where blocks take
            about as long to come as to compute.
        resident_blocks: how many blocks stay on the device, at least; evenly spaced, so that their
            computing hides the others' copies: what a link-bound step gains time by.
        share_residents: the model works before or after others of the same root and never along
            with them, such as the experts of a two-expert denoiser: their resident blocks take
            turns in the same device memory. Every one of the models needs it.
        host_memory: ``"auto"``, ``"mapped"`` (the checkpoint file itself is the host's copy),
            ``"pinned"``, ``"pageable"``, ``"courier"`` (no host copy: the file is read on the way)
            or ``"disk"`` (the same past the page cache); ``auto`` maps what lies in the file in its
            run dtype and pins the rest. Or how many blocks each kind is to hold, such as
            ``{"auto": 16, "courier": 24}``, each evenly spaced; the first has those that are over.
        shard_transport: what ranks on one node do that stream the same blocks. ``"gather"``: each
            brings a part over its own link and the parts are joined on the devices; ``"local"``:
            each brings everything; ``"auto"`` measures both and takes the faster. One process alone
            has nothing to choose.
        skippable: wrap the blocks' forwards in place of hooking them, so that a step-skipping cache
            that is enabled after ``attach`` skips the copies of the blocks that it skips.
        cuda_graphs: within a batch, capture a call of the model with its copies and replay it: for
            steps so small that launching them takes longest. On CUDA only, each rank for itself.
        weight_compression: ``"lossless"`` has blocks travel in some 0.7 of their bytes and arrive
            with the same bits, see Note [Coded units]; they wait on the host coded, pinned, and
            are coded when they are attached. It takes blocks that lie in a file in bf16 and run
            in it; others travel as they are.
        pair_guidance: within a batch, the calls of the model in a step (with the prompt and
            without; four at most) pass each block together: half the copies, the same bits, and
            what a call that waits holds between two blocks.
        guidance_parallel: 2: of two such calls this process makes one and another process the
            other, the same bits. Both run the whole pipeline with the same seed.
        context_parallel: processes with consecutive ranks that make a call together.

    Raises:
        TypeError: the target is no text, or a number of blocks not a whole one.
        ValueError: a number is too small, a name unknown, or two arguments cannot be combined.
    """

    def __init__(
        self,
        target: str,
        *,
        num_slots: int = 2,
        resident_blocks: int = 0,
        share_residents: bool = False,
        host_memory: str | Mapping[str, int] = "auto",
        shard_transport: str = "auto",
        skippable: bool = False,
        cuda_graphs: bool = False,
        weight_compression: str = "none",
        pair_guidance: bool = False,
        guidance_parallel: int = 1,
        context_parallel: int = 1,
    ) -> None:
        check_count("num_slots", num_slots, low=1)
        check_count("resident_blocks", resident_blocks, low=0)
        gathers = shard_transport == "gather"
        _check_together(skippable=skippable, cuda_graphs=cuda_graphs, gathers=gathers)
        check_branches(guidance_parallel, context_parallel, cuda_graphs=cuda_graphs)
        for option, is_on in (
            ("pair_guidance=True", pair_guidance),
            ("guidance_parallel=2", guidance_parallel > 1),
        ):
            if is_on:
                _check_groups(option, skippable=skippable, cuda_graphs=cuda_graphs)
        if pair_guidance and guidance_parallel > 1:
            raise ValueError(
                "pair_guidance=True cannot be combined with guidance_parallel=2: each process "
                "makes one of the two calls. Leave one of the two out."
            )
        counts = {host_memory: 0} if isinstance(host_memory, str) else host_memory
        for kind, count in counts.items():
            check_count(f"host_memory[{kind!r}]", count, low=0)
        self.host_memory = {HostMemory(kind): count for kind, count in counts.items()}
        self._check_reads(cuda_graphs=cuda_graphs, gathers=gathers)
        self.weight_compression = WeightCompression(weight_compression)
        self._check_compression(gathers=gathers)
        super().__init__(target)
        self.num_slots = num_slots
        self.resident_blocks = resident_blocks
        self.share_residents = share_residents
        self.shard_transport = ShardTransport(shard_transport)
        self.skippable = skippable
        self.cuda_graphs = cuda_graphs
        self.pair_guidance = pair_guidance
        self.guidance_parallel = guidance_parallel
        self.context_parallel = context_parallel
        self._complete: WeakSet[Attachment] = WeakSet()

    def _check_reads(self, *, cuda_graphs: bool, gathers: bool) -> None:
        """Refuse what cannot be had of blocks that are read on their way."""
        for kind in self.host_memory:
            check_supported(kind)
            if kind.is_read and cuda_graphs:
                raise ValueError(
                    f"cuda_graphs=True cannot be combined with host_memory='{kind}': a graph "
                    "repeats copies from memory, not reads from a file. Leave one of the two out."
                )
            if kind.is_read and gathers:
                raise ValueError(
                    f"host_memory='{kind}' cannot be combined with shard_transport='gather': each "
                    "process reads files for itself. Pass shard_transport='local'."
                )

    def _check_compression(self, *, gathers: bool) -> None:
        """Refuse what cannot be had of blocks that wait coded."""
        if not self._compresses:
            return
        if not any(map(_can_be_coded, self.host_memory)):
            kind = next(iter(self.host_memory))
            raise ValueError(
                f"weight_compression='lossless' cannot be combined with host_memory='{kind}': "
                "coded weights wait in pinned memory. Pass host_memory='auto'."
            )
        check_supported(HostMemory.COURIER)  # parameters stay views of their file
        if gathers:
            raise ValueError(
                "weight_compression='lossless' cannot be combined with shard_transport='gather': "
                "each process codes what it copies. Pass shard_transport='local'."
            )

    @property
    def _compresses(self) -> bool:
        return self.weight_compression is WeightCompression.LOSSLESS

    @property
    def lockstep(self) -> bool:
        """Whether all ranks must make the same calls: each brings a part of every block."""
        engines = (attachment.engine for attachment in self.attachments)
        return any(engine is not None and engine.transport.is_gathered for engine in engines)

    def place(  # noqa: D102  # see Placement
        self, attachment: Attachment, target: nn.Module, device: torch.device
    ) -> None:
        root, units, staying = attachment.root, *self._make_units(attachment.root, target)
        model_fqn = self._enclosing_model(target)
        model = attachment.model = root.get_submodule(model_fqn)
        engine = attachment.engine = engine_of(root, device, num_slots=self.num_slots)

        stays = resident_positions(len(units), self.resident_blocks, self.num_slots)
        residents = [units[i] for i in sorted(stays)]
        streamed = [unit for unit in units if unit not in residents]
        for unit, kind in zip(streamed, deal(len(streamed), self.host_memory), strict=True):
            unit.host_memory = kind
            unit.compressed = self._compresses and _can_be_coded(kind)
        staying = [*tensors_between(root, model, [unit.module for unit in units]), *staying]
        if not self.share_residents:
            staying = [binding for unit in residents for binding in unit.bindings] + staying
            residents = []
        if self.skippable:
            _warn_of_earlier([*streamed, *residents])
        streaming = stream(
            engine,
            model,
            model_fqn,
            streamed,
            residents,
            staying=staying,
            sources=weight_sources(root),
            transport=self._transport,
            on_call=lambda: self._complete_residents(attachment, model, device),
            skippable=self.skippable,
            cuda_graphs=self.cuda_graphs and device.type == "cuda",
            pair_guidance=self.pair_guidance,
            branches=find_branches(self.guidance_parallel, self.context_parallel, device),
        )
        attachment.handles.append(streaming)
        self._tell_of_plain(streamed)
        attachment.group, attachment.units = streaming.group, streaming.group.units
        attachment.graphed = streaming.graphed
        self._keep(attachment, streaming.staying, device, run_device=device)
        self._keep(attachment, streaming.tables, torch.device("cpu"), run_device=device)

    def _tell_of_plain(self, units: Sequence[OffloadUnit]) -> None:
        """Say which blocks should have been coded and were not."""
        asked = [unit for unit in units if unit.compressed]
        plain = [unit.fqn for unit in asked if unit.slab is not None and unit.slab.coded is None]
        if plain:
            _log.warning(
                "weight_compression='lossless': %d of %d blocks travel as they are, %s first: "
                "their weights do not lie in a safetensors file in the dtype that they run in. "
                "Write one with `fastvideo-lightning pack MODEL OUT` and load it.",
                len(plain),
                len(asked),
                plain[0],
            )

    @property
    def _transport(self) -> ShardTransport:
        """The choice of transport; where each rank skips, captures or reads for itself, local."""
        by_file = any(kind.is_read for kind in self.host_memory)
        is_apart = self.skippable or self.cuda_graphs or by_file or self._compresses
        return ShardTransport.LOCAL if is_apart else self.shard_transport

    def _make_units(
        self, root: nn.Module, target: nn.Module
    ) -> tuple[list[OffloadUnit], list[TensorBinding]]:
        """One unit for each block that has bytes of its own, and what of the blocks stays."""
        blocks = [block for found in self._find_lists(target) for block in found.blocks]
        tensors, staying = split_staying(*bindings_inside(root, [block for _, block in blocks]))
        units = [
            OffloadUnit(fqn, block, inside, host_memory=next(iter(self.host_memory)))
            for (fqn, block), inside in zip(blocks, tensors, strict=True)
            if any(binding.tensor.numel() for binding in inside)
        ]
        if not units:
            raise ValueError(
                f"{self!r}: it has no blocks with weights of their own, so there is nothing to "
                f"stream. Use Resident({self.target!r}) for weights that blocks share, or leave "
                "the callback out."
            )
        return units, staying

    def _keep(
        self,
        attachment: Attachment,
        bindings: list[TensorBinding],
        device: torch.device,
        *,
        run_device: torch.device,
    ) -> None:
        others = claimed_by_others(attachment.root, self)
        mine = [b for b in bindings if not any(is_within(b.fqn, fqn) for fqn in others)]
        attachment.keep(mine, device, run_device=run_device)

    def _complete_residents(
        self, attachment: Attachment, model: nn.Module, device: torch.device
    ) -> None:
        """At the first call: block lists that no callback streams stay on the device."""
        assert attachment.engine is not None
        if attachment.engine.idle:
            for residents in attachment.residents:
                residents.refresh()
        if attachment in self._complete:
            return
        self._complete.add(attachment)
        streamed = {id(unit.module) for unit in attachment.engine.units}
        rest = [
            block
            for found in find_block_lists(model)
            for _, block in found.blocks
            if id(block) not in streamed
        ]
        tensors, _ = bindings_inside(attachment.root, rest)
        unplaced = [binding for inside in tensors for binding in inside]
        self._keep(attachment, unplaced, device, run_device=device)

    def _find_lists(self, target: nn.Module) -> list[BlockList]:
        if isinstance(target, nn.ModuleList | nn.Sequential):
            return split_list(target, self.target) if len(target) else []
        lists = find_block_lists(target, self.target)
        if not lists:
            raise ValueError(
                f"{self!r}: {type(target).__name__} has no list of blocks to stream. "
                f"Use ModelOffload({self.target!r}), which moves it as a whole."
            )
        return lists

    def _enclosing_model(self, target: nn.Module) -> str:
        """FQN of the model that the blocks belong to: the target, or a list's outermost parent."""
        if not isinstance(target, nn.ModuleList | nn.Sequential):
            return self.target
        first, _, rest = self.target.partition(".")
        return first if rest else ""


def _can_be_coded(kind: HostMemory) -> bool:
    return kind in (HostMemory.AUTO, HostMemory.PINNED)


def _check_together(*, skippable: bool, cuda_graphs: bool, gathers: bool) -> None:
    """Refuse ways of streaming that exclude each other."""
    if skippable and gathers:
        raise ValueError(
            "skippable=True cannot be combined with shard_transport='gather': ranks may skip "
            "different blocks, and would wait for each other. Pass shard_transport='local'."
        )
    if cuda_graphs and skippable:
        raise ValueError(
            "cuda_graphs=True cannot be combined with skippable=True: what is repeated skips "
            "nothing else. Leave one of the two out."
        )
    if cuda_graphs and gathers:
        raise ValueError(
            "cuda_graphs=True cannot be combined with shard_transport='gather': ranks would "
            "have to capture alike. Pass shard_transport='local'."
        )


def _check_groups(option: str, *, skippable: bool, cuda_graphs: bool) -> None:
    """Refuse what looks at each call of a block by itself."""
    for name, is_on, reason in (
        ("skippable", skippable, "a cache may skip a block in one of the two calls"),
        ("cuda_graphs", cuda_graphs, "a graph is one call"),
    ):
        if is_on:
            raise ValueError(
                f"{option} cannot be combined with {name}=True: {reason}. Leave one of the two out."
            )


def tensors_between(
    root: nn.Module, model: nn.Module, blocks: list[nn.Module]
) -> list[TensorBinding]:
    """What ``model`` has outside of ``blocks`` and of its other block lists, and what is tied."""
    others = [block for found in find_block_lists(model) for _, block in found.blocks]
    _, outside = bindings_inside(root, [*blocks, *others])
    within = {id(module) for module in model.modules()}
    return [b for b in outside if any(id(r.owner) in within for r in b.registrations)]


def _warn_of_earlier(units: Iterable[OffloadUnit]) -> None:
    """Say where a cache is around a block's forward already: then it skips no copies."""
    earlier = [unit.fqn for unit in units if "forward" in vars(unit.module)]
    if earlier:
        _log.warning(
            "%s has a forward of its own already, as after enable_cache: the copies of a block "
            "that it skips are made all the same. Call enable_cache after fabric.setup (or "
            "attach) to skip them too.",
            earlier[0],
        )
