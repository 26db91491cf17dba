"""What a user's script with several processes makes; `test_sharded_videos.py` reads it."""

import json
import sys
from pathlib import Path

import numpy as np

from fastvideo_lightning import PredictLoop, PromptDataset, VideoGenerator
from fastvideo_lightning.callbacks import LayerwiseOffload, VideoWriter


def main(num_processes: int, folder: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    report = {}
    for how in ("gather", "local"):
        with VideoGenerator.from_pretrained(
            num_gpus=num_processes,
            accelerator="cpu",
            shard_transport=how,
            callbacks=[VideoWriter(folder / how)],
        ) as generator:
            fabric = generator._fabric
            prompts = PromptDataset(settings["prompts"], **settings["sampling"])
            videos = PredictLoop(fabric).run(generator.module, prompts, return_predictions=True)
            for video in videos:
                np.save(folder / f"{how}-{video.index}.npy", video.frames)
            (streaming,) = (c for c in fabric._callbacks if isinstance(c, LayerwiseOffload))
            engine = streaming.attachments[0].engine
            report[how] = {
                "indices": [video.index for video in videos],
                "misses": engine.stats.misses,
                "held": engine.store.size_bytes,
                "whole": sum(unit.size_bytes for unit in engine.units),
            }
            rank = fabric.global_rank
    (folder / f"{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
