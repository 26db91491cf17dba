"""Subject: what is planned for, a model and a video, whatever the flags."""

from dataclasses import dataclass

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.modules.roles import Role, models_that_decode_by
from fastvideo_lightning.plan.measure import ComponentSize, measure_components
from fastvideo_lightning.plan.work import (
    Request,
    Work,
    decode_work,
    denoiser_work,
    encode_work,
    text_encoder_work,
)


@dataclass(frozen=True)
class Subject:
    """A model's sizes and a video's work.

    Attributes:
        components: Every component's size.
        request: The video's size.
        work: One call of each component by FQN; of a VAE, decoding.
        tiled: Decoding in tiles.
        encoding: A VAE's encoding.
        takes_turns: Whether of several denoisers each has a part of the steps to itself: their
            resident blocks share device memory.
        pipeline: The class of the pipeline.
        has_tiles: Whether a VAE can decode in tiles.
    """

    components: tuple[ComponentSize, ...]
    request: Request
    work: dict[str, Work]
    tiled: dict[str, Work]
    encoding: dict[str, Work]
    takes_turns: bool = False
    pipeline: str = "WanPipeline"
    has_tiles: bool = True

    @classmethod
    def of(
        cls, module: VideoModule, params: SamplingParams, *, quantization: str | None = None
    ) -> "Subject":
        """Measure a module and a video.

        Args:
            module: The model, which may be on meta.
            params: The video.
            quantization: `fp8` or `int8`, where its denoisers will be loaded so.
        """
        request = Request.of(module, params)
        work: dict[str, Work] = {}
        tiled: dict[str, Work] = {}
        encoding: dict[str, Work] = {}
        components = measure_components(module, quantization=quantization)
        for size in components:
            if size.role is Role.DENOISER:
                work[size.fqn] = denoiser_work(module, size, request)
            elif size.role is Role.VAE:
                work[size.fqn] = decode_work(module, size, request, tiled=False)
                tiled[size.fqn] = decode_work(module, size, request, tiled=True)
                encoding[size.fqn] = encode_work(module, size, request)
            else:
                work[size.fqn] = text_encoder_work(module, size)
        turns, name = module.denoisers_take_turns, type(module.pipeline).__name__
        tiles = bool(models_that_decode_by("tiling", module))
        return cls(components, request, work, tiled, encoding, turns, name, tiles)

    @classmethod
    def bare(cls, module: VideoModule) -> "Subject":
        """Measure a module with a video that takes no memory, which each video takes more than."""
        components = measure_components(module)
        nothing = {size.fqn: Work() for size in components}
        request = Request.of(module, SamplingParams())
        turns, name = module.denoisers_take_turns, type(module.pipeline).__name__
        tiles = bool(models_that_decode_by("tiling", module))
        return cls(components, request, nothing, nothing, nothing, turns, name, tiles)

    @property
    def is_known(self) -> bool:
        """Whether the formulas of the work are the model's own."""
        return self.pipeline.startswith("Wan")

    @property
    def is_quantized(self) -> bool:
        """Whether a component has its weights in fewer bits than it computes with."""
        return any(size.is_quantized for size in self.components)

    def by_role(self, role: Role) -> list[ComponentSize]:
        """The components that play a part."""
        return [size for size in self.components if size.role is role]
