"""What is registered on modules, and what undoes it.

Hooks are objects that refuse to be pickled or copied: a module that carries them has memory which
only its engine knows.

Ctrl-C at a moment that would leave things half done waits until they are done.
"""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Generic, NoReturn, ParamSpec, Protocol, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")


class Handle(Protocol):
    """What undoes a registration."""

    def remove(self) -> None:
        """Undo it."""
        ...


class NotPicklable:
    """What stays with the module it was registered on, and is not pickled or copied with it.

    Args:
        fqn: the module's name, for messages.
    """

    def __init__(self, fqn: str) -> None:
        self.fqn = fqn or "The module"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise RuntimeError(
            f"{self.fqn} is being offloaded, so it cannot be pickled or copied: its memory "
            "belongs to the offload engine. Detach the callback first (`callback.detach()`, or "
            "`generator.close()`)."
        )


class Hook(NotPicklable, Generic[P, R]):
    """A callable that is registered on a module.

    Args:
        function: what to call.
        fqn: the module's name, for messages.
    """

    def __init__(self, function: Callable[P, R], fqn: str) -> None:
        super().__init__(fqn)
        self.function = function

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function; a compiler leaves it alone, and compiles what lies between hooks."""
        return self.function(*args, **kwargs)


class Call(Protocol):
    """A method of any signature."""

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call it."""
        ...


class MethodHandle:
    """Wraps one method of one module; ``remove`` puts back what was there."""

    def __init__(self, module: nn.Module, name: str, wrapper: Callable[P, R]) -> None:
        self._module = module
        self._name = name
        self._wrapper = wrapper
        self._before = module.__dict__.get(name)
        module.__dict__[name] = wrapper

    def remove(self) -> None:
        """Undo the wrap."""
        if self._module.__dict__.get(self._name) is not self._wrapper:
            return
        if self._before is None:
            del self._module.__dict__[self._name]
        else:
            self._module.__dict__[self._name] = self._before


class Undo:
    """A handle made of a function."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.remove = function


def remove_all(handles: Iterable[Handle]) -> None:
    """Undo registrations, the last first."""
    for handle in reversed(list(handles)):
        handle.remove()


@contextmanager
def defer_interrupt() -> Iterator[None]:
    """An interrupt (SIGINT) within takes effect at the end."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])
