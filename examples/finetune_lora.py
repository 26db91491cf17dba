"""Fine-tune a LoRA with Fabric on a denoiser whose blocks stream, then generate with it.

On a laptop, with the small model that comes with the package, in some seconds:

    python examples/finetune_lora.py

It teaches `tiny-shapes` to make shapes green whatever colour the prompt names: the adapter learns
to predict for "a red circle" what the model itself predicts for "a green circle". It sits in the
blocks, where the model looks at the prompt. While it is trained, the blocks stream as they do when
a video is made: with gradient checkpointing each comes in for its forward and again for its
backward, so that a model larger than the GPU can be trained on it. The adapter's own weights, and
what the optimizer keeps of them, stay on the host. It needs PEFT: pip install ".[lora]".
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy CPU; before torch is imported

import sys
from pathlib import Path

import lightning as L
import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch.nn.functional import mse_loss

from fastvideo_lightning import HostResidentStrategy, PredictLoop, PromptDataset, VideoModule
from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload, VideoWriter

SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "blue", "yellow", "purple")
Example = tuple[dict[str, torch.Tensor], torch.Tensor]
LATENTS = (16, 5, 8, 8)  # channels, frames, rows and columns of 17 frames of 64x64


@torch.no_grad()
def make_examples(module: VideoModule, count: int) -> list[Example]:
    """Return calls of the denoiser with a colour's prompt, and its answers to the green prompt."""
    device, random = module.execution_device, torch.Generator().manual_seed(0)
    examples = []
    for i in range(count):
        shape, colour = SHAPES[i % 3], COLOURS[i % 4]
        embedded = [
            module.pipeline.encode_prompt(f"a {c} {shape}", do_classifier_free_guidance=False)[0]
            for c in (colour, "green")
        ]
        call = {
            "hidden_states": torch.randn(1, *LATENTS, generator=random).to(device),
            "timestep": torch.rand(1, generator=random).mul(400).add(600).to(device),
        }
        dtype = embedded[0].dtype
        call["hidden_states"] = call["hidden_states"].to(dtype)
        (answer,) = module.transformer(**call, encoder_hidden_states=embedded[1], return_dict=False)
        examples.append(({**call, "encoder_hidden_states": embedded[0]}, answer))
    return examples


def train(fabric: L.Fabric, module: VideoModule, folder: Path, *, num_epochs: int) -> list[float]:
    """Train an adapter, save it in diffusers' layout, and return the loss of each epoch."""
    examples = make_examples(module, 12)
    denoiser = module.transformer
    targets = ["attn2.to_k", "attn2.to_v"]
    denoiser.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=targets), "green")
    denoiser.enable_gradient_checkpointing()
    weights = [weight for weight in denoiser.parameters() if weight.requires_grad]
    optimizer = fabric.setup_optimizers(torch.optim.Adam(weights, lr=1e-2))
    losses = []
    for _ in range(num_epochs):
        total = 0.0
        for call, answer in examples:
            (predicted,) = denoiser(**call, return_dict=False)
            loss = mse_loss(predicted, answer)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()
        losses.append(total / len(examples))
    state = get_peft_model_state_dict(denoiser, adapter_name="green")
    type(module.pipeline).save_lora_weights(folder, state)
    denoiser.disable_gradient_checkpointing()
    denoiser.unload_lora()
    return losses


def show(fabric: L.Fabric, module: VideoModule, what: str) -> None:
    """Write a video of one prompt and say what colour there is in it."""
    prompts = PromptDataset(["a red circle moves right"])
    for video in PredictLoop(fabric).run(module, prompts, return_predictions=True) or []:
        red, green, blue = video.frames.mean(axis=(0, 1, 2))
        print(f"{video.video_path} {what}: red {red:.0f}, green {green:.0f}, blue {blue:.0f}")


def main(num_epochs: str = "4") -> None:
    """Train for some epochs, then write a video without and one with the adapter."""
    fabric = L.Fabric(
        accelerator="auto",
        devices=1,
        strategy=HostResidentStrategy(),
        callbacks=[
            LayerwiseOffload("transformer"),
            CPUExecution("text_encoder"),
            ModelOffload("vae"),
            VideoWriter("output/"),
        ],
    )
    fabric.launch()
    fabric.seed_everything(0)
    module = VideoModule.from_pretrained("tiny-shapes")
    fabric.setup(module)
    folder = Path("output") / "green"
    losses = train(fabric, module, folder, num_epochs=int(num_epochs))
    print("loss: " + " ".join(f"{loss:.4f}" for loss in losses))
    show(fabric, module, "without the adapter")
    name = module.load_lora(folder)
    show(fabric, module, f"with {name}")
    fabric.call("teardown")


if __name__ == "__main__":
    main(*sys.argv[1:])
