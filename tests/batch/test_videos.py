import json
import threading
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from support.checkpoints import PROMPT, SIZE

from fastvideo_lightning import VideoGenerator, VideoModule
from fastvideo_lightning.batch.folder import BatchFolder, StorageError
from fastvideo_lightning.output.video import GeneratedVideo

PROMPTS = [PROMPT, {"prompt": "a blue square", "seed": 9, "num_frames": 1}, "a green circle"]


@pytest.fixture(scope="module")
def generator(checkpoint):
    with VideoGenerator.from_pretrained(checkpoint("t2v"), accelerator="cpu") as generator:
        yield generator


def read_manifest(path):
    return [json.loads(line) for line in (path / "manifest.jsonl").read_text().splitlines()]


def fail_on(generator, *prompts, error=None):
    """Have the text encoder fail for these prompts."""
    pipeline = generator.module.pipeline
    encode = type(pipeline).encode_prompt

    def encode_or_fail(self, prompt, *args, **kwargs):
        if prompt in prompts:
            raise error or RuntimeError(f"no {prompt}\nmore")
        return encode(self, prompt, *args, **kwargs)

    return type(pipeline), "encode_prompt", encode_or_fail


def test_each_video_is_the_one_that_is_made_alone(generator, tmp_path):
    batch = generator.generate_videos(PROMPTS, output_path=tmp_path, seed=5, **SIZE)
    videos = list(batch)
    assert [(v.index, v.seed, v.frames.shape[0]) for v in videos] == [
        (0, 5, 5),
        (1, 9, 1),
        (2, 7, 5),
    ]
    assert (batch.total, batch.num_skipped, batch.num_made, batch.failed) == (3, 0, 3, [])
    alone = generator.generate_video("a green circle", save_video=False, seed=7, **SIZE)
    assert (videos[2].frames == alone.frames).all()
    for video, line in zip(videos, read_manifest(tmp_path), strict=True):
        assert tmp_path / line["file"] == video.video_path
        assert (line["prompt"], line["seed"], line["status"]) == (video.prompt, video.seed, "done")
        assert line["parameters"]["num_inference_steps"] == SIZE["num_inference_steps"]
        assert line["time"]["generation_s"] > 0


def test_a_video_is_given_out_once_its_file_is_whole_and_the_next_is_made(generator, tmp_path):
    made = []

    class Listener:
        def on_predict_batch_end(self, batch):
            made.append(batch["index"])

    fabric = generator._fabric
    fabric._callbacks.insert(0, Listener())
    try:
        for video in generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE):
            assert video.video_path.stat().st_size > 0
            assert len(made) <= video.index + 2, "made further ahead than one"
    finally:
        del fabric._callbacks[0]
    assert made == [0, 1, 2]


def test_what_is_done_is_not_made_again_and_what_is_new_is(generator, tmp_path):
    assert len(list(generator.generate_videos(PROMPTS[:2], output_path=tmp_path, **SIZE))) == 2
    again = generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE)
    assert (again.total, again.num_skipped) == (3, 2)
    assert [video.prompt for video in again] == ["a green circle"]
    other_steps = {**SIZE, "num_inference_steps": 1}
    assert len(list(generator.generate_videos(PROMPTS, output_path=tmp_path, **other_steps))) == 3
    assert len(list(tmp_path.glob("*.mp4"))) == 6


def test_without_resume_all_are_made_again_under_new_names(generator, tmp_path):
    for _ in range(2):
        batch = generator.generate_videos([PROMPT], output_path=tmp_path, resume=False, **SIZE)
        assert len(list(batch)) == 1
    assert len(list(tmp_path.glob("*.mp4"))) == 2


def test_the_same_prompt_and_seed_twice_are_two_videos(generator, tmp_path):
    twice = [{"prompt": PROMPT, "seed": 3}] * 2
    first = generator.generate_videos(twice, output_path=tmp_path, **SIZE)
    next(first)
    first.close()
    made = len(list(tmp_path.glob("*.mp4")))
    rest = generator.generate_videos(twice, output_path=tmp_path, **SIZE)
    assert len(list(rest)) == 2 - made
    assert len(list(tmp_path.glob("*.mp4"))) == 2


def test_a_prompt_that_fails_is_noted_and_the_others_are_made(generator, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(*fail_on(generator, "a blue square"))
        batch = generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE)
        assert [video.index for video in batch] == [0, 2]
    assert [(entry.prompt, entry.error) for entry in batch.failed] == [
        ("a blue square", "no a blue square")
    ]
    statuses = {line["prompt"]: line["status"] for line in read_manifest(tmp_path)}
    assert statuses == {PROMPT: "done", "a blue square": "failed", "a green circle": "done"}
    again = generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE)
    assert [video.prompt for video in again] == ["a blue square"]


@pytest.mark.parametrize(("fail_fast", "times_told"), [(False, 1), (True, 0)])
def test_the_reason_of_a_failure_is_told_once_and_its_prompt_always(
    generator, tmp_path, monkeypatch, caplog, fail_fast, times_told
):
    monkeypatch.setattr(*fail_on(generator, "a blue square"))
    batch = generator.generate_videos(PROMPTS, output_path=tmp_path, fail_fast=fail_fast, **SIZE)
    with pytest.raises(RuntimeError, match="no a blue") if fail_fast else nullcontext():
        list(batch)
    assert f"Failed: 'a blue square'{'.' if fail_fast else ': '}" in caplog.text
    assert caplog.text.count("no a blue square") == times_told, "else the exception says it"


def test_with_fail_fast_the_first_failure_ends_the_batch(generator, tmp_path, monkeypatch):
    monkeypatch.setattr(*fail_on(generator, "a blue square", error=KeyError("x")))
    batch = generator.generate_videos(PROMPTS, output_path=tmp_path, fail_fast=True, **SIZE)
    with pytest.raises(KeyError):
        list(batch)
    assert batch.num_made == 1, "the one before is written"
    assert [line["status"] for line in read_manifest(tmp_path)][-1] == "failed"
    assert read_manifest(tmp_path)[-1]["error"] == "KeyError: 'x'"


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_a_stopped_batch_keeps_what_was_made_and_leaves_nothing_half(
    generator, tmp_path, monkeypatch, stop
):
    with monkeypatch.context() as patched:
        patched.setattr(*fail_on(generator, "a blue square", error=stop))
        batch = generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE)
        with pytest.raises(type(stop)):
            list(batch)
    assert batch.num_made == 1
    assert [line["status"] for line in read_manifest(tmp_path)] == ["done"]
    assert not (tmp_path / ".partial").exists()
    assert len(list(generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE))) == 2


def test_a_stopped_batch_counts_what_other_workers_made_and_nothing_from_before(
    generator, tmp_path
):
    list(generator.generate_videos(PROMPTS[:1], output_path=tmp_path, **SIZE))
    for resume in (True, False):
        batch = generator.generate_videos(PROMPTS, output_path=tmp_path, resume=resume, **SIZE)
        with batch:
            before = int(resume)
            assert (batch.num_skipped, batch.num_there) == (before, before)
            other = BatchFolder(tmp_path)
            other.open(batch._entries, resume=resume)
            assert other.claim(2)
            video = GeneratedVideo(np.zeros((1, 2, 2, 3), np.uint8), "a green circle", 7, 8)
            assert other.keep(video, batch._entries[2], 2).name.startswith("a_green_circle")
            assert next(batch).index == before
            other.close()
        assert batch.num_there == before + batch.num_made + 1


def test_what_another_worker_has_in_work_is_left_to_it_and_waited_for(generator, tmp_path, caplog):
    batch = generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE)
    other = BatchFolder(tmp_path)
    other.open(batch._entries)
    assert other.claim(1)
    video = GeneratedVideo(np.zeros((1, 2, 2, 3), np.uint8), "a blue square", 9, 8)

    def make() -> None:
        while "Other workers are making the last 1 prompts" not in caplog.text:
            time.sleep(0.05)
        other.keep(video, batch._entries[1], 1)

    thread = threading.Thread(target=make)
    with caplog.at_level("INFO"):
        thread.start()
        assert [video.index for video in batch] == [0, 2]
        thread.join()
    other.close()
    assert (batch.num_there, batch.num_made, batch.failed) == (3, 2, [])
    lines = read_manifest(tmp_path)
    assert [line["prompt"] for line in lines] == [PROMPT, "a blue square", "a green circle"]


def test_what_a_worker_that_is_gone_had_in_work_is_made_by_another(generator, tmp_path):
    batch = generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE)
    other = BatchFolder(tmp_path)
    other.open(batch._entries)
    assert other.claim(1)
    other.close()
    assert sorted(video.index for video in batch) == [0, 1, 2]


def test_what_another_worker_failed_at_is_a_failure_here_and_the_next_run_tries_it(
    generator, tmp_path
):
    batch = generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE)
    other = BatchFolder(tmp_path)
    other.open(batch._entries)
    assert other.claim(1)
    other.fail(replace(batch._entries[1], status="failed", error="no blue"), 1)
    assert [video.index for video in batch] == [0, 2]
    assert [entry.error for entry in batch.failed] == ["no blue"]
    again = generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE)
    assert [video.index for video in again] == [1], "whether or not the other is still there"
    other.close()
    assert {path.suffix for path in tmp_path.iterdir()} == {".mp4", ".jsonl"}


def test_a_batch_that_is_not_read_to_its_end_makes_no_more_and_lets_go(generator, tmp_path):
    with generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE) as batch:
        assert next(batch).index == 0
        with pytest.raises(RuntimeError, match="in the middle of a batch"):
            generator.generate_video(PROMPT, save_video=False, **SIZE)
    assert len(list(tmp_path.glob("*.mp4"))) == 2, "the one that was made is written"
    generator.generate_video(PROMPT, save_video=False, **SIZE)
    list(generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE))


def test_a_folder_that_takes_no_more_ends_the_batch_and_is_told_of_once(
    generator, tmp_path, monkeypatch, caplog
):
    def fill_up(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(GeneratedVideo, "save", fill_up)
        batch = generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE)
        with pytest.raises(StorageError, match="Free some space"):
            list(batch)
    assert "No space left" not in caplog.text, "the exception says it"
    assert [line["status"] for line in read_manifest(tmp_path)] == ["failed"]
    assert not list(tmp_path.glob("*.mp4"))
    assert len(list(generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE))) == 3


def test_a_batch_that_cannot_begin_leaves_its_folder_to_the_next(generator, tmp_path, monkeypatch):
    def fail(self):
        raise OSError("no more")

    with monkeypatch.context() as patched:
        patched.setattr("fastvideo_lightning.batch.manifest.Manifest.read", fail)
        with pytest.raises(OSError, match="no more") as kept:
            generator.generate_videos(PROMPTS[:1], output_path=tmp_path, **SIZE)
    # The error, and with it every local name of the batch that failed, is still held here.
    assert kept.value is not None
    assert len(list(generator.generate_videos(PROMPTS[:1], output_path=tmp_path, **SIZE))) == 1


def test_another_cache_makes_another_video(generator, tmp_path, monkeypatch):
    def cached(name):
        from dataclasses import replace

        config = replace(type(generator).config.fget(generator), cache=name)
        monkeypatch.setattr(type(generator), "config", property(lambda _: config))
        return generator.generate_videos([PROMPT], output_path=tmp_path, **SIZE)

    with cached("first_block") as batch:
        before = batch.num_skipped, batch._entries[0].identity
    with cached(None) as plain:
        assert (before[0], plain.num_skipped) == (0, 0)
        assert plain._entries[0].identity != before[1]
        assert "cache" not in plain._entries[0].parameters


def test_another_dtype_makes_another_video(checkpoint, tmp_path):
    identities = set()
    for dtype in ("fp32", "bf16"):
        module = VideoModule.from_pretrained(checkpoint("t2v"), dtype=dtype, device_type="cpu")
        with VideoGenerator(module, accelerator="cpu", progress=False) as generator:
            for _ in range(2):  # before the weights are read, and after
                batch = generator.generate_videos([PROMPT], output_path=tmp_path, **SIZE)
                assert batch.num_skipped == (0 if generator._fabric is None else 1)
                identities.add(batch._entries[0].identity)
                list(batch)
    assert len(identities) == 2
    dtypes = [line["parameters"]["dtypes"] for line in read_manifest(tmp_path)]
    assert [each["transformer"] for each in dtypes] == ["float32", "bfloat16"]


def test_other_tiles_keep_what_is_there_and_say_so(checkpoint, tmp_path, caplog):
    for tiling, skipped in ((False, 0), (True, 1)):
        with (
            VideoGenerator.from_pretrained(
                checkpoint("t2v"), accelerator="cpu", vae_tiling=tiling
            ) as generator,
            caplog.at_level("INFO"),
        ):
            batch = generator.generate_videos([PROMPT], output_path=tmp_path, **SIZE)
            assert batch.num_skipped == skipped
            list(batch)
    assert "1 of the videos that are there were not made with vae_tiling=True" in caplog.text
    (line,) = read_manifest(tmp_path)
    assert line["settings"] == {"vae_tiling": False, "compile": False, "context_parallel": 1}


def test_a_path_is_told_once_the_file_is_whole_and_before_the_next_video_is_made(
    generator, tmp_path
):
    heard = []

    class Listener:
        def on_predict_batch_end(self, batch):
            if batch["index"] == 1:
                told.wait(10)
            heard.append(batch["index"])

    told = threading.Event()

    def tell(path):
        assert path.stat().st_size > 0
        heard.append(path.name)
        told.set()

    generator._fabric._callbacks.insert(0, Listener())
    try:
        batch = generator.generate_videos(PROMPTS[:2], output_path=tmp_path, **SIZE)
        batch.on_written = tell
        list(batch)
    finally:
        del generator._fabric._callbacks[0]
    assert heard == [0, "a_red_circle_moves_right.mp4", 1, "a_blue_square.mp4"]


def test_what_is_done_needs_no_weights(generator, checkpoint, tmp_path):
    list(generator.generate_videos([PROMPT], output_path=tmp_path, **SIZE))
    fresh = VideoGenerator(VideoModule.from_pretrained(checkpoint("t2v")), accelerator="cpu")
    with fresh:
        assert list(fresh.generate_videos([PROMPT], output_path=tmp_path, **SIZE)) == []
        assert fresh._fabric is None


def test_parts_of_a_list_are_the_videos_of_the_whole(generator, tmp_path):
    def make(folder, **options):
        batch = generator.generate_videos(PROMPTS, output_path=folder, seed=5, **SIZE, **options)
        videos = list(batch)
        assert batch.total == len(videos)
        return {video.index: (video.seed, video.frames.tobytes()) for video in videos}

    whole = make(tmp_path / "whole")
    parts = [make(tmp_path / f"part{number}", shard=f"{number}/2") for number in (1, 2)]
    assert [sorted(part) for part in parts] == [[0, 2], [1]]
    assert parts[0] | parts[1] == whole
    assert make(tmp_path / "none", shard="5/7") == {}


@pytest.mark.parametrize("shard", ["", "3", "0/2", "3/2", "-1/2", "1/0", "a/b", "1/2/3", 3])
def test_what_is_no_part_of_a_list_is_refused(generator, tmp_path, shard):
    with pytest.raises((TypeError, ValueError), match="shard must be a part and the number of"):
        generator.generate_videos(PROMPTS, output_path=tmp_path, shard=shard)


def test_seeds_are_the_videos_that_their_seeds_make_alone_and_parts_have_them_too(
    generator, tmp_path
):
    prompts = [PROMPT, {"prompt": "a blue square", "name": "square", "seed": 9}]

    def make(folder, **options):
        batch = generator.generate_videos(
            prompts, output_path=folder, seed=5, seeds=2, **SIZE, **options
        )
        return {video.video_path.name: (video.index, video.frames.tobytes()) for video in batch}

    whole = make(tmp_path / "whole")
    stem = PROMPT.replace(" ", "_")
    names = [f"{stem}_5.mp4", f"{stem}_6.mp4", "square_9.mp4", "square_10.mp4"]
    assert {name: index for name, (index, _) in whole.items()} == {
        name: index for index, name in enumerate(names)
    }
    alone = generator.generate_video("a blue square", save_video=False, seed=10, **SIZE)
    assert whole["square_10.mp4"][1] == alone.frames.tobytes()
    parts = [make(tmp_path / "parts", shard=f"{number}/3") for number in (1, 2, 3)]
    assert [len(part) for part in parts] == [2, 1, 1]
    assert parts[0] | parts[1] | parts[2] == whole


def test_more_seeds_of_a_prompt_leave_those_that_are_there(generator, tmp_path):
    def make(**options):
        batch = generator.generate_videos([PROMPT], output_path=tmp_path, **SIZE, **options)
        return batch.num_skipped, [video.seed for video in batch]

    assert make() == (0, [1024])
    assert make(seeds=3) == (1, [1025, 1026])
    assert make(seeds=3) == (3, [])


def test_a_video_is_called_by_its_name_and_keeps_it_when_its_line_gets_another(
    generator, tmp_path, caplog
):
    def make(name):
        prompts = [{"prompt": PROMPT, "name": name}, "a blue square"]
        return list(generator.generate_videos(prompts, output_path=tmp_path, **SIZE))

    caplog.set_level("INFO")
    assert [video.video_path.name for video in make("shot")] == ["shot.mp4", "a_blue_square.mp4"]
    assert make("shot") == []
    assert "another name" not in caplog.text
    assert make("other") == []
    assert "1 of the videos that are there are asked for under another name" in caplog.text
    assert [line["name"] for line in read_manifest(tmp_path)] == ["shot", None]
    (tmp_path / "shot.mp4").unlink()
    assert [video.video_path.name for video in make("other")] == ["other.mp4"]


def test_what_a_model_refuses_of_a_prompt_is_told_once_for_all_its_seeds(generator, tmp_path):
    prompts = [PROMPT, {"prompt": "a blue square", "width": 17}]
    with pytest.raises(ValueError, match="^Prompt 2, a blue square: width") as refused:
        generator.generate_videos(prompts, output_path=tmp_path, seeds=3, **SIZE)
    assert len(str(refused.value).splitlines()) == 1
