"""MiniMax-H3: video with sound, from words and from the first and the last picture."""

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules.base import family_of
from fastvideo_lightning.modules.families import FamilyModule
from fastvideo_lightning.modules.sampling import image_size


@family_of("MiniMaxH3ModularPipeline")
class MiniMaxH3Module(FamilyModule):
    """A family whose size follows its key frame, by the rule of diffusers' blocks."""

    def fill_sampling(self, params: SamplingParams) -> SamplingParams:
        """Fill in the defaults; without a size, that of the key frame's shape on its canvas.

        Raises:
            ValueError: If a picture is more than four times as wide as high, or as high as wide.
        """
        from diffusers.modular_pipelines.minimax_h3.modular_pipeline import resolve_canvas_size

        image = params.last_image_path if params.image_path is None else params.image_path
        if image is not None and not params.height and not params.width:
            width, height = image_size(image)
            config = self._pipeline.config
            height, width = resolve_canvas_size(
                width,
                height,
                self._pipeline.canvas_multiple,
                config.canvas_short_edge,
                config.canvas_max_pixels,
            )
            params = params.merge(height=height, width=width)
        return super().fill_sampling(params)
