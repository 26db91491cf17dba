"""Placement: what the callbacks that put weights somewhere have in common."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricModule
from torch import nn

from fastvideo_lightning.offload.bindings import TensorBinding, find_bindings, split_by_owner
from fastvideo_lightning.offload.engine import OffloadEngine
from fastvideo_lightning.offload.hooks import Handle, remove_all
from fastvideo_lightning.offload.residents import ResidentSet
from fastvideo_lightning.offload.source import WeightSource
from fastvideo_lightning.offload.unit import OffloadUnit

_CLAIMS: WeakKeyDictionary[nn.Module, dict[str, "Placement"]] = WeakKeyDictionary()


class Attachment:
    """One callback on one root module: what undoes it.

    Attributes:
        engine: the engine that moves the target's weights, where one does.
        residents: weights that stay in one place.
        first: the unit that the target's next call needs first, where units move.
    """

    def __init__(self, callback: "Placement", root: nn.Module) -> None:
        self.callback = callback
        self.root = root
        self.engine: OffloadEngine | None = None
        self.residents: list[ResidentSet] = []
        self.first: OffloadUnit | None = None
        self.handles: list[Handle] = []
        self._passes_per_step = 1
        self._passes_so_far = 0

    def foresee(self, step: int, *, comes_next: bool) -> None:
        """A denoising step begins: note how many passes the last one took, say what follows it.

        Args:
            step: number of the step.
            comes_next: whether the target is called when this step is over, and not before.
        """
        if self.engine is None or self.first is None:
            return
        passes = self.engine.stats.passes - self._passes_so_far
        self._passes_so_far += passes
        if step > 0:
            self._passes_per_step = max(passes, 1)
        if comes_next:
            self.engine.expect(self.first, after_passes=self._passes_per_step)

    def remove(self) -> None:
        """Take the callback off the module, which is left with ordinary host tensors."""
        if self not in self.callback.attachments:
            return
        self.callback.attachments.remove(self)
        claims = _CLAIMS.get(self.root, {})
        if claims.get(self.callback.target) is self.callback:
            del claims[self.callback.target]
        if self.engine is not None:
            self.engine.end_run()
        remove_all(self.handles)
        self.handles.clear()


@runtime_checkable
class ExecutesOn(Protocol):
    """A module that wants to be told where it computes, as ours do outside of Fabric."""

    execution_device: torch.device


class Placement(ABC):
    """Owns one target: says where its weights are and when.

    Works under Fabric, which calls ``on_after_setup`` by itself, and without: ``attach`` and
    ``detach``.

    Args:
        target: FQN of a module, seen from the module that is set up or attached to; "" is that
            module.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.attachments: list[Attachment] = []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r})"

    def attach(self, module: nn.Module, device: torch.device | str) -> Attachment:
        """Place the target's weights for computing on ``device``.

        Returns:
            What removes the placement again. Attaching twice to a module returns the first.

        Raises:
            ValueError: no such target, or another callback places it already.
            RuntimeError: weights on meta whose bytes nobody knows.
        """
        module = unwrap(module)
        for attachment in self.attachments:
            if attachment.root is module:
                return attachment
        target = find_target(module, self.target, by=repr(self))
        device = canonical_device(device)
        self._claim(module)
        attachment = Attachment(self, module)
        self.attachments.append(attachment)
        try:
            self._place(attachment, target, device)
        except BaseException:
            attachment.remove()
            raise
        if isinstance(module, ExecutesOn):
            module.execution_device = device
        return attachment

    def detach(self) -> None:
        """Restore every module: its own parameters, or ordinary host tensors in place of meta."""
        for attachment in reversed(list(self.attachments)):
            attachment.remove()

    def on_after_setup(self, fabric: Fabric, module: nn.Module) -> None:
        """Attach to the module that Fabric has set up."""
        self.attach(module, fabric.device)

    def on_predict_batch_start(self) -> None:
        """Take over edits of weights; from here to the end of the batch they stay as they are."""
        for attachment in self.attachments:
            for residents in attachment.residents:
                residents.refresh()
            if attachment.engine is not None:
                attachment.engine.begin_run()

    def on_denoise_step_start(self, step: int, denoiser: str = "", following: str = "") -> None:
        """Have the target's weights come in under this step's computing, where they are next.

        Args:
            step: number of the step, from 0.
            denoiser: FQN of the model that computes this step.
            following: FQN of the component that is called after it.
        """
        comes_next = following not in ("", denoiser) and is_within(self.target, following)
        for attachment in self.attachments:
            attachment.foresee(step, comes_next=comes_next)

    def on_predict_batch_end(self) -> None:
        """Finish every copy: weights may be edited."""
        for attachment in self.attachments:
            if attachment.engine is not None:
                attachment.engine.end_run()

    def on_exception(self) -> None:
        """Release what was in use when the exception came."""
        self.on_predict_batch_end()

    def teardown(self) -> None:
        """End of the placement, the same as ``detach``."""
        self.detach()

    @abstractmethod
    def _place(self, attachment: Attachment, target: nn.Module, device: torch.device) -> None:
        """Put ``target``'s weights where they belong; ``attachment`` keeps what undoes it."""

    def _claim(self, root: nn.Module) -> None:
        claims = _CLAIMS.setdefault(root, {})
        for fqn, other in claims.items():
            if is_within(fqn, self.target) or is_within(self.target, fqn):
                raise ValueError(
                    f"{self!r} and {other!r} both place {max(fqn, self.target, key=len)!r}. "
                    "Give each module to one callback."
                )
        claims[self.target] = self


def unwrap(module: nn.Module) -> nn.Module:
    """The user's module inside of what ``fabric.setup`` returned."""
    if isinstance(module, _FabricModule):
        return module.module
    return module


def canonical_device(device: torch.device | str) -> torch.device:
    """A device with its index: ``cuda`` alone is the current one."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def find_target(root: nn.Module, fqn: str, *, by: str) -> nn.Module:
    """The module of that name.

    Raises:
        ValueError: there is none; the message names the nearest ones.
    """
    names: dict[str, nn.Module] = dict(root.named_modules())
    if fqn in names:
        return names[fqn]
    near = difflib.get_close_matches(fqn, names, n=3, cutoff=0.4)
    near = near or [name for name, _ in root.named_children()]
    raise ValueError(
        f"{by}: {type(root).__name__} has no module {fqn!r}. "
        f"Did you mean {', '.join(map(repr, near))}?"
    )


def bindings_inside(
    root: nn.Module, modules: list[nn.Module]
) -> tuple[list[list[TensorBinding]], list[TensorBinding]]:
    """The tensors that each of ``modules`` alone holds, and all others of ``root``."""
    return split_by_owner(find_bindings(root), modules)


def claimed_by_others(root: nn.Module, callback: Placement) -> list[str]:
    """FQNs of ``root`` that other callbacks place."""
    return [fqn for fqn, other in _CLAIMS.get(root, {}).items() if other is not callback]


def is_within(name: str, fqn: str) -> bool:
    """Whether ``name`` is the module ``fqn`` or lies in it."""
    return not fqn or name == fqn or name.startswith(f"{fqn}.")


def weight_sources(root: nn.Module) -> Mapping[str, WeightSource]:
    """Where the bytes of ``root``'s parameters on meta are, if it says so."""
    sources: Mapping[str, WeightSource] = getattr(root, "weight_sources", {})
    return sources
