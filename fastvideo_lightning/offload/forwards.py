"""Units whose forward is wrapped rather than hooked, so that a skipped block is not copied.

Note [Skipped blocks]
A step-skipping cache puts a forward of its own in the place of a block's and calls the block's only
when it has to. Torch's hooks fire around the cache's forward, and the block would be brought for
nothing. What surrounds the block's own forward, below the cache, is called when the block computes
and only then. The wrap therefore has to be there before the cache is enabled.
"""

from fastvideo_lightning.offload.engine import OffloadEngine
from fastvideo_lightning.offload.handles import Call, Handle, Hook, MethodHandle
from fastvideo_lightning.offload.hooks import begin_call, show_host_values
from fastvideo_lightning.offload.unit import OffloadUnit


def wrap_unit(engine: OffloadEngine, unit: OffloadUnit) -> list[Handle]:
    """Let a block's own forward wait for its unit and release it, see Note [Skipped blocks].

    A cache that is still there when the handles are removed keeps the wrap, which then only calls
    the block.
    """
    forward: Call = unit.module.forward

    def call(*args: object, **kwargs: object) -> object:
        if unit not in engine.units:
            return forward(*args, **kwargs)
        begin_call(engine, unit, args, kwargs)
        try:
            return forward(*args, **kwargs)
        finally:
            engine.release(unit)

    return [
        MethodHandle(unit.module, "forward", Hook(call, unit.fqn)),
        show_host_values(unit),
    ]
