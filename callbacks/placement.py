"""Placement: what the callbacks that put weights somewhere have in common."""

import difflib
from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import torch
from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricModule
from torch import nn

from fastvideo_lightning.callbacks.attachment import Attachment, claims_on, is_within
from fastvideo_lightning.offload.tensors.bindings import (
    TensorBinding,
    find_bindings,
    split_by_owner,
)


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
        if not isinstance(target, str):
            name = type(self).__name__
            raise TypeError(
                f"{name} needs the name of a module as text, got {type(target).__name__}. "
                f"Pass one such as {name}('transformer')."
            )
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
        attachment = Attachment(self, module, target)
        self.attachments.append(attachment)
        try:
            self._place(attachment, target, device)
            attachment.watch()
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
            attachment.adapt()
            for residents in attachment.residents:
                residents.refresh()
            if attachment.engine is not None:
                attachment.engine.begin_run()
            if attachment.graphed is not None:
                attachment.graphed.begin_step(is_last=False)

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
            if attachment.graphed is not None:
                leaves = self.target != "" and not is_within(self.target, following)
                attachment.graphed.begin_step(is_last=leaves)

    def on_predict_batch_end(self) -> None:
        """Finish every copy: weights may be edited.

        Raises:
            RuntimeError: weights could not be read on their way, so the result is none.
        """
        try:
            for attachment in self.attachments:
                if attachment.engine is not None:
                    attachment.engine.settle()
        finally:
            self.on_exception()

    def on_exception(self) -> None:
        """Release what is in use."""
        for attachment in self.attachments:
            if attachment.engine is not None:
                attachment.engine.end_run()
            if attachment.graphed is not None:
                attachment.graphed.end_run()

    def teardown(self) -> None:
        """End of the placement, the same as ``detach``."""
        self.detach()

    @abstractmethod
    def _place(self, attachment: Attachment, target: nn.Module, device: torch.device) -> None:
        """Put ``target``'s weights where they belong; ``attachment`` keeps what undoes it."""

    def _claim(self, root: nn.Module) -> None:
        claims = claims_on(root)
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
    """A device with its index: ``cuda`` alone is the current one.

    Raises:
        RuntimeError: there is no such device here.
    """
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"torch finds no GPU here for {str(device)!r}. Pass 'cpu'.")
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
    return split_by_owner(find_bindings(root), modules, root)
