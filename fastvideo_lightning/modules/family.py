"""The module of a family that differs from others in facts alone."""

from typing import Any

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules.families import COGVIDEO_15, FAMILIES, Row
from fastvideo_lightning.modules.generic import GenericModule
from fastvideo_lightning.modules.pipelines import Pipeline
from fastvideo_lightning.modules.sampling import check_grid, fit_image

# What pipelines call the number of frames that the VAE makes one latent frame of.
_GROUPS = (
    "vae_scale_factor_temporal",
    "vae_temporal_compression_ratio",
    "vae_temporal_scale_factor",
)
_MOST_PIXELS, _MOST_FRAMES = 2**14, 2**14
_COGVIDEO_FPS = 8


class FamilyModule(GenericModule):
    """Calls a pipeline as `GenericModule` does, with its family's defaults and checks.

    The facts are in `families.FAMILIES`.
    """

    def __init__(self, pipeline: Pipeline, **how: Any) -> None:
        super().__init__(pipeline, **how)
        if self.row.tiles:
            self._pipeline.vae.enable_tiling()

    @property
    def row(self) -> Row:
        """What is known of this pipeline."""
        return FAMILIES[type(self._pipeline).__name__]

    def family_defaults(self) -> SamplingParams:
        """The settings on the public pages; what they leave open is the checkpoint's."""
        known, embedded = self.row.defaults.given(), self.row.embedded_guidance
        if embedded is not None and self._pipeline.transformer.config.guidance_embeds:
            known["guidance_scale"] = embedded
        return super().family_defaults().merge(**{**self._from_checkpoint(), **known})

    def fill_sampling(self, params: SamplingParams) -> SamplingParams:
        """Fill in the defaults; without a size, an image keeps its shape in the default area."""
        resolved = super().fill_sampling(params)
        sized = resolved.height is not None and resolved.width is not None
        if params.image_path is None or params.height or params.width or not sized:
            return resolved
        step = self.row.size_step
        return fit_image(resolved, params.image_path, step, step)

    def check_sampling(self, params: SamplingParams) -> None:
        """Check what goes in, and sizes and frames, which diffusers would round or fail on."""
        super().check_sampling(params)
        row = self.row
        for name in ("height", "width"):
            value = getattr(params, name)
            if value is not None:
                step = row.size_step
                check_grid(name, value, first=step, step=step, last=_MOST_PIXELS)
        if params.num_frames is not None and self.signature.argument_for("num_frames"):
            check_grid(
                "num_frames",
                params.num_frames,
                first=row.first_frames,
                step=row.frame_step or self._frame_group,
                last=row.last_frames or _MOST_FRAMES,
                whole_steps=row.whole_groups,
            )

    @property
    def _frame_group(self) -> int:
        return next((getattr(self._pipeline, n) for n in _GROUPS if hasattr(self._pipeline, n)), 1)

    def _from_checkpoint(self) -> dict[str, Any]:
        """Size and frames that the denoiser was made for, where its configuration says so."""
        config = self._pipeline.transformer.config
        scale = getattr(self._pipeline, "vae_scale_factor_spatial", None)
        if not {"sample_height", "sample_width", "sample_frames"} <= config.keys() or scale is None:
            return {}
        made_for = {"height": config.sample_height * scale, "width": config.sample_width * scale}
        made_for |= {"num_frames": config.sample_frames, "fps": _COGVIDEO_FPS}
        made_for |= COGVIDEO_15 if config.get("patch_size_t") else {}
        if self.signature.argument_for("num_frames") is None:
            del made_for["num_frames"]
        return made_for
