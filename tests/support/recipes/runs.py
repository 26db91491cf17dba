"""A recipe run by diffusers alone, and through our module, to be compared bit for bit."""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from diffusers.utils import load_image
from torch import nn

from fastvideo_lightning import PromptDataset, VideoModule
from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload
from fastvideo_lightning.modules.results import read_output
from fastvideo_lightning.output.video import Audio, GeneratedVideo
from support.checkpoints import write_image
from support.recipes.recipe import PROMPT, Recipe

SEED = 7
Media = dict[str, Path]


@dataclass
class Run:
    """What came out: frames, sound, and the tensors that each call of a denoiser returned."""

    frames: np.ndarray
    audio: Audio | None
    steps: list[torch.Tensor]

    def equals(self, other: "Run") -> bool:
        """Whether all is the same, bit for bit."""
        return (
            len(self.steps) == len(other.steps)
            and all(map(torch.equal, self.steps, other.steps))
            and np.array_equal(self.frames, other.frames)
            and (self.audio is None) == (other.audio is None)
            and (self.audio is None or np.array_equal(self.audio.samples, other.audio.samples))
        )


def write_media(folder: Path) -> Media:
    """Write the pictures and the videos that recipes name."""
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    return {
        "image": write_image(folder / "image.png", size=(32, 32)),
        "last_image": write_image(folder / "last.png", size=(40, 40)),
        "video": GeneratedVideo(frames, "x", seed=0, fps=8).save(folder / "video.mp4"),
        "clip": GeneratedVideo(frames[:1], "x", seed=0, fps=8).save(folder / "clip.mp4"),
    }


def run_plain(pipeline: Any, recipe: Recipe, media: Media) -> Run:
    """Call a pipeline of diffusers with what the recipe says."""
    pipeline.set_progress_bar_config(disable=True)
    takes_prompt = "prompt" in inspect.signature(pipeline.__call__).parameters
    arguments = recipe.plain(media, _load)
    if hasattr(pipeline, "blocks"):  # a modular one
        takes_prompt = "prompt" in pipeline.blocks.input_names
        arguments["output"] = pipeline.blocks.output_names
    torch.manual_seed(SEED)  # a few pipelines draw some of their noise without the generator
    with recorded(pipeline) as steps, torch.no_grad():
        output = pipeline(
            **({"prompt": PROMPT} if takes_prompt else {}),
            generator=torch.Generator("cpu").manual_seed(SEED),
            output_type="np",
            **arguments,
        )
    result = read_output(output, pipeline)
    return Run(result.frames, result.audio, steps)


def run_ours(
    module: VideoModule,
    recipe: Recipe,
    media: Media,
    *,
    within: AbstractContextManager[Any] | None = None,
) -> Run:
    """Make the same video with a module, inside of a context."""
    batch = PromptDataset([PROMPT], seed=SEED, **recipe.ours(media))[0]
    torch.manual_seed(SEED)
    with recorded(module.pipeline) as steps, within or nullcontext():
        video = module.predict_step(batch)
    return Run(video.frames, video.audio, steps)


def place(module: VideoModule, **streaming: Any) -> list[Any]:
    """Stream the denoisers, bring the rest in for its calls, compute encoders on the CPU."""
    return [
        *(LayerwiseOffload(name, **streaming) for name in module.denoisers),
        *(CPUExecution(name) for name in module.text_encoders),
        *(ModelOffload(name) for name in (*module.image_encoders, *module.vaes)),
    ]


@contextmanager
def placed(module: VideoModule, callbacks: list[Any], device: Any = "cpu") -> Iterator[None]:
    """Have callbacks place the module's weights; models may be shared with other pipelines."""
    for callback in callbacks:
        callback.attach(module, device)
    try:
        yield
    finally:
        for callback in callbacks:
            callback.detach()


@contextmanager
def recorded(pipeline: Any) -> Iterator[list[torch.Tensor]]:
    """Keep the tensors that the models with a timestep return."""
    outputs: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        values = output if isinstance(output, tuple) else tuple(output.values())
        outputs.extend(value.clone() for value in values if isinstance(value, torch.Tensor))

    models = [c for c in pipeline.components.values() if isinstance(c, nn.Module)]
    denoisers = [m for m in models if "timestep" in inspect.signature(m.forward).parameters]
    handles = [denoiser.register_forward_hook(keep) for denoiser in denoisers]
    yield outputs
    for handle in handles:
        handle.remove()


def _load(path: Path) -> Any:
    if path.suffix == ".png":
        return load_image(str(path))
    with av.open(path) as container:
        return [frame.to_image() for frame in container.decode(video=0)]
