"""The page of a batch: what it shows, and that what it says can be typed."""

import html
import json
import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import pytest

from fastvideo_lightning.batch.gallery import typed_command, write_gallery
from fastvideo_lightning.batch.manifest import DONE, FAILED, MANIFEST, Entry
from fastvideo_lightning.cli.app import cli
from fastvideo_lightning.output.video import GeneratedVideo

PARAMETERS = {
    "height": 64,
    "width": 96,
    "num_frames": 17,
    "num_inference_steps": 8,
    "guidance_scale": 4.0,
    "dtypes": {"transformer": "float32", "vae": "float32"},
}
EVIL = "</h2><script>alert(\"x\")</script> & 'quoted' `id` $(id) -x"


def add(folder: Path, prompt: str, seed: int = 7, *, file: str | None = "a.mp4", **more) -> Entry:
    """Note a video and write its file, unless it failed."""
    entry = Entry(
        prompt=prompt,
        seed=seed,
        status=DONE if file else FAILED,
        file=file,
        model="tiny-shapes",
        versions={"torch": "2.9"},
        **{"parameters": PARAMETERS, **more},
    )
    if file:
        frames = np.full((3, 32, 48, 3), 40 * (seed % 6), np.uint8)
        GeneratedVideo(frames, prompt, seed, 8).save(folder / file)
    with (folder / MANIFEST).open("ab") as manifest:
        manifest.write(entry.to_line() + b"\n")
    return entry


def typed(entry: Entry, folder: Path) -> dict[str, object]:
    """Parse the command as the shell and the command do."""
    program, verb, *words = shlex.split(typed_command(entry, folder))
    assert (program, verb) == ("fastvideo-lightning", "generate")
    found = cli.get_command(click.Context(cli), verb)
    values = found.make_context(verb, words, **cli.context_settings).params
    return {name: value for name, value in values.items() if value not in (None, False)}


def test_the_page_has_each_video_with_its_picture_seed_settings_and_command(tmp_path):
    entry = add(tmp_path, "a red circle")
    add(tmp_path, "a blue square", 8, file="b c?.mp4")
    made = write_gallery(tmp_path)
    assert (made.path.name, made.num_videos, made.num_failed, made.num_gone) == (
        *("gallery.html", 2, 0, 0),
    )
    page = made.path.read_text(encoding="utf-8")
    assert re.findall(r'<video[^>]*?src="([^"]+)"', page) == ["./a.mp4", "./b%20c%3F.mp4"]
    assert len(re.findall(r'poster="data:image/webp;base64,\w', page)) == 2
    assert "seed 7 · 96x64 · 17 frames · 8 steps" in page
    assert "<dt>versions</dt><dd>torch 2.9</dd>" in page
    assert typed_command(entry, tmp_path) in html.unescape(page)
    assert "http" not in page, "it needs nothing from anywhere"


def test_what_people_typed_is_text_on_the_page(tmp_path):
    add(tmp_path, EVIL)
    add(tmp_path, EVIL + "2", file=None, error=EVIL)
    page = write_gallery(tmp_path).path.read_text(encoding="utf-8")
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert" in page


def test_a_file_from_elsewhere_or_that_is_gone_is_not_shown(tmp_path):
    folder = tmp_path / "night"
    folder.mkdir()
    add(folder, "a", file="gone.mp4")
    (folder / "gone.mp4").unlink()
    add(folder, "b", file="../b.mp4")
    add(folder, "c", file="c.mp4")
    made = write_gallery(folder)
    assert (made.num_videos, made.num_gone) == (1, 2)
    assert "b.mp4" not in made.path.read_text()


def test_a_prompt_that_failed_is_told_until_it_was_made(tmp_path):
    add(tmp_path, "first", file=None, error="no memory")
    add(tmp_path, "second", file=None, error="no luck")
    made = write_gallery(tmp_path)
    assert (made.num_videos, made.num_failed) == (0, 2)
    assert "no memory" in made.path.read_text()
    add(tmp_path, "first")
    made = write_gallery(tmp_path)
    assert (made.num_videos, made.num_failed) == (1, 1)
    assert "no memory" not in made.path.read_text()


@pytest.mark.parametrize("prompt", ["a red circle", EVIL, "-1 is a number", "two\nlines", "$HOME"])
def test_the_command_asks_for_the_same_video(tmp_path, prompt):
    parameters = {**PARAMETERS, "negative_prompt": "", "cache": "first_block", "fps": 8}
    parameters["pipeline_arguments"] = {"strength": 0.7}
    entry = Entry(prompt, 7, DONE, parameters=parameters, model="tiny-shapes")
    assert typed(entry, tmp_path) == {
        **{"prompt": prompt, "seed": 7, "model": "tiny-shapes", "dtype": "fp32"},
        **{name: value for name, value in PARAMETERS.items() if name != "dtypes"},
        **{"fps": 8, "cache": "first_block", "pipeline_arguments": {"strength": 0.7}},
        "output_path": str(tmp_path),
    }


def test_the_command_names_the_commit_of_a_model_of_the_hub_and_what_was_turned_on(tmp_path):
    settings = {"vae_tiling": True, "compile": False, "context_parallel": 1}
    entry = Entry("a", 7, DONE, model="you/model@0123abc", settings=settings)
    assert typed(entry, tmp_path) == {
        **{"prompt": "a", "seed": 7, "model": "you/model", "revision": "0123abc"},
        **{"vae_tiling": True, "output_path": str(tmp_path)},
    }
    (tmp_path / "at@home").mkdir()
    there = Entry("a", 7, DONE, model=str(tmp_path / "at@home"))
    assert typed(there, tmp_path)["model"] == str(tmp_path / "at@home")


def test_a_folder_without_a_batch_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no manifest\.jsonl in .* Pass the folder of a"):
        write_gallery(tmp_path)


@pytest.fixture
def thousand(tmp_path):
    """A folder of a thousand videos."""
    entry = add(tmp_path, "video 0", 0, file="0.mp4")
    with (tmp_path / "manifest.jsonl").open("a") as file:
        for number in range(1, 1000):
            shutil.copy(tmp_path / "0.mp4", tmp_path / f"{number}.mp4")
            line = {**asdict(entry), "prompt": f"video {number}", "file": f"{number}.mp4"}
            file.write(json.dumps({**line, "seed": number}) + "\n")
    return tmp_path


def test_a_thousand_videos_are_one_page(thousand):
    made = write_gallery(thousand)
    assert made.num_videos == 1000
    assert made.path.stat().st_size < 20e6


BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), "chromedriver"


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.skipif(
    not (BROWSER and shutil.which(DRIVER)), reason="no chromium and chromedriver on this machine"
)
def test_in_a_browser_a_thousand_videos_fit_a_phone_play_and_are_found(thousand):
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{word}")
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(str(shutil.which(DRIVER)))
    )
    try:
        size = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(write_gallery(thousand).path.as_uri())
        script = "return document.documentElement.scrollWidth"
        assert driver.execute_script(script) == 360, "nothing is pushed out at the side"
        script = """const video = document.querySelector("video"), done = arguments[0];
            video.muted = true;  // nobody has touched the page yet
            video.play().then(() => done(video.videoWidth), (error) => done(String(error)))"""
        assert driver.execute_async_script(script) == 48
        driver.find_element("id", "filter").send_keys("VIDEO 99")
        script = 'return document.querySelectorAll("article:not([hidden])").length'
        assert driver.execute_script(script) == 11
        assert [line for line in driver.get_log("browser") if line["level"] == "SEVERE"] == []
    finally:
        driver.quit()
