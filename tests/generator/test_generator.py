import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import PROMPT, SIZE
from support.running_out import ALL_RESIDENT, make_generator, run_out

from fastvideo_lightning import OffloadConfig, VideoGenerator, VideoModule
from fastvideo_lightning.callbacks.placement import Placement
from fastvideo_lightning.config import OF_DIFFUSERS
from fastvideo_lightning.generator.placements import _told, make_placements
from fastvideo_lightning.generator.replan import explain_memory
from fastvideo_lightning.loop import MOMENTS
from fastvideo_lightning.modules.steps import Stage

FindCheckpoint = Callable[[str], Path]


@pytest.fixture
def generator(checkpoint: FindCheckpoint) -> Iterator[VideoGenerator]:
    with VideoGenerator.from_pretrained(checkpoint("t2v"), accelerator="cpu") as generator:
        yield generator


def test_video_is_written_and_described(generator: VideoGenerator, tmp_path: Path) -> None:
    video = generator.generate_video(PROMPT, output_path=tmp_path, seed=5, fps=8, **SIZE)
    again = generator.generate_video(PROMPT, output_path=tmp_path, seed=5, fps=8, **SIZE)
    assert video.frames.shape == (5, 32, 48, 3)
    assert (video.prompt, video.seed, video.fps) == (PROMPT, 5, 8)
    assert video.video_path == tmp_path / "a_red_circle_moves_right.mp4"
    assert again.video_path == tmp_path / "a_red_circle_moves_right_1.mp4"
    assert video.video_path.stat().st_size > 0
    assert video.generation_time_s > 0
    assert video.peak_gpu_memory_gib is None
    assert (video.frames == again.frames).all()


def test_opening_reads_no_weight_and_the_first_video_reads_them(
    checkpoint: FindCheckpoint,
) -> None:
    with VideoGenerator.open(checkpoint("t2v"), accelerator="cpu", progress=False) as generator:
        assert all(weight.is_meta for weight in generator.module.parameters())
        generator.generate_video(PROMPT, save_video=False, **SIZE)
        assert not any(weight.is_meta for weight in generator.module.parameters())


def test_what_is_asked_for_is_resolved_and_warned_of_once(
    checkpoint: FindCheckpoint, tmp_path: Path
) -> None:
    wrong = {"negative_prompt": "blue", "guidance_scale": 1.0, **SIZE}
    with VideoGenerator.open(checkpoint("t2v"), accelerator="cpu", progress=False) as generator:
        for make in (
            lambda: generator.generate_video(PROMPT, save_video=False, **wrong),
            lambda: generator.generate_video(generator.resolve(PROMPT, **wrong), save_video=False),
            lambda: list(generator.generate_videos([PROMPT], output_path=tmp_path, **wrong)),
        ):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                make()
            told = [w for w in said if "negative_prompt has no effect" in str(w.message)]
            assert len(told) == 1


def test_what_is_resolved_makes_the_same_video_and_takes_no_other_sampling(
    generator: VideoGenerator,
) -> None:
    prompt = generator.resolve(PROMPT, seed=5, **SIZE)
    video = generator.generate_video(prompt, save_video=False)
    plain = generator.generate_video(PROMPT, save_video=False, seed=5, **SIZE)
    assert (video.frames == plain.frames).all()
    for ask in (generator.generate_video, lambda p, **s: generator.plan(p.params, **s)):
        with pytest.raises(TypeError, match=r"seed besides\. Pass all of them to resolve"):
            ask(prompt, seed=6)


@pytest.mark.parametrize("name", OF_DIFFUSERS)
def test_a_keyword_of_diffusers_is_refused_with_what_stands_for_it(
    generator: VideoGenerator, name: str
) -> None:
    for ask in (generator.generate_video, generator.resolve, generator.generate_videos):
        with pytest.raises(TypeError, match=f"not know {name!r}. {re.escape(OF_DIFFUSERS[name])}"):
            ask(PROMPT, **{name: "latent"})
        with pytest.raises(ValueError, match=re.escape(OF_DIFFUSERS[name])):
            generator.resolve(PROMPT, **SIZE, pipeline_arguments={name: "latent"})


def test_opening_checks_what_was_chosen(checkpoint: FindCheckpoint) -> None:
    with pytest.raises(ValueError, match="attention_backend"):
        VideoGenerator.open(checkpoint("t2v"), OffloadConfig(attention_backend="fast"))
    with pytest.raises(FileNotFoundError):
        VideoGenerator.open("no/such/model", accelerator="cpu")


def test_nothing_is_written_unless_asked(
    generator: VideoGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert generator.generate_video(PROMPT, save_video=False, **SIZE).video_path is None
    assert not list(tmp_path.iterdir())


def test_the_users_callbacks_hear_the_steps(checkpoint: FindCheckpoint) -> None:
    class Listener:
        heard: list[tuple[str, int, int]] = []

        def on_denoise_step_start(self, step: int, num_steps: int, module: Any) -> None:
            assert isinstance(module, VideoModule)
            self.heard.append(("start", step, num_steps))

        def on_denoise_step_end(self, step: int, num_steps: int) -> None:
            self.heard.append(("end", step, num_steps))

    with VideoGenerator.from_pretrained(
        checkpoint("t2v"), accelerator="cpu", callbacks=[Listener()]
    ) as generator:
        generator.generate_video(PROMPT, save_video=False, **SIZE)
    assert Listener.heard == [("start", 0, 2), ("end", 0, 2), ("start", 1, 2), ("end", 1, 2)]


def test_a_step_gives_its_latents_timestep_and_model_output(checkpoint: FindCheckpoint) -> None:
    class KeepLatents:
        def __init__(self) -> None:
            self.steps: list[tuple[torch.Tensor, ...]] = []
            self.edits = False

        def on_denoise_step_end(self, latents, timestep, model_output) -> None:
            self.steps.append((latents.clone(), timestep.clone(), model_output.clone()))
            if self.edits:
                latents.zero_()

    keep = KeepLatents()
    with VideoGenerator.from_pretrained(
        checkpoint("t2v"), accelerator="cpu", callbacks=[keep]
    ) as generator:
        sampling = {**SIZE, "scheduler": "FlowMatchEulerDiscreteScheduler"}
        plain = generator.generate_video(PROMPT, save_video=False, **sampling)
        watch = generator.module._watch
        assert watch is not None
        assert watch._model_output is None, "a step's tensors are let go of"
        (first, *_), (last, timestep, model_output) = keep.steps
        assert torch.allclose(first - timestep / 1000 * model_output, last)  # down to no noise
        vae: Any = generator.module.get_submodule("vae")
        processor = generator.module.pipeline.video_processor
        scale = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)  # as diffusers'
        mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
        with torch.no_grad():
            frames = processor.postprocess_video(vae.decode(last / scale + mean).sample)[0]
        assert ((frames * 255).round().astype("uint8") == plain.frames).all()
        keep.edits = True
        edited = generator.generate_video(PROMPT, save_video=False, **sampling)
    assert (edited.frames != plain.frames).any()


def test_each_moment_has_the_arguments_that_are_said_of_it(
    checkpoint: FindCheckpoint, on_gpu: None, tmp_path: Path
) -> None:
    heard: dict[str, set[str]] = {}

    def hears(moment: str) -> Callable[..., None]:
        return lambda self, **arguments: heard.setdefault(moment, set(arguments)) and None

    recorder = type("Recorder", (), {moment: hears(moment) for moment in MOMENTS})()
    with make_generator(checkpoint, on_oom="replan", callbacks=[recorder]) as generator:
        generator._placing.replace(generator.launch(), OffloadConfig(**ALL_RESIDENT))
        run_out(generator, "transformer", times=1)
        generator.generate_video(PROMPT, output_path=tmp_path, **SIZE)
    assert heard == {moment: set(arguments) for moment, arguments in MOMENTS.items()}


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["transformer.blocks.1", "text_encoder", "vae.decoder"])
def test_after_an_exception_the_next_video_is_right(
    generator: VideoGenerator, tmp_path: Path, error: BaseException, place: str
) -> None:
    expected = generator.generate_video(PROMPT, save_video=False, **SIZE)

    def fail(*_: object) -> None:
        raise error

    handle = generator.module.get_submodule(place).register_forward_hook(fail)
    with pytest.raises(type(error)):
        generator.generate_video(PROMPT, output_path=tmp_path, flow_shift=7.0, **SIZE)
    handle.remove()
    assert not list(tmp_path.iterdir()), "a name was left reserved"
    video = generator.generate_video(PROMPT, output_path=tmp_path, **SIZE)
    assert (video.frames == expected.frames).all()


@pytest.mark.parametrize(
    ("place", "stage", "flag"),
    [
        ("text_encoder", "encode", "text_encoder_cpu_offload=True"),
        ("transformer", "denoise", "dit_layerwise_offload=True"),
        ("vae.decoder", "decode", "vae_cpu_offload=True"),
    ],
)
def test_out_of_memory_names_the_stage_and_the_flag(
    checkpoint: FindCheckpoint, place: str, stage: str, flag: str
) -> None:
    off = {name.removesuffix("=True"): False for name in (flag,)}

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    with VideoGenerator.from_pretrained(checkpoint("t2v"), accelerator="cpu", **off) as generator:
        handle = generator.module.get_submodule(place).register_forward_hook(run_out)
        with pytest.raises(RuntimeError, match=f"in the {stage} stage.*{flag}"):
            generator.generate_video(PROMPT, save_video=False, **SIZE)
        handle.remove()
        generator.generate_video(PROMPT, save_video=False, **SIZE)


def test_memory_advice_never_names_a_flag_that_is_on() -> None:
    for stage in Stage:
        advice = explain_memory(stage, OffloadConfig())
        named = re.findall(r"(\w+)=True", advice)
        assert not [flag for flag in named if getattr(OffloadConfig(), flag)], advice


def test_closing_frees_and_ends_the_generator(checkpoint: FindCheckpoint) -> None:
    import gc
    import weakref

    generator = VideoGenerator.from_pretrained(checkpoint("t2v"), accelerator="cpu")
    generator.generate_video(PROMPT, save_video=False, **SIZE)
    weight = weakref.ref(generator.module.get_submodule("transformer").proj_out.weight)
    generator.close()
    generator.close()
    gc.collect()
    assert weight() is None
    with pytest.raises(RuntimeError, match="closed"):
        generator.generate_video(PROMPT)


def test_the_checkpoints_scheduler_is_back_after_a_flow_shift(generator: VideoGenerator) -> None:
    scheduler = generator.module.pipeline.scheduler
    plain = generator.generate_video(PROMPT, save_video=False, **SIZE)
    shifted = generator.generate_video(PROMPT, save_video=False, flow_shift=9.0, **SIZE)
    assert generator.module.pipeline.scheduler is scheduler
    assert scheduler.config.flow_shift == 3.0
    assert (plain.frames != shifted.frames).any()


def test_flags_without_effect_are_said_once(
    checkpoint: FindCheckpoint, caplog: pytest.LogCaptureFixture
) -> None:
    _told.clear()
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    with caplog.at_level(logging.INFO, logger="fastvideo_lightning"):
        for _ in range(2):
            assert make_placements(module, OffloadConfig(), on_gpu=False) == []
            make_placements(module, OffloadConfig(), on_gpu=True)
    assert len(caplog.records) == 2
    assert "dit_cpu_offload=True has no effect without use_fsdp_inference" in caplog.text


def test_several_processes_on_a_cpu_stream_the_denoiser_together(
    checkpoint: FindCheckpoint,
) -> None:
    module = VideoModule.from_pretrained(checkpoint("two_experts"))
    config = OffloadConfig(shard_transport="gather")
    made = make_placements(module, config, on_gpu=False, num_processes=2)
    assert [callback.target for callback in made] == list(module.denoisers)
    assert {str(callback.shard_transport) for callback in made} == {"gather"}
    plain = OffloadConfig(dit_layerwise_offload=False)
    assert make_placements(module, plain, on_gpu=False, num_processes=2) == []
    coded = OffloadConfig(weight_compression="lossless")
    made = make_placements(module, coded, on_gpu=False, num_processes=2)
    assert {str(callback.weight_compression) for callback in made} == {"none"}  # held once, plain


def test_a_shard_transport_for_one_process_is_said_to_have_no_effect(
    checkpoint: FindCheckpoint, caplog: pytest.LogCaptureFixture
) -> None:
    _told.clear()
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    with caplog.at_level(logging.INFO, logger="fastvideo_lightning"):
        make_placements(module, OffloadConfig(shard_transport="gather"), on_gpu=True)
    assert "shard_transport='gather' has no effect" in caplog.text


@pytest.mark.parametrize(
    ("flags", "is_said"),
    [
        ({"num_slots": 3}, False),
        ({"num_slots": 3, "dit_layerwise_offload": False}, True),
        ({"dit_layerwise_offload": False}, False),
        (
            {
                "num_slots": 3,
                "dit_layerwise_offload": False,
                "text_encoder_layerwise_offload": True,
            },
            False,
        ),
    ],
)
def test_slots_without_effect_are_said(
    checkpoint: FindCheckpoint, caplog: pytest.LogCaptureFixture, flags, is_said: bool
) -> None:
    _told.clear()
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    with caplog.at_level(logging.INFO, logger="fastvideo_lightning"):
        make_placements(module, OffloadConfig(**flags), on_gpu=True)
    assert ("num_slots=3 has no effect where nothing streams." in caplog.text) is is_said


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            {},
            ["LayerwiseOffload", "CPUExecution", "ModelOffload", "ModelOffload", "EncodeAhead"],
        ),
        (
            {
                "dit_layerwise_offload": False,
                "text_encoder_cpu_offload": False,
                "image_encoder_cpu_offload": False,
                "vae_cpu_offload": False,
            },
            ["Resident"] * 4,
        ),
        (
            {"text_encoder_layerwise_offload": True},
            ["LayerwiseOffload", "LayerwiseOffload", "ModelOffload", "ModelOffload"],
        ),
    ],
)
def test_flags_choose_the_callbacks_by_role(
    checkpoint: FindCheckpoint, flags: dict[str, bool], expected: list[str]
) -> None:
    module = VideoModule.from_pretrained(checkpoint("i2v_clip"))
    made = make_placements(module, OffloadConfig(**flags), on_gpu=True)
    assert [type(callback).__name__ for callback in made] == expected
    targets = [callback.target for callback in made if isinstance(callback, Placement)]
    assert targets == ["transformer", "text_encoder", "image_encoder", "vae"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dit_layerwize_offload": True}, TypeError, "Did you mean dit_layerwise_offload"),
        ({"num_gpu": 1}, TypeError, "Did you mean num_gpus"),
        ({"use_fsdp_inference": True}, ValueError, "cannot be combined"),
        ({"dit_layerwise_offload": 1}, TypeError, "must be True or False"),
        ({"num_gpus": 0}, ValueError, "1 or more"),
        ({"num_gpus": "two"}, TypeError, "whole number"),
        ({"accelerator": "tpu"}, ValueError, "accelerator must be one of"),
    ],
)
def test_wrong_options_come_before_the_model_is_looked_for(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        VideoGenerator.from_pretrained("/no/such/folder", **options)


@pytest.mark.parametrize("there", [0, 1, 3])
def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch, there: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    said = (
        f"num_gpus=4 .* which is {there}. Pass num_gpus={there}"
        if there
        else "num_gpus=4 .* this machine has none. .* accelerator='cpu' .* among 4 processes"
    )
    with pytest.raises(ValueError, match=said):
        VideoGenerator.from_pretrained("/no/such/folder", num_gpus=4)


@pytest.mark.parametrize(
    ("sampling", "error", "message"),
    [
        ({"num_inference_step": 2}, TypeError, "Did you mean num_inference_steps"),
        ({"ouput_path": "x"}, TypeError, "Did you mean output_path"),
        ({"height": 33}, ValueError, "height=32"),
        ({"num_inference_steps": 0}, ValueError, "1 or more"),
    ],
)
def test_wrong_sampling_is_refused_at_once(
    generator: VideoGenerator,
    tmp_path: Path,
    sampling: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        generator.generate_video(PROMPT, output_path=tmp_path / "out", **sampling)
    assert not (tmp_path / "out").exists()


def test_empty_prompt_is_refused(generator: VideoGenerator) -> None:
    with pytest.raises(ValueError, match="empty"):
        generator.generate_video("  ")


def test_unwritable_output_is_refused_before_the_work(
    generator: VideoGenerator, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    generator.module.get_submodule("text_encoder").register_forward_pre_hook(
        lambda *_: pytest.fail("work was done")
    )
    with pytest.raises(OSError, match="cannot be written to"):
        generator.generate_video(PROMPT, output_path=tmp_path / "file", **SIZE)
