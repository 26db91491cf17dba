"""What training computes its own way is what diffusers computes when the model is used."""

import random
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from diffusers import WanPipeline

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
from tiny_shapes.autoencoder import decode_whole, encode_whole  # noqa: E402
from tiny_shapes.captions import canonical_caption, paraphrase  # noqa: E402
from tiny_shapes.denoiser import (  # noqa: E402
    CaptionTable,
    FlowMatching,
    LatentPool,
    restore_denoiser,
)
from tiny_shapes.drawing import MAX_ROOM_PER_STEP_PX, draw_clips  # noqa: E402
from tiny_shapes.scenes import SCENES, TRAINED_SCENES  # noqa: E402
from tiny_shapes.training import Bucket, TimedTraining  # noqa: E402


@pytest.fixture
def pipeline():
    return WanPipeline.from_pretrained(ROOT / "fastvideo_lightning" / "assets" / "tiny-shapes")


@torch.no_grad()
def test_coding_a_clip_whole_equals_coding_it_frame_by_frame(pipeline):
    vae, attributes = pipeline.vae, torch.tensor([scene.attributes for scene in SCENES[::50]])
    clips = draw_clips(attributes, num_frames=13, height=48, width=64)
    moments = vae.encode(clips).latent_dist.parameters
    torch.testing.assert_close(encode_whole(vae, clips), moments, atol=1e-4, rtol=1e-4)
    latents = moments[:, :16]
    whole = decode_whole(vae, latents).clamp(-1, 1)
    torch.testing.assert_close(whole, vae.decode(latents).sample, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_one_biased_slot_equals_all_the_padding_of_the_pipeline(pipeline):
    prompts = [canonical_caption(SCENES[5]), "", "an orange"]
    padded, _ = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=512
    )
    latents, time_steps = torch.randn(3, 16, 3, 6, 8), torch.tensor([900.0, 500.0, 30.0])
    denoiser = pipeline.transformer
    expected = denoiser(latents, time_steps, padded, return_dict=False)[0]
    captions = CaptionTable(
        pipeline.tokenizer, [SCENES[5]], per_scene=1, device=torch.device("cpu")
    )
    loss = FlowMatching(denoiser, pipeline.text_encoder, captions, LatentPool())
    ids = pipeline.tokenizer(
        prompts, padding="max_length", max_length=32, return_tensors="pt"
    ).input_ids
    short, loss._padding.bias = loss._encode(ids)
    biased = denoiser(latents, time_steps, short, return_dict=False)[0]
    torch.testing.assert_close(biased, expected, atol=1e-4, rtol=1e-4)
    restore_denoiser(denoiser)
    again = denoiser(latents, time_steps, padded, return_dict=False)[0]
    assert torch.equal(again, expected)


def test_a_step_trains_denoiser_and_text_encoder(pipeline):
    device = torch.device("cpu")
    captions = CaptionTable(pipeline.tokenizer, list(TRAINED_SCENES), per_scene=3, device=device)
    bucket, pool = Bucket(9, 48, 64, 2), LatentPool()
    attributes = torch.tensor([scene.attributes for scene in TRAINED_SCENES])
    pool.fill(pipeline.vae, attributes, bucket, 1)
    FlowMatching(pipeline.transformer, pipeline.text_encoder, captions, pool)(bucket).backward()
    for model in (pipeline.transformer, pipeline.text_encoder):
        assert all(weight.grad is not None for weight in model.parameters())


def test_a_budget_that_is_spent_before_the_first_step_is_an_error() -> None:
    class Loss(torch.nn.Linear):
        def forward(self, bucket: Bucket) -> torch.Tensor:
            raise AssertionError("a step began")

    training = TimedTraining(
        L.Fabric(accelerator="cpu", devices=1),
        Loss(1, 1),
        buckets=[Bucket(9, 48, 64, 2)],
        shares=[1.0],
        budget_s=-20.0,
        peak_lr=1e-3,
    )
    with pytest.raises(ValueError, match="No time is left .* 20 s longer than the budget"):
        training.run()


def test_a_shape_is_as_large_a_part_of_a_narrow_picture_and_no_faster_in_a_short_clip():
    attributes = torch.tensor([scene.attributes for scene in SCENES])
    shares = []
    for height, width in ((64, 64), (48, 96), (96, 48)):
        clips = draw_clips(
            attributes,
            num_frames=9,
            height=height,
            width=width,
            generator=torch.Generator().manual_seed(0),
        )
        shown = (clips - clips[:, :, :1, :1, :1]).abs().sum(1)
        coverage = shown / shown.amax((1, 2, 3), keepdim=True)  # [clips, frames, height, width]
        area = coverage.sum((2, 3))
        shares.append(float(area.mean()) / (height * width))
        x = (coverage.sum(2) * torch.arange(width)).sum(2) / area
        y = (coverage.sum(3) * torch.arange(height)).sum(2) / area
        steps = torch.hypot(x.diff(dim=1), y.diff(dim=1))
        assert float(steps.max()) <= 0.9 * MAX_ROOM_PER_STEP_PX + 0.05
    assert max(shares) <= 1.02 * min(shares)


def test_clips_stay_in_the_picture_and_captions_in_their_scene():
    attributes = torch.tensor([scene.attributes for scene in SCENES])
    clips = draw_clips(attributes, num_frames=9, height=48, width=96)
    for edge in (clips[..., 0, :], clips[..., -1, :], clips[..., 0], clips[..., -1]):
        # At most the soft tip of a corner, a quarter of the way from ground to paint.
        assert (edge - clips[:, :, :1, 0, :1]).abs().max() <= 0.25 * 2
    rng = random.Random(0)
    for scene in SCENES:
        words = paraphrase(scene, rng, stray_words=True)
        assert scene.color in words
        assert scene.shape in words
