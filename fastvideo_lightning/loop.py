"""The predict loop: prompts in, one `predict_step` each, every moment announced."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.fabric.wrappers import _FabricModule
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler


class PredictLoop:
    """Walks the prompts and calls the hooks of Lightning's prediction loop, in its order.

    `on_predict_start`, `on_predict_epoch_start`, then `on_predict_batch_start`, `predict_step` and
    `on_predict_batch_end` for each prompt, `on_predict_epoch_end`, `on_predict_end`. Callbacks come
    first, then the module's own hook of the same name. After an exception `on_exception` is called
    and the exception raised again. Nothing is torn down: `run` may be called again.

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
            prompts: A map-style dataset, or a `DataLoader` whose batches hold one prompt. Rank r of
                n takes items r, r + n, ...; a loader with a `DistributedSampler` is taken as it is.
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
        batches, num_batches = self._share(prompts)
        videos = []
        self._call("on_predict_start", module, num_batches=num_batches)
        self._call("on_predict_epoch_start", module)
        for batch_idx, batch in enumerate(batches):
            moment = {"batch": batch, "batch_idx": batch_idx}
            self._call("on_predict_batch_start", module, **moment)
            video = module.predict_step(batch, batch_idx)
            self._call("on_predict_batch_end", module, outputs=video, **moment)
            if keep:
                videos.append(video)
        self._call("on_predict_epoch_end", module)
        self._call("on_predict_end", module)
        return videos

    def _share(self, prompts: Any) -> tuple[Iterator[Any], int | None]:
        """Return this rank's batches and their number, where it is known.

        A stride, not a `DistributedSampler`: that one repeats prompts to make the shares equal.
        """
        rank, world_size = self._fabric.global_rank, self._fabric.world_size
        if isinstance(getattr(prompts, "sampler", None), DistributedSampler):
            rank, world_size = 0, 1
        try:
            num_batches = len(range(rank, len(prompts), world_size))
        except TypeError:
            num_batches = None
        if isinstance(prompts, DataLoader) or not hasattr(prompts, "__getitem__"):
            return islice(prompts, rank, None, world_size), num_batches
        return (prompts[index] for index in range(rank, len(prompts), world_size)), num_batches

    def _call(self, moment: str, module: Any, **arguments: Any) -> None:
        """Announce a moment to the callbacks, then to the module.

        `Fabric.setup` makes the module its last callback; `setup_module` does not.
        """
        self._fabric.call(moment, fabric=self._fabric, module=module, **arguments)
        hook = getattr(module, moment, None)
        if callable(hook) and not any(callback is module for callback in self._fabric._callbacks):
            hook(**self._fabric._filter_kwargs_for_callback(hook, arguments))
