"""The Wan family: text-to-video, image-to-video, two experts, and TI2V that takes both.

How each Wan checkpoint is sampled by default: sizes, frames, steps and guidance.

Taken from the inference settings on the public model cards (https://huggingface.co/Wan-AI) and, for
steps, from the models' own repositories (https://github.com/Wan-Video).
"""

from dataclasses import dataclass
from math import lcm
from typing import Any

from diffusers import WanImageToVideoPipeline

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules.base import VideoModule, family_of
from fastvideo_lightning.modules.media import check_media, load_media, load_rgb
from fastvideo_lightning.modules.pipelines import Pipeline, place_pipeline
from fastvideo_lightning.modules.sampling import check_grid, fit_image
from fastvideo_lightning.modules.signature import CallSignature

_BASE = SamplingParams(
    height=480,
    width=832,
    num_frames=81,
    fps=16,
    num_inference_steps=50,
    guidance_scale=5.0,
)
_HD = {"height": 720, "width": 1280}
_HEADS_OF_1_3B = 12


def wan_defaults(
    *,
    takes_image: bool,
    expands_timesteps: bool,
    has_two_experts: bool,
    num_heads: int,
    flow_shift: float | None,
) -> SamplingParams:
    """Return the defaults of a Wan checkpoint.

    Args:
        takes_image: Image-to-video.
        expands_timesteps: TI2V-5B.
        has_two_experts: A14B.
        num_heads: Attention heads: 12 in the 1.3B model, 40 in the 14B ones.
        flow_shift: The scheduler's; the 480P and 720P image-to-video models differ in nothing else.
    """
    if expands_timesteps:
        return _BASE.merge(height=704, width=1280, num_frames=121, fps=24)
    if has_two_experts and takes_image:
        return _BASE.merge(num_inference_steps=40, guidance_scale=3.5, guidance_scale_2=3.5)
    if has_two_experts:
        return _BASE.merge(**_HD, num_inference_steps=40, guidance_scale=4.0, guidance_scale_2=3.0)
    if takes_image:
        return _BASE.merge(**_HD) if flow_shift is not None and flow_shift >= 5 else _BASE
    if num_heads <= _HEADS_OF_1_3B:
        return _BASE.merge(guidance_scale=3.0)
    return _BASE.merge(**_HD)


_TEXT_TOKENS = 512  # what every Wan was trained with
_PIPELINE_STEP = 16  # both Wan pipelines refuse sizes that are no multiple of it


@dataclass(frozen=True)
class WanKind:
    """What tells the Wan checkpoints apart.

    Attributes:
        takes_image: The pipeline is `WanImageToVideoPipeline`: it cannot do without an image.
        expands_timesteps: Wan 2.2 TI2V-5B: one timestep per patch; an image is optional.
        has_two_experts: Wan 2.2 A14B: `transformer_2` takes over below a boundary.
    """

    takes_image: bool
    expands_timesteps: bool
    has_two_experts: bool


@family_of("WanPipeline", "WanImageToVideoPipeline")
class WanModule(VideoModule):
    """Wan 2.1 and 2.2 over diffusers' `WanPipeline` and `WanImageToVideoPipeline`."""

    @property
    def kind(self) -> WanKind:
        """Which Wan this is, by its pipeline's class and configuration."""
        config = self.pipeline.config
        return WanKind(
            takes_image=isinstance(self.pipeline, WanImageToVideoPipeline),
            expands_timesteps=bool(config.expand_timesteps),
            has_two_experts=config.boundary_ratio is not None,
        )

    def family_defaults(self) -> SamplingParams:
        """The settings on the public model cards."""
        kind = self.kind
        return wan_defaults(
            takes_image=kind.takes_image,
            expands_timesteps=kind.expands_timesteps,
            has_two_experts=kind.has_two_experts,
            num_heads=self._denoiser_config.num_attention_heads,
            flow_shift=self.pipeline.scheduler.config.get("flow_shift"),
        )

    @property
    def published_sizes(self) -> list[tuple[int, int]]:
        """Of the models that are published for two sizes both; of the others their own."""
        kind = self.kind
        is_large = self._denoiser_config.num_attention_heads > _HEADS_OF_1_3B
        has_both = is_large and (kind.has_two_experts or not kind.takes_image)
        if kind.expands_timesteps or not has_both:
            return super().published_sizes
        return [(_HD["height"], _HD["width"]), (480, 832)]

    def fill_sampling(self, params: SamplingParams) -> SamplingParams:
        """Fill in the defaults; without a size, an image keeps its shape in the default area.

        A guidance scale given alone counts for both experts, as in diffusers.
        """
        resolved = super().fill_sampling(params)
        if params.guidance_scale is not None and params.guidance_scale_2 is None:
            resolved = SamplingParams(**{**resolved.given(), "guidance_scale_2": None})
        image = _picture(params, "image")
        if image is not None and params.height is None and params.width is None:
            resolved = fit_image(resolved, image, *self._size_steps)
        return resolved

    def check_sampling(self, params: SamplingParams) -> None:
        """Check sizes, frames, images and guidance against what diffusers would do silently."""
        assert params.height is not None
        assert params.width is not None
        assert params.num_frames is not None
        rope_length = self._denoiser_config.rope_max_seq_len
        patch_frames = self._denoiser_config.patch_size[0]
        for name, step in (("height", self._size_steps[0]), ("width", self._size_steps[1])):
            last = step * rope_length
            check_grid(name, getattr(params, name), first=step, step=step, last=last)
        # One latent frame for the first frame, one more for every group after it.
        group = self.pipeline.vae_scale_factor_temporal
        check_grid(
            "num_frames",
            params.num_frames,
            first=(patch_frames - 1) * group + 1,
            step=patch_frames * group,
            last=(patch_frames * rope_length - 1) * group + 1,
        )
        if params.max_sequence_length is not None:
            check_grid(
                "max_sequence_length",
                params.max_sequence_length,
                first=1,
                step=1,
                last=_TEXT_TOKENS,
            )
        self._check_images(params)
        self._check_further(params)
        self._check_steps(params)

    def check_complete(self, params: SamplingParams) -> None:
        """Ask for the first frame where the model starts from one."""
        if self.needs_image and _picture(params, "image") is None:
            raise ValueError(
                "This is an image-to-video model and image_path is missing. "
                "Pass the first frame: image_path='image.png'."
            )

    @property
    def needs_image(self) -> bool:
        """The image-to-video models do; TI2V takes one where there is one."""
        return self.kind.takes_image

    def num_tokens(self, params: SamplingParams) -> int:
        """Return the patches of the latents, over time, height and width."""
        assert params.height is not None
        assert params.width is not None
        assert params.num_frames is not None
        pipeline = self.pipeline
        frames, height, width = self._denoiser_config.patch_size
        scale, group = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
        rows, columns = params.height // scale // height, params.width // scale // width
        return int(((params.num_frames - 1) // group + 1) // frames * rows * columns)

    @property
    def size_steps(self) -> dict[str, int]:
        """Pixels and frames that one patch covers."""
        group = self.pipeline.vae_scale_factor_temporal * self._denoiser_config.patch_size[0]
        return {"num_frames": group, "height": self._size_steps[0], "width": self._size_steps[1]}

    def pipeline_for(self, params: SamplingParams) -> Pipeline:
        """Return the pipeline; for TI2V with an image, the other one over the same components."""
        pipeline = self.pipeline
        if self.kind.takes_image or _picture(params, "image") is None:
            return pipeline
        components = {"image_encoder": None, "image_processor": None, **pipeline.components}
        # Not `from_pipe`, which would cast every component to fp32.
        return place_pipeline(
            WanImageToVideoPipeline(  # type: ignore[no-untyped-call]
                **components,
                boundary_ratio=pipeline.config.boundary_ratio,
                expand_timesteps=pipeline.config.expand_timesteps,
            ),
            self.execution_device,
        )

    @property
    def denoisers_take_turns(self) -> bool:
        """The experts of A14B do."""
        return self.kind.has_two_experts

    def denoiser_of_step(self, step: int) -> str:
        """The first expert down to the boundary, the second below it."""
        if not self.kind.has_two_experts:
            return super().denoiser_of_step(step)
        scheduler = self.pipeline.scheduler
        boundary = self.pipeline.config.boundary_ratio * scheduler.config.num_train_timesteps
        return "transformer" if scheduler.timesteps[step] >= boundary else "transformer_2"

    def call_arguments(self, params: SamplingParams) -> dict[str, Any]:
        """Return the arguments of either Wan pipeline."""
        names = ["negative_prompt", "height", "width", "num_frames", "num_inference_steps"]
        names += ["guidance_scale", "guidance_scale_2", "max_sequence_length"]
        given = params.given()
        arguments = {name: given[name] for name in names if name in given}
        if params.image_path is not None:
            arguments["image"] = load_rgb(params.image_path)
        if params.last_image_path is not None:
            arguments["last_image"] = load_rgb(params.last_image_path)
        further = params.pipeline_arguments or {}
        return arguments | {name: load_media(value) for name, value in further.items()}

    @property
    def _denoiser_config(self) -> Any:
        first, second = self.pipeline.transformer, self.pipeline.transformer_2
        # Not `or`: a compiled model's truth is its length, which it has not.
        return (second if first is None else first).config

    @property
    def _size_steps(self) -> tuple[int, int]:
        """Height and width in pixels that one patch covers, at least what the pipeline asks for."""
        scale = self.pipeline.vae_scale_factor_spatial
        _, patch_height, patch_width = self._denoiser_config.patch_size
        return lcm(scale * patch_height, _PIPELINE_STEP), lcm(scale * patch_width, _PIPELINE_STEP)

    def _check_images(self, params: SamplingParams) -> None:
        kind, config = self.kind, self._denoiser_config
        image, last_image = _picture(params, "image"), _picture(params, "last_image")
        if image is not None and not (kind.takes_image or kind.expands_timesteps):
            raise ValueError(
                f"This is a text-to-video model and takes no image, got {_named(params, 'image')}. "
                "Leave it out, or load an image-to-video model."
            )
        if last_image is None:
            return
        if not kind.takes_image or kind.expands_timesteps:
            raise ValueError(
                f"This model takes no last frame, got {_named(params, 'last_image')}. Leave it out."
            )
        if config.image_dim is not None and config.pos_embed_seq_len is None:
            raise ValueError(
                "This image-to-video model was made for a first frame only, got "
                f"{_named(params, 'last_image')}. Leave it out, or load a first-last-frame model."
            )
        if params.num_frames == 1:
            raise ValueError("A first and a last frame need num_frames=5 or more, got 1.")

    def _check_further(self, params: SamplingParams) -> None:
        if params.video_path is not None:
            raise ValueError(
                f"This model takes no video, got video_path={str(params.video_path)!r}. "
                "Leave it out, or load a video-to-video model."
            )
        further = params.pipeline_arguments or {}
        starts_from_image = self.kind.takes_image or _picture(params, "image") is not None
        called = WanImageToVideoPipeline if starts_from_image else self.pipeline
        name = type(self.pipeline).__name__
        CallSignature(called).check_further(further, set(params.given()), name)
        for argument, value in further.items():
            check_media(argument, value)

    def _check_steps(self, params: SamplingParams) -> None:
        assert params.num_inference_steps is not None
        last = self.pipeline.scheduler.config.num_train_timesteps
        check_grid("num_inference_steps", params.num_inference_steps, first=1, step=1, last=last)
        if params.guidance_scale_2 is not None and not self.kind.has_two_experts:
            raise ValueError(
                f"guidance_scale_2={params.guidance_scale_2} is for models with two experts, and "
                "this one has one. Pass guidance_scale instead."
            )


def _picture(params: SamplingParams, argument: str) -> Any:
    """Return a picture that goes in: the path of one, or what `pipeline_arguments` has for it."""
    path = getattr(params, f"{argument}_path")
    return path if path is not None else (params.pipeline_arguments or {}).get(argument)


def _named(params: SamplingParams, argument: str) -> str:
    path = getattr(params, f"{argument}_path")
    return f"{argument} in pipeline_arguments" if path is None else f"{argument}_path={str(path)!r}"
