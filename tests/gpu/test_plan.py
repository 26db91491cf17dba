"""On a GPU: a budget is kept, the report has what only a device can tell, and probing works."""

import numpy as np
import pytest
import torch
from support.checkpoints import PROMPT, SIZE

from fastvideo_lightning import OutOfGPUMemoryError, VideoGenerator
from fastvideo_lightning.callbacks import MemoryReport
from fastvideo_lightning.plan.machine import GIB
from fastvideo_lightning.plan.probe import probe
from tests.gpu import requires_gpu

pytestmark = [pytest.mark.gpu, requires_gpu]
FLAGS = {"text_encoder_cpu_offload": False}


def make(generator, **options):
    return generator.generate_video(PROMPT, save_video=False, seed=3, **{**SIZE, **options})


def test_a_budget_is_kept_and_the_pixels_are_the_same(checkpoint):
    with VideoGenerator.from_pretrained(checkpoint("t2v"), **FLAGS) as generator:
        expected = make(generator)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()  # workspaces and what earlier tests hold
    with VideoGenerator.from_pretrained(
        checkpoint("t2v"), gpu_memory_budget=1, **FLAGS
    ) as generator:
        video = make(generator)
        assert video.peak_gpu_memory_gib <= 1
        plan = generator.plan(**SIZE)
        assert video.peak_gpu_memory_gib * GIB - before <= plan.reserved_bytes
    assert np.array_equal(video.frames, expected.frames)


def test_the_allocator_is_capped_and_free_again_afterwards(checkpoint):
    with VideoGenerator.from_pretrained(checkpoint("t2v"), gpu_memory_budget=1) as generator:
        make(generator)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2 * GIB, dtype=torch.uint8, device="cuda")
    torch.empty(2 * GIB, dtype=torch.uint8, device="cuda")


@pytest.mark.parametrize("on_oom", ["raise", "replan"])
def test_after_running_out_of_memory_the_next_video_is_right(on_oom, checkpoint):
    with VideoGenerator.from_pretrained(
        checkpoint("t2v"), gpu_memory_budget=1, on_oom=on_oom, **FLAGS
    ) as generator:
        expected = make(generator)
        failures = [1]

        def fill_up(*_):
            if failures:
                failures.pop()
                torch.empty(4 * GIB, dtype=torch.uint8, device="cuda")

        generator.module.transformer.register_forward_pre_hook(fill_up)
        if on_oom == "raise":
            with pytest.raises(OutOfGPUMemoryError, match="denoise stage"):
                make(generator)
        else:
            video = make(generator)
            assert video.num_replans == 1
            assert np.array_equal(video.frames, expected.frames) or generator.config.vae_tiling
        assert np.array_equal(make(generator).frames, make(generator).frames)


def test_the_report_has_memory_copies_and_times_of_the_device(checkpoint, tmp_path):
    report = MemoryReport(tmp_path / "report.json", link_bytes_per_s=50e9, quiet=True)
    with VideoGenerator.from_pretrained(checkpoint("t2v"), callbacks=[report]) as generator:
        make(generator)
        video = make(generator)
    timeline = report.timeline
    assert [span.stage for span in timeline.spans] == ["encode", "denoise", "denoise", "decode"]
    assert timeline.has_gpu
    assert all(span.elapsed_s > 0 for span in timeline.spans)
    assert sum(span.moved_bytes for span in timeline.spans) > 0
    peak = max(span.peak_reserved_bytes for span in timeline.spans)
    assert peak == pytest.approx(video.peak_gpu_memory_gib * GIB)
    assert sum(span.elapsed_s for span in timeline.spans) == pytest.approx(
        video.generation_time_s, rel=0.3
    )


def test_the_machine_can_be_measured():
    machine = probe(torch.device("cuda", 0))
    assert 1e9 < machine.link_bytes_per_s < 1e12
    assert 1e12 < machine.attention_flops < 2 * machine.matmul_flops
    assert 1e11 < machine.memory_bytes_per_s < 2e13
    assert 1e-7 < machine.launch_s < 1e-3
