import threading

import lightning as L
import numpy as np
import pytest
import torch
from support.checkpoints import SIZE

from fastvideo_lightning import HostResidentStrategy, PredictLoop, PromptDataset, VideoModule
from fastvideo_lightning.callbacks import CPUExecution, EncodeAhead

PROMPTS = [
    "a red circle",
    {"prompt": "a blue square", "negative_prompt": "blurry"},
    {"prompt": "a green circle", "negative_prompt": "dark"},
    "a red circle",
]


class Encoder:
    """Notes on which thread the text encoder computes."""

    def __init__(self, module):
        self.threads = []
        encoder = module.get_submodule("text_encoder")
        self.handle = encoder.register_forward_pre_hook(lambda *_: self.note())

    def note(self):
        self.threads.append(threading.current_thread().name)
        assert not torch.is_grad_enabled()


@pytest.fixture
def module(checkpoint):
    return VideoModule.from_pretrained(checkpoint("t2v"))


def make(module, *callbacks, prompts=PROMPTS, **sampling):
    fabric = L.Fabric(
        accelerator="cpu", devices=1, strategy=HostResidentStrategy(), callbacks=[*callbacks]
    )
    fabric.launch()
    dataset = PromptDataset(prompts, **{**SIZE, **sampling})
    try:
        videos = PredictLoop(fabric).run(fabric.setup(module), dataset, return_predictions=True)
        return [video.frames for video in videos]
    finally:
        fabric.call("teardown")
        module._fabric = None


@pytest.fixture
def expected(checkpoint):
    return make(VideoModule.from_pretrained(checkpoint("t2v")), guidance_scale=3.0)


def equal(made, expected):
    return all(np.array_equal(a, b) for a, b in zip(made, expected, strict=True))


def test_the_next_prompt_is_encoded_while_the_current_video_is_denoised(module, expected):
    encoder, ahead = Encoder(module), EncodeAhead()
    made = make(module, CPUExecution("text_encoder"), ahead, guidance_scale=3.0)
    assert equal(made, expected)
    # With guidance each prompt is encoded and its negative one, the first in the main thread.
    assert encoder.threads == ["MainThread"] * 2 + ["encode-ahead"] * 6
    assert ahead.num_used == 3


def test_a_call_that_was_not_foreseen_is_computed_as_ever(module, expected):
    strange = [*PROMPTS[:2], {**PROMPTS[2], "max_sequence_length": 7}, PROMPTS[3]]
    plain = make(module, CPUExecution("text_encoder"), prompts=strange, guidance_scale=3.0)
    encoder, ahead = Encoder(module), EncodeAhead()
    made = make(module, CPUExecution("text_encoder"), ahead, prompts=strange, guidance_scale=3.0)
    assert equal(made, plain)
    assert not np.array_equal(made[2], expected[2])
    assert ahead.num_used == 1, "the second: before the third and the fourth the length changes"
    assert len(encoder.threads) == 12


def test_an_edit_of_the_encoder_between_two_videos_is_not_overlooked(module):
    class Edit:
        def on_predict_batch_end(self, module, batch_idx):
            if batch_idx == 0:
                with torch.no_grad():
                    module.get_parameter("text_encoder.shared.weight").mul_(0.5)

    def edited(*callbacks):
        module = VideoModule.from_pretrained(module_path)
        return make(module, CPUExecution("text_encoder"), *callbacks, Edit(), prompts=PROMPTS[:2])

    module_path = module.pipeline.config["_name_or_path"]
    ahead = EncodeAhead()
    assert equal(edited(ahead), edited())
    assert ahead.num_used == 0


@pytest.mark.parametrize("place", ["transformer", "vae.decoder", "text_encoder"])
def test_after_an_exception_the_pipeline_is_as_it_was_and_the_next_run_is_right(
    module, expected, place
):
    calls = []

    def fail(*_):
        calls.append(place)
        # In the encoder: on the thread, whose failure the pipeline's own call then meets.
        if len(calls) > (2 if place == "text_encoder" else 0):
            raise ValueError("broken")

    handle = module.get_submodule(place).register_forward_pre_hook(fail)
    ahead = EncodeAhead()
    with pytest.raises(ValueError, match="broken"):
        make(module, CPUExecution("text_encoder"), ahead, guidance_scale=3.0)
    handle.remove()
    assert "encode_prompt" not in vars(module.pipeline)
    assert not [thread for thread in threading.enumerate() if thread.name == "encode-ahead"]
    assert equal(make(module, CPUExecution("text_encoder"), ahead, guidance_scale=3.0), expected)
    assert ahead.num_used == 3
    assert "encode_prompt" not in vars(module.pipeline)


def test_what_is_more_than_texts_and_numbers_is_not_encoded_ahead(module):
    class Pipeline:
        def encode_prompt(self, prompt, image):
            threads.append(threading.current_thread().name)
            return prompt, image

    class Module(torch.nn.Module):
        pipeline = Pipeline()

    threads, ahead, owner = [], EncodeAhead(), Module()
    batches = [{"prompt": "a"}, {"prompt": "b"}]
    image = torch.ones(2)
    ahead.on_predict_batch_start(owner, batches[0], batches[1])
    assert owner.pipeline.encode_prompt("a", image=image) == ("a", image)
    ahead.on_denoise_step_start(owner, 0)
    ahead.on_predict_batch_end()
    assert owner.pipeline.encode_prompt("b", image=image) == ("b", image)
    assert threads == ["MainThread"] * 2


def test_the_generator_encodes_ahead_only_beside_a_gpu_and_on_the_cpu(module):
    from fastvideo_lightning import OffloadConfig
    from fastvideo_lightning.generator.placements import make_placements

    def encodes_ahead(*, on_gpu=True, **flags):
        made = make_placements(module, OffloadConfig(**flags), on_gpu=on_gpu)
        return any(isinstance(callback, EncodeAhead) for callback in made)

    assert encodes_ahead()
    assert not encodes_ahead(on_gpu=False)
    assert not encodes_ahead(text_encoder_cpu_offload=False)
    assert not encodes_ahead(text_encoder_layerwise_offload=True)
