"""diffusers' guiders, which call a denoiser up to three times a step, have their bits."""

from functools import partial

import pytest
import torch
from diffusers.guiders import AutoGuidance, ClassifierFreeGuidance, SkipLayerGuidance
from diffusers.hooks import LayerSkipConfig
from support.recipes import RECIPES

from fastvideo_lightning.callbacks import LayerwiseOffload

LAYER = LayerSkipConfig(indices=[1], fqn="blocks")
SKIPPING = {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
STEPS = 4


class Thrice(ClassifierFreeGuidance):
    """A guider that calls three times, with nothing but inputs that differ."""

    _input_predictions = ["pred_cond", "pred_uncond", "pred_other"]  # noqa: RUF012
    num_conditions = 3

    def prepare_inputs(self, data):
        places = zip((0, 1, 2), self._input_predictions, strict=True)
        return [self._prepare_batch(data, at, name) for at, name in places]

    def forward(self, pred_cond, pred_uncond, pred_other):
        return super().forward(pred_cond + 0.5 * pred_other, pred_uncond)


# A guider, how many calls it makes a step, and how often blocks pass at most.
GUIDERS = {
    "plain": (ClassifierFreeGuidance, 2, 1),
    "thrice": (Thrice, 3, 1),
    "skipped": (partial(SkipLayerGuidance, skip_layer_config=LAYER, **SKIPPING), 3, 2),
    "auto": (partial(AutoGuidance, auto_guidance_config=LAYER), 2, 2),
}


def denoise(denoiser, guider):
    """Latents after some steps, in the way of diffusers' modular pipelines."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(3))
    config = denoiser.config
    latents = draw(1, config.in_channels, 2, 8, 8)
    prompts = tuple(draw(1, 6, config.text_dim) for _ in range(3))
    for step in range(STEPS):
        timestep = torch.tensor([900 - 200 * step])
        guider.set_state(step=step, num_inference_steps=STEPS, timestep=timestep)
        batches = guider.prepare_inputs({"prompt": prompts})
        for batch in batches:
            guider.prepare_models(denoiser)
            output = denoiser(latents, timestep, batch.prompt, return_dict=False)
            batch.noise_pred = output[0]
            guider.cleanup_models(denoiser)
        latents = latents - 0.1 * guider(batches)[0]
        yield latents.clone()


@pytest.mark.parametrize("name", GUIDERS)
@pytest.mark.parametrize("num_slots", [1, 2])
def test_the_calls_of_a_guider_pass_blocks_together_where_they_can(name, num_slots):
    make, num_calls, passes = GUIDERS[name]
    plain, streamed = (RECIPES["WanPipeline"].build().transformer.eval() for _ in range(2))
    callback = LayerwiseOffload("blocks", num_slots=num_slots, pair_guidance=True)
    engine = callback.attach(streamed, "cpu").engine
    calls = []
    plain.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        expected = list(denoise(plain, make()))
        assert num_calls * STEPS - len(calls) <= 1  # layers are not skipped in the last step
        engine.begin_run()
        before = [engine.stats.copies]
        for found, latents in zip(denoise(streamed, make()), expected, strict=True):
            assert torch.equal(found, latents)
            before.append(engine.stats.copies)
        engine.end_run()
    streaming = len(engine.groups[0].streamed)
    assert before[-1] - before[-2] <= passes * streaming
    engine.check()
    callback.detach()
