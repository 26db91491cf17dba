"""The command in a world in which one process fails at its first prompt."""

import json
import os
import time
from pathlib import Path

from distributed.failing import fail
from fastvideo_lightning import VideoModule
from fastvideo_lightning.__main__ import main

_predict_step = VideoModule.predict_step


def predict_step(self, batch, batch_idx):
    settings = json.loads(Path("settings.json").read_text())
    rank = self._fabric.global_rank
    note = {"pid": os.getpid(), "port": int(os.environ["MASTER_PORT"])}
    Path(f"{rank}.json").write_text(json.dumps(note))
    self._fabric.barrier()
    if rank == settings["rank"]:
        time.sleep(1)
        Path("failed_at").write_text(str(time.time()))
        fail(settings["how"])
    return _predict_step(self, batch, batch_idx)


if __name__ == "__main__":
    VideoModule.predict_step = predict_step
    main()
