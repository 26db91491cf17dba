"""When each denoising step starts and ends, seen from outside the pipeline.

A video of NaN is black, and says nothing of why: the latents are watched.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import Enum
from functools import wraps
from typing import Any, Protocol

import torch
from torch import nn

from fastvideo_lightning.modules.pipelines import Pipeline, call_parameters

NOT_FINITE = (
    'Pass dtype="bf16" or dtype="fp32" if it was fp16, which overflows easily, or a lower '
    "guidance_scale; else the weights are damaged."
)


class LatentsWatch:
    """Notes after each denoising step whether the latents are finite, and reads the notes once.

    A note stays on the device: reading each would make the host wait for every step.
    """

    def __init__(self) -> None:
        self._notes: list[torch.Tensor] = []

    def note(self, latents: object) -> None:
        """Note the latents that a step has made."""
        if isinstance(latents, torch.Tensor):
            self._notes.append(torch.isfinite(latents).all())

    def check(self, num_steps: int) -> None:
        """Raise RuntimeError naming the first step whose latents were not finite."""
        if not self._notes:
            return
        finite = torch.stack(self._notes).tolist()
        if not all(finite):
            raise RuntimeError(
                f"The latents are not a number (NaN or infinity) from denoising step "
                f"{finite.index(False) + 1} of {num_steps} on, so there is no video. {NOT_FINITE}"
            )


class Announce(Protocol):
    """Hears a moment, the step, the number of steps and, at its end, what the step has made."""

    def __call__(self, moment: str, step: int, num_steps: int, **made: Any) -> None: ...  # noqa: D102


class Stage(Enum):
    """How far a video is.

    IDLE: no video is being made.
    ENCODE: prompt and image become conditions: encoders, and the VAE where an image goes in.
    DENOISE: the denoiser runs, step after step; its activations are what the device holds.
    DECODE: latents become frames; the VAE's activations are what the device holds.
    """

    IDLE = "idle"
    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"


class StepWatch:
    """Follows one pipeline call through its stages and announces its steps.

    Step 0 starts with the first call of a denoiser; step i + 1 starts where step i ends. A pipeline
    that denoises section by section starts anew with each, and the number of steps grows.

    Args:
        announce: Told `on_denoise_step_start` and `on_denoise_step_end`, the latter with `latents`,
            `timestep` and `model_output` as diffusers' schedulers call them; None where a pipeline
            shows none.
        num_steps: Expected steps; the pipeline's own count is taken where it has one.
    """

    def __init__(self, announce: Announce, num_steps: int) -> None:
        self.stage = Stage.IDLE
        self._announce = announce
        self._section_steps = self._num_steps = num_steps
        self._step = 0
        self._latents = LatentsWatch()
        self._model_output: object = None  # of the step that is going on, once there is one

    @contextmanager
    def watch(self, pipeline: Pipeline, denoisers: Iterable[nn.Module]) -> Iterator[dict[str, Any]]:
        """Follow a call made inside the context; yields the arguments to call with."""
        self.stage = Stage.ENCODE
        with ExitStack() as stack:

            def start(*_: object) -> None:
                if self.stage is not Stage.DENOISE:
                    self._start_section(_steps_of_section(pipeline))

            for denoiser in denoisers:
                if getattr(denoiser, "is_cache_enabled", False):  # a failed video leaves its own
                    denoiser._reset_stateful_cache()  # type: ignore[operator]
                    stack.enter_context(self._telling_of_cache(type(pipeline).__name__))
                # Before the hooks that bring the weights in: the step has started by then.
                handle = denoiser.register_forward_pre_hook(start, prepend=True)
                stack.callback(handle.remove)
            parameters = call_parameters(pipeline)
            # What the call tells after each step, by how it takes who wants to be told.
            ends = {"callback_on_step_end": self._on_step_end, "callback": self._on_callback}
            told = next((name for name in ends if name in parameters), None)
            if getattr(pipeline, "scheduler", None) is not None:  # else nothing is denoised
                then = self._on_scheduler_step if told is None else self._note_output
                stack.enter_context(_after_each_step(pipeline.scheduler, then))
            stack.callback(self._take_output)  # whatever becomes of the call
            yield {} if told is None else {told: ends[told]}
        self.stage = Stage.IDLE

    @contextmanager
    def _telling_of_cache(self, name: str) -> Iterator[None]:
        """Name the cache where a step fails with one on: diffusers does not know who takes it."""
        try:
            yield
        except Exception as error:
            said = f"A cache is on, and {name} may be none that diffusers' caches know. "
            said += "Leave cache out, or call disable_cache()."
            is_its_own = not isinstance(error, torch.OutOfMemoryError)
            is_said = said in getattr(error, "__notes__", ())  # by another denoiser
            if is_its_own and not is_said and self.stage is Stage.DENOISE:
                error.add_note(said)
            raise

    def _start_section(self, num_steps: int) -> None:
        """Begin to denoise; a video that is made in sections begins again for each.

        Args:
            num_steps: The pipeline's own count for this section; 0 where it has none.
        """
        num_steps = num_steps or self._section_steps
        self._num_steps = self._step + num_steps
        self.stage = Stage.DENOISE
        self._announce("on_denoise_step_start", self._step, self._num_steps)

    def _on_step_end(
        self, pipeline: Pipeline, step: int, timestep: Any, tensors: Mapping[str, Any]
    ) -> dict[str, Any]:
        self._end_step(tensors.get("latents"), timestep)
        return {}

    def _on_callback(self, step: int, timestep: Any, latents: object) -> None:
        self._end_step(latents, timestep)

    def _on_scheduler_step(self, arguments: Mapping[str, Any], output: Any) -> None:
        self._note_output(arguments, output)
        latents = output[0] if isinstance(output, tuple) else output.prev_sample
        self._end_step(latents, arguments.get("timestep"))

    def _note_output(self, arguments: Mapping[str, Any], output: Any) -> None:
        self._model_output = arguments.get("model_output")

    def _take_output(self) -> object:
        taken, self._model_output = self._model_output, None
        return taken

    def _end_step(self, latents: object, timestep: object) -> None:
        self._latents.note(latents)
        self._announce(
            "on_denoise_step_end",
            self._step,
            self._num_steps,
            latents=latents,
            timestep=timestep,
            model_output=self._take_output(),
        )
        self._step += 1
        if self._step < self._num_steps:
            self._announce("on_denoise_step_start", self._step, self._num_steps)
        else:
            self._latents.check(self._num_steps)
            self.stage = Stage.DECODE


def _steps_of_section(pipeline: Pipeline) -> int:
    """Return how many steps the pipeline is about to take; 0 where it does not tell.

    Where it has no such count, what it tells its bar is one. That differs from what was asked for
    where a pipeline leaves out steps, or takes some of them in passes that overlap.
    """
    return getattr(pipeline, "num_timesteps", 0) or getattr(pipeline, "bar_steps", 0)


@contextmanager
def _after_each_step(
    scheduler: Any, then: Callable[[Mapping[str, Any], Any], None]
) -> Iterator[None]:
    """Have `then` see the arguments and the result of a scheduler's steps, until the context ends.

    The scheduler's class changes, not the scheduler: pipelines copy theirs, and a copy must not
    call the original's method. Pipelines ask the method's signature what it takes: it stays.
    """
    kind: Any = type(scheduler)
    step, signature = kind.step, inspect.signature(kind.step)

    @wraps(step)
    def called(self: object, *args: Any, **kwargs: Any) -> Any:
        result = step(self, *args, **kwargs)
        if self is scheduler:
            then(signature.bind(self, *args, **kwargs).arguments, result)
        return result

    names = {"step": called, "__module__": kind.__module__}
    scheduler.__class__ = type(kind.__name__, (kind,), names)
    try:
        yield
    finally:
        scheduler.__class__ = kind
