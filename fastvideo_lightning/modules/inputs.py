"""What a pipeline's call needs to be given, where its signature does not say so."""

# One argument of each group is needed: the default is None, and the call fails with it.
_NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "AnimateDiffControlNetPipeline": (("conditioning_frames",),),
    "AnimateDiffSparseControlNetPipeline": (("conditioning_frames",),),
    "AnimateDiffVideoToVideoControlNetPipeline": (("video", "latents"), ("conditioning_frames",)),
    "AnimateDiffVideoToVideoPipeline": (("video", "latents"),),
    "CogVideoXFunControlPipeline": (("control_video", "control_video_latents"),),
    "CogVideoXVideoToVideoPipeline": (("video", "latents"),),
    "Cosmos2VideoToWorldPipeline": (("image", "video"),),
    "CosmosVideoToWorldPipeline": (("image", "video"),),
    "I2VGenXLPipeline": (("image",),),
    "LTX2DFRTemporalRefinePipeline": (
        ("latents",),
        ("keyframes_latents",),
        ("keyframe_positions",),
        ("audio_latents",),
    ),
    "LTX2ImageToVideoPipeline": (("image", "latents"),),
    "LTX2LatentUpsamplePipeline": (("video", "latents"),),
    "LTXImageToVideoPipeline": (("image", "latents"),),
    "LTXLatentUpsamplePipeline": (("video", "latents"),),
    "VideoToVideoSDPipeline": (("video", "latents"),),
    "WanVideoToVideoPipeline": (("video", "latents"),),
}


def needed_inputs(pipeline_class: str) -> tuple[tuple[str, ...], ...]:
    """Return groups of arguments of which a pipeline needs one each, by the name of its class."""
    return _NEEDED.get(pipeline_class, ())
