"""Modular pipelines: the models of the others, put together from blocks."""

from typing import Any

import diffusers as df
from diffusers.guiders import ClassifierFreeGuidance

from support.recipes import cosmos, hunyuan, ltx, ltx2, wan
from support.recipes.recipe import recipe

_UNSAID = {"guidance_scale": None}  # it is the guider's, which has it already
_GUIDED: dict[str, Any] = {"guidance_scale": 3.0, "spelling": _UNSAID}
_WAN: dict[str, Any] = {**_GUIDED, "max_sequence_length": 16}


def joined(name: str, source: Any, **own: Any) -> Any:
    """A modular pipeline with the components of another pipeline, or of a dictionary."""
    pipeline = getattr(df, name)()
    parts = {**(source if isinstance(source, dict) else source.components), **own}
    parts.setdefault("guider", ClassifierFreeGuidance(guidance_scale=3.0))
    parts = {n: p for n, p in parts.items() if n in pipeline.component_names and p is not None}
    pipeline.update_components(**parts)
    return pipeline


def _experts(name: str, model: Any, expert: Any, **own: Any) -> Any:
    second = ClassifierFreeGuidance(guidance_scale=2.0)
    parts = wan.parts(transformer=model, transformer_2=expert, guider_2=second, **own)
    pipeline = joined(name, parts)
    pipeline.update_components(boundary_ratio=0.9)
    return pipeline


_EXPERTS: dict[str, Any] = {
    **_WAN,
    "guidance_scale_2": 2.0,
    "spelling": {**_UNSAID, "guidance_scale_2": None},
}


@recipe("WanModularPipeline", **_WAN)
def text_to_video() -> Any:
    return joined("WanModularPipeline", wan.text_to_video())


@recipe("WanImage2VideoModularPipeline", image_path="image", **_WAN)
def image_to_video() -> Any:
    return joined("WanImage2VideoModularPipeline", wan.image_to_video())


@recipe("Wan22ModularPipeline", **_EXPERTS)
def two_experts() -> Any:
    return _experts("Wan22ModularPipeline", wan.transformer(), wan.transformer(num_layers=4))


@recipe("Wan22Image2VideoModularPipeline", image_path="image", **_EXPERTS)
def two_experts_image() -> Any:
    model, expert = (wan.transformer(in_channels=12, num_layers=n) for n in (3, 4))
    return _experts("Wan22Image2VideoModularPipeline", model, expert)


@recipe(
    "Wan22VaceModularPipeline",
    num_frames=9,
    video_path="video",
    pipeline_arguments={"mask": "video"},
    **_EXPERTS,
)
def two_experts_vace() -> Any:
    config = {"vace_layers": [0, 2], "vace_in_channels": 2 * 4 + 64}
    model, expert = (wan.transformer(df.WanVACETransformer3DModel, **config) for _ in range(2))
    return _experts("Wan22VaceModularPipeline", model, expert)


@recipe("HeliosModularPipeline", num_frames=9, **_WAN)
def helios() -> Any:
    return joined("HeliosModularPipeline", wan.helios())


_PYRAMID: dict[str, Any] = {
    **_WAN,
    "num_frames": 9,
    "num_inference_steps": None,
    "height": 64,
    "width": 64,
    "pipeline_arguments": {"pyramid_num_inference_steps_list": [1, 1, 1]},
}


@recipe("HeliosPyramidModularPipeline", **_PYRAMID)
def helios_pyramid() -> Any:
    return joined("HeliosPyramidModularPipeline", wan.helios_pyramid())


@recipe("HeliosPyramidDistilledModularPipeline", **_PYRAMID)
def helios_distilled() -> Any:
    scheduler = df.HeliosDMDScheduler(gamma=0.3)
    source = wan.helios_pyramid()
    return joined("HeliosPyramidDistilledModularPipeline", source, scheduler=scheduler)


@recipe("HunyuanVideo15ModularPipeline", **_GUIDED)
def hunyuan_15() -> Any:
    return joined("HunyuanVideo15ModularPipeline", hunyuan.text_to_video_15())


@recipe(
    "LTXModularPipeline",
    num_frames=9,
    guidance_scale=3.0,
    fps=25,
    max_sequence_length=16,
    spelling={**_UNSAID, "fps": "frame_rate"},
)
def ltx_video() -> Any:
    return joined("LTXModularPipeline", ltx.text_to_video())


_LTX_2: dict[str, Any] = {
    "num_frames": 5,
    "fps": 25,
    "max_sequence_length": 16,
    "spelling": {"fps": "frame_rate"},
    "pipeline_arguments": {"use_cross_timestep": False},
}


def _ltx_2(name: str, **own: Any) -> Any:
    pipeline = getattr(df, name)()
    guiders = {
        n: getattr(pipeline, n).new(stg_scale=0.0, guidance_scale=3.0)
        for n in ("guider", "audio_guider")
    }
    return joined(name, ltx2.text_to_video(), **guiders, **own)


@recipe("LTX2ModularPipeline", **_LTX_2)
def ltx_2() -> Any:
    return _ltx_2("LTX2ModularPipeline")


@recipe("LTX25ModularPipeline", **{**_LTX_2, "num_frames": 9})
def ltx_25() -> Any:
    # Another model decodes: the VAE says what its latents are like.
    vae = ltx2.vae(spatial_compression_ratio=16, temporal_compression_ratio=8)
    decoder = ltx2.diffusion_decoder(latent_channels=4)
    return _ltx_2("LTX25ModularPipeline", diffusion_decoder=decoder, vae=vae)


_OMNI: dict[str, Any] = {
    "guidance_scale": 3.0,
    "fps": 24,
    "spelling": {"fps": "fps"},
    "pipeline_arguments": {
        "use_system_prompt": False,
        "add_resolution_template": False,
        "add_duration_template": False,
    },
}


def _unguarded(name: str, **own: Any) -> Any:
    pipeline = joined(name, cosmos.omni(), **own)
    pipeline.disable_safety_checker()
    return pipeline


@recipe("Cosmos3OmniModularPipeline", **_OMNI)
def omni() -> Any:
    return _unguarded("Cosmos3OmniModularPipeline")


@recipe("Cosmos3DistilledModularPipeline", **{**_OMNI, "guidance_scale": 1.0})
def omni_distilled() -> Any:
    scheduler = df.FlowMatchEulerDiscreteScheduler()
    pipeline = _unguarded("Cosmos3DistilledModularPipeline", scheduler=scheduler)
    pipeline.update_components(distilled_sigmas=[1.0, 0.5])
    return pipeline
