"""On a GPU, too: gradients through streamed blocks are the plain model's, in constant memory."""

import gc

import pytest
import torch

from fastvideo_lightning.callbacks import LayerwiseOffload
from tests.callbacks.test_training import Trained, add_adapters, take_steps
from tests.gpu import requires_gpu
from tests.support.toys import sample

pytestmark = [pytest.mark.gpu, requires_gpu]
DEVICE = torch.device("cuda", 0)
WIDTH, NUM_BLOCKS = 1024, 12


def make_model(again) -> Trained:
    torch.manual_seed(0)
    model = Trained(WIDTH, NUM_BLOCKS).eval().requires_grad_(False)
    model.again = again
    add_adapters(model)
    return model


class HostAdam:
    """Adam that steps on the host: in place for weights there, which those of streamed blocks are.

    On the device its last bits are others, and the next step's gradients with them.
    """

    def __init__(self, weights: list[torch.Tensor], *, lr: float) -> None:
        self.weights = weights
        self.masters = [weight.detach().cpu() for weight in weights]
        self.adam = torch.optim.Adam(self.masters, lr=lr)

    def step(self) -> None:
        for master, weight in zip(self.masters, self.weights, strict=True):
            master.grad = weight.grad.cpu()
        self.adam.step()
        with torch.no_grad():
            for master, weight in zip(self.masters, self.weights, strict=True):
                if weight.is_cuda:  # the others share their memory with their masters
                    weight.copy_(master)

    def zero_grad(self) -> None:
        for weight in self.weights:
            weight.grad = None


def train(model: Trained) -> list[torch.Tensor]:
    x = sample(WIDTH).to(DEVICE)
    return [seen.cpu() for seen in take_steps(model, x=x, make_optimizer=HostAdam)]


@pytest.mark.parametrize("again", [None, {"use_reentrant": False}, {"use_reentrant": True}])
@pytest.mark.parametrize("memory", ["pinned", "pageable"])
def test_training_is_that_of_the_resident_model_bit_for_bit(memory, again):
    expected = train(make_model(again).to(DEVICE))
    streamed = make_model(again)
    callback = LayerwiseOffload("blocks", host_memory=memory)
    callback.attach(streamed, DEVICE)
    for mine, theirs in zip(train(streamed), expected, strict=True):
        assert torch.equal(mine, theirs)
    callback.attachments[0].engine.check()
    callback.detach()


def test_gradients_of_a_step_are_bit_equal_and_one_blocks_weights_are_there_at_a_time():
    again = {"use_reentrant": False}
    gradients = []
    for streams in (False, True):
        model = make_model(again)
        if streams:
            callback = LayerwiseOffload("blocks", host_memory="pinned")
            callback.attach(model, DEVICE)
        else:
            model.to(DEVICE)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        for _ in range(2):
            for weight in weights:
                weight.grad = None
            gc.collect()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            model(sample(WIDTH).to(DEVICE).requires_grad_()).square().mean().backward()
            peak = torch.cuda.max_memory_allocated() - before
        gradients.append([weight.grad.cpu() for weight in weights])
    for resident, streamed in zip(*gradients, strict=True):
        assert torch.equal(resident, streamed)
    block_bytes = max(unit.size_bytes for unit in callback.attachments[0].engine.units)
    assert peak < 3 * block_bytes, f"{peak} bytes beside blocks of {block_bytes}"
    callback.detach()
