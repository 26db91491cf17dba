"""Where the time of a video goes, seen by a callback: steps, hand-over, the wait for the VAE."""

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import PROMPT
from fastvideo_lightning import VideoGenerator, VideoModule


class MomentClock:
    """A Fabric callback that marks moments on the compute stream, without waiting for it."""

    def __init__(self) -> None:
        self._marks: dict[str, Any] = {}
        self._handle: Any = None

    def on_predict_batch_start(self, module: VideoModule) -> None:
        """Forget the last video, and watch for the first layer that the decode computes."""
        self._marks.clear()
        first_layer = module.vae.post_quant_conv

        def mark_decode(*_: object) -> None:
            if "decode" not in self._marks:
                self._marks["decode"] = _now()

        self._handle = first_layer.register_forward_pre_hook(mark_decode)

    def on_denoise_step_start(self, step: int) -> None:
        """The first step begins here; the others where the one before ends."""
        if step == 0:
            self._marks["start"] = _now()

    def on_denoise_step_end(self, step: int) -> None:
        """A step's last kernel was launched."""
        self._marks[f"end {step}"] = _now()

    def on_predict_batch_end(self) -> None:
        """Look no longer."""
        self._handle.remove()

    def step_ms(self) -> list[float]:
        """Milliseconds of each step."""
        names = ["start", *(name for name in self._marks if name.startswith("end"))]
        return [self._between(*pair) for pair in zip(names[:-1], names[1:], strict=True)]

    def decode_wait_ms(self) -> float:
        """Milliseconds from the end of the last step to the first layer of the decode."""
        last = [name for name in self._marks if name.startswith("end")][-1]
        return self._between(last, "decode")

    def _between(self, first: str, second: str) -> float:
        begin, end = self._marks[first], self._marks[second]
        if isinstance(begin, float):
            return (end - begin) * 1e3
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end))


def _now() -> Any:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def measure_moments(
    folder: Path, *, num_videos: int = 4, num_steps: int = 12, **sampling: Any
) -> dict[str, Any]:
    """Make videos with a two-expert checkpoint and read the clock; the first one does not count.

    Args:
        folder: the checkpoint.
        num_videos: how many.
        num_steps: denoising steps of each.
        **sampling: size and length.
    """
    clock, hand_overs, waits, steps = MomentClock(), [], [], []
    flags = {"text_encoder_layerwise_offload": True, "text_encoder_cpu_offload": False}
    with VideoGenerator.from_pretrained(folder, callbacks=[clock], **flags) as generator:
        for seed in range(num_videos):
            generator.generate_video(
                PROMPT,
                save_video=False,
                seed=seed,
                num_inference_steps=num_steps,
                guidance_scale=1.0,
                **sampling,
            )
            pipeline = generator.module.pipeline
            boundary = (
                pipeline.config.boundary_ratio * pipeline.scheduler.config.num_train_timesteps
            )
            second = int((pipeline.scheduler.timesteps >= boundary).sum())
            steps.append(clock.step_ms())
            hand_overs.append(steps[-1][second] - statistics.median(steps[-1]))
            waits.append(clock.decode_wait_ms())
    return {
        "sampling": sampling,
        "step_ms": steps,
        "first_step_of_second_expert": second,
        "hand_over_excess_ms": statistics.median(hand_overs[1:]),
        "hand_over_excess_max_ms": max(hand_overs[1:]),
        "decode_wait_ms": statistics.median(waits[1:]),
        "decode_wait_max_ms": max(waits[1:]),
    }
