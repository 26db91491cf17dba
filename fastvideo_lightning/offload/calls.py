"""Calls: which calls of an engine's modules are in progress, and on which thread.

Note [Calls and threads]
An engine has one set of slots, and any thread may call a module. So the calls of one thread take
place while other threads wait for their turn, from the outermost call to its end.

Torch's hooks do not see a call end that Ctrl-C ends, and Ctrl-C may come in the hooks themselves.
Whether a call is in progress is therefore not only noted but can be looked up: as long as it is, it
has a frame in the stack of its thread. A call that is noted and has no frame any more is over, and
the next call to find it ends it.

A backward on a GPU calls blocks again on a thread of autograd's, for which the thread that began it
waits: the turn still belongs to that thread.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from itertools import chain
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

from torch import nn

from fastvideo_lightning.offload.tensors.autograd import in_backward

if TYPE_CHECKING:
    from fastvideo_lightning.offload.unit import OffloadUnit

_FRAMES = {"_wrapped_call_impl", "call_in_turn"}
"""Functions whose ``self`` is what is called: nn.Module's own, and our stand-ins'."""

_POLL_S = 0.02
_POLLS_OF_WAITING = 10


@dataclass(eq=False)
class OpenCall:
    """A call in progress.

    Attributes:
        called: a module, or an object that stands for a call of it: ``self`` in the call's frame.
        unit: what was brought for it, or None.
        keeps_weights: edits were taken over; until the call is over, weights stay as they are.
    """

    called: object
    unit: "OffloadUnit | None" = None
    keeps_weights: bool = False


class Calls:
    """The calls in progress of an engine's modules, see Note [Calls and threads]."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._thread = 0
        self._outermost: CodeType | None = None
        self._open: list[OpenCall] = []
        self.suspended: Callable[[], list[FrameType]] = list
        """The innermost frames of this thread's other lanes, see Note [Two lanes]."""

    @property
    def keep_weights(self) -> bool:
        """Whether weights have to stay as they are."""
        return any(call.keeps_weights for call in self._open)

    def count(self, unit: "OffloadUnit") -> int:
        """How many calls have brought a unit."""
        return sum(call.unit is unit for call in self._open)

    def num_open(self, called: object) -> int:
        """How many calls of ``called`` are in progress."""
        return sum(call.called is called for call in self._open)

    def last_unit(self, called: object) -> "OffloadUnit | None":
        """What the last call of ``called`` brought, if no call around it did."""
        unit = next((call.unit for call in reversed(self._open) if call.called is called), None)
        return unit if unit is not None and self.count(unit) == 1 else None

    def begin(self, call: OpenCall) -> None:
        """Wait for this thread's turn and note a call.

        Raises:
            RuntimeError: the block's model is in a call on another thread, and waits there.
        """
        me = threading.get_ident()
        polls_of_waiting = 0
        with self._changed:
            while self._open and self._thread != me:
                stack = sys._current_frames().get(self._thread)
                if self._is_over(stack):
                    break
                if in_backward() and _runs_backward(stack):
                    me = self._thread
                    break
                polls_of_waiting = polls_of_waiting + 1 if _is_waiting(stack) else 0
                if polls_of_waiting > _POLLS_OF_WAITING:
                    self._refuse_within(call)
                self._changed.wait(_POLL_S)
            if not self._open or self._thread != me:
                self._outermost = _outermost(sys._getframe())
            self._thread = me
            self._open.append(call)

    def over(self) -> list[OpenCall]:
        """The calls before the last one that were interrupted, the latest first."""
        *before, last = self._open
        if not before or self._thread != threading.get_ident():
            return []
        calls = chain(_called(sys._getframe()), *map(_called, self.suspended()))
        for called in calls:  # the last one's own frame, which does not speak for an earlier one
            if called is last.called:
                break
        on_stack: list[object] = []
        for called in calls:
            if called is before[-1].called:
                return []
            on_stack.append(called)
        in_progress = 0
        for called in reversed(on_stack):
            if called is before[in_progress].called:
                in_progress += 1
        return before[in_progress:][::-1]

    def within(self, called: object) -> list[OpenCall]:
        """This thread's last call of ``called``, behind those that were interrupted in it."""
        if self._thread != threading.get_ident() and not in_backward():
            return []  # it never began
        for i in reversed(range(len(self._open))):
            if self._open[i].called is called:
                return self._open[i:][::-1]
        return []

    def end(self, call: OpenCall) -> None:
        """Forget a call; without any, it is another thread's turn."""
        with self._changed:
            if call in self._open:
                self._open.remove(call)
            if not self._open:
                self._changed.notify_all()

    def _is_over(self, stack: FrameType | None) -> bool:
        """Whether the thread whose turn it is was interrupted in its call.

        It runs on while its stack is looked at: a function that returns meanwhile has no caller any
        more, and the look ends there, before it has come to the thread's outermost function.
        """
        if stack is None:
            return True
        frame: FrameType | None = stack
        while frame is not None:
            if _called_in(frame) is self._open[0].called:
                return False
            stack, frame = frame, frame.f_back
        return stack.f_code is self._outermost

    def _refuse_within(self, call: OpenCall) -> None:
        """A model that waits for a thread of its own would wait for ever."""
        if call.unit is None:
            return
        for other in self._open:
            model = other.called
            if not isinstance(model, nn.Module) or other.unit is not None:
                continue
            if any(module is call.unit.module for module in model.modules()):
                raise RuntimeError(
                    f"{call.unit.fqn} is called on a thread while its model "
                    f"({type(model).__name__}) is in a call on another thread and waits there. "
                    "Call the blocks of an offloaded model on the thread that calls the model."
                )


def _called_in(frame: FrameType) -> object:
    """What a frame is a call of, if it is one."""
    return frame.f_locals.get("self") if frame.f_code.co_name in _FRAMES else None


def _called(frame: FrameType | None) -> Iterator[object]:
    """What is being called in a stack, the innermost first."""
    while frame is not None:
        if (called := _called_in(frame)) is not None:
            yield called
        frame = frame.f_back


def _outermost(frame: FrameType) -> CodeType:
    while frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code


def _is_waiting(frame: FrameType | None) -> bool:
    """Whether a thread waits for another one, by means of ``threading``."""
    return frame is not None and frame.f_code.co_filename == threading.__file__


def _runs_backward(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "_engine_run_backward":
            return True
        frame = frame.f_back
    return False


class SharesUnits(Protocol):
    """Two calls that pass each unit together, see Note [Two lanes]."""

    def joins(self, unit: "OffloadUnit") -> bool:
        """Whether a call finds a unit that the other one has left here for it."""
        ...

    def leaves(self, unit: "OffloadUnit", module: nn.Module, output: object) -> object:
        """A call has used a unit."""
        ...


class TakesTurns(Protocol):
    """An engine, whose calls come one thread after the other."""

    def begin_call(self, call: OpenCall) -> None:
        """Wait for this thread's turn."""
        ...

    def end_call(self, called: object) -> None:
        """Note that a call is over."""
        ...


E = TypeVar("E", bound=TakesTurns)
P = ParamSpec("P")


def in_turn(method: Callable[Concatenate[E, P], None]) -> Callable[Concatenate[E, P], None]:
    """Let a method of an engine take place while no other thread is in a call."""

    @wraps(method)
    def call(engine: E, /, *args: P.args, **kwargs: P.kwargs) -> None:
        _Turn(engine).call_in_turn(partial(method, engine, *args, **kwargs))

    return call


class _Turn:
    """Stands for what is called in a turn of its own, see Note [Calls and threads]."""

    def __init__(self, engine: TakesTurns) -> None:
        self.engine = engine

    def call_in_turn(self, work: Callable[[], None]) -> None:
        try:
            self.engine.begin_call(OpenCall(self))
            work()
        finally:
            self.engine.end_call(self)
