"""One engine per root module and device, however many callbacks use it.

What is kept about a root module is kept on the module itself, and goes when the module goes.

In a dictionary elsewhere, weak keys or not, it would keep the root for ever: it leads back to it.
"""

from typing import Generic, TypeVar

import torch
from torch import nn

from fastvideo_lightning.offload.engine import OffloadEngine

K = TypeVar("K")
V = TypeVar("V")


class PerModule(dict[K, V], Generic[K, V]):
    """Stays with its module: a copy of the module begins with nothing."""

    def __deepcopy__(self, memo: object) -> "PerModule[K, V]":
        return PerModule()

    def __reduce__(self) -> tuple[type["PerModule[K, V]"], tuple[()]]:
        return PerModule, ()


def state_on(root: nn.Module, name: str, empty: PerModule[K, V]) -> PerModule[K, V]:
    """What is kept on a root module under a name, ``empty`` at first."""
    kept: PerModule[K, V] = root.__dict__.setdefault(name, empty)
    return kept


def forget_empty(root: nn.Module, name: str) -> None:
    """Leave no trace of what is kept under a name, where that is nothing any more."""
    if not root.__dict__.get(name, True):
        del root.__dict__[name]


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
    empty: PerModule[torch.device, OffloadEngine] = PerModule()
    return state_on(root, _ENGINES, empty)
