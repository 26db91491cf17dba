"""One engine per root module and device, however many callbacks use it."""

import torch
from torch import nn

from fastvideo_lightning.offload.engine import OffloadEngine
from fastvideo_lightning.offload.keeping import Kept, forget_empty, kept_on

_ENGINES = "_offload_engines"


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
    engines = _engines_on(root)
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
    engines: dict[torch.device, OffloadEngine] = root.__dict__.get(_ENGINES, {})
    return [engine for engine in engines.values() if engine.units]


def forget_idle_engines(root: nn.Module) -> None:
    """Let go of engines that have nothing to move any more."""
    engines = _engines_on(root)
    for device in [device for device, engine in engines.items() if not engine.units]:
        del engines[device]
    forget_empty(root, _ENGINES)


def _engines_on(root: nn.Module) -> dict[torch.device, OffloadEngine]:
    empty: Kept[torch.device, OffloadEngine] = Kept()
    return kept_on(root, _ENGINES, empty)
