"""One process of a world that a generator starts: makes videos and reports what it holds."""

import json
import sys
from pathlib import Path

import numpy as np
from torch.distributed.tensor import DTensor

from fastvideo_lightning import PredictLoop, PromptDataset, VideoGenerator
from fastvideo_lightning.callbacks import LayerwiseOffload, VideoWriter
from fastvideo_lightning.checkpoint import weights


def main(num_processes: int, folder: Path) -> None:
    """Make the videos of every way in `settings.json`, one way after the other."""
    settings = json.loads((folder / "settings.json").read_text())
    reads = record_reads()
    reports = {}
    for name, way in settings["ways"].items():
        own = folder / name
        own.mkdir(exist_ok=True)
        options = {"num_gpus": num_processes, **settings["options"], **way["flags"]}
        report: dict = {}
        for case, (checkpoint, sampling) in way["cases"].items():
            report[case] = make_one(own, case, checkpoint, sampling, options, reads)
        if lora := way.get("lora"):
            make_adapted(own, *lora, options)
            continue
        rank, report["prompts"] = make_many(own, settings["prompts"], settings["sampling"], options)
        reports[name] = report
    (folder / f"{rank}.json").write_text(json.dumps(reports))


def make_one(
    folder: Path, case: str, checkpoint: str, sampling: dict, options: dict, reads: list
) -> dict:
    """Make a video twice; return what the process read, holds and computed for it."""
    reads.clear()
    with VideoGenerator.from_pretrained(checkpoint, **options) as generator:
        read = sum(size for path, size in reads if "transformer" in path)
        tokens = count_tokens(generator.module)
        video = generator.generate_video(save_video=False, **sampling)
        np.save(folder / f"{case}-{generator._fabric.global_rank}.npy", video.frames)
        again = generator.generate_video(save_video=False, **sampling)
        return {
            "read": read,
            "repeats": bool(np.array_equal(again.frames, video.frames)),
            "tokens": sorted(tokens),
            **measure(generator.module),
            **measure_streams(generator._fabric),
        }


def make_adapted(folder: Path, checkpoint: str, lora: str, sampling: dict, options: dict) -> None:
    """Make a video before, with and after a LoRA."""
    with VideoGenerator.from_pretrained(checkpoint, **options) as generator:
        frames = [generator.generate_video(save_video=False, **sampling).frames]
        generator.load_lora(lora)
        frames.append(generator.generate_video(save_video=False, **sampling).frames)
        generator.unload_lora()
        frames.append(generator.generate_video(save_video=False, **sampling).frames)
        np.save(folder / f"lora-{generator._fabric.global_rank}.npy", np.stack(frames))


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


def count_tokens(module) -> set[int]:
    """Have the number of tokens noted that reach a block in the middle."""
    seen: set[int] = set()
    for fqn in module.denoisers:
        block = module.get_submodule(f"{fqn}.blocks.1")
        block.register_forward_pre_hook(lambda _, args: seen.add(args[0].shape[1]))
    return seen


def measure(module) -> dict:
    sizes = {"local": 0, "whole": 0, "other": 0}
    kept = 0
    for fqn in module.denoisers:
        denoiser = module.get_submodule(fqn)
        for weight in denoiser.parameters():
            if isinstance(weight, DTensor):
                sizes["local"] += weight.to_local().nbytes
                sizes["whole"] += weight.numel() * weight.element_size()
            else:
                sizes["other"] += weight.nbytes
        if hasattr(denoiser, "_get_fsdp_state"):
            kept += len(denoiser._get_fsdp_state()._comm_ctx.post_forward_order)
    weights = [w for fqn in module.denoisers for w in module.get_submodule(fqn).parameters()]
    trained = sum(weight.requires_grad for weight in weights)
    return {**sizes, "kept_forwards": kept, "trained": trained}


def measure_streams(fabric) -> dict:
    """Return the bytes of the units that stream, and how many of them this rank holds."""
    found = [c for c in fabric._callbacks if isinstance(c, LayerwiseOffload)]
    engine = found[0].attachments[0].engine if found else None  # one for all units of a module
    units = [] if engine is None else [unit for unit in engine.units if not unit.transient]
    return {
        "held": sum(unit.slab.size_bytes for unit in units),
        "streamed": sum(unit.size_bytes for unit in units),
    }


def make_many(folder: Path, prompts: list, sampling: dict, options: dict) -> tuple[int, list[int]]:
    writer = VideoWriter(folder / "videos")
    with VideoGenerator.from_pretrained(callbacks=[writer], **options) as generator:
        videos = PredictLoop(generator._fabric).run(
            generator.module, PromptDataset(prompts, **sampling), return_predictions=True
        )
        for video in videos:
            np.save(folder / f"prompt-{video.index}.npy", video.frames)
        return generator._fabric.global_rank, [video.index for video in videos]


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
