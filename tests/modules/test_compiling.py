"""Blocks are compiled once per kind, and stream as they did."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.checkpoints import PROMPT, SIZE, transformer
from support.references import load_plain
from torch import nn
from torch._dynamo.testing import CompileCounter

from fastvideo_lightning import PromptDataset, VideoGenerator, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload
from fastvideo_lightning.modules.acceleration import compile_blocks

BLOCKS = 6


@pytest.fixture(autouse=True)
def _forget_compilations():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Count graphs, and run them as they are: a real backend takes half a minute."""
    counter = CompileCounter()
    compile_module = nn.Module.compile

    def compile_counted(module: nn.Module, *, options: dict[str, bool]) -> None:
        assert options == {"deterministic": True}  # what it does takes a GPU to see
        compile_module(module, backend=counter)

    monkeypatch.setattr(nn.Module, "compile", compile_counted)
    return counter


def inputs(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(1, 4, 2, 4, 4, generator=generator),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 8, 16, generator=generator),
    }


@pytest.mark.parametrize("compile_first", [True, False])
def test_streamed_blocks_are_one_graph_without_breaks_or_recompilation(counter, compile_first):
    model = transformer(seed=0, num_layers=BLOCKS)
    callback = LayerwiseOffload("", resident_blocks=2)
    if compile_first:
        compile_blocks(model, "")
    callback.attach(model, "cpu")
    if not compile_first:
        assert compile_blocks(model, "") == BLOCKS
    plain = transformer(seed=0, num_layers=BLOCKS)
    with torch.no_grad():
        for step in range(4):
            assert torch.equal(model(**inputs(step)).sample, plain(**inputs(step)).sample)
    assert counter.frame_count == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_the_generator_compiles_every_denoiser(
    counter: CompileCounter, checkpoint: Callable[[str], Path]
) -> None:
    sampling = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2}
    frames = []
    for compile_ in (False, True):
        with VideoGenerator.from_pretrained(
            checkpoint("two_experts"), accelerator="cpu", compile=compile_
        ) as generator:
            video = generator.generate_video(PROMPT, save_video=False, **sampling)
            frames.append(torch.from_numpy(video.frames))
            compiled = {
                name
                for name, part in generator.module.named_modules()
                if part._compiled_call_impl is not None
            }
    assert torch.equal(*frames)
    assert compiled == {f"{m}.blocks.{i}" for m in ("transformer", "transformer_2") for i in (0, 1)}
    assert counter.frame_count > 0


def test_a_model_compiled_as_a_whole_is_refused_before_and_after_it_streams():
    model = transformer(seed=0, num_layers=BLOCKS)
    callback = LayerwiseOffload("")
    callback.attach(model, "cpu")
    model.compile(backend="eager")
    with pytest.raises(RuntimeError, match="compiled as a whole.*compile=True"):
        model(**inputs(0))
    callback.detach()
    with pytest.raises(RuntimeError, match="compiled as a whole"):
        LayerwiseOffload("").attach(model, "cpu")
    root = nn.ModuleDict({"model": torch.compile(transformer(seed=0), backend="eager")})
    with pytest.raises(RuntimeError, match="model is compiled as a whole"):
        LayerwiseOffload("model").attach(root, "cpu")


def test_a_pipeline_whose_denoiser_is_compiled_runs_and_is_refused_once_it_streams(
    checkpoint: Callable[[str], Path],
) -> None:
    batch = PromptDataset([PROMPT], seed=7, guidance_scale=3.0, **SIZE)[0]
    pipeline = load_plain(checkpoint("t2v"), expects_image=False)
    plain = VideoModule.from_pipeline(pipeline).predict_step(batch)
    pipeline.transformer = torch.compile(pipeline.transformer, backend="eager")
    module = VideoModule.from_pipeline(pipeline)
    assert module.denoisers == ("transformer",)
    assert (module.predict_step(batch).frames == plain.frames).all()
    with pytest.raises(RuntimeError, match="transformer is compiled as a whole"):
        LayerwiseOffload("transformer").attach(module, "cpu")

    module = VideoModule.from_pretrained(checkpoint("t2v"))
    LayerwiseOffload("transformer").attach(module, "cpu")
    module.pipeline.transformer = torch.compile(module.pipeline.transformer, backend="eager")
    with pytest.raises(RuntimeError, match="transformer is compiled as a whole"):
        module.predict_step(batch)


def test_a_model_without_blocks_is_refused_by_name():
    with pytest.raises(ValueError, match=r"head \(Linear\) has no list of blocks"):
        compile_blocks(nn.ModuleDict({"head": nn.Linear(2, 2)}), "head")
