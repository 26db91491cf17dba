"""What can be read through the page: files of its output folder, and nothing else."""

import http.client
import io
import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs Gradio: pip install '.[serve]'")

from fastvideo_lightning.serve.form import FIELDS  # noqa: E402
from fastvideo_lightning.serve.server import check_address, serving  # noqa: E402
from fastvideo_lightning.serve.studio import Model, Studio  # noqa: E402

TOKEN = "nobody-may-read-this-4711"
PASSWORDS = "root:x:0:0"


@dataclass
class Page:
    """A running page over a model that takes an image, so that it has uploads too."""

    port: int
    output: Path
    secret: Path

    def ask(self, method: str, path: str, body: object = None, **headers: str):
        """Send a request as it stands: no client library tidies the path."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        content = None if body is None else json.dumps(body)
        link.putrequest(method, path, skip_host="host" in headers, skip_accept_encoding=True)
        for name, value in {"content-type": "application/json", **headers}.items():
            link.putheader(name, value)
        if content is not None:
            link.putheader("content-length", str(len(content)))
        link.endheaders(content.encode() if content is not None else None)
        answer = link.getresponse()
        if "event-stream" in (answer.getheader("content-type") or ""):
            text = b""
            while b"process_completed" not in text and (line := answer.readline()):
                text += line
        else:
            text = answer.read(2_000_000)
        link.close()
        return answer.status, text.decode(errors="replace")


@pytest.fixture(scope="module")
def page(checkpoint, tmp_path_factory) -> Iterator[Page]:
    root = tmp_path_factory.mktemp("page")
    model = shutil.copytree(checkpoint("i2v_clip"), root / "model")
    (model / "sampling.json").write_text('{"height": 32, "width": 32, "num_frames": 5}')
    (root / "secret.txt").write_text(TOKEN)
    (root / "videos2").mkdir()
    (root / "videos2" / "near.txt").write_text(TOKEN)
    output = root / "videos"
    output.mkdir()
    (output / "video.mp4").write_text("a video")
    (output / "link.mp4").symlink_to(root / "secret.txt")
    (output / "folder").symlink_to(root)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving(Studio(Model(str(model), accelerator="cpu"), output_path=output), port=port):
        yield Page(port, output, root / "secret.txt")
    assert sorted(path.name for path in output.iterdir()) == ["folder", "link.mp4", "video.mp4"]


def spellings(page: Page) -> list[str]:
    """Ways to write the path of a file that is not the page's."""
    up = "/".join([".."] * 12)
    plain = [
        "/etc/passwd",
        f"{up}/etc/passwd",
        f"{page.output}/../secret.txt",
        f"{page.output}/link.mp4",
        f"{page.output}/folder/secret.txt",
        f"{page.output}2/near.txt",
        "../secret.txt",
        "secret.txt",
        str(page.secret),
        f"file://{page.secret}",
        f"http://127.0.0.1:{page.port}/",
        f"/proc/self/root{page.secret}",
    ]
    coded = [quote(path, safe="") for path in plain]
    return plain + coded + [quote(path, safe="") for path in coded] + ["..%5c..%5csecret.txt"]


def routes() -> list[str]:
    """Every route that Gradio has, whether the page uses it or not."""
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as blocks:
        pass
    blocks.queue()
    return [*gr.routes.App.create_app(blocks).openapi()["paths"], "/{path}", "/gradio_api/{path}"]


def fill(route: str, value: str) -> str:
    """Put the value where the route has its last variable, and a word where it has others."""
    *before, last = route.split("{")
    filled = "".join(part.replace(part.partition("}")[0] + "}", "x", 1) for part in before[1:])
    return before[0] + filled + value + last.partition("}")[2] if before else route


def test_no_route_gives_a_file_from_outside_of_the_output_folder(page) -> None:
    tried = 0
    for route in routes():
        if "{" not in route:
            continue
        for path in spellings(page):
            for method in ("GET", "POST"):
                status, text = page.ask(method, fill(route, path).replace(" ", "%20"))
                assert TOKEN not in text, (route, path)
                assert PASSWORDS not in text, (route, path)
                tried += 1
                if "file=" in route:
                    assert status in (403, 404, 405), (route, path, status)
    assert tried > 500


def test_a_file_of_the_output_folder_is_read_only_once_it_was_shown(page) -> None:
    import gradio as gr

    route = f"/gradio_api/file={page.output}/video.mp4"
    assert page.ask("GET", route)[0] == 403
    gr.set_static_paths(page.output / "video.mp4")
    assert page.ask("GET", route) == (200, "a video")


def test_routes_that_the_page_has_no_use_for_do_not_exist(page) -> None:
    used = {"/", "/config", "/config/", "/theme.css", "/favicon.ico", "/manifest.json"}
    used |= {"/robots.txt", "/static/{path}", "/assets/{path}", "/gradio_api/file={path_or_url}"}
    used |= {"/gradio_api/startup-events", "/gradio_api/heartbeat/{session_hash}"}
    used |= {"/gradio_api/queue/join", "/gradio_api/queue/data"}
    used |= {"/gradio_api/upload", "/gradio_api/upload_progress"}
    unused = [route for route in routes() if route not in used]
    assert len(unused) > 20
    for route in unused:
        for method in ("GET", "POST"):
            assert page.ask(method, fill(route, "x"))[0] == 404, route


def join(page: Page, **values: object) -> str:
    """Press the button as a script would; return everything that is answered."""
    config = json.loads(page.ask("GET", "/config")[1])
    (button,) = (c["id"] for c in config["components"] if c["props"].get("elem_id") == "make")
    number = next(d["id"] for d in config["dependencies"] if [button, "click"] in d["targets"])
    given = {**dict.fromkeys(FIELDS), "prompt": "a", "num_inference_steps": 1, **values}
    session = {"fn_index": number, "session_hash": f"s{abs(hash(str(values)))}"}
    status, text = page.ask(
        "POST", "/gradio_api/queue/join", {"data": list(given.values()), **session}
    )
    if status != 200:
        return f"{status} {text}"
    return page.ask("GET", f"/gradio_api/queue/data?session_hash={session['session_hash']}")[1]


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.txt", "{output}/../secret.txt"])
def test_an_image_field_takes_no_path_that_was_not_uploaded(page, path) -> None:
    path = path.format(output=page.output)
    answer = join(page, image_path={"path": path, "meta": {"_type": "gradio.FileData"}})
    assert TOKEN not in answer
    assert PASSWORDS not in answer
    assert '"success":false' in answer.replace(" ", "")
    assert not list(page.output.glob("a*.mp4"))


@pytest.mark.parametrize("more", [{}, {"meta": {}}, {"orig_name": "x.svg"}, {"path": "http://x/"}])
def test_an_image_that_says_of_itself_no_upload_is_not_opened(page, tmp_path, more) -> None:
    path = tmp_path / "private.png"
    Image.new("RGB", (32, 32), "red").save(path)
    is_elsewhere = "path" in more
    meta = {"meta": {"_type": "gradio.FileData"}} if is_elsewhere else {}
    answer = join(page, image_path={"path": str(path), **meta, **more})
    assert answer == "404 There is no such thing here."
    assert not list(page.output.glob("a*.mp4"))


def test_an_image_that_was_uploaded_is_opened(page) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "PNG")
    files = {"files": ("mine.png", picture.getvalue())}
    route = f"http://127.0.0.1:{page.port}/gradio_api/upload"
    (path,) = httpx.post(route, files=files, timeout=20).json()
    answer = join(page, image_path={"path": path, "meta": {"_type": "gradio.FileData"}})
    assert '"success":true' in answer.replace(" ", "")
    assert "Done" in answer
    for made in page.output.glob("a.*"):
        made.unlink()


def test_a_path_as_bare_text_is_no_image_either(page) -> None:
    answer = join(page, image_path="/etc/passwd")
    assert PASSWORDS not in answer
    assert '"success":false' in answer.replace(" ", "")


def test_a_prompt_names_a_file_inside_of_the_output_folder_whatever_it_says(page) -> None:
    before = set(page.output.parent.rglob("*.mp4"))
    answer = join(page, prompt="../../../outside", image_path=None)
    assert "First frame is missing" in answer
    assert set(page.output.parent.rglob("*.mp4")) == before


def test_a_page_for_this_machine_answers_to_no_other_name(page) -> None:
    assert page.ask("GET", "/", host="evil.example")[0] == 400
    assert page.ask("GET", "/", host=f"localhost:{page.port}")[0] == 200


def test_a_taken_port_is_said_with_what_to_pass(page) -> None:
    with pytest.raises(OSError, match=f"Cannot listen on 127.0.0.1:{page.port}: .* another --host"):
        check_address("127.0.0.1", page.port)
