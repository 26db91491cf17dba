import json

import numpy as np
import pytest
from support.checkpoints import PROMPT, SIZE

from fastvideo_lightning import VideoGenerator
from fastvideo_lightning.callbacks import MemoryReport, memory_report
from fastvideo_lightning.generator.placements import ModelPlacement
from fastvideo_lightning.offload.registry import engines_of
from fastvideo_lightning.offload.timing import TimedTransport


@pytest.fixture
def streaming(monkeypatch):
    """Have the weights placed as on a GPU: the engine copies inline on a CPU."""
    begin = ModelPlacement.__init__

    def as_on_gpu(self, *args, **kwargs):
        begin(self, *args, **{**kwargs, "on_gpu": True})

    monkeypatch.setattr(ModelPlacement, "__init__", as_on_gpu)


def make_generator(checkpoint, report):
    callbacks = [] if report is None else [report]
    return VideoGenerator.from_pretrained(checkpoint("t2v"), accelerator="cpu", callbacks=callbacks)


def make(generator):
    return generator.generate_video(PROMPT, save_video=False, seed=3, **SIZE)


def test_the_timeline_has_every_stage_and_step_and_what_was_copied(checkpoint, streaming, capsys):
    report = MemoryReport()
    with make_generator(checkpoint, report) as generator:
        (engine,) = engines_of(generator.module)
        before = engine.stats.bytes_copied
        video = make(generator)
        moved = engine.stats.bytes_copied - before
        assert not isinstance(engine.transport, TimedTransport)
    with make_generator(checkpoint, None) as generator:
        assert np.array_equal(make(generator).frames, video.frames)
    timeline = report.timeline
    names = [(span.stage, span.step) for span in timeline.spans]
    assert names == [("encode", None), ("denoise", 0), ("denoise", 1), ("decode", None)]
    assert 0 < moved == pytest.approx(sum(span.moved_bytes for span in timeline.spans), rel=0.6)
    for span, following in zip(timeline.spans, timeline.spans[1:], strict=False):
        assert span.begin_s < span.end_s == pytest.approx(following.begin_s)
    denoise = next(span for span in timeline.stages(0) if span.stage == "denoise")
    assert 0 < denoise.stall_s < denoise.elapsed_s
    assert all(sample.host_bytes > 1e6 for sample in timeline.samples)
    assert timeline.prompts == [PROMPT]
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines[-4:]] == [
        "GPU memory",
        "Host memory",
        "Copied to the GPU",
        "Stalls",
    ]


def test_on_a_cpu_the_report_says_what_there_was_not(checkpoint, tmp_path, capsys):
    path = tmp_path / "report.html"
    with make_generator(checkpoint, MemoryReport(path)) as generator:
        make(generator)
    assert "GPU: none, everything ran on the CPU" in path.read_text()
    for word in ("GPU memory, GiB", "stalled", "misses", "plan"):
        assert word not in path.read_text()
    assert str(path) in capsys.readouterr().err


def test_each_run_has_a_timeline_of_its_own(checkpoint):
    report = MemoryReport(quiet=True)
    with make_generator(checkpoint, report) as generator:
        make(generator)
        first = report.timeline
        make(generator)
    assert len(first.spans) == len(report.timeline.spans) == 4


def test_a_run_that_fails_leaves_a_report_with_the_reason(checkpoint, streaming, tmp_path):
    report = MemoryReport(tmp_path / "r.json", quiet=True)
    with make_generator(checkpoint, report) as generator:

        def fail(*_):
            raise ValueError("broken\nin detail")

        handle = generator.module.vae.decoder.register_forward_pre_hook(fail)
        with pytest.raises(ValueError, match="broken"):
            make(generator)
        handle.remove()
        values = json.loads((tmp_path / "r.json").read_text())
        assert values["error"] == "broken"
        assert [span["stage"] for span in values["spans"]] == ["encode", "denoise", "denoise"]
        (engine,) = engines_of(generator.module)
        assert not isinstance(engine.transport, TimedTransport)
        make(generator)
    assert report.timeline.error is None


def test_after_a_prompt_that_fails_the_others_are_measured_as_before(
    checkpoint, streaming, tmp_path
):
    report = MemoryReport(tmp_path / "r.json", quiet=True)
    with make_generator(checkpoint, report) as generator:

        def fail(*_):
            handle.remove()
            raise ValueError("broken")

        handle = generator.module.vae.decoder.register_forward_pre_hook(fail)
        prompts = ["one", "two", "three"]
        list(generator.generate_videos(prompts, output_path=tmp_path / "videos", **SIZE))
        (engine,) = engines_of(generator.module)
        assert not isinstance(engine.transport, TimedTransport)
    assert json.loads((tmp_path / "r.json").read_text())["error"] is None, "the run went on"
    timeline = report.timeline
    assert [len(timeline.stages(video)) for video in range(3)] == [2, 3, 3]
    assert all(timeline.stages(video)[1].moved_bytes for video in range(3))
    assert timeline.samples[-1].at_s > timeline.spans[-1].begin_s


def test_samples_take_constant_memory_however_long_the_run(monkeypatch):
    monkeypatch.setattr(memory_report, "_MAX_SAMPLES", 10)
    sampler = memory_report._Sampler([], memory_report.torch.device("cpu"), 0.0)
    for _ in range(500):
        sampler._take()
    assert len(sampler._samples) <= 10
    assert sampler._interval_s > 0.05
