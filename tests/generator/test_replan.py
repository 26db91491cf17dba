"""Running out of device memory. There is no device here: a hook raises what one would raise."""

import gc
import json
import logging
import weakref

import numpy as np
import pytest
import torch
from support.checkpoints import PROMPT, SIZE
from support.running_out import ALL_RESIDENT, make, make_generator, run_out, run_out_in_second_video

from fastvideo_lightning import (
    OffloadConfig,
    OutOfGPUMemoryError,
    SamplingParams,
    VideoModule,
    make_plan,
)
from fastvideo_lightning.callbacks import LayerwiseOffload
from fastvideo_lightning.generator import replan
from fastvideo_lightning.generator.placements import ModelPlacement

PLACES = {"text_encoder": "encode", "transformer": "denoise", "vae.decoder": "decode"}


@pytest.mark.parametrize("place", PLACES)
def test_the_error_names_stage_and_flags_of_a_plan_that_takes_less(place, checkpoint, on_gpu):
    with make_generator(checkpoint, on_oom="raise") as generator:
        run_out(generator, place, times=1)
        with pytest.raises(OutOfGPUMemoryError, match=f"in the {PLACES[place]} stage") as caught:
            make(generator)
        assert caught.value.stage == PLACES[place]
        assert "Tried to allocate 2 GiB" in str(caught.value)
        assert "More." not in str(caught.value)
        for name, value in (caught.value.flags or {}).items():
            assert f"{name}={value}" in str(caught.value)
        again = make(generator)
    with make_generator(checkpoint) as generator:
        assert np.array_equal(again.frames, make(generator).frames)


@pytest.mark.parametrize("place", PLACES)
def test_a_replanned_video_is_the_same_and_so_is_the_next(place, checkpoint, on_gpu, caplog):
    with make_generator(checkpoint, **ALL_RESIDENT) as generator:
        expected = make(generator)
    caplog.set_level(logging.WARNING)
    with make_generator(checkpoint, on_oom="replan") as generator:
        generator._placing.replace(generator.launch(), type(generator.config)(**ALL_RESIDENT))
        run_out(generator, place, times=1)
        video = make(generator)
        assert generator.config != type(generator.config)(**ALL_RESIDENT)
        again = make(generator)
    assert (expected.num_replans, video.num_replans, again.num_replans) == (0, 1, 0)
    if not generator.config.vae_tiling:
        assert np.array_equal(video.frames, expected.frames)
    assert np.array_equal(video.frames, again.frames)
    assert f"Out of GPU memory in the {PLACES[place]} stage" in caplog.text


@pytest.mark.parametrize("times", [2, 3])
def test_a_video_is_made_again_twice_at_most(times, checkpoint, on_gpu, monkeypatch):
    with make_generator(checkpoint, on_oom="replan") as generator:
        smaller = make_plan(generator.module, SamplingParams(**SIZE), flags={}).prediction
        monkeypatch.setattr(replan, "choose_tighter", lambda *_: smaller)
        handle = run_out(generator, "transformer", times=times)
        if times == 2:
            assert make(generator).num_replans == 2
        else:
            with pytest.raises(OutOfGPUMemoryError, match="denoise stage"):
                make(generator)
        handle.remove()
        assert make(generator).num_replans == 0


def test_flags_that_were_passed_are_not_given_up(checkpoint, on_gpu):
    passed = {**ALL_RESIDENT, "vae_tiling": False, "text_encoder_layerwise_offload": False}
    with make_generator(checkpoint, on_oom="replan", **passed) as generator:
        before = generator.config
        run_out(generator, "transformer", times=1)
        with pytest.raises(OutOfGPUMemoryError) as caught:
            make(generator)
        assert caught.value.flags is None
        assert generator.config == before


def test_a_replan_changes_the_placements_and_leaves_the_users_callbacks(checkpoint, on_gpu):
    class Listener:
        heard: list[str] = []

        def on_after_setup(self):
            self.heard.append("setup")

        def on_exception(self):
            self.heard.append("exception")

        def teardown(self):
            self.heard.append("teardown")

    flags = {"on_oom": "replan", "callbacks": [Listener()]}
    with make_generator(checkpoint, **flags) as generator:
        generator._placing.replace(generator.launch(), type(generator.config)(**ALL_RESIDENT))
        run_out(generator, "transformer", times=1)
        make(generator)
        kinds = [type(callback) for callback in generator._fabric._callbacks]
        config = generator.config
        streamed = config.dit_layerwise_offload + config.text_encoder_layerwise_offload
        assert kinds.count(LayerwiseOffload) == streamed
        assert kinds[0] is Listener
        assert Listener.heard == ["setup", "exception"]


def test_nothing_is_held_by_the_error(checkpoint, on_gpu):
    with make_generator(checkpoint) as generator:
        kept = []

        def fail(module, args, kwargs):
            tensor = torch.zeros(3)
            kept.append(weakref.ref(tensor))
            raise torch.OutOfMemoryError("CUDA out of memory.")

        generator.module.transformer.register_forward_pre_hook(fail, with_kwargs=True)
        with pytest.raises(OutOfGPUMemoryError) as caught:
            make(generator)
        gc.collect()
        assert caught.value.__cause__ is not None
        assert kept[0]() is None


def test_a_batch_goes_on_with_the_tighter_plan_and_the_manifest_says_so(
    checkpoint, on_gpu, tmp_path
):
    prompts = [PROMPT, "a green square", "a red square"]
    with make_generator(checkpoint, on_oom="replan") as generator:
        generator._placing.replace(generator.launch(), type(generator.config)(**ALL_RESIDENT))
        run_out_in_second_video(generator)
        videos = list(generator.generate_videos(prompts, output_path=tmp_path, **SIZE))
    assert [video.prompt for video in videos] == prompts
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    assert [line["status"] for line in lines] == ["done"] * 3
    assert [line["memory"]["num_replans"] for line in lines] == [0, 1, 0]


def test_without_replanning_a_batch_notes_the_explained_failure(checkpoint, on_gpu, tmp_path):
    with make_generator(checkpoint) as generator:
        run_out(generator, "transformer", times=1)
        prompts = [PROMPT, "a green square"]
        videos = list(generator.generate_videos(prompts, output_path=tmp_path, **SIZE))
    assert [video.prompt for video in videos] == ["a green square"]
    first = json.loads((tmp_path / "manifest.jsonl").read_text().splitlines()[0])
    assert first["status"] == "failed"
    assert "in the denoise stage" in first["error"]


def test_several_processes_cannot_replan(checkpoint):
    module = VideoModule.from_pretrained(checkpoint("t2v"), device_type="cpu")
    with pytest.raises(ValueError, match="needs one process, got num_gpus=2"):
        ModelPlacement(module, OffloadConfig(on_oom="replan"), on_gpu=True, num_processes=2)
