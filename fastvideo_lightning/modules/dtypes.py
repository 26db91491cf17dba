"""Which VAEs `dtype="auto"` leaves in fp32 on a GPU: those that were published so."""

from fastvideo_lightning.modules.roles import Role, role_of

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
