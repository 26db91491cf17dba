"""Attention backends, caches and slicing: the frames of plain diffusers, and no copy in vain."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    CosmosTransformer3DModel,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.utils import load_image
from support import checkpoints
from support.checkpoints import PROMPT, SIZE
from support.references import SEED, frames_of, load_plain

from fastvideo_lightning import OffloadConfig, VideoGenerator, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload
from fastvideo_lightning.generator.placements import make_placements
from fastvideo_lightning.modules.acceleration import accelerate

SAMPLING = {**SIZE, "num_inference_steps": 8}
NUM_BLOCKS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint whose transformer has some blocks to skip."""
    folder = tmp_path_factory.mktemp("checkpoint")
    # Heads of a size that every backend takes.
    model = checkpoints.transformer(seed=1, num_layers=NUM_BLOCKS, attention_head_dim=16)
    checkpoints.save(checkpoints.text_pipeline(transformer=model), folder)
    return folder


def plain_frames(folder: Path, change, **sampling) -> np.ndarray:
    pipeline = load_plain(folder, expects_image=False)
    change(pipeline)
    return frames_of(pipeline, {**SAMPLING, "guidance_scale": 3.0, **sampling})


def make_frames(generator: VideoGenerator, **sampling) -> np.ndarray:
    settings = {**SAMPLING, "guidance_scale": 3.0, **sampling}
    return generator.generate_video(PROMPT, save_video=False, seed=SEED, **settings).frames


def make_generator(folder: Path, streaming: LayerwiseOffload, **flags) -> VideoGenerator:
    flags = {"accelerator": "cpu", **flags}
    return VideoGenerator.from_pretrained(folder, callbacks=[streaming], **flags)


def blocks_bytes(streaming: LayerwiseOffload) -> int:
    return sum(unit.size_bytes for unit in streaming.attachments[0].engine.units)


@pytest.fixture
def low_threshold(monkeypatch):
    """Let the first block decide to skip at steps that differ as much as a random model's."""
    monkeypatch.setattr(
        "diffusers.FirstBlockCacheConfig", lambda threshold: FirstBlockCacheConfig(threshold=0.5)
    )


CACHES = {
    "first_block": lambda pipeline: FirstBlockCacheConfig(threshold=0.5),
    "taylorseer": lambda pipeline: TaylorSeerCacheConfig(use_lite_mode=True),
    "pyramid": lambda pipeline: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        current_timestep_callback=lambda: pipeline.current_timestep,
    ),
}


@pytest.mark.parametrize("skippable", [False, True])
@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_makes_the_frames_that_it_makes_in_plain_diffusers(
    cache, skippable, folder, low_threshold
) -> None:
    expected = plain_frames(folder, lambda p: p.transformer.enable_cache(CACHES[cache](p)))
    streaming = LayerwiseOffload("transformer", skippable=skippable)
    with make_generator(folder, streaming, cache=cache) as generator:
        for _ in range(2):
            assert np.array_equal(make_frames(generator), expected)
            streaming.attachments[0].engine.check()
        transformer = generator.module.get_submodule("transformer")
    assert not transformer.is_cache_enabled
    assert (expected != plain_frames(folder, lambda p: None)).any()


def test_a_video_of_an_image_has_a_timestep_of_its_own(checkpoint, tmp_path) -> None:
    settings = {**SAMPLING, "width": 64, "guidance_scale": 3.0}
    image = checkpoints.write_image(tmp_path / "image.png", size=(64, 32))

    def plain(**more) -> np.ndarray:
        pipeline = load_plain(checkpoint("ti2v"), expects_image="image" in more)
        pipeline.transformer.enable_cache(CACHES["pyramid"](pipeline))
        return frames_of(pipeline, {**settings, **more})

    expected = {None: plain(), image: plain(image=load_image(str(image)))}
    with make_generator(
        checkpoint("ti2v"), LayerwiseOffload("transformer"), cache="pyramid"
    ) as generator:
        for path in (image, None, image):
            frames = make_frames(generator, width=64, image_path=path)
            assert np.array_equal(frames, expected[path])


@pytest.mark.parametrize("cache", ["first_block", "taylorseer"])
def test_blocks_that_a_cache_skips_are_not_copied(cache, folder, low_threshold) -> None:
    computed = []
    copied = {}
    for skippable in (False, True):
        streaming = LayerwiseOffload("transformer", skippable=skippable)
        with make_generator(folder, streaming, cache=cache) as generator:
            engine = streaming.attachments[0].engine
            last = generator.module.get_submodule(f"transformer.blocks.{NUM_BLOCKS - 1}.norm1")
            last.register_forward_hook(lambda *_: computed.append(1))
            computed.clear()
            make_frames(generator)
            copied[skippable] = engine.stats.bytes_copied
            one_block = engine.units[0].size_bytes
    passes = 2 * SAMPLING["num_inference_steps"]
    full_passes = len(computed)
    assert 2 <= full_passes < passes, "the cache skips nothing, or all"
    assert copied[False] >= passes * (NUM_BLOCKS - 2) * one_block
    # Of a skipped pass, at most the first blocks are brought: before it is known that it is one.
    assert copied[True] <= (full_passes * NUM_BLOCKS + 2 * (passes - full_passes)) * one_block
    assert copied[True] < copied[False]


def test_after_a_failed_video_a_cache_starts_anew(folder, low_threshold) -> None:
    streaming = LayerwiseOffload("transformer", skippable=True)
    with make_generator(folder, streaming, cache="first_block") as generator:
        expected = make_frames(generator)
        steps = []

        def fail(*_: object) -> None:
            steps.append(1)
            if len(steps) > 5:
                raise RuntimeError("broken")

        head = generator.module.get_submodule("transformer.blocks.0.norm1")
        handle = head.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="broken"):
            make_frames(generator)
        handle.remove()
        assert np.array_equal(make_frames(generator), expected)


def test_a_wrapped_block_is_an_ordinary_one_after_detach(folder) -> None:
    streaming = LayerwiseOffload("transformer", skippable=True)
    with make_generator(folder, streaming) as generator:
        make_frames(generator)
        transformer = generator.module.get_submodule("transformer")
    assert not [m for m in transformer.modules() if "forward" in vars(m)]


def test_an_attention_backend_is_diffusers_own_and_goes_with_the_generator(folder) -> None:
    backend = "_native_math"
    active = _AttentionBackendRegistry.get_active_backend()[0]
    expected = plain_frames(folder, lambda p: p.transformer.set_attention_backend(backend))
    _AttentionBackendRegistry.set_active_backend(active)
    streaming = LayerwiseOffload("transformer")
    with make_generator(folder, streaming, attention_backend=backend) as generator:
        processor = generator.module.get_submodule("transformer.blocks.0.attn1").processor
        assert processor._attention_backend.value == backend
        assert np.array_equal(make_frames(generator), expected)
    assert processor._attention_backend is None
    assert _AttentionBackendRegistry.get_active_backend()[0] == active


def test_an_attention_backend_is_of_one_generator_and_what_was_there_comes_back(folder) -> None:
    native, math = "native", "_native_math"
    expected = plain_frames(folder, lambda p: None)
    by_math = plain_frames(folder, lambda p: p.transformer.set_attention_backend(math))
    pipeline = load_plain(folder, expects_image=False)
    processors = [block.attn1.processor for block in pipeline.transformer.blocks]
    pipeline.transformer.set_attention_backend("_native_efficient")
    own = processors[0]._attention_backend
    _AttentionBackendRegistry.set_active_backend(type(own)(native))
    first = make_generator(folder, LayerwiseOffload("transformer"), attention_backend=math)
    # On some CPUs both backends give the same bits, so the layers say which one it was.
    assert np.array_equal(make_frames(first), by_math)
    layers = [block.attn1.processor for block in first.module.transformer.blocks]
    assert {layer._attention_backend for layer in layers} == {math}
    module, config = VideoModule.from_pipeline(pipeline), OffloadConfig(attention_backend=native)
    second = VideoGenerator(module, config, accelerator="cpu", progress=False)
    second.setup()
    with make_generator(folder, LayerwiseOffload("transformer")) as other:
        assert np.array_equal(make_frames(other), expected)
    first.close()
    assert np.array_equal(make_frames(second), expected)
    second.close()
    assert {processor._attention_backend for processor in processors} == {own}
    assert _AttentionBackendRegistry.get_active_backend()[0] == native


@pytest.mark.parametrize("kind", ["t2v", "two_experts", "i2v_clip"])
def test_with_paired_guidance_a_video_is_that_of_plain_diffusers_for_half_of_the_copies(
    checkpoint, image, kind
) -> None:
    sampling = {**SIZE, "num_inference_steps": 6, "guidance_scale": 3.0, "seed": SEED}
    sampling |= {"image_path": image} if kind == "i2v_clip" else {}
    frames, copies = [], []
    for is_paired in (False, True):
        streaming = [
            LayerwiseOffload(fqn, num_slots=1, pair_guidance=is_paired)
            for fqn in ("transformer", "transformer_2")[: 1 + (kind == "two_experts")]
        ]
        with VideoGenerator.from_pretrained(
            checkpoint(kind), callbacks=streaming, accelerator="cpu"
        ) as generator:
            videos = [
                generator.generate_video(PROMPT, save_video=False, **sampling).frames
                for _ in range(2)
            ]
            copies.append(streaming[0].attachments[0].engine.stats.copies)
        frames += videos
    for other in frames[1:]:
        assert np.array_equal(other, frames[0])
    assert copies[1] < 0.7 * copies[0]  # the first step of a video is made call by call


def test_a_backend_for_layers_that_take_none_of_their_own_is_refused() -> None:
    with torch.device("meta"):
        denoiser = CosmosTransformer3DModel(num_layers=1)
    module = SimpleNamespace(denoisers=["transformer"], get_submodule={"transformer": denoiser}.get)
    active = _AttentionBackendRegistry.get_active_backend()
    with pytest.raises(ValueError, match="no attention layer of transformer .Cosmos"):
        accelerate(module, OffloadConfig(attention_backend="native"))
    assert _AttentionBackendRegistry.get_active_backend() == active


def test_without_guidance_a_step_is_one_pass(folder) -> None:
    streaming = LayerwiseOffload("transformer")
    with make_generator(folder, streaming) as generator:
        for scale, passes in ((3.0, 16), (1.0, 8)):
            before = streaming.attachments[0].engine.stats.passes
            frames = make_frames(generator, guidance_scale=scale)
            assert streaming.attachments[0].engine.stats.passes - before == passes
    plain = plain_frames(folder, lambda p: None, guidance_scale=1.0)
    assert np.array_equal(frames, plain)


def test_slicing_is_diffusers_own(folder) -> None:
    with make_generator(folder, LayerwiseOffload("transformer"), vae_slicing=True) as generator:
        vae = generator.module.get_submodule("vae")
        assert vae.use_slicing
        assert not vae.use_tiling
        assert np.array_equal(make_frames(generator), plain_frames(folder, lambda p: None))


def test_a_tiled_decode_is_that_of_plain_diffusers(folder) -> None:
    tiles = {"tile_sample_min_height": 16, "tile_sample_min_width": 16}
    tiles |= {"tile_sample_stride_height": 8, "tile_sample_stride_width": 8}

    def enable(pipeline) -> None:
        pipeline.vae.enable_tiling()
        vars(pipeline.vae).update(tiles)

    with make_generator(folder, LayerwiseOffload("transformer"), vae_tiling=True) as generator:
        vars(generator.module.get_submodule("vae")).update(tiles)
        frames = make_frames(generator)
    assert np.array_equal(frames, plain_frames(folder, enable))
    assert (frames != plain_frames(folder, lambda p: None)).any()


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"cache": "teacache"}, ValueError, "cache must be one of first_block"),
        ({"cache": "first_block", "compile": True}, ValueError, "cannot be combined with compile"),
        ({"attention_backend": 3}, TypeError, "attention_backend must be a name, got 3"),
    ],
)
def test_a_wrong_choice_is_refused_at_once(flags, error, message) -> None:
    with pytest.raises(error, match=message):
        OffloadConfig(**flags)


def test_a_backend_that_is_not_there_is_refused_by_name(folder) -> None:
    with pytest.raises(ValueError, match=r"attention_backend='fast': .*mean flash\?"):
        VideoGenerator.from_pretrained(folder, accelerator="cpu", attention_backend="fast")


def test_processes_that_bring_blocks_together_skip_no_copies(folder) -> None:
    module = VideoModule.from_pretrained(folder)
    for processes, skips in ((1, True), (2, False)):
        config = OffloadConfig(cache="first_block")
        placements = make_placements(module, config, on_gpu=True, num_processes=processes)
        assert placements[0].skippable is skips  # type: ignore[attr-defined]
