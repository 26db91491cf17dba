"""How each Wan checkpoint is sampled by default: sizes, frames, steps and guidance.

Taken from the inference settings on the public model cards (https://huggingface.co/Wan-AI) and, for
steps, from the models' own repositories (https://github.com/Wan-Video).
"""

from fastvideo_lightning.config import SamplingParams

_BASE = SamplingParams(
    height=480,
    width=832,
    num_frames=81,
    fps=16,
    num_inference_steps=50,
    guidance_scale=5.0,
)
_HD = {"height": 720, "width": 1280}
_HEADS_OF_1_3B = 12


def wan_defaults(
    *,
    takes_image: bool,
    expands_timesteps: bool,
    has_two_experts: bool,
    num_heads: int,
    flow_shift: float | None,
) -> SamplingParams:
    """Return the defaults of a Wan checkpoint.

    Args:
        takes_image: Image-to-video.
        expands_timesteps: TI2V-5B.
        has_two_experts: A14B.
        num_heads: Attention heads: 12 in the 1.3B model, 40 in the 14B ones.
        flow_shift: The scheduler's; the 480P and 720P image-to-video models differ in nothing else.
    """
    if expands_timesteps:
        return _BASE.merge(height=704, width=1280, num_frames=121, fps=24)
    if has_two_experts and takes_image:
        return _BASE.merge(num_inference_steps=40, guidance_scale=3.5, guidance_scale_2=3.5)
    if has_two_experts:
        return _BASE.merge(**_HD, num_inference_steps=40, guidance_scale=4.0, guidance_scale_2=3.0)
    if takes_image:
        return _BASE.merge(**_HD) if flow_shift is not None and flow_shift >= 5 else _BASE
    if num_heads <= _HEADS_OF_1_3B:
        return _BASE.merge(guidance_scale=3.0)
    return _BASE.merge(**_HD)
