import pytest
import torch

from fastvideo_lightning.config.devices import check_devices, count_nodes

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}
NAMES = [*TORCHRUN, "LT_NUM_NODES", "SLURM_NTASKS", "SLURM_NNODES"]


@pytest.mark.parametrize(
    ("variables", "nodes"),
    [
        ({}, 1),
        (TORCHRUN, 2),
        ({**TORCHRUN, "WORLD_SIZE": "8"}, 1),
        ({"LT_NUM_NODES": "3"}, 3),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "4"}, 4),
        ({"SLURM_NNODES": "4"}, 1),  # a shell on a cluster, not a task of it
    ],
)
def test_machines_are_counted_by_the_variables_of_who_started_the_run(
    monkeypatch, variables, nodes
):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert count_nodes() == nodes


@pytest.mark.parametrize(
    ("num_gpus", "accelerator", "there", "message"),
    [
        (2, "auto", 0, "this machine has none. Leave num_gpus out to compute on the CPU"),
        (2, "gpu", 0, "asks for a GPU, and this machine has none. Pass accelerator='auto'"),
        (1, "gpu", 0, "asks for a GPU, and this machine has none. Pass accelerator='auto'"),
        (3, "auto", 2, "this machine has, which is 2. Pass num_gpus=2"),
    ],
)
def test_too_few_gpus_are_told_with_what_is_possible(
    monkeypatch, num_gpus, accelerator, there, message
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(ValueError, match=message):
        check_devices(num_gpus, accelerator)
    assert check_devices(there or 1, "auto") == ("cuda" if there else "cpu")


def test_gpus_are_those_of_all_machines(monkeypatch):
    monkeypatch.setenv("LT_NUM_NODES", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert check_devices(8, "auto") == "cuda"
    with pytest.raises(ValueError, match="all 2 machines and must be a multiple of that, got 7"):
        check_devices(7, "auto")


def test_several_processes_are_refused_in_a_notebook_in_one_sentence(monkeypatch):
    monkeypatch.setattr("sys.ps1", "In : ", raising=False)
    assert check_devices(1, "cpu") == "cpu"
    with pytest.raises(
        ValueError, match=r"^num_gpus=2 starts .* leave num_gpus out here, or wri"
    ) as no:
        check_devices(2, "cpu")
    assert str(no.value).count(". ") == 0
