import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.checkpoints import PROMPT, SIZE
from support.references import load_plain
from torch.utils.data import DataLoader

from fastvideo_lightning import PromptDataset, VideoModule
from fastvideo_lightning.modules import FamilyModule, GenericModule, find_family
from fastvideo_lightning.modules.steps import Stage, StepWatch
from fastvideo_lightning.modules.weights_check import check_placement

FindCheckpoint = Callable[[str], Path]
BATCH = PromptDataset([PROMPT], seed=7, guidance_scale=3.0, **SIZE)[0]


def test_components_are_submodules_under_their_own_names(checkpoint: FindCheckpoint) -> None:
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    assert {name for name, _ in module.named_children()} == {"transformer", "text_encoder", "vae"}
    assert "transformer.blocks.1.attn1.to_q.weight" in module.state_dict()
    assert module.pipeline.transformer is module.get_submodule("transformer")


def test_the_pipeline_computes_on_the_execution_device(checkpoint: FindCheckpoint) -> None:
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    assert module.pipeline._execution_device == torch.device("cpu")
    module.execution_device = "meta"
    assert module.pipeline._execution_device == torch.device("meta")
    assert type(module.pipeline).__name__ == "WanPipeline"


def test_a_pipeline_that_exists_is_shared_and_left_alone(checkpoint: FindCheckpoint) -> None:
    plain = load_plain(checkpoint("t2v"), expects_image=False)
    kind, bar = type(plain), plain._progress_bar_config
    module = VideoModule.from_pipeline(plain)
    ours = module.predict_step(BATCH)
    assert type(plain) is kind
    assert plain._progress_bar_config is bar
    assert module.get_submodule("transformer") is plain.transformer
    assert not module.weight_sources
    loaded = VideoModule.from_pretrained(checkpoint("t2v")).predict_step(BATCH)
    assert (ours.frames == loaded.frames).all()


def test_a_collated_batch_of_one_is_taken_apart(checkpoint: FindCheckpoint) -> None:
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    (batch,) = DataLoader(PromptDataset([PROMPT], seed=7, guidance_scale=3.0, **SIZE))
    assert (module.predict_step(batch).frames == module.predict_step(BATCH).frames).all()
    with pytest.raises(ValueError, match="one prompt, got 2"):
        module.predict_step({**batch, "prompt": [PROMPT, PROMPT]})


def test_the_generic_module_makes_the_same_video(checkpoint: FindCheckpoint, image: Path) -> None:
    generic = GenericModule.from_pretrained(checkpoint("t2v"))
    assert generic.denoisers == ("transformer",)
    assert generic.sampling_defaults.num_frames == 81
    family = VideoModule.from_pretrained(checkpoint("t2v"))
    assert (generic.predict_step(BATCH).frames == family.predict_step(BATCH).frames).all()
    with pytest.raises(ValueError, match="no use for last_image_path"):
        generic.predict_step({**BATCH, "last_image_path": image})


def test_families_are_found_by_class_name() -> None:
    assert find_family("WanPipeline").__name__ == "WanModule"
    assert find_family("LTXPipeline") is FamilyModule
    assert find_family("StableVideoDiffusionPipeline") is GenericModule


def test_a_component_nothing_has_placed_is_named(checkpoint: FindCheckpoint) -> None:
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    module.execution_device = "meta"  # stands in for a GPU: not where real weights are
    vae = module.get_submodule("vae")
    with pytest.raises(RuntimeError, match=r'vae\.\S+ has not been read.*ModelOffload\("vae"\)'):
        check_placement("vae", vae, torch.device("cuda"))
    plain = load_plain(checkpoint("t2v"), expects_image=False)
    with pytest.raises(RuntimeError, match="is on cpu, and nothing brings it to cuda"):
        check_placement("vae", plain.vae, torch.device("cuda"))
    plain.vae.decoder.register_forward_pre_hook(lambda *_: None)
    check_placement("vae", plain.vae, torch.device("cuda"))


class Scheduler:
    def step(self, model_output: int, timestep: int, generator: object = None) -> tuple[int]:
        return (model_output + timestep,)


class Pipeline:
    def __init__(self, denoiser: torch.nn.Module) -> None:
        self.scheduler = Scheduler()
        self.denoiser = denoiser

    def __call__(self) -> None:
        for timestep in (7, 5):
            self.denoiser(torch.ones(1))
            self.denoiser(torch.ones(1))
            assert self.scheduler.step(1, timestep=timestep) == (timestep + 1,)


def test_steps_are_announced_by_the_scheduler_where_a_pipeline_has_no_callback() -> None:
    denoiser = torch.nn.Identity()
    heard, made = [], []

    def announce(*moment: object, **tensors: object) -> None:
        heard.append(moment)
        made.append(tensors)

    watch = StepWatch(announce, num_steps=2)
    pipeline = Pipeline(denoiser)
    with watch.watch(pipeline, [denoiser]) as arguments:
        assert "generator" in inspect.signature(pipeline.scheduler.step).parameters
        pipeline(**arguments)
        assert watch.stage is Stage.DECODE
    start, end = "on_denoise_step_start", "on_denoise_step_end"
    assert heard == [(start, 0, 2), (end, 0, 2), (start, 1, 2), (end, 1, 2)]
    assert made[1::2] == [
        {"latents": 8, "timestep": 7, "model_output": 1},
        {"latents": 6, "timestep": 5, "model_output": 1},
    ]
    assert type(pipeline.scheduler) is Scheduler
    assert not denoiser._forward_pre_hooks


def test_frames_are_rounded_as_diffusers_rounds_images(checkpoint: FindCheckpoint) -> None:
    import numpy as np
    from diffusers.utils import numpy_to_pil

    from fastvideo_lightning.modules.results import as_uint8

    frames = np.random.default_rng(0).random((2, 4, 4, 3), dtype=np.float32)
    expected = np.stack([np.asarray(picture) for picture in numpy_to_pil(frames)])
    assert (as_uint8(frames) == expected).all()
