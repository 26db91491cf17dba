"""How much one visitor of the page may ask for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules.sampling import GridError


@dataclass(frozen=True)
class Limits:
    """The most that one video, and all that wait, may be.

    Attributes:
        max_side: Pixels of height and of width.
        max_frames: Frames of a video.
        max_steps: Denoising steps.
        max_queue: Videos that wait, besides the one that is being made.
        max_prompt_characters: Length of a prompt.

    Raises:
        ValueError: If one is below 1.
    """

    max_side: int = 1280
    max_frames: int = 161
    max_steps: int = 100
    max_queue: int = 8
    max_prompt_characters: int = 2000

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(
                    f"{field.name} must be 1 or more, got {getattr(self, field.name)}. "
                    f"Pass {field.name}={field.default}."
                )

    def check_prompt(self, prompt: str, *, name: str = "prompt") -> None:
        """Raise ValueError if the text is too long."""
        if len(prompt) > self.max_prompt_characters:
            raise ValueError(
                f"{name} must be {self.max_prompt_characters} characters or fewer here, got "
                f"{len(prompt)}. Shorten it."
            )

    def most(self, name: str) -> int | None:
        """Return the highest value of a sampling field, or None where there is no limit."""
        return {
            "width": self.max_side,
            "height": self.max_side,
            "num_frames": self.max_frames,
            "num_inference_steps": self.max_steps,
        }.get(name)

    def check(self, params: SamplingParams) -> None:
        """Raise ValueError, naming what is too large."""
        for name, value in params.given().items():
            most = self.most(name)
            if most is not None and value > most:
                raise ValueError(
                    f"{name} must be {most} or less here, got {value}. Enter {name}={most}."
                )

    @contextmanager
    def naming_limits(self) -> Iterator[None]:
        """Have the model's refusals inside name these limits where they are below its own."""
        try:
            yield
        except GridError as error:
            most = self.most(error.name)
            if most is None:
                raise
            raise error.at_most(most) from None
