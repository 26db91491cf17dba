"""MiniMax-H3 is asked for what diffusers' blocks make, and for nothing else."""

import pytest
from diffusers.modular_pipelines.minimax_h3 import modular_pipeline as blocks
from PIL import Image
from support.recipes import RECIPES

from fastvideo_lightning import SamplingParams, VideoModule


@pytest.fixture(scope="module")
def module() -> VideoModule:
    return VideoModule.from_pipeline(RECIPES["MiniMaxH3ModularPipeline"].build())


def test_its_defaults_are_the_canvas_of_its_blocks(module: VideoModule) -> None:
    defaults = module.sampling_defaults
    canvas = blocks.resolve_canvas_size(16, 9, 32, 768, 768 * 1344)
    assert (defaults.height, defaults.width) == canvas == (768, 1344)
    assert defaults.fps == blocks.MINIMAX_H3_FPS
    assert defaults.num_frames == blocks.align_num_frames(5 * 24, 17, 5)
    assert defaults.guidance_scale is None


@pytest.mark.parametrize("frames", [119, 120, 123, 124, 125, 141, 345, 346, 360, 362])
def test_it_makes_the_frames_that_its_blocks_make_unrounded(frames, module: VideoModule) -> None:
    is_made = blocks.align_num_frames(frames, 17, 5) == frames and 5 <= frames / 24 <= 15
    params = SamplingParams(num_frames=frames)
    if is_made:
        assert module.resolve_sampling(params).num_frames == frames
        return
    with pytest.raises(ValueError, match="num_frames must be 124 plus a multiple of 17"):
        module.resolve_sampling(params)


@pytest.mark.parametrize("field", ["image_path", "last_image_path"])
@pytest.mark.parametrize(
    "size", [(640, 480), pytest.param((300, 900), marks=pytest.mark.exhaustive)]
)
def test_its_size_is_that_of_its_key_frame(field, size, module: VideoModule, tmp_path) -> None:
    Image.new("RGB", size).save(tmp_path / "key.png")
    resolved = module.resolve_sampling(SamplingParams(**{field: str(tmp_path / "key.png")}))
    config = module.pipeline.config
    expected = blocks.resolve_canvas_size(
        *size, module.pipeline.canvas_multiple, config.canvas_short_edge, config.canvas_max_pixels
    )
    assert (resolved.height, resolved.width) == expected


def test_guidance_has_no_place_in_it(module: VideoModule) -> None:
    with pytest.raises(ValueError, match="MiniMaxH3ModularPipeline has no use for guidance_scale"):
        module.resolve_sampling(SamplingParams(guidance_scale=5.0))
