"""Placement: what the callbacks that put weights somewhere have in common.

An attachment is one such callback on one module, with what undoes it.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricModule
from torch import nn

from fastvideo_lightning.offload.adapters import rebind_units
from fastvideo_lightning.offload.call_groups import ResidentRuns
from fastvideo_lightning.offload.cuda_graphs import GraphedForward
from fastvideo_lightning.offload.engine import OffloadEngine
from fastvideo_lightning.offload.handles import Handle, Undo, defer_interrupt, remove_all
from fastvideo_lightning.offload.hooks import graph_forward, hook_calls
from fastvideo_lightning.offload.profiling import phase
from fastvideo_lightning.offload.registry import (
    PerModule,
    forget_empty,
    forget_idle_engines,
    state_on,
)
from fastvideo_lightning.offload.residents import ResidentSet
from fastvideo_lightning.offload.tensors.autograd import lasting
from fastvideo_lightning.offload.tensors.bindings import (
    TensorBinding,
    find_bindings,
    registrations_in,
    split_by_owner,
    split_sharing,
)
from fastvideo_lightning.offload.tensors.shown import is_lent
from fastvideo_lightning.offload.tensors.sources import WeightSource
from fastvideo_lightning.offload.unit import OffloadUnit, UnitGroup

_CLAIMS = "_offload_claims"


def claims_on(root: nn.Module) -> dict[str, "Placement"]:
    """Which callback places which FQN of a root module."""
    empty: PerModule[str, Placement] = PerModule()
    return state_on(root, _CLAIMS, empty)


class Attachment:
    """One callback on one root module: what undoes it.

    Attributes:
        callback: what was attached.
        root: the module that it was attached to.
        handles: what is removed when the callback is detached, the last first.
        model: what the callback places, and what lies between its parts.
        engine: the engine that moves the target's weights, where one does.
        runs: when weights stay as they are, where that is told and nothing moves.
        units: what the engine moves for this callback.
        residents: weights that stay in one place.
        graphed: the model's forward, where it is captured and replayed.
        group: the units of the target, where units move.
        registrations: where ``model`` had tensors at the last look, see ``sync_tensors``.
    """

    def __init__(self, callback: "Placement", root: nn.Module, model: nn.Module) -> None:
        self.callback = callback
        self.root = root
        self.model = model
        self.registrations: list[tuple[int, str]] | None = None
        self.units: Sequence[OffloadUnit] = ()
        self.engine: OffloadEngine | None = None
        self.runs: ResidentRuns | None = None
        self.residents: list[ResidentSet] = []
        self.graphed: GraphedForward | None = None
        self.group: UnitGroup | None = None
        self.handles: list[Handle] = []
        self._passes_per_step = 1
        self._passes_so_far = 0

    @property
    def first(self) -> OffloadUnit | None:
        """The unit that the target's next call needs first, where units move."""
        return None if self.group is None else self.group.first

    def announce_next(self, step: int, *, comes_next: bool) -> None:
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
        with defer_interrupt():
            self._remove()

    def _remove(self) -> None:
        if self not in self.callback.attachments:
            return
        self.callback.attachments.remove(self)
        claims = claims_on(self.root)
        if claims.get(self.callback.target) is self.callback:
            del claims[self.callback.target]
        forget_empty(self.root, _CLAIMS)
        if self.engine is not None:
            self.engine.end_run()
        if self.runs is not None:
            self.runs.end_run()
        self.sync_tensors()  # what came since then goes back to the host as well
        remove_all(self.handles)
        self.handles.clear()
        forget_idle_engines(self.root)

    def watch(self) -> None:
        """Call ``sync_tensors`` before the engine takes over edits, from now on."""
        self.registrations = registrations_in(self.model)
        if self.engine is not None:
            listeners = self.engine.before_refresh
            listeners.append(self.sync_tensors)
            self.handles.append(Undo(lambda: listeners.remove(self.sync_tensors)))

    def sync_tensors(self) -> None:
        """Take over tensors that the model was given since it was placed, and let go of others.

        That is what an adapter (LoRA) does: it puts layers of its own around the model's.
        """
        before = self.registrations
        if before is None or before == (now := registrations_in(self.model)) or is_lent():
            return
        if self.engine is not None:
            if any(unit.uses for unit in self.engine.units):
                return  # a component in its call calls this one: another time
            inside, rest = split_by_owner(
                find_bindings(self.root), [unit.module for unit in self.units], self.root
            )
            tensors, sharing = split_sharing(inside, rest)
            rest += sharing
            contents = {}
            for unit, found in zip(self.units, tensors, strict=True):
                contents[unit] = [b for b in found if not b.is_buffer or unit.has(b)]
                rest += [b for b in found if b not in contents[unit]]
            with lasting():
                rebind_units(self.engine, contents)
        else:
            rest = find_bindings(self.root)
        self.registrations = now
        if self.residents:
            self._adapt_residents(rest)

    def _adapt_residents(self, bindings: list[TensorBinding]) -> None:
        within = {id(module) for module in self.model.modules()}
        others = claimed_by_others(self.root, self.callback)
        mine = {
            id(binding.tensor): binding
            for binding in bindings
            if any(id(registration.owner) in within for registration in binding.registrations)
            and not any(is_within(binding.fqn, fqn) for fqn in others)
        }
        for residents in self.residents:
            residents.keep_only(mine)
        first = self.residents[0]
        self.keep(list(mine.values()), first.device, run_device=first.run_device)

    def stay(
        self,
        device: torch.device,
        *,
        run_device: torch.device | None = None,
        results_to: torch.device | None = None,
    ) -> None:
        """Keep the target's weights on ``device`` and compute it there until it is detached.

        Args:
            device: where; the inputs of a call are brought there.
            run_device: the one whose dtypes the weights get, for a checkpoint may choose them by
                device; by default ``device``.
            results_to: where the results of a call are brought; by default they stay.
        """
        (inside,), _ = bindings_inside(self.root, [self.model])
        self.keep(inside, device, run_device=run_device or device)
        self.handles.extend(
            hook_calls(self.model, self.callback.target, inputs_to=device, outputs_to=results_to)
        )

    def graph(self, model: nn.Module, fqn: str, device: torch.device) -> None:
        """Let calls of ``model``, whose weights stay, be captured and replayed."""
        self.graphed, handles = graph_forward(model, fqn, device)
        self.handles.extend(handles)

    def keep(
        self, bindings: list[TensorBinding], device: torch.device, *, run_device: torch.device
    ) -> None:
        """Let tensors stay on ``device`` until the callback is detached."""
        residents = ResidentSet(bindings, device, run_device=run_device)
        self.residents.append(residents)
        self.handles.append(Undo(residents.unload))
        with phase(f"place {len(bindings)} tensors on {device}"):
            residents.load(weight_sources(self.root))


def claimed_by_others(root: nn.Module, callback: "Placement") -> list[str]:
    """FQNs of ``root`` that other callbacks place."""
    return [fqn for fqn, other in claims_on(root).items() if other is not callback]


def is_within(name: str, fqn: str) -> bool:
    """Whether ``name`` is the module ``fqn`` or lies in it."""
    return not fqn or name == fqn or name.startswith(f"{fqn}.")


def weight_sources(root: nn.Module) -> Mapping[str, WeightSource]:
    """Where the bytes of ``root``'s parameters on meta are, if it says so."""
    sources: Mapping[str, WeightSource] = getattr(root, "weight_sources", {})
    return sources


@runtime_checkable
class ExecutesOn(Protocol):
    """A module that wants to be told where it computes, as ours do outside of Fabric."""

    execution_device: torch.device


class Placement(ABC):
    """Owns one target: says where its weights are and when.

    The base of ``LayerwiseOffload``, ``ModelOffload``, ``CPUExecution`` and ``Resident``, and of a
    placement of one's own, which defines ``place``. Works under Fabric, which calls
    ``on_after_setup`` by itself, and without: ``attach`` and ``detach``. Two placements of the same
    weights are an error.

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
            self.place(attachment, target, device)
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
            attachment.sync_tensors()
            for residents in attachment.residents:
                residents.refresh()
            if attachment.engine is not None:
                attachment.engine.begin_run()
            if attachment.runs is not None:
                attachment.runs.begin_run()
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
            attachment.announce_next(step, comes_next=comes_next)
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
            if attachment.runs is not None:
                attachment.runs.end_run()
            if attachment.graphed is not None:
                attachment.graphed.end_run()

    def teardown(self) -> None:
        """End of the placement, the same as ``detach``."""
        self.detach()

    @abstractmethod
    def place(self, attachment: Attachment, target: nn.Module, device: torch.device) -> None:
        """Put the target's weights where they belong: what a placement of one's own defines.

        Called once for each module that is attached to. What goes wrong here is undone.

        Args:
            attachment: Keeps what undoes the placement: call ``attachment.stay``, or add handles
                with a ``remove()`` to ``attachment.handles``.
            target: The module that the FQN names.
            device: Where the video is computed.
        """

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
