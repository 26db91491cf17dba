"""A training run that ends on time: one loss, several clip sizes, a schedule tied to the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import lightning as L
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Bucket(NamedTuple):
    """Clips of one length and size, and how many of them make a step."""

    num_frames: int
    height: int
    width: int
    batch: int

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """Frames, rows and columns of the latents: 4x fewer frames, 8x fewer rows and columns."""
        return (self.num_frames - 1) // 4 + 1, self.height // 8, self.width // 8


class TimedTraining:
    """Trains `module(bucket) -> loss` for a number of seconds.

    On a GPU the whole step (random numbers, forward, backward, optimizer, averaged weights) of each
    bucket is captured in a CUDA graph: models as small as these otherwise wait for kernel launches.

    Args:
        fabric: sets up the module and the optimizer, and owns device and precision.
        module: draws its own batch of a bucket's size and returns the scalar loss.
        buckets: the sizes to train on.
        shares: how often each bucket is drawn, relative to the others.
        budget_s: seconds from here to the end of the run, the capturing of graphs included.
        peak_lr: of AdamW, reached after 3 % of the time and annealed to nothing by a cosine.
        ema_decay: of the averaged weights that the run leaves in the module.
    """

    def __init__(
        self,
        fabric: L.Fabric,
        module: nn.Module,
        *,
        buckets: Sequence[Bucket],
        shares: Sequence[float],
        budget_s: float,
        peak_lr: float,
        ema_decay: float = 0.999,
    ) -> None:
        self._started = time.monotonic()
        self._fabric, self._budget_s, self._peak_lr = fabric, budget_s, peak_lr
        self._buckets, self._on_gpu = list(buckets), fabric.device.type == "cuda"
        self._order = torch.Generator().manual_seed(0)
        self._shares = torch.tensor(list(shares), dtype=torch.float64)
        module.to(fabric.device)
        self._weights = [weight for weight in module.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(
            self._weights,
            lr=torch.tensor(0.0, device=fabric.device) if self._on_gpu else 0.0,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=self._on_gpu,
            capturable=self._on_gpu,
        )
        self._module, self._optimizer = fabric.setup(module, optimizer)
        self._averaged = [weight.detach().clone() for weight in self._weights]
        self._update_average = get_ema_multi_avg_fn(ema_decay)
        self._loss = torch.zeros((), device=fabric.device)
        self._graphs: dict[Bucket, torch.cuda.CUDAGraph] = {}
        self.num_steps = 0

    def run(
        self,
        *,
        save: Callable[[], None] | None = None,
        save_every_s: float = 60.0,
        report_every_s: float = 10.0,
    ) -> None:
        """Train until the budget is spent and leave the averaged weights in the module.

        Args:
            save: called now and then with the averaged weights in place, for a run that is cut off.
            save_every_s: seconds between these calls.
            report_every_s: seconds between printed lines.

        Raises:
            ValueError: If the budget is spent before the first step.
        """
        self._set_lr(0.0)
        if self._on_gpu:
            self._capture_all()
        warm_s = time.monotonic() - self._started
        self._fabric.print(f"  {len(self._buckets)} buckets ready after {warm_s:.0f} s")
        saved = reported = time.monotonic()
        left_s = self._budget_s - warm_s
        if left_s <= 0:
            raise ValueError(
                f"No time is left to train: getting ready took {-left_s:.0f} s longer than the "
                "budget. Give it more seconds, or a smaller scale."
            )
        for index in self._bucket_indices():
            fraction = (time.monotonic() - self._started - warm_s) / left_s
            if fraction >= 1:
                break
            self._set_lr(self._peak_lr * _schedule(fraction))
            self._advance(self._buckets[index])
            if self.num_steps % 25 == 0:
                loss, now = self._loss.item(), time.monotonic()  # waits for the device
                if now - reported >= report_every_s:
                    reported = now
                    self._fabric.print(f"  {fraction:4.0%} step {self.num_steps} loss {loss:.5f}")
                if save is not None and now - saved >= save_every_s:
                    saved = now
                    self._with_averaged_weights(save)
        self._install_averaged_weights()

    def _bucket_indices(self) -> Iterator[int]:
        while True:
            yield from torch.multinomial(
                self._shares, 256, replacement=True, generator=self._order
            ).tolist()

    def _advance(self, bucket: Bucket) -> None:
        if bucket in self._graphs:
            self._graphs[bucket].replay()
        else:
            self._step(bucket)
        self.num_steps += 1

    def _step(self, bucket: Bucket) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._module(bucket)
        self._fabric.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        with torch.no_grad():
            self._update_average(self._averaged, self._weights, None)
            self._loss.lerp_(loss.detach().float(), 0.02)

    def _capture_all(self) -> None:
        pool = torch.cuda.graph_pool_handle()
        for bucket in self._buckets:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._step(bucket)
                self._step(bucket)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._step(bucket)
            self._graphs[bucket] = graph

    def _set_lr(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _with_averaged_weights(self, action: Callable[[], None]) -> None:
        trained = [weight.detach().clone() for weight in self._weights]
        self._install_averaged_weights()
        action()
        _copy_all(self._weights, trained)

    def _install_averaged_weights(self) -> None:
        _copy_all(self._weights, self._averaged)


def _schedule(fraction: float) -> float:
    warmup = min(1.0, fraction / 0.03)
    return warmup * (0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * fraction)))


@torch.no_grad()
def _copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
