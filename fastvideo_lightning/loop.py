"""The predict loop: prompts in, one `predict_step` each, every moment announced."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.fabric.wrappers import _FabricModule
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from fastvideo_lightning.sharing import Replica, Turn, deal, deal_in_rounds


class PredictLoop:
    """Walks the prompts and calls the hooks of Lightning's prediction loop, in its order.

    `on_predict_start`, `on_predict_epoch_start`, then `on_predict_batch_start`, `predict_step` and
    `on_predict_batch_end` for each prompt, `on_predict_epoch_end`, `on_predict_end`. Callbacks come
    first, then the module's own hook of the same name. After an exception `on_exception` is called
    and the exception raised again. Nothing is torn down: `run` may be called again.

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
        module = module.module if isinstance(module, _FabricModule) else module
        was_training = module.training
        module.eval()
        try:
            with torch.no_grad():
                videos = self._walk(module, prompts, keep=return_predictions)
        except BaseException as exception:
            self._call("on_exception", module, exception=exception)
            raise
        finally:
            module.train(was_training)
        return sorted(videos, key=lambda video: video.index) if return_predictions else None

    def _walk(self, module: Any, prompts: Any, *, keep: bool) -> list[Any]:
        turns, num_batches = self._share(prompts)
        videos = []
        self._call("on_predict_start", module, num_batches=num_batches)
        self._call("on_predict_epoch_start", module)
        for batch_idx, turn in enumerate(turns):
            moment = {"batch": turn.batch, "batch_idx": batch_idx, "is_repeat": turn.is_repeat}
            self._call("on_predict_batch_start", module, **moment)
            video = module.predict_step(turn.batch, batch_idx)
            self._call("on_predict_batch_end", module, outputs=video, **moment)
            if keep and not turn.is_repeat:
                videos.append(video)
        self._fabric.barrier()
        self._call("on_predict_epoch_end", module)
        self._call("on_predict_end", module)
        return videos

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
        if is_dealt or not self._in_lockstep(strategy):
            return deal(prompts, replica), _count(prompts, replica)
        turns = deal_in_rounds(prompts, replica)
        if isinstance(prompts, DataLoader):
            return turns, None
        dealt = list(turns)
        return dealt, len(dealt)

    def _in_lockstep(self, strategy: Any) -> bool:
        """Whether weights are gathered over all ranks, so that all must call equally often."""
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


def _count(prompts: Any, replica: Replica) -> int | None:
    try:
        return len(range(replica.index, len(prompts), replica.count))
    except TypeError:
        return None
