"""A rough view of a video while it denoises: its latents, by a linear map, as small frames."""

import threading
from base64 import b64encode
from io import BytesIO

import torch
from PIL import Image

# What a row of 16 latent channels and 1 adds up to in red, green and blue, 0 to 1. By least squares
# between the last latents of tiny-shapes and its own frames, averaged over what a latent pixel
# covers, for 23 of its captions: 92 % of the variance. `tests/serve/test_preview.py` fits it anew.
TINY_SHAPES = (
    (-0.2087, -0.1653, -0.0565),
    (-0.5542, -0.1968, -0.2885),
    (-0.0152, -0.0592, -0.1166),
    (0.1117, 0.0971, 0.1595),
    (-0.0942, -0.0543, -0.1443),
    (0.2825, 0.0779, 0.1846),
    (0.0709, 0.0577, 0.1014),
    (-0.1205, -0.0257, -0.0971),
    (0.0724, 0.0474, 0.0255),
    (-0.1220, -0.0733, -0.1966),
    (-0.1603, -0.0714, -0.2043),
    (-0.0568, -0.4320, -0.3188),
    (0.0794, -0.0610, 0.0638),
    (0.0494, 0.0741, 0.0510),
    (0.3051, 0.2103, 0.2284),
    (-0.0648, -0.1104, -0.0906),
    (0.5387, 0.5191, 0.5088),
)
_MAPS = {"tiny-shapes": TINY_SHAPES}
_FRAME_MS = 500  # four frames of the bundled model


class Preview:
    """Hears the steps of the video that is being made and keeps what the last one looks like.

    It reads latents and changes none. On a GPU the frames come over by a copy that nothing waits
    for.

    Args:
        model: The model's name; of one without a known map nothing is kept.
    """

    def __init__(self, model: str) -> None:
        self._map = _MAPS.get(model)
        self._lock = threading.Lock()
        self._latest: tuple[torch.Tensor, torch.cuda.Event | None] | None = None
        self._shown: tuple[torch.Tensor, str] | None = None

    def on_predict_batch_start(self) -> None:
        """Forget the video before."""
        with self._lock:
            self._latest = self._shown = None

    def on_denoise_step_end(self, latents: object) -> None:
        """Keep what the latents look like, `[1, channels, frames, height, width]`."""
        if self._map is None or not isinstance(latents, torch.Tensor):
            return
        if latents.ndim != 5 or latents.shape[1] + 1 != len(self._map):
            return
        frames = latents_to_rgb(latents.detach()[0], self._map)
        event = None
        if frames.is_cuda:
            on_host = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=True)
            on_host.copy_(frames, non_blocking=True)
            frames, event = on_host, torch.cuda.Event()
            event.record()
        with self._lock:
            self._latest = frames, event

    def address(self) -> str:
        """Return the newest frames as the address of an image; empty where there are none yet."""
        with self._lock:
            latest, shown = self._latest, self._shown
        if latest is not None and (latest[1] is None or latest[1].query()):
            if shown is None or shown[0] is not latest[0]:
                shown = latest[0], _encode(latest[0])
            with self._lock:
                if self._latest is not None:
                    self._shown = shown
        return "" if shown is None else shown[1]


def latents_to_rgb(latents: torch.Tensor, rows: tuple[tuple[float, ...], ...]) -> torch.Tensor:
    """Return `[frames, height, width, 3] uint8` of latents `[channels, frames, height, width]`.

    Args:
        latents: As a denoiser gives them.
        rows: What each channel adds to red, green and blue, and last what is there without any.
    """
    weights = torch.tensor(rows, device=latents.device)
    rgb = latents.float().permute(1, 2, 3, 0) @ weights[:-1] + weights[-1]
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8)


def _encode(frames: torch.Tensor) -> str:
    content = BytesIO()
    first, *others = [Image.fromarray(frame) for frame in frames.numpy()]
    first.save(content, "WEBP", save_all=True, append_images=others, duration=_FRAME_MS, loop=0)
    return f"data:image/webp;base64,{b64encode(content.getvalue()).decode()}"
