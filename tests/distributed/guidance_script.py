"""A batch that two processes make together, and then go on with; `test_guidance.py` reads it."""

import json
from pathlib import Path

from fastvideo_lightning import VideoGenerator


def main(num_processes: int, folder: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    report: dict = {"made": [], "skipped": [], "frames": []}
    with VideoGenerator.from_pretrained(
        num_gpus=num_processes, accelerator="cpu", guidance_parallel=2
    ) as generator:
        fabric = generator._fabric
        for _ in range(2):
            batch = generator.generate_videos(
                settings["prompts"], output_path=folder / "night", **settings["sampling"]
            )
            report["skipped"].append(batch.num_skipped)
            made = list(batch)
            report["made"].append([video.index for video in made])
            report["frames"].append([video.frames[:, ::8, ::8].tolist() for video in made])
            fabric.barrier()
            if fabric.is_global_zero:
                sorted((folder / "night").glob("*.mp4"))[0].unlink()
            fabric.barrier()
    (folder / f"{fabric.global_rank}.json").write_text(json.dumps(report))
