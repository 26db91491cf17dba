"""`/v1/videos`, asked by OpenAI's own client."""

import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("gradio", reason="the page needs Gradio: pip install '.[serve]'")
openai = pytest.importorskip("openai", reason="openai is missing: pip install '.[test]'")

from fastvideo_lightning import VideoGenerator  # noqa: E402
from fastvideo_lightning.serve.limits import Limits  # noqa: E402
from fastvideo_lightning.serve.server import serving  # noqa: E402
from fastvideo_lightning.serve.studio import Model, Studio  # noqa: E402

FAST = {"num_inference_steps": 1, "seed": 7}


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[openai.OpenAI]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    studio = Studio(
        Model(accelerator="cpu"),
        output_path=tmp_path_factory.mktemp("videos"),
        limits=Limits(max_side=96, max_frames=33),
    )
    with (
        serving(studio, port=port) as address,
        openai.OpenAI(base_url=f"{address}v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def refusal(client, **given) -> dict[str, object]:
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.create(**{"prompt": "a red circle", **given})
    assert set(refused.value.body) == {"message", "type", "param", "code"}
    return refused.value.body


def test_a_video_is_created_polled_and_downloaded_as_the_generator_makes_it(
    client, tmp_path: Path
) -> None:
    video = client.videos.create(
        prompt="a red circle", seconds="1", size="32x32", extra_body={**FAST, "fps": 8}
    )
    assert (video.seconds, video.size, video.model) == ("1", "32x32", "tiny-shapes")
    until = time.monotonic() + 60
    while video.status in ("queued", "in_progress") and time.monotonic() < until:
        time.sleep(0.05)
        video = client.videos.retrieve(video.id)
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert video.completed_at >= video.created_at
    client.videos.download_content(video.id).write_to_file(tmp_path / "sent.mp4")
    params = {**FAST, "fps": 8, "num_frames": 9, "width": 32, "height": 32}
    with VideoGenerator.from_pretrained("tiny-shapes", accelerator="cpu") as generator:
        made = generator.generate_video("a red circle", output_path=tmp_path, **params)
    assert (tmp_path / "sent.mp4").read_bytes() == Path(made.video_path).read_bytes()
    with pytest.raises(openai.BadRequestError, match="variant"):
        client.videos.download_content(video.id, variant="thumbnail")


def test_what_cannot_be_made_is_refused_with_what_can(client) -> None:
    assert "num_frames" in refusal(client, extra_body={"num_frames": 8})["message"]
    assert "96" in refusal(client, size="1280x720")["message"]
    assert refusal(client, size="large")["param"] == "size"
    assert refusal(client, seconds="soon")["param"] == "seconds"
    assert refusal(client, seconds="nan")["param"] == "seconds"
    assert "tiny-shapes" in refusal(client, model="sora-2")["message"]
    assert refusal(client, seconds="1", extra_body={"num_frames": 9})["param"] == "seconds"
    assert "seed" in refusal(client, extra_body={"seed": "many"})["message"]


@pytest.mark.parametrize("name", ["sead", "image_path", "video_path", "pipeline_arguments"])
def test_a_field_that_is_not_taken_is_refused_by_name(client, name) -> None:
    assert name in refusal(client, extra_body={name: "/etc/passwd"})["message"]


def test_an_image_for_a_model_that_takes_none_is_refused(client) -> None:
    assert refusal(client, input_reference=("a.png", io.BytesIO(b"none"), "image/png"))["message"]


def test_a_video_that_is_not_there_is_not_found(client) -> None:
    with pytest.raises(openai.NotFoundError, match="There is no video"):
        client.videos.retrieve("4711")
    with pytest.raises(openai.NotFoundError, match="There is no video"):
        client.videos.download_content("4711")


def test_other_sites_and_other_hosts_are_refused(client) -> None:
    url, body = f"{client.base_url}videos", {"prompt": "a red circle"}
    assert httpx.post(url, json=body, headers={"origin": "https://a.b"}).status_code == 403
    assert httpx.post(url, json=body, headers={"host": "a.b"}).status_code == 400


def test_json_is_read_as_form_data_is_and_what_is_too_large_is_refused(client) -> None:
    url = f"{client.base_url}videos"
    sent = httpx.post(url, json={"prompt": "a red circle", "size": "32x32", **FAST})
    assert (sent.status_code, sent.json()["size"]) == (200, "32x32")
    assert httpx.post(url, json=["a red circle"]).status_code == 400
    plain = httpx.post(url, content="a", headers={"content-type": "text/plain"})
    assert "text/plain" in plain.text
    large = httpx.post(url, content=b"x" * (22 << 20), headers={"content-type": "application/json"})
    assert large.status_code == 413
