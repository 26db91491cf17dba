"""VideoGenerator: where configuration, strategy, callbacks, module and loop meet.

Nothing heavy is imported here before the choices of the user were checked.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Self, Unpack
from weakref import ref

from fastvideo_lightning.batch.folder import BatchFolder
from fastvideo_lightning.batch.videos import VideoBatch
from fastvideo_lightning.config import (
    OffloadConfig,
    OffloadOptions,
    SamplingOptions,
    SamplingParams,
    check_keywords,
    check_switch,
)
from fastvideo_lightning.config.conflicts import check_dtype
from fastvideo_lightning.config.devices import check_devices, count_nodes
from fastvideo_lightning.output.files import check_output_folder
from fastvideo_lightning.output.video import GeneratedVideo
from fastvideo_lightning.prompts.dataset import (
    PromptDataset,
    ResolvedPrompt,
    check_prompt,
    read_shard,
)

if TYPE_CHECKING:
    import lightning as L
    import torch

    from fastvideo_lightning.modules import VideoModule
    from fastvideo_lightning.plan import Plan


__all__ = ["VideoGenerator", "check_devices"]


class CurrentWriter:
    """Stands among the callbacks for the writer of the current run, or for none.

    The callbacks of a Fabric are fixed when it is made; the folder of a video is not.
    """

    def __init__(self) -> None:
        self._writer: object | None = None
        self._is_running = False

    @contextmanager
    def use(self, writer: object | None) -> Iterator[None]:
        """Have `writer` hear the moments of the run inside the context; None: nothing is written.

        Raises:
            RuntimeError: If a run is going on, as a batch is that was not read to its end.
        """
        if self._is_running:
            raise RuntimeError(
                "This generator is in the middle of a batch. Read the videos of the batch to the "
                "end, or close() it."
            )
        self._writer, self._is_running = writer, True
        try:
            yield
        finally:
            self._writer, self._is_running = None, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


_SAMPLING = tuple(SamplingParams.__dataclass_fields__)
_TWICE = (
    "{} got a prompt that is resolved with its sampling, and {} besides. Pass all of them to "
    "resolve()."
)
_TAKEN = ("output_path", "resume", "fail_fast", "shard", "seeds")
_FLAGS = tuple(OffloadConfig.__dataclass_fields__)
_SAVING = ("output_path", "save_video")
_LOADING = (
    *("base", "component"),
    *("num_gpus", "accelerator", "dtype", "callbacks", "progress"),
    *("revision", "variant", "allow_pickle"),
)


class VideoGenerator:
    """Makes videos with one model, whose weights are where the flags say.

    Usually made by `from_pretrained`, or by `open`, which reads no weight; the constructor takes
    the pieces, and `setup` reads the weights.

    Args:
        module: The model.
        config: Where its weights live.
        num_gpus: Devices, one process each; on several machines, those of all.
        accelerator: `auto`, `cpu`, `gpu`, `cuda` or `mps`; `auto` is a GPU where there is one.
        callbacks: The user's own, called before those that the flags make.
        progress: Draw bars where stderr is a terminal.

    Raises:
        ValueError: If the machine has fewer GPUs, or no such attention backend.
        TypeError: If a callback has no method that is named after a moment.
    """

    _fabric: Any = None

    _batch: "ref[VideoBatch] | None" = None

    def __init__(
        self,
        module: "VideoModule",
        config: OffloadConfig | None = None,
        *,
        num_gpus: int = 1,
        accelerator: str = "auto",
        callbacks: Iterable[object] = (),
        progress: bool = True,
    ) -> None:
        from fastvideo_lightning.generator.placements import ModelPlacement
        from fastvideo_lightning.generator.replan import Replanner
        from fastvideo_lightning.loop import check_callbacks
        from fastvideo_lightning.modules.acceleration import check_attention_backend
        from fastvideo_lightning.strategies import check_context, check_guidance

        config = config or OffloadConfig()
        self._accelerator = check_devices(num_gpus, accelerator)
        self._num_gpus = num_gpus
        backend, context_parallel = config.attention_backend, config.context_parallel
        check_attention_backend(backend, context_parallel=context_parallel)
        check_context(module, config.context_parallel, num_gpus)
        check_guidance(config, num_gpus)
        module.context_parallel = config.context_parallel
        on_gpu = self._accelerator != "cpu"
        self._placing = ModelPlacement(module, config, on_gpu=on_gpu, num_processes=num_gpus)
        self._replanning = Replanner(self._placing)
        self._callbacks = check_callbacks(callbacks)
        self._progress = progress
        self._saving = CurrentWriter()
        self._module: VideoModule | None = module
        self._fabric: L.Fabric | None = None

    @classmethod
    def open(
        cls,
        model: str | os.PathLike[str] = "tiny-shapes",
        config: OffloadConfig | None = None,
        *,
        base: str | os.PathLike[str] | None = None,
        component: Mapping[str, str | os.PathLike[str]] | None = None,
        num_gpus: int = 1,
        accelerator: str = "auto",
        dtype: "str | torch.dtype" = "auto",
        callbacks: Iterable[object] = (),
        progress: bool = True,
        revision: str | None = None,
        variant: str | None = None,
        allow_pickle: bool = False,
    ) -> Self:
        """Open a model and check what was chosen for it; only headers are read.

        Args:
            model: A folder in diffusers' layout, a hub id, `tiny-shapes`, or a file of weights.
            config: Where its weights live.
            base: The pipeline that has the rest of the model, where `model` is a file.
            component: Files and folders that take the place of components, by their names.
            num_gpus: Devices, one process each.
            accelerator: `auto`, `cpu`, `gpu`, `cuda` or `mps`.
            dtype: As in `VideoModule.from_pretrained`.
            callbacks: The user's own, beside those the flags make.
            progress: Draw bars where stderr is a terminal.
            revision: Branch, tag or commit on the hub.
            variant: Variant of the weight files, such as `fp16`.
            allow_pickle: Load pickled weights where there are no others; they can run code.

        Raises:
            ValueError: If options conflict or the machine has fewer GPUs.
            FileNotFoundError, CheckpointError: If there is no such model, or it is damaged.
        """
        config = config or OffloadConfig()
        check_dtype(dtype, config)
        device_type = check_devices(num_gpus, accelerator)
        from fastvideo_lightning.modules import VideoModule

        module = VideoModule.from_pretrained(
            model,
            base=base,
            component=component,
            dtype=dtype,
            revision=revision,
            variant=variant,
            allow_pickle=allow_pickle,
            device_type="cpu" if device_type == "cpu" else None,
        )
        return cls(
            module,
            config,
            num_gpus=num_gpus,
            accelerator=accelerator,
            callbacks=callbacks,
            progress=progress,
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = "tiny-shapes",
        *,
        base: str | os.PathLike[str] | None = None,
        component: Mapping[str, str | os.PathLike[str]] | None = None,
        num_gpus: int = 1,
        accelerator: str = "auto",
        dtype: "str | torch.dtype" = "auto",
        callbacks: Iterable[object] = (),
        progress: bool = True,
        revision: str | None = None,
        variant: str | None = None,
        allow_pickle: bool = False,
        **flags: Unpack[OffloadOptions],
    ) -> Self:
        """Load a model, ready to make videos: `open`, then `setup`.

        Args:
            model: A folder in diffusers' layout, a hub id, `tiny-shapes`, or a file of weights.
            base: The pipeline that has the rest of the model, where `model` is a file.
            component: Files and folders that take the place of components, by their names.
            num_gpus: Devices, one process each.
            accelerator: `auto`, `cpu`, `gpu`, `cuda` or `mps`.
            dtype: As in `VideoModule.from_pretrained`.
            callbacks: The user's own, beside those the flags make.
            progress: Draw bars where stderr is a terminal.
            revision: Branch, tag or commit on the hub.
            variant: Variant of the weight files, such as `fp16`.
            allow_pickle: Load pickled weights where there are no others; they can run code.
            **flags: Fields of `OffloadConfig`.

        Raises:
            TypeError: If an option is unknown; names the nearest.
            ValueError: If options conflict or the machine has fewer GPUs.
            FileNotFoundError, CheckpointError: If there is no such model, or it is damaged.
        """
        check_keywords(flags, known=_FLAGS, others=_LOADING, where="from_pretrained()")
        generator = cls.open(
            model,
            OffloadConfig(**flags),
            base=base,
            component=component,
            num_gpus=num_gpus,
            accelerator=accelerator,
            dtype=dtype,
            callbacks=callbacks,
            progress=progress,
            revision=revision,
            variant=variant,
            allow_pickle=allow_pickle,
        )
        try:
            generator.setup()
        except BaseException:
            generator.close()
            raise
        return generator

    @property
    def module(self) -> "VideoModule":
        """The model; RuntimeError once the generator is closed."""
        if self._module is None:
            raise RuntimeError("This generator is closed. Make another one with from_pretrained.")
        return self._module

    @property
    def device_type(self) -> str:
        """Where the model computes: `cpu`, `cuda` or `mps`."""
        return self._accelerator

    @property
    def is_set_up(self) -> bool:
        """Whether the weights are read and placed."""
        return self._fabric is not None

    @property
    def config(self) -> OffloadConfig:
        """The flags in force: the user's, and with a budget those that the plan chose."""
        return self._placing.config

    def plan(
        self, params: SamplingParams | None = None, **sampling: Unpack[SamplingOptions]
    ) -> "Plan | None":
        """Plan a video for the budget, without reading a weight; None where there is no budget.

        Args:
            params: How it is sampled, such as of a prompt that is resolved.
            **sampling: The same as in `generate_video`, where no `params` are given.

        Raises:
            BudgetTooSmallError: If it does not fit; names the smallest that is possible.
        """
        if params is not None and sampling:
            raise TypeError(_TWICE.format("plan()", ", ".join(sampling)))
        return self._placing.plan_for(params or SamplingParams(**sampling))

    def resolve(self, prompt: str, **sampling: Unpack[SamplingOptions]) -> ResolvedPrompt:
        """Complete and check what a video is made of, and warn of what the model will not see.

        Args:
            prompt: What it shows.
            **sampling: As in `generate_video`, which takes what this returns in place of both.

        Raises:
            TypeError, ValueError, OSError: For what was passed; reads no weight.
        """
        from fastvideo_lightning.modules.prompt_checks import warn_of_unread

        check_keywords(sampling, known=_SAMPLING, others=(), where="resolve()")
        check_prompt(prompt)
        params = self.module.resolve_sampling(SamplingParams(**sampling))
        warn_of_unread(self.module.pipeline, [{**sampling, "prompt": prompt}])
        return ResolvedPrompt(prompt, params)

    @property
    def is_first_process(self) -> bool:
        """Whether this process is the one to print, of several that run the same script."""
        return self._fabric is None or self._fabric.is_global_zero

    def setup(self, params: SamplingParams | None = None) -> None:
        """Start the processes, read the weights and place them; calling it again does nothing.

        Args:
            params: The first video, whose size a budget is planned for.
        """
        module = self.module
        if self._fabric is not None:
            return
        import lightning as L

        from fastvideo_lightning.callbacks import ProgressBar
        from fastvideo_lightning.callbacks.progress import show_loading
        from fastvideo_lightning.checkpoint.weights import READ
        from fastvideo_lightning.modules.acceleration import compile_blocks
        from fastvideo_lightning.strategies import make_strategy

        bars = [ProgressBar()] if self._progress else []
        fabric = L.Fabric(
            accelerator=self._accelerator,
            devices=self._num_gpus // count_nodes(),
            num_nodes=count_nodes(),
            strategy=make_strategy(self._placing.given),
            callbacks=[*self._callbacks, *bars, self._replanning, self._saving],
        )
        if not os.environ.get("LT_CLI_USED"):  # `fabric run` has launched already
            fabric.launch()
        try:
            self._placing.begin(fabric, params, at=len(self._callbacks))
            shows = self._progress and fabric.is_global_zero
            loading = show_loading(module.weight_sources if shows else {}, READ.size)
            with loading:
                self._replanning.load(fabric, params)
            if self.config.compile:
                for fqn in module.denoisers:
                    compile_blocks(module, fqn)
            self._placing.accelerate()
        except BaseException:
            fabric.call("teardown")
            raise
        self._fabric = fabric

    def generate_video(
        self,
        prompt: str | ResolvedPrompt,
        *,
        output_path: str | os.PathLike[str] = "output/",
        save_video: bool = True,
        **sampling: Unpack[SamplingOptions],
    ) -> GeneratedVideo:
        """Make a video of a prompt.

        Args:
            prompt: What it shows, or what `resolve` made of it.
            output_path: Folder of the mp4, named by the prompt.
            save_video: Write it.
            **sampling: Fields of `SamplingParams`; left out or None, the model's family decides.

        Returns:
            The video, `frames` as `uint8 [frames, height, width, 3]`.

        Raises:
            TypeError, ValueError, OSError: For what was passed, before any work is done.
            OutOfGPUMemoryError: If memory runs out; names the stage and what would help.
        """
        from fastvideo_lightning.callbacks import VideoWriter

        _ = self.module  # of a generator that is not closed
        check_keywords(sampling, known=_SAMPLING, others=_SAVING, where="generate_video()")
        check_switch("save_video", save_video)
        if not isinstance(prompt, ResolvedPrompt):
            prompt = self.resolve(prompt, **sampling)
        elif sampling:
            raise TypeError(_TWICE.format("generate_video()", ", ".join(sampling)))
        if save_video:
            check_output_folder(output_path)
        self.setup(prompt.params)
        writer = VideoWriter(output_path) if save_video else None
        videos = list(self.iterate([prompt], writer))
        # One prompt is the first rank's; the others get its video.
        video: Any = self.launch().broadcast(videos[0] if videos else None)
        assert isinstance(video, GeneratedVideo)
        return video

    def generate_videos(
        self,
        prompts: Iterable[str | Mapping[str, Any]],
        *,
        output_path: str | os.PathLike[str] = "output/",
        resume: bool = True,
        fail_fast: bool = False,
        shard: str = "1/1",
        seeds: int = 1,
        **sampling: Unpack[SamplingOptions],
    ) -> VideoBatch:
        """Make a video of each prompt, with a manifest from which a broken run goes on.

        Any number of processes, on any machines that see the folder, may make one list together:
        each makes what no other has in work.

        Args:
            prompts: Texts, or mappings with `prompt` and `SamplingParams` fields that override, and
                with `name`, what the video's file is called.
            output_path: Folder of the videos and of `manifest.jsonl`.
            resume: Leave out what the manifest calls done and whose file is there unchanged.
            fail_fast: End with the first prompt that fails; else it is noted and the next follows.
            shard: Of the videos, make one part alone: `3/8` is the third one, the eleventh and so
                on. Each is the one that the whole list has.
            seeds: Videos of each prompt, one for each of that many seeds from its own on.
            **sampling: As in `generate_video`; the n-th prompt gets `seed + n`.

        Returns:
            An iterator over the videos that it makes, each with its `video_path`.

        Raises:
            TypeError, ValueError, OSError: For what was passed, before any work is done.
            StorageError: If the folder does not take what a batch keeps there.
        """
        check_keywords(sampling, known=_SAMPLING, others=_TAKEN, where="generate_videos()")
        check_switch("resume", resume)
        check_switch("fail_fast", fail_fast)
        from fastvideo_lightning.modules.prompt_checks import warn_of_unread

        module, dataset = self.module, PromptDataset(prompts, seeds=seeds, **sampling)
        warn_of_unread(module.pipeline, dataset)
        folder = BatchFolder(output_path, suffix=getattr(module, "file_suffix", ".mp4"))
        part = read_shard(shard)
        batch = VideoBatch(self, dataset, folder, resume=resume, fail_fast=fail_fast, shard=part)
        self._batch = ref(batch)
        return batch

    def _check_between_batches(self, verb: str) -> None:
        """Raise RuntimeError where a batch is read that a call of `verb` would change."""
        batch = None if self._batch is None else self._batch()
        if batch is not None and batch.is_open:
            raise RuntimeError(
                f"{verb} cannot be called in the middle of a batch: its other videos would not be "
                "what its manifest says. Read the videos of the batch to the end, or close() it."
            )

    @property
    def loras(self) -> dict[str, float]:
        """Weight of each loaded adapter by its name; 0 where it is switched off."""
        return self.module.loras

    def load_lora(
        self,
        path: str | os.PathLike[str],
        *,
        weight: float = 1.0,
        name: str | None = None,
        denoiser: str | None = None,
    ) -> str:
        """Load a LoRA (file, folder or hub id) beside those that are there; return its name."""
        self._check_between_batches("load_lora")
        self.module.check_takes_lora(denoiser)
        self.setup()
        return self.module.load_lora(path, weight=weight, name=name, denoiser=denoiser)

    def set_loras(self, weights: Mapping[str, float]) -> None:
        """Switch: the adapters given count with their weights, all others not at all."""
        self._check_between_batches("set_loras")
        self.module.set_loras(weights)

    def fuse_lora(self, *, scale: float = 1.0) -> None:
        """Add the active adapters to the model's weights."""
        self._check_between_batches("fuse_lora")
        self.module.fuse_lora(scale=scale)

    def unfuse_lora(self) -> None:
        """Take fused adapters out of the weights again."""
        self._check_between_batches("unfuse_lora")
        self.module.unfuse_lora()

    def unload_lora(self, name: str | None = None) -> None:
        """Remove an adapter, or all of them."""
        self._check_between_batches("unload_lora")
        self.module.unload_lora(name)

    def close(self) -> None:
        """Take the weights off the device and let go of the model; a second call does nothing."""
        module, self._module = self._module, None
        fabric, self._fabric = self._fabric, None
        if fabric is not None:
            self._placing.disable_acceleration()
            fabric.call("teardown")
            fabric._callbacks.clear()
        if module is not None:
            module._fabric = None
            del module
            self._placing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def launch(self) -> "L.Fabric":
        """Set up what is not yet, and return the Fabric that everything runs under."""
        self.setup()
        fabric: L.Fabric | None = self._fabric
        assert fabric is not None
        return fabric

    def iterate(self, prompts: Iterable[ResolvedPrompt], writer: Any) -> Iterator[GeneratedVideo]:
        """Make a video of each prompt, while `writer` hears the moments of the run."""
        fabric, skip_failure = self.launch(), getattr(writer, "skip_failure", None)
        takes = getattr(writer, "takes", None)
        videos = self._replanning.iterate(fabric, list(prompts), skip_failure, takes)
        with self._saving.use(writer), closing(videos):
            for video in videos:
                yield video
                _ = self.module  # closed meanwhile, it makes no more
