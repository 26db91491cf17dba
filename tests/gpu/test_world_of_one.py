"""What is meant for several GPUs works on one, bit for bit, and says what suits one GPU better."""

import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support.checkpoints import PROMPT
from support.references import SEED, make_plain_frames, sampling_of
from torch.distributed.tensor import DTensor

from fastvideo_lightning import VideoGenerator
from tests.gpu import requires_gpu

DEVICES = [
    pytest.param("cpu"),
    pytest.param("cuda", marks=[pytest.mark.gpu, requires_gpu]),
]
DTYPES = {"default": torch.bfloat16, "vae": torch.float32}
FSDP = {"use_fsdp_inference": True, "dit_layerwise_offload": False}
WAYS = {
    "fsdp": {**FSDP, "dit_cpu_offload": False},
    "fsdp-host": FSDP,
    "fsdp-host-pageable": {**FSDP, "pin_cpu_memory": False},
    "streamed-gather": {"shard_transport": "gather"},
    "streamed-local": {"shard_transport": "local"},
}
BETTER = (
    "FSDP over one process shards nothing and copies without overlap: on one GPU "
    "dit_layerwise_offload=True is faster."
)


@pytest.fixture(autouse=True)
def _no_process_group() -> Iterator[None]:
    """FSDP makes a process group, of one; leave none to other tests."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", ["t2v", "two_experts", "i2v_clip"])
@pytest.mark.parametrize("way", WAYS)
def test_one_process_makes_the_frames_of_plain_diffusers(
    way, case, device, checkpoint, image, caplog
):
    flags, sampling = WAYS[way], sampling_of(case, {"image": image})
    folder, on_gpu = checkpoint(case), device == "cuda"
    loading = {"dtype": DTYPES, "device": device} if on_gpu else {}
    expected = make_plain_frames(folder, sampling, **loading)
    with (
        caplog.at_level(logging.INFO, "fastvideo_lightning"),
        VideoGenerator.from_pretrained(
            folder,
            accelerator="gpu" if on_gpu else "cpu",
            context_parallel=1,
            text_encoder_cpu_offload=False,
            **flags,
        ) as generator,
    ):
        for _ in range(2):
            video = generator.generate_video(PROMPT, save_video=False, seed=SEED, **sampling)
            assert np.array_equal(video.frames, expected)
        weights = list(generator.module.transformer.parameters())
    is_fsdp = way.startswith("fsdp")
    assert [isinstance(weight, DTensor) for weight in weights] == [is_fsdp] * len(weights)
    assert dist.is_initialized() == is_fsdp
    assert caplog.messages.count(BETTER) == is_fsdp
    if is_fsdp:
        at = "cuda" if on_gpu and way == "fsdp" else "cpu"
        assert {weight.to_local().device.type for weight in weights} == {at}
        pinned = {weight.to_local().is_pinned() for weight in weights}
        assert pinned == {on_gpu and way == "fsdp-host"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", ["fsdp", "fsdp-host"])
def test_adapters_come_and_go_around_shards(way, device, checkpoint, tmp_path):
    pytest.importorskip("peft", reason="needs PEFT")
    from support.loras import write_lora

    folder, on_gpu = checkpoint("t2v"), device == "cuda"
    lora = write_lora(folder, tmp_path / "lora", seed=3)
    options = {"accelerator": "gpu" if on_gpu else "cpu", "text_encoder_cpu_offload": False}
    sampling = {"save_video": False, "seed": SEED, **sampling_of("t2v", {})}
    frames = []
    for flags in ({"dit_layerwise_offload": False}, WAYS[way]):
        with VideoGenerator.from_pretrained(folder, **options, **flags) as generator:
            for change in (lambda g: None, lambda g: g.load_lora(lora), lambda g: g.unload_lora()):
                change(generator)
                frames.append(generator.generate_video(PROMPT, **sampling).frames.astype(int))
            if "fsdp" in str(flags):
                generator.load_lora(lora)
                with pytest.raises(ValueError, match="fuse_lora cannot .* transformer, which FSDP"):
                    generator.fuse_lora()
    assert (frames[0] != frames[1]).any()
    for resident, sharded in zip(frames[:3], frames[3:], strict=True):
        # On a CPU the last bit of a product depends on where in memory a weight begins.
        assert np.abs(resident - sharded).max() <= (not on_gpu)
