"""Lets parts of a unit be called by themselves, as a model calls ``blocks[0].norm1.emb``.

Note [Entrances]
While a unit is away, the modules inside of it would compute with host tensors. So each part that
has tensors of the unit gets an entrance: a call that replaces the part's own (``_call_impl``, which
runs the part's hooks) and brings the whole unit. While the unit is there, the entrances are taken
off, and a block calls its parts directly, compiled or not.
"""

import torch
from torch import nn

from fastvideo_lightning.offload.engine import OffloadEngine
from fastvideo_lightning.offload.handles import Call, Handle, NotPicklable, Undo
from fastvideo_lightning.offload.tensors.transfers import move_inputs
from fastvideo_lightning.offload.unit import Entrance, OffloadUnit

_CALL = "_call_impl"


class PartCall(NotPicklable):
    """Stands for the call of a part whose unit is away.

    Args:
        engine: moves the unit.
        unit: what the part belongs to.
        part: a module inside of it.
        fqn: its name.
    """

    def __init__(self, engine: OffloadEngine, unit: OffloadUnit, part: nn.Module, fqn: str) -> None:
        super().__init__(fqn)
        self.engine = engine
        self.unit = unit
        self.part = part

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: object, **kwargs: object) -> object:
        """Bring the unit, call the part, release the unit."""
        return self.call_in_turn(args, kwargs)

    def call_in_turn(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """The same; a frame by which the call is known, see Note [Calls and threads]."""
        output = None
        try:
            self.engine.begin_unit(self.unit, self, args, kwargs)
            moved = move_inputs(args, kwargs, self.engine.device)
            args, kwargs = moved if moved is not None else (args, kwargs)
            call: Call = type(self.part)._call_impl.__get__(self.part)
            output = call(*args, **kwargs)
        finally:
            output = self.engine.finish_unit(self, output)
        return output


def make_entrances(engine: OffloadEngine, unit: OffloadUnit) -> Handle:
    """Let parts of a unit be called by themselves, see Note [Entrances]."""
    find_entrances(engine, unit)

    def remove() -> None:
        unit.close_entrances()
        unit.entrances = []

    return Undo(remove)


def find_entrances(engine: OffloadEngine, unit: OffloadUnit) -> None:
    """Give entrances to the modules that are in a unit now; the unit is away."""
    unit.close_entrances()
    owners = {id(r.owner) for binding in unit.bindings for r in binding.registrations}
    unit.entrances = [
        Entrance(vars(part), _CALL, PartCall(engine, unit, part, fqn))
        for fqn, part in unit.module.named_modules(prefix=unit.fqn)
        if part is not unit.module and any(id(inner) in owners for inner in part.modules())
    ]
    unit.open_entrances()
