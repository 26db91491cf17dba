"""``stream``: from one call on, an engine streams the blocks of a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from fastvideo_lightning.offload.call_groups import group_calls
from fastvideo_lightning.offload.cuda_graphs import GraphedForward
from fastvideo_lightning.offload.distributed.branches import BranchGroup, OnTwoProcesses
from fastvideo_lightning.offload.distributed.transport import ShardTransport, share_streaming
from fastvideo_lightning.offload.engine import OffloadEngine
from fastvideo_lightning.offload.handles import Handle, Undo, remove_all
from fastvideo_lightning.offload.hooks import (
    graph_forward,
    hook_model,
    hook_tables,
    hook_unit,
    refuse_whole_compile,
    wrap_unit,
)
from fastvideo_lightning.offload.lanes import pair_calls
from fastvideo_lightning.offload.tensors.bindings import TensorBinding
from fastvideo_lightning.offload.tensors.embeddings import split_tables
from fastvideo_lightning.offload.tensors.sources import WeightSource
from fastvideo_lightning.offload.unit import OffloadUnit, UnitGroup


@dataclass(eq=False)
class Streaming:
    """A model whose blocks stream; ``remove`` ends it.

    Attributes:
        group: the units that move.
        graphed: the model's forward, where its calls are captured and replayed.
        staying: the tensors that the device is to keep, by the caller.
        tables: embedding tables that are to stay on the CPU, where their rows are looked up.
        handles: what undoes hooks and attachment.
    """

    group: UnitGroup
    graphed: GraphedForward | None = None
    staying: list[TensorBinding] = field(default_factory=list)
    tables: list[TensorBinding] = field(default_factory=list)
    handles: list[Handle] = field(default_factory=list)

    def remove(self) -> None:
        """Undo the hooks and leave ordinary host tensors in the blocks."""
        remove_all(self.handles)
        self.handles.clear()


def stream(
    engine: OffloadEngine,
    model: nn.Module,
    fqn: str,
    blocks: Sequence[OffloadUnit],
    residents: Sequence[OffloadUnit] = (),
    *,
    staying: list[TensorBinding],
    sources: Mapping[str, WeightSource],
    transport: ShardTransport,
    on_call: Callable[[], None],
    skippable: bool = False,
    cuda_graphs: bool = False,
    pair_guidance: bool = False,
    branches: BranchGroup | None = None,
) -> Streaming:
    """Attach a model's blocks to an engine, and the engine to the calls of model and blocks.

    Args:
        engine: moves the blocks.
        model: holds the blocks and what lies between them.
        fqn: its name.
        blocks: take turns in the engine's slots, in the order of execution.
        residents: blocks that stay on the device, in memory that they share with other models'.
        staying: the model's other tensors.
        sources: where the bytes of tensors on meta are.
        transport: what ranks do that stream the same blocks.
        on_call: called at each call of the model, before edits of weights are taken over.
        skippable: surround the blocks' own forwards, see Note [Skipped blocks].
        cuda_graphs: capture and replay the model's calls.
        pair_guidance: have the calls of a step pass each block together, see Note [Two lanes].
        branches: make one of two calls and take what the other process of these made, see
            Note [Branches].

    Raises:
        ValueError: the engine streams by another transport, or ranks cannot share memory.
        RuntimeError: the model is compiled as a whole, or a tensor on meta has no source.
    """
    refuse_whole_compile(model, fqn)
    streaming = Streaming(UnitGroup(blocks, residents))
    group, handles = streaming.group, streaming.handles
    share_streaming(engine, transport, group.units)
    engine.attach(group, sources)
    handles.append(Undo(lambda: engine.detach(group.units)))
    try:
        streaming.tables, streaming.staying = split_tables(
            staying, sources, engine.device, larger_than=engine.ring.slot_bytes
        )
        handles.extend(hook_tables(streaming.tables, engine.device))
        if cuda_graphs:
            streaming.graphed, undo = graph_forward(model, fqn, engine.device, engine, group)
            handles.extend(undo)
        surround = wrap_unit if skippable else hook_unit
        for unit in group.units:
            handles.extend(surround(engine, unit))
        handles.extend(
            hook_model(engine, model, fqn, group, starts=not cuda_graphs, on_call=on_call)
        )
        if pair_guidance:
            handles.extend(pair_calls(engine, model, fqn))
        if branches is not None:
            together = OnTwoProcesses(branches, lambda: engine.transport.is_gathered)
            handles.extend(group_calls(together, engine, model, fqn))
    except BaseException:
        streaming.remove()
        raise
    return streaming
