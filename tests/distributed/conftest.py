"""Worlds of ranks, started once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distributed.ranks import World

needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
WORLDS = [
    pytest.param(("gloo", 2), id="gloo-2"),
    pytest.param(("gloo", 4), id="gloo-4", marks=[pytest.mark.slow, pytest.mark.exhaustive]),
    pytest.param(("nccl", 2), id="nccl-2", marks=[pytest.mark.multi_gpu, needs_two_gpus]),
]


@pytest.fixture(scope="module", autouse=True)
def _as_many_threads_as_a_rank() -> Iterator[None]:
    """Compute what ranks are compared with by one thread, as they do (`scripts.environment`).

    On a CPU the number of threads decides the order of sums, and that the last bits.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture(scope="session", params=WORLDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Ranks on the CPU, and on GPUs where there are enough."""
    backend, size = request.param
    world = World(size, backend)
    yield world
    world.close()


@pytest.fixture(scope="session")
def images(image: Path, last_image: Path) -> dict[str, Path]:
    """Return the input images by the names that `references.CASES` gives them."""
    return {"image": image, "last_image": last_image}
