"""A studio with the bundled model, opened once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastvideo_lightning.serve.limits import Limits
from fastvideo_lightning.serve.studio import Model, Studio


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """Return a studio for tiny-shapes whose visitors may ask for 96 pixels and 33 frames."""
    limits = Limits(max_side=96, max_frames=33, max_steps=20, max_queue=2)
    studio = Studio(
        Model(accelerator="cpu"), output_path=tmp_path_factory.mktemp("videos"), limits=limits
    )
    studio.start()
    yield studio
    studio.close()


@pytest.fixture
def output(studio: Studio) -> Path:
    """Return the folder of the studio's videos."""
    return studio.output_path
