"""Calls of a model that are put off, and the tensors that stand for what they will return.

Note [Deferred calls]
Where a pipeline calls a model several times a step, as with guidance, the calls before the last are
put off: each returns deferred tensors, whose shapes are those of an earlier call of its kind.
Whatever touches one of them has the call made.

A call is put off only if nothing can change it until it is made: its tensors are copied and its
other arguments are plain values, weights stay within a run, hooks that were there when it was put
off are put back for it, and neither autograd nor a mode of torch's would have seen it.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from typing import Protocol

import torch
from greenlet import GreenletExit
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from fastvideo_lightning.offload.handles import Call


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
        args, kwargs = tree_map(value_of, (args, kwargs or {}))
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
        args, kwargs = tree_map(value_of, (args, kwargs or {}))
        return func(*args, **kwargs)


def value_of(leaf: object) -> object:
    """What a deferred tensor stands for; anything else as it is."""
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


class MakesCalls(Protocol):
    """Who puts calls off and makes them."""

    fqn: str
    option: str
    model: nn.Module
    device: torch.device

    def make_for(self, call: "DeferredCall") -> None:
        """Make a call, and those that were put off along with it."""
        ...

    def note_use(self) -> None:
        """A result is used for the first time."""
        ...

    def passing(self) -> AbstractContextManager[None]:
        """Let calls of the model pass within."""
        ...


class DeferredCall:
    """A call of a model that is made along with others, or when its result is touched.

    Args:
        owner: who makes it.
        args: of the call.
        kwargs: of the call.
        promise: what it returns, as far as that is known.
        call: what is called where it is made at once, without a copy of what was passed.
    """

    def __init__(
        self,
        owner: MakesCalls,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        promise: Promise | None,
        *,
        call: Call | None = None,
    ) -> None:
        self.device = owner.device
        self.promise = promise
        self.output: object = None
        self.tensors: list[torch.Tensor] = []
        self.error: BaseException | None = None
        self.context = copy_context()
        self.thread = threading.get_ident()
        self.hooks = HookState(owner.model) if call is None else None
        self._args, self._kwargs = args, kwargs
        if call is None:
            copies: dict[int, torch.Tensor] = {}

            def copied(leaf: object) -> object:
                if not isinstance(leaf, torch.Tensor):
                    return leaf
                return copies.setdefault(id(leaf), leaf.clone())

            self._args, self._kwargs = tree_map(copied, (args, kwargs))
        self._call = call or owner.model
        self._owner: MakesCalls | None = owner
        self._tells_use: Callable[[], MakesCalls | None] = weakref.ref(owner)
        self._is_used = False
        self._modes = Modes.now(self.device)

    @property
    def is_as_now(self) -> bool:
        """Whether it was put off on this thread, and no hook has come or gone since."""
        is_here = self.thread == threading.get_ident()
        return is_here and (self.hooks is None or self.hooks.is_now)

    def deferred(self) -> object:
        """What stands for the result."""
        assert self.promise is not None
        promised = enumerate(zip(self.promise.tensors, self.promise.devices, strict=True))
        made = [DeferredTensor.make(self, i, like, device) for i, (like, device) in promised]
        return tree_unflatten(made, self.promise.spec)

    def result(self, index: int) -> torch.Tensor:
        """One of the tensors; makes the call if that was not done yet."""
        owner = self._tells_use()
        if not self._is_used and owner is not None:
            self._is_used = True
            owner.note_use()
        if self._owner is not None:
            self._owner.make_for(self)
        self.check()
        return self.tensors[index]

    def run(self) -> None:
        """Make the call, in the modes in which it was put off; keep its result or its error."""
        owner = self._close()
        outside = Modes.now(self.device)
        back = nullcontext() if self.hooks is None else self.hooks.put_back()
        try:
            self._modes.set(self.device)
            with _inference(self._modes), back, owner.passing():
                self._keep(self._call(*self._args, **self._kwargs), owner)
        except GreenletExit:
            self.error = RuntimeError(f"The call of {owner.fqn} was interrupted.")
            raise
        except Exception as error:
            self.error = error
        except BaseException as error:
            self.error = error
            raise
        finally:
            self._args, self._kwargs, self._call = (), {}, _nothing
            outside.set(self.device)

    def run_alone(self) -> None:
        """``run`` with the context variables that were in force as well."""
        self.context.run(self.run)

    def take(self, receive: Callable[[Promise], list[torch.Tensor]]) -> None:
        """Take a result that was computed elsewhere, in place of making the call."""
        assert self.promise is not None
        self._close()
        self._args, self._kwargs, self._call = (), {}, _nothing
        with _inference(self._modes):
            self.tensors = receive(self.promise)
        self.output = tree_unflatten(self.tensors, self.promise.spec)

    def fail(self, error: BaseException) -> None:
        """Give the call up, or what it returned: nobody can ask for it any more, or in vain."""
        if self.error is None:
            self.error = error
        self._owner, self.output, self.tensors = None, None, []
        self._args, self._kwargs, self._call = (), {}, _nothing

    def check(self) -> None:
        """Raise what the call raised."""
        if self.error is not None:
            raise self.error

    def _close(self) -> MakesCalls:
        owner, self._owner = self._owner, None
        assert owner is not None
        return owner

    def _keep(self, output: object, owner: MakesCalls) -> None:
        leaves, spec = tree_flatten(output)
        promise = self.promise
        if promise is not None and (spec, _likes(leaves)) != (
            promise.spec,
            _likes(promise.tensors),
        ):
            raise RuntimeError(
                f"{owner.fqn} returned {_likes(leaves)}, where an equal call had returned "
                f"{_likes(promise.tensors)}: its calls cannot be put off. Leave {owner.option} out."
            )
        self.output, self.tensors = output, leaves


def _nothing(*args: object, **kwargs: object) -> object:
    raise AssertionError("a call is made once")


def _inference(modes: Modes) -> AbstractContextManager[object]:
    wanted = bool(modes.fixed[0])
    is_on = torch.is_inference_mode_enabled()
    return nullcontext() if wanted == is_on else torch.inference_mode(wanted)


def _likes(tensors: Sequence[object]) -> list[object]:
    return [
        (tuple(t.shape), t.stride(), t.dtype) if isinstance(t, torch.Tensor) else t for t in tensors
    ]
