"""The ways to start several processes; each ends with the same files, and one process speaks."""

import os
import socket
import subprocess
import sys

import av
import pytest

from distributed.scripts import ROOT, environment

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


@pytest.mark.parametrize(
    "launcher", [(), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")]
)
def test_the_fsdp_example_runs_by_itself_and_under_torchrun(tmp_path, launcher):
    done = run(tmp_path, *launcher, EXAMPLES / "multi_gpu_fsdp.py", "tiny-shapes", "a lion")
    assert done.stdout == f"{os.path.join('output', 'a_lion.mp4')}: 17 frames\n"
    assert [path.name for path in tmp_path.glob("output/*")] == ["a_lion.mp4"]
    assert count_frames(tmp_path / "output" / "a_lion.mp4") == 17
    assert not list(tmp_path.glob("fastvideo-ranks-*"))


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
SINGLE = """
from fastvideo_lightning import VideoGenerator

generator = VideoGenerator.from_pretrained(
    "tiny-shapes",
    accelerator="cpu",
    num_gpus=1,
    # Recommended for single GPU
    dit_layerwise_offload=True,
    # Enable if OOM happens
    vae_cpu_offload=True,
    image_encoder_cpu_offload=True,
    text_encoder_cpu_offload=True,
    # Speeds up CPU-GPU transfer
    pin_cpu_memory=True,
)

prompt = "A curious raccoon peers through a vibrant field of yellow sunflowers."
video = generator.generate_video(prompt, output_path="output/", save_video=True)
"""
SEVERAL = """
from fastvideo_lightning import VideoGenerator

generator = VideoGenerator.from_pretrained(
    "tiny-shapes",
    accelerator="cpu",
    num_gpus=2,
    # Recommended for multi-GPU
    use_fsdp_inference=True,
    dit_layerwise_offload=False,
    dit_cpu_offload=False,
    # Enable if OOM happens
    vae_cpu_offload=True,
    image_encoder_cpu_offload=True,
    text_encoder_cpu_offload=True,
    pin_cpu_memory=True,
)

prompt = "A majestic lion strides across the golden savanna."
video = generator.generate_video(prompt, output_path="output/", save_video=True)
"""


@pytest.mark.parametrize("text", [SINGLE, SEVERAL], ids=["one", "several"])
def test_the_pages_examples_run_as_they_are_typed(tmp_path, text):
    (tmp_path / "script.py").write_text(text)
    run(tmp_path, "script.py")
    (video,) = tmp_path.glob("output/*")
    assert count_frames(video) == 17


def test_two_nodes_of_torchrun_share_one_model_and_one_prompt(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=two"]
    command += [str(EXAMPLES / "multi_gpu_fsdp.py"), "tiny-shapes", "a lion"]
    nodes = [
        subprocess.Popen(
            [*command[:4], "--local-addr=127.0.0.1", *command[4:]],
            cwd=tmp_path,
            env=environment(TMPDIR=str(tmp_path)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [node.communicate(timeout=200) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said[0][1][-3000:]
    video = os.path.join("output", "a_lion.mp4")
    assert sorted(out for out, _ in said) == ["", f"{video}: 17 frames\n"]
    assert count_frames(tmp_path / video) == 17
