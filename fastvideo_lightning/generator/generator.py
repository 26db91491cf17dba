"""VideoGenerator: where configuration, strategy, callbacks, module and loop meet.

Nothing heavy is imported here before the choices of the user were checked.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, Self

from fastvideo_lightning.batch.generating import GeneratesBatches
from fastvideo_lightning.config import OffloadConfig, SamplingParams, check_keywords, check_switch
from fastvideo_lightning.config.conflicts import check_dtype
from fastvideo_lightning.config.devices import check_devices, count_nodes
from fastvideo_lightning.lora import GeneratesWithLora
from fastvideo_lightning.output.files import check_output_folder
from fastvideo_lightning.output.video import GeneratedVideo
from fastvideo_lightning.prompts.dataset import PromptDataset, check_prompt
from fastvideo_lightning.saving import Saving

if TYPE_CHECKING:
    import lightning as L
    import torch

    from fastvideo_lightning.modules import VideoModule
    from fastvideo_lightning.plan import Plan

__all__ = ["VideoGenerator", "check_devices"]

_FLAGS = tuple(OffloadConfig.__dataclass_fields__)
_SAMPLING = tuple(SamplingParams.__dataclass_fields__)
_SAVING = ("output_path", "save_video")
_LOADING = (
    *("num_gpus", "accelerator", "dtype", "callbacks", "progress"),
    *("revision", "variant", "allow_pickle"),
)


class VideoGenerator(GeneratesBatches, GeneratesWithLora):
    """Makes videos with one model, whose weights are where the flags say.

    Usually made by `from_pretrained`; the constructor takes the pieces, and `setup` reads weights.

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
        from fastvideo_lightning.generator.placing import Placing
        from fastvideo_lightning.generator.replan import Replanning
        from fastvideo_lightning.loop import check_callbacks
        from fastvideo_lightning.modules.acceleration import check_attention_backend
        from fastvideo_lightning.strategies import check_context

        config = config or OffloadConfig()
        self._accelerator = check_devices(num_gpus, accelerator)
        self._num_gpus = num_gpus
        backend, context_parallel = config.attention_backend, config.context_parallel
        check_attention_backend(backend, context_parallel=context_parallel)
        check_context(module, config.context_parallel, num_gpus)
        module.context_parallel = config.context_parallel
        on_gpu = self._accelerator != "cpu"
        self._placing = Placing(module, config, on_gpu=on_gpu, num_processes=num_gpus)
        self._replanning = Replanning(self._placing)
        self._callbacks = check_callbacks(callbacks)
        self._progress = progress
        self._saving = Saving()
        self._module: VideoModule | None = module
        self._fabric: L.Fabric | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = "tiny-shapes",
        *,
        num_gpus: int = 1,
        accelerator: str = "auto",
        dtype: "str | torch.dtype" = "auto",
        callbacks: Iterable[object] = (),
        progress: bool = True,
        revision: str | None = None,
        variant: str | None = None,
        allow_pickle: bool = False,
        **flags: Any,
    ) -> Self:
        """Load a model, ready to make videos.

        Args:
            model: A folder in diffusers' layout, a hub id, or `tiny-shapes`.
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
        config = OffloadConfig(**flags)
        check_dtype(dtype, config)
        device_type = check_devices(num_gpus, accelerator)
        from fastvideo_lightning.modules import VideoModule

        module = VideoModule.from_pretrained(
            model,
            dtype=dtype,
            revision=revision,
            variant=variant,
            allow_pickle=allow_pickle,
            device_type="cpu" if device_type == "cpu" else None,
        )
        generator = cls(
            module,
            config,
            num_gpus=num_gpus,
            accelerator=accelerator,
            callbacks=callbacks,
            progress=progress,
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
    def config(self) -> OffloadConfig:
        """The flags in force: the user's, and with a budget those that the plan chose."""
        return self._placing.config

    def plan(self, **sampling: Any) -> "Plan | None":
        """Plan a video for the budget, without reading a weight; None where there is no budget.

        Args:
            **sampling: As in `generate_video`.

        Raises:
            BudgetTooSmallError: If it does not fit; names the smallest that is possible.
        """
        return self._placing.plan_for(SamplingParams(**sampling))

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
        prompt: str,
        *,
        output_path: str | os.PathLike[str] = "output/",
        save_video: bool = True,
        **sampling: Any,
    ) -> GeneratedVideo:
        """Make a video of a prompt.

        Args:
            prompt: What it shows.
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
        from fastvideo_lightning.modules.prompt_checks import warn_of_unread

        module = self.module
        check_keywords(sampling, known=_SAMPLING, others=_SAVING, where="generate_video()")
        check_prompt(prompt)
        check_switch("save_video", save_video)
        params = SamplingParams(**sampling)
        module.resolve_sampling(params)
        warn_of_unread(module.pipeline, [{**sampling, "prompt": prompt}])
        if save_video:
            check_output_folder(output_path)
        self.setup(params)
        writer = VideoWriter(output_path) if save_video else None
        videos = list(self._iterate(PromptDataset([prompt], **params.given()), writer))
        # One prompt is the first rank's; the others get its video.
        video: Any = self._launch().broadcast(videos[0] if videos else None)
        assert isinstance(video, GeneratedVideo)
        return video

    def close(self) -> None:
        """Take the weights off the device and let go of the model; a second call does nothing."""
        module, self._module = self._module, None
        fabric, self._fabric = self._fabric, None
        if fabric is not None:
            self._placing.slow_down()
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

    def _launch(self) -> "L.Fabric":
        self.setup()
        assert self._fabric is not None
        return self._fabric

    def _iterate(self, prompts: Any, writer: Any) -> Iterator[Any]:
        fabric, skip_failure = self._launch(), getattr(writer, "skip_failure", None)
        videos = self._replanning.iterate(fabric, list(prompts), skip_failure)
        with self._saving.by(writer), closing(videos):
            for video in videos:
                yield video
                _ = self.module  # closed meanwhile, it makes no more
