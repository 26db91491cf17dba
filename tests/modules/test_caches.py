"""The caches of diffusers that have no flag: turned on in a script, they make the same frames."""

from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from diffusers import FasterCacheConfig, NucleusMoEImageTransformer2DModel, TaylorSeerCacheConfig
from diffusers.hooks import MagCacheConfig, SeaCacheConfig, TextKVCacheConfig
from support.checkpoints import PROMPT
from support.recipes import RECIPES
from support.recipes.runs import write_media
from support.references import SEED

from fastvideo_lightning import (
    HostResidentStrategy,
    OffloadConfig,
    PredictLoop,
    PromptDataset,
    VideoGenerator,
    VideoModule,
)
from fastvideo_lightning.callbacks import LayerwiseOffload
from tests.modules.test_acceleration import (
    NUM_BLOCKS,
    SAMPLING,
    folder,
    low_threshold,
    plain_frames,
)

__all__ = ["folder", "low_threshold"]
SETTINGS = {**SAMPLING, "guidance_scale": 3.0}
CACHES: dict[str, Callable[[Any], Any]] = {
    "sea": lambda pipeline: SeaCacheConfig(threshold=5.0),
    "mag": lambda pipeline: MagCacheConfig(
        threshold=0.5, mag_ratios=torch.linspace(1, 0.9, 8), num_inference_steps=8
    ),
    "faster": lambda pipeline: FasterCacheConfig(
        spatial_attention_timestep_skip_range=(-1, 901),
        current_timestep_callback=lambda: pipeline.current_timestep,
        attention_weight_callback=lambda module: 0.3,
        tensor_format="BCFHW",
        is_guidance_distilled=True,  # Wan calls its denoiser for each branch by itself
    ),
    "taylorseer_of_attentions": lambda pipeline: TaylorSeerCacheConfig(
        cache_identifiers=[r"blocks\.\d+\.attn1"]
    ),
}
SKIP_WHOLE_BLOCKS = {"sea", "mag"}


def run(folder: Any, cache: str, *, skippable: bool, first: bool) -> tuple[list[np.ndarray], int]:
    """Return two videos of a script, and the bytes that they copied."""
    streaming = LayerwiseOffload("transformer", skippable=skippable)
    fabric = L.Fabric(
        accelerator="cpu", devices=1, strategy=HostResidentStrategy(), callbacks=[streaming]
    )
    fabric.launch()
    module = VideoModule.from_pretrained(folder)
    transformer = module.get_submodule("transformer")
    if first:
        transformer.enable_cache(CACHES[cache](module.pipeline))
    fabric.setup(module)
    if not first:
        transformer.enable_cache(CACHES[cache](module.pipeline))
    prompts = PromptDataset([PROMPT], seed=SEED, **SETTINGS)
    videos = [
        PredictLoop(fabric).run(module, prompts, return_predictions=True)[0].frames
        for _ in range(2)
    ]
    engine = streaming.attachments[0].engine
    engine.check()
    transformer.disable_cache()
    fabric.call("teardown")
    return videos, engine.stats.bytes_copied


@pytest.mark.parametrize("first", [False, True], ids=["after_setup", "before_setup"])
@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_makes_the_frames_that_it_makes_in_plain_diffusers(
    cache, first, folder, caplog
) -> None:
    expected = plain_frames(folder, lambda p: p.transformer.enable_cache(CACHES[cache](p)))
    assert (expected != plain_frames(folder, lambda p: None)).any(), "the cache does nothing"
    copied = {}
    for skippable in (False, True):
        videos, copied[skippable] = run(folder, cache, skippable=skippable, first=first)
        for frames in videos:
            assert np.array_equal(frames, expected)
    if cache in SKIP_WHOLE_BLOCKS:
        assert (copied[True] < 0.7 * copied[False]) is not first
        said = [record.message for record in caplog.records if "enable_cache" in record.message]
        assert [message.split()[0] for message in said] == ["transformer.blocks.0"] * first


@pytest.mark.parametrize("skippable", [False, True])
def test_projections_of_the_prompt_are_kept_and_are_the_prompts_own(skippable) -> None:
    def make() -> Any:
        torch.manual_seed(0)
        return NucleusMoEImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=NUM_BLOCKS,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8,
            axes_dims_rope=(8, 4, 4),
            moe_enabled=False,
        ).eval()

    generator = torch.Generator().manual_seed(1)
    prompts = torch.randn(2, 1, 6, 8, generator=generator)
    image = torch.randn(1, 4, 16, generator=generator)

    @torch.no_grad()
    def call(model: Any) -> list[torch.Tensor]:
        return [
            model(
                hidden_states=image,
                img_shapes=[(1, 2, 2)],
                encoder_hidden_states=prompt,
                timestep=torch.tensor([step]),
                return_dict=False,
            )[0]
            for step in (0.9, 0.6, 0.3)
            for prompt in prompts
        ]

    expected = call(make())
    model = make()
    projected = []
    projection = model.transformer_blocks[0].encoder_proj
    projection.register_forward_hook(lambda *_: projected.append(1))
    model.enable_cache(TextKVCacheConfig())
    streaming = LayerwiseOffload("", skippable=skippable)
    streaming.attach(model, "cpu")
    for mine, theirs in zip(call(model), expected, strict=True):
        assert torch.equal(mine, theirs)
    assert len(projected) == len(prompts)
    streaming.detach()


def bytes_copied(generator: VideoGenerator) -> int:
    """What the engine that is there now has copied for the denoiser."""
    (streaming,) = (c for c in generator._placing._callbacks if isinstance(c, LayerwiseOffload))
    return streaming.attachments[0].engine.stats.bytes_copied


def test_where_weights_are_placed_anew_skipped_blocks_are_not_copied_either(
    folder, on_gpu, low_threshold, caplog
) -> None:
    copied, frames = [], []
    with VideoGenerator.from_pretrained(
        folder, accelerator="cpu", cache="first_block"
    ) as generator:
        for places_anew in (False, False, True, False):
            if places_anew:
                generator._placing.replace(generator.launch(), generator.config)
            generator.setup()
            before = bytes_copied(generator)
            video = generator.generate_video(PROMPT, save_video=False, seed=SEED, **SETTINGS)
            copied.append(bytes_copied(generator) - before)
            frames.append(video.frames)
    assert all(np.array_equal(each, frames[0]) for each in frames)
    assert copied[2:] == pytest.approx(copied[:2], rel=0.01)  # paddings of blocks may differ
    assert "enable_cache" not in caplog.text


def test_where_a_step_fails_with_a_cache_on_it_is_named(tmp_path) -> None:
    recipe = RECIPES["WanVideoToVideoPipeline"]  # which tells caches of no pass
    settings = recipe.ours(write_media(tmp_path))
    module = VideoModule.from_pipeline(recipe.build())
    config = OffloadConfig(cache="first_block")
    with (
        VideoGenerator(module, config, accelerator="cpu", progress=False) as generator,
        pytest.raises(ValueError, match="No cache context") as caught,
    ):
        generator.generate_video(PROMPT, save_video=False, **settings)
    (note,) = caught.value.__notes__
    assert note.startswith("A cache is on, and WanVideoToVideoPipeline may be none that")
