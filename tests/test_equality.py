"""Every Wan kind makes what plain diffusers makes, bit for bit on the CPU, by every route."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from support.checkpoints import PROMPT
from support.references import CASES, SEED, kind_of, make_plain_frames, sampling_of

from fastvideo_lightning import (
    HostResidentStrategy,
    PredictLoop,
    PromptDataset,
    VideoGenerator,
    VideoModule,
)
from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload, VideoWriter

FindCheckpoint = Callable[[str], Path]
Reference = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def images(image: Path, last_image: Path) -> dict[str, Path]:
    return {"image": image, "last_image": last_image}


@pytest.fixture(scope="module")
def reference(checkpoint: FindCheckpoint, images: dict[str, Path]) -> Reference:
    made: dict[str, np.ndarray] = {}

    def find(case: str) -> np.ndarray:
        if case not in made:
            folder, sampling = checkpoint(kind_of(case)), sampling_of(case, images)
            made[case] = make_plain_frames(folder, sampling)
        return made[case]

    return find


@pytest.mark.parametrize("case", CASES)
def test_generator_equals_plain_diffusers(
    case: str, checkpoint: FindCheckpoint, reference: Reference, images: dict[str, Path]
) -> None:
    with VideoGenerator.from_pretrained(checkpoint(kind_of(case)), accelerator="cpu") as generator:
        video = generator.generate_video(
            PROMPT, save_video=False, seed=SEED, **sampling_of(case, images)
        )
    assert np.array_equal(video.frames, reference(case))


@pytest.mark.parametrize("case", CASES)
def test_fabric_script_equals_plain_diffusers(
    case: str,
    checkpoint: FindCheckpoint,
    reference: Reference,
    images: dict[str, Path],
    tmp_path: Path,
) -> None:
    module = VideoModule.from_pretrained(checkpoint(kind_of(case)))
    fabric = L.Fabric(
        accelerator="cpu",
        devices=1,
        strategy=HostResidentStrategy(),
        callbacks=[*placements(module), VideoWriter(tmp_path)],
    )
    fabric.launch()
    prompts = PromptDataset([PROMPT], seed=SEED, **sampling_of(case, images))
    videos = PredictLoop(fabric).run(fabric.setup(module), prompts, return_predictions=True)
    fabric.call("teardown")
    assert videos is not None
    assert np.array_equal(videos[0].frames, reference(case))
    assert videos[0].video_path.parent == tmp_path


@pytest.mark.parametrize("case", CASES)
def test_attached_callbacks_equal_plain_diffusers(
    case: str, checkpoint: FindCheckpoint, reference: Reference, images: dict[str, Path]
) -> None:
    module = VideoModule.from_pretrained(checkpoint(kind_of(case)))
    callbacks = placements(module)
    for callback in callbacks:
        callback.attach(module, "cpu")
    batch = PromptDataset([PROMPT], seed=SEED, **sampling_of(case, images))[0]
    first, second = module.predict_step(batch, 0), module.predict_step(batch, 1)
    for callback in callbacks:
        callback.detach()
    after = module.predict_step(batch, 2)
    expected = reference(case)
    assert np.array_equal(first.frames, expected)
    assert np.array_equal(second.frames, expected)
    assert np.array_equal(after.frames, expected)


def test_both_experts_run(checkpoint: FindCheckpoint, images: dict[str, Path]) -> None:
    module = VideoModule.from_pretrained(checkpoint("two_experts"))
    called = []
    for name in module.denoisers:
        expert = module.get_submodule(name)
        expert.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    batch = PromptDataset([PROMPT], seed=SEED, **sampling_of("two_experts", images))[0]
    module.predict_step(batch, 0)
    assert called == ["transformer", "transformer", "transformer_2", "transformer_2"]


def placements(module: VideoModule) -> list[Any]:
    return [
        *(LayerwiseOffload(f"{name}.blocks") for name in module.denoisers),
        *(CPUExecution(name) for name in module.text_encoders),
        *(ModelOffload(name) for name in (*module.image_encoders, *module.vaes)),
    ]
