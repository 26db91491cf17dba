"""Whether latents and frames are numbers: a video of NaN is black, and says nothing of why."""

import numpy as np
import torch

_HINT = (
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
                f"{finite.index(False) + 1} of {num_steps} on, so there is no video. {_HINT}"
            )


def check_frames(frames: np.ndarray) -> None:
    """Raise RuntimeError if a frame of `[frames, height, width, 3]` floats is not finite."""
    for number, frame in enumerate(frames):
        if not np.isfinite(frame).all():
            raise RuntimeError(
                f"Frame {number + 1} of {len(frames)} is not a number (NaN or infinity) after the "
                f"decode stage, though the latents were. {_HINT}"
            )
