"""A safety checker: placed by its pipeline, on the host during the steps and after a call."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recipes import RECIPES
from support.recipes.runs import run_ours, write_media
from torch import nn

from fastvideo_lightning import VideoModule
from fastvideo_lightning.checkpoint.folder import CheckpointError
from fastvideo_lightning.modules.pipelines import tell_of_guard
from fastvideo_lightning.modules.weights_check import check_placement


class Guard(nn.Module):
    """Has a weight, and notes what is done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.seen: list[str] = []

    def to(self, device: Any) -> "Guard":
        self.seen.append("to")
        return self

    def check_text_safety(self, prompt: str) -> bool:
        self.seen.append("text")
        return True

    def check_video_safety(self, frames: Any) -> Any:
        self.seen.append("video")
        return frames


def module_of(name: str, guard: Guard) -> VideoModule:
    pipeline = RECIPES[name].build()
    pipeline.safety_checker = guard
    module = VideoModule.from_pipeline(pipeline)
    module.transformer.register_forward_pre_hook(lambda *_: guard.seen.append("step"))
    return module


@pytest.mark.parametrize("name", ["CosmosTextToWorldPipeline", "Cosmos2_5_PredictBasePipeline"])
def test_it_is_sent_back_before_the_first_step_and_at_the_end(name: str, tmp_path: Path) -> None:
    guard = Guard()
    run_ours(module_of(name, guard), RECIPES[name], write_media(tmp_path))
    assert guard.seen[:2] == ["to", "text"]
    first, last = guard.seen.index("step"), len(guard.seen) - guard.seen[::-1].index("step")
    assert guard.seen[first - 1] == "to"
    assert "to" not in guard.seen[first:last]
    assert guard.seen[-1] == "to"


def test_it_is_sent_back_when_the_call_fails(tmp_path: Path) -> None:
    name, guard = "Cosmos2_5_PredictBasePipeline", Guard()
    module = module_of(name, guard)

    def refuse(prompt: str) -> bool:
        guard.seen.append("text")
        return False

    guard.check_text_safety = refuse
    with pytest.raises(ValueError, match="unsafe"):
        run_ours(module, RECIPES[name], write_media(tmp_path))
    assert guard.seen == ["to", "text", "to"]


def test_nothing_need_place_it_and_a_gpu_run_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="fastvideo_lightning")
    guard = Guard()
    module = module_of("CosmosTextToWorldPipeline", guard)
    gpu = torch.device("cuda", 0)
    with pytest.raises(RuntimeError, match="not placed"):
        check_placement("safety_checker", guard, gpu)
    for name in [name for name, _ in module.named_children() if name != "safety_checker"]:
        delattr(module, name)
    module.execution_device = torch.device("cpu")
    module._home_device = gpu
    tell_of_guard.cache_clear()
    module.check_placement()
    module.check_placement()
    assert caplog.text.count("safety_checker comes to the GPU for its checks alone") == 1


@pytest.mark.skipif(
    importlib.util.find_spec("cosmos_guardrail") is not None, reason="needs it not to be there"
)
def test_without_its_package_a_checkpoint_says_what_to_install(tmp_path: Path) -> None:
    RECIPES["CosmosTextToWorldPipeline"].build().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"pip install cosmos_guardrail"):
        VideoModule.from_pretrained(tmp_path)
