"""A file of weights beside a pipeline's folder loads as diffusers itself loads it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from support import single_files
from support.checkpoints import SIZE
from support.references import check_frames, frames_of, load_plain

from fastvideo_lightning import VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload

FindCheckpoint = Callable[[str], Path]
SAMPLING = {**SIZE, "guidance_scale": 3.0}


def load_single(file: Path, base: Path, dtype: torch.dtype = torch.float32):
    return WanTransformer3DModel.from_single_file(
        str(file), config=str(base), subfolder="transformer", torch_dtype=dtype
    )


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_file_with_original_names_streams_from_where_it_lies(prefix, checkpoint, tmp_path):
    base = checkpoint("t2v")
    file = single_files.write_wan(base, tmp_path / "wan.safetensors", prefix=prefix)
    plain = load_plain(base, expects_image=False)
    plain.transformer = load_single(file, base)
    module = VideoModule.from_pretrained(file, base=base, device_type="cpu")
    sources = {n: s for n, s in module.weight_sources.items() if n.startswith("transformer.")}
    assert {source.path for source in sources.values()} == {file}
    assert sources.keys() == {f"transformer.{n}" for n in plain.transformer.state_dict()}
    streaming = LayerwiseOffload("transformer", host_memory="mapped")
    check_frames(module, [streaming], frames_of(plain, SAMPLING), SAMPLING)
