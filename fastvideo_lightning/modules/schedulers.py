"""The scheduler of one video: the checkpoint's, or another of diffusers', with its flow shift."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules.pipelines import Pipeline

_SHIFTS = ("flow_shift", "shift")
# For few steps with an adapter (LCM, TCD, Hyper-SD); diffusers lists them as nobody's compatibles.
_FEW_STEPS = ("LCMScheduler", "TCDScheduler")


@contextmanager
def chosen_scheduler(pipeline: Pipeline, params: SamplingParams) -> Iterator[None]:
    """Run with the scheduler that was chosen, and put the checkpoint's back.

    A scheduler that was named may draw noise of its own, from torch's generators: they are seeded
    with the video's seed, and put back too.
    """
    if params.scheduler is None and params.flow_shift is None:
        yield
        return
    before = pipeline.scheduler
    pipeline.scheduler = make_scheduler(before, params.scheduler, params.flow_shift)
    try:
        if params.scheduler is None:
            yield
            return
        device = pipeline.execution_device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(params.seed)
            yield
    finally:
        pipeline.scheduler = before


def check_scheduler(pipeline: Pipeline, params: SamplingParams) -> None:
    """Raise ValueError for a scheduler, or a flow shift, that the checkpoint cannot have."""
    if params.scheduler is None and params.flow_shift is None:
        return
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is not None:
        scheduler = make_scheduler(scheduler, params.scheduler, None)
    if params.flow_shift is not None and _shift_option(scheduler) is None:
        owner = "this checkpoint's scheduler" if params.scheduler is None else "the scheduler"
        raise ValueError(
            f"flow_shift={params.flow_shift} has no effect on {owner}, "
            f"{type(scheduler).__name__}. Leave it out."
        )


def make_scheduler(scheduler: Any, name: str | None, flow_shift: float | None) -> Any:
    """A scheduler with the settings of another one.

    Args:
        scheduler: The checkpoint's.
        name: A class of diffusers' such as `FlowMatchEulerDiscreteScheduler`; None keeps it.
        flow_shift: In place of the checkpoint's.

    Raises:
        ValueError: If diffusers has no such class, or it cannot sample what the model predicts.
    """
    kind = type(scheduler) if name is None else _find_class(scheduler, name)
    changes: dict[str, Any] = {}
    if flow_shift is None and kind is not type(scheduler):
        flow_shift = next(
            (scheduler.config[key] for key in _SHIFTS if key in scheduler.config), None
        )
    if _follows_flow(scheduler):
        taken = inspect.signature(kind.__init__).parameters
        if "use_flow_sigmas" in taken and kind is not type(scheduler):
            changes = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        if flow_shift is not None:
            changes[next(key for key in _SHIFTS if key in taken)] = flow_shift
    elif flow_shift is not None and (option := _shift_option(scheduler)) is not None:
        changes[option] = flow_shift
    return kind.from_config(scheduler.config, **changes)


def _find_class(scheduler: Any, name: str) -> Any:
    import diffusers

    possible = {kind.__name__: kind for kind in _possible_classes(scheduler)}
    if name not in possible:
        reason = "samples something else" if hasattr(diffusers, name) else "is none of diffusers'"
        raise ValueError(
            f"scheduler={name!r} {reason}. In place of this checkpoint's "
            f"{type(scheduler).__name__} there can be: {', '.join(sorted(possible))}."
        )
    return possible[name]


def _possible_classes(scheduler: Any) -> list[Any]:
    """Classes that sample what the checkpoint's scheduler does: along a flow, or noise."""
    import diffusers

    if not _follows_flow(scheduler):
        few = _FEW_STEPS if "beta_schedule" in scheduler.config else ()
        return [*scheduler.compatibles, type(scheduler), *(getattr(diffusers, n) for n in few)]
    names = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    classes = [getattr(diffusers, name) for name in names if "Inverse" not in name]
    return [
        kind
        for kind in classes
        if kind is type(scheduler)
        or kind.__name__.startswith("FlowMatch")
        or {"use_flow_sigmas", "flow_shift"} <= inspect.signature(kind.__init__).parameters.keys()
    ]


def _follows_flow(scheduler: Any) -> bool:
    config = scheduler.config
    if "use_flow_sigmas" in config:
        return bool(config["use_flow_sigmas"])
    return "shift" in config or config.get("prediction_type") == "flow_prediction"


def _shift_option(scheduler: Any) -> str | None:
    """What a scheduler calls its flow shift; None where it has none, or finds it by itself."""
    config = {} if scheduler is None else scheduler.config
    if config.get("use_dynamic_shifting"):
        return None
    return next((name for name in _SHIFTS if name in config), None)
