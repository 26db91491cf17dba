"""Whole videos: under a cap of device memory, and many in a row."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.checkpoints import PROMPT
from benchmarks.harness import GIB, empty_caches, find_device, host_rss_bytes
from fastvideo_lightning import GeneratedVideo, VideoGenerator

FLAGS = {"text_encoder_layerwise_offload": True, "text_encoder_cpu_offload": False}


@contextmanager
def capped(cap_gib: float | None) -> Iterator[None]:
    """Let this process have so much device memory in all; without effect on a CPU."""
    device = find_device()
    if cap_gib is None or device.type != "cuda":
        yield
        return
    empty_caches(device)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(cap_gib * GIB / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def measure_caps(
    folder: Path, caps_gib: dict[int, float], *, num_steps: int = 2, **sampling: Any
) -> Iterator[dict[str, Any]]:
    """Make a video under each cap and again without one; the frames must be equal.

    Args:
        folder: the checkpoint.
        caps_gib: cap by number of frames.
        num_steps: denoising steps.
        **sampling: the size.

    Yields:
        A row for each cap, as soon as it is measured.
    """
    started = time.perf_counter()
    with capped(min(caps_gib.values())):
        generator = VideoGenerator.from_pretrained(folder, vae_tiling=True, **FLAGS)
    setup_s = time.perf_counter() - started
    with generator:

        def make(num_frames: int, cap_gib: float | None) -> tuple[GeneratedVideo, float]:
            with capped(cap_gib):
                video = generator.generate_video(
                    PROMPT,
                    save_video=False,
                    num_frames=num_frames,
                    num_inference_steps=num_steps,
                    guidance_scale=3.0,
                    **sampling,
                )
            return video, video.peak_gpu_memory_gib or 0.0

        for num_frames, cap_gib in caps_gib.items():
            row: dict[str, Any] = {"frames": num_frames, "cap_gib": cap_gib, "setup_s": setup_s}
            try:
                video, row["reserved_gib"] = make(num_frames, cap_gib)
            except RuntimeError as error:
                yield row | {"completes": False, "error": str(error)[:300]}
                continue
            row |= {"completes": True, "seconds": video.generation_time_s}
            row["frames_std"] = float(video.frames.std())
            free, row["uncapped_reserved_gib"] = make(num_frames, None)
            row["equal"] = bool(np.array_equal(video.frames, free.frames))
            yield row


def measure_flatness(folder: Path, *, num_videos: int = 50, **sampling: Any) -> dict[str, Any]:
    """Make and write many videos with one generator; note what the process holds after each.

    Args:
        folder: the checkpoint.
        num_videos: how many.
        **sampling: size, length and steps.
    """
    reserved, resident = [], []
    with (
        tempfile.TemporaryDirectory() as output,
        VideoGenerator.from_pretrained(folder, vae_tiling=True, **FLAGS) as generator,
    ):
        for seed in range(num_videos):
            generator.generate_video(
                PROMPT, output_path=output, seed=seed, guidance_scale=1.0, **sampling
            )
            on_gpu = torch.cuda.is_available()
            reserved.append(torch.cuda.memory_reserved() if on_gpu else 0)
            resident.append(host_rss_bytes())
    return {
        "videos": num_videos,
        "sampling": sampling,
        "reserved_bytes": reserved,
        "host_rss_bytes": resident,
        "reserved_growth": _growth(reserved),
        "host_rss_growth": _growth(resident),
    }


def _growth(sizes: list[int]) -> float:
    """By what share the last is larger than the third."""
    return sizes[-1] / sizes[2] - 1 if sizes[2] else 0.0
