"""The predict loop: prompts in, one `predict_step` each, every moment announced."""

import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from typing import Any

import lightning as L
import torch
from lightning.fabric.wrappers import _FabricModule
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from fastvideo_lightning.prompts.sampler import Replica, Turn, deal, deal_in_rounds

_END = object()
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

_BATCH = ("fabric", "module", "batch", "batch_idx", "is_repeat")
_STEP = ("fabric", "module", "step", "num_steps", "denoiser", "following")
MOMENTS = {
    "on_after_setup": ("fabric", "module"),
    "on_predict_start": ("fabric", "module", "num_batches"),
    "on_predict_epoch_start": ("fabric", "module"),
    "on_predict_batch_start": (*_BATCH, "next_batch"),
    "on_denoise_step_start": _STEP,
    "on_denoise_step_end": (*_STEP, "latents", "timestep", "model_output"),
    "on_predict_batch_end": (*_BATCH, "outputs"),
    "on_write_start": ("video",),
    "on_write_end": ("video",),
    "on_predict_epoch_end": ("fabric", "module"),
    "on_predict_end": ("fabric", "module"),
    "on_exception": ("fabric", "module", "exception"),
    "on_replan": ("fabric", "module", "plan"),
    "teardown": (),
}
"""What a callback may hear of a run, in the order of events, and the arguments of each moment."""


@cache
def _warn_of_spinning() -> None:
    """Say once where torch's threads wait for each other by spinning; none of them is changed."""
    is_chosen = "OMP_WAIT_POLICY" in os.environ or os.name == "nt"  # there nothing reads it
    if not is_chosen and torch.get_num_threads() > 1:
        warnings.warn(
            "OMP_WAIT_POLICY is not set: where other programs use the CPU too, a model is many "
            "times slower on it, because its threads wait for each other by spinning. Set "
            "OMP_WAIT_POLICY=PASSIVE before torch is imported.",
            stacklevel=2,
        )


# Whether the run goes on after a prompt that failed.
SkipFailure = Callable[[Mapping[str, Any], Exception], bool]
# Whether a prompt is made by this run.
Takes = Callable[[Mapping[str, Any]], bool]


class PredictLoop:
    """Walks the prompts and calls the hooks of Lightning's prediction loop, in its order.

    `on_predict_start`, `on_predict_epoch_start`, then `on_predict_batch_start`, `predict_step` and
    `on_predict_batch_end` for each prompt, `on_predict_epoch_end`, `on_predict_end`. Callbacks come
    first, then the module's own hook of the same name. `on_predict_batch_start` may also take
    `next_batch`, what follows this batch or None. After an exception `on_exception` is called and
    the exception raised again. Nothing is torn down: `run` may be called again.

    With several ranks a video may be made by more than one: for all but the one that keeps it,
    `is_repeat` is true in the two hooks of its batch.

    Args:
        fabric: The launched Fabric whose callbacks are called.
    """

    def __init__(self, fabric: L.Fabric) -> None:
        self._fabric = fabric

    def run(
        self,
        module: Any,
        prompts: Any,
        *,
        return_predictions: bool = False,
    ) -> list[Any] | None:
        """Make a video of each prompt; with several ranks, each makes its share.

        Args:
            module: A `VideoModule`, or what `fabric.setup` made of it.
            prompts: A map-style dataset, or a `DataLoader` whose batches hold one prompt. Replica r
                of n takes items r, r + n, ...; where weights are gathered over all ranks, rounds
                of equal work (see `sharing`). A loader with a `DistributedSampler` is taken as it
                is.
            return_predictions: Keep the videos of this rank and return them; about 97 MB each at
                81 frames of 480x832.

        Returns:
            This rank's videos by `index`, or None.
        """
        for callback in self._fabric._callbacks:
            warn_of_misnamed(callback)
        videos = []
        for video in self.iterate(module, prompts):
            if return_predictions:
                videos.append(video)
        return sorted(videos, key=lambda video: video.index) if return_predictions else None

    def iterate(
        self,
        module: Any,
        prompts: Any,
        *,
        skip_failure: SkipFailure | None = None,
        takes: Takes | None = None,
        num_before: int = 0,
    ) -> Iterator[Any]:
        """Make the videos as `run` does and give each out once `on_predict_batch_end` was called.

        Args:
            module: As in `run`.
            prompts: As in `run`.
            skip_failure: Asked with the batch and the exception when `predict_step` fails. Where it
                says yes, `on_exception` is called and the next prompt follows. It is not asked
                where several ranks wait for each other in a prompt.
            takes: Asked with each batch before it begins. Where it says no, as where another
                machine makes it, nothing is announced and the next prompt follows.
            num_before: Prompts of this run that came before these, where it was interrupted: they
                count in `batch_idx` and `num_batches`.

        Yields:
            This rank's videos, in the order of the prompts.
        """
        module = module.module if isinstance(module, _FabricModule) else module
        was_training = module.training
        module.eval()
        videos = self._walk(module, prompts, skip_failure, takes, num_before)
        try:
            while True:
                with torch.no_grad():  # not while the caller holds a video
                    video = next(videos, _END)
                if video is _END:
                    return
                yield video
        except BaseException as exception:
            self._call("on_exception", module, exception=exception)
            raise
        finally:
            module.train(was_training)

    def _walk(
        self,
        module: Any,
        prompts: Any,
        skip_failure: SkipFailure | None,
        takes: Takes | None,
        num_before: int,
    ) -> Iterator[Any]:
        if self._fabric.device.type == "cpu" and self._fabric.is_global_zero:
            _warn_of_spinning()
        turns, num_batches = self._share(prompts)
        num_batches = None if num_batches is None else num_before + num_batches
        self._note_run(is_over=False)
        self._call("on_predict_start", module, num_batches=num_batches)
        self._call("on_predict_epoch_start", module)
        for batch_idx, (turn, following) in enumerate(_with_next(iter(turns)), num_before):
            if takes is not None and not takes(turn.batch):
                continue
            moment = {"batch": turn.batch, "batch_idx": batch_idx, "is_repeat": turn.is_repeat}
            next_batch = None if following is None else following.batch
            self._call("on_predict_batch_start", module, next_batch=next_batch, **moment)
            try:
                video = module.predict_step(turn.batch, batch_idx)
            except Exception as exception:
                if skip_failure is not None and self._waits_for_others():
                    exception.add_note(
                        "No prompt is skipped where several processes compute together: the others "
                        "wait for the one that failed. Run them again without this prompt."
                    )
                    raise
                if skip_failure is None or not skip_failure(turn.batch, exception):
                    raise
                self._call("on_exception", module, exception=exception)
                continue
            self._call("on_predict_batch_end", module, outputs=video, **moment)
            if not turn.is_repeat:
                yield video
        self._call("on_predict_epoch_end", module)
        self._call("on_predict_end", module)
        self._fabric.barrier()  # what the run was to make is there, whichever process made it
        self._note_run(is_over=True)

    def _share(self, prompts: Any) -> tuple[Iterable[Turn], int | None]:
        """Return this rank's turns and their number, where it is known.

        Not by a `DistributedSampler`: that one repeats prompts without saying so.
        """
        strategy = getattr(self._fabric, "strategy", None)
        alone = Replica(self._fabric.global_rank, self._fabric.world_size)
        replica: Replica = getattr(strategy, "replica", alone)
        is_dealt = isinstance(getattr(prompts, "sampler", None), DistributedSampler)
        if is_dealt:
            replica = replace(replica, index=0, count=1)
        if is_dealt or not self._in_lockstep():
            return deal(prompts, replica), _count(prompts, replica)
        turns = deal_in_rounds(prompts, replica)
        if isinstance(prompts, DataLoader):
            return turns, None
        dealt = list(turns)
        return dealt, len(dealt)

    def _note_run(self, *, is_over: bool) -> None:
        """Tell a strategy that watches the other processes where this one stands."""
        note_run = getattr(getattr(self._fabric, "strategy", None), "note_run", None)
        if note_run is not None:
            note_run(is_over=is_over)

    def _waits_for_others(self) -> bool:
        """Whether several processes make each video, or weights are gathered over all of them."""
        world_size = self._fabric.world_size
        replica: Replica | None = getattr(getattr(self._fabric, "strategy", None), "replica", None)
        is_shared = isinstance(replica, Replica) and replica.count < world_size
        return world_size > 1 and (is_shared or self._in_lockstep())

    def _in_lockstep(self) -> bool:
        """Whether weights are gathered over all ranks, so that all must call equally often."""
        strategy = getattr(self._fabric, "strategy", None)
        parts = [strategy, *getattr(self._fabric, "_callbacks", ())]
        return any(getattr(part, "lockstep", False) for part in parts)

    def _call(self, moment: str, module: Any, **arguments: Any) -> None:
        """Announce a moment to the callbacks, then to the module.

        `Fabric.setup` makes the module its last callback; `setup_module` does not.
        """
        self._fabric.call(moment, fabric=self._fabric, module=module, **arguments)
        hook = getattr(module, moment, None)
        if callable(hook) and not any(callback is module for callback in self._fabric._callbacks):
            hook(**self._fabric._filter_kwargs_for_callback(hook, arguments))


def check_callbacks(callbacks: Iterable[object]) -> list[object]:
    """Return the user's callbacks in a list; warn of misspelt moments.

    Raises:
        TypeError: If one would never hear anything, such as a function or a class, or needs an
            argument that its moment does not have.
    """
    if not isinstance(callbacks, Iterable):
        raise TypeError(
            f"callbacks must be a list of objects, got one {type(callbacks).__name__}. Pass it in "
            "a list: callbacks=[callback]."
        )
    listed = list(callbacks)
    for place, callback in enumerate(listed):
        if isinstance(callback, type):
            name = callback.__name__
            raise TypeError(
                f"callbacks[{place}] is the class {name}, and a callback is an object. "
                f"Pass {name}()."
            )
        hears = any(callable(getattr(callback, moment, None)) for moment in MOMENTS)
        if not warn_of_misnamed(callback) and not hears:
            raise TypeError(
                f"callbacks[{place}], a {type(callback).__name__}, has no method that is named "
                f"after a moment of the run, so it would never be called. The moments are: "
                f"{', '.join(MOMENTS)}."
            )
        _check_arguments(callback)
    return listed


def _check_arguments(callback: object) -> None:
    """Raise TypeError for an argument that a callback needs and its moment does not have."""
    for moment, arguments in MOMENTS.items():
        hook = getattr(callback, moment, None)
        if not callable(hook):
            continue
        for name, parameter in inspect.signature(hook).parameters.items():
            is_needed = parameter.default is parameter.empty and parameter.kind in _NAMED
            if is_needed and name not in arguments:
                near = get_close_matches(name, arguments, n=1)
                hint = f"Did you mean {near[0]}?" if near else "Leave it out."
                has = f"has {', '.join(arguments)}" if arguments else "has no arguments"
                raise TypeError(
                    f"{type(callback).__name__}.{moment} takes {name}, and the moment {has}. {hint}"
                )


def warn_of_misnamed(callback: object) -> bool:
    """Warn of each method that is named nearly as a moment, and so never called.

    Returns:
        Whether there is any.
    """
    plain = {_plain(moment): moment for moment in MOMENTS}
    misnamed = False
    for name in dir(callback):
        if name.startswith("_") or name in MOMENTS or hasattr(L.Callback, name):
            continue
        alike = 0.75 if name.lower().startswith("on") else 0.88
        near = get_close_matches(_plain(name), plain, n=1, cutoff=alike)
        if near and callable(getattr(callback, name, None)):
            misnamed = True
            warnings.warn(
                f"{type(callback).__name__} has {name}, which is no moment of a run and is never "
                f"called. Did you mean {plain[near[0]]}?",
                stacklevel=4,
            )
    return misnamed


def _plain(name: str) -> str:
    return name.lower().replace("_", "").removeprefix("on")


def _count(prompts: Any, replica: Replica) -> int | None:
    try:
        return len(range(replica.index, len(prompts), replica.count))
    except TypeError:
        return None


def _with_next(turns: Iterator[Turn]) -> Iterator[tuple[Turn, Turn | None]]:
    """Give each turn with the one that follows it, the last with None."""
    turn = next(turns, None)
    while turn is not None:
        following = next(turns, None)
        yield turn, following
        turn = following
