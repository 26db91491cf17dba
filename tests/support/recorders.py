"""Stand-ins for the model and the generator: they note what the command asks of them."""

import logging
from pathlib import Path

import numpy as np
import pytest

import fastvideo_lightning
from fastvideo_lightning.cli.console import LIBRARY_LOGGERS
from fastvideo_lightning.config import ResolvedSampling
from fastvideo_lightning.output.video import GeneratedVideo
from fastvideo_lightning.prompts.dataset import ResolvedPrompt


class RecordedPipeline:
    """Stands in for a pipeline without a tokenizer."""

    components = {}


class RecordedModule:
    """Stands in for a model."""

    pipeline = RecordedPipeline()

    def __init__(self, calls):
        self.calls = calls

    def check_takes_lora(self, *denoisers):
        self.calls.append(("check_lora",))


class RecordedGenerator:
    """Stands in for the generator, so that what reaches it can be read: opening takes seconds."""

    def __init__(self, calls):
        self.calls = calls
        self.module = RecordedModule(calls)

    def open(self, model, config, **options):
        self.calls.append(("open", model, config, options))
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.calls.append(("close",))

    def resolve(self, prompt, **sampling):
        self.calls.append(("resolve", prompt, sampling))
        return ResolvedPrompt(prompt, ResolvedSampling(**sampling))

    def plan(self, params):
        self.calls.append(("plan", params))

    def setup(self, params):
        self.calls.append(("setup",))

    def load_lora(self, path, *, weight, name, denoiser=None):
        self.calls.append(("lora", path, weight, name, denoiser))

    def generate_video(self, prompt, *, output_path, save_video):
        self.calls.append(("generate", prompt["prompt"], output_path, save_video))
        frames = np.zeros((17, 64, 96, 3), np.uint8)
        path = Path(output_path) / "video.mp4" if save_video else None
        return GeneratedVideo(
            frames, prompt["prompt"], 7, 16, video_path=path, generation_time_s=2.5
        )

    def generate_videos(self, prompts, **options):
        self.calls.append(("batch", prompts, options))
        return RecordedBatch(options["output_path"], len(prompts))


class RecordedBatch:
    """Stands in for a batch that was made."""

    failed = ()
    recovered = ()

    def __init__(self, output_path, total):
        self.paths = [Path(output_path) / f"{index}.mp4" for index in range(total)]
        self.total = self.num_made = total
        self.num_skipped = 0

    @property
    def num_there(self):
        return self.num_skipped + self.num_made

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __iter__(self):
        for path in self.paths:
            self.on_written(path)
            yield GeneratedVideo(np.zeros((17, 64, 96, 3), np.uint8), "a", 7, 16, video_path=path)


def record_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Have the command use the stand-ins; return the list that their calls are added to."""
    calls: list[tuple] = []
    monkeypatch.setitem(vars(fastvideo_lightning), "VideoGenerator", RecordedGenerator(calls))
    # What the command sets for its own process goes back after the test.
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        monkeypatch.setenv(name, "error")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    for name in LIBRARY_LOGGERS:
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "level", logger.level)
    return calls


def read_errors(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err.splitlines()
