"""Whole Wan checkpoints of random weights, in diffusers' layout and the published shapes.

    python -m benchmarks.checkpoints --model wan-14b --folder /tmp

Nothing of a large component is held in memory: its file is written in place. Weight files lie side
by side in the folder and are linked into the checkpoints, so that two of them share what is alike.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import click
import diffusers
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from benchmarks import harness
from benchmarks.models import CONFIGS, Shape, transformer_shapes, write_random_weights

WORDS = ("a", "red", "green", "blue", "circle", "square", "moves", "left", "right", "up", "down")
PROMPT = "a red circle moves right"
BOUNDARY_RATIO = 0.8
TEXT_ENCODERS: dict[str, dict[str, Any]] = {
    "umt5-xxl": {"vocab_size": 256384, "d_model": 4096, "d_ff": 10240, "num_layers": 24}
    | {"num_heads": 64, "d_kv": 64},
    "umt5-tiny": {"vocab_size": 64, "d_model": 32, "d_ff": 64, "num_layers": 4}
    | {"num_heads": 2, "d_kv": 16},
}
VAES: dict[str, dict[str, Any]] = {
    "vae": {},
    "vae-tiny": {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
}


def write_pipeline(model: str, folder: Path, *, boundary_ratio: float | None = None) -> Path:
    """Write a text-to-video checkpoint, or the parts of it that are not there.

    Args:
        model: a key of ``CONFIGS``.
        folder: where weight files and checkpoints are.
        boundary_ratio: of a two-expert model, the share of noise where the second one takes over.

    Returns:
        The checkpoint's folder.
    """
    is_tiny = model.endswith("tiny")
    target = folder / (f"{model}-pipeline" if boundary_ratio is None else f"{model}-experts")
    target.mkdir(parents=True, exist_ok=True)
    write_transformer(model, folder, target / "transformer")
    if boundary_ratio is not None:
        # Two files of the largest model would fill a disk: there the experts are alike.
        seed = 0 if model == "wan-14b" else 1
        write_transformer(model, folder, target / "transformer_2", seed=seed)
    _write_text_encoder("umt5-tiny" if is_tiny else "umt5-xxl", folder, target / "text_encoder")
    _write_vae("vae-tiny" if is_tiny else "vae", folder, target / "vae")
    make_tokenizer().save_pretrained(target / "tokenizer")
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ).save_pretrained(target / "scheduler")
    _write_index(target, boundary_ratio)
    return target


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A few words; what matters to a benchmark is the number of tokens."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def write_transformer(name: str, folder: Path, target: Path, *, seed: int = 0) -> None:
    """Write a transformer's config to ``target``, linked to its weights in ``folder``."""
    with torch.device("meta"):
        model = WanTransformer3DModel(**CONFIGS[name])
    path = folder / (f"{name}-{seed}.safetensors" if seed else f"{name}.safetensors")
    write_random_weights(path, transformer_shapes(model), seed=seed)
    model.save_config(target)
    _link(path, target / "diffusion_pytorch_model.safetensors")


def _write_text_encoder(name: str, folder: Path, target: Path) -> None:
    config = UMT5Config(
        **TEXT_ENCODERS[name], feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1
    )
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    path = folder / f"{name}.safetensors"
    # Named parameters leave out the second name of the tied embedding, as transformers does.
    shapes = [Shape(fqn, p.shape, torch.bfloat16) for fqn, p in model.named_parameters()]
    write_random_weights(path, shapes)
    config.architectures, config.dtype = ["UMT5EncoderModel"], torch.bfloat16
    config.save_pretrained(target)
    _link(path, target / "model.safetensors")


def _write_vae(name: str, folder: Path, target: Path) -> None:
    kept = folder / name
    if not kept.exists():
        torch.manual_seed(3)
        AutoencoderKLWan(**VAES[name]).save_pretrained(kept)
    target.mkdir(exist_ok=True)
    for path in kept.iterdir():
        _link(path, target / path.name)


def _write_index(target: Path, boundary_ratio: float | None) -> None:
    index: dict[str, object] = {
        "_class_name": "WanPipeline",
        "_diffusers_version": diffusers.__version__,
        "boundary_ratio": boundary_ratio,
        "expand_timesteps": False,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    if boundary_ratio is not None:
        index["transformer_2"] = index["transformer"]
    (target / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    os.link(source, target)


@click.command()
@harness.model()
@click.option("--experts", is_flag=True, help="Two of them, with a boundary between.")
@harness.folder
def main(model: str, experts: bool, folder: Path) -> None:
    """Write a checkpoint and say how fast it went."""
    started = time.monotonic()
    target = write_pipeline(model, folder, boundary_ratio=BOUNDARY_RATIO if experts else None)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    seconds = time.monotonic() - started
    click.echo(f"{target}: {size / 1e9:.1f} GB in {seconds:.0f} s")


if __name__ == "__main__":
    main()
