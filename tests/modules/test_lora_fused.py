"""Adapters in the weights: what may be done with them there, and what is said of the rest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from support.checkpoints import PROMPT, SIZE
from support.loras import write_lora
from support.references import SEED

from fastvideo_lightning import HostResidentStrategy, PredictLoop, PromptDataset, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload


@pytest.fixture(scope="module")
def files(checkpoint, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("loras")
    return [write_lora(checkpoint("t2v"), folder / str(seed), seed=seed) for seed in (11, 12)]


class Streamed:
    """A module whose blocks stream, with two adapters of which the first is switched on."""

    def __init__(self, folder: Path, files: list[Path]) -> None:
        self.fabric = L.Fabric(
            accelerator="cpu",
            devices=1,
            strategy=HostResidentStrategy(),
            callbacks=[LayerwiseOffload("transformer")],
        )
        self.fabric.launch()
        self.module = VideoModule.from_pretrained(folder)
        self.fabric.setup(self.module)
        self.plain = self.frames()
        self.module.load_lora(files[0], name="first")
        self.module.load_lora(files[1], name="second", weight=0)

    def frames(self) -> np.ndarray[Any, Any]:
        prompts = PromptDataset([PROMPT], seed=SEED, **SIZE, guidance_scale=3.0)
        return PredictLoop(self.fabric).run(self.module, prompts, return_predictions=True)[0].frames


@pytest.fixture
def streamed(checkpoint, files) -> Iterator[Streamed]:
    made = Streamed(checkpoint("t2v"), files)
    yield made
    made.fabric.call("teardown")


def test_fused_adapters_are_neither_switched_nor_fused_again_nor_joined(streamed, files) -> None:
    module = streamed.module
    module.fuse_lora(scale=0.5)
    fused = streamed.frames()
    for refused in (
        lambda: module.set_loras({}),
        lambda: module.set_loras({"second": 1.0}),
        lambda: module.fuse_lora(),
        lambda: module.load_lora(files[1], name="third"),
    ):
        with pytest.raises(RuntimeError, match=r"fused are: first\). Call unfuse_lora\(\) first"):
            refused()
    assert np.array_equal(streamed.frames(), fused)
    module.unfuse_lora()
    module.set_loras({})
    off = [streamed.frames() for _ in range(2)]
    assert np.array_equal(*off)
    assert np.abs(off[0].astype(int) - streamed.plain).max() <= 1  # up to rounding


def test_the_scale_of_fusing_counts_in_the_weights_that_are_told(streamed) -> None:
    module = streamed.module
    module.fuse_lora(scale=0.5)
    assert module.loras == {"first": 0.5, "second": 0.0}
    module.unfuse_lora()
    unfused = streamed.frames()
    module.set_loras(module.loras)
    assert np.array_equal(streamed.frames(), unfused)


def test_what_is_switched_off_is_not_fused(streamed) -> None:
    streamed.module.set_loras({})
    with pytest.raises(ValueError, match=r"No LoRA is switched on.*set_loras\({'first': 1.0}\)"):
        streamed.module.fuse_lora()
    assert np.array_equal(streamed.frames(), streamed.plain)


def test_what_was_fused_and_removed_stays_and_the_others_are_free(streamed) -> None:
    module = streamed.module
    module.fuse_lora()
    fused = streamed.frames()
    module.unload_lora("first")
    assert np.array_equal(streamed.frames(), fused)
    module.set_loras({"second": 1.0})
    assert not np.array_equal(streamed.frames(), fused)
    module.unload_lora()
    assert np.array_equal(streamed.frames(), fused)
