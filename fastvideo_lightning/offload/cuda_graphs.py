"""GraphedForward: a model's whole call as one CUDA graph, the copies of its blocks included.

Note [One graph for a step]
A small step is bound by the host, which launches some fifty kernels a block. Weights meet the same
addresses in every pass, so the device can make the next pass by itself: the second call of a kind
is captured and from then on replayed. Inputs are copied to where the graph reads them, the outputs
out of it. Graphs last as long as a run, in which weights stay. Calls are of one kind if their
tensors have equal shapes and all other arguments are equal. A pass that does not end as it began,
such as the last one before the VAE, is not captured but made call by call.
"""

from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import update_wrapper

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten

from fastvideo_lightning.offload.engine import OffloadEngine
from fastvideo_lightning.offload.handles import Call, NotPicklable
from fastvideo_lightning.offload.unit import DeviceSlot, UnitGroup

MAX_GRAPHS = 4
"""Kinds of calls that are captured in one run; with more, calls hardly repeat each other."""

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
"""Arguments of these types are told apart by their values."""


@dataclass
class Captured:
    """A call that was captured.

    Attributes:
        graph: makes it again.
        inputs: tensors that the graph reads, in the order of the flattened arguments.
        output: what the call returned, with tensors that the graph writes.
        slots: those with weights that were copied before the call.
    """

    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    output: object
    slots: tuple[DeviceSlot, ...]


class GraphedForward(NotPicklable):
    """Stands for a model's forward and replays it, see Note [One graph for a step].

    Args:
        forward: the model's own.
        fqn: the model's name, for messages.
        device: where it computes, a CUDA device.
        engine: what streams the model's blocks; None where all weights stay on the device.
        group: its blocks.
    """

    def __init__(
        self,
        forward: Call,
        fqn: str,
        device: torch.device,
        engine: OffloadEngine | None = None,
        group: UnitGroup | None = None,
    ) -> None:
        self._forward = forward
        super().__init__(fqn)
        update_wrapper(self, forward)  # pipelines look at the signature
        self._device = device
        self._engine = engine
        self._group = group if group is not None else UnitGroup()
        self._open = False
        self._seen: set[Hashable] = set()
        self._captured: dict[Hashable, Captured] = {}

    def begin_step(self, *, is_last: bool) -> None:
        """A denoising step or a run begins: until its end weights stay as and where they are.

        Args:
            is_last: something else follows the step and wants the memory: no more is captured.
        """
        self._open = not is_last
        if is_last:
            self._forget()

    def end_run(self) -> None:
        """Weights may be edited now."""
        self._open = False
        self._forget()

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call the forward, or have the device repeat what an earlier call of its kind did.

        Raises:
            RuntimeError: the call cannot be captured.
        """
        slots = None if not self._open or torch.is_grad_enabled() else self._slots_at_start()
        if slots is None:
            return self._call(args, kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        kind = kind_of(leaves, spec, slots)
        if kind in self._captured:
            return self._repeat(self._captured[kind], leaves)
        if kind in self._seen and len(self._captured) < MAX_GRAPHS:
            captured = self._capture(leaves, spec, slots)
            if captured is not None:
                self._captured[kind] = captured
                return self._replay(captured)
        if kind is not None:
            self._seen.add(kind)
        return self._call(args, kwargs)

    def _call(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        if self._engine is not None:
            self._engine.start(self._group)
        return self._forward(*args, **kwargs)

    def _slots_at_start(self) -> tuple[DeviceSlot, ...] | None:
        """The slots with weights as a pass begins; None where the pass cannot be captured."""
        if self._engine is None:
            return ()
        if any(unit.slab is None or not unit.slab.pinned for unit in self._group.streamed):
            return None
        return self._engine.slots_at_start(self._group)

    def _capture(
        self, leaves: list[object], spec: TreeSpec, slots: tuple[DeviceSlot, ...]
    ) -> Captured | None:
        """Record a call without making it; None where it does not end as it began.

        The graph's inputs get the call's values.
        """
        copies = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(copies, spec)
        graph = torch.cuda.CUDAGraph()
        # One is replayed at a time and its output copied, so all graphs work in the same memory.
        pool = next((other.graph.pool() for other in self._captured.values()), None)
        current = torch.cuda.current_stream(self._device)
        copying = nullcontext() if self._engine is None else self._engine.transport.capturing()
        try:
            with (
                torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
                copying,
            ):
                output = self._call(args, kwargs)
        except BaseException as error:
            torch.cuda.set_stream(
                current
            )  # a failed end of a capture leaves its own stream current
            self._give_up()
            is_echo = isinstance(error, torch.AcceleratorError)  # of a capture that ended early
            cause = (error.__context__ if is_echo else None) or error
            if isinstance(cause, torch.OutOfMemoryError) or not isinstance(cause, RuntimeError):
                raise cause from None
            raise RuntimeError(
                f"{self.fqn} cannot be captured as a CUDA graph: {str(cause).splitlines()[0]} "
                "Leave cuda_graphs out."
            ) from cause
        if self._slots_at_start() != slots:
            self._give_up()
            return None
        return Captured(graph, [c for c in copies if isinstance(c, torch.Tensor)], output, slots)

    def _give_up(self) -> None:
        """Forget copies that were to be captured and never made."""
        if self._engine is not None:
            self._engine.release_all()
            self._engine.drain()

    def _repeat(self, captured: Captured, leaves: list[object]) -> object:
        """Replay a graph for other inputs."""
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        for static, tensor in zip(captured.inputs, tensors, strict=True):
            static.copy_(tensor)
        if self._engine is not None:
            self._engine.repeat(self._group)
        return self._replay(captured)

    def _replay(self, captured: Captured) -> object:
        if self._engine is None:
            captured.graph.replay()
        else:
            memory = self._engine.memory
            for slot in captured.slots:
                self._engine.transport.wait(slot)
            captured.graph.replay()
            self._engine.transport.replayed((*memory.ring.slots, *memory.resident_slots))
        return tree_map_only(torch.Tensor, torch.Tensor.clone, captured.output)

    def _forget(self) -> None:
        self._seen.clear()
        if self._captured:
            torch.cuda.current_stream(self._device).synchronize()
            self._captured.clear()
            torch.cuda.empty_cache()  # what was set aside for the graphs


def kind_of(
    leaves: Sequence[object], spec: TreeSpec, slots: tuple[DeviceSlot, ...] = ()
) -> Hashable | None:
    """A key that is equal for calls that one graph can stand for; None where no graph can.

    Args:
        leaves: the call's arguments, flattened.
        spec: how they were nested.
        slots: those with weights that are there before the call.
    """
    kind: list[Hashable] = [spec, *slots]
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            kind.append((leaf.shape, leaf.stride(), leaf.dtype, leaf.device))
        elif isinstance(leaf, PLAIN):
            kind.append((type(leaf), leaf))
        else:
            return None
    return tuple(kind)
