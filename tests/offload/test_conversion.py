import pytest
import torch
from torch import nn

from fastvideo_lightning.offload.hooks import check_unchanged


def converting(module: nn.Module, convert) -> None:
    check_unchanged(convert, module, "vae")


@pytest.mark.parametrize(
    "convert",
    [lambda t: t.to("cpu"), lambda t: t.to(torch.float32), lambda t: t.to("cpu", torch.float32)],
)
def test_a_conversion_to_what_the_weights_are_already_passes(convert):
    converting(nn.Linear(2, 2), convert)


@pytest.mark.parametrize(
    "convert",
    [
        lambda t: t.half(),
        lambda t: t.to("meta"),
        lambda t: t.clone(),
        lambda t: torch.empty_like(t, device="meta"),
        lambda t: t.share_memory_(),
    ],
)
def test_a_conversion_that_moves_casts_or_shares_is_refused(convert):
    with pytest.raises(RuntimeError, match="vae is being offloaded"):
        converting(nn.Linear(2, 2), convert)


def test_one_weight_that_would_change_is_enough():
    module = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2).double()})
    with pytest.raises(RuntimeError, match="Detach the callback first"):
        converting(module, lambda t: t.to(torch.float32))
