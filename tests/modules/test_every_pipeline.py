"""Every diffusers pipeline that returns frames makes the same video streamed and plain.

In the dtypes that a GPU run has by default, where a pipeline that mixes them up would fail.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from checkpoints import write_image
from diffusers.utils import load_image
from recipes import PICTURES, PROMPT, RECIPES, Recipe, as_on_gpu
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastvideo_lightning import PromptDataset, VideoModule
from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload
from fastvideo_lightning.modules.catalog import UNUSABLE, find_video_pipelines
from fastvideo_lightning.modules.results import read_output
from fastvideo_lightning.output import GeneratedVideo

SEED = 7
_COPIES = {torch.ops.aten.copy_.default, torch.ops.aten.detach.default}
Media = dict[str, Path]

# Its kernels for bf16 are for GPUs alone.
_FP32 = {"SanaWMPipeline"}
_UNWATCHED = {
    # Flex attention cannot be traced while kernels are watched.
    "AnyFlowFARPipeline",
    "Kandinsky6SRPipeline",
    "LTX2VideoDiffusionDecodePipeline",
    # They cast their VAE, which reads it where it waits: on the host.
    "AnimateDiffVideoToVideoPipeline",
    "AnimateDiffVideoToVideoControlNetPipeline",
}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    """The pictures and the video that recipes name."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    return {
        "image": write_image(folder / "image.png", size=(32, 32)),
        "last_image": write_image(folder / "last.png", size=(40, 40)),
        "video": GeneratedVideo(frames, "x", seed=0, fps=8).save(folder / "video.mp4"),
        "clip": GeneratedVideo(frames[:1], "x", seed=0, fps=8).save(folder / "clip.mp4"),
    }


def test_every_video_pipeline_of_diffusers_has_a_recipe() -> None:
    assert set(RECIPES) == set(find_video_pipelines())


@pytest.mark.parametrize("name", UNUSABLE)
def test_the_reason_for_which_a_pipeline_is_left_out_is_real(name: str, media: Media) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'text_encoder_index'"):
        run_plain(RECIPES[name], media)


@pytest.mark.parametrize("name", sorted((RECIPES | PICTURES).keys() - UNUSABLE.keys()))
def test_streamed_equals_plain(name: str, media: Media) -> None:
    recipe = (RECIPES | PICTURES)[name]
    if name not in _FP32:
        recipe = replace(recipe, build=lambda build=recipe.build: as_on_gpu(build()))
    plain_frames, plain_audio, plain_steps = run_plain(recipe, media)
    module = VideoModule.from_pipeline(recipe.build())
    placements = place(module)
    for callback in placements:
        callback.attach(module, "cpu")
    batch = PromptDataset([PROMPT], seed=SEED, **recipe.ours(media))[0]
    torch.manual_seed(SEED)  # a few pipelines draw some of their noise without the generator
    try:
        watch = nullcontext() if name in _UNWATCHED else HostReads(placements)
        with recorded(module.pipeline) as steps, watch:
            video = module.predict_step(batch)
    finally:  # encoders are shared with the other pipelines
        for callback in placements:
            callback.detach()

    assert len(steps) == len(plain_steps)
    assert all(map(torch.equal, steps, plain_steps))
    assert np.array_equal(video.frames, plain_frames)
    assert len(np.unique(video.frames)) > 2, "a picture of nothing proves nothing"
    if plain_audio is not None:
        assert video.audio is not None
        assert np.array_equal(video.audio.samples, plain_audio)


class HostReads(TorchDispatchMode):
    """Fails where a kernel reads an offloaded weight on the host, which a GPU could not.

    It happens where a pipeline uses a model's weight without calling the module that has it.
    Buffers may be read: pipelines bring the statistics of latents over by themselves.
    """

    def __init__(self, placements: list[Any]) -> None:
        super().__init__()
        attachments = [a for callback in placements for a in callback.attachments]
        engines = {id(a.engine): a.engine for a in attachments if a.engine is not None}
        self._masters = {
            tensor.untyped_storage().data_ptr(): fqn
            for engine in engines.values()
            for unit in engine.units
            for fqn, tensor in unit.host_tensors().items()
            if isinstance(tensor, nn.Parameter)
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _COPIES:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                    fqn = self._masters.get(leaf.untyped_storage().data_ptr())
                    assert fqn is None, f"{func} reads {fqn} on the host"
        return func(*args, **(kwargs or {}))


def place(module: VideoModule) -> list[Any]:
    """Stream the denoisers, bring the rest in for its calls, compute encoders on the CPU."""
    return [
        *(LayerwiseOffload(name) for name in module.denoisers),
        *(CPUExecution(name) for name in module.text_encoders),
        *(ModelOffload(name) for name in (*module.image_encoders, *module.vaes)),
    ]


def run_plain(recipe: Recipe, media: Media) -> tuple[np.ndarray, np.ndarray | None, list[Any]]:
    """Call diffusers alone; returns the frames, the sound and what each denoiser call gave."""
    pipeline = recipe.build()
    pipeline.set_progress_bar_config(disable=True)
    takes_prompt = "prompt" in inspect.signature(pipeline.__call__).parameters
    arguments = recipe.plain(media, load)
    torch.manual_seed(SEED)
    with recorded(pipeline) as steps, torch.no_grad():
        output = pipeline(
            **({"prompt": PROMPT} if takes_prompt else {}),
            generator=torch.Generator("cpu").manual_seed(SEED),
            output_type="np",
            **arguments,
        )
    assert np.isfinite(np.asarray(next(iter(output.values())))).all()
    result = read_output(output, pipeline)
    return result.frames, None if result.audio is None else result.audio.samples, steps


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


def load(path: Path) -> Any:
    if path.suffix == ".png":
        return load_image(str(path))
    with av.open(path) as container:
        return [frame.to_image() for frame in container.decode(video=0)]
