import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from fastvideo_lightning import HostResidentStrategy


def make_fabric(**options: object) -> L.Fabric:
    fabric = L.Fabric(accelerator="cpu", devices=1, strategy=HostResidentStrategy(), **options)
    fabric.launch()
    return fabric


def test_setup_moves_and_wraps_nothing() -> None:
    module = nn.Linear(2, 2, device="meta")
    fabric = make_fabric()
    assert fabric.setup(module).module is module
    assert module.weight.is_meta


def test_one_process_has_no_process_group() -> None:
    fabric = make_fabric()
    assert not torch.distributed.is_initialized()
    assert fabric.world_size == 1
    assert fabric.device == torch.device("cpu")
    fabric.barrier()
    assert fabric.broadcast("word") == "word"
    assert fabric.all_reduce(torch.ones(2)).tolist() == [1, 1]
    assert fabric.all_gather(torch.ones(2)).tolist() == [1, 1]


def test_a_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must stay unset, got 'bf16-true'"):
        make_fabric(precision="bf16-true").setup(nn.Linear(2, 2))


SCRIPT = """
import sys, torch, lightning as L
from fastvideo_lightning import HostResidentStrategy
fabric = L.Fabric(accelerator="cpu", devices=2, strategy=HostResidentStrategy())
fabric.launch()
rank = fabric.global_rank
total = fabric.all_reduce(torch.tensor([rank + 1.0]), reduce_op="sum").item()
parts = fabric.all_gather(torch.tensor([rank])).flatten().tolist()
word = fabric.broadcast(f"from {rank}", src=1)
fabric.barrier()
open(sys.argv[1] + f"/{rank}", "w").write(f"{fabric.world_size} {total} {parts} {word}")
"""


@pytest.mark.slow
def test_two_processes_reduce_gather_and_broadcast(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=200, env=environment)
    for rank in "01":
        assert (tmp_path / rank).read_text() == "2 3.0 [0, 1] from 1"
