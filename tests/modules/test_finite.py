import numpy as np
import pytest
import torch
from support.checkpoints import PROMPT, SIZE

from fastvideo_lightning import VideoGenerator
from fastvideo_lightning.modules.results import check_frames
from fastvideo_lightning.modules.steps import LatentsWatch


@pytest.fixture(scope="module")
def generator(checkpoint):
    with VideoGenerator.from_pretrained(checkpoint("t2v"), accelerator="cpu") as generator:
        yield generator


def make(generator, **options):
    return generator.generate_video(PROMPT, **{**SIZE, "num_inference_steps": 3}, **options)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_latents_that_are_no_numbers_are_an_error_that_names_the_step(generator, tmp_path, poison):
    steps = []

    def spoil(module, inputs, output):
        steps.append(inputs or None)
        return (output[0] * poison,) if len(steps) > per_step else output

    expected = make(generator, save_video=False)
    denoiser = generator.module.get_submodule("transformer")
    per_step = 2  # with guidance the denoiser is called twice in a step
    handle = denoiser.register_forward_hook(spoil)
    with pytest.raises(RuntimeError, match="from denoising step 2 of 3 on"):
        make(generator, output_path=tmp_path)
    handle.remove()
    assert not list(tmp_path.iterdir()), "no black video"
    assert (make(generator, save_video=False).frames == expected.frames).all()


def test_frames_that_are_no_numbers_are_an_error_of_the_decode_stage(generator, tmp_path):
    decoder = generator.module.get_submodule("vae").decoder
    handle = decoder.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    with pytest.raises(RuntimeError, match="Frame 1 of 5 .* after the decode stage"):
        make(generator, output_path=tmp_path)
    handle.remove()
    assert not list(tmp_path.iterdir())


def test_latents_are_read_once_and_only_at_the_end(monkeypatch):
    watch = LatentsWatch()

    def refuse(*_):
        raise AssertionError("the host waited")

    with monkeypatch.context() as patched:
        for reading in ("item", "tolist", "__bool__"):
            patched.setattr(torch.Tensor, reading, refuse)
        for _ in range(3):
            watch.note(torch.ones(2))
        watch.note(None)
    watch.check(3)


def test_frames_of_numbers_pass():
    check_frames(np.zeros((2, 4, 4, 3), np.float32))


def test_one_latent_that_is_no_number_is_enough():
    watch, latents = LatentsWatch(), torch.zeros(1, 4, 2, 3, 3)
    watch.note(latents)
    latents[0, 1, 1, 2, 0] = float("nan")
    watch.note(latents)
    with pytest.raises(RuntimeError, match="from denoising step 2 of 2 on"):
        watch.check(2)
