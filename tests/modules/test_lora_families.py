"""LoRA adapters of every family that diffusers can give some, streamed: as plain diffusers' own."""

import copy
from pathlib import Path
from typing import Any

import diffusers as df
import pytest
from diffusers.loaders.peft import PeftAdapterMixin
from support.loras import write_lora_of
from support.recipes import PICTURES, RECIPES, families
from support.recipes.runs import Media, place, placed, run_ours, run_plain, write_media
from support.recipes.unets import animate_parts, controlnet, unet_2d
from torch import nn

from fastvideo_lightning import VideoModule
from fastvideo_lightning.modules.catalog import UNUSABLE

# diffusers' own loaders fail with these: Wan's asks for a setting that Animate 2 does not have.
_FAILS = {"WanAnimate2ModularPipeline", "WanAnimate2DistilledModularPipeline"}
_LONG = {"MiniMaxH3ModularPipeline"}  # five seconds of video are its least
# Layers of attention, as they are called in one model or another.
_QUERIES, _OTHERS = ("to_q", "to_query", "add_q_proj_moe_gen"), ("to_k", "to_v", "to_key")
_ALL = RECIPES | PICTURES
# One pipeline for each loader of diffusers, and for each model that it has no loader for.
_FAMILIES = (
    "AnimateDiffSDXLPipeline",
    "ConsisIDPipeline",
    "Cosmos2_5_PredictBasePipeline",
    "Cosmos3OmniPipeline",
    "CosmosTextToWorldPipeline",
    "FluxPipeline",
    "HeliosPipeline",
    "HunyuanVideo15Pipeline",
    "HunyuanVideoPipeline",
    "Kandinsky5T2VPipeline",
    "Kandinsky6SRPipeline",
    "Kandinsky6TI2VAPipeline",
    "LTX2Pipeline",
    "LTXPipeline",
    "MochiPipeline",
    "MotifVideoPipeline",
    "PIAPipeline",
    "QwenImagePipeline",
    "SanaVideoPipeline",
    "SkyReelsV2Pipeline",
    "StableDiffusion3Pipeline",
    "WanPipeline",
)


def _denoiser_of(pipeline: Any) -> Any:
    """The first denoiser, where diffusers can put layers into it."""
    model = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    return model if isinstance(model, PeftAdapterMixin) else None


def _loader_of(pipeline: Any) -> str | None:
    """What puts adapters into a pipeline: diffusers' loader, or else its model alone."""
    loaders = [k.__name__ for k in type(pipeline).__mro__ if "LoraLoader" in k.__name__]
    model = _denoiser_of(pipeline)
    return None if model is None else loaders[0] if loaders else type(model).__name__


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    return write_media(tmp_path_factory.mktemp("media"))


def build(name: str) -> Any:
    """The pipeline with a denoiser of its own: recipes may share theirs."""
    pipeline = _ALL[name].build()
    fqn = "transformer" if "transformer" in pipeline.components else "unet"
    setattr(pipeline, fqn, copy.deepcopy(getattr(pipeline, fqn)))
    return pipeline


def load_plain(pipeline: Any, folder: Path, adapter: str) -> Any:
    """Load as diffusers does; returns who has its verbs: the pipeline, or else the model."""
    if hasattr(pipeline, "load_lora_weights"):
        pipeline.load_lora_weights(folder, adapter_name=adapter)
        return pipeline
    kind = {"prefix": "transformer", "weight_name": "pytorch_lora_weights.safetensors"}
    pipeline.transformer.load_lora_adapter(folder, adapter_name=adapter, **kind)
    return pipeline.transformer


@pytest.mark.exhaustive
def test_every_loader_of_diffusers_has_a_family_here() -> None:
    names = _ALL.keys() - UNUSABLE.keys() - _FAILS - _LONG
    loaders = {_loader_of(_ALL[name].build()) for name in names} - {None}
    tried = [_loader_of(_ALL[name].build()) for name in _FAMILIES]
    assert sorted(tried) == sorted(loaders)


@pytest.mark.parametrize("name", families(_FAMILIES))
def test_adapters_of_every_family_are_those_of_plain_diffusers(
    name: str, media: Media, tmp_path: Path
) -> None:
    recipe, plain, module = _ALL[name], build(name), VideoModule.from_pipeline(build(name))
    leaves = {fqn.rpartition(".")[2] for fqn, _ in _denoiser_of(plain).named_modules()}
    files = [
        write_lora_of(plain, tmp_path / str(seed), seed=seed, leaves=tuple(leaves & set(some)))
        for seed, some in enumerate((_QUERIES, _OTHERS))
    ]
    with placed(module, place(module)):
        for adapter, file in zip(("first", "second"), files, strict=True):
            module.load_lora(file, name=adapter)
            owner = load_plain(plain, file, adapter)
        module.set_loras({"first": 0.7, "second": 1.0})
        owner.set_adapters(["first", "second"], [0.7, 1.0])
        both = run_plain(plain, recipe, media)
        assert run_ours(module, recipe, media).equals(both)
        module.set_loras({"second": -0.5})
        owner.set_adapters(["second"], [-0.5])
        module.fuse_lora(scale=0.5)
        components = {"components": [*module.denoisers[:1]]} if owner is plain else {}
        owner.fuse_lora(**components, lora_scale=0.5)
        fused = run_plain(plain, recipe, media)
        assert not fused.equals(both)
        assert run_ours(module, recipe, media).equals(fused)
        module.unfuse_lora()
        module.unload_lora()
        assert module.loras == {}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("TextToVideoSDPipeline", "cannot put layers into its UNet3DConditionModel"),
        ("LTXLatentUpsamplePipeline", "it has no denoiser"),
    ],
)
def test_what_takes_no_adapter_says_so_before_a_file_is_looked_for(name: str, reason: str) -> None:
    module = VideoModule.from_pipeline(RECIPES[name].build())
    with pytest.raises(ValueError, match=f"{name} takes no LoRA: .*{reason}"):
        module.load_lora("no/such/file.safetensors")


def test_what_diffusers_fails_on_is_an_error_that_says_so(tmp_path: Path) -> None:
    pipeline = build("WanAnimate2ModularPipeline")
    (fqn, *_) = (f for f, m in pipeline.transformer.named_modules() if isinstance(m, nn.Linear))
    folder = write_lora_of(pipeline, tmp_path / "lora", seed=1, leaves=(fqn,))
    module = VideoModule.from_pipeline(pipeline)
    with pytest.raises(ValueError, match="diffusers cannot load .* into WanAnimate2ModularPipelin"):
        module.load_lora(folder)
    assert module.loras == {}


def controls(count: int) -> Any:
    """An AnimateDiff with control nets, which take no adapters, and a UNet, which does."""
    if not count:
        return build("AnimateDiffSparseControlNetPipeline")
    nets = [controlnet() for _ in range(count)]
    parts = animate_parts(controlnet=nets[0] if count == 1 else nets)
    return df.AnimateDiffControlNetPipeline(**parts)


@pytest.mark.parametrize("count", [0, 1, 2], ids=["sparse", "one", "two"])
def test_beside_control_nets_the_unet_takes_the_adapter(count: int, tmp_path: Path) -> None:
    folder = write_lora_of(controls(count), tmp_path, seed=1, leaves=("to_q",))
    module = VideoModule.from_pipeline(controls(count))
    assert len(module.denoisers) == 2
    module.load_lora(folder, name="style")
    assert {n.split(".")[0] for n, _ in module.named_parameters() if "lora_" in n} == {"unet"}
    module.fuse_lora()
    module.unfuse_lora()
    module.unload_lora()
    assert not [name for name, _ in module.named_parameters() if "lora_" in name]


def test_where_no_denoiser_takes_adapters_it_says_which_there_are() -> None:
    pipeline = build("AnimateDiffSparseControlNetPipeline")
    pipeline.register_modules(unet=pipeline.controlnet)
    module = VideoModule.from_pipeline(pipeline)
    with pytest.raises(ValueError, match=r"takes no LoRA: .* into its SparseControlNetModel\."):
        module.check_takes_lora()


def test_a_vae_that_could_take_layers_is_not_the_place_of_a_denoisers_adapter(
    tmp_path: Path,
) -> None:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2}
    blocks["up_block_types"] = ("UpDecoderBlock2D",) * 2
    vae = df.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=2, **blocks)
    scheduler = df.DDIMScheduler()
    parts = {"vae": vae, "text_encoder": None, "tokenizer": None, "scheduler": scheduler}
    pipeline = df.StableDiffusionLatentUpscalePipeline(**parts, unet=unet_2d())
    folder = write_lora_of(pipeline, tmp_path / "style", seed=1, leaves=("to_q",))
    module = VideoModule.from_pipeline(pipeline)
    assert module.load_lora(folder) == "style"
    assert {n.split(".")[0] for n, _ in module.named_parameters() if "lora_" in n} == {"unet"}
