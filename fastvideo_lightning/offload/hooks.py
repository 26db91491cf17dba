"""The hooks that tie an engine to modules: of the engine, this file alone registers them.

Every function returns handles whose ``remove`` undoes what it did.

Note [Skipped blocks]
A step-skipping cache replaces a block's forward by one of its own, and calls the block's forward
only when it has to. Torch's hooks fire around the cache's forward, so the block would be brought
for nothing. A wrap of the block's own forward, below the cache, is called only when the block
computes. The wrap therefore has to be there before the cache is enabled.
"""

import sys
from collections.abc import Callable
from itertools import chain

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule

from fastvideo_lightning.offload.cuda_graphs import GraphedForward
from fastvideo_lightning.offload.engine import OffloadEngine
from fastvideo_lightning.offload.entrances import make_entrances
from fastvideo_lightning.offload.handles import Call, Handle, Hook, MethodHandle, Undo
from fastvideo_lightning.offload.tensors.autograd import outside_transforms
from fastvideo_lightning.offload.tensors.bindings import TensorBinding
from fastvideo_lightning.offload.tensors.embeddings import HostLookup
from fastvideo_lightning.offload.tensors.transfers import move_inputs, move_tensors
from fastvideo_lightning.offload.unit import OffloadUnit, UnitGroup

Conversion = Callable[[torch.Tensor], torch.Tensor]
"""What ``nn.Module._apply`` is called with."""


def check_unchanged(
    convert: Conversion, module: nn.Module, fqn: str, *, may_cast: bool = False
) -> None:
    """Raise RuntimeError if a conversion would change a weight of ``module``.

    Pipelines cast a component to the dtype that it has already, for safety: that passes.

    Args:
        convert: what would be applied to every weight.
        module: what it would be applied to.
        fqn: its name, for the message.
        may_cast: another dtype on the same device passes too.
    """
    for tensor in chain(module.parameters(), module.buffers()):
        if _changes(convert, tensor, may_cast=may_cast):
            raise RuntimeError(
                f"{fqn or type(module).__name__} is being offloaded, so its weights cannot be "
                f"moved{'' if may_cast else ' or cast'} (.to(), .half(), .cuda(), ...). Detach the "
                "callback first (`callback.detach()`, or `generator.close()`), or choose the dtype "
                "when the model is loaded."
            )


def _changes(convert: Conversion, tensor: torch.Tensor, *, may_cast: bool) -> bool:
    """Whether a conversion would move, cast or share a tensor; tried on an empty one like it."""
    like = torch.empty((0,) * tensor.dim(), dtype=tensor.dtype, device=tensor.device)
    converted = convert(like)
    if may_cast and converted.dtype != like.dtype and converted.device == like.device:
        return False
    return converted is not like or (not tensor.is_shared() and like.is_shared())


CALLS = ("encode", "decode")
"""Methods through which a pipeline calls a component; forward hooks do not fire on them."""

_CALL_CODE = nn.Module._wrapped_call_impl.__code__

Args = tuple[object, ...]
Kwargs = dict[str, object]


def hook_unit(engine: OffloadEngine, unit: OffloadUnit) -> list[Handle]:
    """Let a block's forward wait for its unit and release it, also when the forward raises."""

    def before(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        if engine.lanes is None or not engine.lanes.joins(unit):
            engine.begin_unit(unit, module, args, kwargs)

    def after(module: nn.Module, args: object, output: object) -> object:
        if engine.lanes is None:
            return engine.finish_unit(module, output)
        return engine.lanes.leaves(unit, module, output)

    return [
        end_interrupted(engine, unit.module),
        unit.module.register_forward_pre_hook(
            Hook(before, unit.fqn), prepend=True, with_kwargs=True
        ),
        unit.module.register_forward_hook(Hook(after, unit.fqn), always_call=True),
        show_host_values(unit),
        make_entrances(engine, unit),
    ]


def hook_model(
    engine: OffloadEngine,
    model: nn.Module,
    fqn: str,
    group: UnitGroup,
    *,
    on_call: Callable[[], None],
    starts: bool = True,
) -> list[Handle]:
    """Tell the engine when a model with streamed blocks is called; bring its inputs to the device.

    Args:
        engine: moves the group's units.
        model: holds the blocks and what lies between them.
        fqn: its name.
        group: its blocks in their order.
        on_call: called at each call, before edits are taken over.
        starts: prefetch the first blocks at the call; without, the model's forward does.
    """

    def before(
        module: nn.Module, args: Args, kwargs: Kwargs
    ) -> tuple[object, dict[str, object]] | None:
        refuse_whole_compile(module, fqn)
        engine.enter(module, on_call)
        if starts:
            with outside_transforms():
                engine.start(group)
        return move_inputs(args, kwargs, engine.device)

    def after(module: nn.Module, args: object, output: object) -> None:
        engine.leave(module, group)

    return [
        end_interrupted(engine, model),
        model.register_forward_pre_hook(Hook(before, fqn), prepend=True, with_kwargs=True),
        model.register_forward_hook(Hook(after, fqn), always_call=True),
        _show_on_host(model, fqn),
        refuse_conversion(model, fqn),
    ]


def hook_calls(
    module: nn.Module,
    fqn: str,
    *,
    inputs_to: torch.device,
    outputs_to: torch.device | None = None,
    before: Callable[[object, Args, Kwargs], None] = lambda called, args, kwargs: None,
    after: Callable[[object, object], object] = lambda called, output: output,
) -> list[Handle]:
    """Surround a component's forward, ``encode`` and ``decode``.

    Args:
        module: the component.
        fqn: its name, for messages.
        inputs_to: where tensors among the arguments are brought.
        outputs_to: where tensors of the result are brought; None leaves them.
        before: called first, with what is called (see ``OpenCall``) and the arguments; calls may
            nest.
        after: called last, with what was called and its result, and returns it; also when the call
            raises, with None.
    """

    def before_forward(
        module: nn.Module, args: Args, kwargs: Kwargs
    ) -> tuple[object, dict[str, object]] | None:
        before(module, args, kwargs)
        return move_inputs(args, kwargs, inputs_to)

    def after_forward(module: nn.Module, args: object, output: object) -> object:
        output = after(module, output)
        return output if outputs_to is None else move_tensors(output, outputs_to)

    class MethodCall:
        def __init__(self, method: Call) -> None:
            self.method = method

        def call_in_turn(self, *args: object, **kwargs: object) -> object:
            result = None
            try:
                before(self, args, kwargs)
                moved = move_inputs(args, kwargs, inputs_to)
                args, kwargs = moved if moved is not None else (args, kwargs)
                result = self.method(*args, **kwargs)
            finally:
                result = after(self, result)
            return result if outputs_to is None else move_tensors(result, outputs_to)

    handles: list[Handle] = [
        module.register_forward_pre_hook(Hook(before_forward, fqn), prepend=True, with_kwargs=True),
        module.register_forward_hook(Hook(after_forward, fqn), always_call=True),
    ]
    for name in CALLS:
        method = getattr(module, name, None)
        if callable(method):
            handles.append(MethodHandle(module, name, Hook(MethodCall(method).call_in_turn, fqn)))
    return handles


def hook_transient(engine: OffloadEngine, unit: OffloadUnit) -> list[Handle]:
    """Let a whole component come in for each of its calls and leave after it."""

    def before(called: object, args: Args, kwargs: Kwargs) -> None:
        engine.begin_unit(unit, called, args, kwargs)

    calls = hook_calls(
        unit.module,
        unit.fqn,
        before=before,
        after=engine.finish_unit,
        inputs_to=engine.device,
    )
    convert = refuse_conversion(unit.module, unit.fqn, may_cast=lambda: not unit.uses)
    return [
        end_interrupted(engine, unit.module),
        *calls,
        show_host_values(unit),
        make_entrances(engine, unit),
        convert,
    ]


def end_interrupted(engine: OffloadEngine, module: nn.Module) -> Handle:
    """End a module's call where Ctrl-C or the like ends it, which torch's hooks do not see."""
    call_impl: Call = module._call_impl

    def call(*args: object, **kwargs: object) -> object:
        try:
            return call_impl(*args, **kwargs)
        except Exception:
            raise  # the hook has seen it
        except BaseException:
            engine.end_call(module)
            raise

    # Compilers leave this function alone, not what it calls.
    return MethodHandle(module, "_call_impl", torch.compiler.disable(call, recursive=False))


def hook_lookup(owner: nn.Embedding, fqn: str, device: torch.device) -> list[Handle]:
    """Let an embedding look up rows on the host, and compute everything else on ``device``."""
    lookup, forward = HostLookup(owner, device), owner.forward

    def look_up(*args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        with lookup:
            return forward(*args, **kwargs)

    return [MethodHandle(owner, "forward", Hook(look_up, fqn))]


def refuse_whole_compile(model: nn.Module, fqn: str) -> None:
    """Refuse a model that is compiled as a whole, with the blocks that are to stream in it.

    Raises:
        RuntimeError: it is, or is being called by what `torch.compile` made of it.
    """
    is_compiled = model._compiled_call_impl is not None or isinstance(model, OptimizedModule)
    if is_compiled or _is_called_compiled(model):
        raise RuntimeError(
            f"{fqn or type(model).__name__} is compiled as a whole, so the hooks that bring its "
            "blocks in would be compiled away. Compile block by block: pass compile=True to the "
            "generator, or call `block.compile()` for each block of a list."
        )


def _is_called_compiled(model: nn.Module) -> bool:
    """Whether a compiled module around ``model`` is on the stack: the model does not know of it."""
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        if frame.f_code is _CALL_CODE:
            module = frame.f_locals["self"]
            if isinstance(module, OptimizedModule) and module._orig_mod is model:
                return True
    return False


def refuse_conversion(
    module: nn.Module, fqn: str, *, may_cast: Callable[[], bool] = lambda: False
) -> Handle:
    """Refuse ``.to(...)``, ``.half()`` and the like; a cast passes where ``may_cast()`` says so."""

    def check(convert: Conversion, recurse: bool = True) -> nn.Module:
        check_unchanged(convert, module, fqn, may_cast=may_cast())
        return type(module)._apply(module, convert, recurse) if may_cast() else module

    return MethodHandle(module, "_apply", Hook(check, fqn))


def _show_on_host(model: nn.Module, fqn: str) -> Handle:
    """Let ``state_dict`` have host copies of what stays on the device."""

    def show(
        module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, metadata: object
    ) -> None:
        _bring_to_host(state_dict, prefix)

    handle: Handle = model.register_state_dict_post_hook(Hook(show, fqn))
    return handle


def _bring_to_host(state_dict: dict[str, torch.Tensor], prefix: str) -> None:
    for key, value in state_dict.items():
        is_tensor = isinstance(value, torch.Tensor)  # and no extra state
        if is_tensor and key.startswith(prefix) and not value.is_meta:  # an adapter on its way
            state_dict[key] = value.cpu()


def show_host_values(unit: OffloadUnit) -> Handle:
    """Let ``state_dict`` have the host master, whatever the module shows."""
    prefix_length = len(unit.fqn) + 1 if unit.fqn else 0

    def show(
        module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, metadata: object
    ) -> None:
        for fqn, host in unit.hidden_tensors().items():
            key = prefix + fqn[prefix_length:]
            if key in state_dict:
                state_dict[key] = host.detach()
        _bring_to_host(state_dict, prefix)

    handle: Handle = unit.module.register_state_dict_post_hook(Hook(show, unit.fqn))
    return handle


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


def graph_forward(
    model: nn.Module,
    fqn: str,
    device: torch.device,
    engine: OffloadEngine | None = None,
    group: UnitGroup | None = None,
) -> tuple[GraphedForward, list[Handle]]:
    """Let a model's forward be captured and replayed; returns the new forward and its handles."""
    forward = GraphedForward(model.forward, fqn, device, engine, group)
    return forward, [MethodHandle(model, "forward", forward), Undo(forward.end_run)]


def hook_tables(tables: list[TensorBinding], device: torch.device) -> list[Handle]:
    """Let the tables' modules look up on the CPU and hand the rows to the device."""
    names = {r.owner: table.fqn for table in tables for r in table.registrations}
    return [
        handle
        for owner, fqn in names.items()
        if isinstance(owner, nn.Embedding)
        for handle in hook_lookup(owner, fqn, device)
    ]
