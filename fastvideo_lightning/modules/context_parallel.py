"""Whether the tokens of a video can be divided among the processes that make it together."""

from collections.abc import Mapping
from typing import Protocol

from fastvideo_lightning.config import SamplingParams

_FAR = 64  # steps on either side in which a size that divides is looked for


class SplitsTokens(Protocol):
    """What a module says of its tokens, as `VideoModule` does."""

    context_parallel: int

    @property
    def size_steps(self) -> Mapping[str, int]:
        """Steps of `num_frames`, `height` and `width` by which a video's size can change."""
        ...

    def num_tokens(self, params: SamplingParams) -> int | None:
        """Return how many tokens a denoiser sees in such a video, where the family knows."""
        ...

    def check_sampling(self, params: SamplingParams) -> None:
        """Raise ValueError for what this family cannot make."""
        ...


def check_tokens(module: SplitsTokens, params: SamplingParams) -> None:
    """Raise ValueError where context parallel does not divide the tokens; names what would fit.

    For a family that does not know its tokens the strategy looks, at the first step.
    """
    size = module.context_parallel
    tokens = module.num_tokens(params) if size > 1 else None
    if tokens is None or tokens % size == 0:
        return
    nearest = {name: _nearest(module, params, name) for name in module.size_steps}
    fitting = [f"{name}={value}" for name, value in nearest.items() if value is not None]
    instead = "Pass another context_parallel."
    if fitting:
        instead = f"The nearest that do: {', '.join(fitting)}. Pass one of them."
    raise ValueError(
        f"A video of {params.width}x{params.height} and {params.num_frames} frames has "
        f"{tokens} tokens, which context_parallel={size} does not divide. {instead}"
    )


def _nearest(module: SplitsTokens, params: SamplingParams, name: str) -> int | None:
    """Return the nearest value of a field with which the tokens divide."""
    step, value = module.size_steps[name], getattr(params, name)
    for distance in range(1, _FAR):
        for candidate in (value + distance * step, value - distance * step):
            if candidate >= 1 and _divides(module, params.merge(**{name: candidate})):
                return int(candidate)
    return None


def _divides(module: SplitsTokens, params: SamplingParams) -> bool:
    tokens = module.num_tokens(params)
    try:
        module.check_sampling(params)
    except ValueError:
        return False
    return tokens is not None and tokens % module.context_parallel == 0
