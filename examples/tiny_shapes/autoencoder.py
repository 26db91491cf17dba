"""The video autoencoder of tiny-shapes and what trains it."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanResample,
    WanResidualDownBlock,
    WanResidualUpBlock,
    patchify,
    unpatchify,
)
from torch import nn
from torch.nn import functional as F

from .drawing import draw_clips
from .training import Bucket

LATENT_CHANNELS = 16


def build_autoencoder() -> AutoencoderKLWan:
    """1.2 M parameters: 8x fewer rows and columns, 4x fewer frames, 16 channels."""
    return AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=24,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=8,
        scale_factor_temporal=4,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def encode_whole(vae: AutoencoderKLWan, clips: torch.Tensor) -> torch.Tensor:
    """What `vae.encode` computes four frames at a time, all frames at once: far fewer kernels.

    Args:
        vae: a residual Wan autoencoder.
        clips: `[batch, 3, frames, height, width]` in -1..1.

    Returns:
        Mean and log-variance, `[batch, 2 * channels, latent frames, rows, columns]`.
    """
    encoder = vae.encoder
    hidden = encoder.conv_in(patchify(clips, vae.config.patch_size))
    for block in encoder.down_blocks:
        hidden = _down(block, hidden)
    hidden = encoder.mid_block(hidden)
    return vae.quant_conv(encoder.conv_out(encoder.nonlinearity(encoder.norm_out(hidden))))


def decode_whole(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """What `vae.decode` computes frame by frame, at once and not yet clamped to -1..1.

    Args:
        vae: a residual Wan autoencoder.
        latents: `[batch, channels, latent frames, rows, columns]`, not normalised.

    Returns:
        `[batch, 3, frames, height, width]`.
    """
    decoder = vae.decoder
    hidden = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        hidden = _up(block, hidden)
    hidden = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(hidden)))
    return unpatchify(hidden, vae.config.patch_size)


def _down(block: WanResidualDownBlock, hidden: torch.Tensor) -> torch.Tensor:
    shortcut = block.avg_shortcut(hidden)
    for resnet in block.resnets:
        hidden = resnet(hidden)
    if block.downsampler is not None:
        hidden = _resample_rows(block.downsampler, hidden)
        if block.downsampler.mode == "downsample3d":
            # The first frame stands alone, each later pair of frames becomes one.
            later = block.downsampler.time_conv(hidden)
            hidden = torch.cat((hidden[:, :, :1], later), dim=2)
    return hidden + shortcut


def _up(block: WanResidualUpBlock, hidden: torch.Tensor) -> torch.Tensor:
    shortcut = None
    if block.avg_shortcut is not None:
        shortcut = block.avg_shortcut(hidden, first_chunk=True)
    for resnet in block.resnets:
        hidden = resnet(hidden)
    if block.upsampler is not None:
        if block.upsampler.mode == "upsample3d":
            # The first frame stays one, and the others double without looking at it.
            later = block.upsampler.time_conv(hidden[:, :, 1:])
            later = later.unflatten(1, (2, -1)).movedim(1, 3).flatten(2, 3)
            hidden = torch.cat((hidden[:, :, :1], later), dim=2)
        hidden = _resample_rows(block.upsampler, hidden)
    return hidden if shortcut is None else hidden + shortcut


def _resample_rows(resampler: WanResample, hidden: torch.Tensor) -> torch.Tensor:
    frames = hidden.shape[2]
    pictures = resampler.resample(hidden.transpose(1, 2).flatten(0, 1))
    return pictures.unflatten(0, (-1, frames)).transpose(1, 2)


class Reconstruction(nn.Module):
    """The autoencoder's loss on clips drawn afresh: absolute and squared error, and a light KL.

    Args:
        vae: what to train.
        attributes: `[scenes, 4]`, the scenes to draw.
        decoder_only: leave the encoder, and so the latents that a denoiser knows, as they are.
        kl_weight: of the divergence per latent number, beside the error per pixel.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        attributes: torch.Tensor,
        *,
        decoder_only: bool = False,
        kl_weight: float = 2e-5,
    ) -> None:
        super().__init__()
        self.vae, self._kl_weight = vae, kl_weight
        vae.encoder.requires_grad_(not decoder_only)
        vae.quant_conv.requires_grad_(not decoder_only)
        self.register_buffer("attributes", attributes, persistent=False)

    def forward(self, bucket: Bucket) -> torch.Tensor:
        """The scalar loss on one batch of the bucket's size."""
        clips = draw_batch(self.attributes, bucket)[0]
        mean, logvar = encode_whole(self.vae, clips).float().chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        latents = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        error = decode_whole(self.vae, latents).float() - clips
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return error.abs().mean() + 2 * error.square().mean() + self._kl_weight * divergence


def draw_batch(attributes: torch.Tensor, bucket: Bucket) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of a bucket's size of scenes drawn by lot, and the row of each in `attributes`."""
    rows = torch.randint(len(attributes), (bucket.batch,), device=attributes.device)
    clips = draw_clips(
        attributes[rows],
        num_frames=bucket.num_frames,
        height=bucket.height,
        width=bucket.width,
    )
    return clips, rows


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan, attributes: torch.Tensor, buckets: list[Bucket]) -> None:
    """Put the mean and the deviation of each latent channel into the autoencoder's config."""
    samples = []
    for bucket in buckets:
        mean = encode_whole(vae, draw_batch(attributes, bucket)[0])[:, :LATENT_CHANNELS]
        samples.append(mean.float().transpose(0, 1).flatten(1))
    latents = torch.cat(samples, dim=1)
    vae.register_to_config(
        latents_mean=latents.mean(1).tolist(), latents_std=latents.std(1).tolist()
    )


@torch.no_grad()
def reconstruction_psnr_db(
    vae: AutoencoderKLWan, attributes: torch.Tensor, bucket: Bucket
) -> float:
    """Peak signal-to-noise ratio of clips that went through `vae.encode` and `vae.decode`."""
    clips = draw_batch(attributes, bucket)[0]
    decoded = vae.decode(vae.encode(clips).latent_dist.mode()).sample
    return float(-10 * torch.log10(F.mse_loss(decoded, clips) / 4))
