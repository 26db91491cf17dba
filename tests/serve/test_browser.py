"""The page as a visitor sees it, in headless Chromium."""

import json
import shutil
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from support.waiting import wait_until

pytest.importorskip("gradio", reason="the page needs Gradio: pip install '.[serve]'")
pytest.importorskip("selenium", reason="the browser is driven by selenium: pip install '.[test]'")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="no chromium and chromedriver on this machine"
    ),
]

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402

from fastvideo_lightning.serve.jobs import Request  # noqa: E402
from fastvideo_lightning.serve.limits import Limits  # noqa: E402
from fastvideo_lightning.serve.server import serving  # noqa: E402
from fastvideo_lightning.serve.studio import Model, Studio  # noqa: E402

# Fields and buttons of which one lies over another, by their ids.
_OVERLAPS = """
const names = ['prompt', 'make', 'cancel', 'width', 'height', 'num_frames', 'fps', 'video',
  'status', 'num_inference_steps', 'guidance_scale', 'gpu_memory_budget', 'gallery', 'plan'];
const boxes = names.map(n => [n, document.getElementById(n).getBoundingClientRect()]);
return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
  .filter(([b, q]) => Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1
                   && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 1)
  .map(([b]) => a + ' ' + b));
"""
# What can be typed into or pressed and has no name, or is left out by the Tab key.
_UNLABELLED = """
return [...document.querySelectorAll('input, textarea, button, summary, video')]
  .filter(e => e.checkVisibility())
  .filter(e => !(e.ariaLabel || e.title || e.textContent.trim()
                 || (e.labels && [...e.labels].some(l => l.textContent.trim()))
                 || e.closest('#video')) || e.tabIndex < 0)
  .map(e => e.outerHTML.slice(0, 200));
"""
# Text whose contrast with what is behind it is less than 4.5 to 1 (WCAG 2.2, 1.4.3).
_FAINT = """
const parts = c => { const m = c.match(/[\\d.]+/g).map(Number); return [...m, 1].slice(0, 4); };
const light = c => { const [r, g, b] = c.map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const behind = e => { for (; e; e = e.parentElement) {
  const c = getComputedStyle(e).backgroundColor;
  if (c.startsWith('rgb') && parts(c)[3] > 0.9) return parts(c); } return [255, 255, 255]; };
return [...document.querySelectorAll('main *')]
  .filter(e => e.checkVisibility() && !e.disabled && getComputedStyle(e).color.startsWith('rgb')
    && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
  .map(e => { const [a, b] = [light(parts(getComputedStyle(e).color).slice(0, 3)),
                              light(behind(e).slice(0, 3))];
              return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e]; })
  .filter(([ratio]) => ratio < 4.5)
  .map(([ratio, e]) => ratio.toFixed(2) + ' ' + e.outerHTML.slice(0, 200));
"""


class Visitor:
    """Someone in front of the page."""

    def __init__(self, address: str) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(BROWSER)
        for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
            options.add_argument(f"--{word}")
        options.add_argument("--window-size=1280,1000")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        service = webdriver.ChromeService(str(DRIVER))
        self.address = address
        self.driver = webdriver.Chrome(options=options, service=service)

    def open(self) -> None:
        self.driver.get(self.address)
        wait_until(lambda: self.find("#make") and "Describe a video" in self.status, timeout_s=60)

    def find(self, selector: str):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def at(self, width: int, height: int) -> None:
        """Look at the page through a window of that size, also where no window is as narrow."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)

    @property
    def status(self) -> str:
        return " ".join(element.text for element in self.find("#status"))

    def fill(self, name: str, text: str) -> None:
        (field,) = self.find(f"#{name} textarea, #{name} input")
        field.clear()
        field.send_keys(text)

    def press(self, name: str) -> None:
        # The click itself is the browser's; the wait is for a button that may be pressed.
        wait_until(lambda: self.find(f"#{name}")[0].is_enabled())
        self.driver.execute_script("arguments[0].scrollIntoView()", self.find(f"#{name}")[0])
        self.find(f"#{name}")[0].click()

    def wait_for(self, text: str) -> str:
        try:
            wait_until(lambda: text in self.status)
        except AssertionError as error:
            raise AssertionError(
                f"{text!r} does not come; the page says {self.status!r}"
            ) from error
        return self.status

    def requests(self) -> list[dict]:
        logged = (json.loads(entry["message"]) for entry in self.driver.get_log("performance"))
        return [entry["message"] for entry in logged]


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def visitor(output) -> Iterator[Visitor]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    studio = Studio(
        Model(accelerator="cpu"), output_path=output, limits=Limits(max_side=96, max_steps=100)
    )
    with serving(studio, port=port) as address:
        visitor = Visitor(address)
        try:
            yield visitor
        finally:
            visitor.driver.quit()


def test_a_visitor_makes_a_video_and_the_page_asks_no_other_server(visitor, output) -> None:
    visitor.open()
    wait_until(lambda: "Smallest possible budget" in visitor.find("#plan")[0].text)
    assert "Videos are kept in" in visitor.driver.find_element(By.TAG_NAME, "body").text
    visitor.fill("prompt", "a blue square moves up")
    visitor.fill("width", "48")
    visitor.press("make")
    assert "48x64, 17 frames at 8 fps, seed 1024" in visitor.wait_for("Done")
    wait_until(lambda: "48x64, 17 frames, 8 steps" in visitor.find("#plan")[0].text)
    with av.open(output / "a_blue_square_moves_up.mp4") as container:
        assert (container.streams.video[0].width, container.streams.video[0].frames) == (48, 17)

    def is_playing() -> bool:
        script = "const v = document.querySelector('#video video'); return v && v.videoWidth"
        return visitor.driver.execute_script(script) == 48

    wait_until(is_playing, timeout_s=20)
    logged = visitor.requests()
    asked = [
        e["params"]["request"]["url"] for e in logged if e["method"] == "Network.requestWillBeSent"
    ]
    urls = {url for url in asked if "://" in url}
    assert any("a_blue_square_moves_up.mp4" in url for url in urls)
    assert all(url.startswith(visitor.address) for url in urls), urls
    answers = [e["params"]["response"] for e in logged if e["method"] == "Network.responseReceived"]
    assert not [answer["url"] for answer in answers if answer["status"] >= 400]


def test_the_report_stands_under_the_video_and_its_link_is_the_file(visitor, output) -> None:
    (frame,) = visitor.find("#report iframe")
    visitor.driver.switch_to.frame(frame)
    try:
        said = visitor.driver.find_element(By.TAG_NAME, "body").text
        assert "1 video in" in said
        assert "denoise" in said
        assert visitor.find("svg")
    finally:
        visitor.driver.switch_to.default_content()
    (link,) = visitor.find("#report a")
    with urllib.request.urlopen(link.get_attribute("href"), timeout=20) as answer:
        (file,) = output.glob("*.report.html")
        assert answer.read() == file.read_bytes()


def test_what_was_made_is_shown_with_its_settings_and_fills_the_form_again(visitor) -> None:
    wait_until(lambda: visitor.find("#gallery li"), timeout_s=20)
    assert "48x64, 17 frames at 8 fps, 8 steps" in visitor.find("#gallery li")[0].text
    visitor.fill("prompt", "something else")
    visitor.fill("width", "96")
    again = visitor.find("#gallery button")[0]
    assert again.text == "Again with these"
    again.send_keys("\n")  # from the keyboard

    def value_of(name: str) -> str:
        return visitor.find(f"#{name} textarea, #{name} input")[0].get_attribute("value")

    wait_until(lambda: value_of("prompt") == "a blue square moves up" and value_of("width") == "48")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1366])
def test_nothing_runs_out_of_the_window_or_lies_over_another(visitor, width, scheme) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    visitor.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    visitor.at(width, 768)
    visitor.driver.execute_script(f"document.body.classList.toggle('dark', {scheme == 'dark':d})")
    time.sleep(0.3)
    assert visitor.driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert not visitor.driver.execute_script(_OVERLAPS)
    assert not visitor.driver.execute_script(_UNLABELLED)
    assert not visitor.driver.execute_script(_FAINT)
    visitor.at(1280, 1000)


def test_a_budget_that_nothing_fits_is_refused_with_the_smallest_before_the_run(
    visitor, output
) -> None:
    before = set(output.iterdir())
    visitor.fill("gpu_memory_budget", "0.05")
    visitor.press("make")
    assert "the smallest possible is" in visitor.wait_for("This cannot be made")
    wait_until(lambda: "There is no plan for this" in visitor.find("#plan")[0].text)
    visitor.fill("gpu_memory_budget", "much")
    visitor.press("make")
    visitor.wait_for("GPU memory budget (GiB) must be a number of GiB above 0")
    visitor.fill("gpu_memory_budget", "3")
    visitor.find("#gpu_memory_budget textarea, #gpu_memory_budget input")[0].send_keys("\n")
    wait_until(lambda: "of a budget of 3" in visitor.find("#plan")[0].text)
    assert set(output.iterdir()) == before


def test_on_a_laptop_the_button_and_the_video_are_in_view_and_the_video_stays(visitor) -> None:
    visitor.at(1366, 768)
    visitor.driver.execute_script("window.scrollTo(0, 0)")
    for name in ("make", "cancel", "video", "status", "prompt"):
        top, bottom = visitor.driver.execute_script(
            f"const b = document.querySelector('#{name}').getBoundingClientRect();"
            "return [b.top, b.bottom]"
        )
        assert 0 <= top < bottom <= 768, name
    visitor.driver.execute_script("window.scrollBy(0, 150)")
    bounds = "return document.querySelector('#video').getBoundingClientRect().top"
    assert visitor.driver.execute_script("return window.scrollY") > 80, "it would have left"
    wait_until(lambda: visitor.driver.execute_script(bounds) >= 0)
    visitor.at(1280, 1000)


def test_a_wrong_size_is_said_in_the_words_of_the_page(visitor) -> None:
    visitor.driver.refresh()
    wait_until(lambda: visitor.find("#make"))
    visitor.fill("width", "50")
    visitor.press("make")
    said = visitor.wait_for("This cannot be made")
    assert "Width must be a multiple of 16" in said
    assert "Width 48" in said
    visitor.fill("width", "500")
    visitor.press("make")
    assert visitor.wait_for("Width must be 96 or less here, got 500. Enter Width 96.")
    visitor.fill("width", "64")
    visitor.fill("guidance_scale", "-1")
    visitor.press("make")
    assert visitor.wait_for("Guidance must be a finite number, 0 or more, got -1")
    visitor.fill("guidance_scale", "2")


def test_the_plan_is_that_of_the_form_also_where_an_earlier_one_takes_longer(
    visitor, monkeypatch
) -> None:
    visitor.driver.get(visitor.address)
    wait_until(lambda: [plan for plan in visitor.find("#plan") if "17 frames" in plan.text])
    plan = Studio.plan

    def plan_slowly(studio: Studio, request: Request) -> str:
        text = plan(studio, request)  # a refusal is said at once
        time.sleep(1)
        return text

    monkeypatch.setattr(Studio, "plan", plan_slowly)
    for width in ("48", "500"):  # one after the other, the first plan being made meanwhile
        visitor.fill("width", width)
        visitor.find("#width input")[0].send_keys("\n")
    visitor.press("make")
    visitor.wait_for("Width must be 96 or less here, got 500")
    time.sleep(3)
    assert "There is no plan for this" in visitor.find("#plan")[0].text


def test_a_long_video_shows_its_steps_survives_a_reload_and_can_be_cancelled(
    visitor, output
) -> None:
    before = set(output.glob("*.mp4"))
    for name, value in {"width": "96", "height": "96", "num_inference_steps": "100"}.items():
        visitor.fill(name, value)
    visitor.press("make")
    visitor.wait_for("of 100")
    assert visitor.find("#status [role=progressbar]")
    visitor.driver.refresh()
    visitor.wait_for("of 100")
    visitor.press("cancel")
    visitor.wait_for("Cancelled")
    wait_until(lambda: visitor.find("#make")[0].is_enabled())
    assert set(output.glob("*.mp4")) == before
    # A reload aborts what the page listens to, which Gradio logs; nothing failed to load.
    failed = [e for e in visitor.driver.get_log("browser") if e["source"] == "network"]
    assert not failed, failed
