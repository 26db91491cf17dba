"""The shapes of published models that come with the package, held against what was published."""

import json
from math import prod

import pytest
from huggingface_hub import constants

from fastvideo_lightning.checkpoint import published
from fastvideo_lightning.checkpoint.weights import read_header
from fastvideo_lightning.cli.app import run

WAN_14B = "Wan-AI/Wan2.1-T2V-14B-Diffusers"
# Bytes of a whole repository, as published: weights, tokenizer (21.3 MB), headers and pictures.
REPOSITORIES = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": 28_928_887_859,
    WAN_14B: 80_406_933_703,
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": 34_201_427_557,
}
# Bytes of a component's files, headers included.
A14B = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
FILES = {
    (A14B, "text_encoder"): 4_935_812_536 + 4_983_103_192 + 1_442_935_480,
    (A14B, "vae"): 507_591_892,
    (A14B, "transformer"): 4_863_171_808
    + (4_919_594_456 + 4_919_465_128 + 4_919_594_536)
    + (4_919_465_224 + 4_919_594_552) * 3
    + (4_919_465_224 + 3_095_607_280),
}


@pytest.fixture(scope="module", params=published.published_models())
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    published.write_published(request.param, folder)
    files = {path.parent.name: read_header(path) for path in folder.rglob("*.safetensors")}
    return request.param, files


def size(tensors):
    return sum(prod(t.shape) * t.dtype.itemsize for t in tensors.values())


def test_the_shapes_are_of_as_many_bytes_as_the_published_files(model):
    name, files = model
    if name in REPOSITORIES:
        beside = REPOSITORIES[name] - sum(map(size, files.values()))
        assert 21e6 < beside < 23e6
    for (owner, component), expected in FILES.items():
        if owner == name:
            assert 0 < expected - size(files[component]) < 2e5
    if name == WAN_14B:
        assert len(files["transformer"]) == 1095
        assert size(files["transformer"]) == 57_153_966_336


def test_every_model_says_where_its_numbers_are_from():
    catalog = json.loads((published.ASSETS / "published.json").read_text())
    assert set(catalog["sources"]) - {"others"} <= set(catalog["configs"])
    for name, found in catalog["models"].items():
        assert found["sources"], name
        assert len(found["revision"]) == 40, name
        assert all(part["config"] in catalog["configs"] for part in found["parts"].values()), name


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def plan(capsys, *words):
    status = run(["plan", *words, "--json"])
    printed = capsys.readouterr()
    return json.loads(printed.out) if status == 0 else printed.err.replace("\n", " ")


SMALL = ("--gpu", "RTX 3060", "--height", "480", "--width", "832")


def test_a_plan_of_them_needs_no_network_and_says_so(offline, capsys):
    made = plan(capsys, "--model", WAN_14B, *SMALL, "--host-memory", "64")
    transformer = next(part for part in made["components"] if part["fqn"] == "transformer")
    assert 28.4e9 < transformer["size_bytes"] < 28.8e9
    assert "The shapes are the published ones" in made["notes"][0]
    assert f"{WAN_14B}/tree/38ec498c" in made["notes"][0]
    assert "lightning pack" not in made["notes"][0]


def test_where_hours_are_planned_the_way_with_few_steps_and_its_minutes_are_named(offline, capsys):
    made = plan(capsys, "--model", WAN_14B, *SMALL, "--host-memory", "64")
    assert made["time_s"] > 3600
    assert any("--num-inference-steps 4 --guidance-scale 1 takes 9 min" in n for n in made["notes"])
    fast = plan(capsys, "--model", WAN_14B, *SMALL, "--num-inference-steps", "8")
    assert not any("Sooner" in note for note in fast["notes"])


def test_where_the_host_cannot_hold_what_is_stored_in_fp32_the_plan_is_for_a_packed_one(
    offline, capsys
):
    made = plan(capsys, "--model", WAN_14B, *SMALL, "--host-memory", "32")
    assert f"fastvideo-lightning pack {WAN_14B} packed/" in made["notes"][0]
    held = sum(part["host_bytes"] for part in made["components"])
    assert held <= made["host_memory_bytes"]
    assert "read from the disk" in made["host_line"]


def test_where_the_models_own_size_does_not_fit_the_plan_is_for_the_nearest_that_does(
    offline, capsys
):
    asked = ("--model", WAN_14B, "--gpu", "RTX 3060", "--host-memory", "32")
    made = plan(capsys, *asked)
    instead = "1280x720, 81 frames, takes 16.2 GiB of GPU memory at least, which is too much here."
    assert instead in made["notes"][0]
    assert "This is the plan for --height 480 --width 832." in made["notes"][0]
    assert "The shapes are the published ones" in made["notes"][0]
    smaller = plan(capsys, *asked, "--height", "480", "--width", "832")
    assert made["request"] == smaller["request"]
    assert made["stages"] == smaller["stages"]


@pytest.mark.parametrize("given", [("--height", "720", "--width", "1280"), ("--num-frames", "81")])
def test_a_size_that_was_asked_for_is_refused_with_one_that_fits(given, offline, capsys):
    said = plan(capsys, "--model", WAN_14B, "--gpu", "RTX 3060", *given)
    assert "for 1280x720, 81 frames" in said
    assert "--height 480 --width 832 fits" in said


def test_another_revision_is_asked_of_the_hub(offline, capsys):
    said = plan(capsys, "--model", WAN_14B, *SMALL, "--revision", "refs/pr/1")
    assert "the hub cannot be asked for its headers" in said
