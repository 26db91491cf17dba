"""Whole components on a GPU: brought in for a call, computed on the CPU, or resident."""

import copy

import pytest
import torch
from torch import nn

from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload, Resident
from tests.gpu import requires_gpu
from tests.offload.tensors.test_embeddings import gemma2
from tests.support.toys import Toy, make_toy, sample

pytestmark = [pytest.mark.gpu, requires_gpu]
DEVICE = torch.device("cuda", 0)
WIDTH = 1024


def wide(num_blocks: int = 6, **options) -> Toy:
    return make_toy(num_blocks, width=WIDTH, **options)


def wide_sample() -> torch.Tensor:
    return sample(WIDTH).to(DEVICE)


def test_a_component_is_on_the_device_only_during_its_call():
    toy, plain = wide(4), wide(4).to(DEVICE)
    callback = ModelOffload("")
    callback.attach(toy, DEVICE)
    x = sample(WIDTH)
    expected = plain(x.to(DEVICE))  # cuBLAS takes its workspace at the first product
    before = torch.cuda.memory_allocated(DEVICE)
    y = toy(x)
    assert torch.equal(y, expected)
    assert torch.cuda.memory_allocated(DEVICE) - before <= y.numel() * 4 + 512
    assert toy.head.weight.is_pinned()


def test_a_component_computed_on_the_cpu_takes_and_gives_device_tensors():
    toy = wide(4)
    CPUExecution("").attach(toy, DEVICE)
    before = torch.cuda.memory_allocated(DEVICE)
    y = toy(wide_sample())
    assert y.device == DEVICE
    assert torch.equal(y.cpu(), wide(4)(sample(WIDTH)))
    assert torch.cuda.memory_allocated(DEVICE) - before < 64 * 1024


@pytest.mark.parametrize("kind", [Resident, CPUExecution])
def test_a_component_given_weights_on_another_device_has_them_where_they_belong(kind):
    toy, other = wide(2), wide(2, seed=1)
    callback = kind("")
    callback.attach(toy, DEVICE)
    for device in ("cpu", DEVICE):
        toy.load_state_dict({k: v.to(device) for k, v in other.state_dict().items()}, assign=True)
        for mine, its in zip(toy.blocks, other.blocks, strict=True):
            mine.table.copy_(its.table)
        callback.on_predict_batch_start()
        on = "cpu" if kind is CPUExecution else DEVICE
        expected = wide(2, seed=1).to(on)(sample(WIDTH).to(on))
        assert torch.equal(toy(wide_sample()).cpu(), expected.cpu())


def test_resident_and_back():
    toy = wide(4)
    callback = Resident("")
    callback.attach(toy, DEVICE)
    assert all(p.device == DEVICE for p in toy.parameters())
    callback.detach()
    assert all(p.device.type == "cpu" for p in toy.parameters())


def test_of_a_large_table_only_rows_reach_the_device():
    plain = nn.ModuleDict({"table": nn.Embedding(20000, WIDTH), "model": wide(4)})
    plain.requires_grad_(False)
    streamed = copy.deepcopy(plain)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(DEVICE)
    callback = LayerwiseOffload("")
    callback.attach(streamed, DEVICE)
    ids = torch.tensor([[3, 19999, 0]], device=DEVICE)
    rows = streamed["table"](ids)
    assert rows.device == DEVICE
    assert not streamed["table"].weight.is_cuda
    assert torch.cuda.memory_allocated(DEVICE) - before < 20000 * WIDTH * 4
    plain.to(DEVICE)
    assert torch.equal(streamed["model"](rows[0]), plain["model"](plain["table"](ids)[0]))
    callback.detach()


def test_of_a_table_that_scales_its_rows_only_rows_reach_the_device():
    plain = gemma2()
    streamed = copy.deepcopy(plain)
    callback = LayerwiseOffload("")
    callback.attach(streamed, DEVICE)
    ids = torch.tensor([[3, 4999, 0]], device=DEVICE)
    assert not streamed.embed_tokens.weight.is_cuda
    expected = plain.to(DEVICE)(ids).last_hidden_state
    assert torch.equal(streamed(ids).last_hidden_state, expected)
    callback.detach()
