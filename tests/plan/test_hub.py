"""A plan of a hub id that is not here, asked of a hub on this machine."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.recipes import RECIPES

from fastvideo_lightning.checkpoint.pipeline import open_checkpoint
from fastvideo_lightning.cli.app import run
from tests.plan.test_headers import VIDEO, folder  # noqa: F401

HUB_ID, COMMIT = "Wan-AI/Wan2.1-VACE-14B-diffusers", "a" * 40


class Hub(ThreadingHTTPServer):
    """The hub's answers for one model, and how many bytes they were."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.root, self.sent_bytes = root, 0


class Answer(BaseHTTPRequestHandler):
    """The list of files, and files or ranges of them."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer(with_body=False)

    def do_GET(self) -> None:  # noqa: N802
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        path = path.replace("/resolve/main/", f"/resolve/{COMMIT}/")
        file = self.server.root / path.partition(f"/{HUB_ID}/resolve/{COMMIT}/")[2]
        if path.startswith(f"/api/models/{HUB_ID}/revision/nowhere"):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(f"/api/models/{HUB_ID}"):
            files = [each for each in self.server.root.rglob("*") if each.is_file()]
            siblings = [
                {"rfilename": str(each.relative_to(self.server.root)), "size": each.stat().st_size}
                for each in files
            ]
            facts: object = {"id": HUB_ID, "sha": COMMIT, "siblings": siblings}
            if path.startswith(f"/api/models/{HUB_ID}/tree/"):
                facts = [
                    {"type": "file", "path": s["rfilename"], "size": s["size"], "oid": COMMIT}
                    for s in siblings
                ]
            self._send(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})
        elif path.startswith(f"/{HUB_ID}/resolve/{COMMIT}/") and file.is_file():
            self._send_file(file, with_body=with_body)
        elif path.startswith(f"/{HUB_ID}/"):
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _send_file(self, file: Path, *, with_body: bool) -> None:
        size = file.stat().st_size
        asked = self.headers.get("Range")
        start, _, stop = (asked or f"bytes=0-{size - 1}").removeprefix("bytes=").partition("-")
        end = min(int(stop or size - 1) + 1, size)
        headers = {"ETag": f'"{file.name}"', "X-Repo-Commit": COMMIT}
        if not with_body:
            self._send(200, b"", {**headers, "Content-Length": str(size)})
            return
        assert end - int(start) < 1 << 20, f"{file} was asked for whole"
        with file.open("rb") as source:
            source.seek(int(start))
            self._send(206 if asked else 200, source.read(end - int(start)), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.server.sent_bytes += len(body)


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """As `HF_ENDPOINT` would, had it been there at the import."""
    path = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", url)  # as diffusers asks
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + path)


@pytest.fixture
def hub(folder, monkeypatch, tmp_path):  # noqa: F811
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    use_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_plan_of_a_hub_id_fetches_headers_alone_and_leaves_nothing(hub, tmp_path, capsys):
    assert run(["plan", "--model", str(hub.root), *VIDEO]) == 0
    expected = capsys.readouterr().out.split("\n", 1)[1]
    assert run(["plan", "--model", HUB_ID, *VIDEO]) == 0
    printed = capsys.readouterr()
    assert printed.out.split("\n", 1)[1] == expected
    assert printed.err == ""
    assert 10_000 < hub.sent_bytes < 1_000_000
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not left


def test_a_model_or_revision_that_the_hub_has_not_is_named(hub, capsys):
    assert run(["plan", "--model", "nobody/nothing", *VIDEO]) == 2
    assert "The hub has no nobody/nothing" in capsys.readouterr().err
    assert run(["plan", "--model", HUB_ID, "--revision", "nowhere", *VIDEO]) == 2
    assert f"The hub has no {HUB_ID} at revision nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["plan", *VIDEO], ["generate", "--prompt", "x"]])
@pytest.mark.parametrize("offline_by", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", None])
def test_without_a_network_the_error_says_what_to_type(
    command, offline_by, hub, monkeypatch, capsys
):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    if offline_by:
        monkeypatch.setenv(offline_by, "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", bool(offline_by))
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    assert run([*command, "--model", HUB_ID]) != 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"{HUB_ID} is not in the local cache" in said
    assert f"hf download {HUB_ID}" in said
    assert (f"{offline_by} is set, which forbids downloads: unset it" in said) == bool(offline_by)
    assert ("Connect to the network" in said) == (not offline_by)


@pytest.mark.parametrize("command", [["plan", *VIDEO], ["generate", "--prompt", "x"]])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("modular_model_index.json", "must name a modular pipeline of diffusers in _class_name"),
        ("config.json", f"{HUB_ID} is no diffusers pipeline: it has no model_index.json"),
    ],
)
def test_what_is_no_pipeline_on_the_hub_or_in_its_cache_is_told_from_what_is_not_there(
    command, name, said, hub, monkeypatch, capsys, tmp_path
):
    hub.root = tmp_path / "other"
    hub.root.mkdir()
    (hub.root / name).write_text("{}")
    assert run([*command, "--model", HUB_ID]) != 0
    assert said in capsys.readouterr().err
    if command[0] == "generate" and name != "config.json":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        for offline in (command, ["plan", *VIDEO]):  # a plan leaves nothing in the cache
            assert run([*offline, "--model", HUB_ID]) != 0
            assert said in capsys.readouterr().err


def test_a_modular_pipeline_on_the_hub_is_fetched_with_the_components_that_its_index_names(
    hub, tmp_path, monkeypatch
):
    hub.root = tmp_path / "modular"
    pipeline = RECIPES["WanModularPipeline"].build()
    pipeline.save_pretrained(str(hub.root), overwrite_modular_index=True)
    index = hub.root / "modular_model_index.json"
    index.write_text(index.read_text().replace(str(hub.root), HUB_ID))
    for _ in range(2):  # from the hub, then from its cache
        checkpoint = open_checkpoint(HUB_ID)
        assert set(checkpoint.components) >= {"transformer", "text_encoder", "vae", "scheduler"}
        for name in checkpoint.components:
            there = {file.name for file in (hub.root / name).iterdir()}
            assert {file.name for file in checkpoint.folder_of(name).iterdir()} == there
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
