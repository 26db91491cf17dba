"""Lanes: calls of a model that pass each of its streamed blocks together.

Note [Two lanes]
Classifier-free guidance calls a denoiser twice a step, and each call moves all streamed bytes. So
the first call is put off, and the second runs both (other guiders: up to four), see
Note [Groups of calls]. Each is a lane, a greenlet that stops after each unit until the others have
used that unit too. Between two units the first call's kernels are launched before the second's, as
ever, so state that blocks keep is written in the order of the calls.

Where the lanes part (one of them leaves out a block, raises, or is in a mode that cannot be put
back), they go on one after the other.
"""

from collections.abc import Sequence
from types import FrameType

from greenlet import getcurrent, greenlet
from torch import nn

from fastvideo_lightning.offload.call_groups import group_calls
from fastvideo_lightning.offload.deferred import DeferredCall, Modes
from fastvideo_lightning.offload.engine import OffloadEngine
from fastvideo_lightning.offload.handles import Handle
from fastvideo_lightning.offload.results import apart_from
from fastvideo_lightning.offload.unit import OffloadUnit

MAX_LANES = 4


class Lanes:
    """Calls on their way through a model's units, see Note [Two lanes].

    Args:
        engine: moves the units.
        calls: in their order. They are made on greenlets of their own; the one that makes this
            object lets each go on in turn.
    """

    def __init__(self, engine: OffloadEngine, calls: Sequence[DeferredCall]) -> None:
        self._engine = engine
        self._hub = getcurrent()
        self._lanes = [greenlet(call.run) for call in calls]
        for lane, call in zip(self._lanes, calls, strict=True):
            lane.gr_context = call.context
        self._held: tuple[OffloadUnit, nn.Module] | None = None
        self._joined = 0
        self._together = True
        self._fixed = Modes.now(engine.device).fixed

    @property
    def suspended(self) -> list[FrameType]:
        """The innermost frames of the lanes that wait, and of who lets them go on."""
        frames = (lane.gr_frame for lane in (*self._lanes, self._hub))
        return [frame for frame in frames if frame is not None]

    def run(self) -> None:
        """Make the calls; each keeps its result or its error."""
        try:
            while self._together and self._num_alive:
                for lane in self._lanes:
                    if self._together:
                        self._go_on(lane)
                self._let_go()
            for lane in self._lanes:
                self._go_on(lane)
        except BaseException:
            self._together = False
            for lane in self._lanes:
                if not lane.dead:
                    lane.throw()
            raise

    def joins(self, unit: OffloadUnit) -> bool:
        """Whether another lane has left a unit here for this one; if another one, they part."""
        if self._held is None:
            return False
        if self._held[0] is unit:
            self._joined += 1
            return True
        if not self._joined:
            self._together = False
            self._pause()
        return False

    def leaves(self, unit: OffloadUnit, module: nn.Module, output: object) -> object:
        """A lane has used a unit: it waits for the other lanes, or releases it alone."""
        engine = self._engine
        is_plain = Modes.now(engine.device).fixed == self._fixed
        if self._held is not None and self._held[0] is unit:
            self._joined -= 1
            if self._joined:
                return output
        elif (
            self._held is None
            and self._together
            and is_plain
            and self._num_alive > 1
            and engine.calls.count(unit) == 1
        ):
            self._held = unit, module
        else:
            return engine.finish_unit(module, output)
        if unit.memory is not None:
            output = apart_from(unit.memory, output)
        if is_plain:
            self._pause()
        else:
            self._together = False
            self._let_go()
        return output

    @property
    def _num_alive(self) -> int:
        return sum(not lane.dead for lane in self._lanes)

    def _let_go(self) -> None:
        """Release the unit that all lanes have used, or that they part at."""
        if self._held is not None:
            (_, module), self._held = self._held, None
            self._engine.finish_unit(module, None)

    def _go_on(self, lane: greenlet) -> None:
        """Let a lane go on until it has used a unit, or where they have parted to its end."""
        if not lane.dead:
            self._switch(lane)

    def _pause(self) -> None:
        self._switch(self._hub)

    def _switch(self, lane: greenlet) -> None:
        device = self._engine.device
        modes = Modes.now(device)
        try:
            lane.switch()
        finally:
            modes.set(device)


class OnOneDevice:
    """Has the calls of a group pass each unit together.

    Args:
        engine: moves the units.
    """

    option = "pair_guidance=True"
    max_calls = MAX_LANES
    makes_all = True

    def __init__(self, engine: OffloadEngine) -> None:
        self._engine = engine

    @property
    def is_open(self) -> bool:
        """Not within such a group, nor where other ranks would have to form the same groups."""
        return self._engine.lanes is None and not self._engine.transport.is_gathered

    def make(self, calls: Sequence[DeferredCall]) -> None:
        """Make calls; each keeps its result or its error."""
        lanes = self._engine.lanes = Lanes(self._engine, calls)
        self._engine.calls.suspended = lambda: lanes.suspended
        try:
            lanes.run()
        finally:
            self._engine.lanes = None
            self._engine.calls.suspended = list

    def end_run(self, *, is_whole: bool) -> None:
        """Nothing is kept from one run to the next."""


def pair_calls(engine: OffloadEngine, model: nn.Module, fqn: str) -> list[Handle]:
    """Have calls of a model pass each of its units together, see Note [Two lanes]."""
    return group_calls(OnOneDevice(engine), engine, model, fqn)
