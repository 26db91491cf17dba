"""Generators over several gloo processes: the frames of one process, the weights divided."""

from typing import NamedTuple

import numpy as np
import pytest
from support.checkpoints import PROMPT
from support.loras import write_lora
from support.references import SEED, kind_of, make_plain_frames, sampling_of

from distributed.scripts import run_forked
from fastvideo_lightning import PredictLoop, PromptDataset, VideoGenerator

pytestmark = pytest.mark.slow

FSDP = {"use_fsdp_inference": True, "dit_layerwise_offload": False}
STREAMED = {"shard_transport": "gather"}
GUIDANCE = {"guidance_parallel": 2}
CONTEXT = {"context_parallel": 2, "attention_backend": "native"}
PROMPTS = [
    "a red circle moves right",
    "a blue square moves up",
    {"prompt": "a green triangle moves left", "num_inference_steps": 3},
    "a red square moves down",
    "a yellow circle moves left",
]
SMALL = {"num_inference_steps": 2, "height": 48, "width": 48, "num_frames": 9}


class Way(NamedTuple):
    """A way to spread a model over processes, and what to make that way."""

    num_processes: int
    flags: dict
    cases: list[str]
    exhaustive: bool = False

    @property
    def context(self) -> int:
        return self.flags.get("context_parallel", 1)


WAYS = {
    "fsdp": Way(2, FSDP, ["t2v"]),
    "streamed": Way(2, STREAMED, ["two_experts"]),
    "context": Way(2, CONTEXT, ["t2v"]),
    "guidance": Way(2, GUIDANCE, ["t2v"]),
    "guidance-gather": Way(2, {**GUIDANCE, **STREAMED}, ["two_experts", "ti2v"], exhaustive=True),
    "guidance-resident": Way(
        2, {**GUIDANCE, "dit_layerwise_offload": False}, ["i2v_clip"], exhaustive=True
    ),
    "guidance-context": Way(4, {**GUIDANCE, **CONTEXT, **STREAMED}, ["t2v"], exhaustive=True),
    "guidance-4": Way(4, {**GUIDANCE, **STREAMED}, ["t2v"], exhaustive=True),
    "fsdp-more": Way(2, FSDP, ["two_experts", "ti2v", "i2v_clip"], exhaustive=True),
    "streamed-more": Way(2, STREAMED, ["i2v_clip"], exhaustive=True),
    "context-more": Way(2, CONTEXT, ["ti2v"], exhaustive=True),
    "fsdp-context": Way(4, {**FSDP, "context_parallel": 2}, ["two_experts"], exhaustive=True),
    "fsdp-4": Way(4, FSDP, ["t2v"], exhaustive=True),
    "streamed-4": Way(4, {**STREAMED, "host_memory": "pageable"}, ["t2v"], exhaustive=True),
}
QUANTIZED = {"int8": False, "fp8": True}  # whether it is exhaustive
ADAPTED = {
    "lora-streamed": False,
    "lora-guidance-gather": True,
    "lora-fsdp-more": True,
    "lora-context-more": True,
}
EXHAUSTIVE = {name: way.exhaustive for name, way in WAYS.items()} | QUANTIZED | ADAPTED


def each(*names):
    """Parameters that begin with a way's name, or are one: marked as the way is."""
    marks = {True: [pytest.mark.exhaustive], False: []}
    values = [name if isinstance(name, tuple) else (name,) for name in names]
    return [pytest.param(*value, marks=marks[EXHAUSTIVE[value[0]]]) for value in values]


EACH_CASE = [(name, case) for name, way in WAYS.items() for case in way.cases]


@pytest.fixture(scope="module")
def lora(checkpoint, tmp_path_factory):
    return write_lora(checkpoint("t2v"), tmp_path_factory.mktemp("lora"), seed=3)


def flags_of(adapted):
    """The flags of a way with an adapter."""
    return WAYS[adapted.removeprefix("lora-")].flags


@pytest.fixture(scope="module")
def world(checkpoint, images, lora, tmp_path_factory):
    """Return, for a way's name, the folder of its files and what its ranks reported.

    All ways of as many processes run in the same, one after the other; but the exhaustive ones
    in another.
    """
    done = {}

    def run(name):
        size = WAYS[name].num_processes if name in WAYS else 2
        key = size, EXHAUSTIVE[name]
        if key not in done:
            folder = tmp_path_factory.mktemp("world")
            ways = {
                other: {
                    "flags": way.flags,
                    "cases": {
                        case: (
                            checkpoint(kind_of(case)),
                            {"prompt": PROMPT, "seed": SEED, **sampling_of(case, images)},
                        )
                        for case in way.cases
                    },
                }
                for other, way in WAYS.items()
                if (way.num_processes, way.exhaustive) == key
            }
            if size == 2:
                adapted = checkpoint("t2v"), lora, {"prompt": PROMPT, **sampling_of("t2v", images)}
                ways |= {
                    way: {"flags": flags_of(way), "cases": {}, "lora": adapted}
                    for way, exhaustive in ADAPTED.items()
                    if exhaustive == key[1]
                }
                sampling = {"prompt": PROMPTS[0], **SMALL}
                ways |= {
                    dtype: {
                        "flags": {"shard_transport": "gather", "dtype": dtype},
                        "cases": {"tiny-shapes": ("tiny-shapes", sampling)},
                    }
                    for dtype, exhaustive in QUANTIZED.items()
                    if exhaustive == key[1]
                }
            settings = {"options": {"accelerator": "cpu"}, "ways": ways}
            settings |= {"prompts": PROMPTS, "sampling": SMALL}
            done[key] = folder, run_forked("generator_world", size, folder, settings)
        folder, reports = done[key]
        return folder / name, [report.get(name) for report in reports]

    return run


@pytest.fixture(scope="module")
def one_process():
    with VideoGenerator.from_pretrained(accelerator="cpu") as generator:
        generator.setup()
        return PredictLoop(generator._fabric).run(
            generator.module, PromptDataset(PROMPTS, **SMALL), return_predictions=True
        )


@pytest.mark.parametrize(("name", "case"), each(*EACH_CASE))
def test_all_ranks_make_the_frames_of_plain_diffusers(world, checkpoint, images, name, case):
    folder, ranks = world(name)
    expected = make_plain_frames(checkpoint(kind_of(case)), sampling_of(case, images))
    for rank in range(len(ranks)):
        frames = np.load(folder / f"{case}-{rank}.npy")
        if WAYS[name].context == 1:
            assert np.array_equal(frames, expected)
        else:
            difference = np.abs(frames.astype(int) - expected)
            assert difference.max() <= 1  # of 255
            assert difference.mean() <= 255e-3
    assert all(report[case]["repeats"] for report in ranks)


@pytest.mark.parametrize(("name", "case"), each(*(e for e in EACH_CASE if "fsdp" in e[0])))
def test_each_rank_holds_and_reads_its_part_alone(world, name, case):
    _, ranks = world(name)
    for report in ranks:
        assert report[case]["other"] == 0
        assert report[case]["trained"] == 0
        assert report[case]["read"] == report[case]["local"]
        # Rows that do not divide go to the first ranks: their part is a little larger.
        assert abs(report[case]["local"] / report[case]["whole"] - 1 / len(ranks)) < 0.1
        assert report[case]["kept_forwards"] == 0  # for a backward that never comes
    assert sum(report[case]["local"] for report in ranks) == ranks[0][case]["whole"]


@pytest.mark.exhaustive
def test_each_of_four_ranks_that_stream_holds_its_part_alone(world):
    _, ranks = world("streamed-4")
    for report in ranks:
        assert 0 < report["t2v"]["held"] <= report["t2v"]["streamed"] / 4 + 4096


@pytest.mark.parametrize(("name", "case"), each(*EACH_CASE))
def test_each_rank_computes_its_part_of_the_tokens(world, checkpoint, images, name, case):
    _, ranks = world(name)
    module = VideoGenerator.from_pretrained(checkpoint(kind_of(case)), accelerator="cpu").module
    sampling = sampling_of(case, images)
    from fastvideo_lightning import SamplingParams

    tokens = module.num_tokens(SamplingParams(**sampling))
    for report in ranks:
        assert report[case]["tokens"] == [tokens // WAYS[name].context]


@pytest.mark.parametrize("name", each(*WAYS))
def test_five_prompts_are_five_files_and_the_frames_of_one_process(world, one_process, name):
    folder, ranks = world(name)
    assert sorted(index for report in ranks for index in report["prompts"]) == [0, 1, 2, 3, 4]
    files = sorted(folder.glob("videos/*"))
    assert len(files) == 5
    assert all(file.suffix == ".mp4" and file.stat().st_size for file in files)
    for video in one_process:
        frames = np.load(folder / f"prompt-{video.index}.npy").astype(int)
        assert np.abs(frames - video.frames).max() <= (WAYS[name].context > 1)


@pytest.mark.parametrize("way", each(*ADAPTED))
def test_a_lora_comes_and_goes_on_all_ranks_as_on_one(world, checkpoint, images, lora, way):
    folder, _ = world(way)
    sampling = {"prompt": PROMPT, "save_video": False, **sampling_of("t2v", images)}
    with VideoGenerator.from_pretrained(checkpoint("t2v"), accelerator="cpu") as generator:
        before = generator.generate_video(**sampling).frames.astype(int)
        generator.load_lora(lora)
        adapted = generator.generate_video(**sampling).frames.astype(int)
    assert np.abs(adapted - before).max() > 10
    for rank in range(2):
        frames = np.load(folder / f"lora-{rank}.npy")
        for mine, expected in zip(frames, (before, adapted, before), strict=True):
            assert np.abs(mine - expected).max() <= ("context" in way)


@pytest.mark.parametrize("dtype", each(*QUANTIZED))
def test_quantized_weights_stream_in_parts_and_make_the_frames_of_one_process(world, dtype):
    folder, ranks = world(dtype)
    with VideoGenerator.from_pretrained(accelerator="cpu", dtype=dtype) as generator:
        expected = generator.generate_video(PROMPTS[0], **SMALL, save_video=False).frames
    for rank, report in enumerate(ranks):
        assert np.array_equal(np.load(folder / f"tiny-shapes-{rank}.npy"), expected)
        assert report["tiny-shapes"]["held"] <= report["tiny-shapes"]["streamed"] / 2 + 4096
