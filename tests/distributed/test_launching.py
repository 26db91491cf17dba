"""The ways to start several processes; each ends with the same files, and one process speaks."""

import os
import subprocess
import sys

import av
import pytest

from distributed.scripts import ROOT, environment, free_port

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
RED, BLUE, GREEN = (
    "a_red_circle_moves_right.mp4",
    "a_blue_square_moves_up.mp4",
    "a_green_triangle_moves_left.mp4",
)


def run(folder, *arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment(TMPDIR=str(folder)),
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def count_frames(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "launcher", [(), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")]
)
def test_the_fsdp_example_runs_by_itself_and_under_torchrun(tmp_path, launcher):
    done = run(tmp_path, *launcher, EXAMPLES / "multi_gpu_fsdp.py", "tiny-shapes", "a lion")
    assert done.stdout == f"{os.path.join('output', 'a_lion.mp4')}: 17 frames\n"
    assert [path.name for path in tmp_path.glob("output/*")] == ["a_lion.mp4"]
    assert count_frames(tmp_path / "output" / "a_lion.mp4") == 17
    left = {path.name for path in tmp_path.iterdir()}
    assert {name for name in left if not name.startswith("torchelastic_")} == {"output"}


def test_fabric_run_shares_the_prompts(tmp_path):
    options = ["--accelerator=cpu", "--devices=2", "--main-port=29417"]
    done = run(tmp_path, "-m", "lightning.fabric.cli", *options, EXAMPLES / "fabric_run.py")
    said = sorted(line.replace(os.sep, "/") for line in done.stdout.splitlines())
    assert said == [
        f"rank 0: output/{GREEN}",
        f"rank 0: output/{RED}",
        f"rank 1: output/{BLUE}",
    ]
    assert {path.name for path in tmp_path.glob("output/*")} == {RED, BLUE, GREEN}


def test_the_command_prints_one_path_and_one_line_about_it(tmp_path):
    done = run(
        tmp_path,
        *("-m", "fastvideo_lightning", "generate", "--prompt", "a red circle moves right"),
        *("--num-gpus", "2", "--accelerator", "cpu", "--context-parallel", "2"),
    )
    assert done.stdout == f"{os.path.join('output', RED)}\n"
    assert sum("made in" in line for line in done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.glob("output/*")] == [RED]


# As the page about offloading has them, but for the import, the model and the accelerator.
EXAMPLE = """
from fastvideo_lightning import VideoGenerator

generator = VideoGenerator.from_pretrained(
    "tiny-shapes",
    accelerator="cpu",
    OWN
    # Enable if OOM happens
    vae_cpu_offload=True,
    image_encoder_cpu_offload=True,
    text_encoder_cpu_offload=True,
    # Speeds up CPU-GPU transfer
    pin_cpu_memory=True,
)

prompt = "A majestic lion strides across the golden savanna."
video = generator.generate_video(prompt, output_path="output/", save_video=True)
"""
SINGLE = EXAMPLE.replace("OWN", "num_gpus=1, dit_layerwise_offload=True,")
SEVERAL = EXAMPLE.replace(
    "OWN",
    "num_gpus=2, use_fsdp_inference=True, dit_layerwise_offload=False, dit_cpu_offload=False,",
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(SINGLE, marks=pytest.mark.exhaustive, id="one"),
        pytest.param(SEVERAL, id="several"),
    ],
)
@pytest.mark.exhaustive
def test_the_pages_examples_run_as_they_are_typed(tmp_path, text):
    (tmp_path / "script.py").write_text(text)
    run(tmp_path, "script.py")
    (video,) = tmp_path.glob("output/*")
    assert count_frames(video) == 17


def by_torchrun():
    """Return what to type on each of two machines, and what else stands in their environment."""
    command = ["-m", "torch.distributed.run", "--nnodes=2", "--local-addr=127.0.0.1"]
    command += ["--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=two"]
    return [([*command, f"--rdzv-endpoint=127.0.0.1:{free_port()}"], {})] * 2


def by_slurm():
    """Return the same as `srun --nodes=2 --ntasks-per-node=1` has it; without SLURM's nodes."""
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "lion", "SLURM_NTASKS": "2", "SLURM_NNODES": "2"}
    job |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0", "MASTER_PORT": str(free_port())}
    return [([], {**job, "SLURM_PROCID": n, "SLURM_NODEID": n}) for n in "01"]


@pytest.mark.parametrize(
    "start", [by_torchrun, pytest.param(by_slurm, marks=pytest.mark.exhaustive)]
)
def test_two_nodes_share_one_model_and_one_prompt(tmp_path, start):
    nodes = [
        subprocess.Popen(
            [sys.executable, *command, EXAMPLES / "multi_gpu_fsdp.py", "tiny-shapes", "a lion"],
            cwd=tmp_path,
            env=environment(TMPDIR=str(tmp_path), **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, variables in start()
    ]
    said = [node.communicate(timeout=200) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said[0][1][-3000:]
    video = os.path.join("output", "a_lion.mp4")
    assert sorted(out for out, _ in said) == ["", f"{video}: 17 frames\n"]
    assert count_frames(tmp_path / video) == 17
