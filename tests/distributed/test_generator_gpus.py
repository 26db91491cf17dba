"""The same generators over two GPUs by NCCL: the frames of one GPU, the weights divided."""

import numpy as np
import pytest
import torch
from checkpoints import PROMPT
from references import SEED, sampling_of

from distributed.scripts import run_script

pytestmark = [
    pytest.mark.multi_gpu,
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]

FSDP = {"use_fsdp_inference": True, "dit_layerwise_offload": False}
WAYS = {
    "fsdp": {**FSDP, "dit_cpu_offload": False},
    "fsdp-cpu-offload": FSDP,
    "streamed-gather": {"shard_transport": "gather"},
    "streamed-local": {"shard_transport": "local"},
    "context-streamed": {"context_parallel": 2},
    "context-fsdp": {**FSDP, "context_parallel": 2},
}


@pytest.fixture(scope="module")
def make(checkpoint, images, tmp_path_factory):
    """Return the frames of every rank, and what the ranks reported."""

    def run(num_processes, flags):
        sampling = {"prompt": PROMPT, "seed": SEED, **sampling_of("two_experts", images)}
        options = {"accelerator": "gpu", "text_encoder_cpu_offload": False, **flags}
        settings = {
            "options": options,
            "cases": {"two_experts": (checkpoint("two_experts"), sampling)},
            "prompts": ["a red circle moves right"] * (num_processes + 1),
        }
        folder = tmp_path_factory.mktemp("gpus")
        reports = run_script("generator_world.py", num_processes, folder, settings)
        frames = [np.load(folder / f"two_experts-{r}.npy") for r in range(num_processes)]
        return frames, reports

    return run


@pytest.fixture(scope="module")
def one_gpu(make):
    (frames,), _ = make(1, {})
    return frames


@pytest.mark.parametrize("name", WAYS)
def test_two_gpus_make_the_frames_of_one_and_each_video_once(make, one_gpu, name):
    frames, reports = make(2, WAYS[name])
    for mine in frames:
        if "context" in name:
            assert np.abs(mine.astype(int) - one_gpu).max() <= 2  # of 255, in bf16
        else:
            assert np.array_equal(mine, one_gpu)
    assert sorted(index for report in reports for index in report["prompts"]) == [0, 1, 2]
    if "fsdp" in name:
        parts = [report["two_experts"]["local"] for report in reports]
        assert sum(parts) == reports[0]["two_experts"]["whole"]
