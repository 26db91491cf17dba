"""The command in a world in which one process fails at its first prompt, or within a step."""

import json
import os
import time
from pathlib import Path

from distributed.failing import fail
from fastvideo_lightning import VideoModule
from fastvideo_lightning.__main__ import main
from fastvideo_lightning.callbacks import LayerwiseOffload

_predict_step = VideoModule.predict_step
_begin_step = LayerwiseOffload.on_denoise_step_start


def predict_step(self, batch, batch_idx):
    settings = json.loads(Path("settings.json").read_text())
    rank = self._fabric.global_rank
    note = {"pid": os.getpid(), "port": int(os.environ["MASTER_PORT"])}
    Path(f"{rank}.json").write_text(json.dumps(note))
    self._fabric.barrier()
    if rank == settings["rank"] and "step" not in settings:
        time.sleep(1)
        Path("failed_at").write_text(str(time.time()))
        fail(settings["how"])
    return _predict_step(self, batch, batch_idx)


def on_denoise_step_start(self, step, denoiser="", following=""):
    settings = json.loads(Path("settings.json").read_text())
    if step == settings.get("step") and int(os.environ["LOCAL_RANK"]) == settings["rank"]:
        Path("failed_at").write_text(str(time.time()))
        fail(settings["how"])
    _begin_step(self, step, denoiser, following)


if __name__ == "__main__":
    LayerwiseOffload.on_denoise_step_start = on_denoise_step_start
    VideoModule.predict_step = predict_step
    main()
