"""One engine per root module and device, however many callbacks use it."""

from weakref import WeakKeyDictionary

import torch
from torch import nn

from fastvideo_lightning.offload.engine import OffloadEngine

_ENGINES: WeakKeyDictionary[nn.Module, dict[torch.device, OffloadEngine]] = WeakKeyDictionary()


def engine_of(
    root: nn.Module, device: torch.device, *, num_slots: int | None = None
) -> OffloadEngine:
    """The engine of a root module on a device, made at the first call.

    Args:
        root: the module that the callbacks were attached to.
        device: where it computes.
        num_slots: slots of the ring; None takes the engine as it is (2 for a new one).

    Raises:
        ValueError: units stream through another number of slots already.
    """
    engines = _ENGINES.setdefault(root, {})
    engine = engines.get(device)
    if engine is None or not engine.units:
        engine = engines[device] = OffloadEngine((), device)
    if num_slots is not None and not engine.ring.slots:
        engine.ring.num_slots = num_slots
    if num_slots not in (None, engine.ring.num_slots):
        raise ValueError(
            f"Callbacks on one module share their slots: got num_slots={num_slots} beside "
            f"num_slots={engine.ring.num_slots}. Give all of them the same number."
        )
    return engine


def engines_of(root: nn.Module) -> list[OffloadEngine]:
    """The engines of a root module that have units."""
    return [engine for engine in _ENGINES.get(root, {}).values() if engine.units]
