"""The tables by card and memory are what the plan says today, and the picker shows them."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
HERE = ROOT / "docs" / "picker"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def picker() -> ModuleType:
    """The script that makes them."""
    spec = importlib.util.spec_from_file_location("picker", HERE / "picker.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_has_the_table_of_the_rows(picker):
    readme = picker.README.read_text(encoding="utf-8")
    assert readme == picker.with_table(readme), f"run {HERE / 'picker.py'}"


@pytest.mark.parametrize(
    ("model", "card", "ram"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "RTX 4060", 16),
        pytest.param(
            "Wan-AI/Wan2.1-T2V-14B-Diffusers", "RTX 3060", 32, marks=pytest.mark.exhaustive
        ),
        pytest.param(
            "Wan-AI/Wan2.2-T2V-A14B-Diffusers", "RTX 4090", 64, marks=pytest.mark.exhaustive
        ),
        pytest.param("Wan-AI/Wan2.2-TI2V-5B-Diffusers", "H100", 16, marks=pytest.mark.exhaustive),
    ],
)
def test_the_rows_are_what_the_plan_says(picker, model, card, ram):
    kept = [
        row
        for row in picker.read_rows()
        if (row["model"], row["card"], row["ram_gib"]) == (model, card, ram)
    ]
    assert kept == picker.make_rows([model], [card], [ram]), f"run {HERE / 'picker.py'}"


def test_every_card_model_and_memory_has_its_rows(picker):
    rows = picker.read_rows()
    sizes = {(r["model"], r["height"], r["width"], r["num_frames"]) for r in rows}
    assert {model for model, *_ in sizes} == picker.MODELS.keys()
    assert len(rows) == len(sizes) * len(picker.CARDS) * len(picker.RAMS_GIB)
    for row in rows:
        if row["time_s"] is not None:
            assert row["gpu_gib"] <= row["vram_gib"]
            assert row["host_gib"] <= row["ram_gib"]
            assert row["few_steps_s"] < row["time_s"]


def test_the_page_has_the_parts_in_the_place_of_their_marks(picker):
    page = (ROOT / "docs" / "which-machine.md").read_text(encoding="utf-8")
    assert all(mark in page for mark in picker.PARTS)
    made = picker.on_page_markdown(page)
    assert not any(mark in made for mark in picker.PARTS)
    assert '<div id="picker"' in made
    assert "### Wan 2.2 A14B, 832x480, 81 frames" in made
    assert picker.on_page_markdown("no marks") == "no marks"


@pytest.fixture(scope="module")
def phone(picker, tmp_path_factory) -> Iterator:
    """The picker in a browser as wide as a phone."""
    pytest.importorskip("selenium", reason="the browser is driven by selenium")
    if not (BROWSER and DRIVER):
        pytest.skip("no chromium and chromedriver on this machine")
    from selenium import webdriver

    page = tmp_path_factory.mktemp("picker") / "page.html"
    style = (ROOT / "docs" / "site.css").read_text(encoding="utf-8")
    pre = "pre > code { white-space: pre-wrap; overflow-wrap: anywhere }"  # as the theme has it
    viewport = '<meta name="viewport" content="width=device-width,initial-scale=1">'
    head = f'<!doctype html><meta charset="utf-8">{viewport}<style>{style}{pre}</style>'
    page.write_text(head + picker.picker(), encoding="utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    metrics = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(page.as_uri())
    yield driver
    driver.quit()


def choose(driver, **chosen: str) -> str:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    for name, value in chosen.items():
        Select(driver.find_element(By.NAME, name)).select_by_value(value)
    return driver.find_element(By.ID, "picked").text


@pytest.mark.slow
def test_the_picker_says_what_to_type_how_long_it_takes_and_what_fits(phone):
    said = choose(phone, card="RTX 3060", ram_gib="32", model="Wan-AI/Wan2.1-T2V-14B-Diffusers")
    assert "fastvideo-lightning pack Wan-AI/Wan2.1-T2V-14B-Diffusers packed" in said
    assert "1280x720, 81 frames\nDoes not fit this card." in said
    assert "3 h 1 min with 50 steps, 9 min with a 4-step adapter. 10.2 GiB on the GPU" in said
    assert "--model packed --height 480 --width 832 --gpu-memory-budget auto" in said
    said = choose(phone, card="H200", ram_gib="128")
    assert "pack" not in said
    assert "Does not fit" not in said
    assert "generate --model Wan-AI/Wan2.1-T2V-14B-Diffusers --gpu-memory-budget auto" in said
    assert phone.get_log("browser") == []


@pytest.mark.slow
def test_nothing_is_wider_than_a_phone_and_every_field_has_a_label(phone):
    choose(phone, card="RTX 3060", ram_gib="32", model="Wan-AI/Wan2.2-TI2V-5B-Diffusers")
    assert phone.execute_script("return document.documentElement.scrollWidth") <= 360
    labels = phone.execute_script(
        "return [...document.querySelectorAll('select')].map(s => s.labels[0].textContent.trim())"
    )
    assert [label.split()[0] for label in labels] == ["GPU", "RAM", "Model"]
