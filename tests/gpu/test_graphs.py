"""A captured pass gives the bits of the pass that it stands for, whatever happens around it."""

import gc

import numpy as np
import pytest
import torch
from support.checkpoints import PROMPT
from support.references import SEED, kind_of, make_plain_frames, sampling_of
from torch import nn

from fastvideo_lightning import VideoGenerator
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from tests.gpu import requires_gpu
from tests.gpu.streams import PoisoningStream, SleepingStream
from tests.gpu.test_generator import DTYPES
from tests.gpu.test_streaming import DEVICE, WIDTH, engine_in, wide
from tests.support.toys import sample

pytestmark = [pytest.mark.gpu, requires_gpu, pytest.mark.usefixtures("no_grad")]


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def inputs() -> list[torch.Tensor]:
    return [sample(WIDTH).to(DEVICE) * (1 + i / 8) for i in range(6)]


def attach(model: nn.Module, callback):
    callback.attach(model, DEVICE)
    callback.on_predict_batch_start()
    return callback


def graphed(callback):
    return callback.attachments[0].graphed


@pytest.mark.parametrize("host_memory", ["auto", "pageable"])
@pytest.mark.parametrize("num_blocks", [6, 7])
@pytest.mark.parametrize("resident_blocks", [0, 2])
def test_every_pass_of_a_run_equals_the_plain_one(host_memory, num_blocks, resident_blocks):
    plain = wide(num_blocks).to(DEVICE)
    expected = [plain(x) for x in inputs()]
    toy = wide(num_blocks)
    options = {"resident_blocks": resident_blocks, "host_memory": host_memory}
    callback = attach(toy, LayerwiseOffload("blocks", cuda_graphs=True, **options))
    for _ in range(2):
        outputs = [toy(x) for x in inputs()]
        assert len(graphed(callback)._captured) == (host_memory == "auto")
        callback.on_predict_batch_end()
        assert not graphed(callback)._captured
        callback.on_predict_batch_start()
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    engine_in(callback).check()
    assert engine_in(callback).stats.misses == 0
    callback.detach()
    assert torch.equal(toy.to(DEVICE)(inputs()[0]), expected[0])


@pytest.mark.parametrize("transport", [PoisoningStream, SleepingStream])
def test_no_slot_is_read_late_or_early(transport):
    plain = wide().to(DEVICE)
    toy = wide()
    callback = LayerwiseOffload("blocks", cuda_graphs=True)
    engine = callback.attach(toy, DEVICE).engine
    engine.transport = transport(DEVICE)
    callback.on_predict_batch_start()
    outputs = [toy(x) for x in inputs() * 3]
    expected = [plain(x) for x in inputs() * 3]
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    if transport is SleepingStream:  # a poisoned slot forgets its holder: never the same twice
        assert graphed(callback)._captured


def test_passes_between_replays_are_right_and_counted():
    plain, toy = wide().to(DEVICE), wide()
    callback = attach(toy, LayerwiseOffload("blocks", cuda_graphs=True))
    engine = engine_in(callback)
    first, *_, last = inputs()
    for _ in range(3):
        toy(first)
    before = engine.stats.copies
    toy(first)
    assert engine.stats.copies - before == len(toy.blocks)
    toy.order = plain.order = [0, 2, 1]
    assert torch.equal(toy(torch.cat([last, last])), plain(torch.cat([last, last])))
    toy.order = plain.order = list(range(len(toy.blocks)))
    for x in inputs():
        assert torch.equal(toy(x), plain(x))


class Asking(nn.Module):
    """Looks at a value in its forward, for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.toy = wide()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.toy(x) if x.sum().item() > -1e9 else x


def test_a_model_that_asks_the_device_is_refused_and_works_without():
    x, plain = inputs()[0], Asking().to(DEVICE)
    for callback in (
        LayerwiseOffload("toy.blocks", cuda_graphs=True),
        Resident("", cuda_graphs=True),
    ):
        model = Asking()
        model.toy.requires_grad_(False)
        attach(model, callback)
        model(x)
        if isinstance(callback, LayerwiseOffload):
            assert torch.equal(model(x), plain(x))  # the toy is captured, not what asks
            assert torch.equal(model(x), plain(x))
            continue
        with pytest.raises(RuntimeError, match="cannot be captured .* Leave cuda_graphs out"):
            model(x)
        callback.on_exception()
        assert torch.equal(model(x), plain(x))


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = wide().blocks
        self.error: BaseException | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == 3 and self.error is not None:
                raise self.error
        return x


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), RuntimeError("no")])
def test_after_an_exception_within_a_capture_the_next_run_is_right(error):
    x, plain, model = inputs()[0], Failing().to(DEVICE), Failing()
    callback = attach(model, LayerwiseOffload("blocks", cuda_graphs=True))
    expected = plain(x)
    model(x)
    model.error = error
    with pytest.raises(type(error)):
        model(x)
    callback.on_exception()
    engine_in(callback).check()
    model.error = None
    callback.on_predict_batch_start()
    assert all(torch.equal(model(x), expected) for _ in range(4))
    assert graphed(callback)._captured


def reserved_bytes() -> int:
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def test_a_resident_model_is_repeated_too_and_the_memory_given_back():
    plain, model = wide().to(DEVICE), wide()
    callback = Resident("transformer", cuda_graphs=True)
    callback.attach(nn.ModuleDict({"transformer": model}), DEVICE)
    reserved = []
    for _ in range(3):  # in the first the libraries take their workspaces, once for each stream
        callback.on_predict_batch_start()
        for x in inputs():
            assert torch.equal(model(x), plain(x))
        assert graphed(callback)._captured
        callback.on_denoise_step_start(step=5, denoiser="transformer", following="vae")
        assert not graphed(callback)._captured
        reserved.append(reserved_bytes())
        callback.on_predict_batch_end()
    assert reserved[1] == reserved[2] == reserved[0]


@pytest.mark.parametrize("case", ["t2v", "two_experts"])
@pytest.mark.parametrize(
    "flags", [{}, {"dit_layerwise_offload": False}, {"dit_resident_blocks": 2}]
)
def test_a_generator_makes_the_frames_of_plain_diffusers(case, flags, checkpoint):
    folder, sampling = checkpoint(kind_of(case)), sampling_of(case, {})
    sampling["num_inference_steps"] = 8
    expected = make_plain_frames(folder, sampling, dtype=DTYPES, device="cuda")
    options = {"text_encoder_cpu_offload": False, "cuda_graphs": True, **flags}
    with VideoGenerator.from_pretrained(folder, **options) as generator:
        for _ in range(2):
            video = generator.generate_video(PROMPT, save_video=False, seed=SEED, **sampling)
            assert np.array_equal(video.frames, expected)
