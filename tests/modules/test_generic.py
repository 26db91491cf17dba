"""What the generic module passes on, and what it refuses before any work is done."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.utils import BaseOutput
from support.recipes import RECIPES

from fastvideo_lightning import SamplingParams, VideoModule
from fastvideo_lightning.modules.catalog import (
    check_makes_frames,
    find_image_pipelines,
    find_video_pipelines,
)
from fastvideo_lightning.modules.signature import _NEEDED, CallSignature
from fastvideo_lightning.output.video import GeneratedVideo


def module_of(name: str) -> VideoModule:
    return VideoModule.from_pipeline(RECIPES[name].build())


@pytest.fixture(scope="module")
def text_to_video() -> VideoModule:
    return module_of("LTXPipeline")


@pytest.fixture(scope="module")
def video_to_video() -> VideoModule:
    return module_of("CogVideoXVideoToVideoPipeline")


@pytest.fixture(scope="module")
def upsampler() -> VideoModule:
    return module_of("LTXLatentUpsamplePipeline")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = np.zeros((9, 32, 32, 3), np.uint8)
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    return GeneratedVideo(frames, "x", seed=0, fps=8).save(path)


def resolve(module: VideoModule, **sampling: Any) -> SamplingParams:
    return module.resolve_sampling(SamplingParams(**sampling))


def test_a_setting_that_the_pipeline_does_not_take_is_refused(text_to_video, video):
    with pytest.raises(ValueError, match="LTXPipeline has no use for video_path"):
        resolve(text_to_video, video_path=video)


def test_further_arguments_go_to_the_call_with_files_loaded(text_to_video, video_to_video, video):
    params = resolve(text_to_video, pipeline_arguments={"guidance_rescale": 0.5})
    assert text_to_video.call_arguments(params)["guidance_rescale"] == 0.5
    params = resolve(video_to_video, video_path=video, pipeline_arguments={"strength": 0.5})
    arguments = video_to_video.call_arguments(params)
    assert arguments["strength"] == 0.5
    assert len(arguments["video"]) == 9
    assert arguments["video"][0].size == (32, 32)


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"strenght": 0.5}, r"takes no strenght\. Did you mean strength\?"),
        ({"output_type": "pil"}, r"output_type cannot be .*on_denoise_step_end\("),
        ({"callback_on_step_end": print}, r"callback_on_step_end cannot .*on_denoise_step_end\("),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, r"cannot .*on_denoise_step_end\("),
        ({"callback": print}, r"callback cannot .*on_denoise_step_end\("),
        ({"generator": None}, r"generator cannot .*seed=7"),
        ({"height": 8}, r"height cannot be .*Pass height=\.\.\."),
    ],
)
def test_a_wrong_further_argument_is_refused_with_what_to_type(video_to_video, further, message):
    with pytest.raises(ValueError, match=message):
        resolve(video_to_video, pipeline_arguments=further)


def test_pictures_and_videos_may_come_as_tensors_but_not_twice(video_to_video, video):
    frames = np.zeros((9, 32, 32, 3))
    params = resolve(video_to_video, pipeline_arguments={"video": frames})
    assert video_to_video.call_arguments(params)["video"] is frames
    with pytest.raises(ValueError, match=r"video cannot be .*Pass video_path='video\.mp4'"):
        resolve(video_to_video, video_path=video, pipeline_arguments={"video": frames})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CogVideoXImageToVideoPipeline", r"needs image\. Pass image_path='image\.png'"),
        # Their signatures call these optional.
        ("WanVideoToVideoPipeline", r"needs video or latents\. Pass video_path='video\.mp4'"),
        ("LTXImageToVideoPipeline", r"needs image or latents\. Pass image_path='image\.png'"),
        ("CogVideoXFunControlPipeline", r"Pass pipeline_arguments=\{'control_video': \.\.\.\}"),
    ],
)
def test_a_missing_input_is_named_with_what_to_type(name, message):
    with pytest.raises(ValueError, match=message):
        resolve(module_of(name))


def test_needed_inputs_are_arguments_of_pipelines_that_there_are():
    for name, groups in _NEEDED.items():
        signature = CallSignature(find_video_pipelines()[name])
        assert all(signature.takes(argument) for group in groups for argument in group), name


def test_a_file_that_is_not_there_or_no_video_is_refused_before_any_work(video_to_video, tmp_path):
    with pytest.raises(FileNotFoundError, match="video_path: there is no file"):
        resolve(video_to_video, video_path=tmp_path / "no.mp4")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    with pytest.raises(ValueError, match="is no video that can be read"):
        resolve(video_to_video, video_path=broken)
    control = module_of("CogVideoXFunControlPipeline")
    with pytest.raises(FileNotFoundError, match="control_video: there is no file"):
        resolve(control, pipeline_arguments={"control_video": str(tmp_path / "no.mp4")})


def test_a_pipeline_without_a_prompt_says_that_it_reads_none(upsampler, caplog):
    caplog.set_level("INFO", logger="fastvideo_lightning")
    assert upsampler.prompt_arguments("a red circle") == {}
    assert "LTXLatentUpsamplePipeline reads no prompt" in caplog.text


def test_the_strength_of_a_guider_is_set_for_the_call_alone():
    module = module_of("HunyuanVideo15Pipeline")
    from fastvideo_lightning.modules.pipelines import guided

    before = module.pipeline.guider
    with guided(module.pipeline, SamplingParams(guidance_scale=7.0)):
        assert module.pipeline.guider.guidance_scale == 7.0
    assert module.pipeline.guider is before
    assert before.guidance_scale == 2.0


@dataclass
class Embeddings(BaseOutput):
    """What a pipeline returns that makes no frames."""

    image_embeds: torch.Tensor


class Prior(DiffusionPipeline):
    """Makes embeddings, as the first of Kandinsky's two pipelines does."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(self, prompt, num_inference_steps=1, generator=None, output_type="np"):
        return Embeddings(image_embeds=torch.zeros(1, 3))


class Secretive(Prior):
    """One whose call does not show what it returns."""

    def __call__(self, prompt, num_inference_steps=1, generator=None, output_type="np"):
        return (torch.zeros(1, 3),)


def small_pipeline(kind: type[DiffusionPipeline]) -> DiffusionPipeline:
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(8, block_out_channels=(8, 8), norm_num_groups=2, **blocks)
    return kind(unet=unet, scheduler=DDIMScheduler())


def test_a_pipeline_that_makes_no_frames_is_refused_before_a_weight_is_read():
    module = VideoModule.from_pipeline(small_pipeline(Prior))
    with pytest.raises(ValueError, match="Prior makes neither frames.*returns image_embeds"):
        resolve(module)


def test_a_pipeline_that_does_not_show_that_it_makes_no_frames_is_named_after_its_call():
    module = VideoModule.from_pipeline(small_pipeline(Secretive))
    resolve(module)
    with pytest.raises(ValueError, match="Secretive makes neither frames nor pictures"):
        module.predict_step({"prompt": "a dog"})


def test_no_pipeline_that_makes_frames_or_pictures_is_refused():
    for kind in (find_video_pipelines() | find_image_pipelines()).values():
        check_makes_frames(kind)
    with pytest.raises(ValueError, match="MarigoldDepthPipeline .* returns prediction, uncert"):
        check_makes_frames(diffusers.MarigoldDepthPipeline)


def bar_of(*named: str) -> Any:
    """A class of a pipeline whose bar takes further arguments, called as it may be."""

    class Mine(DDIMPipeline):
        def progress_bar(self, iterable=None, total=None, desc=None, *, leave=True):
            told.append((desc, leave))
            return super().progress_bar(iterable, total)

        def __call__(self, **inputs):
            further = dict.fromkeys(named, "mine")
            for _ in self.progress_bar(range(3), **further):
                pass
            with self.progress_bar(None, 4, **further):
                counts.append(self.bar_steps)
            with self.progress_bar(total=5, **further):
                counts.append(self.bar_steps)
            return super().__call__(**inputs)

    told: list[Any] = []
    counts: list[int] = []
    Mine.told, Mine.counts = told, counts
    return Mine


@pytest.mark.parametrize("named", [(), ("desc",), ("desc", "leave")])
def test_a_bar_with_arguments_of_its_own_gets_them(named):
    kind = bar_of(*named)
    module = VideoModule.from_pipeline(small_pipeline(kind))
    assert len(module.pipeline(num_inference_steps=1, output_type="np").images) == 1
    mine = "mine" if "desc" in named else None
    assert kind.told[:3] == [(mine, "mine" if "leave" in named else True)] * 3
    assert kind.counts == [4, 5]
