"""The rough view of a video that denoises."""

import base64
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from fastvideo_lightning import VideoGenerator
from fastvideo_lightning.serve.preview import TINY_SHAPES, Preview, latents_to_rgb


def test_each_step_is_shown_as_one_frame_for_each_of_its_latents() -> None:
    preview, latents = Preview("tiny-shapes"), torch.randn(1, 16, 5, 8, 6)
    assert preview.address() == ""
    before = latents.clone()
    preview.on_denoise_step_end(latents)
    assert torch.equal(latents, before)
    first = preview.address()
    head, content = first.split(",")
    assert head == "data:image/webp;base64"
    with Image.open(BytesIO(base64.b64decode(content))) as image:
        assert (image.size, image.n_frames) == ((6, 8), 5)
    preview.on_denoise_step_end(latents * 0.5)
    assert preview.address() != first
    preview.on_predict_batch_start()
    assert preview.address() == "", "that of the video before"


@pytest.mark.parametrize(
    ("model", "latents"),
    [
        ("another", torch.zeros(1, 16, 5, 8, 8)),
        ("tiny-shapes", torch.zeros(1, 4, 5, 8, 8)),
        ("tiny-shapes", torch.zeros(1, 16, 8, 8)),
        ("tiny-shapes", None),
    ],
)
def test_where_no_map_is_known_there_is_no_preview(model, latents) -> None:
    preview = Preview(model)
    preview.on_denoise_step_end(latents)
    assert preview.address() == ""


class Keep:
    """Keeps the last latents."""

    def on_denoise_step_end(self, latents: torch.Tensor) -> None:
        self.latents = latents.clone()


def make_rows(generator, keep, captions) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents `[pixels, 16]` and the mean colour that each covers `[pixels, 3]`, 0 to 1."""
    rows, colours = [], []
    for caption in captions:
        video = generator.generate_video(caption, save_video=False)
        frames = torch.from_numpy(np.asarray(video.frames)).float() / 255
        channels, count, height, width = keep.latents.shape[1:]
        frames = frames.reshape(len(frames), height, 8, width, 8, 3).mean((2, 4))
        later = frames[1:].reshape(count - 1, 4, height, width, 3).mean(1)
        rows.append(keep.latents[0].permute(1, 2, 3, 0).reshape(-1, channels))
        colours.append(torch.cat([frames[:1], later]).reshape(-1, 3))
    return torch.cat(rows), torch.cat(colours)


def captions() -> list[str]:
    colours = ["red", "green", "blue", "yellow", "purple", "orange"]
    shapes, directions = ["circle", "square", "triangle"], ["left", "right", "up", "down"]
    return [
        f"a {colour} {shape} moves {direction} on a {ground} background"
        for i, colour in enumerate(colours)
        for j, shape in enumerate(shapes)
        for k, direction in enumerate(directions)
        for m, ground in enumerate(["black", "white", "gray"])
        if (i + 2 * j + 3 * k + m) % 9 == 0
    ]


def test_the_preview_of_the_last_step_has_the_colours_of_the_video() -> None:
    keep = Keep()
    generator = VideoGenerator.from_pretrained(accelerator="cpu", callbacks=[keep])
    try:
        _, colours = make_rows(generator, keep, ["a blue square moves up on a white background"])
    finally:
        generator.close()
    shown = latents_to_rgb(keep.latents[0], TINY_SHAPES).reshape(-1, 3).float() / 255
    assert (shown - colours).square().mean() < 0.15 * (0.5 - colours).square().mean()


@pytest.mark.exhaustive
def test_the_map_is_the_least_squares_fit_of_latents_to_colours() -> None:
    keep = Keep()
    generator = VideoGenerator.from_pretrained(accelerator="cpu", callbacks=[keep])
    try:
        rows, colours = make_rows(generator, keep, captions())
    finally:
        generator.close()
    with_one = torch.cat([rows, torch.ones(len(rows), 1)], 1).double()
    fitted = torch.linalg.lstsq(with_one, colours.double()).solution
    assert torch.allclose(fitted, torch.tensor(TINY_SHAPES).double(), atol=0.01)
