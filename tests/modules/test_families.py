"""What families know beyond their pipeline's signature."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recipes import RECIPES

from fastvideo_lightning import SamplingParams, VideoModule
from fastvideo_lightning.modules.catalog import find_video_pipelines
from fastvideo_lightning.modules.families import FAMILIES
from fastvideo_lightning.modules.signature import CallSignature

_EXAMPLE = "EXAMPLE_DOC_STRING"


def module_of(name: str) -> VideoModule:
    return VideoModule.from_pipeline(RECIPES[name].build())


def resolve(name: str, **sampling: Any) -> SamplingParams:
    return module_of(name).resolve_sampling(SamplingParams(**sampling))


def test_every_row_is_a_pipeline_of_diffusers() -> None:
    assert FAMILIES.keys() <= find_video_pipelines().keys()


# What neither the example nor the call says, by its source in `families.py`.
_FROM_ELSEWHERE = {
    *((f"HunyuanVideo{kind}Pipeline", "fps") for kind in ("", "ImageToVideo", "15")),
    *(("MochiPipeline", field) for field in ("height", "width", "num_frames", "fps")),
    *(("AllegroPipeline", field) for field in ("height", "width", "num_frames")),
    ("LattePipeline", "fps"),
    *(("MiniMaxH3ModularPipeline", field) for field in ("height", "width", "num_frames", "fps")),
    ("EasyAnimatePipeline", "negative_prompt"),  # diffusers fails without one
    ("EasyAnimateInpaintPipeline", "negative_prompt"),
}


def test_defaults_are_the_examples_or_the_calls_or_bear_their_source() -> None:
    unsaid, kinds = set(), find_video_pipelines()
    for name, row in FAMILIES.items():
        kind = kinds[name]
        signature, example = CallSignature(kind), vars(inspect.getmodule(kind)).get(_EXAMPLE, "")
        for field, value in row.defaults.given().items():
            argument = signature.argument_for(field) or field
            spelled = argument if field != "fps" else f"{argument}|fps"
            shown = re.findall(rf"\b(?:{spelled}) ?= ?([\d.]+)\b", example)
            if value not in (signature.default_of(field), *map(float, shown)):
                unsaid.add((name, field))
    assert unsaid - {(name, "seed") for name in FAMILIES} == _FROM_ELSEWHERE


@pytest.mark.parametrize(("embeds", "expected"), [(True, 6.0), (False, 1.0)])
def test_guidance_that_only_some_checkpoints_have_goes_by_the_checkpoint(
    embeds: bool, expected: float
) -> None:
    module = module_of("HunyuanVideoImageToVideoPipeline")
    module.pipeline.transformer.register_to_config(guidance_embeds=embeds)
    assert module.sampling_defaults.guidance_scale == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_the_defaults_of_a_family_pass_its_own_checks(name: str, image: Path) -> None:
    module, sampling = module_of(name), RECIPES[name].sampling
    inputs = {"pose_video", "face_video"} & sampling.get("pipeline_arguments", {}).keys()
    inputs |= {"video"} & {field.removesuffix("_path") for field in sampling}
    params = SamplingParams(
        image_path=image if "image_path" in sampling else None,
        pipeline_arguments=dict.fromkeys(inputs, ()),
    )
    resolved = module.resolve_sampling(params)
    assert resolved.fps is not None
    assert resolved.num_inference_steps is not None


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("HunyuanVideoPipeline", {"height": 100}, "multiple of 16.*got 100.*height=96"),
        ("LTXPipeline", {"width": 48}, "multiple of 32.*got 48.*width=64"),
        ("HunyuanVideoPipeline", {"num_frames": 128}, "1 plus a multiple of 4.*num_frames=129"),
        ("MochiPipeline", {"num_frames": 84}, "1 plus a multiple of 6.*num_frames=85"),
        ("AllegroPipeline", {"num_frames": 87}, "multiple of 4.*num_frames=88"),
        ("MotifVideoPipeline", {"height": 740}, "multiple of 16.*got 740.*height=736"),
        ("LattePipeline", {"num_frames": 8}, "16 to 16, got 8.*num_frames=16"),
    ],
)
def test_a_size_or_length_that_diffusers_would_round_is_refused(
    name: str, wrong: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(name, **wrong)


def test_too_few_frames_for_numbers_are_refused(image: Path) -> None:
    with pytest.raises(ValueError, match="17 plus a multiple of 4.*num_frames=17"):
        resolve("Kandinsky5I2VPipeline", num_frames=13, image_path=image)


def test_without_a_size_an_image_keeps_its_shape(image: Path) -> None:
    params = resolve("LTXImageToVideoPipeline", image_path=image)  # 40 x 30
    assert (params.height, params.width) == (480, 640)
    params = resolve("LTXImageToVideoPipeline", image_path=image, height=64)
    assert (params.height, params.width) == (64, 704)


def test_what_the_pages_leave_open_is_the_checkpoints() -> None:
    params = resolve("CogVideoXPipeline")
    assert (params.height, params.width, params.num_frames, params.fps) == (32, 32, 9, 8)


@pytest.mark.parametrize("name", ["CogVideoXPipeline", "CogVideoXImageToVideoPipeline"])
def test_cogvideox_takes_the_numbers_of_frames_that_diffusers_makes_exactly(
    name: str, image: Path
) -> None:
    pipeline = RECIPES[name].build()
    module = VideoModule.from_pipeline(pipeline)
    inputs = {"image_path": image} if "ImageTo" in name else {}
    for asked in range(1, 19):
        groups = (asked - 1) // pipeline.vae_scale_factor_temporal + 1  # as the pipeline has it
        made = pipeline.decode_latents(torch.zeros(1, groups, 4, 2, 2)).shape[2]
        params = SamplingParams(num_frames=asked, **inputs)
        if made == asked:
            assert module.resolve_sampling(params).num_frames == asked
        else:
            nearest = min((1, 8, 9, 16, 17), key=lambda each: (abs(each - asked), -each))
            with pytest.raises(ValueError, match=rf"or a multiple of 8.*num_frames={nearest}\."):
                module.resolve_sampling(params)


def test_a_vae_that_decodes_in_tiles_alone_does_so() -> None:
    module = module_of("AllegroPipeline")
    assert module.get_submodule("vae").use_tiling
