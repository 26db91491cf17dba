"""Step-skipping caches and attention backends on a streamed denoiser, beside plain diffusers.

    python -m benchmarks.caches --model wan-1.3b --frames 1,17

A denoiser with random weights takes the steps of a video under each cache and each backend of
diffusers': resident, as diffusers loads it; streamed; and streamed so that blocks which the cache
skips are not copied. Each run's result is compared with the resident one.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import (
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    WanTransformer3DModel,
)
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from benchmarks import harness
from benchmarks.checkpoints import write_transformer
from benchmarks.harness import (
    Deadline,
    Names,
    describe_machine,
    find_device,
    measure_link_rate,
    synchronize,
)
from benchmarks.models import make_inputs, make_transformer
from benchmarks.report import Row, RowTable
from fastvideo_lightning.callbacks import LayerwiseOffload

PLACEMENTS = ("plain", "streamed", "skippable")
CACHES = ("none", "first_block", "taylorseer", "pyramid")
BACKENDS = ("native", "_native_flash", "_native_efficient", "_native_cudnn")
THRESHOLDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


class Denoising:
    """A denoiser that takes the steps of one video, from noise to less of it.

    Args:
        model: the denoiser, wherever its weights are.
        engine: streams its blocks; None where they are resident.
        num_steps: of the video.
        device: where it computes.
    """

    def __init__(self, model: Any, engine: Any, num_steps: int, device: torch.device) -> None:
        self.model = model
        self.engine = engine
        self.num_steps = num_steps
        self.device = device
        self.timestep = 1000
        self.full_passes = 0
        last = model.blocks[-1].ffn
        last.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.full_passes += 1

    @torch.no_grad()
    def run(self, frames: int, size: tuple[int, int]) -> torch.Tensor:
        """Take all steps; returns what is left of the noise, on the CPU."""
        inputs = make_inputs(self.model, frames, size, device=self.device)
        x = inputs.pop("hidden_states").float()
        if self.engine is not None:
            self.engine.begin_run()
        for step in range(self.num_steps):
            self.timestep = 1000 - 1000 * step // self.num_steps
            inputs["timestep"].fill_(self.timestep)
            with self.model.cache_context("cond"):
                (velocity,) = self.model(x.bfloat16(), **inputs, return_dict=False)
            x = x - velocity.float() / self.num_steps
        if self.engine is not None:
            self.engine.end_run()
        self.model._reset_stateful_cache()
        return x.cpu()

    def measure(self, frames: int, size: tuple[int, int]) -> tuple[Row, torch.Tensor]:
        """Run twice, and time the second run."""
        self.run(frames, size)
        synchronize(self.device)
        copied = self._copied()
        self.full_passes = 0
        started = time.perf_counter()
        result = self.run(frames, size)
        seconds = (time.perf_counter() - started) / self.num_steps
        row = {
            "frames": frames,
            "step_ms": seconds * 1e3,
            "copied_gb_per_step": (self._copied() - copied) / self.num_steps / 1e9,
            "computed_share": self.full_passes / self.num_steps,
        }
        return row, result

    def _copied(self) -> int:
        return 0 if self.engine is None else int(self.engine.stats.bytes_copied)


def make_denoisings(
    name: str, weights: Path, num_steps: int, device: torch.device
) -> dict[str, Denoising]:
    """The same denoiser in each placement."""
    folder = weights / f"{name}-transformer"
    write_transformer(name, weights, folder)
    plain = WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    plain.to(device)  # type: ignore[arg-type]
    made = {"plain": Denoising(plain, None, num_steps, device)}
    for placement in PLACEMENTS[1:]:
        model = make_transformer(name, weights)
        streaming = LayerwiseOffload("", skippable=placement == "skippable")
        engine = streaming.attach(model, device).engine
        made[placement] = Denoising(model, engine, num_steps, device)
    return made


@contextmanager
def cached(denoising: Denoising, cache: str, threshold: float) -> Iterator[None]:
    """Turn a cache of diffusers' on for the time of the context."""
    configs: dict[str, Callable[[], Any]] = {
        "first_block": lambda: FirstBlockCacheConfig(threshold=threshold),
        "taylorseer": lambda: TaylorSeerCacheConfig(use_lite_mode=True),
        "pyramid": lambda: PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            current_timestep_callback=lambda: denoising.timestep,
        ),
    }
    if cache == "none":
        yield
        return
    denoising.model.enable_cache(configs[cache]())
    try:
        yield
    finally:
        denoising.model.disable_cache()


@contextmanager
def attending(denoising: Denoising, backend: str) -> Iterator[None]:
    """Let a model use one of diffusers' attention backends for the time of the context."""
    before, _ = _AttentionBackendRegistry.get_active_backend()
    denoising.model.set_attention_backend(backend)
    try:
        yield
    finally:
        denoising.model.reset_attention_backend()
        _AttentionBackendRegistry.set_active_backend(before)


def find_threshold(denoising: Denoising, frames: int, size: tuple[int, int]) -> float:
    """The first threshold at which the first block skips a third of the passes, or the last."""
    for threshold in THRESHOLDS:
        denoising.full_passes = 0
        with cached(denoising, "first_block", threshold):
            denoising.run(frames, size)
        if denoising.full_passes <= 2 * denoising.num_steps / 3:
            break
    return threshold


def measure_all(
    denoisings: dict[str, Denoising],
    settings: tuple[str, ...],
    frames: int,
    size: tuple[int, int],
    deadline: Deadline,
) -> Iterator[tuple[str, Row]]:
    """Rows of every cache and backend in every placement, as long as there is time."""
    threshold = 0.0
    if "first_block" in settings:
        threshold = find_threshold(denoisings["plain"], frames, size)
    for name in settings:
        kind = "cache" if name in CACHES else "attention_backend"
        placements = PLACEMENTS if name in CACHES else PLACEMENTS[:2]
        expected = None
        for placement in placements:
            if not deadline.allows(0):
                return
            denoising = denoisings[placement]
            surround = (
                cached(denoising, name, threshold)
                if kind == "cache"
                else attending(denoising, name)
            )
            try:
                with surround:
                    row, result = denoising.measure(frames, size)
            except RuntimeError as error:  # a backend that this device has not got
                click.echo(f"{name}: {str(error).splitlines()[0]}", err=True)
                break
            expected = result if expected is None else expected
            equal = torch.equal(expected, result)
            yield kind, {kind: name, "placement": placement, **row, "equal": equal}


@click.command()
@harness.model()
@harness.frames("1,17")
@harness.size()
@harness.limit(75.0)
@harness.folder
@harness.output
@harness.name()
@click.option("--steps", default=10, help="Of one video.")
@click.option(
    "--settings",
    type=Names((*CACHES, *BACKENDS)),
    default=",".join((*CACHES, *BACKENDS)),
    help="Caches and attention backends.",
)
def main(
    model: str,
    frames: tuple[int, ...],
    size: tuple[int, int],
    limit_s: float,
    folder: Path,
    output: Path,
    name: str | None,
    steps: int,
    settings: tuple[str, ...],
) -> None:
    """Measure setting after setting and write JSON and a Markdown page after each row."""
    harness.check_models(model)
    deadline, device = Deadline(limit_s), find_device()
    denoisings = make_denoisings(model, folder, steps, device)
    facts = {
        **{"model": model, "size": "x".join(map(str, size)), "steps": steps},
        **describe_machine(device),
        "link_gb_per_s": measure_link_rate(device) / 1e9,
    }
    path = output / f"{name or f'caches-{model}'}.json"
    table = RowTable(path, f"Caches and attention backends, {model}", facts)
    for count in frames:
        for kind, row in measure_all(denoisings, settings, count, size, deadline):
            table.add(kind, row)


if __name__ == "__main__":
    main()
