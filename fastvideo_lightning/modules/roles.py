"""What part each component of a pipeline plays, read off its class, and which VAEs stay in fp32."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from torch import nn

from fastvideo_lightning.checkpoint.components import is_diffusers_model

# What encoders call the pictures they look at; the latter is Stable Diffusion's safety checker.
_PICTURES = ("pixel_values", "clip_input")


class Role(Enum):
    """The part a model plays in a pipeline; offloading is chosen by it.

    DENOISER: called once or twice in every step. Most of the weights.
    TEXT_ENCODER: called once per prompt, on a few hundred tokens.
    IMAGE_ENCODER: called once per input image.
    VAE: called outside of the steps, as a whole: what turns latents into frames or sound and back,
        and smaller models of a pipeline, such as what joins an encoder to the denoiser.
    GUARD: checks the prompt and the frames; the pipeline itself brings it in for that.
    """

    DENOISER = "denoiser"
    TEXT_ENCODER = "text_encoder"
    IMAGE_ENCODER = "image_encoder"
    VAE = "vae"
    GUARD = "guard"


@dataclass(frozen=True)
class Roles:
    """The components of a pipeline by role, each a tuple of FQNs."""

    denoisers: tuple[str, ...] = ()
    text_encoders: tuple[str, ...] = ()
    image_encoders: tuple[str, ...] = ()
    vaes: tuple[str, ...] = ()


def role_of(model_class: type) -> Role | None:
    """Return the role of a model by what it is, or None where it shows none.

    A denoiser is a diffusers model whose forward takes a timestep; diffusers' other models are
    called outside of the steps; an encoder is a transformers model, told apart by its main input.
    """
    if is_diffusers_model(model_class):
        arguments = inspect.signature(model_class.forward).parameters  # type: ignore[attr-defined]
        return Role.DENOISER if any("timestep" in name for name in arguments) else Role.VAE
    if hasattr(model_class, "check_text_safety"):  # Cosmos': a package of its own
        return Role.GUARD
    main_input = getattr(model_class, "main_input_name", None)
    if main_input in _PICTURES:
        return Role.IMAGE_ENCODER
    return Role.TEXT_ENCODER if main_input is not None else None


def read_roles(components: Mapping[str, nn.Module]) -> Roles:
    """Sort the models of a pipeline by role, in the pipeline's order; a compiled one by its own."""
    models = {name: getattr(model, "_orig_mod", model) for name, model in components.items()}
    return sort_roles({name: type(model) for name, model in models.items()})


def sort_roles(classes: Mapping[str, type]) -> Roles:
    """Sort model classes by role, in their order."""
    found = {name: role_of(kind) for name, kind in classes.items()}

    def named(role: Role) -> tuple[str, ...]:
        return tuple(name for name, its_role in found.items() if its_role is role)

    return Roles(
        named(Role.DENOISER),
        named(Role.TEXT_ENCODER),
        named(Role.IMAGE_ENCODER),
        named(Role.VAE),
    )


# The examples of these pipelines, in their docstrings and on their pages in the documentation of
# diffusers (https://huggingface.co/docs/diffusers/api/pipelines/overview), load the VAE in fp32
# beside a denoiser in bf16. All others are shown in one dtype, and about half of them fail in two:
# they hand the latents to the VAE in the denoiser's.
PUBLISHED_WITH_FP32_VAE = frozenset(
    {
        "AllegroPipeline",
        "ChronoEditPipeline",
        "HeliosPipeline",
        "HeliosPyramidPipeline",
        "LucyEditPipeline",
        "SanaImageToVideoPipeline",
        "SanaVideoPipeline",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        "SkyReelsV2DiffusionForcingPipeline",
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        "SkyReelsV2ImageToVideoPipeline",
        "SkyReelsV2Pipeline",
        "WanAnimatePipeline",
        "WanImageToVideoPipeline",
        "WanPipeline",
        "WanVACEPipeline",
        "WanVideoToVideoPipeline",
    }
)


def stays_fp32(pipeline_class: str, model_class: type) -> bool:
    """Whether `dtype="auto"` keeps a model of a pipeline in fp32.

    Args:
        pipeline_class: The name of the pipeline's class.
        model_class: The class of the model.
    """
    return pipeline_class in PUBLISHED_WITH_FP32_VAE and role_of(model_class) is Role.VAE
