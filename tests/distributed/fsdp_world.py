"""What one process of an FSDP world sees; `test_fsdp.py` reads it."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from fastvideo_lightning import PredictLoop, PromptDataset, VideoGenerator, weights
from fastvideo_lightning.callbacks import VideoWriter

FSDP = {"use_fsdp_inference": True, "dit_layerwise_offload": False}


def main(num_processes: int, folder: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    report: dict = {}
    reads = record_reads()
    for case, (checkpoint, sampling) in settings["cases"].items():
        with VideoGenerator.from_pretrained(
            checkpoint, num_gpus=num_processes, accelerator="cpu", **FSDP
        ) as generator:
            report[case] = {"read": sum(size for path, size in reads if "transformer" in path)}
            reads.clear()
            rank = generator._fabric.global_rank
            video = generator.generate_video(save_video=False, **sampling)
            np.save(folder / f"{case}-{rank}.npy", video.frames)
            report[case] |= describe(generator.module)
            again = generator.generate_video(save_video=False, **sampling)
            report[case]["repeats"] = bool(np.array_equal(again.frames, video.frames))
    report["prompts"] = make_many(num_processes, folder, settings["prompts"])
    (folder / f"{rank}.json").write_text(json.dumps(report))


def record_reads() -> list[tuple[str, int]]:
    """Have every read of a tensor noted: file and bytes."""
    reads: list[tuple[str, int]] = []

    def note(read):
        def noted(tensor, *rest):
            reads.append((str(tensor.path), tensor.size_bytes))
            return read(tensor, *rest)

        return noted

    weights._read_bytes = note(weights._read_bytes)
    weights._map_tensor = note(weights._map_tensor)
    return reads


def describe(module) -> dict:
    sizes = {"local": 0, "whole": 0, "other": 0}
    orders = set()
    for fqn in module.denoisers:
        for weight in module.get_submodule(fqn).parameters():
            if isinstance(weight, DTensor):
                sizes["local"] += weight.to_local().nbytes
                sizes["whole"] += weight.numel() * weight.element_size()
            else:
                sizes["other"] += weight.nbytes
        state = module.get_submodule(fqn)._get_fsdp_state()
        orders.add(len(state._comm_ctx.post_forward_order))
    return {**sizes, "kept_forwards": max(orders), "grad": torch.is_grad_enabled()}


def make_many(num_processes: int, folder: Path, prompts: list) -> list:
    with VideoGenerator.from_pretrained(
        num_gpus=num_processes,
        accelerator="cpu",
        callbacks=[VideoWriter(folder / "videos")],
        **FSDP,
    ) as generator:
        videos = PredictLoop(generator._fabric).run(
            generator.module, PromptDataset(prompts, num_inference_steps=2), return_predictions=True
        )
        for video in videos:
            np.save(folder / f"prompt-{video.index}.npy", video.frames)
        return [video.index for video in videos]


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
