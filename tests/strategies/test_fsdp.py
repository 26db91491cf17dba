"""FSDP in a world of one process: what it says, what it keeps, and what an exception leaves."""

import logging

import pytest
import torch
import torch.distributed as dist
from support.toys import OnFile, make_toy, sample
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fastvideo_lightning.strategies import FSDPInferenceStrategy
from fastvideo_lightning.strategies import fsdp as sharding

CPU = torch.device("cpu")


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def shard(model, mesh):
    sources = {f"toy.{name}": source for name, source in model.weight_sources.items()}
    sharding.shard_denoiser(
        "toy", model, sources, mesh=mesh, device=CPU, cpu_offload=True, pin_memory=True
    )
    return model


@pytest.mark.parametrize("has_method", [True, False], ids=["reset_iter_state", "torch-2.11"])
def test_an_exception_in_a_block_leaves_a_model_that_works(mesh, monkeypatch, tmp_path, has_method):
    if not has_method:
        monkeypatch.setattr(sharding, "reset_iteration", sharding._reset_each_group)
    toy = make_toy()
    model = shard(OnFile(toy, tmp_path / "toy.safetensors"), mesh)
    with torch.no_grad():
        expected = toy(sample())
        assert torch.equal(model(sample()), expected)
        model.blocks[1].fails = True
        with pytest.raises(RuntimeError, match="the block failed"):
            model(sample())
        model.blocks[1].fails = False
        for _ in range(3):
            assert torch.equal(model(sample()), expected)
    state = model._get_fsdp_state()
    assert not state._comm_ctx.post_forward_order
    # Only the parts are held between calls: here, of one process, the whole, once.
    for fsdp in (model, *model.blocks):
        group = fsdp._get_fsdp_state()._fsdp_param_group
        assert not group.is_unsharded


def test_parts_that_are_to_stay_on_the_host_do_whatever_the_ranks_compute_on(
    mesh, monkeypatch, tmp_path
):
    toy = make_toy()
    model = OnFile(toy, tmp_path / "toy.safetensors")
    fully_shard(model, mesh=mesh)
    monkeypatch.setattr(mesh, "_device_type", "meta")  # another device than the host
    sharding.read_shards(
        "toy",
        model,
        {f"toy.{name}": source for name, source in model.weight_sources.items()},
        device=CPU,
        host=True,
    )
    for name, weight in model.named_parameters():
        part = weight.to_local()
        assert part.device == CPU, name
        assert torch.equal(part, toy.get_parameter(name)), name


class Pipeline(nn.Module):
    denoisers = ()
    weight_sources = {}


def test_one_process_is_told_that_streaming_suits_it_better(mesh, caplog):
    with caplog.at_level(logging.INFO):
        FSDPInferenceStrategy()._shard(Pipeline(), mesh)
    assert "on one GPU dit_layerwise_offload=True is faster" in caplog.text


def test_a_module_that_names_no_denoisers_is_refused(mesh):
    with pytest.raises(TypeError, match="shards the denoisers of a VideoModule, got Linear"):
        FSDPInferenceStrategy()._shard(nn.Linear(2, 2), mesh)
