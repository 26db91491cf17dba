"""Whether the tokens of a video can be divided among the processes that make it together."""

from collections.abc import Mapping

from fastvideo_lightning.config import SamplingParams

_FAR = 64  # steps on either side in which a size that divides is looked for


class SplitsTokens:
    """What a module knows of its tokens; a part of `VideoModule`.

    Attributes:
        context_parallel: Processes that make each video together; set by who wires the module.
    """

    context_parallel: int = 1

    def num_tokens(self, params: SamplingParams) -> int | None:
        """Return how many tokens a denoiser sees in such a video, where the family knows."""
        return None

    @property
    def size_steps(self) -> Mapping[str, int]:
        """Steps of `num_frames`, `height` and `width` by which a video's size can change."""
        return {"num_frames": 1, "height": 1, "width": 1}

    def check_sampling(self, params: SamplingParams) -> None:
        """Raise ValueError for what this family cannot make."""

    def check_tokens(self, params: SamplingParams) -> None:
        """Raise ValueError where context parallel does not divide the tokens; names what would fit.

        For a family that does not know its tokens the strategy looks, at the first step.
        """
        size = self.context_parallel
        tokens = self.num_tokens(params) if size > 1 else None
        if tokens is None or tokens % size == 0:
            return
        nearest = {name: self._nearest(params, name) for name in self.size_steps}
        fitting = [f"{name}={value}" for name, value in nearest.items() if value is not None]
        instead = "Pass another context_parallel."
        if fitting:
            instead = f"The nearest that do: {', '.join(fitting)}. Pass one of them."
        raise ValueError(
            f"A video of {params.width}x{params.height} and {params.num_frames} frames has "
            f"{tokens} tokens, which context_parallel={size} does not divide. {instead}"
        )

    def _nearest(self, params: SamplingParams, name: str) -> int | None:
        """Return the nearest value of a field with which the tokens divide."""
        step, value = self.size_steps[name], getattr(params, name)
        for distance in range(1, _FAR):
            for candidate in (value + distance * step, value - distance * step):
                if candidate >= 1 and self._divides(params.merge(**{name: candidate})):
                    return int(candidate)
        return None

    def _divides(self, params: SamplingParams) -> bool:
        tokens = self.num_tokens(params)
        try:
            self.check_sampling(params)
        except ValueError:
            return False
        return tokens is not None and tokens % self.context_parallel == 0
