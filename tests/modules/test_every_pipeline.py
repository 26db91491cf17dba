"""Every diffusers pipeline that returns frames makes the same video streamed and plain.

In the dtypes that a GPU run has by default, where a pipeline that mixes them up would fail.
"""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from support.recipes import PICTURES, RECIPES, as_on_gpu, families
from support.recipes.runs import Media, place, placed, run_ours, run_plain, write_media
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastvideo_lightning import VideoModule
from fastvideo_lightning.modules.catalog import UNUSABLE, find_video_pipelines

_COPIES = {torch.ops.aten.copy_.default, torch.ops.aten.detach.default}

# Its kernels for bf16 are for GPUs alone.
_FP32 = {"SanaWMPipeline"}
_UNWATCHED = {
    # Flex attention cannot be traced while kernels are watched.
    "AnyFlowFARPipeline",
    "Kandinsky6SRPipeline",
    "LTX25ModularPipeline",
    "WanAnimate2DistilledModularPipeline",
    "WanAnimate2ModularPipeline",
    "LTX2VideoDiffusionDecodePipeline",
    # They cast their VAE, which reads it where it waits: on the host.
    "AnimateDiffVideoToVideoPipeline",
    "AnimateDiffVideoToVideoControlNetPipeline",
}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    return write_media(tmp_path_factory.mktemp("media"))


def test_every_video_pipeline_of_diffusers_has_a_recipe() -> None:
    assert set(RECIPES) == set(find_video_pipelines())


@pytest.mark.parametrize("name", UNUSABLE)
def test_the_reason_for_which_a_pipeline_is_left_out_is_real(name: str, media: Media) -> None:
    recipe = RECIPES[name]
    with pytest.raises(TypeError, match="unexpected keyword argument 'text_encoder_index'"):
        run_plain(recipe.build(), recipe, media)


@pytest.mark.parametrize("name", families((RECIPES | PICTURES).keys() - UNUSABLE.keys()))
def test_streamed_equals_plain(name: str, media: Media) -> None:
    recipe = (RECIPES | PICTURES)[name]
    cast = (lambda pipeline: pipeline) if name in _FP32 else as_on_gpu
    plain = run_plain(cast(recipe.build()), recipe, media)
    assert len(np.unique(plain.frames)) > 2, "a picture of nothing proves nothing"
    module = VideoModule.from_pipeline(cast(recipe.build()))
    placements = place(module)
    with placed(module, placements):
        watch = nullcontext() if name in _UNWATCHED else HostReads(placements)
        assert run_ours(module, recipe, media, within=watch).equals(plain)


@pytest.mark.parametrize("name", families((RECIPES | PICTURES).keys() - UNUSABLE.keys()))
def test_calls_that_pass_blocks_together_make_the_same(name: str, media: Media) -> None:
    recipe = (RECIPES | PICTURES)[name]
    plain = run_plain(recipe.build(), recipe, media)
    module = VideoModule.from_pipeline(recipe.build())
    placements = place(module, num_slots=1, pair_guidance=True)
    with placed(module, placements):
        engines = {a.engine for each in placements for a in each.attachments} - {None}
        for engine in engines:
            engine.begin_run()
        assert run_ours(module, recipe, media).equals(plain)
        for engine in engines:
            engine.end_run()


class HostReads(TorchDispatchMode):
    """Fails where a kernel reads an offloaded weight on the host, which a GPU could not.

    It happens where a pipeline uses a model's weight without calling the module that has it.
    Buffers may be read: pipelines bring the statistics of latents over by themselves.
    """

    def __init__(self, placements: list[Any]) -> None:
        super().__init__()
        attachments = [a for callback in placements for a in callback.attachments]
        engines = {id(a.engine): a.engine for a in attachments if a.engine is not None}
        self._masters = {
            tensor.untyped_storage().data_ptr(): fqn
            for engine in engines.values()
            for unit in engine.units
            for fqn, tensor in unit.host_tensors().items()
            if isinstance(tensor, nn.Parameter)
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _COPIES:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                    fqn = self._masters.get(leaf.untyped_storage().data_ptr())
                    assert fqn is None, f"{func} reads {fqn} on the host"
        return func(*args, **(kwargs or {}))
