"""The studio: one model, the queue before it and the folder behind it.

Which pictures a model wants is found by asking it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastvideo_lightning.callbacks import MemoryReport
from fastvideo_lightning.checkpoint.pipeline import open_checkpoint
from fastvideo_lightning.config import MAX_FPS, OffloadConfig, ResolvedSampling, SamplingParams
from fastvideo_lightning.config.conflicts import check_auto_budget
from fastvideo_lightning.generator.generator import VideoGenerator
from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.modules.prompt_checks import unread
from fastvideo_lightning.modules.sampling import SamplingDefaults
from fastvideo_lightning.output.files import check_output_folder
from fastvideo_lightning.plan import Plan, make_plan
from fastvideo_lightning.plan.planner import check_budget
from fastvideo_lightning.prompts.dataset import ResolvedPrompt, check_prompt
from fastvideo_lightning.report import write_report
from fastvideo_lightning.serve.form import explain
from fastvideo_lightning.serve.jobs import Job, JobWatch, Progress, Request
from fastvideo_lightning.serve.limits import Limits
from fastvideo_lightning.serve.preview import Preview
from fastvideo_lightning.serve.queue import JobQueue


@dataclass(frozen=True)
class WantedImages:
    """Whether a model takes a first and a last frame."""

    first: bool
    last: bool

    @classmethod
    def of(cls, module: VideoModule) -> "WantedImages":
        """Offer the model a small picture for each and see what it says; reads no weight."""
        from PIL import Image

        with TemporaryDirectory() as folder:
            path = Path(folder) / "probe.png"
            Image.new("RGB", (64, 64)).save(path)

            def takes(**images: Any) -> bool:
                try:
                    module.resolve_sampling(SamplingParams(**images))
                except ValueError:
                    return False
                return True

            return cls(
                first=takes(image_path=path),
                last=takes(image_path=path, last_image_path=path),
            )


_HINTS = {
    "fps": f"1 to {MAX_FPS}",
    "guidance_scale": "1 turns it off",
    "gpu_memory_budget": "Empty: as the page was started",
}


@dataclass(frozen=True)
class Model:
    """Which model, in what, where.

    Attributes:
        name: A folder in diffusers' layout, a hub id, or `tiny-shapes`.
        config: Where its weights live.
        accelerator: As in `VideoGenerator`.
        device_type: What the accelerator is on this machine: `cpu`, `cuda` or `mps`.
        loading: `dtype`, `base`, `component`, `revision` and `variant`, as in
            `VideoModule.from_pretrained`.
    """

    name: str = "tiny-shapes"
    config: OffloadConfig = field(default_factory=OffloadConfig)
    accelerator: str = "auto"
    device_type: str = "cpu"
    loading: Mapping[str, Any] = field(default_factory=dict)

    def read_sampling(self) -> Mapping[str, Any]:
        """Read what its `sampling.json` says."""
        where = {k: v for k, v in self.loading.items() if k not in ("dtype", "allow_pickle")}
        return open_checkpoint(self.name, **where).sampling


class Studio:
    """Makes the videos that visitors ask for.

    Args:
        model: What makes them.
        output_path: Folder of the videos.
        limits: The most that one visitor may ask for.

    Raises:
        BudgetTooSmallError: If the model's budget has no room for any video.
        ValueError: If it is more than the GPU has.
    """

    def __init__(
        self,
        model: Model,
        *,
        output_path: str | os.PathLike[str] = "output/",
        limits: Limits | None = None,
    ) -> None:
        self.model = model
        self.output_path = Path(os.path.expanduser(output_path))
        self.limits = limits or Limits()
        self._watch, self._report = JobWatch(), MemoryReport(quiet=True)
        self._preview = Preview(model.name)
        self._generator = self._open(model.config)
        self.module = self._generator.module
        check_budget(self.module, model.config)
        self.images = WantedImages.of(self.module)
        self.defaults = self.module.sampling_defaults
        self._trained = SamplingDefaults.from_mapping(model.read_sampling()).trained
        self._placed = model.config
        self._queue = JobQueue(self._make, max_queue=self.limits.max_queue, explain=explain)

    def start(self) -> None:
        """Read the weights and place them, so that the first visitor does not wait for it."""
        check_output_folder(self.output_path)
        self._generator.setup()

    def describe(self) -> str:
        """Return one line about the model and the machine."""
        device = "the CPU"
        if self.model.device_type == "cuda":
            import torch

            device = torch.cuda.get_device_name()
        elif self.model.device_type != "cpu":
            device = "the GPU"
        return f"Model `{self.model.name}` on {device}. Videos are kept in `{self.output_path}`."

    @property
    def is_tiny_shapes(self) -> bool:
        """Whether the bundled model is served, for which the page has examples."""
        return self.model.name == "tiny-shapes"

    @property
    def has_gpu(self) -> bool:
        """Whether videos are made on a GPU."""
        return self.model.device_type != "cpu"

    def hint(self, name: str) -> str | None:
        """Return what suits a field, where the model or the limits say so."""
        if name in self._trained:
            low, high = self._trained[name]
            return f"Trained: {low} to {high}"
        most = self.limits.most(name)
        if name == "gpu_memory_budget" and not self.has_gpu:
            return "No GPU here: the plan alone has to keep it"
        return _HINTS.get(name) if most is None else f"At most {most}"

    def check(self, request: Request) -> ResolvedSampling:
        """Return how the video would be sampled.

        Raises:
            BudgetTooSmallError: If it does not fit; names the smallest budget.
            TypeError, ValueError, OSError: For what was asked; names what, and what to enter.
        """
        check_prompt(request.prompt)
        self.limits.check_prompt(request.prompt)
        if request.params.negative_prompt is not None:
            self.limits.check_prompt(request.params.negative_prompt, name="negative_prompt")
        self.limits.check(request.params)
        with self.limits.naming_limits():
            resolved = self.module.resolve_sampling(request.params)
        self.limits.check(resolved)
        if self._config_for(request).gpu_memory_budget is not None:
            self._plan(request)
        return resolved

    def plan(self, request: Request) -> Plan:
        """Return what goes where for the video on a GPU, and the memory and time it takes.

        Raises:
            TypeError, ValueError, OSError: As `check`, but for the prompt.
        """
        self.limits.check(request.params)
        return self._plan(request)

    def weights_on_cpu(self) -> dict[str, int] | None:
        """Return the bytes of each component's weights where the CPU computes; None with a GPU."""
        if self.has_gpu:
            return None
        models = self.module.named_children()
        return {fqn: sum(p.nbytes for p in model.parameters()) for fqn, model in models}

    def submit(self, request: Request) -> Job:
        """Check a request and queue it.

        Raises:
            TypeError, ValueError, OSError: As `check`.
            FullQueueError: If as many wait as may.
        """
        return self._queue.submit(replace(request, params=self.check(request)))

    def find(self, job_id: str) -> Job | None:
        """Return the job of that id, or None."""
        return self._queue.find(job_id)

    def look(self, job: Job) -> Progress:
        """Return what a job looks like now."""
        return self._queue.look(job)

    def preview(self) -> str:
        """Return what the video that denoises looks like, as an image's address, or nothing."""
        return self._preview.address()

    def cancel(self, job: Job) -> None:
        """Take a job out of the queue, or stop it at its next step."""
        self._queue.cancel(job)

    def stop(self) -> None:
        """Stop what is left, and tell so at once; what runs still ends its step."""
        self._queue.stop()

    def close(self) -> None:
        """Stop what is left, wait for the step that runs, and let go of the model."""
        self._queue.close()
        self._generator.close()

    def _plan(self, request: Request) -> Plan:
        name, config = self.model.name, self._config_for(request)
        check_auto_budget(config.gpu_memory_budget, on_gpu=self.has_gpu)
        with self.limits.naming_limits():
            return make_plan(self.module, request.params, flags=config, name=name)

    def _config_for(self, request: Request) -> OffloadConfig:
        """Return the flags of the page, with the visitor's budget in place."""
        if request.budget_gib is None:
            return self.model.config
        return replace(self.model.config, gpu_memory_budget=request.budget_gib)

    def _open(self, config: OffloadConfig) -> VideoGenerator:
        return VideoGenerator.open(
            self.model.name,
            config,
            accelerator=self.model.accelerator,
            callbacks=[self._watch, self._report, self._preview],
            **self.model.loading,
        )

    def _place_for(self, job: Job) -> None:
        """Place the model anew where this video's budget is another than the last one's."""
        config = self._config_for(job.request)
        if config == self._placed or self.model.device_type == "cpu":
            return
        job.reach("load")
        other = self._open(config)  # no weight is read yet
        self._generator.close()
        self._generator, self._placed = other, config

    def _make(self, job: Job) -> tuple[str, tuple[Path, ...]]:
        self._place_for(job)
        request = job.request
        params = self.module.resolve_sampling(request.params)
        prompt = ResolvedPrompt(request.prompt, params)
        self._watch.job = job
        if self.model.device_type != "cpu":
            self._report.plan = self._plan(request).to_dict()
        try:
            video = self._generator.generate_video(prompt, output_path=self.output_path)
        finally:
            self._watch.job = None
        assert video.video_path is not None
        files: tuple[Path, ...] = (video.video_path,)
        said = [*unread(self.module.pipeline, prompt)]
        report = video.video_path.with_suffix(".report.html")
        try:
            files += (write_report(self._report.timeline, report),)
        except OSError as error:
            said.append(explain(error))
        summary = " ".join([f"{video.summary}.", *said]) if said else video.summary
        return summary, files
