"""LoRA files for the small checkpoints, written by diffusers' own means."""

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

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


def write_lora_of(pipeline: Any, folder: Path, *, seed: int, leaves: tuple[str, ...]) -> Path:
    """Write a random LoRA for the first denoiser of any pipeline; return its folder.

    Args:
        pipeline: It stays as it is.
        folder: Made where it is not there.
        seed: Of the weights.
        leaves: The last names of the linear layers that it has parts for.
    """
    name = "transformer" if "transformer" in pipeline.components else "unet"
    model = copy.deepcopy(getattr(pipeline, name))
    torch.manual_seed(seed)
    model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=list(leaves)))
    for fqn, weight in model.named_parameters():
        if "lora_" in fqn:
            torch.nn.init.normal_(weight, std=0.3)
    layers = get_peft_model_state_dict(model)
    if hasattr(pipeline, "save_lora_weights"):
        pipeline.save_lora_weights(folder, **{f"{name}_lora_layers": layers})
    else:
        folder.mkdir(parents=True)
        named = {f"{name}.{key}": weight.contiguous() for key, weight in layers.items()}
        save_file(named, folder / "pytorch_lora_weights.safetensors")
    return folder
