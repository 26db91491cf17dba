"""A video is known by what made it: other bytes under the same name make another one."""

import json
import os
import shutil
from contextlib import closing
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fastvideo_lightning import VideoGenerator, VideoModule
from fastvideo_lightning.checkpoint import weights
from fastvideo_lightning.checkpoint.weights import file_key
from fastvideo_lightning.modules.content import media_keys, model_keys, value_key
from fastvideo_lightning.output.video import GeneratedVideo
from tests.support.loras import write_lora

SMALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1}
PROMPT = "a red circle"


@pytest.fixture
def model(checkpoint, tmp_path):
    """A checkpoint that a test may change."""
    return Path(shutil.copytree(checkpoint("t2v"), tmp_path / "model"))


def keys_of(folder, **options):
    return model_keys(VideoModule.from_pretrained(folder, device_type="cpu", **options))


def retrain(folder):
    (file,) = (folder / "transformer").glob("*.safetensors")
    save_file({n: w + 0.25 for n, w in load_file(file).items()}, file, {"format": "pt"})


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


CHANGES = {
    "transformer": retrain,
    "scheduler": lambda m: change_json(m / "scheduler" / "scheduler_config.json", flow_shift=7.5),
    "vae": lambda m: change_json(m / "vae" / "config.json", latents_mean=[0.5] * 16),
    "tokenizer": lambda m: change_json(
        m / "tokenizer" / "tokenizer_config.json", model_max_length=7
    ),
    "pipeline": lambda m: change_json(m / "model_index.json", boundary_ratio=0.5),
}


@pytest.mark.parametrize("part", CHANGES)
def test_another_file_under_the_same_path_is_another_part_and_no_other(model, part):
    before = keys_of(model)
    CHANGES[part](model)
    after = keys_of(model)
    assert [name for name in before if before[name] != after[name]] == [part]


def test_a_model_that_was_moved_or_copied_whole_is_the_same(model, tmp_path):
    before = keys_of(model)
    shutil.copytree(model, tmp_path / "copy")
    assert keys_of(tmp_path / "copy") == before
    model.rename(tmp_path / "moved")
    assert keys_of(tmp_path / "moved") == before


def test_a_model_is_the_same_before_and_after_it_is_read_and_used(model):
    before = keys_of(model)
    with VideoGenerator.from_pretrained(model, accelerator="cpu", progress=False) as generator:
        assert model_keys(generator.module) == before
        generator.generate_video(PROMPT, save_video=False, **SMALL)
        assert model_keys(generator.module) == before


def test_a_large_file_is_known_by_size_times_inode_and_header(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "READ_WHOLE_BYTES", 10)
    path = tmp_path / "w.safetensors"

    def write(scale, target=path):
        save_file({"a": torch.ones(64) * scale}, target)
        return file_key(target)

    first = write(1.0)
    assert file_key(path) == first
    found = path.stat()
    assert write(2.0) != first
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))  # as a tool does that copies times
    assert file_key(path) != first
    write(1.0, tmp_path / "other")
    os.replace(tmp_path / "other", path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert file_key(path) != first, "another inode"
    assert file_key(path, whole=True) == file_key(path, whole=True)


def test_a_file_of_the_hubs_cache_is_known_by_the_hubs_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "READ_WHOLE_BYTES", 10)
    keys = []
    for cache in ("one", "two"):
        blob = tmp_path / cache / "models--a--b" / "blobs" / "0fad7"
        blob.parent.mkdir(parents=True)
        save_file({"a": torch.ones(64)}, blob)
        link = tmp_path / cache / "models--a--b" / "snapshots" / "c" / "w.safetensors"
        link.parent.mkdir(parents=True)
        link.symlink_to(blob)
        keys.append(file_key(link))
    assert keys[0] == keys[1]


def test_parts_from_memory_are_known_by_their_tensors(model):
    def load():
        return VideoModule.from_pipeline(diffusers.WanPipeline.from_pretrained(model))

    one, two = load(), load()
    assert model_keys(one) == model_keys(two)
    with torch.no_grad():
        two.transformer.blocks[0].attn1.to_q.weight.data[0, 0] += 1
    assert model_keys(one)["transformer"] != model_keys(two)["transformer"]
    assert model_keys(one)["vae"] == model_keys(two)["vae"]


@pytest.mark.parametrize("edit", ["data", "state_dict", "replaced"])
def test_weights_that_were_edited_since_they_were_read_are_others(model, edit):
    with VideoGenerator.from_pretrained(model, accelerator="cpu", progress=False) as generator:
        generator.generate_video(PROMPT, save_video=False, **SMALL)  # a CPU run reads them then
        before, layer = model_keys(generator.module), generator.module.transformer.proj_out
        other = layer.weight.detach() + 1
        if edit == "data":
            layer.weight.data.add_(1)
        elif edit == "state_dict":
            layer.load_state_dict({"weight": other, "bias": layer.bias.detach()})
        else:
            layer.weight = torch.nn.Parameter(other)
        after = model_keys(generator.module)
    assert [name for name in before if before[name] != after[name]] == ["transformer"]


def test_a_fused_adapter_and_one_of_other_bytes_are_known(model, tmp_path):
    pytest.importorskip("peft")
    one, two = (write_lora(model, tmp_path / str(seed) / "style", seed=seed) for seed in (1, 2))
    found = []
    for lora, weight in ((one, 1.0), (two, 1.0), (one, 0.5), (one, 1.0)):
        with VideoGenerator.from_pretrained(model, accelerator="cpu", progress=False) as generator:
            plain = model_keys(generator.module)
            name = generator.load_lora(lora, weight=weight)
            found.append(model_keys(generator.module))
            generator.set_loras({})
            assert model_keys(generator.module) == plain
            generator.set_loras({name: weight})
            generator.fuse_lora()
            generator.unload_lora()
            fused = model_keys(generator.module)
            assert fused["transformer"] != plain["transformer"]
    assert len({keys["loras"] for keys in found}) == 3
    assert found[0] == found[3]


def test_pictures_videos_and_arguments_are_known_by_their_content(tmp_path):
    def write(name, value):
        Image.new("RGB", (8, 8), value).save(tmp_path / name)
        return tmp_path / name

    def keys(value):
        return media_keys({"image_path": value, "pipeline_arguments": {"mask": value}})

    red = keys(write("a.png", "red"))
    assert keys(write("a.png", "blue")) != red
    assert keys(write("b.png", "red")) == red
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    video = GeneratedVideo(frames, "a", 1, 8).save(tmp_path / "v.mp4")
    before = media_keys({"video_path": video})
    GeneratedVideo(frames + 90, "a", 1, 8).save(video)
    assert media_keys({"video_path": video}) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(10_000), torch.cat([torch.zeros(5_000), torch.ones(1), torch.zeros(4_999)])),
        (np.zeros(10_000), np.r_[np.zeros(5_000), 1, np.zeros(4_999)]),
        (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2)),
        (torch.zeros(()), torch.ones(())),
        (Image.new("L", (8, 8), 1), Image.new("L", (8, 8), 2)),
        ([Image.new("L", (8, 8), 1)], [Image.new("L", (8, 8), 2)]),
        ({"a": [1, 2]}, {"a": [1, 3]}),
        (0.5, 0.25),
        ("a", "b"),
    ],
)
def test_values_are_told_apart_by_all_of_their_content(one, other):
    import copy

    assert value_key(one) == value_key(copy.deepcopy(one))
    assert value_key(one) != value_key(other)


def test_a_run_makes_again_what_has_other_inputs_and_says_so(checkpoint, tmp_path, caplog):
    caplog.set_level("INFO", "fastvideo_lightning")
    picture, out = tmp_path / "first.png", tmp_path / "out"
    module = VideoModule.from_pretrained(checkpoint("ti2v"), device_type="cpu")
    asked = {"image_path": picture, "output_path": out, **SMALL}
    numbers = []
    with VideoGenerator(module, accelerator="cpu", progress=False) as generator:
        for colour in ("red", "red", "blue", "red"):
            Image.new("RGB", (32, 32), colour).save(picture)
            with closing(generator.generate_videos([PROMPT], **asked)) as batch:
                list(batch)
                numbers.append((batch.num_made, batch.num_skipped))
    assert numbers == [(1, 0), (0, 1), (1, 0), (0, 1)]
    assert "1 of the videos that are there were made with other inputs" in caplog.text


def test_a_picture_that_is_painted_anew_before_its_turn_is_told_as_it_was_read(
    checkpoint, tmp_path
):
    picture, out = tmp_path / "first.png", tmp_path / "out"
    module = VideoModule.from_pretrained(checkpoint("ti2v"), device_type="cpu")
    Image.new("RGB", (32, 32), "red").save(picture)
    prompts = [{"prompt": PROMPT, "seed": 1}] * 4
    with VideoGenerator(module, accelerator="cpu", progress=False) as generator:
        for _ in generator.generate_videos(prompts, image_path=picture, output_path=out, **SMALL):
            Image.new("RGB", (32, 32), "blue").save(picture)
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert lines[-1]["inputs"]["image_path"] == file_key(picture)
    assert lines[0]["inputs"]["image_path"] != file_key(picture)


@pytest.fixture
def generator(model):
    with VideoGenerator.from_pretrained(model, accelerator="cpu", progress=False) as generator:
        yield generator


def test_adapters_are_not_switched_in_the_middle_of_a_batch(generator, model, tmp_path):
    pytest.importorskip("peft")
    lora = write_lora(model, tmp_path / "style", seed=1)
    verbs = {
        "load_lora": lambda: generator.load_lora(lora, name="other"),
        "set_loras": lambda: generator.set_loras({"style": 0.5}),
        "fuse_lora": generator.fuse_lora,
        "unfuse_lora": generator.unfuse_lora,
        "unload_lora": generator.unload_lora,
    }
    generator.load_lora(lora, name="style")
    batch = generator.generate_videos([PROMPT] * 2, output_path=tmp_path / "out", **SMALL)
    for _ in range(2):  # before the first video, and between two
        for name, verb in verbs.items():
            with pytest.raises(RuntimeError, match=f"{name} cannot be called in the middle"):
                verb()
        next(batch)
    batch.close()
    generator.set_loras({"style": 0.5})


def switch_scheduler(module):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    module.pipeline.scheduler = scheduler


def switch_adapter(module):
    module.set_loras({"style": 0.25})


def switch_peft(module):
    module.pipeline.disable_lora()


def switch_backend(module):
    module.transformer.set_attention_backend("native")


def switch_cache(module):
    module.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.5))


@pytest.mark.parametrize(
    "switch",
    [
        *(switch_scheduler, switch_adapter, switch_peft),
        *(switch_backend, switch_cache),
    ],
)
def test_what_is_switched_past_the_generator_ends_the_batch(generator, model, tmp_path, switch):
    pytest.importorskip("peft")
    generator.load_lora(write_lora(model, tmp_path / "style", seed=1), name="style")
    with closing(
        generator.generate_videos([PROMPT] * 4, output_path=tmp_path / "out", **SMALL)
    ) as batch:
        next(batch)
        switch(generator.module)
        with pytest.raises(RuntimeError, match="was changed in the middle of a batch"):
            list(batch)
