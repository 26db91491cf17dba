import torch
from torch import nn

from fastvideo_lightning.offload.residents import ResidentSet
from fastvideo_lightning.offload.tensors.bindings import find_bindings
from tests.support.toys import make_toy

CPU = torch.device("cpu")


def test_a_tensor_put_in_one_place_of_a_tied_one_is_found():
    toy = make_toy(2)
    toy.head.bias = toy.embed.bias
    residents = ResidentSet(find_bindings(toy), CPU, run_device=CPU)
    residents.load({})
    before = residents.size_bytes
    toy.head.bias = nn.Parameter(torch.ones(16), requires_grad=False)
    residents.refresh()
    assert residents.size_bytes == before + 64
    assert any(binding.tensor is toy.head.bias for binding in residents.bindings)


def test_a_gap_in_the_sources_leaves_the_rest_as_it_was():
    toy = make_toy(2)
    toy.head._parameters["bias"] = nn.Parameter(torch.empty(16, device="meta"))
    residents = ResidentSet(find_bindings(toy), CPU, run_device=CPU)
    before = toy.embed.weight.clone()
    residents.unload()
    assert toy.head.bias.is_meta
    assert torch.equal(toy.embed.weight, before)
