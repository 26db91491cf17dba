"""How the families beside Wan are sampled by default, one row for each pipeline.

Sizes, frames, rates, steps and guidance are those of the example in the docstring of the pipeline's
call, or else the defaults of that call (diffusers 0.42.1). What comes from elsewhere bears its
source: a page of the documentation, https://huggingface.co/docs/diffusers/api/pipelines/NAME, or
the model's own repository.

The module of a family that differs from others in facts alone.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules.base import family_of
from fastvideo_lightning.modules.generic import GenericModule
from fastvideo_lightning.modules.pipelines import Pipeline
from fastvideo_lightning.modules.sampling import check_grid, fit_image


@dataclass(frozen=True)
class Row:
    """What is known of one pipeline.

    Attributes:
        defaults: Its sampling.
        size_step: Height and width are multiples of it.
        first_frames: The fewest frames; one more for each group that the VAE makes one latent of.
        frame_step: Frames in such a group; None: the VAE says.
        whole_groups: A multiple of `frame_step` will do too.
        last_frames: The most frames, where the model is made for so many.
        tiles: The VAE decodes in tiles and in no other way.
        embedded_guidance: The guidance scale of a denoiser that has it as an input; other
            checkpoints of the pipeline have none.
    """

    defaults: SamplingParams
    size_step: int = 16
    first_frames: int = 1
    frame_step: int | None = None
    whole_groups: bool = False
    last_frames: int | None = None
    tiles: bool = False
    embedded_guidance: float | None = None


_at = partial(SamplingParams, num_inference_steps=50)

# 24 frames a second: https://github.com/Tencent-Hunyuan/HunyuanVideo, sample_video.py. The 15 of
# the example are for half of the frames.
_HUNYUAN = _at(height=720, width=1280, num_frames=129, fps=24, guidance_scale=6.0)
# Size and guidance come from the checkpoint: its denoiser's target size, and its guider. Text to
# video at the rate of image to video: the example's 15 is for half of the frames.
_HUNYUAN_15 = _at(num_frames=121, fps=24)
_FRAMEPACK = SamplingParams(
    height=832, width=480, num_frames=91, fps=30, num_inference_steps=30, guidance_scale=9.0
)
_LTX = _at(height=480, width=704, num_frames=161, fps=25, guidance_scale=3.0)
_LTX_2 = SamplingParams(
    height=512, width=768, num_frames=121, fps=24, num_inference_steps=30, guidance_scale=3.0
)
# CogVideoX's size and frames come from the checkpoint; 1.5's says another size than the page
# "cogvideox", which also has its frames and rate.
_COGVIDEO = _at(guidance_scale=6.0)
COGVIDEO_15 = {"height": 768, "width": 1360, "num_frames": 81, "fps": 16}
# Size, frames and rate: page "mochi".
_MOCHI = SamplingParams(
    height=480, width=848, num_frames=85, fps=30, num_inference_steps=64, guidance_scale=4.5
)
_WAN = _at(height=480, width=832, fps=16, guidance_scale=5.0)
_WAN_ANIMATE = SamplingParams(
    height=720, width=1280, fps=30, num_inference_steps=20, guidance_scale=1.0
)
_COSMOS = SamplingParams(
    height=704, width=1280, num_frames=121, fps=30, num_inference_steps=36, guidance_scale=7.0
)
_COSMOS_2 = _COSMOS.merge(num_frames=93, fps=16, num_inference_steps=35)
_COSMOS_25 = _COSMOS_2.merge(num_inference_steps=36)
_SKYREELS = _at(height=544, width=960, num_frames=97, fps=24, guidance_scale=6.0)
# Size and frames: what the checkpoint's denoiser was made for,
# https://huggingface.co/rhymes-ai/Allegro.
_ALLEGRO = SamplingParams(
    height=720, width=1280, num_frames=88, fps=15, num_inference_steps=100, guidance_scale=7.5
)
# 8 frames a second: https://github.com/Vchitect/Latte, sample/sample_t2x.py.
_LATTE = _at(height=512, width=512, num_frames=16, fps=8, guidance_scale=7.5)
# Guided without a negative prompt, diffusers fails: an empty one is none.
_EASYANIMATE = _at(
    height=512, width=512, num_frames=49, fps=8, guidance_scale=6.0, negative_prompt=""
)
_KANDINSKY = _at(height=512, width=768, num_frames=121, fps=24, guidance_scale=5.0)
_SANA = _at(height=480, width=832, num_frames=81, fps=16, guidance_scale=6.0)
# Guidance is that of the checkpoint's guider.
_MOTIF = _at(height=736, width=1280, num_frames=121, fps=24)
# The canvas of 16:9 by the rule of its blocks (short edge 768, at most 768 x 1344 pixels), and the
# fewest frames of their 5 to 15 seconds; guidance is in the weights.
_MINIMAX_H3 = _at(height=768, width=1344, num_frames=124, fps=24)

FAMILIES: dict[str, Row] = {
    "HunyuanVideoPipeline": Row(_HUNYUAN),
    "HunyuanVideoImageToVideoPipeline": Row(
        _HUNYUAN.merge(guidance_scale=1.0), embedded_guidance=6.0
    ),
    "HunyuanVideo15Pipeline": Row(_HUNYUAN_15),
    "HunyuanVideo15ImageToVideoPipeline": Row(_HUNYUAN_15),
    # It makes whole sections, as many as hold the frames.
    "HunyuanVideoFramepackPipeline": Row(_FRAMEPACK, frame_step=1),
    "LTXPipeline": Row(_LTX, 32),
    "LTXImageToVideoPipeline": Row(_LTX, 32),
    "LTXConditionPipeline": Row(_LTX.merge(height=512, width=768, num_inference_steps=40), 32),
    "LTX2Pipeline": Row(_LTX_2, 32),
    "LTX2ImageToVideoPipeline": Row(_LTX_2, 32),
    "LTX2ConditionPipeline": Row(_LTX_2, 32),
    # The VAE decodes two latent frames at a time: an even number makes four frames each, an odd
    # number three fewer. What lies between would come out longer or shorter than asked for.
    "CogVideoXPipeline": Row(_COGVIDEO, frame_step=8, whole_groups=True),
    "CogVideoXImageToVideoPipeline": Row(_COGVIDEO, frame_step=8, whole_groups=True),
    "CogVideoXVideoToVideoPipeline": Row(_COGVIDEO),
    "MiniMaxH3ModularPipeline": Row(
        _MINIMAX_H3, 32, first_frames=124, frame_step=17, last_frames=345
    ),
    "MochiPipeline": Row(_MOCHI),
    "WanVACEPipeline": Row(_WAN.merge(num_frames=81)),
    "WanVideoToVideoPipeline": Row(_WAN),
    "WanAnimatePipeline": Row(_WAN_ANIMATE),
    "CosmosTextToWorldPipeline": Row(_COSMOS),
    "CosmosVideoToWorldPipeline": Row(_COSMOS),
    "Cosmos2VideoToWorldPipeline": Row(_COSMOS_2),
    "Cosmos2_5_PredictBasePipeline": Row(_COSMOS_25),
    "SkyReelsV2Pipeline": Row(_SKYREELS),
    "SkyReelsV2ImageToVideoPipeline": Row(_SKYREELS.merge(guidance_scale=5.0)),
    "SkyReelsV2DiffusionForcingPipeline": Row(_SKYREELS.merge(num_inference_steps=30)),
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": Row(_SKYREELS.merge(guidance_scale=5.0)),
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": Row(_SKYREELS),
    "AllegroPipeline": Row(_ALLEGRO, first_frames=4, frame_step=4, tiles=True),
    # The places of 16 frames are built in.
    "LattePipeline": Row(_LATTE, first_frames=16, frame_step=1, last_frames=16),
    "EasyAnimatePipeline": Row(_EASYANIMATE),
    "EasyAnimateInpaintPipeline": Row(_EASYANIMATE.merge(guidance_scale=5.0)),
    "Kandinsky5T2VPipeline": Row(_KANDINSKY),
    # The first four latent frames are matched to those after them: with none, frames are NaN.
    "Kandinsky5I2VPipeline": Row(_KANDINSKY, first_frames=17),
    "MotifVideoPipeline": Row(_MOTIF),
    "MotifVideoImage2VideoPipeline": Row(_MOTIF),
    "SanaVideoPipeline": Row(_SANA, 32),
    "SanaImageToVideoPipeline": Row(_SANA, 32),
}


# What pipelines call the number of frames that the VAE makes one latent frame of.
_GROUPS = (
    "vae_scale_factor_temporal",
    "vae_temporal_compression_ratio",
    "vae_temporal_scale_factor",
)
_MOST_PIXELS, _MOST_FRAMES = 2**14, 2**14
_COGVIDEO_FPS = 8


@family_of(*FAMILIES)
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
        if getattr(self._pipeline, "transformer", None) is None:
            return {}
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
