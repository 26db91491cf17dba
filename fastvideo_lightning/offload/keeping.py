"""What is kept about a root module is kept on the module itself, and goes when the module goes.

In a dictionary elsewhere, weak keys or not, it would keep the root for ever: it leads back to it.
"""

from typing import Generic, TypeVar

from torch import nn

K = TypeVar("K")
V = TypeVar("V")


class Kept(dict[K, V], Generic[K, V]):
    """Stays with its module: a copy of the module begins with nothing."""

    def __deepcopy__(self, memo: object) -> "Kept[K, V]":
        return Kept()

    def __reduce__(self) -> tuple[type["Kept[K, V]"], tuple[()]]:
        return Kept, ()


def kept_on(root: nn.Module, name: str, empty: Kept[K, V]) -> Kept[K, V]:
    """What is kept on a root module under a name, ``empty`` at first."""
    kept: Kept[K, V] = root.__dict__.setdefault(name, empty)
    return kept


def forget_empty(root: nn.Module, name: str) -> None:
    """Leave no trace of what is kept under a name, where that is nothing any more."""
    if not root.__dict__.get(name, True):
        del root.__dict__[name]
