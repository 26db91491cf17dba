"""Units whose forward is wrapped rather than hooked, so that a skipped block is not copied.

Note [Skipped blocks]
A step-skipping cache puts a forward of its own in the place of a block's and calls the block's only
when it has to. Torch's hooks fire around the cache's forward, and the block would be brought for
nothing. What surrounds the block's own forward, below the cache, is called when the block computes
and only then. The wrap therefore has to be there before the cache is enabled.
"""

from fastvideo_lightning.offload.engine import OffloadEngine
from fastvideo_lightning.offload.entrances import make_entrances
from fastvideo_lightning.offload.handles import Call, Handle, Hook, MethodHandle
from fastvideo_lightning.offload.hooks import show_host_values
from fastvideo_lightning.offload.unit import OffloadUnit


def wrap_unit(engine: OffloadEngine, unit: OffloadUnit) -> list[Handle]:
    """Let a block's own forward wait for its unit and release it, see Note [Skipped blocks].

    A cache that is still there when the handles are removed keeps the wrap, which then only calls
    the block.
    """
    call = ForwardCall(engine, unit, unit.module.forward)
    return [
        MethodHandle(unit.module, "forward", Hook(call.call_in_turn, unit.fqn)),
        show_host_values(unit),
        make_entrances(engine, unit),
    ]


class ForwardCall:
    """Stands for a block's own forward.

    Args:
        engine: moves the unit.
        unit: what the forward needs.
        forward: what is called in the end.
    """

    def __init__(self, engine: OffloadEngine, unit: OffloadUnit, forward: Call) -> None:
        self.engine = engine
        self.unit = unit
        self.forward = forward

    def call_in_turn(self, *args: object, **kwargs: object) -> object:
        """Bring the unit, call the forward, release the unit."""
        if self.unit not in self.engine.units:
            return self.forward(*args, **kwargs)
        output = None
        try:
            self.engine.begin_unit(self.unit, self, args, kwargs)
            output = self.forward(*args, **kwargs)
        finally:
            output = self.engine.finish_unit(self, output)
        return output
