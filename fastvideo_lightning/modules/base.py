"""The contract of a video module: a diffusers pipeline whose models are its submodules."""

import time
import warnings
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar, overload

import lightning as L
import torch
from torch import nn

from fastvideo_lightning.checkpoint.pipeline import Checkpoint, load_pipeline, open_checkpoint
from fastvideo_lightning.checkpoint.weights import StoredWeight, file_key
from fastvideo_lightning.config import ResolvedSampling, SamplingParams
from fastvideo_lightning.modules.catalog import check_makes_frames, makes_video
from fastvideo_lightning.modules.context_parallel import check_tokens
from fastvideo_lightning.modules.guidance import guidance_of, is_guided
from fastvideo_lightning.modules.lora import TakesLora
from fastvideo_lightning.modules.media import check_inputs
from fastvideo_lightning.modules.pipelines import (
    Pipeline,
    guards_on_cpu,
    guided,
    is_guard,
    place_pipeline,
    send_guards_back,
    tell_of_guard,
)
from fastvideo_lightning.modules.results import Result, read_output
from fastvideo_lightning.modules.roles import Role, Roles, read_roles, role_of, stays_fp32
from fastvideo_lightning.modules.sampling import SamplingDefaults
from fastvideo_lightning.modules.schedulers import check_scheduler, chosen_scheduler
from fastvideo_lightning.modules.steps import Stage, StepWatch
from fastvideo_lightning.modules.weights_check import check_placement, find_unread, read_in_place
from fastvideo_lightning.output.video import GeneratedVideo
from fastvideo_lightning.prompts.dataset import ResolvedPrompt, params_of


class PeakMemory:
    """Measures what a GPU reserves at most inside a context; None elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.reserved_gib: float | None = None
        self._device = device

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.reserved_gib = torch.cuda.max_memory_reserved(self._device) / 2**30


def uncollated(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the batch of one prompt with the lists and tensors of a collating loader taken apart.

    Raises:
        ValueError: If it holds several prompts.
    """
    return {name: _single(name, value) for name, value in batch.items()}


def _single(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return value
    if len(value) != 1:
        raise ValueError(
            f"A batch must hold one prompt, got {len(value)} values of {name!r}. "
            "Pass batch_size=1 or batch_size=None to the DataLoader."
        )
    return value[0]


_FAMILIES: dict[str, type["VideoModule"]] = {}
_ANY = "any other"
_Family = TypeVar("_Family", bound="type[VideoModule]")


def family_of(*class_names: str) -> Callable[[_Family], _Family]:
    """Say that a module is for these diffusers pipelines; without names, for any other."""

    def register(module: _Family) -> _Family:
        _FAMILIES.update(dict.fromkeys(class_names or (_ANY,), module))
        return module

    return register


def find_family(class_name: str) -> type["VideoModule"]:
    """Return the module for a diffusers pipeline class; the generic one where none knows it."""
    return _FAMILIES.get(class_name, _FAMILIES[_ANY])


class VideoModule(TakesLora, L.LightningModule):
    """One diffusers video pipeline as a LightningModule.

    The pipeline's models are submodules under their own names, so a weight's FQN reads
    `transformer.blocks.17.attn1.to_q.weight`. Families override `sampling_defaults`,
    `check_sampling`, `pipeline_for` and `call_arguments`.

    Args:
        pipeline: The pipeline; a placed copy of it is kept, the object itself is left alone.
        weight_sources: Where the weights on meta lie, by FQN.
        sampling: What the checkpoint's `sampling.json` says.

    Attributes:
        context_parallel: Processes that make each video together; set by who wires the module.
    """

    context_parallel: int = 1

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        weight_sources: Mapping[str, StoredWeight] | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._home_device = torch.device("cpu")
        self._pipeline = place_pipeline(pipeline, self._home_device)
        self._weight_sources = MappingProxyType(dict(weight_sources or {}))
        self._called = self._pipeline  # the one that makes the current video, or made the last
        self._watch: StepWatch | None = None
        for name, component in pipeline.components.items():
            if isinstance(component, nn.Module):
                self.add_module(name, component)
        self._checkpoint_defaults = SamplingDefaults.from_mapping(sampling or {})
        self._file_keys: dict[Path, str] = {}
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str],
        *,
        base: str | PathLike[str] | None = None,
        component: Mapping[str, str | PathLike[str]] | None = None,
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        variant: str | None = None,
        allow_pickle: bool = False,
        device_type: str | None = None,
    ) -> "VideoModule":
        """Build the module of a checkpoint's family; only headers are read.

        Args:
            path: A folder in diffusers' layout, a hub id, `tiny-shapes`, or a file of weights.
            base: The pipeline that has the rest of the model, where `path` is a file.
            component: Files and folders that take the place of components, by their names.
            dtype: `auto`: fp32 on a CPU; on a GPU bf16, and fp32 for a VAE that was published so
                (Wan's). `fp8`, `int8`: so the denoisers' linear layers, by torchao, `auto` for the
                rest. A dtype or `bf16`, `fp16`, `fp32`: all components in it, as in diffusers.
            revision: Branch, tag or commit on the hub.
            variant: Variant of the weight files, such as `fp16`.
            allow_pickle: Load pickled weights where there are no others; they can run code.
            device_type: Where it will run, `cpu` or `cuda`; by default `cuda` where there is one.

        Raises:
            FileNotFoundError: If there is no such folder or hub id.
            CheckpointError: If it is no pipeline, incomplete or damaged.
            ValueError: If `dtype` or `variant` is unknown.
        """
        where = {"revision": revision, "variant": variant}
        checkpoint = open_checkpoint(
            path, base=base, component=component, **where, allow_pickle=allow_pickle
        )
        return cls.from_checkpoint(checkpoint, dtype=dtype, device_type=device_type)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        dtype: str | torch.dtype = "auto",
        device_type: str | None = None,
        keeps_blocks: bool = True,
    ) -> "VideoModule":
        """Build the module of a checkpoint that was opened; only headers are read.

        Args:
            checkpoint: What to build.
            dtype: As in `from_pretrained`.
            device_type: As in `from_pretrained`.
            keeps_blocks: Have linear layers compute with GGUF's blocks; else they are widened.
        """
        family = find_family(checkpoint.class_name) if cls is VideoModule else cls
        pipeline, sources = load_pipeline(
            checkpoint,
            dtype=dtype,
            device_type=device_type,
            stays_fp32=lambda _, model_class: stays_fp32(checkpoint.class_name, model_class),
            quantizes=lambda _, model_class: role_of(model_class) is Role.DENOISER,
            keeps_blocks=keeps_blocks,
        )
        module = family(pipeline, weight_sources=sources, sampling=checkpoint.sampling)
        # Now, for a file may be another one when somebody asks.
        module._file_keys = {p: file_key(p) for p in {each.file for each in sources.values()}}
        return module

    @classmethod
    def from_pipeline(cls, pipeline: Pipeline) -> "VideoModule":
        """Make the module of a pipeline that exists already; its models are shared with it."""
        family = find_family(type(pipeline).__name__) if cls is VideoModule else cls
        return family(pipeline)

    @property
    def pipeline(self) -> Pipeline:
        """The diffusers pipeline; it computes on `execution_device`."""
        self._pipeline.execution_device = self.execution_device
        return self._pipeline

    @property
    def execution_device(self) -> torch.device:
        """Where the pipeline computes: Fabric's device after its setup, else what was assigned."""
        return self._home_device if self._fabric is None else self._fabric.device

    @execution_device.setter
    def execution_device(self, device: torch.device | str) -> None:
        self._home_device = torch.empty(0, device=device).device  # with its index

    @property
    def weight_sources(self) -> Mapping[str, StoredWeight]:
        """Where the weights that were built on meta lie, by FQN."""
        return self._weight_sources

    def weight_file_key(self, path: Path) -> str:
        """Return what told the content of a file of weights when its header was read."""
        return self._file_keys.get(path) or file_key(path)

    @property
    def stage(self) -> Stage:
        """How far the current video is, or the last one was when it failed."""
        return Stage.IDLE if self._watch is None else self._watch.stage

    @property
    def current_timestep(self) -> Any:
        """The timestep of the current video's step, as the pipeline that makes it tells it."""
        return self._called.current_timestep

    @property
    def sampling_defaults(self) -> SamplingParams:
        """How a video is sampled where the user says nothing."""
        return self._checkpoint_defaults.over(self.family_defaults())

    def family_defaults(self) -> SamplingParams:
        """The family's sampling; what the checkpoint's `sampling.json` says goes over it."""
        return SamplingParams()

    @property
    def published_sizes(self) -> list[tuple[int, int]]:
        """Height and width of the videos that the model is published for, the largest first."""
        height, width = self.sampling_defaults.height, self.sampling_defaults.width
        return [(height, width)] if height is not None and width is not None else []

    @overload
    def resolve_sampling(self, params: SamplingParams) -> ResolvedSampling: ...

    @overload
    def resolve_sampling(self, params: SamplingParams, *, is_complete: bool) -> SamplingParams: ...

    def resolve_sampling(
        self, params: SamplingParams, *, is_complete: bool = True
    ) -> SamplingParams:
        """Fill in the defaults and check that this model can make it; reads no weight.

        Args:
            params: What was asked for; what this returned before is returned as it is.
            is_complete: Whether a video is to be made of it. A plan needs its size alone, and no
                picture that the model starts from.

        Raises:
            ValueError: If the model cannot; names what, what came and the nearest that works.
            FileNotFoundError: If an image is not there.
        """
        if isinstance(params, ResolvedSampling):
            return params
        check_makes_frames(self._pipeline)
        check_inputs(params)
        check_scheduler(self.pipeline, params)
        resolved = self.fill_sampling(params)
        self.check_sampling(resolved)
        if is_complete:
            self.check_complete(resolved)
        check_tokens(self, resolved)
        self._checkpoint_defaults.warn_outside(resolved)
        for text in self.without_effect(params, resolved):
            warnings.warn(text, stacklevel=2)
        return ResolvedSampling(**resolved.given()) if is_complete else resolved

    def without_effect(self, params: SamplingParams, resolved: SamplingParams) -> list[str]:
        """Say what of the settings that were given is taken and read by nobody.

        Args:
            params: What was given.
            resolved: With the defaults.
        """
        found = []
        if params.fps is not None and not makes_video(self._pipeline):
            found.append("fps has no effect: the model makes a picture. Leave it out.")
        if params.negative_prompt and not is_guided(self.pipeline, resolved):
            found.append(
                "negative_prompt has no effect: the model reads it with guidance alone, and "
                f"{guidance_of(self.pipeline, resolved)} turns that off. Leave it out, or pass "
                "more than 1."
            )
        return found

    def fill_sampling(self, params: SamplingParams) -> SamplingParams:
        """Put the defaults where `params` says nothing."""
        return self.sampling_defaults.merge(**params.given())

    def check_sampling(self, params: SamplingParams) -> None:
        """Raise ValueError for what this family cannot make."""

    def check_complete(self, params: SamplingParams) -> None:
        """Raise ValueError for a picture, video or argument that is missing."""

    @property
    def needs_image(self) -> bool:
        """Whether the model makes nothing without a picture."""
        return False

    def pipeline_for(self, params: SamplingParams) -> Pipeline:
        """Return the pipeline that makes such a video."""
        return self.pipeline

    @property
    def denoisers_take_turns(self) -> bool:
        """Whether of several denoisers each has a part of the steps to itself."""
        return False

    def denoiser_of_step(self, step: int) -> str:
        """FQN of the denoiser that computes a step of the video being made."""
        return next(iter(self.denoisers), "")

    def call_arguments(self, params: SamplingParams) -> dict[str, Any]:
        """Return the pipeline call's arguments, without prompt, generator and output."""
        raise NotImplementedError

    def prompt_arguments(self, prompt: str) -> dict[str, Any]:
        """Return how the pipeline's call takes the prompt."""
        return {"prompt": prompt}

    @property
    def roles(self) -> Roles:
        """The components by role."""
        return read_roles(dict(self.named_children()))

    @property
    def denoisers(self) -> tuple[str, ...]:
        """FQNs of the models called in every step."""
        return self.roles.denoisers

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """FQNs of the models that read the prompt."""
        return self.roles.text_encoders

    @property
    def image_encoders(self) -> tuple[str, ...]:
        """FQNs of the models that look at an input image."""
        return self.roles.image_encoders

    @property
    def vaes(self) -> tuple[str, ...]:
        """FQNs of the models that turn latents into frames."""
        return self.roles.vaes

    def num_tokens(self, params: SamplingParams) -> int | None:
        """Return how many tokens a denoiser sees in such a video, where the family knows."""
        return None

    @property
    def size_steps(self) -> Mapping[str, int]:
        """Steps of `num_frames`, `height` and `width` by which a video's size can change."""
        return {"num_frames": 1, "height": 1, "width": 1}

    def cpu(self) -> Self:
        """Move it to the CPU: what has not been read is read there."""
        return self if find_unread(self) else super().cpu()

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move it.

        Raises:
            RuntimeError: If weights have not been read yet, and it is not to the CPU.
        """
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        fqn = None if device is None else find_unread(self)
        if fqn is None:
            return super().to(*args, **kwargs)
        if device.type == "cpu" and dtype is None:
            return self
        raise RuntimeError(
            f"The weights of {fqn} have not been read yet, so they cannot be moved to {device}. "
            "Placement callbacks read them; under lightning.Trainer pass "
            "strategy=TrainerHostResidentStrategy(), which moves none."
        )

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int = 0) -> GeneratedVideo:
        """Make one video.

        Args:
            batch: `prompt` and any of `index` and the `SamplingParams` fields; lists and tensors
                of one, as a collating loader makes them, are taken apart.
            batch_idx: Not used.

        Returns:
            The video, `frames` as diffusers' `output_type="pil"` has them: times 255, rounded.
        """
        item = batch if isinstance(batch, ResolvedPrompt) else uncollated(batch)
        prompt, index = item["prompt"], item.get("index", 0)
        params = self.resolve_sampling(params_of(item))
        self.check_placement()
        started = time.perf_counter()
        with PeakMemory(self.execution_device) as peak, torch.no_grad():
            result = self._sample(prompt, params)
        assert params.fps is not None
        return GeneratedVideo(
            frames=result.frames,
            audio=result.audio,
            prompt=prompt,
            seed=params.seed,
            fps=params.fps,
            index=index,
            generation_time_s=time.perf_counter() - started,
            peak_gpu_memory_gib=peak.reserved_gib,
        )

    def on_predict_start(self) -> None:
        """Check the placement, after the callbacks had their turn."""
        self.check_placement()

    def check_placement(self) -> None:
        """Raise RuntimeError naming a component that nothing has placed; a CPU run reads it."""
        device = self.execution_device
        for name, component in self.named_children():
            if is_guard(component):
                tell_of_guard(name, device)
                continue
            if device.type == "cpu":
                read_in_place(name, component, self.weight_sources, device)
            check_placement(name, component, device)

    def teardown(self, stage: str = "predict") -> None:
        """Let `fabric.call("teardown")` pass: Fabric calls modules too, without a stage."""

    def _sample(self, prompt: str, params: SamplingParams) -> Result:
        self._watch = StepWatch(self._announce, params.num_inference_steps or 1)
        denoisers = map(self.get_submodule, self.denoisers)
        scheduled, pipeline = chosen_scheduler(self._pipeline, params), self._pipeline
        with scheduled, guided(pipeline, params), guards_on_cpu(pipeline):
            pipeline = self._called = self.pipeline_for(params)
            with self._watch.watch(pipeline, denoisers) as watching:
                output = pipeline(
                    **self.prompt_arguments(prompt),
                    generator=torch.Generator("cpu").manual_seed(params.seed),
                    output_type="np",
                    **self.call_arguments(params),
                    **watching,
                )
        return read_output(output, self._pipeline)

    def _announce(self, moment: str, step: int, num_steps: int, **made: Any) -> None:
        if moment == "on_denoise_step_start" and step == 0:
            send_guards_back(self._pipeline)
        if self._fabric is not None:
            self._fabric.call(
                moment,
                fabric=self._fabric,
                module=self,
                step=step,
                num_steps=num_steps,
                denoiser=self.denoiser_of_step(step),
                following=self._after_step(step, num_steps),
                **made,
            )

    def _after_step(self, step: int, num_steps: int) -> str:
        """FQN of the component that a step is followed by."""
        if step + 1 < num_steps:
            return self.denoiser_of_step(step + 1)
        return next(iter(self.vaes), "")
