"""One batch on two machines that share no folder: told before the work."""

import subprocess
import sys
from pathlib import Path

import pytest

from distributed.scripts import environment, free_port
from fastvideo_lightning.batch import folder
from fastvideo_lightning.batch.folder import BatchFolder


def test_a_mark_is_seen_in_its_folder_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(folder, "_LATE_S", 0.2)
    here, elsewhere = BatchFolder(tmp_path / "here"), BatchFolder(tmp_path / "elsewhere")
    here.open({})
    mark = here.make_mark()
    other_rank = BatchFolder(tmp_path / "here")
    for each in (other_rank, elsewhere):
        each.enter(here.worker, {}, {})
    assert other_rank.sees(mark)
    assert not elsewhere.sees(mark)
    here.remove_mark(mark)
    assert not here.sees(mark)
    here.close()
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.slow
@pytest.mark.exhaustive
def test_without_a_shared_folder_both_end_with_what_to_type_and_no_video(tmp_path: Path) -> None:
    port, nodes = free_port(), []
    for rank in range(2):
        machine = tmp_path / str(rank)
        machine.mkdir()
        (machine / "p.txt").write_text("a red circle moves right\na blue square moves up\n")
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}"),
            *("--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}"),
            *("-m", "fastvideo_lightning", "generate", "--accelerator", "cpu", "--num-gpus", "2"),
            *("--prompts", "p.txt", "--output-path", "night"),
        ]
        nodes.append(
            subprocess.Popen(
                command,
                cwd=machine,
                env=environment(TMPDIR=str(machine)),
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [node.communicate(timeout=200)[1] for node in nodes]
    assert all(node.returncode for node in nodes)
    assert any("shared by all machines" in text for text in said)
    assert any("shard 1/2" in text for text in said)
    assert not list(tmp_path.glob("*/night/*.mp4"))
