"""The same generators over two GPUs by NCCL: the frames of one GPU, the weights divided."""

import numpy as np
import pytest
import torch
from support.checkpoints import PROMPT
from support.references import SEED, sampling_of

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


PROMPTS = [f"a red circle moves right {number}" for number in range(3)]


@pytest.fixture(scope="module")
def make(checkpoint, images, tmp_path_factory):
    """Return the folders of all ways on so many GPUs, and what the ranks reported of each."""

    def run(num_processes, ways):
        sampling = {"prompt": PROMPT, "seed": SEED, **sampling_of("two_experts", images)}
        cases = {"two_experts": (checkpoint("two_experts"), sampling)}
        settings = {
            "options": {"accelerator": "gpu", "text_encoder_cpu_offload": False},
            "ways": {name: {"flags": flags, "cases": cases} for name, flags in ways.items()},
            "prompts": PROMPTS,
        }
        folder = tmp_path_factory.mktemp("gpus")
        return folder, run_script("generator_world.py", num_processes, folder, settings)

    return run


@pytest.fixture(scope="module")
def one_gpu(make):
    folder, _ = make(1, {"one": {}})
    return folder / "one"


@pytest.fixture(scope="module")
def two_gpus(make):
    return make(2, WAYS)


@pytest.mark.parametrize("name", WAYS)
def test_two_gpus_make_the_frames_of_one_and_each_video_once(two_gpus, one_gpu, name):
    folder, reports = two_gpus[0] / name, [report[name] for report in two_gpus[1]]

    def assert_alike(file, other):
        difference = np.abs(np.load(file).astype(int) - np.load(other))
        assert difference.max() <= (2 if "context" in name else 0)  # of 255, in bf16

    for rank in range(2):
        assert_alike(folder / f"two_experts-{rank}.npy", one_gpu / "two_experts-0.npy")
    assert sorted(index for report in reports for index in report["prompts"]) == [0, 1, 2]
    for index in range(3):
        assert_alike(folder / f"prompt-{index}.npy", one_gpu / f"prompt-{index}.npy")
    assert len(list(folder.glob("videos/*.mp4"))) == 3
    if "fsdp" in name:
        parts = [report["two_experts"]["local"] for report in reports]
        whole = reports[0]["two_experts"]["whole"]
        assert sum(parts) == whole
        assert abs(parts[0] / whole - 1 / 2) < 0.1
