"""Lanes: two calls of a model that pass each of its streamed blocks together.

Note [Two lanes]
Classifier-free guidance calls a denoiser twice a step, and each call moves all streamed bytes. So
the first call is put off: it returns deferred tensors, whose shapes are those of an earlier call of
its kind. The second call then runs both: the first one in a greenlet, which stops after each unit
until the second one has used that unit too. Between two units the first call's kernels are launched
before the second's, as ever, so state that blocks keep is written in the order of the calls.

Whatever touches a deferred tensor before the second call has the first one run alone. Where the
lanes part (one of them leaves out a block, raises, or is in a mode that cannot be put back), they
go on one after the other.

A call is put off only if nothing can change it until it runs: its tensors are copied and its other
arguments are plain values, weights stay within a run, hooks that were there when it was made are
put back for it, and neither autograd nor a mode of torch's would have seen it.
"""

import logging
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from types import FrameType

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from fastvideo_lightning.offload.cuda_graphs import kind_of
from fastvideo_lightning.offload.engine import OffloadEngine
from fastvideo_lightning.offload.handles import Call, Handle, MethodHandle, NotPicklable, Undo
from fastvideo_lightning.offload.results import apart_from
from fastvideo_lightning.offload.unit import OffloadUnit

_log = logging.getLogger(__name__)

MAX_TOUCHED = 3
"""Calls put off in a row and touched at once: then none is put off until the run is over."""


class DeferredTensor(torch.Tensor):
    """A tensor of a call that has been put off; using it in any way makes the call."""

    _call: "DeferredCall"
    _index: int

    @staticmethod
    def make(
        call: "DeferredCall", index: int, like: torch.Tensor, device: torch.device
    ) -> "DeferredTensor":
        """Stand for a call's tensor.

        Args:
            call: what is put off.
            index: which of the tensors in its flattened result.
            like: a tensor on meta with the shape, strides and dtype.
            device: where it will be.
        """
        made: DeferredTensor = torch.Tensor._make_wrapper_subclass(
            DeferredTensor,
            like.shape,
            strides=like.stride(),
            dtype=like.dtype,
            device=device,
        )
        made._call, made._index = call, index
        return made

    def _value(self) -> torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self._call.result(self._index)

    @classmethod
    def __torch_function__(
        cls,
        func: Call,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Make the call, unless its result is only asked for its shape, dtype or device."""
        if func in _DESCRIBE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        args, kwargs = tree_map(_value_of, (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Call,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """The same for what comes to a kernel by another way."""
        args, kwargs = tree_map(_value_of, (args, kwargs or {}))
        return func(*args, **kwargs)


def _value_of(leaf: object) -> object:
    return leaf._value() if isinstance(leaf, DeferredTensor) else leaf


_DESCRIBE: set[object] = {
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.size,
    torch.Tensor.stride,
    torch.Tensor.__len__,
    torch.Tensor.is_floating_point,
    *(
        getattr(torch.Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "is_cuda", "is_meta", "requires_grad")
    ),
}


@dataclass(frozen=True)
class Modes:
    """What of torch's is in force on this thread.

    Attributes:
        grad: whether autograd records.
        autocast: whether autocast is on for the device, and its dtype.
        fixed: what cannot be put back: inference mode, how many modes surround the call, and the
            device's stream.
    """

    grad: bool
    autocast: tuple[bool, torch.dtype]
    fixed: tuple[object, ...]

    @classmethod
    def now(cls, device: torch.device) -> "Modes":
        """Those in force now."""
        kind = device.type
        stream = torch.cuda.current_stream(device) if kind == "cuda" else None
        return cls(
            torch.is_grad_enabled(),
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)),
            (
                torch.is_inference_mode_enabled(),
                torch._C._len_torch_function_stack(),
                torch._C._len_torch_dispatch_stack(),
                stream,
            ),
        )

    @property
    def is_plain(self) -> bool:
        """Whether neither autograd nor a mode sees what is computed."""
        return not self.grad and self.fixed[1:3] == (0, 0)

    def set(self, device: torch.device) -> None:
        """Put back what can be put back."""
        enabled, dtype = self.autocast
        torch.set_grad_enabled(self.grad)
        torch.set_autocast_enabled(device.type, enabled)
        torch.set_autocast_dtype(device.type, dtype)


_HOOKS = ("forward", "_forward_pre_hooks", "_forward_hooks")


class HookState:
    """The hooks of a model's modules and the forwards that stand in for theirs.

    Args:
        model: whose they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._found = [self._of(module) for module in self._modules]

    @staticmethod
    def _of(module: nn.Module) -> tuple[object, ...]:
        own = vars(module)
        return (own.get("forward"), *(tuple(own[name].items()) for name in _HOOKS[1:]))

    @property
    def is_now(self) -> bool:
        """Whether nothing has changed."""
        return all(
            self._of(module) == found
            for module, found in zip(self._modules, self._found, strict=True)
        )

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Have them again within; after it what is there now."""
        changed: list[tuple[nn.Module, tuple[object, ...]]] = []
        try:
            for module, before in zip(self._modules, self._found, strict=True):
                if (now := self._of(module)) != before:
                    changed.append((module, now))
                    self._set(module, before)
            yield
        finally:
            for module, now in changed:
                self._set(module, now)

    @staticmethod
    def _set(module: nn.Module, state: tuple[object, ...]) -> None:
        forward, *hooks = state
        own = vars(module)
        own.pop("forward", None)
        if forward is not None:
            own["forward"] = forward
        for name, items in zip(_HOOKS[1:], hooks, strict=True):
            own[name].clear()
            own[name].update(items)


@dataclass(frozen=True)
class Promise:
    """What a call of a kind returns.

    Attributes:
        spec: how its result is nested.
        tensors: the tensors in it, on meta.
        devices: where they are.
    """

    spec: TreeSpec
    tensors: tuple[torch.Tensor, ...]
    devices: tuple[torch.device, ...]


class DeferredCall:
    """A call of a model that is made later: with the second one, or when its result is touched.

    Args:
        pairs: whose it is.
        args: of the call.
        kwargs: of the call.
        promise: what it returns.
    """

    def __init__(
        self,
        pairs: "PairedCalls",
        args: tuple[object, ...],
        kwargs: dict[str, object],
        promise: Promise,
    ) -> None:
        self.device = pairs.engine.device
        self._pairs: PairedCalls | None = pairs
        self._promise = promise
        copies: dict[int, torch.Tensor] = {}

        def copied(leaf: object) -> object:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return copies.setdefault(id(leaf), leaf.clone())

        self._args, self._kwargs = tree_map(copied, (args, kwargs))
        self._modes = Modes.now(self.device)
        self.hooks = HookState(pairs.model)
        self.context = copy_context()
        self.thread = threading.get_ident()
        self._tensors: list[torch.Tensor] = []
        self._error: BaseException | None = None

    def deferred(self) -> object:
        """What stands for the result."""
        promised = enumerate(zip(self._promise.tensors, self._promise.devices, strict=True))
        made = [DeferredTensor.make(self, i, like, device) for i, (like, device) in promised]
        return tree_unflatten(made, self._promise.spec)

    def result(self, index: int) -> torch.Tensor:
        """One of the tensors; makes the call if that was not done yet."""
        if not self._tensors and self._error is None:
            assert self._pairs is not None
            self._pairs.make_alone(self)
        if self._error is not None:
            raise self._error
        return self._tensors[index]

    def run(self) -> None:
        """Make the call, in what was in force when it was put off; keep its result or its error."""
        pairs, self._pairs = self._pairs, None
        assert pairs is not None
        outside = Modes.now(self.device)
        try:
            self._modes.set(self.device)
            with _inference(self._modes), self.hooks.put_back(), pairs.passing():
                output = pairs.model(*self._args, **self._kwargs)
            leaves, spec = tree_flatten(output)
            if (spec, _likes(leaves)) != (self._promise.spec, _likes(self._promise.tensors)):
                raise RuntimeError(
                    f"{pairs.fqn} returned {_likes(leaves)}, where an equal call had returned "
                    f"{_likes(self._promise.tensors)}: its calls cannot be made in pairs. Pass "
                    "pair_guidance=False."
                )
            self._tensors = leaves
        except GreenletExit:
            self._error = RuntimeError(f"The call of {pairs.fqn} was interrupted.")
            raise
        except Exception as error:
            self._error = error
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._args, self._kwargs = (), {}
            outside.set(self.device)

    def check(self) -> None:
        """Raise what the call raised."""
        if self._error is not None:
            raise self._error

    def drop(self) -> None:
        """Give the call up: nothing can ask for its result any more, or only in vain."""
        if self._pairs is not None:
            self._error = RuntimeError(
                f"A result of {self._pairs.fqn} is used after the video that it was for has failed."
            )
            self._pairs = None
            self._args, self._kwargs = (), {}


def _inference(modes: Modes) -> AbstractContextManager[object]:
    wanted = bool(modes.fixed[0])
    is_on = torch.is_inference_mode_enabled()
    return nullcontext() if wanted == is_on else torch.inference_mode(wanted)


def _likes(tensors: Sequence[object]) -> list[object]:
    return [
        (tuple(t.shape), t.stride(), t.dtype) if isinstance(t, torch.Tensor) else t for t in tensors
    ]


class Lanes:
    """Two calls on their way through a model's units, see Note [Two lanes].

    Args:
        engine: moves the units.
        first: the call that was put off; the second is made on the greenlet that asks for it.
    """

    def __init__(self, engine: OffloadEngine, first: DeferredCall) -> None:
        self._engine = engine
        self._first = greenlet(first.run)
        self._first.gr_context = first.context
        self._second = getcurrent()
        self._held: tuple[OffloadUnit, nn.Module] | None = None
        self._joined = 0
        self._together = True
        self._fixed = Modes.now(engine.device).fixed

    @property
    def suspended(self) -> list[FrameType]:
        """The innermost frame of the lane that waits."""
        frames = (lane.gr_frame for lane in (self._first, self._second))
        return [frame for frame in frames if frame is not None]

    def run(self, second: Callable[[], object]) -> object:
        """Make both calls; the second one's result."""
        try:
            self._switch(self._first)
            output = second()
        except Exception:
            self._part()
            raise
        except BaseException:
            if not self._first.dead:
                self._first.throw()
            raise
        self._part()
        return output

    def joins(self, unit: OffloadUnit) -> bool:
        """Whether the other lane has left a unit here for this one; if another one, they part."""
        if self._held is None or getcurrent() is self._first:
            return False
        if self._held[0] is unit:
            self._joined += 1
            return True
        if not self._joined:
            self._part()
        return False

    def leaves(self, unit: OffloadUnit, module: nn.Module, output: object) -> object:
        """A lane has used a unit: it waits for the other lane, or both have and it is released."""
        engine = self._engine
        is_plain = Modes.now(engine.device).fixed == self._fixed
        if getcurrent() is self._first:
            if self._together and is_plain and engine.calls.count(unit) == 1:
                if unit.memory is not None:
                    output = apart_from(unit.memory, output)
                self._held = unit, module
                self._switch(self._second)
                return output
            return engine.finish_unit(module, output)
        if self._held is None or self._held[0] is not unit:
            return engine.finish_unit(module, output)
        self._joined -= 1
        if self._joined:
            return output
        self._held = None
        output = engine.finish_unit(module, output)
        if is_plain:
            self._switch(self._first)
        else:
            self._together = False
        return output

    def _part(self) -> None:
        """Have the first lane go on alone to its end."""
        self._together = False
        if self._held is not None:
            (_, module), self._held = self._held, None
            self._engine.finish_unit(module, None)
        if not self._first.dead:
            self._switch(self._first)

    def _switch(self, lane: greenlet) -> None:
        """Go on with the other lane until it stops."""
        if lane.dead:
            return
        device = self._engine.device
        modes = Modes.now(device)
        try:
            lane.switch()
        finally:
            modes.set(device)


class PairedCalls(NotPicklable):
    """Puts off every other call of a model and makes it along with the next, see Note [Two lanes].

    Args:
        engine: moves the model's units.
        model: what is called.
        fqn: its name, for messages.
    """

    def __init__(self, engine: OffloadEngine, model: nn.Module, fqn: str) -> None:
        super().__init__(fqn)
        self.engine = engine
        self.model = model
        self._call_impl: Call = model._call_impl
        self._promises: dict[Hashable, Promise] = {}
        self._pending: DeferredCall | None = None
        self._num_touched = 0
        self._num_apart = 0
        self._num_pairs = 0
        self._is_told = False
        self._inside = 0

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def __call__(self, *args: object, **kwargs: object) -> object:
        """Put the call off, or make it, with the one that was put off before."""
        if self._inside:
            return self._call_impl(*args, **kwargs)
        args, kwargs = tree_map(_value_of, (args, kwargs))
        first, self._pending = self._pending, None
        kind = self._kind(args, kwargs)
        if first is None and kind in self._promises and self._num_touched < MAX_TOUCHED:
            self._pending = DeferredCall(self, args, kwargs, self._promises[kind])
            return self._pending.deferred()
        is_here = first is not None and first.thread == threading.get_ident()
        if first is not None and kind is not None and is_here and first.hooks.is_now:
            output = self._make_both(first, args, kwargs)
        else:
            if first is not None:
                self.make_alone(first)
            with self.passing():
                output = self._call_impl(*args, **kwargs)
            self._num_apart += 1
        if kind is not None:
            self._note(kind, output)
        return output

    def make_alone(self, call: DeferredCall) -> None:
        """Make a call that was put off, without another."""
        if call is self._pending:
            self._pending = None
            self._num_touched += 1
        self._num_apart += 1
        call.run()

    def end_run(self) -> None:
        """Weights may be edited now: nothing may be left to be made later."""
        call, self._pending = self._pending, None
        self._tell()
        self._promises.clear()
        self._num_touched = 0
        if call is not None and sys.exc_info()[0] is None:
            call.run()
        elif call is not None:
            call.drop()

    def _tell(self) -> None:
        """Say once where pairing was asked for and no two calls were a pair."""
        num_pairs, self._num_pairs = self._num_pairs, 0
        num_apart, self._num_apart = self._num_apart, 0
        if num_apart > 2 and not num_pairs and not self._is_told:
            self._is_told = True
            _log.info(
                "pair_guidance=True has no effect on %s: no two of its calls are made before the "
                "result of the first is used. Its pipeline may call it once a step.",
                self.fqn,
            )

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Let calls of the model pass within."""
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def _make_both(
        self, first: DeferredCall, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        lanes = self.engine.lanes = Lanes(self.engine, first)
        self.engine.calls.suspended = lambda: lanes.suspended
        try:
            with self.passing():
                output = lanes.run(lambda: self._call_impl(*args, **kwargs))
        finally:
            self.engine.lanes = None
            self.engine.calls.suspended = list
        first.check()
        self._num_touched = 0
        self._num_pairs += 1
        return output

    def _kind(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Hashable | None:
        """A key of calls that return alike; None where a call cannot be put off."""
        engine = self.engine
        is_open = engine.running and engine.lanes is None and not engine.transport.is_gathered
        modes = Modes.now(engine.device)
        if not is_open or self.model.training or not modes.is_plain:
            return None
        scales = any(isinstance(value, dict) and value for value in kwargs.values())
        if scales or any(_has_hooks(module) for module in self.model.modules()):
            return None
        kind = kind_of(*tree_flatten((args, kwargs)))
        return None if kind is None else (modes, kind)

    def _note(self, kind: Hashable, output: object) -> None:
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


def pair_calls(engine: OffloadEngine, model: nn.Module, fqn: str) -> list[Handle]:
    """Have two calls of a model pass each of its units together, see Note [Two lanes]."""
    paired = PairedCalls(engine, model, fqn)
    engine.before_end.append(paired.end_run)
    return [
        Undo(lambda: engine.before_end.remove(paired.end_run)),
        MethodHandle(model, "_call_impl", paired),
    ]
