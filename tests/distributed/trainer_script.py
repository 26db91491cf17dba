"""A Trainer's predict on processes that bring blocks together; run by its test."""

import hashlib
import json
import sys
from pathlib import Path

import lightning as L

from fastvideo_lightning import PromptDataModule, TrainerHostResidentStrategy, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, TrainerCallback


def main(num_processes: str, folder: str) -> None:
    settings = json.loads((Path(folder) / "settings.json").read_text())
    streaming = LayerwiseOffload("transformer", shard_transport="gather")
    trainer = L.Trainer(
        accelerator="cpu",
        devices=int(num_processes),
        strategy=TrainerHostResidentStrategy(),
        callbacks=[TrainerCallback(streaming)],
        logger=False,
        enable_progress_bar=False,
    )
    module = VideoModule.from_pretrained("tiny-shapes")
    prompts, sampling = settings["prompts"], settings["sampling"]
    refusal = ""
    try:
        trainer.predict(module, datamodule=PromptDataModule(prompts, **sampling))
    except ValueError as error:
        refusal = str(error)
    videos = trainer.predict(module, datamodule=PromptDataModule(prompts[:-1], **sampling))
    report = {
        "refusal": refusal,
        "videos": {v.index: hashlib.sha256(v.frames.tobytes()).hexdigest() for v in videos},
    }
    (Path(folder) / f"{trainer.global_rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
