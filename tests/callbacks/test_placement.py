"""A placement of one's own: what its base does for it."""

import pytest
import torch
from torch import nn

from fastvideo_lightning.callbacks import CPUExecution, Placement


class OnDevice(Placement):
    """Computes a component on a device of its own."""

    def __init__(self, target, device):
        super().__init__(target)
        self.device = torch.device(device)

    def place(self, attachment, target, device):
        self.seen = (attachment.root, target, device)
        attachment.stay(self.device, run_device=device, results_to=device)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.devices = []

    def forward(self, x):
        hidden = self.encoder(x)
        self.devices.append(hidden.device.type)
        return self.head(hidden)


def test_it_is_told_where_and_computes_what_was_computed_before():
    net, x = Net(), torch.randn(2, 4)
    expected, weight = net(x), net.encoder.weight
    placement = OnDevice("encoder", "cpu")
    placement.attach(net, "cpu")
    assert placement.seen == (net, net.encoder, torch.device("cpu"))
    assert torch.equal(net(x), expected)
    placement.detach()
    assert net.encoder.weight is weight
    assert not net.encoder._forward_pre_hooks
    assert torch.equal(net(x), expected)


def test_its_results_come_to_the_device_of_the_video():
    net = Net()
    OnDevice("encoder", "cpu").attach(net, "meta")
    assert net.encoder.weight.device.type == "cpu"
    assert net.encoder(torch.randn(2, 4)).device.type == "meta"


def test_what_another_one_places_it_cannot():
    net = Net()
    CPUExecution("encoder").attach(net, "cpu")
    with pytest.raises(ValueError, match=r"OnDevice\('encoder'\) and CPUExecution\('encoder'\) bo"):
        OnDevice("encoder", "cpu").attach(net, "cpu")


def test_what_fails_while_it_places_is_undone():
    class Fails(OnDevice):
        def place(self, attachment, target, device):
            super().place(attachment, target, device)
            raise RuntimeError("no room")

    net = Net()
    with pytest.raises(RuntimeError, match="no room"):
        Fails("encoder", "cpu").attach(net, "cpu")
    assert not net.encoder._forward_pre_hooks
    OnDevice("encoder", "cpu").attach(net, "cpu")


def test_a_class_without_place_is_no_placement():
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (Placement,), {})("encoder")
