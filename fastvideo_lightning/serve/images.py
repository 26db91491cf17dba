"""Which pictures a model wants, found by asking it."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules import VideoModule


@dataclass(frozen=True)
class WantedImages:
    """Whether a model takes a first and a last frame."""

    first: bool
    last: bool

    @classmethod
    def of(cls, module: VideoModule) -> "WantedImages":
        """Offer the model a small picture for each and see what it says; reads no weight."""
        from PIL import Image

        with TemporaryDirectory() as folder:
            path = Path(folder) / "probe.png"
            Image.new("RGB", (64, 64)).save(path)

            def takes(**images: Any) -> bool:
                try:
                    module.resolve_sampling(SamplingParams(**images))
                except ValueError:
                    return False
                return True

            return cls(
                first=takes(image_path=path),
                last=takes(image_path=path, last_image_path=path),
            )
