"""What part each component of a pipeline plays, read off its class."""

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


class PlaysRoles(nn.Module):
    """A module whose children are the models of a pipeline."""

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


def models_that_decode_by(means: str, module: PlaysRoles) -> list[nn.Module]:
    """Return those of the VAEs, and of what else runs outside of the steps, that can save memory.

    Args:
        means: `tiling` or `slicing`.
        module: diffusers gives the methods to models too that then refuse; those have no switch.
    """
    models = map(module.get_submodule, module.vaes)
    return [m for m in models if hasattr(m, f"enable_{means}") and hasattr(m, f"use_{means}")]
