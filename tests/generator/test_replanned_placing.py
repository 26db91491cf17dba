"""Running out of device memory while weights are placed."""

import json

import numpy as np
import pytest
import torch
from support.checkpoints import PROMPT, SIZE
from support.running_out import ALL_RESIDENT, make, make_generator, run_out

from fastvideo_lightning import (
    OffloadConfig,
    OutOfGPUMemoryError,
    SamplingParams,
    VideoGenerator,
    VideoModule,
    make_plan,
)
from fastvideo_lightning.callbacks import Resident
from fastvideo_lightning.generator import replan


def run_out_loading(monkeypatch, *, times):
    """Have the first that are to stay on the device find no memory; returns who tried."""
    attach, tried = Resident.attach, []

    def fail(self, *args, **kwargs):
        tried.append(self.target)
        if len(tried) <= times:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return attach(self, *args, **kwargs)

    monkeypatch.setattr(Resident, "attach", fail)
    return tried


def test_running_out_while_loading_names_a_plan_and_the_next_load_works(
    checkpoint, on_gpu, monkeypatch
):
    module = VideoModule.from_pretrained(checkpoint("t2v"), device_type="cpu")
    tried = run_out_loading(monkeypatch, times=1)
    # All of it fits into a GiB, so the plan has all of it there.
    flags = OffloadConfig(gpu_memory_budget=1)
    with VideoGenerator(module, flags, accelerator="cpu") as generator:
        with pytest.raises(OutOfGPUMemoryError, match="while placing the weights") as caught:
            make(generator)
        assert caught.value.stage is None
        assert caught.value.flags
        assert "Less is taken" in str(caught.value)
        assert len(tried) == 1
        video = make(generator)
    with make_generator(checkpoint) as generator:
        assert np.array_equal(video.frames, make(generator).frames)


@pytest.mark.parametrize("times", [1, 3])
def test_loading_is_tried_again_twice_at_most_where_one_may_replan(
    times, checkpoint, on_gpu, monkeypatch, caplog
):
    with make_generator(checkpoint) as generator:
        expected = make(generator)
        whole = make_plan(generator.module, SamplingParams(**SIZE), flags=ALL_RESIDENT).prediction
    if times == 3:
        monkeypatch.setattr(replan, "choose_tighter", lambda *_: whole)
    tried = run_out_loading(monkeypatch, times=times)
    module = VideoModule.from_pretrained(checkpoint("t2v"), device_type="cpu")
    flags = OffloadConfig(gpu_memory_budget=1, on_oom="replan")
    with VideoGenerator(module, flags, accelerator="cpu") as generator:
        if times == 1:
            video = make(generator)
            assert np.array_equal(video.frames, expected.frames)
            assert (video.num_replans, make(generator).num_replans) == (1, 0)
            assert "Out of GPU memory while placing the weights: placing them again" in caplog.text
            return
        with pytest.raises(OutOfGPUMemoryError, match="while placing the weights"):
            make(generator)
        assert len(tried) == 3


def test_a_replan_while_weights_are_placed_is_the_first_videos_in_the_manifest(
    checkpoint, on_gpu, monkeypatch, tmp_path
):
    run_out_loading(monkeypatch, times=1)
    module = VideoModule.from_pretrained(checkpoint("t2v"), device_type="cpu")
    flags = OffloadConfig(gpu_memory_budget=1, on_oom="replan")
    with VideoGenerator(module, flags, accelerator="cpu") as generator:
        for folder in ("first", "second"):
            prompts = [PROMPT, "a green square"]
            list(generator.generate_videos(prompts, output_path=tmp_path / folder, **SIZE))
    counts = [
        json.loads(line)["memory"]["num_replans"]
        for folder in ("first", "second")
        for line in (tmp_path / folder / "manifest.jsonl").read_text().splitlines()
    ]
    assert counts == [1, 0, 0, 0]


def test_running_out_while_placed_anew_is_explained_and_the_next_video_is_right(
    checkpoint, on_gpu, monkeypatch
):
    with make_generator(checkpoint, on_oom="replan") as generator:
        expected = make(generator)
        generator._placing.replace(generator.launch(), OffloadConfig(**ALL_RESIDENT))
        run_out(generator, "transformer", times=1)
        tried = run_out_loading(monkeypatch, times=1)
        with pytest.raises(OutOfGPUMemoryError):
            make(generator)
        assert tried == ["transformer"]
        assert np.array_equal(make(generator).frames, expected.frames)
        assert tried.count("transformer") == 2  # what was left half placed is placed anew
