"""LoRA files for the small checkpoints, written by diffusers' own means."""

from pathlib import Path

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict

TARGETS = ["to_q", "to_v", "ffn.net.2", "proj_out", "condition_embedder.time_proj"]


def write_lora(
    checkpoint: Path, folder: Path, *, seed: int, rank: int = 4, targets: list[str] = TARGETS
) -> Path:
    """Write a random LoRA for a checkpoint's transformer; return its folder."""
    model = WanTransformer3DModel.from_pretrained(checkpoint, subfolder="transformer")
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    model.add_adapter(config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    WanPipeline.save_lora_weights(folder, get_peft_model_state_dict(model))
    return folder
