"""CallGroups: which calls of a model are made together, found while it runs.

Note [Groups of calls]
The calls of a step whose results are used only when all have been made are a group: with guidance
two, with a guider that leaves layers out three or four. All but the last are put off, see
Note [Deferred calls], and the last one makes them all; how is up to a ``Together``: in lanes on one
device, or each by another process.

How many make a group is how many there were between two uses of results. Where a result is touched
before the group is complete, those that were put off are made together without waiting for more.
"""

import logging
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from fastvideo_lightning.offload.cuda_graphs import kind_of
from fastvideo_lightning.offload.deferred import DeferredCall, Modes, Promise, value_of
from fastvideo_lightning.offload.handles import Call, Handle, MethodHandle, NotPicklable, Undo

_log = logging.getLogger(__name__)

MAX_TOUCHED = 3
"""Calls put off in a row and touched at once: then none is put off until the run is over."""


class Runs(Protocol):
    """What knows when a run is on, in which weights stay as they are: an engine, for one."""

    device: torch.device
    running: bool
    before_end: list[Callable[[], None]]


@dataclass
class ResidentRuns:
    """The runs of a model whose weights stay on the device.

    Attributes:
        device: where it computes.
        running: whether a run is on.
        before_end: called before one ends.
    """

    device: torch.device
    running: bool = False
    before_end: list[Callable[[], None]] = field(default_factory=list)

    def begin_run(self) -> None:
        """Weights stay from here on."""
        self.running = True

    def end_run(self) -> None:
        """Weights may be edited."""
        for listener in self.before_end:
            listener()
        self.running = False


class Together(Protocol):
    """How the calls of a group are made.

    Attributes:
        option: what to leave out where that cannot be.
        max_calls: how many calls a group may have.
        makes_all: whether this process makes all of the calls, one of them in front of the other
            between any two units. Else what a call returns has to be known beforehand, and it may
            leave nothing else behind.
    """

    option: str
    max_calls: int
    makes_all: bool

    @property
    def is_open(self) -> bool:
        """Whether calls may be put off now."""
        ...

    def make(self, calls: Sequence[DeferredCall]) -> None:
        """Make calls; each keeps its result or its error."""
        ...

    def end_run(self, *, is_whole: bool) -> None:
        """A run ends, by an exception or in good order."""
        ...


class Traces:
    """What a call of a model could change besides what it returns.

    Args:
        model: what is called.
        inputs: of the call.
        device: where it computes.
        within: look at what the model itself keeps, too.
    """

    def __init__(
        self, model: nn.Module, inputs: object, device: torch.device, *, within: bool
    ) -> None:
        self._model = model
        self._inputs = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
        self._device = device
        self._within = within
        self._found = self._look()

    @property
    def are_none(self) -> bool:
        """Whether the call has left all as it was."""
        return self._look() == self._found

    def _look(self) -> list[object]:
        generators = [torch.default_generator]
        if self._device.type == "cuda":
            generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
        found: list[object] = [bytes(g.get_state().numpy()) for g in generators]
        found += [_version(tensor) for tensor in self._inputs]
        for module in self._model.modules() if self._within else ():
            for name, value in vars(module).items():
                found.append((name, id(value), _size(value)))
            found += [(id(buffer), _version(buffer)) for buffer in module._buffers.values()]
        return found


def _version(tensor: torch.Tensor | None) -> int:
    return -1 if tensor is None or tensor.is_inference() else tensor._version


def _size(value: object) -> int:
    return len(value) if isinstance(value, dict | list | set | tuple) else -1


class CallGroups(NotPicklable):
    """Puts off calls of a model and makes those of a step together, see Note [Groups of calls].

    Args:
        together: how they are made.
        runs: when weights stay.
        model: what is called.
        fqn: its name, for messages.
    """

    def __init__(self, together: Together, runs: Runs, model: nn.Module, fqn: str) -> None:
        super().__init__(fqn)
        self.option = together.option
        self.model = model
        self.device = runs.device
        self._runs = runs
        self._together = together
        self._call_impl: Call = model._call_impl
        self._promises: dict[Hashable, Promise] = {}
        self._pending: list[DeferredCall] = []
        self._size = 2
        self._num_since_use = 0
        self._num_touched = 0
        self._num_alone = 0
        self._num_groups = 0
        self._is_told = False
        self._inside = 0

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def __call__(self, *args: object, **kwargs: object) -> object:
        """Put the call off, or make it, with those that were put off before."""
        if self._inside:
            return self._call_impl(*args, **kwargs)
        args, kwargs = tree_map(value_of, (args, kwargs))
        kind = self._kind(args, kwargs)
        promise = self._promises.get(kind)
        self._num_since_use += 1
        is_last = len(self._pending) + 1 >= self._size
        if promise is not None and not is_last and self._num_touched < MAX_TOUCHED:
            self._pending.append(DeferredCall(self, args, kwargs, promise))
            return self._pending[-1].deferred()
        pending, self._pending = self._pending, []
        can_join = kind is not None and (promise is not None or self._together.makes_all)
        if pending and can_join and all(call.is_as_now for call in pending):
            last = DeferredCall(self, args, kwargs, promise, call=self._call_impl)
            output = self._make_with(pending, last)
            if promise is None:
                self._promise(kind, output)
            return output
        self._make(pending)
        return self._make_alone(kind, args, kwargs)

    def make_for(self, call: DeferredCall) -> None:
        """Make what was put off: the result of one of them is touched."""
        if call not in self._pending:
            self._make([call])
            return
        pending, self._pending = self._pending, []
        self._num_touched = self._num_touched + 1 if len(pending) == 1 else 0
        self._make(pending)

    def note_use(self) -> None:
        """A result is used: the calls since the last use are the group of a step."""
        if self._num_since_use:
            self._size = max(2, min(self._num_since_use, self._together.max_calls))
            self._num_since_use = 0

    def end_run(self) -> None:
        """Weights may be edited now: nothing may be left to be made later."""
        pending, self._pending = self._pending, []
        is_whole = sys.exc_info()[0] is None
        self._tell()
        self._promises.clear()
        self._num_touched = self._num_since_use = 0
        if is_whole:
            self._make(pending)
        for call in pending if not is_whole else ():
            call.fail(
                RuntimeError(
                    f"A result of {self.fqn} is used after the video that it was for has failed."
                )
            )
        if self._runs.running:
            self._together.end_run(is_whole=is_whole)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Let calls of the model pass within."""
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def _make(self, calls: Sequence[DeferredCall]) -> None:
        """Make calls that were put off, without another."""
        if len(calls) > 1 and all(call.is_as_now for call in calls):
            self._num_groups += 1
            self._together.make(calls)
            return
        for call in calls:
            self._num_alone += 1
            call.run_alone()

    def _make_with(self, pending: Sequence[DeferredCall], last: DeferredCall) -> object:
        calls = [*pending, last]
        self._together.make(calls)
        last.check()
        for call in pending:
            call.check()
        self._num_touched = 0
        self._num_groups += 1
        return last.output

    def _make_alone(
        self, kind: Hashable | None, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Make a call that is not put off, and learn what those of its kind return."""
        self._num_alone += 1
        self._num_since_use = 0
        within = not self._together.makes_all
        if kind is None or kind in self._promises:
            with self.passing():
                return self._call_impl(*args, **kwargs)
        traces = Traces(self.model, (args, kwargs), self.device, within=within)
        with self.passing():
            output = self._call_impl(*args, **kwargs)
        if traces.are_none:
            self._promise(kind, output)
        return output

    def _tell(self) -> None:
        """Say once where groups were asked for and there was none."""
        num_groups, self._num_groups = self._num_groups, 0
        num_alone, self._num_alone = self._num_alone, 0
        if num_alone > 2 and not num_groups and not self._is_told:
            self._is_told = True
            _log.info(
                "%s has no effect on %s: no two of its calls are made before the result of the "
                "first is used. Its pipeline may call it once a step.",
                self.option,
                self.fqn,
            )

    def _kind(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Hashable | None:
        """A key of calls that return alike; None where a call cannot be put off."""
        modes = Modes.now(self.device)
        is_open = self._runs.running and self._together.is_open
        if not is_open or self.model.training or not modes.is_plain:
            return None
        scales = any(isinstance(value, dict) and value for value in kwargs.values())
        if scales or any(_has_hooks(module) for module in self.model.modules()):
            return None
        kind = kind_of(*tree_flatten((args, kwargs)))
        return None if kind is None else (modes, kind)

    def _promise(self, kind: Hashable, output: object) -> None:
        leaves, spec = tree_flatten(output)
        if all(type(leaf) is torch.Tensor for leaf in leaves):
            like = tuple(
                torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
                for leaf in leaves
            )
            self._promises[kind] = Promise(spec, like, tuple(leaf.device for leaf in leaves))


def _has_hooks(module: nn.Module) -> bool:
    """Whether diffusers' hooks (caches, skipped layers, offloading) stand around a module."""
    registry = vars(module).get("_diffusers_hook")
    return bool(registry is not None and registry.hooks)


def group_calls(together: Together, runs: Runs, model: nn.Module, fqn: str) -> list[Handle]:
    """Have the calls of a step be made together, see Note [Groups of calls]."""
    groups = CallGroups(together, runs, model, fqn)
    runs.before_end.append(groups.end_run)
    return [
        Undo(lambda: runs.before_end.remove(groups.end_run)),
        MethodHandle(model, "_call_impl", groups),
    ]
