"""Train tiny-shapes, the bundled text-to-video model, from nothing.

    python examples/train_tiny_shapes.py --output tiny-shapes

Clips are drawn as they are needed; no file is read. Lightning Fabric picks the device and the
precision. First the autoencoder trains, then text encoder and denoiser on encoded clips, each for
as many seconds as it is given. `--resume FOLDER` goes on from a folder that this script wrote.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy CPU; before torch is imported

import argparse
import copy
import json
import time
from itertools import product
from pathlib import Path

import lightning as L
import torch
import torch._dynamo
import torch.fx.experimental._config
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from tiny_shapes.autoencoder import (
    Reconstruction,
    build_autoencoder,
    measure_latents,
    reconstruction_psnr_db,
)
from tiny_shapes.captions import make_tokenizer
from tiny_shapes.checkpoint import save_pipeline
from tiny_shapes.denoiser import (
    CaptionTable,
    FlowMatching,
    LatentPool,
    build_denoiser,
    build_text_encoder,
)
from tiny_shapes.scenes import HELD_OUT_SCENES, TRAINED_SCENES
from tiny_shapes.training import Bucket, TimedTraining
from transformers import UMT5EncoderModel

SIDES = (48, 64, 80, 96)  # `WanPipeline` takes multiples of 16
LENGTHS = (9, 13, 17, 21, 25, 29, 33)
# What is fastest, or smallest in the picture, is hardest to code: most of the sizes here are such.
VAE_SIZES = (
    *((17, 64, 64), (9, 48, 48), (9, 48, 96), (9, 96, 48), (17, 48, 96), (17, 96, 48)),
    *((9, 64, 64), (17, 48, 48), (9, 96, 96), (17, 80, 80), (33, 96, 96)),
)
DENOISER_SIZES = tuple(
    dict.fromkeys(
        [(17, 64, 64)]
        + [(length, 64, 64) for length in LENGTHS]
        + [(17, height, width) for height, width in product(SIDES, SIDES)]
        + [(length, *size) for length in (9, 25, 33) for size in product((48, 96), (48, 96))]
    )
)
# Of the steps, what share trains the size and length that people get unasked.
VAE_DEFAULT_SHARE, DENOISER_DEFAULT_SHARE = 0.15, 0.3


def main() -> None:
    """Train what the command line asks for and write the folder."""
    options = parse_options()
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.fx.experimental._config.use_duck_shape = False  # one compilation for all sizes
    torch._dynamo.config.recompile_limit = 32
    gpu = torch.cuda.is_available()
    fabric = L.Fabric(accelerator="auto", devices=1, precision="bf16-mixed" if gpu else "32-true")
    fabric.launch()
    report: dict[str, object] = {"device": torch.cuda.get_device_name() if gpu else "cpu"}
    if options.resume or options.vae:
        vae = AutoencoderKLWan.from_pretrained(options.resume or options.vae, subfolder="vae")
        vae = vae.to(fabric.device)
        if options.decoder_seconds:
            train_autoencoder(fabric, options, report, vae, decoder_only=True)
    else:
        vae = build_autoencoder()
        train_autoencoder(fabric, options, report, vae)
    copy.deepcopy(vae).half().save_pretrained(options.output / "vae")
    train_denoiser(fabric, options, vae, report)
    (options.output / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    fabric.print(json.dumps(report))


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("tiny-shapes"))
    parser.add_argument("--vae-seconds", type=float, default=240)
    parser.add_argument("--denoiser-seconds", type=float, default=300)
    parser.add_argument(
        "--decoder-seconds", type=float, help="go on with the decoder of --resume or --vae too"
    )
    parser.add_argument("--vae-lr", type=float, default=2e-3)
    parser.add_argument("--denoiser-lr", type=float, default=1.5e-3)
    parser.add_argument("--resume", type=Path, help="a folder to go on from, its autoencoder kept")
    parser.add_argument("--vae", type=Path, help="a folder whose autoencoder to take as it is")
    parser.add_argument("--compile", action="store_true", help="compile the denoiser's blocks")
    parser.add_argument("--scale", type=float, default=1.0, help="of the batches, small on a CPU")
    parser.add_argument("--sizes", type=int, help="train only on the first so many sizes")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_buckets(
    sizes: tuple[tuple[int, int, int], ...],
    default_share: float,
    budget: float,
    options: argparse.Namespace,
) -> tuple[list[Bucket], list[float]]:
    """Buckets whose batches hold about `budget` latent places, and how often to draw each."""
    buckets = []
    for num_frames, height, width in sizes[: options.sizes]:
        places = ((num_frames - 1) // 4 + 1) * (height // 8) * (width // 8)
        batch = max(2, round(budget * options.scale / places / 4) * 4)
        buckets.append(Bucket(num_frames, height, width, batch))
    others = max(1, len(buckets) - 1)
    return buckets, [default_share] + [(1 - default_share) / others] * (len(buckets) - 1)


def train_autoencoder(
    fabric: L.Fabric,
    options: argparse.Namespace,
    report: dict[str, object],
    vae: AutoencoderKLWan,
    *,
    decoder_only: bool = False,
) -> None:
    """Train the autoencoder and note its latents' mean and deviation; or go on with the decoder."""
    part = "decoder" if decoder_only else "autoencoder"
    fabric.print(part)
    started = time.monotonic()
    attributes = torch.tensor([scene.attributes for scene in TRAINED_SCENES])
    buckets, shares = make_buckets(VAE_SIZES, VAE_DEFAULT_SHARE, 32 * 320, options)
    training = TimedTraining(
        fabric,
        Reconstruction(vae, attributes, decoder_only=decoder_only),
        buckets=buckets,
        shares=shares,
        budget_s=options.decoder_seconds if decoder_only else options.vae_seconds,
        peak_lr=options.vae_lr,
    )
    training.run()
    attributes = attributes.to(fabric.device)
    if not decoder_only:
        measure_latents(vae, attributes, buckets)
    unseen = torch.tensor([scene.attributes for scene in HELD_OUT_SCENES]).to(fabric.device)
    psnr = {
        "x".join(map(str, bucket[:3])): round(reconstruction_psnr_db(vae, unseen, bucket), 2)
        for bucket in buckets
    }
    report[part] = {
        "steps": training.num_steps,
        "seconds": round(time.monotonic() - started, 1),
        "clips_per_step": buckets[0].batch,
        "psnr_db_held_out": psnr,
    }
    fabric.print(json.dumps(report[part]))


def train_denoiser(
    fabric: L.Fabric,
    options: argparse.Namespace,
    vae: AutoencoderKLWan,
    report: dict[str, object],
) -> None:
    """Train text encoder and denoiser on `vae`'s latents; write the folder now and at the end."""
    fabric.print("text encoder and denoiser")
    started, tokenizer = time.monotonic(), make_tokenizer()
    if options.resume:
        denoiser = WanTransformer3DModel.from_pretrained(options.resume, subfolder="transformer")
        text_encoder = UMT5EncoderModel.from_pretrained(options.resume / "text_encoder")
    else:
        denoiser, text_encoder = build_denoiser(), build_text_encoder(len(tokenizer))
    captions = CaptionTable(tokenizer, list(TRAINED_SCENES), per_scene=384, device=fabric.device)
    buckets, shares = make_buckets(DENOISER_SIZES, DENOISER_DEFAULT_SHARE, 128 * 320, options)
    pool = fill_pool(fabric, vae, buckets, shares, options)
    fabric.print(f"  latents ready after {time.monotonic() - started:.0f} s")
    if options.compile:
        for block in denoiser.blocks:
            block.compile(dynamic=True)

    def save() -> None:
        save_pipeline(
            options.output,
            vae=vae,
            denoiser=denoiser,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )

    training = TimedTraining(
        fabric,
        FlowMatching(denoiser, text_encoder, captions, pool),
        buckets=buckets,
        shares=shares,
        budget_s=options.denoiser_seconds - (time.monotonic() - started),
        peak_lr=options.denoiser_lr,
    )
    training.run(save=save)
    save()
    report["denoiser"] = {
        "steps": training.num_steps,
        "seconds": round(time.monotonic() - started, 1),
        "clips_per_step": buckets[0].batch,
        "resumed": options.resume is not None,
    }


def fill_pool(
    fabric: L.Fabric,
    vae: AutoencoderKLWan,
    buckets: list[Bucket],
    shares: list[float],
    options: argparse.Namespace,
) -> LatentPool:
    """About 2000 encoded batches, divided among the buckets as the steps will be."""
    attributes = torch.tensor([scene.attributes for scene in TRAINED_SCENES]).to(fabric.device)
    pool = LatentPool()
    with fabric.autocast():
        for bucket, share in zip(buckets, shares, strict=True):
            batches = max(2, round(2000 * options.scale * share))
            pool.fill(vae, attributes, bucket, batches)
    return pool


if __name__ == "__main__":
    main()
