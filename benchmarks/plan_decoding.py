"""Decoding, whole and in tiles, beside what the plan predicts for it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from torch import nn

from benchmarks.harness import Deadline, empty_caches, read_peak, reset_peak, time_steps
from benchmarks.plan_steps import begin_stage
from fastvideo_lightning import OffloadConfig, VideoModule
from fastvideo_lightning.plan.cost import Request
from fastvideo_lightning.plan.machine import Machine
from fastvideo_lightning.plan.predict import predict
from fastvideo_lightning.plan.sizes import measure_components
from fastvideo_lightning.plan.vae_cost import Autoencoder
from fastvideo_lightning.plan.workload import Subject


@dataclass(frozen=True)
class Decoding:
    """One way to decode."""

    frames: int
    tiled: bool
    dtype: torch.dtype


DECODINGS = (
    Decoding(81, False, torch.float32),
    Decoding(17, True, torch.float32),
    Decoding(17, False, torch.float32),
    Decoding(81, True, torch.float32),
    Decoding(81, False, torch.bfloat16),
    Decoding(1, False, torch.float32),
)


def measure_decoding(
    size: tuple[int, int],
    machine: Machine,
    table: Machine | None,
    device: torch.device,
    deadline: Deadline,
) -> Iterator[dict[str, object]]:
    """A row for each kind, as long as there is time.

    Args:
        size: height and width.
        machine: what predictions are made for.
        table: the same from the table of cards; None for a card that is not in it.
        device: where it computes.
        deadline: when to stop.
    """
    vae = AutoencoderKLWan().eval().requires_grad_(False)
    for kind in DECODINGS:
        nn.Module.to(vae, device, kind.dtype)  # diffusers' own warns of every cast
        config = OffloadConfig(vae_tiling=kind.tiled, vae_cpu_offload=False)
        subject = make_vae_subject(vae, kind.frames, size)
        stage = predict(subject, config, machine).stages[2]
        assert stage.time_s is not None
        if not deadline.allows(3 * stage.time_s):
            continue
        switch = vae.enable_tiling if kind.tiled else vae.disable_tiling
        switch()
        expected = predict(subject, config, table).stages[2].time_s if table else None
        yield {
            "model": f"VAE in {str(kind.dtype).removeprefix('torch.')}",
            "frames": kind.frames,
            "budgets_gib": [],
            "where": "in tiles" if kind.tiled else "whole",
            "predicted_bytes": stage.reserved_bytes,
            "predicted_s": stage.time_s,
            "bound": stage.bound,
            "predicted_from_table_s": expected,
            **_measure(vae, kind, size, device),
        }
    del vae
    empty_caches(device)


def _measure(
    vae: AutoencoderKLWan, kind: Decoding, size: tuple[int, int], device: torch.device
) -> dict[str, float]:
    """Reserved memory and time of decoding once, behind once that is not timed."""
    shape = (1, 16, (kind.frames - 1) // 4 + 1, size[0] // 8, size[1] // 8)
    latents = torch.randn(shape, device=device, dtype=kind.dtype)
    before = begin_stage(device)
    reset_peak(device)

    def decode() -> None:
        with torch.no_grad():
            vae.decode(latents, return_dict=False)

    taken_s = time_steps(decode, device, 1)
    peak = read_peak(device)
    return {
        "measured_bytes": peak.reserved,
        "allocated_bytes": peak.allocated,
        "before_bytes": before.reserved,
        "measured_s": taken_s,
    }


def make_vae_subject(vae: AutoencoderKLWan, frames: int, size: tuple[int, int]) -> Subject:
    """A decode stage and nothing else."""
    pipeline = WanPipeline(None, None, vae, UniPCMultistepScheduler(), None)
    module = VideoModule.from_pipeline(pipeline)
    (component,) = measure_components(module)
    request = Request(*size, frames, 1, 1, 1, False)
    work = Autoencoder.of(module, component)
    whole, tiled = ({component.fqn: work.decode(request, tiled=tiled)} for tiled in (False, True))
    return Subject((component,), request, whole, tiled, encoding={})
