"""The ways to start several processes; each ends with the same files, and one process speaks."""

import os
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
