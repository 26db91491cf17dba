"""What the page takes from a connection: so much, in so much time, whatever it is asked for."""

import asyncio
import json
import socket
import threading
import time

import pytest

uvicorn = pytest.importorskip("uvicorn", reason="the page needs Gradio: pip install '.[serve]'")

from fastvideo_lightning.serve import connections, middleware  # noqa: E402
from fastvideo_lightning.serve.connections import bound_connections  # noqa: E402
from fastvideo_lightning.serve.middleware import Guard  # noqa: E402

JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
READ = [JOIN, UPLOAD]
PATHS = [*READ, "/", "/config", "/gradio_api/queue/data", "/there/is/none"]
MIB = 1 << 20


async def echo(scope, receive, send):
    """Answer with the size of the body; as pages do, do not read what a GET or a `/` sends."""
    size, more = 0, scope["path"] in READ
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    headers = [(b"content-length", b"%d" % len(str(size)))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": str(size).encode()})


@pytest.fixture(params=["h11", pytest.param("httptools", marks=pytest.mark.exhaustive)])
def port(request, tmp_path, monkeypatch):
    """A server with the page's door, whose limits of time are short."""
    pytest.importorskip(request.param)
    monkeypatch.setattr(middleware, "_MAX_BODY_S", 1.0)
    monkeypatch.setattr(middleware, "_MAX_UPLOAD_S", 1.0)
    monkeypatch.setattr(connections, "_MAX_HEAD_S", 1.0)
    monkeypatch.setattr(connections, "_LOOK_EVERY_S", 0.1)
    app = Guard(echo, folder=tmp_path, takes_uploads=True)
    config = uvicorn.Config(app, http=request.param, lifespan="off", log_level="critical")
    bound_connections_after_load(config)
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(20)


def bound_connections_after_load(config):
    config.load()
    bound_connections(config)


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=15)


def head(path, *lines):
    return "\r\n".join([f"POST {path} HTTP/1.1", "host: localhost", *lines, "", ""]).encode()


def read_status(link):
    """The status that comes, or None where the connection is closed without one."""
    try:
        answer = link.recv(1000)
    except ConnectionError:
        return None
    return int(answer.split()[1]) if answer else None


def is_ended(link):
    try:
        while link.recv(1000):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize(("path", "most"), [(JOIN, MIB), (UPLOAD, 21 * MIB)])
def test_a_body_is_read_up_to_its_limit_and_refused_by_413_above_it(port, path, most, is_chunked):
    for size, expected in ((most, 200), (most + 1, 413)):
        body = json.dumps({}).encode().ljust(size)
        with connect(port) as link:
            how = "transfer-encoding: chunked" if is_chunked else f"content-length: {size}"
            link.sendall(head(path, how))
            for first in range(0, size, MIB):
                piece = body[first : first + MIB]
                link.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
            if is_chunked:
                link.sendall(b"0\r\n\r\n")
            assert read_status(link) == expected


def test_a_body_is_read_in_time_that_grows_with_its_size(tmp_path, monkeypatch):
    """In pieces of 1 KiB, so that what copies all that came before would show."""
    monkeypatch.setattr(middleware, "_MAX_BODY_BYTES", 1 << 40)
    monkeypatch.setattr(middleware, "_MAX_BODY_S", 1e6)

    def measure(num_pieces):
        left, piece = num_pieces, b" " * 1024

        async def receive():
            nonlocal left
            left -= 1
            return {"type": "http.request", "body": piece, "more_body": left > 0}

        async def send(message):
            pass

        scope = {"type": "http", "path": JOIN}
        began = time.process_time()
        asyncio.run(Guard(echo, folder=tmp_path, takes_uploads=False)(scope, receive, send))
        return time.process_time() - began

    measure(1000)
    assert measure(32_000) < 10 * measure(8_000)


@pytest.mark.parametrize("drips", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_does_not_come_to_its_end_is_ended(port, path, drips):
    began = time.monotonic()
    with connect(port) as link:
        link.sendall(head(path, "content-length: 1000") + b"{")
        while drips and time.monotonic() < began + 10:
            try:
                link.sendall(b" ")
            except ConnectionError:
                break
            time.sleep(0.2)
        else:
            assert is_ended(link)
    assert time.monotonic() < began + 9


@pytest.mark.parametrize("path", READ)
def test_whose_body_is_late_is_told_so(port, path):
    with connect(port) as link:
        link.sendall(head(path, "content-length: 1000") + b"{")
        assert read_status(link) == 408


@pytest.mark.parametrize("sent", [b"", b"GET", b"GET / HTTP/1.1\r\nhost: a\r\nx: "])
def test_a_head_that_does_not_come_to_its_end_is_ended(port, sent):
    with connect(port) as link:
        link.sendall(sent)
        assert is_ended(link)


def test_a_head_of_any_size_is_not_kept(port):
    with connect(port) as link:
        link.sendall(b"GET / HTTP/1.1\r\nx: ")
        with pytest.raises(ConnectionError):
            link.sendall(b"a" * (64 * MIB))


def test_what_is_asked_for_again_and_again_over_one_connection_is_answered(port):
    with connect(port) as link:
        for _ in range(20):
            link.sendall(head(JOIN, "content-length: 2") + b"{}")
            assert read_status(link) == 200
            time.sleep(0.15)
