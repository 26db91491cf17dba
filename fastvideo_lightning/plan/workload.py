"""Subject: what is planned for, a model and a video, whatever the flags."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.modules.acceleration import models_that_decode_by
from fastvideo_lightning.modules.roles import Role
from fastvideo_lightning.plan.cost import CallCost, Request, denoiser_work, text_encoder_work
from fastvideo_lightning.plan.sizes import ComponentSize, measure_components
from fastvideo_lightning.plan.vae_cost import CONVOLUTION_BYTES, Autoencoder


class WorkOnDemand(Mapping[str, CallCost]):
    """Works by FQN, each found when it is first asked for: counting takes seconds.

    Args:
        found_by: What finds each of them, from plain values: a plan that is kept keeps no model.
        found: Those that are known already.
    """

    def __init__(
        self,
        found_by: Mapping[str, Callable[[], CallCost]],
        found: Mapping[str, CallCost] | None = None,
    ) -> None:
        self._found_by = found_by
        self._found = dict(found or {})
        self._names = [*self._found, *found_by]

    def __getitem__(self, fqn: str) -> CallCost:
        if fqn not in self._found:
            self._found[fqn] = self._found_by[fqn]()
        return self._found[fqn]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Workload:
    """A model's sizes and a video's work.

    Attributes:
        components: Every component's size.
        request: The video's size.
        work: One call of each component by FQN; of a VAE, decoding.
        tiled: Decoding in tiles.
        encoding: A VAE's encoding.
        tiled_encoding: Encoding in tiles.
        takes_turns: Whether of several denoisers each has a part of the steps to itself: their
            resident blocks share device memory.
        pipeline: The class of the pipeline.
        has_tiles: Whether a VAE can decode in tiles.
    """

    components: tuple[ComponentSize, ...]
    request: Request
    work: Mapping[str, CallCost]
    tiled: Mapping[str, CallCost]
    encoding: Mapping[str, CallCost]
    tiled_encoding: Mapping[str, CallCost] = field(default_factory=dict)
    takes_turns: bool = False
    pipeline: str = "WanPipeline"
    has_tiles: bool = True

    @classmethod
    def of(
        cls, module: VideoModule, params: SamplingParams, *, quantization: str | None = None
    ) -> "Workload":
        """Measure a module and a video.

        Args:
            module: The model, which may be on meta.
            params: The video.
            quantization: `fp8` or `int8`, where its denoisers will be loaded so.
        """
        request = Request.of(module, params)
        components = measure_components(module, quantization=quantization)
        vaes = {s.fqn: Autoencoder.of(module, s) for s in components if s.role is Role.VAE}
        work = {
            s.fqn: denoiser_work(module, s, request)
            if s.role is Role.DENOISER
            else text_encoder_work(module, s)
            for s in components
            if s.role is not Role.VAE
        }

        def of_vaes(
            find: Callable[..., CallCost], *, tiled: bool
        ) -> dict[str, Callable[[], CallCost]]:
            return {fqn: partial(find, vae, request, tiled=tiled) for fqn, vae in vaes.items()}

        return cls(
            components,
            request,
            work=WorkOnDemand(of_vaes(Autoencoder.decode, tiled=False), work),
            tiled=WorkOnDemand(of_vaes(Autoencoder.decode, tiled=True)),
            encoding=WorkOnDemand(of_vaes(Autoencoder.encode, tiled=False)),
            tiled_encoding=WorkOnDemand(of_vaes(Autoencoder.encode, tiled=True)),
            takes_turns=module.denoisers_take_turns,
            pipeline=type(module.pipeline).__name__,
            has_tiles=bool(models_that_decode_by("tiling", module)),
        )

    @classmethod
    def bare(cls, module: VideoModule, *, quantization: str | None = None) -> "Workload":
        """Measure a module with a video that takes no memory, which each video takes more than."""
        components = measure_components(module, quantization=quantization)
        library = CallCost(held_bytes=CONVOLUTION_BYTES)  # it takes as much for a video of any size
        nothing = {s.fqn: library if s.role is Role.VAE else CallCost() for s in components}
        request = Request.of(module, SamplingParams())
        return cls(
            components,
            request,
            work=nothing,
            tiled=nothing,
            encoding=nothing,
            tiled_encoding=nothing,
            takes_turns=module.denoisers_take_turns,
            pipeline=type(module.pipeline).__name__,
            has_tiles=bool(models_that_decode_by("tiling", module)),
        )

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
