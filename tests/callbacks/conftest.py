"""A toy with its blocks streamed, on the CPU."""

import pytest

from fastvideo_lightning.callbacks import LayerwiseOffload
from tests.support.toys import Toy, make_toy


def engine_in(callback: LayerwiseOffload):
    return callback.attachments[0].engine


@pytest.fixture
def toy() -> Toy:
    return make_toy(4)


@pytest.fixture
def callback(toy: Toy) -> LayerwiseOffload:
    callback = LayerwiseOffload("blocks")
    callback.attach(toy, "cpu")
    return callback
