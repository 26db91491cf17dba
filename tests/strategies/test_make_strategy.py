import pytest

from fastvideo_lightning import HostResidentStrategy, OffloadConfig, make_strategy
from fastvideo_lightning.strategies import FSDPInferenceStrategy


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ({}, HostResidentStrategy),
        ({"dit_layerwise_offload": False}, HostResidentStrategy),
        (
            {"use_fsdp_inference": True, "dit_layerwise_offload": False},
            FSDPInferenceStrategy,
        ),
    ],
)
def test_the_flags_choose_the_strategy(flags, kind):
    assert type(make_strategy(OffloadConfig(**flags))) is kind
